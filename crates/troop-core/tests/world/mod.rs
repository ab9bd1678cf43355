//! A world of clients that keep their connections open and of workers that serve them, around a
//! primary that moves the connections. It knows where each connection is, and checks each step.
#![allow(unreachable_pub, missing_docs, clippy::unwrap_used, reason = "helpers of tests")]

mod act;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use troop_core::policy::Connection;
use troop_core::primary::{Config, Primary, Rebalanced};
use troop_core::steer::Mode;
use troop_core::wire::incoming;
use troop_core::{ConnId, ListenerId, Time, WorkerId};

pub use worker::Worker;

/// The scheduling of each listener. Its port is its place here, plus one.
pub const PORTS: [&str; 9] = [
    "round-robin",
    "least-connections",
    "p2c",
    "weighted",
    "sticky",
    "round-robin",
    "auto",
    "steered",
    "shared",
];
/// The listener where nothing is to move, although its scheduling would allow it.
pub const OFF: usize = 5;

/// The listener whose clients have workers of their own.
pub const STICKY: usize = 4;

/// A client's number.
pub type Client = u32;

/// Where a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// With the primary.
    Waits(ConnId),
    /// On the way to a worker.
    Sent(WorkerId, u64, ConnId),
    /// With a worker.
    Served(WorkerId),
}

/// A client's connection.
#[derive(Debug)]
pub struct Kept {
    pub port: usize,
    pub place: Place,
    /// The time until which a request is being answered.
    pub busy_until: Time,
    /// While it moves: the worker that it comes from, and whether that one stays.
    pub moves_from: Option<(WorkerId, bool)>,
    /// How many times it came from a worker that stays, since the load last changed.
    pub moves: u32,
    /// How many times workers had changed when the primary got it.
    pub since: u32,
    /// Whether it has been delivered since it was returned.
    pub was_sent: bool,
}

/// Why a connection has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// Its client has closed it.
    Client,
    /// Its worker has died, or was killed.
    Death,
    /// Its worker has ended and nobody took it.
    Left,
    /// The primary has closed it: every worker that had it has died.
    Tried,
}

/// What is counted, so that a test notices when it is not reached any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reached {
    /// A worker that stays was asked for connections.
    Order,
    /// One of those came back.
    Begun,
    /// It was not taken back: the round is over, or too many wait.
    Refused,
    /// It was not taken back, because the shell could not.
    RefusedByShell,
    /// The worker had it for too long: a request was being answered.
    Expired,
    /// Another worker has it.
    Completed,
    /// The worker that it was to go to did not take it.
    Rejected,
    /// That worker had it for too long.
    Recalled,
    /// That worker was told to leave, or died, while it was on the way.
    TargetLost,
    /// The worker that it came from was told to leave, or died, while it was on the way.
    OriginLost,
    /// It went back to the worker that it came from.
    Back,
    /// A worker that leaves gave one back.
    Drained,
    /// Another worker has that one.
    DrainCompleted,
    /// A connection went to the worker that owns its client.
    ToOwner,
    /// A listener went from turns to the kernel, or back.
    Switched,
    /// Connections were moving just then.
    SwitchedInMove,
}

/// Pseudo-random numbers, the same for the same seed.
#[derive(Debug)]
pub struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    pub fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    pub fn one_of<T: Copy>(&mut self, all: &[T]) -> Option<T> {
        all.get(self.below(all.len())).copied()
    }
}

/// Everything.
pub struct World {
    pub primary: Primary,
    pub now: Time,
    pub draw: Draw,
    pub workers: BTreeMap<WorkerId, Worker>,
    pub clients: BTreeMap<Client, Kept>,
    pub ended: BTreeMap<End, u32>,
    pub reached: BTreeMap<(Reached, usize), u32>,
    /// The listener of each port.
    pub listeners: BTreeMap<usize, ListenerId>,
    pub opened: u32,
    by_conn: BTreeMap<ConnId, Client>,
    next_conn: u32,
    /// The worker of each client number of the sticky listener, since `in_service` last changed.
    owners: BTreeMap<u32, WorkerId>,
    /// The workers that take connections there, and their weights.
    in_service: Vec<(WorkerId, u32)>,
    /// How many times those have changed.
    changes: u32,
    /// The time of the last round of a listener, how many connections it asked for, and how many
    /// came.
    rounds: BTreeMap<usize, (Time, u32, u32)>,
    /// Whether load and workers stay as they are.
    pub is_calm: bool,
}

