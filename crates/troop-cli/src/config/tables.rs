//! The tables and values in the options of an app.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::ValueEnum;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::values::{Size, Time, texts, texts_schema};

/// Format of events.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Deserialize, Serialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// One sentence per event
    #[default]
    Human,
    /// One JSON object per event
    Json,
}

/// Resources with a limit (`setrlimit(2)`).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Limited {
    Files,
    Core,
    Cpu,
    Memory,
    Stack,
    Data,
    Locked,
    Processes,
    FileSize,
}

/// A limit: a number, a size, "unlimited", or a pair of these, soft and hard.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
#[serde(expecting = "it must be a number, \"2G\", \"unlimited\", or a pair of these: [1024, 4096]")]
pub(crate) enum Limit {
    Number(u64),
    Text(String),
    Pair([LimitValue; 2]),
}

/// The listeners whose connections are shared out anew.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
#[serde(expecting = "it must be true, false, or addresses such as [\"8000\", \"udp:53\"]")]
pub(crate) enum Rebalance {
    All(bool),
    Only(Vec<String>),
}

/// Whether a program is no part of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
#[serde(expecting = "it must be true, false or \"auto\"")]
pub(crate) enum Alone {
    Is(bool),
    IfPrimary(Auto),
}

/// The word "auto".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Auto {
    Auto,
}

/// One side of a limit.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum LimitValue {
    Number(u64),
    Text(String),
}

/// What makes a worker ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Ready {
    /// It listens; a program that does not listen has run for a while
    Auto,
    /// It listens
    Listening,
    /// It has called process.send('ready'), as with PM2's wait_ready
    Message,
    /// It has sent READY=1 to NOTIFY_SOCKET, as to systemd
    Notify,
}

/// What a run does for whose time the last one is not over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Overlap {
    /// It is left out
    #[default]
    Skip,
    /// It ends the last one
    Replace,
}

/// Processes that end with the worker that has started them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum KillMode {
    /// All of them, unless they were started without the variable TROOP_TREE
    Tree,
    /// Those in the worker's process group; daemons, which have left it, go on
    Group,
    /// The worker's own process alone; what it has started goes on
    Process,
}

/// When to restart a worker that has ended.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize, Serialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum When {
    /// After every unexpected end
    #[default]
    Always,
    /// After every unexpected end but an exit with code 0
    OnFailure,
    /// Never
    Never,
}

/// What an app does when it has been ready and has no ready worker any more.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize, Serialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Failed {
    /// Keep restarting workers
    #[default]
    Stay,
    /// End with an error when no worker has been ready for `window`
    End,
}

/// Restarts of workers that have ended.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default, expecting = "a table such as { when = \"on-failure\" }")]
pub(crate) struct Restart {
    /// When to restart a worker that has ended. Default: always.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) when: Option<When>,
    /// Exit codes after which a worker is not restarted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) final_codes: Vec<i32>,
    /// Workers that were ready for at least this long restart immediately. Default: 1 second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) min_uptime: Option<Time>,
    /// Delay before the first restart of other workers; it doubles each time. Default: 100 ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) delay: Option<Time>,
    /// The longest delay. Default: 5 seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_delay: Option<Time>,
    /// Number of ends within `window`, of all workers, after which a start without a ready worker has
    /// failed. Default: 4 per worker, at least 8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max: Option<usize>,
    /// Time that a start may take without a ready worker (`ready_timeout`, if that is longer); with
    /// `when_failed = "end"` also the time that the app may later be without one. Default: 2 minutes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) window: Option<Time>,
    /// What an app does when it has been ready and has no ready worker any more. Default: stay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) when_failed: Option<Failed>,
    /// Whether listeners without a worker stay open, so that clients wait instead of being refused.
    /// Default: true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) keep_listeners: Option<bool>,
}

/// Recycling: when to replace healthy workers.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default, expecting = "a table such as { memory = \"300M\" }")]
pub(crate) struct Recycle {
    /// Resident memory above which a worker is replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) memory: Option<Size>,
    /// Age at which a worker is replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) age: Option<Time>,
    /// Times at which all workers are replaced, as by `troop reload`: a pattern as for `cron`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cron: Option<String>,
    /// Number of connections after which a worker is replaced. With `bind`, those count that were seen
    /// open, once a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) connections: Option<u64>,
    /// Largest part by which age and connections are lowered at random. Default: 0.1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) jitter: Option<f64>,
}

/// Limits of a worker and its children.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default, expecting = "a table such as { memory = \"512M\" }")]
pub(crate) struct Cgroup {
    /// Memory; a worker that exceeds it is killed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) memory: Option<Size>,
    /// Memory above which the kernel slows a worker down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) memory_high: Option<Size>,
    /// Swap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) swap: Option<Size>,
    /// CPU time, in CPUs; 0.5 is half of one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cpu: Option<f64>,
    /// Weight of its CPU time when CPUs are busy, from 1 to 10000; 100 is usual.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cpu_weight: Option<u32>,
    /// Number of processes and threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) processes: Option<u32>,
    /// Other files of the control group: `{ "io.weight" = "50" }`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "texts")]
    #[schemars(schema_with = "texts_schema")]
    pub(crate) other: BTreeMap<String, String>,
}

