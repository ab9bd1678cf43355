//! Gives a certain worker a connection of the cluster's own, to see what it does with it.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use tokio::sync::oneshot;
use troop_core::event::AddressType;
use troop_core::policy::Pattern;
use troop_core::{ConnId, WorkerId};
use troop_sys::socket;

use super::Driver;
use super::connections::Conn;

/// The other end of a connection that a worker was given, and whether it has taken it.
#[derive(Debug)]
pub(crate) struct Handed {
    pub(crate) end: OwnedFd,
    pub(crate) taken: oneshot::Receiver<bool>,
}

impl Driver {
    /// As if it had come from a listener that fits, or from the first one.
    pub(super) fn hand(&mut self, worker: WorkerId, pattern: Option<&Pattern>) -> Result<Handed, String> {
        let fits = |address: &troop_core::event::Address| {
            !address.address_type.is_udp() && pattern.is_none_or(|pattern| pattern.matches(address))
        };
        let listens_on: Vec<_> = self.core.listens_on(worker).collect();
        let found = listens_on.into_iter().find_map(|id| {
            let asked = self.core.listener_address(id).filter(fits).or_else(|| self.core.bound_address(id).filter(fits));
            asked.map(|address| (id, address.address_type))
        });
        let Some((listener, kind)) = found else { return Err("it does not listen there".into()) };
        let pair = if kind == AddressType::Unix { unix_pair() } else { tcp_pair() };
        let (end, theirs) = pair.map_err(|e| format!("no connection for it can be made: {e}"))?;
        socket::set_nonblocking(&theirs, true).map_err(|e| e.to_string())?;
        let key = self.conns.insert(Conn { fd: theirs, stripped: 0 });
        let conn = ConnId(u32::try_from(key).unwrap_or(u32::MAX));
        let (sender, taken) = oneshot::channel();
        self.hands.insert(conn, sender);
        if !self.core.hand(self.now, worker, listener, conn) {
            self.hands.remove(&conn);
            self.conns.try_remove(key);
            return Err("it takes nothing at the moment: its channel is full, or it is leaving".into());
        }
        self.act();
        Ok(Handed { end, taken })
    }
}

fn unix_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    UnixStream::pair().map(|(one, other)| (one.into(), other.into()))
}

/// Two ends of a TCP connection. (There is no `socketpair` for it.)
fn tcp_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let any = |ip: std::net::IpAddr| TcpListener::bind(SocketAddr::new(ip, 0));
    let listener = any(Ipv4Addr::LOCALHOST.into()).or_else(|_| any(Ipv6Addr::LOCALHOST.into()))?;
    let ours = TcpStream::connect(listener.local_addr()?)?;
    listener.set_nonblocking(true)?;
    loop {
        let (theirs, peer) = listener.accept()?;
        // Anybody else could have connected in between.
        if peer == ours.local_addr()? {
            return Ok((ours.into(), theirs.into()));
        }
    }
}
