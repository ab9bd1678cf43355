//! Reads files that may be hostile: not regular, endless, deeply nested, or writable by others
//! while root reads them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use troop::program::safe_path::{Weak, open_for_reading};
use troop::text::escaped;

/// The size limit of a file, and of the output of a program that stands for one.
pub(crate) const MAX_BYTES: u64 = 1024 * 1024;
/// The depth limit of YAML and JSON5 files; the parsers of JSON and TOML have their own.
const MAX_DEPTH: usize = 128;
/// Time limit for parsing a file.
const PARSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Time limit for a file that is a program.
const RUN_TIMEOUT: Duration = Duration::from_secs(10);
/// Time limit for all files of an app, including those that are executed.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(12);
/// The most characters of a line that an error shows.
const MAX_SHOWN: usize = 160;

/// Whether this process is root, for which files that others can change are a danger.
fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Opens a file. Pipes are read only if this process already has them: `/dev/stdin`, `/dev/fd/3`.
fn open(file: &Path) -> io::Result<(File, Vec<Weak>)> {
    let is_below = |own: &&str| {
        file.starts_with(own) && !file.components().any(|part| part == Component::ParentDir)
    };
    let is_own = ["/dev/stdin", "/dev/fd", "/proc/self/fd"].iter().any(is_below);
    // `/dev/null` is a common way to turn a file off.
    if is_own || file == Path::new("/dev/null") {
        Ok((File::open(file)?, Vec::new()))
    } else {
        open_for_reading(file, MAX_BYTES)
    }
}

/// Runs work on files that may be on a file system that never answers, with a time limit.
///
/// # Errors
/// Those of the work, and that the time limit was exceeded.
pub(crate) fn answered<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let work = Arc::new(Mutex::new(Some(work)));
    let its_work = work.clone();
    let done = troop::program::within::within(ANSWER_TIMEOUT, move || match taken(&its_work) {
        Some(work) => Ok(work()),
        None => Err(io::ErrorKind::Other.into()),
    });
    match (done, taken(&work)) {
        (Ok(result), _) => result,
        // No thread could be started.
        (Err(_), Some(work)) => work(),
        (Err(e), None) if e.kind() == io::ErrorKind::TimedOut => Err(format!(
            "a file or directory of the app has not answered for {} s (a dead mount?)",
            ANSWER_TIMEOUT.as_secs()
        )),
        (Err(e), None) => Err(format!("cannot look at the app's files: {e}")),
    }
}

fn taken<T>(work: &Mutex<Option<T>>) -> Option<T> {
    work.lock().unwrap_or_else(PoisonError::into_inner).take()
}

fn read(file: &Path) -> io::Result<(String, Vec<Weak>)> {
    let (opened, weak) = open(file)?;
    Ok((bounded(opened)?, weak))
}

/// Reads to the end, up to the size limit.
fn bounded(from: impl Read) -> io::Result<String> {
    let mut bytes = Vec::new();
    from.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("there are more than {MAX_BYTES} bytes"),
        ));
    }
    String::from_utf8(bytes)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8 text"))
}

/// Returns the text of a file.
///
/// # Errors
/// The reason, for people.
pub(crate) fn text(file: &Path) -> Result<String, String> {
    read(file).map(|(text, _)| text).map_err(|e| {
        let shown = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
        let shown = shown.display();
        match e.kind() {
            io::ErrorKind::NotFound if file == Path::new(super::DEFAULT_FILE) => {
                format!("there is no file {shown}; `troop init` writes one")
            }
            io::ErrorKind::NotFound => format!("there is no file {shown}"),
            _ => format!("cannot read {shown}: {e}"),
        }
    })
}

/// Returns what other users can change: the file and the directories on its path. Empty unless this
/// process is root.
pub(super) fn weak(file: &Path) -> Vec<Weak> {
    let found =
        if is_root() { open(file).map(|(_, weak)| weak).unwrap_or_default() } else { Vec::new() };
    // In a sticky directory users can replace only their own files, not root's.
    found.into_iter().filter(|weak| !weak.sticky).collect()
}

/// Returns a warning for each file that root reads and others can change.
pub(crate) fn warnings<'a>(files: impl IntoIterator<Item = &'a PathBuf>) -> Vec<String> {
    let weak: BTreeSet<_> =
        files.into_iter().flat_map(|file| weak(file)).map(|weak| (weak.path, weak.who)).collect();
    let warning = |(path, who): (PathBuf, String)| {
        format!(
            "{} can be changed by others ({who}), who so decide what root runs; chown root, chmod go-w",
            path.display()
        )
    };
    weak.into_iter().map(warning).collect()
}

