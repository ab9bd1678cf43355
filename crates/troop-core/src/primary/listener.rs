//! The registry of listeners: one socket per key, shared by all workers that ask for the same
//! thing.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::handover::Needs;
use super::membership::{ListenerMembership, QueuedConnection};
use super::worker::HandleWait;
use super::{Action, Config, Primary};
use crate::event::{Address, AddressType, Notice, Violation};
use crate::id::{ListenerId, Time, WorkerId};
use crate::policy::{Policy, Scheduling, Sticky};
use crate::steer::group::ShardGroup;
use crate::wire::incoming::ClusterMessage;
use crate::wire::outgoing::{self, Reply, SockName};

/// Characters of what a worker says that are passed on to people.
const MOST_SHOWN: usize = 200;

const EAGAIN: i32 = 11;
const EACCES: i32 = 13;
const EINVAL: i32 = 22;
const EMFILE: i32 = 24;
const ENAMETOOLONG: i32 = 36;
const EMSGSIZE: i32 = 90;
const EADDRINUSE: i32 = 98;

/// The most bytes of opaque `data` (TLS ticket keys, which have about 120) that a listener keeps.
const MAX_DATA: usize = 4 * 1024;
/// The longest path that the kernel takes (`PATH_MAX`), and the longest name of a host.
const MAX_PATH: usize = 4096;
const MAX_HOST: usize = 255;
/// The most descriptors that a worker may leave unacknowledged.
const MAX_UNACKNOWLEDGED: usize = 2048;

/// The most listeners that are kept open for a successor although no worker uses them.
const MAX_UNUSED: usize = 64;

/// Whether no listener can be at this address, because of its length alone.
pub(super) fn is_too_long(address: &str, kind: AddressType) -> bool {
    address.len() > if kind == AddressType::Unix { MAX_PATH } else { MAX_HOST }
}

/// What Node calls the key: everything that makes two requests ask for the same socket.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct ListenKey {
    address: Option<String>,
    port: Option<i64>,
    address_type: AddressType,
    fd: Option<i64>,
    /// Counts for port 0, and when one worker asks for the same thing twice.
    index: u32,
}

impl ListenKey {
    /// Whether the kernel takes both for one address: the same port, and the same IP address or
    /// any.
    fn overlaps(&self, other: &ListenKey) -> bool {
        let is_any =
            |key: &ListenKey| matches!(key.address.as_deref(), None | Some("0.0.0.0" | "::"));
        let is_ip = !matches!(self.address_type, AddressType::Unix | AddressType::Fd);
        is_ip
            && self.address_type.is_udp() == other.address_type.is_udp()
            && self.port.is_some_and(|port| port > 0)
            && self.port == other.port
            && (is_any(self) || is_any(other) || self.address == other.address)
    }

    /// Node's text form, which is opaque to workers.
    fn text(&self) -> String {
        let ListenKey { address, port, address_type, fd, index } = self;
        let address = address.as_deref().unwrap_or("null");
        let port = port.map_or("null".to_owned(), |p| p.to_string());
        let fd = fd.map_or("undefined".to_owned(), |fd| fd.to_string());
        format!("{address}:{port}:{address_type}:{fd}:{index}")
    }
}

/// A socket to open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindSpec {
    /// Where.
    pub target: Bind,
    /// The length of the accept queue; `None` if the socket must not listen yet (the workers do
    /// that on a shared one), or is UDP.
    pub listen: Option<u32>,
    /// It is to be the founder of a group of sockets, on which the primary accepts itself, or else
    /// [`Primary::cannot_steer`] is to be called.
    pub group: bool,
    /// The length of the accept queue that was asked for, also where the workers listen themselves.
    pub backlog: u32,
}

/// A listening or bound socket of the primary's that workers may listen on by its number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offered {
    /// The number by which workers know it.
    pub number: i32,
    /// Where it is bound, if that is known.
    pub at: Option<Address>,
}

