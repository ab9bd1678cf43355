//! Files with the process numbers of the primary and its workers, for programs that look for them
//! there. A thread writes them, because their file system may not answer.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use troop::Event;
use troop::program::safe_path::{Directory, split};

use crate::log;
use crate::logs::paths::safety;
use crate::resolve::ResolvedApp;

/// Permissions of the directories and files that are created.
const DIRECTORY_MODE: u32 = 0o755;
const FILE_MODE: u32 = 0o644;
/// Time that the first file has to be written, and the last one to be removed.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Writes the files of an app as its workers come and go.
pub(crate) struct PidFiles {
    changes: Option<Sender<Change>>,
    /// Whether workers have files, too.
    of_workers: bool,
    done: Receiver<io::Result<()>>,
}

enum Change {
    Started { slot: u32, pid: u32 },
    Ended { slot: u32, pid: u32 },
}

impl PidFiles {
    /// Writes the file of the primary, if the app has one.
    ///
    /// # Errors
    /// The reason, for people.
    pub(crate) fn begin(app: &ResolvedApp) -> Result<Option<PidFiles>, String> {
        let (primary, workers) = (&app.app.pid_file, &app.app.worker_pid_file);
        if primary.is_none() && workers.is_none() {
            return Ok(None);
        }
        let cwd = app.cwd.clone().unwrap_or_else(|| ".".into());
        let cwd = std::path::absolute(&cwd).unwrap_or(cwd);
        let of_another_user = app.app.user.is_some();
        let at = |path: &PathBuf| File { path: placed(&cwd, path), of_another_user };
        let files = Files { primary: primary.as_ref().map(at), workers: workers.as_ref().map(at) };
        let (changes, changed) = mpsc::channel();
        let (finished, done) = mpsc::channel();
        let shown = files.primary.as_ref().map_or_else(String::new, File::shown);
        std::thread::Builder::new()
            .name("troop-pids".into())
            .stack_size(256 * 1024)
            .spawn(move || {
                let _ = finished.send(files.begin());
                files.follow(&changed);
                let _ = finished.send(files.end());
            })
            .map_err(|e| format!("cannot start the thread for pid files: {e}"))?;
        let begun = done.recv_timeout(TIMEOUT);
        begun
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|e| format!("pid_file: cannot write {shown}: {e}"))?;
        let of_workers = workers.is_some();
        Ok(Some(PidFiles { changes: Some(changes), of_workers, done }))
    }

    /// Takes note of an event.
    pub(crate) fn note(&self, event: &Event) {
        let Some(changes) = self.changes.as_ref().filter(|_| self.of_workers) else { return };
        let _ = match event {
            Event::Fork { worker, .. } => {
                changes.send(Change::Started { slot: worker.slot(), pid: worker.pid() })
            }
            Event::Exit { worker, .. } => {
                changes.send(Change::Ended { slot: worker.slot(), pid: worker.pid() })
            }
            _ => Ok(()),
        };
    }
}

impl Drop for PidFiles {
    /// Removes the files.
    fn drop(&mut self) {
        self.changes = None;
        let _ = self.done.recv_timeout(TIMEOUT);
    }
}

/// Returns the path of a file; a relative one starts at the app's directory.
fn placed(cwd: &Path, path: &Path) -> PathBuf {
    match path.strip_prefix("~/") {
        Ok(rest) => std::env::home_dir().unwrap_or_default().join(rest),
        Err(_) => cwd.join(path),
    }
}

/// Returns the file of a slot, as PM2 names it: `web-0.pid` for `web.pid`, and for `web-7.pid` too. A
/// path with another ending is that of all workers, and has the number of the one that came last.
fn of_slot(path: &Path, slot: u32) -> PathBuf {
    let stem = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".pid"));
    let Some(stem) = stem else { return path.to_owned() };
    let without = stem.trim_end_matches(|c: char| c.is_ascii_digit());
    let stem = without.strip_suffix('-').filter(|_| without.len() < stem.len()).unwrap_or(stem);
    path.with_file_name(format!("{stem}-{slot}.pid"))
}

/// A file, or what those of the slots are named by.
struct File {
    path: PathBuf,
    of_another_user: bool,
}

impl File {
    fn shown(&self) -> String {
        self.path.display().to_string()
    }

    fn write(&self, path: &Path, pid: u32) -> io::Result<()> {
        let (parent, name) = split(path)?;
        let safety = safety(path, self.of_another_user);
        let directory = Directory::create(&parent, safety, DIRECTORY_MODE)?;
        // Renamed into place, so that no reader sees a part of it.
        let new = OsString::from(format!(".troop.{}.pid", std::process::id()));
        let _ = directory.remove(&new);
        let mut file = directory.create_new(&new, FILE_MODE)?;
        let written =
            file.write_all(pid.to_string().as_bytes()).and_then(|()| directory.rename(&new, &name));
        if written.is_err() {
            let _ = directory.remove(&new);
        }
        written
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let (parent, name) = split(path)?;
        Directory::open(&parent, safety(path, self.of_another_user))?.remove(&name)
    }
}

struct Files {
    primary: Option<File>,
    workers: Option<File>,
}

impl Files {
    fn begin(&self) -> io::Result<()> {
        let Some(file) = &self.primary else { return Ok(()) };
        file.write(&file.path, std::process::id())
    }

    fn end(&self) -> io::Result<()> {
        let Some(file) = &self.primary else { return Ok(()) };
        file.remove(&file.path)
    }

    /// Keeps the files of workers. Where a slot has two, in a reload, the file has the newer one, and
    /// the older one again if that has failed.
    fn follow(&self, changes: &Receiver<Change>) {
        let mut running: BTreeMap<PathBuf, Vec<u32>> = BTreeMap::new();
        let mut has_failed = false;
        while let (Ok(change), Some(file)) = (changes.recv(), &self.workers) {
            let (Change::Started { slot, pid } | Change::Ended { slot, pid }) = change;
            let path = of_slot(&file.path, slot);
            let pids = running.entry(path.clone()).or_default();
            match change {
                Change::Started { .. } => pids.push(pid),
                Change::Ended { .. } => pids.retain(|other| *other != pid),
            }
            let result = match pids.last() {
                Some(last) => file.write(&path, *last),
                None => file.remove(&path),
            };
            if let (Err(e), false) = (result, has_failed) {
                has_failed = true;
                log::line(&format!("troop: worker_pid_file: cannot write {}: {e}", path.display()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pid_files_of_slots_are_named_as_pm2_names_them() {
        for (path, file) in [
            ("/run/web.pid", "/run/web-2.pid"),
            ("/run/web-14.pid", "/run/web-2.pid"),
            ("/run/web4.pid", "/run/web4-2.pid"),
            ("/run/web", "/run/web"),
        ] {
            assert_eq!(of_slot(Path::new(path), 2), Path::new(file));
        }
    }
}
