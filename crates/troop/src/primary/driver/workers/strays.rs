//! What ended workers leave behind outside of their process groups: processes that are found by the
//! token in their environment (`KillMode::Tree`), in a thread of its own.

use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use troop_core::Time;
use troop_sys::tree::{self, Found, ProcessTree, Search};

use super::orphans::{KILL, KILL_DELAY, TERMINATE};
use crate::error::Error;
use crate::event::Event;
use crate::primary::driver::Driver;
use crate::primary::wake::{Command, DriverHandle};

/// Interval between searches while some of them run.
const INTERVAL: Duration = Duration::from_millis(250);
/// Maximum time of one search.
const MAX_TIME: Duration = Duration::from_secs(1);
/// Maximum time until the thread answers: reading an environment may block for ever.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of threads that do not answer. Beyond it nothing is searched for.
const MAX_STUCK: usize = 4;

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

/// A thread that searches. It ends when this is dropped.
struct Searcher {
    orders: mpsc::Sender<Vec<Search>>,
    number: u64,
}

impl Searcher {
    fn start(driver: DriverHandle, number: u64) -> io::Result<Searcher> {
        let (sender, orders) = mpsc::channel::<Vec<Search>>();
        let work = move || {
            for searches in orders {
                let found = tree::search(&searches, MAX_TIME);
                if driver.send(Command::StraysFound(number, found)).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("troop-strays".into());
        thread.stack_size(256 * 1024).spawn(work)?;
        Ok(Searcher { orders: sender, number })
    }
}

/// A search that is not answered yet.
struct UnderWay {
    since: Time,
    /// The number of trees; they are the first ones.
    trees: usize,
    /// When those were to be killed that are killed by this search.
    kills: Time,
}

/// Those of all ended workers.
#[derive(Default)]
pub(super) struct AllStrays {
    of_workers: Vec<Strays>,
    searcher: Option<Searcher>,
    started: u64,
    under_way: Option<UnderWay>,
    search_at: Option<Time>,
    /// Number of threads that have not answered in time.
    stuck: usize,
}

impl AllStrays {
    pub(super) fn is_empty(&self) -> bool {
        self.of_workers.is_empty()
    }

    pub(super) fn next_deadline(&self) -> Option<Time> {
        match &self.under_way {
            Some(under_way) => Some(under_way.since + TIMEOUT),
            None => self.search_at,
        }
    }

    /// A worker has been reaped: what it has started is to end too.
    pub(super) fn end(&mut self, now: Time, tree: Option<ProcessTree>) {
        if let Some(tree) = tree.filter(|_| self.stuck < MAX_STUCK) {
            self.of_workers.push(Strays { tree, is_asked: false, kill_at: now + KILL_DELAY });
            self.search_at = Some(now);
        }
    }

    /// Begins a search that is due, or gives up one that is not answered.
    fn tick(&mut self, now: Time, driver: &DriverHandle) -> io::Result<()> {
        if self.next_deadline().is_none_or(|at| at > now) {
            return Ok(());
        }
        if self.under_way.is_some() {
            self.stuck += 1;
            self.give_up();
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.search_at = None;
        let begun = self.begin(now, driver);
        if begun.is_err() {
            self.give_up();
        }
        begun
    }

    fn begin(&mut self, now: Time, driver: &DriverHandle) -> io::Result<()> {
        let searcher = match &self.searcher {
            Some(searcher) => searcher,
            None => {
                self.started += 1;
                self.searcher.insert(Searcher::start(driver.clone(), self.started)?)
            }
        };
        let searches = self.of_workers.iter().map(|strays| strays.search(now)).collect();
        searcher.orders.send(searches).map_err(|_| io::ErrorKind::BrokenPipe)?;
        self.under_way = Some(UnderWay { since: now, trees: self.of_workers.len(), kills: now });
        Ok(())
    }

    /// Searches no more for what has been left behind so far.
    fn give_up(&mut self) {
        self.of_workers.clear();
        (self.searcher, self.under_way, self.search_at) = (None, None, None);
    }

    /// A thread has answered.
    fn found(&mut self, now: Time, number: u64, found: io::Result<Found>) -> io::Result<()> {
        if self.searcher.as_ref().is_none_or(|searcher| searcher.number != number) {
            // It was given up before.
            self.stuck = self.stuck.saturating_sub(1);
            return Ok(());
        }
        let Some(under_way) = self.under_way.take() else { return Ok(()) };
        let found = match found {
            Ok(found) => found,
            Err(e) => {
                self.give_up();
                return Err(e);
            }
        };
        let mut at = 0;
        self.of_workers.retain_mut(|strays| {
            let is_gone = found.is_complete && found.counts.get(at) == Some(&0);
            let was_searched = at < under_way.trees;
            at += 1;
            if !was_searched {
                return true;
            }
            strays.is_asked = true;
            // Killed processes may take a moment to end, and have started others.
            !is_gone && (under_way.kills < strays.kill_at || now < strays.kill_at + KILL_DELAY)
        });
        let is_new = self.of_workers.iter().any(|strays| !strays.is_asked);
        self.search_at = (!self.is_empty()).then(|| if is_new { now } else { now + INTERVAL });
        Ok(())
    }
}

impl Driver {
    pub(in crate::primary::driver) fn tick_strays(&mut self) {
        let result = self.workers.strays.tick(self.now, self.inbox.handle());
        self.report_strays(result);
    }

    pub(in crate::primary::driver) fn strays_found(
        &mut self,
        searcher: u64,
        found: io::Result<Found>,
    ) {
        let result = self.workers.strays.found(self.now, searcher, found);
        self.report_strays(result);
    }

    fn report_strays(&mut self, result: io::Result<()>) {
        if let Err(source) = result {
            let error = Error::Io { doing: "look for processes that workers left behind", source };
            self.events.push(Event::Error { worker: None, error: Arc::new(error) });
        }
    }
}
