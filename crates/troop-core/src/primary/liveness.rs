//! Probes workers that listen and have been silent for a while: hands over a socket without a peer,
//! under a key that the worker does not know. Every worker rejects it as soon as its event loop
//! turns, unmodified Node workers too, and its program never sees it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::worker::HandleWait;
use super::{Action, Primary, Worker, WorkerState};
use crate::event::Violation;
use crate::id::{Time, WorkerId};
use crate::wire::outgoing;

/// Maximum silence of a worker before it is probed.
const PROBE_AFTER: Duration = Duration::from_secs(10);
/// The key of a listener that does not exist, as a JSON string.
pub(super) const PROBE_KEY: &str = r#""troop:probe""#;

/// The liveness of one worker.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Liveness {
    /// The time of its last message.
    heard: Time,
    /// The time since which a reply to a probe is pending.
    probed: Option<Time>,
    /// The number of a probe that it has not rejected yet.
    seq: Option<u64>,
}

impl Liveness {
    /// Restarts the measurement after the primary was stopped for a while.
    pub(super) fn restart_measurement(&mut self, now: Time) {
        self.heard = now;
        self.probed = self.probed.map(|_| now);
    }

    /// Whether there is a probe that it has not rejected yet.
    pub(super) fn awaits_reply(&self) -> bool {
        self.seq.is_some()
    }

    /// Expects a rejection of this probe, at any time.
    pub(super) fn asks(&mut self, seq: u64) {
        self.seq = Some(seq);
    }

    fn answered(&mut self, now: Time, arrived: bool) {
        (self.heard, self.probed) = (now, None);
        if !arrived {
            self.seq = None;
        }
    }
}

impl Worker {
    /// Whether a worker must answer probes. Others are starting, which has its own timeout, do work
    /// other than serving, or are leaving.
    fn answers_probes(&self) -> bool {
        self.is_there() && self.state == WorkerState::Listening && !self.memberships.is_empty()
    }
}

impl Primary {
    /// Records that a worker has sent something.
    pub fn heard(&mut self, now: Time, worker: WorkerId) {
        if let Some(state) = self.workers.get_mut(&worker) {
            state.liveness.heard = now;
        }
    }

    /// Handles a probe that the shell could not send because no descriptor is left.
    pub fn probe_unsent(&mut self, now: Time, worker: WorkerId) {
        let Some(state) = self.workers.get_mut(&worker) else { return };
        state.handle_waits.retain(|wait| !matches!(wait, HandleWait::Probe));
        // Without it there is no telling: as if it had been answered.
        if let Some(seq) = state.resyncs_until {
            self.ends_resync(now, worker, seq);
        }
        self.probe_answered(now, worker, false);
    }

    /// Handles the acknowledgement of a probe's descriptor, received or not: the worker is alive.
    pub(super) fn probe_answered(&mut self, now: Time, worker: WorkerId, arrived: bool) {
        if let Some(state) = self.workers.get_mut(&worker) {
            state.liveness.answered(now, arrived);
            self.schedule_probe(now);
        }
        if !arrived {
            self.has_turned(now, worker);
        }
    }

    /// Whether a reply is that to a probe.
    pub(super) fn is_probe_reply(&mut self, now: Time, worker: WorkerId, seq: u64) -> bool {
        let Some(state) =
            self.workers.get_mut(&worker).filter(|state| state.liveness.seq == Some(seq))
        else {
            return false;
        };
        // It has the descriptor, even if it does not acknowledge that.
        state.handle_waits.retain(|wait| !matches!(wait, HandleWait::Probe));
        self.probe_answered(now, worker, false);
        true
    }

    /// Schedules the next check for workers to probe.
    pub(super) fn schedule_probe(&mut self, now: Time) {
        if let Some(limit) = self.config.hang_timeout {
            self.wake_at(now + probe_after(limit));
        }
    }

    /// Probes silent workers, and ends those that have not answered in time. Returns the time of
    /// the next check.
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
            outgoing::newconn(&mut line, PROBE_KEY, seq, false);
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

/// Returns the silence before a probe, which leaves most of `limit` for the reply.
fn probe_after(limit: Duration) -> Duration {
    (limit / 3).min(PROBE_AFTER)
}