/// Where a listener is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Bind {
    /// TCP. Without an address: `::` for both families, or `0.0.0.0` where there is no IPv6.
    Tcp {
        /// An IP address.
        address: Option<String>,
        /// 0 lets the kernel choose.
        port: u16,
        /// `IPV6_V6ONLY`.
        ipv6_only: bool,
    },
    /// A Unix socket.
    Unix {
        /// Its absolute path.
        path: String,
        /// Everybody may read (`readableAll`).
        readable_all: bool,
        /// Everybody may write (`writableAll`).
        writable_all: bool,
        /// The configuration names this very path (`may_listen`), so the primary binds there also
        /// where its workers could not.
        named: bool,
    },
    /// UDP.
    Udp {
        /// An IP address; the family's "any" if absent.
        address: Option<String>,
        /// 0 lets the kernel choose.
        port: u16,
        /// The family.
        ipv6: bool,
        /// `IPV6_V6ONLY`.
        ipv6_only: bool,
        /// `SO_REUSEADDR`.
        reuse_address: bool,
    },
    /// A descriptor that the primary has inherited or opened.
    Fd {
        /// Its number.
        fd: i32,
        /// Whether it must be a UDP socket.
        udp: bool,
    },
}

#[derive(Debug)]
pub(super) struct Listener {
    pub(super) listen_key: ListenKey,
    pub(super) key: String,
    /// What was chosen for it; what it has, unless it could not be had.
    pub(super) chosen: Scheduling,
    pub(super) scheduling: Scheduling,
    /// `None` for shared sockets.
    pub(super) policy: Option<Box<dyn Policy>>,
    pub(super) needs_counts: bool,
    /// Its policy goes by how busy workers are, and by nothing else.
    pub(super) by_counts: bool,
    pub(super) needs: Needs,
    pub(super) shards: Vec<Shard>,
    /// For a steered one.
    pub(super) group: Option<ShardGroup>,
    /// Workers that wait for a socket of their own, and the number of their question.
    pub(super) growing: VecDeque<(WorkerId, u64)>,
    /// The shell is opening a socket.
    pub(super) opening: bool,
    /// Until then no more sockets are tried: there were obstacles.
    pub(super) crowded_until: Time,
    pub(super) waiters: Vec<(WorkerId, u64)>,
    /// For another attempt to bind, until the first one has shown its outcome.
    retry: Option<(WorkerId, BindSpec)>,
    pub(super) bound: Option<Option<SockName>>,
    pub(super) data: Option<Box<RawValue>>,
    pub(super) queue: VecDeque<QueuedConnection>,
    /// Connections that wait for a certain worker.
    pub(super) reserved: usize,
    /// The worker whose share of the descriptors it counts against: who had it opened, or, after
    /// that one, another who uses it.
    pub(super) charged_to: WorkerId,
    /// It stays open without workers.
    pub(super) lasting: bool,
    /// Workers of several slots have listened on it at a time.
    pub(super) is_shared: bool,
    /// Its name does not depend on the worker that listens on it.
    pub(super) is_fixed: bool,
}

/// Where a worker and its successors take part in a listener.
#[derive(Debug)]
pub(super) struct Shard {
    /// The [slot](super::WorkerStatus::slot) of those workers.
    pub(super) slot: u32,
    pub(super) holders: Vec<WorkerId>,
}

/// The most places of a listener; more workers share them.
pub(super) const MAX_PLACES: usize = 1024;

/// How many more connections may wait where each has to wait for its own worker.
const STICKY_FACTOR: usize = 16;

impl Listener {
    pub(super) fn is_unused(&self) -> bool {
        self.waiters.is_empty()
            && self.growing.is_empty()
            && self.shards.iter().all(|shard| shard.holders.is_empty())
    }

    pub(super) fn limit(&self, config: &Config, tight: bool) -> usize {
        let pending = if tight { 1 } else { config.pending_limit };
        pending * if self.scheduling.sticky().is_some() { STICKY_FACTOR } else { 1 }
    }

    /// Its part of a worker's share: its socket, or its founder and the first shard.
    fn charge(&self) -> usize {
        1 + usize::from(self.group.is_some())
    }

    /// Somebody who uses it.
    fn user(&self) -> Option<WorkerId> {
        let held = self.shards.iter().flat_map(|shard| shard.holders.iter().copied());
        held.chain(self.waiters.iter().map(|(w, _)| *w))
            .chain(self.growing.iter().map(|(w, _)| *w))
            .next()
    }

    pub(super) fn schedule(&mut self, scheduling: Scheduling, seed: u64) {
        self.policy = scheduling.policy(seed);
        self.needs_counts = self.policy.as_ref().is_some_and(|policy| policy.needs_counts());
        self.by_counts = matches!(
            scheduling,
            Scheduling::LeastConnections | Scheduling::PowerOfTwo | Scheduling::Steered(None)
        );
        self.needs = Needs {
            peer: self.policy.as_ref().is_some_and(|policy| policy.needs_peer()),
            bytes: scheduling.sticky().is_some_and(Sticky::needs_bytes),
            answer: matches!(scheduling, Scheduling::Callback(_)),
        };
        self.scheduling = scheduling;
    }