impl World {
    pub fn new(seed: u64) -> World {
        let pattern = |port: usize| (port + 1).to_string().parse().unwrap();
        let listeners = (0..).zip(PORTS).map(|(port, name)| (pattern(port), name.parse().unwrap()));
        let evened_out = (0..PORTS.len()).filter(|port| *port != OFF).map(pattern);
        World::of(Config {
            listeners: listeners.collect(),
            rebalance: Rebalanced::Only(evened_out.collect()),
            pending_limit: [8, 64][seed as usize % 2],
            troop_window: [4, 64][seed as usize / 2 % 2],
            node_window: [2, 16][seed as usize / 4 % 2],
            seed,
            ..Config::default()
        })
    }

    pub fn of(config: Config) -> World {
        World {
            draw: Draw(config.seed),
            primary: Primary::new(config),
            now: Time(1),
            workers: BTreeMap::new(),
            clients: BTreeMap::new(),
            ended: BTreeMap::new(),
            reached: BTreeMap::new(),
            listeners: BTreeMap::new(),
            opened: 0,
            by_conn: BTreeMap::new(),
            next_conn: 0,
            owners: BTreeMap::new(),
            in_service: Vec::new(),
            changes: 0,
            rounds: BTreeMap::new(),
            is_calm: false,
        }
    }

    pub fn reach(&mut self, what: Reached, port: usize) {
        *self.reached.entry((what, port)).or_default() += 1;
    }

    pub fn sum(&self, what: Reached) -> u32 {
        self.reached.iter().filter(|((other, _), _)| *other == what).map(|(_, count)| count).sum()
    }

    pub fn port_of(&self, id: ListenerId) -> usize {
        self.listeners.iter().find(|(_, other)| **other == id).map(|(port, _)| *port).unwrap()
    }

    /// Whether connections of a listener may move from one worker that stays to another.
    pub fn may_even_out(&self, port: usize) -> bool {
        let scheduling = self.primary.scheduling(self.listeners[&port]).unwrap();
        port != OFF && scheduling.sticky().is_none() && scheduling.to_string() != "shared"
    }

    pub fn say(&mut self, worker: WorkerId, line: &[u8]) {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        self.primary.heard(self.now, worker);
        self.primary.message(self.now, worker, incoming::parse(line).unwrap());
        self.act();
    }

    /// The workers that take connections of the sticky listener now.
    fn sticky_workers(&self) -> Vec<(WorkerId, u32)> {
        let views = self.listeners.get(&STICKY).map(|id| self.primary.views(*id));
        views.unwrap_or_default().iter().map(|view| (view.worker, view.weight)).collect()
    }

    // ---- clients ----

    /// A connection that the primary has from now on.
    fn next_conn(&mut self, client: Client) -> ConnId {
        let conn = ConnId(self.next_conn);
        self.next_conn += 1;
        self.by_conn.insert(conn, client);
        conn
    }

    /// What is known about a client: on the sticky listener there are few, with several connections.
    fn about(client: Client) -> Connection {
        Connection::new(None, Some((client % 16).wrapping_mul(0x9E37_79B1)))
    }

