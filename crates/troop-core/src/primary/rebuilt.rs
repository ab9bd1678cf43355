//! Takes workers and listeners out of a state with which no shell was ready: what they are, and nothing
//! that has happened with them.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::listen_key::ListenKey;
use super::listener::Shard;
use super::{Action, Primary};
use crate::id::{ListenerId, Time, WorkerId};
use crate::wire::TROOP_VERSION;
use crate::wire::incoming::{Act, ClusterMessage, Incoming, TroopMessage};
use crate::wire::outgoing::SockName;
use crate::worker_state::WorkerState;

/// Workers and listeners of another primary.
#[derive(Debug, Deserialize)]
pub(crate) struct FormerPrimary {
    pub(crate) workers: Vec<(WorkerId, FormerWorker)>,
    listeners: BTreeMap<ListenerId, FormerListener>,
    last_worker: u32,
    last_listener: u32,
    seq: u64,
}

#[derive(Debug, Deserialize)]
pub(crate) struct FormerWorker {
    pub(crate) pid: u32,
    pub(crate) slot: u32,
    weight: u32,
    state: WorkerState,
    connected: bool,
    voluntary: Option<bool>,
    told_to_leave: bool,
    batched: bool,
    moves_idle: bool,
    memberships: Vec<FormerMembership>,
}

#[derive(Debug, Deserialize)]
struct FormerMembership {
    listener: ListenerId,
    shard: u16,
    admitted: bool,
    listening: bool,
}

#[derive(Debug, Deserialize)]
struct FormerListener {
    listen_key: ListenKey,
    #[serde(with = "crate::snapshot::nested")]
    bound: Option<Option<SockName>>,
    data: Option<Box<RawValue>>,
    group: Option<FormerGroup>,
}

#[derive(Debug, Deserialize)]
struct FormerGroup {
    shards: Vec<IgnoredAny>,
}

impl FormerWorker {
    /// Whether it was to serve on.
    pub(crate) fn stays(&self) -> bool {
        self.connected && self.voluntary.is_none() && !self.told_to_leave
    }

    pub(crate) fn is_online(&self) -> bool {
        !matches!(self.state, WorkerState::None)
    }
}

impl FormerPrimary {
    fn group_of(&self, id: ListenerId) -> Option<&FormerGroup> {
        self.listeners.get(&id)?.group.as_ref()
    }
}

impl Primary {
    /// Takes on a worker, before it says anything.
    pub(crate) fn take_on(&mut self, id: WorkerId, former: &FormerWorker) {
        self.name(id);
        self.spawned(id, former.pid, Some(former.slot), former.weight);
    }

    /// The worker says again what it has said: that it runs, and where it listens. What it gets for answers
    /// it has already, so these are not sent ([`Primary::settle`]).
    pub(crate) fn repeat(
        &mut self,
        now: Time,
        id: WorkerId,
        worker: &FormerWorker,
        former: &FormerPrimary,
        later: &mut Vec<Action>,
    ) {
        if !worker.is_online() {
            return;
        }
        let say = |act| ClusterMessage { act: Some(act), ..ClusterMessage::default() };
        let troop = worker.batched.then_some(TROOP_VERSION);
        let online = ClusterMessage { troop, ..say(Act::Online) };
        self.message(now, id, Incoming::Cluster(Box::new(online)));
        if worker.moves_idle {
            self.message(now, id, Incoming::Troop(TroopMessage::Moves));
        }
        for membership in worker.memberships.iter().filter(|membership| membership.admitted) {
            let Some(listener) = former.listeners.get(&membership.listener) else { continue };
            let key = &listener.listen_key;
            if !self.keys.contains_key(key) {
                self.last_listener = membership.listener.0.wrapping_sub(1);
            }
            let query = ClusterMessage {
                seq: Some(0),
                address: key.address.as_deref().map(Into::into),
                port: key.port,
                address_type: Some(key.address_type),
                fd: key.fd,
                index: Some(key.index),
                data: listener.data.as_deref(),
                ..say(Act::QueryServer)
            };
            self.message(now, id, Incoming::Cluster(Box::new(query)));
            self.settle(now, former, later);
            if !membership.listening {
                continue;
            }
            // As Node reports it, also where the kernel has chosen the port.
            let bound = self.bound_address(membership.listener).and_then(|at| at.port);
            let listening = ClusterMessage {
                address: key.address.as_deref().map(Into::into),
                port: key.port.filter(|port| *port != 0).or(bound),
                address_type: Some(key.address_type),
                fd: key.fd,
                ..say(Act::Listening)
            };
            self.message(now, id, Incoming::Cluster(Box::new(listening)));
        }
        if !worker.connected {
            self.channel_closed(now, id, false);
        }
        self.settle(now, former, later);
    }

