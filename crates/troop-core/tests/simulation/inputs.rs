//! What can happen to a primary, and how the world around it makes that happen.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use troop_core::event::ExitHow;
use troop_core::policy::Connection;
use troop_core::primary::{Bind, Successors};
use troop_core::{ConnId, ListenerId, Violation, WorkerId};

use super::{Simulation, Worker};

/// What can be had instead while a listener is open, some of it only where there is a group.
pub const CHANGES: [&str; 7] =
    ["round-robin", "weighted", "least-connections", "p2c", "sticky", "auto", "steered"];

/// Something that happens. Numbers choose among what is there.
#[derive(Debug, Clone)]
pub enum Input {
    Fork { troop: bool },
    Join { troop: bool, port: u16 },
    Query { worker: usize, port: u16, fails: bool },
    Listening { worker: usize, port: u16 },
    Report { worker: usize, open: u32, load: u32 },
    Reschedule { port: u16, to: usize },
    Weigh { worker: usize, weight: u32 },
    Hold { worker: usize, held: bool },
    Shut { listener: usize, shard: usize },
    Accept { listener: usize },
    Flood { listener: usize },
    Foreign { listener: usize, there: bool },
    Answer { worker: usize, which: usize, accepted: bool },
    Batch { worker: usize, taken: u8, returned: u8 },
    Acknowledge { worker: usize, arrived: bool },
    Undelivered { worker: usize, which: usize },
    Consumed { worker: usize, which: usize },
    Close { worker: usize, listener: usize },
    Move { worker: usize, which: usize },
    Moves { worker: usize },
    Moved { worker: usize },
    Counted { worker: usize, open: u32 },
    Raises { worker: usize },
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
        2 => (any::<bool>(), 1..8u16).prop_map(|(troop, port)| Input::Join { troop, port }),
        8 => (worker.clone(), 1..8u16, prop::bool::weighted(0.1)).prop_map(|(worker, port, fails)| Input::Query { worker, port, fails }),
        8 => (worker.clone(), 1..8u16).prop_map(|(worker, port)| Input::Listening { worker, port }),
        2 => (worker.clone(), 0..50u32, 0..5u32).prop_map(|(worker, open, load)| Input::Report { worker, open, load }),
        1 => (0..8u16, 0..CHANGES.len()).prop_map(|(port, to)| Input::Reschedule { port, to }),
        3 => (worker.clone(), any::<bool>()).prop_map(|(worker, held)| Input::Hold { worker, held }),
        1 => (worker.clone(), 0..300u32).prop_map(|(worker, weight)| Input::Weigh { worker, weight }),
        1 => (0..7usize, 0..8usize).prop_map(|(listener, shard)| Input::Shut { listener, shard }),
        20 => (0..8usize).prop_map(|listener| Input::Accept { listener }),
        3 => (0..8usize).prop_map(|listener| Input::Flood { listener }),
        1 => (0..8usize, any::<bool>()).prop_map(|(listener, there)| Input::Foreign { listener, there }),
        10 => (worker.clone(), which.clone(), prop::bool::weighted(0.7)).prop_map(|(worker, which, accepted)| Input::Answer { worker, which, accepted }),
        6 => (worker.clone(), 0..8u8, 0..8u8).prop_map(|(worker, taken, returned)| Input::Batch { worker, taken, returned }),
        6 => (worker.clone(), prop::bool::weighted(0.8)).prop_map(|(worker, arrived)| Input::Acknowledge { worker, arrived }),
        2 => (worker.clone(), which.clone()).prop_map(|(worker, which)| Input::Undelivered { worker, which }),
        1 => (worker.clone(), which.clone()).prop_map(|(worker, which)| Input::Consumed { worker, which }),
        6 => (worker.clone(), which).prop_map(|(worker, which)| Input::Move { worker, which }),
        3 => worker.clone().prop_map(|worker| Input::Moves { worker }),
        2 => worker.clone().prop_map(|worker| Input::Moved { worker }),
        6 => (worker.clone(), 0..60u32).prop_map(|(worker, open)| Input::Counted { worker, open }),
        1 => worker.clone().prop_map(|worker| Input::Raises { worker }),
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

impl Input {
    /// Whether a shell writes down what has changed by it, whatever the primary does then.
    fn is_change(&self) -> bool {
        matches!(
            self,
            Input::Fork { .. }
                | Input::Reschedule { .. }
                | Input::Weigh { .. }
                | Input::Hold { .. }
                | Input::Shut { .. }
                | Input::Foreign { .. }
                | Input::Disconnect { .. }
                | Input::Violation { .. }
                | Input::ChannelClosed { .. }
                | Input::Exit { .. }
                | Input::CloseUnused
        )
    }
}

impl Simulation {
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

