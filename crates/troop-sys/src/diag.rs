//! Other sockets on an address (`sock_diag(7)`), and the resource usage of processes.

use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

use crate::proc_file;

/// The resource usage of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// CPU time, user and system together.
    pub cpu: Duration,
    /// Resident memory, in bytes.
    pub rss: u64,
}

/// Returns the resource usage of a process, from `/proc/PID/stat` (`proc_pid_stat(5)`). Returns
/// `None` if the process has ended or is hidden.
#[must_use]
pub fn usage(pid: u32) -> Option<Usage> {
    let mut buffer = [0; 2048];
    let stat = proc_file::Path::new(format_args!("/proc/{pid}/stat")).read(&mut buffer).ok()?;
    // The process name may contain anything and ends at the last parenthesis; the third field
    // follows.
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    let mut fields = proc_file::words(&stat[name_end + 1..]);
    let mut next = |skipped: usize| proc_file::number::<u64>(fields.nth(skipped)?);
    // Fields 14, 15 and 24.
    let (user, system, pages) = (next(11)?, next(0)?, next(8)?);
    let ticks = user + system;
    let cpu =
        Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64);
    Some(Usage { cpu, rss: pages * rustix::param::page_size() as u64 })
}

/// Returns the CPU time that this thread has used.
#[must_use]
pub fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let part = |number: i64| u64::try_from(number).unwrap_or(0);
    Duration::from_secs(part(time.tv_sec)) + Duration::from_nanos(part(time.tv_nsec))
}

/// Returns the number of out-of-memory kills since boot (`oom_kill` in `/proc/vmstat`), or 0 if it
/// is unknown.
#[must_use]
pub fn killed_for_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
}

/// A socket of this network namespace that is bound to a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// Its address, which may be unspecified.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Its inode, as in `/proc/PID/fd`.
    pub inode: u64,
    /// The user who owns it.
    pub uid: u32,
}

/// Returns the inode of a socket, as in [`Bound::inode`].
///
/// # Errors
/// None are expected.
pub fn inode(socket: impl AsFd) -> io::Result<u64> {
    Ok(rustix::fs::fstat(socket)?.st_ino)
}

const REQUEST: usize = 16 + 56;
const DUMP_BY_FAMILY: u16 = 20;
const REQUEST_DUMP: u16 = 0x301;
const DONE: u16 = 3;
const ERROR: u16 = 2;
/// `idiag_ext`: also `INET_DIAG_INFO`, which brings the keys.
const WITH_INFO: u8 = 1 << 1;
/// The states of listening TCP sockets and of unconnected UDP sockets.
const LISTEN: u32 = 1 << 10;
const CLOSE: u32 = 1 << 7;
/// All states of connections that a process can have: `ESTABLISHED`, `FIN_WAIT1`, `FIN_WAIT2`,
/// `CLOSE_WAIT`, `LAST_ACK`, `CLOSING`.
const CONNECTED: u32 = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;

/// Returns all sockets of both families that listen on a TCP port or are bound to a UDP port;
/// without a port, on any. Walks all listening sockets of the network namespace.
///
/// # Errors
/// If the kernel does not support `sock_diag` for this protocol, or forbids it.
pub fn bound(port: Option<u16>, udp: bool) -> io::Result<Vec<Bound>> {
    let mut found = Vec::new();
    let is_asked = |bound: &Bound| port.is_none_or(|port| bound.port == port);
    each_bound(port, udp, |bound| found.extend(Some(bound).filter(is_asked)))?;
    Ok(found)
}

/// Shows all of these sockets, one after the other: there can be very many of them.
///
/// # Errors
/// As [`bound`].
pub fn each_bound(port: Option<u16>, udp: bool, mut see: impl FnMut(Bound)) -> io::Result<()> {
    let states = if udp { CLOSE } else { LISTEN };
    ask(port, udp, states, 0, |message| socket_of(message).into_iter().for_each(&mut see))
}

/// Returns the TCP connections of this port that a process has accepted and not closed: the local
/// end of each. Walks all connections of the network namespace, in the kernel.
///
/// # Errors
/// As [`bound`].
pub fn accepted(port: u16) -> io::Result<Vec<Bound>> {
    let mut found = Vec::new();
    ask(Some(port), false, CONNECTED, 0, |message| found.extend(socket_of(message)))?;
    // Those that wait in a queue, and those that their process has closed, have no inode.
    found.retain(|end| end.port == port && end.inode != 0);
    Ok(found)
}

/// Returns the ports from which the kernel chooses one for sockets without, in this network namespace
/// (`ip_local_port_range` in `ip(7)`).
#[must_use]
pub fn chosen_ports() -> std::ops::RangeInclusive<u16> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let text = text.unwrap_or_default();
    let mut ends = text.split_whitespace().map(str::parse::<u16>);
    match (ends.next(), ends.next()) {
        (Some(Ok(first)), Some(Ok(last))) => first..=last,
        _ => 32768..=60999,
    }
}

