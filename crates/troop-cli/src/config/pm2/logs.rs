//! The log files of an app. As in PM2, they hold what the program prints and nothing else.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::config::tables::{Form, Output, To};

/// Names of the streams of a process.
const STREAMS: [&str; 8] = [
    "/dev/stdout",
    "/dev/stderr",
    "/dev/fd/1",
    "/dev/fd/2",
    "/proc/self/fd/1",
    "/proc/self/fd/2",
    "/proc/1/fd/1",
    "/proc/1/fd/2",
];

/// What becomes of them.
pub(crate) const TO_STREAMS: &str = "output goes to troop's own streams with `troop run` only; in the background (`troop start`) it goes to the log file, which `troop logs` shows";

impl Output {
    /// Takes troop's own streams for no files: with `troop run` output goes there anyway. Returns
    /// whether there was one.
    pub(crate) fn without_streams(&mut self) -> bool {
        let is_stream = |path: &PathBuf| LogPath::named(path) == LogPath::Stream;
        let files = [&mut self.file, &mut self.error_file, &mut self.all_file];
        let found = files.into_iter().filter_map(|file| file.take_if(|path| is_stream(path)));
        if found.count() == 0 {
            return false;
        }
        if self.file.is_none() && self.error_file.is_none() && self.all_file.is_none() {
            self.to.take_if(|to| *to == To::Files);
        }
        true
    }
}

/// The log files as they are written in a file.
#[derive(Debug, Default)]
pub(super) struct Logs {
    pub(super) out: Option<LogPath>,
    pub(super) error: Option<LogPath>,
    /// The file for both.
    pub(super) all: Option<LogPath>,
    pub(super) format: Option<Form>,
    /// Whether each instance has files of its own.
    pub(super) are_apart: bool,
}

/// The value of a field for a log file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LogPath {
    /// One of troop's own streams.
    Stream,
    Discarded,
    File(PathBuf),
}

impl LogPath {
    /// Returns the path of a field. `true` is PM2's default file, `false` none.
    pub(super) fn of(value: &Value) -> Option<LogPath> {
        let text = value.as_str().filter(|text| !text.is_empty())?;
        Some(LogPath::named(Path::new(text)))
    }

    /// Returns what PM2 takes a path for.
    pub(crate) fn named(path: &Path) -> LogPath {
        match path.to_str() {
            Some("NULL" | "/dev/null") => LogPath::Discarded,
            Some(stream) if STREAMS.contains(&stream) => LogPath::Stream,
            _ => LogPath::File(in_directory(path)),
        }
    }

    /// Returns the path to write to, unless it is one of troop's own streams.
    pub(crate) fn path(self) -> Option<PathBuf> {
        match self {
            LogPath::Stream => None,
            LogPath::Discarded => Some("/dev/null".into()),
            LogPath::File(path) => Some(path),
        }
    }
}

/// A name alone is relative to the app's directory, too.
fn in_directory(path: &Path) -> PathBuf {
    if path.components().count() == 1 && path.is_relative() {
        Path::new(".").join(path)
    } else {
        path.into()
    }
}

impl Logs {
    /// Sets the log files of an app of this name; returns warnings.
    pub(super) fn apply(self, name: &str, output: &mut Output) -> Vec<String> {
        let Logs { out, error, all, format, are_apart } = self;
        let streams = [&out, &error, &all].into_iter().flatten();
        let warnings = streams
            .filter(|path| **path == LogPath::Stream)
            .take(1)
            .map(|_| TO_STREAMS.to_owned())
            .collect();
        let (out, error, all) = (
            out.and_then(LogPath::path),
            error.and_then(LogPath::path),
            all.and_then(LogPath::path),
        );
        output.format = format;
        let has_files = [&out, &error, &all].into_iter().any(Option::is_some);
        if !has_files {
            return warnings;
        }
        // PM2 adds nothing to lines, unless the file says so.
        output.format.get_or_insert(Form::Plain);
        output.events_apart = true;
        output.per_worker = are_apart;
        if out.is_none() && error.is_none() {
            output.file = all;
            return warnings;
        }
        let default = |stream: &str| PathBuf::from(format!("{name}-{stream}.log"));
        let error = error.or_else(|| out.is_some().then(|| default("error")));
        let out = out.unwrap_or_else(|| default("out"));
        output.error_file = error.filter(|error| *error != out);
        output.all_file = all.filter(|all| *all != out || output.error_file.is_some());
        output.file = Some(out);
        warnings
    }
}
