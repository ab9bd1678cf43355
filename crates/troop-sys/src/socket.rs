//! The kind and the state of sockets.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::sockopt;
use rustix::net::{AddressFamily, SocketType};
use serde::{Deserialize, Serialize};

/// The kinds of socket that processes of a cluster can pass to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A TCP connection.
    TcpStream,
    /// A TCP socket that listens, or is bound and can listen.
    TcpListener,
    /// A Unix stream connection.
    UnixStream,
    /// A Unix stream socket that listens, or is bound and can listen.
    UnixListener,
    /// A UDP socket.
    Udp {
        /// Whether its family is IPv6.
        ipv6: bool,
    },
}

/// Makes `close` return at once, whatever `SO_LINGER` another holder of the socket has set;
/// non-blocking sockets wait for it too. A linger time of zero, which resets the connection, stays.
/// Has no effect on other descriptors.
pub fn close_at_once(socket: impl AsFd) {
    if let Ok(Some(time)) = sockopt::socket_linger(&socket)
        && !time.is_zero()
    {
        let _ = sockopt::set_socket_linger(&socket, None);
    }
}

/// Returns a number that all descriptors of this socket share and no other socket has, in no other
/// network namespace either; `None` where the system has none (`SO_COOKIE` of `socket(7)`).
#[must_use]
pub fn cookie(socket: impl AsFd) -> Option<u64> {
    #[cfg(target_os = "linux")]
    return sockopt::socket_cookie(socket).ok();
    #[cfg(not(target_os = "linux"))]
    {
        let _ = socket;
        None
    }
}

/// Whether a descriptor is a socket. Does not access any file system.
#[must_use]
pub fn is_socket(fd: impl AsFd) -> bool {
    !matches!(sockopt::socket_type(fd), Err(rustix::io::Errno::NOTSOCK | rustix::io::Errno::BADF))
}

/// Whether a descriptor is a Unix socket.
#[must_use]
pub fn is_unix(fd: impl AsFd) -> bool {
    sockopt::socket_domain(fd).is_ok_and(|domain| domain == AddressFamily::UNIX)
}

/// Returns the kind of a socket.
///
/// # Errors
/// `ENOTSOCK` for other descriptors, `EINVAL` for kinds that are not passed.
pub fn kind(fd: impl AsFd) -> io::Result<Kind> {
    let fd = fd.as_fd();
    let (kind, family) = (sockopt::socket_type(fd)?, sockopt::socket_domain(fd)?);
    let is_connected = || rustix::net::getpeername(fd).is_ok();
    let is_listening = || sockopt::socket_acceptconn(fd).unwrap_or(false);
    match (kind, family) {
        (SocketType::STREAM, AddressFamily::INET | AddressFamily::INET6) => {
            // A connection that was reset has no peer, but is still a connection: it has data or an
            // error.
            let stream = is_connected() || (!is_listening() && was_connected(fd));
            Ok(if stream { Kind::TcpStream } else { Kind::TcpListener })
        }
        (SocketType::STREAM, AddressFamily::UNIX) => {
            Ok(if is_connected() { Kind::UnixStream } else { Kind::UnixListener })
        }
        (SocketType::DGRAM, AddressFamily::INET) => Ok(Kind::Udp { ipv6: false }),
        (SocketType::DGRAM, AddressFamily::INET6) => Ok(Kind::Udp { ipv6: true }),
        _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
    }
}

/// Whether the peer of a Unix stream socket has read everything that was written (`SIOCOUTQ`,
/// `unix(7)`).
#[must_use]
pub fn is_all_read(fd: impl AsFd) -> bool {
    // SAFETY: the kernel writes an `int` for this request.
    let getter = unsafe {
        rustix::ioctl::Getter::<{ libc::TIOCOUTQ as rustix::ioctl::Opcode }, libc::c_int>::new()
    };
    // SAFETY: it reads a counter and changes nothing.
    unsafe { rustix::ioctl::ioctl(fd, getter) }.is_ok_and(|unread| unread == 0)
}

