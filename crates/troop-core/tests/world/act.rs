//! What the primary decides, and what must be true of it.

use troop_core::event::{Notice, Violation};
use troop_core::primary::{Action, Bind};
use troop_core::wire::incoming::{self, Incoming, TroopMessage};
use troop_core::wire::outgoing::SockName;
use troop_core::{ConnId, ListenerId, WorkerId};

use super::worker::Item;
use super::{Client, End, Kept, PORTS, Place, Reached, STICKY, World};

/// Most connections of a listener that move in one round, as documented.
const MAX_MOVES: u32 = 512;
/// Time between two rounds, as documented.
const ROUND_INTERVAL: u128 = 1000;

impl World {
    pub fn act(&mut self) {
        while let Some(action) = self.primary.next_action() {
            self.carry_out(action);
        }
        let in_service = self.sticky_workers();
        if in_service != self.in_service {
            self.owners.clear();
            self.changes += 1;
            self.in_service = in_service;
        }
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Deliver { worker, listener, conn, seq, batched } => {
                self.deliver(worker, listener, conn, seq, batched);
            }
            Action::Release { conn, taken } => self.release(conn, taken),
            Action::Send { worker, line } => self.send(worker, line),
            Action::SendListener { worker, line, .. } => {
                let inbox = &mut self.workers.get_mut(&worker).unwrap().inbox;
                inbox.push_back(Item::Handle);
                inbox.push_back(Item::Line(line));
            }
            Action::Probe { worker, .. } => {
                self.workers.get_mut(&worker).unwrap().inbox.push_back(Item::Handle);
            }
            Action::Bind { listener, spec, .. } => {
                let Bind::Tcp { port, .. } = spec.target else { panic!("{spec:?}") };
                let known = self.listeners.insert(usize::from(port) - 1, listener);
                assert_eq!(known, None, "a port is bound twice");
                let name = SockName { address: "127.0.0.1".into(), family: "IPv4", port };
                self.primary.bound(self.now, listener, Ok(Some(name)));
            }
            Action::Unbind { listener } => self.listeners.retain(|_, id| *id != listener),
            Action::Open { listener } => self.primary.opened(self.now, listener, Ok(())),
            Action::Sample { listener } => {
                let queues = vec![Some(0); self.workers.len()];
                self.primary.sampled(self.now, listener, &queues);
            }
            Action::Count { worker } => {
                let open = self.served(worker, None).len();
                self.primary.counted(self.now, worker, open as u32 + 20);
            }
            Action::Kill { worker, .. } => self.workers.get_mut(&worker).unwrap().is_killed = true,
            Action::Notify(Notice::Misbehaved { violation, .. }) => assert!(
                matches!(violation, Violation::Hung(_) | Violation::Silent(_)),
                "workers keep to the rules, and still {violation:?}"
            ),
            Action::Notify(Notice::ModeChanged { at, .. }) => {
                let port = at.port.unwrap() as usize - 1;
                self.reach(Reached::Switched, port);
                if self.clients.values().any(|kept| kept.port == port && kept.moves_from.is_some())
                {
                    self.reach(Reached::SwitchedInMove, port);
                }
            }
            _ => {}
        }
    }

    fn deliver(&mut self, worker: WorkerId, id: ListenerId, conn: ConnId, seq: u64, batched: bool) {
        let client = self.by_conn[&conn];
        let port = self.port_of(id);
        let state = &self.workers[&worker];
        assert!(state.is_there() && !state.is_blocked, "delivered to {worker}: {state:?}");
        assert!(state.listens.contains(&id), "{worker} has not port {port}: {state:?}");
        assert_eq!(batched, state.is_troop);
        let kept = self.clients.get_mut(&client).unwrap();
        assert_eq!((kept.place, kept.port), (Place::Waits(conn), port), "client {client}");
        kept.place = Place::Sent(worker, seq, conn);
        let since = kept.since;
        let is_first = !std::mem::replace(&mut kept.was_sent, true);
        if let Some((from, _)) = kept.moves_from.filter(|_| is_first)
            && from == worker
        {
            self.reach(Reached::Back, port);
        }
        // One that waits for its worker goes there also if its client has another one by now.
        let is_new = since == self.changes;
        if port == STICKY && is_new && self.sticky_workers() == self.in_service {
            let owner = *self.owners.entry(client % 16).or_insert(worker);
            assert_eq!(owner, worker, "client {client} has an owner");
            self.reach(Reached::ToOwner, port);
        }
        let state = self.workers.get_mut(&worker).unwrap();
        state.inbox.push_back(Item::Connection { seq, client });
    }

    fn release(&mut self, conn: ConnId, taken: bool) {
        let client = self.by_conn.remove(&conn).expect("released twice, or never accepted");
        if !taken {
            assert!(!self.is_calm, "closed without need");
            self.end(client, End::Tried);
            return;
        }
        let kept = self.clients.get_mut(&client).unwrap();
        let Place::Sent(worker, ..) = kept.place else { panic!("taken by nobody: {kept:?}") };
        kept.place = Place::Served(worker);
        let (moved, port) = (kept.moves_from.take(), kept.port);
        match moved {
            Some((_, true)) => self.reach(Reached::Completed, port),
            Some((_, false)) => self.reach(Reached::DrainCompleted, port),
            None => {}
        }
    }

    /// A worker has not taken a connection, which the primary has again.
    pub fn comes_back(&mut self, client: Client, why: Reached) {
        let Some(kept) = self.clients.get_mut(&client) else { return };
        let Place::Sent(_, _, conn) = kept.place else { panic!("{kept:?}") };
        kept.place = Place::Waits(conn);
        kept.since = self.changes;
        let (is_moved, port) = (matches!(kept.moves_from, Some((_, true))), kept.port);
        if is_moved {
            self.reach(why, port);
        }
    }

    fn send(&mut self, worker: WorkerId, line: Vec<u8>) {
        let message = incoming::parse(&line[..line.len() - 1]).unwrap();
        let state = &self.workers[&worker];
        let moves = state.is_troop || state.has_script;
        if let Incoming::Troop(TroopMessage::Count { key } | TroopMessage::Rebalance { key, .. }) =
            &message
        {
            let (id, port) = self.by_key(key);
            assert!(self.may_even_out(port), "nothing moves under {}", PORTS[port]);
            assert!(state.is_there() && moves && state.listens.contains(&id), "{state:?}");
            if let TroopMessage::Rebalance { count, .. } = troop(&message) {
                self.ordered(port, *count);
            }
        }
        self.workers.get_mut(&worker).unwrap().inbox.push_back(Item::Line(line));
    }

    /// A worker is asked for connections: no more, and no more often, than documented.
    fn ordered(&mut self, port: usize, count: u32) {
        self.reach(Reached::Order, port);
        let round = self.rounds.entry(port).or_insert((self.now, 0, 0));
        if round.0 != self.now {
            let pause = self.now.since(round.0).as_millis();
            assert!(pause >= ROUND_INTERVAL, "a round follows after {pause} ms");
            *round = (self.now, 0, 0);
        }
        round.1 += count;
        assert!(round.1 <= MAX_MOVES, "{} connections in a round", round.1);
    }

    /// A worker that stays has returned a connection.
    pub fn returned(&mut self, port: usize) {
        let round = self.rounds.get_mut(&port).unwrap();
        round.2 += 1;
        assert!(round.2 <= round.1, "{} came of {}", round.2, round.1);
    }

    pub fn by_key(&self, key: &str) -> (ListenerId, usize) {
        let (port, id) = self
            .listeners
            .iter()
            .find(|(_, id)| self.primary.listener_key(**id) == Some(key))
            .unwrap();
        (*id, *port)
    }

    /// Notes what happens to the connections that move from or to a worker which leaves or dies.
    pub fn note_lost(&mut self, worker: WorkerId) {
        let lost = |kept: &Kept| match (kept.moves_from, kept.place) {
            (Some((_, true)), Place::Sent(to, ..)) if to == worker => Some(Reached::TargetLost),
            (Some((from, true)), _) if from == worker => Some(Reached::OriginLost),
            _ => None,
        };
        let all: Vec<(Reached, usize)> =
            self.clients.values().filter_map(|kept| Some((lost(kept)?, kept.port))).collect();
        all.into_iter().for_each(|(what, port)| self.reach(what, port));
    }
}

fn troop<'a, 'b>(message: &'a Incoming<'b>) -> &'a TroopMessage<'b> {
    let Incoming::Troop(message) = message else { unreachable!() };
    message
}
