//! What ended workers leave behind: processes of their group, and with `KillMode::Tree` those that
//! have the token in their environment. Another process searches, because the kernel may never
//! answer what it asks.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use troop_core::Time;
use troop_sys::LeftBehind;
use troop_sys::tree::{Found, MAX_TREES, ProcessTree, Search, Searcher};

use super::orphans::{KILL, KILL_DELAY, TERMINATE};
use crate::error::Error;
use crate::event::Event;
use crate::primary::driver::Driver;
use crate::primary::wake::{Command, DriverHandle};

/// Interval between searches while some of them run.
const INTERVAL: Duration = Duration::from_millis(250);
/// Maximum time of one search.
const MAX_TIME: Duration = Duration::from_secs(1);
/// Time within which the searching process answers: reading an environment may block for ever.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// Maximum number of processes that are left behind. Beyond it nothing is searched for.
const MAX_LEFT_BEHIND: usize = 4;
/// Time that a killed process has to end.
const KILL_TIMEOUT: Duration = Duration::from_millis(100);
/// The searching process ends after this time without a search.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);

/// The tree of one ended worker.
struct Strays {
    tree: ProcessTree,
    /// Whether they were sent `SIGTERM`.
    is_asked: bool,
    kill_at: Time,
}

impl Strays {
    /// The next search, and the signal that goes with it.
    fn search(&self, now: Time) -> Search {
        let signal = match self.is_asked {
            _ if self.kill_at <= now => Some(KILL),
            false => Some(TERMINATE),
            true => None,
        };
        // The worker's process group was sent it already.
        Search { tree: self.tree.clone(), signal, spares_group: signal == Some(TERMINATE) }
    }
}

/// A thread that has another process search. It ends when this is dropped.
struct SearchThread(mpsc::Sender<Vec<Search>>);

impl SearchThread {
    fn start(driver: DriverHandle) -> io::Result<SearchThread> {
        let (sender, orders) = mpsc::channel::<Vec<Search>>();
        let mut searches = Searches { searcher: None, left_behind: Vec::new() };
        let work = move || {
            loop {
                match orders.recv_timeout(IDLE_TIMEOUT) {
                    Ok(order) => {
                        let found = searches.search(&order);
                        if driver.send(Command::StraysFound(found)).is_err() {
                            return searches.end_searcher();
                        }
                    }
                    Err(RecvTimeoutError::Timeout) => searches.end_searcher(),
                    Err(RecvTimeoutError::Disconnected) => return searches.end_searcher(),
                }
            }
        };
        let thread = std::thread::Builder::new().name("troop-strays".into());
        thread.stack_size(256 * 1024).spawn(work)?;
        Ok(SearchThread(sender))
    }
}

/// What the thread has.
struct Searches {
    searcher: Option<Searcher>,
    left_behind: Vec<LeftBehind>,
}

impl Searches {
    fn search(&mut self, order: &[Search]) -> io::Result<Found> {
        self.left_behind.retain_mut(|process| !process.is_gone());
        if self.left_behind.len() >= MAX_LEFT_BEHIND {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let searcher = match self.searcher.take() {
            Some(searcher) => searcher,
            None => Searcher::start()?,
        };
        let found = searcher.search(order, MAX_TIME, ANSWER_TIMEOUT);
        self.searcher = Some(searcher);
        if found.is_err() {
            self.end_searcher();
        }
        found
    }

    fn end_searcher(&mut self) {
        let left = self.searcher.take().and_then(|searcher| searcher.leave(KILL_TIMEOUT));
        self.left_behind.extend(left);
    }
}

/// A search that is not answered yet.
struct UnderWay {
    /// The number of trees; they are the first ones.
    trees: usize,
    /// When those were to be killed that are killed by this search.
    kills: Time,
}

/// Those of all ended workers.
#[derive(Default)]
pub(super) struct AllStrays {
    of_workers: Vec<Strays>,
    thread: Option<SearchThread>,
    under_way: Option<UnderWay>,
    search_at: Option<Time>,
}

impl AllStrays {
    pub(super) fn is_empty(&self) -> bool {
        self.of_workers.is_empty()
    }

    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.search_at.filter(|_| self.under_way.is_none())
    }

    /// A worker has been reaped: what it has started is to end too.
    pub(super) fn end(&mut self, now: Time, tree: Option<ProcessTree>) {
        if let Some(tree) = tree {
            self.of_workers.push(Strays { tree, is_asked: false, kill_at: now + KILL_DELAY });
            self.search_at = Some(now);
        }
    }

    /// Begins a search that is due.
    fn tick(&mut self, now: Time, driver: &DriverHandle) -> io::Result<()> {
        if self.next_deadline().is_none_or(|at| at > now) {
            return Ok(());
        }
        self.search_at = None;
        let begun = self.begin(now, driver);
        if begun.is_err() {
            self.of_workers.clear();
        }
        begun
    }

    fn begin(&mut self, now: Time, driver: &DriverHandle) -> io::Result<()> {
        let thread = match &self.thread {
            Some(thread) => thread,
            None => self.thread.insert(SearchThread::start(driver.clone())?),
        };
        let first = self.of_workers.iter().take(MAX_TREES);
        let searches: Vec<_> = first.map(|strays| strays.search(now)).collect();
        self.under_way = Some(UnderWay { trees: searches.len(), kills: now });
        thread.0.send(searches).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    /// A search has ended.
    fn found(&mut self, now: Time, found: io::Result<Found>) -> io::Result<()> {
        let Some(under_way) = self.under_way.take() else { return Ok(()) };
        let (found, result) = match found {
            Ok(found) => (Some(found), Ok(())),
            // Those are not looked for any more.
            Err(e) => (None, Err(e)),
        };
        let mut at = 0;
        self.of_workers.retain_mut(|strays| {
            let number = at;
            at += 1;
            if number >= under_way.trees {
                return true;
            }
            let Some(found) = &found else { return false };
            let is_gone = found.is_complete && found.counts.get(number) == Some(&0);
            strays.is_asked = true;
            // Killed processes may take a moment to end, and have started others.
            !is_gone && (under_way.kills < strays.kill_at || now < strays.kill_at + KILL_DELAY)
        });
        let is_new = self.of_workers.iter().any(|strays| !strays.is_asked);
        self.search_at = (!self.is_empty()).then(|| if is_new { now } else { now + INTERVAL });
        result
    }
}

impl Driver {
    pub(in crate::primary::driver) fn tick_strays(&mut self) {
        let result = self.workers.strays.tick(self.now, self.inbox.handle());
        self.report_strays(result);
    }

    pub(in crate::primary::driver) fn strays_found(&mut self, found: io::Result<Found>) {
        let result = self.workers.strays.found(self.now, found);
        self.report_strays(result);
    }

    fn report_strays(&mut self, result: io::Result<()>) {
        if let Err(source) = result {
            let error = Error::Io { doing: "look for processes that workers left behind", source };
            self.events.push(Event::Error { worker: None, error: Arc::new(error) });
        }
    }
}
