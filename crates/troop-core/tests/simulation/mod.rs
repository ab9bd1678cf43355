//! The world around a primary: everything that can happen to it, and a check of all that it
//! decides.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use troop_core::event::{ExitHow, Notice};
use troop_core::policy::Connection;
use troop_core::primary::{Action, Bind, Config, Primary, Successors};
use troop_core::wire::incoming;
use troop_core::wire::outgoing::SockName;
use troop_core::{ConnId, ListenerId, Time, Violation, WorkerId};

/// Schedulings of the ports 1 to 6.
pub const PORTS: [&str; 6] =
    ["round-robin", "steered", "sticky", "least-connections", "p2c", "steered:sticky"];
/// What can be had instead while a listener is open.
pub const HANDED: [&str; 5] = ["round-robin", "weighted", "least-connections", "p2c", "sticky"];

pub fn config() -> Config {
    let listeners = (1..)
        .zip(PORTS)
        .map(|(port, name): (u16, _)| (port.to_string().parse().unwrap(), name.parse().unwrap()));
    Config {
        listeners: listeners.collect(),
        pending_limit: 5,
        troop_window: 6,
        node_window: 3,
        ..Config::default()
    }
}

/// Something that happens. Numbers choose among what is there.
#[derive(Debug, Clone)]
pub enum Input {
    Fork { troop: bool },
    Query { worker: usize, port: u16, fails: bool },
    Listening { worker: usize, port: u16 },
    Report { worker: usize, open: u32, load: u32 },
    Reschedule { port: u16, to: usize },
    Weigh { worker: usize, weight: u32 },
    Hold { worker: usize, held: bool },
    Shut { listener: usize, shard: usize },
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
    Successors { which: usize },
    Pass { ms: u64 },
}

pub fn input() -> impl Strategy<Value = Input> {
    let worker = 0..8usize;
    let which = 0..10usize;
    prop_oneof![
        3 => any::<bool>().prop_map(|troop| Input::Fork { troop }),
        8 => (worker.clone(), 1..7u16, prop::bool::weighted(0.1)).prop_map(|(worker, port, fails)| Input::Query { worker, port, fails }),
        8 => (worker.clone(), 1..7u16).prop_map(|(worker, port)| Input::Listening { worker, port }),
        2 => (worker.clone(), 0..50u32, 0..5u32).prop_map(|(worker, open, load)| Input::Report { worker, open, load }),
        1 => (0..7u16, 0..HANDED.len()).prop_map(|(port, to)| Input::Reschedule { port, to }),
        3 => (worker.clone(), any::<bool>()).prop_map(|(worker, held)| Input::Hold { worker, held }),
        1 => (worker.clone(), 0..300u32).prop_map(|(worker, weight)| Input::Weigh { worker, weight }),
        1 => (0..7usize, 0..8usize).prop_map(|(listener, shard)| Input::Shut { listener, shard }),
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
        2 => (0..3usize).prop_map(|which| Input::Successors { which }),
        8 => prop_oneof![0..20u64, 0..2000u64, 0..40_000u64].prop_map(|ms| Input::Pass { ms }),
    ]
}

#[derive(Debug, Default)]
pub struct Worker {
    pub told_to_leave: bool,
    pub cut_off: bool,
    pub connected: bool,
    pub blocked: bool,
    pub held: bool,
    pub troop: bool,
    pub seq: u64,
    /// What it was handed and did not answer, by its number.
    pub holds: BTreeMap<u64, ConnId>,
    pub tickets: BTreeSet<u64>,
    /// Sockets that it was given, and whether it has said that it listens.
    pub sockets: BTreeMap<(ListenerId, u16), bool>,
}

