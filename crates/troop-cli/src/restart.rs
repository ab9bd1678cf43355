//! `troop restart`: the primary stops its workers and executes itself again in the same process.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::process::{Signal, getpid, kill_process};
use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGINT, SIGQUIT, SIGTERM};
use troop::activation::InheritedSocket;
use troop::program::execute::execute;

use crate::config;
use crate::records::keeper::ID_VARIABLE;
use crate::records::{Scaled, Text, scaled};
use crate::start;

/// The variable by which a primary keeps its name when it executes itself again.
pub(crate) const VARIABLE: &str = "TROOP_RESTARTED_AS";

/// The variable by which a primary knows that its program runs alone, and what to tell of that.
pub(crate) const ALONE_VARIABLE: &str = "TROOP_ALONE";

/// Variables of a primary that a restart with another environment does not change.
const KEPT_VARIABLES: [&str; 16] = [
    ID_VARIABLE,
    ALONE_VARIABLE,
    crate::together::VARIABLE,
    crate::kept::CHOSEN_VARIABLE,
    troop::keeper::VARIABLE,
    start::VARIABLE,
    start::RESUMED_VARIABLE,
    "TROOP_RUNTIME_DIR",
    "TROOP_STATE_DIR",
    "TROOP_LOG_DIR",
    "XDG_RUNTIME_DIR",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
];

/// Whether the primary executes itself again after its workers have stopped.
#[derive(Debug)]
pub(crate) struct RestartRequest {
    requested: AtomicBool,
    env: Mutex<Option<Vec<(Text, Text)>>>,
    /// The number of workers then, if `troop scale` has set it.
    scaled: OnceLock<Scaled>,
    /// The program runs alone then.
    alone: OnceLock<Alone>,
    /// A signal or `troop stop` has requested a stop, which overrides a restart.
    stop_requested: Arc<AtomicBool>,
    /// The same, of an engine that was killed since.
    was_stopping: AtomicBool,
}

/// A restart that another engine was about to do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LeftRestart {
    env: Option<Vec<(Text, Text)>>,
    scaled: Option<Scaled>,
}

/// A restart after which the program runs alone.
#[derive(Debug)]
struct Alone {
    /// What to tell of that.
    why: String,
    /// The report of the start is still to be sent.
    reports: bool,
}

impl RestartRequest {
    pub(crate) fn new() -> std::io::Result<RestartRequest> {
        let stop_requested = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT, SIGQUIT] {
            signal_hook::flag::register(signal, stop_requested.clone())?;
        }
        Ok(RestartRequest {
            requested: AtomicBool::new(false),
            env: Mutex::new(None),
            scaled: OnceLock::new(),
            alone: OnceLock::new(),
            stop_requested,
            was_stopping: AtomicBool::new(false),
        })
    }

    /// Requests a restart, with another environment and another number of workers if such are given.
    pub(crate) fn request(&self, env: Option<Vec<(Text, Text)>>, scaled: Option<Scaled>) {
        if let Some(scaled) = scaled {
            let _ = self.scaled.set(scaled);
        }
        *self.env.lock().unwrap_or_else(PoisonError::into_inner) = env;
        self.requested.store(true, Ordering::Release);
    }

    /// Requests a restart after which the program runs alone; `reports` is whether the report of the
    /// start is still to be sent.
    pub(crate) fn request_alone(&self, why: String, reports: bool) {
        let _ = self.alone.set(Alone { why, reports });
        self.requested.store(true, Ordering::Release);
    }

    /// Returns what the next engine needs to restart, if this one is about to.
    pub(crate) fn to_leave(&self) -> Option<LeftRestart> {
        let env = || self.env.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let restart = || LeftRestart { env: env(), scaled: self.scaled.get().copied() };
        self.is_requested().then(restart)
    }

    /// Restarts in place of another engine.
    pub(crate) fn go_on(&self, restart: &LeftRestart) {
        self.request(restart.env.clone(), restart.scaled);
    }

    /// Stops in place of another engine.
    pub(crate) fn go_on_stopping(&self) {
        self.was_stopping.store(true, Ordering::Release);
    }

    /// Returns the environment that was requested.
    fn take_env(&self) -> Option<Vec<(Text, Text)>> {
        self.env.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Cancels a restart: `troop stop` came after it.
    pub(crate) fn cancel(&self) {
        self.requested.store(false, Ordering::Release);
        self.stop_requested.store(true, Ordering::Release);
    }

    /// Whether the app ends because that was asked for.
    pub(crate) fn is_stop_requested(&self) -> bool {
        self.stop_requested.load(Ordering::Acquire) || self.was_stopping.load(Ordering::Acquire)
    }

    /// Makes a request to stop again that came before the engine caught signals.
    pub(crate) fn repeat_early_stop(&self) {
        if self.stop_requested.load(Ordering::Acquire) {
            let _ = kill_process(getpid(), Signal::TERM);
        }
    }

    pub(crate) fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Acquire) && !self.is_stop_requested()
    }
}

/// Returns the program to execute: the file that this one was started from, which may have been
/// replaced, or the running image if that file is gone.
pub(crate) fn program() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    let plain = own
        .to_str()
        .and_then(|path| path.strip_suffix(" (deleted)"))
        .map_or_else(|| own.clone(), PathBuf::from);
    if plain.is_file() { plain } else { Path::new("/proc/self/exe").to_owned() }
}

/// Checks that the program to execute runs at all, before anything ends for it.
///
/// # Errors
/// The reason, for people.
pub(crate) fn try_program() -> Result<(), String> {
    // The driver of process 1 reaps every child, this one too.
    if std::process::id() == 1 {
        return Ok(());
    }
    let program = program();
    config::source::is_version_of("troop", &mut Command::new(&program))
        .map_err(|e| format!("{} does not run: {e}", program.display()))
}

/// Executes this program again with the same command line. Returns only on failure.
pub(crate) fn exec_again(name: &str, fds: &[i32], request: &RestartRequest) -> std::io::Error {
    InheritedSocket::leave_all();
    fds.iter().filter_map(|fd| InheritedSocket::at(*fd).ok()).for_each(|socket| socket.leave());
    let mut command = Command::new(program());
    if let Some(env) = request.take_env() {
        command.env_clear().envs(env.iter().map(|(name, value)| (name.to_os(), value.to_os())));
        // What the primary is, and where it is found, stays.
        for kept in KEPT_VARIABLES {
            match std::env::var_os(kept) {
                Some(value) => command.env(kept, value),
                None => command.env_remove(kept),
            };
        }
    }
    let known_by = match request.alone.get() {
        // As at the start, then.
        Some(Alone { reports: true, .. }) => start::RESUMED_VARIABLE,
        _ => VARIABLE,
    };
    if let Some(Alone { why, .. }) = request.alone.get() {
        command.env(ALONE_VARIABLE, why);
    }
    match request.scaled.get() {
        Some(scaled) => command.env(scaled::VARIABLE, scaled.encode()),
        None => command.env_remove(scaled::VARIABLE),
    };
    command.arg0("troop").args(std::env::args_os().skip(1)).env(known_by, name);
    troop::keeper::leave_to(&mut command);
    // The release that a link leads to by now.
    if let Some(directory) = crate::directory::by_links().filter(|path| path.is_dir()) {
        command.current_dir(directory);
    }
    // Without waiting for what workers have left to close.
    execute(&mut command, || Ok(()))
}
