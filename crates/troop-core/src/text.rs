//! Escapes text of workers and other untrusted sources.
//!
//! An address, a path, a reason or a line of output can contain escape sequences, which terminals
//! interpret, newlines, which forge lines of a log, and marks that change the direction of text, so
//! that it reads as something else. [`escaped`] shows them as `
//! `, `\x1b` or `\u{202e}`.

use std::borrow::Cow;
use std::fmt::{self, Display, Write};

/// The escape sequence that resets all colours.
const RESET: &str = "\x1b[0m";
/// Maximum length of a colour's parameters, in bytes: twice `38;2;255;255;255`.
const MAX_COLOUR: usize = 40;

/// Whether a character is unsafe to print: controls (C0, DEL, C1), separators of lines and
/// paragraphs, marks that change the direction of text, annotations, and invisible characters,
/// which make different names look the same. Joiners and variation selectors are safe, because
/// scripts and emoji need them.
#[must_use]
pub fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{fff9}'..='\u{fffb}')
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180e}' | '\u{200b}'
            | '\u{2060}'..='\u{2065}' | '\u{206a}'..='\u{206f}' | '\u{3164}' | '\u{feff}' | '\u{ffa0}' | '\u{e0000}'..='\u{e00ff}')
}

/// Displays text with [unsafe](is_unsafe) characters escaped. A precision (`{:.80}`) truncates it
/// to that many characters of the original and appends `…`.
#[must_use]
pub fn escaped(text: &str) -> Escaped<'_> {
    Escaped(text)
}

/// The result of [`escaped`].
#[derive(Debug, Clone, Copy)]
pub struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = f.precision().and_then(|most| self.0.char_indices().nth(most)).map(|(at, _)| at);
        write_escaped(f, &self.0[..end.unwrap_or(self.0.len())])?;
        if end.is_some() { f.write_char('…') } else { Ok(()) }
    }
}

/// A writer that escapes text, as [`escaped`] does.
#[derive(Debug)]
pub struct Escaping<W>(pub W);

impl<W: Write> Write for Escaping<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        write_escaped(&mut self.0, text)
    }
}

/// Returns a number with its noun, in the plural unless it is 1: `1 worker`, `2 workers`.
#[must_use]
pub fn counted(number: impl TryInto<u64>, noun: &str) -> String {
    match number.try_into() {
        Ok(1) => format!("1 {noun}"),
        Ok(number) => format!("{number} {noun}s"),
        Err(_) => format!("many {noun}s"),
    }
}

fn write_escaped(to: &mut impl Write, mut text: &str) -> fmt::Result {
    while let Some(at) = text.find(is_unsafe) {
        to.write_str(&text[..at])?;
        let mut rest = text[at..].chars();
        if let Some(c) = rest.next() {
            write_escape(to, c)?;
        }
        text = rest.as_str();
    }
    to.write_str(text)
}

fn write_escape(to: &mut impl Write, c: char) -> fmt::Result {
    match c {
        '\n' => to.write_str("\\n"),
        '\r' => to.write_str("\\r"),
        '\t' => to.write_str("\\t"),
        '\0'..='\x7f' => write!(to, "\\x{:02x}", u32::from(c)),
        _ => write!(to, "\\u{{{:x}}}", u32::from(c)),
    }
}

/// Escapes each line of a text and prefixes it with `mark`, which distinguishes quoted lines from
/// troop's own.
#[must_use]
pub fn lines(text: &str, mark: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for (number, line) in text.split('\n').enumerate() {
        let end = if number == 0 { "" } else { "\n" };
        // Writing to memory cannot fail.
        let _ = write!(shown, "{end}{mark}{}", escaped(line.trim_end_matches('\r')));
    }
    shown
}

