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
    pub(in crate::primary::driver) fn save<'a>(
        &'a self,
        inspected: &Inspected,
        to: &mut Writer<'a>,
    ) -> SavedConnections {
        let all = self.all.iter().map(|(number, conn)| SavedConnection {
            number,
            fd: to.descriptor(&conn.fd),
            is_unix: conn.is_unix,
            before: conn.before,
            was_sent: conn.was_sent,
            kept: conn.kept,
            cookie: conn.cookie,
        });
        let peeked = inspected.all().map(|(conn, peeked)| {
            let PeekedConnection { listener, peer, until } = *peeked;
            SavedPeeked { conn: *conn, listener, peer, until }
        });
        SavedConnections {
            all: all.collect(),
            owners: self.owners.all().collect(),
            peeked: peeked.collect(),
        }
    }

    /// Goes on with these connections.
    pub(in crate::primary::driver) fn restore(
        &mut self,
        saved: SavedConnections,
        inspected: &mut Inspected,
        from: &mut Reader,
        poller: &EventPoller,
    ) -> io::Result<()> {
        let conn = |saved: SavedConnection| -> io::Result<(usize, Conn)> {
            let SavedConnection { number, fd, is_unix, before, was_sent, kept, cookie } = saved;
            let fd = from.descriptor(fd)?;
            Ok((number, Conn { fd, is_unix, before, was_sent, kept, cookie }))
        };
        self.all = saved.all.into_iter().map(conn).collect::<io::Result<_>>()?;
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
