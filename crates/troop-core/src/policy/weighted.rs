use serde::{Deserialize, Serialize};

use super::rank::Rank;
use super::{Connection, Policy, WorkerView};
use crate::id::WorkerId;
use crate::worker_map::WorkerMap;

/// Picks workers in turns proportional to their weights, spread evenly (stride scheduling). A
/// worker that is not ready at its turn is skipped and does not make up for it. A worker of weight
/// 0 is picked only if no other one is ready.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Weighted {
    /// Ready workers by the virtual time of their next turn.
    ready: Rank<(u128, WorkerId)>,
    turns: WorkerMap<Turn>,
    now: u128,
}

#[derive(Debug, Serialize, Deserialize)]
struct Turn {
    weight: u32,
    next: u128,
}

/// Virtual time between two turns of a worker of weight 1.
const STRIDE: u128 = 1 << 32;
/// Virtual time of the next turn of workers of weight 0.
const NEVER: u128 = u128::MAX;

impl Policy for Weighted {
    fn update(&mut self, view: WorkerView) {
        // Spreads the first turns of workers that join at the same time.
        let first = self.now + STRIDE / u128::from(view.weight.max(1));
        let member = self
            .turns
            .get_or_insert_with(view.worker, || Turn { weight: view.weight, next: first });
        if std::mem::replace(&mut member.weight, view.weight) != view.weight {
            member.next = first;
        }
        if !view.ready {
            self.ready.remove(view.worker);
            return;
        }
        if !self.ready.contains(view.worker) {
            member.next = member.next.max(self.now);
        }
        let next = if view.weight == 0 { NEVER } else { member.next };
        self.ready.set(view.worker, (next, view.worker));
    }

    fn remove(&mut self, worker: WorkerId) {
        self.ready.remove(worker);
        self.turns.remove(&worker);
    }

    fn pick(&mut self, _: &Connection) -> Option<WorkerId> {
        let ((due, _), worker) = self.ready.first()?;
        if due == NEVER {
            return Some(worker);
        }
        let member = self.turns.get_mut(&worker)?;
        self.now = self.now.max(due);
        member.next = due + STRIDE / u128::from(member.weight.max(1));
        self.ready.set(worker, (member.next, worker));
        Some(worker)
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

    #[test]
    fn shares_are_in_proportion_to_the_weights_and_evenly_spread() {
        let mut weighted = Weighted::default();
        for (worker, weight) in [(1, 100), (2, 300), (3, 600)] {
            weighted.update(WorkerView { weight, ..view(worker) });
        }
        for round in 0..50 {
            let mut shares = [0; 4];
            for _ in 0..10 {
                shares[weighted.pick(&Connection::default()).unwrap().0 as usize] += 1;
            }
            assert!(
                shares[1] <= 2 && (2..=4).contains(&shares[2]) && (5..=7).contains(&shares[3]),
                "round {round}: {shares:?}"
            );
        }
        // A worker that returns from a pause does not get the turns that it missed.
        weighted.update(WorkerView { ready: false, weight: 600, ..view(3) });
        assert!((0..100).all(|_| weighted.pick(&Connection::default()) != Some(WorkerId(3))));
        weighted.update(WorkerView { weight: 600, ..view(3) });
        let back =
            (0..10).filter(|_| weighted.pick(&Connection::default()) == Some(WorkerId(3))).count();
        assert!((5..=7).contains(&back), "{back}");
        // A worker of weight 0 has no share.
        weighted.update(WorkerView { weight: 0, ..view(2) });
        assert!((0..100).all(|_| weighted.pick(&Connection::default()) != Some(WorkerId(2))));
        (1..=3).filter(|w| *w != 2).for_each(|w| weighted.remove(WorkerId(w)));
        assert_eq!(
            weighted.pick(&Connection::default()),
            Some(WorkerId(2)),
            "but when nobody else is there"
        );
    }
}
