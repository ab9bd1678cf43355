//! Opens directories and files by paths that other users may be able to change, and works relative
//! to the descriptors.
//!
//! A check of a path says nothing about the time of its use. [`Directory`] walks a path component
//! by component, from `/`, opens each one relative to the descriptor of the one before, and
//! resolves symbolic links itself. The result is a descriptor, which no later change of the path
//! affects; files are opened, renamed and removed relative to it.
//!
//! The trusted users are root and the effective user of this process. A directory is *protected* if
//! a trusted user owns it and no other user may write to it, by its mode, the members of its group or
//! its access control list. In other directories another user may
//! exchange entries, so (as with systemd's `CHASE_SAFE`)
//! - symbolic links are followed only in protected directories: `/var/run` leads to `/run`, but a
//!   link in a worker's directory, or in `/tmp`, is an error;
//! - with [`Safety::Owners`], each entry of an unprotected directory on the way must belong to a
//!   trusted user, and the last directory must be protected;
//! - with [`Safety::Ancestors`], unprotected directories on the way must also belong to a trusted
//!   user and have the sticky bit, by which nobody else can exchange such entries later.

mod access;
mod directory;
#[cfg(test)]
mod tests;

use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    CWD, Mode, OFlags, StatVfsMountFlags, fstatfs, fstatvfs, mkdirat, openat, readlinkat,
};

pub use access::who_can_change;
pub use directory::{Directory, split};

/// Maximum number of symbolic links in the resolution of a path (the kernel's `MAXSYMLINKS`).
const MAX_LINKS: usize = 40;
/// Maximum number of components in the resolution of a path, those of links included. The kernel
/// has no such limit, but here the primary waits for the result.
const MAX_NAMES: usize = 1024;
/// Maximum number of directories that are created for a path.
const MAX_MADE: usize = 256;
/// `f_type` of an autofs directory, which mounts a file system when it is entered.
const AUTOFS_MAGIC: u64 = 0x0187;

/// The requirements on a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Safety {
    /// Follow all links: the calling thread's rights are the only limit, as in
    /// [`Identity::with_rights`](crate::identity::Identity::with_rights).
    Rights,
    /// Reject symbolic links outside protected directories.
    Links,
    /// Require that only trusted users can change where the path leads, and the entries of its last
    /// directory.
    Owners,
    /// Require that only trusted users can change where the path leads, now and later, so that it
    /// can be given to another process as text.
    Ancestors,
}

/// The error for a path that another user can redirect; the source of an [`io::Error`] of the kind
/// `PermissionDenied`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnsafePath {
    /// The directory or file that another user can change.
    pub path: PathBuf,
    /// The reason, with the users who can change it.
    pub reason: String,
}

impl fmt::Display for UnsafePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.path, self.reason)
    }
}

impl Error for UnsafePath {}

impl UnsafePath {
    /// Whether an error has this one as its source.
    #[must_use]
    pub fn is_cause_of(e: &io::Error) -> bool {
        e.get_ref().is_some_and(|e| e.is::<UnsafePath>())
    }

    pub(crate) fn error(path: &Path, reason: impl Into<String>) -> io::Error {
        io::Error::new(
            io::ErrorKind::PermissionDenied,
            UnsafePath { path: path.to_owned(), reason: reason.into() },
        )
    }
}

/// A component of a path that another user can change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Weak {
    /// Its path.
    pub path: PathBuf,
    /// Who can change it, as [`who_can_change`] says.
    pub who: String,
    /// Whether it is a directory with the sticky bit: others can add entries, but not exchange
    /// those of other users.
    pub sticky: bool,
}

/// Opens a regular file of at most `limit` bytes for reading. Follows symbolic links, as `open(2)`
/// does, and also returns the components that another user can change, so that the caller can warn
/// or refuse. Does not block, whatever is at the path.
///
/// # Errors
/// Those of `open(2)`; `InvalidInput` for a directory, a pipe, a socket or a device;
/// `FileTooLarge`.
pub fn open_for_reading(path: &Path, limit: u64) -> io::Result<(File, Vec<Weak>)> {
    let path = std::path::absolute(path)?;
    let mut weak = Vec::new();
    let mut walk = Walk::new(&path, None, None)?;
    walk.weak = Some(&mut weak);
    let found = match walk.all()? {
        Reached::Other(found) => found,
        Reached::Directory(..) => return Err(no_file("a directory")),
        Reached::Nothing => return Err(io::ErrorKind::NotFound.into()),
    };
    let metadata = File::from(found.try_clone()?).metadata()?;
    directory::is_regular(&metadata)?;
    if metadata.len() > limit {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it has {} bytes; at most {limit} are read", metadata.len()),
        ));
    }
    if let Some(who) = who_can_change(&found, &metadata).filter(|_| !is_read_only(&found)) {
        weak.push(Weak { path, who, sticky: false });
    }
    Ok((directory::reopen(found.as_fd(), OFlags::RDONLY)?, weak))
}

