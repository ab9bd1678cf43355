//! Looks at the first bytes of connections whose client is recognised by them, without taking any
//! but a proxy's header.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use troop_core::policy::{Connection, Finding, Identify, identify};
use troop_core::{ConnId, ListenerId, Time};
use troop_sys::poll::Interest;
use troop_sys::{fdpass, socket};

use crate::primary::driver::{Driver, Token};

/// Maximum number of first bytes that are inspected.
const MAX_BYTES: usize = 16 * 1024;
/// The most connections whose first bytes are waited for; with one more, the one that has waited
/// longest goes by its address.
const MAX_WAITING: usize = 1024;

pub(super) struct PeekedConnection {
    pub(super) listener: ListenerId,
    pub(super) peer: Option<SocketAddr>,
    pub(super) until: Time,
}

/// Connections whose first bytes are waited for.
#[derive(Default)]
pub(in crate::primary::driver) struct Inspected {
    peeked: HashMap<ConnId, PeekedConnection>,
    deadlines: BTreeSet<(Time, ConnId)>,
    /// The buffer for inspected bytes, once it is needed.
    buffer: Vec<u8>,
}

impl Inspected {
    pub(in crate::primary::driver) fn next_deadline(&self) -> Option<Time> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (&ConnId, &PeekedConnection)> {
        self.peeked.iter()
    }

    /// The connections whose first bytes are waited for.
    pub(in crate::primary::driver) fn ids(&self) -> impl Iterator<Item = ConnId> {
        self.peeked.keys().copied()
    }

    pub(in crate::primary::driver) fn count(&self) -> usize {
        self.peeked.len()
    }

    pub(super) fn wait(&mut self, conn: ConnId, peeked: PeekedConnection) {
        self.deadlines.insert((peeked.until, conn));
        self.peeked.insert(conn, peeked);
    }
}

impl Driver {
    /// A connection was accepted. Often its first bytes are there already.
    pub(in crate::primary::driver) fn inspect_new(
        &mut self,
        listener: ListenerId,
        conn: ConnId,
        peer: Option<SocketAddr>,
    ) {
        if self.inspect(listener, conn, peer, false) {
            return;
        }
        let Some(wait) = self.cluster.primary.sticky(listener).map(|sticky| sticky.wait) else {
            return;
        };
        let until = self.now + wait;
        let Some(fd) = self.connections.fd(conn) else { return };
        let watched = self.poller.add(fd, Token::Inspected(conn), Interest::ReadEdge).is_ok();
        self.inspected.wait(conn, PeekedConnection { listener, peer, until });
        if !watched {
            self.inspect_last(conn);
        }
        if self.inspected.peeked.len() > MAX_WAITING
            && let Some((_, oldest)) = self.inspected.deadlines.first().copied()
        {
            self.inspect_last(oldest);
        }
    }

    /// More bytes have arrived.
    pub(in crate::primary::driver) fn inspect_again(&mut self, conn: ConnId) {
        let Some(PeekedConnection { listener, peer, .. }) = self.inspected.peeked.get(&conn) else {
            return;
        };
        let (listener, peer) = (*listener, *peer);
        if self.inspect(listener, conn, peer, false) {
            self.forget(conn);
        }
    }

    /// Those that have waited long enough.
    pub(in crate::primary::driver) fn inspect_late(&mut self) {
        while let Some((_, conn)) =
            self.inspected.deadlines.first().copied().filter(|(until, _)| *until <= self.now)
        {
            self.inspect_last(conn);
        }
    }

    fn inspect_last(&mut self, conn: ConnId) {
        let Some(PeekedConnection { listener, peer, .. }) = self.forget(conn) else { return };
        self.inspect(listener, conn, peer, true);
    }

    fn forget(&mut self, conn: ConnId) -> Option<PeekedConnection> {
        let peeked = self.inspected.peeked.remove(&conn)?;
        self.inspected.deadlines.remove(&(peeked.until, conn));
        if let Some(fd) = self.connections.fd(conn) {
            // Before it is anybody else's: a copy elsewhere would go on being reported.
            self.poller.remove(fd);
        }
        Some(peeked)
    }

    /// True if the connection was passed on: its client is known, or is not waited for.
    fn inspect(
        &mut self,
        id: ListenerId,
        conn: ConnId,
        peer: Option<SocketAddr>,
        last: bool,
    ) -> bool {
        let Some(entry) = self.connections.all.get_mut(conn.0 as usize) else { return true };
        let buffer = &mut self.inspected.buffer;
        buffer.resize(MAX_BYTES, 0);
        let (bytes, last) = match socket::peek(entry.fd.as_fd(), buffer) {
            // The client has said all it will say.
            Ok(0) => (0, true),
            Ok(n) => (n, last || n == MAX_BYTES),
            Err(e)
                if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) =>
            {
                (0, last)
            }
            Err(_) => (0, true),
        };
        let about = |client| Connection::new(peer, client);
        let found = match self.cluster.primary.sticky(id) {
            Some(sticky) => {
                let peer = peer.map(|peer| peer.ip());
                identify(Identify { sticky, peer, bytes: &buffer[..bytes], last })
            }
            // The policy has been changed meanwhile, or the listener is closed.
            None => Finding::Found { client: None, strip: 0 },
        };
        let Finding::Found { client, strip } = found else { return false };
        if strip > 0 {
            // They have all arrived, so they are all there to be taken.
            let header = &mut buffer[..strip.min(MAX_BYTES)];
            if entry.is_unix
                && fdpass::peek_none(entry.fd.as_fd(), header).is_ok_and(|p| p.truncated)
            {
                // The kernel would drop them here, however long that takes.
                self.forget(conn);
                self.connections.release(self.now, conn, false, &mut self.closing);
                return true;
            }
            let taken = socket::skip(entry.fd.as_fd(), header).unwrap_or(0);
            entry.before.read += u64::try_from(taken).unwrap_or(0);
        }
        if self.inspected.peeked.contains_key(&conn) {
            self.forget(conn);
        }
        self.cluster.primary.accepted(self.now, id, conn, about(client));
        true
    }
}
