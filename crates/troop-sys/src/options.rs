//! Restores socket options by which a worker could make a shared socket turn clients away.
//!
//! Connections inherit most options of their listener (`socket(7)`, `tcp(7)`, `ip(7)`), and every
//! process with a copy of the listener can set them. So [`Options::of`] records the initial values,
//! and [`Options::restore`] writes them back. Options that programs set for good reasons are
//! restored only when their value is too extreme to be of use.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use serde::{Deserialize, Serialize};

use crate::diag::{self, Md5Key};
use crate::socket::{self, Kind};

/// Maximum length of an option's value, in bytes.
const MAX_VALUE: usize = 16;
/// Smaller buffers, in bytes, are restored.
const MIN_BUFFER: i64 = 16 * 1024;
/// Smaller maximum segment sizes, in bytes, are restored (the kernel's `TCP_MSS_DEFAULT`).
const MIN_SEGMENT: i64 = 536;
/// The largest TCP window, in bytes: 65,535 with the maximum scale of 14.
const MAX_WINDOW: i32 = 0xffff << 14;
/// Shorter values of `TCP_USER_TIMEOUT`, in milliseconds, are restored.
const MIN_USER_TIMEOUT: i64 = 1000;
/// Accept queues shorter than this, and shorter than the program asked for, are restored.
const MIN_QUEUE: u32 = 5;

// Linux ABI, include/uapi: not in all versions of libc.
const SO_BINDTOIFINDEX: i32 = 62;
const SO_MAX_PACING_RATE: i32 = 47;
const SO_BUF_LOCK: i32 = 72;
const SO_DETACH_FILTER: i32 = 27;
const SO_GET_FILTER: i32 = 26;
const IP_MINTTL: i32 = 21;
const IPV6_MINHOPCOUNT: i32 = 73;
const IPV6_STICKY: [i32; 4] = [57, 54, 59, 55];
const TCP_TX_DELAY: i32 = 37;
const TCP_MD5SIG_EXT: i32 = 32;
const UDP_ENCAP: i32 = 100;

const TCP: u8 = 1;
const UDP: u8 = 2;
const UNIX: u8 = 4;

/// The value of an option, as the kernel returns it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Value {
    bytes: [u8; MAX_VALUE],
    len: usize,
}

impl Value {
    fn of(number: i32) -> Value {
        let mut bytes = [0; MAX_VALUE];
        bytes[..4].copy_from_slice(&number.to_ne_bytes());
        Value { bytes, len: 4 }
    }

    fn half(at: &[u8]) -> i64 {
        match *at {
            [a, b, c, d] => i32::from_ne_bytes([a, b, c, d]).into(),
            [a, b, c, d, e, f, g, h] => i64::from_ne_bytes([a, b, c, d, e, f, g, h]),
            _ => 0,
        }
    }

    fn number(&self) -> i64 {
        Value::half(&self.bytes[..self.len])
    }

    /// Reads two numbers, as in `struct linger` and `struct timeval`.
    fn pair(&self) -> (i64, i64) {
        let (one, other) = self.bytes[..self.len].split_at(self.len / 2);
        (Value::half(one), Value::half(other))
    }
}

/// An option, a predicate on its initial and current value that tells whether clients are turned
/// away, and the value to restore.
struct Rule {
    name: &'static str,
    level: i32,
    option: i32,
    kinds: u8,
    is_bad: fn(&Value, &Value) -> bool,
    cure: fn(&Value) -> Value,
}

fn as_it_was(then: &Value) -> Value {
    *then
}

fn differs(then: &Value, now: &Value) -> bool {
    then != now
}

fn is_lower(then: &Value, now: &Value) -> bool {
    now.number() < then.number()
}

fn is_small(then: &Value, now: &Value) -> bool {
    now.number() < MIN_BUFFER.min(then.number())
}

/// A window clamp of 0 is no clamp.
fn is_narrow(then: &Value, now: &Value) -> bool {
    then != now && (1..MIN_BUFFER).contains(&now.number())
}

fn is_short(then: &Value, now: &Value) -> bool {
    now.number() < MIN_SEGMENT.min(then.number())
}

fn is_hasty(then: &Value, now: &Value) -> bool {
    then != now && (1..MIN_USER_TIMEOUT).contains(&now.number())
}

fn is_brief(then: &Value, now: &Value) -> bool {
    then != now && matches!(now.pair(), (0, 1..))
}

/// With a linger time of 0, closing a connection discards data that the client has not received.
fn resets(then: &Value, now: &Value) -> bool {
    then != now && matches!(now.pair(), (1.., 0))
}

