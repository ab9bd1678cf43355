//! What the program asks for: forks, messages, disconnects.

use std::sync::Arc;
use std::sync::mpsc::Receiver;

use signal_hook::consts::SIGKILL;
use troop_core::WorkerId;
use troop_core::supervise::Request;

use super::{Driver, Reply};
use crate::error::Error;
use crate::event::Event;
use crate::inherited::InheritedSocket;
use crate::primary::Reload;
use crate::primary::wake::{Command, DriverHandle};
use crate::setup::Setup;

/// What the program asks for, in its order.
pub(super) struct Inbox {
    commands: Receiver<Command>,
    handle: DriverHandle,
    /// Workers with messages in their mailboxes.
    posted: Vec<WorkerId>,
    /// Answers that wait until the actions of their commands are carried out.
    answers: Vec<Answer>,
}

/// Sends one answer.
type Answer = Box<dyn FnOnce(&mut Driver) + Send>;

impl Inbox {
    pub(super) fn new(commands: Receiver<Command>, handle: DriverHandle) -> Inbox {
        Inbox { commands, handle, posted: Vec::new(), answers: Vec::new() }
    }

    /// The way of commands to this inbox.
    pub(super) fn handle(&self) -> &DriverHandle {
        &self.handle
    }

    /// Returns whether the program has sent anything since the last call.
    pub(super) fn open(&mut self) -> bool {
        self.handle.wake.answer(&mut self.posted)
    }

    /// Sends an answer after the queued actions are carried out and their events are published.
    pub(super) fn answer_later(&mut self, answer: impl FnOnce(&mut Driver) + Send + 'static) {
        self.answers.push(Box::new(answer));
    }
}

impl Driver {
    /// Handles the next command. Returns false if there is none, after collecting messages for
    /// workers.
    pub(super) fn handle_next_command(&mut self) -> bool {
        if let Ok(command) = self.inbox.commands.try_recv() {
            if !matches!(command, Command::Snapshot(_)) {
                self.change();
            }
            self.handle_command(command);
            return true;
        }
        let mut posted = std::mem::take(&mut self.inbox.posted);
        for worker in posted.drain(..) {
            self.collect(worker);
        }
        self.inbox.posted = posted;
        false
    }

    /// Sends the answers that are due. Returns whether there were any.
    pub(super) fn send_answers(&mut self) -> bool {
        if self.inbox.answers.is_empty() {
            return false;
        }
        // A program that gets an answer finds its events published.
        self.events.publish_early();
        for answer in std::mem::take(&mut self.inbox.answers) {
            answer(self);
        }
        true
    }

