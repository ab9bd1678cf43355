//! Connections that workers give back between two requests, because they are to leave or have too
//! many. They go to other workers, as new ones do.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use troop_core::event::Violation;
use troop_core::policy::Connection;
use troop_core::primary::Needs;
use troop_core::{ListenerId, WorkerId};
use troop_sys::socket::{self, Kind};

use super::{Conn, Connections};
use crate::closer::Foreign;
use crate::primary::driver::Driver;
use crate::primary::driver::listeners::Listeners;

/// Maximum number of moved connections whose worker is known; the oldest are forgotten.
const MAX_KNOWN: usize = 65_536;

/// A connection that a worker has given back, and that is the primary's now.
pub(super) struct MovedConnection {
    listener: ListenerId,
    cookie: Option<u64>,
    /// Whether a request was answered on it.
    kept: bool,
    fd: OwnedFd,
}

/// The worker that each moved connection is with, by its cookie. A worker that has given one back can
/// keep a copy of it, and must not give it back again: each copy would be one more connection of
/// other workers.
#[derive(Default)]
pub(super) struct Owners {
    /// `None` while the primary has it.
    by_cookie: HashMap<u64, Option<WorkerId>>,
    /// The cookies, the oldest first.
    order: VecDeque<u64>,
}

impl Owners {
    /// Whether a worker may have a connection.
    fn may_have(&self, worker: WorkerId, cookie: u64) -> bool {
        self.by_cookie.get(&cookie).is_none_or(|owner| *owner == Some(worker))
    }

    /// Returns all, the oldest first.
    pub(super) fn all(&self) -> impl Iterator<Item = (u64, Option<WorkerId>)> {
        self.order.iter().filter_map(|cookie| Some((*cookie, *self.by_cookie.get(cookie)?)))
    }

    pub(super) fn set(&mut self, cookie: u64, owner: Option<WorkerId>) {
        if self.by_cookie.insert(cookie, owner).is_none() {
            self.order.push_back(cookie);
        }
        if self.order.len() > MAX_KNOWN
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_cookie.remove(&oldest);
        }
    }
}

/// Where connections that a worker gives back are checked and kept.
pub(crate) struct Moves<'a> {
    listeners: &'a Listeners,
    owners: &'a mut Owners,
    /// Whether there are descriptors for more.
    has_room: bool,
    /// Whether the program can be asked about more of them.
    may_ask: bool,
    moved: &'a mut Vec<MovedConnection>,
}

impl Moves<'_> {
    /// Takes a connection that a worker says is one of this listener's. False if the worker has to
    /// keep it: the next one is given nothing that it could not have been given as a new connection.
    ///
    /// # Errors
    /// If it is no connection at all, or one that the worker has given back before.
    pub(crate) fn take(
        &mut self,
        worker: WorkerId,
        listener: ListenerId,
        needs: Needs,
        kept: bool,
        fd: Foreign,
    ) -> Result<bool, Violation> {
        let kind = fd.get().map(socket::kind);
        let Some(Ok(Kind::TcpStream | Kind::UnixStream)) = kind else {
            return Err(Violation::NotAConnection);
        };
        if !fd.get().is_some_and(|fd| self.listeners.is_connection_of(listener, fd)) {
            return Ok(false);
        }
        let cookie = fd.get().and_then(socket::cookie);
        if cookie.is_some_and(|cookie| !self.owners.may_have(worker, cookie)) {
            return Err(Violation::Malformed("a connection that it gave back before".into()));
        }
        if !self.has_room || (needs.answer && !self.may_ask) {
            return Ok(false);
        }
        if let Some(cookie) = cookie {
            self.owners.set(cookie, None);
        }
        self.moved.extend(fd.take().map(|fd| MovedConnection { listener, cookie, kept, fd }));
        Ok(true)
    }
}

impl Connections {
    /// For what one worker sends.
    pub(in crate::primary::driver) fn moves<'a>(
        &'a mut self,
        listeners: &'a Listeners,
        has_room: bool,
        may_ask: bool,
    ) -> Moves<'a> {
        Moves { listeners, owners: &mut self.owners, has_room, may_ask, moved: &mut self.moved }
    }
}

impl Driver {
    /// Takes in the connections that a worker has just given back.
    pub(in crate::primary::driver) fn take_moved(&mut self, worker: WorkerId) {
        while let Some(moved) = self.connections.moved.pop() {
            let MovedConnection { listener, cookie, kept, fd } = moved;
            self.check_descriptor_number(fd.as_raw_fd());
            let is_ip = socket::local_address(&fd).is_some();
            let peer = if is_ip { socket::peer_address(&fd) } else { None };
            let before = socket::traffic(fd.as_fd());
            let conn = self.connections.insert(Conn {
                held: None,
                fd,
                is_unix: !is_ip,
                before,
                was_sent: true,
                kept,
                cookie,
            });
            let about = Connection::new(peer, None);
            if self.cluster.primary.moved(worker) {
                self.cluster.primary.rebalanced(self.now, listener, conn, about);
            } else if self.cluster.primary.needs(listener).answer {
                self.ask(listener, conn, peer);
            } else {
                self.cluster.primary.accepted(self.now, listener, conn, about);
            }
        }
    }
}
