//! Workers whose processes do not end after `SIGKILL`, because they wait in the kernel for a device
//! or a file system that does not answer (state D). After a while they are treated as ended.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::{Time, WorkerId};

/// Time between `SIGKILL` and the moment when a worker that has not ended is treated as ended.
const UNKILLABLE_AFTER: Duration = Duration::from_secs(5);
/// Maximum number of such processes. Further workers keep their slots until they end, so that a
/// dead file system does not fill the machine with processes.
const MAX_UNKILLABLE: usize = 16;

/// Workers that were sent `SIGKILL`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KilledWorkers {
    killed: Vec<(WorkerId, Time)>,
    /// Number of processes that were given up and still exist.
    unkillable: usize,
}

impl KilledWorkers {
    /// Records that a worker was sent `SIGKILL`.
    pub fn killed(&mut self, now: Time, worker: WorkerId) {
        if !self.killed.iter().any(|(known, _)| *known == worker) {
            self.killed.push((worker, now + UNKILLABLE_AFTER));
        }
    }

    /// Returns the time at which a worker may have to be given up.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        let due = self.killed.iter().map(|(_, due)| *due).min();
        due.filter(|_| self.unkillable < MAX_UNKILLABLE)
    }

    /// Returns a worker that must be treated as ended now.
    pub fn next_unkillable(&mut self, now: Time) -> Option<WorkerId> {
        if self.unkillable >= MAX_UNKILLABLE {
            return None;
        }
        let at = self.killed.iter().position(|(_, due)| *due <= now)?;
        self.unkillable += 1;
        Some(self.killed.swap_remove(at).0)
    }

    /// Handles the end of a worker's process.
    pub fn exited(&mut self, worker: WorkerId) {
        self.killed.retain(|(known, _)| *known != worker);
    }

    /// Handles the end of a process that had been given up.
    pub fn ended_at_last(&mut self) {
        self.unkillable = self.unkillable.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_does_not_end_is_given_up_once() {
        let mut killed = KilledWorkers::default();
        killed.killed(Time(0), WorkerId(1));
        killed.killed(Time(3000), WorkerId(1));
        killed.killed(Time(10), WorkerId(2));
        killed.exited(WorkerId(2));
        assert_eq!(killed.next_deadline(), Some(Time(5000)));
        assert_eq!(killed.next_unkillable(Time(4999)), None);
        assert_eq!(killed.next_unkillable(Time(5000)), Some(WorkerId(1)));
        assert_eq!((killed.next_unkillable(Time(9000)), killed.next_deadline()), (None, None));
    }

    #[test]
    fn the_number_of_processes_that_are_given_up_is_bounded() {
        let mut killed = KilledWorkers::default();
        (0..17).for_each(|worker| killed.killed(Time(0), WorkerId(worker)));
        let given_up = std::iter::from_fn(|| killed.next_unkillable(Time(5000))).count();
        assert_eq!((given_up, killed.next_deadline()), (16, None));
        killed.ended_at_last();
        assert!(killed.next_unkillable(Time(5000)).is_some());
    }
}
