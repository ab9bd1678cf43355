//! `troop unstartup`: removes the units that `troop startup` has written.

use std::ffi::{OsStr, OsString};
use std::io::{Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use serde_json::json;
use troop::program::safe_path::{Directory, Safety};

use super::unit::{self, quoted, without_dots};
use super::{SAVED_UNIT, usual_directory};
use crate::args::Unstartup;
use crate::config;

/// The first lines of every unit that `troop startup` writes.
const SIGN: &str = "[Unit]\nDescription=troop: ";
/// The largest unit that is read, in bytes.
const MAX_UNIT: u64 = 1 << 20;

/// Removes the unit of an app, those of the apps of a file, or the one for saved apps, with the links
/// by which they start at boot. Apps that run go on running.
///
/// # Errors
/// The reason, for people.
pub(crate) fn unstartup(args: &Unstartup) -> Result<(), String> {
    let is_root = rustix::process::geteuid().is_root();
    let path = args.directory.clone().unwrap_or_else(|| usual_directory(is_root));
    let doing = |e: std::io::Error| format!("cannot remove units from {}: {e}", path.display());
    let directory = Directory::find(&path, Safety::Links).map_err(doing)?;
    let usual = Path::new(config::DEFAULT_FILE);
    // PM2 is told the init system here.
    let app = args.app.as_deref().filter(|app| *app != "systemd");
    let file = args.config.as_deref().or_else(|| usual.exists().then_some(usual));
    let mut removed = Vec::new();
    if let Some(directory) = &directory {
        for name in units(&path).map_err(doing)? {
            let text = read(directory, &name).map_err(doing)?;
            let is_meant = match (app, file) {
                (Some(app), _) => name == OsStr::new(&format!("{}.service", unit::name(app))),
                (None, Some(file)) => is_of_file(&text, file)?,
                (None, None) => name == SAVED_UNIT,
            };
            if is_meant && text.starts_with(SIGN) {
                unlink(directory, &path, &name).map_err(doing)?;
                removed.push(name);
            } else if is_meant {
                let name = name.display();
                return Err(format!(
                    "{}/{name} was not written by `troop startup`, so it stays",
                    path.display()
                ));
            }
        }
    }
    let paths: Vec<PathBuf> = removed.iter().map(|name| path.join(name)).collect();
    let mut out = std::io::stdout().lock();
    if args.json {
        let _ = writeln!(out, "{}", json!({ "removed": paths }));
    }
    if removed.is_empty() {
        let what = match (app, file) {
            (Some(app), _) => format!("for {app}"),
            (None, Some(file)) => format!("for apps of {}", file.display()),
            (None, None) => {
                "for saved apps; for others, name the app or its file (--config)".into()
            }
        };
        return Err(format!("{} has no unit of troop's {what}", path.display()));
    }
    if args.json {
        return Ok(());
    }
    for path in &paths {
        let _ = writeln!(out, "removed {}", path.display());
    }
    let user = if is_root { "" } else { " --user" };
    let names: Vec<_> = removed
        .iter()
        .map(|name| quoted(Path::new(name).file_stem().unwrap_or_default().to_str().unwrap_or("")))
        .collect();
    let names = names.join(" ");
    let _ = writeln!(
        out,
        "It does not start at boot any more, and goes on running until `systemctl{user} stop {names}`. Then: systemctl{user} daemon-reload"
    );
    Ok(())
}

/// Returns the names of all units that could be troop's.
fn units(directory: &Path) -> std::io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let name = entry?.file_name();
        let text = name.as_bytes();
        if text.ends_with(b".service") && text.starts_with(b"troop") {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn read(directory: &Directory, name: &OsStr) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    if directory.entry(name)?.is_some_and(|found| found.is_file()) {
        directory.read(name)?.take(MAX_UNIT).read_to_end(&mut bytes)?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Whether a unit runs an app of this file.
fn is_of_file(text: &str, file: &Path) -> Result<bool, String> {
    let file = std::path::absolute(crate::directory::resolved(file))
        .map_err(|e| format!("{}: {e}", file.display()))?;
    let file = quoted(&without_dots(file).to_string_lossy());
    let run = text.lines().find(|line| line.starts_with("ExecStart="));
    Ok(run.is_some_and(|run| run.contains(&format!(" --config {file} "))))
}

/// Removes a unit, and the links to it in `multi-user.target.wants` and the like.
fn unlink(directory: &Directory, path: &Path, name: &OsStr) -> std::io::Result<()> {
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let is_of_target = [".wants", ".requires"]
            .iter()
            .any(|end| entry.file_name().as_bytes().ends_with(end.as_bytes()));
        if !is_of_target {
            continue;
        }
        let Some(wanted) = Directory::find(&entry.path(), Safety::Links)? else { continue };
        if wanted.entry(name)?.is_some_and(|found| found.is_symlink()) {
            wanted.remove(name)?;
        }
    }
    directory.remove(name)
}
