//! The listeners and their sockets.
//!
//! [`bind`] opens them for workers, [`accept`] says which the primary accepts on, [`groups`] does what the
//! kernel needs to choose among the sockets of steered ones, [`upkeep`] keeps them reachable, and
//! [`demand`] sees clients that wait while no worker is ready, and [`ignored`] tells of those that no
//! worker accepts.

mod abandoned;
mod accept;
mod bind;
mod demand;
mod groups;
mod ignored;
mod refusing;
mod save;
mod upkeep;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use slab::Slab;
use troop_core::{ListenerId, Time, WorkerId};
use troop_sys::poll::Interest;
use troop_sys::{accepted, socket};

use super::closing::CloseAside;
use super::poller::EventPoller;
use super::{Driver, Token};
use crate::inherited::InheritedSocket;
use crate::primary::listener::{Listener, Socket};
use crate::primary::output::Tail;
use crate::primary::saved::kept::Copies;
use abandoned::AllAbandoned;
use accept::AcceptQueue;
pub(super) use accept::{ACCEPT_BURST, Accepted, Turn};
use refusing::Refusing;
pub(super) use save::SavedListeners;

/// All listeners, and the sockets that the primary has of them.
#[derive(Default)]
pub(super) struct Listeners {
    open: BTreeMap<ListenerId, Listener>,
    sockets: Slab<Socket>,
    accepting: AcceptQueue,
    /// Sockets that could not be watched because memory ran out.
    unwatched: Vec<usize>,
    /// The queue lengths of the group that was sampled last.
    waiting: Vec<Option<u32>>,
    /// Sockets that workers may have.
    inherited: Vec<InheritedSocket>,
    /// The time of the next check for foreign sockets in our groups; at once before the first one.
    census_at: Time,
    /// Listeners whose groups others may have joined since the last look.
    uncounted: Vec<ListenerId>,
    /// These wait until then.
    count_at: Time,
    /// When listeners are looked after next, where that is needed.
    upkeep_at: Option<Time>,
    /// When it is found out next which listeners have connections that have ended already.
    ended_check_at: Time,
    /// Next check for waiting clients while no worker is ready.
    demand_at: Option<Time>,
    /// Sockets of listeners that were closed for good.
    abandoned: AllAbandoned,
    /// The worker that has ended last, and its last lines, if they are kept.
    pub(super) last_ended: Option<(WorkerId, Option<Arc<Tail>>)>,
    /// When activated sockets refuse clients at the end.
    refusing: Refusing,
}

impl Listeners {
    /// A listener's key as JSON.
    #[inline]
    pub(super) fn key(&self, id: ListenerId) -> Option<&str> {
        self.open.get(&id).map(|listener| listener.key.as_str())
    }

    /// A listener's socket for a worker, and its number.
    pub(super) fn socket(&self, id: ListenerId, shard: u16) -> Option<(usize, &Socket)> {
        let number = *self.open.get(&id)?.shards().get(usize::from(shard))?;
        self.sockets.get(number).map(|socket| (number, socket))
    }

    /// Whether a socket is the first one of a listener's group.
    #[inline]
    pub(super) fn is_first(&self, id: ListenerId, number: usize) -> bool {
        self.open
            .get(&id)
            .is_some_and(|listener| listener.grouped && listener.sockets.first() == Some(&number))
    }

    #[inline]
    pub(super) fn is_unix(&self, number: usize) -> bool {
        self.sockets.get(number).is_some_and(|socket| socket.is_unix)
    }

    /// The listener that a socket is a shard of, and which one.
    pub(super) fn shard_of(&self, number: usize) -> Option<(ListenerId, usize)> {
        let id = self.sockets.get(number)?.listener;
        let shard = self.open.get(&id)?.shards().iter().position(|own| *own == number)?;
        Some((id, shard))
    }

    /// Whether a stream socket could have been accepted on a listener, by its address and, where
    /// only the primary accepts, by its user.
    pub(super) fn is_connection_of(&self, id: ListenerId, fd: &OwnedFd) -> bool {
        let Some(listener) = self.open.get(&id) else { return false };
        let first = listener.sockets.first().and_then(|first| self.sockets.get(*first));
        let Some(Socket { fd: listening, options, .. }) = first else { return false };
        // Another network namespace has the same addresses and abstract names for other sockets.
        if socket::network(fd) != socket::network(listening) {
            return false;
        }
        let is_copied = listener.grouped || options.is_some();
        let own = rustix::process::geteuid().as_raw();
        if !is_copied && accepted::creator(fd) != Some(own) {
            return false;
        }
        match (socket::local_address(fd), socket::local_address(listening)) {
            (Some(_), Some(_)) => accepted::is_accepted_on(fd, listening),
            (None, None) => socket::have_same_name(fd, listening),
            _ => false,
        }
    }

