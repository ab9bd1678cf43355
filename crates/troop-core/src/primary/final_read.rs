//! Whether a Node worker has read what its clients sent, before it is sent `disconnect`.
//!
//! From Node 26 on (nodejs/node#63470), a disconnecting worker closes connections whose request it
//! has not read, which clients see as a reset. Time alone does not tell: a worker without a CPU
//! accepts and reads nothing, however long it is. So it is asked twice, by a
//! [probe](super::liveness), which it answers when its event loop turns: whether it has accepted
//! what the kernel had for it, and, after the time in which clients send their requests, whether it
//! has read them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::liveness::PROBE_KEY;
use super::worker::{FINAL_READ_DELAY, HandleWait};
use super::{Action, Primary, Worker};
use crate::id::{Time, WorkerId};
use crate::wire::outgoing;

/// How long the answer to each question is waited for.
const FINAL_READ_TIMEOUT: Duration = Duration::from_secs(2);
/// Interval at which a question is tried again that another probe is in the way of.
const ASK_INTERVAL: Duration = Duration::from_millis(50);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
enum Stage {
    /// Accepts what the kernel has for it.
    Accepts,
    /// Its clients have time to send their requests.
    Delay,
    /// Reads them.
    Reads,
    #[default]
    Done,
}

#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct FinalRead {
    stage: Stage,
    /// Whether the question of the stage has been sent.
    asked: bool,
    /// When the stage ends without an answer.
    until: Time,
}

impl FinalRead {
    /// Begins when no new connections reach the worker any more. `accepts`: whether there may be some
    /// that it has to accept by itself.
    pub(super) fn begin(now: Time, accepts: bool) -> FinalRead {
        let stage = if accepts { Stage::Accepts } else { Stage::Delay };
        FinalRead { stage, asked: false, until: now + FINAL_READ_TIMEOUT }
    }

    pub(super) fn is_done(self) -> bool {
        self.stage == Stage::Done
    }

    fn next(self, now: Time) -> FinalRead {
        let stage = match self.stage {
            Stage::Accepts => Stage::Delay,
            Stage::Delay => Stage::Reads,
            Stage::Reads | Stage::Done => Stage::Done,
        };
        FinalRead { stage, asked: false, until: now + FINAL_READ_TIMEOUT }
    }
}

impl Worker {
    /// Whether its answer to a probe would be known to be that to this one.
    fn can_be_asked(&self) -> bool {
        !self.liveness.awaits_reply()
            && self.resyncs_until.is_none()
            && !self.handle_waits.iter().any(|wait| matches!(wait, HandleWait::Probe))
    }
}

impl Primary {
    /// Goes on with what a worker has to read. Returns the time at which it has read everything, as
    /// far as is known now.
    pub(super) fn continue_final_read(&mut self, now: Time, worker: WorkerId) -> Time {
        let Some(state) = self.workers.get_mut(&worker) else { return now };
        loop {
            let current = state.final_read;
            match current.stage {
                Stage::Done => return now,
                Stage::Delay => {
                    let at = state.all_read_at().unwrap_or(now + FINAL_READ_DELAY);
                    if at > now {
                        return at;
                    }
                    state.final_read = current.next(now);
                }
                // It does not answer, so it would not read either.
                Stage::Accepts | Stage::Reads if now >= current.until => {
                    state.final_read = FinalRead::default();
                }
                Stage::Accepts | Stage::Reads if current.asked => return current.until,
                Stage::Accepts | Stage::Reads if !state.can_be_asked() => {
                    return current.until.min(now + ASK_INTERVAL);
                }
                Stage::Accepts | Stage::Reads => {
                    state.final_read.asked = true;
                    state.handle_waits.push_back(HandleWait::Probe);
                    state.liveness.asks(self.seq);
                    let mut line = Vec::with_capacity(128);
                    outgoing::newconn(&mut line, PROBE_KEY, self.seq, false);
                    self.seq += 1;
                    self.actions.push_back(Action::Probe { worker, line });
                    return current.until;
                }
            }
        }
    }

    /// A worker's event loop has turned since it was sent the last probe.
    pub(super) fn has_turned(&mut self, now: Time, worker: WorkerId) {
        let Some(state) = self.workers.get_mut(&worker).filter(|state| state.final_read.asked)
        else {
            return;
        };
        if state.final_read.stage == Stage::Accepts {
            state.last_taken = now;
        }
        state.final_read = state.final_read.next(now);
        self.wake_at(now);
    }
}
