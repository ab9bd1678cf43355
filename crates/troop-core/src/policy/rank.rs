//! A priority queue with changeable keys: a binary heap with an index of its entries.

use serde::{Deserialize, Serialize};

use crate::id::WorkerId;
use crate::worker_map::WorkerMap;

/// Workers ordered by a key, the lowest first. All operations take logarithmic time.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Rank<K> {
    heap: Vec<(K, WorkerId)>,
    at: WorkerMap<usize>,
}

impl<K> Default for Rank<K> {
    fn default() -> Rank<K> {
        Rank { heap: Vec::new(), at: WorkerMap::default() }
    }
}

impl<K: Ord + Copy> Rank<K> {
    /// Adds a worker or changes its key.
    pub(super) fn set(&mut self, worker: WorkerId, key: K) {
        let at = match self.at.get(&worker) {
            Some(&at) => {
                self.heap[at].0 = key;
                at
            }
            None => {
                self.heap.push((key, worker));
                self.at.insert(worker, self.heap.len() - 1);
                self.heap.len() - 1
            }
        };
        self.settle(at);
    }

    pub(super) fn remove(&mut self, worker: WorkerId) {
        let Some(at) = self.at.remove(&worker) else { return };
        self.heap.swap_remove(at);
        if let Some((_, moved)) = self.heap.get(at) {
            self.at.insert(*moved, at);
            self.settle(at);
        }
    }

    pub(super) fn contains(&self, worker: WorkerId) -> bool {
        self.at.contains_key(&worker)
    }

    /// Returns the lowest key and its worker.
    pub(super) fn first(&self) -> Option<(K, WorkerId)> {
        self.heap.first().copied()
    }

    /// Restores the heap order after an entry's key has changed.
    fn settle(&mut self, mut at: usize) {
        while at > 0 && self.heap[at].0 < self.heap[(at - 1) / 2].0 {
            self.swap(at, (at - 1) / 2);
            at = (at - 1) / 2;
        }
        loop {
            let children =
                [2 * at + 1, 2 * at + 2].into_iter().filter(|child| *child < self.heap.len());
            let Some(least) = children.min_by_key(|child| self.heap[*child].0) else { break };
            if self.heap[at].0 <= self.heap[least].0 {
                break;
            }
            self.swap(at, least);
            at = least;
        }
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.heap.swap(a, b);
        self.at.insert(self.heap[a].1, a);
        self.at.insert(self.heap[b].1, b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn the_first_is_always_the_lowest(steps in prop::collection::vec((0..20u32, prop::option::of(0..50u32)), 0..200)) {
            let mut rank = Rank::default();
            let mut model = BTreeMap::new();
            for (worker, key) in steps {
                match key {
                    // Unique keys, so that the result is unambiguous.
                    Some(key) => {
                        rank.set(WorkerId(worker), (key, worker));
                        model.insert(worker, (key, worker));
                    }
                    None => {
                        rank.remove(WorkerId(worker));
                        model.remove(&worker);
                    }
                }
                prop_assert_eq!(rank.first().map(|(key, _)| key), model.values().min().copied());
                prop_assert_eq!(rank.contains(WorkerId(worker)), model.contains_key(&worker));
            }
        }
    }
}
