//! The errors of this crate, with their causes.

use std::fmt;
use std::io;
use std::time::Duration;

use troop_core::supervise::{NotReady, RecycleFailed, ReloadFailed};
use troop_core::text::{escaped, lines};

use crate::WorkerId;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this crate.
///
/// `Display` says what failed; the system's reason, where there is one, is the
/// [source](std::error::Error::source). `Debug` prints both in one line, so that a `main` that
/// returns [`Result`] ends with a message for people:
///
/// ```text
/// Error: cannot listen on 0.0.0.0:8000: Address already in use (os error 98)
/// ```
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A worker's process could not be started. Nothing runs.
    #[error("cannot start {program}: {step}")]
    Spawn {
        /// The program.
        program: String,
        /// The step that failed, in words.
        step: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A listener could not be opened.
    #[error("cannot listen on {}", escaped(address))]
    Listen {
        /// The address.
        address: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// An address is invalid.
    #[error("{address:?} is no address to use: {reason}")]
    Address {
        /// The given text.
        address: String,
        /// The reason.
        reason: String,
    },
    /// A worker was killed while the system killed processes because it had run out of memory.
    #[error("killed by SIGKILL while the kernel killed processes because memory had run out")]
    OutOfMemory,
    /// A worker was killed because it and its descendants exceeded the memory limit of its control
    /// group, in MiB.
    #[error("killed because it needed more memory than the {0} MiB of its control group")]
    OverMemory(u64),
    /// The process of a worker, with this id, has not ended within 5 s after `SIGKILL`: it waits in
    /// the kernel for a device or a file system that does not answer. It is treated as ended.
    #[error(
        "process {0} does not end by SIGKILL, because it waits for a device or a file system that does not answer (state D in ps); it is left behind"
    )]
    Unkillable(u32),
    /// Processes that an ended worker has left behind may still run: they do not end by `SIGKILL` in
    /// time, start others faster than those are found, or are among too many to check all.
    #[error(
        "at least {count} processes that process {leader} left behind may still run: they did not all end by SIGKILL in time; end those of process group {leader} and with its TROOP_TREE in /proc/PID/environ, or give workers control groups, which end as a whole"
    )]
    Survivors {
        /// The process id of the worker.
        leader: u32,
        /// Number of processes that were seen.
        count: usize,
    },
    /// Files that workers of other users have sent are not closed yet, because their file systems do
    /// not answer. Until they do, such workers can send no sockets either.
    #[error(
        "cannot close files that workers have sent: their file systems do not answer; until they do, sockets that workers of other users send are dropped"
    )]
    UnclosedFiles,
    /// The channel to the other process is closed, or closed before an answer came.
    #[error("the channel to the other process is closed")]
    Closed,
    /// The channel's queue is full, because the other side does not read fast enough.
    #[error("the channel is full: the other process does not read fast enough")]
    Full,
    /// No answer came in time.
    #[error("no answer came within {0:?}")]
    TimedOut(Duration),
    /// The other side refused a request, with this text.
    #[error("the other process refused: {:.1000}", escaped(.0))]
    Refused(String),
    /// The other side could not receive the socket, even after several attempts.
    #[error("the other process cannot take the socket")]
    HandleRefused,
    /// The other process ended before this many bytes of messages were written to its channel.
    #[error("the other process ended before {0} bytes of messages were delivered")]
    Undelivered(usize),
    /// A message could not be turned into JSON or back.
    #[error("cannot convert a message")]
    Json(#[from] serde_json::Error),
    /// There is no such worker, or its process has ended.
    #[error("there is no worker {0}, or its process has ended")]
    NoWorker(WorkerId),
    /// The cluster is over.
    #[error("the cluster has ended")]
    ClusterOver,
    /// The identity of a worker must be taken from the environment while the process has one
    /// thread.
    #[error(
        "cannot take this worker's identity from the environment: other threads run already; call troop::role() first in main"
    )]
    TooLate,
    /// The environment says that this process is a worker, but its channel is unusable.
    #[error("cannot use the channel in NODE_CHANNEL_FD={value}: {reason}")]
    Channel {
        /// The value of the variable.
        value: String,
        /// The reason.
        reason: String,
    },
    /// Supervision gave up, because no worker became ready, or none was ready any more.
    #[error("{reason}")]
    GaveUp {
        /// The reason: which worker ended, and how.
        reason: String,
        /// The last lines that this worker wrote to standard error, if they were collected.
        last_lines: Option<String>,
    },
    /// The primary's program image was not [replaced](crate::Cluster::replace), for this reason.
    #[error("cannot replace the program of the primary: {0}")]
    NotReplaced(String),
    /// The keeper of this engine has ended, which is the process with this number.
    #[error(
        "the keeper, process {0}, has ended, so the app stops: it is the process that is known, and nobody else could stop it"
    )]
    KeeperEnded(u32),
    /// A reload did not replace all workers.
    #[error("cannot reload: {0}")]
    Reload(Box<ReloadFailed>),
    /// A worker was not recycled.
    #[error("cannot recycle the worker: {0}")]
    Recycle(Box<RecycleFailed>),
    /// The workers will not become ready.
    #[error("cannot wait for the workers: {0}")]
    NotReady(Box<NotReady>),
    /// This process, or the system, is short of descriptors or memory. Reported at most every ten
    /// seconds, with the number of occurrences since.
    #[error("cannot {doing}: {advice} ({times} times since this was last said)")]
    Short {
        /// What was being done.
        doing: &'static str,
        /// The consequence, and what to do.
        advice: String,
        /// The number of occurrences, this one included.
        times: u64,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A setting is invalid.
    #[error("{0}")]
    Settings(String),
    /// This worker's identity was taken before; there is only one.
    #[error(
        "cannot take this worker's identity: it was taken before, by an earlier call of troop::role or troop::worker"
    )]
    RoleTaken,
    /// This process was started as a worker and has not taken its role, so it must not start
    /// workers.
    #[error("cannot start workers: this process is a worker itself: {0}")]
    RoleNotTaken(String),
    /// Another failure of the system.
    #[error("cannot {doing}")]
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