/// Restrictions of workers. A path includes everything below it; relative paths start at the working
/// directory of the workers.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default, expecting = "a table such as { write = [\"data\"] }")]
pub(crate) struct Sandbox {
    /// Paths that can be read and executed, including the program and its libraries. Default:
    /// everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) read: Option<Vec<PathBuf>>,
    /// Paths that can be written and read. Default: everything; with `read`, nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) write: Option<Vec<PathBuf>>,
    /// System calls that fail with EPERM.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) deny_system_calls: Vec<Denied>,
    /// Whether to start without the restrictions that the kernel does not support. Default: false.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) best_effort: bool,
}

/// A group of system calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Denied {
    /// All of these groups
    All,
    /// Tracing other processes and reading their memory
    Debug,
    /// io_uring
    IoUring,
    /// The kernel itself: BPF, modules, userfaultfd, kexec, reboot, swap, clocks
    Kernel,
    /// The kernel's keyrings
    Keyring,
    /// Mounts and root directories
    Mount,
    /// Creating and entering namespaces
    Namespaces,
}

/// A health check: one of `http`, `tcp` and `command`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default, expecting = "a table such as { http = \"/health\" }")]
pub(crate) struct Health {
    /// Path that must answer with a status from 200 to 399.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) http: Option<String>,
    /// Whether to check that the worker takes a connection.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) tcp: bool,
    /// Shell command that must exit with 0; its environment has TROOP_WORKER, TROOP_WORKER_PID and
    /// TROOP_SLOT.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) command: Option<String>,
    /// Interval between checks. Default: 10 seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) every: Option<Time>,
    /// Timeout of a check. Default: 5 seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) timeout: Option<Time>,
    /// Number of consecutive failures after which the worker is replaced. Default: 3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) failures: Option<u32>,
    /// Listener to check, if a worker has several: an address as for policies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) listener: Option<String>,
}

/// Where output goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum To {
    /// Standard output and standard error of troop
    Terminal,
    /// Files
    Files,
    /// The journal of systemd
    Journal,
}

/// Format of output lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Form {
    /// Unchanged
    Plain,
    /// After the time and the worker's slot
    Prefixed,
    /// One JSON object per line
    Json,
}

/// Output of the workers.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default, expecting = "a table such as { to = \"files\" }")]
pub(crate) struct Output {
    /// Destination. Default: terminal; in the background (`troop start`) files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) to: Option<To>,
    /// Format of lines. Default: prefixed in files, else plain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) format: Option<Form>,
    /// Log file, relative to the log directory. Default: the app's name and ".log".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) file: Option<PathBuf>,
    /// Separate log file for standard error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error_file: Option<PathBuf>,
    /// Further log file with both, beside `file` and `error_file`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) all_file: Option<PathBuf>,
    /// Write troop's own lines, events among them, to the app's default log file instead of to `file`,
    /// which then has nothing but the output of the workers. Default: false.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) events_apart: bool,
    /// Write a file for each slot, as PM2 does: `web-0.log`, `web-1.log` for `web.log`. Only files whose
    /// names end in .log; troop's own lines go to the app's default log file. Default: false.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) per_worker: bool,
    /// Size at which a log file is rotated; 0 turns rotation by size off. Default: 10M.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rotate_size: Option<Size>,
    /// Age at which a log file is rotated. Default: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rotate_age: Option<Time>,
    /// Number of rotated files that are kept. Default: 5.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) keep: Option<usize>,
    /// Total size of rotated files, above which the oldest are removed. Default: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) total: Option<Size>,
}

/// Files whose changes cause a reload.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default, expecting = "a table such as { paths = [\"src\"] }")]
pub(crate) struct Watch {
    /// Files and directories to watch, relative to the working directory of the workers, or patterns
    /// (`src/**/*.js`). Default: that directory.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) paths: Vec<PathBuf>,
    /// Names to ignore, besides node_modules, target, __pycache__, *.log and names that begin with a
    /// dot; paths, with everything below them; or patterns with `*`, `**`, `?`, `[ab]` and `{a,b}`.
    /// What a pattern behind `!` matches is not ignored.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) ignore: Vec<String>,
    /// Time without changes before a reload. Default: 200 ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) delay: Option<Time>,
}

macro_rules! is_default {
    ($($type:ident),*) => { $(impl $type {
        pub(crate) fn is_default(&self) -> bool {
            *self == $type::default()
        }
    })* };
}

is_default!(Cgroup, Restart, Recycle, Output, Sandbox);
