//! `troop restart`: the primary ends its workers and becomes a new one, in the same process.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGQUIT, SIGTERM};
use troop::activation::InheritedSocket;

/// The name that a primary had which is now another one, so that it has it again.
pub(crate) const VARIABLE: &str = "TROOP_RESTARTED_AS";

/// Whether the end that comes is to be followed by a new beginning.
#[derive(Debug)]
pub(crate) struct Restarting {
    asked: AtomicBool,
    /// A signal has asked for the end.
    ended: Arc<AtomicBool>,
}

impl Restarting {
    pub(crate) fn new() -> std::io::Result<Restarting> {
        let ended = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT, SIGQUIT] {
            signal_hook::flag::register(signal, ended.clone())?;
        }
        Ok(Restarting { asked: AtomicBool::new(false), ended })
    }

    pub(crate) fn ask(&self) {
        self.asked.store(true, Ordering::Release);
    }

    /// Somebody wants the end after all.
    pub(crate) fn take_back(&self) {
        self.asked.store(false, Ordering::Release);
    }

    pub(crate) fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Acquire) && !self.ended.load(Ordering::Acquire)
    }
}

/// What to become: the file that this program was started from, whatever is there now; or, if there
/// is nothing, what runs now.
fn program() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    let plain = own
        .to_str()
        .and_then(|path| path.strip_suffix(" (deleted)"))
        .map_or_else(|| own.clone(), PathBuf::from);
    if plain.is_file() { plain } else { Path::new("/proc/self/exe").to_owned() }
}

/// Begins anew, with the same command line. Returns only if that fails.
pub(crate) fn begin_anew(name: &str, fds: &[i32]) -> std::io::Error {
    InheritedSocket::leave_all();
    fds.iter().filter_map(|fd| InheritedSocket::at(*fd).ok()).for_each(|socket| socket.leave());
    let mut command = Command::new(program());
    command.arg0("troop").args(std::env::args_os().skip(1)).env(VARIABLE, name);
    command.exec()
}