/// The world around a primary, which checks all that it is told.
pub struct Simulation {
    pub primary: Primary,
    pub now: Time,
    pub workers: BTreeMap<WorkerId, Worker>,
    pub listeners: BTreeMap<ListenerId, Bind>,
    pub fails: bool,
    /// Every connection that was accepted and not released.
    pub open: BTreeSet<ConnId>,
    /// Those of them that no worker holds.
    pub waiting: BTreeSet<ConnId>,
    pub next_conn: u32,
    pub next_ticket: u64,
    /// Every line for a worker, for the tests of single promises.
    pub sent: Vec<(WorkerId, String)>,
    /// Which sockets of the program's arrived, by their ticket.
    pub settled: BTreeMap<u64, bool>,
    /// The sockets of steered listeners, and whether the primary accepts on them.
    pub groups: BTreeMap<ListenerId, Vec<bool>>,
    /// The last one of these that was made had an obstacle.
    pub looks: u32,
    /// Queues are empty.
    pub calm: bool,
    /// Who else may ask for listeners.
    pub successors: Successors,
    /// How many connections waited at each listener that was closed.
    pub closed: Vec<usize>,
    /// The ports of those that a successor should have taken over.
    pub missed: Vec<Option<i64>>,
}

impl Simulation {
    pub fn new(config: Config) -> Simulation {
        Simulation {
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
            successors: Successors::Unknown,
            closed: Vec::new(),
            missed: Vec::new(),
        }
    }

    pub fn worker(&self, n: usize) -> Option<WorkerId> {
        self.workers.keys().copied().nth(n % self.workers.len().max(1))
    }

    pub fn say(&mut self, worker: WorkerId, line: &str) {
        let parsed = incoming::parse(line.as_bytes()).unwrap();
        self.primary.message(self.now, worker, parsed);
    }

    /// The same, and everything that comes of it.
    pub fn says(&mut self, worker: WorkerId, line: &str) {
        self.say(worker, line);
        self.act().unwrap();
    }

    pub fn violations(&self, worker: WorkerId) -> u32 {
        self.primary.status(worker).unwrap().stats.violations
    }

    pub fn holds(&self, worker: WorkerId, which: usize) -> Option<(u64, ConnId)> {
        let holds = &self.workers[&worker].holds;
        holds.iter().nth(which % holds.len().max(1)).map(|(s, c)| (*s, *c))
    }

    /// A worker no longer holds this.
    pub fn let_go(&mut self, worker: WorkerId, seq: u64) {
        if let Some(conn) = self.workers.get_mut(&worker).and_then(|w| w.holds.remove(&seq)) {
            self.waiting.insert(conn);
        }
    }

    pub fn act(&mut self) -> Result<(), TestCaseError> {
        loop {
            if let Some(action) = self.primary.next_action() {
                self.carry_out(action)?;
            } else if !self.primary.close_abandoned(self.now, self.successors) {
                return self.check();
            }
        }
    }

