//! `troop logs`: prints the last lines of log files, and follows them.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead as _, BufReader, IsTerminal as _, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use troop::program::safe_path::{Directory, Safety, split};
use troop::text;

use super::line::{self, Entry};
use super::paths;
use crate::args::Logs;
use crate::control::protocol::{Failure, Request};
use crate::control::targets;
use crate::error::CliError;
use crate::print;

/// Interval between checks for new lines.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// Time without a line after the end of the input, after which the answer to it counts as complete.
const QUIET_AT_END: Duration = Duration::from_millis(200);
/// Time after the end of the input, after which no more lines are shown.
const LAST_LINES_LIMIT: Duration = Duration::from_secs(2);
/// The number of rotated files that are searched.
const MAX_ROTATED: usize = 1000;
/// The size of a read, from the end of a file backwards.
const READ_SIZE: u64 = 64 * 1024;
/// The longest line, in bytes. troop writes shorter ones, but workers may be able to put other
/// files in place of logs.
const MAX_LINE: usize = 1024 * 1024;

/// A log file that is shown.
struct Shown {
    /// The prefix of its lines, if several logs are shown.
    name: Option<String>,
    path: PathBuf,
    slot: Option<u32>,
    is_plain: bool,
    reader: Option<(BufReader<File>, u64)>,
    /// An incomplete line.
    partial: String,
}

/// A log file of an app.
struct LogOf {
    app: String,
    path: PathBuf,
    /// The slot that it is of, if it is of one.
    slot: Option<u32>,
    /// Its lines are known to have no marks of troop's.
    is_plain: bool,
}

/// The log files of apps.
struct Files {
    files: Vec<LogOf>,
    /// Whether lines may follow.
    are_live: bool,
}

/// Returns the log files of the selected apps: those that running apps report, and the usual paths
/// of others.
fn files(args: &Logs) -> Result<Files, CliError> {
    let word = args.app.as_deref().unwrap_or("all");
    let clients = match targets::find(Some(word)) {
        Ok(clients) => clients,
        Err(CliError::NoApp(text)) => {
            let mut names: Vec<_> =
                targets::selected(word)?.iter().map(|app| app.name().to_owned()).collect();
            // A text that is not a name must not become part of a path.
            if names.is_empty() && crate::names::is_app(word) {
                names.push(word.to_owned());
            }
            let files: Vec<_> = names
                .into_iter()
                .flat_map(|name| {
                    paths::recorded(&name).into_iter().map(move |(path, slot)| LogOf {
                        app: name.clone(),
                        path,
                        slot,
                        is_plain: false,
                    })
                })
                .collect();
            return match files.is_empty() {
                true => Err(CliError::NoApp(text)),
                false => Ok(Files { files, are_live: false }),
            };
        }
        Err(error) => return Err(error),
    };
    let (mut files, mut missing) = (Vec::new(), None);
    for mut client in clients {
        let name = client.name().to_owned();
        let answer = client.request(Request::Logs, |_| {})?;
        let keys = ["file", "error_file", "events_file"];
        let is_plain = answer["format"] == "plain";
        let slots = answer["slots"].as_u64().and_then(|slots| slots.try_into().ok()).unwrap_or(0);
        let paths: Vec<_> = keys[..if args.is_raw() { 2 } else { 3 }]
            .iter()
            .filter_map(|key| answer[*key].as_str())
            .flat_map(|path| paths::expanded(path.into(), slots))
            .filter(|(path, _)| !paths::is_device(path))
            .collect();
        if paths.is_empty() {
            let to = answer["to"].as_str().unwrap_or("terminal");
            let hint = if to == "files" {
                "/dev/null".into()
            } else if to == "journal" {
                format!("`journalctl -t {name}` shows it")
            } else {
                "it is where it was started".into()
            };
            missing = Some(format!(
                "{name} writes no files, its output goes to the {to}: {hint}; `troop run --output {name}.log` or output.to = \"files\" would"
            ));
        }
        files.extend(paths.into_iter().map(|(path, slot)| LogOf {
            app: name.clone(),
            path,
            slot,
            is_plain,
        }));
    }
    if let Some(slot) = args.slot {
        files.retain(|file| file.slot.is_none_or(|of| of == slot));
    }
    match missing {
        Some(text) if files.is_empty() => Err(CliError::Failed(Failure::new("failed", text))),
        // The other logs are shown all the same.
        Some(text) => {
            crate::log::line(&format!("troop: {text}"));
            Ok(Files { files, are_live: true })
        }
        None => Ok(Files { files, are_live: true }),
    }
}

