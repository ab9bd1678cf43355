//! Carries out what the core and the supervisor decide, and handles signals.

use std::io::Read;
use std::os::fd::AsFd;
use std::sync::PoisonError;
use std::time::Duration;

use troop_core::WorkerId;
use troop_core::event::Notice;
use troop_core::primary::{Action, Successors, USUAL_WEIGHT, WorkerState};
use troop_core::supervise::{
    Afterwards, Cause, GiveUp, Order, Progress, Supervisor, SupervisorState,
};
use troop_sys::process;

use super::{Driver, SignalMeans};
use crate::event::{Consequence, Event};
use crate::primary::cgroup::WorkerCgroup;
use crate::primary::handle::WorkerHandle;
use crate::primary::{Fork, MOST_WORKERS, Reload, spawn};

/// A signal to stop that arrives within this time of the first one is the same request: `timeout`,
/// shells and service managers signal a process and then its group.
const SAME_STOP: Duration = Duration::from_millis(500);

impl Driver {
    pub(super) fn act(&mut self) {
        loop {
            while let Some(action) = self.core.next_action() {
                self.apply_actions(action);
            }
            if let Some(order) = self.supervisor.as_mut().and_then(Supervisor::next_order) {
                self.apply_order(order);
            } else if !self.core.has_unused()
                || !self.core.close_abandoned(self.now, self.successors())
            {
                return;
            }
        }
    }

    /// Who may ask for the listeners that no worker has.
    fn successors(&self) -> Successors {
        match &self.supervisor {
            Some(supervisor) if supervisor.expects_workers() => Successors::Awaited,
            Some(_) => Successors::Nobody,
            None => self.forks_to_come,
        }
    }

    pub(super) fn apply_actions(&mut self, action: Action) {
        match action {
            Action::Deliver { worker, listener, conn, seq, batched } => {
                self.deliver(worker, listener, conn, seq, batched)
            }
            Action::Release { conn, taken } => {
                let client = self.conns.try_remove(conn.0 as usize);
                if let (Some(client), Some(_)) = (client, &self.closing) {
                    self.close_aside(client.fd);
                }
                if let Some(given) = self.injected.remove(&conn) {
                    let _ = given.known.send(taken);
                }
            }
            Action::Send { worker, line } => {
                if let Some(channel) = self.channel(worker) {
                    channel.send_line(&line);
                    self.unflushed.push(worker);
                }
            }
            Action::SendListener { worker, listener, shard, line } => {
                // Copies that a worker asks for and does not read are bounded. First what waits is
                // written, as far as there is room.
                let most = self.core.budget().handle_share();
                let is_full = |channel: &mut crate::primary::channel::Channel| {
                    channel.outbox.handles() >= most
                };
                if self.channel(worker).is_some_and(is_full) {
                    self.flush_channel(worker);
                    if self.channel(worker).is_some_and(is_full) {
                        self.core.listener_unsent(worker, listener);
                        return;
                    }
                }
                let copy = self.socket(listener, shard).map(|(_, socket)| socket.fd.try_clone());
                match (copy, self.channel(worker)) {
                    (Some(Ok(copy)), Some(channel)) => {
                        channel.send_line_with(&line, copy);
                        self.unflushed.push(worker);
                    }
                    // Out of descriptors: the worker must not wait for ever.
                    (_, Some(_)) => self.core.listener_unsent(worker, listener),
                    (_, None) => {}
                }
            }
            Action::Probe { worker, line } => self.send_probe(worker, &line),
            Action::Bind { listener, worker, spec } => self.bind(listener, worker, spec),
            Action::Reach { listener, worker } => self.reach(listener, Some(worker)),
            Action::Unbind { listener } => self.unbind(listener),
            Action::Watch { listener, shard, on } => self.watch(listener, shard, on),
            Action::Take { listener, shard, count } => self.take_queued(listener, shard, count),
            Action::Open { listener } => self.open_more(listener),
            Action::Steer { listener, program } => self.steer(listener, &program),
            Action::Sample { listener } => self.sample(listener),
            Action::Count { worker } => self.count(worker),
            Action::Kill { worker, hung: true } => self.end_hung(worker),
            Action::Kill { worker, .. } => self.kill(worker, 9),
            Action::HandleSettled { worker, ticket, delivered } => {
                self.handle_settled(worker, ticket, delivered)
            }
            Action::Notify(notice) => self.noticed(notice),
        }
    }