    /// A worker gives back a connection that it has served, if the primary takes it.
    fn give_back(&mut self, id: WorkerId, which: usize) {
        let state = &self.workers[&id];
        let at = which % state.served.len().max(1);
        let may_return = state.told_to_leave || state.asked > 0;
        let Some(listener) = state.served.get(at).copied().filter(|_| may_return) else {
            return;
        };
        let Some(key) = self.primary.listener_key(listener).map(str::to_owned) else { return };
        let state = self.workers.get_mut(&id).unwrap();
        let stays = !state.told_to_leave;
        // It offers no more than it was asked for.
        state.asked = state.asked.saturating_sub(stays.into());
        if let Some(listener) = self.primary.may_move(id, &key).unwrap() {
            let state = self.workers.get_mut(&id).unwrap();
            state.served.remove(at);
            let conn = ConnId(self.next_conn);
            self.next_conn += 1;
            self.open.insert(conn);
            self.waiting.insert(conn);
            self.moved += 1;
            assert_eq!(self.primary.moved(id), stays);
            let about = Connection::new(None, Some(7));
            if stays {
                self.primary.rebalanced(self.now, listener, conn, about);
            } else {
                self.primary.accepted(self.now, listener, conn, about);
            }
        }
    }

    /// Most workers that were told to count do so, and their numbers are uneven.
    fn count(&mut self) {
        for (worker, key) in std::mem::take(&mut self.to_count) {
            self.looks += 1;
            let open = [0, 60, 8, 30][(worker.0 + self.looks) as usize % 4];
            let mut line = Vec::new();
            troop_core::wire::outgoing::counted(&mut line, &key, open);
            let speaks = |state: &Worker| state.connected && !state.cut_off;
            if self.workers.get(&worker).is_some_and(speaks) && !self.looks.is_multiple_of(5) {
                self.say(worker, std::str::from_utf8(&line).unwrap().trim_end());
            }
        }
    }

    pub fn happen(&mut self, input: Input) -> Result<(), TestCaseError> {
        self.happen_late(input)?;
        self.act()
    }

