//! Settings of workers: program, environment, user, limits, sandbox, standard streams.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use troop_sys::spawn;

use crate::activation::ActivationSocket;
use crate::error::{Error, Result};
pub use crate::primary::{Cgroup, Output, Source};

mod check;
mod kill_mode;
mod preload;
mod prepare;
mod resolved;
mod sandbox;

pub use kill_mode::KillMode;
pub(crate) use prepare::{Prepared, texts};
pub use sandbox::{Sandbox, SystemCalls};

/// The connection of a worker's standard stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Stdio {
    /// The primary's own stream.
    #[default]
    Inherit,
    /// Nothing (`/dev/null`).
    Null,
    /// A pipe that the program reads, or, for standard input, writes:
    /// [`WorkerHandle::take_stdout`](crate::WorkerHandle::take_stdout). A worker blocks when it is
    /// full.
    Pipe,
    /// Passed on to the primary's stream. For standard output and error. The last lines of standard
    /// error are kept for messages about workers that keep dying.
    Forward,
    /// Not shown; the last lines are kept. For standard error.
    Capture,
    /// Given to [`Builder::output`](crate::Builder::output), which must be set. For standard output
    /// and error. The last lines of standard error are kept.
    Collect,
}

/// A resource of a process that [`Setup::limit`] limits (`getrlimit(2)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Resource {
    /// Open descriptors.
    Files,
    /// Size of a core dump, in bytes.
    Core,
    /// CPU time, in seconds.
    Cpu,
    /// Address space, in bytes.
    Memory,
    /// Stack, in bytes.
    Stack,
    /// Heap and data, in bytes.
    Data,
    /// Memory locked against swapping, in bytes.
    Locked,
    /// Processes of the user.
    Processes,
    /// Size of a file that is written, in bytes.
    FileSize,
}

impl Resource {
    fn number(self) -> spawn::LimitNumber {
        match self {
            Resource::Files => spawn::RLIMIT_NOFILE,
            Resource::Core => spawn::RLIMIT_CORE,
            Resource::Cpu => spawn::RLIMIT_CPU,
            Resource::Memory => spawn::RLIMIT_AS,
            Resource::Stack => spawn::RLIMIT_STACK,
            Resource::Data => spawn::RLIMIT_DATA,
            Resource::Locked => spawn::RLIMIT_MEMLOCK,
            Resource::Processes => spawn::RLIMIT_NPROC,
            Resource::FileSize => spawn::RLIMIT_FSIZE,
        }
    }
}

/// The port of a Node worker's inspector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum InspectPort {
    /// Counts up from the port in the arguments, or from 9229, one further for each worker.
    #[default]
    Automatic,
    /// Always this one; for clusters of one worker.
    Fixed(u16),
}

/// Settings with which workers are started: program, arguments, environment, user, limits.
///
/// One type for three uses, as [`std::process::Command`] is for its own:
/// - **A description**, for [`Builder::setup`](crate::Builder::setup). What it does not mention has
///   its default: a copy of this program with the same arguments and environment.
/// - **A change** to a running cluster, for [`Cluster::setup`](crate::Cluster::setup) and
///   [`Cluster::reload_as`](crate::Cluster::reload_as). What it does not mention stays as it is, as
///   with Node's `cluster.setupPrimary`; see [`Setup::merge`]. Workers that run already are not
///   affected.
/// - **A view** of what a cluster's workers are started with, in
///   [`Event::Setup`](crate::Event::Setup). The `get_` methods return what counts in the end: what
///   was set, or else the default.
///
/// A setting that cannot be applied is an error when a worker is started, never ignored.
///
/// ```
/// use std::path::Path;
///
/// use troop::Setup;
///
/// let setup = Setup::new().script("server.js").args(["--port", "8000"]).env("LOG", "info");
/// assert_eq!(setup.get_program(), Some(Path::new("node")));
///
/// // A later setup changes what it mentions.
/// let setup = setup.merge(Setup::new().args(["--port", "9000"]));
/// assert_eq!(setup.get_script(), Some(Path::new("server.js")));
/// assert_eq!(setup.get_args().as_ref(), ["--port", "9000"]);
/// ```
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct Setup {
    program: Option<PathBuf>,
    exec_argv: Option<Vec<OsString>>,
    script: Option<PathBuf>,
    preload: Option<PathBuf>,
    args: Option<Vec<OsString>>,
    cwd: Option<PathBuf>,
    /// Variables that are set, or, with `None`, removed.
    env: BTreeMap<OsString, Option<OsString>>,
    stdio: [Option<Stdio>; 3],
    uid: Option<u32>,
    gid: Option<u32>,
    groups: Option<Vec<u32>>,
    own_process_group: Option<bool>,
    kill_mode: Option<KillMode>,
    no_new_privileges: Option<bool>,
    sandbox: Option<Sandbox>,
    inspect_port: Option<InspectPort>,
    umask: Option<u32>,
    nice: Option<i32>,
    cpus: Option<Vec<Vec<usize>>>,
    cgroup: Option<Cgroup>,
    limits: BTreeMap<Resource, (Option<u64>, Option<u64>)>,
    /// Besides [`SLOT`].
    slot_variables: Vec<OsString>,
    /// Variables with a number that grows by the slot, and the number of slot 0.
    counting_variables: BTreeMap<OsString, i64>,
    report_signal: Option<i32>,
    stop_signal: Option<i32>,
    stop_group: Option<bool>,
    kill_signal: Option<i32>,
    shutdown_message: Option<bool>,
    alone: Option<bool>,
    /// Earlier setups do not count.
    discards_earlier: bool,
    /// Settings that the cluster sets itself, and changes do not.
    pub(crate) cluster: ClusterPart,
}

