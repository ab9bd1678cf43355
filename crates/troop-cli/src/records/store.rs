//! The directory of records: one file per app, which only its owner can enter and read.
//!
//! Records are executed again, so nothing is read that another user could have written: the
//! directory is reached without links of others, must belong to this user and be closed to all
//! others, and so must each file.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use serde::Serialize;
use serde::de::DeserializeOwned;
use troop::program::safe_path::{Directory, Safety};
use troop::program::within::{self, Begun};

use super::Record;
use crate::names;

/// The largest file, in bytes.
const MAX_FILE: u64 = 64 << 20;
/// The lock that is held while records are changed.
const LOCK: &str = ".lock";

/// Time that the file system of records has to answer. The app runs without a record then.
const STATE_TIMEOUT: Duration = Duration::from_secs(3);

/// Reads or changes records with a timeout: their file system may not answer.
///
/// # Errors
/// Those of the work; `TimedOut`.
pub(crate) fn bounded<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    begin(work)?.wait().map_err(explained)
}

/// Begins work on the directory of records, while the caller does something else.
pub(super) fn begin<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<Begun<T>> {
    within::begin(STATE_TIMEOUT, work).map_err(explained)
}

/// Says which directory does not answer.
pub(super) fn explained(e: io::Error) -> io::Error {
    match e.kind() {
        io::ErrorKind::TimedOut => io::Error::new(
            e.kind(),
            format!(
                "{} has not answered for {} s (a dead mount?)",
                path().display(),
                STATE_TIMEOUT.as_secs()
            ),
        ),
        _ => e,
    }
}

/// Returns the directory of records: `TROOP_STATE_DIR`, or a directory beside the control sockets
/// if `TROOP_RUNTIME_DIR` is set, or `/var/lib/troop` for root and `~/.local/state/troop/apps` for
/// others.
pub(crate) fn path() -> PathBuf {
    let set =
        |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(own) = set("TROOP_STATE_DIR") {
        return own;
    }
    if let Some(runtime) = set("TROOP_RUNTIME_DIR") {
        return runtime.join("apps");
    }
    let own = rustix::process::geteuid();
    if own.is_root() {
        return "/var/lib/troop".into();
    }
    let state = set("XDG_STATE_HOME").or_else(|| set("HOME").map(|home| home.join(".local/state")));
    let fallback = || PathBuf::from(format!("/tmp/troop-{}/apps", own.as_raw()));
    state.map_or_else(fallback, |state| state.join("troop/apps"))
}

/// Returns how the path is checked: strictly for root and below `/tmp`; the directories of a home
/// may be open to the user's group.
fn safety(path: &std::path::Path) -> Safety {
    let is_strict = rustix::process::geteuid().is_root() || path.starts_with("/tmp");
    if is_strict { Safety::Owners } else { Safety::Links }
}

/// Whether a file or directory belongs to this user and is closed to all others.
fn is_private(found: &std::fs::Metadata) -> bool {
    found.uid() == rustix::process::geteuid().as_raw() && found.mode() & 0o077 == 0
}

fn private(directory: Directory) -> io::Result<Directory> {
    if is_private(directory.metadata()) {
        return Ok(directory);
    }
    let text = format!(
        "{} must be a directory of your own that nobody else can enter (mode 700): `chmod 700` it if it is yours, or move it away, or set TROOP_STATE_DIR",
        directory.path().display()
    );
    Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
}

/// The open directory of records.
#[derive(Debug)]
pub(crate) struct Store {
    directory: Directory,
}

impl Store {
    /// Opens the directory, and creates it if it is missing.
    pub(crate) fn create() -> io::Result<Store> {
        let path = path();
        let directory = Directory::create(&path, safety(&path), 0o700);
        Ok(Store { directory: private(directory.map_err(about)?)? })
    }

    /// Opens the directory, if there is one.
    pub(crate) fn find() -> io::Result<Option<Store>> {
        let path = path();
        let Some(directory) = Directory::find(&path, safety(&path)).map_err(about)? else {
            return Ok(None);
        };
        Ok(Some(Store { directory: private(directory)? }))
    }

    /// Waits for the lock of the records; it is held until the file is dropped.
    pub(crate) fn lock(&self) -> io::Result<File> {
        let (file, _) = self.directory.append(OsStr::new(LOCK), 0o600)?;
        flock(&file, FlockOperation::LockExclusive)?;
        Ok(file)
    }

    /// Reads the record of an app. `None` if there is none that can be trusted and understood.
    pub(crate) fn read(&self, name: &str) -> Option<Record> {
        let record: Record = self.load(&file_name(name)?).ok()??;
        (record.name == name).then_some(record)
    }

