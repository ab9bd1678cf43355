//! `troop run` with several apps: each has a primary of its own, whose output gets the app's name as
//! its prefix.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead as _, BufReader, IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, getpid, kill_process, pidfd_open, wait,
};
use troop::snapshot::Phase;
use troop::text;

use crate::control::client::Client;
use crate::records::keeper::ID_VARIABLE;
use crate::records::listed;
use crate::start::Planned;
use crate::{log, names, resolve, start};

/// The variable by which a primary gets the app of the command line that it runs.
pub(crate) const VARIABLE: &str = "TROOP_RUN_ONLY";

/// Time within which two signals are one, as for an app alone.
const SAME_SIGNAL_TIME: Duration = Duration::from_millis(500);
/// Interval between checks whether an app is ready.
const READY_CHECK_INTERVAL: Duration = Duration::from_millis(50);
/// The longest line that is kept in one piece, in bytes.
const MAX_LINE: u64 = 64 * 1024;
/// Colours of the names on a terminal: all but black, white and red.
const COLOURS: [&str; 6] = ["36", "33", "32", "35", "34", "96"];
/// Signals that are passed on to all primaries; the first three end them.
const FORWARDED: [Signal; 5] = [Signal::TERM, Signal::INT, Signal::QUIT, Signal::HUP, Signal::USR1];

/// A primary that runs.
#[derive(Debug)]
struct Primary {
    name: String,
    /// The number of its group: those of a higher one start after it, and stop before it.
    group: usize,
    /// It has been sent the signal that ends all.
    is_told: bool,
}

/// The primaries that run.
#[derive(Debug, Default)]
struct Primaries {
    running: Mutex<BTreeMap<i32, Primary>>,
    /// The end of all was requested.
    is_ending: AtomicBool,
    /// The signal for it, and when it came.
    ending: Mutex<Option<(Signal, Instant)>>,
    /// Apps that have failed.
    failed: Mutex<BTreeSet<String>>,
}

fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Primaries {
    fn running(&self) -> MutexGuard<'_, BTreeMap<i32, Primary>> {
        locked(&self.running)
    }

    fn signal(&self, signal: Signal) {
        if FORWARDED[..3].contains(&signal) {
            self.is_ending.store(true, Ordering::Release);
        }
        if FORWARDED[..2].contains(&signal) {
            let mut ending = locked(&self.ending);
            match *ending {
                None => {
                    *ending = Some((signal, Instant::now()));
                    drop(ending);
                    return self.end_next();
                }
                // One that comes twice, to this process and to its group.
                Some((_, at)) if at.elapsed() < SAME_SIGNAL_TIME => return,
                Some(_) => {}
            }
        }
        for pid in self.running().keys().filter_map(|pid| Pid::from_raw(*pid)) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Has those end that start last of what still runs, once the end of all was requested.
    fn end_next(&self) {
        let Some((signal, _)) = *locked(&self.ending) else { return };
        let mut running = self.running();
        let last = running.values().map(|primary| primary.group).max();
        for (pid, primary) in running.iter_mut().filter(|(_, of)| Some(of.group) == last) {
            if let (false, Some(pid)) = (primary.is_told, Pid::from_raw(*pid)) {
                let _ = kill_process(pid, signal);
            }
            primary.is_told = true;
        }
    }
}

/// Runs apps of the command line until all have ended. One that fails ends the others, unless they
/// are to `keep_going`.
pub(crate) fn run(apps: &[Planned], keep_going: bool) -> ExitCode {
    let mut is_valid = true;
    let mut timeouts = Vec::new();
    for app in apps {
        let mut one = app.run.clone();
        if !app.choice.app.is_empty() {
            one.only = vec![app.choice.app.clone()];
        }
        match resolve::resolve(one, None) {
            Ok((resolved, _)) => timeouts.push(start::start_timeout(&resolved)),
            Err(text) => {
                log::line(&format!("troop: {text}"));
                is_valid = false;
            }
        }
    }
    if !is_valid {
        // As for one app.
        return ExitCode::from(2);
    }
    match try_run(apps, &timeouts, keep_going) {
        Ok(code) => code,
        Err(e) => {
            log::line(&format!("troop: cannot run several apps: {e}"));
            ExitCode::FAILURE
        }
    }
}

/// Returns the names before the lines of apps. Apps of one name get numbers, as they do as apps.
fn shown(apps: &[Planned]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for app in apps {
        let name = app.name();
        let mut numbers = 2..;
        let mut numbered = name.clone();
        while names.contains(&numbered) {
            numbered = names::numbered(&name, numbers.next().unwrap_or_default());
        }
        names.push(numbered);
    }
    names
}

