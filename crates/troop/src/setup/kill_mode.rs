//! Which processes end with their worker.

use std::ffi::OsStr;

use troop_sys::tree;

/// Which processes that a worker has started end with it: see
/// [`Setup::kill_mode`](crate::Setup::kill_mode).
///
/// Except with [`KillMode::Process`], they get `SIGTERM` when the worker has ended, and two seconds
/// later `SIGKILL`, or at the end of the grace period of a worker that was asked to finish. In a control group
/// ([`Setup::cgroup`](crate::Setup::cgroup)) all processes of the group end, whatever this says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum KillMode {
    /// None: what it has started goes on, also where its worker is killed.
    Process,
    /// Those in its process group, if it leads one
    /// ([`Setup::own_process_group`](crate::Setup::own_process_group)). Those that have a group or
    /// session of their own go on, as daemons do.
    #[default]
    Group,
    /// Those too that have a group or session of their own, however they have got away from the
    /// worker (`setsid(2)`).
    ///
    /// Each worker gets a random token in its environment ([`KillMode::VARIABLE`]), which its
    /// children inherit. When it has ended, a thread looks for running processes that have the token,
    /// run as the worker's user, and are younger than the worker. Workers of a cluster within it get
    /// no `SIGTERM`, as that cluster's primary has them finish, but `SIGKILL`. A process that is to
    /// survive is started without the variable: `env -u TROOP_TREE daemon`. One that overwrites its environment
    /// or changes its user survives too.
    Tree,
}

impl KillMode {
    /// The variable with the token: a process that is started without it does not end with the
    /// worker.
    pub const VARIABLE: &'static str = tree::VARIABLE;

    /// Whether an environment variable has such a token: [`KillMode::VARIABLE`], or one of those by
    /// which workers of a cluster within a worker end with the latter.
    #[must_use]
    pub fn is_variable(name: &OsStr) -> bool {
        name == tree::VARIABLE || name.as_encoded_bytes().starts_with(tree::OUTER.as_bytes())
    }
}
