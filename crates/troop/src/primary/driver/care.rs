//! Looks after the workers' processes: replaces those that have become too big or too old, ends
//! those that are hung, and what the ended leave behind.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use troop_core::{Time, WorkerId};
use troop_sys::{diag, process};

use super::Driver;
use crate::events::Event;
use crate::primary::cgroup::WorkerCgroup;
use crate::primary::policies::RecyclePolicy;

/// How often it is looked whether a worker is due to be replaced.
const BEAT: Duration = Duration::from_secs(1);
/// How long a worker whose successor did not come up is left in peace.
const PEACE: Duration = Duration::from_secs(60);
/// What is done to a hung worker, and how long it may take until the next thing is.
const REPORT_PATIENCE: Duration = Duration::from_secs(1);
const ABORT_PATIENCE: Duration = Duration::from_secs(2);
/// How long what a worker has left behind may take to end.
const LEFTOVER_PATIENCE: Duration = Duration::from_secs(2);
/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(100);

const ABORT: i32 = 6;
const KILL: i32 = 9;
const TERMINATE: i32 = 15;

/// What an ended worker has left behind.
struct Leftover {
    /// Its process group.
    group: Option<u32>,
    /// Those of it that were seen.
    members: Vec<OwnedFd>,
    cgroup: Option<WorkerCgroup>,
    kill_at: Time,
}

impl Leftover {
    /// Who is left now, also of those who were started meanwhile.
    fn look(&mut self) {
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

/// Recycling, hung workers, and processes that ended workers left behind.
#[derive(Default)]
pub(crate) struct Care {
    pub(crate) policy: RecyclePolicy,
    beat_at: Option<Time>,
    /// Hung workers, the next signal for each, and when.
    hung: Vec<(WorkerId, i32, Time)>,
    leftovers: Vec<Leftover>,
    look_at: Option<Time>,
}

impl Care {
    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.hung.iter().map(|(_, _, at)| *at).chain(self.beat_at).chain(self.look_at).min()
    }

    /// Whether processes are left of workers that have ended.
    pub(super) fn is_needed(&self) -> bool {
        !self.leftovers.is_empty()
    }
}

impl Driver {
    /// Begins to look after the workers.
    pub(super) fn begin_recycling(&mut self) {
        if !self.care.policy.is_idle() {
            self.care.beat_at = Some(self.now + BEAT);
        }
    }

    pub(super) fn take_care(&mut self) {
        if self.care.beat_at.is_some_and(|due| due <= self.now) {
            self.care.beat_at = Some(self.now + BEAT);
            self.recycle_one();
        }
        if self.care.look_at.is_some_and(|due| due <= self.now) {
            self.look_at_leftovers();
        }
        while let Some(at) = self.care.hung.iter().position(|(_, _, due)| *due <= self.now) {
            let (worker, signal, _) = self.care.hung.swap_remove(at);
            self.escalate(worker, signal);
        }
    }

    /// Hands a worker a connection to nothing. It is a socket of its own, so that no two workers
    /// have one in common.
    pub(super) fn send_probe(&mut self, worker: WorkerId, line: &[u8]) {
        // The answer must not have to wait for the program.
        self.reclaim_channel(worker);
        match (UnixStream::pair(), self.channel(worker)) {
            (Ok((socket, _)), Some(channel)) => {
                channel.send_line_with(line, socket.into());
                self.unflushed.push(worker);
            }
            (Err(_), Some(_)) => self.core.probe_unsent(self.now, worker),
            (_, None) => {}
        }
    }

    /// Ends a hung worker in a way that may tell where it hangs: by a report if it makes one, by a
    /// core dump if there are such, by force.
    pub(super) fn end_hung(&mut self, worker: WorkerId) {
        let first = self.settings.report_signal.unwrap_or(ABORT);
        self.escalate(worker, first);
    }

    fn escalate(&mut self, worker: WorkerId, signal: i32) {
        if !self.processes.contains_key(&worker) {
            return;
        }
        self.kill(worker, signal);
        match signal {
            KILL => {}
            ABORT => self.care.hung.push((worker, KILL, self.now + ABORT_PATIENCE)),
            _ => self.care.hung.push((worker, ABORT, self.now + REPORT_PATIENCE)),
        }
    }

    /// Replaces a worker that is due, if there is one and no others are being replaced.
    fn recycle_one(&mut self) {
        let Some(supervisor) = &self.supervisor else { return };
        let now = self.now;
        let due = self.processes.iter().find_map(|(id, process)| {
            if process.peace_until.is_some_and(|until| until > now)
                || supervisor.standing(now, *id).is_none_or(|(ready, _)| !ready)
            {
                return None;
            }
            let taken = self.core.status(*id).map_or(0, |status| status.stats.taken);
            Some((
                *id,
                self.care.policy.reason(
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

    pub(super) fn leave_in_peace(&mut self, worker: WorkerId) {
        let until = self.now + PEACE;
        if let Some(process) = self.processes.get_mut(&worker) {
            process.peace_until = Some(until);
        }
    }

    /// A worker that led a process group, or had a control group of its own, has been reaped: what
    /// is left of it is to end too.
    pub(super) fn end_leftovers(&mut self, leader: Option<u32>, cgroup: Option<WorkerCgroup>) {
        let cgroup = cgroup.filter(|cgroup| !cgroup.remove());
        let group = leader
            .filter(|leader| cgroup.is_none() && process::signal_group(*leader, TERMINATE).is_ok());
        if group.is_none() && cgroup.is_none() {
            // Nobody is left; so it is nearly always.
            return;
        }
        let mut left =
            Leftover { group, members: Vec::new(), cgroup, kill_at: self.now + LEFTOVER_PATIENCE };
        left.look();
        if let Some(cgroup) = &left.cgroup {
            process::signal_all(|| cgroup.members(), TERMINATE);
        }
        self.care.leftovers.push(left);
        self.care.look_at.get_or_insert(self.now + LOOK);
    }

    fn look_at_leftovers(&mut self) {
        let now = self.now;
        self.care.leftovers.retain_mut(|left| {
            left.look();
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
            (!is_late && !left.members.is_empty())
                || (!removed && left.kill_at + LEFTOVER_PATIENCE > now)
        });
        self.care.look_at = self.care.is_needed().then(|| now + LOOK);
    }

    /// A test of a worker has failed.
    pub(super) fn is_unhealthy(&mut self, worker: WorkerId, reason: String, replace: bool) {
        let Some(handle) = self.processes.get(&worker).map(|process| process.handle.clone()) else {
            return;
        };
        self.events.push(Event::Unhealthy(handle, reason.clone()));
        let in_peace = self
            .processes
            .get(&worker)
            .and_then(|process| process.peace_until)
            .is_some_and(|until| until > self.now);
        if replace
            && !in_peace
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
