//! The one who owns the primary's state: waits, reads, accepts, and carries out what the core decides.
//!
//! A [`Driver`] is turned either by a plain thread that waits in the poller itself, or by a tokio task that waits for the poller.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use slab::Slab;
use troop_core::event::{ExitHow, Notice};
use troop_core::primary::{Action, Primary, WorkerState};
use troop_core::supervise::{Order, Outcome, Progress, Supervisor};
use troop_core::wire::{MAX_BATCH, outgoing};
use troop_core::{ConnId, ListenerId, Time, WorkerId};
use troop_sys::poll::{AsyncPoller, Interest, Poller, Ready};
use troop_sys::process::{self, Exit};
use troop_sys::{fdpass, socket};

use super::channel::{Channel, Unsettled};
use super::handle::{Shared, WorkerHandle};
use super::listener::{self, Socket};
use super::spawn::{self, Spawned};
use super::stderr::Forwarder;
use super::wake::{Command, Commander, Wake};
use super::{Farewells, Fork, Table};
use crate::channel::{Flushed, Mailbox, Parcels, READ_SIZE};
use crate::error::{Error, Result};
use crate::events::{Bus, Event};
use crate::settings::{Settings, Setup};

/// Connections accepted per listener before others have their turn.
const ACCEPT_BURST: usize = 64;
/// Reads per channel before others have their turn.
const READ_BURST: usize = 4;
/// The pause after an accept failed for want of descriptors or memory. The connections wait in the kernel meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The pause before a channel is tried again that could not be written to for want of something but room.
const RETRY_PAUSE: Duration = Duration::from_millis(10);
/// How long workers may take to end by themselves after the program has dropped the cluster.
const OVER_PATIENCE: Duration = Duration::from_secs(5);

/// The poller, in the form that suits who waits for it.
enum Waiting {
    InThread(Poller),
    InRuntime(AsyncPoller),
}

impl Waiting {
    fn poller(&self) -> &Poller {
        match self {
            Waiting::InThread(poller) => poller,
            Waiting::InRuntime(poller) => poller.get(),
        }
    }
}

/// What a poller's token stands for: a kind in the upper half, a number in the lower.
#[derive(Debug, Clone, Copy)]
enum Token {
    Bell,
    Signal(u32),
    Listener(ListenerId),
    Channel(WorkerId),
    Process(WorkerId),
}

impl Token {
    fn pack(self) -> u64 {
        let (kind, number) = match self {
            Token::Bell => (0, 0),
            Token::Signal(n) => (1, n),
            Token::Listener(id) => (2, id.0),
            Token::Channel(id) => (3, id.0),
            Token::Process(id) => (4, id.0),
        };
        kind << 32 | u64::from(number)
    }

    fn unpack(token: u64) -> Token {
        let number = (token & 0xffff_ffff) as u32;
        match token >> 32 {
            0 => Token::Bell,
            1 => Token::Signal(number),
            2 => Token::Listener(ListenerId(number)),
            3 => Token::Channel(WorkerId(number)),
            _ => Token::Process(WorkerId(number)),
        }
    }
}

struct Process {
    handle: WorkerHandle,
    pidfd: OwnedFd,
    channel: Option<Channel>,
    leads_group: bool,
}

/// What a signal asks of a supervised cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SignalMeans {
    Stop,
    Reload,
    ReapOrphans,
}

/// See the module.
pub(crate) struct Driver {
    core: Primary,
    waiting: Waiting,
    ready: Vec<Ready>,
    bus: Arc<Bus>,
    /// What has happened since events were last published.
    events: Vec<Event>,
    table: Table,
    processes: HashMap<WorkerId, Process>,
    listeners: HashMap<ListenerId, Socket>,
    /// Listeners on which the primary accepts.
    accepting: Vec<ListenerId>,
    accept_again: Option<Time>,
    conns: Slab<OwnedFd>,
    /// Workers with an unfinished batch of connections.
    batched: Vec<WorkerId>,
    /// Channels with something to write.
    unflushed: Vec<WorkerId>,
    retry: Vec<WorkerId>,
    retry_at: Option<Time>,
    settings: Arc<Settings>,
    inspectors: u32,
    forwarder: Option<Forwarder>,
    pub(crate) descriptor_limit: Option<u64>,
    commands: Receiver<Command>,
    commander: Commander,
    posted: Vec<WorkerId>,
    parcels: Parcels,
    last_ticket: u64,
    farewells: Farewells,
    supervisor: Option<Supervisor>,
    outcome: Option<Outcome>,
    signals: Vec<(UnixStream, SignalMeans)>,
    over_at: Option<Time>,
    origin: Instant,
    now: Time,
    buffer: Vec<u8>,
    line: Vec<u8>,
    received: Vec<OwnedFd>,
}

