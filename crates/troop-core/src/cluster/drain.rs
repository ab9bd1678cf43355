//! How workers are told to leave, and what becomes of their listeners.

use std::time::Duration;

use super::{Action, Cluster, TERM};
use crate::id::{Time, WorkerId};
use crate::supervise::{Supervisor, SupervisorState};

impl Cluster {
    /// Tells a worker to finish. `keep_listeners` and `drain_spread` are those of
    /// [`Primary::disconnect`](crate::primary::Primary::disconnect). False if it cannot be told,
    /// because its channel is closed.
    pub fn disconnect(
        &mut self,
        now: Time,
        worker: WorkerId,
        keep_listeners: bool,
        drain_spread: Option<Duration>,
    ) -> bool {
        let told = self.primary.disconnect(worker, keep_listeners, drain_spread);
        if told && self.without_ipc.contains(&worker) && !self.drains_activated(now, worker) {
            self.pending.push_back(Action::Signal { worker, signal: TERM });
        }
        told
    }

    /// Tells a worker to finish that the supervisor has no more use for.
    pub(super) fn drain(&mut self, now: Time, worker: WorkerId) {
        let Some(supervisor) = &self.supervisor else { return };
        // A worker that is replaced leaves its listeners to its successor, which may not have asked
        // for all of them yet.
        let keep = supervisor.state() != SupervisorState::Stopping;
        // Its clients have somebody else to go to, but should not all come at once.
        let others =
            !matches!(supervisor.state(), SupervisorState::Paused | SupervisorState::Stopping)
                && !supervisor.is_in_the_way(worker);
        let is_surplus = supervisor.is_surplus(worker);
        let drain_spread = others.then_some(self.options.drain_spread);
        if !self.disconnect(now, worker, keep, drain_spread) {
            self.pending.push_back(Action::Signal { worker, signal: TERM });
        }
        if is_surplus {
            self.primary.excuse(worker);
        }
    }

    /// Before a worker is ended that takes its sockets by activation: nothing new comes to it any
    /// more. Returns whether it is ended later, when it has taken what waits.
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
