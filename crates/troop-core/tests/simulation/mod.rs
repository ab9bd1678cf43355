//! The world around a primary: everything that can happen to it, and a check of all that it
//! decides.
#![allow(dead_code, unused_imports, unreachable_pub, missing_docs, clippy::unwrap_used)]

mod crashes;
mod inputs;
pub mod steps;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use troop_core::event::Notice;
use troop_core::primary::{Action, Bind, Config, Primary, Successors, Totals};
use troop_core::steer::{Instruction, Mode};
use troop_core::wire::incoming::{self, Incoming, TroopMessage};
use troop_core::wire::outgoing::SockName;
use troop_core::{ConnId, ListenerId, Time, WorkerId};

pub use crashes::{Crashes, Kept};
pub use inputs::{Input, input};

/// Schedulings of the ports 1 to 7.
pub const PORTS: [&str; 7] =
    ["round-robin", "steered", "sticky", "least-connections", "p2c", "steered:sticky", "auto"];

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

#[derive(Debug, Default)]
pub struct Worker {
    pub told_to_leave: bool,
    pub cut_off: bool,
    pub connected: bool,
    pub blocked: bool,
    pub held: bool,
    pub troop: bool,
    /// Whether it has troop's script for Node workers.
    pub moves_idle: bool,
    /// Whether it was sent Node's `disconnect`.
    pub disconnected: bool,
    pub seq: u64,
    /// What it was handed and did not answer, by its number.
    pub holds: BTreeMap<u64, ConnId>,
    pub tickets: BTreeSet<u64>,
    /// How many connections it was asked to return, although it stays, and has not.
    pub asked: u32,
    /// The listeners of the connections that it has taken.
    pub served: Vec<ListenerId>,
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
    /// The listener of each connection that was delivered.
    pub came_from: BTreeMap<ConnId, ListenerId>,
    /// How many connections workers gave back that they had served.
    pub moved: u32,
    /// The listeners whose connections workers were told to count.
    pub to_count: Vec<(WorkerId, String)>,
    pub next_conn: u32,
    pub next_ticket: u64,
    /// Every line for a worker, for the tests of single promises.
    pub sent: Vec<(WorkerId, String)>,
    /// Which sockets of the program's arrived, by their ticket.
    pub settled: BTreeMap<u64, bool>,
    /// The sockets of steered listeners, and whether the primary accepts on them.
    pub groups: BTreeMap<ListenerId, Vec<bool>>,
    /// The program of each of them.
    pub programs: BTreeMap<ListenerId, Vec<Instruction>>,
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
    /// Each action as text, if that is wanted.
    pub log: Option<Vec<String>>,
    /// After so many steps the primary is written, and goes on from what is read; a step is an
    /// action, or an input without one.
    pub reread_every: Option<u32>,
    pub steps: u32,
    /// What is written down, if the primary can crash.
    pub kept: Option<Kept>,
    pub crashes: Crashes,
    /// Whether actions are carried out late, after further inputs, so that they may be out of date.
    pub is_late: bool,
    /// What the primary had counted at the last check.
    totals: RefCell<Totals>,
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
            came_from: BTreeMap::new(),
            moved: 0,
            to_count: Vec::new(),
            waiting: BTreeSet::new(),
            next_conn: 0,
            next_ticket: 0,
            sent: Vec::new(),
            settled: BTreeMap::new(),
            groups: BTreeMap::new(),
            programs: BTreeMap::new(),
            looks: 0,
            calm: false,
            successors: Successors::Unknown,
            closed: Vec::new(),
            missed: Vec::new(),
            log: None,
            reread_every: None,
            steps: 0,
            kept: None,
            crashes: Crashes::default(),
            is_late: false,
            totals: RefCell::default(),
        }
    }

    /// Puts a primary in the place of this one that was read from what this one has written.
    pub fn reread(&mut self) {
        let written = serde_json::to_vec(&self.primary).unwrap();
        let read: Primary = serde_json::from_slice(&written).unwrap();
        // Nothing is left out, also where that would hardly ever show.
        assert_eq!(format!("{read:?}"), format!("{:?}", self.primary));
        self.primary = read;
    }

    pub fn worker(&self, n: usize) -> Option<WorkerId> {
        self.workers.keys().copied().nth(n % self.workers.len().max(1))
    }

    pub fn say(&mut self, worker: WorkerId, line: &str) {
        self.note_message(worker, line);
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
        self.carry_out_all()?;
        self.write_changes();
        Ok(())
    }

    /// Carries out everything, and does not write down what has changed unless that is urgent.
    pub fn carry_out_all(&mut self) -> Result<(), TestCaseError> {
        loop {
            self.steps += 1;
            if self.reread_every.is_some_and(|every| self.steps.is_multiple_of(every)) {
                self.reread();
            }
            if let Some(action) = self.primary.next_action() {
                if let Some(log) = &mut self.log {
                    log.push(format!("{action:?}"));
                }
                self.note_action(&action);
                self.carry_out(action)?;
            } else if !self.primary.close_abandoned(self.now, self.successors) {
                self.write_urgently();
                return self.check();
            }
        }
    }

    fn carry_out(&mut self, action: Action) -> Result<(), TestCaseError> {
        {
            match action {
                // A shell does this when the worker's channel has closed.
                Action::Deliver { worker, seq, .. }
                    if self.is_late && self.workers.get(&worker).is_none_or(|w| !w.connected) =>
                {
                    self.primary.undelivered(self.now, worker, seq);
                }
                Action::Send { worker, .. }
                | Action::SendListener { worker, .. }
                | Action::Kill { worker, .. }
                | Action::Probe { worker, .. }
                    if self.is_late
                        && self.workers.get(&worker).is_none_or(|worker| !worker.connected) => {}
                Action::Deliver { worker, listener, conn, seq, batched } => {
                    prop_assert!(!self.primary.is_cut_off(worker), "{worker} is being killed");
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
                        self.is_late
                            || (state.connected
                                && !state.told_to_leave
                                && !state.cut_off
                                && !state.blocked
                                && !state.held),
                        "delivered to {:?}",
                        state
                    );
                    prop_assert_eq!(batched, state.troop);
                    self.came_from.insert(conn, listener);
                    prop_assert!(
                        state.holds.insert(seq, conn).is_none(),
                        "number {} is used twice",
                        seq
                    );
                }
                Action::Release { conn, taken } => {
                    let listener = self.came_from.remove(&conn);
                    let holder = |w: &&mut Worker| w.holds.values().any(|held| *held == conn);
                    if let (true, Some(worker), Some(listener)) =
                        (taken, self.workers.values_mut().find(holder), listener)
                    {
                        worker.served.push(listener);
                    }
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
                    if let Ok(Incoming::Troop(TroopMessage::Count { key })) = &parsed {
                        self.to_count.push((worker, key.to_string()));
                    }
                    if let Ok(Incoming::Troop(TroopMessage::Rebalance { count, .. })) = parsed {
                        let state = self.workers.get_mut(&worker).unwrap();
                        prop_assert!(count > 0 && (state.troop || state.moves_idle));
                        state.asked += count;
                    }
                    let line = String::from_utf8_lossy(&line).into_owned();
                    let state = self.workers.get_mut(&worker).unwrap();
                    if line.contains(r#""act":"leave""#) {
                        prop_assert!(state.moves_idle, "{line} for {state:?}");
                    } else if line.contains(r#""act":"disconnect""#) {
                        prop_assert!(state.troop || !state.disconnected, "told twice");
                        state.disconnected = true;
                    }
                    self.sent.push((worker, line));
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
                    // The worker that asked for it may have left before binding failed.
                    prop_assert!(
                        self.listeners.remove(&listener).is_some() || self.is_late,
                        "{:?} is unbound twice",
                        listener
                    );
                    self.groups.remove(&listener);
                    self.programs.remove(&listener);
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
                    // It may have been closed since: this action follows all others.
                    let Some(group) = self.groups.get_mut(&listener) else {
                        prop_assert!(self.is_late && !self.listeners.contains_key(&listener));
                        self.primary.opened(self.now, listener, Err("it is closed".into()));
                        return Ok(());
                    };
                    if !self.looks.is_multiple_of(4) {
                        group.push(false);
                        self.primary.opened(self.now, listener, Ok(()));
                        return Ok(());
                    }
                    if group.is_empty() {
                        // Not even one: it is not steered any more.
                        self.groups.remove(&listener);
                        self.programs.remove(&listener);
                    }
                    self.primary.opened(self.now, listener, Err("an obstacle".into()));
                }
                Action::Sample { listener } => {
                    self.looks += 1;
                    let sockets = self.groups.get(&listener).map_or(0, Vec::len) as u32;
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
                    self.programs.insert(listener, program);
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
                Action::Notify(Notice::ListenerMissed { asked, .. }) => {
                    self.missed.push(asked.at.port);
                }
                Action::Notify(Notice::ListenerClosed { dropped, .. }) => {
                    self.closed.push(dropped);
                }
                Action::Raises { worker } => prop_assert!(
                    self.workers.get(&worker).is_none_or(|state| state.told_to_leave),
                    "{worker} is not to finish"
                ),
                Action::Notify(_) | Action::Messages { .. } => {}
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
            // In turns all connections come to the first socket. Before there is a shard, they do
            // without a program.
            if let (Some(current), Some(program)) =
                (self.primary.mode(*listener), self.programs.get(listener))
            {
                let is_own = *program == troop_core::steer::program::always(0);
                prop_assert_eq!(current.mode == Mode::Turns, is_own, "{:?}", program);
            }
        }
        self.check_totals()?;
        // Where there is work there is a time to look at it again.
        if !held.is_empty() && self.workers.values().any(|w| !w.cut_off && !w.holds.is_empty()) {
            prop_assert!(
                self.primary.next_deadline().is_some(),
                "connections in flight and no deadline"
            );
        }
        Ok(())
    }

    /// Nothing is counted that was not handed over, and no worker takes its counts with it.
    fn check_totals(&self) -> Result<(), TestCaseError> {
        let now = self.primary.totals();
        let before = self.totals.replace(now.clone());
        // One that goes on after a crash may not know of all.
        let is_less = now.handed < before.handed
            || now.taken < before.taken
            || now.returned < before.returned
            || now.moved < before.moved
            || now.handover.sum_ms < before.handover.sum_ms;
        prop_assert!(!is_less || self.kept.is_some(), "{:?} after {:?}", now, before);
        let timed: u64 = now.handover.counts.iter().sum();
        prop_assert!(timed <= now.taken, "{:?}", now);
        Ok(())
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
