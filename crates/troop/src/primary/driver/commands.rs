//! Does what the program asks for: forks, messages, disconnects.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use troop_core::WorkerId;
use troop_core::primary::DEFAULT_WEIGHT;
use troop_core::supervise::Request;
use troop_sys::identity::Identity;
use troop_sys::poll::Interest;
use troop_sys::sandbox::Sandbox;
use troop_sys::{process, socket};

use super::channels::RETRY_PAUSE;
use super::{DROPPED_EXIT_TIMEOUT, Driver, Process, Reply, Token};
use crate::channel::Unsettled;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::inherited::InheritedSocket;
use crate::primary::channel::Channel;
use crate::primary::handle::WorkerHandle;
use crate::primary::relay::Relay;
use crate::primary::wake::Command;
use crate::primary::{Adoption, Reload};
use crate::setup::Setup;

impl Driver {
    pub(super) fn handle_commands(&mut self) {
        let mut posted = std::mem::take(&mut self.posted);
        if self.driver_handle.wake.answer(&mut posted) {
            while let Ok(command) = self.commands.try_recv() {
                self.handle_command(command);
            }
            for worker in posted.drain(..) {
                self.collect(worker);
            }
        }
        self.posted = posted;
    }

    pub(super) fn handle_command(&mut self, command: Command) {
        match command {
            Command::Setup(changes) => self.change_setup(*changes),
            Command::Fork(fork, done) => self.fork(fork, done),
            Command::Spawned(result) => self.spawned(*result),
            Command::Adopt(adoption, done) => {
                let result = self.adopt(*adoption);
                self.act();
                self.publish_early();
                let _ = done.send(result);
            }
            Command::Disconnect(worker) => {
                self.cluster.disconnect(self.now, worker, false, None);
                if let Some(worker) = self.processes.get(&worker).map(|p| p.handle.clone()) {
                    self.refresh(&worker);
                }
            }
            Command::Signal(worker, signal, done) => {
                let result = match self.processes.get(&worker) {
                    Some(p) => process::signal(p.pidfd.as_fd(), signal)
                        .map_err(Error::io("send the signal")),
                    None => Err(Error::NoWorker(worker)),
                };
                let _ = done.send(result);
            }
            Command::Status(worker, done) => {
                self.count(worker);
                self.act();
                let _ = done.send(self.cluster.primary.status(worker));
            }
            Command::FixedAddresses(worker, done) => {
                let _ = done.send(self.cluster.primary.fixed_addresses_of(worker));
            }
            Command::SetScheduling(pattern, scheduling, done) => {
                let later = self.cluster.primary.set_scheduling(self.now, pattern, scheduling);
                self.act();
                let later = later
                    .into_iter()
                    .filter_map(|id| self.cluster.primary.listener_address(id))
                    .collect();
                let _ = done.send(later);
            }
            Command::Snapshot(done) => {
                let _ = done.send(self.snapshot());
            }
            Command::CurrentSetup(done) => {
                let _ = done.send(self.setup.clone());
            }
            Command::Ready(reply) => self.request(Request::Ready, Reply::Ready(reply)),
            Command::Scale(workers, reply) => {
                self.request(Request::Scale(workers), Reply::Done(reply));
            }
            Command::ForksToCome(forks) => {
                self.cluster.set_forks_to_come(forks);
                self.act();
            }
            Command::Offer(socket) => self.offer(socket),
            Command::KeepListeners(keep) => {
                self.cluster.primary.set_keep_listeners(keep);
                self.act();
            }
            Command::Answer(ticket, worker) => self.answered(ticket, worker),
            Command::SetWeight(worker, weight, done) => {
                let known = self.cluster.primary.set_weight(self.now, worker, weight);
                // The kernel knows it before the program does.
                self.act();
                let _ = done.send(if known { Ok(()) } else { Err(Error::NoWorker(worker)) });
            }
            Command::CloseChannel(worker) => self.channel_closed(worker, false),
            Command::DisconnectAll(done) => {
                self.shutdown_waiters.push(done);
                self.forks.leave(self.now);
                if let Some(supervisor) = self.cluster.supervisor_mut().filter(|s| !s.is_stopping())
                {
                    supervisor.stop(self.now);
                }
                let all: Vec<_> = self.processes.values().map(|p| p.handle.clone()).collect();
                for worker in all {
                    self.cluster.disconnect(self.now, worker.id(), false, None);
                    self.refresh(&worker);
                }
                self.notify_shutdown_waiters();
            }
            Command::Reload(reload, reply) => self.reload(*reload, Some(Reply::Reload(reply))),
            Command::Pause(reply) => self.request(Request::Pause, Reply::Done(reply)),
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
            Command::Stop { at_once, reply } => self.stop(at_once, reply),
            Command::Over => {
                self.cluster.end_supervision();
                self.forks.cancel(self.now);
                let all: Vec<_> = self
                    .processes
                    .iter()
                    .map(|(id, process)| (*id, process.kept_end.is_some()))
                    .collect();
                for (worker, is_backpressured) in all {
                    self.channel_closed(worker, false);
                    if is_backpressured {
                        self.kill(worker, 15);
                    }
                }
                self.cluster.primary.close_unused_listeners();
                self.over_at = Some(self.now + DROPPED_EXIT_TIMEOUT);
            }
        }
    }

