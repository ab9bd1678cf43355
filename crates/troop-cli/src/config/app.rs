//! What can be said about one app.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::ValueEnum;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use troop::Scheduling;

use super::values::{Size, Time, Workers};

/// One app. What is left out is as for `troop run`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct App {
    /// A script (.js, .mjs, .cjs, .ts runs under node), a path, or a name on the PATH.
    pub(crate) program: String,
    /// The program's arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) args: Vec<String>,
    /// Arguments for node, before the script.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) node_args: Vec<String>,
    /// How many workers: a number, or "auto" for one per CPU that may be used. Default: auto.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) workers: Option<Workers>,
    /// Sockets for programs that take them by activation: "8000", "127.0.0.1:8000", "udp:53",
    /// "/run/app.sock", with or without "name=".
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) bind: Vec<String>,
    /// How connections are spread. Default: round-robin.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub(crate) policy: Option<Scheduling>,
    /// Policies of certain listeners, by address.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "BTreeMap<String, String>")]
    pub(crate) listeners: BTreeMap<String, Scheduling>,
    /// The only listeners that workers may ask for: `8000`, `127.0.0.1:8000`, `udp:53`, a path,
    /// `@abstract`, `fd:3`. Default: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) may_listen: Vec<String>,
    /// Descriptors that troop has inherited and workers may listen on by their numbers. Those from
    /// systemd need no naming.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) fds: Vec<i32>,
    /// The workers' parts of the connections, in relation to 100.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) weights: Vec<u32>,
    /// Environment variables for the workers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) env: BTreeMap<String, String>,
    /// Files with more of them, one NAME=VALUE per line; later files, and `env`, go before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) env_file: Vec<PathBuf>,
    /// Where workers run, relative to the file. Default: where the file is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cwd: Option<PathBuf>,
    /// Discard what workers print.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) silent: bool,
    /// How long a worker may take to finish before it is killed. Default: 30 seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) grace: Option<Time>,
    /// Over how much time a Rust worker that is replaced closes connections that clients keep open.
    /// Default: a third of `grace`, at most 10 seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) drain_spread: Option<Time>,
    /// How events are written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) log: Option<LogFormat>,
    /// The user that workers run as: a name or a number. Its group and groups are taken too, unless
    /// `group` says otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<String>,
    /// The group that workers run as: a name or a number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) group: Option<String>,
    /// Nothing that a worker executes gives it privileges: no setuid bit, no file capability (sudo,
    /// ping, sendmail). Default: true where `user` is another user than troop's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) no_new_privileges: Option<bool>,
    /// Permissions that the workers' new files do not get, in octal: "027".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) umask: Option<String>,
    /// Nice level of the workers, -20 to 19.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -20, max = 19))]
    pub(crate) nice: Option<i32>,
    /// CPUs by slot, such as ["0-3", "4-7"], and round again; or ["each"]: one for each worker.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) cpus: Vec<String>,
    /// Limits of each worker: files, core, cpu, memory, stack, data, locked, processes, file-size;
    /// a number, a size, or "unlimited".
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) limits: BTreeMap<Limited, Limit>,
    /// What each worker may use of the machine, with all that it starts, by a control group of its
    /// own (cgroups v2). Needs a unit with `Delegate=yes`, as `troop startup` writes it.
    #[serde(default, skip_serializing_if = "Cgroup::is_default")]
    pub(crate) cgroup: Cgroup,
    /// What workers, and all that they start, are kept from beyond their user's rights. Needs
    /// `no_new_privileges`, which it turns on.
    #[serde(default, skip_serializing_if = "Sandbox::is_default")]
    pub(crate) sandbox: Sandbox,
    /// A variable that tells a worker its slot, besides TROOP_SLOT and NODE_APP_INSTANCE.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) slot_variable: Option<String>,
    /// When a worker is ready. Default: auto.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ready: Option<Ready>,
    /// How long a new worker may take to be ready, in a reload and after the end of another one.
    /// Default: 30 seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ready_timeout: Option<Time>,
    /// How long the first new worker of a reload must have been ready before an old one leaves.
    /// Default: 2 seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) min_ready_time: Option<Time>,
    /// How many workers more than there should be a reload may start. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_surge: Option<usize>,
    /// How many workers fewer than there should be a reload may make do with. Default: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_unavailable: Option<usize>,
    /// How long a worker may leave a connection unanswered, or give no sign of life while it
    /// listens, before it is held to be hung; 0 for ever. Default: 30 seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hang_timeout: Option<Time>,
    /// A signal that makes a worker write a report, sent to sick and hung ones. Default: SIGUSR2 if
    /// node_args has --report-on-signal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) report_signal: Option<String>,
    /// When workers that end are started again, and when the app is given up.
    #[serde(default, skip_serializing_if = "Restart::is_default")]
    pub(crate) restart: Restart,
    /// When workers are replaced although nothing is wrong with them.
    #[serde(default, skip_serializing_if = "Recycle::is_default")]
    pub(crate) recycle: Recycle,
    /// A test of each worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) health: Option<Health>,
    /// What becomes of what workers print.
    #[serde(default, skip_serializing_if = "Output::is_default")]
    pub(crate) output: Output,
    /// Reload when files change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) watch: Option<Watch>,
}

