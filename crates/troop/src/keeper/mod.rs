//! A process that keeps another one going.
//!
//! A program that is *kept* is two processes. The **keeper** is the one that everybody knows: the shell,
//! systemd, `troop ls`. It is small, and does little: it starts the **engine**, which is the same program
//! and does the work, passes signals on to it and notifications of it, and ends as it ends. Workers are
//! children of the keeper, so that another engine can go on with them, if the first one is killed
//! ([`Builder::keep_state`](crate::Builder::keep_state)) or leaves everything to it
//! ([`Cluster::upgrade`](crate::Cluster::upgrade)).
//!
//! ```no_run
//! use std::process::ExitCode;
//!
//! use troop::{Cluster, Role, keeper};
//!
//! fn main() -> troop::Result<ExitCode> {
//!     if let Ok(Some(code)) = keeper::keep() {
//!         return Ok(code);
//!     }
//!     match troop::role()? {
//!         Role::Primary => Cluster::builder().keep_state(|_| Some(Vec::new())).resume()?.run()?,
//!         Role::Worker(worker) => {
//! #           drop(worker);
//!         }
//!     }
//!     Ok(ExitCode::SUCCESS)
//! }
//! ```
//!
//! | file | holds |
//! | --- | --- |
//! | `watch.rs`, `watch/follow.rs` | the keeper; what follows the end of an engine |
//! | `watch/renew.rs`, `left.rs` | the keeper executes a newer version of itself; what it leaves to that |
//! | `before.rs` | what it has for itself |
//! | `link.rs` | the engine's connection to it |
//! | `message.rs` | what they tell each other |

mod before;
mod left;
mod link;
mod message;
mod watch;

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;
use troop_sys::environment;

pub use crate::primary::{Leaving, LeftDescriptor, Resumption, Upgrade, refuse};
pub(crate) use link::Link;
pub use link::SetAside;
pub(crate) use message::{Kind, Message};

/// The variable that makes a process a keeper, or its engine.
pub const VARIABLE: &str = "TROOP_KEEPER";
/// Its value for an engine, before the number of the connection.
const ENGINE: &str = "engine:";

/// The same for a keeper that goes on as a newer version of itself, before the number of its state.
const KEEPER: &str = "keeper:";
/// The version of the keeper.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// How many engines may end by themselves in a row before they are ready: then it is the state that ends
/// them.
const MAX_UNREADY: u32 = 3;

/// The errors for what there may be later.
const SCARCE: [Errno; 4] = [Errno::AGAIN, Errno::NOMEM, Errno::MFILE, Errno::NFILE];

/// Keys from this one on stand for no part of the state.
const UNTIL_END: u64 = 1 << 63;

/// Where a keeper runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In a terminal, a container, or under a service manager.
    Foreground,
    /// In a session of its own.
    Background,
}

impl Place {
    fn value(self) -> &'static str {
        match self {
            Place::Foreground => "foreground",
            Place::Background => "background",
        }
    }

    fn of(value: &OsStr) -> Option<Place> {
        [Place::Foreground, Place::Background].into_iter().find(|place| value == place.value())
    }
}

static LINK: OnceLock<Link> = OnceLock::new();

/// Makes this process what it was [executed](command) as. Call it first in `main`, before other threads.
/// As a keeper it returns when the engine has ended, with the exit code of the app; otherwise at once.
///
/// # Errors
/// If the engine cannot be started, or its keeper has ended.
pub fn enter() -> io::Result<Option<ExitCode>> {
    let Some([Some(value)]) = environment::take([VARIABLE])? else { return Ok(None) };
    if let Some(place) = Place::of(&value) {
        return watch::keep(place).map(Some);
    }
    if let Some(code) = watch::go_on(&value)? {
        return Ok(Some(code));
    }
    if let Some(link) = Link::take(&value)? {
        if watch::answer(&link) {
            return Ok(Some(ExitCode::SUCCESS));
        }
        // The keeper has blocked them for itself.
        troop_sys::signals::unblock_all();
        // It was executed as `/proc/self/exe`.
        if let Some(name) =
            std::env::args_os().next().as_deref().map(Path::new).and_then(Path::file_name)
        {
            troop_sys::process::set_name(&name.to_string_lossy());
        }
        let _ = LINK.set(link);
    }
    Ok(None)
}

/// Keeps this program: this process becomes the keeper of another one that runs the same program, and
/// returns the exit code when that has ended. In the other one, and in workers, it returns at once, with
/// `None`. Call it first in `main`.
///
/// # Errors
/// As [`enter`].
pub fn keep() -> io::Result<Option<ExitCode>> {
    let entered = enter()?;
    let is_worker = std::env::var_os(crate::setup::UNIQUE_ID).is_some_and(|id| !id.is_empty());
    if entered.is_some() || is_kept() || is_worker {
        return Ok(entered);
    }
    watch::keep(Place::Foreground).map(Some)
}

