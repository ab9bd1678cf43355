//! A thread that has workers with activated sockets checked for whether they wait for connections.
//! The check is done by another process, which is left behind where the kernel does not answer it.

use std::collections::HashMap;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use troop_core::WorkerId;
use troop_core::cluster::serving::Waits;
use troop_sys::LeftBehind;
use troop_sys::serving::{self, Checker};

use crate::primary::wake::{Command, DriverHandle};

/// Of this many parts of the time, the checks of a slot's workers take one at most.
const PAUSE_FACTOR: u32 = 10;
/// The checks of all workers together take one part of this many at most.
const COMMON_PAUSE_FACTOR: u32 = 2;
/// Time within which the checking process answers.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// Pause of a slot without an answer. It doubles each time.
const UNANSWERED_PAUSE: Duration = Duration::from_secs(60);
/// Maximum number of doublings.
const MAX_DOUBLINGS: u32 = 6;
/// Maximum number of processes that are left behind. Beyond it nothing is checked.
const MAX_LEFT_BEHIND: usize = 8;
/// Time that a killed process has to end.
const KILL_TIMEOUT: Duration = Duration::from_millis(100);
/// The checking process ends after this time without a check.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);

/// A worker to check.
pub(super) struct Serving {
    pub(super) worker: WorkerId,
    pub(super) slot: u32,
    pub(super) pid: u32,
    /// The inodes of its sockets.
    pub(super) sockets: Vec<u64>,
}

/// The thread. It ends when this is dropped.
pub(super) struct ServingChecker(Option<mpsc::Sender<Serving>>);

impl ServingChecker {
    pub(super) fn start(driver: DriverHandle) -> ServingChecker {
        let (sender, requests) = mpsc::channel();
        let work = move || {
            Checks {
                driver,
                waiting: Vec::new(),
                costs: HashMap::new(),
                checker: None,
                left_behind: Vec::new(),
            }
            .run(&requests);
        };
        let thread = std::thread::Builder::new().name("troop-serving".into());
        let started = thread.stack_size(256 * 1024).spawn(work).is_ok();
        ServingChecker(started.then_some(sender))
    }

    /// Has a worker checked; the result is a command. False if that cannot be.
    pub(super) fn check(&self, check: Serving) -> bool {
        self.0.as_ref().is_some_and(|checks| checks.send(check).is_ok())
    }
}

/// What the checks of a slot's workers have cost.
#[derive(Default)]
struct Cost {
    /// Before this its workers are not checked.
    next: Option<Instant>,
    /// Number of checks without an answer.
    unanswered: u32,
}

/// What the thread has.
struct Checks {
    driver: DriverHandle,
    /// Requests that wait until their slot's pause is over.
    waiting: Vec<Serving>,
    costs: HashMap<u32, Cost>,
    checker: Option<Checker>,
    left_behind: Vec<LeftBehind>,
}

impl Checks {
    fn run(&mut self, requests: &Receiver<Serving>) {
        loop {
            let next = self.waiting.iter().map(|request| self.due_at(request)).min();
            let timeout = next.map_or(IDLE_TIMEOUT, |at| {
                at.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()))
            });
            match requests.recv_timeout(timeout.min(IDLE_TIMEOUT)) {
                Ok(request) => self.waiting.push(request),
                Err(RecvTimeoutError::Timeout) => self.rest(),
                Err(RecvTimeoutError::Disconnected) => {
                    self.end_checker();
                    return;
                }
            }
            self.waiting.extend(requests.try_iter());
            if !self.check_due() {
                return;
            }
        }
    }

    fn due_at(&self, request: &Serving) -> Option<Instant> {
        self.costs.get(&request.slot)?.next
    }

    /// Checks all workers whose slots do not pause. False if the cluster has ended.
    fn check_due(&mut self) -> bool {
        let now = Instant::now();
        let (due, waiting) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|request| self.due_at(request).is_none_or(|at| at <= now));
        self.waiting = waiting;
        let due: Vec<Serving> = due;
        due.into_iter().all(|request| {
            let begin = Instant::now();
            let waits = self.check(&request);
            let elapsed = begin.elapsed();
            let cost = self.costs.entry(request.slot).or_default();
            let unanswered = UNANSWERED_PAUSE * (1 << cost.unanswered.min(MAX_DOUBLINGS));
            let pause = match waits {
                Some(_) => elapsed * PAUSE_FACTOR,
                None => unanswered,
            };
            cost.unanswered += u32::from(waits.is_none());
            cost.next = Some(Instant::now() + pause);
            let waits = waits.unwrap_or(Waits::Hidden);
            let goes_on = self.driver.send(Command::ServingChecked(request.worker, waits)).is_ok();
            std::thread::sleep(elapsed * (COMMON_PAUSE_FACTOR - 1));
            goes_on
        })
    }

    /// Ends what is not used.
    fn rest(&mut self) {
        if self.waiting.is_empty() {
            self.end_checker();
        }
        self.reap();
    }

    /// Reaps those that were left behind and have ended since.
    fn reap(&mut self) {
        self.left_behind.retain_mut(|process| !process.is_gone());
    }

    /// Returns what was seen; `None` if there was no answer.
    fn check(&mut self, request: &Serving) -> Option<Waits> {
        self.reap();
        if self.left_behind.len() >= MAX_LEFT_BEHIND {
            return Some(Waits::Hidden);
        }
        let checker = match self.checker.take() {
            Some(checker) => checker,
            None => match Checker::start() {
                Ok(checker) => checker,
                Err(_) => return Some(Waits::Hidden),
            },
        };
        let result = checker.check(request.pid, &request.sockets, ANSWER_TIMEOUT);
        self.checker = Some(checker);
        Some(match result {
            Ok(serving::Waits::Yes) => Waits::Yes,
            Ok(serving::Waits::Perhaps) => Waits::Perhaps,
            Ok(serving::Waits::No) => Waits::No,
            Ok(serving::Waits::Without) => Waits::Without,
            Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => Waits::Hidden,
            Err(e) => {
                self.end_checker();
                if e.kind() == std::io::ErrorKind::TimedOut {
                    return None;
                }
                // Somebody has killed it.
                Waits::Hidden
            }
        })
    }

    fn end_checker(&mut self) {
        let left = self.checker.take().and_then(|checker| checker.leave(KILL_TIMEOUT));
        self.left_behind.extend(left);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::primary::wake::Wake;

    #[test]
    fn processes_that_were_left_behind_are_reaped_without_a_check() {
        let driver = DriverHandle { sender: mpsc::channel().0, wake: Arc::new(Wake::new(None)) };
        let mut checks = Checks {
            driver,
            waiting: Vec::new(),
            costs: HashMap::new(),
            checker: None,
            left_behind: Vec::new(),
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        while checks.left_behind.is_empty() {
            assert!(Instant::now() < deadline, "each has ended at once");
            let left = Checker::start().unwrap().leave(Duration::ZERO);
            checks.left_behind.extend(left);
        }
        while !checks.left_behind.is_empty() {
            assert!(Instant::now() < deadline, "it is a zombie");
            checks.rest();
            std::thread::yield_now();
        }
    }
}
