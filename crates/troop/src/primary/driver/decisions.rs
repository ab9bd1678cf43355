//! Carries out what the core decides, and obeys signals.

use std::io::Read;
use std::os::fd::AsFd;
use std::sync::PoisonError;
use std::time::Duration;

use troop_core::WorkerId;
use troop_core::cluster::Action as ClusterAction;
use troop_core::event::Notice;
use troop_core::primary::{Action, WorkerState};
use troop_core::supervise::Progress;
use troop_sys::process;

use super::{Driver, SignalMeans};
use crate::event::{Consequence, Event};
use crate::primary::cgroup::WorkerCgroup;
use crate::primary::handle::WorkerHandle;
use crate::primary::{MAX_WORKERS, Reload};

/// A signal to stop that arrives within this time of the first one is the same request: `timeout`,
/// shells and service managers signal a process and then its group.
const SAME_STOP_WINDOW: Duration = Duration::from_millis(500);

/// Why an address is reported as lost that no worker took over.
const MISSED: &str = "the worker that listened there has ended, and none that followed listens there; a reload starts new ones, and one with `--allow-moved` accepts the move";

impl Driver {
    /// Carries out everything that the core wants done by now.
    pub(super) fn act(&mut self) {
        while let Some(action) = self.cluster.next_action(self.now) {
            match action {
                ClusterAction::Primary(action) => self.apply(action),
                action => self.apply_rare(action),
            }
        }
    }

    /// Everything that does not happen for each connection or message.
    fn apply_rare(&mut self, action: ClusterAction) {
        match action {
            ClusterAction::Primary(action) => self.apply(action),
            ClusterAction::Fork { slot, weight } => self.fork_for_slot(slot, weight),
            ClusterAction::Signal { worker, signal } => self.kill(worker, signal),
            ClusterAction::Measure { workers } => self.measure(&workers),
            ClusterAction::MeasureQueues { worker } => {
                let waits = self.waits_for(worker);
                self.cluster.queues_measured(self.now, worker, waits);
            }
            ClusterAction::SetShares { shares } => self.set_shares(&shares),
            ClusterAction::CheckListeners => {
                let unreachable = self.check_listeners();
                if let Some(supervisor) = self.cluster.supervisor_mut() {
                    supervisor.listeners_checked(unreachable);
                }
            }
            ClusterAction::RestoreSettings => {
                if let Some(before) = self.before_reload.take() {
                    self.use_setup(before);
                }
            }
            ClusterAction::KeepSettings => self.before_reload = None,
            ClusterAction::Unhealthy { worker, reason } => {
                if let Some(process) = self.processes.get(&worker) {
                    let worker = process.handle.clone();
                    self.events.push(Event::Unhealthy { worker, reason });
                }
            }
            ClusterAction::Found { worker, at } => self.events.push(Event::ListenerRestored {
                address: at,
                reason: format!("worker {worker} listens there"),
            }),
            ClusterAction::Report(progress) => {
                if matches!(progress, Progress::ReloadStarted { .. } | Progress::Pausing) {
                    self.forks.renew();
                }
                self.events.push(Event::Supervision(progress));
            }
            ClusterAction::Answer(ticket, answer) => self.answer(ticket, answer),
            ClusterAction::Finish(outcome) => {
                self.forks.cancel(self.now);
                self.outcome = Some(outcome);
            }
        }
    }

    pub(super) fn apply(&mut self, action: Action) {
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
                let most = self.cluster.primary.budget().handle_share();
                let is_full = |channel: &mut crate::primary::channel::Channel| {
                    channel.outbox.handles() >= most
                };
                if self.channel(worker).is_some_and(is_full) {
                    self.flush_channel(worker);
                    if self.channel(worker).is_some_and(is_full) {
                        self.cluster.primary.listener_unsent(worker, listener);
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
                    (_, Some(_)) => self.cluster.primary.listener_unsent(worker, listener),
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
            // The cluster makes a signal of it.
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
                if missed.is_some() {
                    self.events.push(Event::ListenerLost { address: at, reason: MISSED.into() });
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
    }

    /// Makes what the core knows about a worker visible to the program.
    pub(super) fn refresh(&mut self, worker: &WorkerHandle) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let mut visible = worker.shared.status.lock().unwrap_or_else(PoisonError::into_inner);
        match self.cluster.primary.status(worker.id()) {
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
            match (means, self.cluster.supervisor_mut()) {
                (SignalMeans::Stop, Some(supervisor)) => match self.stop_signalled {
                    Some(first) if self.now.since(first) < SAME_STOP_WINDOW => {}
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
                    supervisor.scale(self.now, (supervisor.wanted() + 1).min(MAX_WORKERS))
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

    /// What process 1 does for children that are not its own. One that is being started is not
    /// known yet.
    pub(super) fn reap_orphans(&mut self) {
        if !self.forks.is_empty() {
            return;
        }
        let processes = &self.processes;
        process::reap_orphans(|pid| processes.values().any(|p| p.handle.pid() == pid));
    }
}
