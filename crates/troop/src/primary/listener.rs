//! Opens what the core decides to open.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;

use troop_core::primary::{BindSpec, Place};
use troop_core::wire::outgoing::{self, SockName};
use troop_sys::listen::{self, UnixPath};
use troop_sys::socket::{self, Kind};

/// A listening (or shared) socket.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) fd: OwnedFd,
    /// Removed when the listener is closed.
    _file: Option<UnixPath>,
    /// Its key as JSON, for messages.
    pub(crate) key: String,
    /// The kernel may have connections for us.
    pub(crate) ready: bool,
    /// The poller does not report it: nobody is ready for its connections.
    pub(crate) masked: bool,
    /// How many connections to accept before asking the poller whether there are more.
    pub(crate) burst: usize,
    /// The last burst was accepted in full.
    pub(crate) full: bool,
    /// The primary accepts on it.
    pub(crate) accepts: bool,
}

fn invalid() -> io::Error {
    io::Error::from(rustix::io::Errno::INVAL)
}

fn ip(address: Option<&str>) -> io::Result<Option<IpAddr>> {
    // Node sends scoped addresses (fe80::1%eth0) as text that std does not parse; those are refused.
    address.map(|a| a.parse().map_err(|_| invalid())).transpose()
}

pub(crate) fn open(spec: &BindSpec, key: &str) -> io::Result<(Socket, Option<SockName>)> {
    let mut file = None;
    let fd = match &spec.place {
        Place::Tcp { address, port, ipv6_only } => listen::tcp(ip(address.as_deref())?, *port, *ipv6_only)?,
        Place::Unix { path, readable_all, writable_all } => {
            let (fd, path) = listen::unix(path, *readable_all, *writable_all)?;
            file = path;
            fd
        }
        Place::Udp { address, port, ipv6, ipv6_only, reuse_address } => {
            let any = || if *ipv6 { IpAddr::from(Ipv6Addr::UNSPECIFIED) } else { Ipv4Addr::UNSPECIFIED.into() };
            listen::udp(ip(address.as_deref())?.unwrap_or_else(any), *port, *ipv6_only, *reuse_address)?
        }
        Place::Fd { fd, udp } => {
            let fd = socket::duplicate_number(*fd).map_err(|_| invalid())?;
            // Never a connection: that could be another worker's channel.
            match (socket::kind(&fd).map_err(|_| invalid())?, udp) {
                (Kind::TcpListener | Kind::UnixListener, false) | (Kind::Udp { .. }, true) => {}
                _ => return Err(invalid()),
            }
            socket::set_nonblocking(&fd, true)?;
            fd
        }
    };
    if let Some(backlog) = spec.listen {
        socket::listen(&fd, backlog)?;
    }
    let name = socket::local_address(&fd).map(|address| SockName {
        address: address.ip().to_string(),
        family: if address.is_ipv4() { "IPv4" } else { "IPv6" },
        port: address.port(),
    });
    let accepts = spec.listen.is_some();
    Ok((Socket { fd, _file: file, key: outgoing::quote(key), ready: false, masked: false, burst: 1, full: false, accepts }, name))
}
