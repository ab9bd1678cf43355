//! Lists of connection numbers, parsed without allocation in their usual form.

/// Numbers of connections, in order.
#[derive(Debug, Clone, Default)]
pub struct Numbers<'a> {
    /// Numbers in the usual form, comma-separated, as text of the line. They are parsed on each
    /// iteration, so that the most frequent message of a worker allocates nothing.
    text: &'a [u8],
    /// Numbers in any other form.
    list: Vec<u64>,
}

impl<'a> Numbers<'a> {
    /// `text` must be comma-separated numbers that [`number`] accepts.
    pub(super) fn in_text(text: &'a [u8]) -> Numbers<'a> {
        Numbers { text, list: Vec::new() }
    }

    /// Returns the numbers.
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

/// Parses a number in its usual form at the beginning of a text. Returns it and the rest.
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
