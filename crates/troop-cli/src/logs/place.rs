//! Where log files are.

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
    let usual = || directory.join(format!("{name}.log"));
    (output.file.as_ref().map_or_else(usual, of), output.error_file.as_ref().map(of))
}
