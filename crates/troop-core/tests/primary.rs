//! Whatever happens in whatever order, every accepted connection is in exactly one place, and is released exactly once.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use troop_core::event::{ExitHow, Notice};
use troop_core::policy::{Connection, Scheduling};
use troop_core::primary::{Action, Bind, Config, Primary};
use troop_core::wire::incoming;
use troop_core::wire::outgoing::SockName;
use troop_core::{ConnId, ListenerId, Time, Violation, WorkerId};

/// Schedulings of the ports 1 to 6.
const PORTS: [&str; 6] = ["round-robin", "steered", "sticky", "least-connections", "p2c", "steered:sticky"];
/// What can be had instead while a listener is open.
const HANDED: [&str; 5] = ["round-robin", "weighted", "least-connections", "p2c", "sticky"];

fn config() -> Config {
    let listeners = (1..).zip(PORTS).map(|(port, name): (u16, _)| (port.to_string().parse().unwrap(), name.parse().unwrap()));
    Config { listeners: listeners.collect(), pending_limit: 5, troop_window: 6, node_window: 3, ..Config::default() }
}

/// Something that happens. Numbers choose among what is there.
#[derive(Debug, Clone)]
enum Input {
    Fork { troop: bool },
    Query { worker: usize, port: u16, fails: bool },
    Listening { worker: usize, port: u16 },
    Report { worker: usize, open: u32, load: u32 },
    Reschedule { port: u16, to: usize },
    Weigh { worker: usize, weight: u32 },
    Shut { listener: usize, place: usize },
    Accept { listener: usize },
    Answer { worker: usize, which: usize, accepted: bool },
    Batch { worker: usize, taken: u8, returned: u8 },
    Acknowledge { worker: usize, arrived: bool },
    Undelivered { worker: usize, which: usize },
    Consumed { worker: usize, which: usize },
    Close { worker: usize, listener: usize },
    Blocked { worker: usize, blocked: bool },
    Disconnect { worker: usize, keep: bool },
    Goodbye { worker: usize },
    Violation { worker: usize, fatal: bool },
    UserHandle { worker: usize },
    ChannelClosed { worker: usize, by_worker: bool },
    Exit { worker: usize },
    CloseUnused,
    Pass { ms: u64 },
}

fn input() -> impl Strategy<Value = Input> {
    let worker = 0..8usize;
    let which = 0..10usize;
    prop_oneof![
        3 => any::<bool>().prop_map(|troop| Input::Fork { troop }),
        8 => (worker.clone(), 1..7u16, prop::bool::weighted(0.1)).prop_map(|(worker, port, fails)| Input::Query { worker, port, fails }),
        8 => (worker.clone(), 1..7u16).prop_map(|(worker, port)| Input::Listening { worker, port }),
        2 => (worker.clone(), 0..50u32, 0..5u32).prop_map(|(worker, open, load)| Input::Report { worker, open, load }),
        1 => (0..7u16, 0..HANDED.len()).prop_map(|(port, to)| Input::Reschedule { port, to }),
        1 => (worker.clone(), 0..300u32).prop_map(|(worker, weight)| Input::Weigh { worker, weight }),
        1 => (0..7usize, 0..8usize).prop_map(|(listener, place)| Input::Shut { listener, place }),
        20 => (0..7usize).prop_map(|listener| Input::Accept { listener }),
        10 => (worker.clone(), which.clone(), prop::bool::weighted(0.7)).prop_map(|(worker, which, accepted)| Input::Answer { worker, which, accepted }),
        6 => (worker.clone(), 0..8u8, 0..8u8).prop_map(|(worker, taken, returned)| Input::Batch { worker, taken, returned }),
        6 => (worker.clone(), prop::bool::weighted(0.8)).prop_map(|(worker, arrived)| Input::Acknowledge { worker, arrived }),
        2 => (worker.clone(), which.clone()).prop_map(|(worker, which)| Input::Undelivered { worker, which }),
        1 => (worker.clone(), which).prop_map(|(worker, which)| Input::Consumed { worker, which }),
        2 => (worker.clone(), 0..4usize).prop_map(|(worker, listener)| Input::Close { worker, listener }),
        3 => (worker.clone(), any::<bool>()).prop_map(|(worker, blocked)| Input::Blocked { worker, blocked }),
        1 => (worker.clone(), any::<bool>()).prop_map(|(worker, keep)| Input::Disconnect { worker, keep }),
        1 => worker.clone().prop_map(|worker| Input::Goodbye { worker }),
        1 => (worker.clone(), any::<bool>()).prop_map(|(worker, fatal)| Input::Violation { worker, fatal }),
        1 => worker.clone().prop_map(|worker| Input::UserHandle { worker }),
        2 => (worker.clone(), any::<bool>()).prop_map(|(worker, by_worker)| Input::ChannelClosed { worker, by_worker }),
        2 => worker.prop_map(|worker| Input::Exit { worker }),
        1 => Just(Input::CloseUnused),
        8 => prop_oneof![0..20u64, 0..2000u64, 0..40_000u64].prop_map(|ms| Input::Pass { ms }),
    ]
}

