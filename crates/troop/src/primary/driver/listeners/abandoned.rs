//! Sockets of listeners that were closed for good, of which processes may have copies.
//!
//! Workers that had a listener go on accepting until they have drained. Whoever else has a copy, such
//! as a process that a worker has started, does not: its clients would wait for ever. So the primary
//! keeps its own copy, and shuts the socket down when the workers have ended, or when connections
//! wait in it that nobody accepts, although all workers have closed their listeners.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use troop_core::{ListenerId, Time};
use troop_sys::socket;

use super::Listeners;
use crate::primary::driver::Driver;
use crate::primary::listener::{Listener, Socket};

/// Interval between checks for connections that wait.
const INTERVAL: Duration = Duration::from_millis(200);
/// Number of checks in a row that find some.
const CHECKS: u32 = 3;

/// A socket of a closed listener.
pub(super) struct Abandoned {
    pub(super) fd: OwnedFd,
    pub(super) listener: ListenerId,
    /// Number of checks in a row that have found waiting connections.
    awaited: u32,
}

impl Abandoned {
    pub(super) fn new(fd: OwnedFd, listener: ListenerId) -> Abandoned {
        Abandoned { fd, listener, awaited: 0 }
    }
}

/// All of them.
#[derive(Default)]
pub(super) struct AllAbandoned {
    sockets: Vec<Abandoned>,
    check_at: Option<Time>,
}

impl AllAbandoned {
    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.check_at
    }

    pub(super) fn sockets(&self) -> impl Iterator<Item = &Abandoned> {
        self.sockets.iter()
    }

    pub(super) fn add(&mut self, now: Time, socket: Abandoned) {
        self.sockets.push(socket);
        self.check_at.get_or_insert(now + INTERVAL);
    }

    /// Keeps a socket of a listener that is closed for good, if workers may have copies of it; else
    /// returns it.
    pub(super) fn keep(
        &mut self,
        now: Time,
        listener: &Listener,
        socket: Socket,
    ) -> Option<Socket> {
        let is_copied = listener.grouped || socket.options.is_some();
        let accepts = matches!(
            socket::kind(&socket.fd),
            Ok(socket::Kind::TcpListener | socket::Kind::UnixListener)
        );
        // That of a service manager is not this process's to shut down.
        if is_copied && accepts && !listener.given {
            self.add(now, Abandoned::new(socket.fd, socket.listener));
            return None;
        }
        Some(socket)
    }

    fn check(&mut self, now: Time, is_served: impl Fn(ListenerId) -> bool) {
        self.sockets.retain_mut(|socket| {
            let is_awaited = !is_served(socket.listener) && socket::is_readable(socket.fd.as_fd());
            socket.awaited = if is_awaited { socket.awaited + 1 } else { 0 };
            let is_kept = socket.awaited < CHECKS;
            if !is_kept {
                socket::shut_listener_down(socket.fd.as_fd());
            }
            is_kept
        });
        self.check_at = (!self.sockets.is_empty()).then(|| now + INTERVAL);
    }
}

impl Driver {
    pub(in crate::primary::driver) fn tick_abandoned(&mut self) {
        if self.listeners.abandoned.check_at.is_some_and(|due| due <= self.now) {
            // One that computes for long reads of its end later, and serves until then.
            let primary = &self.cluster.primary;
            self.listeners.abandoned.check(self.now, |listener| primary.may_still_accept(listener));
        }
    }
}

impl Listeners {
    /// Shuts down what is left, because no worker is.
    pub(in crate::primary::driver) fn shut_abandoned(&mut self) {
        self.abandoned.check_at = None;
        for socket in self.abandoned.sockets.drain(..) {
            socket::shut_listener_down(socket.fd.as_fd());
        }
    }
}
