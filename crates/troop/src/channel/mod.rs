//! One end of a channel: what both sides of it need. Reading is [`troop_core::wire::frame`]'s.

mod mailbox;
mod outbox;

pub(crate) use mailbox::{Mailbox, Parcels};
pub(crate) use outbox::{Flushed, Outbox};

/// The longest line that is taken from the other side, in bytes.
pub(crate) const MAX_LINE: usize = 16 * 1024 * 1024;

/// Bytes that may wait to be written before senders have to wait.
pub(crate) const MAX_QUEUED: usize = 1024 * 1024;

/// How much is read from a channel at once.
pub(crate) const READ_SIZE: usize = 64 * 1024;

/// How often a socket is sent again to a process that could not receive it, as Node does.
pub(crate) const HANDLE_TRIES: u8 = 3;
