//! Lines of another user's workers on a terminal: escaped, so that they do not control it, and
//! marked, so that they do not pass for lines of the primary.

use troop_core::text::terminal_line;

/// The mark.
const MARK: &str = "| ";
/// Maximum length of a line, in bytes; the rest of a longer one becomes further lines.
const MAX_LINE: usize = 8 * 1024;

/// The last line of a stream, as far as it has come.
#[derive(Debug, Default)]
pub(super) struct MarkedLines {
    partial: Vec<u8>,
}

impl MarkedLines {
    /// Takes bytes, and returns the lines that are to be printed.
    pub(super) fn add(&mut self, mut bytes: &[u8]) -> Vec<u8> {
        let mut shown = Vec::new();
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            self.partial.extend_from_slice(&bytes[..end]);
            bytes = &bytes[end + 1..];
            self.print(self.partial.len(), &mut shown);
            self.partial.clear();
        }
        self.partial.extend_from_slice(bytes);
        while self.partial.len() > MAX_LINE {
            self.print(MAX_LINE, &mut shown);
            self.partial.drain(..MAX_LINE);
        }
        shown
    }

    /// Returns what there is of a line without its end.
    pub(super) fn unfinished(&self) -> Vec<u8> {
        self.partial.clone()
    }

    /// Returns the rest at the end of the stream.
    pub(super) fn end(self) -> Vec<u8> {
        let mut shown = Vec::new();
        if !self.partial.is_empty() {
            self.print(self.partial.len(), &mut shown);
        }
        shown
    }

    fn print(&self, end: usize, to: &mut Vec<u8>) {
        let line = &self.partial[..end];
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        for piece in line.chunks(MAX_LINE).chain(line.is_empty().then_some(line)) {
            to.extend_from_slice(MARK.as_bytes());
            to.extend_from_slice(terminal_line(&String::from_utf8_lossy(piece)).as_bytes());
            to.push(b'\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_marked_and_harmless_however_they_come() {
        let text = b"a\x1b]0;x\x07\r\n\n\x1b[31mred\nover\rwritten\ntroop forged";
        for size in [1, 2, 7, text.len()] {
            let mut lines = MarkedLines::default();
            let mut shown: Vec<u8> = text.chunks(size).flat_map(|bytes| lines.add(bytes)).collect();
            shown.extend(lines.end());
            let expected =
                "| a\\x1b]0;x\\x07\n| \n| \x1b[31mred\x1b[0m\n| over\\rwritten\n| troop forged\n";
            assert_eq!(String::from_utf8(shown).unwrap(), expected, "{size}");
        }
    }

    #[test]
    fn a_line_without_end_is_printed_in_pieces() {
        let mut lines = MarkedLines::default();
        for _ in 0..10 {
            lines.add(&[b'x'; MAX_LINE]);
            assert!(lines.partial.len() <= MAX_LINE);
        }
        let shown = lines.add(&[&[b'x'; 3 * MAX_LINE][..], b"\n"].concat());
        assert!(shown.split(|byte| *byte == b'\n').all(|line| line.len() <= MARK.len() + MAX_LINE));
    }
}