/// The part of a [`Setup`] that the cluster decides, because it belongs to its builder.
#[derive(Debug, Clone, Default)]
pub(crate) struct ClusterPart {
    /// Sockets that workers get instead of a channel.
    pub(crate) activation: Option<Arc<[ActivationSocket]>>,
    /// A supervisor starts the workers: they have slots, and lead process groups unless a setup says
    /// otherwise.
    pub(crate) is_supervised: bool,
    /// Whether there is a receiver of the workers' collected output.
    pub(crate) has_output: bool,
}

fn list<S: Into<OsString>>(all: impl IntoIterator<Item = S>) -> Vec<OsString> {
    all.into_iter().map(Into::into).collect()
}

impl Setup {
    /// Returns a setup without any setting.
    pub fn new() -> Setup {
        Setup::default()
    }

    /// Executes this program instead of a copy of the running one. A name without a slash is
    /// searched in `PATH`.
    pub fn program(mut self, path: impl Into<PathBuf>) -> Setup {
        self.program = Some(path.into());
        self
    }

    /// Executes the file at this program's path when a worker starts, so that a reload starts a
    /// version that was installed meanwhile. Without it, workers execute the image that runs now,
    /// whatever happens to its file: primary and workers are of one version until the next start.
    ///
    /// # Errors
    /// If the path of this program cannot be determined.
    pub fn program_on_disk(self) -> Result<Setup> {
        let path = std::env::current_exe().map_err(Error::io("determine this program's path"))?;
        // Linux marks the path of a file that was replaced (`proc_pid_exe(5)`).
        let path = match path.as_os_str().as_bytes().strip_suffix(b" (deleted)") {
            Some(before) if !path.exists() => Path::new(OsStr::from_bytes(before)).to_owned(),
            _ => path,
        };
        Ok(self.program(path))
    }

    /// Runs a script (Node's `exec`) under what [`Setup::program`] names, or else under `node`.
    pub fn script(mut self, script: impl Into<PathBuf>) -> Setup {
        self.script = Some(script.into());
        self
    }

    /// Has Node load this CommonJS script into workers before their program, by `--require` in
    /// `NODE_OPTIONS`. The script has to put `NODE_OPTIONS` back: `TROOP_NODE_OPTIONS` is empty if
    /// there was none, and otherwise what it was, after a `=`. Programs other than `node` with a
    /// script get nothing, and neither do workers that could not read it
    /// ([`Setup::preload_obstacle`]); a sandbox lets them. An empty path is no script.
    pub fn preload(mut self, script: impl Into<PathBuf>) -> Setup {
        self.preload = Some(script.into());
        self
    }

    /// Sets all arguments of the interpreter, which stand before the script (Node's `execArgv`).
    pub fn exec_argv<S: Into<OsString>>(mut self, args: impl IntoIterator<Item = S>) -> Setup {
        self.exec_argv = Some(list(args));
        self
    }

