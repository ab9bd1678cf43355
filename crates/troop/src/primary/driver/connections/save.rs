//! Writes down the connections that the primary has copies of, and goes on with those that another
//! primary has written down.

use std::io;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use troop_core::{ConnId, ListenerId, Time, WorkerId};
use troop_sys::poll::Interest;
use troop_sys::socket::Traffic;

use super::inspect::PeekedConnection;
use super::{Conn, Connections, Inspected};
use crate::primary::driver::Token;
use crate::primary::driver::poller::EventPoller;
use crate::primary::saved::{Key, Reader, Writer};

/// All connections.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(in crate::primary::driver) struct SavedConnections {
    all: Vec<SavedConnection>,
    /// The workers that moved connections are with, the oldest first.
    owners: Vec<(u64, Option<WorkerId>)>,
    peeked: Vec<SavedPeeked>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedConnection {
    number: usize,
    fd: Key,
    is_unix: bool,
    before: Traffic,
    was_sent: bool,
    kept: bool,
    cookie: Option<u64>,
    /// The key under which the keeper holds it.
    held: Option<u64>,
}

/// A connection whose first bytes are waited for.
#[derive(Debug, Serialize, Deserialize)]
struct SavedPeeked {
    conn: ConnId,
    listener: ListenerId,
    peer: Option<SocketAddr>,
    until: Time,
}

impl Connections {
    /// Writes down all connections, or those that the keeper holds.
    pub(in crate::primary::driver) fn save<'a>(
        &'a self,
        inspected: &Inspected,
        are_all: bool,
        to: &mut Writer<'a>,
    ) -> SavedConnections {
        let all = self.all.iter().filter(|(_, conn)| are_all || conn.held.is_some());
        let all = all.map(|(number, conn)| SavedConnection {
            number,
            fd: match conn.held.filter(|key| !are_all || self.held.has(*key)) {
                Some(key) => to.kept(&conn.fd, key),
                None => to.descriptor(&conn.fd),
            },
            held: conn.held.filter(|key| !are_all || self.held.has(*key)),
            is_unix: conn.is_unix,
            before: conn.before,
            was_sent: conn.was_sent,
            kept: conn.kept,
            cookie: conn.cookie,
        });
        let peeked = inspected.all().filter(|(conn, _)| are_all || self.is_held(**conn));
        let peeked = peeked.map(|(conn, peeked)| {
            let PeekedConnection { listener, peer, until } = *peeked;
            SavedPeeked { conn: *conn, listener, peer, until }
        });
        SavedConnections {
            all: all.collect(),
            owners: if are_all { self.owners.all().collect() } else { Vec::new() },
            peeked: peeked.collect(),
        }
    }

    /// Goes on with these connections. If these are not all, those are gone that were sent to workers
    /// since.
    pub(in crate::primary::driver) fn restore(
        &mut self,
        saved: SavedConnections,
        inspected: &mut Inspected,
        are_all: bool,
        (from, poller): (&mut Reader, &EventPoller),
    ) -> io::Result<()> {
        let mut all = Vec::new();
        for saved in saved.all {
            let SavedConnection { number, fd, is_unix, before, was_sent, kept, cookie, held } =
                saved;
            let fd = match from.descriptor(fd) {
                Ok(fd) => fd,
                Err(e) if are_all => return Err(e),
                Err(_) => continue,
            };
            held.into_iter().for_each(|key| self.held.resume(key));
            all.push((number, Conn { fd, is_unix, before, was_sent, kept, cookie, held }));
        }
        self.all = all.into_iter().collect();
        for (cookie, owner) in saved.owners {
            self.owners.set(cookie, owner);
        }
        for SavedPeeked { conn, listener, peer, until } in saved.peeked {
            if let Some(fd) = self.fd(conn) {
                poller.add(fd, Token::Inspected(conn), Interest::ReadEdge)?;
                inspected.wait(conn, PeekedConnection { listener, peer, until });
            }
        }
        Ok(())
    }
}