#[derive(Debug, Default)]
struct Worker {
    told_to_leave: bool,
    cut_off: bool,
    connected: bool,
    blocked: bool,
    troop: bool,
    seq: u64,
    /// What it was handed and did not answer, by its number.
    holds: BTreeMap<u64, ConnId>,
    tickets: BTreeSet<u64>,
    /// Sockets that it was given, and whether it has said that it listens.
    sockets: BTreeMap<(ListenerId, u16), bool>,
}

/// The world around a primary, which checks all that it is told.
struct World {
    primary: Primary,
    now: Time,
    workers: BTreeMap<WorkerId, Worker>,
    listeners: BTreeMap<ListenerId, Bind>,
    fails: bool,
    /// Every connection that was accepted and not released.
    open: BTreeSet<ConnId>,
    /// Those of them that no worker holds.
    waiting: BTreeSet<ConnId>,
    next_conn: u32,
    next_ticket: u64,
    /// Every line for a worker, for the tests of single promises.
    sent: Vec<(WorkerId, String)>,
    /// Which sockets of the program's arrived, by their ticket.
    settled: BTreeMap<u64, bool>,
    /// The sockets of steered listeners, and whether the primary accepts on them.
    groups: BTreeMap<ListenerId, Vec<bool>>,
    /// The last one of these that was made had an obstacle.
    looks: u32,
    /// Queues are empty.
    calm: bool,
}

impl World {
    fn new(config: Config) -> World {
        World {
            primary: Primary::new(config),
            now: Time(1),
            workers: BTreeMap::new(),
            listeners: BTreeMap::new(),
            fails: false,
            open: BTreeSet::new(),
            waiting: BTreeSet::new(),
            next_conn: 0,
            next_ticket: 0,
            sent: Vec::new(),
            settled: BTreeMap::new(),
            groups: BTreeMap::new(),
            looks: 0,
            calm: false,
        }
    }

    fn worker(&self, n: usize) -> Option<WorkerId> {
        self.workers.keys().copied().nth(n % self.workers.len().max(1))
    }

    fn say(&mut self, worker: WorkerId, line: &str) {
        let parsed = incoming::parse(line.as_bytes()).unwrap();
        self.primary.message(self.now, worker, parsed);
    }

    fn holds(&self, worker: WorkerId, which: usize) -> Option<(u64, ConnId)> {
        let holds = &self.workers[&worker].holds;
        holds.iter().nth(which % holds.len().max(1)).map(|(s, c)| (*s, *c))
    }

    /// A worker no longer holds this.
    fn let_go(&mut self, worker: WorkerId, seq: u64) {
        if let Some(conn) = self.workers.get_mut(&worker).and_then(|w| w.holds.remove(&seq)) {
            self.waiting.insert(conn);
        }
    }

