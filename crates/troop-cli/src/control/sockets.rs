//! The control sockets: one per app, in a directory that only its owner can enter.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::names;
use rustix::fs::{FlockOperation, flock};
use troop::program::safe_path::{Directory, Safety};

/// The number of apps whose names differ only by a number.
const MAX_NUMBERED_NAMES: usize = 1000;
/// The number of attempts to take a lock file that other processes remove.
const MAX_TRIES: usize = 100;

/// The path of the directory for control sockets.
pub(crate) fn path() -> PathBuf {
    let own = rustix::process::geteuid().as_raw();
    match (std::env::var_os("TROOP_RUNTIME_DIR"), std::env::var_os("XDG_RUNTIME_DIR")) {
        (Some(own), _) if !own.is_empty() => PathBuf::from(own),
        // After `su`, `XDG_RUNTIME_DIR` may still be that of another user.
        (_, Some(runtime))
            if Path::new(&runtime).metadata().is_ok_and(|found| found.uid() == own) =>
        {
            Path::new(&runtime).join("troop")
        }
        _ if own == 0 => "/run/troop".into(),
        _ => format!("/tmp/troop-{own}").into(),
    }
}

/// Opens the directory, `TROOP_RUNTIME_DIR` or the default, and creates it if it is missing. The
/// directory is held open, so that nobody can replace it.
///
/// # Errors
/// If it cannot be created, or other users could enter it.
pub(crate) fn directory() -> io::Result<Directory> {
    let path = path();
    let about = |e: io::Error| {
        io::Error::new(
            e.kind(),
            format!(
                "cannot make or open the directory for control sockets {}: {e}",
                path.display()
            ),
        )
    };
    let directory = Directory::create(&path, Safety::Links, 0o700).map_err(about)?;
    let found = directory.metadata();
    if found.uid() != rustix::process::geteuid().as_raw() || found.mode() & 0o077 != 0 {
        let text = format!(
            "{} must be a directory of your own that nobody else can enter (mode 700): `chmod 700` it if it is yours, or move it away, or set TROOP_RUNTIME_DIR",
            path.display()
        );
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    Ok(directory)
}

/// A claimed name and its socket, both released on drop.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) name: String,
    directory: Directory,
    lock: File,
    /// The socket, to be left to another engine.
    listener: Option<UnixListener>,
    is_released: bool,
}

impl Claim {
    /// Whether clients find the socket: its directory may have been removed, as `XDG_RUNTIME_DIR` is at
    /// a logout.
    fn is_reachable(&self) -> bool {
        let found = Directory::find(&path(), Safety::Links);
        let is_there =
            |directory: &Directory| matches!(directory.entry(&socket(&self.name)), Ok(Some(_)));
        found.is_ok_and(|found| {
            found.is_some_and(|found| found.is_same(&self.directory) && is_there(&found))
        })
    }

    /// Makes the socket again if clients do not find it any more. Returns the new one.
    ///
    /// # Errors
    /// If it cannot be made, or another app has taken the name.
    pub(crate) fn renew(&mut self) -> io::Result<Option<UnixListener>> {
        if self.is_released || self.is_reachable() {
            return Ok(None);
        }
        let directory = directory()?;
        let lock = match locked(&directory, &self.name)? {
            Some(lock) => lock,
            // Only the socket was removed.
            None if directory.is_same(&self.directory) => self.lock.try_clone()?,
            None => return Err(io::ErrorKind::AddrInUse.into()),
        };
        let listener = bind(&directory, &self.name)?;
        (self.directory, self.lock) = (directory, lock);
        self.listener = listener.try_clone().ok();
        Ok(Some(listener))
    }

    /// Goes on with a name that another process of the app has claimed.
    ///
    /// # Errors
    /// If the directory cannot be opened, or when out of descriptors.
    pub(crate) fn resume(
        name: String,
        lock: OwnedFd,
        listener: OwnedFd,
    ) -> io::Result<(Claim, UnixListener)> {
        let listener = UnixListener::from(listener);
        let kept = Some(listener.try_clone()?);
        let directory = directory()?;
        let claim =
            Claim { name, directory, lock: lock.into(), listener: kept, is_released: false };
        Ok((claim, listener))
    }

    /// Returns copies of what another process of the app needs to go on with the name: the lock and the
    /// socket.
    pub(crate) fn to_leave(&self) -> Option<(OwnedFd, OwnedFd)> {
        let listener = self.listener.as_ref()?.try_clone().ok()?;
        Some((self.lock.try_clone().ok()?.into(), listener.into()))
    }

    /// Returns the lock file, whose time of change shows when the app was alive last.
    pub(crate) fn lock_file(&self) -> io::Result<File> {
        self.lock.try_clone()
    }
}

impl Claim {
    /// Releases the name.
    pub(crate) fn release(&mut self) {
        if std::mem::replace(&mut self.is_released, true) {
            return;
        }
        let _ = self.directory.remove(&socket(&self.name));
        crate::moves::remove(&self.name);
        // A process that waits for the lock notices that its file is gone.
        let _ = self.directory.remove(&lock(&self.name));
        let _ = flock(&self.lock, FlockOperation::Unlock);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.release();
    }
}

fn socket(name: &str) -> OsString {
    format!("{name}.sock").into()
}

fn lock(name: &str) -> OsString {
    format!("{name}.lock").into()
}

/// Why a name could not be claimed.
#[derive(Debug)]
pub(crate) enum ClaimError {
    /// An app of this name is running.
    Taken,
    Io(io::Error),
}

