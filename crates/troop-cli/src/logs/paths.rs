//! Paths of log files.

use std::ffi::OsString;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use troop::program::safe_path::{Directory, Safety, who_can_change};

use crate::config::Output;

/// The largest record of an app's log files, in bytes.
const MAX_RECORD: u64 = 64 * 1024;

/// Returns the log directory: `TROOP_LOG_DIR`, `/var/log/troop` for root, or
/// `~/.local/state/troop`.
pub(crate) fn directory() -> PathBuf {
    let set =
        |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(own) = set("TROOP_LOG_DIR") {
        return own;
    }
    if rustix::process::geteuid().is_root() {
        return "/var/log/troop".into();
    }
    let state = set("XDG_STATE_HOME").or_else(|| set("HOME").map(|home| home.join(".local/state")));
    state.map_or_else(fallback, |state| state.join("troop"))
}

/// Returns the log directory of users without a home, below `/tmp`, where others can create
/// directories too.
fn fallback() -> PathBuf {
    format!("/tmp/troop-{}/logs", rustix::process::geteuid().as_raw()).into()
}

/// Returns how a log file's path is checked. Logs of another user's workers, and those in `/tmp`,
/// are written only where nobody else can replace anything; for others, links are rejected.
pub(crate) fn safety(file: &Path, of_another_user: bool) -> Safety {
    let is_root = rustix::process::geteuid().is_root();
    if (is_root && of_another_user) || file.starts_with(fallback()) {
        Safety::Owners
    } else {
        Safety::Links
    }
}

/// Returns the log files of an app: the one for all output, and a separate one for standard error.
pub(crate) fn files(name: &str, output: &Output, cwd: &Path) -> (PathBuf, Option<PathBuf>) {
    let directory = directory();
    // As in PM2, a path with a slash is relative to the app's working directory.
    let of = |file: &PathBuf| match file.strip_prefix("~/") {
        Ok(rest) => std::env::home_dir().unwrap_or_default().join(rest),
        Err(_) if file.components().count() > 1 => cwd.join(file),
        Err(_) => directory.join(file),
    };
    (
        output.file.as_ref().map_or_else(|| default_path(name), of),
        output.error_file.as_ref().map(of),
    )
}

/// The name of the record of an app's log files.
fn record_name(name: &str) -> OsString {
    format!("{name}.files").into()
}

fn default_path(name: &str) -> PathBuf {
    directory().join(format!("{name}.log"))
}

/// Records the paths of an app's log files, so that `troop logs` finds them when the app does not
/// run. A failure is ignored: it only makes `troop logs` look at the default path.
pub(crate) fn record(name: &str, files: &[PathBuf]) {
    let _ = try_record(name, files);
}

fn try_record(name: &str, files: &[PathBuf]) -> io::Result<()> {
    let path = directory();
    let safety = safety(&path, false);
    if files == [default_path(name)] {
        return Directory::open(&path, safety)?.remove(&record_name(name));
    }
    let directory = Directory::create(&path, safety, 0o750)?;
    let text = serde_json::to_string(files).unwrap_or_default();
    // Renamed into place, so that no reader sees a part of it.
    let new = OsString::from(format!(".{name}.files.{}", std::process::id()));
    let mut file = directory.create_new(&new, 0o640)?;
    let written =
        file.write_all(text.as_bytes()).and_then(|()| directory.rename(&new, &record_name(name)));
    if written.is_err() {
        let _ = directory.remove(&new);
    }
    written
}

/// Returns the recorded log files of an app that does not run, as far as they exist.
pub(crate) fn recorded(name: &str) -> Vec<PathBuf> {
    let files = read_record(name).unwrap_or_else(|| vec![default_path(name)]);
    files.into_iter().filter(|file| file.exists()).collect()
}

/// Reads the record, unless another user could have written it.
fn read_record(name: &str) -> Option<Vec<PathBuf>> {
    let path = directory();
    let file = Directory::open(&path, safety(&path, false))
        .and_then(|directory| directory.read(&record_name(name)))
        .ok()?;
    if who_can_change(&file.metadata().ok()?).is_some() {
        return None;
    }
    let mut text = String::new();
    file.take(MAX_RECORD).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}
