//! A saved state as a file without a name, which the program that this process executes inherits.

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, RawFd};
use std::process::Command;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::{FdFlags, fcntl_setfd};
use serde::{Deserialize, Serialize};
use troop_sys::{inherited, signals};

use super::{Reader, Writer, invalid};
use crate::error::{Error, Result};

/// The version of what this file and the driver write. Every change of their fields increments it;
/// that of the core's state is [another](troop_core::snapshot::VERSION).
const VERSION: u32 = 1;
/// The longest head of the file, in bytes.
const MAX_HEAD: u64 = 4 << 20;
/// The longest part of the file, in bytes.
const MAX_PART: u64 = 1 << 30;

/// The first line of the file.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    version: u32,
    /// The numbers of the descriptors.
    descriptors: Vec<RawFd>,
    /// The lengths of the parts that follow, in bytes.
    core: u64,
    driver: u64,
    bytes: u64,
    note: u64,
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
    /// signals. Returns only on failure.
    #[must_use]
    pub fn execute(&self, command: &mut Command, variable: &str, note: &[u8]) -> io::Error {
        match self.leave(note) {
            Ok(left) => signals::execute(command.env(variable, left.number().to_string())),
            Err(e) => e,
        }
    }

    /// Makes the program that this process executes inherit the state. Until then nothing else may be
    /// executed.
    fn leave(&self, note: &[u8]) -> io::Result<Inherited<'_>> {
        let descriptors = &self.writer.descriptors;
        let head = Head {
            version: VERSION,
            descriptors: descriptors.iter().map(|held| held.as_fd().as_raw_fd()).collect(),
            core: self.core.len() as u64,
            driver: self.driver.len() as u64,
            bytes: self.writer.bytes.len() as u64,
            note: note.len() as u64,
        };
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let mut file = File::from(memfd_create("troop-state", flags)?);
        serde_json::to_writer(&mut file, &head)?;
        file.write_all(b"\n")?;
        for part in [&self.core, &self.driver, &self.writer.bytes, note] {
            file.write_all(part)?;
        }
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
        let inherited = Inherited { file, state: self };
        inherited.set(FdFlags::empty())?;
        Ok(inherited)
    }
}

/// A state that the program inherits which this process executes, while this is held.
#[derive(Debug)]
struct Inherited<'a> {
    file: File,
    state: &'a SavedState<'a>,
}

impl Inherited<'_> {
    /// The number of its descriptor.
    fn number(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    fn set(&self, flags: FdFlags) -> io::Result<()> {
        for held in &self.state.writer.descriptors {
            fcntl_setfd(held.as_fd(), flags)?;
        }
        Ok(fcntl_setfd(&self.file, flags)?)
    }
}

impl Drop for Inherited<'_> {
    fn drop(&mut self) {
        // They are open, so this cannot fail.
        let _ = self.set(FdFlags::CLOEXEC);
    }
}

/// The state of a primary that the program has [left](SavedState::execute) which this process executed
/// before: see [`Builder::restore`](crate::Builder::restore).
#[derive(Debug)]
pub struct RestoredState {
    pub(crate) core: Vec<u8>,
    pub(crate) driver: Vec<u8>,
    pub(crate) reader: Reader,
    note: Vec<u8>,
}

impl RestoredState {
    /// Takes the state that this program was left by this environment variable, with all descriptors
    /// that belong to it; `None` if it was left none. Once, and before anything else executes a program,
    /// which would inherit them.
    ///
    /// # Errors
    /// [`Error::Io`] if it is none that this version can read. Its descriptors are closed then, as far
    /// as they are known.
    pub fn from_env(variable: &str) -> Result<Option<RestoredState>> {
        let Some(number) = std::env::var_os(variable) else { return Ok(None) };
        let number = number.to_str().and_then(|number| number.parse().ok());
        let number = number.ok_or_else(|| invalid(format!("{variable} is no number")));
        let state = number.and_then(RestoredState::inherited);
        state.map(Some).map_err(Error::io("read the state of the primary"))
    }

    fn inherited(number: RawFd) -> io::Result<RestoredState> {
        let file = File::from(inherited::take(number)?);
        rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0))?;
        let mut file = io::BufReader::new(file);
        let mut line = Vec::new();
        io::BufRead::read_until(&mut file.by_ref().take(MAX_HEAD), b'\n', &mut line)?;
        let head: Head = serde_json::from_slice(&line)?;
        let descriptors = head.descriptors.into_iter().map(|number| inherited::take(number).ok());
        let descriptors = descriptors.collect();
        if head.version != VERSION {
            return Err(invalid(format!(
                "the state of a primary of version {}; this program reads version {VERSION}",
                head.version
            )));
        }
        let mut part = |len: u64| -> io::Result<Vec<u8>> {
            if len > MAX_PART {
                return Err(invalid(format!("a part of {len} bytes")));
            }
            let mut bytes = Vec::new();
            file.by_ref().take(len).read_to_end(&mut bytes)?;
            match bytes.len() as u64 == len {
                true => Ok(bytes),
                false => Err(io::ErrorKind::UnexpectedEof.into()),
            }
        };
        let (core, driver) = (part(head.core)?, part(head.driver)?);
        let (bytes, note) = (part(head.bytes)?, part(head.note)?);
        Ok(RestoredState { core, driver, reader: Reader { descriptors, bytes }, note })
    }

    /// Returns what the program has left for its own use.
    #[must_use]
    pub fn note(&self) -> &[u8] {
        &self.note
    }
}
