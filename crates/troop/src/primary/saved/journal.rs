//! What this engine has read from channels, in memory that survives it, until that is part of the
//! state that is held or has changed nothing: a message that was read in the moment in which the
//! engine was killed is not lost.
//!
//! The kernel writes into this memory, so a message is there even if the engine is killed before the
//! call has returned: then its end is where the zeroes begin, because no message has any.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};
use troop_core::WorkerId;
use troop_sys::shared::SharedMemory;

use super::invalid;

/// Its size in bytes.
const SIZE: usize = 256 * 1024;
/// Where the entries begin. Before are whether there are any, which run they are of, and what is said
/// of them all.
const START: usize = 64;
const VALID: usize = 0;
const RUN: usize = 8;
const ACTED: usize = 16;
/// The bytes of an entry before what was read: its kind, its worker, its length.
const HEAD: usize = 16;
/// The least room that something is read into.
const MIN_ROOM: usize = 8 * 1024;

const READ: u32 = 1;
const READ_HANDLES: u32 = 2;
const WRITING: u32 = 3;
/// The length of what is being read.
const UNKNOWN: u64 = 0;

/// An entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entry {
    /// This was read from a worker's channel.
    Read {
        worker: WorkerId,
        bytes: Vec<u8>,
        /// Whether descriptors came with it, which are lost.
        had_handles: bool,
        /// Whether the engine may have done something for it already.
        is_acted_on: bool,
    },
    /// A part of a line was being written to this worker's channel: how much of it is not known.
    Writing(WorkerId),
}

/// Up to where a journal is part of the state that is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Position {
    run: u64,
    end: usize,
}

#[derive(Debug)]
pub(crate) struct Journal {
    memory: SharedMemory,
    end: usize,
    /// Where the entry begins that is being written.
    open: Option<usize>,
}

impl Journal {
    /// # Errors
    /// When out of descriptors or memory.
    pub(crate) fn new() -> io::Result<Journal> {
        let mut journal = Journal { memory: SharedMemory::new(SIZE)?, end: START, open: None };
        journal.put(VALID, 1);
        Ok(journal)
    }

    /// Goes on with another engine's. Returns what is in it that is no part of the state.
    ///
    /// # Errors
    /// If it is none; when out of memory.
    pub(crate) fn resume(file: OwnedFd, after: Position) -> io::Result<(Journal, Vec<Entry>)> {
        let memory = SharedMemory::of(file)?;
        if memory.bytes().len() != SIZE {
            return Err(invalid(format!("its journal has {} bytes", memory.bytes().len())));
        }
        let mut journal = Journal { memory, end: START, open: None };
        let entries = journal.entries(after);
        if journal.get(VALID) == 0 {
            // It was being emptied, up to where is not known.
            journal.end = SIZE - HEAD;
            journal.clear();
        }
        Ok((journal, entries))
    }