/// Runs `troop logs`.
pub(crate) fn logs(args: &Logs) -> Result<(), CliError> {
    logs_with_input(args, None)
}

/// The same while input is passed on. When that is over, so is this: after what the worker answers.
pub(crate) fn logs_with_input(args: &Logs, input: Option<&Input>) -> Result<(), CliError> {
    let Files { files, are_live } = files(args)?;
    let several = files.iter().any(|file| file.app != files[0].app);
    let mut shown = Vec::new();
    for LogOf { app: name, path, slot, is_plain } in files {
        let wants = |line: &str| args.wants(&args.read(line, is_plain), slot);
        let reading = |e| CliError::Io(format!("read {}", path.display()), e);
        let (mut lines, reader) = last_lines(&path, args.lines, wants).map_err(reading)?;
        // Rotated files, as far as they are needed for this number of lines.
        for number in 1..=MAX_ROTATED {
            let aside = PathBuf::from(format!("{}.{number}", path.display()));
            if lines.len() >= args.lines || !aside.exists() {
                break;
            }
            let (mut before, _) =
                last_lines(&aside, args.lines - lines.len(), wants).map_err(reading)?;
            before.append(&mut lines);
            lines = before;
        }
        let name = several.then_some(name);
        for line in lines {
            print(args, name.as_deref(), &line, is_plain);
        }
        shown.push(Shown { name, path, slot, is_plain, reader, partial: String::new() });
    }
    if args.follow || (are_live && !args.nostream) {
        follow(args, shown, input);
    }
    Ok(())
}

/// Prints new lines until standard output is closed, or there is no further input.
fn follow(args: &Logs, mut shown: Vec<Shown>, input: Option<&Input>) {
    if let Some(input) = input {
        let _ = input.begin.send(());
    }
    // When the input was over, and when the last line after it came.
    let mut end = None;
    loop {
        if end.is_none() && input.is_some_and(Input::is_over) {
            end = Some((Instant::now(), Instant::now()));
        }
        let mut quiet = true;
        for log in &mut shown {
            while let Some(line) = log.next() {
                quiet = false;
                if args.wants(&args.read(&line, log.is_plain), log.slot) {
                    print(args, log.name.as_deref(), &line, log.is_plain);
                }
            }
        }
        match &mut end {
            None if quiet => std::thread::sleep(POLL_INTERVAL),
            None => {}
            Some((over, last))
                if over.elapsed() >= LAST_LINES_LIMIT
                    || (quiet && last.elapsed() >= QUIET_AT_END) =>
            {
                return;
            }
            Some((_, last)) if !quiet => *last = Instant::now(),
            Some(_) => std::thread::sleep(QUIET_AT_END / 10),
        }
    }
}

/// Input that another thread passes on to a worker while its output is followed.
pub(crate) struct Input {
    /// Told when lines that follow are shown.
    pub(crate) begin: Sender<()>,
    /// Told when the input is over and was passed on, which ends the output.
    pub(crate) over: Receiver<()>,
}

impl Input {
    fn is_over(&self) -> bool {
        self.over.try_recv().is_ok()
    }
}

impl Logs {
    /// Whether only what the program wrote is shown.
    fn is_raw(&self) -> bool {
        self.raw && !self.json
    }

    fn read(&self, line: &str, is_plain: bool) -> Entry {
        if self.is_raw() && is_plain { Entry::plain(line) } else { line::read(line) }
    }

