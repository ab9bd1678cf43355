//! The registry of listeners: one socket per key, shared by all workers that ask for the same thing.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::worker::HandleWait;
use super::{Action, Primary};
use crate::event::{AddressType, Violation};
use crate::id::{ConnId, ListenerId, Time, WorkerId};
use crate::policy::{Policy, RoundRobin, Schedule};
use crate::wire::incoming::ClusterMessage;
use crate::wire::outgoing::{self, SockName};

const EINVAL: i32 = 22;
const EADDRINUSE: i32 = 98;

/// The most bytes of opaque `data` (TLS ticket keys) that a listener keeps.
const MAX_DATA: usize = 64 * 1024;

/// The most listeners that are kept open for a successor although no worker uses them.
const MAX_UNUSED: usize = 64;

/// How long a listener remembers that a worker keeps refusing, after its pause is over.
pub(super) const COOLING_MEMORY: Duration = Duration::from_secs(1);

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
    pub place: Place,
    /// The length of the accept queue; `None` if the socket must not listen yet (the workers do that on a shared one), or is UDP.
    pub listen: Option<u32>,
}

/// Where a listener is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
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
    listen_key: ListenKey,
    pub(super) key: String,
    /// `None` for shared sockets.
    pub(super) schedule: Option<Box<dyn Schedule>>,
    members: Vec<WorkerId>,
    waiters: Vec<(WorkerId, u64)>,
    bound: Option<Option<SockName>>,
    data: Option<Box<RawValue>>,
    pub(super) queue: VecDeque<Waiting>,
    /// Workers that refused lately.
    pub(super) cooling: Vec<Cooling>,
}

#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) conn: ConnId,
    pub(super) tries: u8,
}

#[derive(Debug)]
pub(super) struct Cooling {
    pub(super) worker: WorkerId,
    pub(super) until: Time,
    pub(super) refusals: u32,
}

impl Listener {
    pub(super) fn is_unused(&self) -> bool {
        self.members.is_empty() && self.waiters.is_empty()
    }
}

