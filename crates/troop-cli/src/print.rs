//! Standard output. Whatever a worker, a file or a primary of another version has said is shown
//! escaped: `troop::text`.

use std::io::{self, Write as _};

use serde_json::Value;
use troop::text;

/// Writes lines for people.
///
/// # Errors
/// If nobody reads any more.
pub(crate) fn line(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", text::lines(line, "")).and_then(|()| out.flush())
}

/// Writes a value in one line, for programs.
///
/// # Errors
/// If nobody reads any more.
pub(crate) fn json(value: &Value) -> io::Result<()> {
    raw(&text::json(value.to_string()))
}

/// Writes a line as it is.
///
/// # Errors
/// If nobody reads any more.
pub(crate) fn raw(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush())
}