/// Returns the command which, executed in place of this process, makes it the keeper of an engine with
/// the same arguments and environment.
#[must_use]
pub fn command(place: Place) -> Command {
    let mut args = std::env::args_os();
    let mut command = Command::new("/proc/self/exe");
    command.arg0(args.next().unwrap_or_default()).args(args).env(VARIABLE, place.value());
    command
}

/// Whether this process is an engine that is kept.
#[must_use]
pub fn is_kept() -> bool {
    LINK.get().is_some()
}

/// Whether the keeper of this engine has ended, so that this one ends, too.
#[must_use]
pub fn has_ended() -> bool {
    LINK.get().is_some_and(Link::is_broken)
}

/// Whether the keeper of this engine does not answer, because it is stopped for example: what this engine
/// does is not written down then, so if it is killed before the keeper answers, the app ends.
#[must_use]
pub fn is_silent() -> bool {
    LINK.get().is_some_and(|link| link.is_silent() && !link.is_broken())
}

/// Whether a replacement failed ([`Error::NotReplaced`](crate::Error::NotReplaced)) for a reason that is over
/// within moments, so that it is worth another try: the keeper did not answer for a while, and is told the
/// state anew.
#[must_use]
pub fn is_passing(error: &crate::Error) -> bool {
    matches!(error, crate::Error::NotReplaced(why) if why.as_str() == watch::NO_STATE)
}

/// Returns the process that everybody knows as the app's: the keeper's, or this one.
#[must_use]
pub fn app_pid() -> u32 {
    LINK.get().map_or_else(std::process::id, Link::keeper)
}

/// Returns the version of the keeper, if this engine has one that has told it. It stays the same when another
/// engine goes on; [`Cluster::upgrade_keeper`](crate::Cluster::upgrade_keeper) changes it.
#[must_use]
pub fn version() -> Option<String> {
    LINK.get()?.version()
}

/// Returns the process that has started the app's.
#[must_use]
pub fn starter() -> Option<u32> {
    match LINK.get() {
        Some(link) => troop_sys::process::parent(link.keeper()),
        None => rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get().unsigned_abs()),
    }
}

/// Why this engine starts afresh, if others have ended with the state that there was.
#[must_use]
pub fn set_aside() -> Option<&'static SetAside> {
    LINK.get()?.set_aside()
}

/// Says that this signal was obeyed. Others are passed on again to the next engine, if this one is
/// killed.
pub fn has_obeyed(signal: i32) {
    if let Some(link) = LINK.get() {
        // A keeper that has ended passes nothing on.
        let _ = link.send(&Message::about(Kind::HasObeyed, signal.unsigned_abs()));
    }
}

/// Tells the keeper of the reason for which this engine ends. If that is want of memory, processes or
/// descriptors, the state that it was to go on with is not at fault, and is tried again later.
pub fn note_failure(reason: &str) {
    let is_wanting = SCARCE.iter().any(|errno| {
        // As `std::io::Error` says it, wherever it stands in the reason.
        reason.contains(&format!("(os error {})", errno.raw_os_error()))
    });
    if let Some(link) = LINK.get().filter(|_| is_wanting) {
        let _ = link.send(&Message::new(Kind::IsWanting));
    }
}

/// Has a program that this process executes be the engine in its place.
pub fn leave_to(command: &mut Command) {
    if let Some(link) = LINK.get() {
        link.leave(command);
    }
}

/// Sends a notification (`sd_notify(3)`) as the app's main process. Returns whether a keeper does that.
pub fn notify(text: &str) -> bool {
    let Some(link) = LINK.get() else { return false };
    let _ = link.send(&Message::saying(Kind::Notify, text.as_bytes()));
    true
}

/// Has the keeper hold a copy of this descriptor until it ends, so that whoever waits for its close
/// waits for the end of the app's process.
pub fn hold_until_end(fd: impl AsFd) {
    static NEXT: AtomicU64 = AtomicU64::new(UNTIL_END);
    if let Some(link) = LINK.get() {
        let key = NEXT.fetch_add(1, Ordering::Relaxed);
        let _ = link.send_with(&Message::of_key(Kind::Hold, key), Some(fd.as_fd()));
    }
}

/// The connection to the keeper, if this is an engine that is kept.
pub(crate) fn link() -> Option<&'static Link> {
    LINK.get()
}
