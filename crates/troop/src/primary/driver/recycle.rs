//! Recycling: replaces workers that are too big, too old or fail their health checks.

use std::os::fd::AsFd;
use std::time::Duration;

use troop_core::{Time, WorkerId};
use troop_sys::{diag, process};

use super::Driver;
use crate::events::Event;
use crate::primary::policies::RecyclePolicy;

/// Interval between checks whether a worker is due.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Time for which a worker is not recycled after its successor did not become ready.
const BACK_OFF: Duration = Duration::from_secs(60);

/// When workers are recycled, and when that is checked next.
#[derive(Default)]
pub(crate) struct Recycling {
    pub(crate) policy: RecyclePolicy,
    check_at: Option<Time>,
}

impl Recycling {
    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.check_at
    }
}

impl Driver {
    /// Begins to check whether workers are due, if any can be.
    pub(super) fn begin_recycling(&mut self) {
        if !self.recycling.policy.is_idle() {
            self.recycling.check_at = Some(self.now + CHECK_INTERVAL);
        }
    }

    pub(super) fn tick_recycling(&mut self) {
        if self.recycling.check_at.is_some_and(|due| due <= self.now) {
            self.recycling.check_at = Some(self.now + CHECK_INTERVAL);
            self.recycle_one();
        }
    }

    /// Replaces a worker that is due, if there is one and no others are being replaced.
    fn recycle_one(&mut self) {
        let Some(supervisor) = &self.supervisor else { return };
        let now = self.now;
        let due = self.processes.iter().find_map(|(id, process)| {
            if process.recycle_after.is_some_and(|until| until > now)
                || supervisor.standing(now, *id).is_none_or(|(ready, _)| !ready)
            {
                return None;
            }
            let taken = self.core.status(*id).map_or(0, |status| status.stats.taken);
            Some((
                *id,
                self.recycling.policy.reason(
                    *id,
                    process.handle.pid(),
                    now.since(process.since),
                    taken,
                )?,
            ))
        });
        if let Some((worker, reason)) = due {
            self.recycle(worker, reason);
        }
    }

    /// The successor of this worker did not become ready.
    pub(super) fn postpone_recycling(&mut self, worker: WorkerId) {
        let until = self.now + BACK_OFF;
        if let Some(process) = self.processes.get_mut(&worker) {
            process.recycle_after = Some(until);
        }
    }

    /// A test of a worker has failed.
    pub(super) fn is_unhealthy(&mut self, worker: WorkerId, reason: String, replace: bool) {
        let Some(handle) = self.processes.get(&worker).map(|process| process.handle.clone()) else {
            return;
        };
        self.events.push(Event::Unhealthy { worker: handle, reason: reason.clone() });
        let is_postponed = self
            .processes
            .get(&worker)
            .and_then(|process| process.recycle_after)
            .is_some_and(|until| until > self.now);
        if replace
            && !is_postponed
            && self.recycle(worker, reason)
            && let Some(signal) = self.settings.report_signal
            && let Some(process) = self.processes.get(&worker)
        {
            let _ = process::signal(process.pidfd.as_fd(), signal);
        }
    }
}

impl RecyclePolicy {
    /// Why a worker is due, if it is.
    fn reason(&self, worker: WorkerId, pid: u32, age: Duration, taken: u64) -> Option<String> {
        // Different for each worker, and always the same for one.
        let chance = f64::from(worker.0.wrapping_mul(2_654_435_769) >> 8) / f64::from(1 << 24);
        let part = 1.0 - self.jitter.clamp(0.0, 1.0) * chance;
        if let Some(limit) = self.age.filter(|limit| age >= limit.mul_f64(part)) {
            return Some(format!("it is {} s old, of at most {}", age.as_secs(), limit.as_secs()));
        }
        if let Some(limit) = self.connections.filter(|limit| taken as f64 >= *limit as f64 * part) {
            return Some(format!("it has taken {taken} connections, of at most {limit}"));
        }
        let limit = self.memory?;
        let rss = diag::usage(pid)?.rss;
        (rss > limit)
            .then(|| format!("it has {} MiB of memory, and may have {}", rss >> 20, limit >> 20))
    }
}