fn try_run(apps: &[Planned], timeouts: &[Duration], keep_going: bool) -> io::Result<ExitCode> {
    let primaries = Primaries::default();
    let readers = Mutex::new(Vec::new());
    let mut pipes = Vec::new();
    for signal in FORWARDED {
        let (read, write) = UnixStream::pair()?;
        signal_hook::low_level::pipe::register(signal.as_raw(), write)?;
        pipes.push((signal, read));
    }
    let code = std::thread::scope(|scope| {
        // The threads end when the other ends of their pipes are closed.
        let ends: Vec<_> = pipes.iter().map(|(_, read)| read.try_clone()).collect();
        for (signal, mut read) in pipes {
            let primaries = &primaries;
            scope.spawn(move || {
                while matches!(read.read(&mut [0; 1]), Ok(1)) {
                    primaries.signal(signal);
                }
            });
        }
        let starting = scope.spawn(|| start_all(apps, timeouts, &primaries, &readers));
        let code = wait_for_all(&primaries, keep_going, || starting.is_finished());
        for end in ends.into_iter().flatten() {
            let _ = end.shutdown(std::net::Shutdown::Both);
        }
        match starting.join() {
            Ok(Err(e)) => {
                log::line(&format!("troop: cannot start an app: {e}"));
                ExitCode::FAILURE
            }
            _ => code,
        }
    });
    for reader in readers.into_inner().unwrap_or_else(PoisonError::into_inner) {
        let _: Result<(), _> = JoinHandle::join(reader);
    }
    Ok(code)
}

/// Has this primary stop when the process that runs it together with others has ended, however that
/// was: nobody else would stop it.
pub(crate) fn stop_with_parent() {
    let parent = troop::keeper::starter().and_then(|pid| Pid::from_raw(pid.cast_signed()));
    let parent = parent.and_then(|parent| pidfd_open(parent, PidfdFlags::empty()).ok());
    let Some(parent) = parent else { return };
    let watch = move || {
        while poll(&mut [PollFd::new(&parent, PollFlags::IN)], None) == Err(Errno::INTR) {}
        let _ = kill_process(getpid(), Signal::TERM);
    };
    // Without a thread the primary goes on alone, as it would without its parent.
    let _ = std::thread::Builder::new().name("troop-parent".into()).spawn(watch);
}

/// Starts the primaries, each group of apps when the one before is ready. `timeouts` has the times that
/// the others wait for each one.
fn start_all(
    apps: &[Planned],
    timeouts: &[Duration],
    primaries: &Primaries,
    readers: &Mutex<Vec<JoinHandle<()>>>,
) -> io::Result<()> {
    let names = shown(apps);
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    let ids = listed::free_ids(apps.len());
    let numbers = start::numbers(apps);
    let mut before: Vec<usize> = Vec::new();
    for (number, group) in start::groups(&numbers).into_iter().enumerate() {
        before.iter().for_each(|at| wait_until_ready(&names[*at], timeouts[*at], primaries));
        for at in &group {
            let mut running = primaries.running();
            if primaries.is_ending.load(Ordering::Acquire) {
                return Ok(());
            }
            let mut failed = locked(&primaries.failed);
            let needed = numbers[*at].iter().map(|at| &names[*at]);
            if let Some(needed) = needed.clone().find(|name| failed.contains(*name)) {
                log::line(&format!(
                    "troop: {}: not started, because {needed} has failed",
                    names[*at]
                ));
                failed.insert(names[*at].clone());
                continue;
            }
            drop(failed);
            let choice = apps[*at].choice.encode();
            let spawned = spawn(&names[*at], &choice, width, *at, ids[*at]);
            let (pid, streams) = spawned.inspect_err(|_| {
                primaries.is_ending.store(true, Ordering::Release);
                running.keys().filter_map(|pid| Pid::from_raw(*pid)).for_each(|pid| {
                    let _ = kill_process(pid, Signal::TERM);
                });
            })?;
            let name = names[*at].clone();
            running.insert(pid, Primary { name, group: number, is_told: false });
            readers.lock().unwrap_or_else(PoisonError::into_inner).extend(streams);
        }
        before = group;
    }
    Ok(())
}