    pub(super) fn noticed(&mut self, notice: Notice) {
        let id = match notice {
            Notice::NotSteered { at, reason } => {
                self.events.push(Event::NotSteered { address: at, reason });
                return;
            }
            Notice::ListenerClosed { at, dropped, missed } => {
                self.events.push(Event::ListenerClosed { address: at.clone(), dropped });
                if let Some(asked) = missed {
                    self.is_missed(asked, at);
                }
                return;
            }
            Notice::Forked { worker, .. }
            | Notice::Online { worker }
            | Notice::Listening { worker, .. }
            | Notice::Disconnected { worker, .. }
            | Notice::Exited { worker, .. }
            | Notice::Stalled { worker, .. }
            | Notice::Misbehaved { worker, .. } => worker,
        };
        let Some(worker) = self.processes.get(&id).map(|p| p.handle.clone()) else { return };
        self.refresh(&worker);
        if matches!(notice, Notice::Exited { how, .. } if !how.is_success()) {
            self.remember_fallen(worker.clone());
        }
        let has_ipc = self.processes.get(&id).is_some_and(|process| process.kept_end.is_none());
        let now = self.now;
        if let Some(supervisor) = &mut self.supervisor {
            match &notice {
                Notice::Online { .. } => supervisor.online(now, id, has_ipc),
                Notice::Listening { .. } => {
                    supervisor.listens_at(id, self.core.addresses_of(id));
                    supervisor.listening(now, id);
                }
                Notice::Disconnected { .. } => supervisor.disconnected(now, id),
                Notice::Exited { how, .. } => supervisor.exited(now, id, *how),
                _ => {}
            }
        } else if matches!(notice, Notice::Disconnected { .. } | Notice::Exited { .. }) {
            // What was said of forks was said before this end was known.
            self.forks_to_come = Successors::Unknown;
        }
        let listens = matches!(notice, Notice::Listening { .. });
        self.events.push(match notice {
            Notice::Forked { .. } => Event::Fork { worker },
            Notice::Online { .. } => Event::Online { worker },
            Notice::Listening { at, .. } => Event::Listening { worker, address: at },
            Notice::Disconnected { .. } => Event::Disconnect { worker },
            Notice::Exited { how, .. } => Event::Exit { worker, exit: how },
            Notice::Misbehaved { violation, cut_off, .. } => {
                let consequence = if cut_off { Consequence::Killed } else { Consequence::Reported };
                Event::Misbehaved { worker, violation, consequence }
            }
            Notice::Stalled { stalled: true, .. } => Event::Stalled { worker },
            Notice::Stalled { stalled: false, .. } => Event::Resumed { worker },
            Notice::NotSteered { .. } | Notice::ListenerClosed { .. } => return,
        });
        if listens {
            self.is_found(id);
        }
    }