/// Parses a text within the time limit.
pub(super) fn parsed<T: Send + 'static>(
    file: &Path,
    text: String,
    parse: impl FnOnce(&str) -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let shown = file.display();
    let (sender, result) = channel();
    let work = move || drop(sender.send(parse(&text)));
    let thread = std::thread::Builder::new().name("troop-config".into()).stack_size(8 << 20);
    thread.spawn(work).map_err(|e| format!("cannot read {shown}: {e}"))?;
    match result.recv_timeout(PARSE_TIMEOUT) {
        Ok(result) => result.map_err(|e| format!("{shown}: {}", concise(&e))),
        Err(RecvTimeoutError::Timeout) => {
            Err(format!("{shown} takes more than {} s to parse", PARSE_TIMEOUT.as_secs()))
        }
        Err(RecvTimeoutError::Disconnected) => Err(format!("cannot parse {shown}")),
    }
}

/// Shortens the lines of an error.
pub(super) fn concise(text: &str) -> String {
    let lines = text.trim_end().lines().map(|line| format!("{:.MAX_SHOWN$}", escaped(line)));
    lines.collect::<Vec<_>>().join("\n")
}

/// Parses YAML. Its parser takes quadratic time in the depth of brackets, so the depth is checked
/// first.
pub(super) fn yaml<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    check_depth(text)?;
    serde_yaml_ng::from_str(text).map_err(|e| e.to_string())
}

/// Checks the depth of brackets, for parsers without a limit of their own.
pub(super) fn check_depth(text: &str) -> Result<(), String> {
    let mut depth = 0_usize;
    for byte in text.bytes() {
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => continue,
        }
        if depth > MAX_DEPTH {
            return Err(format!("brackets are nested deeper than {MAX_DEPTH} levels"));
        }
    }
    Ok(())
}

/// Rejects, as root, the execution of a file that another user can change.
pub(crate) fn may_run(file: &Path) -> Result<(), String> {
    if !is_root() {
        return Ok(());
    }
    // What cannot be checked now may be another user's when it is executed.
    let (_, weak) = open_for_reading(file, u64::MAX)
        .map_err(|e| format!("cannot execute {}: {e}", file.display()))?;
    // As for files that are read.
    let Some(Weak { path, who, .. }) = weak.into_iter().rfind(|weak| !weak.sticky) else {
        return Ok(());
    };
    Err(format!(
        "{} is a program, which root does not run: {} can be changed by others ({who}); chown root and chmod go-w, or run troop as its owner",
        file.display(),
        path.display()
    ))
}

/// The result of a program that stands for a file.
pub(super) struct Printed {
    pub(super) is_success: bool,
    pub(super) out: String,
    pub(super) err: String,
}

