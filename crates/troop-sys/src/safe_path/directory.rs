//! A directory that is held open, and operations on the names in it.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, renameat, unlinkat};

use super::{Reached, Safety, UnsafePath, Walk, no_file, who_can_change};

/// Maximum number of attempts to open a file that is created and removed meanwhile.
const MAX_TRIES: usize = 16;

/// A directory that is held open. Names are looked up in this directory, even if it has been moved
/// or another one is at its path now.
#[derive(Debug)]
pub struct Directory {
    at: OwnedFd,
    found: Metadata,
    path: PathBuf,
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.at.as_fd()
    }
}

impl Directory {
    /// Opens an existing directory. Relative paths begin at the working directory; each component
    /// needs search permission.
    ///
    /// # Errors
    /// Those of `open(2)`; [`UnsafePath`].
    pub fn open(path: &Path, safety: Safety) -> io::Result<Directory> {
        Directory::find(path, safety)?.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Opens a directory. Returns `None` if it, or a component of its path, is missing; the
    /// components before that have been checked.
    ///
    /// # Errors
    /// Those of [`Directory::open`].
    pub fn find(path: &Path, safety: Safety) -> io::Result<Option<Directory>> {
        Directory::walk(path, safety, None)
    }

    /// Opens a directory, and creates the missing components of its path with the permissions
    /// `mode` (less the umask).
    ///
    /// # Errors
    /// Those of [`Directory::open`] and `mkdir(2)`.
    pub fn create(path: &Path, safety: Safety, mode: u32) -> io::Result<Directory> {
        Directory::walk(path, safety, Some(Mode::from_raw_mode(mode)))?
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn walk(path: &Path, safety: Safety, make: Option<Mode>) -> io::Result<Option<Directory>> {
        let path = std::path::absolute(path)?;
        match Walk::new(&path, Some(safety).filter(|safety| *safety != Safety::Rights), make)?
            .all()?
        {
            Reached::Nothing => Ok(None),
            Reached::Other(_) => Err(io::ErrorKind::NotADirectory.into()),
            Reached::Directory(at, found) => {
                if matches!(safety, Safety::Owners | Safety::Ancestors)
                    && let Some(who) = who_can_change(&at, &found)
                {
                    return Err(UnsafePath::error(
                        &path,
                        format!(
                            "others can change it ({who}); it must be root's or your own, and of mode 755 or less"
                        ),
                    ));
                }
                Ok(Some(Directory { at, found, path }))
            }
        }
    }

    /// Takes a directory that is held open already, such as one that another process has held.
    /// `path` is for messages.
    ///
    /// # Errors
    /// Those of `fstat(2)`; `NotADirectory`.
    pub fn held(at: OwnedFd, path: PathBuf) -> io::Result<Directory> {
        let file = File::from(at);
        let found = file.metadata()?;
        if !found.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(Directory { at: file.into(), found, path })
    }

    /// Returns the path by which it was opened, for messages: it may lead elsewhere by now.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns owner and permissions at the time of opening.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.found
    }

    /// Whether both are the same directory.
    #[must_use]
    pub fn is_same(&self, other: &Directory) -> bool {
        (self.found.dev(), self.found.ino()) == (other.found.dev(), other.found.ino())
    }

    /// Returns a short path (`/proc/self/fd/N/name`) to a name in this directory, valid while the
    /// directory is held, for calls that only take paths, such as `bind(2)`. Such a call follows
    /// `name` if it is a symbolic link.
    #[must_use]
    pub fn reach(&self, name: &OsStr) -> PathBuf {
        Path::new("/proc/self/fd").join(self.at.as_raw_fd().to_string()).join(name)
    }

    /// Returns the metadata of a name, or `None` if it does not exist. Links are not followed.
    ///
    /// # Errors
    /// Those of `stat(2)`; `InvalidInput` if `name` is not a single component.
    pub fn entry(&self, name: &OsStr) -> io::Result<Option<Metadata>> {
        Ok(match self.hold(name)? {
            Some(entry) => Some(entry.metadata()?),
            None => None,
        })
    }

    /// Opens an existing file for appending, or creates one with the permissions `mode` (less the
    /// umask). Returns the file and whether it was created. Does not block.
    ///
    /// The file must be a regular file with one link that belongs to a trusted user or to the
    /// directory's owner. In a directory that only trusted users can change, it may also belong to
    /// another user, or be a character device such as `/dev/null`.
    ///
    /// # Errors
    /// Those of `open(2)`; [`UnsafePath`].
    pub fn append(&self, name: &OsStr, mode: u32) -> io::Result<(File, bool)> {
        for _ in 0..MAX_TRIES {
            match self.hold(name)? {
                Some(entry) => {
                    let found = entry.metadata()?;
                    if found.nlink() == 0 {
                        // Another process has removed it in between.
                        continue;
                    }
                    self.may_append(&found, name)?;
                    return Ok((reopen(entry.as_fd(), OFlags::WRONLY | OFlags::APPEND)?, false));
                }
                None => match self.create_new(name, mode) {
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                    other => return other.map(|file| (file, true)),
                },
            }
        }
        Err(UnsafePath::error(&self.path.join(name), "it comes and goes while it is opened"))
    }

    /// Checks whether [`Directory::append`] would reject the file that exists now.
    ///
    /// # Errors
    /// The error of [`Directory::append`]; [`UnsafePath`].
    pub fn check_append(&self, name: &OsStr) -> io::Result<()> {
        match self.hold(name)? {
            Some(entry) => {
                self.may_append(&entry.metadata()?, name)?;
                reopen(entry.as_fd(), OFlags::WRONLY | OFlags::APPEND).map(drop)
            }
            None => Ok(rustix::fs::accessat(
                &self.at,
                ".",
                rustix::fs::Access::WRITE_OK,
                AtFlags::EACCESS,
            )?),
        }
    }

    fn may_append(&self, found: &Metadata, name: &OsStr) -> io::Result<()> {
        let wrong = |reason: String| Err(UnsafePath::error(&self.path.join(name), reason));
        let weak = who_can_change(&self.at, &self.found);
        if found.file_type().is_char_device() && weak.is_none() {
            return Ok(());
        }
        if !found.is_file() {
            return wrong(format!("it is {}, not a regular file", kind(found)));
        }
        if found.nlink() != 1 {
            return wrong(format!(
                "it has {} names (hard links), so it may be another file; remove it",
                found.nlink()
            ));
        }
        let uid = found.uid();
        if weak.is_some()
            && uid != 0
            && uid != rustix::process::geteuid().as_raw()
            && uid != self.found.uid()
        {
            return wrong(format!(
                "it belongs to user {uid}, in a directory that others can change"
            ));
        }
        Ok(())
    }

    /// Creates a new file for writing.
    ///
    /// # Errors
    /// Those of `open(2)`; `AlreadyExists` also for a dangling symbolic link.
    pub fn create_new(&self, name: &OsStr, mode: u32) -> io::Result<File> {
        is_name(name)?;
        let flags = OFlags::WRONLY
            | OFlags::APPEND
            | OFlags::CREATE
            | OFlags::EXCL
            | OFlags::NOFOLLOW
            | OFlags::CLOEXEC;
        Ok(openat(&self.at, name, flags, Mode::from_raw_mode(mode))?.into())
    }

    /// Opens a regular file for reading. Does not follow links and does not block.
    ///
    /// # Errors
    /// Those of `open(2)`; `InvalidInput` if it is not a regular file.
    pub fn read(&self, name: &OsStr) -> io::Result<File> {
        let entry = self.hold(name)?.ok_or(io::ErrorKind::NotFound)?;
        is_regular(&entry.metadata()?)?;
        reopen(entry.as_fd(), OFlags::RDONLY)
    }

    /// Renames a file in this directory, replacing an existing target.
    ///
    /// # Errors
    /// Those of `rename(2)`.
    pub fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        is_name(from)?;
        is_name(to)?;
        Ok(renameat(&self.at, from, &self.at, to)?)
    }

