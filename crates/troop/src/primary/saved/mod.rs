//! The state of a primary, written down for another process that goes on with it.
//!
//! Everything that the primary knows is plain data, and everything that it holds is a descriptor.
//! Each part of the driver writes its own share ([`Writer`]) and reads it again ([`Reader`]); the
//! state of the core is written as a whole ([`troop_core::snapshot`]).

mod file;
pub(crate) mod journal;
pub(crate) mod kept;
pub(crate) mod long_line;
mod slots;
mod socket_file;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use file::{LeftDescriptor, RestoredState, SavedState};
pub use kept::{Leaving, Resumption, refuse};
pub(crate) use socket_file::SavedFile;

/// A descriptor of a saved state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Key(u32);

/// Bytes of a saved state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bytes {
    at: usize,
    len: usize,
}

/// Keys from this one on are those of connections that the keeper holds.
pub(crate) const FIRST_CONNECTION: u64 = 1 << 62;

/// A descriptor that is saved.
enum Held<'a> {
    /// The keeper holds it under this key, or gets it when the state is written down.
    Kept(BorrowedFd<'a>, u64),
    Borrowed(BorrowedFd<'a>),
    Shared(Arc<OwnedFd>),
    Owned(OwnedFd),
}

impl AsFd for Held<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Held::Borrowed(fd) | Held::Kept(fd, _) => *fd,
            Held::Shared(fd) => fd.as_fd(),
            Held::Owned(fd) => fd.as_fd(),
        }
    }
}

impl std::fmt::Debug for Writer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").finish_non_exhaustive()
    }
}

/// Collects descriptors and bytes that the parts of a state refer to.
#[derive(Default)]
pub(crate) struct Writer<'a> {
    descriptors: Vec<Held<'a>>,
    bytes: Vec<u8>,
}

impl<'a> Writer<'a> {
    fn hold(&mut self, held: Held<'a>) -> Key {
        self.descriptors.push(held);
        Key(u32::try_from(self.descriptors.len() - 1).unwrap_or(u32::MAX))
    }

    /// Saves a descriptor.
    pub(crate) fn descriptor(&mut self, fd: &'a impl AsFd) -> Key {
        self.hold(Held::Borrowed(fd.as_fd()))
    }

    /// Saves a descriptor that the keeper holds under a key of its own.
    pub(crate) fn kept(&mut self, fd: &'a impl AsFd, key: u64) -> Key {
        self.hold(Held::Kept(fd.as_fd(), key))
    }

    /// Saves a descriptor that has several owners.
    pub(crate) fn shared(&mut self, fd: &Arc<OwnedFd>) -> Key {
        self.hold(Held::Shared(fd.clone()))
    }

    /// Saves a descriptor that is only there for this.
    pub(crate) fn owned(&mut self, fd: OwnedFd) -> Key {
        self.hold(Held::Owned(fd))
    }

    /// Returns what reads it again, with copies of the descriptors.
    #[cfg(test)]
    pub(crate) fn read(&self) -> Reader {
        let copies = self.descriptors.iter().map(|held| held.as_fd().try_clone_to_owned().ok());
        Reader { descriptors: copies.collect(), bytes: self.bytes.clone() }
    }

    /// Saves bytes.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Bytes {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        Bytes { at, len: bytes.len() }
    }
}

/// Returns the descriptors and bytes that the parts of a state refer to.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    descriptors: Vec<Option<OwnedFd>>,
    bytes: Vec<u8>,
}

impl Reader {
    /// Returns a descriptor, once.
    pub(crate) fn descriptor(&mut self, key: Key) -> io::Result<OwnedFd> {
        let held = self.descriptors.get_mut(key.0 as usize).and_then(Option::take);
        held.ok_or_else(|| invalid(format!("its descriptor {} is missing", key.0)))
    }

    /// Returns a socket, once, or one that is closed in place of it: the former engine has closed it,
    /// and was killed before it had that written down.
    pub(crate) fn socket(&mut self, key: Key) -> io::Result<OwnedFd> {
        match self.descriptor(key) {
            Err(e) if e.kind() == io::ErrorKind::InvalidData => Ok(UnixStream::pair()?.0.into()),
            socket => socket,
        }
    }

    /// Returns bytes.
    pub(crate) fn bytes(&self, bytes: Bytes) -> io::Result<&[u8]> {
        let end = bytes.at.checked_add(bytes.len);
        end.and_then(|end| self.bytes.get(bytes.at..end))
            .ok_or_else(|| invalid(format!("its bytes at {} are missing", bytes.at)))
    }
}

/// Returns the error of a state that makes no sense.
pub(crate) fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
