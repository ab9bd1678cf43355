//! Cuts the byte stream of a channel into lines, or into frames with a length (see
//! [`super::advanced`]), and keeps each descriptor with its line.
//!
//! The kernel delivers descriptors with the first byte of the `sendmsg` that carried them, and one
//! `recvmsg` never reads past data that has descriptors. So a descriptor belongs to a line that
//! ends in or after the chunk it came with. A descriptor that no such line claims is surplus, and
//! is dropped before it can be taken for another message's (Node gets this wrong).

use std::collections::VecDeque;

use memchr::memchr;

/// The error of an unreadable stream. Nothing that follows can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameError {
    /// A line grew beyond this many bytes.
    TooLong(usize),
}

/// Default maximum number of descriptors that wait for their line.
const MAX_WAITING_HANDLES: usize = 256;

/// How messages are delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// By a newline.
    Lines,
    /// By its length, four bytes in front of it, big-endian.
    Lengths,
}

/// Size of a length prefix, in bytes.
const LENGTH_BYTES: usize = 4;

/// Reads lines from chunks of bytes that were cut anywhere. `H` is a descriptor; dropping one
/// closes it.
#[derive(Debug)]
pub struct FrameReader<H> {
    partial: Vec<u8>,
    handles: Handles<H>,
    max_line: usize,
    framing: Framing,
    /// Stream offset of the first byte that is not part of a finished line.
    line_start: u64,
    /// Stream offset after the last byte received.
    received: u64,
}

/// How far a reader has come in a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unfinished<'a> {
    /// The beginning of a line that is not complete yet.
    pub bytes: &'a [u8],
    /// Stream offset of the first byte that is not part of a finished line.
    pub line_start: u64,
    /// Stream offset after the last byte received.
    pub received: u64,
}

#[derive(Debug)]
struct Handles<H> {
    waiting: VecDeque<(u64, H)>,
    most: usize,
    surplus: u64,
}

impl<H> Handles<H> {
    fn drop_before(&mut self, line_start: u64) {
        while self.waiting.front().is_some_and(|(chunk_end, _)| *chunk_end <= line_start) {
            self.waiting.pop_front();
            self.surplus += 1;
        }
    }
}

/// One line, without its newline, and the descriptors that may belong to it.
#[derive(Debug)]
pub struct Line<'a, H> {
    /// The bytes of the line.
    pub bytes: &'a [u8],
    handles: &'a mut Handles<H>,
}

impl<H> Line<'_, H> {
    /// Takes the next descriptor that came with this line, if there is one.
    pub fn take_handle(&mut self) -> Option<H> {
        self.handles.waiting.pop_front().map(|(_, handle)| handle)
    }
}

impl<H> FrameReader<H> {
    /// Creates a reader that rejects lines of more than `max_line` bytes.
    #[must_use]
    pub fn new(max_line: usize) -> Self {
        FrameReader::with(Framing::Lines, max_line)
    }

    /// Creates a reader for either framing.
    #[must_use]
    pub fn with(framing: Framing, max_line: usize) -> Self {
        FrameReader {
            framing,
            partial: Vec::new(),
            handles: Handles { waiting: VecDeque::new(), most: MAX_WAITING_HANDLES, surplus: 0 },
            max_line,
            line_start: 0,
            received: 0,
        }
    }

    /// Sets the maximum number of descriptors that wait for the end of their line.
    #[must_use]
    pub fn most_handles(mut self, most: usize) -> Self {
        self.handles.most = most;
        self
    }

