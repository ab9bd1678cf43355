//! Where log files are.

use std::ffi::OsString;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use troop::program::safe_path::{Directory, Safety, who_can_change};

use crate::config::Output;

/// The longest note of an app's files.
const MAX_NOTE: u64 = 64 * 1024;

/// The directory: `TROOP_LOG_DIR`, `/var/log/troop` for root, or `~/.local/state/troop`.
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

/// The directory for those who have no other, in a place where everybody can make one.
fn fallback() -> PathBuf {
    format!("/tmp/troop-{}/logs", rustix::process::geteuid().as_raw()).into()
}

/// What is demanded of a log file's path. Logs of another user's workers, and those in `/tmp`, are
/// written only where nobody else can exchange anything; others belong where their owner wants
/// them, as long as no link leads away.
pub(crate) fn safety(file: &Path, of_another_user: bool) -> Safety {
    let is_root = rustix::process::geteuid().is_root();
    if (is_root && of_another_user) || file.starts_with(fallback()) {
        Safety::Owners
    } else {
        Safety::Links
    }
}

/// The files of an app: for all, and for standard error if that is apart.
pub(crate) fn files(name: &str, output: &Output, cwd: &Path) -> (PathBuf, Option<PathBuf>) {
    let directory = directory();
    // As PM2 has them, paths with a slash are seen from where the app runs.
    let of = |file: &PathBuf| match file.strip_prefix("~/") {
        Ok(rest) => std::env::home_dir().unwrap_or_default().join(rest),
        Err(_) if file.components().count() > 1 => cwd.join(file),
        Err(_) => directory.join(file),
    };
    (output.file.as_ref().map_or_else(|| usual(name), of), output.error_file.as_ref().map(of))
}

/// The name of the note which files an app had, if they were not the usual one.
fn note(name: &str) -> OsString {
    format!("{name}.files").into()
}

fn usual(name: &str) -> PathBuf {
    directory().join(format!("{name}.log"))
}

/// Notes where the files of an app are, for when it does not run any more. That it cannot be noted
/// disturbs nobody.
pub(crate) fn remember(name: &str, files: &[PathBuf]) {
    let _ = try_remember(name, files);
}

fn try_remember(name: &str, files: &[PathBuf]) -> io::Result<()> {
    let path = directory();
    let safety = safety(&path, false);
    if files == [usual(name)] {
        return Directory::open(&path, safety)?.remove(&note(name));
    }
    let directory = Directory::create(&path, safety, 0o750)?;
    let text = serde_json::to_string(files).unwrap_or_default();
    // Put in place whole.
    let new = OsString::from(format!(".{name}.files.{}", std::process::id()));
    let mut file = directory.create_new(&new, 0o640)?;
    let written =
        file.write_all(text.as_bytes()).and_then(|()| directory.rename(&new, &note(name)));
    if written.is_err() {
        let _ = directory.remove(&new);
    }
    written
}

/// The files that an app had which does not run now, as far as they are there.
pub(crate) fn remembered(name: &str) -> Vec<PathBuf> {
    let files = noted(name).unwrap_or_else(|| vec![usual(name)]);
    files.into_iter().filter(|file| file.exists()).collect()
}

/// What has been noted, unless somebody else may have done that.
fn noted(name: &str) -> Option<Vec<PathBuf>> {
    let path = directory();
    let file = Directory::open(&path, safety(&path, false))
        .and_then(|directory| directory.read(&note(name)))
        .ok()?;
    if who_can_change(&file.metadata().ok()?).is_some() {
        return None;
    }
    let mut text = String::new();
    file.take(MAX_NOTE).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}
