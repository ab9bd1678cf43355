//! What workers are started with: program, environment, user, limits, sandbox, standard streams.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use troop_sys::identity::Identity;
use troop_sys::spawn;

use crate::activation::ActivationSocket;
pub use crate::primary::{Cgroup, Output, Source};

mod prepare;
mod sandbox;

pub(crate) use prepare::{Prepared, texts};
pub use sandbox::{Sandbox, SystemCalls};

/// What a standard stream of a worker is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Stdio {
    /// The primary's own stream.
    #[default]
    Inherit,
    /// Nothing (`/dev/null`).
    Null,
    /// A pipe that the program reads (or, for the input, writes):
    /// [`WorkerHandle::take_stdout`](crate::WorkerHandle::take_stdout).
    Pipe,
    /// Standard output and error: passed on to the primary's, and the last lines of standard error
    /// are kept for the message when workers keep dying.
    Forward,
    /// Standard error only: not shown, but the last lines are kept.
    Capture,
    /// Standard output and error: given to [`Builder::output`](crate::Builder::output), and the
    /// last lines of standard error are kept.
    Collect,
}

/// A resource that the system can limit for a process: `getrlimit(2)`.
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
    fn number(self) -> u32 {
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

/// What workers are started with. Read it from a cluster's [`Event::Setup`](crate::Event::Setup);
/// change it with [`Setup`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Settings {
    /// The executable; `None` is this program itself, the image that runs now, even if the file was
    /// replaced.
    pub exec_path: Option<PathBuf>,
    /// Arguments before [`exec`](Settings::exec), for an interpreter: Node's `execArgv`.
    pub exec_argv: Vec<OsString>,
    /// The script, for an interpreter.
    pub exec: Option<PathBuf>,
    /// The program's arguments. Those of this process by default.
    pub args: Vec<OsString>,
    /// Working directory; this process's by default.
    pub cwd: Option<PathBuf>,
    /// Variables on top of this process's environment.
    pub env: BTreeMap<OsString, OsString>,
    /// Variables of this process's environment that workers do not get.
    pub env_hidden: BTreeSet<OsString>,
    /// Sockets that workers get instead of a channel.
    pub(crate) activation: Option<Arc<[ActivationSocket]>>,
    /// Standard input, output and error.
    pub stdio: [Stdio; 3],
    /// User to run as.
    pub uid: Option<u32>,
    /// Group to run as.
    pub gid: Option<u32>,
    /// Supplementary groups. By default those of a privileged primary are dropped when `uid` or
    /// `gid` is set, as Node does.
    pub groups: Option<Vec<u32>>,
    /// Each worker leads a process group of its own, so that a terminal's Ctrl-C and a signal to
    /// the primary's group do not reach it; see [`Setup::own_process_group`].
    pub own_process_group: bool,
    /// That is how it is unless a setup says otherwise.
    pub(crate) groups_apart: bool,
    /// Nothing that a worker executes gives it privileges; see [`Setup::no_new_privileges`].
    pub no_new_privileges: Option<bool>,
    /// What workers are kept from beyond their user's rights.
    pub sandbox: Sandbox,
    /// Inspector ports of Node workers.
    pub inspect_port: InspectPort,
    /// Permissions that the workers' new files do not get; this process's mask by default.
    pub umask: Option<u32>,
    /// Nice level, from -20 to 19; this process's by default.
    pub nice: Option<i32>,
    /// The CPUs that a worker runs on: the first entry for the first slot, and so on, and round
    /// again. This process's by default.
    pub cpus: Vec<Vec<usize>>,
    /// Limits on resources, soft and hard; `None` is no limit.
    pub limits: BTreeMap<Resource, (Option<u64>, Option<u64>)>,
    /// Limits by a control group for each worker.
    pub cgroup: Cgroup,
    /// Variables that tell a supervised worker its slot, a small number that its successor has
    /// again.
    pub slot_variables: Vec<OsString>,
    /// A signal that makes a worker write a report of what it does; sent to one that fails its
    /// health check or is hung.
    pub report_signal: Option<i32>,
    /// Tell workers by `NOTIFY_SOCKET` where they can say that they are ready.
    pub(crate) notify: Option<OsString>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            exec_path: None,
            exec_argv: Vec::new(),
            exec: None,
            args: std::env::args_os().skip(1).collect(),
            cwd: None,
            env: BTreeMap::new(),
            env_hidden: BTreeSet::new(),
            activation: None,
            stdio: [Stdio::Inherit; 3],
            uid: None,
            gid: None,
            groups: None,
            own_process_group: false,
            groups_apart: false,
            no_new_privileges: None,
            sandbox: Sandbox::default(),
            inspect_port: InspectPort::Automatic,
            umask: None,
            nice: None,
            cgroup: Cgroup::default(),
            cpus: Vec::new(),
            limits: BTreeMap::new(),
            slot_variables: vec!["TROOP_SLOT".into()],
            report_signal: None,
            notify: None,
        }
    }
}

