//! What a cluster has done since its start, its former workers included.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Primary;
use super::worker::Worker;

/// Counters of a cluster since its start. None of them ever decreases.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Connections handed over to workers, also those for which their channels had no room then.
    pub handed: u64,
    /// Connections acknowledged; for workers with activated sockets, those that were seen.
    pub taken: u64,
    /// Connections that workers have rejected or returned, and others got.
    pub returned: u64,
    /// Connections that workers served for a while and then gave to others.
    pub moved: u64,
    /// Times from handing connections over to their acknowledgement.
    pub handover: Times,
}

/// A histogram of times.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// How many were at most as long as each of [`Times::BOUNDS`] and longer than the one before; and
    /// how many were longer than all.
    pub counts: [u64; Times::BOUNDS.len() + 1],
    /// Their sum, in milliseconds.
    pub sum_ms: u64,
}

impl Times {
    /// The upper bounds, in milliseconds.
    pub const BOUNDS: [u64; 11] = [1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 10_000];

    #[inline]
    pub(super) fn add(&mut self, time: Duration) {
        let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.counts[Times::BOUNDS.partition_point(|bound| *bound < ms)] += 1;
        self.sum_ms = self.sum_ms.saturating_add(ms);
    }
}

impl Totals {
    fn add(&mut self, worker: &Worker) {
        self.handed += worker.handed;
        self.taken += worker.taken;
        self.returned += worker.returned;
        self.moved += worker.moved;
    }
}

impl Primary {
    /// Returns what the cluster has done since its start.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let mut all = self.former.clone();
        self.workers.values().for_each(|worker| all.add(worker));
        all
    }

    /// Keeps the counters of a worker that has ended.
    pub(super) fn note_former(&mut self, worker: &Worker) {
        self.former.add(worker);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_counts_below_the_first_bound_that_it_does_not_exceed() {
        let mut times = Times::default();
        for ms in [0, 1, 2, 3, 5, 10_000, 10_001] {
            times.add(Duration::from_millis(ms));
        }
        assert_eq!(times.counts, [2, 1, 2, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!(times.sum_ms, 20_012);
    }
}