    /// Reports an input, and leaves its actions in the queue.
    pub fn happen_late(&mut self, input: Input) -> Result<(), TestCaseError> {
        if input.is_change() {
            self.note_change();
        }
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
            Input::Join { troop, port } => {
                // A worker that listens on several addresses, and moves connections. It is the
                // newest, if there was room for it.
                self.happen_late(Input::Fork { troop })?;
                let worker = self.workers.len() - 1;
                if !troop {
                    self.happen_late(Input::Moves { worker })?;
                }
                for port in [1, port] {
                    self.happen_late(Input::Query { worker, port, fails: false })?;
                    self.act()?;
                    self.happen_late(Input::Listening { worker, port })?;
                }
            }
            Input::Pass { ms } => {
                // As a shell does: not beyond the deadline, and not while there are actions.
                if self.is_late {
                    self.act()?;
                }
                let until = self.now + Duration::from_millis(ms);
                while let Some(due) = self.primary.next_deadline().filter(|due| *due <= until) {
                    self.now = self.now.max(due);
                    self.count();
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
                // have changed numbers. A shell notices when it has no other actions.
                if self.is_late {
                    self.act()?;
                }
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
                    self.note_urgent_change();
                }
            }
            Input::Reschedule { port, to } => {
                let pattern = (port > 0).then(|| port.to_string().parse().unwrap());
                self.primary.set_scheduling(self.now, pattern, CHANGES[to].parse().unwrap());
            }
            Input::Accept { listener } => {
                let id = self.listeners.keys().copied().nth(listener % self.listeners.len().max(1));
                if let Some(id) = id.filter(|id| self.primary.wants_connection(*id)) {
                    let conn = ConnId(self.next_conn);
                    self.next_conn += 1;
                    self.open.insert(conn);
                    self.waiting.insert(conn);
                    let about = Connection::new(None, Some(conn.0.wrapping_mul(0x9E37_79B1)));
                    self.primary.accepted(self.now, id, conn, about);
                    self.primary.arrived(self.now, id, 1);
                }
            }
            Input::Flood { listener } => {
                // Connections of which nothing is left.
                let id = self.listeners.keys().copied().nth(listener % self.listeners.len().max(1));
                for _ in 0..4 {
                    if let Some(id) = id {
                        self.primary.arrived(self.now, id, 10_000);
                    }
                    self.happen_late(Input::Pass { ms: 101 })?;
                }
            }
            Input::Foreign { listener, there } => {
                let id = self.groups.keys().copied().nth(listener % self.groups.len().max(1));
                if let Some(id) = id {
                    self.primary.joined_by_others(self.now, id, there);
                }
            }
            // A worker listens when it has been sent its sockets, and acknowledges what it has been sent.
            Input::Listening { worker, .. } | Input::Acknowledge { worker, .. } => {
                if self.is_late {
                    self.act()?;
                }
                if let Some(id) = self.worker(worker) {
                    self.of_worker(id, input);
                }
            }
            Input::Query { worker, .. }
            | Input::Report { worker, .. }
            | Input::Weigh { worker, .. }
            | Input::Hold { worker, .. }
            | Input::Answer { worker, .. }
            | Input::Batch { worker, .. }
            | Input::Undelivered { worker, .. }
            | Input::Consumed { worker, .. }
            | Input::Close { worker, .. }
            | Input::Move { worker, .. }
            | Input::Moves { worker }
            | Input::Moved { worker }
            | Input::Counted { worker, .. }
            | Input::Raises { worker }
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
        Ok(())
    }

    pub fn of_worker(&mut self, id: WorkerId, input: Input) {
        let state = &self.workers[&id];
        // A shell reads nothing more of a worker that is cut off, also before it has killed it.
        let speaks = state.connected && !state.cut_off && !self.primary.is_cut_off(id);
        match input {
            Input::Exit { .. } => {
                self.primary.exited(self.now, id, ExitHow::Code(0));
                if let Some(state) = self.workers.remove(&id) {
                    self.waiting.extend(state.holds.into_values());
                }
            }
            Input::ChannelClosed { by_worker, .. } => self.close_channel(id, by_worker),
            Input::Disconnect { keep, .. } => {
                self.primary.stops_by(id, 15, Duration::from_secs(2));
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
            Input::Move { which, .. } => {
                for which in 0..=which {
                    self.give_back(id, which);
                }
            }
            Input::Moves { .. } => {
                let worker = self.workers.get_mut(&id).unwrap();
                worker.moves_idle = !worker.troop;
                self.say(id, r#"{"cmd":"NODE_TROOP","act":"moves"}"#);
            }
            Input::Counted { open, .. } => {
                let keys: Vec<_> = self.listeners.keys().copied().collect();
                for key in keys
                    .into_iter()
                    .filter_map(|l| Some(self.primary.listener_key(l)?.to_owned()))
                    .collect::<Vec<_>>()
                {
                    self.say(
                        id,
                        &format!(
                            r#"{{"cmd":"NODE_TROOP","act":"counted","key":"{key}","open":{open}}}"#
                        ),
                    );
                }
            }
            Input::Moved { .. } => self.say(id, r#"{"cmd":"NODE_TROOP","act":"moved"}"#),
            Input::Raises { .. } => {
                self.say(id, r#"{"cmd":"NODE_TROOP","act":"raises"}"#);
            }
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
            | Input::Join { .. }
            | Input::Accept { .. }
            | Input::Flood { .. }
            | Input::Foreign { .. }
            | Input::CloseUnused
            | Input::Successors { .. }
            | Input::Pass { .. }
            | Input::Reschedule { .. }
            | Input::Shut { .. } => {}
        }
    }
}