impl Driver {
    /// `in_thread` says who will turn it.
    pub(crate) fn new(
        core: Primary,
        settings: Settings,
        in_thread: bool,
        commander: Commander,
        commands: Receiver<Command>,
        bus: Arc<Bus>,
        table: Table,
    ) -> io::Result<Driver> {
        let poller = Poller::new()?;
        if let Some(bell) = &commander.wake.bell {
            poller.add(bell, Token::Bell.pack(), Interest::Read)?;
        }
        Ok(Driver {
            core,
            waiting: if in_thread { Waiting::InThread(poller) } else { Waiting::InRuntime(AsyncPoller::new(poller)?) },
            ready: Vec::new(),
            bus,
            events: Vec::new(),
            table,
            processes: HashMap::new(),
            listeners: HashMap::new(),
            accepting: Vec::new(),
            accept_again: None,
            conns: Slab::new(),
            batched: Vec::new(),
            unflushed: Vec::new(),
            retry: Vec::new(),
            retry_at: None,
            settings: Arc::new(settings),
            inspectors: 0,
            forwarder: None,
            descriptor_limit: None,
            commands,
            commander,
            posted: Vec::new(),
            parcels: Parcels::default(),
            last_ticket: 0,
            farewells: Farewells::new(),
            supervisor: None,
            outcome: None,
            signals: Vec::new(),
            over_at: None,
            origin: Instant::now(),
            now: Time(1),
            buffer: vec![0; READ_SIZE],
            line: Vec::new(),
            received: Vec::new(),
        })
    }

    /// Lets a supervisor decide about workers.
    pub(crate) fn supervise(&mut self, mut supervisor: Supervisor) {
        supervisor.start();
        self.supervisor = Some(supervisor);
    }

    /// Obeys a signal: a byte on `pipe` for each one.
    pub(crate) fn obey(&mut self, pipe: UnixStream, means: SignalMeans) -> io::Result<()> {
        pipe.set_nonblocking(true)?;
        let number = u32::try_from(self.signals.len()).unwrap_or(u32::MAX);
        self.waiting.poller().add(&pipe, Token::Signal(number).pack(), Interest::Read)?;
        self.signals.push((pipe, means));
        Ok(())
    }

    // ---- turning ----

    /// Turns until supervision is over. Every event is shown to `observe`.
    pub(crate) fn run_in_thread(mut self, mut observe: impl FnMut(&Event)) -> Result<Outcome> {
        self.settle();
        loop {
            self.events.iter().for_each(&mut observe);
            self.publish();
            if let Some(outcome) = self.outcome.take() {
                self.bus.close();
                return Ok(outcome);
            }
            let timeout = self.time_left();
            self.turn(timeout).map_err(Error::io("wait for the workers"))?;
        }
    }