/// Runs a program that stands for a file.
///
/// # Errors
/// The reason, for people.
pub(super) fn run(command: &mut Command) -> Result<Printed, String> {
    use std::os::unix::process::CommandExt as _;
    // A process group of its own, which can be killed as a whole.
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().map_err(|e| e.to_string())?;
    let mut child = ProcessGroup { child, is_reaped: false };
    let out = reader(child.child.stdout.take())?;
    let err = reader(child.child.stderr.take())?;
    let deadline = Instant::now() + RUN_TIMEOUT;
    let printed = |from: Receiver<io::Result<String>>| match from
        .recv_timeout(deadline.saturating_duration_since(Instant::now()))
    {
        Ok(printed) => printed.map_err(|e| format!("it prints too much, or no text: {e}")),
        Err(_) => Err(format!("it does not end within {} s", RUN_TIMEOUT.as_secs())),
    };
    let (out, err) = (printed(out)?, printed(err)?);
    loop {
        match child.child.try_wait().map_err(|e| e.to_string())? {
            Some(status) => {
                child.is_reaped = true;
                return Ok(Printed { is_success: status.success(), out, err });
            }
            None if Instant::now() >= deadline => {
                return Err(format!("it does not end within {} s", RUN_TIMEOUT.as_secs()));
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// Checks that a program runs, and is the one of this name: that it prints its name and version when it is
/// asked for that.
///
/// # Errors
/// The reason, for people: the last line that it has printed on standard error.
pub(crate) fn is_version_of(name: &str, command: &mut Command) -> Result<(), String> {
    let printed = run(command.arg("--version"))?;
    let is_own = printed.out.strip_prefix(name).is_some_and(|rest| rest.starts_with(' '));
    if printed.is_success && is_own {
        return Ok(());
    }
    if printed.is_success {
        return Err(format!("it is not {name}"));
    }
    let last = printed.err.lines().rfind(|line| !line.trim().is_empty());
    Err(concise(last.unwrap_or("it ends with a failure")))
}

/// A process and its children, which are killed when this is dropped.
struct ProcessGroup {
    child: Child,
    is_reaped: bool,
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        // Its number is not reused before it is reaped.
        if !self.is_reaped {
            let group = rustix::process::Pid::from_child(&self.child);
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

fn reader(
    pipe: Option<impl Read + Send + 'static>,
) -> Result<Receiver<io::Result<String>>, String> {
    let pipe = pipe.ok_or("it has no output")?;
    let (sender, read) = channel();
    let work = move || drop(sender.send(lossy(pipe)));
    std::thread::Builder::new()
        .name("troop-config".into())
        .spawn(work)
        .map_err(|e| e.to_string())?;
    Ok(read)
}

fn lossy(from: impl Read) -> io::Result<String> {
    let mut bytes = Vec::new();
    from.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("more than {MAX_BYTES} bytes"),
        ));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Result<Printed, String> {
        run(Command::new("sh").args(["-c", script]))
    }

    #[test]
    fn programs_that_stand_for_files_end_and_say_not_too_much() {
        let printed = sh("echo a; echo b >&2").unwrap();
        assert_eq!(
            (printed.is_success, printed.out.as_str(), printed.err.as_str()),
            (true, "a\n", "b\n")
        );
        assert!(!sh("exit 3").unwrap().is_success);
        let began = Instant::now();
        assert!(sh("yes").is_err_and(|e| e.contains("too much")) && began.elapsed() < RUN_TIMEOUT);
        assert!(run(&mut Command::new("/no/such/program")).is_err());
    }

    #[test]
    fn a_program_that_does_not_end_is_ended_with_all_that_it_has_started() {
        let directory = tempfile::tempdir().unwrap();
        let pids = directory.path().join("pids");
        let script = format!("sleep 1000 & echo $! $$ > {}; wait", pids.display());
        assert!(sh(&script).is_err_and(|e| e.contains("does not end")));
        let text = std::fs::read_to_string(pids).unwrap();
        for pid in text.split_whitespace().map(|pid| pid.parse().unwrap()) {
            troop_testkit::wait_until("its end", || !troop_testkit::is_running(pid));
        }
    }

    #[test]
    fn errors_are_short_however_long_the_line_is() {
        let directory = tempfile::tempdir().unwrap();
        let error = |name: &str, text: &str| {
            let file = directory.path().join(name);
            std::fs::write(&file, text).unwrap();
            let began = Instant::now();
            let e = super::super::read(&file).unwrap_err();
            assert!(
                began.elapsed() < PARSE_TIMEOUT && e.len() < 2000,
                "{name}: {:?}: {e:.2000}",
                began.elapsed()
            );
            e
        };
        let deep = 50_000;
        assert!(error("a.yml", &"[".repeat(deep)).contains("deeper than 128"));
        assert!(error("b.yml", &"{a: ".repeat(deep)).contains("deeper than 128"));
        error("c.yml", &"- ".repeat(deep));
        error("a.json", &"[".repeat(deep));
        error("a.toml", &format!("a = {}", "[".repeat(deep)));
        error("b.toml", &format!("a = {}", "{a=".repeat(deep)));
        error("c.toml", &format!("{}a = 1", "a.".repeat(deep)));
        error("d.toml", &format!("[{}a]", "a.".repeat(deep)));
        let laughs: String = ('b'..='k')
            .map(|c| {
                format!("{c}: &{c} [{}]\n", format!("*{},", char::from(c as u8 - 1)).repeat(9))
            })
            .collect();
        error("d.yml", &format!("a: &a [x]\n{laughs}"));
        for name in ["Procfile", "e.yml", "e.toml", "e.json"] {
            assert!(
                error(name, &format!("web: {}", "x ".repeat(5_000_000))).contains("bytes"),
                "{name}"
            );
        }
        error(
            "e.toml",
            &format!("[app.web]\nprogram = 'x'\ncpus = ['{}0']", "0-1023,".repeat(100_000)),
        );
    }

    #[test]
    fn files_that_are_not_regular_are_rejected_immediately() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, 0o600.into()).unwrap();
        let detour = Path::new("/dev/fd/../../..").join(pipe.strip_prefix("/").unwrap());
        let files = [
            (&*pipe, "a pipe"),
            (&*detour, "a pipe"),
            (Path::new("/dev/zero"), "a device"),
            (directory.path(), "a directory"),
        ];
        for (file, why) in files {
            let e = text(file).unwrap_err();
            assert!(e.contains(why) && e.contains(&file.display().to_string()), "{e}");
        }
        assert_eq!(text(Path::new("/dev/null")), Ok(String::new()));
        std::fs::write(directory.path().join("bytes"), b"\xff").unwrap();
        assert!(text(&directory.path().join("bytes")).is_err_and(|e| e.contains("UTF-8")));
    }
}
