//! Opens TCP and UDP sockets with the options of libuv, as Node's workers expect.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};

pub(crate) fn new_socket(family: AddressFamily, kind: SocketType) -> io::Result<OwnedFd> {
    Ok(socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?)
}

fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 }
}

/// Returns a bound TCP socket with `SO_REUSEADDR`, non-blocking, not listening. Without an address
/// it accepts both families, or IPv4 where there is no IPv6.
///
/// # Errors
/// Those of `bind(2)`.
pub fn tcp(address: Option<IpAddr>, port: u16, ipv6_only: bool) -> io::Result<OwnedFd> {
    let Some(ip) = address else {
        return match tcp(Some(Ipv6Addr::UNSPECIFIED.into()), port, ipv6_only) {
            Err(e)
                if matches!(e.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) =>
            {
                tcp(Some(Ipv4Addr::UNSPECIFIED.into()), port, false)
            }
            other => other,
        };
    };
    let socket = new_socket(family(ip), SocketType::STREAM)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if ip.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, ipv6_only)?;
    }
    bind(&socket, &SocketAddr::new(ip, port))?;
    Ok(socket)
}

/// Returns a bound UDP socket, non-blocking.
///
/// # Errors
/// Those of `bind(2)`.
pub fn udp(
    address: IpAddr,
    port: u16,
    ipv6_only: bool,
    reuse_address: bool,
) -> io::Result<OwnedFd> {
    let socket = new_socket(family(address), SocketType::DGRAM)?;
    if reuse_address {
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, ipv6_only)?;
    }
    bind(&socket, &SocketAddr::new(address, port))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_without_address_takes_both_families() {
        let socket = tcp(None, 0, false).unwrap();
        crate::socket::listen(&socket, 8).unwrap();
        let port = crate::socket::local_address(&socket).unwrap().port();
        std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        assert!(crate::socket::accept(std::os::fd::AsFd::as_fd(&socket)).is_ok());
        assert_eq!(tcp(None, port, false).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
