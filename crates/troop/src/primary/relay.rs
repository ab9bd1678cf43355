//! The way of a worker's messages to a program that wants them as a channel of Node's instead of as
//! events.

use std::borrow::Cow;
use std::collections::{BTreeSet, VecDeque};
use std::os::fd::OwnedFd;

use memchr::memmem;
use troop_core::WorkerId;
use troop_core::primary::Primary;
use troop_core::wire::advanced;
use troop_core::wire::frame::FrameReader;
use troop_core::wire::incoming::{self, Act, Incoming};
use troop_core::wire::outgoing::{HANDLE_ACK, HANDLE_NACK};
use troop_sys::poll::Interest;

use super::channel::{Channel, send_line};
use super::direct_io::DirectIo;
use crate::channel::{HANDLE_TRIES, MAX_QUEUED, Outbox, framing};

/// How every message begins that is not for the program.
const INTERNAL: &[u8] = br#"{"cmd":"NODE_"#;

/// What stands before a message in V8's format.
const LENGTH: usize = 4;

/// How a message begins that carries a socket.
const HANDLE: &[u8] = br#"{"cmd":"NODE_HANDLE","#;

/// What stands near the beginning of a message that Node sends for the second time.
const REWRAPPED: &[u8] = br#","msg":{"cmd":"NODE_HANDLE","#;
const REWRAPPED_WITHIN: usize = 128;
const MESSAGE: &[u8] = br#","msg":"#;

/// The primary's end of the socket to the program.
pub(crate) struct Relay {
    pub(crate) socket: OwnedFd,
    reader: FrameReader<OwnedFd>,
    /// Its messages are in V8's format.
    advanced: bool,
    pub(crate) outbox: Outbox,
    /// What the poller reports.
    pub(crate) interest: Interest,
    /// Lines with sockets that the program has not confirmed.
    unconfirmed: VecDeque<(Vec<u8>, Option<OwnedFd>, u8)>,
    /// The program's sockets that the worker has not confirmed.
    pub(crate) tickets: BTreeSet<u64>,
    /// Nothing more comes from the worker.
    pub(crate) last: bool,
    /// The program's own thread helps.
    pub(crate) direct_io: Option<DirectIo>,
    /// Something has been written to the socket that the program may not have read yet.
    pub(crate) is_behind: bool,
    /// Bytes of the lines in `unconfirmed`.
    unconfirmed_bytes: usize,
    most_handles: usize,
}

impl Relay {
    /// At most so many sockets of the worker's are under way to the program.
    pub(crate) fn new(socket: OwnedFd, advanced: bool, most_handles: usize) -> Relay {
        Relay {
            socket,
            // What the program says to its own workers may be as long as it likes.
            reader: FrameReader::with(framing(advanced), usize::MAX),
            advanced,
            outbox: Outbox::default(),
            interest: Interest::Read,
            unconfirmed: VecDeque::new(),
            tickets: BTreeSet::new(),
            last: false,
            direct_io: None,
            is_behind: false,
            unconfirmed_bytes: 0,
            most_handles,
        }
    }

    /// Whether so much waits for the program that nothing more is read from the worker.
    pub(crate) fn is_full(&self) -> bool {
        self.outbox.len().max(self.unconfirmed_bytes) > MAX_QUEUED
            || self.unconfirmed.len() >= self.most_handles
    }

    /// Whether the program's thread reads the worker's channel, and nobody else does.
    pub(crate) fn is_direct(&self) -> bool {
        self.direct_io.as_ref().is_some_and(|direct_io| direct_io.reads)
    }

    /// Whether the program has everything that was written to its socket.
    pub(crate) fn is_clear(&mut self) -> bool {
        self.is_behind = self.is_behind
            && !(self.unconfirmed.is_empty() && troop_sys::socket::is_all_read(&self.socket));
        !self.is_behind
    }

    /// A line for the program.
    pub(crate) fn pass(&mut self, line: &[u8]) {
        message(self.outbox.buffer(), self.advanced, line);
    }

    /// A line for the program, and the socket that belongs to it.
    pub(crate) fn pass_with(&mut self, line: &[u8], handle: OwnedFd) {
        let line = whole(self.advanced, line);
        // Without a copy there is one try.
        self.unconfirmed_bytes += line.len();
        self.unconfirmed.push_back((line.clone(), handle.try_clone().ok(), 1));
        self.outbox.push_with(&line, handle);
    }