/// Changes to [`Settings`]. What is not mentioned stays as it is, from call to call, as with Node's
/// `cluster.setupPrimary`; forks made before are not affected.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct Setup {
    exec_path: Option<Option<PathBuf>>,
    exec_argv: Option<Vec<OsString>>,
    exec: Option<PathBuf>,
    args: Option<Vec<OsString>>,
    cwd: Option<PathBuf>,
    env: BTreeMap<OsString, OsString>,
    afresh: bool,
    env_hidden: Vec<OsString>,
    stdio: [Option<Stdio>; 3],
    uid: Option<u32>,
    gid: Option<u32>,
    groups: Option<Vec<u32>>,
    own_process_group: Option<bool>,
    no_new_privileges: Option<bool>,
    sandbox: Option<Sandbox>,
    inspect_port: Option<InspectPort>,
    umask: Option<u32>,
    nice: Option<i32>,
    cpus: Option<Vec<Vec<usize>>>,
    cgroup: Option<Cgroup>,
    limits: BTreeMap<Resource, (Option<u64>, Option<u64>)>,
    slot_variables: Vec<OsString>,
    report_signal: Option<i32>,
}

fn list<S: Into<OsString>>(all: impl IntoIterator<Item = S>) -> Vec<OsString> {
    all.into_iter().map(Into::into).collect()
}

impl Setup {
    /// Starts with no changes.
    pub fn new() -> Setup {
        Setup::default()
    }

    /// Executes this program instead of a copy of the running one. A name without a slash is
    /// searched in `PATH`.
    pub fn program(mut self, path: impl Into<PathBuf>) -> Setup {
        self.exec_path = Some(Some(path.into()));
        self
    }

    /// Runs a script under `node`, or under what [`Setup::program`] names.
    pub fn script(mut self, script: impl Into<PathBuf>) -> Setup {
        self.exec_path.get_or_insert_with(|| Some("node".into()));
        self.exec = Some(script.into());
        self
    }

    /// Sets arguments for the interpreter, before the script (Node's `execArgv`).
    pub fn exec_argv<S: Into<OsString>>(mut self, args: impl IntoIterator<Item = S>) -> Setup {
        self.exec_argv = Some(list(args));
        self
    }

    /// Sets the program's arguments.
    pub fn args<S: Into<OsString>>(mut self, args: impl IntoIterator<Item = S>) -> Setup {
        self.args = Some(list(args));
        self
    }

    /// Sets the working directory.
    pub fn cwd(mut self, directory: impl Into<PathBuf>) -> Setup {
        self.cwd = Some(directory.into());
        self
    }

    /// Hides a variable of this process's environment from the workers, such as `NOTIFY_SOCKET`.
    pub fn env_hide(mut self, name: impl Into<OsString>) -> Setup {
        self.env_hidden.push(name.into());
        self
    }

    /// Forgets everything that earlier setups have said.
    pub fn afresh(mut self) -> Setup {
        self.afresh = true;
        self
    }

    /// Adds an environment variable to those of this process's environment. The worker's identity
    /// cannot be overridden.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Setup {
        self.env.insert(name.into(), value.into());
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
    /// is passed on.
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

    /// Makes each worker lead a process group of its own, or not. Then a terminal's Ctrl-C, and a
    /// signal to the primary's process group, reach the primary alone, which lets its workers
    /// finish; and a worker's input is `/dev/null` where it would be the terminal, because reading
    /// from there would stop it. Default: true for supervised workers
    /// ([`Builder::run`](crate::Builder::run), [`Builder::workers`](crate::Builder::workers)),
    /// false for those that the program forks, as with Node.
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
    /// where the kernel cannot do it, and the error says what is missing.
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
    /// system does not allow it, and the error says what is missing.
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

    /// Sets a signal that makes a worker write a report of what it does: `SIGUSR2` for Node with
    /// `--report-on-signal`. It is sent to one that fails its health check and is replaced, and to
    /// one that is hung, a second before `SIGABRT`.
    pub fn report_signal(mut self, signal: i32) -> Setup {
        self.report_signal = Some(signal);
        self
    }

