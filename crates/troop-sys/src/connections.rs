//! Which connections of listening sockets were accepted, and which processes have them
//! (`sock_diag(7)`, `/proc/net/unix`, `/proc/PID/fd`). Allocates, and takes time in proportion to the
//! system's sockets: for threads of their own.

use std::collections::BTreeSet;
use std::io::{self, BufRead as _};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::proc_file::{number, words};
use crate::{diag, socket};

/// Maximum number of processes that are inspected: one and those that it has started.
const MAX_PROCESSES: usize = 256;

/// Where a stream socket listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListensAt {
    /// At a TCP address.
    Tcp(SocketAddr),
    /// At a path.
    Unix(PathBuf),
}

/// The connections of a listening socket.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Connections {
    /// The inodes of those that a process has accepted and not closed, as in `/proc/PID/fd`.
    pub accepted: Vec<u64>,
    /// The number of those that wait; `None` if it is not known, which is so for TCP.
    pub waiting: Option<u32>,
}

impl ListensAt {
    /// Returns where a socket listens; `None` if it is no TCP or Unix socket with a path.
    #[must_use]
    pub fn of(listener: impl AsFd) -> Option<ListensAt> {
        match socket::kind(&listener).ok()? {
            socket::Kind::TcpListener => Some(ListensAt::Tcp(socket::local_address(listener)?)),
            socket::Kind::Udp { .. } => None,
            _ => socket::local_path(listener).map(ListensAt::Unix),
        }
    }

    /// Returns the connections that were made to it. Sees those of this process's network namespace.
    ///
    /// # Errors
    /// If the kernel does not show them.
    pub fn connections(&self) -> io::Result<Connections> {
        match self {
            ListensAt::Tcp(at) => {
                let ends = diag::accepted(at.port())?.into_iter();
                let own = ends.filter(|end| is_reached_by(at.ip(), end.address));
                Ok(Connections { accepted: own.map(|end| end.inode).collect(), waiting: None })
            }
            ListensAt::Unix(path) => unix(path),
        }
    }
}

/// Whether a connection with this local address was made to a socket that listens at another one.
fn is_reached_by(listener: IpAddr, end: IpAddr) -> bool {
    let (listener, end) = (listener.to_canonical(), end.to_canonical());
    match listener {
        IpAddr::V4(_) if listener.is_unspecified() => end.is_ipv4(),
        _ => listener.is_unspecified() || listener == end,
    }
}

/// Lines such as `0000000000000000: 00000003 00000000 00000000 0001 03 61234 /run/web.sock`: the
/// sixth field is the state, 3 for a connection, 2 for one that nobody has accepted.
fn unix(path: &Path) -> io::Result<Connections> {
    let mut found = Connections { accepted: Vec::new(), waiting: Some(0) };
    let mut file = io::BufReader::new(std::fs::File::open("/proc/thread-self/net/unix")?);
    let mut line = Vec::new();
    loop {
        line.clear();
        if file.read_until(b'\n', &mut line)? == 0 {
            return Ok(found);
        }
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        let mut fields = words(text);
        let (state, inode) = (fields.nth(5), fields.next().and_then(number::<u64>));
        if text.ends_with(path.as_os_str().as_bytes())
            && fields.next().is_some_and(|first| path.as_os_str().as_bytes().starts_with(first))
        {
            match (state, inode) {
                (Some(b"03"), Some(inode)) if inode != 0 => found.accepted.push(inode),
                (Some(b"02"), _) => found.waiting = found.waiting.map(|waiting| waiting + 1),
                _ => {}
            }
        }
    }
}

