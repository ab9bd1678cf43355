//! A saved state as bytes: in a file without a name, which the program that this process executes
//! inherits, or which a keeper holds for another engine ([`kept`](super::kept)).

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd, RawFd};
use std::process::Command;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::{FdFlags, fcntl_setfd};
use serde::{Deserialize, Serialize};
use troop_sys::{inherited, signals};

use super::kept::Identity;
use super::{Held, Reader, Writer, invalid};
use crate::error::{Error, Result};

/// The major version of what this file and the driver write. Every change of their fields increments it
/// but a new one that has a default, which increments [`MINOR`]; the core's state has
/// [others](troop_core::snapshot::VERSION).
const VERSION: u32 = 6;
/// The minor version: others of the same major version are read.
const MINOR: u32 = 4;
/// The longest first line, in bytes.
const MAX_HEAD: usize = 4 << 20;
/// The longest part that follows, in bytes.
const MAX_PART: usize = 1 << 30;
/// The longest state, in bytes.
const MAX: u64 = 5 << 30;

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    version: u32,
    #[serde(default)]
    minor: u32,
    /// What the descriptors are known by: their numbers, or their keys.
    descriptors: Vec<u64>,
    /// The lengths of the parts that follow, in bytes.
    core: usize,
    driver: usize,
    bytes: usize,
    note: usize,
}

/// The state of a primary for another program image that goes on with it: see
/// [`Cluster::replace`](crate::Cluster::replace).
pub struct SavedState<'a> {
    pub(crate) core: Vec<u8>,
    pub(crate) driver: Vec<u8>,
    pub(crate) writer: Writer<'a>,
}

impl std::fmt::Debug for SavedState<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SavedState").finish_non_exhaustive()
    }
}

impl SavedState<'_> {
    /// Executes a program in place of this one, which goes on with the state: it gets it by the
    /// environment variable `variable` ([`RestoredState::from_env`]), and `note` with it, for its own
    /// use. Signals that come in between wait for it, as far as this thread is the one that handles
    /// signals. Programs that other threads start meanwhile inherit nothing of it. Locks that belong
    /// to the process (`F_SETLK` in `fcntl(2)`) are released. Returns only on failure.
    #[must_use]
    pub fn execute(&self, command: &mut Command, variable: &str, note: &[u8]) -> io::Error {
        let file = match self.write(note) {
            Ok(file) => file,
            Err(e) => return e,
        };
        let value = format!("{}@{}", file.as_raw_fd(), std::process::id());
        let inherited = self.writer.descriptors.iter().map(Held::as_fd).chain([file.as_fd()]);
        let inherit = || {
            for fd in inherited {
                fcntl_setfd(fd, FdFlags::empty())?;
            }
            Ok(())
        };
        signals::execute(command.env(variable, value), inherit)
    }

    /// Returns it as bytes. `descriptors` is what its descriptors are known by.
    pub(super) fn encode(&self, descriptors: Vec<u64>, note: &[u8]) -> io::Result<Vec<u8>> {
        let parts = [&self.core, &self.driver, &self.writer.bytes, note];
        let [core, driver, bytes, note] = parts.map(<[u8]>::len);
        let head = Head { version: VERSION, minor: MINOR, descriptors, core, driver, bytes, note };
        let mut whole = serde_json::to_vec(&head)?;
        // The program that reads it could not tell this one any more.
        if whole.len() > MAX_HEAD || parts.iter().any(|part| part.len() > MAX_PART) {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("the state has more than {MAX_PART} bytes, or too many descriptors"),
            ));
        }
        whole.push(b'\n');
        parts.iter().for_each(|part| whole.extend_from_slice(part));
        Ok(whole)
    }

    /// Writes it to a file without a name.
    fn write(&self, note: &[u8]) -> io::Result<File> {
        let numbers = self.writer.descriptors.iter().map(|held| held.as_fd().as_raw_fd());
        let numbers = numbers.map(|number| u64::from(number.cast_unsigned())).collect();
        let state = self.encode(numbers, note)?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let mut file = File::from(memfd_create("troop-state", flags)?);
        file.write_all(&state)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
        Ok(file)
    }
}

/// The state of a primary that another program image or engine has left: see
/// [`Builder::restore`](crate::Builder::restore).
#[derive(Debug)]
pub struct RestoredState {
    pub(crate) core: Vec<u8>,
    pub(crate) driver: Vec<u8>,
    pub(crate) reader: Reader,
    note: Vec<u8>,
    /// What the keeper holds for it, under which keys.
    pub(crate) held: Vec<(u64, Option<Identity>)>,
    /// How many engines of this app were killed, and how the last one was.
    pub(crate) crashes: u32,
    pub(crate) last_crash: Option<String>,
    /// What the keeper says of others that did not come so far.
    pub(crate) missed: Option<String>,
    /// Whether only workers and listeners are taken out of it: engines have ended with the rest.
    pub(crate) is_rebuilt: bool,
}

impl RestoredState {
    /// Takes the state that this process was left by this environment variable, with all descriptors
    /// that belong to it; `None` if it was left none: processes that it starts, workers among them,
    /// are not meant. Once, and before anything else executes a program, which would inherit them.
    ///
    /// # Errors
    /// [`Error::Io`] if it is none that this version can read. Its descriptors are closed then, as far
    /// as they are known.
    pub fn from_env(variable: &str) -> Result<Option<RestoredState>> {
        let Some(value) = std::env::var_os(variable) else { return Ok(None) };
        let parsed = value.to_str().and_then(|value| {
            let (number, pid) = value.split_once('@')?;
            Some((number.parse().ok()?, pid.parse::<u32>().ok()?))
        });
        let state = match parsed {
            Some((_, pid)) if pid != std::process::id() => return Ok(None),
            Some((number, _)) => RestoredState::inherited(number),
            None => Err(invalid(format!("{variable} names no descriptor of this process"))),
        };
        state.map(Some).map_err(Error::io("read the state of the primary"))
    }

