//! Ends of workers that are the keeper's children: it tells how they have ended, and reaps them when
//! that has been dealt with.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use troop_core::event::ExitHow;
use troop_core::{Time, WorkerId};
use troop_sys::keeping;
use troop_sys::process::{self, Exit};

use super::Workers;
use super::exit::how;
use crate::keeper::{self, Kind, Link, Message};
use crate::primary::driver::Driver;

/// How long an ended worker waits to be told of by the keeper.
const REPORT_TIMEOUT: Duration = Duration::from_secs(1);

/// Time in which workers that were being started are searched for, and the interval between searches.
const UNKNOWN_TIME: Duration = Duration::from_secs(2);
const UNKNOWN_INTERVAL: Duration = Duration::from_millis(50);

/// What the keeper has told.
pub(super) struct Kept {
    link: &'static Link,
    /// Ends that are not dealt with yet.
    ends: BTreeMap<u32, Exit>,
    /// Workers that have ended, of which it has not told yet, and since when.
    awaited: Vec<(WorkerId, Time)>,
}

impl Kept {
    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.awaited.iter().map(|(_, since)| *since + REPORT_TIMEOUT).min()
    }

    /// Returns workers that have waited long enough.
    pub(super) fn missed(&self, now: Time) -> Vec<WorkerId> {
        let is_over = |since: Time| since + REPORT_TIMEOUT <= now;
        self.awaited.iter().filter(|(_, since)| is_over(*since)).map(|(id, _)| *id).collect()
    }

    /// The end of this child is dealt with.
    fn reap(&self, pid: u32) {
        // A keeper that has ended reaps nothing.
        let _ = self.link.send(&Message::about(Kind::Reap, pid));
    }
}

impl Workers {
    /// Has a keeper's children for workers from now on.
    pub(in crate::primary::driver) fn keep(&mut self, link: &'static Link) {
        self.spawner.is_kept = true;
        self.kept = Some(Kept { link, ends: BTreeMap::new(), awaited: Vec::new() });
    }

    /// Whether another engine could go on with the workers at any time.
    pub(in crate::primary::driver) fn can_be_kept(&self) -> bool {
        self.kept.is_some() && !self.are_embedded()
    }

    /// The keeper tells that a child has ended.
    pub(in crate::primary::driver) fn told(&mut self, pid: u32, exit: Exit) {
        let Some(kept) = &mut self.kept else { return };
        kept.ends.insert(pid, exit);
        let all = self.processes.iter().chain(self.unkillable.iter());
        let worker = all.filter(|(_, process)| process.handle.pid() == pid).map(|(id, _)| *id);
        match worker.last() {
            Some(worker) => self.reported.push(worker),
            // An orphan, or a process that has not become a worker. How it ended is kept as long as it
            // may be one that is being started.
            None => {
                kept.reap(pid);
                self.forget_others();
            }
        }
    }

    /// Forgets ends of processes that are not workers, once no start is under way.
    pub(super) fn forget_others(&mut self) {
        let Some(kept) = &mut self.kept else { return };
        if self.forks.is_empty() {
            let (processes, unkillable) = (&self.processes, &self.unkillable);
            let is_worker = |pid: u32| {
                let mut all = processes.values().chain(unkillable.values());
                all.any(|process| process.handle.pid() == pid)
            };
            kept.ends.retain(|pid, _| is_worker(*pid));
        }
    }
}

impl Driver {
    /// How a worker's process has ended, if it has.
    pub(super) fn try_reap(&mut self, id: WorkerId) -> Option<ExitHow> {
        let workers = &mut self.workers;
        let process = workers.processes.get(&id).or_else(|| workers.unkillable.get(&id))?;
        let Some(kept) = workers.kept.as_mut().filter(|_| !process.adopted) else {
            return process.try_reap();
        };
        let pid = process.handle.pid();
        if !process::has_ended(process.pidfd.as_fd()) {
            // What was told was another process, which had the number before.
            kept.ends.remove(&pid);
            return None;
        }
        let since = kept.awaited.iter().find(|(worker, _)| *worker == id).map(|(_, since)| *since);
        let exit = match kept.ends.remove(&pid) {
            Some(exit) => exit,
            // The former engine has dealt with its end, and has not written that down any more.
            None if process::is_reaped(process.pidfd.as_fd()) => Exit::Unknown,
            None if kept.link.is_broken()
                || since.is_some_and(|since| since + REPORT_TIMEOUT <= self.now) =>
            {
                Exit::Unknown
            }
            None => {
                if since.is_none() {
                    kept.awaited.push((id, self.now));
                    // It would be reported over and over.
                    self.poller.remove(&process.pidfd);
                }
                return None;
            }
        };
        kept.awaited.retain(|(worker, _)| *worker != id);
        kept.reap(pid);
        Some(how(exit))
    }

    /// Ends workers that a killed engine has started and of which its state does not know, if they have no
    /// channel whose end they see. Begun before this engine starts others.
    pub(in crate::primary::driver) fn end_unknown_workers(&self) {
        let Some(link) = keeper::link().filter(|_| self.workers.setup.has_activation()) else {
            return;
        };
        let known = |pid: &u32| {
            let mut all = self.workers.processes.values();
            *pid == std::process::id() || all.any(|process| process.handle.pid() == *pid)
        };
        let children = keeping::children_of(link.keeper()).into_iter().filter(|pid| !known(pid));
        let mut unknown: Vec<_> =
            children.filter_map(|pid| Some((pid, process::pidfd(pid).ok()?))).collect();
        if unknown.is_empty() {
            return;
        }
        let end = move || {
            let until = Instant::now() + UNKNOWN_TIME;
            // One that has not executed its program yet does so soon.
            while !unknown.is_empty() && Instant::now() < until {
                unknown.retain(|(pid, pidfd)| {
                    let is_worker = has_sockets_of_its_own(*pid);
                    if is_worker {
                        let _ = process::signal(pidfd.as_fd(), 15);
                    }
                    !is_worker
                });
                std::thread::sleep(UNKNOWN_INTERVAL);
            }
        };
        let _ = std::thread::Builder::new().name("troop-unknown".into()).spawn(end);
    }

    /// The keeper has ended, and tells of nothing any more.
    pub(in crate::primary::driver) fn await_no_ends(&mut self) {
        if let Some(kept) = &self.workers.kept {
            self.workers.reported.extend(kept.awaited.iter().map(|(id, _)| *id));
        }
    }
}

/// Whether a process was given sockets by activation itself, and not an ancestor of it.
fn has_sockets_of_its_own(pid: u32) -> bool {
    let own = format!("LISTEN_PID={pid}");
    std::fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|all| all.split(|byte| *byte == 0).any(|entry| entry == own.as_bytes()))
}
