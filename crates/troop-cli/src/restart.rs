//! `troop restart`: the primary stops its workers and executes itself again in the same process.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGQUIT, SIGTERM};
use troop::activation::InheritedSocket;

/// The variable by which a primary keeps its name when it executes itself again.
pub(crate) const VARIABLE: &str = "TROOP_RESTARTED_AS";

/// Whether the primary executes itself again after its workers have stopped.
#[derive(Debug)]
pub(crate) struct RestartRequest {
    requested: AtomicBool,
    /// A signal has requested a stop, which overrides a restart.
    stop_requested: Arc<AtomicBool>,
}

impl RestartRequest {
    pub(crate) fn new() -> std::io::Result<RestartRequest> {
        let stop_requested = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT, SIGQUIT] {
            signal_hook::flag::register(signal, stop_requested.clone())?;
        }
        Ok(RestartRequest { requested: AtomicBool::new(false), stop_requested })
    }

    pub(crate) fn request(&self) {
        self.requested.store(true, Ordering::Release);
    }

    /// Cancels a restart: `troop stop` came after it.
    pub(crate) fn cancel(&self) {
        self.requested.store(false, Ordering::Release);
    }

    pub(crate) fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Acquire) && !self.stop_requested.load(Ordering::Acquire)
    }
}

/// Returns the program to execute: the file that this one was started from, which may have been
/// replaced, or the running image if that file is gone.
fn program() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    let plain = own
        .to_str()
        .and_then(|path| path.strip_suffix(" (deleted)"))
        .map_or_else(|| own.clone(), PathBuf::from);
    if plain.is_file() { plain } else { Path::new("/proc/self/exe").to_owned() }
}

/// Executes this program again with the same command line. Returns only on failure.
pub(crate) fn exec_again(name: &str, fds: &[i32]) -> std::io::Error {
    InheritedSocket::leave_all();
    fds.iter().filter_map(|fd| InheritedSocket::at(*fd).ok()).for_each(|socket| socket.leave());
    let mut command = Command::new(program());
    command.arg0("troop").args(std::env::args_os().skip(1)).env(VARIABLE, name);
    command.exec()
}
