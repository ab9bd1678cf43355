//! Relays a worker's messages to an embedding program through a socket in Node's format, instead of
//! as events.

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
use crate::channel::{HANDLE_TRIES, MAX_QUEUED, Outbox, framing};
use crate::embed::direct_io::DirectIo;

/// The beginning of all messages that are not for the program.
const INTERNAL: &[u8] = br#"{"cmd":"NODE_"#;

/// The header of a message in V8's format.
const LENGTH: usize = 4;

/// The beginning of a message that carries a socket.
const HANDLE: &[u8] = br#"{"cmd":"NODE_HANDLE","#;

/// A mark near the beginning of a message that Node sends for the second time.
const REWRAPPED: &[u8] = br#","msg":{"cmd":"NODE_HANDLE","#;
const REWRAPPED_WITHIN: usize = 128;
const MESSAGE: &[u8] = br#","msg":"#;

/// The primary's end of the socket to the program.
pub(crate) struct Relay {
    pub(crate) socket: OwnedFd,
    reader: FrameReader<OwnedFd>,
    /// Whether its messages are in V8's format.
    advanced: bool,
    pub(crate) outbox: Outbox,
    /// Events that the poller reports.
    pub(crate) interest: Interest,
    /// Lines with sockets that the program has not acknowledged.
    unconfirmed: VecDeque<(Vec<u8>, Option<OwnedFd>, u8)>,
    /// Sockets of the program that the worker has not acknowledged.
    pub(crate) tickets: BTreeSet<u64>,
    /// Whether the channel of the worker has ended.
    pub(crate) last: bool,
    /// Direct I/O by the program's thread.
    pub(crate) direct_io: Option<DirectIo>,
    /// Whether the socket may contain data that the program has not read yet.
    pub(crate) is_behind: bool,
    /// Bytes of the lines in `unconfirmed`.
    unconfirmed_bytes: usize,
    most_handles: usize,
}

impl Relay {
    /// Maximum number of sockets of the worker in flight to the program.
    pub(crate) fn new(socket: OwnedFd, advanced: bool, most_handles: usize) -> Relay {
        Relay {
            socket,
            // Messages of the program to its workers have no limit of length.
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

    /// Whether so much is unwritten that the worker is not read.
    pub(crate) fn is_full(&self) -> bool {
        self.outbox.len().max(self.unconfirmed_bytes) > MAX_QUEUED
            || self.unconfirmed.len() >= self.most_handles
    }

    /// Whether the program's thread, and not the driver, reads the worker's channel.
    pub(crate) fn is_direct(&self) -> bool {
        self.direct_io.as_ref().is_some_and(|direct_io| direct_io.reads)
    }

    /// Whether the program has read everything from its socket.
    pub(crate) fn is_clear(&mut self) -> bool {
        self.is_behind = self.is_behind
            && !(self.unconfirmed.is_empty() && troop_sys::socket::is_all_read(&self.socket));
        !self.is_behind
    }

    /// Queues a line for the program.
    pub(crate) fn pass(&mut self, line: &[u8]) {
        message(self.outbox.buffer(), self.advanced, line);
    }

    /// Queues a line for the program with its socket.
    pub(crate) fn pass_with(&mut self, line: &[u8], handle: OwnedFd) {
        let line = whole(self.advanced, line);
        // Without a copy it is sent only once.
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

    /// Whether a ticket belongs to a socket of the program. If so, the program is notified of the
    /// result, unless the worker has gone: it would send the socket again, and the end of the
    /// channel follows anyway.
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

    /// Handles input of the program. Returns false if it is not in Node's format.
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
                // This includes a message that is nested too deeply to be parsed.
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
                        // Its other message, that it has seen a worker leave, needs no relaying.
                        if message.act == Some(Act::Disconnect) {
                            core.disconnect(worker, false, None);
                        }
                        continue;
                    }
                    _ if carries => {
                        // Node wraps a message again when it sends it again, and cannot read the
                        // result itself.
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
                                let write = |out: &mut _| message(out, self.advanced, text);
                                channel.outbox.write_with(handle, write);
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

/// Whether a framed message of the program is one that the relay must inspect.
pub(crate) fn is_internal(advanced: bool, message: &[u8]) -> bool {
    match advanced {
        true => message.get(LENGTH..).is_none_or(|value| advanced::internal(value).is_some()),
        false => message.starts_with(INTERNAL),
    }
}

/// Appends a message unchanged, with its end mark.
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
