//! Each option is set on a listener that clients reach, and restored.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::*;
use crate::{group, listen};

const LOCAL4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn listener(ip: IpAddr) -> OwnedFd {
    let socket = listen::tcp(Some(ip), 0, false).unwrap();
    socket::listen(&socket, 64).unwrap();
    socket
}

/// Whether a client connects and receives its whole answer within a time limit.
fn serves(listener: &OwnedFd, from: IpAddr) -> bool {
    let port = socket::local_address(listener).unwrap().port();
    let Ok(mut client) =
        TcpStream::connect_timeout(&(from, port).into(), Duration::from_millis(500))
    else {
        return false;
    };
    client.write_all(b"question").unwrap();
    assert!(socket::is_readable(listener.as_fd()));
    let mut server = TcpStream::from(socket::accept(listener.as_fd()).unwrap());
    let answers = std::thread::spawn(move || {
        let answer = || -> io::Result<()> {
            assert_eq!(socket::kind(&server).unwrap(), Kind::TcpStream);
            let mut readable = [rustix::event::PollFd::new(&server, rustix::event::PollFlags::IN)];
            let limit = rustix::event::Timespec { tv_sec: 0, tv_nsec: 500_000_000 };
            if rustix::event::poll(&mut readable, Some(&limit))? == 0 {
                return Err(io::ErrorKind::TimedOut.into());
            }
            socket::set_nonblocking(&server, false)?;
            server.read_exact(&mut [0; 8])?;
            server.write_all(&[0; 1000])
        };
        let mut answer = answer;
        let _ = answer();
    });
    let mut all = Vec::new();
    client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let whole = client.read_to_end(&mut all).is_ok() && all.len() == 1000;
    answers.join().unwrap();
    whole
}

fn usual() -> Use {
    Use { backlog: Some(64), nonblocking: true }
}

/// Checks that an option that `set` changes is found, restored, and then not found again. Returns
/// whether clients were turned away in between.
fn is_taken_back(
    name: &str,
    socket: &OwnedFd,
    from: IpAddr,
    set: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>,
) -> bool {
    let options = Options::of(socket);
    assert!(options.restore(socket, usual()).what.is_empty(), "{name}: nothing was set yet");
    set(socket.as_fd()).unwrap_or_else(|e| panic!("{name}: {e}"));
    let turned_away = !serves(socket, from);
    let restored = options.restore(socket, usual());
    assert_eq!((restored.what.as_slice(), restored.lost.as_slice()), (&[name][..], &[][..]));
    assert!(serves(socket, from), "{name} is as it was");
    let again = options.restore(socket, usual());
    assert!(again.what.is_empty() && again.lost.is_empty(), "{name}: {again:?}");
    turned_away
}

fn number(level: i32, option: i32, number: i32) -> impl FnOnce(BorrowedFd<'_>) -> io::Result<()> {
    move |fd| set(fd, level, option, &number.to_ne_bytes())
}