    pub(crate) fn apply(self, settings: &mut Settings) {
        if self.afresh {
            let (activation, notify, groups_apart) =
                (settings.activation.take(), settings.notify.take(), settings.groups_apart);
            let own_process_group = groups_apart;
            *settings = Settings {
                activation,
                notify,
                groups_apart,
                own_process_group,
                ..Settings::default()
            };
        }
        fn set<T>(field: &mut T, change: Option<T>) {
            if let Some(value) = change {
                *field = value;
            }
        }
        set(&mut settings.exec_path, self.exec_path);
        set(&mut settings.exec_argv, self.exec_argv);
        set(&mut settings.args, self.args);
        for (field, change) in settings.stdio.iter_mut().zip(self.stdio) {
            set(field, change);
        }
        set(&mut settings.own_process_group, self.own_process_group);
        set(&mut settings.inspect_port, self.inspect_port);
        settings.exec = self.exec.or(settings.exec.take());
        settings.cwd = self.cwd.or(settings.cwd.take());
        settings.uid = self.uid.or(settings.uid);
        settings.gid = self.gid.or(settings.gid);
        settings.groups = self.groups.or(settings.groups.take());
        settings.no_new_privileges = self.no_new_privileges.or(settings.no_new_privileges);
        settings.umask = self.umask.or(settings.umask);
        settings.report_signal = self.report_signal.or(settings.report_signal);
        settings.nice = self.nice.or(settings.nice);
        set(&mut settings.cpus, self.cpus);
        set(&mut settings.cgroup, self.cgroup);
        set(&mut settings.sandbox, self.sandbox);
        settings.limits.extend(self.limits);
        for name in self.slot_variables {
            if !settings.slot_variables.contains(&name) {
                settings.slot_variables.push(name);
            }
        }
        settings.env.extend(self.env);
        settings.env_hidden.extend(self.env_hidden);
    }
}

/// The variables by which a worker knows what it is.
pub(crate) const UNIQUE_ID: &str = "NODE_UNIQUE_ID";
/// The number of the channel's descriptor.
pub(crate) const CHANNEL_FD: &str = "NODE_CHANNEL_FD";
/// `json` or `advanced`.
pub(crate) const SERIALIZATION: &str = "NODE_CHANNEL_SERIALIZATION_MODE";

/// The number under which a worker finds its channel.
pub(crate) const CHANNEL_NUMBER: i32 = 3;

impl Settings {
    /// Whether workers are another user's than this process.
    pub(crate) fn is_other_user(&self) -> bool {
        self.uid.is_some_and(|uid| uid != rustix::process::geteuid().as_raw())
    }

    /// Whether workers lead process groups.
    pub(crate) fn leads_group(&self) -> bool {
        self.own_process_group || self.is_other_user()
    }

    /// Whether nothing that workers execute gives them privileges.
    pub(crate) fn keeps_from_privileges(&self) -> bool {
        self.no_new_privileges.unwrap_or_else(|| {
            (self.is_other_user() && self.uid != Some(0)) || !self.sandbox.is_empty()
        })
    }

    /// The limits as the system counts them.
    pub(crate) fn raw_limits(&self) -> Vec<(u32, u64, u64)> {
        let raw = |limit: Option<u64>| limit.unwrap_or(spawn::NO_LIMIT);
        self.limits
            .iter()
            .map(|(resource, (soft, hard))| (resource.number(), raw(*soft), raw(*hard)))
            .collect()
    }

    /// Whom workers run as, if that is another user than this process's.
    pub(crate) fn other_user(&self) -> Option<Identity> {
        let uid = self.uid.filter(|uid| *uid != rustix::process::geteuid().as_raw())?;
        let gid = self.gid.unwrap_or_else(|| rustix::process::getegid().as_raw());
        Some(Identity { uid, gid, groups: self.groups.clone().unwrap_or_default() })
    }

    /// Whether workers get sockets instead of a channel.
    pub(crate) fn has_activation(&self) -> bool {
        self.activation.is_some()
    }

    /// The CPUs for a slot.
    pub(crate) fn cpus_of(&self, slot: Option<u32>) -> Vec<usize> {
        let at = slot.unwrap_or(0) as usize;
        if self.cpus.is_empty() { Vec::new() } else { self.cpus[at % self.cpus.len()].clone() }
    }
}
