use serde::{Deserialize, Serialize};

use super::{Connection, Policy, WorkerView};
use crate::id::WorkerId;
use crate::worker_map::WorkerMap;

/// Picks the less busy of two random workers (the power of two choices). Nearly as even as
/// [`LeastConnections`], and robust against outdated views: a worker that looked idle a moment ago
/// is not flooded.
///
/// [`LeastConnections`]: super::LeastConnections
#[derive(Debug, Serialize, Deserialize)]
pub struct PowerOfTwo {
    ready: Vec<WorkerView>,
    at: WorkerMap<usize>,
    random: u64,
}

impl PowerOfTwo {
    /// Creates the policy; `seed` starts its sequence of random numbers.
    #[must_use]
    pub fn new(seed: u64) -> PowerOfTwo {
        PowerOfTwo { ready: Vec::new(), at: WorkerMap::default(), random: seed | 1 }
    }

    /// Returns a random number below `end`.
    fn below(&mut self, end: usize) -> usize {
        // xorshift64*
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let random = self.random.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32;
        ((random * end as u64) >> 32) as usize
    }

    fn drop_out(&mut self, worker: WorkerId) {
        let Some(at) = self.at.remove(&worker) else { return };
        self.ready.swap_remove(at);
        if let Some(moved) = self.ready.get(at) {
            self.at.insert(moved.worker, at);
        }
    }
}

impl Policy for PowerOfTwo {
    fn update(&mut self, view: WorkerView) {
        match self.at.get(&view.worker) {
            Some(&at) if view.ready => self.ready[at] = view,
            Some(_) => self.drop_out(view.worker),
            None if view.ready => {
                self.at.insert(view.worker, self.ready.len());
                self.ready.push(view);
            }
            None => {}
        }
    }

    fn remove(&mut self, worker: WorkerId) {
        self.drop_out(worker);
    }

    fn pick(&mut self, _: &Connection) -> Option<WorkerId> {
        match self.ready.len() {
            0 => None,
            1 => Some(self.ready[0].worker),
            n => {
                let one = self.below(n);
                let other = (one + 1 + self.below(n - 1)) % n;
                let (one, other) = (&self.ready[one], &self.ready[other]);
                Some(if other.cost() < one.cost() { other.worker } else { one.worker })
            }
        }
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
    fn equal_workers_get_equal_shares_and_the_busiest_gets_none() {
        let mut p2c = PowerOfTwo::new(1);
        (0..4).for_each(|w| p2c.update(view(w)));
        let mut shares = [0; 4];
        for _ in 0..40_000 {
            shares[p2c.pick(&Connection::default()).unwrap().0 as usize] += 1;
        }
        assert!(shares.iter().all(|share| (9_500..10_500).contains(share)), "{shares:?}");
        p2c.update(WorkerView { open: 9, ..view(2) });
        assert!((0..1000).all(|_| p2c.pick(&Connection::default()) != Some(WorkerId(2))));
        p2c.update(WorkerView { ready: false, ..view(0) });
        p2c.remove(WorkerId(1));
        assert!((0..1000).all(|_| p2c.pick(&Connection::default()) == Some(WorkerId(3))));
        p2c.remove(WorkerId(3));
        assert_eq!(p2c.pick(&Connection::default()), Some(WorkerId(2)));
        p2c.remove(WorkerId(2));
        assert_eq!(p2c.pick(&Connection::default()), None);
    }
}
