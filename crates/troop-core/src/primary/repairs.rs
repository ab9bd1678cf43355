//! Limits reports of repairs of listeners that recur.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::Time;

/// Window in which repairs are counted.
const WINDOW: Duration = Duration::from_secs(60);
/// Number of repairs in a window from which on another process must be undoing them.
const CONTESTED_REPAIRS: u32 = 5;

/// What to report of a repair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RepairReport {
    /// Nothing, because it was reported often enough.
    Nothing,
    /// The repair.
    Done,
    /// That repairs keep being undone; once per minute.
    Undone,
}

/// The repairs of one listener.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Repairs {
    total: u32,
    since: Option<Time>,
    recent: u32,
}

impl Repairs {
    /// Counts a repair and returns what to report of it. Reports become rarer as repairs recur.
    pub fn note(&mut self, now: Time) -> RepairReport {
        if self.since.is_none_or(|since| now.since(since) >= WINDOW) {
            (self.since, self.recent) = (Some(now), 0);
        }
        self.total = self.total.saturating_add(1);
        self.recent = self.recent.saturating_add(1);
        match () {
            () if self.recent == CONTESTED_REPAIRS => RepairReport::Undone,
            () if self.total.is_power_of_two() => RepairReport::Done,
            () => RepairReport::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repairs_that_are_undone_repeatedly_are_reported_once_per_minute() {
        let reports = |every: u64, count: u64| {
            let mut repairs = Repairs::default();
            let all: Vec<_> = (0..count).map(|n| repairs.note(Time(1 + n * every))).collect();
            let of = |report| all.iter().filter(|one| **one == report).count();
            (of(RepairReport::Done), of(RepairReport::Undone))
        };
        assert_eq!(reports(1000, 1), (1, 0));
        // Every second for ten minutes: 1, 2, 4 … 512, and the fifth of each minute.
        assert_eq!(reports(1000, 600), (10, 10));
        // Every twenty seconds for an hour.
        assert_eq!(reports(20_000, 180), (8, 0));
    }
}
