//! Operations that the program waits for: passes its requests to the supervisor, and the
//! supervisor's answers to the program.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use troop_core::asked::Asked;
use troop_core::cluster::Cluster;
use troop_core::supervise::{
    Answer, Claim, NotReady, RecycleFailed, ReloadFailed, Reloaded, ReplaceFailure, Request, Ticket,
};
use troop_core::{Time, WorkerId};

use super::Driver;
use crate::error::Error;
use crate::primary::handle::WorkerHandle;

/// How long the last lines of a worker that has ended are waited for: others may hold its standard
/// error open.
const LAST_LINES_TIMEOUT: Duration = Duration::from_millis(500);

/// Where an answer goes.
pub(crate) enum Reply {
    Reload(oneshot::Sender<Result<Reloaded, ReloadFailed>>),
    Recycle(oneshot::Sender<Result<WorkerId, RecycleFailed>>),
    Ready(oneshot::Sender<Result<usize, NotReady>>),
    /// Of what is answered with nothing but that it is done.
    Done(oneshot::Sender<Result<(), Error>>),
}

impl Reply {
    fn is_unwanted(&self) -> bool {
        match self {
            Reply::Reload(reply) => reply.is_closed(),
            Reply::Recycle(reply) => reply.is_closed(),
            Reply::Ready(reply) => reply.is_closed(),
            Reply::Done(reply) => reply.is_closed(),
        }
    }

    /// There is no supervisor that could do it.
    pub(super) fn refuse(self) {
        match self {
            Reply::Reload(reply) => drop(reply.send(Err(ReloadFailed::Unsupervised))),
            Reply::Recycle(reply) => drop(reply.send(Err(RecycleFailed::Unsupervised))),
            Reply::Ready(reply) => drop(reply.send(Err(NotReady::Unsupervised))),
            Reply::Done(reply) => drop(reply.send(Err(NotReady::Unsupervised.into()))),
        }
    }

    fn send(self, answer: Answer) {
        match (self, answer) {
            (Reply::Reload(reply), Answer::Reload(result)) => drop(reply.send(result)),
            (Reply::Recycle(reply), Answer::Recycle(result)) => drop(reply.send(result)),
            (Reply::Ready(reply), Answer::Ready(result)) => drop(reply.send(result)),
            (Reply::Done(reply), Answer::Scale(result) | Answer::Pause(result)) => {
                drop(reply.send(result.map_err(Error::from)));
            }
            // Tickets are not given twice.
            _ => {}
        }
    }
}

/// An answer that waits for the last lines of a worker.
struct Incomplete {
    answer: Answer,
    reply: Reply,
    worker: WorkerHandle,
    until: Time,
}

/// Operations that somebody waits for.
#[derive(Default)]
pub(super) struct Operations {
    last: u64,
    replies: BTreeMap<Ticket, Reply>,
    incomplete: Vec<Incomplete>,
    /// Where the workers listened when the reload began.
    addresses: Vec<Asked>,
    /// The worker that has ended with a failure last.
    fallen: Option<WorkerHandle>,
}

impl Operations {
    /// Returns a ticket for a reply, and drops the tickets whose callers have stopped waiting.
    pub(super) fn open(&mut self, cluster: &mut Cluster, reply: Reply) -> Ticket {
        self.replies.retain(|ticket, reply| {
            let is_unwanted = reply.is_unwanted();
            if is_unwanted && let Some(supervisor) = cluster.supervisor_mut() {
                supervisor.forget_ticket(*ticket);
            }
            !is_unwanted
        });
        self.last += 1;
        let ticket = Ticket(self.last);
        self.replies.insert(ticket, reply);
        ticket
    }

    /// Whether every answer that is due has been sent.
    pub(super) fn is_settled(&self) -> bool {
        self.incomplete.is_empty()
    }

    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.incomplete.iter().map(|incomplete| incomplete.until).min()
    }
}

impl Driver {
    pub(super) fn request(&mut self, request: Request, reply: Reply) {
        if self.cluster.supervisor().is_none() {
            return reply.refuse();
        }
        let ticket = self.operations.open(&mut self.cluster, reply);
        if let Some(supervisor) = self.cluster.supervisor_mut() {
            supervisor.request(self.now, ticket, request);
        }
    }