    /// Turns as a task of a tokio runtime, until the cluster is over.
    pub(crate) async fn run_in_runtime(mut self) {
        let wake = self.commander.wake.clone();
        self.settle();
        loop {
            self.publish();
            if self.is_over() {
                break;
            }
            let timeout = self.time_left();
            if timeout != Some(Duration::ZERO) {
                let Waiting::InRuntime(poller) = &mut self.waiting else { break };
                let deadline = async {
                    match timeout {
                        Some(timeout) => tokio::time::sleep(timeout).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    ready = poller.ready() => if ready.is_err() { break },
                    () = wake.notify.notified() => {}
                    () = deadline => {}
                }
            } else {
                tokio::task::yield_now().await;
            }
            // The runtime reports the poller once; it must be looked at until it has nothing more.
            while matches!(self.turn(Some(Duration::ZERO)), Ok(true)) {
                self.publish();
            }
        }
        self.bus.close();
    }

    fn is_over(&self) -> bool {
        self.outcome.is_some() || (self.over_at.is_some() && self.processes.is_empty())
    }

    /// Waits once and does what there is to do. True if the poller had something.
    fn turn(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        self.ready.clear();
        let poller = match &mut self.waiting {
            Waiting::InThread(poller) => poller,
            Waiting::InRuntime(poller) => poller.get_mut(),
        };
        poller.wait(timeout, &mut self.ready)?;
        self.now = Time(1 + u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX));
        for at in 0..self.ready.len() {
            let ready = self.ready[at];
            match Token::unpack(ready.token) {
                Token::Bell => {}
                Token::Signal(number) => self.signalled(number),
                Token::Listener(id) => {
                    if let Some(listener) = self.listeners.get_mut(&id) {
                        listener.ready = true;
                    }
                }
                Token::Channel(id) => {
                    if ready.writable {
                        self.unflushed.push(id);
                    }
                    if ready.readable {
                        self.read(id, READ_BURST);
                    }
                }
                Token::Process(id) => self.reap(id),
            }
        }
        self.settle();
        Ok(!self.ready.is_empty())
    }

    /// Does everything that does not need waiting for.
    fn settle(&mut self) {
        self.obey_commands();
        self.tick();
        self.act();
        self.accept();
        self.flush_batches();
        self.flush();
    }

    fn tick(&mut self) {
        if self.core.next_deadline().is_some_and(|due| due <= self.now) {
            self.core.tick(self.now);
        }
        if let Some(supervisor) = &mut self.supervisor
            && supervisor.next_deadline().is_some_and(|due| due <= self.now)
        {
            supervisor.tick(self.now);
        }
        if self.retry_at.is_some_and(|due| due <= self.now) {
            self.retry_at = None;
            self.unflushed.append(&mut self.retry);
        }
        if self.accept_again.is_some_and(|due| due <= self.now) {
            self.accept_again = None;
        }
        if self.over_at.is_some_and(|due| due <= self.now) {
            for process in self.processes.values() {
                let _ = process::signal(process.pidfd.as_fd(), 9);
            }
            self.over_at = Some(self.now + OVER_PATIENCE);
        }
    }

    /// How long to wait at most.
    fn time_left(&self) -> Option<Duration> {
        let can_accept = self.accept_again.is_none()
            && self.accepting.iter().any(|id| self.listeners.get(id).is_some_and(|l| l.ready) && self.core.wants_connection(*id));
        if can_accept || !self.unflushed.is_empty() {
            return Some(Duration::ZERO);
        }
        let deadlines = [
            self.core.next_deadline(),
            self.supervisor.as_ref().and_then(Supervisor::next_deadline),
            self.retry_at,
            self.accept_again,
            self.over_at,
        ];
        let due = deadlines.into_iter().flatten().min()?;
        // Rounded up, so that the deadline has come when the wait is over.
        Some(Duration::from_millis(due.0.saturating_sub(self.now.0).max(1)))
    }

    fn publish(&mut self) {
        if self.bus.has_readers() { self.bus.publish(&mut self.events) } else { self.events.clear() }
    }

    // ---- what the core and the supervisor decide ----

