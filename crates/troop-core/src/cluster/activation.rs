//! Sockets that workers take by activation, one for each slot, among which the kernel chooses by
//! shares.
//!
//! A slot's socket goes to its successor, with what waits in it. Slots whose worker is not there, or
//! not ready while others are, get nothing new. A worker that leaves without a successor first takes
//! what waits in its sockets.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::{Time, WorkerId};

/// Interval between checks who is ready, and whether connections wait for a worker that leaves.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// Time for which a worker that leaves without a successor goes on accepting after it gets nothing
/// new.
const ACCEPT_GRACE: Duration = Duration::from_millis(200);
/// The longest such time, if connections still wait.
const MAX_ACCEPT_GRACE: Duration = Duration::from_secs(2);

/// A worker that takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Participant {
    /// Its slot.
    pub slot: u32,
    /// The weight of its slot.
    pub weight: u32,
    /// It is ready.
    pub ready: bool,
}

/// A worker that leaves when it has taken what waits in its sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Leaving {
    worker: WorkerId,
    check_at: Time,
    until: Time,
}

/// The shares of the slots, and workers that are about to leave.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActivationShares {
    /// The shares that the kernel was told last.
    installed: Vec<u32>,
    check_at: Option<Time>,
    leaving: Vec<Leaving>,
}

impl ActivationShares {
    /// Begins to check who is ready.
    pub fn start(&mut self, now: Time) {
        self.check_at = Some(now + CHECK_INTERVAL);
    }

    /// Whether slots have sockets of their own.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.check_at.is_some()
    }

    /// When there is something to do.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        self.leaving.iter().map(|leaving| leaving.check_at).chain(self.check_at).min()
    }

    /// Whether shares are to be reckoned now; then the next time is planned.
    pub fn is_due(&mut self, now: Time) -> bool {
        let is_due = self.check_at.is_some_and(|due| due <= now);
        if is_due {
            self.check_at = Some(now + CHECK_INTERVAL);
        }
        is_due
    }

    /// The kernel has to be told again, whatever it was told before.
    pub fn forget(&mut self) {
        self.installed.clear();
    }

    /// The shares of so many slots among these workers, if they are not what the kernel knows.
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
        // Where nobody is ready, connections wait for those who will be; where nobody is there, for
        // whoever comes.
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

    /// A worker is to leave, and nobody takes its slot. It gets nothing new from now on.
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

    /// Workers that are about to leave, whose queues are to be measured now: see
    /// [`ActivationShares::measured`].
    pub fn due_to_leave(&self, now: Time) -> impl Iterator<Item = WorkerId> {
        let is_due = move |leaving: &&Leaving| leaving.check_at <= now;
        self.leaving.iter().filter(is_due).map(|leaving| leaving.worker)
    }

    /// Whether connections wait in the sockets of a worker that is about to leave. Returns whether
    /// it is to be ended now.
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

    /// A worker's process has ended.
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
        // A successor that is not ready takes nothing from its predecessor.
        assert_eq!(shares(2, &[worker(0, 100, true), worker(0, 100, false)]), [100, 0]);
    }

    #[test]
    fn where_nobody_is_ready_connections_wait_for_those_who_will_be() {
        assert_eq!(shares(3, &[worker(0, 100, false), worker(2, 50, false)]), [100, 0, 50]);
        assert_eq!(shares(3, &[]), [1, 1, 1]);
        // Workers without any weight are nobody.
        assert_eq!(shares(2, &[worker(0, 0, true)]), [1, 1]);
        assert!(shares(0, &[worker(0, 1, true)]).is_empty());
    }

    #[test]
    fn the_kernel_is_told_only_what_it_does_not_know() {
        let mut shares = ActivationShares::default();
        assert!(shares.update(2, [worker(0, 1, true)]).is_some());
        assert!(shares.update(2, [worker(0, 1, true)]).is_none());
        shares.forget();
        assert!(shares.update(2, [worker(0, 1, true)]).is_some());
        assert!(shares.update(2, [worker(1, 1, true)]).is_some());
    }

    #[test]
    fn a_worker_without_a_successor_takes_what_waits_before_it_ends() {
        let mut shares = ActivationShares::default();
        let due = |shares: &ActivationShares, now| -> Vec<u32> {
            shares.due_to_leave(Time(now)).map(|worker| worker.0).collect()
        };
        shares.leaves(Time(0), WorkerId(1));
        shares.leaves(Time(0), WorkerId(2));
        // Told twice, it has no more time.
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
        /// Nothing new goes to a slot that is not ready while another one is, or whose worker is
        /// not there while another one's is; and somebody always gets something.
        #[test]
        fn nobody_gets_connections_who_cannot_take_them_while_somebody_can(
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
