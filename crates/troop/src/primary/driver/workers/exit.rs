//! Ends of workers: signals, and what is done when a process has ended.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use troop_core::event::ExitHow;
use troop_core::primary::WorkerState;
use troop_core::{Time, WorkerId};
use troop_sys::process::{self, Exit};
use troop_sys::process_group::HeldGroup;
use troop_sys::tree::ProcessTree;
use troop_sys::{diag, socket};

use super::orphans::{KILL_DELAY, TERMINATE};
use super::{Process, Workers};
use crate::error::Error;
use crate::event::Event;
use crate::primary::cgroup::WorkerCgroup;
use crate::primary::driver::Driver;
use crate::primary::driver::channels::LAST_READS;

/// `SIGKILL`.
const KILL: i32 = 9;
/// `SIGINT`.
const INTERRUPT: i32 = 2;
/// Maximum time to look for processes that have left a worker's group, among all that there are.
const MAX_WALK: Duration = Duration::from_millis(20);

impl Process {
    /// Its process group, if it leads one.
    fn group(&self) -> Option<HeldGroup> {
        let pidfd = self.leads_group.then(|| self.pidfd.as_fd().try_clone_to_owned())?;
        Some(HeldGroup::new(self.handle.pid(), pidfd.ok()?))
    }

    /// How it has ended, if it has.
    pub(super) fn try_reap(&self) -> Option<ExitHow> {
        let ended = if self.adopted {
            process::try_peek(self.pidfd.as_fd())
        } else {
            process::try_reap(self.pidfd.as_fd())
        };
        match ended {
            Ok(ended) => ended.map(how),
            Err(_) => Some(ExitHow::Unknown),
        }
    }
}

/// How a process has ended.
pub(in crate::primary) fn how(exit: Exit) -> ExitHow {
    match exit {
        Exit::Code(code) => ExitHow::Code(code),
        Exit::Signal(signal) => ExitHow::Signal(signal),
        Exit::Unknown => ExitHow::Unknown,
    }
}

impl Workers {
    /// A worker has been reaped: what it has left in its process group or control group, or elsewhere
    /// with its token, is to end too: by `SIGTERM`, and by `SIGKILL` two seconds later, or at the end
    /// of the grace period that the worker had to finish. `is_group_asked` is whether its group got
    /// the worker's stop signal.
    pub(super) fn end_leftovers(
        &mut self,
        now: Time,
        group: Option<HeldGroup>,
        cgroup: Option<WorkerCgroup>,
        tree: Option<ProcessTree>,
        grace: Option<Time>,
        is_group_asked: bool,
    ) {
        let kill_at = grace.unwrap_or(now).max(now + KILL_DELAY);
        let has_cgroup = cgroup.is_some();
        self.orphans.end(now, cgroup, kill_at);
        let group = group.filter(|_| !has_cgroup);
        // Those that have got the stop signal finish as that asks them to.
        let signal = if is_group_asked && grace.is_some() { 0 } else { TERMINATE };
        let group = group.and_then(|mut group| group.signal(signal).then_some(group));
        let tree = tree.filter(|tree| group.is_some() || tree.has_token());
        self.strays.end(now, tree, group, kill_at);
    }

    /// Has what workers left behind killed soon: the cluster is to end at once.
    pub(in crate::primary::driver) fn hurry_leftovers(&mut self, now: Time) {
        self.orphans.hurry(now);
        self.strays.hurry(now);
    }

    /// The poller has reported the process of this worker.
    pub(in crate::primary::driver) fn may_have_ended(&mut self, worker: WorkerId) {
        self.reported.push(worker);
    }

    /// Ends a worker by a signal.
    pub(in crate::primary::driver) fn kill(&self, worker: WorkerId, signal: i32) {
        let Some(process) = self.processes.get(&worker) else { return };
        process.handle.note_signal(signal);
        let is_swept = signal == 9 && process.cgroup.as_ref().is_some_and(WorkerCgroup::kill);
        // Its leader has not been reaped, so the group is surely the worker's own.
        if process.leads_group && signal == 9 && !is_swept {
            // First those that may have left its group, which cannot be found any more when their
            // parents have ended.
            // Where they are found by their token, that happens after the worker's end.
            if !process.tree.as_ref().is_some_and(ProcessTree::has_token) {
                process::signal_descendants(process.handle.pid(), signal, MAX_WALK);
            }
            let _ = process::signal_group(process.handle.pid(), signal);
        }
        let _ = process::signal(process.pidfd.as_fd(), signal);
    }

    /// Asks a worker to finish, by its stop signal. `is_first` is whether it was not asked before,
    /// by a message.
    fn terminate(&mut self, worker: WorkerId, is_first: bool) {
        if let Some(process) = self.processes.get(&worker) {
            let signal = process.ends_by.stop;
            if is_first {
                process.handle.note_asked(signal);
            }
            self.ask(worker, signal);
        }
    }

