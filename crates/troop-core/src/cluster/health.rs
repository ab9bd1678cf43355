//! Health checks: how many failures in a row of one worker have it replaced.

use serde::{Deserialize, Serialize};

use crate::id::WorkerId;
use crate::worker_map::WorkerMap;

/// Failures in a row of each worker's health checks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthChecks {
    failures: WorkerMap<u32>,
    limit: u32,
}

impl HealthChecks {
    /// Has workers replaced after this many failures in a row; 0 counts as 1.
    #[must_use]
    pub fn new(limit: u32) -> HealthChecks {
        HealthChecks { failures: WorkerMap::default(), limit }
    }

    /// A worker has passed a check.
    pub fn passed(&mut self, worker: WorkerId) {
        self.failures.remove(&worker);
    }

    /// A worker has failed a check. Returns whether it is to be replaced. If nothing comes of it,
    /// that is asked for again after as many failures.
    pub fn failed(&mut self, worker: WorkerId) -> bool {
        let failures = self.failures.get(&worker).copied().unwrap_or(0) + 1;
        let replace = failures >= self.limit;
        self.failures.insert(worker, if replace { 0 } else { failures });
        replace
    }

    /// A worker's process has ended.
    pub fn exited(&mut self, worker: WorkerId) {
        self.failures.remove(&worker);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_failures_in_a_row_have_a_worker_replaced() {
        let mut checks = HealthChecks::new(3);
        let worker = WorkerId(1);
        assert_eq!([checks.failed(worker), checks.failed(worker)], [false, false]);
        checks.passed(worker);
        assert_eq!(
            [checks.failed(worker), checks.failed(worker), checks.failed(worker)],
            [false, false, true]
        );
        // Nothing came of it.
        assert_eq!(
            [checks.failed(worker), checks.failed(worker), checks.failed(worker)],
            [false, false, true]
        );
    }

    proptest! {
        /// A worker is replaced exactly at each multiple of the limit in a run of failures, whatever
        /// happens to the others.
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
