//! When workers with activated sockets serve. They have no channel to say so by; the shell looks
//! whether they wait for connections.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::{Time, WorkerId};
use crate::worker_map::WorkerMap;

/// Interval between checks while a worker starts.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// Time for which a worker must wait for something that may be connections.
const PERHAPS_TIME: Duration = Duration::from_secs(1);

/// Whether a worker waits for connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waits {
    /// It does not.
    No,
    /// It waits for something, perhaps for connections.
    Perhaps,
    /// It does.
    Yes,
    /// The system does not show it.
    Hidden,
}

/// The workers that start and are checked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServingChecks {
    /// The time of the next check; `None` while there is nothing to check.
    check_at: Option<Time>,
    /// Since when each worker that starts waits for something.
    starting: WorkerMap<Option<Time>>,
}

impl ServingChecks {
    /// Begins the checks of a worker.
    pub fn started(&mut self, now: Time, worker: WorkerId) {
        self.starting.insert(worker, None);
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
        let due: Vec<_> = self.starting.keys().copied().collect();
        self.check_at = (!due.is_empty()).then_some(now + CHECK_INTERVAL);
        due
    }

    /// Handles the result of a check, of a worker of this age. Returns whether the worker serves,
    /// or must be assumed to.
    pub fn checked(
        &mut self,
        now: Time,
        worker: WorkerId,
        waits: Waits,
        is_old_enough: bool,
    ) -> bool {
        let Some(since) = self.starting.get_mut(&worker) else { return false };
        let serves = match waits {
            Waits::Yes => true,
            Waits::Perhaps => now.since(*since.get_or_insert(now)) >= PERHAPS_TIME,
            Waits::Hidden => is_old_enough,
            Waits::No => {
                *since = None;
                false
            }
        };
        if serves {
            self.starting.remove(&worker);
        }
        serves
    }

    /// Handles the end of a worker's process.
    pub fn exited(&mut self, worker: WorkerId) {
        self.starting.remove(&worker);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: WorkerId = WorkerId(1);

    #[test]
    fn a_worker_is_checked_until_it_serves() {
        let mut checks = ServingChecks::default();
        assert_eq!(checks.next_deadline(), None);
        checks.started(Time(0), ONE);
        assert_eq!((checks.due(Time(99)), checks.due(Time(100))), (vec![], vec![ONE]));
        assert!(!checks.checked(Time(100), ONE, Waits::No, true));
        assert_eq!(checks.due(Time(200)), [ONE]);
        assert!(checks.checked(Time(200), ONE, Waits::Yes, false));
        assert_eq!((checks.due(Time(300)), checks.next_deadline()), (vec![], None));
        assert!(!checks.checked(Time(300), ONE, Waits::Yes, true), "it was known before");
        checks.started(Time(400), ONE);
        checks.exited(ONE);
        assert_eq!((checks.due(Time(500)), checks.next_deadline()), (vec![], None));
    }

    #[test]
    fn one_that_waits_for_something_serves_when_it_has_waited_without_a_break() {
        let mut checks = ServingChecks::default();
        checks.started(Time(0), ONE);
        let seen = [(100, Waits::Perhaps), (900, Waits::No), (1000, Waits::Perhaps)];
        for (at, waits) in seen.into_iter().chain([(1999, Waits::Perhaps)]) {
            assert!(!checks.checked(Time(at), ONE, waits, true), "{at}");
        }
        assert!(checks.checked(Time(2000), ONE, Waits::Perhaps, true));
    }

    #[test]
    fn one_that_is_hidden_serves_by_its_age() {
        let mut checks = ServingChecks::default();
        checks.started(Time(0), ONE);
        assert!(!checks.checked(Time(100), ONE, Waits::Hidden, false));
        assert!(checks.checked(Time(200), ONE, Waits::Hidden, true));
    }
}
