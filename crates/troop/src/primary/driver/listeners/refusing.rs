//! Activated sockets at the end of the app: clients are refused as soon as no worker can accept
//! them. Workers close their copies when they get the stop signal, and may finish requests for
//! long; the primary's own copies would keep new clients waiting until the last one has ended.

use std::collections::BTreeSet;
use std::time::Duration;

use troop_core::cluster::serving::Waits;
use troop_core::supervise::Supervisor;
use troop_core::{Time, WorkerId};

use crate::primary::driver::Driver;

/// Interval between checks, while workers have copies.
const INTERVAL: Duration = Duration::from_millis(200);

/// What is known about the workers' copies.
#[derive(Default)]
pub(super) struct Refusing {
    check_at: Option<Time>,
    under_way: BTreeSet<WorkerId>,
    /// The workers that were seen without a copy since they were asked to end.
    without: BTreeSet<WorkerId>,
    /// Whether the sockets are shut down.
    is_done: bool,
}

impl Refusing {
    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.check_at
    }

    pub(super) fn is_done(&self) -> bool {
        self.is_done
    }
}

impl Driver {
    pub(in crate::primary::driver) fn tick_refusing(&mut self) {
        let is_stopping = self.cluster.supervisor().is_some_and(Supervisor::is_stopping);
        let refusing = &mut self.listeners.refusing;
        if !is_stopping || refusing.is_done || !self.workers.setup().has_activation() {
            refusing.check_at = None;
            return;
        }
        if refusing.check_at.is_some_and(|at| at > self.now) {
            return;
        }
        refusing.check_at = Some(self.now + INTERVAL);
        let all: Vec<WorkerId> = self.workers.ids().collect();
        let is_without = |worker: &WorkerId| refusing.without.contains(worker);
        if !all.is_empty() && !self.workers.is_starting() && all.iter().all(is_without) {
            refusing.is_done = true;
            refusing.check_at = None;
            for socket in self.workers.setup().activation() {
                socket.shut_down();
            }
            return;
        }
        let supervisor = self.cluster.supervisor();
        let is_leaving = |worker| supervisor.is_some_and(|s| s.leaves_by(worker).is_some());
        let due: Vec<WorkerId> = all
            .into_iter()
            .filter(|worker| is_leaving(*worker) && !refusing.without.contains(worker))
            .filter(|worker| refusing.under_way.insert(*worker))
            .collect();
        for worker in due {
            self.check_serving(worker);
        }
    }

    /// Notes the result of a check, also of one that was for another purpose.
    pub(in crate::primary::driver) fn note_copies(&mut self, worker: WorkerId, waits: Waits) {
        let is_leaving = self.cluster.supervisor().is_some_and(|s| s.leaves_by(worker).is_some());
        let refusing = &mut self.listeners.refusing;
        refusing.under_way.remove(&worker);
        if is_leaving && waits == Waits::Without {
            refusing.without.insert(worker);
        }
    }
}