    /// Whether a line is shown, of a file that may be of one slot.
    fn wants(&self, entry: &Entry, slot: Option<u32>) -> bool {
        if self.is_raw() && entry.stream == "event" {
            return false;
        }
        let by_stream = match (self.err, self.out) {
            (true, false) => entry.stream == "err",
            (false, true) => entry.stream == "out",
            _ => true,
        };
        by_stream && self.slot.is_none_or(|wanted| entry.slot.or(slot) == Some(wanted))
    }
}

fn print(args: &Logs, name: Option<&str>, line: &str, is_plain: bool) {
    let shown =
        if !std::io::stdout().is_terminal() { line.into() } else { text::terminal_line(line) };
    let result = match (args.json, name) {
        (true, name) => {
            let entry = line::read(line);
            let mut value = serde_json::to_value(&entry).unwrap_or_default();
            if let Some(name) = name {
                value["app"] = name.into();
            }
            print::json(&value)
        }
        (false, _) if args.raw => print::raw(&args.read(line, is_plain).text),
        (false, Some(name)) => print::raw(&format!("{name}: {shown}")),
        (false, None) => print::raw(&shown),
    };
    if result.is_err() {
        // Standard output is closed.
        #[expect(clippy::exit, reason = "as every filter does whose reader leaves")]
        std::process::exit(0);
    }
}

/// Returns the last lines and the open file at their end. A missing file counts as empty.
#[expect(clippy::type_complexity)]
fn last_lines(
    path: &Path,
    count: usize,
    wants: impl Fn(&str) -> bool,
) -> std::io::Result<(VecDeque<String>, Option<(BufReader<File>, u64)>)> {
    let mut file = match open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok((VecDeque::new(), None)),
        Err(e) => return Err(e),
    };
    let (len, inode) = (file.metadata()?.len(), file.metadata()?.ino());
    let (mut start, mut bytes, mut lines) = (len, Vec::new(), VecDeque::new());
    while start > 0 && lines.len() < count {
        let size = READ_SIZE.min(start);
        start -= size;
        let mut block = vec![0; usize::try_from(size).unwrap_or_default()];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut block)?;
        block.append(&mut bytes);
        // The first line may be incomplete.
        let whole = if start == 0 {
            0
        } else {
            memchr::memchr(b'\n', &block).map_or(block.len(), |at| at + 1)
        };
        let text = String::from_utf8_lossy(&block[whole..]).into_owned();
        for line in text.lines().rev().filter(|line| wants(line)) {
            if lines.len() < count {
                lines.push_front(line.to_owned());
            }
        }
        block.truncate(whole);
        // Of a line that is too long, the beginning is shown.
        block.truncate(MAX_LINE);
        bytes = block;
    }
    file.seek(SeekFrom::Start(len))?;
    Ok((lines, Some((BufReader::new(file), inode))))
}

impl Shown {
    /// Returns the next whole line, also from the file that has replaced this one.
    fn next(&mut self) -> Option<String> {
        if self.reader.is_none() {
            self.reader = opened(&self.path);
        }
        let (reader, inode) = self.reader.as_mut()?;
        let mut bytes = Vec::new();
        let room = MAX_LINE.saturating_sub(self.partial.len()).max(1) as u64;
        let read = reader.by_ref().take(room).read_until(b'\n', &mut bytes).ok()?;
        self.partial.push_str(&String::from_utf8_lossy(&bytes));
        // A line that is too long is returned in pieces.
        if self.partial.ends_with('\n') || self.partial.len() >= MAX_LINE {
            let line = std::mem::take(&mut self.partial);
            return Some(line.trim_end_matches('\n').to_owned());
        }
        if read == 0 {
            let found = self.path.metadata().ok();
            let is_other = found.as_ref().is_some_and(|found| found.ino() != *inode);
            let is_cut = found
                .is_some_and(|found| reader.stream_position().is_ok_and(|at| at > found.len()));
            if is_other || is_cut {
                // This file has been read to its end; continue with the next one.
                let next = if is_other { after(&self.path, *inode) } else { self.path.clone() };
                self.reader = opened(&next);
                return self.next();
            }
        }
        None
    }
}

