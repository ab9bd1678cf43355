//! What happens while `start`, `reload`, `restart` and `scale` work: which workers start and drain, and for
//! how long.
//!
//! On a terminal that is one line, which is rewritten and goes at the end; elsewhere it is a line for each
//! change. What is done within a second is not told of.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use troop::snapshot::{Snapshot, WorkerSnapshot};
use troop::text::escaped;

use super::show::serving;
use crate::control::client::Client;

/// Time after which something is told of.
const AFTER: Duration = Duration::from_secs(1);
/// Interval at which the app is asked.
const INTERVAL: Duration = Duration::from_millis(250);
/// Time in which it has to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// The most workers that are named in the line of a terminal, of each kind.
const MAX_NAMED: usize = 3;
/// The width of a terminal that does not tell it.
const WIDTH: usize = 80;

/// How a worker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Starting,
    Ready,
    Draining,
}

impl State {
    fn of(worker: &WorkerSnapshot) -> State {
        match (worker.leaving_ms, worker.ready) {
            (Some(_), _) => State::Draining,
            (None, Some(false)) => State::Starting,
            (None, _) => State::Ready,
        }
    }
}

/// Workers as they were seen last, by their numbers: how they are, and since when.
#[derive(Debug, Default)]
struct Seen(BTreeMap<u32, (State, Instant)>);

impl Seen {
    /// Notes how the workers are, and returns what has changed, as lines.
    fn note(&mut self, now: Instant, snapshot: &Snapshot) -> Vec<String> {
        let mut lines = Vec::new();
        let mut current = BTreeMap::new();
        for worker in &snapshot.workers {
            let (id, state) = (worker.id.0, State::of(worker));
            let before = self.0.remove(&id);
            let since = match before {
                Some((same, since)) if same == state => since,
                // It may be older than this.
                None if state == State::Starting => {
                    now.checked_sub(Duration::from_millis(worker.age_ms)).unwrap_or(now)
                }
                _ => now,
            };
            current.insert(id, (state, since));
            match (before.map(|(state, _)| state), state) {
                (Some(same), state) if same == state => {}
                (_, State::Starting) => lines.push(format!("worker {id} is starting")),
                (Some(State::Starting), State::Ready) => {
                    let age = Duration::from_millis(worker.age_ms);
                    lines.push(format!("worker {id} is ready after {}", seconds(age)));
                }
                (_, State::Draining) => {
                    let left = Duration::from_millis(worker.leaving_ms.unwrap_or_default());
                    lines.push(format!("worker {id} is draining, {} left", seconds(left)));
                }
                (_, State::Ready) => {}
            }
        }
        for (id, (state, since)) in std::mem::replace(&mut self.0, current) {
            let time = seconds(now.duration_since(since));
            match state {
                State::Draining => lines.push(format!("worker {id} has drained in {time}")),
                State::Starting => lines.push(format!("worker {id} has ended before it was ready")),
                State::Ready => {}
            }
        }
        lines
    }

    /// Returns the line of a terminal.
    fn line(&self, now: Instant, app: &str, snapshot: &Snapshot) -> String {
        let wanted = snapshot.wanted.unwrap_or(snapshot.workers.len());
        let mut line = format!("{app}: {}/{wanted} ready", serving(snapshot));
        for (state, word) in [(State::Starting, "starting"), (State::Draining, "draining")] {
            let mut of_it: Vec<_> =
                self.0.iter().filter(|(_, (found, _))| *found == state).collect();
            // The one that takes longest comes first.
            of_it.sort_by_key(|(_, (_, since))| *since);
            for (at, (id, (_, since))) in of_it.iter().take(MAX_NAMED).enumerate() {
                let sign = if at == 0 { format!("; {word}:") } else { ",".into() };
                let _ = write!(line, "{sign} worker {id} {}", seconds(now.duration_since(*since)));
            }
            if of_it.len() > MAX_NAMED {
                let _ = write!(line, " and {} more", of_it.len() - MAX_NAMED);
            }
        }
        let waiting = snapshot.vacant.iter().filter_map(|slot| Some((slot, slot.retry_ms?)));
        if let Some((slot, ms)) = waiting.min_by_key(|(_, ms)| *ms) {
            let (number, ends) = (slot.slot, slot.quick_ends);
            let time = seconds(Duration::from_millis(ms));
            let _ = write!(line, "; slot {number} starts again in {time}, after {ends} quick ends");
        }
        line
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// What the threads share.
#[derive(Debug)]
struct Shared {
    is_over: bool,
    /// Whether a line is on the terminal that has to go.
    is_shown: bool,
}

/// Tells how the workers of an app are, until it goes.
pub(crate) struct Progress {
    shared: Arc<Mutex<Shared>>,
}

impl Progress {
    /// Begins to tell of an app, unless its verb prints JSON. Where changes are `told` of by others, only
    /// terminals get a line.
    pub(crate) fn begin(app: &str, json: bool, told: bool) -> Progress {
        let shared = Arc::new(Mutex::new(Shared { is_over: false, is_shown: false }));
        let is_terminal = std::io::stderr().is_terminal();
        if !json && (is_terminal || !told) {
            let (app, shared) = (app.to_owned(), shared.clone());
            // Without a thread nothing is told.
            let _ = std::thread::Builder::new()
                .name("troop-progress".into())
                .spawn(move || watch(&app, &shared, is_terminal));
        }
        Progress { shared }
    }

    /// Prints a line on standard error, above the one that is rewritten.
    pub(crate) fn line(&self, line: &str) {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        clear(&mut shared);
        let _ = writeln!(std::io::stderr().lock(), "{line}");
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.is_over = true;
        clear(&mut shared);
    }
}

fn clear(shared: &mut Shared) {
    if std::mem::take(&mut shared.is_shown) {
        let mut err = std::io::stderr().lock();
        let _ = write!(err, "\r\x1b[K").and_then(|()| err.flush());
    }
}

/// Asks the app again and again, and tells what it says.
fn watch(app: &str, shared: &Mutex<Shared>, is_terminal: bool) {
    std::thread::sleep(AFTER);
    let mut seen = Seen::default();
    loop {
        // Another process may go on with it.
        let found = Client::connect(app).ok().flatten();
        let found = found.and_then(|mut client| client.snapshot_within(ANSWER_TIMEOUT).ok());
        let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
        if shared.is_over {
            return;
        }
        if let Some(found) = found {
            let now = Instant::now();
            let lines = seen.note(now, &found.snapshot);
            let mut err = std::io::stderr().lock();
            let _ = if is_terminal {
                shared.is_shown = true;
                let width = terminal_size::terminal_size_of(&err)
                    .map_or(WIDTH, |(width, _)| usize::from(width.0));
                let line = seen.line(now, app, &found.snapshot);
                write!(err, "\r{:.1$}\x1b[K", escaped(&line), width.saturating_sub(1))
            } else {
                lines.iter().try_for_each(|line| writeln!(err, "{}: {line}", escaped(app)))
            }
            .and_then(|()| err.flush());
        }
        drop(shared);
        std::thread::sleep(INTERVAL);
    }
}
