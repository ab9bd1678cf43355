//! The orders of a supervisor, and the progress that it reports.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Answer, Ticket};
use crate::event::{Address, ExitHow};
use crate::id::WorkerId;
use crate::text::counted;

/// The number of a slot, which should always have a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Slot(pub usize);

/// An order that the shell must carry out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// Fork a worker, then call [`Supervisor::forked`](super::Supervisor::forked) or
    /// [`Supervisor::fork_failed`](super::Supervisor::fork_failed).
    Fork(Slot),
    /// Hold a worker, so that it gets no connections until it has shown that it stays ready.
    Hold(WorkerId),
    /// Give a held worker connections from now on.
    Admit(WorkerId),
    /// Disconnect a worker, by a message on its channel.
    Disconnect(WorkerId),
    /// Send the stop signal to a worker without Node's protocol, or to one that does not end after
    /// it disconnected.
    Terminate(WorkerId),
    /// Send the kill signal, if there is one, to a worker that has not ended since the stop signal
    /// and will be killed soon.
    Insist(WorkerId),
    /// Send `SIGKILL` to a worker.
    Kill(WorkerId),
    /// Publish progress.
    Report(Progress),
    /// Check whether clients reach the listeners, then call
    /// [`Supervisor::listeners_checked`](super::Supervisor::listeners_checked).
    CheckListeners,
    /// Inspect where workers listen by themselves, and call
    /// [`Supervisor::listeners_inspected`](super::Supervisor::listeners_inspected).
    InspectListeners {
        /// Workers whose last words are of interest.
        words_of: Vec<WorkerId>,
    },
    /// Report that a worker does not listen where another one listens by itself.
    NotShared {
        /// The worker.
        worker: WorkerId,
        /// The one that listens.
        holder: WorkerId,
        /// Where.
        at: Address,
    },
    /// Answer an operation that was [requested](super::Supervisor::request).
    Answer(Ticket, Answer),
    /// End: no worker runs any more. Also answers all operations that wait for the end.
    Finish(Outcome),
}

/// How supervision ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It was stopped, or all workers have ended and are not restarted.
    Stopped {
        /// Workers that were killed, because they did not drain within the grace period or were not
        /// given the time.
        killed: Vec<WorkerId>,
    },
    /// The workers could not be kept running.
    GaveUp(GiveUp),
}

impl Outcome {
    /// Whether it was stopped, and every worker ended by itself.
    #[must_use]
    pub fn is_graceful(&self) -> bool {
        matches!(self, Outcome::Stopped { killed } if killed.is_empty())
    }
}

/// The reason why a slot has no worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// The worker ended.
    Ended(WorkerId, ExitHow),
    /// The worker could not be started, for this reason.
    NotStarted(String),
}

/// The reason why supervision gave up. Its text is the same as an event, in the log and as the
/// program's error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum GiveUp {
    /// No worker became ready before too many ended or could not be started.
    NeverReady {
        /// Number of ends that counted.
        ends: usize,
        /// The window in which they count.
        within: Duration,
        /// The last of them.
        cause: Cause,
    },
    /// No worker was ready for longer than the window.
    NotReady {
        /// Whether a worker had been ready before.
        been_ready: bool,
        /// The time without a ready worker.
        within: Duration,
    },
    /// All workers have ended and are not restarted; at least one failed.
    AllEnded {
        /// The worker that failed.
        worker: WorkerId,
        /// How it ended.
        how: ExitHow,
    },
}

impl GiveUp {
    /// Whether a worker had been ready before.
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

/// The state of a cluster after a failed reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Afterwards {
    /// The old workers keep running.
    KeepsRunning,
    /// All workers have been replaced, but clients do not reach them.
    Replaced,
    /// No worker is ready; workers are started with the previous settings.
    Retries,
    /// It stays paused, without workers, until the next reload.
    Paused,
    /// Its workers are being ended.
    Ends,
}

