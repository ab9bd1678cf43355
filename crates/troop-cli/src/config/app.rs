//! The options of one app in a `troop.toml`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::ValueEnum;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use troop::Scheduling;

use super::values::{Size, Time, Workers, texts, texts_schema};

/// One app. Options that are left out have the defaults of `troop run`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct App {
    /// The program: a script (.js, .mjs, .cjs and .ts run under node), a path, or a name on the PATH.
    pub(crate) program: String,
    /// The program's arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) args: Vec<String>,
    /// Arguments for node, before the script.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) node_args: Vec<String>,
    /// Number of workers, or "auto" for one per usable CPU. Default: auto.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) workers: Option<Workers>,
    /// Sockets to bind and pass to the program by activation: "8000", "127.0.0.1:8000", "udp:53",
    /// "/run/app.sock", with or without "name=".
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) bind: Vec<String>,
    /// Scheduling of connections. Default: round-robin.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub(crate) policy: Option<Scheduling>,
    /// Policies of single listeners, by address.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "BTreeMap<String, String>")]
    pub(crate) listeners: BTreeMap<String, Scheduling>,
    /// The addresses that workers may listen on: `8000`, `127.0.0.1:8000`, `udp:53`, a path,
    /// `@abstract`, `fd:3`. Default: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) may_listen: Vec<String>,
    /// Inherited descriptors that workers may listen on, by number. Descriptors from systemd are
    /// offered anyway.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) fds: Vec<i32>,
    /// Weights of the workers, by slot; 100 is usual.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) weights: Vec<u32>,
    /// Environment variables for the workers. A number or a boolean is passed as its text.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "texts")]
    #[schemars(schema_with = "texts_schema")]
    pub(crate) env: BTreeMap<String, String>,
    /// Files with environment variables, one NAME=VALUE per line. Later files override earlier ones,
    /// `env` overrides all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) env_file: Vec<PathBuf>,
    /// Working directory of the workers, relative to this file. Default: the directory of this file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cwd: Option<PathBuf>,
    /// Discard the output of the workers.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) silent: bool,
    /// Grace period: time that a worker has to drain before it is killed. Default: 30 seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) grace: Option<Time>,
    /// Time over which a draining worker closes idle connections that cannot move to another one. Default: a third of
    /// `grace`, at most 10 seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) drain_spread: Option<Time>,
    /// Time for which workers go on serving after a stop was requested, while the app says that it
    /// is stopping, for balancers that learn of it late. Default: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) drain_delay: Option<Time>,
    /// Whether idle connections of Node workers move to other workers when theirs drains, by a script
    /// that node loads before the program. Default: true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) move_connections: Option<bool>,
    /// Whether idle connections move from workers with more than their share to workers with fewer, or
    /// the addresses where they do. Default: true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rebalance: Option<Rebalance>,
    /// Format of events. Default: human.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) log: Option<LogFormat>,
    /// User that workers run as, with its groups: a name or a number. `group` overrides the primary
    /// group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<String>,
    /// Group that workers run as: a name or a number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) group: Option<String>,
    /// Whether programs that workers execute get no privileges from the setuid bit or from file
    /// capabilities (sudo, ping, sendmail). Default: true where `user` is not troop's own user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) no_new_privileges: Option<bool>,
    /// Permissions to remove from new files of the workers, in octal: "027".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) umask: Option<String>,
    /// Nice level of the workers, -20 to 19.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -20, max = 19))]
    pub(crate) nice: Option<i32>,
    /// CPUs by slot, such as ["0-3", "4-7"], repeated for further slots; or ["each"]: one CPU per
    /// worker.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) cpus: Vec<String>,
    /// Limits of each worker: files, core, cpu, memory, stack, data, locked, processes, file-size;
    /// a number, a size, or "unlimited".
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) limits: BTreeMap<Limited, Limit>,
    /// Limits of each worker and its children, by a control group per worker (cgroups v2). Needs a
    /// unit with `Delegate=yes`, as `troop startup` writes it.
    #[serde(default, skip_serializing_if = "Cgroup::is_default")]
    pub(crate) cgroup: Cgroup,
    /// Restrictions of workers and their children, beyond the rights of their user. Turns on
    /// `no_new_privileges`.
    #[serde(default, skip_serializing_if = "Sandbox::is_default")]
    pub(crate) sandbox: Sandbox,
    /// Name of another variable with the worker's slot, besides TROOP_SLOT and NODE_APP_INSTANCE.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) slot_variable: Option<String>,
    /// What makes a worker ready. Default: auto.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ready: Option<Ready>,
    /// Time that a new worker has to become ready, at a start, a restart and a reload. Default: 30
    /// seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ready_timeout: Option<Time>,
    /// Time that the first new worker of a reload must stay ready before an old one drains. Default:
    /// 2 seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) min_ready_time: Option<Time>,
    /// Number of workers that a reload may start beyond `workers`. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_surge: Option<usize>,
    /// Number of workers that may be missing during a reload. Default: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_unavailable: Option<usize>,
    /// Time without a sign of life, or with a connection that is not acknowledged, after which a
    /// worker counts as hung; 0 turns this off. Default: 30 seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hang_timeout: Option<Time>,
    /// Signal that makes a worker write a report, sent to unhealthy and hung workers. Default: SIGUSR2
    /// if node_args has --report-on-signal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) report_signal: Option<String>,
    /// Signal that asks workers to finish: those without Node's IPC instead of a message, Node
    /// programs that have a handler for it when their requests are answered, others if they do not
    /// end after they have disconnected. Default: SIGTERM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stop_signal: Option<String>,
    /// Signal for workers that have not ended when `grace` is almost over (1 to 2 seconds before its
    /// end, at most half of it), before SIGKILL. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kill_signal: Option<String>,
    /// Send workers with Node's IPC the message 'shutdown' when they are to finish, as PM2 does.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) shutdown_with_message: bool,
    /// Processes that end with the worker that has started them. Default: tree.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kill_mode: Option<KillMode>,
    /// When workers that have ended are restarted, and when the app is given up.
    #[serde(default, skip_serializing_if = "Restart::is_default")]
    pub(crate) restart: Restart,
    /// When healthy workers are replaced.
    #[serde(default, skip_serializing_if = "Recycle::is_default")]
    pub(crate) recycle: Recycle,
    /// Health check of each worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) health: Option<Health>,
    /// Output of the workers.
    #[serde(default, skip_serializing_if = "Output::is_default")]
    pub(crate) output: Output,
    /// Reload when files change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) watch: Option<Watch>,
}

