//! What ended workers leave behind: processes of their group or control group, which end too.
//! Those with a group of their own are [`strays`](super::strays).

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use troop_core::Time;
use troop_sys::process;

use crate::primary::cgroup::WorkerCgroup;

/// Time between `SIGTERM` and `SIGKILL`.
pub(super) const KILL_DELAY: Duration = Duration::from_secs(2);
/// Interval between checks whether they have ended.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);

pub(super) const KILL: i32 = 9;
pub(super) const TERMINATE: i32 = 15;

/// Processes that one ended worker has left behind.
struct Orphans {
    /// Its process group.
    group: Option<u32>,
    /// Those of it that were seen.
    members: Vec<OwnedFd>,
    cgroup: Option<WorkerCgroup>,
    kill_at: Time,
}

impl Orphans {
    /// Updates the list of remaining processes, with those that were started meanwhile.
    fn refresh(&mut self) {
        self.members.retain(|member| !process::has_ended(member.as_fd()));
        if !self.members.is_empty() {
            return;
        }
        self.members = match (&self.cgroup, self.group) {
            // It has those too that have left the process group.
            (Some(cgroup), _) => process::open_all(|| cgroup.members()),
            (None, Some(group)) => process::group_members(group),
            (None, None) => Vec::new(),
        };
        if self.members.is_empty() {
            // From now on its number may be another's.
            self.group = None;
        }
    }
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
}

impl AllOrphans {
    pub(super) fn tick(&mut self, now: Time) {
        if self.check_at.is_some_and(|due| due <= now) {
            self.check(now);
        }
    }

    /// A worker that led a process group, or had a control group of its own, has been reaped: what
    /// is left of it is to end too.
    pub(super) fn end(&mut self, now: Time, leader: Option<u32>, cgroup: Option<WorkerCgroup>) {
        let cgroup = cgroup.filter(|cgroup| !cgroup.remove());
        let group = leader
            .filter(|leader| cgroup.is_none() && process::signal_group(*leader, TERMINATE).is_ok());
        if group.is_none() && cgroup.is_none() {
            // No process is left, as nearly always.
            return;
        }
        let mut left = Orphans { group, members: Vec::new(), cgroup, kill_at: now + KILL_DELAY };
        left.refresh();
        if let Some(cgroup) = &left.cgroup {
            process::signal_all(|| cgroup.members(), TERMINATE);
        }
        self.of_workers.push(left);
        self.check_at.get_or_insert(now + CHECK_INTERVAL);
    }

    fn check(&mut self, now: Time) {
        self.of_workers.retain_mut(|left| {
            left.refresh();
            let is_late = left.kill_at <= now;
            if is_late && let Some(group) = left.group {
                // As long as one of them is there, the group is theirs.
                let _ = process::signal_group(group, KILL);
            }
            if is_late
                && let Some(cgroup) = &left.cgroup
                && !cgroup.kill()
            {
                process::signal_all(|| cgroup.members(), KILL);
            }
            // The kernel may need a moment to empty a control group.
            let removed = left.cgroup.as_ref().is_none_or(WorkerCgroup::remove);
            // Once killed, they are the kernel's.
            (!is_late && !left.members.is_empty()) || (!removed && left.kill_at + KILL_DELAY > now)
        });
        self.check_at = (!self.is_empty()).then(|| now + CHECK_INTERVAL);
    }
}
