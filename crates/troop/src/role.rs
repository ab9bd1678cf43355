//! The role of this process: the primary of a cluster, or a worker.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use troop_core::WorkerId;
use troop_core::wire::outgoing;
use troop_sys::socket::{self, Kind};
use troop_sys::{environment, fdpass};

use crate::error::{Error, Result};
use crate::setup::{CHANNEL_FD, SERIALIZATION, UNIQUE_ID};
use crate::worker::WorkerRole;

/// The role of this process.
#[derive(Debug)]
pub enum Role {
    /// The process was not forked by a primary: it may be a primary, or run alone.
    Primary,
    /// A troop or Node primary forked the process.
    Worker(WorkerRole),
}

/// True once a worker's identity has been taken.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Whether this process knows that it is a worker.
pub(crate) fn is_taken() -> bool {
    TAKEN.load(Ordering::Acquire)
}

/// Determines the role of this process. Call it first in `main`: a worker's identity
/// (`NODE_UNIQUE_ID`, `NODE_CHANNEL_FD` and `NODE_CHANNEL_SERIALIZATION_MODE`) is removed from the
/// environment, so that programs started from here do not use it, and changing the environment is
/// sound only while the process has one thread. A worker reports to its primary that it is online.
///
/// As with Node, the code before this call in `main` runs in the primary and in every worker. A
/// process that was started as a worker and has not called this cannot start workers:
/// [`Error::RoleNotTaken`].
///
/// # Errors
/// [`Error::TooLate`] in a worker that has other threads already, [`Error::RoleTaken`] in a worker
/// at the second call, and [`Error::Channel`] when the channel that the environment announces
/// cannot be used.
pub fn role() -> Result<Role> {
    if TAKEN.load(Ordering::Acquire) {
        return Err(Error::RoleTaken);
    }
    if std::env::var_os(UNIQUE_ID).is_none_or(|id| id.is_empty()) {
        return Ok(Role::Primary);
    }
    let identity = environment::take([UNIQUE_ID, CHANNEL_FD, SERIALIZATION])
        .map_err(Error::io("count the threads"))?;
    let [id, channel, serialization] = identity.ok_or(Error::TooLate)?;
    TAKEN.store(true, Ordering::Release);
    name_process();
    // As in Node, text that is not a number counts as 0.
    let id = WorkerId(id.and_then(|id| id.to_str()?.parse().ok()).unwrap_or(0));
    let Some(channel) = channel else {
        return Err(Error::Channel {
            value: String::new(),
            reason: format!("{UNIQUE_ID} is set, but {CHANNEL_FD} is not"),
        });
    };
    let advanced = is_advanced(&channel, serialization.as_ref())?;
    let socket = open_channel(&channel)?;
    let mut line = Vec::new();
    outgoing::online(&mut line, 0);
    if advanced {
        let json = std::mem::take(&mut line);
        troop_core::wire::advanced::from_json(&mut line, &json);
    }
    // The first bytes always fit into an empty socket buffer. If the primary is gone, the next read
    // fails.
    let _ = fdpass::send(std::os::fd::AsFd::as_fd(&socket), &line, &[]);
    Ok(Role::Worker(WorkerRole::attached(id, socket, advanced)))
}

/// Returns this process as a worker: under a primary, or alone, if no primary forked it. For
/// programs that are never primaries themselves.
///
/// # Errors
/// As [`role`].
pub fn worker() -> Result<WorkerRole> {
    match role()? {
        Role::Worker(worker) => Ok(worker),
        Role::Primary => Ok(WorkerRole::alone()),
    }
}

/// Whether the primary expects messages in V8's format.
fn is_advanced(channel: &OsString, serialization: Option<&OsString>) -> Result<bool> {
    match serialization.and_then(|mode| mode.to_str()) {
        None | Some("json") => Ok(false),
        Some("advanced") => Ok(true),
        Some(other) => Err(Error::Channel {
            value: channel.to_string_lossy().into_owned(),
            reason: format!(
                "{other} serialization is not known; let the primary use 'json' or 'advanced'"
            ),
        }),
    }
}

fn open_channel(value: &OsString) -> Result<OwnedFd> {
    let value = value.to_string_lossy().into_owned();
    let bad = |reason: String| Error::Channel { value: value.clone(), reason };
    let number = value.parse().map_err(|_| bad("it is not a number".into()))?;
    let socket = troop_sys::inherited::claim(number).map_err(|e| bad(e.to_string()))?;
    if !matches!(socket::kind(&socket), Ok(Kind::UnixStream)) {
        return Err(bad("it is not a connected Unix socket".into()));
    }
    let (peer, _) = fdpass::peer(&socket).map_err(|e| bad(e.to_string()))?;
    let own = rustix::process::getuid().as_raw();
    if peer != 0 && peer != own {
        return Err(bad(format!(
            "its other end belongs to user {peer}, neither root nor this process's user {own}"
        )));
    }
    socket::set_nonblocking(&socket, true).map_err(|e| bad(e.to_string()))?;
    Ok(socket)
}

/// A program executed through `/proc/self/exe` shows up as `exe`.
fn name_process() {
    if std::fs::read_to_string("/proc/self/comm").is_ok_and(|name| name.trim_end() == "exe") {
        let program = std::env::args_os().next().unwrap_or_default();
        if let Some(name) = std::path::Path::new(&program).file_name().and_then(|n| n.to_str()) {
            troop_sys::process::set_name(name);
        }
    }
}