    fn carry_out(&mut self, action: Action) -> Result<(), TestCaseError> {
        {
            match action {
                Action::Deliver { worker, listener, conn, seq, batched } => {
                    prop_assert!(
                        self.waiting.remove(&conn),
                        "{:?} was delivered, but was not waiting",
                        conn
                    );
                    prop_assert!(
                        self.listeners.contains_key(&listener),
                        "{:?} is closed",
                        listener
                    );
                    let state = self.workers.get_mut(&worker);
                    prop_assert!(state.is_some(), "delivered to worker {}, which is gone", worker);
                    let state = state.unwrap();
                    prop_assert!(
                        state.connected
                            && !state.told_to_leave
                            && !state.cut_off
                            && !state.blocked
                            && !state.held,
                        "delivered to {:?}",
                        state
                    );
                    prop_assert_eq!(batched, state.troop);
                    prop_assert!(
                        state.holds.insert(seq, conn).is_none(),
                        "number {} is used twice",
                        seq
                    );
                }
                Action::Release { conn, .. } => {
                    prop_assert!(
                        self.open.remove(&conn),
                        "{:?} was released twice, or never accepted",
                        conn
                    );
                    self.waiting.remove(&conn);
                    self.workers.values_mut().for_each(|w| w.holds.retain(|_, held| *held != conn));
                }
                Action::Send { worker, line } => {
                    prop_assert!(
                        self.workers.contains_key(&worker),
                        "a line for worker {}, which is gone",
                        worker
                    );
                    prop_assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1);
                    let parsed = incoming::parse(&line[..line.len() - 1]);
                    prop_assert!(parsed.is_ok(), "{}", String::from_utf8_lossy(&line));
                    self.sent.push((worker, String::from_utf8_lossy(&line).into_owned()));
                }
                Action::SendListener { worker, listener, shard, .. } => {
                    prop_assert!(
                        self.workers.contains_key(&worker)
                            && self.listeners.contains_key(&listener)
                    );
                    if let Some(group) = self.groups.get(&listener) {
                        prop_assert!(
                            usize::from(shard) < group.len(),
                            "there is no socket {shard}"
                        );
                    }
                    self.workers.get_mut(&worker).unwrap().sockets.insert((listener, shard), false);
                }
                Action::Probe { worker, line } => {
                    prop_assert!(self.workers[&worker].connected);
                    self.sent.push((worker, String::from_utf8_lossy(&line).into_owned()));
                }
                Action::Reach { listener, .. } => {
                    prop_assert!(self.listeners.contains_key(&listener))
                }
                Action::Bind { listener, spec, .. } => {
                    // The kernel gives a port to one socket.
                    let in_use = self.listeners.values().any(|shard| *shard == spec.target);
                    if std::mem::take(&mut self.fails) || in_use {
                        self.primary.bound(self.now, listener, Err(98));
                    } else {
                        prop_assert!(
                            self.listeners.insert(listener, spec.target).is_none(),
                            "{:?} is bound twice",
                            listener
                        );
                        let Bind::Tcp { port, .. } = self.listeners[&listener] else {
                            unreachable!()
                        };
                        let name = SockName { address: "127.0.0.1".into(), family: "IPv4", port };
                        if spec.group {
                            self.groups.insert(listener, Vec::new());
                        }
                        self.primary.bound(self.now, listener, Ok(Some(name)));
                    }
                }
                Action::Unbind { listener } => {
                    prop_assert!(
                        self.listeners.remove(&listener).is_some(),
                        "{:?} is unbound twice",
                        listener
                    );
                    self.groups.remove(&listener);
                    self.workers
                        .values_mut()
                        .for_each(|w| w.sockets.retain(|(l, _), _| *l != listener));
                }
                Action::Watch { listener, shard, on } => {
                    prop_assert!(self.listeners.contains_key(&listener));
                    if let Some(group) = self.groups.get_mut(&listener) {
                        prop_assert!(group[usize::from(shard)] != on, "told twice");
                        group[usize::from(shard)] = on;
                    }
                }
                Action::Take { listener, shard, .. } => {
                    prop_assert!(usize::from(shard) < self.groups[&listener].len());
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
                Action::Count { worker } => {
                    self.primary.counted(self.now, worker, 20 + self.looks % 5)
                }
                Action::Steer { listener, program } => {
                    prop_assert!(self.groups.contains_key(&listener));
                    prop_assert!(!program.is_empty() && program.len() <= 4096);
                }
                Action::Kill { worker, .. } => {
                    prop_assert!(self.workers.contains_key(&worker));
                }
                Action::HandleSettled { worker, ticket, delivered } => {
                    self.settled.insert(ticket, delivered);
                    // Also for workers whose channel is closed already.
                    if let Some(state) = self.workers.get_mut(&worker) {
                        prop_assert!(
                            state.tickets.remove(&ticket),
                            "ticket {} is settled twice",
                            ticket
                        );
                    }
                }
                Action::Notify(Notice::Misbehaved { worker, cut_off: true, .. }) => {
                    if let Some(state) = self.workers.get_mut(&worker) {
                        state.cut_off = true;
                    }
                }
                Action::Notify(Notice::ListenerClosed { dropped, missed, .. }) => {
                    self.closed.push(dropped);
                    self.missed.extend(missed.map(|at| at.port));
                }
                Action::Notify(_) => {}
            }
        }
        Ok(())
    }

