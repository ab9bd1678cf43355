//! The beginning of a long line in a file of its own, to which is added what comes: otherwise a line of
//! 16 MiB would be written down a hundred times until it is there.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;

use rustix::fs::{MemfdFlags, memfd_create};

/// The least length of such a beginning.
const MIN: usize = 64 * 1024;

/// A file with the beginning of a line.
#[derive(Debug)]
pub(crate) struct LongLine {
    file: File,
    /// Where the line begins in all that has come, which no other one does.
    start: u64,
    len: usize,
}

impl LongLine {
    /// Adds what is new of the line that begins there. `None` if it is short, or when out of descriptors or
    /// memory.
    pub(crate) fn append(line: Option<LongLine>, start: u64, bytes: &[u8]) -> Option<LongLine> {
        if bytes.len() < MIN {
            return None;
        }
        let mut line = match line {
            Some(line) => line,
            None => {
                let file = memfd_create("troop-line", MemfdFlags::CLOEXEC).ok()?.into();
                LongLine { file, start, len: 0 }
            }
        };
        let new = bytes.get(line.len..)?;
        line.file.write_all_at(new, line.len as u64).ok()?;
        line.len = bytes.len();
        Some(line)
    }

    /// Whether it is the beginning of the line that begins there.
    pub(crate) fn is_of(&self, start: u64) -> bool {
        self.start == start
    }

    /// Whether it has all that has come of a line.
    pub(crate) fn has_all(&self, start: u64, bytes: &[u8]) -> bool {
        self.start == start && self.len == bytes.len()
    }
}

impl AsFd for LongLine {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Reads so much of the line in a file.
///
/// # Errors
/// If there is less.
pub(crate) fn read(file: OwnedFd, len: usize) -> io::Result<Vec<u8>> {
    let file = File::from(file);
    if file.metadata()?.len() < len as u64 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_is_read_as_far_as_the_state_has_it() {
        let bytes: Vec<u8> = (0..10 * MIN).map(|number| number as u8).collect();
        assert!(LongLine::append(None, 5, &bytes[..MIN - 1]).is_none());
        let mut line = None;
        for len in [MIN, MIN + 1, MIN + 1, 7 * MIN, bytes.len()] {
            line = LongLine::append(line, 5, &bytes[..len]);
            let line = line.as_ref().unwrap();
            assert!(line.has_all(5, &bytes[..len]) && line.is_of(5) && !line.is_of(6));
            assert!(!line.has_all(5, &bytes[..len - 1]) && !line.has_all(6, &bytes[..len]));
        }
        let file = line.unwrap().as_fd().try_clone_to_owned().unwrap();
        assert!(read(file.try_clone().unwrap(), bytes.len() + 1).is_err());
        assert_eq!(read(file, 3 * MIN).unwrap(), bytes[..3 * MIN]);
    }
}
