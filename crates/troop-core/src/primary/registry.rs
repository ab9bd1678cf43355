//! The registry of listeners: one per key, shared by all workers that ask for that key.

use std::collections::VecDeque;

use serde_json::value::RawValue;

use super::bind::{Offered, bind_spec};
use super::handover::Needs;
use super::listen_key::{ListenKey, is_too_long};
use super::listener::{Listened, Listener};
use super::membership::ListenerMembership;
use super::worker::HandleWait;
use super::{Action, Primary};
use crate::event::{Address, AddressType, Notice, Violation};
use crate::id::{ListenerId, Time, WorkerId};
use crate::policy::{Policy, Scheduling};
use crate::steer::group::ShardGroup;
use crate::wire::incoming::ClusterMessage;
use crate::wire::outgoing::{self, Reply, SockName};

/// Maximum number of characters of a worker's text in a message.
const MAX_SHOWN: usize = 200;

const EAGAIN: i32 = 11;
const EACCES: i32 = 13;
const EINVAL: i32 = 22;
const EMFILE: i32 = 24;
const ENAMETOOLONG: i32 = 36;
const EMSGSIZE: i32 = 90;
const EADDRINUSE: i32 = 98;

/// Maximum size in bytes of a listener's opaque `data` (TLS ticket keys, of about 120 bytes).
const MAX_DATA: usize = 4 * 1024;
/// Maximum number of unacknowledged descriptors per worker.
const MAX_UNACKNOWLEDGED: usize = 2048;

/// Maximum number of listeners without workers that are kept open for a successor.
const MAX_UNUSED: usize = 64;

impl Primary {
    /// Lets workers listen on a descriptor by its number; replaces an earlier one of the same
    /// number.
    pub fn offer(&mut self, offered: Offered) {
        self.config.offered.retain(|known| known.number != offered.number);
        self.config.offered.push(offered);
    }