    /// Adds the result of one `recvmsg`. Read the lines that it completes by [`Chunk::next_line`]
    /// until that returns `None`.
    pub fn feed<'a>(
        &'a mut self,
        chunk: &'a [u8],
        handles: impl IntoIterator<Item = H>,
    ) -> Chunk<'a, H> {
        // An empty chunk with descriptors cannot occur on a stream socket, but is handled.
        self.received += chunk.len() as u64;
        let end = self.received.max(self.line_start + 1);
        for handle in handles {
            if self.handles.waiting.len() < self.handles.most {
                self.handles.waiting.push_back((end, handle));
            } else {
                self.handles.surplus += 1;
            }
        }
        Chunk { reader: self, rest: chunk, used_partial: false }
    }

    /// Returns the number of descriptors that were dropped because no line claimed them, since the
    /// last call.
    pub fn take_surplus(&mut self) -> u64 {
        std::mem::take(&mut self.handles.surplus)
    }

    /// Returns what is kept of an unfinished line, and the descriptors that came with it, each with
    /// the offset in the stream that it came at.
    pub fn unfinished(&self) -> (Unfinished<'_>, impl Iterator<Item = (u64, &H)>) {
        let unfinished = Unfinished {
            bytes: &self.partial,
            line_start: self.line_start,
            received: self.received,
        };
        (unfinished, self.handles.waiting.iter().map(|(at, handle)| (*at, handle)))
    }

    /// Goes on where another reader had come to.
    #[must_use]
    pub fn resume(
        mut self,
        unfinished: Unfinished<'_>,
        handles: impl IntoIterator<Item = (u64, H)>,
    ) -> Self {
        self.partial = unfinished.bytes.to_vec();
        self.line_start = unfinished.line_start;
        self.received = unfinished.received;
        self.handles.waiting = handles.into_iter().collect();
        self
    }

    /// Returns the number of kept bytes of an unfinished line.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.partial.len()
    }
}

/// The lines of one chunk.
#[derive(Debug)]
pub struct Chunk<'a, H> {
    reader: &'a mut FrameReader<H>,
    rest: &'a [u8],
    used_partial: bool,
}