impl App {
    /// A program, and nothing said about it.
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
            restart: Restart::default(),
            recycle: Recycle::default(),
            health: None,
            output: Output::default(),
            watch: None,
        }
    }
}

/// How events are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// One sentence per event
    Human,
    /// One JSON object per event
    Json,
}

/// What can be limited.
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
pub(crate) enum Limit {
    Number(u64),
    Text(String),
    Pair([LimitValue; 2]),
}

/// One side of a limit.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum LimitValue {
    Number(u64),
    Text(String),
}

/// When a worker is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Ready {
    /// When it listens; a program that does not, when it has stayed up for a while
    Auto,
    /// When it listens
    Listening,
    /// When it calls process.send('ready'), as with PM2's wait_ready
    Message,
    /// When it says READY=1, as to systemd
    Notify,
}

/// Which ends are followed by a restart.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize, Serialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum When {
    /// All that were not asked for
    #[default]
    Always,
    /// All but exits with code 0
    OnFailure,
    /// None
    Never,
}

/// What follows when workers had been ready and none is any more.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize, Serialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Failed {
    /// The app stays, and goes on starting workers
    #[default]
    Stay,
    /// When no worker has been ready for `window`, the primary ends with an error
    End,
}

/// Restarts.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Restart {
    /// Which ends are followed by a restart. Default: always.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) when: Option<When>,
    /// Exit codes that are not followed by one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) final_codes: Vec<i32>,
    /// A worker that was ready for this long is restarted at once when it ends. Default: 1 second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) min_uptime: Option<Time>,
    /// The delay before the first restart of a slot whose worker was not; doubled each time.
    /// Default: 100 ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) delay: Option<Time>,
    /// The longest delay. Default: 5 seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_delay: Option<Time>,
    /// Ends within `window`, of all workers together, after which a start without a ready worker
    /// has failed. Default: 4 per worker, at least 8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max: Option<usize>,
    /// How long a start may be without a ready worker (`ready_timeout`, if that is longer); with
    /// `when_failed = "end"` also how long the app may be later. Default: 2 minutes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) window: Option<Time>,
    /// What follows when workers had been ready and none is any more. Default: stay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) when_failed: Option<Failed>,
    /// Whether listeners stay open while they have no worker, so that clients wait instead of being
    /// refused. Default: true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) keep_listeners: Option<bool>,
}

/// Recycling: replacing workers that are too old or too big.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Recycle {
    /// When a worker has more resident memory than this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) memory: Option<Size>,
    /// When it is older than this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) age: Option<Time>,
    /// When it has taken more connections than this from the primary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) connections: Option<u64>,
    /// By up to which part age and connections are lowered by chance. Default: 0.1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) jitter: Option<f64>,
}