#[test]
fn options_that_turn_clients_away_are_taken_back() {
    for (name, level, option, value, turns_away) in [
        ("IP_MINTTL", libc::IPPROTO_IP, IP_MINTTL, 255, true),
        ("SO_RCVLOWAT", libc::SOL_SOCKET, libc::SO_RCVLOWAT, 1 << 20, true),
        // These have no effect on the loopback interface.
        ("IP_TTL", libc::IPPROTO_IP, libc::IP_TTL, 1, false),
        ("IP_MTU_DISCOVER", libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, 3, false),
        ("SO_DONTROUTE", libc::SOL_SOCKET, libc::SO_DONTROUTE, 1, false),
        ("SO_MAX_PACING_RATE", libc::SOL_SOCKET, SO_MAX_PACING_RATE, 1, false),
        ("SO_RCVBUF", libc::SOL_SOCKET, libc::SO_RCVBUF, 1, false),
        ("SO_SNDBUF", libc::SOL_SOCKET, libc::SO_SNDBUF, 1, false),
        ("TCP_MAXSEG", libc::IPPROTO_TCP, libc::TCP_MAXSEG, 88, false),
        ("TCP_WINDOW_CLAMP", libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, 1, false),
        ("TCP_USER_TIMEOUT", libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 1, false),
    ] {
        let turned_away =
            is_taken_back(name, &listener(LOCAL4), LOCAL4, number(level, option, value));
        assert!(turned_away || !turns_away, "{name} is an attack");
    }
    let resets = [1i32.to_ne_bytes(), 0i32.to_ne_bytes()].concat();
    is_taken_back("SO_LINGER", &listener(LOCAL4), LOCAL4, |fd| {
        set(fd, libc::SOL_SOCKET, libc::SO_LINGER, &resets)
    });
    is_taken_back("O_NONBLOCK", &listener(LOCAL4), LOCAL4, |fd| socket::set_nonblocking(fd, false));
    is_taken_back("backlog", &listener(LOCAL4), LOCAL4, |fd| socket::listen(fd, 0));
    if let Ok(socket) = listen::tcp(Some(Ipv6Addr::UNSPECIFIED.into()), 0, false)
        && socket::listen(&socket, 64).is_ok()
    {
        let hops = number(libc::IPPROTO_IPV6, IPV6_MINHOPCOUNT, 255);
        assert!(is_taken_back("IPV6_MINHOPCOUNT", &socket, Ipv6Addr::LOCALHOST.into(), hops));
        assert!(is_taken_back(
            "IP_MINTTL",
            &socket,
            LOCAL4,
            number(libc::IPPROTO_IP, IP_MINTTL, 255)
        ));
    }
}

#[test]
fn the_kernel_goes_on_choosing_the_sizes_of_buffers() {
    let socket = listener(LOCAL4);
    let before = get(socket.as_fd(), libc::SOL_SOCKET, SO_BUF_LOCK);
    let options = Options::of(&socket);
    number(libc::SOL_SOCKET, libc::SO_RCVBUF, 1)(socket.as_fd()).unwrap();
    assert_eq!(options.restore(&socket, usual()).what, ["SO_RCVBUF"]);
    assert_eq!(get(socket.as_fd(), libc::SOL_SOCKET, SO_BUF_LOCK), before);
}

#[test]
fn what_programs_set_for_good_reasons_stays() {
    let socket = listener(LOCAL4);
    let options = Options::of(&socket);
    for (level, option, value) in [
        (libc::SOL_SOCKET, libc::SO_RCVBUF, 64 * 1024),
        (libc::SOL_SOCKET, libc::SO_SNDBUF, 32 * 1024),
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
        (libc::IPPROTO_IP, libc::IP_TTL, 255),
        (libc::IPPROTO_TCP, libc::TCP_NODELAY, 1),
        (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 5),
        (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 30_000),
        (libc::IPPROTO_TCP, libc::TCP_MAXSEG, 1300),
        (libc::IPPROTO_TCP, libc::TCP_FASTOPEN, 64),
    ] {
        number(level, option, value)(socket.as_fd()).unwrap();
    }
    socket::listen(&socket, 5).unwrap();
    let restored = options.restore(&socket, usual());
    assert!(restored.what.is_empty() && restored.lost.is_empty(), "{restored:?}");
}

/// Sets `TCP_MD5SIG` with a key (`struct tcp_md5sig`); needs root.
fn require_key(fd: BorrowedFd<'_>, address: IpAddr, prefix: u8) -> io::Result<()> {
    let mut bytes = [0u8; 216];
    match address {
        IpAddr::V4(address) => {
            bytes[0] = 2;
            bytes[4..8].copy_from_slice(&address.octets());
        }
        IpAddr::V6(address) => {
            bytes[0] = 10;
            bytes[8..24].copy_from_slice(&address.octets());
        }
    }
    (bytes[128], bytes[129], bytes[130]) = (1, prefix, 3);
    bytes[136..139].copy_from_slice(b"key");
    set(fd, libc::IPPROTO_TCP, TCP_MD5SIG_EXT, &bytes)
}