    /// Replaces the workers, by such as the changes make them if there are any.
    pub(super) fn reload(&mut self, reload: Reload, reply: Option<Reply>) {
        let Reload { changes, allow_moved } = reload;
        if self.cluster.supervisor().is_none() {
            reply.into_iter().for_each(Reply::refuse);
            return;
        }
        let changes_settings = changes.is_some();
        if self.cluster.may_reload() {
            if let Some(changes) = changes {
                self.before_reload = Some(self.setup.clone());
                self.change_setup(changes);
            }
            self.remember_addresses();
        }
        let ticket = reply.map(|reply| self.operations.open(&mut self.cluster, reply));
        self.cluster.reload(self.now, allow_moved, changes_settings, ticket);
    }

    pub(super) fn notify_shutdown_waiters(&mut self) {
        if self.processes.is_empty()
            && self.forks.are_over(self.now)
            && !self.shutdown_waiters.is_empty()
        {
            self.cluster.primary.close_unused_listeners();
            self.act();
            // The events before the answer.
            self.publish_early();
            for done in self.shutdown_waiters.drain(..) {
                let _ = done.send(());
            }
        }
    }

    pub(crate) fn change_setup(&mut self, changes: Setup) {
        self.use_setup(Arc::new(Setup::clone(&self.setup).merge(changes)));
        self.events.push(Event::Setup { setup: self.setup.clone() });
    }

    /// Starts workers so from now on.
    pub(super) fn use_setup(&mut self, setup: Arc<Setup>) {
        self.cluster.set_report_signal(setup.get_report_signal());
        self.setup = setup;
    }

    pub(crate) fn offer(&mut self, socket: InheritedSocket) {
        self.cluster.primary.offer(socket.offered());
        self.inherited.retain(|known| known.number() != socket.number());
        self.inherited.push(socket);
    }

