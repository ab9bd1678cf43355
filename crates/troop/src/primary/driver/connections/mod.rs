//! Connections that the primary has a copy of, from when they are accepted until a worker has taken
//! them.
//!
//! Each is accepted and sent to the worker that the core chooses ([`handover`]), unless its client is
//! recognised by its first bytes ([`inspect`]) or the program is asked ([`callback`]) before.
//! [`inject`] hands over connections of the cluster's own.

mod callback;
mod handover;
mod inject;
mod inspect;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use slab::Slab;
use troop_core::ConnId;
use troop_sys::socket;

pub(super) use callback::PendingQuestions;
use inject::Injections;
pub(crate) use inject::{ConnectionEnds, Injected};
pub(super) use inspect::Inspected;

/// A connection that the primary has a copy of.
struct Conn {
    fd: OwnedFd,
    /// Bytes that the primary has taken off it.
    stripped: u32,
}

/// All connections that the primary has copies of.
#[derive(Default)]
pub(super) struct Connections {
    all: Slab<Conn>,
    /// Those of the cluster's own.
    injections: Injections,
}

impl Connections {
    pub(super) fn add(&mut self, fd: OwnedFd) -> ConnId {
        ConnId(u32::try_from(self.all.insert(Conn { fd, stripped: 0 })).unwrap_or(u32::MAX))
    }

    #[inline]
    pub(super) fn fd(&self, conn: ConnId) -> Option<BorrowedFd<'_>> {
        self.all.get(conn.0 as usize).map(|conn| conn.fd.as_fd())
    }

    /// The copy is needed no more, because a worker has taken the connection, or nobody will.
    pub(super) fn release(&mut self, conn: ConnId, taken: bool) -> Option<OwnedFd> {
        self.injections.settle(conn, taken);
        self.all.try_remove(conn.0 as usize).map(|conn| conn.fd)
    }

    /// Whether somebody has read from a connection.
    pub(super) fn is_touched(&self, conn: ConnId) -> bool {
        self.all
            .get(conn.0 as usize)
            .is_some_and(|conn| !socket::is_untouched(conn.fd.as_fd(), conn.stripped))
    }
}
