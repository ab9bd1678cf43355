//! Groups of sockets on one address (`SO_REUSEPORT`, socket(7)), and the program that chooses among
//! them (`SO_ATTACH_REUSEPORT_CBPF`).
//!
//! The kernel numbers the sockets of a group in the order in which they began to listen (TCP) or
//! were bound (UDP). When a socket is closed, the last one takes its number. So a group that only
//! ever loses its last socket keeps its numbers.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::{SocketFlags, SocketType, bind, socket_with, sockopt};
use serde::{Deserialize, Serialize};

/// One instruction of a classic BPF program (`struct sock_filter`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instruction {
    /// The operation code.
    pub code: u16,
    /// Instructions to skip if a comparison holds.
    pub jump_true: u8,
    /// Instructions to skip if a comparison fails.
    pub jump_false: u8,
    /// The operand.
    pub operand: u32,
}

/// Makes a bound socket that does not listen yet the first of a group. It was bound without
/// `SO_REUSEPORT`, so no other socket had the address. Until others join, it works as any socket.
///
/// # Errors
/// `EOPNOTSUPP` for sockets that cannot form a group (Unix sockets).
pub fn found(socket: impl AsFd) -> io::Result<()> {
    Ok(sockopt::set_socket_reuseport(socket, true)?)
}