impl<H> Chunk<'_, H> {
    /// Returns the number of remaining bytes up to the end of the current line, if it is in this
    /// chunk.
    fn end(&self) -> Result<Option<usize>, FrameError> {
        let (before, limit) = (self.reader.partial.len(), self.reader.max_line);
        let check =
            |length: usize| if length > limit { Err(FrameError::TooLong(limit)) } else { Ok(()) };
        match self.reader.framing {
            Framing::Lines => {
                let at = memchr(b'\n', self.rest);
                check(before + at.unwrap_or(self.rest.len()))?;
                Ok(at.map(|at| at + 1))
            }
            Framing::Lengths => {
                let mut bytes = self.reader.partial.iter().chain(self.rest).copied();
                let [Some(a), Some(b), Some(c), Some(d)] = std::array::from_fn(|_| bytes.next())
                else {
                    return Ok(None);
                };
                let length =
                    usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
                check(length)?;
                Ok(Some((LENGTH_BYTES + length).saturating_sub(before))
                    .filter(|end| *end <= self.rest.len()))
            }
        }
    }

    /// Returns the next complete line. With `None`, the beginning of an unfinished line was kept
    /// for the next chunk.
    ///
    /// # Errors
    /// [`FrameError::TooLong`] if a line exceeds the limit, even if it is not complete.
    pub fn next_line(&mut self) -> Result<Option<Line<'_, H>>, FrameError> {
        let reader = &mut *self.reader;
        if std::mem::take(&mut self.used_partial) {
            reader.partial.clear();
            // Release the memory of a huge line.
            reader.partial.shrink_to(64 * 1024);
        }
        reader.handles.drop_before(reader.line_start);
        let end = self.end()?;
        let reader = &mut *self.reader;
        let Some(end) = end else {
            reader.partial.extend_from_slice(self.rest);
            self.rest = &[];
            return Ok(None);
        };
        let (head, tail) = self.rest.split_at(end);
        self.rest = tail;
        reader.line_start += (reader.partial.len() + end) as u64;
        let bytes = if reader.partial.is_empty() {
            head
        } else {
            reader.partial.extend_from_slice(head);
            self.used_partial = true;
            &reader.partial
        };
        let bytes = match reader.framing {
            Framing::Lines => &bytes[..bytes.len() - 1],
            Framing::Lengths => &bytes[LENGTH_BYTES..],
        };
        Ok(Some(Line { bytes, handles: &mut reader.handles }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(
        reader: &mut FrameReader<u32>,
        chunk: &[u8],
        handles: &[u32],
        take: usize,
    ) -> Vec<(Vec<u8>, Vec<u32>)> {
        let mut out = Vec::new();
        let mut chunk = reader.feed(chunk, handles.iter().copied());
        while let Some(mut line) = chunk.next_line().unwrap() {
            let wanted = if line.bytes.starts_with(b"H") { take } else { 0 };
            let got = (0..wanted).filter_map(|_| line.take_handle()).collect();
            out.push((line.bytes.to_vec(), got));
        }
        out
    }

    #[test]
    fn a_line_may_be_split_anywhere() {
        let mut reader = FrameReader::new(100);
        assert!(lines(&mut reader, b"ab", &[], 1).is_empty());
        assert_eq!(
            lines(&mut reader, b"c\nd\ne", &[], 1),
            [(b"abc".to_vec(), vec![]), (b"d".to_vec(), vec![])]
        );
        assert_eq!(lines(&mut reader, b"\n", &[], 1), [(b"e".to_vec(), vec![])]);
    }

    #[test]
    fn a_handle_may_ride_on_any_byte_of_its_line() {
        let mut reader = FrameReader::new(100);
        assert!(lines(&mut reader, b"H-first", &[1], 1).is_empty());
        assert_eq!(lines(&mut reader, b"-rest\n", &[], 1), [(b"H-first-rest".to_vec(), vec![1])]);
        assert!(lines(&mut reader, b"H-las", &[], 1).is_empty());
        assert_eq!(lines(&mut reader, b"t\n", &[2], 1), [(b"H-last".to_vec(), vec![2])]);
        assert_eq!(reader.take_surplus(), 0);
    }

    #[test]
    fn an_unclaimed_handle_is_dropped_before_the_next_chunk() {
        let mut reader = FrameReader::new(100);
        assert_eq!(lines(&mut reader, b"x\n", &[7, 8], 1), [(b"x".to_vec(), vec![])]);
        assert_eq!(lines(&mut reader, b"H\n", &[], 1), [(b"H".to_vec(), vec![])]);
        assert_eq!(reader.take_surplus(), 2);
    }

    #[test]
    fn a_frame_with_a_length_may_be_split_anywhere() {
        let stream = [b"\0\0\0\x03abc".as_slice(), b"\0\0\0\0", b"\0\0\0\x02H\n"].concat();
        for size in 1..=stream.len() {
            let mut reader = FrameReader::with(Framing::Lengths, 3);
            let mut got = Vec::new();
            for (number, chunk) in stream.chunks(size).enumerate() {
                let last = (number + 1) * size >= stream.len();
                got.extend(lines(&mut reader, chunk, if last { &[5] } else { &[] }, 1));
            }
            let bytes: Vec<_> = got.iter().map(|(bytes, _)| bytes.as_slice()).collect();
            assert_eq!(bytes, [b"abc".as_slice(), b"", b"H\n"], "in pieces of {size}");
            assert_eq!(got[2].1, [5]);
        }
    }

    #[test]
    fn a_frame_that_announces_too_much_is_refused_at_once() {
        let mut reader: FrameReader<u32> = FrameReader::with(Framing::Lengths, 3);
        assert_eq!(reader.feed(b"\0\0\0\x04", []).next_line().err(), Some(FrameError::TooLong(3)));
    }

    #[test]
    fn a_line_without_end_is_refused_at_the_limit() {
        let mut reader: FrameReader<u32> = FrameReader::new(4);
        assert!(lines(&mut reader, b"abcd", &[], 1).is_empty());
        assert_eq!(reader.feed(b"e", []).next_line().err(), Some(FrameError::TooLong(4)));
    }
}