    /// Handles `queryServer`: a worker asks for a listener.
    pub(super) fn query(
        &mut self,
        worker: WorkerId,
        message: &ClusterMessage<'_>,
    ) -> Result<(), Violation> {
        let Some(ack) = message.seq else {
            return Err(Violation::Malformed("queryServer without seq".into()));
        };
        let limit = self.config.max_listeners_per_worker;
        let Some(state) = self.workers.get(&worker) else { return Ok(()) };
        if state.voluntary == Some(true) {
            // As in Node, a disconnecting worker gets no reply.
            return Ok(());
        }
        if state.memberships.len() >= limit {
            return Err(Violation::TooManyListeners(limit));
        }
        if state.handle_waits.len() >= MAX_UNACKNOWLEDGED {
            return Err(Violation::Unacknowledged(MAX_UNACKNOWLEDGED));
        }
        // Its text is neither kept nor repeated in the reply.
        let kind = message.address_type.unwrap_or(AddressType::Fd);
        if message.address.as_deref().is_some_and(|address| is_too_long(address, kind)) {
            self.reply_error(worker, "", ack, ENAMETOOLONG, None);
            return Ok(());
        }
        if message.data.is_some_and(|data| data.get().len() > MAX_DATA) {
            self.reply_error(worker, "", ack, EMSGSIZE, None);
            return Ok(());
        }
        let mut listen_key = ListenKey {
            address: message.address.as_deref().map(str::to_owned),
            port: message.port,
            address_type: message.address_type.unwrap_or(AddressType::Fd),
            fd: message.fd,
            index: if message.port == Some(0) { message.index.unwrap_or(0) } else { 0 },
        };
        let asked = Address {
            address: listen_key.address.clone(),
            port: listen_key.port,
            address_type: listen_key.address_type,
            fd: listen_key.fd,
        };
        if let Err(what) = self.config.allows(&asked) {
            // Node replies `EINVAL` to an invalid descriptor.
            let errno = if self.config.may_listen.is_some() { EACCES } else { EINVAL };
            self.reply_error(worker, &listen_key.text(), ack, errno, message.data);
            return Err(Violation::Forbidden(what.chars().take(MAX_SHOWN).collect()));
        }
        let chosen = self.config.scheduling_for(&asked);
        // Datagrams cannot be handed over, and Unix sockets cannot form a group.
        let scheduling = match (&chosen, listen_key.address_type) {
            (Scheduling::Auto | Scheduling::Steered(_), AddressType::Unix) => {
                Scheduling::RoundRobin
            }
            (Scheduling::Steered(_), _) => chosen.clone(),
            (_, kind) if kind.is_udp() => Scheduling::Shared,
            _ => chosen.clone(),
        };
        let named = self.config.may_listen.is_some();
        let Some(spec) = bind_spec(message, &scheduling, named) else {
            self.reply_error(worker, &listen_key.text(), ack, EINVAL, message.data);
            return Ok(());
        };
        if self.uses(worker, &listen_key) {
            // A second server of one worker on the same address is a separate bind, which the
            // kernel accepts or rejects.
            listen_key.index = message.index.unwrap_or(0).max(1);
            if self.uses(worker, &listen_key) {
                self.reply_error(worker, &listen_key.text(), ack, EADDRINUSE, message.data);
                return Ok(());
            }
        }
        if let Some(&listener) = self.keys.get(&listen_key) {
            self.join(worker, listener, ack);
            return Ok(());
        }
        let share = self.budget.listener_share(self.workers.len()).min(limit);
        let charged: usize =
            self.listeners.values().filter(|l| l.charged_to == worker).map(Listener::charge).sum();
        if charged >= share {
            self.reply_error(worker, &listen_key.text(), ack, EMFILE, message.data);
            return Err(Violation::OverShare(share));
        }
        let within = self
            .workers
            .get(&worker)
            .map_or(Ok(()), |state| state.wasted_binds.check(self.last_time));
        if within.is_err() {
            self.reply_error(worker, &listen_key.text(), ack, EAGAIN, message.data);
            return within;
        }
        let id = self.next_listener();
        let data = message.data.map(ToOwned::to_owned);
        let mut listener = Listener {
            key: listen_key.text(),
            listen_key: listen_key.clone(),
            chosen,
            scheduling: Scheduling::Shared,
            policy: None,
            needs_counts: false,
            by_counts: false,
            needs: Needs::default(),
            shards: Vec::new(),
            group: spec.group.then(|| {
                ShardGroup::new(
                    listen_key.address_type.is_udp(),
                    scheduling.sticky().cloned(),
                    self.last_time,
                )
            }),
            auto: None,
            growing: VecDeque::new(),
            opening: false,
            crowded_until: Time(0),
            waiters: vec![(worker, ack)],
            retry: Some((worker, spec.clone())),
            bound: None,
            data,
            queue: VecDeque::new(),
            reserved: 0,
            promised: 0,
            charged_to: worker,
            lasting: false,
            is_shared: false,
            is_fixed: false,
            listened: Listened::Nobody,
        };
        listener.schedule(self.last_time, scheduling, self.config.seed ^ u64::from(id.0));
        if matches!(listener.chosen, Scheduling::Steered(_)) && listener.group.is_none() {
            let at = listener.asked();
            self.notify(Notice::NotSteered { at, reason: "Unix sockets cannot be steered".into() });
        }
        self.listeners.insert(id, listener);
        self.keys.insert(listen_key, id);
        if let Some(state) = self.workers.get_mut(&worker) {
            state.memberships.push(ListenerMembership::new(id));
        }
        self.actions.push_back(Action::Bind { listener: id, worker, spec });
        Ok(())
    }

    /// Returns an unused id. Ids may wrap around, because workers can ask for any number of
    /// listeners.
    fn next_listener(&mut self) -> ListenerId {
        loop {
            self.last_listener = self.last_listener.wrapping_add(1);
            let id = ListenerId(self.last_listener);
            if !self.listeners.contains_key(&id) {
                return id;
            }
        }
    }

    fn uses(&self, worker: WorkerId, key: &ListenKey) -> bool {
        let id = self.keys.get(key);
        id.is_some_and(|id| {
            self.workers.get(&worker).is_some_and(|state| state.membership(*id).is_some())
        })
    }

    fn join(&mut self, worker: WorkerId, id: ListenerId, ack: u64) {
        let Some(listener) = self.listeners.get_mut(&id) else { return };
        if self.unused.remove(&id).is_some() {
            listener.charged_to = worker;
        }
        if let Some(state) = self.workers.get_mut(&worker) {
            state.memberships.push(ListenerMembership::new(id));
        }
        if listener.bound.is_none() {
            listener.waiters.push((worker, ack));
            return;
        }
        if listener.listen_key.address_type == AddressType::Unix {
            // Programs often remove the socket file before they listen, even if other workers use
            // it.
            self.actions.push_back(Action::Reach { listener: id, worker });
        }
        self.admit(worker, id, ack);
    }

