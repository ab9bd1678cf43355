//! Operations of a supervisor and their results.
//!
//! Each request has a [`Ticket`], which the supervisor answers with [`Order::Answer`] when the
//! operation is over. Callers need not derive the result from progress events.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Afterwards, Claim, GiveUp, Order, RunState, Supervisor};
use crate::event::{Address, ExitHow};
use crate::id::{Time, WorkerId};
use crate::text::counted;

/// Identifies a request in its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ticket(pub u64);

/// An operation to request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Replaces all workers; their successors must take over these addresses.
    Reload(Vec<Claim>),
    /// Replaces one worker.
    Recycle {
        /// The worker.
        worker: WorkerId,
        /// The reason, for people.
        reason: String,
        /// The addresses that its successor must take over.
        claims: Vec<Claim>,
    },
    /// Waits until every slot has a ready worker.
    Ready,
    /// Changes the number of workers.
    Scale(usize),
    /// Ends the workers until the next reload.
    Pause,
}

/// The result of an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The result of a reload.
    Reload(Result<Reloaded, ReloadFailed>),
    /// The successor of a recycled worker.
    Recycle(Result<WorkerId, RecycleFailed>),
    /// The number of ready workers.
    Ready(Result<usize, NotReady>),
    /// Whether the target number of workers is ready, and the surplus has ended.
    Scale(Result<(), NotReady>),
    /// Whether all workers have ended.
    Pause(Result<(), NotReady>),
}

/// The result of a successful reload.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Reloaded {
    /// Number of replaced workers. They may still be draining.
    pub replaced: usize,
    /// Number of workers that were started in empty slots.
    pub started: usize,
    /// Addresses of the old workers on which no new worker listens, if the reload allowed that.
    pub left: Vec<Address>,
    /// Addresses of the new workers on which no old worker listened.
    pub added: Vec<Address>,
    /// Paths that old workers removed at their end although new ones listened there by themselves,
    /// which were started once more for it; clients were refused meanwhile.
    #[serde(default)]
    pub started_again: Vec<Address>,
}

/// The reason why a new worker did not take over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ReplaceFailure {
    /// The new worker ended.
    Ended {
        /// The new worker.
        worker: WorkerId,
        /// How it ended.
        how: ExitHow,
        /// It had been ready before.
        was_ready: bool,
        /// Its last lines on standard error, if known; not escaped.
        last_lines: Option<String>,
    },
    /// The new worker could not be started.
    NotStarted {
        /// The reason.
        reason: String,
    },
    /// The new worker was not ready in time.
    NotReady {
        /// The new worker, if there was one.
        worker: Option<WorkerId>,
        /// The timeout.
        within: Duration,
        /// What it was seen to do, if it has activated sockets.
        seen: Option<NotServing>,
    },
    /// Neither the new worker nor any other one listens on an address of the old workers.
    NotListening {
        /// The new worker.
        worker: WorkerId,
        /// The address that would be lost.
        address: Address,
        /// The full reason, for people.
        reason: String,
    },
    /// All workers have been replaced, but clients do not reach some addresses.
    Unreachable {
        /// The worker.
        addresses: Vec<String>,
    },
    /// All workers are being ended, because the cluster pauses or gives up.
    Ending,
}

/// What a worker with activated sockets, which is not ready, was last seen to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum NotServing {
    /// It waits in `select`, `poll` or `io_uring`, whose descriptors the system does not show, and
    /// all other workers that serve were seen to wait in `accept` or `epoll_wait`.
    WaitsOtherwise,
    /// It does not wait for connections.
    DoesNotWait,
}

impl fmt::Display for NotServing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NotServing::WaitsOtherwise => {
                "it waits in select, poll or io_uring, whose descriptors cannot be seen, while the workers before it waited for connections in accept or epoll: if it serves, restart the app instead of reloading it, or have it send READY=1 (ready = \"notify\")"
            }
            NotServing::DoesNotWait => {
                "it does not wait for connections on the sockets that it was given"
            }
        })
    }
}

impl ReplaceFailure {
    /// Returns the last lines of the new worker on standard error, if known; not escaped.
    #[must_use]
    pub fn last_lines(&self) -> Option<&str> {
        match self {
            ReplaceFailure::Ended { last_lines, .. } => last_lines.as_deref(),
            _ => None,
        }
    }
}

