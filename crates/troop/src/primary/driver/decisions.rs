//! Carries out what the core decides.

use troop_core::cluster::Action as ClusterAction;
use troop_core::event::Notice;
use troop_core::primary::Action;
use troop_core::supervise::{Progress, Supervisor};
use troop_core::{ListenerId, WorkerId};

use super::Driver;
use super::channels::Channels;
use crate::event::{Consequence, Event};
use crate::primary::Reload;
use crate::primary::handle::WorkerHandle;

/// Why an address is reported as lost that no worker took over.
const MISSED: &str = "the worker that listened there has ended, and none that followed listens there; a reload starts new ones, and one with `--allow-moved` accepts the move";

/// Whether an action changes nothing but what is known of connections, or nothing at all.
#[inline]
fn is_of_connections(action: &ClusterAction) -> bool {
    match action {
        ClusterAction::Primary(action) => action.is_of_connections(),
        action => matches!(
            action,
            ClusterAction::Measure { .. }
                | ClusterAction::MeasureQueues { .. }
                | ClusterAction::CheckServing { .. }
                | ClusterAction::InspectConnections { .. }
                | ClusterAction::InspectListeners { .. }
        ),
    }
}

impl Driver {
    /// Carries out one of the core's actions. Its outcome is reported to the core, which may queue
    /// more actions.
    #[inline]
    pub(super) fn apply(&mut self, action: ClusterAction) {
        if !is_of_connections(&action) {
            self.change();
        }
        match action {
            ClusterAction::Primary(action) => self.apply_primary(action),
            action => self.apply_rare(action),
        }
    }

    /// Everything that does not happen for each connection or message.
    fn apply_rare(&mut self, action: ClusterAction) {
        match action {
            ClusterAction::Primary(action) => self.apply_primary(action),
            ClusterAction::Fork { slot, .. } if self.workers.are_embedded() => {
                self.ask_for_worker(slot);
            }
            ClusterAction::Draining { worker } => self.tell_draining(worker),
            ClusterAction::Fork { slot, weight } => self.fork_for_slot(slot, weight),
            ClusterAction::Announce { worker } => {
                if self.workers.are_announced_to(worker) {
                    self.channels.send(worker, b"\"shutdown\"\n");
                }
            }
            ClusterAction::Terminate { worker } => self.terminate(worker),
            ClusterAction::Insist { worker } => self.workers.insist(worker),
            ClusterAction::Abandon { worker } => self.abandon(worker),
            ClusterAction::Reload => self.reload(Reload::new(), None),
            ClusterAction::Signal { worker, signal } => self.workers.kill(worker, signal),
            ClusterAction::Measure { workers } => self.measure(&workers),
            ClusterAction::MeasureQueues { worker } => {
                let waits = self.waits_for(worker);
                self.cluster.queues_measured(self.now, worker, waits);
            }
            ClusterAction::CheckServing { worker } => self.check_serving(worker),
            ClusterAction::InspectConnections { needs_hindrances } => {
                self.inspect_connections(needs_hindrances);
            }
            ClusterAction::Ignored(ignored) => self.tell_ignored(&ignored),
            ClusterAction::InspectListeners { words_of } => self.inspect_listeners(words_of),
            ClusterAction::NotShared { other, worker, address, has_children } => {
                self.tell_not_shared(other, worker, address, has_children);
            }
            ClusterAction::Served { socket } => self.tell_served(socket),
            ClusterAction::SetShares { shares } => self.set_shares(&shares),
            ClusterAction::CheckListeners => {
                let unreachable = self.check_listeners();
                if let Some(supervisor) = self.cluster.supervisor_mut() {
                    supervisor.listeners_checked(unreachable);
                }
            }
            ClusterAction::RestoreSettings => {
                if let Some(before) = self.workers.take_setup_before_reload() {
                    self.use_setup(before);
                }
            }
            ClusterAction::KeepSettings => drop(self.workers.take_setup_before_reload()),
            ClusterAction::Unhealthy { worker, reason } => {
                if let Some(worker) = self.workers.handle(worker).cloned() {
                    self.events.push(Event::Unhealthy { worker, reason });
                }
            }
            ClusterAction::Found { worker, at } => self.events.push(Event::ListenerRestored {
                address: at,
                reason: format!("worker {worker} listens there"),
            }),
            ClusterAction::Report(progress) => {
                if matches!(progress, Progress::ReloadStarted { .. } | Progress::Pausing) {
                    self.workers.renew_starts();
                }
                self.events.push(Event::Supervision(progress));
            }
            ClusterAction::Answer(ticket, answer) => self.answer(ticket, answer),
            ClusterAction::Finish(outcome) => {
                self.workers.cancel_starts(self.now);
                self.ending.set_outcome(outcome);
            }
        }
    }