/// A key with which packets of certain clients must be signed (`TCP_MD5SIG`, `tcp(7)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Md5Key {
    /// Whether the clients have IPv6 addresses.
    pub is_ipv6: bool,
    /// Whether the clients have IPv4 addresses, on an IPv6 socket.
    pub is_mapped: bool,
    /// The network address of the clients; for IPv4 the first four bytes.
    pub address: [u8; 16],
    /// The length of its prefix, in bits.
    pub prefix: u8,
}

/// Returns the keys of a TCP socket that listens on this port; none without `CAP_NET_ADMIN`.
///
/// # Errors
/// If the kernel does not support `sock_diag` for this protocol, or the answer does not fit into a
/// message.
pub fn md5_keys(socket: impl AsFd, port: u16) -> io::Result<Vec<Md5Key>> {
    let inode = inode(socket)?;
    let mut keys = Vec::new();
    ask(Some(port), false, LISTEN, WITH_INFO, |message| {
        if socket_of(message).is_some_and(|bound| bound.inode == inode) {
            keys.extend(keys_of(message));
        }
    })?;
    Ok(keys)
}

/// Returns the inodes of TCP sockets that listen, and of which all connections have ended when they are
/// accepted: they were shut down (`shutdown(2)`) while they did not listen, which connections inherit.
/// Walks all listening sockets of the network namespace.
///
/// # Errors
/// As [`bound`].
pub fn listeners_of_ended_connections() -> io::Result<Vec<u64>> {
    /// `INET_DIAG_SHUTDOWN`: a byte, the directions.
    const KIND: u16 = 8;
    let mut found = Vec::new();
    ask(None, false, LISTEN, 0, |message| {
        let mut all = attributes(message);
        if all.any(|(kind, content)| kind == KIND && content.first().is_some_and(|how| *how != 0)) {
            found.extend(socket_of(message).map(|bound| bound.inode));
        }
    })?;
    Ok(found)
}

fn ask(
    port: Option<u16>,
    udp: bool,
    states: u32,
    more: u8,
    mut see: impl FnMut(&[u8]),
) -> io::Result<()> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )?;
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut request = Vec::with_capacity(REQUEST);
        // struct nlmsghdr, then struct inet_diag_req_v2.
        request.extend(u32::try_from(REQUEST).unwrap_or_default().to_ne_bytes());
        request.extend(DUMP_BY_FAMILY.to_ne_bytes());
        request.extend(REQUEST_DUMP.to_ne_bytes());
        request.extend([0; 8]);
        let protocol = if udp { libc::IPPROTO_UDP } else { libc::IPPROTO_TCP };
        request.extend([
            u8::try_from(family).unwrap_or_default(),
            u8::try_from(protocol).unwrap_or_default(),
            more,
            0,
        ]);
        request.extend(states.to_ne_bytes());
        request.extend(port.unwrap_or(0).to_be_bytes());
        request.extend([0; 46]);
        send(&socket, &request, SendFlags::empty())?;
        dump(&socket, &mut see)?;
    }
    Ok(())
}

