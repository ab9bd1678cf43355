//! Goes on with a state that was written some time before its shell was killed.
//!
//! What the shell has done since is not known: which connections it has accepted, handed over, and
//! closed. Those that it had are gone with it. Workers have those that they were sent, and will answer.

use super::worker::HandleWait;
use super::{Action, Primary};
use crate::id::{Time, WorkerId};
use crate::wire::outgoing;

/// The shell that was killed has used fewer numbers since the state was written.
const MAX_USED: u64 = 1 << 32;

impl Primary {
    /// Handles the end of the shell that this state is of, some time after it was written: connections
    /// are forgotten, and answers to what was sent are ignored. Workers that acknowledge each descriptor
    /// are sent a [probe](Action::Probe), and get no connections until they have answered it: only then it
    /// is known what further acknowledgements are for.
    pub fn recovered(&mut self, now: Time) {
        self.clock(now);
        self.seq += MAX_USED;
        self.forgotten = self.seq;
        for listener in self.listeners.values_mut() {
            listener.queue.clear();
            listener.reserved = 0;
        }
        let ids: Vec<WorkerId> = self.workers.keys().copied().collect();
        for worker in ids {
            self.resync(worker);
            self.refresh_all(now, worker);
        }
    }

    fn resync(&mut self, worker: WorkerId) {
        let Some(state) = self.workers.get_mut(&worker) else { return };
        state.in_flight.clear();
        for membership in &mut state.memberships {
            membership.reserved.clear();
        }
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