    /// Sends a signal that asks a worker to finish, to its group if that is to have it.
    fn ask(&mut self, worker: WorkerId, signal: i32) {
        let Some(process) = self.processes.get_mut(&worker) else { return };
        let pid = process.handle.pid();
        let is_to_group = || {
            // Terminals send it to all, so a shell waits for its program to end by it.
            process.stop_group.unwrap_or_else(|| signal == INTERRUPT && process::is_shell(pid))
        };
        // Its leader has not been reaped, so the group is surely the worker's own.
        if process.leads_group && is_to_group() && process::signal_group(pid, signal).is_ok() {
            process.is_group_asked = true;
            process.handle.note_signal(signal);
        } else {
            self.kill(worker, signal);
        }
    }

    /// Asks a worker to finish that was asked before, by its kill signal if it has one.
    pub(in crate::primary::driver) fn insist(&mut self, worker: WorkerId) {
        if let Some(signal) = self.processes.get(&worker).and_then(|process| process.ends_by.kill) {
            self.ask(worker, signal);
        }
    }

    /// Whether a message announces a worker's end.
    pub(in crate::primary::driver) fn are_announced_to(&self, worker: WorkerId) -> bool {
        self.processes.get(&worker).is_some_and(|process| process.announced)
    }

    /// Why a worker was killed, if it was because memory ran out.
    fn memory_error(&mut self, id: WorkerId) -> Option<Error> {
        let killed = diag::killed_for_memory();
        let more = std::mem::replace(&mut self.killed_for_memory, killed) < killed;
        let cgroup = self.processes.get(&id)?.cgroup.as_ref();
        match cgroup.and_then(WorkerCgroup::broken_limit) {
            Some(limit) => Some(Error::OverMemory(limit >> 20)),
            None => more.then_some(Error::OutOfMemory),
        }
    }
}

impl Driver {
    /// Asks a worker to finish, by its stop signal.
    pub(in crate::primary::driver) fn terminate(&mut self, worker: WorkerId) {
        let status = self.cluster.primary.status(worker);
        // No message reaches one that has said nothing, or has no channel.
        let is_first = self.workers.hears_signals_only(worker)
            || status.is_some_and(|status| status.state == WorkerState::None);
        if let Some(worker) = self.workers.handle(worker).cloned() {
            self.refresh(&worker);
        }
        self.workers.terminate(worker, is_first);
    }

    /// Treats a worker as ended that `SIGKILL` has not ended, so that its slot gets another one and
    /// a stop does not wait for it.
    pub(in crate::primary::driver) fn abandon(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.handle(id).cloned() else { return };
        if self.workers.ended.iter().any(|(ended, _)| *ended == id) {
            return;
        }
        let error = Error::Unkillable(worker.pid());
        self.events.push(Event::Error { worker: Some(worker.clone()), error: Arc::new(error) });
        self.channel_closed(id, false);
        self.end_notifications(id);
        self.refresh(&worker);
        self.cluster.exited(self.now, id, ExitHow::Signal(KILL));
        self.workers.ended.push((id, false));
        self.workers.spawner.ended(id);
    }

    /// The process of an abandoned worker may have ended.
    fn reap_abandoned(&mut self, id: WorkerId) {
        if self.try_reap(id).is_some()
            && let Some(process) = self.workers.unkillable.remove(&id)
        {
            let group = process.group();
            self.workers.end_leftovers(self.now, group, process.cgroup, process.tree, None, false);
            self.cluster.ended_at_last();
        }
    }

    /// Treats the workers as ended whose processes the poller has reported since the last call.
    pub(in crate::primary::driver) fn reap_ended(&mut self) {
        for id in std::mem::take(&mut self.workers.reported) {
            self.reap(id);
        }
    }

    /// A worker's process may have ended.
    pub(in crate::primary::driver) fn reap(&mut self, id: WorkerId) {
        let Some(process) = self.workers.processes.get(&id) else {
            return self.reap_abandoned(id);
        };
        if self.workers.ended.iter().any(|(ended, _)| *ended == id) {
            return;
        }
        let handle = process.handle.clone();
        let Some(how) = self.try_reap(id) else { return };
        // What ends with it has as long to finish as it had.
        let grace = self.cluster.supervisor().and_then(|supervisor| supervisor.grace_of(id));
        let grace = grace.filter(|_| how != ExitHow::Signal(KILL));
        if how == ExitHow::Signal(KILL)
            && let Some(error) = self.workers.memory_error(id)
        {
            self.events.push(Event::Error { worker: Some(handle.clone()), error: Arc::new(error) });
        }
        let Some(process) = self.workers.processes.get_mut(&id) else { return };
        let (cgroup, tree) = (process.cgroup.take(), process.tree.take());
        let is_group_asked = process.is_group_asked;
        // Its number is free from now on, and no signal may go to the group by that any more.
        let group = process.group();
        process.leads_group = false;
        self.workers.end_leftovers(self.now, group, cgroup, tree, grace, is_group_asked);
        // Its last words: what it wrote before it died is in the channel. Others may hold its end
        // open, and write into it without end, so no more is read than there is now.
        let there = self.channels.get(id).map_or(0, |channel| socket::unread(&channel.socket));
        self.read(id, LAST_READS, there);
        self.channel_closed(id, true);
        self.end_notifications(id);
        self.keep_consumed(id);
        // The core forgets its status now.
        self.refresh(&handle);
        self.cluster.exited(self.now, id, how);
        self.workers.ended.push((id, true));
        self.workers.spawner.ended(id);
    }
}
