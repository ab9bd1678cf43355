//! Numbers of connections, read without allocating where they are written as usual.

/// Numbers of connections, in order.
#[derive(Debug, Clone, Default)]
pub struct Numbers<'a> {
    /// Usual ones, with commas between them, as the line has them. They are read anew each time, so
    /// that the most frequent message of a worker costs no memory.
    text: &'a [u8],
    /// All others.
    list: Vec<u64>,
}

impl<'a> Numbers<'a> {
    /// `text` must be numbers that [`number`] takes, with a comma between two.
    pub(super) fn in_text(text: &'a [u8]) -> Numbers<'a> {
        Numbers { text, list: Vec::new() }
    }

    /// The numbers.
    pub fn iter(&self) -> impl Iterator<Item = u64> {
        let mut rest = self.text;
        let in_text = std::iter::from_fn(move || {
            let (found, after) = number(rest)?;
            rest = after.get(1..).unwrap_or_default();
            Some(found)
        });
        in_text.chain(self.list.iter().copied())
    }
}

impl From<Vec<u64>> for Numbers<'_> {
    fn from(list: Vec<u64>) -> Self {
        Numbers { text: &[], list }
    }
}

/// A number at the beginning, as it is usually written, and what follows it.
#[inline]
pub(super) fn number(text: &[u8]) -> Option<(u64, &[u8])> {
    const MAX_DIGITS: usize = 18;
    let digits = text.iter().take_while(|b| b.is_ascii_digit()).count();
    if digits == 0 || digits > MAX_DIGITS || (text[0] == b'0' && digits > 1) {
        return None;
    }
    let (digits, rest) = text.split_at(digits);
    Some((digits.iter().fold(0u64, |n, b| n * 10 + u64::from(b - b'0')), rest))
}
