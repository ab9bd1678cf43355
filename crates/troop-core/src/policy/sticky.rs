use serde::{Deserialize, Serialize};

use super::partition::{BUCKETS, bucket_of, partition};
use super::{Connection, Policy, WorkerView};
use crate::id::WorkerId;

/// Picks the same worker for all connections of a client, by [`Connection::client`]. A client waits
/// while its worker is not ready, and moves only if the worker is out of service. It returns when
/// the shard has a worker again.
#[derive(Debug, Serialize, Deserialize)]
pub struct ByClient {
    shards: Vec<ShardWorkers>,
    table: Vec<u16>,
    /// The next shard in turn, for connections without a client's number.
    next: usize,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct ShardWorkers {
    /// The workers of the shard, the newest last; a reload has two for a while.
    workers: Vec<WorkerView>,
    /// The weight of its last worker; a vacant shard keeps it.
    weight: u32,
}

impl Default for ByClient {
    fn default() -> ByClient {
        ByClient { shards: Vec::new(), table: vec![0; BUCKETS], next: 0 }
    }
}

impl ByClient {
    /// Updates the assignment of clients after the workers of a shard have changed.
    fn changed(&mut self, at: usize, was_vacant: bool) {
        let shard = &mut self.shards[at];
        let weight = shard.workers.last().map_or(shard.weight, |w| w.weight);
        if std::mem::replace(&mut shard.weight, weight) != weight
            || shard.workers.is_empty() != was_vacant
        {
            let shards: Vec<_> =
                self.shards.iter().map(|p| (p.weight, !p.workers.is_empty())).collect();
            self.table = partition(&shards);
        }
    }
}

impl Policy for ByClient {
    fn update(&mut self, view: WorkerView) {
        let at = usize::from(view.shard);
        if self.shards.len() <= at {
            self.shards.resize_with(at + 1, ShardWorkers::default);
        }
        let workers = &mut self.shards[at].workers;
        let was_vacant = workers.is_empty();
        match workers.iter_mut().find(|w| w.worker == view.worker) {
            Some(known) => *known = view,
            None => workers.push(view),
        }
        self.changed(at, was_vacant);
    }

    fn remove(&mut self, worker: WorkerId) {
        let Some(at) =
            self.shards.iter().position(|p| p.workers.iter().any(|w| w.worker == worker))
        else {
            return;
        };
        self.shards[at].workers.retain(|w| w.worker != worker);
        self.changed(at, false);
    }

    fn pick(&mut self, connection: &Connection) -> Option<WorkerId> {
        let bucket = connection.client.map_or_else(
            || {
                self.next = (self.next + 389) % BUCKETS;
                self.next
            },
            bucket_of,
        );
        let shard = self.shards.get(usize::from(self.table[bucket]))?;
        shard.workers.last().map(|w| w.worker)
    }

    fn needs_peer(&self) -> bool {
        true
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
    fn a_client_keeps_its_worker_and_its_workers_successor() {
        let mut sticky = ByClient::default();
        let client = |n: u32| Connection { client: Some(n.wrapping_mul(0x9E37_79B1)), peer: None };
        let all = |sticky: &mut ByClient| -> Vec<_> {
            (0..200).map(|n| sticky.pick(&client(n)).map(|w| w.0)).collect()
        };
        assert_eq!(sticky.pick(&client(1)), None);
        (0..4u16).for_each(|n| sticky.update(WorkerView { shard: n, ..view(u32::from(n)) }));
        let before = all(&mut sticky);
        assert!((0..4).all(|w| before.contains(&Some(w))));
        sticky.update(WorkerView { ready: false, shard: 2, ..view(2) });
        assert_eq!(all(&mut sticky), before, "they wait for a busy one");
        // During a reload, the successor serves as soon as it has joined.
        sticky.update(WorkerView { shard: 2, ..view(12) });
        let reloaded: Vec<_> =
            before.iter().map(|w| if *w == Some(2) { Some(12) } else { *w }).collect();
        assert_eq!(all(&mut sticky), reloaded);
        sticky.remove(WorkerId(2));
        assert_eq!(all(&mut sticky), reloaded);
        sticky.remove(WorkerId(12));
        for (now, then) in all(&mut sticky).iter().zip(&before) {
            assert!(now == then || *then == Some(2));
        }
        sticky.update(WorkerView { shard: 2, ..view(22) });
        assert_eq!(
            all(&mut sticky).iter().filter(|w| **w == Some(22)).count(),
            before.iter().filter(|w| **w == Some(2)).count()
        );
    }
}
