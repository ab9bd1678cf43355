//! The way of a worker's messages to a program that wants them as a channel of Node's instead of as events.

use std::collections::{BTreeSet, VecDeque};
use std::os::fd::OwnedFd;

use troop_core::WorkerId;
use troop_core::primary::Primary;
use troop_core::wire::frame::FrameReader;
use troop_core::wire::incoming::{self, Act, Incoming};
use troop_core::wire::outgoing::{HANDLE_ACK, HANDLE_NACK};
use troop_sys::poll::Interest;

use super::channel::Channel;
use crate::channel::{HANDLE_TRIES, MAX_LINE, MAX_QUEUED, MAX_QUEUED_HANDLES, Outbox};

/// How every message begins that is not for the program.
const INTERNAL: &[u8] = br#"{"cmd":"NODE_"#;

/// The primary's end of the socket to the program.
pub(crate) struct Relay {
    pub(crate) socket: OwnedFd,
    reader: FrameReader<OwnedFd>,
    pub(crate) outbox: Outbox,
    /// What the poller reports.
    pub(crate) interest: Interest,
    /// Lines with sockets that the program has not confirmed.
    unconfirmed: VecDeque<(Vec<u8>, Option<OwnedFd>, u8)>,
    /// The program's sockets that the worker has not confirmed.
    pub(crate) tickets: BTreeSet<u64>,
    /// Nothing more comes from the worker.
    pub(crate) last: bool,
}

impl Relay {
    pub(crate) fn new(socket: OwnedFd) -> Relay {
        Relay {
            socket,
            reader: FrameReader::new(MAX_LINE),
            outbox: Outbox::default(),
            interest: Interest::Read,
            unconfirmed: VecDeque::new(),
            tickets: BTreeSet::new(),
            last: false,
        }
    }

    /// Whether so much waits for the program that nothing more is read from the worker.
    pub(crate) fn is_full(&self) -> bool {
        self.outbox.len() > MAX_QUEUED || self.unconfirmed.len() >= MAX_QUEUED_HANDLES
    }

    /// A line for the program.
    pub(crate) fn pass(&mut self, line: &[u8]) {
        self.outbox.push(line);
        self.outbox.push(b"\n");
    }

    /// A line for the program, and the socket that belongs to it.
    pub(crate) fn pass_with(&mut self, line: &[u8], handle: OwnedFd) {
        let line = [line, b"\n"].concat();
        // Without a copy there is one try.
        self.unconfirmed.push_back((line.clone(), handle.try_clone().ok(), 1));
        self.outbox.push_with(&line, handle);
    }

    fn confirmed(&mut self, arrived: bool) {
        let Some((line, copy, tries)) = self.unconfirmed.pop_front() else { return };
        if !arrived
            && tries < HANDLE_TRIES
            && let Some(copy) = copy
            && let Ok(handle) = copy.try_clone()
        {
            self.outbox.push_with(&line, handle);
            self.unconfirmed.push_back((line, Some(copy), tries + 1));
        }
    }

    /// Whether a ticket is of a socket of the program's; then the program is told.
    pub(crate) fn settled(&mut self, ticket: u64, delivered: bool) -> bool {
        let known = self.tickets.remove(&ticket);
        if known {
            self.outbox.push(if delivered { HANDLE_ACK } else { HANDLE_NACK });
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
            if text.starts_with(INTERNAL) {
                match incoming::parse(text) {
                    Ok(Incoming::HandleAck) => {
                        answers.push(true);
                        continue;
                    }
                    Ok(Incoming::HandleNack) => {
                        answers.push(false);
                        continue;
                    }
                    Ok(Incoming::Cluster(message)) => {
                        // The other thing that it says, that it has seen a worker leave, has been said already.
                        if message.act == Some(Act::Disconnect) {
                            core.disconnect(worker, false);
                        }
                        continue;
                    }
                    Ok(Incoming::Handle(wrapped)) => {
                        // What Node sends a second time it wraps a second time, and cannot read that itself.
                        if wrapped.body.starts_with(br#"{"cmd":"NODE_HANDLE""#) {
                            text = wrapped.body;
                        }
                        match line.take_handle() {
                            Some(handle) => {
                                *last_ticket += 1;
                                self.tickets.insert(*last_ticket);
                                channel.outbox.push_with(&[text, b"\n"].concat(), handle);
                                core.user_handle_sent(worker, *last_ticket);
                            }
                            None => self.outbox.push(HANDLE_NACK),
                        }
                        continue;
                    }
                    _ => {}
                }
            }
            channel.outbox.push(text);
            channel.outbox.push(b"\n");
        }
        answers.into_iter().for_each(|arrived| self.confirmed(arrived));
        true
    }
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay").field("unwritten", &self.outbox.len()).finish_non_exhaustive()
    }
}
