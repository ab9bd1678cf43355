//! A file without a name that holds the last state that was completely written, whenever its writer
//! dies. Two slots are written in turns, each with a number, where its bytes are, and their checksum.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, memfd_create};

use super::invalid;

/// The bytes of a slot's head: its number, where its bytes begin, how many there are, their checksum.
const HEAD: usize = 32;
/// Where the first bytes may be.
const START: u64 = 4096;

/// Writes states.
#[derive(Debug)]
pub(crate) struct Slots {
    file: File,
    /// The number of the state that was written last.
    last: u64,
    rooms: [Room; 2],
    end: u64,
}

/// Where a slot's bytes begin, how many have room there, and how many were written there.
#[derive(Debug, Clone, Copy)]
struct Room {
    at: u64,
    len: u64,
    used: u64,
}

/// Room that was used is given back to the system where so many bytes of it are not used any more.
const MAX_UNUSED: u64 = 1 << 20;

impl Slots {
    /// # Errors
    /// When out of descriptors or memory.
    pub(crate) fn new() -> io::Result<Slots> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(memfd_create("troop-state", flags)?);
        file.set_len(START)?;
        fcntl_add_seals(&file, SealFlags::SHRINK)?;
        let room = Room { at: START, len: 0, used: 0 };
        Ok(Slots { file, last: 0, rooms: [room; 2], end: START })
    }

    /// Writes a state, and leaves the one before as it is.
    ///
    /// # Errors
    /// When out of memory: the one before stays the last one.
    pub(crate) fn write(&mut self, state: &[u8]) -> io::Result<()> {
        let number = self.last + 1;
        let slot = (number % 2) as usize;
        let len = state.len() as u64;
        let Room { at, len: room, used } = self.rooms[slot];
        if room < len {
            self.give_back(at, used);
            // At its end the file has room, and states are of one size mostly.
            let room = (len * 2).next_multiple_of(START);
            self.rooms[slot] = Room { at: self.end, len: room, used: 0 };
            self.end += room;
        } else if used > len + MAX_UNUSED {
            let kept = len.next_multiple_of(START);
            self.give_back(at + kept, used.saturating_sub(kept));
            self.rooms[slot].used = kept;
        }
        let Room { at, used, .. } = self.rooms[slot];
        self.rooms[slot].used = used.max(len);
        self.file.write_all_at(state, at)?;
        let mut head = [0; HEAD];
        for (part, value) in
            head.chunks_exact_mut(8).zip([number, at, len, checksum(number, state)])
        {
            part.copy_from_slice(&value.to_ne_bytes());
        }
        self.file.write_all_at(&head, (slot * HEAD) as u64)?;
        self.last = number;
        Ok(())
    }

    /// Gives memory back to the system. The file stays as long.
    fn give_back(&self, at: u64, len: u64) {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if len > 0 {
            // Where that is not possible, it is used again only as far as it is large enough.
            let _ = fallocate(&self.file, flags, at, len);
        }
    }
}

impl AsFd for Slots {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Returns the last state that was completely written.
///
/// # Errors
/// If there is none.
pub(crate) fn read(file: OwnedFd) -> io::Result<Vec<u8>> {
    let file = File::from(file);
    let size = file.metadata()?.len();
    let mut heads = [[0_u64; 4]; 2];
    for (slot, head) in heads.iter_mut().enumerate() {
        let mut bytes = [0; HEAD];
        file.read_exact_at(&mut bytes, (slot * HEAD) as u64)?;
        for (value, part) in head.iter_mut().zip(bytes.chunks_exact(8)) {
            *value = part.try_into().map(u64::from_ne_bytes).unwrap_or(0);
        }
    }
    heads.sort_unstable_by(|a, b| b.cmp(a));
    for [number, at, len, sum] in heads {
        if number == 0 || at.checked_add(len).is_none_or(|end| end > size) {
            continue;
        }
        let mut state = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
        file.read_exact_at(&mut state, at)?;
        if checksum(number, &state) == sum {
            return Ok(state);
        }
    }
    Err(invalid("no state was completely written".into()))
}

/// Tells a state that was completely written from one that was not (FNV-1a).
fn checksum(number: u64, state: &[u8]) -> u64 {
    let mut sum = 0xcbf2_9ce4_8422_2325_u64 ^ number;
    let mut words = state.chunks_exact(8);
    let mut add = |word: u64| sum = (sum ^ word).wrapping_mul(0x0100_0000_01b3);
    for word in &mut words {
        add(word.try_into().map(u64::from_ne_bytes).unwrap_or(0));
    }
    words.remainder().iter().for_each(|byte| add(u64::from(*byte)));
    add(state.len() as u64);
    sum ^ sum >> 29
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last(slots: &Slots) -> Vec<u8> {
        read(slots.as_fd().try_clone_to_owned().unwrap()).unwrap()
    }

    #[test]
    fn the_last_state_is_read_whatever_its_size() {
        let mut slots = Slots::new().unwrap();
        assert!(read(slots.as_fd().try_clone_to_owned().unwrap()).is_err());
        for (number, size) in [10, 0, 100_000, 3, 100_001, 1 << 20, 7].into_iter().enumerate() {
            let state = vec![number as u8; size];
            slots.write(&state).unwrap();
            assert_eq!(last(&slots), state);
        }
    }

    #[test]
    fn a_large_state_takes_no_memory_once_it_is_small_again() {
        use std::os::unix::fs::MetadataExt as _;
        let mut slots = Slots::new().unwrap();
        for size in (0..40).map(|number| number << 18).chain([100; 2]) {
            let state = vec![7; size];
            slots.write(&state).unwrap();
            assert_eq!(last(&slots), state);
        }
        let bytes = slots.file.metadata().unwrap().blocks() * 512;
        assert!(bytes < 4 * MAX_UNUSED, "{bytes}");
    }

    #[test]
    fn a_state_that_was_not_completely_written_leaves_the_one_before() {
        let mut slots = Slots::new().unwrap();
        slots.write(&[1; 9000]).unwrap();
        slots.write(&[2; 9000]).unwrap();
        // As if the writer had died: its bytes are there in part, then its head, too.
        let at = slots.rooms[1].at;
        slots.file.write_all_at(&[3; 500], at).unwrap();
        assert_eq!(last(&slots), [2; 9000]);
        slots.file.write_all_at(&3_u64.to_ne_bytes(), HEAD as u64).unwrap();
        assert_eq!(last(&slots), [2; 9000]);
        slots.write(&[3; 9000]).unwrap();
        assert_eq!(last(&slots), [3; 9000]);
        assert!(slots.file.set_len(0).is_err(), "nobody can shorten it");
    }
}
