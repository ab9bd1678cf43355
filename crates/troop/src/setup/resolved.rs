//! The resolved settings of a setup: the value that was set, or else the default.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;

use signal_hook::consts::SIGTERM;
use troop_sys::identity::Identity;
use troop_sys::spawn;

use super::{Cgroup, InspectPort, KillMode, Resource, SLOT, Sandbox, Setup, Stdio};
use crate::activation::ActivationSocket;

/// Resolved settings: the value that was set, or else the default.
impl Setup {
    /// Returns the executable. `None` is this program itself, the image that runs now, even if its
    /// file was replaced.
    #[must_use]
    pub fn get_program(&self) -> Option<&Path> {
        self.program.as_deref().or_else(|| self.script.as_ref().map(|_| Path::new("node")))
    }

    /// Returns the arguments of the interpreter, before the [script](Setup::get_script): Node's
    /// `execArgv`.
    #[must_use]
    pub fn get_exec_argv(&self) -> &[OsString] {
        self.exec_argv.as_deref().unwrap_or_default()
    }

    /// Returns the script that the program interprets.
    #[must_use]
    pub fn get_script(&self) -> Option<&Path> {
        self.script.as_deref()
    }

    /// Returns the program's arguments.
    #[must_use]
    pub fn get_args(&self) -> Cow<'_, [OsString]> {
        match &self.args {
            Some(args) => Cow::Borrowed(args),
            None => Cow::Owned(std::env::args_os().skip(1).collect()),
        }
    }

    /// Returns the working directory; `None` is this process's.
    #[must_use]
    pub fn get_cwd(&self) -> Option<&Path> {
        self.cwd.as_deref()
    }

    /// Returns the changes to this process's environment, by name: a value that is set, or `None`
    /// for a variable that is removed.
    pub fn get_envs(&self) -> impl Iterator<Item = (&OsStr, Option<&OsStr>)> {
        self.env.iter().map(|(name, value)| (name.as_os_str(), value.as_deref()))
    }

    /// Returns what standard input is connected to.
    #[must_use]
    pub fn get_stdin(&self) -> Stdio {
        self.stdio()[0]
    }

    /// Returns what standard output is connected to.
    #[must_use]
    pub fn get_stdout(&self) -> Stdio {
        self.stdio()[1]
    }

    /// Returns what standard error is connected to.
    #[must_use]
    pub fn get_stderr(&self) -> Stdio {
        self.stdio()[2]
    }

    /// Returns the user to run as; `None` is this process's.
    #[must_use]
    pub fn get_uid(&self) -> Option<u32> {
        self.uid
    }

    /// Returns the group to run as; `None` is this process's.
    #[must_use]
    pub fn get_gid(&self) -> Option<u32> {
        self.gid
    }

    /// Returns the supplementary groups. `None` is those of this process, except that those of a
    /// privileged one are dropped where a user or a group is set, as Node does.
    #[must_use]
    pub fn get_groups(&self) -> Option<&[u32]> {
        self.groups.as_deref()
    }

    /// Returns whether each worker leads a new process group; see [`Setup::own_process_group`].
    #[must_use]
    pub fn get_own_process_group(&self) -> bool {
        self.own_process_group.unwrap_or(self.cluster.is_supervised)
    }

    /// Returns which processes end with the worker that has started them; see
    /// [`Setup::kill_mode`].
    #[must_use]
    pub fn get_kill_mode(&self) -> KillMode {
        self.kill_mode.unwrap_or_default()
    }

    /// Returns whether nothing that workers execute gives them privileges; see
    /// [`Setup::no_new_privileges`].
    #[must_use]
    pub fn get_no_new_privileges(&self) -> bool {
        self.no_new_privileges.unwrap_or_else(|| {
            (self.is_other_user() && self.uid != Some(0)) || self.get_sandbox().is_some()
        })
    }

    /// Returns the sandbox, if it restricts anything.
    #[must_use]
    pub fn get_sandbox(&self) -> Option<&Sandbox> {
        self.sandbox.as_ref().filter(|sandbox| !sandbox.is_empty())
    }

    /// Returns how the inspector ports of Node workers are chosen.
    #[must_use]
    pub fn get_inspect_port(&self) -> InspectPort {
        self.inspect_port.unwrap_or_default()
    }

    /// Returns the permissions that new files do not get; `None` is this process's mask.
    #[must_use]
    pub fn get_umask(&self) -> Option<u32> {
        self.umask
    }

    /// Returns the nice level; `None` is this process's.
    #[must_use]
    pub fn get_nice(&self) -> Option<i32> {
        self.nice
    }

    /// Returns the CPUs that workers run on, by slot; none means those of this process. See
    /// [`Setup::cpus`].
    #[must_use]
    pub fn get_cpus(&self) -> &[Vec<usize>] {
        self.cpus.as_deref().unwrap_or_default()
    }

    /// Returns the soft and hard limits on resources; `None` is no limit. A resource that is not in
    /// it has the limit of this process.
    #[must_use]
    pub fn get_limits(&self) -> &BTreeMap<Resource, (Option<u64>, Option<u64>)> {
        &self.limits
    }

    /// Returns the control group of each worker, if it limits anything.
    #[must_use]
    pub fn get_cgroup(&self) -> Option<&Cgroup> {
        self.cgroup.as_ref().filter(|limits| !limits.is_empty())
    }

    /// Returns the names of the variables that tell a supervised worker its slot: a small number
    /// that its successor has again.
    pub fn get_slot_variables(&self) -> impl Iterator<Item = &OsStr> {
        std::iter::once(OsStr::new(SLOT)).chain(self.slot_variables.iter().map(OsString::as_os_str))
    }

    /// Returns the variables with a number that grows by the slot, and the number of slot 0.
    pub fn get_counting_variables(&self) -> impl Iterator<Item = (&OsStr, i64)> {
        self.counting_variables.iter().map(|(name, first)| (name.as_os_str(), *first))
    }

    /// Returns the signal that makes a worker write a report; see [`Setup::report_signal`].
    #[must_use]
    pub fn get_report_signal(&self) -> Option<i32> {
        self.report_signal
    }

    /// Returns the signal that asks a worker to finish; see [`Setup::stop_signal`].
    #[must_use]
    pub fn get_stop_signal(&self) -> i32 {
        self.stop_signal.unwrap_or(SIGTERM)
    }

    /// Returns whether the stop signal goes to a worker's group, if that was set; see
    /// [`Setup::stop_group`].
    #[must_use]
    pub fn get_stop_group(&self) -> Option<bool> {
        self.stop_group
    }

    /// Returns the last signal before `SIGKILL`; see [`Setup::kill_signal`].
    #[must_use]
    pub fn get_kill_signal(&self) -> Option<i32> {
        self.kill_signal
    }

    /// Returns whether workers get a message when they are to finish; see
    /// [`Setup::shutdown_message`].
    #[must_use]
    pub fn get_shutdown_message(&self) -> bool {
        self.shutdown_message.unwrap_or(false)
    }

    /// Returns whether workers are no part of a cluster for their program; see [`Setup::alone`].
    #[must_use]
    pub fn is_alone(&self) -> bool {
        self.alone.unwrap_or(false)
    }

    /// Returns the connections of the standard streams.
    pub(crate) fn stdio(&self) -> [Stdio; 3] {
        self.stdio.map(Option::unwrap_or_default)
    }

    /// Whether workers run as another user than this process.
    pub(crate) fn is_other_user(&self) -> bool {
        self.uid.is_some_and(|uid| uid != rustix::process::geteuid().as_raw())
    }

    /// Whether workers lead process groups.
    pub(crate) fn leads_group(&self) -> bool {
        self.get_own_process_group() || self.is_other_user()
    }

    /// Whether the process group of a worker ends with it.
    pub(crate) fn ends_group(&self) -> bool {
        self.leads_group() && self.get_kill_mode() != KillMode::Process
    }

    /// Whether what a worker leaves behind is found by a token. A control group has all of it.
    pub(super) fn has_tree(&self) -> bool {
        self.get_kill_mode() == KillMode::Tree && self.get_cgroup().is_none()
    }

    /// The limits as the system counts them.
    pub(super) fn raw_limits(&self) -> Vec<(spawn::LimitNumber, u64, u64)> {
        let raw = |limit: Option<u64>| limit.unwrap_or(spawn::NO_LIMIT);
        self.limits
            .iter()
            .map(|(resource, (soft, hard))| (resource.number(), raw(*soft), raw(*hard)))
            .collect()
    }

    /// Returns the user of workers, if it is another one than this process's.
    pub(crate) fn other_user(&self) -> Option<Identity> {
        let uid = self.uid.filter(|uid| *uid != rustix::process::geteuid().as_raw())?;
        let gid = self.gid.unwrap_or_else(|| rustix::process::getegid().as_raw());
        Some(Identity { uid, gid, groups: self.groups.clone().unwrap_or_default() })
    }

    /// The sockets that workers get instead of a channel.
    pub(crate) fn activation(&self) -> &[ActivationSocket] {
        self.cluster.activation.as_deref().unwrap_or_default()
    }

    /// Whether workers get sockets instead of a channel.
    pub(crate) fn has_activation(&self) -> bool {
        self.cluster.activation.is_some()
    }

    /// The CPUs for a slot.
    pub(super) fn cpus_of(&self, slot: Option<u32>) -> Vec<usize> {
        let (cpus, at) = (self.get_cpus(), slot.unwrap_or(0) as usize);
        if cpus.is_empty() { Vec::new() } else { cpus[at % cpus.len()].clone() }
    }
}
