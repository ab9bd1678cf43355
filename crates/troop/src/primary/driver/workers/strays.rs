//! What ended workers leave behind: processes of their group, and with `KillMode::Tree` those that
//! have the token in their environment. Another process searches, because the kernel may never
//! answer what it asks.

mod passes;

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use troop_core::Time;
use troop_sys::LeftBehind;
use troop_sys::process_group::HeldGroup;
use troop_sys::tree::{Found, ProcessTree, Searcher};

use crate::error::Error;
use crate::event::Event;
use crate::primary::driver::Driver;
use crate::primary::wake::{Command, DriverHandle};
use passes::{Order, Passes};

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

/// A thread that has another process search. It ends when this is dropped.
struct SearchThread(mpsc::Sender<Order>);

impl SearchThread {
    fn start(driver: DriverHandle) -> io::Result<SearchThread> {
        let (sender, orders) = mpsc::channel();
        let work = move || Searches::new(MAX_TIME).run(&orders, &driver);
        let thread = std::thread::Builder::new().name("troop-strays".into());
        thread.stack_size(256 * 1024).spawn(work)?;
        Ok(SearchThread(sender))
    }
}

/// What the thread has.
struct Searches {
    /// Maximum time of one search.
    limit: Duration,
    searcher: Option<Searcher>,
    left_behind: Vec<LeftBehind>,
}

impl Searches {
    fn new(limit: Duration) -> Searches {
        Searches { limit, searcher: None, left_behind: Vec::new() }
    }

    fn run(&mut self, orders: &Receiver<Order>, driver: &DriverHandle) {
        loop {
            match orders.recv_timeout(IDLE_TIMEOUT) {
                Ok(order) => {
                    let found = self.search(&order);
                    if driver.send(Command::StraysFound(found)).is_err() {
                        return self.end_searcher();
                    }
                }
                Err(RecvTimeoutError::Timeout) => self.rest(),
                Err(RecvTimeoutError::Disconnected) => return self.end_searcher(),
            }
        }
    }

    /// Ends what is not used.
    fn rest(&mut self) {
        self.end_searcher();
        self.reap();
    }

    /// Reaps those that were left behind and have ended since.
    fn reap(&mut self) {
        self.left_behind.retain_mut(|process| !process.is_gone());
    }

    fn search(&mut self, order: &Order) -> io::Result<Found> {
        self.reap();
        if self.left_behind.len() >= MAX_LEFT_BEHIND {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let searcher = match self.searcher.take() {
            Some(searcher) => searcher,
            None => Searcher::start()?,
        };
        let found = searcher.search(&order.searches, order.after, self.limit, ANSWER_TIMEOUT);
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

/// Those of all ended workers.
#[derive(Default)]
pub(super) struct AllStrays {
    passes: Passes,
    thread: Option<SearchThread>,
}

impl AllStrays {
    pub(super) fn is_empty(&self) -> bool {
        self.passes.is_empty()
    }

    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.passes.next_deadline()
    }

    /// A worker has been reaped: what it has started is to end too, at `kill_at` by `SIGKILL`.
    pub(super) fn end(
        &mut self,
        now: Time,
        tree: Option<ProcessTree>,
        group: Option<HeldGroup>,
        kill_at: Time,
    ) {
        if let Some(tree) = tree {
            self.passes.add(now, tree, group, kill_at);
        }
    }

    /// Has processes killed that have longer to end.
    pub(super) fn hurry(&mut self, now: Time) {
        self.passes.hurry(now);
    }

    /// Begins the search that is due.
    fn tick(&mut self, now: Time, is_ending: bool, driver: &DriverHandle) {
        if let Some(order) = self.passes.next(now, is_ending)
            && let Err(error) = self.begin(order, driver)
        {
            self.thread = None;
            self.passes.failed(now, error);
        }
    }

    fn begin(&mut self, order: Order, driver: &DriverHandle) -> io::Result<()> {
        let thread = match &self.thread {
            Some(thread) => thread,
            None => self.thread.insert(SearchThread::start(driver.clone())?),
        };
        thread.0.send(order).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Driver {
    pub(in crate::primary::driver) fn tick_strays(&mut self) {
        if self.workers.strays.passes.is_due(self.now) {
            self.give_up_strays();
            let is_ending = self.waits_for_leftovers();
            self.workers.strays.tick(self.now, is_ending, self.inbox.handle());
        }
    }

    pub(in crate::primary::driver) fn strays_found(&mut self, found: io::Result<Found>) {
        let passes = &mut self.workers.strays.passes;
        match found {
            Ok(found) => passes.found(self.now, &found),
            Err(error) => passes.failed(self.now, error),
        }
        self.give_up_strays();
    }

    /// Reports processes that go on running.
    fn give_up_strays(&mut self) {
        let is_ending = self.waits_for_leftovers();
        let (given_up, failure) = self.workers.strays.passes.give_up(self.now, is_ending);
        let has_failed = failure.is_some();
        let failure = failure.map(|source| Error::Io {
            doing: "look for processes that workers left behind",
            source,
        });
        let survivors = given_up
            .into_iter()
            .filter(|tree| tree.count > 0 || !has_failed)
            .map(|tree| Error::Survivors { leader: tree.leader, count: tree.count });
        for error in failure.into_iter().chain(survivors) {
            self.events.push(Event::Error { worker: None, error: Arc::new(error) });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::os::unix::process::CommandExt as _;
    use std::process::{Child, Command, Stdio};
    use std::time::Instant;

    use troop_sys::tree::{Token, VARIABLE};

    use super::*;

    /// Processes that do not outlive the test.
    struct Started(Vec<Child>);

    impl Drop for Started {
        fn drop(&mut self) {
            for child in &mut self.0 {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }

    /// As where so many processes run that there is never time for all.
    #[test]
    fn many_processes_end_though_each_search_checks_but_one() {
        let token = Token::random().unwrap();
        let start = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]).env(VARIABLE, token.as_str()).process_group(0);
            let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
            let mut line = String::new();
            BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
            child
        };
        let stubborn = (0..20).map(|_| start("trap '' TERM; echo; exec sleep 1000"));
        let obedient = (0..20).map(|_| start("echo; exec sleep 1000"));
        let mut started = Started(stubborn.chain(obedient).collect());
        let uid = rustix::process::getuid().as_raw();
        let tree = ProcessTree::of(started.0[0].id(), Some(&token), false, uid).unwrap();
        let (mut passes, mut searches) = (Passes::default(), Searches::new(Duration::ZERO));
        let mut now = Time(0);
        passes.add(now, tree, None, Time(2_000));
        while let Some(at) = passes.next_deadline() {
            now = now.max(at);
            let order = passes.next(now, false).unwrap();
            passes.found(now, &searches.search(&order).unwrap());
            assert!(passes.give_up(now, false).0.is_empty());
        }
        for child in &mut started.0 {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_some_and(|status| !status.success()));
        }
    }

    #[test]
    fn processes_that_were_left_behind_are_reaped_without_a_search() {
        let mut searches = Searches::new(MAX_TIME);
        let deadline = Instant::now() + Duration::from_secs(60);
        while searches.left_behind.is_empty() {
            assert!(Instant::now() < deadline, "each has ended at once");
            let left = Searcher::start().unwrap().leave(Duration::ZERO);
            searches.left_behind.extend(left);
        }
        while !searches.left_behind.is_empty() {
            assert!(Instant::now() < deadline, "it is a zombie");
            searches.rest();
            std::thread::yield_now();
        }
    }
}
