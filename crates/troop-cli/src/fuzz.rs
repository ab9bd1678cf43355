//! Entry points of the targets in `fuzz/`: the program's parsers, and the properties of whatever
//! they accept.

use std::path::Path;

use serde_json::json;
use troop::text;

use crate::config::{self, File, Form, env_file};
use crate::control::protocol::VERSION;
use crate::control::server;
use crate::logs::line::{self, Origin};

/// Parses a request of the control socket. A request that is written again parses to the same one.
pub fn control_request(line: &[u8]) {
    match server::parse(line) {
        Ok(request) => {
            let mut again = serde_json::to_value(&request).unwrap_or_default();
            again["troop"] = json!(VERSION);
            assert_eq!(
                server::parse(again.to_string().as_bytes()).as_ref(),
                Ok(&request),
                "{again}"
            );
        }
        Err(failure) => assert!(!failure.message.is_empty() && failure.kind == "bad-request"),
    }
}

/// Parses a file with apps of this name. Apps that are accepted stay the same when they are written
/// as `troop.toml` and parsed again.
pub fn configuration(name: &str, text: &str) {
    let Ok(apps) = config::parse(text, Path::new(name)) else { return };
    for app in apps.values() {
        assert!(app.check().is_ok());
        let _ = (app.fits_bind(), app.cpu_sets());
    }
    // TOML cannot represent all numbers.
    let Ok(written) = config::written(&File { app: apps }) else { return };
    let again = config::parse(&written, Path::new(config::DEFAULT_FILE));
    let Ok(again) = again else { panic!("not read again: {again:?}\n{written}") };
    assert_eq!(config::written(&File { app: again }).ok().as_deref(), Some(&*written));
}

/// Parses a file of variables: names are valid, and values without quotes stay unchanged.
pub fn environment(text: &str) {
    let Ok(variables) = env_file::parse(text) else { return };
    for (name, value) in variables {
        assert!(!name.is_empty() && !name.contains(char::is_whitespace));
        assert!(value.len() <= text.len());
    }
}

/// Formats a line of a worker: in every format it is one line, and UTF-8 parses to the same text.
pub fn log_line(bytes: &[u8]) {
    let printed = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let text = String::from_utf8_lossy(printed);
    for origin in [Origin::Out(3), Origin::Err(0), Origin::Event] {
        let time = line::now();
        let mut written = Vec::new();
        line::write_json(&mut written, &time, origin, printed);
        assert_eq!(written.iter().position(|byte| *byte == b'\n'), Some(written.len() - 1));
        let entry = line::read(String::from_utf8_lossy(&written).trim_end_matches('\n'));
        assert_eq!((entry.slot, &*entry.text), (origin.slot(), &*text));

        let mut written = line::prefix(Form::Prefixed, &time, origin);
        written.extend_from_slice(printed);
        let entry = line::read(&String::from_utf8_lossy(&written));
        assert_eq!((entry.slot, &*entry.text), (origin.slot(), &*text));
    }
    // Lines of other origins.
    let _ = line::read(&text);
    shown(&String::from_utf8_lossy(bytes));
}

/// Escapes a text: a terminal only prints the result.
fn shown(text: &str) {
    let escaped = text::escaped(text).to_string();
    assert!(!escaped.contains(text::is_unsafe), "{escaped:?}");
    let lines = text::lines(text, "| ");
    assert_eq!(lines.split('\n').count(), text.split('\n').count());
    assert!(
        lines.split('\n').all(|line| line.starts_with("| ") && !line.contains(text::is_unsafe)),
        "{lines:?}"
    );
    // Colours remain, and no other escape sequence.
    let mut line = &*text::terminal_line(text);
    while let Some(at) = line.find(|c| c != '\t' && text::is_unsafe(c)) {
        let colour = line[at..].strip_prefix("\x1b[").and_then(|rest| {
            rest.trim_start_matches(|c: char| c.is_ascii_digit() || ";:".contains(c))
                .strip_prefix('m')
        });
        assert!(colour.is_some(), "{line:?}");
        line = colour.unwrap_or_default();
    }
    let value = json!({ "text": text });
    let written = text::json(value.to_string());
    assert!(!written.contains(text::is_unsafe), "{written:?}");
    assert_eq!(serde_json::from_str(&written).ok(), Some(value));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_messages_are_those_that_were_typed() {
        control_request(br#"{"troop":1,"do":"send","message":1000000000000029295525929552599}"#);
    }
}