/// Shows the stream and packet sockets that listen at a path, one after the other: their inodes and the
/// paths. Sees those of this process's network namespace. Abstract names are left out.
///
/// # Errors
/// If the kernel does not show them; `TimedOut` if there are more than can be shown until that time.
pub fn each_unix_listener(until: Instant, mut see: impl FnMut(u64, &Path)) -> io::Result<()> {
    /// `__SO_ACCEPTCON` of the kernel's `flags`, the fourth field.
    const LISTENS: u32 = 1 << 16;
    let mut file = io::BufReader::new(std::fs::File::open("/proc/thread-self/net/unix")?);
    let mut line = Vec::new();
    loop {
        line.clear();
        if file.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        if Instant::now() >= until {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        let mut fields = words(text);
        let flags = fields.nth(3).and_then(|flags| std::str::from_utf8(flags).ok());
        let flags = flags.and_then(|flags| u32::from_str_radix(flags, 16).ok()).unwrap_or(0);
        let inode = fields.nth(2).and_then(number::<u64>);
        // A path may have spaces, and begins the rest of the line.
        let path = text.iter().position(|byte| *byte == b'/').map(|at| &text[at..]);
        if let (Some(inode), Some(path), true) = (inode, path, flags & LISTENS != 0)
            && fields.next().is_some_and(|first| first.starts_with(b"/"))
        {
            see(inode, Path::new(std::ffi::OsStr::from_bytes(path)));
        }
    }
}

/// Whether nothing is at a path, as a process sees it, so that nobody reaches the socket that was bound
/// there. What cannot be seen is taken to be there.
#[must_use]
pub fn is_path_gone(pid: u32, path: &Path) -> bool {
    let Ok(below) = path.strip_prefix("/") else { return false };
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    let is_missing = |at: PathBuf| {
        let seen = std::fs::symlink_metadata(at);
        seen.is_err_and(|e| {
            matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        })
    };
    // The process may have ended.
    is_missing(root.join(below)) && !is_missing(root)
}

/// Returns how many TCP connections this network namespace has accepted in the kernel since its
/// beginning; `None` if that is not shown.
#[must_use]
pub fn passive_opens() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/net/snmp").ok()?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp:"));
    let at = lines.next()?.split_whitespace().position(|name| name == "PassiveOpens")?;
    lines.next()?.split_whitespace().nth(at)?.parse().ok()
}

/// A process and those that it has started.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Opened {
    /// The inodes of all sockets that they have open.
    pub sockets: BTreeSet<u64>,
    /// The number of processes that it has started and that run.
    pub children: usize,
    /// Whether all were seen, which the time or a permission may prevent.
    pub is_complete: bool,
    /// Whether a permission has prevented it, or their number.
    pub is_hidden: bool,
}

/// Returns the sockets that a process has open, and those that it has started, until a time.
#[must_use]
pub fn opened(pid: u32, until: Instant) -> Opened {
    let mut found = Opened { is_complete: true, ..Opened::default() };
    let mut processes = vec![pid];
    let mut next = 0;
    while let Some(pid) = processes.get(next).copied() {
        next += 1;
        match add_sockets(pid, until, &mut found.sockets) {
            Ok(is_complete) => found.is_complete &= is_complete,
            // A child that has ended meanwhile has none.
            Err(e) if next > 1 && e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => {
                found.is_complete = false;
                found.is_hidden |= e.kind() == io::ErrorKind::PermissionDenied;
            }
        }
        found.is_complete &= add_children(pid, until, &mut processes);
    }
    if processes.len() >= MAX_PROCESSES {
        (found.is_complete, found.is_hidden) = (false, true);
    }
    found.children = processes.len() - 1;
    found
}

/// Returns the sockets that a process has open itself, until a time.
#[must_use]
pub fn opened_by(pid: u32, until: Instant) -> BTreeSet<u64> {
    let mut sockets = BTreeSet::new();
    // Those that cannot be seen are none.
    let _ = add_sockets(pid, until, &mut sockets);
    sockets
}

/// Adds the sockets of one process. False if the time was too short.
fn add_sockets(pid: u32, until: Instant, sockets: &mut BTreeSet<u64>) -> io::Result<bool> {
    for fd in std::fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
        if Instant::now() >= until {
            return Ok(false);
        }
        let Ok(target) = std::fs::read_link(fd.path()) else { continue };
        let target = target.as_os_str().as_bytes();
        let inode = target.strip_prefix(b"socket:[").and_then(|rest| rest.strip_suffix(b"]"));
        sockets.extend(inode.and_then(number::<u64>));
    }
    Ok(true)
}

