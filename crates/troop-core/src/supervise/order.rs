//! What a supervisor wants done, and what it tells about it.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Answer, Ticket};
use crate::event::{Address, ExitHow};
use crate::id::WorkerId;
use crate::text::counted;

/// A place that should always be filled with a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Slot(pub usize);

/// Something the shell has to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// Fork a worker, then call [`Supervisor::forked`](super::Supervisor::forked) or
    /// [`Supervisor::fork_failed`](super::Supervisor::fork_failed).
    Fork(Slot),
    /// Give a worker no connections yet: it has to show first that it is good.
    Hold(WorkerId),
    /// Give it connections from now on.
    Admit(WorkerId),
    /// Tell a worker to finish, over its channel.
    Disconnect(WorkerId),
    /// Ask a worker's process to end (`SIGTERM`), because it does not speak the protocol or lingers
    /// after it disconnected.
    Terminate(WorkerId),
    /// End a worker's process at once (`SIGKILL`).
    Kill(WorkerId),
    /// Report.
    Tell(Progress),
    /// Check whether clients reach the listeners, then call
    /// [`Supervisor::listeners_checked`](super::Supervisor::listeners_checked).
    CheckListeners,
    /// An operation that was [requested](super::Supervisor::request) is over.
    Answer(Ticket, Answer),
    /// All is over; nothing runs any more. Also the answer to everyone who waits for the end.
    Finish(Outcome),
}

/// How supervision ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It was asked to stop, or all workers have ended as they may.
    Stopped {
        /// Workers that did not finish within their grace period, or were not given the time, and
        /// were killed.
        killed: Vec<WorkerId>,
    },
    /// The workers could not be kept running.
    GaveUp(GiveUp),
}

impl Outcome {
    /// It ended as it was asked to, and every worker finished by itself.
    #[must_use]
    pub fn is_graceful(&self) -> bool {
        matches!(self, Outcome::Stopped { killed } if killed.is_empty())
    }
}

/// Why a slot has no worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// It ended.
    Ended(WorkerId, ExitHow),
    /// It could not be started; the reason as text.
    NotStarted(String),
}

/// Why supervision gave up. It is shown the same wherever it is reported: as an event, in the log
/// and as the program's error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum GiveUp {
    /// No worker became ready before too many ended or could not be started.
    NeverReady {
        /// Ends that counted.
        ends: usize,
        /// Time within which they count.
        within: Duration,
        /// The last one.
        cause: Cause,
    },
    /// No worker was ready for too long.
    NotReady {
        /// A worker had been ready before.
        been_ready: bool,
        /// For how long none was.
        within: Duration,
    },
    /// Every worker ended and is not to be restarted, one of them with a failure.
    AllEnded {
        /// The one that failed.
        worker: WorkerId,
        /// How it ended.
        how: ExitHow,
    },
}

impl GiveUp {
    /// Returns true if a worker had been ready before.
    #[must_use]
    pub fn been_ready(&self) -> bool {
        matches!(self, GiveUp::NotReady { been_ready: true, .. })
    }
}

impl fmt::Display for GiveUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GiveUp::NeverReady { ends, within, cause: Cause::Ended(worker, how) } => {
                write!(
                    f,
                    "no worker became ready, and {ends} ended within {within:.0?}; worker {worker} ended with {how}"
                )
            }
            GiveUp::NeverReady { cause: Cause::NotStarted(reason), .. } => f.write_str(reason),
            GiveUp::NotReady { been_ready: true, within } => {
                write!(f, "no worker has been ready for {within:.0?}")
            }
            GiveUp::NotReady { been_ready: false, within } => {
                write!(f, "no worker became ready within {within:.0?}")
            }
            GiveUp::AllEnded { worker, how } => {
                write!(f, "all workers have ended; worker {worker} ended with {how}")
            }
        }
    }
}

/// The state of an app whose reload has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Afterwards {
    /// The old workers go on.
    GoesOn,
    /// All workers have been replaced, but clients do not reach them.
    Replaced,
    /// No worker is ready; more are started, as before the reload.
    Retries,
    /// It stays paused, without workers, until the next reload.
    Paused,
    /// Its workers are being ended.
    Ends,
}

/// A step of the supervision, shown as [`Display`](fmt::Display) says it to people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Progress {
    /// A worker ended unexpectedly and will be replaced.
    Restarting {
        /// Why.
        cause: Cause,
        /// After this delay.
        delay: Duration,
    },
    /// A worker ended, and is not to be started again.
    NotRestarting {
        /// Which.
        worker: WorkerId,
        /// How it ended.
        how: ExitHow,
    },
    /// A reload began.
    ReloadStarted {
        /// How many workers will be replaced.
        workers: usize,
    },
    /// A new worker is ready, but does not listen yet where the one that it replaces does. It is
    /// waited for.
    Awaiting {
        /// The new one.
        worker: WorkerId,
        /// Where it is to listen.
        at: Address,
    },
    /// A new worker does not listen where only the one that it was to replace does. It ends, and
    /// the others are replaced first: one of their new workers may listen there.
    PutOff {
        /// The new one.
        worker: WorkerId,
    },
    /// A new worker took an old one's place.
    Replaced {
        /// The one that finishes.
        old: WorkerId,
        /// The one that serves now.
        new: WorkerId,
    },
    /// All workers have been replaced.
    ReloadFinished,
    /// A new worker did not come up.
    ReloadFailed {
        /// Why.
        reason: String,
        /// What becomes of the app.
        then: Afterwards,
    },
    /// A reload was asked for while one runs, or while stopping.
    ReloadRefused,
    /// A worker is replaced for a reason of its own, such as its age.
    Recycling {
        /// Which.
        worker: WorkerId,
        /// Why.
        reason: String,
    },
    /// Its successor did not come up; the worker goes on.
    RecycleFailed {
        /// Which.
        worker: WorkerId,
        /// Why.
        reason: String,
    },
    /// Workers that a failed reload had brought are replaced by such as there were before.
    RollingBack {
        /// How many.
        workers: usize,
    },
    /// That did not work; it is tried again after a while.
    RollBackFailed {
        /// Why.
        reason: String,
    },
    /// Workers were told to finish.
    Stopping,
    /// All workers were told to finish; the listeners stay, until a reload starts new ones.
    Pausing,
    /// A worker did not finish within its grace and was killed.
    GraceOver(WorkerId),
    /// A worker was not ready in time, and is ended. Another one follows as after any failure.
    NotReady {
        /// Which.
        worker: WorkerId,
        /// How long it had.
        within: Duration,
    },
    /// Some slots have lost their workers and have no ready one yet; or no slot has one any more.
    Degraded {
        /// Workers that are ready.
        ready: usize,
        /// Workers that there should be.
        wanted: usize,
    },
    /// After no slot had a ready worker, some have one again.
    Recovering {
        /// Workers that are ready.
        ready: usize,
        /// Workers that there should be.
        wanted: usize,
    },
    /// After that, every slot has a ready worker.
    Recovered {
        /// How many.
        workers: usize,
    },
    /// The start has failed, or no worker has been ready for too long; no more are started.
    GivingUp(GiveUp),
}