    /// Everything that must be true between two inputs.
    pub fn check(&self) -> Result<(), TestCaseError> {
        let mut held = BTreeSet::new();
        for (id, state) in &self.workers {
            let core: BTreeMap<u64, ConnId> = self.primary.in_flight(*id).collect();
            prop_assert_eq!(&core, &state.holds, "worker {}", id);
            for listener in self.primary.listens_on(*id) {
                prop_assert!(
                    self.listeners.contains_key(&listener),
                    "{:?} of worker {} is closed",
                    listener,
                    id
                );
            }
            for conn in state.holds.values() {
                prop_assert!(held.insert(*conn), "{:?} is with two workers", conn);
                prop_assert!(
                    self.open.contains(conn),
                    "{:?} is with worker {}, but was released",
                    conn,
                    id
                );
            }
        }
        prop_assert!(held.is_disjoint(&self.waiting));
        prop_assert_eq!(held.len() + self.waiting.len(), self.open.len());
        // What comes to a socket is somebody's: the primary's, or that of a worker that accepts on
        // it.
        for (listener, sockets) in &self.groups {
            for (shard, watched) in (0..).zip(sockets) {
                let accepts = |w: &&Worker| {
                    w.connected
                        && !w.told_to_leave
                        && !w.cut_off
                        && w.sockets.get(&(*listener, shard)) == Some(&true)
                };
                prop_assert!(
                    *watched || self.workers.values().any(|w| accepts(&w)),
                    "nobody accepts on {:?} {}",
                    listener,
                    shard
                );
            }
            prop_assert!(self.primary.next_deadline().is_some());
        }
        // Where there is work there is a time to look at it again.
        if !held.is_empty() && self.workers.values().any(|w| !w.cut_off && !w.holds.is_empty()) {
            prop_assert!(
                self.primary.next_deadline().is_some(),
                "connections in flight and no deadline"
            );
        }
        Ok(())
    }

    pub fn close_channel(&mut self, worker: WorkerId, by_worker: bool) {
        self.primary.channel_closed(self.now, worker, by_worker);
        if let Some(state) = self.workers.get_mut(&worker) {
            // A channel that the primary closed leaves the worker what it has until its process has
            // ended.
            if std::mem::replace(&mut state.connected, false) && by_worker {
                let conns: Vec<_> = std::mem::take(&mut state.holds).into_values().collect();
                self.waiting.extend(conns);
            }
        }
    }