/// Options that a reload applies; the others apply from the next start on.
pub(crate) const LIVE: [&str; 26] = [
    "program",
    "args",
    "node_args",
    "move_connections",
    "workers",
    "env",
    "env_file",
    "cwd",
    "silent",
    "policy",
    "listeners",
    "user",
    "group",
    "no_new_privileges",
    "umask",
    "nice",
    "cpus",
    "limits",
    "cgroup",
    "sandbox",
    "slot_variable",
    "report_signal",
    "stop_signal",
    "kill_signal",
    "shutdown_with_message",
    "kill_mode",
];

impl App {
    /// Returns an app of this program with all defaults.
    pub(crate) fn new(program: impl Into<String>) -> App {
        App {
            program: program.into(),
            args: Vec::new(),
            node_args: Vec::new(),
            workers: None,
            bind: Vec::new(),
            policy: None,
            listeners: BTreeMap::new(),
            may_listen: Vec::new(),
            fds: Vec::new(),
            weights: Vec::new(),
            env: BTreeMap::new(),
            env_file: Vec::new(),
            cwd: None,
            silent: false,
            grace: None,
            drain_spread: None,
            drain_delay: None,
            move_connections: None,
            rebalance: None,
            log: None,
            user: None,
            group: None,
            no_new_privileges: None,
            umask: None,
            nice: None,
            cpus: Vec::new(),
            limits: BTreeMap::new(),
            cgroup: Cgroup::default(),
            sandbox: Sandbox::default(),
            slot_variable: None,
            ready: None,
            ready_timeout: None,
            min_ready_time: None,
            max_surge: None,
            max_unavailable: None,
            hang_timeout: None,
            report_signal: None,
            stop_signal: None,
            kill_signal: None,
            shutdown_with_message: false,
            kill_mode: None,
            restart: Restart::default(),
            recycle: Recycle::default(),
            health: None,
            output: Output::default(),
            watch: None,
        }
    }
}

/// Format of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// One sentence per event
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

/// Processes that end with the worker that has started them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum KillMode {
    /// All of them, unless they were started without the variable TROOP_TREE
    Tree,
    /// Those in the worker's process group; daemons, which have left it, go on
    Group,
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
    /// Number of connections after which a worker is replaced.
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
    /// Files and directories to watch, relative to the working directory of the workers. Default:
    /// that directory.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) paths: Vec<PathBuf>,
    /// Names to ignore, besides node_modules, target, __pycache__, *.log and names that begin with a
    /// dot; `*` matches anything.
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