macro_rules! rules {
    ($($name:literal: $level:expr, $option:expr, $kinds:expr, $is_bad:expr, $cure:expr;)*) => {
        [$(Rule { name: $name, level: $level, option: $option, kinds: $kinds, is_bad: $is_bad, cure: $cure }),*]
    };
}

const RULES: [Rule; 20] = rules! {
    "SO_BINDTODEVICE": libc::SOL_SOCKET, SO_BINDTOIFINDEX, TCP | UDP, differs, as_it_was;
    "SO_DONTROUTE": libc::SOL_SOCKET, libc::SO_DONTROUTE, TCP | UDP, differs, as_it_was;
    "SO_RCVLOWAT": libc::SOL_SOCKET, libc::SO_RCVLOWAT, TCP, differs, as_it_was;
    "SO_MAX_PACING_RATE": libc::SOL_SOCKET, SO_MAX_PACING_RATE, TCP | UDP, differs, as_it_was;
    "SO_LINGER": libc::SOL_SOCKET, libc::SO_LINGER, TCP, resets, as_it_was;
    // The kernel returns twice the value that was set (`socket(7)`).
    "SO_RCVBUF": libc::SOL_SOCKET, libc::SO_RCVBUF, TCP | UDP, is_small, |then| Value::of((then.number() / 2) as i32);
    "SO_SNDBUF": libc::SOL_SOCKET, libc::SO_SNDBUF, TCP | UDP, is_small, |then| Value::of((then.number() / 2) as i32);
    "SO_RCVTIMEO": libc::SOL_SOCKET, libc::SO_RCVTIMEO, TCP | UDP | UNIX, is_brief, as_it_was;
    "SO_SNDTIMEO": libc::SOL_SOCKET, libc::SO_SNDTIMEO, TCP | UDP | UNIX, is_brief, as_it_was;
    "IP_MINTTL": libc::IPPROTO_IP, IP_MINTTL, TCP, differs, as_it_was;
    "IP_TTL": libc::IPPROTO_IP, libc::IP_TTL, TCP, is_lower, as_it_was;
    "IP_MTU_DISCOVER": libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, TCP, differs, as_it_was;
    "IPV6_MINHOPCOUNT": libc::IPPROTO_IPV6, IPV6_MINHOPCOUNT, TCP, differs, as_it_was;
    "IPV6_UNICAST_HOPS": libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, TCP, is_lower, as_it_was;
    "IPV6_MTU_DISCOVER": libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, TCP, differs, as_it_was;
    // The kernel returns the size that was set or the default; setting 0 removes the former.
    "TCP_MAXSEG": libc::IPPROTO_TCP, libc::TCP_MAXSEG, TCP, is_short, |_| Value::of(0);
    "TCP_WINDOW_CLAMP": libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, TCP, is_narrow, |_| Value::of(MAX_WINDOW);
    "TCP_USER_TIMEOUT": libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, TCP, is_hasty, as_it_was;
    "TCP_TX_DELAY": libc::IPPROTO_TCP, TCP_TX_DELAY, TCP, differs, as_it_was;
    "UDP_ENCAP": libc::IPPROTO_UDP, UDP_ENCAP, UDP, differs, as_it_was;
};

fn get(fd: BorrowedFd<'_>, level: i32, option: i32) -> Option<Value> {
    let mut bytes = [0; MAX_VALUE];
    // `struct linger` and `struct timeval` are longer than an `int`.
    let wanted = match (level, option) {
        (libc::SOL_SOCKET, libc::SO_RCVTIMEO | libc::SO_SNDTIMEO) => size_of::<libc::timeval>(),
        (libc::SOL_SOCKET, libc::SO_LINGER | SO_MAX_PACING_RATE) => 8,
        _ => 4,
    };
    let mut len = libc::socklen_t::try_from(wanted).ok()?;
    // SAFETY: the kernel writes at most `len` bytes to `bytes`, which has at least as many.
    let result = unsafe {
        libc::getsockopt(fd.as_raw_fd(), level, option, bytes.as_mut_ptr().cast(), &raw mut len)
    };
    (result == 0)
        .then_some(Value { bytes, len: len as usize })
        .filter(|value| matches!(value.len, 4 | 8 | 16))
}

