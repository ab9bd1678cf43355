//! Divides the primary's descriptors, so that no worker can use up those that other workers,
//! restarts and the control socket need.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Primary;
use crate::event::Violation;
use crate::id::{Time, WorkerId};

/// Minimum number of listeners per worker, whatever the number of workers.
const MIN_SHARE: usize = 8;
/// Minimum and maximum number of sockets in flight from one worker to the program.
const MIN_HANDLES: usize = 1;
const MAX_HANDLES: usize = 64;
/// Descriptors reserved for the primary itself (spawning, the control socket, log files), and for
/// each slot's channel and pipes.
const OWN_RESERVE: usize = 32;
const SLOT_RESERVE: usize = 8;
/// Maximum number of binds of one worker, within [`WASTED_BINDS_WINDOW`], that fail or whose socket
/// it closes again: each takes system calls of the primary.
const MAX_WASTED_BINDS: u32 = 256;
const WASTED_BINDS_WINDOW: Duration = Duration::from_secs(10);

/// The primary's descriptors and how they are divided.
///
/// A new descriptor gets the lowest free number, so the number of an accepted connection tells how
/// many are in use without a system call. From [`tight`](Budget::tight) on, connections wait in the
/// kernel unless a worker takes them at once. From [`usable`](Budget::usable) on, nothing more is
/// accepted or opened: the rest is the reserve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    /// The process's limit on open files.
    pub limit: usize,
    /// Number of slots to reserve descriptors for.
    pub slots: usize,
    /// Number of descriptors that the program had open before the first worker.
    pub base: usize,
}

impl Default for Budget {
    fn default() -> Budget {
        Budget { limit: usize::MAX / 2, slots: 1, base: 0 }
    }
}

impl Budget {
    /// Returns the number of descriptors reserved for restarts, the control socket and the
    /// primary's own files.
    #[must_use]
    pub fn reserve(self) -> usize {
        OWN_RESERVE.saturating_add(SLOT_RESERVE.saturating_mul(self.slots)).min(self.limit / 4)
    }

    /// Returns the first descriptor number of the reserve.
    #[must_use]
    pub fn usable(self) -> usize {
        self.limit - self.reserve()
    }

    /// Returns the first descriptor number from which connections wait in the kernel rather than in
    /// the primary.
    #[must_use]
    pub fn tight(self) -> usize {
        self.base.min(self.usable()).midpoint(self.usable())
    }

    /// Returns the maximum number of sockets of all listeners together.
    #[must_use]
    pub fn listeners(self) -> usize {
        self.usable() / 4
    }

    /// Returns the maximum number of listeners of one worker among `workers`.
    #[must_use]
    pub fn listener_share(self, workers: usize) -> usize {
        (self.listeners() / (workers.max(self.slots) + 1)).max(MIN_SHARE)
    }

    /// Returns the maximum number of sockets in flight between one worker and the program, in each
    /// direction.
    #[must_use]
    pub fn handle_share(self) -> usize {
        (self.usable() / 8 / (self.slots + 1)).clamp(MIN_HANDLES, MAX_HANDLES)
    }
}

/// Counts binds that failed or whose socket the worker closed again.
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

    /// Checks the limit on wasted binds.
    pub(super) fn check(&self, now: Time) -> Result<(), Violation> {
        if self.count >= MAX_WASTED_BINDS && now < self.since + WASTED_BINDS_WINDOW {
            return Err(Violation::TooManyBinds(MAX_WASTED_BINDS));
        }
        Ok(())
    }
}

impl Primary {
    /// Counts a wasted bind: the socket could not be bound, or the worker closed it before any
    /// other worker had it.
    pub(super) fn bound_for_nothing(&mut self, now: Time, worker: WorkerId) {
        if let Some(state) = self.workers.get_mut(&worker) {
            state.wasted_binds.add(now);
        }
    }

    /// Sets the number of descriptors to divide.
    pub fn set_budget(&mut self, budget: Budget) {
        self.budget = budget;
    }

    /// Returns the number of descriptors to divide.
    #[must_use]
    pub fn budget(&self) -> Budget {
        self.budget
    }

    /// Sets whether descriptors are scarce. While they are, at most one connection per listener
    /// waits in the primary (16 with sticky clients), and few per worker are in flight.
    pub fn set_tight(&mut self, now: Time, tight: bool) {
        if std::mem::replace(&mut self.tight, tight) != tight && !tight {
            // Workers may have become ready by the change.
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
