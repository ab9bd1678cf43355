//! The engine's side: the connection to the keeper.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::{FdFlags, fcntl_setfd};
use troop_sys::{fdpass, inherited, keeping};

use super::message::{MAX, Message};
use super::{ENGINE, VARIABLE};

/// Time that a message waits for room; the keeper reads at once, unless it is stopped.
const SEND_TIMEOUT_MS: u32 = 1000;

/// The connection of an engine to its keeper.
#[derive(Debug)]
pub(crate) struct Link {
    socket: OwnedFd,
    /// The keeper's process.
    keeper: u32,
    is_broken: AtomicBool,
    /// It has not answered in time, and is not waited for again until it says something.
    is_silent: AtomicBool,
    /// This engine is to go on with little of the state.
    is_rebuilding: AtomicBool,
    set_aside: Option<SetAside>,
    /// The keeper's version, if it has told.
    version: Mutex<Option<String>>,
    /// Messages that were received while another one was waited for.
    aside: Mutex<VecDeque<Message>>,
}

impl Link {
    /// Takes the connection that the keeper has left to this process. `None` if this is no keeper's
    /// engine: a program that has inherited the variable alone.
    ///
    /// # Errors
    /// If the keeper has ended.
    pub(super) fn take(value: &OsStr) -> io::Result<Option<Link>> {
        let Some((number, set_aside)) = parse(value) else { return Ok(None) };
        let Some(keeper) = inherited::maker_of_messages(number) else { return Ok(None) };
        let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
        if parent.map(i32::unsigned_abs) != Some(keeper) {
            return Err(io::Error::other(format!("its keeper, process {keeper}, has ended")));
        }
        let socket = inherited::take(number)?;
        let (is_broken, is_silent) = (AtomicBool::new(false), AtomicBool::new(false));
        let is_rebuilding = AtomicBool::new(false);
        let (version, aside) = (Mutex::default(), Mutex::default());
        Ok(Some(Link {
            socket,
            keeper,
            is_broken,
            is_silent,
            is_rebuilding,
            set_aside,
            version,
            aside,
        }))
    }

    pub(crate) fn keeper(&self) -> u32 {
        self.keeper
    }

    /// Why this engine starts afresh, if it takes the place of others.
    pub(crate) fn set_aside(&self) -> Option<&SetAside> {
        self.set_aside.as_ref()
    }

    /// Whether this engine is to go on with as little of the state as possible.
    pub(crate) fn is_rebuilding(&self) -> bool {
        self.is_rebuilding.load(Ordering::Acquire)
    }

    pub(crate) fn note_rebuilding(&self) {
        self.is_rebuilding.store(true, Ordering::Release);
    }

    /// The keeper's version. `None` before it has told that; older ones do not.
    pub(crate) fn version(&self) -> Option<String> {
        self.version.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn note_version(&self, version: String) {
        *self.version.lock().unwrap_or_else(PoisonError::into_inner) = Some(version);
    }

    /// Whether the keeper has ended.
    pub(crate) fn is_broken(&self) -> bool {
        self.is_broken.load(Ordering::Acquire)
    }

    pub(crate) fn note_broken(&self) {
        self.is_broken.store(true, Ordering::Release);
    }

    /// Whether the keeper does not answer: it is stopped, for example.
    pub(crate) fn is_silent(&self) -> bool {
        self.is_silent.load(Ordering::Acquire)
    }

    pub(crate) fn note_silent(&self) {
        self.is_silent.store(true, Ordering::Release);
    }

    /// Sends a message.
    ///
    /// # Errors
    /// If the keeper has ended, or does not read.
    pub(crate) fn send(&self, message: &Message) -> io::Result<()> {
        self.send_with(message, None)
    }

    /// Sends a message with a descriptor.
    ///
    /// # Errors
    /// As [`Link::send`].
    pub(crate) fn send_with(
        &self,
        message: &Message,
        fd: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let (bytes, fds) = (message.encode(), fd.as_slice());
        match fdpass::send(self.socket.as_fd(), &bytes, fds) {
            Err(e) if fdpass::is_temporary(&e) && !self.is_silent() => {
                keeping::wait_for_room(self.socket.as_fd(), SEND_TIMEOUT_MS);
                let sent = fdpass::send(self.socket.as_fd(), &bytes, fds).map(drop);
                if sent.as_ref().is_err_and(fdpass::is_temporary) {
                    self.note_silent();
                }
                sent
            }
            sent => sent.map(drop),
        }
    }

    /// Receives a message, and the descriptor that comes with it. Never blocks; `None` if none waits.
    ///
    /// # Errors
    /// If the keeper has ended.
    pub(crate) fn receive(&self) -> io::Result<Option<(Message, Option<OwnedFd>)>> {
        if let Some(message) = self.aside().pop_front() {
            return Ok(Some((message, None)));
        }
        let received = receive(self.socket.as_fd());
        if let Ok(Some(_)) = received {
            self.is_silent.store(false, Ordering::Release);
        }
        received
    }

    fn aside(&self) -> MutexGuard<'_, VecDeque<Message>> {
        self.aside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether messages are put aside, which nothing else tells of.
    pub(crate) fn has_put_aside(&self) -> bool {
        !self.aside().is_empty()
    }

    /// Has these messages received again.
    pub(crate) fn put_aside(&self, messages: Vec<Message>) {
        self.aside().extend(messages);
    }

    /// Executes a program in place of this one, which is the engine then.
    pub(super) fn leave(&self, command: &mut Command) {
        // It is open, so this cannot fail.
        let _ = fcntl_setfd(&self.socket, FdFlags::empty());
        command.env(VARIABLE, value(&self.socket, None));
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A state with which engines ended before they were ready, so that nobody goes on with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAside {
    /// How many engines of the app have ended.
    pub crashes: u32,
    /// How the last one has ended.
    pub how: String,
}

/// Returns what the variable says to an engine.
pub(super) fn value(socket: &OwnedFd, set_aside: Option<&SetAside>) -> String {
    let number = socket.as_raw_fd();
    match set_aside {
        None => format!("{ENGINE}{number}"),
        Some(SetAside { crashes, how }) => format!("{ENGINE}{number}:{crashes}:{how}"),
    }
}

fn parse(value: &OsStr) -> Option<(i32, Option<SetAside>)> {
    let text = value.to_str()?.strip_prefix(ENGINE)?;
    let Some((number, rest)) = text.split_once(':') else {
        return Some((text.parse().ok()?, None));
    };
    let (crashes, how) = rest.split_once(':')?;
    let set_aside = SetAside { crashes: crashes.parse().ok()?, how: how.to_owned() };
    Some((number.parse().ok()?, Some(set_aside)))
}

/// Receives a message that is understood, if one waits.
///
/// # Errors
/// `UnexpectedEof` if the peer has ended.
pub(super) fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<(Message, Option<OwnedFd>)>> {
    loop {
        let (mut room, mut fds) = ([0; MAX], Vec::new());
        let len = match fdpass::recv_few(socket, &mut room, &mut fds) {
            Ok(received) => received.len,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            // The peer was killed before it had read everything. That is told once, and before what it
            // has sent itself.
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => continue,
            Err(e) if fdpass::is_gone(&e) => 0,
            Err(e) => return Err(e),
        };
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(message) = Message::decode(&room[..len]) {
            return Ok(Some((message, fds.pop())));
        }
    }
}