    /// Answers what is asked of the shell as the former one has, and has it do the rest later.
    fn settle(&mut self, now: Time, former: &FormerPrimary, later: &mut Vec<Action>) {
        while let Some(action) = self.next_action() {
            match action {
                Action::Bind { listener, .. } => {
                    let Some(known) = former.listeners.get(&listener) else { continue };
                    if known.group.is_none() {
                        self.cannot_steer(listener, "it had no sockets of its own before".into());
                    }
                    self.bound(now, listener, Ok(known.bound.clone().flatten()));
                }
                Action::Open { listener } => self.opened(now, listener, Ok(())),
                Action::Watch { .. } | Action::Steer { .. } | Action::Notify(_) => {
                    later.push(action);
                }
                // Answers, and what is asked again by itself.
                _ => {}
            }
        }
    }

    /// All workers have said what they had said. Groups have the sockets that they had, each with the
    /// workers that have it.
    ///
    /// # Errors
    /// The reason if listeners are not what they were.
    pub(crate) fn finish_rebuilding(
        &mut self,
        now: Time,
        former: &FormerPrimary,
        later: &mut Vec<Action>,
    ) -> Result<(), String> {
        self.last_worker = self.last_worker.max(former.last_worker);
        self.last_listener = former.last_listener;
        self.seq = self.seq.max(former.seq);
        for (id, worker) in former.workers.iter().filter(|(_, worker)| worker.is_online()) {
            let state = self.workers.get(id);
            let is_member =
                |of: &FormerMembership| state.is_some_and(|s| s.membership(of.listener).is_some());
            // One without a channel has left its listeners.
            let mut admitted = worker.memberships.iter().filter(|of| of.admitted);
            if worker.connected && !admitted.all(is_member) {
                return Err(format!("worker {id} listens elsewhere"));
            }
        }
        for id in self.listeners.keys().copied().collect::<Vec<_>>() {
            let count = former.group_of(id).map(|group| group.shards.len());
            let Some(listener) = self.listeners.get_mut(&id) else { continue };
            let (group, count) = match (&mut listener.group, count) {
                (None, None) => continue,
                (Some(group), Some(count)) if group.len() <= count => (group, count),
                _ => return Err(format!("listener {} is of another kind", listener.key)),
            };
            while group.len() < count {
                group.grow();
            }
            let shard = |at: usize| {
                let holds = |worker: &FormerWorker| {
                    let mut all = worker.memberships.iter();
                    all.any(|of| of.listener == id && usize::from(of.shard) == at && of.admitted)
                };
                let all = former.workers.iter().filter(|(_, worker)| holds(worker));
                let slot = all.clone().map(|(_, worker)| worker.slot).next();
                Shard {
                    slot: slot.unwrap_or(u32::MAX),
                    holders: all.map(|(worker, _)| *worker).collect(),
                    leaving: Vec::new(),
                }
            };
            listener.shards = (0..count).map(shard).collect();
            for (worker, known) in &former.workers {
                let was = known.memberships.iter().find(|of| of.listener == id);
                let state = self.workers.get_mut(worker);
                let is = state.and_then(|state| state.membership_mut(id));
                if let (Some(was), Some(is)) = (was, is) {
                    is.shard = was.shard;
                }
            }
            self.update_shard_loads(now, id);
        }
        self.settle(now, former, later);
        Ok(())
    }
}