impl From<ReloadFailed> for Error {
    fn from(failed: ReloadFailed) -> Error {
        Error::Reload(Box::new(failed))
    }
}

impl From<RecycleFailed> for Error {
    fn from(failed: RecycleFailed) -> Error {
        Error::Recycle(Box::new(failed))
    }
}

impl From<NotReady> for Error {
    fn from(failed: NotReady) -> Error {
        Error::NotReady(Box::new(failed))
    }
}

impl Error {
    pub(crate) fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Io { doing, source }
    }

    /// Returns the approximate number of bytes of its texts.
    pub(crate) fn weight(&self) -> usize {
        match self {
            Error::Spawn { program, step, .. } => program.len() + step.len(),
            Error::Listen { address, .. } => address.len(),
            Error::Address { address: text, reason } | Error::Channel { value: text, reason } => {
                text.len() + reason.len()
            }
            Error::GaveUp { reason, last_lines } => {
                reason.len() + last_lines.as_ref().map_or(0, String::len)
            }
            Error::Refused(text)
            | Error::Settings(text)
            | Error::NotReplaced(text)
            | Error::Short { advice: text, .. } => text.len(),
            _ => 0,
        }
    }

    /// Returns the error and all its causes in one line, safe to show on a terminal; a
    /// [`GaveUp`](Error::GaveUp) is followed by the worker's last lines.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.causes();
        if let Some(tail) = self.last_lines() {
            text.push_str("; the last lines of its standard error:\n");
            text.push_str(&lines(tail.trim_end(), "    | "));
        }
        text
    }

    /// Returns the last lines of the worker at fault.
    fn last_lines(&self) -> Option<&str> {
        match self {
            Error::GaveUp { last_lines, .. } => last_lines.as_deref(),
            Error::Reload(failed) => failed.last_lines(),
            Error::Recycle(failed) => failed.last_lines(),
            Error::NotReady(failed) => failed.last_lines(),
            _ => None,
        }
    }

    /// Returns the error, its causes and a remedy in one line.
    fn causes(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(e) = cause {
            text.push_str(": ");
            text.push_str(&e.to_string());
            cause = e.source();
        }
        if let Some(hint) = self.hint() {
            text.push_str(&format!(" ({hint})"));
        }
        lines(&text, "")
    }

    fn hint(&self) -> Option<&'static str> {
        let Error::Listen { address, source } = self else { return None };
        let port = address.rsplit(':').next()?.parse::<u16>().ok()?;
        (source.kind() == io::ErrorKind::PermissionDenied && (1..1024).contains(&port))
            .then_some("ports below 1024 need CAP_NET_BIND_SERVICE")
    }
}

/// Writes one line, as `main` shows it: the error, its causes, and the line of a worker's last ones
/// that names the failure.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.causes().replace('\n', " "))?;
        match self.last_lines().and_then(telling_line) {
            Some(line) => write!(f, ": {}", escaped(line)),
            None => Ok(()),
        }
    }
}

/// Returns the line of a worker's last ones that names the failure: the last one that is not a
/// remark of the language's runtime.
fn telling_line(tail: &str) -> Option<&str> {
    let is_remark = |line: &str| line.starts_with("note: ") || line.starts_with("Node.js v");
    let line =
        tail.lines().rev().map(str::trim).find(|line| !line.is_empty() && !is_remark(line))?;
    Some(line.strip_prefix("Error: ").unwrap_or(line))
}
