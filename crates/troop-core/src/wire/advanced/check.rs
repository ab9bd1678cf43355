//! Checks a frame without building its value, in the steps of V8's `ValueDeserializer`: whether it
//! can be read, how much memory that would take, and whether it is an internal message. The grammar
//! is that of
//! [value-serializer.cc](https://github.com/v8/v8/blob/main/src/objects/value-serializer.cc).

use super::{Reader, VERSION};
use crate::event::Violation;
use crate::wire::incoming::is_our_cmd;

/// Maximum nesting. V8 reads deeper values, limited by its stack.
pub const MAX_DEPTH: usize = 1000;
/// Maximum estimated memory of a message in JavaScript, in bytes: a frame of seven bytes can create
/// an array of 256 MiB.
pub const MAX_MEMORY: usize = 512 << 20;

/// Estimated memory of values of each kind, in bytes, on JavaScript's heap and outside.
const OBJECT: usize = 64;
const PROPERTY: usize = 16;
const ELEMENT: usize = 8;
const COLLECTION: usize = 256;
const BUFFER: usize = 256;

/// The origin of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A message of the program.
    Program,
    /// An internal message, according to its `cmd`.
    Node {
        /// Whether its kind is known here.
        ours: bool,
    },
}

/// Checks frames, one after another, without allocating memory for each.
#[derive(Debug, Default)]
pub struct Checker {
    open: Vec<OpenObject>,
}

impl Checker {
    /// Checks a frame (without its length) before it is deserialized.
    ///
    /// # Errors
    /// A [`Violation`] if V8 cannot read it, or it would take too much memory.
    pub fn check(&mut self, frame: &[u8]) -> Result<Kind, Violation> {
        self.open.clear();
        check_with(frame, &mut self.open)
    }
}

/// Checks a single frame (without its length), as [`Checker::check`].
///
/// # Errors
/// As [`Checker::check`].
pub fn check(frame: &[u8]) -> Result<Kind, Violation> {
    Checker::default().check(frame)
}

fn check_with(frame: &[u8], open: &mut Vec<OpenObject>) -> Result<Kind, Violation> {
    let mut walk = Walk {
        reader: Reader { rest: frame, values_left: 0 },
        open,
        memory: 0,
        kind: Kind::Program,
    };
    if walk.byte()? != 0xff {
        return Err(Violation::NotSerialized);
    }
    match walk.number()? {
        // Every supported Node writes this version. V8 also reads older ones, whose grammars
        // differ.
        version if version < u64::from(VERSION) => return Err(Violation::NotSerialized),
        // A version of a newer V8, whose grammar is unknown.
        version if version > u64::from(VERSION) => return Ok(Kind::Program),
        _ => {}
    }
    match walk.all() {
        Ok(()) | Err(Stop::Unknown) => Ok(walk.kind),
        Err(Stop::Bad(violation)) => Err(violation),
    }
}

/// The reason why a walk ends early.
enum Stop {
    Bad(Violation),
    /// An unknown tag, which newer versions of V8 may know and others reject.
    Unknown,
}

impl From<Violation> for Stop {
    fn from(violation: Violation) -> Stop {
        Stop::Bad(violation)
    }
}

type Step = Result<(), Stop>;

/// A value whose parts are being checked.
#[derive(Debug, Clone, Copy)]
enum OpenObject {
    /// The elements of a dense array, of which so many are left. Its properties follow.
    Elements { left: usize, first: bool },
    /// Names and values until this tag, and so many numbers.
    Properties { end: u8, numbers: u8, first: bool },
    /// Values until this tag, and a number.
    Values { end: u8 },
    /// The fields of an error.
    Error,
}

/// `first`: the message itself, which is Node's own if its `cmd` says so.
struct Walk<'a, 'o> {
    reader: Reader<'a>,
    /// The open values, the outermost first. A list rather than recursion, which would use the
    /// program's stack.
    open: &'o mut Vec<OpenObject>,
    memory: usize,
    kind: Kind,
}

