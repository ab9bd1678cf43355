//! Unix listeners at paths that a worker has chosen.
//!
//! A path is resolved once to a directory that is held open ([`Directory`]), and every operation is
//! relative to that descriptor. So a path that changes meanwhile cannot lead elsewhere.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid, fstat, openat, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, connect};
use serde::{Deserialize, Serialize};

use crate::identity::Identity;
use crate::listen::new_socket;
use crate::safe_path::{Directory, Safety, UnsafePath};
use crate::sandbox::Sandbox;
use crate::within::{UnderWay, within};

/// The longest path that a Unix socket address holds.
const MAX_PATH: usize = 107;
/// Time limit for a file system that another user has chosen.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// `SIOCUNIXFILE`, `unix(7)`: a descriptor of the file that a socket is bound to.
const UNIX_FILE: libc::Ioctl = 0x89e0;

/// The rights with which a path is resolved, and a socket is created and removed.
#[derive(Debug, Clone, Default)]
pub struct Rights {
    /// Those of this user; `None`: those of this process.
    pub of: Option<Identity>,
    /// No more than this leaves of them.
    pub sandbox: Sandbox,
    /// Whether to follow only links that root or this process's user must have created, also with
    /// another user's rights. Root itself never follows other links.
    pub trusted_links_only: bool,
}

impl Rights {
    /// Returns the rights of this process.
    #[must_use]
    pub fn own() -> Rights {
        Rights::default()
    }

    /// With another user's rights a link leads nowhere that this user could not go by itself, and a
    /// user without privileges has nothing to be tricked out of. Root has.
    fn safety(&self) -> Safety {
        let is_limit = match &self.of {
            Some(_) => !self.trusted_links_only,
            None => !self.trusted_links_only && !rustix::process::geteuid().is_root(),
        };
        if is_limit { Safety::Rights } else { Safety::Links }
    }

    /// Whether these are fewer rights than this process has, so that another user has chosen the
    /// path.
    fn are_less(&self) -> bool {
        self.of.is_some() || self.sandbox.restricts_files()
    }

    /// Runs `work` with these rights. With fewer rights than this process has there is a time
    /// limit, because the path may be on a file system that does not answer.
    fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        if !self.are_less() {
            return work();
        }
        let rights = self.clone();
        within(ANSWER_TIMEOUT, move || {
            rights.of.as_ref().map_or(Ok(()), Identity::take_on)?;
            rights.sandbox.restrict_files_of_thread()?;
            work()
        })
    }
}

/// The file of a Unix socket. Removed on drop, unless its path leads to another file.
#[derive(Debug)]
pub struct UnixFile {
    directory: Arc<Directory>,
    name: OsString,
    path: PathBuf,
    number: (u64, u64),
    rights: Rights,
    looks: Arc<Looks>,
}

/// A [`UnixFile`] as plain data.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SavedUnixFile {
    directory: OsString,
    name: OsString,
    path: OsString,
    number: (u64, u64),
    of: Option<Identity>,
    trusted_links_only: bool,
}

/// The largest number of threads that look at paths at a time. While as many wait for file systems,
/// no thread looks at another path.
const MAX_LOOKUPS: usize = 16;

static LOOKS: AtomicUsize = AtomicUsize::new(0);

/// What is known of a path from looks in the background.
#[derive(Debug, Default)]
struct Looks {
    is_looking: AtomicBool,
    /// The last one has found something else, or nothing.
    is_elsewhere: AtomicBool,
    /// The path was not answered once, and is not waited for again.
    unanswered: AtomicBool,
}