/// Escapes one line of a program's output for a terminal. Keeps tabs and colours (`ESC [ digits ; …
/// m`), and resets colours at the end of the line.
#[must_use]
pub fn terminal_line(line: &str) -> Cow<'_, str> {
    if !line.contains(|c| c != '\t' && is_unsafe(c)) {
        return Cow::Borrowed(line);
    }
    let mut shown = String::with_capacity(line.len() + 16);
    let (mut rest, mut is_coloured) = (line, false);
    while let Some(at) = rest.find(|c| c != '\t' && is_unsafe(c)) {
        shown.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(end) = colour(rest) {
            shown.push_str(&rest[..end]);
            rest = &rest[end..];
            is_coloured = true;
            continue;
        }
        let mut chars = rest.chars();
        if let Some(c) = chars.next() {
            // Writing to memory cannot fail.
            let _ = write_escape(&mut shown, c);
        }
        rest = chars.as_str();
    }
    shown.push_str(rest);
    if is_coloured {
        shown.push_str(RESET);
    }
    Cow::Owned(shown)
}

/// Returns the length of the colour sequence at the beginning of a text.
fn colour(text: &str) -> Option<usize> {
    let parameters = text.strip_prefix("\x1b[")?;
    let end = parameters.find(|c: char| !(c.is_ascii_digit() || c == ';' || c == ':'))?;
    (end <= MAX_COLOUR && parameters[end..].starts_with('m')).then_some(2 + end + 1)
}

/// Whether a program's words say that an address which it would bind is in use, as system libraries,
/// Node, Rust, EventMachine and gunicorn put it.
#[must_use]
pub fn tells_of_used_address(words: &str) -> bool {
    let signs = [
        "EADDRINUSE",
        "AddrInUse",
        "ddress already in use",
        "ddress in use",
        "ort is in use",
        "ort already in use",
        "onnection in use",
    ];
    signs.iter().any(|sign| words.contains(sign))
}

/// Whether a line of a program names an error, as Python, Node, Java, Ruby, Rust, Go and many others do.
#[must_use]
pub fn tells_of_error(line: &str) -> bool {
    let signs = ["Error: ", "Error (", "Exception: ", "panicked at", "panic: "];
    let begins = ["error:", "Error:", "ERROR", "fatal:", "FATAL", "[ERROR]"];
    signs.iter().any(|sign| line.contains(sign))
        || begins.iter().any(|begin| line.trim_start().starts_with(begin))
}

