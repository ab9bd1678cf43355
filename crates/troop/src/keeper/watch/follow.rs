//! What follows the end of an engine: another one, or the end of the app.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use troop_sys::keeping;
use troop_sys::process::{self, Exit};

use super::super::link::SetAside;
use super::super::{MAX_UNREADY, SCARCE, UNTIL_END};
use super::{ENDING, Engine, Keeper, SIGTERM, STATE, Start};

const SIGKILL: i32 = 9;

/// How long an engine runs that does not die in a loop, from when it is ready on.
const LONG_RUN: Duration = Duration::from_millis(250);
/// Delays before another engine is started, the last one for all that follow.
const DELAYS_MS: [u64; 6] = [0, 0, 100, 500, 1000, 2000];
/// The same after one that was killed, or had no room, before it was ready.
const ROOMLESS_DELAYS_MS: [u64; 5] = [100, 500, 1000, 2000, 5000];
/// How many such engines may follow each other, which takes two minutes: then it may be the state all
/// the same, which needs more memory than there is.
const MAX_ROOMLESS: u32 = 30;
/// Delays before a start is tried again for which there was no room, the last one for all that follow.
const RETRIES_MS: [u64; 4] = [1, 10, 100, 500];
const LAST_RETRY_MS: u64 = 1000;

/// Time that workers have to end after an engine that no other one follows, and to be gone when they are
/// killed then.
const WORKERS_TIMEOUT: Duration = Duration::from_secs(5);
const KILL_TIMEOUT: Duration = Duration::from_secs(3);

fn delay(delays: &[u64], nth: u32) -> u64 {
    delays.get(nth as usize).or(delays.last()).copied().unwrap_or(0)
}

impl Keeper {
    /// Starts another engine if this one was killed, and there is a state to go on with. An engine that is
    /// about to end has that closed before. Returns whether there is another one.
    pub(super) fn restart(&mut self, exit: Exit) -> bool {
        // The state kills nobody, and does not take what others have.
        let is_roomless = self.engine.is_wanting || exit == Exit::Signal(SIGKILL);
        match (self.engine.catches_signals, is_roomless) {
            (true, _) => (self.unready, self.roomless) = (0, 0),
            (false, true) => self.roomless += 1,
            (false, false) => self.unready += 1,
        }
        let has_run_long = self.ready.is_some_and(|since| since.elapsed() >= LONG_RUN);
        self.quick = if has_run_long { 0 } else { self.quick + 1 };
        if self.unready >= MAX_UNREADY || self.roomless >= MAX_ROOMLESS {
            if self.is_rebuilding {
                return self.set_aside(exit);
            }
            // So it is the state that ends them. Most of it is not needed to go on with the workers.
            self.is_rebuilding = true;
        }
        let Some(image) = self.image.as_ref().filter(|_| self.held.contains_key(&STATE)) else {
            return false;
        };
        let program = format!("/proc/self/fd/{}", image.as_raw_fd());
        self.pause(match self.roomless {
            0 => delay(&DELAYS_MS, self.quick),
            many => delay(&ROOMLESS_DELAYS_MS, many - 1),
        });
        let what = if self.is_rebuilding { Start::Rebuilding } else { Start::Usual };
        let Some(engine) = self.start_engine(Path::new(&program), &what) else { return false };
        self.replace_engine(engine);
        (self.crashes, self.crash) = (self.crashes.saturating_add(1), Some(exit));
        true
    }

    /// What the engine that goes on is to tell of those before it.
    pub(super) fn missed(&self) -> String {
        if self.is_rebuilding {
            return format!(
                "{} engines in a row had ended before they were ready, so this one has taken nothing of what they had left but workers and addresses",
                self.unready.max(self.roomless)
            );
        }
        match self.roomless {
            0 => String::new(),
            many => format!(
                "{many} in a row were killed before they were ready, or had no memory, processes or descriptors left"
            ),
        }
    }