/// Returns the number of bytes that can be read from a socket.
#[must_use]
pub fn unread(fd: impl AsFd) -> usize {
    rustix::io::ioctl_fionread(fd).ok().and_then(|n| usize::try_from(n).ok()).unwrap_or(0)
}

/// Shuts a listening stream socket down, for all copies of it: connections that wait in it are reset,
/// and new ones refused. Does nothing to others, such as UDP's.
pub fn shut_listener_down(fd: BorrowedFd<'_>) {
    if matches!(kind(fd), Ok(Kind::TcpListener | Kind::UnixListener)) {
        shut_down(fd);
    }
}

/// Shuts a connection down in both directions, for all copies of the socket (`shutdown(2)`).
pub fn shut_down(fd: impl AsFd) {
    // Fails only if the connection is shut down already.
    let _ = rustix::net::shutdown(fd, rustix::net::Shutdown::Both);
}

/// The counters of a TCP socket that are used here, from `struct tcp_info`.
#[derive(Debug, Clone, Copy)]
struct TcpCounts {
    state: u8,
    /// `tcpi_unacked`, which for a listener is the length of its accept queue.
    unacked: u32,
    /// `tcpi_sacked`, which for a listener is the limit of its accept queue.
    sacked: u32,
    bytes_received: u64,
    bytes_sent: u64,
    /// What was written to a connection: sent, not counting what was sent again, or waiting to be
    /// sent. Any number for a socket without a connection.
    bytes_written: u64,
}

fn tcp_counts(fd: BorrowedFd<'_>) -> Option<TcpCounts> {
    // SAFETY: all-zero is a valid value of this plain C struct.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut tail = [0u64; 64];
    let mut len = libc::socklen_t::try_from(size_of_val(&tail)).ok()?;
    // SAFETY: the kernel writes at most `len` bytes, the size of `tail`, which is aligned for it.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            tail.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if result != 0 || (len as usize) < size_of::<libc::tcp_info>() {
        return None;
    }
    // SAFETY: both are plain memory; `tail` holds at least as many bytes as `info`.
    unsafe {
        std::ptr::copy_nonoverlapping(
            tail.as_ptr().cast::<u8>(),
            (&raw mut info).cast::<u8>(),
            size_of::<libc::tcp_info>(),
        )
    };
    // Linux ABI, include/uapi/linux/tcp.h: tcpi_bytes_received at offset 128, tcpi_notsent_bytes (32
    // bits) at 144, tcpi_bytes_sent at 200, tcpi_bytes_retrans at 208.
    let at = |offset: usize| if len as usize >= offset + 8 { tail[offset / 8] } else { 0 };
    Some(TcpCounts {
        state: info.tcpi_state,
        unacked: info.tcpi_unacked,
        sacked: info.tcpi_sacked,
        bytes_received: at(128),
        bytes_sent: at(200),
        bytes_written: (at(200) + low_half(at(144))).saturating_sub(at(208)),
    })
}