    fn entries(&mut self, after: Position) -> Vec<Entry> {
        let mut entries = Vec::new();
        if self.get(VALID) == 0 {
            return entries;
        }
        let begin = if after.run == self.get(RUN) { after.end } else { START };
        let acted = self.get(ACTED);
        let mut at = START;
        while let Some((kind, worker, len)) = self.head(at) {
            let from = at + HEAD;
            let len = match (kind, len) {
                (WRITING, _) => 0,
                (_, UNKNOWN) => {
                    let rest = &self.memory.bytes()[from..];
                    rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len())
                }
                (_, len) => usize::try_from(len).unwrap_or(usize::MAX),
            };
            let Some(bytes) = self.memory.bytes().get(from..).and_then(|rest| rest.get(..len))
            else {
                break;
            };
            if at >= begin {
                match kind {
                    WRITING => entries.push(Entry::Writing(worker)),
                    // Nothing had come yet.
                    _ if bytes.is_empty() => {}
                    _ => entries.push(Entry::Read {
                        worker,
                        bytes: bytes.to_vec(),
                        had_handles: kind == READ_HANDLES,
                        is_acted_on: (at as u64) < acted,
                    }),
                }
            }
            self.set_len(at, len);
            at = (from + len).next_multiple_of(8);
        }
        self.end = at;
        entries
    }

    /// Returns room for what is read from a worker's channel next. `None` if there is none left until
    /// the state is written down.
    pub(crate) fn begin(&mut self, worker: WorkerId, most: usize) -> Option<&mut [u8]> {
        // The last bytes stay zeroes, so that every message has an end.
        let room = (SIZE - 2 * HEAD).checked_sub(self.end).filter(|room| *room >= MIN_ROOM)?;
        let at = self.end;
        self.write_head(at, READ, worker, UNKNOWN);
        self.open = Some(at);
        self.memory.fence();
        Some(&mut self.memory.bytes_mut()[at + HEAD..at + HEAD + room.min(most)])
    }

    /// So many bytes have come, perhaps with descriptors; 0: nothing. Returns where they are.
    pub(crate) fn finish(
        &mut self,
        worker: WorkerId,
        len: usize,
        has_handles: bool,
    ) -> Range<usize> {
        let Some(at) = self.open.take() else { return START..START };
        self.memory.fence();
        if len == 0 {
            self.memory.bytes_mut()[at..at + HEAD].fill(0);
            return START..START;
        }
        let kind = if has_handles { READ_HANDLES } else { READ };
        self.write_head(at, kind, worker, len as u64);
        self.end = (at + HEAD + len).next_multiple_of(8);
        at + HEAD..at + HEAD + len
    }

    /// What was read.
    pub(crate) fn read(&self, at: Range<usize>) -> &[u8] {
        &self.memory.bytes()[at]
    }

    /// A part of a line, or a long one, is written to a worker's channel next.
    pub(crate) fn note_writing(&mut self, worker: WorkerId) {
        if self.end + 4 * HEAD < SIZE {
            self.write_head(self.end, WRITING, worker, UNKNOWN);
            self.end += HEAD;
            self.memory.fence();
        }
    }

    /// Something may be done for what was read until now.
    #[inline]
    pub(crate) fn note_acting(&mut self) {
        if self.end > START {
            self.put(ACTED, self.end as u64);
            self.memory.fence();
        }
    }

    /// Whether the state is to be written down soon.
    pub(crate) fn is_nearly_full(&self) -> bool {
        self.end > SIZE / 2
    }

    pub(crate) fn position(&self) -> Position {
        Position { run: self.get(RUN), end: self.end }
    }

    /// Everything in it is part of the state, or has changed nothing.
    pub(crate) fn clear(&mut self) {
        if self.end == START && self.get(VALID) == 1 {
            return;
        }
        self.put(VALID, 0);
        self.memory.fence();
        // The beginning of what could not be read as an entry, too.
        let end = (self.end + HEAD).min(SIZE);
        self.memory.bytes_mut()[START..end].fill(0);
        self.put(ACTED, 0);
        self.put(RUN, self.get(RUN) + 1);
        self.memory.fence();
        self.put(VALID, 1);
        self.end = START;
    }

    fn get(&self, at: usize) -> u64 {
        self.memory.bytes()[at..].first_chunk().copied().map_or(0, u64::from_ne_bytes)
    }

    fn put(&mut self, at: usize, value: u64) {
        self.memory.bytes_mut()[at..at + 8].copy_from_slice(&value.to_ne_bytes());
    }

    fn write_head(&mut self, at: usize, kind: u32, worker: WorkerId, len: u64) {
        self.put(at + 8, len);
        self.memory.fence();
        self.put(at, u64::from(kind) << 32 | u64::from(worker.0));
    }

    fn set_len(&mut self, at: usize, len: usize) {
        self.put(at + 8, len as u64);
    }

    fn head(&self, at: usize) -> Option<(u32, WorkerId, u64)> {
        if at + HEAD > SIZE {
            return None;
        }
        let (first, len) = (self.get(at), self.get(at + 8));
        let kind = (first >> 32) as u32;
        let is_known = matches!(kind, READ | READ_HANDLES | WRITING);
        is_known.then_some((kind, WorkerId((first & 0xffff_ffff) as u32), len))
    }
}

