//! Notices of the state machine, which become a program's events.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::asked::Asked;
use crate::id::WorkerId;
use crate::steer::{Mode, ModeReason};
use crate::text::escaped;

/// Maximum number of characters of a worker's text in a message.
const MAX_SHOWN: usize = 200;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ExitHow {
    /// It called `exit` with this code (0 to 255).
    Code(i32),
    /// This signal ended it.
    Signal(i32),
    /// Another party has reaped the process, so its status is unknown.
    Unknown,
}

impl ExitHow {
    /// Whether it exited with code 0.
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

/// Returns the name of a Linux signal, such as `SIGTERM`; `None` for real-time signals.
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
    /// A descriptor of the primary, by its number (`null`).
    Fd,
}

impl AddressType {
    /// Whether it is UDP, whose sockets are shared and never handed over.
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

/// The address of a listener, with the fields of Node's `listening` event.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Address {
    /// An IP, an absolute path, or `None` for any address.
    pub address: Option<String>,
    /// The port; -1 for Unix paths; `None` where the worker sent none.
    pub port: Option<i64>,
    /// The type of the address.
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
            // An abstract name arrives as `/directory/of/the/worker/\0name`.
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

/// A violation of the channel's protocol by a worker.
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
    /// An internal message with invalid fields, and the reason.
    Malformed(String),
    /// An unexpected acknowledgement.
    UnaskedAck,
    /// A message whose announced descriptor did not arrive.
    MissingHandle,
    /// This many descriptors that no message announced; they were closed.
    SurplusHandles(u64),
    /// A descriptor that is not a socket; it was closed.
    BadHandle,
    /// A connection that it returned and that is none; the descriptor was closed.
    NotAConnection,
    /// A descriptor that is not a socket, from a worker of another user. A fatal violation, because
    /// closing a file may block for ever on that user's file system.
    ForeignFile,
    /// It did not acknowledge a connection within this many milliseconds.
    Hung(u64),
    /// It did not answer a probe, and sent nothing else, for this many milliseconds.
    Silent(u64),
    /// More than this many listeners.
    TooManyListeners(usize),
    /// More than this many listeners, its share of the primary's descriptors.
    OverShare(usize),
    /// It made the primary block in `accept` on a shared socket.
    HeldUp,
    /// More than this many requests within ten seconds for listeners that could not be bound or
    /// that it closed again.
    TooManyBinds(u32),
    /// More than this many unacknowledged descriptors.
    Unacknowledged(usize),
    /// A request for a listener that workers may not have, and its address.
    Forbidden(String),
}

impl Violation {
    /// Whether the worker's channel is closed at the first such violation, because nothing that
    /// follows on it can be trusted.
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
            Violation::UnaskedAck => f.write_str("an unexpected acknowledgement"),
            Violation::MissingHandle => f.write_str("a message whose descriptor did not arrive"),
            Violation::SurplusHandles(n) => write!(f, "{n} descriptors that no message announced"),
            Violation::BadHandle => f.write_str("a descriptor that is not a socket"),
            Violation::NotAConnection => {
                f.write_str("a descriptor returned as a connection that is none")
            }
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

/// A fact about the cluster, in the order of Node's events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Notice {
    /// The process was started.
    Forked {
        /// The worker.
        worker: WorkerId,
        /// Its process id.
        pid: u32,
    },
    /// A worker has opened its channel.
    Online {
        /// The worker.
        worker: WorkerId,
    },
    /// A server of the worker listens.
    Listening {
        /// The worker.
        worker: WorkerId,
        /// The address.
        at: Listening,
    },
    /// A worker's channel has closed.
    Disconnected {
        /// The worker.
        worker: WorkerId,
        /// Whether it was requested.
        voluntary: bool,
    },
    /// A worker's process has ended.
    Exited {
        /// The worker.
        worker: WorkerId,
        /// How it ended.
        how: ExitHow,
        /// Whether it was requested.
        voluntary: bool,
    },
    /// A worker does not take its connections, so that they go to others; or it takes them again.
    Stalled {
        /// The worker.
        worker: WorkerId,
        /// True if it does not take them.
        stalled: bool,
    },
    /// A listener is not steered although that was chosen, or not with a socket per worker.
    NotSteered {
        /// The address that the worker asked for.
        at: Address,
        /// The reason and what is done instead.
        reason: String,
    },
    /// A listener under [`Scheduling::Auto`](crate::policy::Scheduling::Auto) has changed its mode.
    ModeChanged {
        /// The bound address.
        at: Address,
        /// The new mode.
        mode: Mode,
        /// The reason.
        reason: ModeReason,
    },
    /// A listener was closed: no worker has it, and no starting worker may ask for it, or the
    /// cluster does not keep it for a successor.
    ListenerClosed {
        /// The bound address.
        at: Address,
        /// Number of waiting connections that were closed with it.
        dropped: usize,
    },
    /// No worker listens any more where a successor should.
    ListenerMissed {
        /// Where that was bound.
        at: Address,
        /// What its worker had asked for.
        asked: Asked,
    },
    /// A worker has violated the channel's protocol.
    Misbehaved {
        /// The worker.
        worker: WorkerId,
        /// The violation.
        violation: Violation,
        /// Whether its channel was closed because of it.
        cut_off: bool,
    },
}
