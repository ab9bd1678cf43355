//! Counts consecutive failures of health checks.

use serde::{Deserialize, Serialize};

use crate::id::WorkerId;
use crate::worker_map::WorkerMap;

/// The number of consecutive failed health checks of each worker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthChecks {
    failures: WorkerMap<u32>,
    limit: u32,
}

impl HealthChecks {
    /// Creates the counters; workers are replaced after `limit` consecutive failures. 0 counts as
    /// 1.
    #[must_use]
    pub fn new(limit: u32) -> HealthChecks {
        HealthChecks { failures: WorkerMap::default(), limit }
    }

    /// Handles a passed check.
    pub fn passed(&mut self, worker: WorkerId) {
        self.failures.remove(&worker);
    }

    /// Handles a failed check. Returns whether to replace the worker, which repeats after every
    /// further `limit` failures.
    pub fn failed(&mut self, worker: WorkerId) -> bool {
        let failures = self.failures.get(&worker).copied().unwrap_or(0) + 1;
        let replace = failures >= self.limit;
        self.failures.insert(worker, if replace { 0 } else { failures });
        replace
    }

    /// Handles the end of a worker's process.
    pub fn exited(&mut self, worker: WorkerId) {
        self.failures.remove(&worker);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_consecutive_failures_replace_a_worker() {
        let mut checks = HealthChecks::new(3);
        let worker = WorkerId(1);
        assert_eq!([checks.failed(worker), checks.failed(worker)], [false, false]);
        checks.passed(worker);
        assert_eq!(
            [checks.failed(worker), checks.failed(worker), checks.failed(worker)],
            [false, false, true]
        );
        // It was not replaced.
        assert_eq!(
            [checks.failed(worker), checks.failed(worker), checks.failed(worker)],
            [false, false, true]
        );
    }

    proptest! {
        /// A worker is replaced exactly at each multiple of the limit in a run of failures,
        /// independent of other workers.
        #[test]
        fn each_worker_has_a_count_of_its_own(
            limit in 0..5u32,
            steps in prop::collection::vec((0..4u32, 0..4u8), 0..100)
        ) {
            let mut checks = HealthChecks::new(limit);
            let mut runs = [0u32; 4];
            for (worker, what) in steps {
                let (id, run) = (WorkerId(worker), &mut runs[worker as usize]);
                match what {
                    0 => { checks.passed(id); *run = 0; }
                    1 => { checks.exited(id); *run = 0; }
                    _ => {
                        *run += 1;
                        prop_assert_eq!(checks.failed(id), run.is_multiple_of(limit.max(1)));
                    }
                }
            }
        }
    }
}
