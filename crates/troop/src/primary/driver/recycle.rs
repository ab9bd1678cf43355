//! Measures workers for recycling and reports health checks; what follows is decided by the core.

use std::os::fd::AsFd;

use troop_core::WorkerId;
use troop_core::cluster::recycle::Candidate;
use troop_sys::{diag, process};

use super::Driver;
use crate::event::Event;

impl Driver {
    pub(super) fn tick_recycling(&mut self) {
        if self.recycling.is_due(self.now) {
            self.recycle_one();
        }
    }

    /// Replaces a worker that is due, if there is one and no others are being replaced.
    fn recycle_one(&mut self) {
        let Some(supervisor) = &self.supervisor else { return };
        let (now, needs_memory) = (self.now, self.recycling.needs_memory());
        let candidates = self.processes.iter().filter_map(|(id, process)| {
            supervisor.standing(now, *id).filter(|(ready, _)| *ready)?;
            Some(Candidate {
                worker: *id,
                age: now.since(process.since),
                taken: self.core.status(*id).map_or(0, |status| status.stats.taken),
                memory: needs_memory
                    .then(|| diag::usage(process.handle.pid()).map(|usage| usage.rss))
                    .flatten(),
            })
        });
        if let Some((worker, reason)) = self.recycling.first_due(now, candidates) {
            self.recycle(worker, reason);
        }
    }

    /// A worker has passed or failed a health check.
    pub(super) fn health_checked(&mut self, worker: WorkerId, result: Result<(), String>) {
        let Err(reason) = result else { return self.health.passed(worker) };
        let Some(handle) = self.processes.get(&worker).map(|process| process.handle.clone()) else {
            return;
        };
        let replace = self.health.failed(worker);
        self.events.push(Event::Unhealthy { worker: handle, reason: reason.clone() });
        if replace
            && !self.recycling.is_postponed(self.now, worker)
            && self.recycle(worker, reason)
            && let Some(signal) = self.settings.report_signal
            && let Some(process) = self.processes.get(&worker)
        {
            let _ = process::signal(process.pidfd.as_fd(), signal);
        }
    }
}