    /// Waits, but not if the app is to end. Signals that come meanwhile wait.
    fn pause(&mut self, ms: u64) {
        let until = Instant::now() + Duration::from_millis(ms);
        loop {
            while let Some(signal) = self.signals.next() {
                self.pass_on(signal);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.waiting.iter().any(|signal| ENDING.contains(signal)) {
                return;
            }
            let left = u64::try_from(left.as_millis()).unwrap_or(u64::MAX).saturating_add(1);
            let _ = keeping::wait(&[self.signals.as_fd()], Some(left));
        }
    }

    /// Not even with little of the state was there an engine that was ready: the next one starts
    /// afresh. Workers end with their channels, or are told to. Returns whether there is another one.
    fn set_aside(&mut self, exit: Exit) -> bool {
        let Some(image) = self.image.as_ref().filter(|_| self.held.contains_key(&STATE)) else {
            return false;
        };
        self.crashes = self.crashes.saturating_add(1);
        let set_aside = SetAside { crashes: self.crashes, how: exit.to_string() };
        let program = format!("/proc/self/fd/{}", image.as_raw_fd());
        self.let_all_go();
        signal_children(SIGTERM);
        let what = Start::Afresh(&set_aside);
        let Some(engine) = self.start_engine(Path::new(&program), &what) else { return false };
        self.replace_engine(engine);
        true
    }

    /// Starts an engine in place of one that has ended. As long as there can be no more processes it is
    /// tried again. `None` if it cannot be started at all, or the app is to end.
    fn start_engine(&mut self, program: &Path, what: &Start<'_>) -> Option<Engine> {
        for delay in RETRIES_MS.iter().chain(std::iter::repeat(&LAST_RETRY_MS)) {
            match Engine::start(program, what, &self.before) {
                Ok(engine) => return Some(engine),
                Err(e) if is_scarce(&e) => {}
                Err(_) => return None,
            }
            // These count, too. The next engine does not hear of them.
            reap_children();
            while let Some(signal) = self.signals.next() {
                if ENDING.contains(&signal) {
                    return None;
                }
                self.pass_on(signal);
            }
            let _ = keeping::wait(&[self.signals.as_fd()], Some(*delay));
        }
        None
    }

    /// Another engine goes on. What the former one was told and has not done is for this one.
    fn replace_engine(&mut self, engine: Engine) {
        (self.engine, self.told, self.ready) = (engine, None, None);
        self.engine.is_resuming = true;
        for signal in std::mem::take(&mut self.unobeyed) {
            self.await_catching(signal);
        }
        if self.held.keys().any(|key| *key >= UNTIL_END) {
            // Somebody has told the former one to end, and waits for that.
            self.await_catching(SIGTERM);
        }
    }

    /// Ends what the engine has left that was killed, if no other one goes on: at its start, or its end.
    pub(super) fn end_children(&mut self, exit: Exit) {
        let is_whole = self.has_held || !self.engine.catches_signals;
        if !matches!(exit, Exit::Signal(_)) || !is_whole {
            return;
        }
        signal_children(SIGTERM);
        let (begun, mut killed) = (Instant::now(), None::<Instant>);
        loop {
            reap_children();
            if keeping::children().is_empty()
                || killed.is_some_and(|at| at.elapsed() >= KILL_TIMEOUT)
            {
                return;
            }
            let mut is_hurried = begun.elapsed() >= WORKERS_TIMEOUT;
            while let Some(signal) = self.signals.next() {
                is_hurried |= ENDING.contains(&signal);
            }
            if is_hurried || killed.is_some() {
                // Those that these have started become children of this process.
                signal_children(SIGKILL);
                killed.get_or_insert_with(Instant::now);
            }
            let _ = keeping::wait(&[self.signals.as_fd()], Some(50));
        }
    }
}

fn reap_children() {
    while let Some((pid, _)) = keeping::ended_child() {
        process::reap_child(pid);
    }
}

fn signal_children(signal: i32) {
    for child in keeping::children() {
        if let Ok(child) = process::pidfd(child) {
            let _ = process::signal(child.as_fd(), signal);
        }
    }
}

/// Whether there may be room later.
fn is_scarce(error: &io::Error) -> bool {
    Errno::from_io_error(error).is_some_and(|errno| SCARCE.contains(&errno))
}