/// Takes the lock of a name, which ends with its process, unlike the socket. Returns `None` if
/// another process has it.
fn locked(directory: &Directory, name: &str) -> io::Result<Option<File>> {
    let lock = lock(name);
    for _ in 0..MAX_TRIES {
        let (file, _) = directory.append(&lock, 0o600)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(e) => return Err(e.into()),
        }
        // The process that had the lock may have removed the file meanwhile.
        let inode = file.metadata()?.ino();
        if directory.entry(&lock)?.is_some_and(|found| found.ino() == inode) {
            return Ok(Some(file));
        }
    }
    Err(io::ErrorKind::ResourceBusy.into())
}

/// Binds the socket of a name that is claimed.
fn bind(directory: &Directory, name: &str) -> io::Result<UnixListener> {
    let socket = socket(name);
    let _ = directory.remove(&socket);
    let path = directory.reach(&socket);
    let listener = UnixListener::bind(&path)?;
    // The directory keeps other users out already.
    rustix::fs::chmod(&path, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)?;
    Ok(listener)
}

/// Claims a name and binds its socket. A name that is not `is_explicit` gets a number if it is
/// taken.
pub(crate) fn claim(name: &str, is_explicit: bool) -> Result<(Claim, UnixListener), ClaimError> {
    for number in 1..=if is_explicit { 1 } else { MAX_NUMBERED_NAMES } {
        let directory = directory().map_err(ClaimError::Io)?;
        let name = if number == 1 { name.to_owned() } else { format!("{name}-{number}") };
        let io = |what: &str, e: io::Error| {
            ClaimError::Io(io::Error::new(e.kind(), format!("{what} of {name}: {e}")))
        };
        let Some(lock) = locked(&directory, &name).map_err(|e| io("cannot take the lock", e))?
        else {
            continue;
        };
        let listener =
            bind(&directory, &name).map_err(|e| io("cannot bind the control socket", e))?;
        let kept = listener.try_clone().ok();
        let claim =
            Claim { name: name.clone(), directory, lock, listener: kept, is_released: false };
        return Ok((claim, listener));
    }
    Err(ClaimError::Taken)
}

/// Returns the names of apps that have a socket, running or not.
pub(crate) fn names() -> io::Result<Vec<String>> {
    let directory = directory()?;
    let mut names: Vec<String> = std::fs::read_dir(directory.reach(OsStr::new(".")))?
        .flatten()
        .filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".sock")?.to_owned()))
        .filter(|name| names::is_app(name))
        .collect();
    names.sort();
    Ok(names)
}

/// Connects without waiting: if the queue of the listening socket is full, as that of a stopped
/// process becomes, the error is `WouldBlock`.
fn connect_now(path: &Path) -> io::Result<UnixStream> {
    use rustix::net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let stream = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&stream, &SocketAddrUnix::new(path)?)?;
    let stream = UnixStream::from(stream);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Connects to an app's socket. Does not wait: see [`connect_now`].
pub(crate) fn connect(name: &str) -> io::Result<UnixStream> {
    // A text that is not a name must not become part of a path.
    if !names::is_app(name) {
        return Err(io::ErrorKind::NotFound.into());
    }
    connect_now(&directory()?.reach(&socket(name)))
}

/// Connects to the socket of an app that was started with another directory for control sockets.
pub(crate) fn connect_in(path: &Path, name: &str) -> io::Result<UnixStream> {
    let directory = Directory::open(path, Safety::Links)?;
    if !names::is_app(name) || directory.metadata().uid() != rustix::process::geteuid().as_raw() {
        return Err(io::ErrorKind::NotFound.into());
    }
    connect_now(&directory.reach(&socket(name)))
}

/// Returns when an app was alive last, if its lock file is still in that directory.
pub(crate) fn last_seen(path: &Path, name: &str) -> Option<SystemTime> {
    let directory = Directory::find(path, Safety::Links).ok()??;
    directory.entry(&lock(name)).ok()??.modified().ok()
}

/// Whether there is something of an app, running or not.
pub(crate) fn has_left(name: &str) -> io::Result<bool> {
    let directory = directory()?;
    Ok(directory.entry(&socket(name))?.is_some() || directory.entry(&lock(name))?.is_some())
}

/// Removes what an app has left behind whose primary ended without a word.
pub(crate) fn clear(name: &str) -> io::Result<()> {
    let directory = directory()?;
    if let Some(lock) = locked(&directory, name)? {
        let name = name.to_owned();
        drop(Claim { name, directory, lock, listener: None, is_released: false });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_name_is_had_by_one_at_a_time_although_its_lock_is_removed_at_the_end() {
        let home = tempfile::tempdir().unwrap();
        let directory = Directory::open(home.path(), Safety::Owners).unwrap();
        let (holders, had) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while had.load(Ordering::SeqCst) < 500 {
                        let Ok(Some(held)) = locked(&directory, "web") else { continue };
                        assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0);
                        std::thread::yield_now();
                        holders.fetch_sub(1, Ordering::SeqCst);
                        had.fetch_add(1, Ordering::SeqCst);
                        directory.remove(&lock("web")).unwrap();
                        drop(held);
                    }
                });
            }
        });
        assert!(!home.path().join("web.lock").exists());
    }

    #[test]
    fn programs_give_names() {
        for (program, name) in [
            ("server.js", "server"),
            ("/srv/my app/api.v2.mjs", "api-v2"),
            ("./hello", "hello"),
            ("...", "app"),
            ("all.js", "app"),
        ] {
            assert_eq!(names::of_program(Path::new(program)), name);
        }
        for bad in ["", "all", "../x", "a/b", ".hidden", "-n", "a b", &"x".repeat(65)] {
            assert!(!names::is_app(bad), "{bad}");
        }
    }
}
