//! Whether a worker that listens is alive. One that has been silent for a while is handed a connection to nothing, under a key that it
//! does not know. Every worker refuses it, an unchanged Node worker too, as soon as its event loop turns, and its program never sees it.

use std::time::Duration;

use super::worker::HandleWait;
use super::{Action, Primary, Worker, WorkerState};
use crate::event::Violation;
use crate::id::{Time, WorkerId};
use crate::wire::outgoing;

/// The longest time that nothing is heard of a worker before it is asked.
const ASK_AFTER: Duration = Duration::from_secs(10);
/// The key of a listener that does not exist, as JSON.
const NOWHERE: &str = r#""troop:pulse""#;

/// What is known about one worker.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    /// When something came from it last.
    heard: Time,
    /// Since when its answer is awaited.
    asked: Option<Time>,
    /// The number of a connection to nothing that it has not refused yet.
    seq: Option<u64>,
}

impl Pulse {
    /// Nobody could have answered for a while.
    pub(super) fn stood_still(&mut self, now: Time) {
        self.heard = now;
        self.asked = self.asked.map(|_| now);
    }

    fn answered(&mut self, now: Time, arrived: bool) {
        (self.heard, self.asked) = (now, None);
        if !arrived {
            self.seq = None;
        }
    }
}

impl Worker {
    /// Others are starting up (which has a deadline of its own), have work that is not for clients and may take its time, or are leaving.
    fn has_pulse(&self) -> bool {
        self.is_there() && self.state == WorkerState::Listening && !self.memberships.is_empty()
    }
}

impl Primary {
    /// Something was read from a worker's channel, whatever it was.
    pub fn heard(&mut self, now: Time, worker: WorkerId) {
        if let Some(state) = self.workers.get_mut(&worker) {
            state.pulse.heard = now;
        }
    }

    /// The shell had no descriptor for [`Action::Ask`].
    pub fn unasked(&mut self, now: Time, worker: WorkerId) {
        let Some(state) = self.workers.get_mut(&worker) else { return };
        state.handle_waits.retain(|wait| !matches!(wait, HandleWait::Pulse));
        self.pulse_felt(now, worker, false);
    }

    /// The worker has the descriptor of a connection to nothing, or did not get it; it has a pulse in any case.
    pub(super) fn pulse_felt(&mut self, now: Time, worker: WorkerId, arrived: bool) {
        if let Some(state) = self.workers.get_mut(&worker) {
            state.pulse.answered(now, arrived);
            self.feel_later(now);
        }
    }

    /// Whether this answers a connection to nothing.
    pub(super) fn is_pulse(&mut self, now: Time, worker: WorkerId, seq: u64) -> bool {
        let Some(state) = self.workers.get_mut(&worker).filter(|state| state.pulse.seq == Some(seq)) else { return false };
        // It has the descriptor, whether or not it says so.
        state.handle_waits.retain(|wait| !matches!(wait, HandleWait::Pulse));
        self.pulse_felt(now, worker, false);
        true
    }

    /// Nobody has to be asked before this is over.
    pub(super) fn feel_later(&mut self, now: Time) {
        if let Some(limit) = self.config.hung_after {
            self.wake_at(now + ask_after(limit));
        }
    }

    /// Asks those who have been silent, and ends those who do not answer. Returns when to look again.
    pub(super) fn feel_pulses(&mut self, now: Time) -> Option<Time> {
        let limit = self.config.hung_after?;
        let ask_after = ask_after(limit);
        let mut next: Option<Time> = None;
        let mut wake = |at: Time| next = Some(next.map_or(at, |n| n.min(at)));
        let mut silent = Vec::new();
        let mut asked = Vec::new();
        for (id, state) in self.workers.iter_mut().filter(|(_, state)| state.has_pulse()) {
            let pulse = &mut state.pulse;
            match pulse.asked {
                Some(since) => {
                    let since = since.max(pulse.heard);
                    if now.since(since) >= limit {
                        silent.push((*id, now.since(since)));
                    } else {
                        wake(since + limit);
                    }
                }
                None if now.since(pulse.heard) >= ask_after => {
                    (pulse.asked, pulse.seq) = (Some(now), Some(self.seq));
                    state.handle_waits.push_back(HandleWait::Pulse);
                    asked.push((*id, self.seq));
                    self.seq += 1;
                    wake(now + limit);
                }
                None => wake(pulse.heard + ask_after),
            }
        }
        for (worker, seq) in asked {
            let mut line = Vec::with_capacity(128);
            outgoing::newconn(&mut line, NOWHERE, seq);
            self.actions.push_back(Action::Ask { worker, line });
        }
        for (worker, silence) in silent {
            self.violated(worker, Violation::Silent(u64::try_from(silence.as_millis()).unwrap_or(u64::MAX)));
        }
        next
    }
}

/// So that a worker has most of its time for the answer.
fn ask_after(limit: Duration) -> Duration {
    (limit / 3).min(ASK_AFTER)
}
