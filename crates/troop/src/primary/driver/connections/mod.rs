//! Connections that the primary has a copy of, from when they are accepted until a worker has taken
//! them.
//!
//! Each is accepted and sent to the worker that the core chooses ([`handover`]), unless its client is
//! recognised by its first bytes ([`inspect`]) or the program is asked ([`callback`]) before.
//! [`inject`] hands over connections of the cluster's own, and [`moves`] those that workers which are
//! to leave give back.

mod callback;
mod handover;
mod held;
mod inject;
mod inspect;
mod moves;
mod save;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use slab::Slab;
use troop_core::{ConnId, Time, WorkerId};
use troop_sys::socket::{self, Traffic};

pub(super) use callback::PendingQuestions;
use held::Held;
use inject::Injections;
pub(crate) use inject::{ConnectionEnds, Injected};
pub(super) use inspect::Inspected;
pub(crate) use moves::Moves;
use moves::{MovedConnection, Owners};
pub(super) use save::SavedConnections;

use crate::primary::driver::closing::CloseAside;

/// A connection that the primary has a copy of.
struct Conn {
    fd: OwnedFd,
    /// Whether its client may send descriptors.
    is_unix: bool,
    /// What was read from it and written to it before: by the primary, or by the worker that had it.
    before: Traffic,
    /// Whether a worker was sent a copy.
    was_sent: bool,
    /// Whether a worker has answered a request on it.
    kept: bool,
    /// Its number, if it was moved.
    cookie: Option<u64>,
    /// The key under which the keeper holds it, or is to.
    held: Option<u64>,
}

/// All connections that the primary has copies of.
#[derive(Default)]
pub(super) struct Connections {
    all: Slab<Conn>,
    /// Those of the cluster's own.
    injections: Injections,
    /// Those that a worker has just given back.
    moved: Vec<MovedConnection>,
    owners: Owners,
    held: Held,
}

impl Connections {
    pub(super) fn add(&mut self, fd: OwnedFd, is_unix: bool) -> ConnId {
        self.insert(Conn {
            fd,
            is_unix,
            before: Traffic::default(),
            was_sent: false,
            kept: false,
            cookie: None,
            held: None,
        })
    }

    fn insert(&mut self, conn: Conn) -> ConnId {
        ConnId(u32::try_from(self.all.insert(conn)).unwrap_or(u32::MAX))
    }

    /// Whether the primary has none.
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Called before a worker is sent a copy. A worker that had one before may have made the
    /// connection blocking, which all copies share: this undoes it.
    #[inline]
    pub(super) fn prepare(&mut self, conn: ConnId, worker: WorkerId) {
        let Some(conn) = self.all.get_mut(conn.0 as usize) else { return };
        if let Some(key) = conn.held.take() {
            self.held.let_go(key);
        }
        if std::mem::replace(&mut conn.was_sent, true) {
            if let Some(cookie) = conn.cookie {
                self.owners.set(cookie, Some(worker));
            }
            // This does not fail on a socket.
            let _ = socket::set_nonblocking(&conn.fd, true);
        }
    }

    #[inline]
    pub(super) fn fd(&self, conn: ConnId) -> Option<BorrowedFd<'_>> {
        self.all.get(conn.0 as usize).map(|conn| conn.fd.as_fd())
    }

    /// Whether a worker that it was moved from has answered a request on it.
    #[inline]
    pub(super) fn is_kept(&self, conn: ConnId) -> bool {
        self.all.get(conn.0 as usize).is_some_and(|conn| conn.kept)
    }

    /// Drops the primary's copy: a worker has taken the connection, or no worker will.
    pub(super) fn release(
        &mut self,
        now: Time,
        conn: ConnId,
        taken: bool,
        closing: &mut CloseAside,
    ) {
        self.injections.settle(conn, taken);
        let Some(Conn { fd, is_unix, held, .. }) = self.all.try_remove(conn.0 as usize) else {
            return;
        };
        held.into_iter().for_each(|key| match is_unix {
            true => self.held.let_go_before(key),
            false => self.held.let_go(key),
        });
        // Descriptors that nobody has received are closed with it.
        if is_unix && socket::unread(&fd) > 0 {
            closing.closer();
        }
        closing.close(now, fd);
    }

    /// Whether somebody has read from a connection, or written to it, since the primary has it.
    pub(super) fn is_touched(&self, conn: ConnId) -> bool {
        self.all
            .get(conn.0 as usize)
            .is_some_and(|conn| !socket::is_untouched(conn.fd.as_fd(), conn.before))
    }
}
