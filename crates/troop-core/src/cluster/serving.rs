//! When workers with activated sockets serve. They have no channel to say so by; the shell checks
//! whether they wait for connections.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::{Time, WorkerId};
use crate::supervise::{ACTIVATED_READY_AGE, NotServing};
use crate::worker_map::WorkerMap;

/// Interval between checks of a worker, from the result of one to the next.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// The same of a worker that was not seen to serve within the time in which programs start.
const LATE_CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// Number of checks that must see a worker wait for something that may be connections.
const PERHAPS_CHECKS: u32 = 10;

/// Whether a worker waits for connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waits {
    /// It has none of the sockets.
    Without,
    /// It does not.
    No,
    /// It waits for something, perhaps for connections.
    Perhaps,
    /// It does.
    Yes,
    /// The system does not show it.
    Hidden,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Check {
    /// Until when it is checked although it is taken for ready, because it only seems to wait.
    until: Time,
    /// It is not checked before this.
    again_at: Time,
    /// The number of checks that saw it wait for something.
    seen: u32,
    is_under_way: bool,
    is_ready: bool,
}

/// The workers that start and are checked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServingChecks {
    /// The time of the next check; `None` while there is nothing to check.
    check_at: Option<Time>,
    starting: WorkerMap<Check>,
    /// The workers that serve, and whether they were seen to wait for connections. Where all were,
    /// it takes more for others than waiting for something, which programs also do while they start.
    serving: WorkerMap<bool>,
}

impl ServingChecks {
    /// Begins the checks of a worker.
    pub fn started(&mut self, now: Time, worker: WorkerId) {
        let until = now + ACTIVATED_READY_AGE;
        let check = Check { until, again_at: now, seen: 0, is_under_way: false, is_ready: false };
        self.starting.insert(worker, check);
        self.check_at = Some(self.check_at.unwrap_or(now + CHECK_INTERVAL));
    }