impl fmt::Display for ReplaceFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReplaceFailure::Ended { how, .. } => write!(f, "the new worker ended with {how}"),
            ReplaceFailure::NotStarted { reason } => {
                write!(f, "the new worker could not be started: {reason}")
            }
            ReplaceFailure::NotReady { within, seen, .. } => {
                write!(f, "the new worker was not ready after {} s", within.as_secs())?;
                seen.map_or(Ok(()), |seen| write!(f, " ({seen})"))
            }
            ReplaceFailure::NotListening { reason, .. } => f.write_str(reason),
            ReplaceFailure::Unreachable { addresses } => {
                write!(f, "clients do not reach {}", addresses.join(", "))
            }
            ReplaceFailure::Ending => f.write_str("all workers are being ended"),
        }
    }
}

/// The reason why a reload did not replace all workers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ReloadFailed {
    /// It was rejected, because another one is under way.
    UnderWay,
    /// It was rejected, because the cluster is stopping.
    Stopping,
    /// The cluster was stopped before the reload was over.
    Stopped,
    /// A new worker did not take over.
    Failed {
        /// The reason.
        reason: ReplaceFailure,
        /// Number of workers that had been replaced before.
        replaced: usize,
        /// The state of the cluster after the failure.
        then: Afterwards,
    },
    /// The cluster has no supervisor: the program forks the workers itself.
    Unsupervised,
    /// The primary has ended.
    Over,
}

impl ReloadFailed {
    /// Returns the last lines of the failed worker on standard error, if known; not escaped.
    #[must_use]
    pub fn last_lines(&self) -> Option<&str> {
        match self {
            ReloadFailed::Failed { reason, .. } => reason.last_lines(),
            _ => None,
        }
    }
}

impl fmt::Display for ReloadFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReloadFailed::UnderWay => f.write_str("a reload is under way"),
            ReloadFailed::Stopping | ReloadFailed::Stopped => f.write_str(STOPPING),
            ReloadFailed::Failed { reason, replaced, then } => {
                write!(f, "{reason}; ")?;
                match then {
                    Afterwards::KeepsRunning => {
                        let replaced = counted(*replaced, "worker");
                        write!(f, "{replaced} had been replaced, the others keep running")
                    }
                    Afterwards::Retries => f.write_str(
                        "no worker is ready, and troop keeps trying with the previous settings",
                    ),
                    Afterwards::Paused => f.write_str(
                        "the app is still paused, and nothing is tried again before the next reload",
                    ),
                    Afterwards::Ends => f.write_str("the reload is over"),
                    Afterwards::Replaced => write!(f, "{} replaced", counted(*replaced, "worker")),
                }
            }
            ReloadFailed::Unsupervised => f.write_str(UNSUPERVISED),
            ReloadFailed::Over => f.write_str(OVER),
        }
    }
}

impl Error for ReloadFailed {}

/// The reason why a worker was not recycled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum RecycleFailed {
    /// The worker is not in service: it is unknown, draining, or has ended.
    NotInService,
    /// It was rejected, because other workers are being replaced.
    UnderWay,
    /// A reload has begun in between, which replaces all workers.
    Reloading,
    /// No workers are in service, because the cluster is paused.
    Paused,
    /// The cluster is stopping.
    Stopping,
    /// The worker ended by itself, or became surplus, before its successor was ready.
    Ended,
    /// Its successor did not take over; the worker keeps running.
    Failed(ReplaceFailure),
    /// The cluster has no supervisor: the program forks the workers itself.
    Unsupervised,
    /// The primary has ended.
    Over,
}

impl RecycleFailed {
    /// Returns the last lines of the failed worker on standard error, if known; not escaped.
    #[must_use]
    pub fn last_lines(&self) -> Option<&str> {
        match self {
            RecycleFailed::Failed(reason) => reason.last_lines(),
            _ => None,
        }
    }
}

