//! Whether a socket that a process passes off as a connection may have been accepted on a listener.

use std::os::fd::AsFd;

use rustix::net::sockopt;

use crate::socket;

/// Whether an IP socket may be a connection that was accepted on a listening one: of the same family,
/// with the listener's port, and with its address unless that is every one of the family. False for
/// the other end of a connection, and for one to elsewhere.
#[must_use]
pub fn is_accepted_on(fd: impl AsFd, listener: impl AsFd) -> bool {
    let (fd, listener) = (fd.as_fd(), listener.as_fd());
    let (Some(own), Some(at)) = (socket::local_address(fd), socket::local_address(listener)) else {
        return false;
    };
    // A connection has the family of its listener, whatever its addresses are.
    if own.is_ipv4() != at.is_ipv4()
        || own.port() != at.port()
        || socket::peer_address(fd).is_none()
    {
        return false;
    }
    let is_mapped = own.ip().to_canonical().is_ipv4() && own.is_ipv6();
    if is_mapped && sockopt::ipv6_v6only(listener).unwrap_or(true) {
        return false;
    }
    // A listener that was shut down can connect.
    if socket::cookie(fd).is_some_and(|cookie| socket::cookie(listener) == Some(cookie)) {
        return false;
    }
    at.ip().is_unspecified() || own.ip().to_canonical() == at.ip().to_canonical()
}

/// Returns the user with whose rights to files a socket was made or accepted.
#[must_use]
pub fn creator(socket: impl AsFd) -> Option<u32> {
    Some(rustix::fs::fstat(socket).ok()?.st_uid)
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener, TcpStream};

    use rustix::net::{AddressFamily, SocketType};

    use super::*;

    #[test]
    fn a_client_with_the_port_of_a_listener_is_no_connection_of_it() {
        use rustix::net::{bind, connect, socket_with};
        let flags = rustix::net::SocketFlags::CLOEXEC;
        let listening = |address: &str, v6_only| {
            let address: SocketAddr = address.parse().unwrap();
            let family = AddressFamily::from_raw(if address.is_ipv4() { 2 } else { 10 });
            let fd = socket_with(family, SocketType::STREAM, flags, None).unwrap();
            if address.is_ipv6() {
                sockopt::set_ipv6_v6only(&fd, v6_only).unwrap();
            }
            bind(&fd, &address).unwrap();
            rustix::net::listen(&fd, 8).unwrap();
            TcpListener::from(fd)
        };
        let accepted = |listener: &TcpListener, ip: &str| {
            let port = listener.local_addr().unwrap().port();
            let client = TcpStream::connect((ip, port)).unwrap();
            let (connection, _) = listener.accept().unwrap();
            assert!(!is_accepted_on(&client, listener), "{ip}");
            (connection, client)
        };
        // What a worker makes of its own: bound to that port of another family, and connected to
        // a service.
        let own = |listener: &TcpListener, ip: &str| {
            let service = listening(&format!("{ip}:0"), true);
            let fd = socket_with(AddressFamily::INET6, SocketType::STREAM, flags, None).unwrap();
            let port = listener.local_addr().unwrap().port();
            bind(&fd, &format!("{ip}:{port}").parse::<SocketAddr>().unwrap()).unwrap();
            connect(&fd, &service.local_addr().unwrap()).unwrap();
            (fd, service)
        };
        let v4 = listening("0.0.0.0:0", true);
        assert!(is_accepted_on(accepted(&v4, "127.0.0.1").0, &v4));
        if TcpListener::bind("[::1]:0").is_err() {
            return eprintln!("skipped: IPv6 is missing here");
        }
        let (client, _service) = own(&v4, "[::1]");
        assert!(!is_accepted_on(client, &v4));
        let dual = listening("[::]:0", false);
        for ip in ["127.0.0.1", "::1"] {
            assert!(is_accepted_on(accepted(&dual, ip).0, &dual), "{ip}");
        }
        let v6 = listening("[::]:0", true);
        assert!(is_accepted_on(accepted(&v6, "::1").0, &v6));
        assert!(!is_accepted_on(accepted(&dual, "127.0.0.1").0, &v6));
    }

    #[test]
    fn a_socket_has_the_user_that_made_it() {
        let own = rustix::process::geteuid().as_raw();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(creator(listener.accept().unwrap().0), Some(own));
        if own != 0 {
            return;
        }
        let stranger = crate::identity::Identity { uid: 64_017, gid: 64_018, groups: Vec::new() };
        let made = stranger.with_rights(|| TcpListener::bind("127.0.0.1:0")).unwrap();
        assert_eq!(creator(made), Some(64_017));
    }
}
