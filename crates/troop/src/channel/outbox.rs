//! Lines on their way to the socket, and the descriptors that travel with them.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use troop_core::wire::advanced;
use troop_sys::fdpass;

/// The most bytes per system call.
const MAX_WRITE: usize = 256 * 1024;

/// The result of a flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flushed {
    /// Everything has been written.
    All,
    /// The rest can be written when the socket says that it has room.
    Blocked,
    /// The kernel lacks another resource (descriptors in flight, memory), and the socket does not
    /// report when it is available.
    Later,
}

/// Bytes to write, in order. A line with a descriptor is written by a separate system call, which
/// Node requires.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    bytes: Vec<u8>,
    /// Bytes of `bytes` that have been written.
    sent: usize,
    /// Where in `bytes` lines with a descriptor begin and end.
    handles: VecDeque<(usize, usize, OwnedFd)>,
    /// For a peer that uses V8's format: lines are translated before they are written.
    translates: bool,
    /// Bytes of `bytes` that have been translated.
    translated: usize,
}

impl Outbox {
    /// Returns an outbox for a peer that uses V8's format.
    pub(crate) fn advanced(translates: bool) -> Outbox {
        Outbox { translates, ..Outbox::default() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.sent == self.bytes.len()
    }

    /// Bytes still to be written.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Descriptors still to be written.
    pub(crate) fn handles(&self) -> usize {
        self.handles.len()
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Queues the bytes from `from` on, without copying if the outbox is empty.
    pub(crate) fn take_in(&mut self, bytes: &mut Vec<u8>, from: usize) {
        if from == 0 && self.bytes.is_empty() {
            std::mem::swap(&mut self.bytes, bytes);
        } else {
            self.bytes.extend_from_slice(&bytes[from..]);
        }
    }

    /// Queues a line that carries a descriptor.
    pub(crate) fn push_with(&mut self, line: &[u8], handle: OwnedFd) {
        self.write_with(handle, |bytes| bytes.extend_from_slice(line));
    }

    /// A line that carries a descriptor, which `write` appends.
    pub(crate) fn write_with(&mut self, handle: OwnedFd, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes.len();
        write(&mut self.bytes);
        self.handles.push_back((start, self.bytes.len(), handle));
    }

    /// Moves all bytes to `into`, unless some carry a descriptor or are partly written.
    pub(crate) fn move_to(&mut self, into: &mut Vec<u8>) {
        if self.sent == 0 && self.handles.is_empty() {
            into.append(&mut self.bytes);
        }
    }

    /// Returns the buffer, to append lines directly.
    pub(crate) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Returns the bytes that are not written yet, and the descriptors of lines among them, with
    /// where those begin and end.
    pub(crate) fn unwritten(&self) -> (&[u8], impl Iterator<Item = (usize, usize, &OwnedFd)>) {
        let sent = self.sent;
        let handles =
            self.handles.iter().map(move |(start, end, fd)| (start - sent, end - sent, fd));
        (&self.bytes[sent..], handles)
    }

    /// Goes on with what another outbox had not written, in the format of the channel.
    pub(crate) fn resume(
        &mut self,
        bytes: &[u8],
        handles: impl IntoIterator<Item = (usize, usize, OwnedFd)>,
    ) {
        self.bytes = bytes.to_vec();
        self.translated = self.bytes.len();
        self.handles = handles.into_iter().collect();
    }

    /// Writes as much as the socket takes.
    pub(crate) fn flush(&mut self, socket: BorrowedFd<'_>) -> io::Result<Flushed> {
        if self.translates {
            self.translate();
        }
        while self.sent < self.bytes.len() {
            let next = self.handles.front().map(|(start, end, _)| (*start, *end));
            let result = match next {
                Some((start, end)) if start == self.sent => {
                    let fd = self.handles.front().map(|(_, _, fd)| fd.as_fd());
                    let result = fdpass::send(socket, &self.bytes[start..end], fd.as_slice());
                    if result.is_ok() {
                        self.handles.pop_front();
                    }
                    result
                }
                next => {
                    let end = next
                        .map_or(self.bytes.len(), |(start, _)| start)
                        .min(self.sent + MAX_WRITE);
                    fdpass::send(socket, &self.bytes[self.sent..end], &[])
                }
            };
            match result {
                Ok(n) => self.sent += n,
                Err(e) if fdpass::is_temporary(&e) => {
                    self.compact();
                    return Ok(if e.kind() == io::ErrorKind::WouldBlock {
                        Flushed::Blocked
                    } else {
                        Flushed::Later
                    });
                }
                Err(e) => return Err(e),
            }
        }
        self.bytes.clear();
        self.bytes.shrink_to(MAX_WRITE);
        (self.sent, self.translated) = (0, 0);
        Ok(Flushed::All)
    }

    /// Removes written bytes when they are the greater part of the buffer.
    fn compact(&mut self) {
        if self.sent > MAX_WRITE && self.sent * 2 > self.bytes.len() {
            self.bytes.drain(..self.sent);
            for (start, end, _) in &mut self.handles {
                *start -= self.sent;
                *end -= self.sent;
            }
            self.translated = self.translated.saturating_sub(self.sent);
            self.sent = 0;
        }
    }

    /// Translates new lines to frames of V8's format.
    fn translate(&mut self) {
        let lines = self.bytes.split_off(self.translated);
        let from = self.bytes.len();
        let mut handles =
            self.handles.iter_mut().skip_while(|(start, ..)| *start < from).peekable();
        let mut at = from;
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            let start = self.bytes.len();
            advanced::from_json(&mut self.bytes, line);
            if let Some((first, end, _)) = handles.next_if(|(start, ..)| *start == at) {
                (*first, *end) = (start, self.bytes.len());
            }
            at += line.len();
        }
        self.translated = self.bytes.len();
    }
}