    /// Finds a place for a worker: that of its slot, or a vacant one, or a new one. One that is to
    /// get nothing yet needs a socket of its own, away from its predecessor's, unless clients, or
    /// flows, are known by their places.
    pub(super) fn assign_shard(&mut self, worker: WorkerId, slot: u32, held: bool) -> u16 {
        let apart = held && self.group.as_ref().is_some_and(|group| !group.keeps_shards());
        let own = self.shards.iter().position(|shard| shard.slot == slot && !apart);
        let at = own
            .or_else(|| self.shards.iter().position(|shard| shard.holders.is_empty()))
            .unwrap_or_else(|| {
                if self.shards.len() < MAX_PLACES {
                    self.shards.push(Shard { slot, holders: Vec::new() });
                    self.shards.len() - 1
                } else {
                    slot as usize % MAX_PLACES
                }
            });
        let shard = &mut self.shards[at];
        if shard.holders.is_empty() {
            shard.slot = slot;
        }
        shard.holders.push(worker);
        at as u16
    }

    /// Whether a worker that says it listens there means this one.
    pub(super) fn is_at(&self, at: &Address) -> bool {
        let ListenKey { address, port, address_type, fd, .. } = &self.listen_key;
        let bound =
            || self.bound.as_ref().and_then(Option::as_ref).map(|name| i64::from(name.port));
        // Node names the real port, also where none was asked for.
        let same_port =
            at.port == *port || port.is_none() || (*port == Some(0) && at.port == bound());
        *address_type == at.address_type && *address == at.address && *fd == at.fd && same_port
    }

    /// The words of the worker that asked first.
    pub(super) fn asked(&self) -> Address {
        let ListenKey { address, port, address_type, fd, .. } = &self.listen_key;
        Address { address: address.clone(), port: *port, address_type: *address_type, fd: *fd }
    }
}

impl Primary {
    /// Lets workers listen on one more descriptor by its number; takes the place of one that had
    /// the same number.
    pub fn offer(&mut self, offered: Offered) {
        self.config.offered.retain(|known| known.number != offered.number);
        self.config.offered.push(offered);
    }

