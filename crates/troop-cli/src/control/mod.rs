//! How a primary and those who steer it talk: `docs/control.md`.

pub(crate) mod client;
mod door;
pub(crate) mod place;
mod send;
pub(crate) mod server;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use troop::snapshot::Snapshot;

/// The version of the protocol.
pub(crate) const VERSION: u32 = 1;

/// Deadline for an answer.
pub(crate) const ANSWER_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// What is sent to a primary, as one line.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    /// The version.
    pub(crate) troop: u32,
    #[serde(flatten)]
    pub(crate) ask: Ask,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub(crate) enum Ask {
    /// How does it stand? The answer is an [`App`].
    Snapshot,
    /// Replaces the workers, or one of them; the answer comes when that is done, or was taken back.
    Reload {
        #[serde(default)]
        worker: Option<u32>,
        /// The new workers may listen elsewhere than the old ones.
        #[serde(default)]
        allow_moved: bool,
    },
    /// Ends the workers, and begins anew with what the file says then. The connection is held until
    /// the end.
    Restart,
    /// Where what workers print goes.
    Logs,
    /// Changes how many workers there are: to so many, or by so many.
    Scale {
        workers: Option<usize>,
        #[serde(default)]
        by: i64,
    },
    /// Ends it, at once if that is asked for. The connection is held until the process ends.
    Stop {
        #[serde(default)]
        quick: bool,
    },
    /// Changes how connections are spread, of one listener or of all that nothing else was chosen
    /// for.
    Schedule { listener: Option<String>, policy: String },
    /// Sends a signal to a worker, or to all.
    Signal { signal: i32, worker: Option<u32> },
    /// Sends a message to a worker, or to all, and waits so many milliseconds for answers, if that
    /// is asked for.
    Send {
        message: Value,
        worker: Option<u32>,
        #[serde(default)]
        wait_ms: Option<u64>,
    },
    /// Everything that happens from now on.
    Events,
}

/// What a primary sends back, line by line; the last one is `done` or `failed`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Answer {
    /// What happens meanwhile, as `troop run --log json` writes it.
    Event(Value),
    Done(Value),
    Failed(Failure),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// For programs: `bad-request`, `busy`, `failed`, `no-worker`, `over`.
    pub(crate) kind: String,
    /// For people.
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(kind: &str, message: impl Into<String>) -> Failure {
        Failure { kind: kind.into(), message: message.into() }
    }
}

/// An app and how it stands.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct App {
    pub(crate) name: String,
    pub(crate) program: String,
    /// The version of troop that runs it.
    pub(crate) version: String,
    /// The file that it comes from.
    #[serde(default)]
    pub(crate) file: Option<String>,
    /// Where what workers print goes, if it is a file.
    #[serde(default)]
    pub(crate) log: Option<String>,
    /// Lines of it that could not be written.
    #[serde(default)]
    pub(crate) lost_lines: u64,
    #[serde(flatten)]
    pub(crate) snapshot: Snapshot,
}
