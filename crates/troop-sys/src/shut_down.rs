//! Sockets that a holder of a copy has shut down (`shutdown(2)`), or has connected elsewhere.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::net::{AddressFamily, SocketType, sockopt};

use crate::socket::{listen, listens};

/// Whether a listening stream socket takes no connections, or a UDP socket no datagrams, because a
/// holder of a copy has shut it down (`shutdown(2)`). Also true of a TCP socket that does not listen yet.
#[must_use]
pub fn is_shut_down(fd: impl AsFd) -> bool {
    use rustix::event::{PollFd, PollFlags, poll};
    let fd = fd.as_fd();
    let is_hung_up = || {
        let mut fds = [PollFd::new(&fd, PollFlags::RDHUP)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).is_ok_and(|n| n > 0)
            && fds[0].revents().contains(PollFlags::RDHUP)
    };
    match sockopt::socket_domain(fd) {
        Ok(AddressFamily::INET | AddressFamily::INET6) if is_datagram(fd) => is_hung_up(),
        Ok(AddressFamily::INET | AddressFamily::INET6) => !listens(fd),
        Ok(AddressFamily::UNIX) => is_hung_up(),
        _ => false,
    }
}

/// Whether a socket has an IP address, whatever it is connected to.
#[must_use]
pub fn is_ip(fd: impl AsFd) -> bool {
    matches!(sockopt::socket_domain(fd), Ok(AddressFamily::INET | AddressFamily::INET6))
}

fn is_datagram(fd: BorrowedFd<'_>) -> bool {
    matches!(sockopt::socket_type(fd), Ok(SocketType::DGRAM))
}

/// Makes a TCP socket that was [shut down](is_shut_down) listen again at its address. A port that
/// the kernel had chosen was released by the shutdown, and is bound again.
///
/// # Errors
/// `EADDRINUSE` if another socket has the address by now; always for a UDP socket.
pub fn listen_again(fd: impl AsFd, at: Option<SocketAddr>, backlog: u32) -> io::Result<()> {
    let fd = fd.as_fd();
    if is_datagram(fd) {
        return Err(io::Error::other(
            "a UDP socket that was shut down stays so; `troop restart` opens it anew",
        ));
    }
    // Whoever has shut it down can have done so twice, which all connections inherit that it accepts
    // from then on, or have connected it to another socket. A connection to nowhere undoes both.
    rustix::net::connect_unspec(fd)?;
    match at.map_or(Ok(()), |at| rustix::net::bind(fd, &at)) {
        // Its port was asked for, so it has it still. (`getsockname` tells the old one in any
        // case.)
        Ok(()) | Err(rustix::io::Errno::INVAL) => {}
        Err(e) => return Err(e.into()),
    }
    listen(fd, backlog)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;
    use crate::socket::{Kind, kind, shut_down};

    #[test]
    fn a_listener_that_was_shut_down_is_known() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let unix = std::os::unix::net::UnixListener::bind(directory.path().join("s")).unwrap();
        assert!(!is_shut_down(&tcp) && !is_shut_down(&unix));
        let tcp_at = tcp.local_addr().unwrap();
        let _waiting = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        assert!(!is_shut_down(&tcp));
        shut_down(&tcp);
        shut_down(&unix);
        assert!(is_shut_down(&tcp) && is_shut_down(&unix));
        assert_eq!(kind(&tcp).unwrap(), Kind::TcpListener, "it has never been a connection");
        listen_again(&tcp, Some(tcp_at), 8).unwrap();
        assert!(!is_shut_down(&tcp));
        assert_eq!(tcp.local_addr().unwrap(), tcp_at);
    }

    #[test]
    fn connections_live_whatever_was_done_to_their_listener_before() {
        let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
        for (address, is_fixed) in [("127.0.0.1:0", false), ("0.0.0.0:0", true)] {
            for is_connected in [false, true] {
                let mut tcp = TcpListener::bind(address).unwrap();
                let mut at = tcp.local_addr().unwrap();
                if is_fixed {
                    // Asked for, which the kernel remembers.
                    drop(tcp);
                    tcp = TcpListener::bind(at).unwrap();
                    at = tcp.local_addr().unwrap();
                }
                shut_down(&tcp);
                match is_connected {
                    false => shut_down(&tcp),
                    true => rustix::net::connect(&tcp, &elsewhere.local_addr().unwrap()).unwrap(),
                }
                assert!(is_shut_down(&tcp) && is_ip(&tcp));
                listen_again(&tcp, Some(at), 8).unwrap();
                assert_eq!(tcp.local_addr().unwrap(), at);
                let mut client = TcpStream::connect(("127.0.0.1", at.port())).unwrap();
                client.write_all(b"x").unwrap();
                let (mut served, _) = tcp.accept().unwrap();
                let mut byte = [0];
                served.read_exact(&mut byte).unwrap();
                served.write_all(&byte).unwrap();
                client.read_exact(&mut byte).unwrap();
            }
        }
    }

    #[test]
    fn a_udp_socket_that_was_shut_down_is_known_and_stays_so() {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(!is_shut_down(&udp) && is_ip(&udp));
        // Which fails, as it is not connected, and has its effect all the same.
        shut_down(&udp);
        assert!(is_shut_down(&udp));
        let error = listen_again(&udp, udp.local_addr().ok(), 8).unwrap_err();
        assert!(error.to_string().contains("troop restart"), "{error}");
    }
}
