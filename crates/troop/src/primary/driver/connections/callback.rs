//! Connections whose worker the program chooses: it is asked, and meanwhile they wait here.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use troop_core::policy::{Connection, Question, Respond};
use troop_core::{ConnId, ListenerId, Time, WorkerId};

use crate::primary::driver::Driver;
use crate::primary::{Command, DriverHandle};

/// The most questions without an answer. More connections wait in the kernel.
const MAX_PENDING: usize = 1024;

struct PendingQuestion {
    listener: ListenerId,
    conn: ConnId,
    peer: Option<SocketAddr>,
    until: Time,
}

/// Questions without an answer.
pub(in crate::primary::driver) struct PendingQuestions {
    /// Sends answers, from any thread, to the driver.
    respond: Respond,
    pending: HashMap<u64, PendingQuestion>,
    deadlines: BTreeSet<(Time, u64)>,
    last: u64,
}

impl PendingQuestions {
    pub(in crate::primary::driver) fn new(driver: DriverHandle) -> PendingQuestions {
        // A primary that has ended has no connections to assign.
        let respond = Arc::new(move |ticket, worker| {
            drop(driver.send(Command::Answer(ticket, worker)));
        });
        PendingQuestions { respond, pending: HashMap::new(), deadlines: BTreeSet::new(), last: 0 }
    }

    pub(in crate::primary::driver) fn next_deadline(&self) -> Option<Time> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// New connections keep half of the room.
    pub(in crate::primary::driver) fn has_room_for_moved(&self) -> bool {
        self.pending.len() < MAX_PENDING / 2
    }

    pub(in crate::primary::driver) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    pub(in crate::primary::driver) fn is_full(&self) -> bool {
        self.pending.len() >= MAX_PENDING
    }
}

impl Driver {
    /// A connection was accepted.
    pub(in crate::primary::driver) fn ask(
        &mut self,
        listener: ListenerId,
        conn: ConnId,
        peer: Option<SocketAddr>,
    ) {
        let (Some(callback), Some(at)) =
            (self.cluster.primary.callback(listener), self.cluster.primary.bound_address(listener))
        else {
            self.cluster.primary.accepted(self.now, listener, conn, Connection::new(peer, None));
            return;
        };
        self.questions.last += 1;
        let (ticket, until) = (self.questions.last, self.now + callback.wait);
        self.questions.pending.insert(ticket, PendingQuestion { listener, conn, peer, until });
        self.questions.deadlines.insert((until, ticket));
        let (workers, respond) =
            (self.cluster.primary.views(listener), self.questions.respond.clone());
        callback.ask(Question::new(ticket, at, peer, workers, respond));
    }

    /// The program has chosen, or does not care.
    pub(in crate::primary::driver) fn answered(&mut self, ticket: u64, worker: Option<WorkerId>) {
        // Otherwise it comes too late.
        let Some(PendingQuestion { listener, conn, peer, until }) =
            self.questions.pending.remove(&ticket)
        else {
            return;
        };
        self.questions.deadlines.remove(&(until, ticket));
        self.cluster.primary.accepted(
            self.now,
            listener,
            conn,
            Connection::new(peer, worker.map(|worker| worker.0)),
        );
    }

    /// Those that have waited long enough.
    pub(in crate::primary::driver) fn answer_late(&mut self) {
        while let Some((_, ticket)) =
            self.questions.deadlines.first().copied().filter(|(until, _)| *until <= self.now)
        {
            self.answered(ticket, None);
        }
    }
}