    fn apply_primary(&mut self, action: Action) {
        match action {
            Action::Deliver { worker, listener, conn, seq, batched } => {
                self.deliver(worker, listener, conn, seq, batched)
            }
            Action::Release { conn, taken } => {
                self.connections.release(self.now, conn, taken, &mut self.closing);
            }
            Action::Send { worker, line } => self.channels.send(worker, &line),
            Action::SendListener { worker, listener, shard, line, .. } => {
                self.send_listener(worker, listener, shard, &line)
            }
            Action::Probe { worker, line } => self.send_probe(worker, &line),
            Action::Bind { listener, worker, spec } => {
                self.is_urgent = true;
                self.release_closed();
                self.bind(listener, worker, spec);
            }
            Action::Reach { listener, worker } => self.reach(listener, Some(worker)),
            Action::Unbind { listener } => {
                // A program that starts workers itself may start more.
                let is_end = |s: &Supervisor| s.is_stopping() && !s.is_embedded();
                let for_good = self.cluster.supervisor().is_some_and(is_end);
                let Driver { listeners, poller, closing, copies, now, .. } = self;
                listeners.unbind(listener, poller, *now, for_good, (closing, copies));
            }
            Action::Watch { listener, shard, on } => self.watch(listener, shard, on),
            Action::Take { listener, shard, count } => self.take_queued(listener, shard, count),
            Action::Open { listener } => {
                self.is_urgent = true;
                self.open_more(listener);
            }
            Action::Steer { listener, program } => self.steer(listener, &program),
            Action::Sample { listener } => self.sample(listener),
            Action::Count { worker } => self.count(worker),
            // The cluster makes signals of them.
            Action::Kill { worker, .. } => self.workers.kill(worker, 9),
            Action::Raises { .. } => {}
            Action::HandleSettled { worker, ticket, delivered } => {
                let core = &mut self.cluster.primary;
                self.channels.handle_settled(self.now, core, worker, ticket, delivered)
            }
            Action::Notify(notice) => self.noticed(notice),
            Action::Messages { count } => self.report_messages(count),
        }
    }

    /// Sends a worker a copy of a listener's socket.
    fn send_listener(&mut self, worker: WorkerId, listener: ListenerId, shard: u16, line: &[u8]) {
        // Copies that a worker asks for and does not read are bounded. First what waits is written,
        // as far as there is room.
        let most = self.cluster.primary.budget().handle_share();
        let is_full = |channels: &Channels| {
            channels.get(worker).is_some_and(|channel| channel.outbox.handles() >= most)
        };
        if is_full(&self.channels) {
            self.flush_channel(worker);
            if is_full(&self.channels) {
                self.cluster.primary.listener_unsent(worker, listener);
                return;
            }
        }
        if self.channels.get(worker).is_none() {
            return;
        }
        match self.listeners.socket(listener, shard).map(|(_, socket)| socket.fd.try_clone()) {
            Some(Ok(copy)) => self.channels.send_with(worker, line, copy),
            // Out of descriptors: the worker must not wait for ever.
            _ => self.cluster.primary.listener_unsent(worker, listener),
        }
    }

    fn noticed(&mut self, notice: Notice) {
        let id = match notice {
            Notice::NotSteered { at, reason } => {
                self.events.push(Event::NotSteered { address: at, reason });
                return;
            }
            Notice::ModeChanged { at, mode, reason } => {
                self.events.push(Event::ModeChanged { address: at, mode, reason });
                return;
            }
            Notice::ListenerClosed { at, dropped } => {
                self.events.push(Event::ListenerClosed { address: at, dropped });
                return;
            }
            Notice::ListenerMissed { at, .. } => {
                self.events.push(Event::ListenerLost { address: at, reason: MISSED.into() });
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
        let Some(worker) = self.workers.handle(id).cloned() else { return };
        self.refresh(&worker);
        if matches!(notice, Notice::Exited { .. }) {
            // Not the handle, which keeps the pipes that nobody has taken.
            self.listeners.last_ended = Some((id, worker.kept_stderr()));
        }
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
            Notice::NotSteered { .. }
            | Notice::ModeChanged { .. }
            | Notice::ListenerClosed { .. }
            | Notice::ListenerMissed { .. } => return,
        });
    }

    /// Makes what the core knows about a worker visible to the program.
    pub(super) fn refresh(&mut self, worker: &WorkerHandle) {
        self.workers.show(worker, self.cluster.primary.status(worker.id()));
    }
}