    /// A client connects. Where the kernel spreads connections, mostly a worker accepts it.
    pub fn connect(&mut self, port: usize) {
        let Some(id) = self.listeners.get(&port).copied() else { return };
        let mode = self.primary.mode(id).map(|current| current.mode);
        let scheduling = self.primary.scheduling(id).unwrap().to_string();
        let is_shared = scheduling == "shared";
        let by_kernel = is_shared || mode == Some(Mode::Steered) || scheduling == "steered";
        let accepts = |state: &Worker| state.listens.contains(&id) && state.serves(self.now);
        let accepting: Vec<WorkerId> =
            self.workers.iter().filter(|(_, state)| accepts(state)).map(|(id, _)| *id).collect();
        let (client, busy_until, since) = (self.opened, Time(0), self.changes);
        let kept = |place| Kept {
            port,
            place,
            busy_until,
            moves_from: None,
            moves: 0,
            since,
            was_sent: false,
        };
        if by_kernel && (is_shared || self.draw.percent(90)) {
            // As the kernel does where it does not know better: not evenly.
            let at = self.draw.below(accepting.len()).min(self.draw.below(accepting.len()));
            if let Some(worker) = accepting.get(at).copied() {
                self.opened += 1;
                self.clients.insert(client, kept(Place::Served(worker)));
            }
            return;
        }
        if self.primary.wants_connection(id) {
            self.opened += 1;
            let conn = self.next_conn(client);
            self.clients.insert(client, kept(Place::Waits(conn)));
            self.primary.accepted(self.now, id, conn, World::about(client));
            self.primary.arrived(self.now, id, 1);
            self.act();
        }
    }

    pub fn end(&mut self, client: Client, why: End) {
        let kept = self.clients.remove(&client).unwrap();
        assert!(why != End::Client || matches!(kept.place, Place::Served(_)), "{kept:?}");
        *self.ended.entry(why).or_default() += 1;
        for state in self.workers.values_mut() {
            state.wanted.remove(&client);
        }
    }

    /// The clients that a worker serves at a listener, or at any.
    pub fn served(&self, worker: WorkerId, port: Option<usize>) -> Vec<Client> {
        let is_there = |kept: &Kept| {
            kept.place == Place::Served(worker) && port.is_none_or(|port| kept.port == port)
        };
        self.clients.iter().filter(|(_, kept)| is_there(kept)).map(|(id, _)| *id).collect()
    }

    // ---- time ----

    /// Time passes, and everybody does what is due.
    pub fn pass(&mut self, ms: u64) {
        self.now = self.now + Duration::from_millis(ms);
        if self.primary.next_deadline().is_some_and(|due| due <= self.now) {
            self.primary.tick(self.now);
            self.act();
        }
        for worker in self.workers.keys().copied().collect::<Vec<_>>() {
            self.run(worker);
        }
    }

    /// Everything that must be true at any time.
    pub fn check(&self) {
        let mut sent: BTreeMap<WorkerId, BTreeMap<u64, ConnId>> = BTreeMap::new();
        let mut conns = BTreeSet::new();
        for kept in self.clients.values() {
            let conn = match kept.place {
                Place::Served(worker) => {
                    assert!(self.workers.contains_key(&worker), "{kept:?}");
                    continue;
                }
                Place::Waits(conn) => conn,
                Place::Sent(worker, seq, conn) => {
                    sent.entry(worker).or_default().insert(seq, conn);
                    conn
                }
            };
            assert!(conns.insert(conn), "{conn:?} is in two places");
        }
        let known: BTreeSet<ConnId> = self.by_conn.keys().copied().collect();
        assert_eq!(conns, known, "connections that the primary has");
        for worker in self.workers.keys() {
            let core: BTreeMap<u64, ConnId> = self.primary.in_flight(*worker).collect();
            assert_eq!(core, sent.remove(worker).unwrap_or_default(), "worker {worker}");
        }
        let waiting: usize =
            self.listeners.values().map(|id| self.primary.listener_load(*id).1).sum();
        let waits = |kept: &&Kept| matches!(kept.place, Place::Waits(_));
        assert_eq!(waiting, self.clients.values().filter(waits).count(), "waiting connections");
        let ended: u32 = self.ended.values().sum();
        assert_eq!(self.opened as usize, self.clients.len() + ended as usize);
    }
}
