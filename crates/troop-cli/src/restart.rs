//! `troop restart`: the primary ends its workers and becomes a new one, in the same process.

use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use troop::InheritedSocket;

/// The name that a primary had which is now another one, so that it has it again.
pub(crate) const VARIABLE: &str = "TROOP_RESTARTED_AS";

/// Whether the end that comes is to be followed by a new beginning.
#[derive(Debug, Default)]
pub(crate) struct Restarting(AtomicBool);

impl Restarting {
    pub(crate) fn ask(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub(crate) fn is_asked(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Begins anew, with the same command line. Returns only if that fails.
pub(crate) fn begin_anew(name: Option<&str>) -> std::io::Error {
    let mut arguments = std::env::args_os();
    let own = arguments.next().unwrap_or_default();
    // The file, not this image: it may have been replaced by a newer one.
    let program = std::env::current_exe().ok().filter(|path| path.exists()).map_or(own, Into::into);
    InheritedSocket::leave_all();
    let mut command = Command::new(program);
    command.args(arguments);
    if let Some(name) = name {
        command.env(VARIABLE, name);
    }
    command.exec()
}
