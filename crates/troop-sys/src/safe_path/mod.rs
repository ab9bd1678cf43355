//! Opens directories and files by paths that other users may be able to change, and works relative
//! to the descriptors.
//!
//! A check of a path says nothing about the moment of its use. [`Directory`] walks a path component
//! by component, from `/`, each one relative to the descriptor of the one before and never through
//! a symbolic link unawares. What it reaches stays what it is, whatever becomes of the path; files
//! are then opened, renamed and removed relative to it.
//!
//! The trusted users are root and the effective user of this process. A directory is *theirs alone*
//! if one of them owns it and nobody else may write to it. Elsewhere somebody else may exchange
//! what is there (as in systemd's `CHASE_SAFE`), so that
//! - symbolic links are followed only where the directory that holds them is theirs alone:
//!   `/var/run` leads to `/run`, but a link in a worker's directory, or in `/tmp`, leads nowhere;
//! - with [`Safety::Owners`], each directory on the way through such a place belongs to a trusted
//!   user, and the last one is theirs alone.

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

pub use directory::{Directory, split};

/// The most symbolic links on one way, as in the kernel.
const MAX_LINKS: usize = 40;
/// The most names on one way, those in links included. The kernel has no such limit, but it is not
/// a primary that others wait for.
const MAX_NAMES: usize = 1024;
/// The most directories that are made on one way.
const MAX_MADE: usize = 256;
/// `f_type` of a directory that mounts something when it is entered.
const AUTOFS_MAGIC: u64 = 0x0187;

/// What is demanded of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Safety {
    /// Links are followed anywhere: what the calling thread may do is limit enough, as in
    /// [`Identity::with_rights`](crate::identity::Identity::with_rights).
    Rights,
    /// No symbolic link is followed where somebody else could have put it.
    Links,
    /// Nobody but the trusted users can change where the path leads, or what is in the directory
    /// that it leads to.
    Owners,
}

/// A path that leads, or may lead, where somebody else wants it to. The source of an [`io::Error`]
/// of the kind `PermissionDenied`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnsafePath {
    /// The directory or file that is the reason.
    pub path: PathBuf,
    /// Why, and who else can change it.
    pub reason: String,
}

impl fmt::Display for UnsafePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.path, self.reason)
    }
}

impl Error for UnsafePath {}

impl UnsafePath {
    /// Whether an error is one of these.
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

/// Who can change a file or directory besides the trusted users, in words such as
/// `owned by user 1000, mode 755`; `None` if nobody can.
#[must_use]
pub fn who_can_change(found: &Metadata) -> Option<String> {
    let own = rustix::process::geteuid().as_raw();
    let (uid, gid, mode) = (found.uid(), found.gid(), found.mode());
    let is_trusted = uid == 0 || uid == own;
    // A group that has its user's number has no other members (`USERGROUPS_ENAB` of
    // `login.defs(5)`); its members are not root's concern.
    let is_own_group = own != 0 && gid == own;
    let others = mode & 0o002 != 0 || (mode & 0o020 != 0 && !is_own_group);
    (!is_trusted || others)
        .then(|| format!("owned by user {uid}, group {gid}, mode {:o}", mode & 0o7777))
}

/// A directory or file on the way of a path that somebody else can change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Weak {
    /// Where it is.
    pub path: PathBuf,
    /// In words, as of [`who_can_change`].
    pub who: String,
    /// Others can add to this directory, but not exchange what is there: the sticky bit.
    pub sticky: bool,
}

/// Opens a file that may be anything by now, for reading: a regular one, not larger than `limit`.
/// Symbolic links are followed, as `open(2)` does; what on the way somebody else can change is
/// returned, for whoever wants to warn or refuse. Nothing is waited for.
///
/// # Errors
/// As `open(2)`; `InvalidInput` for a directory, a pipe, a socket or a device; `FileTooLarge`.
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
    if let Some(who) = who_can_change(&metadata).filter(|_| !is_read_only(&found)) {
        weak.push(Weak { path, who, sticky: false });
    }
    Ok((directory::reopen(found.as_fd(), OFlags::RDONLY)?, weak))
}

/// Holds what is at a path, whatever it is, without opening it. Relative paths begin at the working
/// directory.
///
/// # Errors
/// As `open(2)`; [`UnsafePath`].
pub fn hold(path: &Path, safety: Safety) -> io::Result<(OwnedFd, Metadata)> {
    let path = std::path::absolute(path)?;
    match Walk::new(&path, Some(safety).filter(|safety| *safety != Safety::Rights), None)?.all()? {
        Reached::Directory(at, found) => Ok((at, found)),
        Reached::Other(at) => {
            let found = File::from(at.try_clone()?).metadata()?;
            Ok((at, found))
        }
        Reached::Nothing => Err(io::ErrorKind::NotFound.into()),
    }
}

/// Whether a file is in a file system that is mounted read-only, as configuration is in containers:
/// its mode does not matter.
fn is_read_only(file: impl AsFd) -> bool {
    fstatvfs(file).is_ok_and(|system| system.f_flag.contains(StatVfsMountFlags::RDONLY))
}

fn no_file(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("it is {what}, not a regular file"))
}

/// What a path led to.
enum Reached {
    Directory(OwnedFd, Metadata),
    Other(OwnedFd),
    /// A component is missing.
    Nothing,
}

/// The way along a path.
struct Walk<'a> {
    /// What is left of it, the next component last.
    left: Vec<OsString>,
    at: OwnedFd,
    found: Metadata,
    /// Where that is, as far as is known.
    shown: PathBuf,
    links: usize,
    /// Names that were gone through so far.
    names: usize,
    /// Without it, links are followed anywhere.
    safety: Option<Safety>,
    /// The permissions of directories that are made where none are.
    make: Option<Mode>,
    made: usize,
    weak: Option<&'a mut Vec<Weak>>,
}

impl Walk<'_> {
    /// At the beginning of an absolute path.
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

    fn all(mut self) -> io::Result<Reached> {
        loop {
            self.note();
            let Some(name) = self.left.pop() else {
                return Ok(Reached::Directory(self.at, self.found));
            };
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
                    // Somebody may remove it as often as it is made.
                    Some(_) if self.made >= MAX_MADE => return Err(io::ErrorKind::NotFound.into()),
                    Some(mode) => match mkdirat(&self.at, &name, mode) {
                        // The next round checks it like any other name.
                        Ok(()) | Err(rustix::io::Errno::EXIST) => {
                            self.made += 1;
                            self.left.push(name);
                            continue;
                        }
                        Err(e) => return Err(e.into()),
                    },
                    None => return Ok(Reached::Nothing),
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
                return Ok(Reached::Other(next.into()));
            } else {
                return Err(io::ErrorKind::NotADirectory.into());
            }
        }
    }

    /// Notes the directory where it is, if that is wanted and somebody else can change it.
    fn note(&mut self) {
        if let Some(weak) = &mut self.weak
            && let Some(who) = who_can_change(&self.found)
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
            && let Some(who) = who_can_change(&self.found)
        {
            let reason = format!(
                "a symbolic link in a directory that others can change ({who}); name the directory itself"
            );
            return Err(UnsafePath::error(&self.shown.join(name), reason));
        }
        if let Some(weak) = &mut self.weak {
            // A link there may be anybody's.
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
        if self.safety == Some(Safety::Owners)
            && !is_trusted(found.uid())
            && let Some(who) = who_can_change(&self.found)
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
            // Only who opens it in earnest has it mounted.
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