/// Starts one primary. Returns its process, and the threads that pass its output on.
fn spawn(
    name: &str,
    choice: &str,
    width: usize,
    at: usize,
    id: u32,
) -> io::Result<(i32, Vec<JoinHandle<()>>)> {
    let mut child = Command::new("/proc/self/exe")
        .arg0("troop")
        .args(std::env::args_os().skip(1))
        .env(VARIABLE, choice)
        .env(ID_VARIABLE, id.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let prefix = |is_terminal: bool| prefix(name, width, at, is_terminal);
    let out = child.stdout.take();
    let out = out.map(|out| pass_on(out, io::stdout(), prefix(io::stdout().is_terminal())));
    let err = child.stderr.take();
    let err = err.map(|err| pass_on(err, io::stderr(), prefix(io::stderr().is_terminal())));
    Ok((child.id().cast_signed(), out.into_iter().chain(err).collect()))
}

/// Waits until an app is ready, or has ended, or takes longer than a start may.
fn wait_until_ready(name: &str, timeout: Duration, primaries: &Primaries) {
    let deadline = Instant::now() + timeout;
    while Instant::now() < deadline {
        let is_running = primaries.running().values().any(|running| running.name == name);
        if !is_running || primaries.is_ending.load(Ordering::Acquire) {
            return;
        }
        let client = Client::connect(name).ok().flatten();
        let snapshot = client.and_then(|mut client| client.snapshot().ok());
        if snapshot.is_some_and(|app| app.snapshot.phase == Phase::Running) {
            return;
        }
        std::thread::sleep(READY_CHECK_INTERVAL);
    }
    log::line(&format!("troop: {name} is not ready after {timeout:.0?}; the others start"));
}

/// Waits for all primaries, and reaps what else has become a child of this process. Returns the exit
/// code of the first one that has failed.
fn wait_for_all(
    primaries: &Primaries,
    keep_going: bool,
    are_started: impl Fn() -> bool,
) -> ExitCode {
    let mut failed = None;
    loop {
        // In this order: the last one that is started is in the list before the start is over.
        let is_last = are_started();
        if is_last && primaries.running().is_empty() {
            break;
        }
        let Ok(Some((pid, status))) = wait(WaitOptions::empty()) else {
            // There is no child yet.
            std::thread::sleep(READY_CHECK_INTERVAL);
            continue;
        };
        let code = code(status);
        let ended = {
            // An app that waits for this one finds out at once whether it has failed.
            let mut running = primaries.running();
            let ended = running.remove(&pid.as_raw_nonzero().get());
            locked(&primaries.failed)
                .extend(ended.iter().filter(|_| code != 0).map(|of| of.name.clone()));
            ended
        };
        let Some(Primary { name, .. }) = ended else { continue };
        primaries.end_next();
        if code == 0 {
            continue;
        }
        failed.get_or_insert(code);
        let others = !primaries.running().is_empty();
        let is_first = !primaries.is_ending.load(Ordering::Acquire);
        if others && is_first {
            let then = if keep_going { "the others go on" } else { "the others end too" };
            log::line(&format!("troop: {name} has failed with exit code {code}; {then}"));
        }
        if is_first && !keep_going {
            primaries.signal(Signal::TERM);
        }
    }
    ExitCode::from(failed.unwrap_or(0))
}

/// Returns the exit code of a process, as a shell does.
fn code(status: WaitStatus) -> u8 {
    let code = status.exit_status().or_else(|| Some(128 + status.terminating_signal()?));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

fn prefix(name: &str, width: usize, at: usize, is_terminal: bool) -> String {
    match is_terminal {
        true => format!("\x1b[{}m{name:<width$} |\x1b[0m ", COLOURS[at % COLOURS.len()]),
        false => format!("{name:<width$} | "),
    }
}

/// Passes the lines of a stream on.
fn pass_on(
    from: impl Read + Send + 'static,
    mut to: impl Write + IsTerminal + Send + 'static,
    prefix: String,
) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        loop {
            line.clear();
            match from.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            let end = line.strip_suffix(b"\n").unwrap_or(&line);
            let mut whole = prefix.clone().into_bytes();
            if to.is_terminal() {
                whole.extend(text::terminal_line(&String::from_utf8_lossy(end)).bytes());
            } else {
                whole.extend(end);
            }
            whole.push(b'\n');
            // A reader that has gone away ends nothing.
            let _ = to.write_all(&whole).and_then(|()| to.flush());
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_prefixes_of_one_width_and_coloured_on_a_terminal() {
        assert_eq!(prefix("web", 4, 0, false), "web  | ");
        assert_eq!(prefix("jobs", 4, 7, true), "\x1b[33mjobs |\x1b[0m ");
    }
}