/// What identifies a file or directory, whatever its path: device and inode.
pub type FileId = (u64, u64);

/// The [`FileId`] of a file or directory.
#[must_use]
pub fn file_id(found: &Metadata) -> FileId {
    (found.dev(), found.ino())
}

/// What is at a path, held without being opened.
#[derive(Debug)]
pub struct Held {
    /// The descriptor (`O_PATH`).
    pub fd: OwnedFd,
    /// What it is.
    pub found: Metadata,
    /// Its path without links, `.` and `..`.
    pub real: PathBuf,
    /// The directories in which a name was looked up on the way, those of links included. A user
    /// that may change one of them decides where the path leads.
    pub passed: Vec<FileId>,
}

/// A path leads through a directory that [`hold`] was not to look a name up in. The source of an
/// [`io::Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeadsThrough(pub FileId);

impl fmt::Display for LeadsThrough {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a directory on the way is one in which no name is looked up")
    }
}

impl Error for LeadsThrough {}

impl LeadsThrough {
    /// The directory that was the reason for an error.
    #[must_use]
    pub fn of(e: &io::Error) -> Option<FileId> {
        e.get_ref()?.downcast_ref().map(|LeadsThrough(at)| *at)
    }
}

/// Holds the file at a path, of whatever type, without opening it (`O_PATH`). Relative paths begin
/// at the working directory. No name is looked up in the directories of `outside`, nor below them.
///
/// # Errors
/// Those of `open(2)`; [`UnsafePath`]; [`LeadsThrough`].
pub fn hold(path: &Path, safety: Safety, outside: &[FileId]) -> io::Result<Held> {
    let path = std::path::absolute(path)?;
    let safety = Some(safety).filter(|safety| *safety != Safety::Rights);
    let mut walk = Walk::new(&path, safety, None)?;
    let mut passed = Vec::new();
    walk.outside = outside;
    walk.passed = Some(&mut passed);
    let (reached, real) = walk.all_to()?;
    match reached {
        Reached::Directory(fd, found) => Ok(Held { fd, found, real, passed }),
        Reached::Other(fd) => {
            let found = File::from(fd.try_clone()?).metadata()?;
            Ok(Held { fd, found, real, passed })
        }
        Reached::Nothing => Err(io::ErrorKind::NotFound.into()),
    }
}

/// Whether a file is on a file system that is mounted read-only, as configuration is in containers;
/// then its mode does not matter.
fn is_read_only(file: impl AsFd) -> bool {
    fstatvfs(file).is_ok_and(|system| system.f_flag.contains(StatVfsMountFlags::RDONLY))
}

fn no_file(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("it is {what}, not a regular file"))
}

/// The result of a walk.
enum Reached {
    Directory(OwnedFd, Metadata),
    Other(OwnedFd),
    /// A component is missing.
    Nothing,
}

/// The state of a walk along a path.
struct Walk<'a> {
    /// The components that are left, the next one last.
    left: Vec<OsString>,
    at: OwnedFd,
    found: Metadata,
    /// The path of the current directory, for messages.
    shown: PathBuf,
    links: usize,
    /// The number of components so far.
    names: usize,
    /// The requirements; `None` follows all links.
    safety: Option<Safety>,
    /// The permissions for missing directories; `None` does not create them.
    make: Option<Mode>,
    made: usize,
    weak: Option<&'a mut Vec<Weak>>,
    /// Where no name is looked up.
    outside: &'a [FileId],
    /// Where names were looked up, if that is wanted.
    passed: Option<&'a mut Vec<FileId>>,
}