    fn inherited(number: RawFd) -> io::Result<RestoredState> {
        let file = File::from(inherited::take(number)?);
        let owner = rustix::fs::fstat(&file)?.st_uid;
        // A program that takes rights when it is executed must not take this from who has fewer.
        if owner != 0 && owner != rustix::process::geteuid().as_raw() {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("it belongs to user {owner}"),
            ));
        }
        rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0))?;
        let mut bytes = Vec::new();
        file.take(MAX).read_to_end(&mut bytes)?;
        RestoredState::decode(&bytes, |number| inherited::take(RawFd::try_from(number).ok()?).ok())
    }

    /// Reads a state. `take` returns the descriptor that is known by a number, if there is one.
    pub(super) fn decode(
        bytes: &[u8],
        take: impl FnMut(u64) -> Option<OwnedFd>,
    ) -> io::Result<RestoredState> {
        let end =
            bytes.iter().position(|byte| *byte == b'\n').ok_or(io::ErrorKind::UnexpectedEof)?;
        let head: Head = serde_json::from_slice(&bytes[..end])?;
        let descriptors = head.descriptors.into_iter().map(take).collect();
        if head.version != VERSION {
            return Err(invalid(format!(
                "the state of a primary of version {}; this program reads version {VERSION}",
                head.version
            )));
        }
        let mut rest = &bytes[end + 1..];
        let mut part = |len: usize| -> io::Result<Vec<u8>> {
            let (part, after) = rest.split_at_checked(len).ok_or(io::ErrorKind::UnexpectedEof)?;
            rest = after;
            Ok(part.to_vec())
        };
        let (core, driver) = (part(head.core)?, part(head.driver)?);
        let (bytes, note) = (part(head.bytes)?, part(head.note)?);
        let reader = Reader { descriptors, bytes };
        let (held, crashes, last_crash, missed) = (Vec::new(), 0, None, None);
        Ok(RestoredState {
            core,
            driver,
            reader,
            note,
            held,
            crashes,
            last_crash,
            missed,
            is_rebuilt: false,
        })
    }

    /// Returns what the program has left for its own use.
    #[must_use]
    pub fn note(&self) -> &[u8] {
        &self.note
    }

    /// Returns how the engine has ended that this state is of, if it was killed.
    #[must_use]
    pub fn killed_by(&self) -> Option<&str> {
        self.last_crash.as_deref()
    }

    /// Returns what there is to tell of engines that were to go on with this state and did not, for
    /// people.
    #[must_use]
    pub fn missed(&self) -> Option<&str> {
        self.missed.as_deref()
    }

    /// Returns a descriptor that the program has left for its own use, once.
    ///
    /// # Errors
    /// [`Error::Io`] if there is none, or no more.
    pub fn descriptor(&mut self, left: LeftDescriptor) -> Result<OwnedFd> {
        self.reader.descriptor(left.0).map_err(Error::io("take a descriptor of the former engine"))
    }
}

/// A descriptor that a program leaves to the next engine for its own use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeftDescriptor(pub(super) super::Key);

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd as _;

    use super::*;

    #[test]
    fn a_state_that_no_program_could_read_is_not_left_to_one() {
        let state = SavedState { core: Vec::new(), driver: Vec::new(), writer: Writer::default() };
        let note = vec![0; MAX_PART + 1];
        let error = state.execute(&mut Command::new("/there is no such program"), "STATE", &note);
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge, "{error}");
    }

    #[test]
    fn a_state_of_another_user_is_not_taken() {
        let file = memfd_create("troop-state", MemfdFlags::empty()).unwrap();
        let other = rustix::process::Uid::from_raw(64_017);
        if rustix::fs::fchown(&file, Some(other), None).is_err() {
            // Only root can give it to another user.
            return;
        }
        let error = RestoredState::inherited(file.into_raw_fd()).unwrap_err();
        assert_eq!(error.to_string(), "it belongs to user 64017");
    }

    #[test]
    fn a_state_of_another_minor_version_is_read_and_one_of_another_major_one_refused_by_name() {
        let state = |version: u32, more: &str| {
            let lengths = r#""descriptors":[],"core":2,"driver":1,"bytes":0,"note":3"#;
            format!("{{\"version\":{version},{lengths}{more}}}\n{{}}1two").into_bytes()
        };
        // The first one did not name its minor version.
        for more in ["", r#","minor":1"#, r#","minor":2,"what_is_new":{"since":"then"}"#] {
            let read = RestoredState::decode(&state(VERSION, more), |_| None).unwrap();
            assert_eq!((&read.core[..], read.note()), (&b"{}"[..], &b"two"[..]), "{more}");
        }
        for version in [VERSION - 1, VERSION + 1] {
            let error = RestoredState::decode(&state(version, ""), |_| None).unwrap_err();
            let expected = format!(
                "the state of a primary of version {version}; this program reads version {VERSION}"
            );
            assert_eq!(error.to_string(), expected);
        }
    }
}
