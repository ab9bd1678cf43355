//! Goes on with a state that was written some time before its shell was killed.
//!
//! What the shell has done since is not known: which connections it has accepted, handed over, and
//! closed. Those that it had are gone with it. Workers have those that they were sent, and will answer.

use super::worker::HandleWait;
use super::{Action, Primary};
use crate::id::{ConnId, Time, WorkerId};
use crate::wire::outgoing;

/// The shell that was killed has used fewer numbers since the state was written.
const MAX_USED: u64 = 1 << 32;
/// Maximum number of workers that a shell forks before it writes the state again, if others could have to
/// go on with it: so many ids are left out then, because the shell that was killed may have used them.
pub const MAX_UNWRITTEN_FORKS: u32 = 16;

impl Primary {
    /// Returns the connections that wait for a worker.
    pub fn waiting(&self) -> impl Iterator<Item = ConnId> {
        let is_reserved = self.listeners.values().any(|listener| listener.reserved > 0);
        let workers = self.workers.values().take(if is_reserved { usize::MAX } else { 0 });
        let memberships = workers.flat_map(|worker| worker.memberships.iter());
        let reserved = memberships.flat_map(|membership| membership.reserved.iter());
        let queued = self.listeners.values().flat_map(|listener| listener.queue.iter());
        queued.chain(reserved).map(|waiting| waiting.conn)
    }

    /// Returns the number of connections that wait for a worker.
    #[must_use]
    pub fn count_waiting(&self) -> usize {
        self.listeners.values().map(|listener| listener.queue.len() + listener.reserved).sum()
    }

    /// Handles the end of the shell that this state is of, some time after it was written: connections
    /// are forgotten, unless they wait and the next shell has them (`is_there`), and answers to what was
    /// sent are ignored. Workers that acknowledge each descriptor
    /// are sent a [probe](Action::Probe), and get no connections until they have answered it: only then it
    /// is known what further acknowledgements are for. Those that understand signals only (`is_deaf`) are
    /// sent nothing. [`MAX_UNWRITTEN_FORKS`] ids are left out.
    pub fn recovered(
        &mut self,
        now: Time,
        is_there: impl Fn(ConnId) -> bool,
        is_deaf: impl Fn(WorkerId) -> bool,
    ) {
        self.clock(now);
        self.seq += MAX_USED;
        self.forgotten = self.seq;
        self.last_worker = self.last_worker.saturating_add(MAX_UNWRITTEN_FORKS);
        // Those that waited for a certain worker have waited longest.
        let memberships = self.workers.values_mut().flat_map(|state| state.memberships.iter_mut());
        let reserved: Vec<_> = memberships
            .flat_map(|of| of.reserved.drain(..).map(|waiting| (of.listener, waiting)))
            .collect();
        for (id, waiting) in reserved.into_iter().rev() {
            if let Some(listener) = self.listeners.get_mut(&id) {
                listener.queue.push_front(waiting);
            }
        }
        for listener in self.listeners.values_mut() {
            listener.queue.retain(|waiting| is_there(waiting.conn));
            listener.reserved = 0;
        }
        let ids: Vec<WorkerId> = self.workers.keys().copied().collect();
        for worker in ids {
            if !is_deaf(worker) {
                self.resync(worker);
            }
            self.refresh_all(now, worker);
        }
    }

    fn resync(&mut self, worker: WorkerId) {
        let Some(state) = self.workers.get_mut(&worker) else { return };
        state.in_flight.clear();
        state.blocked = false;
        if state.batched || !state.connected {
            state.handle_waits.clear();
            return;
        }
        state.handle_waits = std::iter::once(HandleWait::Probe).collect();
        let seq = self.seq;
        self.seq += 1;
        state.resyncs_until = Some(seq);
        let mut line = Vec::with_capacity(128);
        outgoing::newconn(&mut line, super::liveness::PROBE_KEY, seq, false);
        self.actions.push_back(Action::Probe { worker, line });
    }

    /// Whether a rejection is the answer to the probe of [`Primary::recovered`].
    pub(super) fn ends_resync(&mut self, now: Time, worker: WorkerId, seq: u64) -> bool {
        let waiting = self.workers.get_mut(&worker);
        let Some(state) = waiting.filter(|state| state.resyncs_until == Some(seq)) else {
            return false;
        };
        state.resyncs_until = None;
        state.handle_waits.retain(|wait| !matches!(wait, HandleWait::Probe));
        self.refresh_and_pump(now, worker);
        true
    }
}