    /// Sets all arguments of the program, in place of those set before. Default: those of this
    /// process.
    pub fn args<S: Into<OsString>>(mut self, args: impl IntoIterator<Item = S>) -> Setup {
        self.args = Some(list(args));
        self
    }

    /// Sets the working directory. Default: this process's.
    pub fn cwd(mut self, directory: impl Into<PathBuf>) -> Setup {
        self.cwd = Some(directory.into());
        self
    }

    /// Adds an environment variable to those of this process's environment. The variables that
    /// identify a worker (`NODE_UNIQUE_ID`, `NODE_CHANNEL_FD`) cannot be overridden.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Setup {
        self.env.insert(name.into(), Some(value.into()));
        self
    }

    /// Removes an environment variable, whether it comes from this process's environment or from
    /// an earlier [`Setup::env`]: `NOTIFY_SOCKET`, for example.
    pub fn env_remove(mut self, name: impl Into<OsString>) -> Setup {
        self.env.insert(name.into(), None);
        self
    }

    /// Makes this setup count alone: what it does not mention has its default, whatever earlier
    /// setups said.
    pub fn discard_earlier(mut self) -> Setup {
        self.discards_earlier = true;
        self
    }

    /// Sets Node's `silent`: standard output and error become pipes, or are inherited again.
    pub fn silent(self, silent: bool) -> Setup {
        let stdio = if silent { Stdio::Pipe } else { Stdio::Inherit };
        self.stdout(stdio).stderr(stdio)
    }

    /// Sets what standard input is connected to.
    pub fn stdin(mut self, stdio: Stdio) -> Setup {
        self.stdio[0] = Some(stdio);
        self
    }

    /// Sets what standard output is connected to.
    pub fn stdout(mut self, stdio: Stdio) -> Setup {
        self.stdio[1] = Some(stdio);
        self
    }

    /// Sets what standard error is connected to.
    pub fn stderr(mut self, stdio: Stdio) -> Setup {
        self.stdio[2] = Some(stdio);
        self
    }

    /// Sets the user to run as. A worker of another user than this process's gets a session of its
    /// own, no terminal, no capabilities, no [new privileges](Setup::no_new_privileges), and none
    /// of the variables that name this process's user and its places (`HOME`, `USER`, `LOGNAME`,
    /// `SHELL`, `MAIL`, `XDG_…`, `SUDO_…`, `SSH_…`) but those of [`Setup::env`]. Where a stream
    /// would be inherited that is a terminal, it gets `/dev/null` as its input, and what it prints
    /// is passed on: on a terminal escaped, each line behind `| `, so that it neither controls the
    /// terminal nor passes for a line of this process.
    pub fn uid(mut self, uid: u32) -> Setup {
        self.uid = Some(uid);
        self
    }

    /// Sets the group to run as.
    pub fn gid(mut self, gid: u32) -> Setup {
        self.gid = Some(gid);
        self
    }

    /// Sets the supplementary groups.
    pub fn groups(mut self, groups: impl Into<Vec<u32>>) -> Setup {
        self.groups = Some(groups.into());
        self
    }

    /// Sets whether each worker leads a new process group. If so, a terminal's Ctrl-C, and a signal
    /// to the primary's process group, reach the primary alone, which lets its workers finish; and
    /// a worker's input is `/dev/null` where it would be the terminal, because reading from there
    /// would stop it. Default: true for supervised workers ([`Builder::run`](crate::Builder::run),
    /// [`Builder::workers`](crate::Builder::workers)), false for those that the program forks, as
    /// with Node.
    pub fn own_process_group(mut self, own: bool) -> Setup {
        self.own_process_group = Some(own);
        self
    }

    /// Keeps everything that a worker executes from giving it privileges, or not
    /// (`PR_SET_NO_NEW_PRIVS`, and an empty capability bounding set). Programs with the setuid bit
    /// or file capabilities (`sendmail`, `sudo`, `ping`) do not get theirs, then. Default: true for
    /// workers of another user than this process's, unless that is root, and in a
    /// [sandbox](Setup::sandbox).
    pub fn no_new_privileges(mut self, none: bool) -> Setup {
        self.no_new_privileges = Some(none);
        self
    }

    /// Restricts workers beyond their user's rights: files, system calls. Workers cannot be started
    /// where the kernel does not support that; the error names the missing feature.
    pub fn sandbox(mut self, sandbox: Sandbox) -> Setup {
        self.sandbox = Some(sandbox);
        self
    }

    /// Sets how the inspector ports of Node workers are chosen.
    pub fn inspect_port(mut self, port: InspectPort) -> Setup {
        self.inspect_port = Some(port);
        self
    }

    /// Sets the permissions that the workers' new files do not get, such as `0o027`.
    pub fn umask(mut self, mask: u32) -> Setup {
        self.umask = Some(mask);
        self
    }

    /// Sets the nice level, from -20 (first) to 19 (last). Less than this process's needs a
    /// privilege.
    pub fn nice(mut self, level: i32) -> Setup {
        self.nice = Some(level);
        self
    }

    /// Sets the CPUs that workers run on: the first entry is for the first slot, and so on, and
    /// round again. Only supervised workers have slots; others get the first entry.
    pub fn cpus(mut self, by_slot: impl Into<Vec<Vec<usize>>>) -> Setup {
        self.cpus = Some(by_slot.into());
        self
    }

    /// Limits a resource, soft and hard; `None` is no limit.
    pub fn limit(mut self, resource: Resource, soft: Option<u64>, hard: Option<u64>) -> Setup {
        self.limits.insert(resource, (soft, hard));
        self
    }

    /// Limits each worker by a control group (cgroups v2). Workers cannot be started where the
    /// system does not allow it; the error names what is missing.
    pub fn cgroup(mut self, limits: Cgroup) -> Setup {
        self.cgroup = Some(limits);
        self
    }

    /// Adds a variable, besides `TROOP_SLOT`, that tells a supervised worker its slot:
    /// `NODE_APP_INSTANCE` for programs that know PM2.
    pub fn slot_variable(mut self, name: impl Into<OsString>) -> Setup {
        self.slot_variables.push(name.into());
        self
    }

    /// Sets a variable of a supervised worker to a number that grows by its slot: `first` for slot 0,
    /// one more for slot 1. For programs that each need a port of their own.
    pub fn counting_variable(mut self, name: impl Into<OsString>, first: i64) -> Setup {
        self.counting_variables.insert(name.into(), first);
        self
    }

    /// Sets a signal that makes a worker write a report of what it does: `SIGUSR2` for Node with
    /// `--report-on-signal`. It is sent to one that fails its health check and is replaced, and to
    /// one that is hung, a second before `SIGABRT`.
    pub fn report_signal(mut self, signal: i32) -> Setup {
        self.report_signal = Some(signal);
        self
    }

    /// Sets which processes that a worker has started end with it. Default:
    /// [`KillMode::Group`].
    pub fn kill_mode(mut self, mode: KillMode) -> Setup {
        self.kill_mode = Some(mode);
        self
    }

    /// Sets the signal that asks a worker to finish: one without Node's protocol instead of a
    /// message, others if their process does not end within 2 s after they have disconnected, or
    /// when the grace period is about to end: a quarter of it before, but 1 to 2 s, and at most half
    /// of it. A Node worker with troop's script ([`Setup::preload`]) whose program has a handler for
    /// the signal gets it as soon as it is disconnected. An error if no program can handle the signal.
    /// Default: `SIGTERM`.
    pub fn stop_signal(mut self, signal: i32) -> Setup {
        self.stop_signal = Some(signal);
        self
    }

    /// Sets whether the stop signal and the kill signal go to all processes of the worker's group, as
    /// terminals send theirs, if it leads one ([`Setup::own_process_group`]) that ends with it
    /// ([`Setup::kill_mode`]). Otherwise it hears them alone, and the others get `SIGTERM` when it has
    /// ended. Default: only `SIGINT`, and only if the worker is a shell by then: after that signal
    /// a shell waits for the program that it has started, which is to have it, too.
    pub fn stop_group(mut self, all: bool) -> Setup {
        self.stop_group = Some(all);
        self
    }

    /// Sets a signal for workers that have not ended when the grace period is about to end (as with
    /// [`Setup::stop_signal`]), although they were sent the stop signal before; `SIGKILL` follows,
    /// so that it is an error here. Default: none.
    pub fn kill_signal(mut self, signal: i32) -> Setup {
        self.kill_signal = Some(signal);
        self
    }

    /// Sets whether a worker with a channel gets the message `"shutdown"` when it is to finish,
    /// before it is disconnected, as with PM2's `shutdown_with_message`. Default: false.
    pub fn shutdown_message(mut self, sends: bool) -> Setup {
        self.shutdown_message = Some(sends);
        self
    }

    /// Sets whether workers are no part of a cluster for their program, as with PM2's fork mode: it
    /// opens its listeners itself, and may be the primary of a cluster of its own. It has the
    /// channel of `child_process.fork` (`NODE_CHANNEL_FD`), so that messages work, but no number
    /// (`NODE_UNIQUE_ID`). It is asked to finish by the stop signal, and with
    /// [`Setup::shutdown_message`] by that message before. A program that listens at a fixed address
    /// cannot run beside its successor: set
    /// [`ReplacePolicy::max_unavailable`](crate::supervise::ReplacePolicy::max_unavailable) above 0
    /// and [`max_surge`](crate::supervise::ReplacePolicy::max_surge) to 0. Needs
    /// [`Setup::program`] or [`Setup::script`]. Default: false.
    pub fn alone(mut self, alone: bool) -> Setup {
        self.alone = Some(alone);
        self
    }

    /// Returns this setup with the changes of a later one. What `changes` does not mention stays.
    /// Variables, limits and slot variables are added to those that there are, and override those
    /// of the same name; everything else that `changes` mentions takes the place of what was.
    pub fn merge(self, changes: Setup) -> Setup {
        let cluster = self.cluster;
        if changes.discards_earlier {
            return Setup { cluster, ..changes };
        }
        let (mut env, mut limits) = (self.env, self.limits);
        let mut counting_variables = self.counting_variables;
        counting_variables.retain(|name, _| !changes.env.contains_key(name));
        counting_variables.extend(changes.counting_variables);
        env.extend(changes.env);
        limits.extend(changes.limits);
        let mut slot_variables = self.slot_variables;
        for name in changes.slot_variables {
            if !slot_variables.contains(&name) {
                slot_variables.push(name);
            }
        }
        let [stdin, stdout, stderr] = self.stdio;
        let [later_stdin, later_stdout, later_stderr] = changes.stdio;
        Setup {
            program: changes.program.or(self.program),
            exec_argv: changes.exec_argv.or(self.exec_argv),
            script: changes.script.or(self.script),
            preload: changes.preload.or(self.preload),
            args: changes.args.or(self.args),
            cwd: changes.cwd.or(self.cwd),
            env,
            stdio: [later_stdin.or(stdin), later_stdout.or(stdout), later_stderr.or(stderr)],
            uid: changes.uid.or(self.uid),
            gid: changes.gid.or(self.gid),
            groups: changes.groups.or(self.groups),
            own_process_group: changes.own_process_group.or(self.own_process_group),
            kill_mode: changes.kill_mode.or(self.kill_mode),
            no_new_privileges: changes.no_new_privileges.or(self.no_new_privileges),
            sandbox: changes.sandbox.or(self.sandbox),
            inspect_port: changes.inspect_port.or(self.inspect_port),
            umask: changes.umask.or(self.umask),
            nice: changes.nice.or(self.nice),
            cpus: changes.cpus.or(self.cpus),
            cgroup: changes.cgroup.or(self.cgroup),
            limits,
            slot_variables,
            counting_variables,
            report_signal: changes.report_signal.or(self.report_signal),
            stop_signal: changes.stop_signal.or(self.stop_signal),
            stop_group: changes.stop_group.or(self.stop_group),
            kill_signal: changes.kill_signal.or(self.kill_signal),
            shutdown_message: changes.shutdown_message.or(self.shutdown_message),
            alone: changes.alone.or(self.alone),
            discards_earlier: self.discards_earlier,
            cluster,
        }
    }
}

/// The variables that identify a worker.
pub(crate) const UNIQUE_ID: &str = "NODE_UNIQUE_ID";
/// The number of the channel's descriptor.
pub(crate) const CHANNEL_FD: &str = "NODE_CHANNEL_FD";
/// `json` or `advanced`.
pub(crate) const SERIALIZATION: &str = "NODE_CHANNEL_SERIALIZATION_MODE";

/// The number under which a worker finds its channel.
pub(crate) const CHANNEL_NUMBER: i32 = 3;
/// The variable that tells a supervised worker its slot.
const SLOT: &str = "TROOP_SLOT";