    /// Those that clients do not reach.
    pub(super) fn lost(&self) -> impl Iterator<Item = ListenerId> {
        self.open.iter().filter(|(_, listener)| listener.is_lost).map(|(id, _)| *id)
    }

    /// Lets workers have one more socket of this process.
    pub(super) fn offer(&mut self, socket: InheritedSocket) {
        self.inherited.retain(|known| known.number() != socket.number());
        self.inherited.push(socket);
    }

    pub(super) fn next_deadline(&self) -> Option<Time> {
        let others = self.demand_at.into_iter().chain(self.abandoned.next_deadline());
        let others = others.chain(self.refusing.next_deadline());
        self.upkeep_at.into_iter().chain(others).min()
    }

    /// Closes a listener. With `for_good`, nobody serves its clients from then on.
    pub(super) fn unbind(
        &mut self,
        id: ListenerId,
        poller: &EventPoller,
        now: Time,
        for_good: bool,
        (closing, copies): (&mut CloseAside, &mut Option<Copies>),
    ) {
        let Some(mut listener) = self.open.remove(&id) else { return };
        // Before its socket is closed, and the number of the file may be another one's.
        drop(listener.file.take());
        for number in std::mem::take(&mut listener.sockets) {
            let Some(socket) = self.sockets.try_remove(number) else { continue };
            if socket.watched {
                // Copies of the socket may live on in other processes, and would go on being
                // reported.
                poller.remove(&socket.fd);
            }
            copies.iter_mut().for_each(|copies| copies.note_closed(socket.fd.as_fd()));
            // With connections that nobody has accepted, descriptors are closed that they carry.
            let is_awaited = |socket: &Socket| {
                socket::is_unix(&socket.fd) && socket::is_readable(socket.fd.as_fd())
            };
            let left = match for_good {
                true => self.abandoned.keep(now, &listener, socket),
                false => Some(socket),
            };
            if let Some(socket) = left.filter(is_awaited) {
                closing.closer();
                closing.close(now, socket.fd);
            }
        }
    }

    /// Closes a socket that gets no new connections.
    fn close_retired(&mut self, number: usize, poller: &EventPoller, copies: &mut Option<Copies>) {
        let Some(socket) = self.sockets.try_remove(number) else { return };
        copies.iter_mut().for_each(|copies| copies.note_closed(socket.fd.as_fd()));
        if socket.watched && !socket.unreported {
            poller.remove(&socket.fd);
        }
        if let Some(listener) = self.open.get_mut(&socket.listener) {
            listener.sockets.retain(|own| *own != number);
        }
    }

    /// Has the primary accept on a socket, or not. One that cannot be watched because memory ran
    /// out is tried [again](Driver::watch_again).
    fn watch(&mut self, number: usize, on: bool, poller: &EventPoller) -> io::Result<()> {
        let interest = if poller.is_nested() { Interest::ReadEdge } else { Interest::Read };
        let Some(socket) = self.sockets.get_mut(number) else { return Ok(()) };
        if std::mem::replace(&mut socket.watched, on) == on {
            return Ok(());
        }
        if std::mem::take(&mut socket.unreported) && !on {
            return Ok(());
        }
        (socket.ready, socket.masked, socket.full, socket.burst) = (false, false, false, 1);
        if !on {
            poller.remove(&socket.fd);
            return Ok(());
        }
        let watched = poller.add(&socket.fd, Token::Socket(number), interest);
        if watched.is_err() {
            self.unwatched.push(number);
        }
        watched
    }

    /// A socket that listens again may have been forgotten by the poller. Whether it is to be
    /// watched anew.
    fn was_forgotten(&mut self, number: usize) -> bool {
        self.sockets.get_mut(number).is_some_and(|socket| {
            std::mem::take(&mut socket.unreported) && std::mem::take(&mut socket.watched)
        })
    }
}

impl Driver {
    pub(super) fn watch(&mut self, id: ListenerId, shard: u16, on: bool) {
        if let Some((number, _)) = self.listeners.socket(id, shard) {
            self.watch_socket(number, on);
        }
    }

    fn watch_socket(&mut self, number: usize, on: bool) {
        if let Err(source) = self.listeners.watch(number, on, &self.poller) {
            self.pause_accepting(source);
        }
    }

    /// Tries once more to watch sockets that could not be watched, when the pause after that is
    /// over.
    pub(super) fn watch_again(&mut self) {
        if self.listeners.unwatched.is_empty() || self.scarcity.pauses_accepting() {
            return;
        }
        for number in std::mem::take(&mut self.listeners.unwatched) {
            let socket = self.listeners.sockets.get_mut(number);
            if socket.is_some_and(|socket| std::mem::take(&mut socket.watched)) {
                self.watch_socket(number, true);
            }
        }
    }
}
