use crate::id::WorkerId;
use crate::policy::Schedule;

/// Exact turns, in the order in which the workers joined. A worker that is not ready when its turn comes is passed over.
#[derive(Debug, Default)]
pub struct RoundRobin {
    workers: Vec<WorkerId>,
    /// Whose turn is next.
    next: usize,
}

impl Schedule for RoundRobin {
    fn add(&mut self, worker: WorkerId) {
        if !self.workers.contains(&worker) {
            self.workers.push(worker);
        }
    }

    fn remove(&mut self, worker: WorkerId) {
        if let Some(at) = self.workers.iter().position(|w| *w == worker) {
            self.workers.remove(at);
            if at < self.next {
                self.next -= 1;
            }
        }
    }

    fn pick(&mut self, ready: &mut dyn FnMut(WorkerId) -> bool) -> Option<WorkerId> {
        for _ in 0..self.workers.len() {
            if self.next >= self.workers.len() {
                self.next = 0;
            }
            let worker = self.workers[self.next];
            self.next += 1;
            if ready(worker) {
                return Some(worker);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_exact_whoever_comes_and_goes() {
        let mut rr = RoundRobin::default();
        (1..=3).for_each(|w| rr.add(WorkerId(w)));
        let turns =
            |rr: &mut RoundRobin, n: usize| -> Vec<u32> { (0..n).filter_map(|_| rr.pick(&mut |_| true)).map(|w| w.0).collect() };
        assert_eq!(turns(&mut rr, 4), [1, 2, 3, 1]);
        rr.remove(WorkerId(1));
        assert_eq!(turns(&mut rr, 3), [2, 3, 2]);
        rr.add(WorkerId(4));
        assert_eq!(turns(&mut rr, 4), [3, 4, 2, 3]);
        assert_eq!(rr.pick(&mut |w| w == WorkerId(2)), Some(WorkerId(2)));
        assert_eq!(rr.pick(&mut |_| false), None);
    }
}