impl<'a> Walk<'a, '_> {
    fn byte(&mut self) -> Result<u8, Violation> {
        self.reader.byte().ok_or(Violation::NotSerialized)
    }

    /// Reads a number, truncated to 32 bits as in V8.
    fn number(&mut self) -> Result<u64, Violation> {
        self.reader.number().filter(|n| u32::try_from(*n).is_ok()).ok_or(Violation::NotSerialized)
    }

    fn tag(&mut self) -> Result<u8, Violation> {
        self.reader.tag().ok_or(Violation::NotSerialized)
    }

    fn bytes(&mut self, count: u64) -> Result<&'a [u8], Violation> {
        usize::try_from(count)
            .ok()
            .and_then(|count| self.reader.bytes(count))
            .ok_or(Violation::NotSerialized)
    }

    fn weigh(&mut self, bytes: usize) -> Result<(), Violation> {
        self.memory = self.memory.saturating_add(bytes);
        if self.memory > MAX_MEMORY { Err(Violation::TooCostly(MAX_MEMORY)) } else { Ok(()) }
    }

    /// Reads a length and as many bytes.
    fn block(&mut self) -> Result<&'a [u8], Violation> {
        let count = self.number()?;
        self.bytes(count)
    }

    fn text(&mut self, tag: u8) -> Result<Text<'a>, Violation> {
        let bytes = self.block()?;
        self.weigh(bytes.len() * 2)?;
        if tag == b'c' && bytes.len() % 2 != 0 {
            return Err(Violation::NotSerialized);
        }
        Ok(Text { bytes, wide: tag == b'c' })
    }

    /// Reads a text where no other value is allowed.
    fn only_text(&mut self) -> Step {
        match self.tag()? {
            tag @ (b'"' | b'c' | b'S') => self.text(tag).map(|_| ()).map_err(Stop::from),
            _ => Err(Violation::NotSerialized.into()),
        }
    }

    fn all(&mut self) -> Step {
        self.value(true)?;
        while let Some(open) = self.open.last_mut() {
            match *open {
                OpenObject::Elements { left: 0, first } => {
                    *open = OpenObject::Properties { end: b'$', numbers: 2, first }
                }
                OpenObject::Elements { ref mut left, .. } => {
                    *left -= 1;
                    self.value(false)?;
                }
                OpenObject::Properties { end, numbers, first } => {
                    self.property(end, numbers, first)?
                }
                OpenObject::Values { end } => match self.tag()? {
                    tag if tag == end => {
                        self.number()?;
                        self.open.pop();
                    }
                    tag => {
                        self.weigh(PROPERTY * 2)?;
                        self.begin(tag, false)?;
                    }
                },
                OpenObject::Error => self.error()?,
            }
        }
        Ok(())
    }

    fn value(&mut self, first: bool) -> Step {
        let tag = self.tag()?;
        self.begin(tag, first)
    }

    fn open(&mut self, memory: usize, open: OpenObject) -> Result<(), Violation> {
        if self.open.len() >= MAX_DEPTH {
            return Err(Violation::TooDeep(MAX_DEPTH));
        }
        self.weigh(memory)?;
        self.open.push(open);
        Ok(())
    }

    /// Reads a value, or its beginning if it has parts.
    fn begin(&mut self, mut tag: u8, first: bool) -> Step {
        loop {
            match tag {
                // A count that is ignored.
                b'?' => _ = self.number()?,
                // Written by Node's channel: a view of a buffer, or an object of another kind as an
                // ordinary one.
                b'\\' => match self.number()? {
                    0 => {
                        self.number()?;
                        let length = self.block()?.len();
                        return Ok(self.weigh(BUFFER + length)?);
                    }
                    1 => {}
                    _ => return Err(Violation::NotSerialized.into()),
                },
                _ => break,
            }
            tag = self.tag()?;
        }
        match tag {
            b'_' | b'-' | b'0' | b'T' | b'F' => {}
            b'y' | b'x' => self.weigh(OBJECT)?,
            b'I' | b'U' => _ = self.number()?,
            b'N' => _ = self.bytes(8)?,
            b'D' | b'n' => {
                self.bytes(8)?;
                self.weigh(OBJECT)?;
            }
            b'Z' | b'z' => {
                let field = self.number()?;
                let length = self.bytes(field >> 1)?.len();
                self.weigh(OBJECT + length)?;
            }
            b'"' | b'c' | b'S' => {
                self.text(tag)?;
            }
            b's' => {
                self.weigh(OBJECT)?;
                self.only_text()?;
            }
            b'R' => {
                self.weigh(OBJECT)?;
                self.only_text()?;
                self.number()?;
            }
            b'^' => {
                self.number()?;
                self.view()?;
            }
            b'o' => self.open(OBJECT, OpenObject::Properties { end: b'{', numbers: 1, first })?,
            b'A' => {
                let count = self.number()?;
                // Each is a byte at least.
                let left =
                    usize::try_from(count).ok().filter(|count| *count <= self.reader.rest.len());
                let left = left.ok_or(Violation::NotSerialized)?;
                self.open(OBJECT + left * ELEMENT, OpenObject::Elements { left, first })?;
            }
            b'a' => {
                // It has room for all of them, whether they are there or not.
                let length = usize::try_from(self.number()?).unwrap_or(usize::MAX);
                let memory = length.saturating_mul(ELEMENT).saturating_add(OBJECT);
                self.open(memory, OpenObject::Properties { end: b'@', numbers: 2, first })?;
            }
            b';' => self.open(COLLECTION, OpenObject::Values { end: b':' })?,
            b'\'' => self.open(COLLECTION, OpenObject::Values { end: b',' })?,
            b'r' => self.open(COLLECTION * 2, OpenObject::Error)?,
            b'B' => {
                let length = self.block()?.len();
                self.weigh(BUFFER + length)?;
                self.view()?;
            }
            b'~' => {
                let length = self.number()?;
                let room = self.number()?;
                self.bytes(length)?;
                self.weigh(BUFFER.saturating_add(usize::try_from(room).unwrap_or(usize::MAX)))?;
                self.view()?;
            }
            // Values that are shared or transferred between threads are invalid on a channel
            // between processes.
            b'u' | b't' | b'p' | b'w' | b'm' => return Err(Violation::NotSerialized.into()),
            _ => return Err(Stop::Unknown),
        }
        Ok(())
    }

    /// A view of the buffer that was just read, if one follows.
    fn view(&mut self) -> Result<(), Violation> {
        let mut ahead = Reader { rest: self.reader.rest, values_left: 0 };
        if ahead.tag() != Some(b'V') {
            return Ok(());
        }
        self.reader = ahead;
        self.byte()?;
        for _ in ["offset", "length"] {
            self.number()?;
        }
        self.weigh(BUFFER)?;
        // Its flags.
        self.number().map(drop)
    }

    fn property(&mut self, end: u8, numbers: u8, first: bool) -> Step {
        let is_cmd = match self.tag()? {
            tag if tag == end => {
                for _ in 0..numbers {
                    self.number()?;
                }
                self.open.pop();
                return Ok(());
            }
            tag @ (b'"' | b'c' | b'S') => self.text(tag)?.is(b"cmd"),
            b'I' | b'U' => {
                self.number()?;
                false
            }
            b'N' => {
                self.bytes(8)?;
                false
            }
            _ => return Err(Violation::NotSerialized.into()),
        };
        self.weigh(PROPERTY)?;
        let tag = self.tag()?;
        if !(first && is_cmd && matches!(tag, b'"' | b'c' | b'S')) {
            return self.begin(tag, false);
        }
        let cmd = self.text(tag)?;
        if cmd.len() > "NODE_".len() && cmd.starts_with(b"NODE_") {
            self.kind = Kind::Node { ours: cmd.is_ours() };
        }
        Ok(())
    }

    fn error(&mut self) -> Step {
        match self.tag()? {
            b'E' | b'R' | b'F' | b'S' | b'T' | b'U' => {}
            b'm' | b's' => self.only_text()?,
            b'c' => self.value(false)?,
            b'.' => drop(self.open.pop()),
            _ => return Err(Stop::Unknown),
        }
        Ok(())
    }
}

/// An encoded text.
struct Text<'a> {
    bytes: &'a [u8],
    /// Two bytes each.
    wide: bool,
}

impl Text<'_> {
    fn len(&self) -> usize {
        if self.wide { self.bytes.len() / 2 } else { self.bytes.len() }
    }

    fn starts_with(&self, ascii: &[u8]) -> bool {
        match self.wide {
            false => self.bytes.starts_with(ascii),
            true => {
                self.len() >= ascii.len()
                    && self.bytes.chunks_exact(2).zip(ascii).all(|(unit, byte)| unit == [*byte, 0])
            }
        }
    }

    fn is(&self, ascii: &[u8]) -> bool {
        self.len() == ascii.len() && self.starts_with(ascii)
    }

    fn is_ours(&self) -> bool {
        if !self.wide {
            return is_our_cmd(self.bytes);
        }
        let narrow: Vec<u8> = self
            .bytes
            .chunks_exact(2)
            .take(64)
            .map(|unit| if unit[1] == 0 { unit[0] } else { b'?' })
            .collect();
        self.len() == narrow.len() && is_our_cmd(&narrow)
    }
}

#[cfg(test)]
mod tests;
