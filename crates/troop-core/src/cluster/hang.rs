//! Ends hung workers in a way that may show where they hang: first by the signal on which they
//! write a report, if there is one, then by `SIGABRT`, then by `SIGKILL`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::{Time, WorkerId};

/// Time between the signal that asks a hung worker for a report and `SIGABRT`.
const REPORT_TIMEOUT: Duration = Duration::from_secs(1);
/// Time between `SIGABRT` and `SIGKILL`.
const ABORT_TIMEOUT: Duration = Duration::from_secs(2);

/// `SIGABRT`.
pub const ABORT: i32 = 6;
/// `SIGKILL`.
pub const KILL: i32 = 9;

/// The next signal for a hung worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Pending {
    worker: WorkerId,
    signal: i32,
    due: Time,
}

/// Hung workers, and the next signal for each.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HungWorkers {
    pending: Vec<Pending>,
}

impl HungWorkers {
    /// Returns the time of the next signal.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        self.pending.iter().map(|pending| pending.due).min()
    }

    /// Handles a hung worker, and returns the first signal for it: the report signal, if there is
    /// one.
    pub fn hangs(&mut self, now: Time, worker: WorkerId, report_signal: Option<i32>) -> i32 {
        let first = report_signal.unwrap_or(ABORT);
        self.plan_after(now, worker, first);
        first
    }

    /// Returns a signal that is due. Call until it returns `None`.
    pub fn next_signal(&mut self, now: Time) -> Option<(WorkerId, i32)> {
        let at = self.pending.iter().position(|pending| pending.due <= now)?;
        let Pending { worker, signal, .. } = self.pending.swap_remove(at);
        self.plan_after(now, worker, signal);
        Some((worker, signal))
    }

    /// Handles the end of a worker's process.
    pub fn exited(&mut self, worker: WorkerId) {
        self.pending.retain(|pending| pending.worker != worker);
    }

    fn plan_after(&mut self, now: Time, worker: WorkerId, signal: i32) {
        let (next, patience) = match signal {
            KILL => return,
            ABORT => (KILL, ABORT_TIMEOUT),
            _ => (ABORT, REPORT_TIMEOUT),
        };
        self.pending.push(Pending { worker, signal: next, due: now + patience });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const USR2: i32 = 12;

    fn signals(hung: &mut HungWorkers, until: u64) -> Vec<(u64, u32, i32)> {
        let mut all = Vec::new();
        while let Some(due) = hung.next_deadline().filter(|due| due.0 <= until) {
            while let Some((worker, signal)) = hung.next_signal(due) {
                all.push((due.0, worker.0, signal));
            }
        }
        all
    }

    #[test]
    fn a_hung_worker_is_asked_for_a_report_then_aborted_then_killed() {
        let mut hung = HungWorkers::default();
        assert_eq!(hung.hangs(Time(10), WorkerId(1), Some(USR2)), USR2);
        assert_eq!(hung.next_signal(Time(1009)), None);
        assert_eq!(signals(&mut hung, 9999), [(1010, 1, ABORT), (3010, 1, KILL)]);
        assert_eq!(hung.next_deadline(), None);
    }

    #[test]
    fn without_a_report_signal_it_is_aborted_at_once() {
        let mut hung = HungWorkers::default();
        assert_eq!(hung.hangs(Time(10), WorkerId(1), None), ABORT);
        assert_eq!(signals(&mut hung, 9999), [(2010, 1, KILL)]);
    }

    #[test]
    fn a_worker_that_has_ended_gets_no_more_signals() {
        let mut hung = HungWorkers::default();
        hung.hangs(Time(0), WorkerId(1), Some(USR2));
        hung.hangs(Time(0), WorkerId(2), Some(USR2));
        hung.exited(WorkerId(1));
        assert_eq!(signals(&mut hung, 9999), [(1000, 2, ABORT), (3000, 2, KILL)]);
    }

    proptest! {
        /// For any sequence of hangs and ends, a worker that does not end is killed within the time
        /// of all steps, and its signals escalate.
        #[test]
        fn every_hung_worker_that_does_not_end_is_killed(
            steps in prop::collection::vec((0..4u32, any::<bool>(), prop::option::of(Just(USR2)), 0..900u64), 1..40)
        ) {
            let mut hung = HungWorkers::default();
            let mut now = 0;
            let mut last: std::collections::BTreeMap<u32, i32> = Default::default();
            let hardness = |signal: i32| match signal { KILL => 2, ABORT => 1, _ => 0 };
            for (worker, ends, report, passes) in steps {
                for (_, worker, signal) in signals(&mut hung, now + passes) {
                    let before = last.insert(worker, signal);
                    prop_assert!(before.is_some_and(|before| hardness(before) < hardness(signal)));
                }
                now += passes;
                if ends {
                    hung.exited(WorkerId(worker));
                    last.remove(&worker);
                } else {
                    last.entry(worker)
                        .or_insert_with(|| hung.hangs(Time(now), WorkerId(worker), report));
                }
            }
            for (_, worker, signal) in signals(&mut hung, now + 3000) {
                last.insert(worker, signal);
            }
            prop_assert!(last.values().all(|signal| *signal == KILL), "{:?}", last);
            prop_assert_eq!(hung.next_deadline(), None);
        }
    }
}