    fn act(&mut self) -> Result<(), TestCaseError> {
        while let Some(action) = self.primary.next_action() {
            match action {
                Action::Deliver { worker, listener, conn, seq, batched } => {
                    prop_assert!(self.waiting.remove(&conn), "{:?} was delivered, but was not waiting", conn);
                    prop_assert!(self.listeners.contains_key(&listener), "{:?} is closed", listener);
                    let state = self.workers.get_mut(&worker);
                    prop_assert!(state.is_some(), "delivered to worker {}, which is gone", worker);
                    let state = state.unwrap();
                    prop_assert!(
                        state.connected && !state.told_to_leave && !state.cut_off && !state.blocked,
                        "delivered to {:?}",
                        state
                    );
                    prop_assert_eq!(batched, state.troop);
                    prop_assert!(state.holds.insert(seq, conn).is_none(), "number {} is used twice", seq);
                }
                Action::Release { conn } => {
                    prop_assert!(self.open.remove(&conn), "{:?} was released twice, or never accepted", conn);
                    self.waiting.remove(&conn);
                    self.workers.values_mut().for_each(|w| w.holds.retain(|_, held| *held != conn));
                }
                Action::Send { worker, line } => {
                    prop_assert!(self.workers.contains_key(&worker), "a line for worker {}, which is gone", worker);
                    prop_assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1);
                    let parsed = incoming::parse(&line[..line.len() - 1]);
                    prop_assert!(parsed.is_ok(), "{}", String::from_utf8_lossy(&line));
                    self.sent.push((worker, String::from_utf8_lossy(&line).into_owned()));
                }
                Action::SendListener { worker, listener, place, .. } => {
                    prop_assert!(self.workers.contains_key(&worker) && self.listeners.contains_key(&listener));
                    if let Some(group) = self.groups.get(&listener) {
                        prop_assert!(usize::from(place) < group.len(), "there is no socket {place}");
                    }
                    self.workers.get_mut(&worker).unwrap().sockets.insert((listener, place), false);
                }
                Action::Bind { listener, spec } => {
                    // The kernel gives a port to one socket.
                    let in_use = self.listeners.values().any(|place| *place == spec.place);
                    if std::mem::take(&mut self.fails) || in_use {
                        self.primary.bound(self.now, listener, Err(98));
                    } else {
                        prop_assert!(self.listeners.insert(listener, spec.place).is_none(), "{:?} is bound twice", listener);
                        let Bind::Tcp { port, .. } = self.listeners[&listener] else { unreachable!() };
                        let name = SockName { address: "127.0.0.1".into(), family: "IPv4", port };
                        if spec.group {
                            self.groups.insert(listener, Vec::new());
                        }
                        self.primary.bound(self.now, listener, Ok(Some(name)));
                    }
                }
                Action::Unbind { listener } => {
                    prop_assert!(self.listeners.remove(&listener).is_some(), "{:?} is unbound twice", listener);
                    self.groups.remove(&listener);
                    self.workers.values_mut().for_each(|w| w.sockets.retain(|(l, _), _| *l != listener));
                }
                Action::Watch { listener, place, on } => {
                    prop_assert!(self.listeners.contains_key(&listener));
                    if let Some(group) = self.groups.get_mut(&listener) {
                        prop_assert!(group[usize::from(place)] != on, "told twice");
                        group[usize::from(place)] = on;
                    }
                }
                Action::Take { listener, place, .. } => {
                    prop_assert!(usize::from(place) < self.groups[&listener].len());
                }
                Action::Open { listener } => {
                    self.looks += 1;
                    if self.looks.is_multiple_of(4) {
                        if self.groups[&listener].is_empty() {
                            // Not even one: it is not steered any more.
                            self.groups.remove(&listener);
                        }
                        self.primary.opened(self.now, listener, Err("an obstacle".into()));
                    } else {
                        self.groups.get_mut(&listener).unwrap().push(false);
                        self.primary.opened(self.now, listener, Ok(()));
                    }
                }
                Action::Sample { listener } => {
                    self.looks += 1;
                    let sockets = self.groups[&listener].len() as u32;
                    let full = |n: u32| if self.calm { 0 } else { (self.looks / 3 + n) % 3 * 50 };
                    let queues: Vec<_> = (0..sockets).map(|n| Some(full(n))).collect();
                    self.primary.sampled(self.now, listener, &queues);
                }
                Action::Count { worker } => self.primary.counted(self.now, worker, 20 + self.looks % 5),
                Action::Steer { listener, program } => {
                    prop_assert!(self.groups.contains_key(&listener));
                    prop_assert!(!program.is_empty() && program.len() <= 4096);
                }
                Action::Kill { worker } => {
                    prop_assert!(self.workers.contains_key(&worker));
                }
                Action::HandleSettled { worker, ticket, delivered } => {
                    self.settled.insert(ticket, delivered);
                    // Also for workers whose channel is closed already.
                    if let Some(state) = self.workers.get_mut(&worker) {
                        prop_assert!(state.tickets.remove(&ticket), "ticket {} is settled twice", ticket);
                    }
                }
                Action::Notify(Notice::Misbehaved { worker, cut_off: true, .. }) => {
                    if let Some(state) = self.workers.get_mut(&worker) {
                        state.cut_off = true;
                    }
                }
                Action::Notify(_) => {}
            }
        }
        self.check()
    }

    /// Everything that must be true between two inputs.
    fn check(&self) -> Result<(), TestCaseError> {
        let mut held = BTreeSet::new();
        for (id, state) in &self.workers {
            let core: BTreeMap<u64, ConnId> = self.primary.in_flight(*id).collect();
            prop_assert_eq!(&core, &state.holds, "worker {}", id);
            for conn in state.holds.values() {
                prop_assert!(held.insert(*conn), "{:?} is with two workers", conn);
                prop_assert!(self.open.contains(conn), "{:?} is with worker {}, but was released", conn, id);
            }
        }
        prop_assert!(held.is_disjoint(&self.waiting));
        prop_assert_eq!(held.len() + self.waiting.len(), self.open.len());
        // What comes to a socket is somebody's: the primary's, or that of a worker that accepts on it.
        for (listener, sockets) in &self.groups {
            for (place, watched) in (0..).zip(sockets) {
                let accepts = |w: &&Worker| {
                    w.connected && !w.told_to_leave && !w.cut_off && w.sockets.get(&(*listener, place)) == Some(&true)
                };
                prop_assert!(
                    *watched || self.workers.values().any(|w| accepts(&w)),
                    "nobody accepts on {:?} {}",
                    listener,
                    place
                );
            }
            prop_assert!(self.primary.next_deadline().is_some());
        }
        // Where there is work there is a time to look at it again.
        if !held.is_empty() && self.workers.values().any(|w| !w.cut_off && !w.holds.is_empty()) {
            prop_assert!(self.primary.next_deadline().is_some(), "connections in flight and no deadline");
        }
        Ok(())
    }

    fn close_channel(&mut self, worker: WorkerId, by_worker: bool) {
        self.primary.channel_closed(self.now, worker, by_worker);
        if let Some(state) = self.workers.get_mut(&worker) {
            // A channel that the primary closed leaves the worker what it has until its process has ended.
            if std::mem::replace(&mut state.connected, false) && by_worker {
                let conns: Vec<_> = std::mem::take(&mut state.holds).into_values().collect();
                self.waiting.extend(conns);
            }
        }
    }

    fn happen(&mut self, input: Input) -> Result<(), TestCaseError> {
        match input {
            Input::Fork { troop } => {
                if self.workers.len() < 8 {
                    let id = self.primary.fork();
                    self.primary.spawned(id, id.0 + 1000, None, 100);
                    self.workers.insert(id, Worker { connected: true, troop, ..Worker::default() });
                    let version = if troop { r#","troop":1"# } else { "" };
                    self.say(id, &format!(r#"{{"cmd":"NODE_CLUSTER","act":"online","seq":0{version}}}"#));
                }
            }
            Input::Pass { ms } => {
                // As a shell does: not beyond the deadline.
                let until = self.now + Duration::from_millis(ms);
                while let Some(due) = self.primary.next_deadline().filter(|due| *due <= until) {
                    self.now = self.now.max(due);
                    self.primary.tick(self.now);
                    self.act()?;
                    if self.primary.next_deadline().is_some_and(|next| next <= self.now) {
                        prop_assert!(false, "the deadline {:?} does not move at {:?}", due, self.now);
                    }
                }
                self.now = until;
            }
            Input::CloseUnused => self.primary.close_unused_listeners(),
            Input::Shut { listener, place } => {
                // A worker has shut a socket down and the shell has revived it: it and the last one have changed numbers.
                let id = self.groups.keys().copied().nth(listener % self.groups.len().max(1));
                if let Some((id, group)) = id.and_then(|id| Some((id, self.groups.get_mut(&id).filter(|g| !g.is_empty())?))) {
                    let (place, last) = (place % group.len(), group.len() - 1);
                    group.swap(place, last);
                    let swapped = |at: u16| match usize::from(at) {
                        at if at == place => last as u16,
                        at if at == last => place as u16,
                        _ => at,
                    };
                    for worker in self.workers.values_mut() {
                        let sockets = std::mem::take(&mut worker.sockets).into_iter();
                        let renamed = sockets.map(|((l, at), on)| ((l, if l == id { swapped(at) } else { at }), on));
                        worker.sockets = renamed.collect();
                    }
                    self.primary.renumbered(self.now, id, place as u16, last as u16);
                }
            }
            Input::Reschedule { port, to } => {
                let pattern = (port > 0).then(|| port.to_string().parse().unwrap());
                self.primary.set_scheduling(self.now, pattern, HANDED[to].parse().unwrap());
            }
            Input::Accept { listener } => {
                let id = self.listeners.keys().copied().nth(listener % self.listeners.len().max(1));
                if let Some(id) = id.filter(|id| self.primary.wants_connection(*id)) {
                    let conn = ConnId(self.next_conn);
                    self.next_conn += 1;
                    self.open.insert(conn);
                    self.waiting.insert(conn);
                    let about = Connection { peer: None, client: Some(conn.0.wrapping_mul(0x9E37_79B1)) };
                    self.primary.accepted(self.now, id, conn, about);
                }
            }
            Input::Query { worker, .. }
            | Input::Listening { worker, .. }
            | Input::Report { worker, .. }
            | Input::Weigh { worker, .. }
            | Input::Answer { worker, .. }
            | Input::Batch { worker, .. }
            | Input::Acknowledge { worker, .. }
            | Input::Undelivered { worker, .. }
            | Input::Consumed { worker, .. }
            | Input::Close { worker, .. }
            | Input::Blocked { worker, .. }
            | Input::Disconnect { worker, .. }
            | Input::Goodbye { worker }
            | Input::Violation { worker, .. }
            | Input::UserHandle { worker }
            | Input::ChannelClosed { worker, .. }
            | Input::Exit { worker } => {
                if let Some(id) = self.worker(worker) {
                    self.of_worker(id, input);
                }
            }
        }
        self.act()
    }

    fn of_worker(&mut self, id: WorkerId, input: Input) {
        let state = &self.workers[&id];
        let speaks = state.connected && !state.cut_off;
        match input {
            Input::Exit { .. } => {
                self.primary.exited(self.now, id, ExitHow::Code(0));
                if let Some(state) = self.workers.remove(&id) {
                    self.waiting.extend(state.holds.into_values());
                }
            }
            Input::ChannelClosed { by_worker, .. } => self.close_channel(id, by_worker),
            Input::Disconnect { keep, .. } => {
                let told = self.primary.disconnect(id, keep);
                if let Some(state) = self.workers.get_mut(&id).filter(|_| told) {
                    state.told_to_leave = true;
                }
            }
            Input::Blocked { blocked, .. } => {
                if let Some(state) = self.workers.get_mut(&id) {
                    state.blocked = blocked;
                }
                self.primary.set_blocked(self.now, id, blocked);
            }
            Input::Violation { fatal, .. } => {
                self.primary.violated(id, if fatal { Violation::NotJson } else { Violation::BadHandle });
            }
            Input::UserHandle { .. } => {
                self.next_ticket += 1;
                let ticket = self.next_ticket;
                if let Some(state) = self.workers.get_mut(&id) {
                    state.tickets.insert(ticket);
                }
                self.primary.user_handle_sent(id, ticket);
            }
            Input::Consumed { which, .. } => {
                if let Some((seq, _)) = self.holds(id, which) {
                    self.primary.consumed(id, seq);
                }
            }
            Input::Undelivered { which, .. } => {
                if let Some((seq, _)) = self.holds(id, which) {
                    self.let_go(id, seq);
                    self.primary.undelivered(self.now, id, seq);
                }
            }
            Input::Weigh { weight, .. } => {
                self.primary.set_weight(self.now, id, weight);
            }
            _ if !speaks => {}
            Input::Listening { port, .. } => {
                let listeners = &self.listeners;
                let there = |l: &ListenerId| matches!(listeners.get(l), Some(Bind::Tcp { port: p, .. }) if *p == port);
                let sockets = &mut self.workers.get_mut(&id).unwrap().sockets;
                sockets.iter_mut().filter(|((l, _), _)| there(l)).for_each(|(_, listening)| *listening = true);
                let line = r#"{"cmd":"NODE_CLUSTER","act":"listening","seq":1,"index":0,"address":null,"#;
                self.say(id, &format!(r#"{line}"port":{port},"addressType":4}}"#));
            }
            Input::Report { open, load, .. } => {
                self.say(id, &format!(r#"{{"cmd":"NODE_TROOP","act":"load","open":{open},"load":{load}}}"#));
            }
            Input::Query { port, fails, .. } => {
                self.fails = fails;
                let state = self.workers.get_mut(&id).unwrap();
                state.seq += 1;
                let seq = state.seq;
                let line = format!(
                    r#"{{"cmd":"NODE_CLUSTER","act":"queryServer","seq":{seq},"index":0,"address":null,"port":{port},"addressType":4}}"#
                );
                self.say(id, &line);
                // An answer that was found without binding.
                self.fails = self.fails && !self.listeners.values().any(|p| matches!(p, Bind::Tcp { port: p, .. } if *p == port));
            }
            Input::Answer { which, accepted, .. } => {
                if let Some((seq, _)) = self.holds(id, which) {
                    if !accepted {
                        self.let_go(id, seq);
                    }
                    self.say(id, &format!(r#"{{"cmd":"NODE_CLUSTER","ack":{seq},"accepted":{accepted},"seq":1}}"#));
                }
            }
            Input::Batch { taken, returned, .. } => {
                let seqs: Vec<u64> = self.workers[&id].holds.keys().copied().collect();
                let (taken, rest) = seqs.split_at(usize::from(taken).min(seqs.len()));
                let returned = &rest[..usize::from(returned).min(rest.len())];
                returned.iter().for_each(|seq| self.let_go(id, *seq));
                let mut line = Vec::new();
                troop_core::wire::outgoing::taken(&mut line, taken, returned, None);
                line.pop();
                self.say(id, std::str::from_utf8(&line).unwrap());
            }
            Input::Acknowledge { arrived, .. } => {
                // A refusal gives back the oldest one whose descriptor was not confirmed; which one that is only the core knows.
                let before: BTreeMap<u64, ConnId> = self.primary.in_flight(id).collect();
                let line = if arrived { r#"{"cmd":"NODE_HANDLE_ACK"}"# } else { r#"{"cmd":"NODE_HANDLE_NACK"}"# };
                self.say(id, line);
                let after: BTreeMap<u64, ConnId> = self.primary.in_flight(id).collect();
                for seq in before.keys().filter(|seq| !after.contains_key(seq)) {
                    self.let_go(id, *seq);
                }
            }
            Input::Close { listener, .. } => {
                let key = self.listeners.keys().nth(listener % self.listeners.len().max(1)).copied();
                if let Some(key) = key {
                    self.workers.get_mut(&id).unwrap().sockets.retain(|(l, _), _| *l != key);
                }
                if let Some(key) = key.and_then(|l| self.primary.listener_key(l)).map(str::to_owned) {
                    self.say(id, &format!(r#"{{"cmd":"NODE_CLUSTER","act":"close","key":"{key}","seq":1}}"#));
                }
            }
            Input::Goodbye { .. } => self.say(id, r#"{"cmd":"NODE_CLUSTER","act":"exitedAfterDisconnect","seq":1}"#),
            Input::Fork { .. }
            | Input::Accept { .. }
            | Input::CloseUnused
            | Input::Pass { .. }
            | Input::Reschedule { .. }
            | Input::Shut { .. } => {}
        }
    }

    fn end(&mut self) -> Result<(), TestCaseError> {
        for id in self.workers.keys().copied().collect::<Vec<_>>() {
            self.of_worker(id, Input::Exit { worker: 0 });
            self.act()?;
        }
        self.primary.close_unused_listeners();
        self.act()?;
        prop_assert!(self.listeners.is_empty(), "listeners without workers stay open");
        prop_assert!(self.open.is_empty(), "{:?} were never released", self.open);
        prop_assert_eq!(self.primary.workers().count(), 0);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, max_shrink_iters: 20_000, ..ProptestConfig::with_cases(1200) })]

    #[test]
    fn every_connection_is_in_one_place_and_released_once(inputs in prop::collection::vec(input(), 0..150)) {
        let mut world = World::new(config());
        for input in inputs {
            world.happen(input)?;
        }
        world.end()?;
    }

    /// Nobody who is free is left without work while there is some, once all pauses are over.
    #[test]
    fn no_connection_waits_beside_a_free_worker(inputs in prop::collection::vec(input(), 0..150)) {
        let mut world = World::new(Config { hung_after: None, ..config() });
        for input in inputs {
            world.happen(input)?;
        }
        world.calm = true;
        // Everybody takes what it has, reads its channel, and has time.
        for id in world.workers.keys().copied().collect::<Vec<_>>() {
            world.of_worker(id, Input::Blocked { worker: 0, blocked: false });
            world.act()?;
        }
        for _ in 0..20 {
            for id in world.workers.keys().copied().collect::<Vec<_>>() {
                world.of_worker(id, Input::Batch { worker: 0, taken: 255, returned: 0 });
                world.act()?;
            }
            world.happen(Input::Pass { ms: 600 })?;
        }
        // A new worker that asks for every listener gets all that waits.
        if world.workers.len() < 8 {
            world.happen(Input::Fork { troop: true })?;
            let newest = world.workers.len() - 1;
            for port in 1..7 {
                world.happen(Input::Query { worker: newest, port, fails: false })?;
                world.happen(Input::Listening { worker: newest, port })?;
            }
            let id = world.worker(newest).unwrap();
            for _ in 0..20 {
                world.of_worker(id, Input::Batch { worker: 0, taken: 255, returned: 0 });
                world.act()?;
                world.happen(Input::Pass { ms: 100 })?;
            }
            prop_assert!(world.waiting.is_empty(), "{:?} still wait", world.waiting);
        }
    }
}

// ---- single promises ----

fn troop_worker(world: &mut World, ports: &[u16]) -> WorkerId {
    world.happen(Input::Fork { troop: true }).unwrap();
    let n = world.workers.len() - 1;
    for port in ports {
        world.happen(Input::Query { worker: n, port: *port, fails: false }).unwrap();
    }
    world.worker(n).unwrap()
}

#[test]
fn an_answer_on_one_listener_frees_the_worker_for_its_others_at_once() {
    let mut world = World::new(Config { troop_window: 2, ..Config::default() });
    let worker = troop_worker(&mut world, &[1, 2]);
    for listener in [0, 0, 1] {
        world.happen(Input::Accept { listener }).unwrap();
    }
    assert_eq!((world.workers[&worker].holds.len(), world.waiting.len()), (2, 1), "the worker's window is full");
    world.happen(Input::Batch { worker: 0, taken: 1, returned: 0 }).unwrap();
    assert_eq!(world.waiting.len(), 0, "the worker has room, so the connection of the other listener must not wait for a tick");
}

#[test]
fn a_list_with_one_wrong_number_still_answers_the_right_ones() {
    let mut world = World::new(Config::default());
    let worker = troop_worker(&mut world, &[1]);
    for _ in 0..3 {
        world.happen(Input::Accept { listener: 0 }).unwrap();
    }
    let seqs: Vec<u64> = world.workers[&worker].holds.keys().copied().collect();
    let line = format!(r#"{{"cmd":"NODE_TROOP","act":"taken","taken":[999999,{},{},{}]}}"#, seqs[0], seqs[1], seqs[2]);
    world.say(worker, &line);
    world.act().unwrap();
    assert!(world.open.is_empty(), "three connections were taken: {:?} are still held", world.open);
}

#[test]
fn connections_of_a_worker_that_leaves_by_itself_go_to_its_successor() {
    let mut world = World::new(Config::default());
    let first = troop_worker(&mut world, &[1]);
    let second = troop_worker(&mut world, &[1]);
    for _ in 0..4 {
        world.happen(Input::Accept { listener: 0 }).unwrap();
    }
    assert_eq!((world.workers[&first].holds.len(), world.workers[&second].holds.len()), (2, 2));
    world.happen(Input::Goodbye { worker: 0 }).unwrap();
    world.happen(Input::Exit { worker: 0 }).unwrap();
    assert!(!world.workers.contains_key(&first));
    assert_eq!((world.workers[&second].holds.len(), world.open.len()), (4, 4));
}

#[test]
fn a_connection_that_eight_workers_died_of_is_not_given_to_a_ninth() {
    let mut world = World::new(Config::default());
    troop_worker(&mut world, &[1]);
    world.happen(Input::Accept { listener: 0 }).unwrap();
    let mut deaths = 0;
    while !world.open.is_empty() {
        world.happen(Input::Exit { worker: 0 }).unwrap();
        deaths += 1;
        assert!(deaths <= 8, "it goes on killing workers");
        troop_worker(&mut world, &[1]);
    }
    assert_eq!(deaths, 8);
}

#[test]
fn time_in_which_the_primary_stood_still_makes_no_worker_hang() {
    let mut world = World::new(Config::default());
    let worker = troop_worker(&mut world, &[1]);
    world.happen(Input::Accept { listener: 0 }).unwrap();
    world.now = world.now + Duration::from_secs(600);
    world.primary.tick(world.now);
    world.act().unwrap();
    assert!(!world.primary.is_cut_off(worker));
    world.happen(Input::Pass { ms: 31_000 }).unwrap();
    assert!(world.primary.is_cut_off(worker), "half a minute later it does");
}

fn node_worker(world: &mut World, ports: &[u16]) -> WorkerId {
    world.happen(Input::Fork { troop: false }).unwrap();
    let n = world.workers.len() - 1;
    for port in ports {
        world.happen(Input::Query { worker: n, port: *port, fails: false }).unwrap();
    }
    world.worker(n).unwrap()
}

const ACK: &str = r#"{"cmd":"NODE_HANDLE_ACK"}"#;
const NACK: &str = r#"{"cmd":"NODE_HANDLE_NACK"}"#;

impl World {
    fn violations(&self, worker: WorkerId) -> u32 {
        self.primary.status(worker).unwrap().stats.violations
    }

    fn accept(&mut self, times: usize) {
        for _ in 0..times {
            self.happen(Input::Accept { listener: 0 }).unwrap();
        }
    }

    /// The worker says that it took this one, and nothing of the descriptor.
    fn takes(&mut self, worker: WorkerId, seq: u64) {
        self.say(worker, &format!(r#"{{"cmd":"NODE_CLUSTER","ack":{seq},"accepted":true,"seq":1}}"#));
        self.act().unwrap();
    }

    fn says(&mut self, worker: WorkerId, line: &str) {
        self.say(worker, line);
        self.act().unwrap();
    }

    fn user_handle(&mut self, worker: WorkerId) -> u64 {
        self.of_worker(worker, Input::UserHandle { worker: 0 });
        self.act().unwrap();
        self.next_ticket
    }
}

#[test]
fn an_answer_without_an_acknowledgement_settles_the_descriptor_too() {
    let mut world = World::new(Config::default());
    let worker = node_worker(&mut world, &[1]);
    for _ in 0..500 {
        world.accept(1);
        let (seq, _) = world.holds(worker, 0).unwrap();
        world.takes(worker, seq);
    }
    assert_eq!((world.open.len(), world.violations(worker)), (0, 0));
    // Had anything been left behind, it would get the acknowledgement of what comes next.
    let ticket = world.user_handle(worker);
    world.says(worker, NACK);
    assert_eq!(world.settled.get(&ticket), Some(&false));
    world.says(worker, ACK);
    assert_eq!(world.violations(worker), 1, "nothing is left that could be acknowledged");
}

#[test]
fn a_refused_descriptor_is_that_of_the_connection_behind_one_that_was_only_answered() {
    let mut world = World::new(Config::default());
    let worker = node_worker(&mut world, &[1]);
    world.accept(2);
    let ((first, _), (second, conn)) = (world.holds(worker, 0).unwrap(), world.holds(worker, 1).unwrap());
    world.takes(worker, first);
    world.let_go(worker, second);
    world.says(worker, NACK);
    assert_eq!(world.waiting.iter().copied().collect::<Vec<_>>(), [conn], "the second one is given back");
    assert_eq!(world.violations(worker), 0);
    let stats = world.primary.status(worker).unwrap().stats;
    assert_eq!((stats.taken, stats.returned, stats.in_flight), (1, 1, 0));
}

#[test]
fn a_listener_that_could_not_be_copied_is_answered_and_the_others_keep_their_acknowledgements() {
    let mut world = World::new(Config { scheduling: Scheduling::Shared, ..Config::default() });
    let worker = node_worker(&mut world, &[1, 2, 3]);
    let ids: Vec<ListenerId> = world.listeners.keys().copied().collect();
    let ticket = world.user_handle(worker);
    assert!(world.sent.is_empty(), "{:?}", world.sent);
    world.primary.listener_unsent(worker, ids[1]);
    world.act().unwrap();
    let errno = |world: &World, n: usize| {
        let (to, line) = &world.sent[n];
        assert_eq!(*to, worker);
        let answer: serde_json::Value = serde_json::from_str(line).unwrap();
        (answer["ack"].as_i64().unwrap(), answer["errno"].as_i64().unwrap())
    };
    assert_eq!((world.sent.len(), errno(&world, 0)), (1, (2, -24)));
    assert!(!world.listeners.contains_key(&ids[1]), "nobody uses it");
    world.says(worker, ACK);
    world.says(worker, NACK);
    assert_eq!((world.sent.len(), errno(&world, 1)), (2, (3, -24)), "the first arrived, and the third did not");
    assert_eq!(world.listeners.keys().copied().collect::<Vec<_>>(), [ids[0]]);
    world.says(worker, ACK);
    assert_eq!(world.settled.get(&ticket), Some(&true));
    assert_eq!(world.violations(worker), 0);
    world.says(worker, ACK);
    assert_eq!(world.violations(worker), 1);
    // It can ask again.
    world.happen(Input::Query { worker: 0, port: 2, fails: false }).unwrap();
    assert_eq!((world.sent.len(), world.listeners.len()), (2, 2), "bound anew and sent with its descriptor");
    // For a worker or listener that is gone there is nothing to do.
    world.primary.listener_unsent(worker, ids[1]);
    world.primary.listener_unsent(WorkerId(99), ids[0]);
    world.act().unwrap();
    assert_eq!(world.sent.len(), 2);
}

#[test]
fn a_wrong_answer_does_not_swallow_what_the_same_message_does() {
    let mut world = World::new(Config::default());
    let worker = node_worker(&mut world, &[1]);
    for ack in ["999999", "-1"] {
        world.sent.clear();
        let before = world.violations(worker);
        let line = format!(r#"{{"cmd":"NODE_CLUSTER","ack":{ack},"accepted":true,"act":"exitedAfterDisconnect","seq":7}}"#);
        world.says(worker, &line);
        assert_eq!(world.violations(worker), before + 1, "an answer to nothing, {ack}, is an offence");
        assert_eq!(world.primary.status(worker).unwrap().exited_after_disconnect, Some(true));
        assert_eq!(world.sent.len(), 1, "and the goodbye is answered: {:?}", world.sent);
        assert!(world.sent[0].1.contains(r#""ack":7"#), "{:?}", world.sent);
    }
}

#[test]
fn a_connection_that_found_the_channel_full_is_nothing_that_its_worker_did() {
    for troop in [true, false] {
        let mut world = World::new(Config::default());
        let worker = if troop { troop_worker(&mut world, &[1]) } else { node_worker(&mut world, &[1]) };
        world.accept(1);
        let (seq, conn) = world.holds(worker, 0).unwrap();
        world.happen(Input::Blocked { worker: 0, blocked: true }).unwrap();
        world.happen(Input::Undelivered { worker: 0, which: 0 }).unwrap();
        assert_eq!(world.waiting.iter().copied().collect::<Vec<_>>(), [conn]);
        let stats = world.primary.status(worker).unwrap().stats;
        assert_eq!((stats.handed, stats.returned, stats.in_flight), (0, 0, 0));
        // There is no pause: with room in the channel it is the worker's at once, under a new number.
        world.happen(Input::Blocked { worker: 0, blocked: false }).unwrap();
        let held = world.holds(worker, 0);
        assert!(held.is_some_and(|(again, c)| again != seq && c == conn), "{held:?}");
        assert!(world.waiting.is_empty());
        if !troop {
            // The acknowledgement of the first attempt is not waited for.
            world.says(worker, ACK);
            world.says(worker, ACK);
            assert_eq!(world.violations(worker), 1);
        }
        // While it is not blocked, a failure is the worker's, and it has a pause.
        world.happen(Input::Undelivered { worker: 0, which: 0 }).unwrap();
        assert_eq!(world.primary.status(worker).unwrap().stats.returned, 1);
        assert_eq!(world.waiting.len(), 1, "its turn comes later");
    }
}

#[test]
fn connections_behind_a_channel_that_the_primary_closed_move_only_when_the_process_has_ended() {
    let mut world = World::new(Config::default());
    let first = troop_worker(&mut world, &[1]);
    let second = troop_worker(&mut world, &[1]);
    world.accept(4);
    assert_eq!((world.workers[&first].holds.len(), world.workers[&second].holds.len()), (2, 2));
    world.happen(Input::ChannelClosed { worker: 0, by_worker: false }).unwrap();
    // Nor does a second report of the same end, or time, move them.
    world.happen(Input::ChannelClosed { worker: 0, by_worker: true }).unwrap();
    world.happen(Input::Pass { ms: 5000 }).unwrap();
    assert_eq!((world.workers[&first].holds.len(), world.workers[&second].holds.len()), (2, 2));
    assert!(!world.primary.status(first).unwrap().connected);
    world.happen(Input::Batch { worker: 1, taken: 2, returned: 0 }).unwrap();
    world.accept(1);
    assert_eq!(world.workers[&second].holds.len(), 1, "new ones go to the other");
    world.happen(Input::Exit { worker: 0 }).unwrap();
    assert_eq!((world.workers[&second].holds.len(), world.open.len()), (3, 3));
    world.happen(Input::Batch { worker: 0, taken: 3, returned: 0 }).unwrap();
    world.end().unwrap();
}

#[test]
fn a_process_that_stays_behind_a_channel_that_the_primary_closed_is_killed_in_the_end() {
    let mut world = World::new(Config::default());
    let worker = troop_worker(&mut world, &[1]);
    world.accept(1);
    world.happen(Input::ChannelClosed { worker: 0, by_worker: false }).unwrap();
    world.happen(Input::Pass { ms: 31_000 }).unwrap();
    assert!(world.primary.is_cut_off(worker), "somebody waits for an answer");
}
