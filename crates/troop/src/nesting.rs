//! Whether this process may start workers. A worker that takes itself for a primary starts copies
//! of itself, and they start more.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::sync::OnceLock;

use troop_sys::environment;

use crate::error::{Error, Result};
use crate::role;
use crate::setup::{Setup, UNIQUE_ID};

/// Marks workers that get sockets by activation, which have no identity of Node's.
pub(crate) const ACTIVATED: &str = "TROOP_ACTIVATED";
/// How many primaries a worker has above it.
pub(crate) const DEPTH: &str = "TROOP_DEPTH";
/// The most primaries above each other.
const MAX_DEPTH: u32 = 4;

/// What this process was started with, whatever its program has removed from its environment since.
struct Start {
    unique_id: Option<OsString>,
    activated: bool,
    depth: u32,
}

fn start() -> &'static Start {
    static START: OnceLock<Start> = OnceLock::new();
    START.get_or_init(|| {
        let [unique_id, activated, depth] = environment::at_start([UNIQUE_ID, ACTIVATED, DEPTH]);
        let depth = depth.and_then(|depth| depth.to_str()?.parse().ok()).unwrap_or(0);
        Start {
            unique_id: unique_id.filter(|id| !id.is_empty()),
            activated: activated.is_some(),
            depth,
        }
    })
}

/// The depth of this process's workers.
pub(crate) fn depth_of_workers() -> u32 {
    start().depth.saturating_add(1)
}

/// Whether this process may be a primary.
///
/// # Errors
/// [`Error::RoleNotTaken`] if it was started as a worker and has not taken its role,
/// [`Error::Settings`] below too many primaries.
pub(crate) fn may_be_primary() -> Result<()> {
    let start = start();
    if let Some(id) = start.unique_id.as_ref().filter(|_| !role::is_taken()) {
        return Err(not_taken(id));
    }
    if start.activated {
        return Err(Error::RoleNotTaken(format!(
            "it was started with {ACTIVATED} and the sockets to serve on (LISTEN_FDS): serve on those; for a cluster of its own, start it \
             without the variable (env -u {ACTIVATED} PROGRAM)"
        )));
    }
    if start.depth >= MAX_DEPTH {
        return Err(Error::Settings(format!(
            "{MAX_DEPTH} primaries are above this process already ({DEPTH}); a cluster below them would be one too many"
        )));
    }
    Ok(())
}

/// The same for a program such as Node, which has taken the role in its own way when the variable
/// is gone.
///
/// # Errors
/// As [`may_be_primary`].
pub(crate) fn may_be_embedded() -> Result<()> {
    match std::env::var_os(UNIQUE_ID).filter(|id| !id.is_empty()) {
        Some(id) => Err(not_taken(&id)),
        None => Ok(()),
    }
}

fn not_taken(id: &OsStr) -> Error {
    Error::RoleNotTaken(format!(
        "it was started with {UNIQUE_ID}={} and has not taken its role: call troop::role() first thing in main, and start workers only \
         where it returns Role::Primary; for a cluster of its own, start it without the variable (env -u {UNIQUE_ID} PROGRAM)",
        id.to_string_lossy().escape_debug()
    ))
}

/// Whether workers that are started like this know that they are workers.
///
/// # Errors
/// [`Error::Settings`] if they would start workers in their turn, without end.
pub(crate) fn may_fork(setup: &Setup, extra: &BTreeMap<OsString, OsString>) -> Result<()> {
    if setup.has_activation() && setup.get_program().is_none() {
        return Err(Error::Settings(
            "workers that get sockets by activation need a program of their own (Setup::program): a copy of this one would take itself for \
             a primary"
                .into(),
        ));
    }
    let is_worker = role::is_taken() || start().depth > 0;
    if is_worker && is_own_copy(setup, extra) {
        return Err(Error::Settings(
            "this process is a worker, and its workers would be copies of it, which would start copies in their turn: give them a program, \
             arguments or variables of their own (Setup)"
                .into(),
        ));
    }
    Ok(())
}

/// Whether nothing tells a worker from this process.
fn is_own_copy(setup: &Setup, extra: &BTreeMap<OsString, OsString>) -> bool {
    let is_own_program = setup.get_program().is_none_or(|path| {
        let own = std::env::current_exe().ok();
        own.is_some() && path.canonicalize().ok() == own
    });
    let is_known =
        |(name, value): (&OsString, &OsString)| std::env::var_os(name).as_ref() == Some(value);
    is_own_program
        && setup.get_script().is_none()
        && setup.get_exec_argv().is_empty()
        && setup.get_args().iter().eq(std::env::args_os().skip(1).collect::<Vec<_>>().iter())
        && setup.get_envs().all(|(name, value)| std::env::var_os(name).as_deref() == value)
        && extra.iter().all(is_known)
}