impl Walk<'_> {
    /// Begins a walk at `/`.
    fn new(path: &Path, safety: Option<Safety>, make: Option<Mode>) -> io::Result<Walk<'static>> {
        if path.as_os_str().is_empty() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let (at, found) = root()?;
        let mut walk = Walk {
            left: Vec::new(),
            at,
            found,
            shown: "/".into(),
            links: 0,
            names: 0,
            safety,
            make,
            made: 0,
            weak: None,
            outside: &[],
            passed: None,
        };
        walk.push(path);
        Ok(walk)
    }

    fn push(&mut self, path: &Path) {
        let names = path.components().rev().filter_map(|part| match part {
            Component::Normal(name) => Some(name),
            Component::ParentDir => Some(OsStr::new("..")),
            _ => None,
        });
        self.left.extend(names.map(OsStr::to_owned));
    }

    fn all(self) -> io::Result<Reached> {
        Ok(self.all_to()?.0)
    }

    /// The same, with the path without links of what was reached.
    fn all_to(mut self) -> io::Result<(Reached, PathBuf)> {
        loop {
            self.note();
            let Some(name) = self.left.pop() else {
                return Ok((Reached::Directory(self.at, self.found), self.shown));
            };
            if name != ".." {
                self.pass()?;
            }
            self.names += 1;
            if self.names > MAX_NAMES {
                return Err(rustix::io::Errno::LOOP.into());
            }
            let next = match openat(
                &self.at,
                &name,
                OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            ) {
                Ok(next) => next,
                Err(rustix::io::Errno::NOENT) => match self.make {
                    // Another process may remove each directory right after its creation.
                    Some(_) if self.made >= MAX_MADE => return Err(io::ErrorKind::NotFound.into()),
                    Some(mode) => match mkdirat(&self.at, &name, mode) {
                        // The next iteration checks it like any other component.
                        Ok(()) | Err(rustix::io::Errno::EXIST) => {
                            self.made += 1;
                            self.left.push(name);
                            continue;
                        }
                        Err(e) => return Err(e.into()),
                    },
                    None => return Ok((Reached::Nothing, self.shown.join(name))),
                },
                Err(e) => return Err(e.into()),
            };
            let next = File::from(next);
            let found = next.metadata()?;
            if found.is_symlink() {
                self.follow(&next, &name)?;
            } else if found.is_dir() {
                self.enter(next, found, &name)?;
            } else if self.left.is_empty() {
                return Ok((Reached::Other(next.into()), self.shown.join(name)));
            } else {
                return Err(io::ErrorKind::NotADirectory.into());
            }
        }
    }

    /// A name is about to be looked up in the directory where it is.
    fn pass(&mut self) -> io::Result<()> {
        let at = file_id(&self.found);
        if self.outside.contains(&at) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, LeadsThrough(at)));
        }
        if let Some(passed) = &mut self.passed
            && !passed.contains(&at)
        {
            passed.push(at);
        }
        Ok(())
    }

    /// Records the current directory, if weak components are collected and another user can change
    /// it.
    fn note(&mut self) {
        if let Some(weak) = &mut self.weak
            && let Some(who) = who_can_change(&self.at, &self.found)
            && !is_read_only(&self.at)
            && !weak.iter().any(|weak| weak.path == self.shown)
        {
            let sticky = self.found.mode() & 0o1000 != 0 && self.found.uid() == 0;
            weak.push(Weak { path: self.shown.clone(), who, sticky });
        }
    }

    fn follow(&mut self, link: &File, name: &OsStr) -> io::Result<()> {
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(rustix::io::Errno::LOOP.into());
        }
        if self.safety.is_some()
            && let Some(who) = who_can_change(&self.at, &self.found)
        {
            let reason = format!(
                "a symbolic link in a directory that others can change ({who}); name the directory itself"
            );
            return Err(UnsafePath::error(&self.shown.join(name), reason));
        }
        if let Some(weak) = &mut self.weak {
            // Any user may have created the link.
            weak.iter_mut()
                .filter(|weak| weak.path == self.shown)
                .for_each(|weak| weak.sticky = false);
        }
        let target =
            PathBuf::from(OsString::from_vec(readlinkat(link, "", Vec::new())?.into_bytes()));
        if target.is_absolute() {
            (self.at, self.found) = root()?;
            self.shown = "/".into();
        }
        self.push(&target);
        Ok(())
    }

    fn enter(&mut self, next: File, found: Metadata, name: &OsStr) -> io::Result<()> {
        let shown = if name == ".." {
            self.shown.parent().unwrap_or(Path::new("/")).to_owned()
        } else {
            self.shown.join(name)
        };
        let is_trusted = |uid: u32| uid == 0 || uid == rustix::process::geteuid().as_raw();
        if self.safety == Some(Safety::Ancestors)
            && !(is_trusted(self.found.uid()) && self.found.mode() & 0o1000 != 0)
            && let Some(who) = who_can_change(&self.at, &self.found)
        {
            let reason = format!(
                "others can exchange what is in it ({who}); it must be root's or your own, and sticky or of mode 755 or less"
            );
            return Err(UnsafePath::error(&self.shown, reason));
        }
        if matches!(self.safety, Some(Safety::Owners | Safety::Ancestors))
            && !is_trusted(found.uid())
            && let Some(who) = who_can_change(&self.at, &self.found)
        {
            let reason = format!(
                "it belongs to user {}, and others can change the directory above it ({who})",
                found.uid()
            );
            return Err(UnsafePath::error(&shown, reason));
        }
        let mut next = OwnedFd::from(next);
        let mut found = found;
        if fstatfs(&next)
            .is_ok_and(|system| u64::try_from(system.f_type).is_ok_and(|kind| kind == AUTOFS_MAGIC))
        {
            // Only opening it without `O_PATH` mounts the file system.
            let flags = OFlags::RDONLY
                | OFlags::DIRECTORY
                | OFlags::NOFOLLOW
                | OFlags::CLOEXEC
                | OFlags::NONBLOCK;
            let opened = File::from(openat(&self.at, name, flags, Mode::empty())?);
            found = opened.metadata()?;
            next = opened.into();
        }
        (self.at, self.found, self.shown) = (next, found, shown);
        Ok(())
    }
}

fn root() -> io::Result<(OwnedFd, Metadata)> {
    let root = openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let root = File::from(root);
    let found = root.metadata()?;
    Ok((root.into(), found))
}
