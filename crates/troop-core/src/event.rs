//! What the state machine reports: the facts that become a program's events.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::WorkerId;
use crate::text::escaped;

/// The most characters of a worker's words that are shown.
const MAX_SHOWN: usize = 200;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ExitHow {
    /// It called `exit` with this code (0 to 255).
    Code(i32),
    /// This signal ended it.
    Signal(i32),
    /// Somebody else reaped the process, so its status cannot be known.
    Unknown,
}

impl ExitHow {
    /// True for exit code 0.
    #[must_use]
    pub fn is_success(self) -> bool {
        self == ExitHow::Code(0)
    }
}

impl fmt::Display for ExitHow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            ExitHow::Code(code) => write!(f, "exit code {code}"),
            ExitHow::Signal(signal) => match signal_name(signal) {
                Some(name) => write!(f, "signal {name}"),
                None => write!(f, "signal {signal}"),
            },
            ExitHow::Unknown => f.write_str("status unknown"),
        }
    }
}

/// The name of a Linux signal number, such as `SIGTERM`; `None` for real-time signals.
#[must_use]
pub fn signal_name(signal: i32) -> Option<&'static str> {
    const NAMES: [&str; 31] = [
        "SIGHUP",
        "SIGINT",
        "SIGQUIT",
        "SIGILL",
        "SIGTRAP",
        "SIGABRT",
        "SIGBUS",
        "SIGFPE",
        "SIGKILL",
        "SIGUSR1",
        "SIGSEGV",
        "SIGUSR2",
        "SIGPIPE",
        "SIGALRM",
        "SIGTERM",
        "SIGSTKFLT",
        "SIGCHLD",
        "SIGCONT",
        "SIGSTOP",
        "SIGTSTP",
        "SIGTTIN",
        "SIGTTOU",
        "SIGURG",
        "SIGXCPU",
        "SIGXFSZ",
        "SIGVTALRM",
        "SIGPROF",
        "SIGWINCH",
        "SIGIO",
        "SIGPWR",
        "SIGSYS",
    ];
    usize::try_from(signal).ok().and_then(|n| n.checked_sub(1)).and_then(|n| NAMES.get(n)).copied()
}

/// The `addressType` of Node's messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum AddressType {
    /// TCP over IPv4, or over any family when no host was given (`4` on the wire).
    Tcp4,
    /// TCP over IPv6 (`6`).
    Tcp6,
    /// A Unix socket path (`-1`).
    Unix,
    /// UDP over IPv4 (`"udp4"`).
    Udp4,
    /// UDP over IPv6 (`"udp6"`).
    Udp6,
    /// A descriptor of the primary (`null`).
    Fd,
}

impl AddressType {
    /// True for the two UDP kinds, which are always shared, never handed over.
    #[must_use]
    pub fn is_udp(self) -> bool {
        matches!(self, AddressType::Udp4 | AddressType::Udp6)
    }
}

impl fmt::Display for AddressType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AddressType::Tcp4 => "4",
            AddressType::Tcp6 => "6",
            AddressType::Unix => "-1",
            AddressType::Udp4 => "udp4",
            AddressType::Udp6 => "udp6",
            AddressType::Fd => "null",
        })
    }
}

/// Where something listens, in the words of Node's `listening` event.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Address {
    /// An IP, an absolute path, or `None` for any address.
    pub address: Option<String>,
    /// The port; -1 for Unix paths; `None` where the worker sent none.
    pub port: Option<i64>,
    /// Which family.
    pub address_type: AddressType,
    /// The descriptor number, for `listen({fd})`; -1 for UDP.
    pub fd: Option<i64>,
}

/// The information of a `listening` event.
pub type Listening = Address;

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = match (&self.address, self.address_type) {
            (Some(address), _) => address.as_str(),
            (None, AddressType::Tcp6 | AddressType::Udp6) => "::",
            (None, _) => "*",
        };
        match (self.address_type, self.fd) {
            // An abstract name arrives as `/directory/of/the/worker/\0name`, and is no path.
            (AddressType::Unix, _) => match host.split_once('\0') {
                Some((_, name)) => write!(f, "abstract @{:.MAX_SHOWN$}", escaped(name)),
                None => write!(f, "{:.MAX_SHOWN$}", escaped(host)),
            },
            (AddressType::Fd, Some(fd)) => write!(f, "fd {fd}"),
            _ => {
                if self.address_type.is_udp() {
                    f.write_str("udp ")?;
                }
                let port = self.port.unwrap_or(0);
                let (open, close) = if host.contains(':') { ("[", "]") } else { ("", "") };
                write!(f, "{open}{:.MAX_SHOWN$}{close}:{port}", escaped(host))
            }
        }
    }
}

