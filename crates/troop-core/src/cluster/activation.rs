//! Activated sockets: one per slot, among which the kernel chooses by shares.
//!
//! A worker's successor gets the same socket, with its queue. Slots without a worker, or without a
//! ready one while others have one, get no new connections. A worker that leaves without a
//! successor first accepts the connections in its sockets' queues.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::{Time, WorkerId};

/// Interval between checks of readiness, and of the queues of leaving workers.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// Time for which a worker that leaves without a successor keeps accepting after it gets no new
/// connections.
const ACCEPT_GRACE: Duration = Duration::from_millis(200);
/// Maximum of that time, while connections wait in its queue.
const MAX_ACCEPT_GRACE: Duration = Duration::from_secs(2);

/// Share of a worker without connections, for each 1 of its weight.
const FULL_SHARE: u64 = 10_000;

/// Returns the share of a worker of this weight that has so many connections open.
#[must_use]
pub fn by_connections(weight: u32, open: u32) -> u32 {
    let share = u64::from(weight) * FULL_SHARE / (1 + u64::from(open));
    u32::try_from(share).unwrap_or(u32::MAX).max(u32::from(weight > 0))
}

/// A worker with activated sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Participant {
    /// Its slot.
    pub slot: u32,
    /// Its weight.
    pub weight: u32,
    /// Whether it is ready.
    pub ready: bool,
}

/// A worker that is ended once its queues are empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Leaving {
    worker: WorkerId,
    check_at: Time,
    until: Time,
}

/// The shares of the slots, and the workers that leave without successors.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActivationShares {
    /// The shares that are installed in the kernel.
    installed: Vec<u32>,
    check_at: Option<Time>,
    leaving: Vec<Leaving>,
}

impl ActivationShares {
    /// Begins the checks of readiness.
    pub fn start(&mut self, now: Time) {
        self.check_at = Some(now + CHECK_INTERVAL);
    }

