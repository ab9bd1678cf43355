//! How the primary's descriptors are divided, so that no worker can use up what the others,
//! restarts and the control socket need.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Primary;
use crate::event::Violation;
use crate::id::{Time, WorkerId};

/// Listeners that a worker may have opened in any case, however many workers there are.
const MIN_SHARE: usize = 8;
/// Sockets that one worker may have under way to the program in any case, and at most.
const MIN_HANDLES: usize = 1;
const MAX_HANDLES: usize = 64;
/// Descriptors kept for the primary's own needs (spawning, the control socket, log files), and for
/// each slot's channel and pipes.
const OWN_RESERVE: usize = 32;
const SLOT_RESERVE: usize = 8;
/// Sockets that one worker may have bound for nothing within this time: each is a system call, or
/// many, that the primary waits for.
const MAX_WASTED_BINDS: u32 = 256;
const WASTED_BINDS_WINDOW: Duration = Duration::from_secs(10);

/// The primary's descriptors, in plain numbers.
///
/// A new descriptor gets the lowest free number, so the number of an accepted connection tells how
/// many are in use without a system call: from [`tight`](Budget::tight) on, connections wait in the
/// kernel unless a worker takes them at once; from [`usable`](Budget::usable) on, nothing more is
/// accepted or opened, because the rest is the reserve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    /// The limit on open files of the process.
    pub limit: usize,
    /// Slots that have to fit.
    pub slots: usize,
    /// Descriptors that the program had open before it had workers.
    pub base: usize,
}

impl Default for Budget {
    fn default() -> Budget {
        Budget { limit: usize::MAX / 2, slots: 1, base: 0 }
    }
}

impl Budget {
    /// Descriptors kept for restarts, the control socket and the primary's own files.
    #[must_use]
    pub fn reserve(self) -> usize {
        OWN_RESERVE.saturating_add(SLOT_RESERVE.saturating_mul(self.slots)).min(self.limit / 4)
    }

    /// The first number that belongs to the reserve.
    #[must_use]
    pub fn usable(self) -> usize {
        self.limit - self.reserve()
    }

    /// The first number from which connections wait in the kernel rather than in the primary.
    #[must_use]
    pub fn tight(self) -> usize {
        self.base.min(self.usable()).midpoint(self.usable())
    }

    /// Sockets of all listeners together.
    #[must_use]
    pub fn listeners(self) -> usize {
        self.usable() / 4
    }

    /// Listeners that one of so many workers may have opened.
    #[must_use]
    pub fn listener_share(self, workers: usize) -> usize {
        (self.listeners() / (workers.max(self.slots) + 1)).max(MIN_SHARE)
    }

    /// Sockets that one worker may have under way to the program, or the program to it.
    #[must_use]
    pub fn handle_share(self) -> usize {
        (self.usable() / 8 / (self.slots + 1)).clamp(MIN_HANDLES, MAX_HANDLES)
    }
}

/// Sockets that a worker has had bound for nothing.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct WastedBinds {
    count: u32,
    since: Time,
}

impl WastedBinds {
    fn add(&mut self, now: Time) {
        if self.since + WASTED_BINDS_WINDOW <= now {
            *self = WastedBinds { count: 0, since: now };
        }
        self.count = self.count.saturating_add(1);
    }

    /// More are refused, unless time has passed.
    pub(super) fn check(&self, now: Time) -> Result<(), Violation> {
        if self.count >= MAX_WASTED_BINDS && now < self.since + WASTED_BINDS_WINDOW {
            return Err(Violation::TooManyBinds(MAX_WASTED_BINDS));
        }
        Ok(())
    }
}

impl Primary {
    /// A socket that this worker asked for could not be bound, or was closed by it before anybody
    /// else had it.
    pub(super) fn bound_for_nothing(&mut self, now: Time, worker: WorkerId) {
        if let Some(state) = self.workers.get_mut(&worker) {
            state.wasted_binds.add(now);
        }
    }

    /// Sets how many descriptors there are to be divided.
    pub fn set_budget(&mut self, budget: Budget) {
        self.budget = budget;
    }

    /// How many descriptors there are to be divided.
    #[must_use]
    pub fn budget(&self) -> Budget {
        self.budget
    }

    /// Descriptors have become scarce, or are not scarce any more. While they are, each listener
    /// has at most one connection waiting in the primary (16 where clients are sticky), and each
    /// worker few in flight.
    pub fn set_tight(&mut self, now: Time, tight: bool) {
        if std::mem::replace(&mut self.tight, tight) != tight && !tight {
            // Who was not ready because of it may be now.
            let all: Vec<WorkerId> = self.workers.keys().copied().collect();
            all.into_iter().for_each(|worker| self.refresh_and_pump(now, worker));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_shares_fit_below_the_reserve() {
        for limit in [64, 256, 1024, 20_000, 1_048_576] {
            for slots in [1, 2, 4, 64] {
                let budget = Budget { limit, slots, base: 0 };
                let shares = slots * budget.handle_share();
                assert!(
                    budget.reserve() <= limit / 4 && budget.usable() + budget.reserve() == limit
                );
                assert!(
                    budget.listeners() + shares.min(budget.usable() / 4) <= budget.tight(),
                    "{budget:?}"
                );
                assert!(
                    budget.listener_share(slots) == MIN_SHARE
                        || slots * budget.listener_share(slots) <= budget.listeners()
                );
            }
        }
        assert_eq!(Budget { limit: 256, slots: 2, base: 10 }.reserve(), 48);
        assert_eq!(Budget { limit: 1024, slots: 4, base: 10 }.listener_share(4), 48);
        assert_eq!(Budget { limit: 1024, slots: 4, base: 10 }.tight(), 485);
    }
}
