//! What a supervisor is asked to do, and how each of these operations ended.
//!
//! Each request has a [`Ticket`]. The supervisor answers it with [`Order::Answer`] when the
//! operation is over, so that nobody has to guess its end from the progress.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Afterwards, Claim, GiveUp, Order, RunState, Supervisor};
use crate::event::{Address, ExitHow};
use crate::id::{Time, WorkerId};
use crate::text::counted;

/// The number of a request, by which its answer is recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ticket(pub u64);

/// An operation that is answered when it is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Replaces the workers, whose successors take over these addresses.
    Reload(Vec<Claim>),
    /// Replaces one worker.
    Recycle {
        /// Which.
        worker: WorkerId,
        /// Why, for people.
        reason: String,
        /// The addresses that its successor has to take over.
        claims: Vec<Claim>,
    },
    /// Waits until every slot has a ready worker.
    Ready,
    /// Changes the number of workers.
    Scale(usize),
    /// Ends the workers until the next reload.
    Pause,
}

/// How an operation ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// That of a reload.
    Reload(Result<Reloaded, ReloadFailed>),
    /// The successor of a recycled worker.
    Recycle(Result<WorkerId, RecycleFailed>),
    /// How many workers are ready.
    Ready(Result<usize, NotReady>),
    /// Whether as many workers are ready, and the others gone.
    Scale(Result<(), NotReady>),
    /// Whether the workers are gone.
    Pause(Result<(), NotReady>),
}

/// What a reload has done.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Reloaded {
    /// Workers that have been replaced. They may still be finishing what they have.
    pub replaced: usize,
    /// Workers that were started in slots that had none.
    pub started: usize,
    /// Addresses that the old workers listened on and no new one does. Only where that is allowed.
    pub left: Vec<Address>,
    /// Addresses that new workers listen on and no old one did.
    pub added: Vec<Address>,
}

/// Why a new worker did not take over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ReplaceFailure {
    /// It ended.
    Ended {
        /// The new worker.
        worker: WorkerId,
        /// How it ended.
        how: ExitHow,
        /// The last lines that it wrote to standard error, if those are known; not made safe to
        /// show.
        last_lines: Option<String>,
    },
    /// It could not be started.
    NotStarted {
        /// Why.
        reason: String,
    },
    /// It was not ready in time.
    NotReady {
        /// The new worker, if there was one.
        worker: Option<WorkerId>,
        /// How long it had.
        within: Duration,
    },
    /// It, or no new worker at all, listens where the old ones do.
    NotListening {
        /// The new worker.
        worker: WorkerId,
        /// The address that would have been lost.
        address: Address,
        /// All of it, for people.
        reason: String,
    },
    /// All workers have been replaced, but clients do not reach these addresses.
    Unreachable {
        /// Which.
        addresses: Vec<String>,
    },
    /// All workers are being ended, because the cluster is paused or gives up.
    Ending,
}

impl ReplaceFailure {
    /// The last lines that the new worker wrote to standard error, if those are known; not made
    /// safe to show.
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
            ReplaceFailure::NotReady { within, .. } => {
                write!(f, "the new worker was not ready after {} s", within.as_secs())
            }
            ReplaceFailure::NotListening { reason, .. } => f.write_str(reason),
            ReplaceFailure::Unreachable { addresses } => {
                write!(f, "clients do not reach {}", addresses.join(", "))
            }
            ReplaceFailure::Ending => f.write_str("all workers are being ended"),
        }
    }
}

/// Why a reload did not replace all workers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ReloadFailed {
    /// It did not begin, because another one is under way.
    UnderWay,
    /// It did not begin, because the cluster is stopping.
    Stopping,
    /// The cluster was told to stop before the reload was over.
    Stopped,
    /// A new worker did not take over.
    Failed {
        /// Why.
        reason: ReplaceFailure,
        /// Workers that had been replaced before.
        replaced: usize,
        /// What becomes of the workers.
        then: Afterwards,
    },
    /// The cluster has no supervisor: the program forks the workers itself.
    Unsupervised,
    /// The primary has ended.
    Over,
}