    /// Removes a file, a socket or a link, but no directory.
    ///
    /// # Errors
    /// Those of `unlink(2)`.
    pub fn remove(&self, name: &OsStr) -> io::Result<()> {
        is_name(name)?;
        Ok(unlinkat(&self.at, name, AtFlags::empty())?)
    }

    /// Holds the file of a name without opening it (`O_PATH`).
    fn hold(&self, name: &OsStr) -> io::Result<Option<File>> {
        is_name(name)?;
        match openat(
            &self.at,
            name,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        ) {
            Ok(entry) => Ok(Some(entry.into())),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }
}

/// Splits a path into its directory and its last component.
///
/// # Errors
/// `InvalidInput` if the path has no last component.
pub fn split(path: &Path) -> io::Result<(PathBuf, OsString)> {
    let path = std::path::absolute(path)?;
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok((parent.to_owned(), name.to_owned())),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} is not the path of a file", path.display()),
        )),
    }
}

/// Opens a file that is held by `O_PATH`, by way of `/proc/self/fd`. It is the same file that was
/// checked, and opening it is the first access that can have an effect (of a device or a pipe).
pub(super) fn reopen(entry: BorrowedFd<'_>, flags: OFlags) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", entry.as_raw_fd());
    Ok(openat(
        CWD,
        path,
        flags | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC,
        Mode::empty(),
    )?
    .into())
}

pub(super) fn is_regular(found: &Metadata) -> io::Result<()> {
    if found.is_file() { Ok(()) } else { Err(no_file(kind(found))) }
}

fn kind(found: &Metadata) -> &'static str {
    let kind = found.file_type();
    match () {
        () if kind.is_dir() => "a directory",
        () if kind.is_symlink() => "a symbolic link",
        () if kind.is_fifo() => "a pipe",
        () if kind.is_socket() => "a socket",
        () if kind.is_file() => "a regular file",
        () => "a device",
    }
}

fn is_name(name: &OsStr) -> io::Result<()> {
    let is_one = Path::new(name).file_name() == Some(name);
    if is_one {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is not a file name")))
    }
}