    fn confirmed(&mut self, arrived: bool) {
        let Some((line, copy, tries)) = self.unconfirmed.pop_front() else { return };
        self.unconfirmed_bytes -= line.len();
        if !arrived
            && tries < HANDLE_TRIES
            && let Some(copy) = copy
            && let Ok(handle) = copy.try_clone()
        {
            self.outbox.push_with(&line, handle);
            self.unconfirmed_bytes += line.len();
            self.unconfirmed.push_back((line, Some(copy), tries + 1));
        }
    }

    /// Whether a ticket is of a socket of the program's; then the program is told, unless the
    /// worker has gone: it would send the socket again, and the end of the channel tells it more.
    pub(crate) fn settled(&mut self, ticket: u64, delivered: bool) -> bool {
        let known = self.tickets.remove(&ticket);
        if known && !self.last {
            send_line(
                &mut self.outbox,
                self.advanced,
                if delivered { HANDLE_ACK } else { HANDLE_NACK },
            );
        }
        known
    }

    /// Takes in what the program has written. Returns false if it is not what Node writes.
    pub(crate) fn receive(
        &mut self,
        core: &mut Primary,
        (worker, channel): (WorkerId, &mut Channel),
        bytes: &[u8],
        handles: &mut Vec<OwnedFd>,
        last_ticket: &mut u64,
    ) -> bool {
        let mut answers = Vec::new();
        let mut chunk = self.reader.feed(bytes, handles.drain(..));
        loop {
            let mut line = match chunk.next_line() {
                Ok(Some(line)) => line,
                Ok(None) => break,
                Err(_) => return false,
            };
            let mut text = line.bytes;
            let internal = match self.advanced {
                true => advanced::internal(text).map(Cow::Owned),
                false => text.starts_with(INTERNAL).then_some(Cow::Borrowed(text)),
            };
            if let Some(internal) = internal {
                let parsed = incoming::parse(&internal);
                // Also one whose message is nested too deeply to be parsed.
                let carries = matches!(parsed, Ok(Incoming::Handle(_)))
                    || (parsed.is_err() && internal.starts_with(HANDLE));
                match parsed {
                    Ok(Incoming::HandleAck) => {
                        answers.push(true);
                        continue;
                    }
                    Ok(Incoming::HandleNack) => {
                        answers.push(false);
                        continue;
                    }
                    Ok(Incoming::Cluster(message)) => {
                        // The other thing that it says, that it has seen a worker leave, has been
                        // said already.
                        if message.act == Some(Act::Disconnect) {
                            core.disconnect(worker, false, None);
                        }
                        continue;
                    }
                    _ if carries => {
                        // What Node sends a second time it wraps a second time, and cannot read
                        // that itself.
                        if let Some(at) =
                            memmem::find(&text[..text.len().min(REWRAPPED_WITHIN)], REWRAPPED)
                            && !self.advanced
                        {
                            text = &text[at + MESSAGE.len()..text.len() - 1];
                        }
                        match line.take_handle() {
                            Some(handle) => {
                                *last_ticket += 1;
                                self.tickets.insert(*last_ticket);
                                channel.outbox.push_with(&whole(self.advanced, text), handle);
                                core.user_handle_sent(worker, *last_ticket);
                            }
                            None => send_line(&mut self.outbox, self.advanced, HANDLE_NACK),
                        }
                        continue;
                    }
                    _ => {}
                }
            }
            message(channel.outbox.buffer(), self.advanced, text);
        }
        answers.into_iter().for_each(|arrived| self.confirmed(arrived));
        true
    }
}

/// Whether a message of the program's, in its framing, is one of those that the relay looks into.
pub(crate) fn is_internal(advanced: bool, message: &[u8]) -> bool {
    match advanced {
        true => message.get(LENGTH..).is_none_or(|value| advanced::internal(value).is_some()),
        false => message.starts_with(INTERNAL),
    }
}

/// Appends a message as it came, with what marks its end.
fn message(out: &mut Vec<u8>, advanced: bool, bytes: &[u8]) {
    if advanced {
        advanced::frame(out, bytes);
    } else {
        out.extend_from_slice(bytes);
        out.push(b'\n');
    }
}

fn whole(advanced: bool, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 4);
    message(&mut out, advanced, bytes);
    out
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay").field("unwritten", &self.outbox.len()).finish_non_exhaustive()
    }
}