impl ReloadFailed {
    /// The last lines that the worker at fault wrote to standard error, if those are known; not
    /// made safe to show.
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
                    Afterwards::GoesOn => {
                        let replaced = counted(*replaced, "worker");
                        write!(f, "{replaced} had been replaced, the others go on")
                    }
                    Afterwards::Retries => f.write_str(
                        "no worker is ready, and troop goes on trying with what was there before",
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

/// Why a worker was not recycled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum RecycleFailed {
    /// There is no such worker in service: it is unknown, finishes, or has ended.
    NotInService,
    /// It did not begin, because others are being replaced.
    UnderWay,
    /// A reload has begun meanwhile, which replaces all workers.
    Reloading,
    /// No workers are in service, because the cluster is paused.
    Paused,
    /// The cluster is stopping.
    Stopping,
    /// The worker ended by itself, or became one too many, before its successor was ready.
    Ended,
    /// Its successor did not take over; the worker goes on.
    Failed(ReplaceFailure),
    /// The cluster has no supervisor: the program forks the workers itself.
    Unsupervised,
    /// The primary has ended.
    Over,
}

impl RecycleFailed {
    /// The last lines that the worker at fault wrote to standard error, if those are known; not
    /// made safe to show.
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

/// Why the workers are not ready, and waiting for them is of no use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum NotReady {
    /// Supervision has given up.
    GaveUp {
        /// Why.
        why: GiveUp,
        /// The last lines that the worker which ended last wrote to standard error, if those are
        /// known; not made safe to show.
        last_lines: Option<String>,
    },
    /// Some workers are ready; others have ended, and are not to be started again.
    Ended {
        /// One of those that have ended.
        worker: WorkerId,
        /// The slot that it had.
        slot: usize,
        /// How it ended.
        how: ExitHow,
        /// Workers that are ready.
        ready: usize,
        /// Workers that there should be.
        wanted: usize,
    },
    /// Another number of workers was asked for meanwhile.
    Superseded,
    /// The cluster is paused; a reload starts the workers.
    Paused,
    /// The cluster is stopping, or all workers have ended as they may.
    Stopping,
    /// The cluster has no supervisor: the program forks the workers itself.
    Unsupervised,
    /// The primary has ended.
    Over,
}

impl NotReady {
    /// The last lines that the worker at fault wrote to standard error, if those are known; not
    /// made safe to show.
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

/// A request that is answered later.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Waiting {
    ticket: Ticket,
    until: Until,
}

#[derive(Debug, Serialize, Deserialize)]
enum Until {
    Ready,
    /// The workers are ready, and these are gone.
    Scaled(Vec<WorkerId>),
    /// These are gone.
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
    /// Begins an operation. [`Order::Answer`] says with this ticket how it ended.
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
            Request::Pause => {
                self.pause(now);
                let gone = self.leaving.iter().map(|l| l.worker).collect();
                self.wait(ticket, Until::Paused(gone));
            }
        }
        self.look(now);
    }

    /// Nobody waits for this answer any more. The operation goes on.
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

    /// The number of workers that others wait for is not the one that is wanted any more.
    fn supersede(&mut self) {
        let is_scaling = |waiting: &Waiting| matches!(waiting.until, Until::Scaled(_));
        let (over, rest) = std::mem::take(&mut self.waiting).into_iter().partition(is_scaling);
        self.waiting = rest;
        for Waiting { ticket, .. } in over {
            self.answer(ticket, Answer::Scale(Err(NotReady::Superseded)));
        }
    }

    /// Answers those whose operation is over by now. Called after everything that may have changed
    /// that.
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

    /// Whether every slot that is to have a ready worker has one, or never will; `None` if that is
    /// still open.
    fn readiness(&self, now: Time) -> Option<Result<usize, NotReady>> {
        match &self.phase {
            RunState::Running => {}
            RunState::Idle => return Some(Err(NotReady::Paused)),
            RunState::Stopping(super::Outcome::GaveUp(why)) => {
                return Some(Err(NotReady::GaveUp { why: why.clone(), last_lines: None }));
            }
            RunState::Stopping(_) | RunState::Finished => return Some(Err(NotReady::Stopping)),
        }
        let (mut ready, mut ended) = (0, None);
        for (slot, state) in self.slots.iter().enumerate() {
            if state.current.is_some_and(|member| member.is_ready(now, false, &self.config)) {
                ready += 1;
            } else {
                match state.done {
                    Some((_, how)) if self.config.is_finished(how) => {}
                    Some((worker, how)) => ended = ended.or(Some((worker, slot, how))),
                    None => return None,
                }
            }
        }
        let wanted = self.slots.len();
        match ended {
            // Everything ends.
            _ if ready == 0 && wanted > 0 => None,
            Some((worker, slot, how)) => {
                Some(Err(NotReady::Ended { worker, slot, how, ready, wanted }))
            }
            None => Some(Ok(ready)),
        }
    }
}