fn set(fd: BorrowedFd<'_>, level: i32, option: i32, value: &[u8]) -> io::Result<()> {
    let len = libc::socklen_t::try_from(value.len()).unwrap_or_default();
    let at = if value.is_empty() { std::ptr::null() } else { value.as_ptr().cast() };
    // SAFETY: the kernel reads `len` bytes at `at`, which outlive the call; with a `len` of 0 the
    // pointer is null.
    let result = unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, at, len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Returns the bytes of kernel memory for filters, keys and IP options of a socket
/// (`SK_MEMINFO_OPTMEM` of `SO_MEMINFO`).
fn extras(fd: BorrowedFd<'_>) -> Option<u32> {
    let mut info = [0u32; 9];
    let mut len = libc::socklen_t::try_from(size_of_val(&info)).ok()?;
    // SAFETY: the kernel writes at most `len` bytes, the size of `info`.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    (result == 0).then_some(info[6])
}

fn has_filter(fd: BorrowedFd<'_>) -> bool {
    let mut len: libc::socklen_t = 0;
    // SAFETY: with a length of 0 the kernel writes only to `len`: the number of instructions.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_GET_FILTER,
            std::ptr::null_mut(),
            &raw mut len,
        )
    };
    // The kernel does not return eBPF filters, only that there is one.
    if result == 0 {
        len > 0
    } else {
        io::Error::last_os_error().raw_os_error() == Some(libc::EACCES)
    }
}

/// Removes the key for these addresses: `TCP_MD5SIG` with a key of length 0 (`struct tcp_md5sig`).
fn remove_key(fd: BorrowedFd<'_>, key: &Md5Key) -> io::Result<()> {
    const PREFIX: u8 = 1;
    let mut bytes = [0u8; 128 + 8 + 80];
    let family = if key.is_mapped || key.is_ipv6 { libc::AF_INET6 } else { libc::AF_INET };
    bytes[..2]
        .copy_from_slice(&libc::sa_family_t::try_from(family).unwrap_or_default().to_ne_bytes());
    match (key.is_mapped, key.is_ipv6) {
        (true, _) => {
            bytes[18..20].fill(0xff);
            bytes[20..24].copy_from_slice(&key.address[..4]);
        }
        (false, true) => bytes[8..24].copy_from_slice(&key.address),
        (false, false) => bytes[4..8].copy_from_slice(&key.address[..4]),
    }
    (bytes[128], bytes[129]) = (PREFIX, key.prefix);
    set(fd, libc::IPPROTO_TCP, TCP_MD5SIG_EXT, &bytes)
}

/// The options of a listening or bound socket at the time of [`Options::of`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Options {
    kind: u8,
    values: [Option<Value>; RULES.len()],
    buffer_lock: Option<Value>,
    extras: Option<u32>,
    filtered: bool,
    is_ipv6: bool,
    at: Option<SocketAddr>,
}

/// The result of [`Options::restore`].
#[derive(Debug, Default)]
pub struct Restored {
    /// Options that were changed and have been restored.
    pub what: Vec<&'static str>,
    /// Options that were changed and could not be restored, with the reason.
    pub lost: Vec<String>,
}

impl fmt::Display for Restored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what.join(", "))
    }
}

impl Restored {
    fn note(&mut self, name: &'static str, result: io::Result<()>) {
        match result {
            Ok(()) => self.what.push(name),
            Err(e) => self.lost.push(format!("{name} ({e})")),
        }
    }
}

/// The intended use of a socket.
#[derive(Debug, Clone, Copy, Default)]
pub struct Use {
    /// The length of its accept queue, if it shall listen.
    pub backlog: Option<u32>,
    /// Whether it must be non-blocking, so that no process that has it can block in `accept`.
    pub nonblocking: bool,
}

impl Options {
    /// Records the options of a socket.
    #[must_use]
    pub fn of(fd: impl AsFd) -> Options {
        let fd = fd.as_fd();
        let kind = match socket::kind(fd) {
            Ok(Kind::TcpListener | Kind::TcpStream) => TCP,
            Ok(Kind::Udp { .. }) => UDP,
            Ok(Kind::UnixListener | Kind::UnixStream) => UNIX,
            Err(_) => 0,
        };
        let values = RULES.each_ref().map(|rule| {
            (rule.kinds & kind != 0).then(|| get(fd, rule.level, rule.option)).flatten()
        });
        let at = socket::local_address(fd);
        Options {
            kind,
            values,
            buffer_lock: get(fd, libc::SOL_SOCKET, SO_BUF_LOCK),
            extras: extras(fd),
            filtered: has_filter(fd),
            is_ipv6: at.is_some_and(|at| at.is_ipv6()),
            at,
        }
    }