/// A step of supervision. [`Display`](fmt::Display) describes it for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Progress {
    /// A worker has ended unexpectedly and will be restarted.
    Restarting {
        /// The reason.
        cause: Cause,
        /// The delay of the restart.
        delay: Duration,
    },
    /// A worker has ended and is not restarted.
    NotRestarting {
        /// The worker.
        worker: WorkerId,
        /// How it ended.
        how: ExitHow,
    },
    /// A reload began.
    ReloadStarted {
        /// Number of workers that will be replaced.
        workers: usize,
    },
    /// A new worker does not listen yet on an address of its predecessor, and is waited for.
    Awaiting {
        /// The new worker.
        worker: WorkerId,
        /// The address.
        at: Address,
    },
    /// A new worker does not listen on an address that only its predecessor has. It is ended, and
    /// the other workers are replaced first: one of their successors may listen there.
    PutOff {
        /// The new worker.
        worker: WorkerId,
    },
    /// A worker leaves before its successor starts, because it listens on no address of the
    /// primary's:
    /// [`ReplacePolicy::make_way_unless_listening`](super::ReplacePolicy::make_way_unless_listening).
    MakingWay {
        /// The old worker, which drains.
        worker: WorkerId,
    },
    /// An old worker has removed a path at its end, although its successor listened there by itself.
    /// The latter is started once more, since clients do not reach it.
    PathRemoved {
        /// The old worker.
        old: WorkerId,
        /// Its successor, which drains.
        worker: WorkerId,
        /// The path.
        at: Address,
    },
    /// A new worker has replaced an old one.
    Replaced {
        /// The old worker, which drains.
        old: WorkerId,
        /// The new worker.
        new: WorkerId,
    },
    /// All workers have been replaced.
    ReloadFinished,
    /// A reload has failed.
    ReloadFailed {
        /// The reason.
        reason: String,
        /// The state of the cluster after the failure.
        then: Afterwards,
    },
    /// A reload was rejected, because one is under way or the cluster is stopping.
    ReloadRefused,
    /// A worker is being recycled.
    Recycling {
        /// The worker.
        worker: WorkerId,
        /// The reason.
        reason: String,
    },
    /// A worker was not recycled, because its successor did not become ready; it keeps running.
    RecycleFailed {
        /// The worker.
        worker: WorkerId,
        /// The reason.
        reason: String,
    },
    /// A worker exceeds the memory limit from the start, as its predecessor did, and is recycled
    /// later.
    RecyclePostponed {
        /// The worker.
        worker: WorkerId,
        /// The reason, and the time.
        reason: String,
    },
    /// Workers of a failed reload are being replaced by workers with the previous settings.
    RollingBack {
        /// The number of workers.
        workers: usize,
    },
    /// The roll-back failed; it is tried again later.
    RollBackFailed {
        /// The reason.
        reason: String,
    },
    /// The cluster ends after this time; until then workers serve.
    StopDelayed {
        /// The drain delay.
        delay: Duration,
    },
    /// All workers drain, and the cluster ends.
    Stopping,
    /// All workers drain; the listeners stay open until a reload starts new workers.
    Pausing,
    /// A worker did not finish within the grace period: it is killed, or was ended by the stop signal
    /// or kill signal that precedes that.
    GraceOver(WorkerId),
    /// A worker was not ready in time and is ended. It is restarted as after any failure.
    NotReady {
        /// The worker.
        worker: WorkerId,
        /// How long it had.
        within: Duration,
    },
    /// A worker has not said that it is ready, and counts as ready all the same:
    /// [`ReplacePolicy::assume_ready_after`](super::ReplacePolicy::assume_ready_after).
    AssumedReady {
        /// The worker.
        worker: WorkerId,
        /// Whether it was to send `READY=1` instead of the message `'ready'`.
        by_notification: bool,
        /// How long it had.
        within: Duration,
    },
    /// Some slots, or all, have lost their workers and have no ready successor yet.
    Degraded {
        /// Workers that are ready.
        ready: usize,
        /// Workers that there should be.
        wanted: usize,
    },
    /// Some slots have a ready worker again, after none had.
    Recovering {
        /// Workers that are ready.
        ready: usize,
        /// Workers that there should be.
        wanted: usize,
    },
    /// Every slot has a ready worker again.
    Recovered {
        /// The number of workers.
        workers: usize,
    },
    /// The start has failed, or no worker has been ready for too long; no more workers are started.
    GivingUp(GiveUp),
}

/// Formats one line for people. Texts of workers are not escaped.
impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // The end of a worker was reported before; the reason why one could not be started was
            // not.
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
                write!(f, "worker {worker} was not replaced: {reason}")
            }
            Progress::RecyclePostponed { worker, reason } => write!(f, "worker {worker}: {reason}"),
            Progress::RollingBack { workers } => {
                write!(f, "reload: rolling back {}", counted(*workers, "worker"))
            }
            Progress::RollBackFailed { reason } => {
                write!(f, "reload: rolling back failed, trying again later: {reason}")
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
            Progress::AssumedReady { worker, by_notification, within } => {
                let missing =
                    if *by_notification { "sent READY=1" } else { "called process.send('ready')" };
                write!(
                    f,
                    "worker {worker} has not {missing} within {within:.0?}; it counts as ready from now on"
                )
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
            Progress::MakingWay { worker } => {
                write!(
                    f,
                    "worker {worker} ends before its successor starts: it listens by itself, if at all"
                )
            }
            Progress::PathRemoved { old, worker, at } => {
                write!(
                    f,
                    "worker {old} has removed {at} at its end, where worker {worker} listened by itself: the latter is started once more"
                )
            }
            Progress::Replaced { old, new } => {
                write!(f, "reload: worker {new} takes over from worker {old}")
            }
            Progress::ReloadFinished => f.write_str("reload: done"),
            Progress::ReloadFailed { reason, then } => {
                let then = match then {
                    Afterwards::KeepsRunning => "; the old workers keep running",
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
            Progress::StopDelayed { delay } => {
                write!(f, "stopping in {delay:.0?}; until then connections are accepted")
            }
            Progress::Stopping => f.write_str("stopping"),
            Progress::GraceOver(worker) => {
                write!(f, "worker {worker} did not finish in time and was killed")
            }
            Progress::GivingUp(why) => write!(f, "giving up: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_workers_agrees_with_its_noun() {
        for (progress, text) in [
            (Progress::Recovered { workers: 0 }, "recovered: no worker is wanted"),
            (Progress::Recovered { workers: 1 }, "the worker is ready again"),
            (Progress::Recovered { workers: 2 }, "all 2 workers are ready again"),
            (Progress::Degraded { ready: 0, wanted: 1 }, "degraded: no worker is ready"),
            (Progress::Degraded { ready: 1, wanted: 2 }, "degraded: 1 of 2 workers ready"),
            (Progress::ReloadStarted { workers: 1 }, "reload: replacing 1 worker"),
            (Progress::RollingBack { workers: 1 }, "reload: rolling back 1 worker"),
        ] {
            assert_eq!(progress.to_string(), text);
        }
    }
}