impl UnixFile {
    /// Whether clients that connect to the path still come to this socket, as far as the path
    /// answers. Waits for that for some seconds, once.
    #[must_use]
    pub fn is_reached(&self) -> bool {
        if self.looks.unanswered.load(Ordering::Relaxed) {
            return true;
        }
        let path = self.path.clone();
        let is_reached = match within(ANSWER_TIMEOUT, move || Ok(rustix::fs::stat(&path)?)) {
            Ok(stat) => number(&stat) == self.number,
            Err(e) if e.raw_os_error() == Some(libc::ETIMEDOUT) => {
                self.looks.unanswered.store(true, Ordering::Relaxed);
                true
            }
            Err(_) => false,
        };
        self.looks.is_elsewhere.store(!is_reached, Ordering::Release);
        is_reached
    }

    /// The same as of the last look, and begins another one. Never waits.
    #[must_use]
    pub fn was_reached(&self) -> bool {
        if !self.looks.is_looking.swap(true, Ordering::AcqRel) && !self.begin_look() {
            self.looks.is_looking.store(false, Ordering::Release);
        }
        !self.looks.is_elsewhere.load(Ordering::Acquire)
    }

    /// False if too many are under way.
    fn begin_look(&self) -> bool {
        let one_more = |count| (count < MAX_LOOKUPS).then_some(count + 1);
        if LOOKS.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).is_err() {
            return false;
        }
        let (looks, path, own) = (self.looks.clone(), self.path.clone(), self.number);
        let under_way = UnderWay::begin();
        let look = move || {
            let is_elsewhere = rustix::fs::stat(&path).map_or(true, |stat| number(&stat) != own);
            drop(under_way);
            looks.is_elsewhere.store(is_elsewhere, Ordering::Release);
            looks.is_looking.store(false, Ordering::Release);
            LOOKS.fetch_sub(1, Ordering::AcqRel);
        };
        let thread = std::thread::Builder::new().name("troop-files".into()).stack_size(64 * 1024);
        let is_begun = thread.spawn(look).is_ok();
        if !is_begun {
            LOOKS.fetch_sub(1, Ordering::AcqRel);
        }
        is_begun
    }

    /// Returns all that another process must know to take care of the file, besides
    /// [`UnixFile::directory`] and the ruleset of its rights.
    #[must_use]
    pub fn save(&self) -> SavedUnixFile {
        SavedUnixFile {
            directory: self.directory.path().as_os_str().to_owned(),
            name: self.name.clone(),
            path: self.path.as_os_str().to_owned(),
            number: self.number,
            of: self.rights.of.clone(),
            trusted_links_only: self.rights.trusted_links_only,
        }
    }

    /// Returns the directory in which the file is.
    #[must_use]
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Takes care of a file as the process did that has [saved](UnixFile::save) this, with the same
    /// directory and the same sandbox.
    ///
    /// # Errors
    /// If the descriptor is not that of a directory.
    pub fn restore(
        saved: SavedUnixFile,
        directory: OwnedFd,
        sandbox: Sandbox,
    ) -> io::Result<UnixFile> {
        let directory = Arc::new(Directory::held(directory, saved.directory.into())?);
        let SavedUnixFile { name, path, number, of, trusted_links_only, .. } = saved;
        let rights = Rights { of, sandbox, trusted_links_only };
        Ok(UnixFile { directory, name, path: path.into(), number, rights, looks: Arc::default() })
    }

    /// Sets the owner, the group and the mode of the file; what is left out stays. `socket` is the one
    /// that is bound to it.
    ///
    /// # Errors
    /// Those of `chown(2)` and `chmod(2)`; `ESTALE` if the file has been replaced.
    pub fn set_access(
        &self,
        socket: &OwnedFd,
        uid: Option<u32>,
        gid: Option<u32>,
        mode: Option<u32>,
    ) -> io::Result<()> {
        // By way of the descriptor, so of this file and no other.
        let (file, stat) = file_of(socket, &self.directory, &self.name)?;
        if number(&stat) != self.number {
            return Err(Errno::STALE.into());
        }
        if uid.is_some() || gid.is_some() {
            let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
            rustix::fs::chownat(&file, "", uid, gid, AtFlags::EMPTY_PATH)?;
        }
        if let Some(mode) = mode {
            rustix::fs::chmod(by_descriptor(file.as_fd()), Mode::from_raw_mode(mode & 0o777))?;
        }
        Ok(())
    }

    /// The rights with which it was created.
    #[must_use]
    pub fn rights(&self) -> &Rights {
        &self.rights
    }
}