    /// Whether slots have sockets of their own.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.check_at.is_some()
    }

    /// Returns the time of the next check.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        self.leaving.iter().map(|leaving| leaving.check_at).chain(self.check_at).min()
    }

    /// Whether a check is due; if so, schedules the next one.
    pub fn is_due(&mut self, now: Time) -> bool {
        let is_due = self.check_at.is_some_and(|due| due <= now);
        if is_due {
            self.check_at = Some(now + CHECK_INTERVAL);
        }
        is_due
    }

    /// Forgets the installed shares, so that they are installed again.
    pub fn forget(&mut self) {
        self.installed.clear();
    }

    /// Returns the shares of this number of slots for these workers, if they differ from the
    /// installed ones.
    pub fn update(
        &mut self,
        slots: usize,
        workers: impl IntoIterator<Item = Participant>,
    ) -> Option<&[u32]> {
        let (mut ready, mut there) = (vec![0; slots], vec![0; slots]);
        for Participant { slot, weight, ready: is_ready } in workers {
            let at = slot as usize;
            if at < slots {
                there[at] = weight;
                if is_ready {
                    ready[at] = weight;
                }
            }
        }
        // If no worker is ready, connections wait for those that are starting; if there is none,
        // for the next one.
        let shares = [ready, there]
            .into_iter()
            .find(|shares| shares.iter().any(|share| *share > 0))
            .unwrap_or_else(|| vec![1; slots]);
        if shares == self.installed || shares.is_empty() {
            return None;
        }
        self.installed = shares;
        Some(&self.installed)
    }

    /// Begins the end of a worker without a successor. It gets no new connections from now on.
    pub fn leaves(&mut self, now: Time, worker: WorkerId) {
        if self.leaving.iter().any(|leaving| leaving.worker == worker) {
            return;
        }
        self.leaving.push(Leaving {
            worker,
            check_at: now + ACCEPT_GRACE,
            until: now + MAX_ACCEPT_GRACE,
        });
    }

    /// Returns the leaving workers whose queues must be measured now, for
    /// [`ActivationShares::measured`].
    pub fn due_to_leave(&self, now: Time) -> impl Iterator<Item = WorkerId> {
        let is_due = move |leaving: &&Leaving| leaving.check_at <= now;
        self.leaving.iter().filter(is_due).map(|leaving| leaving.worker)
    }

    /// Handles whether connections wait in the sockets of a leaving worker. Returns whether to end
    /// it now.
    pub fn measured(&mut self, now: Time, worker: WorkerId, waits: bool) -> bool {
        let Some(at) = self.leaving.iter().position(|leaving| leaving.worker == worker) else {
            return false;
        };
        let leaving = &mut self.leaving[at];
        if waits && now < leaving.until {
            leaving.check_at = now + CHECK_INTERVAL;
            return false;
        }
        self.leaving.swap_remove(at);
        true
    }

    /// Handles the end of a worker's process.
    pub fn exited(&mut self, worker: WorkerId) {
        self.leaving.retain(|leaving| leaving.worker != worker);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn worker(slot: u32, weight: u32, ready: bool) -> Participant {
        Participant { slot, weight, ready }
    }

    fn shares(slots: usize, workers: &[Participant]) -> Vec<u32> {
        let mut shares = ActivationShares::default();
        shares.update(slots, workers.iter().copied()).map(<[u32]>::to_vec).unwrap_or_default()
    }

    #[test]
    fn slots_that_are_ready_get_everything() {
        assert_eq!(shares(3, &[worker(0, 100, true), worker(1, 50, false)]), [100, 0, 0]);
        // A successor that is not ready takes no share from its predecessor.
        assert_eq!(shares(2, &[worker(0, 100, true), worker(0, 100, false)]), [100, 0]);
    }

    #[test]
    fn without_a_ready_worker_connections_wait_for_starting_ones() {
        assert_eq!(shares(3, &[worker(0, 100, false), worker(2, 50, false)]), [100, 0, 50]);
        assert_eq!(shares(3, &[]), [1, 1, 1]);
        // Workers of weight 0 do not count.
        assert_eq!(shares(2, &[worker(0, 0, true)]), [1, 1]);
        assert!(shares(0, &[worker(0, 1, true)]).is_empty());
    }

    #[test]
    fn a_worker_with_more_connections_has_a_smaller_share() {
        let shares = [0, 1, 9, u32::MAX].map(|open| by_connections(100, open));
        assert_eq!(shares, [1_000_000, 500_000, 100_000, 1]);
        assert_eq!(by_connections(50, 0), by_connections(100, 1));
        assert_eq!((by_connections(0, 0), by_connections(u32::MAX, 0)), (0, u32::MAX));
    }

    #[test]
    fn shares_are_installed_only_when_they_change() {
        let mut shares = ActivationShares::default();
        assert!(shares.update(2, [worker(0, 1, true)]).is_some());
        assert!(shares.update(2, [worker(0, 1, true)]).is_none());
        shares.forget();
        assert!(shares.update(2, [worker(0, 1, true)]).is_some());
        assert!(shares.update(2, [worker(1, 1, true)]).is_some());
    }

    #[test]
    fn a_worker_without_a_successor_empties_its_queue_before_it_ends() {
        let mut shares = ActivationShares::default();
        let due = |shares: &ActivationShares, now| -> Vec<u32> {
            shares.due_to_leave(Time(now)).map(|worker| worker.0).collect()
        };
        shares.leaves(Time(0), WorkerId(1));
        shares.leaves(Time(0), WorkerId(2));
        // A second call does not extend its time.
        shares.leaves(Time(100), WorkerId(1));
        assert!(due(&shares, 199).is_empty());
        assert_eq!((due(&shares, 200), shares.next_deadline()), (vec![1, 2], Some(Time(200))));
        assert!(!shares.measured(Time(200), WorkerId(1), true));
        assert!(shares.measured(Time(200), WorkerId(2), false));
        assert!(due(&shares, 200).is_empty());
        assert!(!shares.measured(Time(1999), WorkerId(1), true));
        assert!(shares.measured(Time(2000), WorkerId(1), true), "it has had its time");
        shares.leaves(Time(2000), WorkerId(3));
        shares.exited(WorkerId(3));
        assert_eq!(shares.next_deadline(), None);
    }

    proptest! {
        /// No connections go to a slot without a ready worker while another slot has one, or to one
        /// without a worker while another has one; and at least one slot has a share.
        #[test]
        fn only_ready_workers_have_shares_while_there_are_any(
            slots in 1..6usize,
            weights in prop::collection::vec(0..3u32, 8),
            workers in prop::collection::vec((0..8u32, any::<bool>()), 0..10)
        ) {
            let of = |(slot, ready): (u32, bool)| worker(slot, weights[slot as usize], ready);
            let workers: Vec<_> = workers.into_iter().map(of).collect();
            let shares = shares(slots, &workers);
            prop_assert_eq!(shares.len(), slots);
            prop_assert!(shares.iter().any(|share| *share > 0));
            let counts = |w: &&Participant| (w.slot as usize) < slots && w.weight > 0;
            let able = |ready: bool| workers.iter().filter(counts).any(|w| w.ready || !ready);
            for (slot, share) in shares.iter().enumerate().filter(|(_, share)| **share > 0) {
                let own = |ready: bool| {
                    workers.iter().any(|w| {
                        w.slot as usize == slot && w.weight == *share && (w.ready || !ready)
                    })
                };
                prop_assert!(!able(true) || own(true));
                prop_assert!(!able(false) || own(false));
            }
        }
    }
}
