use serde::{Deserialize, Serialize};

use super::{Connection, Policy, WorkerView};
use crate::id::WorkerId;
use crate::worker_map::WorkerMap;

/// Picks workers in exact turns, in the order in which they joined. A worker that is not ready at
/// its turn is skipped.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct RoundRobin {
    workers: Vec<WorkerId>,
    at: WorkerMap<usize>,
    /// One bit per worker: whether it is ready.
    ready: Vec<u64>,
    /// The index of the next worker.
    next: usize,
}

impl RoundRobin {
    /// Returns the first ready worker in `from..to`. Checks 64 workers at a time.
    fn first_ready(&self, from: usize, to: usize) -> Option<usize> {
        let mut at = from;
        while at < to {
            let word = self.ready.get(at / 64)? >> (at % 64);
            if word != 0 {
                let found = at + word.trailing_zeros() as usize;
                return (found < to).then_some(found);
            }
            at = (at / 64 + 1) * 64;
        }
        None
    }

    fn set(&mut self, at: usize, ready: bool) {
        if self.ready.len() <= at / 64 {
            self.ready.resize(at / 64 + 1, 0);
        }
        let bit = 1 << (at % 64);
        if ready { self.ready[at / 64] |= bit } else { self.ready[at / 64] &= !bit }
    }
}

impl Policy for RoundRobin {
    fn update(&mut self, view: WorkerView) {
        let at = *self.at.get_or_insert_with(view.worker, || {
            self.workers.push(view.worker);
            self.workers.len() - 1
        });
        self.set(at, view.ready);
    }

    fn remove(&mut self, worker: WorkerId) {
        let Some(at) = self.at.remove(&worker) else { return };
        let is_ready = |rr: &RoundRobin, n: usize| rr.first_ready(n, n + 1).is_some();
        for n in at..self.workers.len() {
            let follows = is_ready(self, n + 1);
            self.set(n, follows);
        }
        self.workers.remove(at);
        self.at.values_mut().filter(|other| **other > at).for_each(|other| *other -= 1);
        if at < self.next {
            self.next -= 1;
        }
    }

    fn pick(&mut self, _: &Connection) -> Option<WorkerId> {
        let found = self
            .first_ready(self.next, self.workers.len())
            .or_else(|| self.first_ready(0, self.next))?;
        self.next = found + 1;
        self.workers.get(found).copied()
    }

    fn needs_peer(&self) -> bool {
        false
    }

    fn needs_counts(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::view;
    use super::*;

    fn turns(rr: &mut RoundRobin, n: usize) -> Vec<u32> {
        (0..n).filter_map(|_| rr.pick(&Connection::default())).map(|w| w.0).collect()
    }

    #[test]
    fn turns_are_exact_while_workers_join_and_leave() {
        let mut rr = RoundRobin::default();
        (1..=3).for_each(|w| rr.update(view(w)));
        assert_eq!(turns(&mut rr, 4), [1, 2, 3, 1]);
        rr.remove(WorkerId(1));
        assert_eq!(turns(&mut rr, 3), [2, 3, 2]);
        rr.update(view(4));
        assert_eq!(turns(&mut rr, 4), [3, 4, 2, 3]);
        for busy in [2, 3, 4] {
            rr.update(WorkerView { ready: busy == 2, ..view(busy) });
        }
        assert_eq!(turns(&mut rr, 2), [2, 2]);
        rr.update(WorkerView { ready: false, ..view(2) });
        assert_eq!(turns(&mut rr, 1), [0u32; 0]);
    }

    #[test]
    fn the_turns_of_many_workers_are_exact_too() {
        let mut rr = RoundRobin::default();
        (0..200).for_each(|w| rr.update(view(w)));
        (0..200).filter(|w| w % 3 == 0).for_each(|w| rr.remove(WorkerId(w)));
        (0..200)
            .filter(|w| w % 3 == 1)
            .for_each(|w| rr.update(WorkerView { ready: w % 2 == 0, ..view(w) }));
        let expected: Vec<u32> =
            (0..200).filter(|w| w % 3 == 2 || (w % 3 == 1 && w % 2 == 0)).collect();
        assert_eq!(turns(&mut rr, expected.len()), expected);
        assert_eq!(turns(&mut rr, expected.len()), expected);
    }
}
