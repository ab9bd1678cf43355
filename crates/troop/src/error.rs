//! What can go wrong, with its cause.

use std::io;
use std::time::Duration;

use troop_core::text::{escaped, lines};

use crate::WorkerId;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. The text fits "failed to …"; the cause, where there is one, is the
/// [source](std::error::Error::source).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A worker's process could not be started. Nothing runs.
    #[error("start {program}: {step}")]
    Spawn {
        /// What was to be executed.
        program: String,
        /// The step that failed, in words.
        step: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A listener could not be opened.
    #[error("listen on {}", escaped(address))]
    Listen {
        /// Where.
        address: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// An address makes no sense.
    #[error("understand the address {address:?}: {reason}")]
    Address {
        /// What was given.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A worker was killed while the system killed processes because it had run out of memory.
    #[error(
        "go on: it was killed by SIGKILL while the kernel killed processes because memory had run out"
    )]
    OutOfMemory,
    /// A worker was killed because it, and what it had started, needed more memory than its control
    /// group may have, in MiB.
    #[error("go on: it needed more memory than the {0} MiB of its control group")]
    OverMemory(u64),
    /// The channel to the other process is closed, or closed before an answer came.
    #[error("reach the other process: its channel is closed")]
    Closed,
    /// Nothing more fits into the channel's queue at the moment; the other side does not read fast
    /// enough.
    #[error("queue the message: the channel is full")]
    Full,
    /// No answer came in time.
    #[error("get an answer within {0:?}")]
    TimedOut(Duration),
    /// The other side refused a request, in its own words.
    #[error("get an answer: the other side says {:.1000}", escaped(.0))]
    Refused(String),
    /// The other side could not receive the socket, even after several attempts.
    #[error("pass the socket: the other process cannot take it")]
    HandleRefused,
    /// The other process ended before this many bytes of messages were written to its channel.
    #[error("deliver {0} bytes of messages: the other process has gone")]
    Undelivered(usize),
    /// A message could not be turned into JSON or back.
    #[error("convert a message")]
    Json(#[from] serde_json::Error),
    /// There is no such worker, or its process has ended.
    #[error("find worker {0}: its process has ended")]
    NoWorker(WorkerId),
    /// The cluster is over.
    #[error("reach the cluster: its primary has ended")]
    ClusterOver,
    /// The identity of a worker must be taken from the environment while the process has one
    /// thread.
    #[error(
        "take this worker's identity from the environment: other threads run already; call troop::role() first in main"
    )]
    TooLate,
    /// The environment says that this process is a worker, but its channel is unusable.
    #[error("use the channel in NODE_CHANNEL_FD={value}: {reason}")]
    Channel {
        /// What the variable says.
        value: String,
        /// What is wrong.
        reason: String,
    },
    /// No worker became ready, or none was any more, so no more were started.
    #[error("keep the workers running: {0}")]
    GaveUp(String),
    /// This process, or the system, is short of descriptors or memory. Said once per ten seconds,
    /// with how often it happened since.
    #[error("{doing}: {advice} ({times} times since this was last said)")]
    Short {
        /// What was being done.
        doing: &'static str,
        /// What becomes of it, and what to do.
        advice: String,
        /// How often, this time included.
        times: u64,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A setting makes no sense.
    #[error("use the settings: {0}")]
    Settings(String),
    /// This worker's identity was taken before; there is only one.
    #[error(
        "take this worker's identity: it was taken before, by an earlier call of troop::role or troop::worker"
    )]
    RoleTaken,
    /// This process was started as a worker and does not know it, so it must not start workers.
    #[error("start workers: this process is a worker itself: {0}")]
    RoleNotTaken(String),
    /// Another failure of the system.
    #[error("{doing}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

impl From<io::Error> for Error {
    /// For the program's own errors, so that `?` works in a function that returns [`Result`].
    fn from(source: io::Error) -> Error {
        Error::Io { doing: "run the program", source }
    }
}

impl Error {
    pub(crate) fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Io { doing, source }
    }

    /// Bytes of its texts, roughly.
    pub(crate) fn weight(&self) -> usize {
        match self {
            Error::Spawn { program, step, .. } => program.len() + step.len(),
            Error::Listen { address, .. } => address.len(),
            Error::Address { address: text, reason } | Error::Channel { value: text, reason } => {
                text.len() + reason.len()
            }
            Error::Refused(text)
            | Error::GaveUp(text)
            | Error::Settings(text)
            | Error::Short { advice: text, .. } => text.len(),
            _ => 0,
        }
    }

    /// The error and all its causes in one line, safe to show; only a [`GaveUp`](Error::GaveUp) has
    /// more, with a worker's last lines.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = format!("failed to {self}");
        let mut cause = std::error::Error::source(self);
        while let Some(e) = cause {
            text.push_str(": ");
            text.push_str(&e.to_string());
            cause = e.source();
        }
        lines(&text, "")
    }
}