    fn handle_command(&mut self, command: Command) {
        match command {
            Command::Setup(changes) => self.change_setup(*changes),
            Command::Fork(fork, done) => self.fork(fork, done),
            Command::Spawned(worker, result) => self.spawned(worker, *result),
            Command::Adopt(adoption, done) => {
                let result = self.adopt(*adoption);
                self.answer_when_kept(move || drop(done.send(result)));
            }
            Command::Disconnect(worker) => {
                self.cluster.disconnect(self.now, worker, false, None);
                if let Some(worker) = self.workers.handle(worker).cloned() {
                    self.refresh(&worker);
                }
            }
            Command::Signal(worker, signal, done) => {
                let result = match self.workers.signal(worker, signal) {
                    Some(result) => {
                        if signal == SIGKILL {
                            self.cluster.was_killed(self.now, worker);
                        }
                        result.map_err(Error::io("send the signal"))
                    }
                    None => Err(Error::NoWorker(worker)),
                };
                let _ = done.send(result);
            }
            Command::Status(worker, done) => {
                self.count(worker);
                let _ = done.send(self.cluster.primary.status(worker));
            }
            Command::SetScheduling(pattern, scheduling, done) => {
                let later = self.cluster.primary.set_scheduling(self.now, pattern, scheduling);
                let address = |id| self.cluster.primary.listener_address(id);
                let later = later.into_iter().filter_map(address).collect();
                self.answer_when_kept(move || drop(done.send(later)));
            }
            Command::Snapshot(done) => {
                let _ = done.send(self.snapshot());
            }
            Command::CurrentSetup(done) => {
                let _ = done.send(self.workers.setup().clone());
            }
            Command::Ready(reply) => self.request(Request::Ready, Reply::Ready(reply)),
            Command::Scale(workers, reply) => {
                self.request(Request::Scale(workers), Reply::Done(reply));
            }
            Command::Embed(starter, seed) => self.embed(starter, seed),
            Command::RestartAs(policy, scales_ends) => self.cluster.restart_as(policy, scales_ends),
            Command::IsStartWanted(number, done) => {
                let _ = done.send(self.is_start_wanted(number));
            }
            Command::StartFailed(number, reason) => self.start_failed(number, reason),
            Command::Supervision(ended, done) => {
                // The program may have seen a worker's end before this cluster has.
                if let Some(worker) = ended {
                    self.reap(worker);
                }
                self.inbox.answer_later(move |driver| {
                    let _ = done.send(driver.supervision());
                });
            }
            Command::ForksToCome(forks) => self.cluster.set_forks_to_come(forks),
            Command::ReportedReady(worker) => self.says_ready(worker),
            Command::Release(worker) => self.release(worker),
            Command::ReleaseAll => self.cluster.release_all(self.now),
            Command::Offer(socket) => self.offer(socket),
            Command::KeepListeners(keep) => self.cluster.primary.set_keep_listeners(keep),
            Command::Answer(ticket, worker) => self.answered(ticket, worker),
            Command::SetWeight(worker, weight, done) => {
                let result = self.set_weight(worker, weight);
                // The kernel knows it before the program does.
                self.answer_when_kept(move || drop(done.send(result)));
            }
            Command::Consumed(worker) => self.consumed(worker),
            Command::NotificationConsumed(worker) => self.notification_consumed(worker),
            Command::CloseChannel(worker) => self.channel_closed(worker, false),
            Command::DisconnectAll(done) => self.disconnect_all(done),
            Command::Reload(reload, reply) => self.reload(*reload, Some(Reply::Reload(reply))),
            Command::Pause(reply) => self.request(Request::Pause, Reply::Done(reply)),
            Command::StraysFound(found) => self.strays_found(found),
            Command::ServingChecked(worker, waits) => {
                self.cluster.serving_checked(self.now, worker, waits);
                self.note_copies(worker, waits);
            }
            Command::ListenersInspected(inspection) => {
                self.listeners_inspected(inspection.0, &inspection.1)
            }
            Command::ConnectionsInspected(inspection) => {
                self.connections_inspected(&inspection);
            }
            Command::HealthChecked(worker, result) => {
                self.cluster.health_checked(self.now, worker, result);
            }
            Command::Inject(worker, pattern, ends, done) => {
                let _ = done.send(self.inject(worker, pattern.as_ref(), ends));
            }
            Command::Recycle(worker, reason, reply) => {
                let claims = self.cluster.claims();
                self.request(Request::Recycle { worker, reason, claims }, Reply::Recycle(reply));
            }
            Command::Stop { at_once, reply } => {
                troop_sys::fault::point("stopping");
                self.stop(at_once, reply);
            }
            Command::Replace(execute, failed) => self.replace(execute, failed),
            // As every command, it has the state written down.
            Command::NoteChanged => {}
            Command::Keep(done) => self.answer_when_kept(move || {
                // Nobody may be waiting any more.
                let _ = done.send(());
            }),
            Command::Upgrade(upgrade, failed) => self.upgrade(upgrade, failed),
            Command::UpgradeKeeper(program, answer) => self.upgrade_keeper(&program, answer),
            Command::Over => self.end_dropped(),
        }
    }

    /// Replaces the workers, by such as the changes make them if there are any.
    pub(super) fn reload(&mut self, reload: Reload, reply: Option<Reply>) {
        let Reload { changes, allow_moved, replace } = reload;
        if self.cluster.supervisor().is_none() {
            reply.into_iter().for_each(Reply::refuse);
            return;
        }
        let changes_settings = changes.is_some();
        if self.cluster.may_reload() {
            if let Some(changes) = changes {
                self.workers.keep_setup_before_reload();
                self.change_setup(changes);
            }
            self.remember_addresses();
            if let (Some((policy, grace)), Some(supervisor)) =
                (replace, self.cluster.supervisor_mut())
            {
                supervisor.reload_as(policy, grace);
            }
        }
        let ticket = reply.map(|reply| self.operations.open(&mut self.cluster, reply));
        self.cluster.reload(self.now, allow_moved, changes_settings, ticket);
    }

    pub(crate) fn change_setup(&mut self, changes: Setup) {
        self.use_setup(Arc::new(Setup::clone(self.workers.setup()).merge(changes)));
        self.events.push(Event::Setup { setup: self.workers.setup().clone() });
    }

    /// Starts workers so from now on.
    pub(super) fn use_setup(&mut self, setup: Arc<Setup>) {
        self.cluster.set_report_signal(setup.get_report_signal());
        self.workers.set_setup(setup);
    }

    pub(crate) fn offer(&mut self, socket: InheritedSocket) {
        self.cluster.primary.offer(socket.offered());
        self.listeners.offer(socket);
    }
}