/// The 32 bits that come first in memory.
fn low_half(both: u64) -> u64 {
    let bytes = both.to_ne_bytes();
    u64::from(u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

fn was_connected(fd: BorrowedFd<'_>) -> bool {
    tcp_counts(fd).is_some_and(|c| c.bytes_received > 0 || c.bytes_sent > 0)
}

/// Whether a socket has a connection to accept or a datagram to read.
#[must_use]
pub fn is_readable(fd: BorrowedFd<'_>) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut looked = [PollFd::new(&fd, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut looked, Some(&now)).is_ok_and(|ready| ready > 0)
        && looked[0].revents().contains(PollFlags::IN)
}

/// Returns the length of a TCP listener's accept queue; `None` if the socket does not listen.
#[must_use]
pub fn accept_queue(fd: BorrowedFd<'_>) -> Option<u32> {
    // TCP_LISTEN is 10.
    tcp_counts(fd).filter(|counts| counts.state == 10).map(|counts| counts.unacked)
}

/// Returns the limit of a TCP listener's accept queue; `None` if the socket does not listen.
#[must_use]
pub fn queue_limit(fd: BorrowedFd<'_>) -> Option<u32> {
    tcp_counts(fd).filter(|counts| counts.state == 10).map(|counts| counts.sacked)
}

/// What was read from a connection and written to it up to some moment, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Read by its holders.
    pub read: u64,
    /// Written by its holders, whether or not it has been sent.
    pub written: u64,
}

/// Returns what has been read from a connection and written to it so far, by the counters of
/// `TCP_INFO`. Nothing for other sockets than TCP.
#[must_use]
pub fn traffic(fd: BorrowedFd<'_>) -> Traffic {
    let Some(counts) = tcp_counts(fd) else { return Traffic::default() };
    let unread = rustix::io::ioctl_fionread(fd).unwrap_or(0);
    let fin = u64::from(counts.state != 1);
    Traffic {
        read: counts.bytes_received.saturating_sub(unread + fin),
        written: counts.bytes_written,
    }
}

/// Whether nothing was read from or written to a connection beyond `before`, so that another process
/// can take it over. For TCP the counters of the kernel show this; for other sockets it is always
/// true.
#[must_use]
pub fn is_untouched(fd: BorrowedFd<'_>, before: Traffic) -> bool {
    let Ok(SocketType::STREAM) = sockopt::socket_type(fd) else { return true };
    let Some(counts) = tcp_counts(fd) else { return true };
    let unread = rustix::io::ioctl_fionread(fd).unwrap_or(0);
    // The client's FIN counts as one byte, which is never in the queue: TCP_ESTABLISHED is 1, the
    // states after a FIN are others.
    let fin = u64::from(counts.state != 1);
    counts.bytes_written <= before.written && counts.bytes_received <= unread + fin + before.read
}

/// Returns the local address of an IP socket.
#[must_use]
pub fn local_address(fd: impl AsFd) -> Option<SocketAddr> {
    rustix::net::getsockname(fd).ok().and_then(|a| SocketAddr::try_from(a).ok())
}

/// Returns the path that a Unix socket is bound to.
#[must_use]
pub fn local_path(fd: impl AsFd) -> Option<std::path::PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    let name = unix_name(fd.as_fd())?;
    // The kernel adds a NUL, also behind a path of 108 bytes, which fills the address.
    let path = name.split(|byte| *byte == 0).next().filter(|path| !path.is_empty())?;
    Some(std::path::PathBuf::from(std::ffi::OsStr::from_bytes(path)))
}

/// `sun_path` of a Unix socket, as far as the kernel says that it goes: a path with a NUL at its
/// end, an abstract name with a NUL before it, or nothing. (`SocketAddrUnix` of rustix panics on a
/// path of 108 bytes.)
fn unix_name(fd: BorrowedFd<'_>) -> Option<Vec<u8>> {
    const FAMILY: usize = size_of::<libc::sa_family_t>();
    let mut address = [0u8; FAMILY + 128];
    let mut len = libc::socklen_t::try_from(address.len()).ok()?;
    // SAFETY: the kernel writes at most `len` bytes, the size of `address`, for which it asks no
    // alignment.
    let result =
        unsafe { libc::getsockname(fd.as_raw_fd(), address.as_mut_ptr().cast(), &raw mut len) };
    let family = libc::sa_family_t::from_ne_bytes(*address.first_chunk()?);
    if result != 0 || i32::from(family) != libc::AF_UNIX {
        return None;
    }
    address.get(FAMILY..len as usize).map(<[u8]>::to_vec)
}

/// Whether a Unix socket is bound: to a path or to an abstract name.
#[must_use]
pub fn is_named(fd: impl AsFd) -> bool {
    // An abstract name is a NUL and at least one byte.
    unix_name(fd.as_fd()).is_some_and(|name| name.len() > 1)
}