    /// Returns the time of the next check.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        self.check_at
    }

    /// Returns the workers that must be checked now.
    pub fn due(&mut self, now: Time) -> Vec<WorkerId> {
        if self.check_at.is_none_or(|at| at > now) {
            return Vec::new();
        }
        let over = |check: &Check| check.is_ready && check.until <= now;
        let over: Vec<_> =
            self.starting.iter().filter(|(_, check)| over(check)).map(|(id, _)| *id).collect();
        for worker in over {
            self.starting.remove(&worker);
        }
        let due = self.starting.iter_mut();
        let due = due.filter(|(_, check)| !check.is_under_way && check.again_at <= now);
        let due = due.map(|(worker, check)| {
            check.is_under_way = true;
            let is_late = check.until <= now;
            check.again_at = now + if is_late { LATE_CHECK_INTERVAL } else { CHECK_INTERVAL };
            *worker
        });
        let due = due.collect();
        let next = self.starting.iter().map(|(_, check)| check.again_at).min();
        self.check_at = next.map(|at| at.max(now + CHECK_INTERVAL));
        due
    }

    /// Handles the result of a check. Returns whether the worker serves, or must be assumed to,
    /// and was not known to.
    pub fn checked(&mut self, worker: WorkerId, waits: Waits, is_old_enough: bool) -> bool {
        let takes_more = self.takes_more(worker);
        let Some(check) = self.starting.get_mut(&worker) else { return false };
        check.is_under_way = false;
        let was_ready = check.is_ready;
        check.seen += u32::from(waits == Waits::Perhaps);
        let is_over = match waits {
            Waits::Yes => true,
            Waits::Hidden => is_old_enough,
            Waits::Perhaps | Waits::No | Waits::Without => false,
        };
        check.is_ready |= is_over || (!takes_more && check.seen >= PERHAPS_CHECKS);
        let is_ready = check.is_ready;
        if is_ready {
            self.serving.insert(worker, waits == Waits::Yes);
        }
        if is_over {
            self.starting.remove(&worker);
        }
        is_ready && !was_ready
    }

    /// Whether all others that serve were seen to wait for connections.
    fn takes_more(&self, worker: WorkerId) -> bool {
        let mut others = self.serving.iter().filter(|(other, _)| **other != worker).peekable();
        others.peek().is_some() && others.all(|(_, was_seen)| *was_seen)
    }

    /// Returns why a worker is not taken for ready, given what a check has just seen. A worker that
    /// waits for something may be about other work at the next check.
    #[must_use]
    pub fn not_serving(&self, worker: WorkerId, waits: Waits) -> Option<NotServing> {
        let check = self.starting.get(&worker).filter(|check| !check.is_ready)?;
        match waits {
            _ if check.seen >= PERHAPS_CHECKS => Some(NotServing::WaitsOtherwise),
            Waits::No | Waits::Without => Some(NotServing::DoesNotWait),
            _ => None,
        }
    }

    /// Whether a worker that runs was seen to wait for connections.
    #[must_use]
    pub fn is_one_awaiting(&self) -> bool {
        self.serving.iter().any(|(_, was_seen)| *was_seen)
    }

    /// No result comes of the checks that are under way.
    pub fn resumed(&mut self) {
        for (_, check) in self.starting.iter_mut() {
            check.is_under_way = false;
        }
    }

    /// Handles the end of a worker's process.
    pub fn exited(&mut self, worker: WorkerId) {
        self.starting.remove(&worker);
        self.serving.remove(&worker);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: WorkerId = WorkerId(1);
    const TWO: WorkerId = WorkerId(2);

    #[test]
    fn a_worker_is_checked_one_check_at_a_time_until_it_serves() {
        let mut checks = ServingChecks::default();
        assert_eq!(checks.next_deadline(), None);
        checks.started(Time(0), ONE);
        assert_eq!((checks.due(Time(99)), checks.due(Time(100))), (vec![], vec![ONE]));
        assert_eq!(checks.due(Time(200)), [], "that check is under way");
        assert!(!checks.checked(ONE, Waits::No, true));
        assert_eq!(checks.due(Time(300)), [ONE]);
        assert!(checks.checked(ONE, Waits::Yes, false));
        assert_eq!((checks.due(Time(400)), checks.next_deadline()), (vec![], None));
        assert!(!checks.checked(ONE, Waits::Yes, true), "it was known before");
        checks.started(Time(400), ONE);
        checks.exited(ONE);
        assert_eq!((checks.due(Time(500)), checks.next_deadline()), (vec![], None));
    }

    #[test]
    fn one_that_waits_for_something_serves_when_that_was_seen_often() {
        let mut checks = ServingChecks::default();
        checks.started(Time(0), ONE);
        for check in 1..10 {
            assert!(!checks.checked(ONE, Waits::Perhaps, true), "{check}");
            // Requests that it answers do not count against it.
            assert!(!checks.checked(ONE, Waits::No, true), "{check}");
        }
        assert!(checks.checked(ONE, Waits::Perhaps, true));
        // It may turn out that its children do.
        assert_eq!(checks.due(Time(9_900)), [ONE]);
        assert!(!checks.checked(ONE, Waits::Yes, true), "it was known before");
        // From then on that is what it takes.
        checks.started(Time(10_000), TWO);
        assert!(!checks.checked(TWO, Waits::No, true));
        assert_eq!(checks.not_serving(TWO, Waits::No), Some(NotServing::DoesNotWait));
        assert!(!(0..100).any(|_| checks.checked(TWO, Waits::Perhaps, true)));
        let seen = checks.not_serving(TWO, Waits::Perhaps);
        assert_eq!(seen, Some(NotServing::WaitsOtherwise));
        assert!(checks.checked(TWO, Waits::Yes, true));
        assert_eq!(checks.not_serving(TWO, Waits::Yes), None);
    }

    /// A worker alone decides nothing for the others.
    #[test]
    fn it_takes_no_more_where_one_of_several_was_seen_to_wait_for_connections() {
        let mut checks = ServingChecks::default();
        checks.started(Time(0), ONE);
        assert!((0..10).any(|_| checks.checked(ONE, Waits::Perhaps, true)));
        checks.started(Time(0), TWO);
        assert!(checks.checked(TWO, Waits::Yes, true));
        let three = WorkerId(3);
        checks.started(Time(0), three);
        assert!((0..10).any(|_| checks.checked(three, Waits::Perhaps, true)));
        // Nor does one that is gone.
        checks.exited(ONE);
        checks.exited(three);
        checks.exited(TWO);
        checks.started(Time(0), WorkerId(4));
        assert!((0..10).any(|_| checks.checked(WorkerId(4), Waits::Perhaps, true)));
    }

    #[test]
    fn one_that_only_seems_to_wait_is_not_checked_for_ever() {
        let mut checks = ServingChecks::default();
        checks.started(Time(0), ONE);
        assert!((0..10).any(|_| checks.checked(ONE, Waits::Perhaps, true)));
        assert_eq!(checks.due(Time(9_999)), [ONE]);
        assert!(!checks.checked(ONE, Waits::Perhaps, true));
        assert_eq!((checks.due(Time(10_099)), checks.next_deadline()), (vec![], None));
    }

    #[test]
    fn one_that_does_not_serve_in_time_is_checked_less_often() {
        let mut checks = ServingChecks::default();
        checks.started(Time(0), ONE);
        let mut due = Vec::new();
        for now in (0..20_000).step_by(100).map(Time) {
            if !checks.due(now).is_empty() {
                due.push(now);
                assert!(!checks.checked(ONE, Waits::No, true));
            }
        }
        let late: Vec<_> = due.iter().filter(|at| **at >= Time(10_000)).copied().collect();
        let times = [10_000, 12_000, 14_000, 16_000, 18_000].map(Time);
        assert_eq!((due.len() - late.len(), late), (99, times.to_vec()));
        // Others are not affected.
        checks.started(Time(20_000), TWO);
        assert_eq!((checks.due(Time(20_100)), checks.due(Time(20_200))), (vec![ONE, TWO], vec![]));
    }

    #[test]
    fn one_that_is_hidden_serves_by_its_age() {
        let mut checks = ServingChecks::default();
        checks.started(Time(0), ONE);
        assert!(!checks.checked(ONE, Waits::Hidden, false));
        assert!(checks.checked(ONE, Waits::Hidden, true));
    }
}