fn dump(socket: impl AsFd, see: &mut impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = vec![0u8; 32 * 1024];
    loop {
        let (len, _) = recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        let mut rest = &buffer[..len];
        while rest.len() >= 16 {
            let size = number(rest, 0) as usize;
            let kind = u16::from_ne_bytes([rest[4], rest[5]]);
            let Some(message) = rest.get(16..size) else { return Ok(()) };
            match kind {
                DONE => return Ok(()),
                ERROR => {
                    let errno = if message.len() >= 4 {
                        number(message, 0).cast_signed().wrapping_neg()
                    } else {
                        libc::EIO
                    };
                    return Err(io::Error::from_raw_os_error(errno));
                }
                _ => see(message),
            }
            rest = rest.get(size.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

fn number(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

/// `struct inet_diag_msg`: family, 3 bytes, then the ports and addresses in network order, 72 bytes
/// in all.
fn socket_of(message: &[u8]) -> Option<Bound> {
    let bytes: &[u8; 72] = message.get(..72)?.try_into().ok()?;
    let port = u16::from_be_bytes([bytes[4], bytes[5]]);
    let address = if i32::from(bytes[0]) == libc::AF_INET {
        Ipv4Addr::new(bytes[8], bytes[9], bytes[10], bytes[11]).into()
    } else {
        Ipv6Addr::from(<[u8; 16]>::try_from(&bytes[8..24]).ok()?).into()
    };
    Some(Bound { address, port, inode: u64::from(number(bytes, 68)), uid: number(bytes, 64) })
}

/// The attribute `INET_DIAG_MD5SIG` after `struct inet_diag_msg`: an array of `struct
/// tcp_diag_md5sig`.
fn keys_of(message: &[u8]) -> Vec<Md5Key> {
    const KIND: u16 = 18;
    const SIZE: usize = 100;
    let key = |key: &[u8]| {
        let address = *key.get(4..)?.first_chunk()?;
        Some(Md5Key {
            is_ipv6: i32::from(key[0]) == libc::AF_INET6,
            is_mapped: false,
            address,
            prefix: key[1],
        })
    };
    let found = attributes(message).find(|(kind, _)| *kind == KIND);
    let content = found.map(|(_, content)| content).unwrap_or_default();
    content.chunks_exact(SIZE).filter_map(key).collect()
}

/// The attributes after `struct inet_diag_msg`: kind and content of each.
fn attributes(message: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = message.get(72..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (len, kind) = (rest.get(..2)?.try_into().ok()?, rest.get(2..4)?.try_into().ok()?);
        let (len, kind) = (u16::from_ne_bytes(len), u16::from_ne_bytes(kind));
        let content = rest.get(4..len.into())?;
        rest = rest.get(usize::from(len).next_multiple_of(4)..).unwrap_or_default();
        Some((kind, content))
    })
}

/// Returns a process that has this socket open, if this one may see that and finds it until a time:
/// every user can have very many descriptors.
#[must_use]
pub fn process_with(inode: u64, until: Instant) -> Option<u32> {
    let wanted = format!("socket:[{inode}]");
    std::fs::read_dir("/proc").ok()?.flatten().find_map(|process| {
        let pid = process.file_name().to_str()?.parse().ok()?;
        let open = std::fs::read_dir(process.path().join("fd")).ok()?.flatten();
        open.take_while(|_| Instant::now() < until)
            .any(|fd| {
                std::fs::read_link(fd.path())
                    .is_ok_and(|target| target.as_os_str() == wanted.as_str())
            })
            .then_some(pid)
    })
}

/// Returns the number of open descriptors of a process by one system call; `None` on kernels before
/// 6.2 and for processes that have ended.
#[must_use]
pub fn open_descriptors(pid: u32) -> Option<u32> {
    // On the stack, because this runs for every few connections.
    let mut path = [0; "/proc/4294967295/fd".len()];
    let mut rest = &mut path[..];
    write!(rest, "/proc/{pid}/fd").ok()?;
    let left = rest.len();
    let path = &path[..path.len() - left];
    let stat = rustix::fs::stat(path).ok()?;
    u32::try_from(stat.st_size).ok().filter(|n| *n > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_socket_on_a_port_is_found_and_so_is_its_process() {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let six = std::net::TcpListener::bind(("::1", tcp.local_addr().unwrap().port()));
        let port = tcp.local_addr().unwrap().port();
        let found = bound(Some(port), false).unwrap();
        assert_eq!(found.len(), 1 + usize::from(six.is_ok()), "{found:?}");
        assert_eq!(found[0].address, IpAddr::from(Ipv4Addr::LOCALHOST));
        assert_eq!(found[0].inode, inode(&tcp).unwrap());
        assert!(chosen_ports().contains(&port), "{port} is not in {:?}", chosen_ports());
        let inode = found[0].inode;
        let soon = Instant::now() + Duration::from_secs(20);
        assert_eq!(process_with(inode, soon), Some(std::process::id()));
        assert_eq!(process_with(inode, Instant::now()), None, "the time is over");
        drop((tcp, six));
        assert_eq!(bound(Some(port), false).unwrap(), []);
    }

    #[test]
    fn a_process_has_a_usage_whatever_its_name_is() {
        use std::os::unix::ffi::OsStrExt as _;

        let directory = tempfile::tempdir().unwrap();
        let name = std::ffi::OsStr::from_bytes(b"\xff) R 1 (");
        let program = directory.path().join(name);
        std::fs::copy("/bin/sleep", &program).unwrap();
        let mut child = std::process::Command::new(program).arg("1000").spawn().unwrap();
        // A process that has just executed its program has no pages yet.
        let until = Instant::now() + Duration::from_secs(20);
        let is_running = |found: &Option<Usage>| found.is_some_and(|usage| usage.rss > 0);
        let mut found = usage(child.id());
        while !is_running(&found) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
            found = usage(child.id());
        }
        let _ = child.kill();
        let _ = child.wait();
        assert!(is_running(&found), "{found:?}");
        assert_eq!(usage(child.id()), None, "it has ended");
    }

    #[test]
    fn udp_sockets_are_found_where_the_kernel_tells_of_them() {
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        if let Ok(found) = bound(Some(udp.local_addr().unwrap().port()), true) {
            assert_eq!(found.iter().map(|b| b.inode).collect::<Vec<_>>(), [inode(&udp).unwrap()]);
        }
    }

    #[test]
    fn the_descriptors_of_a_process_are_counted() {
        let Some(before) = open_descriptors(std::process::id()) else { return };
        let more: Vec<_> = (0..10).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        assert!(open_descriptors(std::process::id()).unwrap() >= before + 10);
        drop(more);
        assert_eq!(open_descriptors(u32::MAX - 1), None);
    }
}
