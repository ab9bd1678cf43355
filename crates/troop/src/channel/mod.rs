//! One end of a channel, for primary and workers. [`troop_core::wire::frame`] parses the input.

mod mailbox;
mod outbox;

use std::os::fd::OwnedFd;

use tokio::sync::oneshot;
use troop_core::wire::frame::Framing;

pub(crate) use mailbox::{Mail, Mailbox};
pub(crate) use outbox::{Flushed, Outbox};

/// The longest line that the other side may send, in bytes.
pub(crate) const MAX_LINE: usize = 16 * 1024 * 1024;

/// Number of queued bytes from which senders wait.
pub(crate) const MAX_QUEUED: usize = 1024 * 1024;

/// Number of queued sockets from which senders wait.
pub(crate) const MAX_QUEUED_HANDLES: usize = 64;

/// Number of bytes of a single read from a channel.
pub(crate) const READ_SIZE: usize = 64 * 1024;

/// Number of attempts to send a socket to a process that could not receive it, as in Node.
pub(crate) const HANDLE_TRIES: u8 = 3;

/// Returns the framing of messages in the stream.
pub(crate) fn framing(advanced: bool) -> Framing {
    if advanced { Framing::Lengths } else { Framing::Lines }
}

/// A socket from the program that the other side has not acknowledged yet.
pub(crate) struct Unsettled {
    pub(crate) line: Vec<u8>,
    pub(crate) handle: OwnedFd,
    pub(crate) settled: Option<oneshot::Sender<bool>>,
    tries_left: u8,
}

impl Unsettled {
    pub(crate) fn new(
        line: Vec<u8>,
        handle: OwnedFd,
        settled: Option<oneshot::Sender<bool>>,
        tries: u8,
    ) -> Unsettled {
        Unsettled { line, handle, settled, tries_left: tries }
    }

    pub(crate) fn tries_left(&self) -> u8 {
        self.tries_left
    }

    /// Handles the answer of the other side. Returns the message and a copy of the socket if it
    /// must be sent again; otherwise the sender is notified.
    pub(crate) fn settle(mut self, delivered: bool) -> Option<(Unsettled, OwnedFd)> {
        self.tries_left -= 1;
        if !delivered
            && self.tries_left > 0
            && let Ok(copy) = self.handle.try_clone()
        {
            return Some((self, copy));
        }
        if let Some(settled) = self.settled {
            let _ = settled.send(delivered);
        }
        None
    }
}
