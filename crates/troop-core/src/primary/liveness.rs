//! Whether a worker that listens is alive. One that has been silent for a while is handed a
//! connection to nothing, under a key that it does not know. Every worker refuses it, an unchanged
//! Node worker too, as soon as its event loop turns, and its program never sees it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::worker::HandleWait;
use super::{Action, Primary, Worker, WorkerState};
use crate::event::Violation;
use crate::id::{Time, WorkerId};
use crate::wire::outgoing;

/// The longest time that nothing is heard of a worker before it is asked.
const PROBE_AFTER: Duration = Duration::from_secs(10);
/// The key of a listener that does not exist, as JSON.
const PROBE_KEY: &str = r#""troop:probe""#;

/// What is known about one worker.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Liveness {
    /// When something came from it last.
    heard: Time,
    /// Since when its answer is awaited.
    probed: Option<Time>,
    /// The number of a connection to nothing that it has not refused yet.
    seq: Option<u64>,
}

impl Liveness {
    /// Nobody could have answered for a while.
    pub(super) fn stood_still(&mut self, now: Time) {
        self.heard = now;
        self.probed = self.probed.map(|_| now);
    }

    fn answered(&mut self, now: Time, arrived: bool) {
        (self.heard, self.probed) = (now, None);
        if !arrived {
            self.seq = None;
        }
    }
}

impl Worker {
    /// Others are starting up (which has a deadline of its own), have work that is not for clients
    /// and may take its time, or are leaving.
    fn answers_probes(&self) -> bool {
        self.is_there() && self.state == WorkerState::Listening && !self.memberships.is_empty()
    }
}

impl Primary {
    /// Something was read from a worker's channel, whatever it was.
    pub fn heard(&mut self, now: Time, worker: WorkerId) {
        if let Some(state) = self.workers.get_mut(&worker) {
            state.liveness.heard = now;
        }
    }

    /// The shell had no descriptor for [`Action::Probe`].
    pub fn probe_unsent(&mut self, now: Time, worker: WorkerId) {
        let Some(state) = self.workers.get_mut(&worker) else { return };
        state.handle_waits.retain(|wait| !matches!(wait, HandleWait::Probe));
        self.probe_answered(now, worker, false);
    }

    /// The worker has the descriptor of a connection to nothing, or did not get it; it has a pulse
    /// in any case.
    pub(super) fn probe_answered(&mut self, now: Time, worker: WorkerId, arrived: bool) {
        if let Some(state) = self.workers.get_mut(&worker) {
            state.liveness.answered(now, arrived);
            self.schedule_probe(now);
        }
    }

    /// Whether this answers a connection to nothing.
    pub(super) fn is_probe_reply(&mut self, now: Time, worker: WorkerId, seq: u64) -> bool {
        let Some(state) =
            self.workers.get_mut(&worker).filter(|state| state.liveness.seq == Some(seq))
        else {
            return false;
        };
        // It has the descriptor, whether or not it says so.
        state.handle_waits.retain(|wait| !matches!(wait, HandleWait::Probe));
        self.probe_answered(now, worker, false);
        true
    }

    /// Nobody has to be asked before this is over.
    pub(super) fn schedule_probe(&mut self, now: Time) {
        if let Some(limit) = self.config.hang_timeout {
            self.wake_at(now + probe_after(limit));
        }
    }

    /// Asks those who have been silent, and ends those who do not answer. Returns when to look
    /// again.
    pub(super) fn probe_silent_workers(&mut self, now: Time) -> Option<Time> {
        let limit = self.config.hang_timeout?;
        let probe_after = probe_after(limit);
        let mut next: Option<Time> = None;
        let mut wake = |at: Time| next = Some(next.map_or(at, |n| n.min(at)));
        let mut silent = Vec::new();
        let mut probed = Vec::new();
        for (id, state) in self.workers.iter_mut().filter(|(_, state)| state.answers_probes()) {
            let liveness = &mut state.liveness;
            match liveness.probed {
                Some(since) => {
                    let since = since.max(liveness.heard);
                    if now.since(since) >= limit {
                        silent.push((*id, now.since(since)));
                    } else {
                        wake(since + limit);
                    }
                }
                None if now.since(liveness.heard) >= probe_after => {
                    (liveness.probed, liveness.seq) = (Some(now), Some(self.seq));
                    state.handle_waits.push_back(HandleWait::Probe);
                    probed.push((*id, self.seq));
                    self.seq += 1;
                    wake(now + limit);
                }
                None => wake(liveness.heard + probe_after),
            }
        }
        for (worker, seq) in probed {
            let mut line = Vec::with_capacity(128);
            outgoing::newconn(&mut line, PROBE_KEY, seq);
            self.actions.push_back(Action::Probe { worker, line });
        }
        for (worker, silence) in silent {
            self.violated(
                worker,
                Violation::Silent(u64::try_from(silence.as_millis()).unwrap_or(u64::MAX)),
            );
        }
        next
    }
}

/// So that a worker has most of its time for the answer.
fn probe_after(limit: Duration) -> Duration {
    (limit / 3).min(PROBE_AFTER)
}
