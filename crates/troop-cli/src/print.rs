//! Standard output. Text of workers, files and other primaries is escaped with `troop::text`.

use std::io::{self, Write as _};

use serde_json::Value;
use troop::text;

/// Writes lines for people.
///
/// # Errors
/// If standard output is closed.
pub(crate) fn line(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", text::lines(line, "")).and_then(|()| out.flush())
}

/// Writes a value as one line of JSON.
///
/// # Errors
/// If standard output is closed.
pub(crate) fn json(value: &Value) -> io::Result<()> {
    raw(&text::json(value.to_string()))
}

/// Writes a line unchanged.
///
/// # Errors
/// If standard output is closed.
pub(crate) fn raw(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush())
}