#[test]
fn keys_that_clients_do_not_have_are_taken_away() {
    let socket = listener(LOCAL4);
    if require_key(socket.as_fd(), LOCAL4, 0).is_err() {
        eprintln!("skipped: this kernel has no TCP_MD5SIG");
        return;
    }
    let socket = listener(LOCAL4);
    assert!(is_taken_back("TCP_MD5SIG", &socket, LOCAL4, |fd| require_key(
        fd,
        Ipv4Addr::UNSPECIFIED.into(),
        0
    )));
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: others see no keys of certain addresses");
        return;
    }
    assert!(is_taken_back("TCP_MD5SIG", &socket, LOCAL4, |fd| {
        require_key(fd, Ipv4Addr::new(10, 0, 0, 0).into(), 8)?;
        require_key(fd, Ipv4Addr::new(127, 0, 0, 0).into(), 9)?;
        require_key(fd, LOCAL4, 32)
    }));
    if let Ok(both) = listen::tcp(Some(Ipv6Addr::UNSPECIFIED.into()), 0, false) {
        socket::listen(&both, 64).unwrap();
        assert!(is_taken_back("TCP_MD5SIG", &both, LOCAL4, |fd| {
            require_key(fd, Ipv4Addr::LOCALHOST.to_ipv6_mapped().into(), 32)?;
            require_key(fd, Ipv6Addr::LOCALHOST.into(), 128)
        }));
        assert!(serves(&both, Ipv6Addr::LOCALHOST.into()));
    }
}

/// Attaches a filter that drops every packet ("return 0").
fn filter_all(fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut code = libc::sock_filter { code: 6, jt: 0, jf: 0, k: 0 };
    let program = libc::sock_fprog { len: 1, filter: &raw mut code };
    let size = libc::socklen_t::try_from(size_of_val(&program)).unwrap();
    let result =
        // SAFETY: `program` points at one instruction that outlives the call.
        unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, (&raw const program).cast(), size) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[test]
fn filters_are_taken_away_and_one_that_is_locked_is_named() {
    let probe = listener(LOCAL4);
    if let Err(e) = filter_all(probe.as_fd()) {
        eprintln!("skipped: no filter can be attached ({e})");
        return;
    }
    let socket = listener(LOCAL4);
    assert!(is_taken_back("SO_ATTACH_FILTER", &socket, LOCAL4, filter_all));
    let options = Options::of(&socket);
    filter_all(socket.as_fd()).unwrap();
    group::lock(socket.as_fd()).unwrap();
    let restored = options.restore(&socket, usual());
    assert!(
        restored.what.is_empty() && restored.lost[0].contains("SO_ATTACH_FILTER"),
        "{restored:?}"
    );
    // No filter can be attached to a socket that was locked before.
    let socket = listener(LOCAL4);
    group::lock(socket.as_fd()).unwrap();
    assert!(filter_all(socket.as_fd()).is_err() && serves(&socket, LOCAL4));
}

#[test]
fn a_udp_socket_that_somebody_has_connected_hears_everybody_again() {
    let free = { UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port() };
    for port in [0, free] {
        let socket = listen::udp(LOCAL4, port, false, false).unwrap();
        let at = socket::local_address(&socket).unwrap();
        let options = Options::of(&socket);
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let hears = || {
            client.send_to(b"x", at).unwrap();
            rustix::net::recv(&socket, &mut [0u8; 8], rustix::net::RecvFlags::DONTWAIT).is_ok()
        };
        assert!(hears());
        rustix::net::connect(&socket, &SocketAddr::from(([127, 0, 0, 1], 9))).unwrap();
        assert!(!hears());
        assert_eq!(options.restore(&socket, Use::default()).what, ["connect"]);
        assert_eq!(socket::local_address(&socket), Some(at));
        assert!(hears());
        // Options that programs set for themselves are left alone.
        for (level, option, value) in
            [(libc::IPPROTO_IP, libc::IP_TTL, 1), (libc::SOL_SOCKET, libc::SO_BROADCAST, 1)]
        {
            number(level, option, value)(socket.as_fd()).unwrap();
        }
        assert!(options.restore(&socket, Use::default()).what.is_empty());
    }
}