impl fmt::Display for RecycleFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RecycleFailed::NotInService => "there is no such worker in service",
            RecycleFailed::UnderWay => "others are being replaced",
            RecycleFailed::Reloading => "all workers are being replaced now",
            RecycleFailed::Paused => PAUSED,
            RecycleFailed::Stopping => STOPPING,
            RecycleFailed::Ended => "the worker ended by itself meanwhile",
            RecycleFailed::Failed(reason) => return reason.fmt(f),
            RecycleFailed::Unsupervised => UNSUPERVISED,
            RecycleFailed::Over => OVER,
        })
    }
}

impl Error for RecycleFailed {}

/// The reason why workers are not ready and waiting longer is useless.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum NotReady {
    /// Supervision has given up.
    GaveUp {
        /// The reason.
        why: GiveUp,
        /// The last lines on standard error of the worker that ended last, if known; not escaped.
        last_lines: Option<String>,
    },
    /// Some workers are ready; others have ended and are not restarted.
    Ended {
        /// A worker that has ended.
        worker: WorkerId,
        /// Its slot.
        slot: usize,
        /// How it ended.
        how: ExitHow,
        /// Number of ready workers.
        ready: usize,
        /// Target number of workers.
        wanted: usize,
    },
    /// Another number of workers was requested in between.
    Superseded,
    /// The cluster is paused; a reload starts the workers.
    Paused,
    /// The cluster is stopping, or all workers have ended and are not restarted.
    Stopping,
    /// The cluster has no supervisor: the program forks the workers itself.
    Unsupervised,
    /// The primary has ended.
    Over,
}

impl NotReady {
    /// Returns the last lines of the failed worker on standard error, if known; not escaped.
    #[must_use]
    pub fn last_lines(&self) -> Option<&str> {
        match self {
            NotReady::GaveUp { last_lines, .. } => last_lines.as_deref(),
            _ => None,
        }
    }
}

impl fmt::Display for NotReady {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NotReady::GaveUp { why, .. } => return why.fmt(f),
            NotReady::Ended { worker, how, ready, wanted, .. } => {
                return write!(
                    f,
                    "{ready} of {wanted} workers are ready; worker {worker} ended with {how}, and is not started again"
                );
            }
            NotReady::Superseded => "another number of workers was asked for meanwhile",
            NotReady::Paused => PAUSED,
            NotReady::Stopping => STOPPING,
            NotReady::Unsupervised => UNSUPERVISED,
            NotReady::Over => OVER,
        })
    }
}

impl Error for NotReady {}

const PAUSED: &str = "the cluster is paused; a reload starts its workers";
const STOPPING: &str = "the cluster is stopping";
const UNSUPERVISED: &str = "the cluster has no supervisor: the program forks its workers itself";
const OVER: &str = "the primary has ended";

/// An operation that is not complete yet.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Waiting {
    ticket: Ticket,
    until: Until,
}

#[derive(Debug, Serialize, Deserialize)]
enum Until {
    Ready,
    /// Complete when the workers are ready and these have ended.
    Scaled(Vec<WorkerId>),
    /// Complete when these have ended.
    Paused(Vec<WorkerId>),
}

impl Until {
    fn answer(&self, result: Result<usize, NotReady>) -> Answer {
        match self {
            Until::Ready => Answer::Ready(result),
            Until::Scaled(_) => Answer::Scale(result.map(drop)),
            Until::Paused(_) => Answer::Pause(result.map(drop)),
        }
    }
}

impl Supervisor {
    /// Sets what a worker with activated sockets, which does not serve yet, was seen to do.
    pub fn does_not_serve(&mut self, worker: WorkerId, seen: NotServing) {
        let members = self
            .slots
            .iter_mut()
            .flat_map(|state| state.current.iter_mut().chain(&mut state.successor));
        members
            .filter(|member| member.worker == worker)
            .for_each(|member| member.not_serving = Some(seen));
    }

    /// Begins an operation. [`Order::Answer`] with this ticket has its result.
    pub fn request(&mut self, now: Time, ticket: Ticket, request: Request) {
        self.due.set(None);
        match request {
            Request::Reload(claims) => self.begin_reload(now, claims, Some(ticket)),
            Request::Recycle { worker, reason, claims } => {
                if let Err(refused) = self.begin_recycle(now, worker, reason, claims, Some(ticket))
                {
                    self.answer(ticket, Answer::Recycle(Err(refused)));
                }
            }
            Request::Ready => self.wait(ticket, Until::Ready),
            Request::Scale(workers) => {
                let before = self.config.workers;
                self.scale(now, workers);
                if before != workers {
                    self.supersede();
                }
                let gone = self.leaving.iter().filter(|l| l.is_surplus).map(|l| l.worker).collect();
                self.wait(ticket, Until::Scaled(gone));
            }
            Request::Pause if self.stop_at.is_some() => {
                self.answer(ticket, Answer::Pause(Err(NotReady::Stopping)));
            }
            Request::Pause => {
                self.pause(now);
                let gone = self.leaving.iter().map(|l| l.worker).collect();
                self.wait(ticket, Until::Paused(gone));
            }
        }
        self.update_health(now);
    }