/// Opens another socket on the address of `first`: bound, non-blocking, not listening. A TCP socket
/// joins the group when it listens, a UDP socket has joined it already.
///
/// # Errors
/// Those of `bind(2)`; `EADDRINUSE` if another user opened `first`.
pub fn sibling(first: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let (family, kind) = (sockopt::socket_domain(first)?, sockopt::socket_type(first)?);
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    if kind == SocketType::STREAM {
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    sockopt::set_socket_reuseport(&socket, true)?;
    if family == rustix::net::AddressFamily::INET6 {
        sockopt::set_ipv6_v6only(&socket, sockopt::ipv6_v6only(first)?)?;
    }
    bind(&socket, &rustix::net::getsockname(first)?)?;
    Ok(socket)
}

/// Attaches a program to the group of `socket`, in place of the current one. The program returns
/// the number of the socket for each new connection or datagram; for a number without a socket the
/// kernel chooses by a hash of the addresses.
///
/// # Errors
/// `EINVAL` if the program is invalid, or a UDP socket is alone; `ENOMEM` if the program is longer
/// than `net.core.optmem_max` allows.
pub fn steer(socket: BorrowedFd<'_>, program: &[Instruction]) -> io::Result<()> {
    let mut filter: Vec<libc::sock_filter> = program
        .iter()
        .map(|i| libc::sock_filter {
            code: i.code,
            jt: i.jump_true,
            jf: i.jump_false,
            k: i.operand,
        })
        .collect();
    let len =
        u16::try_from(filter.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let program = libc::sock_fprog { len, filter: filter.as_mut_ptr() };
    let size = libc::socklen_t::try_from(size_of::<libc::sock_fprog>()).unwrap_or_default();
    // SAFETY: `program` points at `len` instructions that outlive the call; the kernel copies them
    // and checks every one.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            size,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Forbids replacing a group's program through this socket (`SO_LOCK_FILTER`), for sockets that
/// workers get. Removing the program cannot be forbidden.
///
/// # Errors
/// None are expected.
pub fn lock(socket: BorrowedFd<'_>) -> io::Result<()> {
    let on: libc::c_int = 1;
    let size = libc::socklen_t::try_from(size_of_val(&on)).unwrap_or_default();
    // SAFETY: the kernel reads an int of that size, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LOCK_FILTER,
            (&raw const on).cast(),
            size,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Returns the length of a socket's queue: connections for a TCP listener, bytes for a UDP socket.
/// Returns `None` for a TCP socket that does not listen (it was shut down), and where the length is
/// unknown.
#[must_use]
pub fn waiting(socket: BorrowedFd<'_>) -> Option<u32> {
    match sockopt::socket_type(socket).ok()? {
        SocketType::STREAM => crate::socket::accept_queue(socket),
        _ => received_bytes(socket),
    }
}

/// `SK_MEMINFO_RMEM_ALLOC` of `SO_MEMINFO`.
fn received_bytes(socket: BorrowedFd<'_>) -> Option<u32> {
    let mut info = [0u32; 9];
    let mut len = libc::socklen_t::try_from(size_of_val(&info)).ok()?;
    // SAFETY: the kernel writes at most `len` bytes, the size of `info`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    (result == 0).then_some(info[0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{listen, socket};
    use std::io::ErrorKind;
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream, UdpSocket};

    const RETURN: u16 = 0x06;

    fn always(number: usize) -> [Instruction; 1] {
        [Instruction {
            code: RETURN,
            jump_true: 0,
            jump_false: 0,
            operand: u32::try_from(number).unwrap(),
        }]
    }

    fn tcp_group(ip: IpAddr, size: usize) -> Vec<OwnedFd> {
        let first = listen::tcp(Some(ip), 0, false).unwrap();
        found(&first).unwrap();
        socket::listen(&first, 64).unwrap();
        let mut group = vec![first];
        while group.len() < size {
            let next = sibling(group[0].as_fd()).unwrap();
            socket::listen(&next, 64).unwrap();
            group.push(next);
        }
        group
    }

    #[test]
    fn a_tcp_group_is_numbered_in_the_order_of_listening_and_keeps_its_numbers_when_the_last_one_goes()
     {
        for (ip, local) in [
            (IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv4Addr::LOCALHOST)),
            (Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::LOCALHOST.into()),
            (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::LOCALHOST.into()),
        ] {
            let mut group = tcp_group(ip, 5);
            let port = socket::local_address(&group[0]).unwrap().port();
            while !group.is_empty() {
                for number in 0..group.len() {
                    steer(group[0].as_fd(), &always(number)).unwrap();
                    let _client = TcpStream::connect((local, port)).unwrap();
                    assert_eq!(waiting(group[number].as_fd()), Some(1));
                    socket::accept(group[number].as_fd())
                        .expect("the connection is in the queue that was named");
                    assert_eq!(waiting(group[number].as_fd()), Some(0));
                }
                group.pop();
            }
        }
    }

    #[test]
    fn nobody_else_has_the_address_of_a_group_or_gets_it_without_wanting_to_share() {
        let group = tcp_group(Ipv4Addr::LOCALHOST.into(), 3);
        let port = socket::local_address(&group[0]).unwrap().port();
        // A second cluster begins as the first one did.
        assert_eq!(
            listen::tcp(Some(Ipv4Addr::LOCALHOST.into()), port, false).unwrap_err().kind(),
            ErrorKind::AddrInUse
        );
        assert_eq!(listen::tcp(None, port, false).unwrap_err().kind(), ErrorKind::AddrInUse);
    }

    #[test]
    fn a_socket_that_listens_already_can_found_a_group_and_keeps_what_waits_in_it() {
        let first = listen::tcp(Some(Ipv4Addr::LOCALHOST.into()), 0, false).unwrap();
        socket::listen(&first, 64).unwrap();
        let port = socket::local_address(&first).unwrap().port();
        let _before = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        found(&first).unwrap();
        let second = sibling(first.as_fd()).unwrap();
        socket::listen(&second, 64).unwrap();
        steer(first.as_fd(), &always(1)).unwrap();
        let _after = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        assert_eq!((waiting(first.as_fd()), waiting(second.as_fd())), (Some(1), Some(1)));
    }

    #[test]
    fn a_udp_group_is_numbered_in_the_order_of_binding() {
        let first = listen::udp(Ipv4Addr::LOCALHOST.into(), 0, false, false).unwrap();
        found(&first).unwrap();
        let mut group = vec![first];
        for _ in 0..3 {
            group.push(sibling(group[0].as_fd()).unwrap());
        }
        let to = socket::local_address(&group[0]).unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        for number in 0..group.len() {
            steer(group[0].as_fd(), &always(number)).unwrap();
            client.send_to(b"x", to).unwrap();
            let waits: Vec<bool> = group.iter().map(|s| waiting(s.as_fd()).unwrap() > 0).collect();
            assert_eq!(waits.iter().position(|w| *w), Some(number), "{waits:?}");
            assert_eq!(
                rustix::net::recv(&group[number], &mut [0u8; 4], rustix::net::RecvFlags::DONTWAIT)
                    .unwrap(),
                (1, 1)
            );
        }
    }

    #[test]
    fn whoever_has_a_locked_socket_cannot_change_the_program() {
        let group = tcp_group(Ipv4Addr::LOCALHOST.into(), 2);
        lock(group[1].as_fd()).unwrap();
        assert_eq!(
            steer(group[1].as_fd(), &always(1)).unwrap_err().kind(),
            ErrorKind::PermissionDenied
        );
        steer(group[0].as_fd(), &always(1)).unwrap();
    }

    #[test]
    fn unix_sockets_are_in_no_group_and_a_socket_that_was_shut_down_has_no_queue() {
        let (unix, _) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(found(&unix).is_err());
        let group = tcp_group(Ipv4Addr::LOCALHOST.into(), 1);
        rustix::net::shutdown(&group[0], rustix::net::Shutdown::Both).unwrap();
        assert_eq!(waiting(group[0].as_fd()), None);
    }
}