    fn adopt(&mut self, adoption: Adoption) -> Result<WorkerHandle> {
        let Adoption { pid, pidfd, channel, relay, advanced, id, weight } = adoption;
        let id = match id {
            Some(id) if self.cluster.primary.name(id) => id,
            Some(id) => {
                return Err(Error::Settings(format!(
                    "worker {id} cannot be adopted: there has been one with this number"
                )));
            }
            None => self.cluster.primary.fork(),
        };
        self.divide_descriptors();
        let most_handles = self.cluster.primary.budget().handle_share();
        socket::set_nonblocking(&channel, true)
            .map_err(Error::io("use the channel of an adopted worker"))?;
        // What fails from here on closes all of them, and so takes them out of the poller.
        let watched = self.poller.add(&channel, Token::Channel(id), Interest::Read);
        watched
            .and_then(|()| self.poller.add(&pidfd, Token::Process(id), Interest::Read))
            .map_err(Error::io("watch an adopted worker"))?;
        if let Some(relay) = relay {
            socket::set_nonblocking(&relay, true)
                .map_err(Error::io("use the relay of an adopted worker"))?;
            self.add_relay(id, Relay::new(relay, advanced, most_handles))?;
        }
        let own = rustix::process::geteuid().as_raw();
        // One that has ended already needs no rights to anything.
        let nobody = || Identity { uid: 65_534, gid: 65_534, groups: Vec::new() };
        let user = Some(Identity::of_process(pid).unwrap_or_else(|_| nobody()))
            .filter(|user| user.uid != own);
        let closer = self.closer_for(user.is_some());
        self.cluster.primary.spawned(id, pid, None, weight.unwrap_or(DEFAULT_WEIGHT));
        let handle = self.handle(id, pid, [None, None, None], None)?;
        self.processes.insert(
            id,
            Process {
                handle: handle.clone(),
                pidfd,
                channel: Some(Channel::new(channel, advanced, most_handles, closer)),
                leads_group: false,
                kept_end: None,
                adopted: true,
                cgroup: None,
                sandbox: Sandbox::default(),
                names_dead_paths: false,
                path_time: Duration::ZERO,
                user,
                refused: 0,
                since: self.now,
            },
        );
        Ok(handle)
    }

    /// Fetches what the program has put into a worker's mailbox.
    pub(super) fn collect(&mut self, worker: WorkerId) {
        self.take_mail(worker);
        self.unflushed.push(worker);
    }

    /// Moves what is in a worker's mailbox to its channel's outbox.
    pub(super) fn take_mail(&mut self, worker: WorkerId) {
        let Some(process) = self.processes.get_mut(&worker) else { return };
        let Some(channel) = &mut process.channel else { return };
        let mail = &mut self.mail;
        process.handle.shared.mailbox.take(mail);
        let mut from = 0;
        for posted in mail.handles.drain(..) {
            channel.outbox.push(&mail.bytes[from..posted.at]);
            from = posted.at;
            self.last_ticket += 1;
            if let Ok(copy) = posted.handle.try_clone() {
                channel.outbox.push_with(&posted.line, copy);
                channel.unsettled.insert(
                    self.last_ticket,
                    Unsettled::new(posted.line, posted.handle, posted.settled),
                );
                self.cluster.primary.user_handle_sent(worker, self.last_ticket);
            } else if let Some(settled) = posted.settled {
                let _ = settled.send(false);
            }
        }
        channel.outbox.take_in(&mut mail.bytes, from);
    }

    pub(super) fn handle_settled(&mut self, worker: WorkerId, ticket: u64, delivered: bool) {
        if self.relays.get_mut(&worker).is_some_and(|relay| relay.settled(ticket, delivered)) {
            self.unflushed_relays.push(worker);
            return;
        }
        let Some(process) = self.processes.get_mut(&worker) else { return };
        let Some(channel) = &mut process.channel else { return };
        let again = channel.unsettled.remove(&ticket).and_then(|u| u.settle(delivered));
        let Some((unsettled, copy)) = again else {
            process
                .handle
                .shared
                .mailbox
                .set_unwritten(channel.outbox.len(), channel.handles_under_way());
            return;
        };
        channel.outbox.push_with(&unsettled.line, copy);
        channel.unsettled.insert(ticket, unsettled);
        self.cluster.primary.user_handle_sent(worker, ticket);
        // Not at once: the worker needs a moment to free a descriptor.
        self.retry.push(worker);
        self.retry_at.get_or_insert(self.now + RETRY_PAUSE);
    }
}