    /// `queryServer`: a worker wants to listen.
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
            // Node leaves a worker that is told to finish without an answer; it is on its way out.
            return Ok(());
        }
        if state.memberships.len() >= limit {
            return Err(Violation::TooManyListeners(limit));
        }
        if state.handle_waits.len() >= MAX_UNACKNOWLEDGED {
            return Err(Violation::Unacknowledged(MAX_UNACKNOWLEDGED));
        }
        // Nothing of it is kept, and nothing repeated in the answer.
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
            // Node's answer to a descriptor that is none.
            let errno = if self.config.may_listen.is_some() { EACCES } else { EINVAL };
            self.reply_error(worker, &listen_key.text(), ack, errno, message.data);
            return Err(Violation::Forbidden(what.chars().take(MOST_SHOWN).collect()));
        }
        let chosen = self.config.scheduling_for(&asked);
        // Datagrams cannot be handed over. Unix sockets are in no group.
        let scheduling = match (&chosen, listen_key.address_type) {
            (Scheduling::Steered(_), AddressType::Unix) => Scheduling::RoundRobin,
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
            // A second server of one worker on the same address is a bind of its own, which the
            // kernel judges.
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
            growing: VecDeque::new(),
            opening: false,
            crowded_until: Time(0),
            waiters: vec![(worker, ack)],
            retry: Some((worker, spec.clone())),
            bound: None,
            data,
            queue: VecDeque::new(),
            reserved: 0,
            charged_to: worker,
            lasting: false,
            is_shared: false,
            is_fixed: false,
        };
        listener.schedule(scheduling, self.config.seed ^ u64::from(id.0));
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

    /// An id that no listener has. Somebody who asks for ever could bring the numbers to their end.
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
            // Programs remove the file before they listen, also when it is that of the others.
            self.actions.push_back(Action::Reach { listener: id, worker });
        }
        self.admit(worker, id, ack);
    }

    /// The outcome of [`Action::Bind`]: where the socket is bound (for TCP), or a positive errno.
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
                        let look = group.next_look();
                        self.wake_at(look);
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
                // Dropped, so that a later attempt binds anew.
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

    /// Closes listeners in the way of this one that no worker has: its program has moved on, or
    /// tries a port before it listens, also after an end that left its address open for the
    /// successor. Returns whether there were any.
    fn make_room_for(&mut self, id: ListenerId) -> bool {
        let Some(wanted) = self.listeners.get(&id).map(|listener| &listener.listen_key) else {
            return false;
        };
        let in_the_way = |other: &ListenerId| {
            self.listeners.get(other).is_some_and(|l| l.listen_key.overlaps(wanted))
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

    /// A worker closed one of its servers. Unknown keys are ignored, as Node does.
    pub(super) fn server_closed(&mut self, worker: WorkerId, key: &str) {
        let Some(state) = self.workers.get(&worker) else { return };
        let all = state.memberships.iter().map(|membership| membership.listener);
        let found = all.into_iter().find(|id| self.listeners.get(id).is_some_and(|l| l.key == key));
        if let Some(listener) = found {
            // A supervised worker that leaves by itself closes its servers first.
            self.leave(worker, listener, self.supervised && self.config.keep_listeners, true);
        }
    }

    /// Takes a worker off all its listeners. With `keep`, a listener that nobody uses any more
    /// stays open for a successor.
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

    /// With `closed`, the worker has closed its server by itself.
    fn leave(&mut self, worker: WorkerId, id: ListenerId, keep: bool, closed: bool) {
        let membership = self.workers.get_mut(&worker).and_then(|state| {
            let at = state.memberships.iter().position(|membership| membership.listener == id)?;
            Some(state.memberships.remove(at))
        });
        let Some(listener) = self.listeners.get_mut(&id) else { return };
        listener.waiters.retain(|(w, _)| *w != worker);
        listener.growing.retain(|(w, _)| *w != worker);
        listener.shards.iter_mut().for_each(|shard| shard.holders.retain(|w| *w != worker));
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
            self.close_unused(id);
        } else {
            if unused && !lasting {
                self.note_unused(id, worker, closed);
            }
            let now = self.last_time;
            self.update_shard_loads(now, id);
            self.pump(now, id);
        }
    }

    /// The shell could not copy a listener for [`Action::SendListener`].
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
            self.leave_listener(worker, listener, false);
        }
    }

    /// The key of a listener as text, for messages about it.
    #[must_use]
    pub fn listener_key(&self, id: ListenerId) -> Option<&str> {
        self.listeners.get(&id).map(|l| l.key.as_str())
    }
}

/// What to bind for a question; `None` if the question makes no sense.
fn bind_spec(
    message: &ClusterMessage<'_>,
    scheduling: &Scheduling,
    named: bool,
) -> Option<BindSpec> {
    let address = message.address.as_deref().map(str::to_owned);
    let flags = message.flags.unwrap_or(0);
    let port = |port: Option<i64>| port.and_then(|p| u16::try_from(p).ok());
    let kind = message.address_type?;
    let target = match (kind, message.fd) {
        (AddressType::Udp4 | AddressType::Udp6, Some(fd)) if fd >= 0 => {
            Bind::Fd { fd: i32::try_from(fd).ok()?, udp: true }
        }
        (AddressType::Udp4 | AddressType::Udp6, _) => Bind::Udp {
            address,
            port: port(message.port.or(Some(0)))?,
            ipv6: kind == AddressType::Udp6,
            ipv6_only: flags & 1 != 0,
            reuse_address: flags & 4 != 0,
        },
        (_, Some(fd)) if fd >= 0 => Bind::Fd { fd: i32::try_from(fd).ok()?, udp: false },
        (AddressType::Tcp4 | AddressType::Tcp6, _) => {
            Bind::Tcp { address, port: port(message.port)?, ipv6_only: flags & 1 != 0 }
        }
        (AddressType::Unix, _) => Bind::Unix {
            path: address.filter(|p| !p.is_empty())?,
            readable_all: message.readable_all,
            writable_all: message.writable_all,
            named,
        },
        (AddressType::Fd, _) => return None,
    };
    let backlog = match message.backlog.unwrap_or(0) {
        0 => 511,
        // As the kernel takes a negative length.
        n => u32::try_from(n).unwrap_or(u32::MAX),
    };
    let udp = matches!(target, Bind::Udp { .. } | Bind::Fd { udp: true, .. });
    let group = matches!(scheduling, Scheduling::Steered(_));
    // The number in a group is given when the socket begins to listen, so that is not left to the
    // workers.
    Some(BindSpec {
        target,
        listen: (!udp && *scheduling != Scheduling::Shared).then_some(backlog),
        group,
        backlog,
    })
}
