//! What ended workers leave behind in their control groups, which ends too. Processes without one are
//! [`strays`](super::strays).

use std::time::Duration;

use troop_core::Time;
use troop_sys::process;

use crate::primary::cgroup::WorkerCgroup;

/// Minimum time between `SIGTERM` and `SIGKILL`.
pub(super) const KILL_DELAY: Duration = Duration::from_secs(2);
/// Interval between checks whether they have ended.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);

pub(super) const KILL: i32 = 9;
pub(super) const TERMINATE: i32 = 15;

/// Processes that one ended worker has left behind.
struct Orphans {
    cgroup: WorkerCgroup,
    kill_at: Time,
}

/// Those of all ended workers.
#[derive(Default)]
pub(super) struct AllOrphans {
    of_workers: Vec<Orphans>,
    check_at: Option<Time>,
}

impl AllOrphans {
    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.check_at
    }

    pub(super) fn is_empty(&self) -> bool {
        self.of_workers.is_empty()
    }

    pub(super) fn tick(&mut self, now: Time) {
        if self.check_at.is_some_and(|due| due <= now) {
            self.check(now);
        }
    }

    /// A worker that had a control group of its own has been reaped: what is left of it is to end
    /// too.
    pub(super) fn end(&mut self, now: Time, cgroup: Option<WorkerCgroup>, kill_at: Time) {
        let Some(cgroup) = cgroup.filter(|cgroup| !cgroup.remove()) else {
            // No process is left, as nearly always.
            return;
        };
        process::signal_all(|| cgroup.members(), TERMINATE);
        self.of_workers.push(Orphans { cgroup, kill_at });
        self.check_at.get_or_insert(now + CHECK_INTERVAL);
    }

    /// Has processes killed that have longer to end.
    pub(super) fn hurry(&mut self, now: Time) {
        self.of_workers.iter_mut().for_each(|left| left.kill_at = left.kill_at.min(now));
    }

    fn check(&mut self, now: Time) {
        self.of_workers.retain_mut(|left| {
            if left.kill_at <= now && !left.cgroup.kill() {
                process::signal_all(|| left.cgroup.members(), KILL);
            }
            // The kernel may need a moment to empty a control group.
            !left.cgroup.remove() && left.kill_at + KILL_DELAY > now
        });
        self.check_at = (!self.is_empty()).then(|| now + CHECK_INTERVAL);
    }
}
