//! Draining workers, and what happens to their listeners.

use std::time::Duration;

use super::{Action, Cluster};
use crate::id::{Time, WorkerId};
use crate::supervise::{Supervisor, SupervisorState};

impl Cluster {
    /// Disconnects a worker; the parameters are those of
    /// [`Primary::disconnect`](crate::primary::Primary::disconnect). Returns false if its channel
    /// is closed.
    pub fn disconnect(
        &mut self,
        now: Time,
        worker: WorkerId,
        keep_listeners: bool,
        drain_spread: Option<Duration>,
    ) -> bool {
        if let Some(supervisor) = &mut self.supervisor {
            supervisor.release(now, worker);
        }
        self.pending.push_back(Action::Announce { worker });
        let told = self.primary.disconnect(worker, keep_listeners, drain_spread);
        if told && self.needs_signal(now, worker) {
            self.terminate(worker);
        }
        told
    }

    /// Whether nothing but its stop signal asks a worker to finish.
    fn needs_signal(&mut self, now: Time, worker: WorkerId) -> bool {
        self.without_ipc.contains(&worker)
            && !self.asked_by_message.contains(&worker)
            && !self.drains_activated(now, worker)
    }

    /// Sends the stop signal to a worker that cannot be told otherwise to finish.
    pub(super) fn terminate(&mut self, worker: WorkerId) {
        if let Some(supervisor) = &mut self.supervisor {
            supervisor.signalled(worker);
        }
        self.pending.push_back(Action::Terminate { worker });
    }

    /// Drains a worker on behalf of the supervisor.
    pub(super) fn drain(&mut self, now: Time, worker: WorkerId) {
        let Some(supervisor) = &self.supervisor else { return };
        // Keep the listeners of a replaced worker for its successor, which may not have asked for
        // all of them yet.
        let keep = supervisor.state() != SupervisorState::Stopping;
        // Spread the reconnects of its clients over time, if other workers can take them.
        let others =
            !matches!(supervisor.state(), SupervisorState::Paused | SupervisorState::Stopping)
                && !supervisor.is_in_the_way(worker);
        let is_surplus = supervisor.is_surplus(worker);
        let is_embedded = supervisor.is_embedded();
        let drain_spread = others.then_some(self.options.drain_spread);
        if let Some((signal, within)) = supervisor.stop_signal(now, worker) {
            self.primary.stops_by(worker, signal, within);
        }
        if !self.disconnect(now, worker, keep, drain_spread) {
            self.terminate(worker);
        }
        if is_embedded {
            self.pending.push_back(Action::Draining { worker });
        }
        if is_surplus {
            self.primary.excuse(worker);
        }
    }

    /// Begins the end of a worker with activated sockets: it gets no new connections. Returns
    /// whether it is ended later, once its queues are empty.
    fn drains_activated(&mut self, now: Time, worker: WorkerId) -> bool {
        if !self.shares.is_active() {
            return false;
        }
        let Some(slot) = self.primary.status(worker).map(|status| status.slot) else {
            return false;
        };
        self.update_shares(now, Some(worker));
        let is_ending = self.supervisor.as_ref().is_none_or(Supervisor::is_stopping);
        let has_successor =
            self.primary.workers().any(|(id, status)| id != worker && status.slot == slot);
        if is_ending || has_successor {
            return false;
        }
        self.shares.leaves(now, worker);
        true
    }
}