impl AsFd for Journal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const W: WorkerId = WorkerId(3);

    fn read(journal: &mut Journal, text: &[u8], has_handles: bool) {
        journal.begin(W, 1 << 20).unwrap()[..text.len()].copy_from_slice(text);
        let at = journal.finish(W, text.len(), has_handles);
        assert_eq!(journal.read(at), text);
    }

    fn found(journal: &Journal, after: Position) -> Vec<Entry> {
        let file = journal.as_fd().try_clone_to_owned().unwrap();
        Journal::resume(file, after).unwrap().1
    }

    fn entry(text: &[u8], had_handles: bool, is_acted_on: bool) -> Entry {
        Entry::Read { worker: W, bytes: text.to_vec(), had_handles, is_acted_on }
    }

    #[test]
    fn what_was_read_is_found_until_it_is_part_of_the_state() {
        let mut journal = Journal::new().unwrap();
        let start = journal.position();
        assert_eq!(found(&journal, start), []);
        read(&mut journal, b"one\n", false);
        journal.note_acting();
        let after_one = journal.position();
        read(&mut journal, b"two\nthr", true);
        journal.note_writing(W);
        assert!(journal.begin(W, 100).is_some());
        // Nothing has come.
        journal.finish(W, 0, false);
        let two = [entry(b"two\nthr", true, false), Entry::Writing(W)];
        let all = [&[entry(b"one\n", false, true)], &two[..]].concat();
        assert_eq!(found(&journal, start), all);
        assert_eq!(found(&journal, after_one), two);
        journal.clear();
        assert_eq!(found(&journal, after_one), []);
        read(&mut journal, b"four\n", false);
        // The state before is of another run.
        assert_eq!(found(&journal, after_one), [entry(b"four\n", false, false)]);
    }

    #[test]
    fn what_the_kernel_has_written_before_the_call_returned_is_found() {
        let mut journal = Journal::new().unwrap();
        let start = journal.position();
        read(&mut journal, b"one\n", false);
        journal.begin(W, 100).unwrap()[..5].copy_from_slice(b"two\n{");
        let both = [entry(b"one\n", false, false), entry(b"two\n{", false, false)];
        assert_eq!(found(&journal, start), both);
        // The next engine goes on behind, and may be killed, too.
        let file = journal.as_fd().try_clone_to_owned().unwrap();
        let (mut next, _) = Journal::resume(file, start).unwrap();
        read(&mut next, b"\"x\"}\n", false);
        let all = [&both[..], &[entry(b"\"x\"}\n", false, false)]].concat();
        assert_eq!(found(&next, start), all);
    }

    #[test]
    fn there_is_no_more_room_than_there_is() {
        let mut journal = Journal::new().unwrap();
        let start = journal.position();
        let mut bytes = 0;
        while let Some(room) = journal.begin(W, 64 * 1024) {
            room.fill(b'x');
            let len = room.len();
            journal.finish(W, len, false);
            bytes += len;
        }
        assert!(bytes > SIZE - 2 * MIN_ROOM && journal.is_nearly_full());
        let all: usize = found(&journal, start)
            .iter()
            .map(|entry| match entry {
                Entry::Read { bytes, .. } => bytes.len(),
                Entry::Writing(_) => 0,
            })
            .sum();
        assert_eq!(all, bytes);
        journal.clear();
        assert!(!journal.is_nearly_full() && found(&journal, start).is_empty());
    }

    #[test]
    fn one_that_is_being_emptied_has_nothing_also_later() {
        let mut journal = Journal::new().unwrap();
        let start = journal.position();
        read(&mut journal, b"one\n", false);
        read(&mut journal, b"two\n", false);
        journal.put(VALID, 0);
        let file = journal.as_fd().try_clone_to_owned().unwrap();
        let (mut next, entries) = Journal::resume(file, start).unwrap();
        assert_eq!(entries, []);
        // As long as the first one was.
        let after = next.position();
        read(&mut next, b"new\n", false);
        assert_eq!(found(&next, after), [entry(b"new\n", false, false)]);
    }
}
