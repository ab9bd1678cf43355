//! The formats of log lines: how they are written, and how `troop logs` parses them.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use troop::text;

use crate::config::Form;

/// The origin of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Origin {
    /// A worker, by its slot.
    Out(u32),
    Err(u32),
    /// The primary: an event.
    Event,
}

impl Origin {
    pub(crate) fn is_error(self) -> bool {
        matches!(self, Origin::Err(_))
    }

    pub(crate) fn slot(self) -> Option<u32> {
        match self {
            Origin::Out(slot) | Origin::Err(slot) => Some(slot),
            Origin::Event => None,
        }
    }

    fn stream(self) -> &'static str {
        match self {
            Origin::Out(_) => "out",
            Origin::Err(_) => "err",
            Origin::Event => "event",
        }
    }
}

/// Returns the prefix of a line. The line itself is written unchanged, even if it is not UTF-8.
pub(crate) fn prefix(form: Form, time: &str, origin: Origin) -> Vec<u8> {
    let text = match (form, origin) {
        (Form::Prefixed, Origin::Event) => format!("{time} - * "),
        (Form::Prefixed, Origin::Out(slot)) => format!("{time} {slot} | "),
        (Form::Prefixed, Origin::Err(slot)) => format!("{time} {slot} ! "),
        (Form::Plain | Form::Json, _) => String::new(),
    };
    text.into_bytes()
}

/// Appends a line as JSON; bytes that are not UTF-8 are replaced.
pub(crate) fn write_json(to: &mut Vec<u8>, time: &str, origin: Origin, line: &[u8]) {
    let text = String::from_utf8_lossy(line);
    let entry = Entry {
        time: time.into(),
        slot: origin.slot(),
        stream: origin.stream().into(),
        text: text.into(),
    };
    to.extend_from_slice(text::json(serde_json::to_string(&entry).unwrap_or_default()).as_bytes());
    to.push(b'\n');
}

/// A line in the JSON format.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) time: String,
    #[serde(default)]
    pub(crate) slot: Option<u32>,
    /// `out`, `err` or `event`.
    pub(crate) stream: String,
    pub(crate) text: String,
}

/// The time, in the form in which it was written.
pub(crate) fn now() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}

/// Parses a line. One in an unknown format counts as plain.
pub(crate) fn read(line: &str) -> Entry {
    if line.starts_with('{')
        && let Ok(entry) = serde_json::from_str(line)
    {
        return entry;
    }
    prefixed(line).unwrap_or_else(|| Entry::plain(line))
}

impl Entry {
    /// Returns a line as the program wrote it.
    pub(crate) fn plain(line: &str) -> Entry {
        Entry { time: String::new(), slot: None, stream: "out".into(), text: line.into() }
    }
}

fn prefixed(line: &str) -> Option<Entry> {
    let (time, rest) = line.split_once(' ')?;
    let (slot, rest) = rest.split_once(' ')?;
    if !(time.len() == 24 && time.ends_with('Z')) {
        return None;
    }
    let (mark, text) = rest.split_at_checked(2)?;
    let stream = match mark {
        "| " => "out",
        "! " => "err",
        "* " => "event",
        _ => return None,
    };
    Some(Entry {
        time: time.into(),
        slot: slot.parse().ok(),
        stream: stream.into(),
        text: text.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_as_it_was_written() {
        for form in [Form::Prefixed, Form::Json] {
            for (origin, stream) in
                [(Origin::Out(3), "out"), (Origin::Err(12), "err"), (Origin::Event, "event")]
            {
                let line = b"a | b ! {\"c\"}";
                let mut bytes = prefix(form, &now(), origin);
                match form {
                    Form::Json => write_json(&mut bytes, &now(), origin, line),
                    _ => bytes.extend_from_slice(line),
                }
                let entry = read(std::str::from_utf8(&bytes).unwrap().trim_end());
                assert_eq!(
                    (entry.slot, entry.stream.as_str(), entry.text.as_str()),
                    (origin.slot(), stream, "a | b ! {\"c\"}")
                );
            }
        }
        assert!(prefix(Form::Plain, "", Origin::Out(0)).is_empty());
        assert_eq!(read("{not json").text, "{not json");
    }
}