/// What a worker may use of the machine.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Cgroup {
    /// Memory; a worker that needs more is killed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) memory: Option<Size>,
    /// Memory above which a worker is slowed down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) memory_high: Option<Size>,
    /// Swap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) swap: Option<Size>,
    /// How many CPUs' worth of time; 0.5 is half of one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cpu: Option<f64>,
    /// Its part when there is not enough for all, from 1 to 10000; others have 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cpu_weight: Option<u32>,
    /// Processes and threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) processes: Option<u32>,
    /// Other files of the control group: `{ "io.weight" = "50" }`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) other: BTreeMap<String, String>,
}

/// What workers are kept from. Paths stand for all that is below; relative ones begin where workers
/// run.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Sandbox {
    /// All that can be read and executed, the program and its libraries among it. Default:
    /// everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) read: Option<Vec<PathBuf>>,
    /// All that can be changed, and read. Default: everything; with `read`, nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) write: Option<Vec<PathBuf>>,
    /// System calls that fail with EPERM.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) deny_system_calls: Vec<Denied>,
    /// Leave out what the kernel does not know, instead of not starting. Default: false.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) best_effort: bool,
}

/// A group of system calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Denied {
    /// All that follow
    All,
    /// Tracing other processes and reading their memory
    Debug,
    /// io_uring
    IoUring,
    /// What concerns the kernel itself: BPF, modules, userfaultfd, kexec, reboot, swap, clocks
    Kernel,
    /// The kernel's keyrings
    Keyring,
    /// Mounts, and other roots
    Mount,
    /// New namespaces, and those of others
    Namespaces,
}

/// A test of each worker: one of `http`, `tcp`, `command`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Health {
    /// A path that answers with a status from 200 to 399.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) http: Option<String>,
    /// The worker takes a connection.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) tcp: bool,
    /// A command for sh that ends with 0; it finds TROOP_WORKER, TROOP_WORKER_PID and TROOP_SLOT in
    /// its environment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) command: Option<String>,
    /// The pause between two tests. Default: 10 seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) every: Option<Time>,
    /// How long one may take. Default: 5 seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) timeout: Option<Time>,
    /// How many in a row have to fail before the worker is replaced. Default: 3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) failures: Option<u32>,
    /// The listener that the connection is to come from, if a worker has several: an address as for
    /// policies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) listener: Option<String>,
}

/// Where output goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum To {
    /// Where troop's own goes
    Terminal,
    /// Into files
    Files,
    /// To systemd's journal
    Journal,
}

/// How lines of output are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Form {
    /// As they are
    Plain,
    /// Behind the time and the worker's slot
    Prefixed,
    /// One JSON object per line
    Json,
}

/// What becomes of what workers print.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Output {
    /// Where it goes. Default: where troop's own goes; in the background (`troop start`) into
    /// files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) to: Option<To>,
    /// How lines are written. Default: in files prefixed, else plain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) format: Option<Form>,
    /// The file, relative to the directory for logs. Default: the app's name and ".log".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) file: Option<PathBuf>,
    /// A file of its own for standard error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error_file: Option<PathBuf>,
    /// A file is closed, and kept under another name, when it is this big; 0 for never. Default:
    /// 10M.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rotate_size: Option<Size>,
    /// Or this old.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rotate_age: Option<Time>,
    /// How many of those are kept. Default: 5.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) keep: Option<usize>,
    /// What they may have together; the oldest go first. Default: as it comes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) total: Option<Size>,
}

/// Which changes of files are followed by a reload.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Watch {
    /// Files and directories with all that is in them, relative to where workers run. Default: that
    /// itself.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) paths: Vec<PathBuf>,
    /// Names that are ignored, besides node_modules, target, __pycache__, *.log and what begins
    /// with a dot; `*` stands for anything.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) ignore: Vec<String>,
    /// How long there must be quiet before it reloads. Default: 200 ms.
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