fn number(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

impl Drop for UnixFile {
    fn drop(&mut self) {
        let (directory, name, own) =
            (self.directory.clone(), std::mem::take(&mut self.name), self.number);
        let remove = move || {
            // A process that can put another file there in between may remove that one too: this
            // is done with no more rights.
            if number(&statat(&*directory, &name, AtFlags::SYMLINK_NOFOLLOW)?) == own {
                unlinkat(&*directory, &name, AtFlags::empty())?;
            }
            Ok(())
        };
        let _ = self.rights.run(remove);
    }
}

/// Returns a bound Unix stream socket, non-blocking, not listening. `\0name` is an abstract
/// address, which has no file. A socket file without a listener is replaced, if the rights allow
/// its removal.
///
/// # Errors
/// Those of `bind(2)`; `ETIMEDOUT` if the file system does not answer; a missing directory is
/// `EACCES`, as libuv reports it; `ENAMETOOLONG`; [`UnsafePath`] for a link that is not followed.
pub fn unix(
    path: &str,
    readable_all: bool,
    writable_all: bool,
    rights: &Rights,
) -> io::Result<(OwnedFd, Option<UnixFile>)> {
    // A worker that listens on `\0name` sends `/its/directory/\0name`; the name is what follows the
    // NUL.
    if let Some((_, name)) = path.split_once('\0') {
        let socket = new_socket(AddressFamily::UNIX, SocketType::STREAM)?;
        bind(&socket, &SocketAddrUnix::new_abstract_name(name.as_bytes())?)?;
        return Ok((socket, None));
    }
    let widened = Mode::from_raw_mode(
        if readable_all { 0o444 } else { 0 } | if writable_all { 0o222 } else { 0 },
    );
    let (path, its_rights) = (PathBuf::from(path), rights.clone());
    let bound = rights.run(move || bind_file(&path, widened, &its_rights));
    match bound {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Err(io::Error::from_raw_os_error(libc::EACCES))
        }
        Err(e) => Err(e),
        Ok((socket, file)) => Ok((socket, Some(file))),
    }
}

fn bind_file(path: &Path, widened: Mode, rights: &Rights) -> io::Result<(OwnedFd, UnixFile)> {
    let name = match path.components().next_back() {
        Some(Component::Normal(name)) if path.as_os_str().as_bytes().ends_with(name.as_bytes()) => {
            name.to_owned()
        }
        _ => return Err(Errno::INVAL.into()),
    };
    let parent =
        path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    refuse_own_places(path)?;
    let directory = Directory::open(parent, rights.safety())?;
    // Where links have led, for example.
    if rustix::fs::fstatfs(&directory)?.f_type == rustix::fs::PROC_SUPER_MAGIC {
        return Err(of_processes(path));
    }
    let socket = new_socket(AddressFamily::UNIX, SocketType::STREAM)?;
    if let Err(e) = bind_in(&socket, &directory, &name) {
        if e != Errno::ADDRINUSE || !remove_stale(&directory, &name) {
            return Err(e.into());
        }
        bind_in(&socket, &directory, &name)?;
    }
    let (file, stat) = file_of(&socket, &directory, &name)?;
    let mode = Mode::from_raw_mode(stat.st_mode);
    if !mode.contains(widened) {
        // By way of the descriptor, so of this file and no other.
        rustix::fs::chmod(
            by_descriptor(file.as_fd()),
            (mode | widened) & Mode::from_raw_mode(0o777),
        )?;
    }
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let (directory, number, looks) = (Arc::new(directory), number(&stat), Arc::default());
    Ok((socket, UnixFile { directory, name, path, number, rights: rights.clone(), looks }))
}