    /// Returns the names of apps for which there are files.
    fn names(&self) -> io::Result<Vec<String>> {
        let entries = std::fs::read_dir(self.directory.reach(OsStr::new(".")))?.flatten();
        let names = entries.filter_map(|entry| {
            let name = entry.file_name().to_str()?.strip_suffix(".json")?.to_owned();
            names::is_app(&name).then_some(name)
        });
        Ok(names.collect())
    }

    /// Reads all records, in the order of their numbers.
    pub(crate) fn all(&self) -> io::Result<Vec<Record>> {
        Ok(self.all_and_unusable()?.0)
    }

    /// The same, and why some are not used, for people, in the order of their names.
    pub(crate) fn all_and_unusable(&self) -> io::Result<(Vec<Record>, Vec<String>)> {
        let (mut records, mut unusable) = (Vec::new(), Vec::new());
        let mut names = self.names()?;
        names.sort();
        for name in names {
            let Some(file) = file_name(&name) else { continue };
            match self.load::<Record>(&file) {
                Ok(Some(record)) if record.name != name => {
                    unusable.push(format!("{name}: its record is one of {}", record.name));
                }
                Ok(record) => records.extend(record),
                Err(e) => unusable.push(format!("{name}: {e}")),
            }
        }
        records.sort_by(|one, other| (one.id, &one.name).cmp(&(other.id, &other.name)));
        Ok((records, unusable))
    }

    pub(crate) fn write(&self, record: &Record) -> io::Result<()> {
        let name = file_name(&record.name).ok_or(io::ErrorKind::InvalidInput)?;
        self.save(&name, record)
    }

    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        match self.directory.remove(&file_name(name).ok_or(io::ErrorKind::InvalidInput)?) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    /// Removes what processes that were killed have begun to write about an app. To be called with the
    /// lock held, without which nothing is written.
    pub(super) fn remove_unfinished(&self, app: &str) {
        let Some(begin) = file_name(app).map(|name| unfinished(&name, "")) else { return };
        let Ok(entries) = std::fs::read_dir(self.directory.reach(OsStr::new("."))) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let pid = name.as_encoded_bytes().strip_prefix(begin.as_encoded_bytes());
            if pid.is_some_and(|pid| !pid.is_empty() && pid.iter().all(u8::is_ascii_digit)) {
                let _ = self.directory.remove(&name);
            }
        }
    }

    /// Reads a file; `None` if it is missing.
    pub(super) fn load<T: DeserializeOwned>(&self, name: &OsStr) -> io::Result<Option<T>> {
        let file = match self.directory.read(name) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let path = self.directory.path().join(name);
        let found = file.metadata()?;
        if !is_private(&found) {
            let mode = found.mode() & 0o777;
            let text = format!(
                "{} must be a file of your own that nobody else can read or change (mode 600), and belongs to user {} with mode {mode:o}; \
                 what is in it would be executed, so `chown` and `chmod` it only if you know that, or else remove it",
                path.display(),
                found.uid()
            );
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
        }
        let size = usize::try_from(found.len().min(MAX_FILE)).unwrap_or_default();
        let mut text = String::with_capacity(size + 1);
        file.take(MAX_FILE).read_to_string(&mut text)?;
        let value = serde_json::from_str(&text).map_err(|e| {
            let text = format!(
                "{} is damaged, or from another version of troop; remove it: {e}",
                path.display()
            );
            io::Error::new(io::ErrorKind::InvalidData, text)
        })?;
        Ok(Some(value))
    }

    /// Replaces a file, so that no reader sees a part of it.
    pub(super) fn save(&self, name: &OsStr, value: &impl Serialize) -> io::Result<()> {
        let text = serde_json::to_string(value)?;
        // The next engine finds what one has left that was killed meanwhile.
        let new = unfinished(name, &troop::keeper::app_pid().to_string());
        let _ = self.directory.remove(&new);
        let mut file = self.directory.create_new(&new, 0o600)?;
        let written =
            file.write_all(text.as_bytes()).and_then(|()| self.directory.rename(&new, name));
        if written.is_err() {
            let _ = self.directory.remove(&new);
        }
        written
    }
}

/// The name of a file that a process has not written to its end.
fn unfinished(name: &OsStr, pid: &str) -> OsString {
    let mut new = OsString::from(".");
    new.push(name);
    new.push(".");
    new.push(pid);
    new
}

fn about(e: io::Error) -> io::Error {
    let text = format!("cannot make or open the directory for apps {}: {e}", path().display());
    io::Error::new(e.kind(), text)
}

/// Returns the file of a record. A text that is not a name must not become part of a path.
fn file_name(name: &str) -> Option<OsString> {
    names::is_app(name).then(|| format!("{name}.json").into())
}
