//! Connections that workers give back between two requests, because they are to leave or have too
//! many. They go to other workers, as new ones do.

use std::os::fd::{AsFd, OwnedFd};

use troop_core::event::Violation;
use troop_core::policy::Connection;
use troop_core::{ListenerId, WorkerId};
use troop_sys::socket::{self, Kind};

use super::{Conn, Connections};
use crate::closer::Foreign;
use crate::primary::driver::Driver;
use crate::primary::driver::listeners::Listeners;

/// A connection that a worker has given back, and that is the primary's now.
pub(super) struct MovedConnection {
    listener: ListenerId,
    /// Whether a request was answered on it.
    kept: bool,
    fd: OwnedFd,
}

/// Where connections that a worker gives back are checked and kept.
pub(crate) struct Moves<'a> {
    listeners: &'a Listeners,
    moved: &'a mut Vec<MovedConnection>,
}

impl Moves<'_> {
    /// Takes a connection that a worker says is one of this listener's. False if the worker has to
    /// keep it: the next one is given nothing that it could not have been given as a new connection.
    ///
    /// # Errors
    /// If it is no connection at all.
    pub(crate) fn take(
        &mut self,
        listener: ListenerId,
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
        self.moved.extend(fd.take().map(|fd| MovedConnection { listener, kept, fd }));
        Ok(true)
    }
}

impl Connections {
    /// For what one worker sends.
    pub(in crate::primary::driver) fn moves<'a>(
        &'a mut self,
        listeners: &'a Listeners,
    ) -> Moves<'a> {
        Moves { listeners, moved: &mut self.moved }
    }
}

impl Driver {
    /// Takes in the connections that a worker has just given back.
    pub(in crate::primary::driver) fn take_moved(&mut self, worker: WorkerId) {
        while let Some(MovedConnection { listener, kept, fd }) = self.connections.moved.pop() {
            let is_ip = socket::local_address(&fd).is_some();
            let peer = if is_ip { socket::peer_address(&fd) } else { None };
            let before = socket::traffic(fd.as_fd());
            let conn = self.connections.insert(Conn { fd, before, was_sent: true, kept });
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