/// Returns a number that stands for the network namespace of a socket (`SO_NETNS_COOKIE`, Linux
/// 5.14; `None` before).
#[must_use]
pub fn network(fd: impl AsFd) -> Option<u64> {
    let mut cookie = 0u64;
    let mut len = libc::socklen_t::try_from(size_of_val(&cookie)).ok()?;
    // SAFETY: the kernel writes at most `len` bytes, the size of `cookie`.
    let result = unsafe {
        libc::getsockopt(
            fd.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    (result == 0).then_some(cookie)
}

/// `asm-generic/socket.h`.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// Whether two Unix sockets are bound to the same name, as a listener and its connections are.
#[must_use]
pub fn have_same_name(one: impl AsFd, other: impl AsFd) -> bool {
    let name = unix_name(one.as_fd()).filter(|name| !name.is_empty());
    name.is_some() && name == unix_name(other.as_fd())
}

/// Returns the remote address of an IP socket.
#[must_use]
pub fn peer_address(fd: impl AsFd) -> Option<SocketAddr> {
    rustix::net::getpeername(fd).ok().flatten().and_then(|a| SocketAddr::try_from(a).ok())
}

/// Switches between blocking and non-blocking mode, which all copies of the descriptor share.
///
/// # Errors
/// None are expected.
pub fn set_nonblocking(fd: impl AsFd, nonblocking: bool) -> io::Result<()> {
    Ok(rustix::io::ioctl_fionbio(fd, nonblocking)?)
}

/// Makes a descriptor close-on-exec.
///
/// # Errors
/// None are expected.
pub fn set_cloexec(fd: impl AsFd) -> io::Result<()> {
    Ok(rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC)?)
}

/// Replaces the socket behind a descriptor number (`dup3`), close-on-exec. Copies of the descriptor
/// keep the old socket.
///
/// # Errors
/// None are expected.
pub fn replace(number: BorrowedFd<'_>, by: impl AsFd) -> io::Result<()> {
    // SAFETY: `number` stays open all the time: the kernel exchanges what it stands for in one
    // step.
    let result = unsafe { libc::dup3(by.as_fd().as_raw_fd(), number.as_raw_fd(), libc::O_CLOEXEC) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

pub use crate::shut_down::{is_ip, is_shut_down, listen_again};

/// Whether a socket listens (`SO_ACCEPTCONN`); true if that is unknown.
#[must_use]
pub fn listens(fd: impl AsFd) -> bool {
    sockopt::socket_acceptconn(fd).unwrap_or(true)
}

/// Makes a socket listen with an accept queue of this length; changes the length if it listens
/// already.
///
/// # Errors
/// `EADDRINUSE`, or `EINVAL` if the socket is connected.
pub fn listen(fd: impl AsFd, backlog: u32) -> io::Result<()> {
    Ok(rustix::net::listen(fd, i32::try_from(backlog).unwrap_or(i32::MAX))?)
}

/// Accepts a connection, close-on-exec and non-blocking.
///
/// # Errors
/// `WouldBlock` if there is none, `ECONNABORTED` if it has ended already, `EMFILE` and similar when
/// no descriptors are left.
#[inline]
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    use rustix::net::SocketFlags;
    Ok(rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?)
}

/// Accepts a connection and returns the address of the client too.
///
/// # Errors
/// Those of [`accept`].
#[inline]
pub fn accept_from(listener: BorrowedFd<'_>) -> io::Result<(OwnedFd, Option<SocketAddr>)> {
    use rustix::net::SocketFlags;
    let (fd, peer) =
        rustix::net::acceptfrom_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    Ok((fd, peer.and_then(|peer| SocketAddr::try_from(peer).ok())))
}

/// Reads data that has arrived on a connection without consuming it. Never blocks; 0 is the end of
/// the stream.
///
/// # Errors
/// `WouldBlock` if nothing has arrived, or the connection's own error.
pub fn peek(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    use rustix::net::RecvFlags;
    Ok(rustix::net::recv(fd, buffer, RecvFlags::PEEK | RecvFlags::DONTWAIT)?.0)
}

/// Consumes up to this many bytes of a connection, which were [peeked](peek) before.
///
/// # Errors
/// The connection's own error.
pub fn skip(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(rustix::net::recv(fd, buffer, rustix::net::RecvFlags::DONTWAIT)?.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    #[test]
    fn no_close_waits_as_long_as_somebody_else_has_chosen() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        for (chosen, left) in [(Some(60), None), (Some(0), Some(0)), (None, None)]
            .map(|(a, b)| (a.map(Duration::from_secs), b.map(Duration::from_secs)))
        {
            sockopt::set_socket_linger(&stream, chosen).unwrap();
            close_at_once(&stream);
            assert_eq!(sockopt::socket_linger(&stream).unwrap(), left);
        }
        close_at_once(std::fs::File::open("/dev/null").unwrap());
    }

    #[test]
    fn kinds_are_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(kind(&listener).unwrap(), Kind::TcpListener);
        assert_eq!(kind(&client).unwrap(), Kind::TcpStream);
        assert_eq!(
            kind(UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap(),
            Kind::Udp { ipv6: false }
        );
        assert_eq!(kind(UnixStream::pair().unwrap().0).unwrap(), Kind::UnixStream);
        assert!(kind(std::fs::File::open("/dev/null").unwrap()).is_err());
    }

    #[test]
    fn the_longest_path_and_every_other_name_of_a_unix_socket_is_known() {
        use rustix::net::{SocketAddrUnix, bind};
        let directory = tempfile::tempdir().unwrap();
        let below = directory.path().as_os_str().len();
        for len in [100, 107, 108] {
            let path = directory.path().join("s".repeat(len - below - 1));
            assert_eq!(path.as_os_str().len(), len);
            let socket =
                crate::listen::new_socket(AddressFamily::UNIX, SocketType::STREAM).unwrap();
            assert!(!is_named(&socket) && local_path(&socket).is_none());
            bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
            assert!(is_named(&socket));
            assert_eq!(local_path(&socket), Some(path));
            listen(&socket, 8).unwrap();
            assert_eq!(kind(&socket).unwrap(), Kind::UnixListener);
        }
        let name = directory.path().display().to_string();
        for name in [format!("{name:x<107}"), "\0".into()] {
            let socket =
                crate::listen::new_socket(AddressFamily::UNIX, SocketType::STREAM).unwrap();
            bind(&socket, &SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap()).unwrap();
            assert!(is_named(&socket) && local_path(&socket).is_none());
        }
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(!is_named(&tcp) && local_path(&tcp).is_none());
    }

    #[test]
    fn a_connection_is_untouched_until_somebody_reads_or_writes() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        for touch in [false, true] {
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut server, _) = listener.accept().unwrap();
            assert!(is_untouched(server.as_fd(), Traffic::default()));
            client.write_all(b"hello").unwrap();
            client.shutdown(std::net::Shutdown::Write).unwrap();
            let mut byte = [0];
            server.peek(&mut byte).unwrap();
            // Wait until the FIN has arrived too, by its effect on the state.
            while tcp_counts(server.as_fd()).unwrap().state == 1 {
                std::thread::yield_now();
            }
            assert!(is_untouched(server.as_fd(), Traffic::default()));
            if touch {
                server.read_exact(&mut byte).unwrap();
            } else {
                server.write_all(b"x").unwrap();
            }
            assert!(!is_untouched(server.as_fd(), Traffic::default()));
        }
    }

    #[test]
    fn a_connection_that_was_used_before_is_untouched_until_it_is_used_again() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        for touch in [false, true] {
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut server, _) = listener.accept().unwrap();
            let mut text = [0; 5];
            client.write_all(b"hello").unwrap();
            server.read_exact(&mut text).unwrap();
            // More than is sent at once.
            let answer = vec![b'x'; 1 << 20];
            let reader = std::thread::spawn(move || {
                let mut read = vec![0; 1 << 20];
                client.read_exact(&mut read).unwrap();
                client
            });
            server.write_all(&answer).unwrap();
            // Whatever of it is still to be sent.
            let before = traffic(server.as_fd());
            assert_eq!(before, Traffic { read: 5, written: 1 << 20 });
            let mut client = reader.join().unwrap();
            client.write_all(b"again").unwrap();
            while unread(&server) < 5 {
                std::thread::yield_now();
            }
            assert!(is_untouched(server.as_fd(), before));
            if touch {
                server.read_exact(&mut text).unwrap();
            } else {
                server.write_all(b"x").unwrap();
            }
            assert!(!is_untouched(server.as_fd(), before));
        }
    }
}