impl Primary {
    /// `queryServer`: a worker wants to listen.
    pub(super) fn query(&mut self, worker: WorkerId, message: &ClusterMessage<'_>) -> Result<(), Violation> {
        let Some(ack) = message.seq else { return Err(Violation::Malformed("queryServer without seq".into())) };
        let limit = self.config.max_listeners_per_worker;
        let Some(state) = self.workers.get(&worker) else { return Ok(()) };
        if state.voluntary == Some(true) {
            // Node leaves a worker that is told to finish without an answer; it is on its way out.
            return Ok(());
        }
        if state.listeners.len() >= limit {
            return Err(Violation::TooManyListeners(limit));
        }
        let shared = self.config.policy == Policy::Shared || message.address_type.is_some_and(AddressType::is_udp);
        let mut listen_key = ListenKey {
            address: message.address.as_deref().map(str::to_owned),
            port: message.port,
            address_type: message.address_type.unwrap_or(AddressType::Fd),
            fd: message.fd,
            index: if message.port == Some(0) { message.index.unwrap_or(0) } else { 0 },
        };
        let Some(spec) = bind_spec(message, shared) else {
            self.reply_error(worker, &listen_key.text(), ack, EINVAL, message.data);
            return Ok(());
        };
        if self.uses(worker, &listen_key) {
            // A second server of one worker on the same address is a bind of its own, which the kernel judges.
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
        self.last_listener += 1;
        let id = ListenerId(self.last_listener);
        let data = message.data.filter(|data| data.get().len() <= MAX_DATA).map(ToOwned::to_owned);
        let listener = Listener {
            key: listen_key.text(),
            listen_key: listen_key.clone(),
            schedule: (!shared).then(|| Box::new(RoundRobin::default()) as Box<dyn Schedule>),
            members: Vec::new(),
            waiters: vec![(worker, ack)],
            bound: None,
            data,
            queue: VecDeque::new(),
            cooling: Vec::new(),
        };
        self.listeners.insert(id, listener);
        self.keys.insert(listen_key, id);
        if let Some(state) = self.workers.get_mut(&worker) {
            state.listeners.push(id);
        }
        self.actions.push_back(Action::Bind { listener: id, spec });
        Ok(())
    }

    fn uses(&self, worker: WorkerId, key: &ListenKey) -> bool {
        let used = |l: &Listener| l.members.contains(&worker) || l.waiters.iter().any(|(w, _)| *w == worker);
        self.keys.get(key).and_then(|id| self.listeners.get(id)).is_some_and(used)
    }

    fn join(&mut self, worker: WorkerId, id: ListenerId, ack: u64) {
        let Some(listener) = self.listeners.get_mut(&id) else { return };
        if let Some(state) = self.workers.get_mut(&worker) {
            state.listeners.push(id);
        }
        if listener.bound.is_some() { self.admit(worker, id, ack) } else { listener.waiters.push((worker, ack)) }
    }

    /// The outcome of [`Action::Bind`]: where the socket is bound (for TCP), or a positive errno.
    ///
    /// # Panics
    /// Never.
    pub fn bound(&mut self, now: Time, id: ListenerId, result: Result<Option<SockName>, i32>) {
        let Some(listener) = self.listeners.get_mut(&id) else { return };
        let waiters = std::mem::take(&mut listener.waiters);
        match result {
            Ok(name) => {
                listener.bound = Some(name);
                for (worker, ack) in waiters {
                    self.admit(worker, id, ack);
                }
                self.pump(now, id);
            }
            Err(errno) => {
                // Dropped, so that a later attempt binds anew.
                let (key, data) = (listener.key.clone(), listener.data.take());
                self.keys.remove(&listener.listen_key);
                self.listeners.remove(&id);
                for (worker, ack) in waiters {
                    if let Some(state) = self.workers.get_mut(&worker) {
                        state.listeners.retain(|l| *l != id);
                    }
                    self.reply_error(worker, &key, ack, errno, data.as_deref());
                }
            }
        }
    }

    /// Answers a worker and lets it take part.
    fn admit(&mut self, worker: WorkerId, id: ListenerId, ack: u64) {
        let seq = self.next_seq();
        let Some(listener) = self.listeners.get_mut(&id) else { return };
        listener.members.push(worker);
        let data = listener.data.as_deref();
        let mut line = Vec::with_capacity(256);
        if let Some(schedule) = &mut listener.schedule {
            schedule.add(worker);
            let name = listener.bound.as_ref().and_then(Option::as_ref);
            outgoing::reply(&mut line, &listener.key, ack, None, data, name, seq);
            self.actions.push_back(Action::Send { worker, line });
            let now = self.last_time;
            self.pump(now, id);
        } else {
            let kind = if listener.listen_key.address_type.is_udp() { "dgram.Native" } else { "net.Native" };
            outgoing::reply_with_handle(&mut line, kind, &listener.key, ack, data, seq);
            if let Some(state) = self.workers.get_mut(&worker) {
                state.handle_waits.push_back(HandleWait::Listener { ack, listener: id });
            }
            self.actions.push_back(Action::SendListener { worker, listener: id, line });
        }
    }

    fn reply_error(&mut self, worker: WorkerId, key: &str, ack: u64, errno: i32, data: Option<&RawValue>) {
        let seq = self.next_seq();
        self.send(worker, |line| outgoing::reply(line, key, ack, Some(-errno), data, None, seq));
    }

    /// A worker closed one of its servers. Unknown keys are ignored, as Node does.
    pub(super) fn server_closed(&mut self, worker: WorkerId, key: &str) {
        let Some(state) = self.workers.get(&worker) else { return };
        let found = state.listeners.iter().find(|id| self.listeners.get(id).is_some_and(|l| l.key == key)).copied();
        if let Some(listener) = found {
            self.leave_listener(worker, listener, false);
        }
    }

    /// Takes a worker off all its listeners. With `keep`, a listener that nobody uses any more stays open for a successor.
    pub(super) fn leave_listeners(&mut self, worker: WorkerId, keep: bool) {
        let listeners = self.workers.get(&worker).map(|state| state.listeners.clone()).unwrap_or_default();
        for listener in listeners {
            self.leave_listener(worker, listener, keep);
        }
    }

    pub(super) fn leave_listener(&mut self, worker: WorkerId, id: ListenerId, keep: bool) {
        if let Some(state) = self.workers.get_mut(&worker) {
            state.listeners.retain(|l| *l != id);
        }
        let Some(listener) = self.listeners.get_mut(&id) else { return };
        listener.members.retain(|w| *w != worker);
        listener.waiters.retain(|(w, _)| *w != worker);
        listener.cooling.retain(|c| c.worker != worker);
        if let Some(schedule) = &mut listener.schedule {
            schedule.remove(worker);
        }
        let unused = listener.is_unused();
        if unused && (!keep || self.listeners.values().filter(|l| l.is_unused()).count() > MAX_UNUSED) {
            self.close_listener(id);
        }
    }

    pub(super) fn close_listener(&mut self, id: ListenerId) {
        if let Some(listener) = self.listeners.remove(&id) {
            self.keys.remove(&listener.listen_key);
            for waiting in listener.queue {
                self.actions.push_back(Action::Release { conn: waiting.conn });
            }
            self.actions.push_back(Action::Unbind { listener: id });
        }
    }

    /// The key of a listener as text, for messages about it.
    #[must_use]
    pub fn listener_key(&self, id: ListenerId) -> Option<&str> {
        self.listeners.get(&id).map(|l| l.key.as_str())
    }
}

/// What to bind for a question; `None` if the question makes no sense.
fn bind_spec(message: &ClusterMessage<'_>, shared: bool) -> Option<BindSpec> {
    let address = message.address.as_deref().map(str::to_owned);
    let flags = message.flags.unwrap_or(0);
    let port = |port: Option<i64>| port.and_then(|p| u16::try_from(p).ok());
    let kind = message.address_type?;
    let place = match (kind, message.fd) {
        (AddressType::Udp4 | AddressType::Udp6, Some(fd)) if fd >= 0 => Place::Fd { fd: i32::try_from(fd).ok()?, udp: true },
        (AddressType::Udp4 | AddressType::Udp6, _) => Place::Udp {
            address,
            port: port(message.port.or(Some(0)))?,
            ipv6: kind == AddressType::Udp6,
            ipv6_only: flags & 1 != 0,
            reuse_address: flags & 4 != 0,
        },
        (_, Some(fd)) if fd >= 0 => Place::Fd { fd: i32::try_from(fd).ok()?, udp: false },
        (AddressType::Tcp4 | AddressType::Tcp6, _) => {
            Place::Tcp { address, port: port(message.port)?, ipv6_only: flags & 1 != 0 }
        }
        (AddressType::Unix, _) => Place::Unix {
            path: address.filter(|p| !p.is_empty())?,
            readable_all: message.readable_all,
            writable_all: message.writable_all,
        },
        (AddressType::Fd, _) => return None,
    };
    let backlog = match message.backlog.unwrap_or(0) {
        0 => 511,
        // As the kernel takes a negative length.
        n => u32::try_from(n).unwrap_or(u32::MAX),
    };
    Some(BindSpec { place, listen: (!shared).then_some(backlog) })
}
