//! The program decides about each connection, in its own time.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Connection, Policy, RoundRobin, WorkerView};
use crate::event::Address;
use crate::id::WorkerId;

/// Carries answers to the primary: the number of the question, and the chosen worker if there is
/// one.
pub type Respond = Arc<dyn Fn(u64, Option<WorkerId>) + Send + Sync>;

/// The question which worker is to have a connection. It owns its answer: [`Question::assign`]
/// gives it, and a question that is dropped is answered with no preference.
#[non_exhaustive]
pub struct Question {
    /// The listener, as it is bound.
    pub listener: Address,
    /// The other end; `None` for Unix sockets.
    pub peer: Option<SocketAddr>,
    /// The workers to choose from. One that is not [ready](WorkerView::ready) makes the connection
    /// wait.
    pub workers: Vec<WorkerView>,
    ticket: u64,
    /// Until it is answered.
    respond: Option<Respond>,
}

impl Question {
    /// A question about one connection. The number names it in its answer.
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

    /// Gives the connection to this worker. If the answer comes too late, or the worker has ended
    /// meanwhile, it is the next worker's turn.
    pub fn assign(mut self, worker: WorkerId) {
        self.answer(Some(worker));
    }

    fn answer(&mut self, worker: Option<WorkerId>) {
        if let Some(respond) = self.respond.take() {
            respond(self.ticket, worker);
        }
    }
}

/// Answers that it does not matter, unless it was [assigned](Question::assign).
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

/// Whom to ask, and for how long: see [`Scheduling::callback`](super::Scheduling::callback).
#[derive(Clone)]
pub struct Callback {
    ask: Arc<dyn Fn(Question) + Send + Sync>,
    /// How long a connection waits for the answer. Then it is somebody's turn.
    pub wait: Duration,
}

impl Callback {
    pub(crate) fn new(wait: Duration, ask: impl Fn(Question) + Send + Sync + 'static) -> Callback {
        Callback { ask: Arc::new(ask), wait }
    }

    /// Asks.
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

/// Obeys the answer, which is in [`Connection::client`]. Without one, or if that worker has gone,
/// turns.
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
    fn an_answer_is_obeyed_and_everything_else_is_a_turn() {
        let mut policy = CallbackPolicy::default();
        (1..=3).for_each(|worker| policy.update(view(worker)));
        let mut pick = |client| policy.pick(&Connection { peer: None, client }).unwrap().0;
        assert_eq!(
            [pick(Some(2)), pick(Some(2)), pick(Some(9)), pick(None), pick(None), pick(None)],
            [2, 2, 1, 2, 3, 1]
        );
        policy.remove(WorkerId(2));
        assert_ne!(policy.pick(&Connection { peer: None, client: Some(2) }), Some(WorkerId(2)));
        // It waits for one that is busy.
        policy.update(WorkerView { ready: false, ..view(3) });
        assert_eq!(policy.pick(&Connection { peer: None, client: Some(3) }), Some(WorkerId(3)));
    }
}