/// Adds the processes that one has started, until a time. A process can have any number of threads
/// and children, so nothing is read beyond what there is room for.
fn add_children(pid: u32, until: Instant, processes: &mut Vec<u32>) -> bool {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    for task in tasks.flatten() {
        let Ok(list) = std::fs::File::open(task.path().join("children")) else { continue };
        let mut list = io::BufReader::new(list);
        let mut word = Vec::new();
        loop {
            if Instant::now() >= until || processes.len() >= MAX_PROCESSES {
                return false;
            }
            word.clear();
            if list.read_until(b' ', &mut word).unwrap_or_default() == 0 {
                break;
            }
            let child = number(word.trim_ascii());
            processes.extend(child.filter(|child| !processes.contains(child)));
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn connections_count_from_when_they_are_accepted_until_they_are_closed() {
        for address in ["127.0.0.1:0", "[::]:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let port = listener.local_addr().unwrap().port();
            let at = ListensAt::of(&listener).unwrap();
            let to = if address == "[::1]:0" { "::1" } else { "127.0.0.1" };
            let mut clients: Vec<_> =
                (0..3).map(|_| TcpStream::connect((to, port)).unwrap()).collect();
            assert_eq!(at.connections().unwrap().accepted, [], "{address}");
            let ends: Vec<_> = (0..2).map(|_| listener.accept().unwrap().0).collect();
            let mut inodes: Vec<_> = ends.iter().map(|end| diag::inode(end).unwrap()).collect();
            let mut seen = at.connections().unwrap().accepted;
            inodes.sort_unstable();
            seen.sort_unstable();
            assert_eq!(seen, inodes, "{address}");
            let own = opened(std::process::id(), soon());
            assert!(inodes.iter().all(|inode| own.sockets.contains(inode)) && own.is_complete);
            drop(ends);
            assert_eq!(at.connections().unwrap().accepted, [], "{address}");
            assert_eq!(clients[0].read(&mut [0]).unwrap_or(0), 0);
        }
    }

    #[test]
    fn connections_to_another_address_of_the_port_do_not_count() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let Ok(other) = TcpListener::bind(("127.0.0.2", port)) else { return };
        let _client = TcpStream::connect(("127.0.0.2", port)).unwrap();
        let _end = other.accept().unwrap();
        assert_eq!(ListensAt::of(&listener).unwrap().connections().unwrap().accepted, []);
        assert_eq!(ListensAt::of(&other).unwrap().connections().unwrap().accepted.len(), 1);
    }

    #[test]
    fn connections_to_a_path_are_seen_too() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a b.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let at = ListensAt::of(&listener).unwrap();
        assert_eq!(at, ListensAt::Unix(path.clone()));
        let _clients = [UnixStream::connect(&path).unwrap(), UnixStream::connect(&path).unwrap()];
        assert_eq!(at.connections().unwrap(), Connections { accepted: vec![], waiting: Some(2) });
        let (end, _) = listener.accept().unwrap();
        let accepted = vec![diag::inode(&end).unwrap()];
        assert_eq!(at.connections().unwrap(), Connections { accepted, waiting: Some(1) });
        // Among those that listen there is it alone.
        let mut listening = Vec::new();
        each_unix_listener(soon(), |inode, at| listening.extend((at == path).then_some(inode)))
            .unwrap();
        assert_eq!(listening, [diag::inode(&listener).unwrap()]);
        let here = std::process::id();
        assert!(!is_path_gone(here, &path) && !is_path_gone(u32::MAX - 1, &path));
        std::fs::remove_file(&path).unwrap();
        assert!(is_path_gone(here, &path));
        let late = each_unix_listener(Instant::now(), |_, _| ()).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn sockets_of_processes_that_a_process_has_started_are_its_own_too() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::empty()).unwrap();
        // The shell stays for what comes after `read`.
        let mut shell = std::process::Command::new("sh")
            .args(["-c", "(read x; :); exit 0"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let inode = diag::inode(&listener).unwrap();
        let pid = shell.id();
        let seen = || opened(pid, soon());
        let deadline = soon();
        while seen().children == 0 || !seen().sockets.contains(&inode) {
            assert!(Instant::now() < deadline, "{:?}", seen());
            std::thread::yield_now();
        }
        // When the time is over, nothing more is read.
        let late = opened(pid, Instant::now());
        assert_eq!((late.children, late.is_complete), (0, false));
        drop(shell.stdin.take());
        shell.wait().unwrap();
        assert!(!seen().is_complete && !seen().is_hidden, "it has ended");
        assert!(passive_opens().is_some());
    }
}
