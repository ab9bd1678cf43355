//! Asks the embedding program for each connection's worker, without blocking.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Connection, Policy, RoundRobin, WorkerView};
use crate::event::Address;
use crate::id::WorkerId;

/// Sends an answer to the primary: the question's number, and the worker, if one was chosen.
pub type Respond = Arc<dyn Fn(u64, Option<WorkerId>) + Send + Sync>;

/// A question to the program: which worker gets a connection? [`Question::assign`] answers it;
/// dropping it answers without a preference.
#[non_exhaustive]
pub struct Question {
    /// The bound address of the listener.
    pub listener: Address,
    /// The client's address; `None` for Unix sockets.
    pub peer: Option<SocketAddr>,
    /// The workers to choose from. A connection waits for a worker that is not
    /// [ready](WorkerView::ready).
    pub workers: Vec<WorkerView>,
    ticket: u64,
    /// `None` once it is answered.
    respond: Option<Respond>,
}

impl Question {
    /// Creates a question; `number` identifies it in the answer.
    #[must_use]
    pub fn new(
        ticket: u64,
        listener: Address,
        peer: Option<SocketAddr>,
        workers: Vec<WorkerView>,
        respond: Respond,
    ) -> Question {
        Question { ticket, listener, peer, workers, respond: Some(respond) }
    }

    /// Assigns the connection to this worker. If the answer comes too late, or the worker has ended
    /// meanwhile, the connection goes to the next worker in turn.
    pub fn assign(mut self, worker: WorkerId) {
        self.answer(Some(worker));
    }

    fn answer(&mut self, worker: Option<WorkerId>) {
        if let Some(respond) = self.respond.take() {
            respond(self.ticket, worker);
        }
    }
}

/// Answers without a preference, unless the connection was [assigned](Question::assign).
impl Drop for Question {
    fn drop(&mut self) {
        self.answer(None);
    }
}

impl fmt::Debug for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Question")
            .field("listener", &self.listener)
            .field("peer", &self.peer)
            .field("workers", &self.workers)
            .finish_non_exhaustive()
    }
}

/// The program's function and its timeout, for
/// [`Scheduling::callback`](super::Scheduling::callback).
#[derive(Clone)]
pub struct Callback {
    ask: Arc<dyn Fn(Question) + Send + Sync>,
    /// Time that a connection waits for the answer. After it, the next worker in turn gets the
    /// connection.
    pub wait: Duration,
}

impl Callback {
    pub(crate) fn new(wait: Duration, ask: impl Fn(Question) + Send + Sync + 'static) -> Callback {
        Callback { ask: Arc::new(ask), wait }
    }

    /// Passes a question to the program.
    pub fn ask(&self, question: Question) {
        (self.ask)(question);
    }
}

impl fmt::Debug for Callback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Callback").field("wait", &self.wait).finish_non_exhaustive()
    }
}

impl PartialEq for Callback {
    fn eq(&self, other: &Callback) -> bool {
        Arc::ptr_eq(&self.ask, &other.ask) && self.wait == other.wait
    }
}

/// Picks the worker of the answer, which is in [`Connection::client`]. Without an answer, or if
/// that worker is gone, picks workers in turn.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct CallbackPolicy {
    workers: BTreeSet<WorkerId>,
    turns: RoundRobin,
}

impl Policy for CallbackPolicy {
    fn update(&mut self, worker: WorkerView) {
        self.workers.insert(worker.worker);
        self.turns.update(worker);
    }

    fn remove(&mut self, worker: WorkerId) {
        self.workers.remove(&worker);
        self.turns.remove(worker);
    }

    fn pick(&mut self, connection: &Connection) -> Option<WorkerId> {
        let chosen = connection.client.map(WorkerId).filter(|chosen| self.workers.contains(chosen));
        chosen.or_else(|| self.turns.pick(connection))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::view;
    use super::*;

    #[test]
    fn an_answer_decides_and_all_other_connections_go_in_turn() {
        let mut policy = CallbackPolicy::default();
        (1..=3).for_each(|worker| policy.update(view(worker)));
        let mut pick = |client| policy.pick(&Connection { peer: None, client }).unwrap().0;
        assert_eq!(
            [pick(Some(2)), pick(Some(2)), pick(Some(9)), pick(None), pick(None), pick(None)],
            [2, 2, 1, 2, 3, 1]
        );
        policy.remove(WorkerId(2));
        assert_ne!(policy.pick(&Connection { peer: None, client: Some(2) }), Some(WorkerId(2)));
        // The connection waits for a worker that is not ready.
        policy.update(WorkerView { ready: false, ..view(3) });
        assert_eq!(policy.pick(&Connection { peer: None, client: Some(3) }), Some(WorkerId(3)));
    }
}