    /// Restores the options that turn clients away. Makes about twenty system calls.
    pub fn restore(&self, fd: impl AsFd, use_as: Use) -> Restored {
        let fd = fd.as_fd();
        let mut restored = Restored::default();
        if self.kind == UDP {
            self.disconnect(fd, &mut restored);
        }
        for (rule, then) in RULES.iter().zip(&self.values) {
            let Some(then) = then else { continue };
            let Some(now) = get(fd, rule.level, rule.option).filter(|now| (rule.is_bad)(then, now))
            else {
                continue;
            };
            debug_assert_eq!(then.len, now.len);
            let cure = (rule.cure)(then);
            restored.note(rule.name, set(fd, rule.level, rule.option, &cure.bytes[..cure.len]));
            if matches!(rule.option, libc::SO_RCVBUF | libc::SO_SNDBUF)
                && let Some(lock) = self.buffer_lock
            {
                // Unlocks the buffer sizes, so that the kernel tunes them as before.
                let _ = set(fd, libc::SOL_SOCKET, SO_BUF_LOCK, &lock.bytes[..lock.len]);
            }
        }
        if self.kind & (TCP | UDP) != 0 && !self.filtered && has_filter(fd) {
            restored.note(
                "SO_ATTACH_FILTER",
                set(fd, libc::SOL_SOCKET, SO_DETACH_FILTER, &0i32.to_ne_bytes()),
            );
        }
        if self.kind == TCP {
            self.remove_extras(fd, &mut restored);
            if let Some(backlog) = use_as.backlog
                && socket::queue_limit(fd).is_some_and(|now| now < MIN_QUEUE.min(backlog))
            {
                restored.note("backlog", socket::listen(fd, backlog));
            }
        }
        if use_as.nonblocking
            && rustix::fs::fcntl_getfl(fd)
                .is_ok_and(|flags| !flags.contains(rustix::fs::OFlags::NONBLOCK))
        {
            restored.note("O_NONBLOCK", socket::set_nonblocking(fd, true));
        }
        restored
    }

    /// Disconnects a UDP socket: a connected one receives datagrams of its peer only.
    fn disconnect(&self, fd: BorrowedFd<'_>, restored: &mut Restored) {
        if !matches!(rustix::net::getpeername(fd), Ok(Some(_))) {
            return;
        }
        let result =
            rustix::net::connect_unspec(fd).map_err(io::Error::from).and_then(|()| match self.at {
                // Disconnecting releases a port that the kernel had chosen.
                Some(at) if socket::local_address(fd) != Some(at) => {
                    Ok(rustix::net::bind(fd, &at)?)
                }
                _ => Ok(()),
            });
        restored.note("connect", result);
    }

    /// Removes keys and sticky options, which take kernel memory ([`extras`]). Keys can be removed
    /// only if their addresses are known.
    fn remove_extras(&self, fd: BorrowedFd<'_>, restored: &mut Restored) {
        let more = || matches!((self.extras, extras(fd)), (Some(then), Some(now)) if now > then);
        if !more() {
            return;
        }
        if self.is_ipv6 {
            for option in IPV6_STICKY {
                let _ = set(fd, libc::IPPROTO_IPV6, option, &[]);
            }
            if !more() {
                restored.what.push("IPV6_RTHDR");
                return;
            }
        }
        // Keys for all addresses can be removed blindly, others only where `sock_diag(7)` shows
        // them, which needs `CAP_NET_ADMIN`.
        let all = |is_ipv6, is_mapped| Md5Key { is_ipv6, is_mapped, address: [0; 16], prefix: 0 };
        let unseen = if self.is_ipv6 {
            vec![all(true, false), all(false, true)]
        } else {
            vec![all(false, false)]
        };
        let mut keys = unseen.iter().filter(|key| remove_key(fd, key).is_ok()).count();
        if more() {
            let seen = self
                .at
                .map_or(Ok(Vec::new()), |at| diag::md5_keys(fd, at.port()))
                .unwrap_or_default();
            let mapped = seen
                .into_iter()
                .map(|key| Md5Key { is_mapped: self.is_ipv6 && !key.is_ipv6, ..key });
            keys += mapped.filter(|key| remove_key(fd, key).is_ok()).count();
        }
        if keys > 0 {
            restored.what.push("TCP_MD5SIG");
        }
        if more() {
            restored.lost.push(
                "keys or filters that cannot be taken away (TCP_MD5SIG, TCP_AO, SO_ATTACH_FILTER)"
                    .into(),
            );
        }
    }
}

#[cfg(test)]
mod tests;