    /// Handles the result of [`Action::Bind`]: the bound address (for TCP), or a positive errno.
    pub fn bound(&mut self, now: Time, id: ListenerId, result: Result<Option<SockName>, i32>) {
        let Some(listener) = self.listeners.get_mut(&id) else { return };
        let retry = listener.retry.take();
        if let (Err(EADDRINUSE), Some((worker, spec))) = (&result, retry)
            && self.make_room_for(id)
        {
            self.actions.push_back(Action::Bind { listener: id, worker, spec });
            return;
        }
        let Some(listener) = self.listeners.get_mut(&id) else { return };
        let waiters = std::mem::take(&mut listener.waiters);
        match result {
            Ok(name) => {
                listener.bound = Some(name);
                match &mut listener.group {
                    Some(group) => {
                        let next = group.next_check();
                        self.wake_at(next);
                    }
                    None if listener.policy.is_some() => {
                        self.actions.push_back(Action::Watch { listener: id, shard: 0, on: true });
                    }
                    None => {}
                }
                for (worker, ack) in waiters {
                    self.admit(worker, id, ack);
                }
                self.pump(now, id);
            }
            Err(errno) => {
                // Remove the listener, so that a later request binds again.
                let (key, data, asker) =
                    (listener.key.clone(), listener.data.take(), listener.charged_to);
                self.keys.remove(&listener.listen_key);
                self.listeners.remove(&id);
                self.unused.remove(&id);
                self.bound_for_nothing(now, asker);
                for (worker, ack) in waiters {
                    if let Some(state) = self.workers.get_mut(&worker) {
                        state.memberships.retain(|membership| membership.listener != id);
                    }
                    self.reply_error(worker, &key, ack, errno, data.as_deref());
                }
            }
        }
    }

    /// Closes listeners without workers that conflict with this one: the program has changed its
    /// address, or tests a port before it listens. Returns whether there were any.
    fn make_room_for(&mut self, id: ListenerId) -> bool {
        let Some(wanted) = self.listeners.get(&id).map(|listener| &listener.listen_key) else {
            return false;
        };
        let in_the_way = |other: &ListenerId| {
            // Not itself, which no worker has either if the one that asked for it has left.
            *other != id && self.listeners.get(other).is_some_and(|l| l.listen_key.overlaps(wanted))
        };
        let all: Vec<_> = self.unused.keys().copied().filter(in_the_way).collect();
        all.iter().for_each(|other| self.abandon_for_another(*other));
        !all.is_empty()
    }

    pub(super) fn reply_error(
        &mut self,
        worker: WorkerId,
        key: &str,
        ack: u64,
        errno: i32,
        data: Option<&RawValue>,
    ) {
        let seq = self.next_seq();
        self.send(worker, |line| {
            outgoing::reply(
                line,
                &Reply { key, ack, errno: Some(-errno), data, sockname: None, troop: None, seq },
            );
        });
    }

    /// Handles the close of a server by its worker. Unknown keys are ignored, as in Node.
    pub(super) fn server_closed(&mut self, worker: WorkerId, key: &str) {
        let Some(state) = self.workers.get_mut(&worker) else { return };
        state.has_closed = true;
        state.unclosed.retain(|(_, unclosed)| unclosed != key);
        let all = state.memberships.iter().map(|membership| membership.listener);
        let found = all.into_iter().find(|id| self.listeners.get(id).is_some_and(|l| l.key == key));
        if let Some(listener) = found {
            // A supervised worker that disconnects by itself closes its servers first.
            self.leave(worker, listener, self.supervised && self.config.keep_listeners, true);
        }
    }

    /// Removes a worker from all its listeners. With `keep`, listeners that become unused stay open
    /// for a successor.
    pub(super) fn leave_listeners(&mut self, worker: WorkerId, keep: bool) {
        let all = self.workers.get(&worker).map(|state| {
            state.memberships.iter().map(|membership| membership.listener).collect::<Vec<_>>()
        });
        for listener in all.unwrap_or_default() {
            self.leave_listener(worker, listener, keep);
        }
    }

    pub(super) fn leave_listener(&mut self, worker: WorkerId, id: ListenerId, keep: bool) {
        self.leave(worker, id, keep, false);
    }