/// Refuses paths that lead to other places for each process, such as `/proc/self/cwd/s`.
fn refuse_own_places(path: &Path) -> io::Result<()> {
    let mut place = PathBuf::new();
    for part in std::path::absolute(path)?.components() {
        match part {
            Component::ParentDir => drop(place.pop()),
            part => place.push(part),
        }
        if place == Path::new("/proc") || place == Path::new("/dev/fd") {
            return Err(of_processes(path));
        }
    }
    Ok(())
}

fn of_processes(path: &Path) -> io::Error {
    let reason = "what is below /proc and /dev/fd is another place for each process, so no socket is made there; name the directory itself";
    UnsafePath::error(path, reason)
}

fn by_descriptor(fd: BorrowedFd<'_>) -> PathBuf {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into()
}

/// Binds by a path through the held directory, whatever its own path leads to by now.
fn bind_in(socket: &OwnedFd, directory: &Directory, name: &OsStr) -> rustix::io::Result<()> {
    let path = directory.reach(name);
    if path.as_os_str().len() <= MAX_PATH {
        return bind(socket, &SocketAddrUnix::new(&path)?);
    }
    // Only the name itself fits, so this needs a working directory of its own.
    let address = SocketAddrUnix::new(name)?;
    std::thread::scope(|scope| {
        let own = || {
            // SAFETY: from now on this thread, which ends here, has its own working directory and
            // mask; its descriptors stay shared.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) }
                .map_err(|_| Errno::NAMETOOLONG)?;
            rustix::process::fchdir(directory)?;
            bind(socket, &address)
        };
        // A new thread has the rights to files of the one that starts it.
        let thread =
            std::thread::Builder::new().spawn_scoped(scope, own).map_err(|_| Errno::AGAIN)?;
        thread.join().unwrap_or(Err(Errno::IO))
    })
}

/// Returns the file of a socket that was just bound. No other user can have replaced it.
fn file_of(socket: &OwnedFd, directory: &Directory, name: &OsStr) -> io::Result<(OwnedFd, Stat)> {
    // SAFETY: an ioctl without argument, which makes a descriptor or fails.
    let file = unsafe { libc::ioctl(socket.as_raw_fd(), UNIX_FILE, 0) };
    if file >= 0 {
        // SAFETY: just made, and owned by nothing else.
        let file = unsafe { OwnedFd::from_raw_fd(file) };
        crate::socket::set_cloexec(&file)?;
        let stat = fstat(&file)?;
        return Ok((file, stat));
    }
    // Without `CAP_NET_ADMIN` the kernel does not tell. Then it must at least be a socket of the
    // user that has made it.
    let file =
        openat(directory, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let stat = fstat(&file)?;
    // SAFETY: -1 changes nothing, and tells whose rights to files this thread has.
    let own = unsafe { libc::setfsuid(u32::MAX) }.cast_unsigned();
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket || stat.st_uid != own {
        return Err(Errno::STALE.into());
    }
    Ok((file, stat))
}

/// Removes a socket file that has no listener. Never blocks, even if the queue of a listener is
/// full.
fn remove_stale(directory: &Directory, name: &OsStr) -> bool {
    let remove = || -> rustix::io::Result<bool> {
        let file = openat(
            directory,
            name,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let stat = fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
            return Ok(false);
        }
        let probe =
            new_socket(AddressFamily::UNIX, SocketType::STREAM).map_err(|_| Errno::MFILE)?;
        // The file that is held, whatever its name leads to by now.
        if connect(&probe, &SocketAddrUnix::new(by_descriptor(file.as_fd()))?)
            != Err(Errno::CONNREFUSED)
        {
            return Ok(false);
        }
        let now = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if (now.st_dev, now.st_ino) != (stat.st_dev, stat.st_ino) {
            return Ok(false);
        }
        unlinkat(directory, name, AtFlags::empty())?;
        Ok(true)
    };
    remove().unwrap_or(false)
}

#[cfg(test)]
mod tests;
