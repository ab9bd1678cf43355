use serde::{Deserialize, Serialize};

use super::rank::Rank;
use super::{Connection, Policy, WorkerView};
use crate::id::WorkerId;
use crate::worker_map::WorkerMap;

/// Picks the worker with the fewest open and pending connections plus reported load, relative to
/// its weight. Among equals, the one that was not picked for longest.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct LeastConnections {
    ready: Rank<(u64, u64)>,
    /// Counter of picks and joins.
    turn: u64,
    last_turn: WorkerMap<u64>,
}

impl Policy for LeastConnections {
    fn update(&mut self, view: WorkerView) {
        let turn = *self.last_turn.get_or_insert_with(view.worker, || {
            self.turn += 1;
            self.turn
        });
        if view.ready {
            self.ready.set(view.worker, (view.cost(), turn))
        } else {
            self.ready.remove(view.worker)
        }
    }

    fn remove(&mut self, worker: WorkerId) {
        self.ready.remove(worker);
        self.last_turn.remove(&worker);
    }

    fn pick(&mut self, _: &Connection) -> Option<WorkerId> {
        let ((cost, _), worker) = self.ready.first()?;
        self.turn += 1;
        self.last_turn.insert(worker, self.turn);
        self.ready.set(worker, (cost, self.turn));
        Some(worker)
    }

    fn needs_peer(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::view;
    use super::*;

    #[test]
    fn the_least_busy_worker_is_picked_and_equals_take_turns() {
        let mut least = LeastConnections::default();
        (1..=3).for_each(|w| least.update(view(w)));
        let turns: Vec<u32> =
            (0..6).filter_map(|_| least.pick(&Connection::default())).map(|w| w.0).collect();
        assert_eq!(turns, [1, 2, 3, 1, 2, 3]);
        least.update(WorkerView { open: 5, ..view(1) });
        least.update(WorkerView { pending: 2, ..view(2) });
        least.update(WorkerView { load: 1, ..view(3) });
        assert_eq!(least.pick(&Connection::default()), Some(WorkerId(3)));
        // A worker with twice the weight gets twice the connections.
        least.update(WorkerView { open: 1, weight: 50, ..view(3) });
        least.update(WorkerView { open: 2, weight: 100, ..view(2) });
        assert_eq!(least.pick(&Connection::default()), Some(WorkerId(2)));
        least.update(WorkerView { ready: false, ..view(2) });
        assert_eq!(least.pick(&Connection::default()), Some(WorkerId(3)));
        least.remove(WorkerId(3));
        least.remove(WorkerId(1));
        assert_eq!(least.pick(&Connection::default()), None);
    }
}
