//! Lines on their way to the socket, and the descriptors that travel with them.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use troop_core::wire::advanced;
use troop_sys::fdpass;

/// The most bytes per system call.
const MAX_WRITE: usize = 256 * 1024;

/// How far a flush came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flushed {
    /// Everything has been written.
    All,
    /// The rest can be written when the socket says that it has room.
    Blocked,
    /// The kernel is short of something else (descriptors under way, memory); the socket will not
    /// say when that is over.
    Later,
}

/// Bytes to be written in order. A line with a descriptor is written in a system call of its own,
/// as Node needs it.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    bytes: Vec<u8>,
    /// Bytes of `bytes` that have been written.
    sent: usize,
    /// Where in `bytes` lines with a descriptor begin and end.
    handles: VecDeque<(usize, usize, OwnedFd)>,
    /// For a peer that wants V8's format: what comes in as lines is translated before it is
    /// written.
    translates: bool,
    /// Bytes of `bytes` that have been translated.
    translated: usize,
}

impl Outbox {
    /// For lines to a peer that wants V8's format.
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

    /// Takes in the bytes from `from` on, without copying if there is nothing else to write.
    pub(crate) fn take_in(&mut self, bytes: &mut Vec<u8>, from: usize) {
        if from == 0 && self.bytes.is_empty() {
            std::mem::swap(&mut self.bytes, bytes);
        } else {
            self.bytes.extend_from_slice(&bytes[from..]);
        }
    }

    /// A line that carries a descriptor.
    pub(crate) fn push_with(&mut self, line: &[u8], handle: OwnedFd) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(line);
        self.handles.push_back((start, self.bytes.len(), handle));
    }

    /// Moves everything to `into`, if none of it is with a descriptor or has been written.
    pub(crate) fn move_to(&mut self, into: &mut Vec<u8>) {
        if self.sent == 0 && self.handles.is_empty() {
            into.append(&mut self.bytes);
        }
    }

    /// Room to write lines into directly.
    pub(crate) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
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

    /// Forgets written bytes when they are the greater part.
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

    /// Makes frames of the lines that have come in.
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
