//! The messages of the control socket: `docs/control.md`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use troop::snapshot::Snapshot;

use crate::app::{Counts, ScheduleSnapshot};

use crate::records::{Scaled, Text};

/// The version of the protocol.
pub(crate) const VERSION: u32 = 1;

/// Deadline for an answer.
pub(crate) const ANSWER_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// The longest request, in bytes. One to restart may have the environment of its client, which the
/// system limits to 6 MiB, and to 2 MiB as a rule.
pub(crate) const MAX_REQUEST: usize = 4 * 1024 * 1024;

/// A request to a primary: one line.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Envelope {
    /// The version of the protocol.
    pub(crate) troop: u32,
    /// For whom the client asks, if not for its own user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) on_behalf_of: Option<String>,
    #[serde(flatten)]
    pub(crate) request: Request,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub(crate) enum Request {
    /// Returns an [`AppSnapshot`].
    Snapshot,
    /// Replaces all workers, or one of them; answered when that has succeeded or failed.
    Reload {
        #[serde(default)]
        worker: Option<u32>,
        /// Whether the new workers may listen on other addresses.
        #[serde(default)]
        allow_moved: bool,
        /// The environment that workers inherit from then on, instead of the primary's.
        #[serde(default)]
        env: Option<Vec<(Text, Text)>>,
    },
    /// Stops the workers and starts the app again, re-reading its configuration. The connection
    /// stays open until the primary executes itself.
    Restart {
        /// The environment that the primary then has; its own one if that is not set.
        #[serde(default)]
        env: Option<Vec<(Text, Text)>>,
    },
    /// Has another engine go on with the app, of the program as it is installed now or of the one at
    /// `path`. It answers.
    Upgrade {
        #[serde(default)]
        path: Option<PathBuf>,
    },
    /// Has the keeper execute another program in its own place: troop as it is installed now, or the one at
    /// `path`.
    UpgradeKeeper {
        #[serde(default)]
        path: Option<PathBuf>,
    },
    /// Returns where the output of the workers goes.
    Logs,
    /// Changes the number of workers, to `workers` or by `by`; answered when as many are ready and
    /// the others gone, unless `wait` is false.
    Scale {
        workers: Option<usize>,
        #[serde(default)]
        by: i64,
        #[serde(default = "yes")]
        wait: bool,
    },
    /// Stops the app; `quick` kills its workers. The connection stays open until the process ends.
    Stop {
        #[serde(default)]
        quick: bool,
        /// Whether the app is no longer listed then.
        #[serde(default)]
        forget: bool,
    },
    /// Changes the scheduling of one listener, or the default of all others.
    Schedule { listener: Option<String>, policy: String },
    /// Sends a signal to one worker or to all.
    Signal { signal: i32, worker: Option<u32> },
    /// Sends a message to one worker or to all, and waits `wait_ms` milliseconds for replies, if
    /// that is set.
    Send {
        message: Value,
        worker: Option<u32>,
        #[serde(default)]
        wait_ms: Option<u64>,
    },
    /// Writes text to the standard input of one worker; without a number, of the only one.
    Input { text: String, worker: Option<u32> },
    /// Returns the metrics that workers keep themselves, by their numbers, and those that have not told
    /// them in this time.
    WorkerMetrics { wait_ms: u64 },
    /// Counts restarts from 0 again.
    Reset,
    /// Streams events until the client leaves.
    Events,
}

fn yes() -> bool {
    true
}

/// The field of an answer that says why what was done is not written down.
pub(crate) const UNKEPT: &str = "unkept";

/// A line from a primary; the last one is `done` or `failed`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Answer {
    /// An event, in the format of `troop run --log json`.
    Event(Value),
    Done(Value),
    Failed(Failure),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// The kind, for programs: `bad-request`, `busy`, `failed`, `no-worker`, `over`.
    pub(crate) kind: String,
    /// The reason, for people.
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(kind: &str, message: impl Into<String>) -> Failure {
        Failure { kind: kind.into(), message: message.into() }
    }
}

/// An app and its snapshot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct AppSnapshot {
    pub(crate) name: String,
    pub(crate) program: String,
    /// The version of troop that runs it.
    pub(crate) version: String,
    /// The configuration file, if the app comes from one.
    #[serde(default)]
    pub(crate) file: Option<String>,
    /// The log file, if output goes to one.
    #[serde(default)]
    pub(crate) log: Option<String>,
    /// Whether the program runs as no part of a cluster (`alone`).
    #[serde(default)]
    pub(crate) alone: bool,
    /// The number of output lines that could not be written.
    #[serde(default)]
    pub(crate) lost_lines: u64,
    /// The times at which something happens, if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) schedule: Option<ScheduleSnapshot>,
    /// What to tell of the start: that workers count as ready which have not said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) hint: Option<String>,
    /// The last lines of the worker that has failed last, if not all were ready since the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_lines: Option<String>,
    /// The number of workers that `troop scale` has set, and that of the configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) scaled: Option<Scaled>,
    /// What the primary and its workers use together; `usage` in the snapshot is of the primary alone.
    #[serde(default)]
    pub(crate) total: Total,
    /// How often things have happened since the start of the primary.
    #[serde(default)]
    pub(crate) counts: Counts,
    #[serde(flatten)]
    pub(crate) snapshot: Snapshot,
}

/// What the processes of an app use together: the primary and its workers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Total {
    /// CPU time so far.
    pub(crate) cpu_ms: u64,
    /// Sum of their resident memory (RSS), in bytes. Pages that they share count for each.
    pub(crate) rss: u64,
}

impl Total {
    pub(crate) fn of(snapshot: &Snapshot) -> Total {
        let workers = snapshot.workers.iter().map(|worker| worker.usage);
        workers.chain([snapshot.usage]).flatten().fold(Total::default(), |sum, usage| Total {
            cpu_ms: sum.cpu_ms + usage.cpu_ms,
            rss: sum.rss + usage.rss,
        })
    }
}
