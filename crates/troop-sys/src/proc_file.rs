//! Reads files below `/proc` without allocating, for processes that must not ([`aside`](crate::aside)).

use std::ffi::CStr;
use std::fmt::{self, Write as _};
use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

/// A path below `/proc`, in memory of its own.
pub(crate) struct Path {
    bytes: [u8; 96],
    length: usize,
}

impl fmt::Write for Path {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // The last byte stays 0.
        let rest = self.bytes.len() - 1 - self.length;
        let text = text.as_bytes().get(..rest.min(text.len())).unwrap_or_default();
        self.bytes[self.length..self.length + text.len()].copy_from_slice(text);
        self.length += text.len();
        Ok(())
    }
}

impl Path {
    pub(crate) fn new(text: fmt::Arguments<'_>) -> Path {
        let mut path = Path { bytes: [0; 96], length: 0 };
        let _ = path.write_fmt(text);
        path
    }

    pub(crate) fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or_default()
    }

    pub(crate) fn open(&self, flags: OFlags) -> Result<OwnedFd, Errno> {
        rustix::fs::openat(CWD, self.as_c_str(), flags | OFlags::CLOEXEC, Mode::empty())
    }

    /// Reads the file, or as much of it as there is room for.
    pub(crate) fn read<'a>(&self, buffer: &'a mut [u8]) -> Result<&'a [u8], Errno> {
        let file = self.open(OFlags::RDONLY)?;
        let mut length = 0;
        loop {
            match rustix::io::read(&file, &mut buffer[length..])? {
                0 => return Ok(&buffer[..length]),
                more => length += more,
            }
        }
    }
}

/// Parses a number.
pub(crate) fn number<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Returns the words of a text.
pub(crate) fn words(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty())
}