    /// A reload is about to begin.
    pub(super) fn remember_addresses(&mut self) {
        self.operations.addresses =
            self.cluster.primary.claims(true).iter().map(Claim::asked).collect();
    }

    pub(super) fn remember_fallen(&mut self, worker: WorkerHandle) {
        self.operations.fallen = Some(worker);
    }

    /// An operation is over.
    pub(super) fn answer(&mut self, ticket: Ticket, mut answer: Answer) {
        let Some(reply) = self.operations.replies.remove(&ticket) else { return };
        if let Answer::Reload(Ok(done)) = &mut answer {
            self.compare_addresses(done);
        }
        match self.at_fault(&answer) {
            Some(worker) => {
                let wake = Arc::downgrade(&self.inbox.handle().wake);
                let until = if worker.wakes_when_stderr_ends(wake) {
                    self.now + LAST_LINES_TIMEOUT
                } else {
                    self.now
                };
                self.operations.incomplete.push(Incomplete { answer, reply, worker, until });
                self.complete_answers();
            }
            None => self.answer_when_kept(move || reply.send(answer)),
        }
    }

    /// Sends the answers for which the last lines of workers are complete, or late.
    pub(super) fn complete_answers(&mut self) {
        if self.operations.incomplete.is_empty() {
            return;
        }
        let now = self.now;
        let is_complete =
            |incomplete: &Incomplete| incomplete.until <= now || incomplete.worker.stderr_ended();
        let (complete, rest) =
            std::mem::take(&mut self.operations.incomplete).into_iter().partition(is_complete);
        self.operations.incomplete = rest;
        for Incomplete { mut answer, reply, worker, .. } in complete {
            if let Some(place) = last_lines_of(&mut answer) {
                *place = worker.last_stderr(Duration::ZERO).filter(|lines| !lines.is_empty());
            }
            self.answer_when_kept(move || reply.send(answer));
        }
    }

    /// The worker whose last lines belong to an answer.
    fn at_fault(&self, answer: &Answer) -> Option<WorkerHandle> {
        let reason = match answer {
            Answer::Reload(Err(ReloadFailed::Failed { reason, .. }))
            | Answer::Recycle(Err(RecycleFailed::Failed(reason))) => reason,
            Answer::Ready(Err(NotReady::GaveUp { .. }))
            | Answer::Scale(Err(NotReady::GaveUp { .. })) => return self.operations.fallen.clone(),
            _ => return None,
        };
        let ReplaceFailure::Ended { worker, .. } = reason else { return None };
        self.workers.handle(*worker).cloned()
    }

    /// Which addresses the new workers of a reload listen on, and which they do not.
    fn compare_addresses(&mut self, done: &mut Reloaded) {
        let Some(supervisor) = self.cluster.supervisor() else { return };
        let generation = |worker: WorkerId| supervisor.standing(self.now, worker).map(|(_, of)| of);
        let newest = self.workers.ids().filter_map(generation).max();
        let new: Vec<WorkerId> = self
            .workers
            .ids()
            .filter(|worker| newest.is_some() && generation(*worker) == newest)
            .collect();
        let before = std::mem::take(&mut self.operations.addresses);
        let fixed = new.iter().flat_map(|worker| self.cluster.primary.fixed_addresses_of(*worker));
        for address in fixed {
            if !before.iter().any(|asked| asked.at == address) && !done.added.contains(&address) {
                done.added.push(address);
            }
        }
        let now: Vec<_> =
            new.iter().flat_map(|worker| self.cluster.primary.asked_by(*worker)).collect();
        let is_left = |asked: &Asked| !now.iter().any(|new| new.takes_over(asked));
        done.left = before.into_iter().filter(is_left).map(|asked| asked.at).collect();
    }
}

/// Where the last lines of a worker belong in an answer.
fn last_lines_of(answer: &mut Answer) -> Option<&mut Option<String>> {
    match answer {
        Answer::Ready(Err(NotReady::GaveUp { last_lines, .. }))
        | Answer::Scale(Err(NotReady::GaveUp { last_lines, .. })) => Some(last_lines),
        Answer::Reload(Err(ReloadFailed::Failed { reason, .. }))
        | Answer::Recycle(Err(RecycleFailed::Failed(reason))) => match reason {
            ReplaceFailure::Ended { last_lines, .. } => Some(last_lines),
            _ => None,
        },
        _ => None,
    }
}