    /// Removes a worker from a listener. `closed` is whether the worker has closed its server by
    /// itself.
    fn leave(&mut self, worker: WorkerId, id: ListenerId, keep: bool, closed: bool) {
        let membership = self.workers.get_mut(&worker).and_then(|state| {
            let at = state.memberships.iter().position(|membership| membership.listener == id)?;
            Some(state.memberships.remove(at))
        });
        let Some(listener) = self.listeners.get_mut(&id) else { return };
        listener.waiters.retain(|(w, _)| *w != worker);
        listener.growing.retain(|(w, _)| *w != worker);
        let may_accept = !closed && self.workers.get(&worker).is_some_and(|w| w.may_accept(id));
        for shard in &mut listener.shards {
            let before = shard.holders.len();
            shard.holders.retain(|w| *w != worker);
            if may_accept && shard.holders.len() < before {
                shard.leaving.push(worker);
            }
        }
        if let Some(membership) = membership {
            if membership.shown.is_some()
                && let Some(policy) = &mut listener.policy
            {
                policy.remove(worker);
            }
            listener.reserved -= membership.reserved.len();
            for waiting in membership.reserved.into_iter().rev() {
                listener.queue.push_front(waiting);
            }
        }
        if listener.charged_to == worker
            && let Some(user) = listener.user()
        {
            listener.charged_to = user;
        }
        let (unused, lasting) = (listener.is_unused(), listener.lasting);
        let most = (self.budget.listeners() / 4).min(MAX_UNUSED);
        if unused && !lasting && (!keep || self.unused.len() >= most) {
            self.bound_for_nothing(self.last_time, worker);
            self.close_at_once(id, worker, closed);
        } else {
            if unused && !lasting {
                self.note_unused(id, worker, closed);
            }
            let now = self.last_time;
            self.update_shard_loads(now, id);
            self.pump(now, id);
        }
    }

    /// Handles a listener that the shell could not duplicate for [`Action::SendListener`].
    pub fn listener_unsent(&mut self, worker: WorkerId, listener: ListenerId) {
        let Some(state) = self.workers.get_mut(&worker) else { return };
        let last = state
            .handle_waits
            .iter()
            .rposition(|w| matches!(w, HandleWait::Listener { listener: l, .. } if *l == listener));
        if let Some(HandleWait::Listener { ack, .. }) =
            last.and_then(|at| state.handle_waits.remove(at))
        {
            self.listener_lost(worker, listener, ack);
        }
    }

    pub(super) fn listener_lost(&mut self, worker: WorkerId, listener: ListenerId, ack: u64) {
        if let Some(key) = self.listeners.get(&listener).map(|l| l.key.clone()) {
            self.reply_error(worker, &key, ack, EMFILE, None);
            if let Some(state) = self.workers.get_mut(&worker) {
                // What it has of that listener by then it may give back.
                state.has_closed = true;
            }
            self.leave_listener(worker, listener, false);
        }
    }

    /// Returns the key of a listener as text, for messages.
    #[must_use]
    pub fn listener_key(&self, id: ListenerId) -> Option<&str> {
        self.listeners.get(&id).map(|l| l.key.as_str())
    }

    /// Returns the address that the first worker of a listener asked for.
    #[must_use]
    pub fn listener_address(&self, id: ListenerId) -> Option<Address> {
        self.listeners.get(&id).map(Listener::asked)
    }

    /// Returns the bound address of a listener, or the requested one where that is unknown.
    #[must_use]
    pub fn bound_address(&self, id: ListenerId) -> Option<Address> {
        let listener = self.listeners.get(&id)?;
        let asked = listener.asked();
        Some(match &listener.bound {
            Some(Some(name)) => Address {
                address: Some(name.address.clone()),
                port: Some(name.port.into()),
                ..asked
            },
            _ => asked,
        })
    }

    /// Returns all open listeners.
    pub fn listeners(&self) -> impl Iterator<Item = ListenerId> {
        self.listeners.keys().copied()
    }

    /// Returns the workers that listen on a listener.
    #[must_use]
    pub fn who_listens(&self, id: ListenerId) -> Vec<WorkerId> {
        let listens = |state: &super::Worker| {
            state.membership(id).is_some_and(|membership| membership.listening)
        };
        self.workers.iter().filter(|(_, state)| listens(state)).map(|(id, _)| *id).collect()
    }

    /// Returns the workers that were given a socket of a listener and may not have closed it, whether or
    /// not they say that they listen.
    #[must_use]
    pub fn who_has_sockets(&self, id: ListenerId) -> Vec<WorkerId> {
        let was_given = |state: &super::Worker| {
            state.may_accept(id) || state.membership(id).is_some_and(|of| of.admitted)
        };
        self.workers.iter().filter(|(_, state)| was_given(state)).map(|(id, _)| *id).collect()
    }

    /// Returns the workers of a shard.
    #[must_use]
    pub fn holders(&self, id: ListenerId, shard: usize) -> &[WorkerId] {
        self.listeners
            .get(&id)
            .and_then(|listener| listener.shards.get(shard))
            .map_or(&[], |shard| &shard.holders)
    }

    /// Returns the number of workers that listen on a listener, and of connections that wait there.
    #[must_use]
    pub fn listener_load(&self, id: ListenerId) -> (usize, usize) {
        let workers = self
            .workers
            .values()
            .filter(|worker| worker.memberships.iter().any(|membership| membership.listener == id))
            .count();
        (
            workers,
            self.listeners.get(&id).map_or(0, |listener| listener.queue.len() + listener.reserved),
        )
    }
}