/// Opens a log file, and rejects what another user may have put in its place: a link to another
/// file, or a pipe that blocks.
fn open(path: &Path) -> std::io::Result<File> {
    let (parent, name) = split(path)?;
    Directory::open(&parent, Safety::Links)?.read(&name)
}

fn opened(path: &Path) -> Option<(BufReader<File>, u64)> {
    let file = open(path).ok()?;
    let inode = file.metadata().ok()?.ino();
    Some((BufReader::new(file), inode))
}

/// Returns the file that followed this one after its rotation; it may have been rotated since.
fn after(path: &Path, inode: u64) -> PathBuf {
    let aside = |number: usize| PathBuf::from(format!("{}.{number}", path.display()));
    let mut found = (1..=MAX_ROTATED).take_while(|number| aside(*number).exists());
    let own =
        found.find(|number| aside(*number).metadata().is_ok_and(|found| found.ino() == inode));
    match own {
        Some(number @ 2..) => aside(number - 1),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn shown(path: PathBuf, reader: Option<(BufReader<File>, u64)>) -> Shown {
        Shown { name: None, path, slot: None, is_plain: false, reader, partial: String::new() }
    }

    #[test]
    fn the_last_lines_are_found_however_long_the_file_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.log");
        let text: String = (0..20_000)
            .map(|number| format!("line {number} {}\n", "x".repeat(number % 50)))
            .collect();
        std::fs::write(&path, &text).unwrap();
        let (lines, _) = last_lines(&path, 3, |_| true).unwrap();
        assert_eq!(lines, text.lines().skip(19_997).collect::<Vec<_>>());
        let (lines, _) = last_lines(&path, 2, |line| line.starts_with("line 7 ")).unwrap();
        assert_eq!(lines, ["line 7 xxxxxxx"]);
        let (lines, _) = last_lines(&path, 100_000, |_| true).unwrap();
        assert_eq!(lines.len(), 20_000);
        let (lines, reader) = last_lines(&directory.path().join("none"), 3, |_| true).unwrap();
        assert!(lines.is_empty() && reader.is_none());
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.log");
        std::fs::write(
            &path,
            [b"a\n".to_vec(), vec![b'x'; 3 * MAX_LINE], b"\nb\n".to_vec()].concat(),
        )
        .unwrap();
        let (lines, _) = last_lines(&path, 9, |_| true).unwrap();
        assert_eq!((lines.len(), lines[0].as_str(), lines[2].as_str()), (3, "a", "b"));
        assert!(
            (MAX_LINE..MAX_LINE + READ_SIZE as usize).contains(&lines[1].len()),
            "{}",
            lines[1].len()
        );
        let mut log = shown(path.clone(), opened(&path));
        let lens: Vec<usize> = std::iter::from_fn(|| log.next()).map(|line| line.len()).collect();
        assert_eq!(lens, [1, MAX_LINE, MAX_LINE, MAX_LINE, 0, 1]);
    }

    #[test]
    fn what_follows_is_shown_across_a_rotation() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.log");
        std::fs::write(&path, "a\nb").unwrap();
        let (_, reader) = last_lines(&path, 0, |_| true).unwrap();
        let mut log = shown(path.clone(), reader);
        let append = |path: &Path, text: &str| {
            std::fs::OpenOptions::new()
                .append(true)
                .create(true)
                .open(path)
                .unwrap()
                .write_all(text.as_bytes())
                .unwrap();
        };
        append(&path, "c\nd");
        assert_eq!((log.next(), log.next()), (Some("c".into()), None));
        append(&path, "e\n");
        std::fs::rename(&path, directory.path().join("app.log.1")).unwrap();
        append(&path, "f\n");
        assert_eq!(
            (log.next(), log.next(), log.next()),
            (Some("de".into()), Some("f".into()), None)
        );
    }
}