    /// Drops the answer of a ticket. The operation continues.
    pub fn forget_ticket(&mut self, ticket: Ticket) {
        self.waiting.retain(|waiting| waiting.ticket != ticket);
        if let Some(round) = &mut self.round
            && round.ticket == Some(ticket)
        {
            round.ticket = None;
        }
    }

    pub(super) fn answer(&mut self, ticket: Ticket, answer: Answer) {
        self.orders.push_back(Order::Answer(ticket, answer));
    }

    fn wait(&mut self, ticket: Ticket, until: Until) {
        self.waiting.push(Waiting { ticket, until });
    }

    /// Answers operations that wait for another number of workers.
    fn supersede(&mut self) {
        let is_scaling = |waiting: &Waiting| matches!(waiting.until, Until::Scaled(_));
        let (over, rest) = std::mem::take(&mut self.waiting).into_iter().partition(is_scaling);
        self.waiting = rest;
        for Waiting { ticket, .. } in over {
            self.answer(ticket, Answer::Scale(Err(NotReady::Superseded)));
        }
    }

    /// Answers the operations that are over. Must be called after every change that may complete
    /// one.
    pub(super) fn answer_due(&mut self, now: Time) {
        if self.waiting.is_empty() {
            return;
        }
        let ready = self.readiness(now);
        for waiting in std::mem::take(&mut self.waiting) {
            let is_gone = |worker: &WorkerId| !self.leaving.iter().any(|l| l.worker == *worker);
            let result = match (&waiting.until, &ready) {
                (Until::Paused(gone), _) if gone.iter().all(is_gone) => Some(Ok(0)),
                (Until::Paused(_), _) => match self.phase {
                    RunState::Stopping(_) | RunState::Finished => Some(Err(NotReady::Stopping)),
                    _ => None,
                },
                (Until::Scaled(gone), Some(Ok(_))) if !gone.iter().all(is_gone) => None,
                (_, ready) => ready.clone(),
            };
            match result {
                Some(result) => self.answer(waiting.ticket, waiting.until.answer(result)),
                None => self.waiting.push(waiting),
            }
        }
    }

    /// Returns whether every slot has a ready worker, or cannot get one; `None` while that is
    /// undecided.
    fn readiness(&self, now: Time) -> Option<Result<usize, NotReady>> {
        match &self.phase {
            RunState::Running if self.stop_at.is_some() => return Some(Err(NotReady::Stopping)),
            RunState::Running => {}
            RunState::Idle => return Some(Err(NotReady::Paused)),
            RunState::Stopping(super::Outcome::GaveUp(why)) => {
                return Some(Err(NotReady::GaveUp { why: why.clone(), last_lines: None }));
            }
            RunState::Stopping(_) | RunState::Finished => return Some(Err(NotReady::Stopping)),
        }
        let (mut ready, mut ended) = (0, None);
        let slots = self.slots.iter().enumerate().filter(|(_, state)| !state.is_retired);
        for (slot, state) in slots {
            if state.current.is_some_and(|m| m.is_ready(now, false, &self.config)) {
                ready += 1;
            } else {
                match state.done {
                    Some((_, how)) if self.config.is_finished(how) => {}
                    Some((worker, how)) => ended = ended.or(Some((worker, slot, how))),
                    None => return None,
                }
            }
        }
        let wanted = self.wanted();
        match ended {
            // The cluster ends.
            _ if ready == 0 && wanted > 0 => None,
            Some((worker, slot, how)) => {
                Some(Err(NotReady::Ended { worker, slot, how, ready, wanted }))
            }
            None => Some(Ok(ready)),
        }
    }
}
