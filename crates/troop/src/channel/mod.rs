//! One end of a channel: what both sides of it need. Reading is [`troop_core::wire::frame`]'s.

mod mailbox;
mod outbox;

use std::os::fd::OwnedFd;

use tokio::sync::oneshot;
use troop_core::wire::frame::Framing;

pub(crate) use mailbox::{Mail, Mailbox};
pub(crate) use outbox::{Flushed, Outbox};

/// The longest line that is taken from the other side, in bytes.
pub(crate) const MAX_LINE: usize = 16 * 1024 * 1024;

/// Bytes that may wait to be written before senders have to wait.
pub(crate) const MAX_QUEUED: usize = 1024 * 1024;

/// Sockets that may wait to be written before senders have to wait.
pub(crate) const MAX_QUEUED_HANDLES: usize = 64;

/// How much is read from a channel at once.
pub(crate) const READ_SIZE: usize = 64 * 1024;

/// How often a socket is sent again to a process that could not receive it, as Node does.
pub(crate) const HANDLE_TRIES: u8 = 3;

/// How messages are cut out of the stream.
pub(crate) fn framing(advanced: bool) -> Framing {
    if advanced { Framing::Lengths } else { Framing::Lines }
}

/// A socket of the program's that the other side has not confirmed.
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

    /// The other side has answered. Gives back what is to be sent again, with a copy of the socket;
    /// otherwise the sender has been told.
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
