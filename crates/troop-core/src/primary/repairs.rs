//! When to say that a listener was put right, where that happens over and over.

use std::time::Duration;

use crate::id::Time;

/// The time in which repairs are counted together.
const WINDOW: Duration = Duration::from_secs(60);
/// Repairs in it from which on somebody undoes them on purpose.
const CONTESTED_REPAIRS: u32 = 5;

/// What to say of a repair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RepairReport {
    /// Nothing: it has been said often enough.
    Nothing,
    /// That it was done.
    Done,
    /// That it is done in vain; once per minute.
    Undone,
}

/// The repairs of one listener.
#[derive(Debug, Clone, Copy, Default)]
pub struct Repairs {
    total: u32,
    since: Option<Time>,
    recent: u32,
}

impl Repairs {
    /// Counts one more, and decides what to say of it: of the first, and then of ever fewer of
    /// many.
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
    fn repairs_that_are_undone_over_and_over_are_said_once_per_minute_and_rare_ones_are_not() {
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