/// One line for people. Texts of workers are in it as they were sent.
impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // The end of a worker has been told; why one could not be started has not.
            Progress::Restarting { delay, cause: Cause::NotStarted(reason) } => {
                write!(f, "{reason}; trying again in {delay:.1?}")
            }
            Progress::NotRestarting { worker, how } => {
                write!(f, "worker {worker} ended for good: {how}")
            }
            Progress::Recycling { worker, reason } => {
                write!(f, "replacing worker {worker}: {reason}")
            }
            Progress::RecycleFailed { worker, reason } => {
                write!(f, "worker {worker} goes on: {reason}")
            }
            Progress::RollingBack { workers } => {
                write!(f, "reload: going back with {}", counted(*workers, "worker"))
            }
            Progress::RollBackFailed { reason } => {
                write!(f, "reload: going back did not work, it is tried again: {reason}")
            }
            Progress::Pausing => f.write_str("pausing: the workers finish, the listeners stay"),
            Progress::Degraded { ready: 0, .. } => f.write_str("degraded: no worker is ready"),
            Progress::Degraded { ready, wanted } => {
                write!(f, "degraded: {ready} of {} ready", counted(*wanted, "worker"))
            }
            Progress::Recovering { ready, wanted } => {
                write!(f, "recovering: {ready} of {} ready again", counted(*wanted, "worker"))
            }
            Progress::NotReady { worker, within } => {
                write!(f, "worker {worker} was not ready within {within:.0?} and is ended")
            }
            Progress::Recovered { workers: 0 } => f.write_str("recovered: no worker is wanted"),
            Progress::Recovered { workers: 1 } => f.write_str("the worker is ready again"),
            Progress::Recovered { workers } => write!(f, "all {workers} workers are ready again"),
            Progress::Restarting { delay, .. } if delay.is_zero() => {
                f.write_str("starting a new worker")
            }
            Progress::Restarting { delay, .. } => write!(f, "starting a new worker in {delay:.1?}"),
            Progress::ReloadStarted { workers } => {
                write!(f, "reload: replacing {}", counted(*workers, "worker"))
            }
            Progress::Awaiting { worker, at } => {
                write!(
                    f,
                    "waiting for worker {worker} to listen on {at}, as the one that it replaces does"
                )
            }
            Progress::PutOff { worker } => {
                write!(
                    f,
                    "worker {worker} does not listen where only the one that it was to replace does; the others are replaced first"
                )
            }
            Progress::Replaced { old, new } => {
                write!(f, "reload: worker {new} takes over from worker {old}")
            }
            Progress::ReloadFinished => f.write_str("reload: done"),
            Progress::ReloadFailed { reason, then } => {
                let then = match then {
                    Afterwards::GoesOn => "; the old workers go on",
                    Afterwards::Replaced => "; the workers have been replaced",
                    Afterwards::Retries => "; no worker is ready, and more are started as before",
                    Afterwards::Paused => "; still paused, until the next reload",
                    Afterwards::Ends => "",
                };
                write!(f, "reload failed: {reason}{then}")
            }
            Progress::ReloadRefused => {
                f.write_str("reload refused: one is under way, or the cluster is stopping")
            }
            Progress::Stopping => f.write_str("stopping"),
            Progress::GraceOver(worker) => {
                write!(f, "worker {worker} did not finish in time and is killed")
            }
            Progress::GivingUp(why) => write!(f, "giving up: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_worker_is_not_spoken_of_as_several() {
        for (progress, text) in [
            (Progress::Recovered { workers: 0 }, "recovered: no worker is wanted"),
            (Progress::Recovered { workers: 1 }, "the worker is ready again"),
            (Progress::Recovered { workers: 2 }, "all 2 workers are ready again"),
            (Progress::Degraded { ready: 0, wanted: 1 }, "degraded: no worker is ready"),
            (Progress::Degraded { ready: 1, wanted: 2 }, "degraded: 1 of 2 workers ready"),
            (Progress::ReloadStarted { workers: 1 }, "reload: replacing 1 worker"),
            (Progress::RollingBack { workers: 1 }, "reload: going back with 1 worker"),
        ] {
            assert_eq!(progress.to_string(), text);
        }
    }
}