    pub fn happen(&mut self, input: Input) -> Result<(), TestCaseError> {
        match input {
            Input::Fork { troop } => {
                if self.workers.len() < 8 {
                    let id = self.primary.fork();
                    self.primary.spawned(id, id.0 + 1000, None, 100);
                    self.workers.insert(id, Worker { connected: true, troop, ..Worker::default() });
                    let version = if troop { r#","troop":1"# } else { "" };
                    self.say(
                        id,
                        &format!(r#"{{"cmd":"NODE_CLUSTER","act":"online","seq":0{version}}}"#),
                    );
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
                        prop_assert!(
                            false,
                            "the deadline {:?} does not move at {:?}",
                            due,
                            self.now
                        );
                    }
                }
                self.now = until;
            }
            Input::CloseUnused => self.primary.close_unused_listeners(),
            Input::Successors { which } => {
                self.successors =
                    [Successors::Awaited, Successors::Unknown, Successors::Nobody][which];
            }
            Input::Shut { listener, shard } => {
                // A worker has shut a socket down and the shell has revived it: it and the last one
                // have changed numbers.
                let id = self.groups.keys().copied().nth(listener % self.groups.len().max(1));
                if let Some((id, group)) = id
                    .and_then(|id| Some((id, self.groups.get_mut(&id).filter(|g| !g.is_empty())?)))
                {
                    let (shard, last) = (shard % group.len(), group.len() - 1);
                    group.swap(shard, last);
                    let swapped = |at: u16| match usize::from(at) {
                        at if at == shard => last as u16,
                        at if at == last => shard as u16,
                        _ => at,
                    };
                    for worker in self.workers.values_mut() {
                        let sockets = std::mem::take(&mut worker.sockets).into_iter();
                        let renamed = sockets
                            .map(|((l, at), on)| ((l, if l == id { swapped(at) } else { at }), on));
                        worker.sockets = renamed.collect();
                    }
                    self.primary.renumbered(self.now, id, shard as u16, last as u16);
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
                    let about =
                        Connection { peer: None, client: Some(conn.0.wrapping_mul(0x9E37_79B1)) };
                    self.primary.accepted(self.now, id, conn, about);
                }
            }
            Input::Query { worker, .. }
            | Input::Listening { worker, .. }
            | Input::Report { worker, .. }
            | Input::Weigh { worker, .. }
            | Input::Hold { worker, .. }
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

    pub fn of_worker(&mut self, id: WorkerId, input: Input) {
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
                let told =
                    self.primary.disconnect(id, keep, keep.then_some(Duration::from_secs(3)));
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
                self.primary
                    .violated(id, if fatal { Violation::NotJson } else { Violation::BadHandle });
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
            Input::Hold { held, .. } => {
                if let Some(state) = self.workers.get_mut(&id) {
                    state.held = held;
                }
                self.primary.hold(self.now, id, held);
            }
            Input::Weigh { weight, .. } => {
                self.primary.set_weight(self.now, id, weight);
            }
            _ if !speaks => {}
            Input::Listening { port, .. } => {
                let listeners = &self.listeners;
                let there = |l: &ListenerId| matches!(listeners.get(l), Some(Bind::Tcp { port: p, .. }) if *p == port);
                let sockets = &mut self.workers.get_mut(&id).unwrap().sockets;
                sockets
                    .iter_mut()
                    .filter(|((l, _), _)| there(l))
                    .for_each(|(_, listening)| *listening = true);
                let line =
                    r#"{"cmd":"NODE_CLUSTER","act":"listening","seq":1,"index":0,"address":null,"#;
                self.say(id, &format!(r#"{line}"port":{port},"addressType":4}}"#));
            }
            Input::Report { open, load, .. } => {
                self.say(
                    id,
                    &format!(r#"{{"cmd":"NODE_TROOP","act":"load","open":{open},"load":{load}}}"#),
                );
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
                self.fails = self.fails
                    && !self
                        .listeners
                        .values()
                        .any(|p| matches!(p, Bind::Tcp { port: p, .. } if *p == port));
            }
            Input::Answer { which, accepted, .. } => {
                if let Some((seq, _)) = self.holds(id, which) {
                    if !accepted {
                        self.let_go(id, seq);
                    }
                    self.say(
                        id,
                        &format!(
                            r#"{{"cmd":"NODE_CLUSTER","ack":{seq},"accepted":{accepted},"seq":1}}"#
                        ),
                    );
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
                // A refusal gives back the oldest one whose descriptor was not confirmed; which one
                // that is only the core knows.
                let before: BTreeMap<u64, ConnId> = self.primary.in_flight(id).collect();
                let line = if arrived {
                    r#"{"cmd":"NODE_HANDLE_ACK"}"#
                } else {
                    r#"{"cmd":"NODE_HANDLE_NACK"}"#
                };
                self.say(id, line);
                let after: BTreeMap<u64, ConnId> = self.primary.in_flight(id).collect();
                for seq in before.keys().filter(|seq| !after.contains_key(seq)) {
                    self.let_go(id, *seq);
                }
            }
            Input::Close { listener, .. } => {
                let key =
                    self.listeners.keys().nth(listener % self.listeners.len().max(1)).copied();
                if let Some(key) = key {
                    self.workers.get_mut(&id).unwrap().sockets.retain(|(l, _), _| *l != key);
                }
                if let Some(key) = key.and_then(|l| self.primary.listener_key(l)).map(str::to_owned)
                {
                    self.say(
                        id,
                        &format!(r#"{{"cmd":"NODE_CLUSTER","act":"close","key":"{key}","seq":1}}"#),
                    );
                }
            }
            Input::Goodbye { .. } => {
                self.say(id, r#"{"cmd":"NODE_CLUSTER","act":"exitedAfterDisconnect","seq":1}"#)
            }
            Input::Fork { .. }
            | Input::Accept { .. }
            | Input::CloseUnused
            | Input::Successors { .. }
            | Input::Pass { .. }
            | Input::Reschedule { .. }
            | Input::Shut { .. } => {}
        }
    }

    pub fn end(&mut self) -> Result<(), TestCaseError> {
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