/// A rule of the channel that a worker broke.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Violation {
    /// A line longer than the limit (bytes).
    TooLong(usize),
    /// JSON nested deeper than the limit (levels).
    TooDeep(usize),
    /// A line that is not JSON.
    NotJson,
    /// A frame that is not a value in V8's serialization format.
    NotSerialized,
    /// A value in V8's serialization format that would take more memory than the limit (bytes).
    TooCostly(usize),
    /// One of the protocol's own messages with fields that make no sense; what is wrong with it.
    Malformed(String),
    /// An acknowledgement that nobody asked for.
    UnaskedAck,
    /// A message that announces a descriptor, but none came.
    MissingHandle,
    /// Descriptors that no message asked for; all were closed (how many).
    SurplusHandles(u64),
    /// A descriptor that is no socket; it was closed.
    BadHandle,
    /// The same from a worker that runs as another user than the primary: the file system of a file
    /// may keep whoever closes it waiting for ever.
    ForeignFile,
    /// It did not answer a connection within this many milliseconds.
    Hung(u64),
    /// It gave no sign of life for this many milliseconds, though it was asked for one.
    Silent(u64),
    /// More listeners than one worker may ask for.
    TooManyListeners(usize),
    /// More listeners than its share of the primary's descriptors; how many that is.
    OverShare(usize),
    /// It had the primary wait for connections on a socket that both have.
    HeldUp,
    /// More sockets bound for nothing, within ten seconds, than this: they could not be bound, or
    /// it closed them.
    TooManyBinds(u32),
    /// It left more descriptors unacknowledged than this.
    Unacknowledged(usize),
    /// A listener that workers may not have; where.
    Forbidden(String),
}

impl Violation {
    /// True when nothing that follows on the channel can be trusted, so that the worker is cut off
    /// at the first offence.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        matches!(
            self,
            Violation::TooLong(_)
                | Violation::TooDeep(_)
                | Violation::NotJson
                | Violation::NotSerialized
                | Violation::TooCostly(_)
                | Violation::Malformed(_)
                | Violation::Hung(_)
                | Violation::Silent(_)
                | Violation::TooManyListeners(_)
                | Violation::Unacknowledged(_)
                | Violation::HeldUp
                | Violation::ForeignFile
        )
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Violation::TooLong(limit) => write!(f, "a message longer than {limit} bytes"),
            Violation::TooDeep(limit) => write!(f, "a message nested deeper than {limit} levels"),
            Violation::NotJson => f.write_str("a line that is not JSON"),
            Violation::NotSerialized => {
                f.write_str("a frame that is not in V8's serialization format")
            }
            Violation::TooCostly(limit) => {
                write!(f, "a message that would take more than {} MiB of memory", limit >> 20)
            }
            Violation::Malformed(what) => {
                write!(f, "a malformed protocol message: {:.MAX_SHOWN$}", escaped(what))
            }
            Violation::UnaskedAck => f.write_str("an acknowledgement nobody asked for"),
            Violation::MissingHandle => f.write_str("a message whose descriptor did not arrive"),
            Violation::SurplusHandles(n) => write!(f, "{n} descriptors that no message announced"),
            Violation::BadHandle => f.write_str("a descriptor that is not a socket"),
            Violation::ForeignFile => f.write_str(
                "a descriptor that is not a socket, which workers of another user must not send",
            ),
            Violation::Hung(ms) => write!(f, "no answer to a connection for {ms} ms"),
            Violation::Silent(ms) => write!(f, "no sign of life for {ms} ms"),
            Violation::TooManyListeners(limit) => write!(f, "more than {limit} listeners"),
            Violation::OverShare(share) => write!(
                f,
                "a request for more than {share} listeners, its share of the primary's descriptors (raise the limit on open files: ulimit -n, LimitNOFILE= of a unit)"
            ),
            Violation::HeldUp => {
                f.write_str("a socket on which it had the primary wait for connections")
            }
            Violation::TooManyBinds(limit) => {
                write!(
                    f,
                    "more than {limit} requests in 10 s for listeners that cannot be bound or that it closes again"
                )
            }
            Violation::Unacknowledged(limit) => {
                write!(f, "no acknowledgement of more than {limit} descriptors")
            }
            Violation::Forbidden(at) => write!(
                f,
                "a request for a listener that it may not have: {:.MAX_SHOWN$}",
                escaped(at)
            ),
        }
    }
}

/// A fact about one worker, in the order in which Node would emit it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Notice {
    /// The process was started.
    Forked {
        /// Which worker.
        worker: WorkerId,
        /// Its process.
        pid: u32,
    },
    /// It opened its channel.
    Online {
        /// Which worker.
        worker: WorkerId,
    },
    /// One of its servers listens.
    Listening {
        /// Which worker.
        worker: WorkerId,
        /// Where.
        at: Listening,
    },
    /// Its channel closed.
    Disconnected {
        /// Which worker.
        worker: WorkerId,
        /// Whether somebody had asked for it.
        voluntary: bool,
    },
    /// Its process ended.
    Exited {
        /// Which worker.
        worker: WorkerId,
        /// How.
        how: ExitHow,
        /// Whether somebody had asked for it.
        voluntary: bool,
    },
    /// It does not take the connections that wait for it, so that they go to others; or it does
    /// again.
    Stalled {
        /// Which worker.
        worker: WorkerId,
        /// Whether it does not.
        stalled: bool,
    },
    /// A listener is not steered by the kernel as was chosen, or not with a socket for each worker.
    NotSteered {
        /// Which listener, in the words of the worker that asked for it.
        at: Address,
        /// Why, and what is done instead.
        reason: String,
    },
    /// A listener was closed because no worker has it any more and nobody who is starting may ask
    /// for it, or, while connections waited for a worker, because it is not to wait for one.
    ListenerClosed {
        /// Where it was bound.
        at: Address,
        /// Connections that waited there; they were closed.
        dropped: usize,
        /// Set if a successor should have listened there: where, in the words of the worker that
        /// had asked for it.
        missed: Option<Address>,
    },
    /// It broke a rule of the channel.
    Misbehaved {
        /// Which worker.
        worker: WorkerId,
        /// Which rule.
        violation: Violation,
        /// True if its channel was closed for it.
        cut_off: bool,
    },
}