    /// Makes what the core knows about a worker visible to the program.
    pub(super) fn refresh(&mut self, worker: &WorkerHandle) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let mut visible = worker.shared.status.lock().unwrap_or_else(PoisonError::into_inner);
        match self.core.status(worker.id()) {
            Some(status) => {
                *visible = status;
                if status.in_table {
                    table.insert(worker.id(), worker.clone());
                } else {
                    table.remove(&worker.id());
                }
            }
            None => {
                visible.state = WorkerState::Dead;
                visible.connected = false;
                visible.exited_after_disconnect.get_or_insert(false);
                table.remove(&worker.id());
            }
        }
    }

    pub(super) fn apply_order(&mut self, order: Order) {
        match order {
            Order::Fork(slot) => {
                let weight = self.weights.get(slot.0).copied().unwrap_or(USUAL_WEIGHT);
                let result = self.fork(
                    &Fork::new().weight(weight),
                    Some(u32::try_from(slot.0).unwrap_or(u32::MAX)),
                );
                let Some(supervisor) = &mut self.supervisor else { return };
                match result {
                    Ok(worker) => {
                        supervisor.forked(self.now, slot, worker.id());
                        if self.settings.expect_ipc() {
                            supervisor.expect_ipc(self.now, worker.id());
                        }
                    }
                    Err(e) => {
                        supervisor.fork_failed(self.now, slot, e.chain(), spawn::is_for_good(&e))
                    }
                }
            }
            Order::Hold(worker) => self.core.hold(self.now, worker, true),
            Order::Admit(worker) => self.core.hold(self.now, worker, false),
            Order::Disconnect(worker) => {
                // A worker that is replaced leaves its listeners to its successor, which may not
                // have asked for all of them yet.
                let keep = self
                    .supervisor
                    .as_ref()
                    .is_some_and(|s| s.state() != SupervisorState::Stopping);
                // Its clients have somebody else to go to, but should not all come at once.
                let others = self.supervisor.as_ref().is_some_and(|s| {
                    !matches!(s.state(), SupervisorState::Paused | SupervisorState::Stopping)
                        && !s.is_in_the_way(worker)
                });
                let drain_spread = others.then_some(self.drain_spread);
                if !self.request_disconnect(worker, keep, drain_spread) {
                    self.kill(worker, 15);
                }
                if self.supervisor.as_ref().is_some_and(|s| s.is_surplus(worker)) {
                    self.core.excuse(worker);
                }
            }
            Order::Terminate(worker) => self.kill(worker, 15),
            Order::Kill(worker) => self.kill(worker, 9),
            Order::Tell(progress) => {
                let mut rolls_back = false;
                self.note_end(&progress);
                match &progress {
                    Progress::GivingUp(_) | Progress::Stopping => {
                        self.core.hurry();
                        self.core.close_unused_listeners();
                    }
                    Progress::RecycleFailed { worker, .. } => {
                        self.recycling.failed(self.now, *worker)
                    }
                    // In the second case the workers are new, but nobody reaches them.
                    Progress::ReloadFinished
                    | Progress::ReloadFailed { then: Afterwards::Replaced, .. } => {
                        self.before_reload = None;
                        self.core.forget_shared();
                        self.missed.reload_finished();
                    }
                    Progress::NotRestarting { worker, .. } => self.core.excuse(*worker),
                    Progress::ReloadStarted { .. } => {
                        self.listeners_before_reload = self.core.listeners().collect()
                    }
                    Progress::ReloadFailed { .. } => {
                        let before = std::mem::take(&mut self.listeners_before_reload);
                        self.core.close_unused_but(&before);
                        // So that whatever is started from now on is like those that serve.
                        if let Some(before) = self.before_reload.take() {
                            self.settings = before;
                            rolls_back = true;
                        }
                    }
                    _ => {}
                }
                self.events.push(Event::Supervision(progress));
                if rolls_back && let Some(supervisor) = &mut self.supervisor {
                    supervisor.roll_back(self.now);
                }
            }
            Order::CheckListeners => {
                let unreachable = self.check_listeners();
                if let Some(supervisor) = &mut self.supervisor {
                    supervisor.listeners_checked(unreachable);
                }
            }
            Order::Answer(ticket, answer) => self.answer(ticket, answer),
            Order::Finish(outcome) => {
                self.core.close_unused_listeners();
                self.outcome = Some(outcome);
            }
        }
    }

    /// Remembers how the last unexpected end of a worker came about.
    fn note_end(&mut self, progress: &Progress) {
        self.last_end = Some(match progress {
            Progress::Restarting { cause, .. }
            | Progress::GivingUp(GiveUp::NeverReady { cause, .. }) => match cause {
                Cause::Ended(worker, how) => format!("worker {worker}: {how}"),
                Cause::NotStarted(reason) => reason.clone(),
            },
            Progress::NotRestarting { worker, how } => format!("worker {worker}: {how}, for good"),
            _ => return,
        });
    }

    /// False if it cannot be told, because its channel is closed.
    pub(super) fn request_disconnect(
        &mut self,
        worker: WorkerId,
        keep_listeners: bool,
        drain_spread: Option<Duration>,
    ) -> bool {
        let told = self.core.disconnect(worker, keep_listeners, drain_spread);
        let hears = self.processes.get(&worker).is_none_or(|process| process.kept_end.is_none());
        if told && !hears && !self.leaves_activated(worker) {
            self.kill(worker, 15);
        }
        told
    }

    /// Ends a worker by a signal.
    pub(super) fn kill(&mut self, worker: WorkerId, signal: i32) {
        let Some(process) = self.processes.get(&worker) else { return };
        process.handle.note_signal(signal);
        let is_swept = signal == 9 && process.cgroup.as_ref().is_some_and(WorkerCgroup::kill);
        // Its leader has not been reaped, so the group is surely the worker's own.
        if process.leads_group && signal == 9 && !is_swept {
            // First those that may have left its group, which cannot be found any more when their
            // parents have ended.
            process::signal_descendants(process.handle.pid(), signal);
            let _ = process::signal_group(process.handle.pid(), signal);
        }
        let _ = process::signal(process.pidfd.as_fd(), signal);
    }

    pub(super) fn signalled(&mut self, number: u32) {
        let Some((pipe, means)) = self.signals.get_mut(number as usize) else { return };
        // As many bytes as signals.
        let count = pipe.read(&mut [0; 16]).unwrap_or(0);
        let means = *means;
        for _ in 0..count {
            match (means, &mut self.supervisor) {
                (SignalMeans::Stop, Some(supervisor)) => match self.stop_signalled {
                    Some(first) if self.now.since(first) < SAME_STOP => {}
                    first => {
                        self.stop_signalled = first.or(Some(self.now));
                        if supervisor.is_stopping() {
                            supervisor.stop_now(self.now);
                        } else {
                            supervisor.stop(self.now);
                        }
                    }
                },
                (SignalMeans::StopNow, Some(supervisor)) => supervisor.stop_now(self.now),
                (SignalMeans::OneMore, Some(supervisor)) => {
                    supervisor.scale(self.now, (supervisor.wanted() + 1).min(MOST_WORKERS))
                }
                // The last one stays. Where there is none, there is none to end either.
                (SignalMeans::OneLess, Some(supervisor)) => supervisor.scale(
                    self.now,
                    supervisor.wanted().saturating_sub(1).max(supervisor.wanted().min(1)),
                ),
                (SignalMeans::Reload, Some(_)) => self.reload(Reload::new(), None),
                (SignalMeans::Pause, Some(supervisor)) => supervisor.pause(self.now),
                (SignalMeans::ReapOrphans, _) => self.reap_orphans(),
                (_, None) => {}
            }
        }
    }

    /// What process 1 does for children that are not its own.
    pub(super) fn reap_orphans(&mut self) {
        let processes = &self.processes;
        process::reap_orphans(|pid| processes.values().any(|p| p.handle.pid() == pid));
    }
}