    fn act(&mut self) {
        loop {
            while let Some(action) = self.core.next_action() {
                self.carry_out(action);
            }
            let Some(order) = self.supervisor.as_mut().and_then(Supervisor::next_order) else { return };
            self.obey_order(order);
        }
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Deliver { worker, listener, conn, seq, batched } => self.deliver(worker, listener, conn, seq, batched),
            Action::Release { conn } => drop(self.conns.try_remove(conn.0 as usize)),
            Action::Send { worker, line } => {
                if let Some(channel) = self.channel(worker) {
                    channel.outbox.push(&line);
                    self.unflushed.push(worker);
                }
            }
            Action::SendListener { worker, listener, line } => {
                let copy = self.listeners.get(&listener).map(|l| l.fd.try_clone());
                if let (Some(Ok(copy)), Some(channel)) = (copy, self.channel(worker)) {
                    channel.outbox.push_with(&line, copy);
                    self.unflushed.push(worker);
                }
            }
            Action::Bind { listener, spec } => {
                let key = self.core.listener_key(listener).unwrap_or_default().to_owned();
                let opened = listener::open(&spec, &key).and_then(|(socket, name)| {
                    if socket.accepts {
                        self.waiting.poller().add(&socket.fd, Token::Listener(listener).pack(), Interest::ReadEdge)?;
                        self.accepting.push(listener);
                    }
                    self.listeners.insert(listener, socket);
                    Ok(name)
                });
                let einval = rustix::io::Errno::INVAL.raw_os_error();
                self.core.bound(self.now, listener, opened.map_err(|e| e.raw_os_error().unwrap_or(einval)));
            }
            Action::Unbind { listener } => {
                self.accepting.retain(|id| *id != listener);
                if let Some(socket) = self.listeners.remove(&listener)
                    && socket.accepts
                {
                    // Copies of the socket may live on in other processes, and would go on being reported.
                    let _ = self.waiting.poller().remove(&socket.fd);
                }
            }
            Action::Kill { worker } => self.kill(worker, 9),
            Action::HandleSettled { worker, ticket, delivered } => self.handle_settled(worker, ticket, delivered),
            Action::Notify(notice) => self.noticed(notice),
        }
    }

    fn noticed(&mut self, notice: Notice) {
        let id = match notice {
            Notice::Forked { worker, .. }
            | Notice::Online { worker }
            | Notice::Listening { worker, .. }
            | Notice::Disconnected { worker, .. }
            | Notice::Exited { worker, .. }
            | Notice::Misbehaved { worker, .. } => worker,
        };
        let Some(worker) = self.processes.get(&id).map(|p| p.handle.clone()) else { return };
        self.refresh(&worker);
        let now = self.now;
        if let Some(supervisor) = &mut self.supervisor {
            match &notice {
                Notice::Online { .. } => supervisor.online(now, id),
                Notice::Listening { .. } => supervisor.listening(now, id),
                Notice::Disconnected { .. } => supervisor.disconnected(now, id),
                Notice::Exited { how, .. } => supervisor.exited(now, id, *how),
                Notice::Forked { .. } | Notice::Misbehaved { .. } => {}
            }
        }
        self.events.push(match notice {
            Notice::Forked { .. } => Event::Fork(worker),
            Notice::Online { .. } => Event::Online(worker),
            Notice::Listening { at, .. } => Event::Listening(worker, at),
            Notice::Disconnected { .. } => Event::Disconnect(worker),
            Notice::Exited { how, .. } => Event::Exit(worker, how),
            Notice::Misbehaved { violation, cut_off, .. } => Event::Misbehaved(worker, violation, cut_off),
        });
    }

    /// Makes what the core knows about a worker visible to the program.
    fn refresh(&mut self, worker: &WorkerHandle) {
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

    fn obey_order(&mut self, order: Order) {
        match order {
            Order::Fork(slot) => {
                let result = self.fork(&Fork::new());
                let Some(supervisor) = &mut self.supervisor else { return };
                match result {
                    Ok(worker) => supervisor.forked(self.now, slot, worker.id()),
                    Err(e) => supervisor.fork_failed(self.now, slot, e.chain(), spawn::is_for_good(&e)),
                }
            }
            Order::Disconnect(worker) => {
                if !self.core.disconnect(worker) {
                    self.kill(worker, 15);
                }
            }
            Order::Terminate(worker) => self.kill(worker, 15),
            Order::Kill(worker) => self.kill(worker, 9),
            Order::Tell(progress) => {
                if let Progress::GivingUp { .. } | Progress::Stopping = progress {
                    self.core.close_unused_listeners();
                }
                self.events.push(Event::Supervision(progress));
            }
            Order::Finish(outcome) => {
                self.core.close_unused_listeners();
                self.outcome = Some(outcome);
            }
        }
    }

    fn kill(&mut self, worker: WorkerId, signal: i32) {
        let Some(process) = self.processes.get(&worker) else { return };
        // Its leader has not been reaped, so the group is surely the worker's own.
        if process.leads_group && signal == 9 {
            let _ = process::signal_group(process.handle.pid(), signal);
        }
        let _ = process::signal(process.pidfd.as_fd(), signal);
    }

    // ---- what the program wants ----

    fn obey_commands(&mut self) {
        let mut posted = std::mem::take(&mut self.posted);
        if self.commander.wake.answer(&mut posted) {
            while let Ok(command) = self.commands.try_recv() {
                self.obey_command(command);
            }
            for worker in posted.drain(..) {
                self.collect(worker);
            }
        }
        self.posted = posted;
    }

    fn obey_command(&mut self, command: Command) {
        match command {
            Command::Setup(changes) => self.setup(changes),
            Command::Fork(fork, done) => {
                let result = self.fork(&fork);
                // The events before the answer, as a program expects that has both.
                self.act();
                self.publish();
                if let Err(Err(e)) = done.send(result) {
                    self.events.push(Event::Error(None, Arc::new(e)));
                }
            }
            Command::Disconnect(worker) => {
                self.core.disconnect(worker);
                if let Some(worker) = self.processes.get(&worker).map(|p| p.handle.clone()) {
                    self.refresh(&worker);
                }
            }
            Command::Signal(worker, signal, done) => {
                let result = match self.processes.get(&worker) {
                    Some(p) => process::signal(p.pidfd.as_fd(), signal).map_err(Error::io("send the signal")),
                    None => Err(Error::NoWorker(worker)),
                };
                let _ = done.send(result);
            }
            Command::Status(worker, done) => {
                let _ = done.send(self.core.status(worker));
            }
            Command::CloseChannel(worker) => self.channel_closed(worker),
            Command::DisconnectAll(done) => {
                self.farewells.push(done);
                let all: Vec<_> = self.processes.values().map(|p| p.handle.clone()).collect();
                for worker in all {
                    self.core.disconnect(worker.id());
                    self.refresh(&worker);
                }
                self.say_farewell();
            }
            Command::Reload => {
                if let Some(s) = &mut self.supervisor {
                    s.reload(self.now);
                }
            }
            Command::Stop => {
                if let Some(s) = &mut self.supervisor {
                    s.stop(self.now);
                }
            }
            Command::Over => {
                let all: Vec<_> = self.processes.keys().copied().collect();
                all.into_iter().for_each(|worker| self.channel_closed(worker));
                self.core.close_unused_listeners();
                self.over_at = Some(self.now + OVER_PATIENCE);
            }
        }
    }

    fn say_farewell(&mut self) {
        if self.processes.is_empty() && !self.farewells.is_empty() {
            self.core.close_unused_listeners();
            self.act();
            // The events before the answer.
            self.publish();
            for done in self.farewells.drain(..) {
                let _ = done.send(());
            }
        }
    }

    pub(crate) fn setup(&mut self, changes: Setup) {
        let mut settings = Settings::clone(&self.settings);
        changes.apply(&mut settings);
        self.settings = Arc::new(settings);
        self.events.push(Event::Setup(self.settings.clone()));
    }

    fn fork(&mut self, fork: &Fork) -> Result<WorkerHandle> {
        let id = self.core.fork();
        self.events.push(Event::Setup(self.settings.clone()));
        let Spawned { child, channel, pipes, tail } =
            spawn::spawn(&self.settings, fork, id.0, &mut self.inspectors, self.descriptor_limit, &mut self.forwarder)?;
        let watched = self
            .waiting
            .poller()
            .add(&channel, Token::Channel(id).pack(), Interest::Read)
            .and_then(|()| self.waiting.poller().add(&child.pidfd, Token::Process(id).pack(), Interest::Read));
        if let Err(e) = watched {
            let _ = process::signal(child.pidfd.as_fd(), 9);
            let _ = process::reap(child.pidfd.as_fd());
            return Err(Error::Io { doing: "watch the new worker", source: e });
        }
        self.core.spawned(id, child.pid);
        let wake = Arc::downgrade(&self.commander.wake);
        let ring = move || {
            if let Some(wake) = wake.upgrade() {
                Wake::posted(&wake, id);
            }
        };
        let shared = Shared {
            id,
            pid: child.pid,
            mailbox: Mailbox::new(Box::new(ring)),
            status: std::sync::Mutex::new(self.core.status(id).ok_or(Error::NoWorker(id))?),
            pipes: std::sync::Mutex::new(pipes),
            tail,
            commander: self.commander.clone(),
        };
        let handle = WorkerHandle { shared: Arc::new(shared) };
        let leads_group = self.settings.own_process_group;
        let process = Process { handle: handle.clone(), pidfd: child.pidfd, channel: Some(Channel::new(channel)), leads_group };
        self.processes.insert(id, process);
        Ok(handle)
    }

    /// Fetches what the program has put into a worker's mailbox.
    fn collect(&mut self, worker: WorkerId) {
        let Some(process) = self.processes.get_mut(&worker) else { return };
        let Some(channel) = &mut process.channel else { return };
        let parcels = &mut self.parcels;
        process.handle.shared.mailbox.take(parcels);
        let mut from = 0;
        for posted in parcels.handles.drain(..) {
            channel.outbox.push(&parcels.bytes[from..posted.at]);
            from = posted.at;
            self.last_ticket += 1;
            if let Ok(copy) = posted.handle.try_clone() {
                channel.outbox.push_with(&posted.line, copy);
                channel.unsettled.insert(self.last_ticket, Unsettled::new(posted.line, posted.handle, posted.settled));
                self.core.user_handle_sent(worker, self.last_ticket);
            } else if let Some(settled) = posted.settled {
                let _ = settled.send(false);
            }
        }
        channel.outbox.push(&parcels.bytes[from..]);
        self.unflushed.push(worker);
    }

    fn handle_settled(&mut self, worker: WorkerId, ticket: u64, delivered: bool) {
        let Some(channel) = self.channel(worker) else { return };
        let Some(mut unsettled) = channel.unsettled.remove(&ticket) else { return };
        unsettled.tries_left -= 1;
        if !delivered
            && unsettled.tries_left > 0
            && let Ok(copy) = unsettled.handle.try_clone()
        {
            channel.outbox.push_with(&unsettled.line, copy);
            channel.unsettled.insert(ticket, unsettled);
            self.core.user_handle_sent(worker, ticket);
            // Not at once: the worker needs a moment to free a descriptor.
            self.retry.push(worker);
            self.retry_at.get_or_insert(self.now + RETRY_PAUSE);
        } else if let Some(settled) = unsettled.settled {
            let _ = settled.send(delivered);
        }
    }

    // ---- channels ----

    fn channel(&mut self, worker: WorkerId) -> Option<&mut Channel> {
        self.processes.get_mut(&worker)?.channel.as_mut()
    }

    fn read(&mut self, id: WorkerId, burst: usize) {
        let mut ended = false;
        for _ in 0..burst {
            let Some(process) = self.processes.get_mut(&id) else { return };
            let Some(channel) = &mut process.channel else { return };
            match fdpass::recv(channel.socket.as_fd(), &mut self.buffer, &mut self.received) {
                Ok(fdpass::Received { len: 0, .. }) => ended = true,
                Ok(received) => {
                    let more = received.len == self.buffer.len() || !self.received.is_empty();
                    let bytes = &self.buffer[..received.len];
                    if !self.core.is_cut_off(id) {
                        channel.receive(self.now, &mut self.core, &process.handle, bytes, &mut self.received, &mut self.events);
                    }
                    self.received.clear();
                    if !channel.outbox.is_empty() {
                        self.unflushed.push(id);
                    }
                    self.act();
                    if more {
                        continue;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => ended = true,
            }
            break;
        }
        if ended {
            self.channel_closed(id);
        }
    }

    /// The end of a channel, whoever closed it. Everything that was in it has been read.
    fn channel_closed(&mut self, id: WorkerId) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        let Some(channel) = process.channel.take() else { return };
        let lost = process.handle.shared.mailbox.close();
        if lost > 0 {
            self.events.push(Event::Error(Some(process.handle.clone()), Arc::new(Error::Undelivered(lost))));
        }
        drop(channel);
        // A connection that was read from belongs to the worker that did it, answered or not.
        let conns = &self.conns;
        let in_flight: Vec<_> = self.core.in_flight(id).collect();
        for (seq, conn) in in_flight {
            if conns.get(conn.0 as usize).is_some_and(|fd| !socket::is_untouched(fd.as_fd())) {
                self.core.consumed(id, seq);
            }
        }
        self.core.channel_closed(self.now, id);
        self.act();
    }

    fn reap(&mut self, id: WorkerId) {
        let Some(process) = self.processes.get(&id) else { return };
        let how = match process::try_reap(process.pidfd.as_fd()) {
            Ok(Some(Exit::Code(code))) => ExitHow::Code(code),
            Ok(Some(Exit::Signal(signal))) => ExitHow::Signal(signal),
            Ok(Some(Exit::Unknown)) => ExitHow::Unknown,
            Ok(None) => return,
            Err(_) => ExitHow::Unknown,
        };
        // Its last words: what it wrote before it died is in the channel. Others may hold its end open, so the end of the stream is not
        // waited for.
        self.read(id, usize::MAX);
        self.channel_closed(id);
        self.core.exited(self.now, id, how);
        self.act();
        self.processes.remove(&id);
        self.say_farewell();
    }

    fn flush(&mut self) {
        while let Some(id) = self.unflushed.pop() {
            self.flush_channel(id);
        }
    }

    fn flush_channel(&mut self, id: WorkerId) -> bool {
        let Some(process) = self.processes.get_mut(&id) else { return false };
        let Some(channel) = &mut process.channel else { return false };
        let outcome = channel.outbox.flush(channel.socket.as_fd());
        process.handle.shared.mailbox.set_unwritten(channel.outbox.len());
        let blocked = match outcome {
            Ok(Flushed::All) => false,
            Ok(Flushed::Blocked) => true,
            Ok(Flushed::Later) => {
                if !self.retry.contains(&id) {
                    self.retry.push(id);
                }
                self.retry_at.get_or_insert(self.now + RETRY_PAUSE);
                return false;
            }
            // Gone; the reading side will see it too, after what the worker wrote before.
            Err(_) => return false,
        };
        if blocked != channel.wants_room {
            channel.wants_room = blocked;
            let interest = if blocked { Interest::ReadWrite } else { Interest::Read };
            let _ = self.waiting.poller().modify(&channel.socket, Token::Channel(id).pack(), interest);
            self.core.set_blocked(self.now, id, blocked);
            self.act();
        }
        !blocked
    }

    // ---- connections ----

    fn accept(&mut self) {
        if self.accept_again.is_some() {
            return;
        }
        for at in 0..self.accepting.len() {
            let Some(&id) = self.accepting.get(at) else { return };
            for _ in 0..ACCEPT_BURST {
                let Some(listener) = self.listeners.get_mut(&id).filter(|l| l.ready) else { break };
                if !self.core.wants_connection(id) {
                    break;
                }
                match socket::accept(listener.fd.as_fd()) {
                    Ok(fd) => {
                        let conn = ConnId(u32::try_from(self.conns.insert(fd)).unwrap_or(u32::MAX));
                        self.core.accepted(self.now, id, conn);
                        self.act();
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => listener.ready = false,
                    Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {}
                    Err(e) => {
                        // Out of descriptors or memory: nothing is lost, the kernel keeps the connections.
                        self.accept_again = Some(self.now + ACCEPT_PAUSE);
                        self.events.push(Event::Error(None, Arc::new(Error::Io { doing: "accept a connection", source: e })));
                        return;
                    }
                }
            }
        }
    }

    #[inline]
    fn deliver(&mut self, worker: WorkerId, listener: ListenerId, conn: ConnId, seq: u64, batched: bool) {
        if batched {
            let Some(channel) = self.processes.get_mut(&worker).and_then(|p| p.channel.as_mut()) else {
                self.core.undelivered(self.now, worker, seq);
                return;
            };
            if channel.batch.seqs.len() == MAX_BATCH || channel.batch.listener.is_some_and(|l| l != listener) {
                self.send_batch(worker);
            }
            let Some(channel) = self.channel(worker) else { return };
            channel.batch.listener = Some(listener);
            channel.batch.seqs.push(seq);
            channel.batch.conns.push(conn);
            if channel.batch.seqs.len() == 1 {
                self.batched.push(worker);
            }
            return;
        }
        let mut line = std::mem::take(&mut self.line);
        line.clear();
        if let Some(listener) = self.listeners.get(&listener) {
            outgoing::newconn(&mut line, &listener.key, seq);
        }
        if !self.send_conns(worker, &line, &[conn]) {
            self.core.undelivered(self.now, worker, seq);
        }
        self.line = line;
    }

    fn flush_batches(&mut self) {
        while let Some(worker) = self.batched.pop() {
            self.send_batch(worker);
        }
        // What could not be sent went back, perhaps to other workers.
        self.act();
        if !self.batched.is_empty() {
            self.flush_batches();
        }
    }

    fn send_batch(&mut self, worker: WorkerId) {
        let Some(channel) = self.channel(worker) else { return };
        let mut batch = std::mem::take(&mut channel.batch);
        let Some(listener) = batch.listener.take() else { return };
        let mut line = std::mem::take(&mut self.line);
        line.clear();
        if let Some(listener) = self.listeners.get(&listener) {
            outgoing::conns(&mut line, &listener.key, &batch.seqs);
        }
        if !self.send_conns(worker, &line, &batch.conns) {
            for seq in &batch.seqs {
                self.core.undelivered(self.now, worker, *seq);
            }
        }
        self.line = line;
        batch.seqs.clear();
        batch.conns.clear();
        if let Some(channel) = self.channel(worker) {
            channel.batch = batch;
        }
    }

    /// Writes a line with connections to a worker's channel, all or nothing.
    fn send_conns(&mut self, worker: WorkerId, line: &[u8], conns: &[ConnId]) -> bool {
        let has_room = match self.channel(worker) {
            None => return false,
            Some(channel) => channel.outbox.is_empty() || self.flush_channel(worker),
        };
        let (Some(process), true) = (self.processes.get_mut(&worker), has_room && !line.is_empty()) else { return false };
        let Some(channel) = &mut process.channel else { return false };
        let fd = |conn: &ConnId| self.conns.get(conn.0 as usize).map(AsFd::as_fd);
        let sent = if let [conn] = conns {
            let Some(fd) = fd(conn) else { return false };
            fdpass::send(channel.socket.as_fd(), line, &[fd])
        } else {
            let fds: Vec<_> = conns.iter().filter_map(fd).collect();
            fdpass::send(channel.socket.as_fd(), line, &fds)
        };
        match sent {
            Ok(n) if n == line.len() => true,
            Ok(n) => {
                channel.outbox.push(&line[n..]);
                self.unflushed.push(worker);
                true
            }
            Err(e) => {
                if e.kind() == io::ErrorKind::WouldBlock && !channel.wants_room {
                    channel.wants_room = true;
                    let token = Token::Channel(worker).pack();
                    let _ = self.waiting.poller().modify(&channel.socket, token, Interest::ReadWrite);
                    self.core.set_blocked(self.now, worker, true);
                }
                false
            }
        }
    }

    // ---- signals ----

    fn signalled(&mut self, number: u32) {
        use std::io::Read;
        let Some((pipe, means)) = self.signals.get_mut(number as usize) else { return };
        // As many bytes as signals; two quick Ctrl-C count as two.
        let count = pipe.read(&mut [0; 16]).unwrap_or(0);
        let means = *means;
        for _ in 0..count {
            match (means, &mut self.supervisor) {
                (SignalMeans::Stop, Some(supervisor)) => supervisor.stop(self.now),
                (SignalMeans::Reload, Some(supervisor)) => supervisor.reload(self.now),
                (SignalMeans::ReapOrphans, _) => {
                    let processes = &self.processes;
                    process::reap_orphans(|pid| processes.values().any(|p| p.handle.pid() == pid));
                }
                (_, None) => {}
            }
        }
    }
}