/// Escapes [unsafe](is_unsafe) characters above C0, which JSON permits, in a JSON text. They occur
/// only in strings, so the value stays the same.
#[must_use]
pub fn json(text: String) -> String {
    let is_raw = |c: char| !matches!(c, '\0'..='\x1f') && is_unsafe(c);
    // Fast path: most lines of a log are plain ASCII.
    let is_plain = text.is_ascii() && !text.as_bytes().contains(&0x7f);
    if is_plain || !text.contains(is_raw) {
        return text;
    }
    let mut safe = String::with_capacity(text.len() + 32);
    for c in text.chars() {
        if is_raw(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(safe, "\\u{unit:04x}");
            }
        } else {
            safe.push(c);
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_about_a_used_address_are_recognised() {
        for words in [
            "OSError: [Errno 98] Address already in use",
            "Error: listen EADDRINUSE: address already in use :::3000",
            "no acceptor (port is in use or requires root privileges)",
            "[ERROR] Connection in use: ('127.0.0.1', 8000)",
            "Os { code: 98, kind: AddrInUse }",
        ] {
            assert!(tells_of_used_address(words), "{words}");
        }
        assert!(!tells_of_used_address("memory in use: 3 MiB"));
    }

    #[test]
    fn control_and_direction_characters_are_escaped() {
        for (text, shown) in [
            ("", ""),
            ("/run/naïve 日本 👩‍👩‍👧 \\n.sock", "/run/naïve 日本 👩‍👩‍👧 \\n.sock"),
            ("a\nb\r\tc\0", "a\\nb\\r\\tc\\x00"),
            ("\x1b]0;title\x07\x7f", "\\x1b]0;title\\x07\\x7f"),
            ("\u{9b}2J\u{85}", "\\u{9b}2J\\u{85}"),
            ("\u{202e}gpj.exe\u{2066}\u{2069}", "\\u{202e}gpj.exe\\u{2066}\\u{2069}"),
            ("\u{2028}\u{2029}\u{200f}", "\\u{2028}\\u{2029}\\u{200f}"),
            ("a\u{200b}b\u{ad}\u{feff}\u{e0041}", "a\\u{200b}b\\u{ad}\\u{feff}\\u{e0041}"),
        ] {
            assert_eq!(escaped(text).to_string(), shown);
            let mut by_pieces = String::new();
            text.chars().for_each(|c| write!(Escaping(&mut by_pieces), "{c}").unwrap());
            assert_eq!(by_pieces, shown);
        }
        assert_eq!(
            (format!("{:.3}", escaped("a\nbcd")), format!("{:.3}", escaped("äöü"))),
            ("a\\nb…".into(), "äöü".into())
        );
    }

    #[test]
    fn a_line_of_output_keeps_its_colours_and_nothing_else() {
        for (line, shown) in [
            ("plain\ttext", "plain\ttext"),
            ("\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m\x1b[0m"),
            ("\x1b[1;38:2:255:0:0mx", "\x1b[1;38:2:255:0:0mx\x1b[0m"),
            ("\x1b[mx", "\x1b[mx\x1b[0m"),
            ("\x1b[2J\x1b[1;1Hx", "\\x1b[2J\\x1b[1;1Hx"),
            ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
            ("\x1b[?25lx\x1b[31", "\\x1b[?25lx\\x1b[31"),
            ("\x1b\x1b[31mx", "\\x1b\x1b[31mx\x1b[0m"),
            ("over\rwritten\u{9b}31m", "over\\rwritten\\u{9b}31m"),
        ] {
            assert_eq!(terminal_line(line), shown, "{line:?}");
        }
        assert_eq!(lines("a\r\nb\x1b[0m\n", "| "), "| a\n| b\\x1b[0m\n| ");
        let long = format!("\x1b[{}m", "1;".repeat(1000));
        assert!(!terminal_line(&long).contains('\x1b'));
    }

    /// Generates texts in which unsafe characters are frequent.
    fn hostile() -> impl Strategy<Value = String> {
        let pieces = prop_oneof![
            any::<char>().prop_map(String::from),
            (0_u32..0x20).prop_map(|c| char::from_u32(c).unwrap_or(' ').to_string()),
            prop::sample::select(vec![
                "\x1b[", "\x1b", "m", "31", ";", ":", "\u{9b}", "\u{202e}", "\x7f", "\n",
                "\u{2028}"
            ])
            .prop_map(String::from),
        ];
        prop::collection::vec(pieces, 0..40).prop_map(|pieces| pieces.concat())
    }

    #[test]
    fn nouns_are_in_the_plural_unless_the_number_is_one() {
        let counted = [0_u32, 1, 2].map(|number| counted(number, "worker"));
        assert_eq!(counted, ["0 workers", "1 worker", "2 workers"]);
    }

    proptest! {
        #[test]
        fn nothing_unsafe_is_ever_shown(text in hostile(), most in 0_usize..50) {
            let shown = escaped(&text).to_string();
            prop_assert!(!shown.contains(is_unsafe));
            prop_assert_eq!(escaped(&shown).to_string(), shown.clone());
            let cut = format!("{:.most$}", escaped(&text));
            prop_assert!(!cut.contains(is_unsafe));
        }

        #[test]
        fn of_a_line_only_colours_and_tabs_reach_a_terminal(line in hostile()) {
            let shown = terminal_line(&line).into_owned();
            let mut rest = shown.as_str();
            let mut is_coloured = false;
            while let Some(at) = rest.find(|c| c != '\t' && is_unsafe(c)) {
                let end = colour(&rest[at..]);
                prop_assert!(end.is_some(), "{shown:?}");
                is_coloured = true;
                rest = &rest[at + end.unwrap_or_default()..];
            }
            prop_assert!(!is_coloured || shown.ends_with(RESET));
        }

        #[test]
        fn json_means_the_same_and_has_nothing_unsafe(text in hostile()) {
            let safe = json(serde_json::to_string(&text).unwrap());
            prop_assert!(!safe.contains(is_unsafe));
            prop_assert_eq!(serde_json::from_str::<String>(&safe).unwrap(), text);
        }
    }
}
