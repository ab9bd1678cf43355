//! The options of one app in a `troop.toml`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use troop::Scheduling;

use super::tables::{
    Alone, Cgroup, Health, KillMode, Limit, Limited, LogFormat, Output, Overlap, Ready, Rebalance,
    Recycle, Restart, Sandbox, Watch,
};
use super::values::{Time, Workers, texts, texts_schema};

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
    /// Run the program as no part of a cluster, as PM2's fork mode does: it listens by itself, and may
    /// be the primary of a cluster of its own. "auto": only if it asks whether it is a primary before
    /// it listens. Default: false; "auto" for apps of a PM2 file in fork mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) alone: Option<Alone>,
    /// Apps of this file that must be ready before this one starts. Default: all start side by side.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) after: Vec<String>,
    /// Sockets to bind and pass to the program by activation: "8000", "127.0.0.1:8000", "udp:53",
    /// "/run/app.sock", with or without "name=".
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) bind: Vec<String>,
    /// Permissions of sockets of `bind` that are paths, in octal: "0660". They belong to `user` and
    /// `group`; clients need the right to write. Default: what `umask` leaves, of the app or else of troop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) socket_mode: Option<String>,
    /// Scheduling of connections. Default: auto.
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
    /// Inherited variables that workers do not get: names, in which `*` matches anything; those that
    /// a name behind `!` matches stay. `env` and `env_file` override this.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) env_remove: Vec<String>,
    /// Working directory of the workers, relative to this file. Default: the directory of this file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cwd: Option<PathBuf>,
    /// Namespace: a name by which verbs select all apps that have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) namespace: Option<String>,
    /// Times at which the program runs, each time to its end, instead of all the time: a pattern of
    /// minute, hour, day of month, month and weekday ("30 4 * * *"), with seconds before them or not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cron: Option<String>,
    /// What a run does for whose time the last one is not over. Default: skip.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) overlap: Option<Overlap>,
    /// Whether a program with times runs when the app starts, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) run_at_start: bool,
    /// Whether `troop start` starts the app when it starts all apps of the file. Default: true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) autostart: Option<bool>,
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
    /// File with the process number of the primary, for programs that signal it (`kill -HUP`), relative
    /// to the working directory; removed at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pid_file: Option<PathBuf>,
    /// Files with the process numbers of the workers, a file for each slot: `web-0.pid`, `web-1.pid` for
    /// `web.pid`, as PM2 names them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) worker_pid_file: Option<PathBuf>,
    /// Name of a variable whose number in `env` (default: 0) grows by the worker's slot, such as a port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) increment_variable: Option<String>,
    /// What makes a worker ready. Default: auto.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ready: Option<Ready>,
    /// Time that a new worker has to become ready, at a start, a restart and a reload. Default: 30
    /// seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ready_timeout: Option<Time>,
    /// Time after which a worker that has not reported that it is ready (`message`, `notify`) counts as
    /// ready all the same, with a warning. Default: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) assume_ready: Option<Time>,
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
    /// Whether the stop signal and the kill signal go to all processes of the worker's group, as with
    /// supervisord's `stopasgroup`. Default: only SIGINT, where the worker is a shell, which then waits
    /// for its program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stop_group: Option<bool>,
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
pub(crate) const LIVE: [&str; 29] = [
    "program",
    "args",
    "node_args",
    "move_connections",
    "workers",
    "env",
    "env_file",
    "env_remove",
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
    "increment_variable",
    "report_signal",
    "stop_signal",
    "stop_group",
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
            alone: None,
            after: Vec::new(),
            bind: Vec::new(),
            socket_mode: None,
            policy: None,
            listeners: BTreeMap::new(),
            may_listen: Vec::new(),
            fds: Vec::new(),
            weights: Vec::new(),
            env: BTreeMap::new(),
            env_file: Vec::new(),
            env_remove: Vec::new(),
            cwd: None,
            namespace: None,
            cron: None,
            overlap: None,
            run_at_start: false,
            autostart: None,
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
            increment_variable: None,
            pid_file: None,
            worker_pid_file: None,
            ready: None,
            ready_timeout: None,
            assume_ready: None,
            min_ready_time: None,
            max_surge: None,
            max_unavailable: None,
            hang_timeout: None,
            report_signal: None,
            stop_signal: None,
            stop_group: None,
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
