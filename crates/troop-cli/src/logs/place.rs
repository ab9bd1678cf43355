//! Where log files are.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::config::Output;

/// The directory: `TROOP_LOG_DIR`, `/var/log/troop` for root, or `~/.local/state/troop`.
pub(crate) fn directory() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(own) = set("TROOP_LOG_DIR") {
        return own;
    }
    if rustix::process::geteuid().is_root() {
        return "/var/log/troop".into();
    }
    let state = set("XDG_STATE_HOME").or_else(|| set("HOME").map(|home| home.join(".local/state")));
    state.map_or_else(|| format!("/tmp/troop-{}/logs", rustix::process::geteuid().as_raw()).into(), |state| state.join("troop"))
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

/// Where it is noted which files an app had, if they were not the usual one.
fn note(name: &str) -> PathBuf {
    directory().join(format!("{name}.files"))
}

fn usual(name: &str) -> PathBuf {
    directory().join(format!("{name}.log"))
}

/// Notes where the files of an app are, for when it does not run any more. That it cannot be noted disturbs nobody.
pub(crate) fn remember(name: &str, files: &[PathBuf]) {
    if files == [usual(name)] {
        let _ = std::fs::remove_file(note(name));
        return;
    }
    let _ = std::fs::create_dir_all(directory());
    let text = serde_json::to_string(files).unwrap_or_default();
    // Put in place whole, and not through a link that somebody has laid.
    let new = directory().join(format!(".{name}.files.{}", std::process::id()));
    let written = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o640).open(&new);
    if written.and_then(|mut file| file.write_all(text.as_bytes())).and_then(|()| std::fs::rename(&new, note(name))).is_err() {
        let _ = std::fs::remove_file(&new);
    }
}

/// The files that an app had which does not run now, as far as they are there.
pub(crate) fn remembered(name: &str) -> Vec<PathBuf> {
    let noted = std::fs::read_to_string(note(name)).ok().and_then(|text| serde_json::from_str(&text).ok());
    let files: Vec<PathBuf> = noted.unwrap_or_else(|| vec![usual(name)]);
    files.into_iter().filter(|file| file.exists()).collect()
}
