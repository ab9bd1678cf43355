//! Starts workers' processes. A start waits until the program is executed, which a dead file system
//! or a stopped process can delay for ever, so threads of its own do it and everything else goes
//! on. One start follows the other; one that takes long is left to its thread.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use tokio::sync::oneshot;
use troop_core::primary::{DEFAULT_WEIGHT, MAX_UNWRITTEN_FORKS};
use troop_core::supervise::{Slot, Supervisor};
use troop_core::wire::incoming;
use troop_core::{Time, WorkerId};
use troop_sys::poll::Interest;
use troop_sys::process;

use super::{Notifications, Process, Workers, end_signals};
use crate::channel::Mailbox;
use crate::closer::Closer;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::primary::Fork;
use crate::primary::channel::Channel;
use crate::primary::driver::{Driver, Token};
use crate::primary::handle::{Shared, WorkerHandle};
use crate::primary::output::Tail;
use crate::primary::spawn::{self, Spawned, Start};
use crate::primary::wake::{Command, DriverHandle, Wake};
use crate::setup::Setup;

/// What a worker says when it is there.
const ONLINE: &[u8] = br#"{"cmd":"NODE_CLUSTER","act":"online","seq":0}"#;

/// How long the end of a cluster waits for a cancelled start: its process cannot even be killed
/// while a file system does not answer it.
const ABANDONED_START_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a start may take before the next one begins beside it.
const SLOW_START_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a thread without a start is kept for the next one.
const IDLE_THREAD_TIMEOUT: Duration = Duration::from_secs(1);

/// The most starts at a time, and so the most threads.
const MAX_STARTS: usize = 4;

/// What a worker is started for.
enum For {
    /// The supervisor, which wants one that is like all others by then.
    Slot(Slot),
    Program(Arc<Setup>, oneshot::Sender<Result<WorkerHandle>>),
}

struct Wanted {
    fork: Fork,
    by: For,
    /// It is to be disconnected as soon as it runs.
    leaves: bool,
}

/// A start that is under way.
struct Starting {
    wanted: Wanted,
    id: WorkerId,
    slot: Option<u32>,
    setup: Arc<Setup>,
    /// The generation that it belongs to.
    generation: u32,
    closer: Option<Closer>,
    notifications: Option<Notifications>,
    is_cancelled: Arc<AtomicBool>,
    /// When the next one may begin all the same.
    slow_at: Time,
}

impl Starting {
    fn is_for(&self, slot: Slot) -> bool {
        matches!(self.wanted.by, For::Slot(other) if other == slot)
    }
}

/// A thread that starts workers. It lives as long as this.
struct Thread {
    starts: Sender<(WorkerId, Start)>,
    /// What it starts.
    busy: Option<WorkerId>,
    /// A worker that it has started gets a signal when it ends.
    is_bound: bool,
}

/// Workers that are to be started, and the threads that do it.
#[derive(Default)]
pub(super) struct Forks {
    waiting: VecDeque<Wanted>,
    /// The oldest first.
    starting: Vec<Starting>,
    threads: Vec<Thread>,
    /// When what is under way is not waited for any more.
    given_up_at: Option<Time>,
    /// When threads end that have had nothing to do until then.
    idle_until: Option<Time>,
    /// How many have begun since the state was written down for the last time.
    unwritten: u32,
}

impl Forks {
    pub(super) fn is_empty(&self) -> bool {
        self.starting.is_empty() && self.waiting.is_empty()
    }

    fn waits_for(&self, slot: Slot) -> bool {
        self.waiting.iter().any(|wanted| matches!(wanted.by, For::Slot(other) if other == slot))
    }

    /// Whether nothing is under way that is worth waiting for.
    pub(super) fn are_over(&self, now: Time) -> bool {
        self.is_empty() || self.given_up_at.is_some_and(|at| at <= now)
    }

    pub(super) fn next_deadline(&self, now: Time) -> Option<Time> {
        let given_up_at = self.given_up_at.filter(|_| !self.is_empty());
        let next = self.may_begin_at().filter(|_| !self.waiting.is_empty());
        let all = given_up_at.into_iter().chain(next).chain(self.idle_until);
        all.filter(|at| *at > now).min()
    }

    /// Ends threads that have had nothing to do for a while.
    pub(super) fn tick(&mut self, now: Time) {
        if self.idle_until.is_some_and(|until| until <= now) {
            self.idle_until = None;
            self.threads.retain(|thread| thread.is_bound || thread.busy.is_some());
        }
    }

    /// When the next start may begin, if none ends before.
    fn may_begin_at(&self) -> Option<Time> {
        if self.starting.len() >= MAX_STARTS {
            return None;
        }
        Some(self.starting.iter().map(|one| one.slow_at).max().unwrap_or(Time(0)))
    }

    fn may_begin(&self, now: Time) -> bool {
        self.may_begin_at().is_some_and(|at| at <= now)
    }

    /// Cancels all starts.
    pub(super) fn cancel(&mut self, now: Time) {
        self.waiting.clear();
        self.given_up_at = Some(now + ABANDONED_START_TIMEOUT);
        self.hurry();
    }

    /// Those that are not there yet are to leave at once, and none is waited for.
    pub(super) fn leave(&mut self, now: Time) {
        self.given_up_at = Some(now + ABANDONED_START_TIMEOUT);
        self.waiting.iter_mut().for_each(|wanted| wanted.leaves = true);
        self.starting.iter_mut().for_each(|starting| starting.wanted.leaves = true);
        self.hurry();
    }

    /// A worker for a slot is to be like those that are started from now on, or not to be at all.
    pub(super) fn renew(&mut self) {
        let supervised = self.starting.iter().filter(|one| matches!(one.wanted.by, For::Slot(_)));
        supervised.for_each(|one| one.is_cancelled.store(true, Ordering::Relaxed));
    }

    fn hurry(&self) {
        self.starting.iter().for_each(|one| one.is_cancelled.store(true, Ordering::Relaxed));
    }

    /// Takes a start that is over.
    fn take(&mut self, now: Time, worker: WorkerId) -> Option<Starting> {
        let threads = self.threads.iter_mut().filter(|thread| thread.busy == Some(worker));
        threads.for_each(|thread| thread.busy = None);
        let at = self.starting.iter().position(|one| one.id == worker)?;
        let starting = self.starting.remove(at);
        if self.is_empty() && self.threads.iter().any(|thread| !thread.is_bound) {
            self.idle_until = Some(now + IDLE_THREAD_TIMEOUT);
        }
        Some(starting)
    }

    /// Gives it to a thread, or does it here if there can be none.
    fn run(
        &mut self,
        worker: WorkerId,
        start: Start,
        driver_handle: &DriverHandle,
    ) -> Option<Result<Spawned>> {
        let idle = match self.threads.iter().position(|thread| thread.busy.is_none()) {
            Some(idle) => idle,
            None => {
                let (starts, orders) = channel::<(WorkerId, Start)>();
                let driver_handle = driver_handle.clone();
                let thread = std::thread::Builder::new().name("troop-start".into());
                let spawned = thread.spawn(move || {
                    for (worker, start) in orders {
                        let result = Box::new(start.run());
                        if driver_handle.send(Command::Spawned(worker, result)).is_err() {
                            return;
                        }
                    }
                });
                if spawned.is_err() {
                    return Some(start.run());
                }
                self.threads.push(Thread { starts, busy: None, is_bound: false });
                self.threads.len() - 1
            }
        };
        self.threads[idle].is_bound |= start.binds_thread();
        if let Err(unsent) = self.threads[idle].starts.send((worker, start)) {
            self.threads.remove(idle);
            return Some(unsent.0.1.run());
        }
        self.threads[idle].busy = Some(worker);
        self.idle_until = None;
        None
    }
}

impl Workers {
    /// The ids of all workers that were forked are part of the state that is held.
    pub(in crate::primary::driver) fn note_forks_written(&mut self) {
        self.forks.unwritten = 0;
    }
}

impl Driver {
    pub(in crate::primary::driver) fn fork(
        &mut self,
        fork: Fork,
        done: oneshot::Sender<Result<WorkerHandle>>,
    ) {
        if fork.weight.is_some()
            && let Err(error) = self.may_fork_with_weight("Fork::weight")
        {
            if let Err(Err(e)) = done.send(Err(error)) {
                self.events.push(Event::Error { worker: None, error: Arc::new(e) });
            }
            return;
        }
        let by = For::Program(self.workers.setup.clone(), done);
        self.workers.forks.waiting.push_back(Wanted { fork, by, leaves: false });
        self.start_next();
    }

    pub(in crate::primary::driver) fn fork_for_slot(&mut self, slot: Slot, weight: u32) {
        if !self.workers.forks.waits_for(slot) {
            let fork = Fork::new().weight(weight);
            self.workers.forks.waiting.push_back(Wanted {
                fork,
                by: For::Slot(slot),
                leaves: false,
            });
        }
        self.start_next();
    }

    /// Starts what waits and may begin, and tells the core whether something is under way.
    pub(in crate::primary::driver) fn start_next(&mut self) {
        self.start_waiting();
        self.cluster.set_starting(!self.workers.forks.is_empty());
    }

    fn start_waiting(&mut self) {
        while (self.copies.is_none() || self.workers.forks.unwritten < MAX_UNWRITTEN_FORKS)
            && self.workers.forks.may_begin(self.now)
            && let Some(wanted) = self.workers.forks.waiting.pop_front()
        {
            let (setup, slot) = match &wanted.by {
                For::Program(setup, _) => (setup.clone(), None),
                For::Slot(slot)
                    if !self.cluster.supervisor().is_some_and(|s| s.awaits_fork(*slot)) =>
                {
                    continue;
                }
                For::Slot(slot) => {
                    (self.workers.setup.clone(), Some(u32::try_from(slot.0).unwrap_or(u32::MAX)))
                }
            };
            let id = self.cluster.primary.fork();
            self.workers.forks.unwritten += 1;
            self.is_urgent |= self.workers.forks.unwritten >= MAX_UNWRITTEN_FORKS;
            self.divide_descriptors();
            let closer = self.closing.closer_for(setup.is_other_user());
            self.events.push(Event::Setup { setup: setup.clone() });
            let is_cancelled = Arc::default();
            let opened = self.workers.readiness.open();
            let opened = opened.map_err(Error::io("make a socket for notifications"));
            let (notifications, start) = match opened {
                Ok(notifications) => {
                    let start = spawn::prepare(
                        &setup,
                        &wanted.fork,
                        (id, slot),
                        notifications.as_ref().map(Notifications::address),
                        &mut self.workers.spawner,
                        &is_cancelled,
                    );
                    (notifications, start)
                }
                Err(e) => (None, Err(e)),
            };
            let generation = self.generation();
            let slow_at = self.now + SLOW_START_TIMEOUT;
            self.workers.forks.starting.push(Starting {
                wanted,
                id,
                slot,
                setup,
                generation,
                closer,
                notifications,
                is_cancelled,
                slow_at,
            });
            let result = match start {
                Ok(start) => self.workers.forks.run(id, start, self.inbox.handle()),
                Err(e) => Some(Err(e)),
            };
            if let Some(result) = result {
                self.started(id, result);
            }
        }
    }

    fn generation(&self) -> u32 {
        self.cluster.supervisor().map_or(0, Supervisor::generation)
    }

    /// A start is over.
    pub(in crate::primary::driver) fn spawned(
        &mut self,
        worker: WorkerId,
        result: Result<Spawned>,
    ) {
        self.started(worker, result);
        self.start_next();
        self.workers.forget_others();
    }

    fn started(&mut self, worker: WorkerId, result: Result<Spawned>) {
        let Some(starting) = self.workers.forks.take(self.now, worker) else { return };
        if self.workers.forks.starting.is_empty() {
            self.workers.forks.given_up_at = None;
        }
        // While it was started, those that it belongs to have been replaced by others.
        let is_old = matches!(starting.wanted.by, For::Slot(_))
            && (starting.is_cancelled.load(Ordering::Relaxed)
                || starting.generation != self.generation());
        if is_old || self.ending.has_begun() {
            self.close_notifications(starting.notifications);
            if let Ok(spawned) = result {
                self.discard(spawned, &starting.setup);
            }
            let forks = &self.workers.forks;
            let is_wanted_again = matches!(
                starting.wanted.by,
                For::Slot(slot)
                    if !forks.waits_for(slot) && !forks.starting.iter().any(|one| one.is_for(slot))
            );
            if is_old && is_wanted_again && !self.ending.has_begun() {
                self.workers.forks.waiting.push_front(starting.wanted);
            }
            return;
        }
        let Starting { wanted, id, slot, setup, closer, notifications, .. } = starting;
        let Wanted { fork, by, leaves } = wanted;
        let result =
            result.and_then(|spawned| self.begin(id, slot, &fork, &setup, closer, spawned));
        match notifications {
            Some(notifications) if result.is_ok() => self.hear(id, notifications),
            notifications => self.close_notifications(notifications),
        }
        match by {
            For::Program(_, done) => {
                self.inbox.answer_later(move |driver| {
                    let worker = result.as_ref().ok().map(|worker| worker.id());
                    if let Err(Err(e)) = done.send(result) {
                        driver.events.push(Event::Error { worker: None, error: Arc::new(e) });
                    }
                    if let Some(worker) = worker.filter(|_| leaves) {
                        driver.cluster.disconnect(driver.now, worker, false, None);
                    }
                });
            }
            For::Slot(slot) => match result {
                Ok(worker) => {
                    self.cluster.forked(self.now, slot, worker.id(), setup.expect_ipc());
                    self.cluster.ends_by(worker.id(), end_signals(&setup));
                    self.count_activation_slots();
                }
                // Another start is under way in its place.
                Err(_) if self.workers.forks.starting.iter().any(|one| one.is_for(slot)) => {}
                Err(e) => {
                    if let Some(supervisor) = self.cluster.supervisor_mut() {
                        supervisor.fork_failed(self.now, slot, e.chain(), spawn::is_for_good(&e));
                    }
                }
            },
        }
    }

    /// Takes a process that runs into the cluster.
    fn begin(
        &mut self,
        id: WorkerId,
        slot: Option<u32>,
        fork: &Fork,
        setup: &Setup,
        closer: Option<Closer>,
        spawned: Spawned,
    ) -> Result<WorkerHandle> {
        let Spawned { child, channel, kept_end, pipes, tail, cgroup, tree, sandbox } = spawned;
        let watched = self
            .poller
            .add(&channel, Token::Channel(id), Interest::Read)
            .and_then(|()| self.poller.add(&child.pidfd, Token::Process(id), Interest::Read));
        if let Err(e) = watched {
            let _ = process::signal(child.pidfd.as_fd(), 9);
            let _ = process::reap(child.pidfd.as_fd());
            return Err(Error::Io { doing: "watch the new worker", source: e });
        }
        self.cluster.primary.spawned(id, child.pid, slot, fork.weight.unwrap_or(DEFAULT_WEIGHT));
        let handle = self.handle(id, child.pid, pipes, tail)?;
        let share = self.cluster.primary.budget().handle_share();
        self.channels.add(id, Channel::new(handle.clone(), channel, false, share, closer));
        let process = Process {
            handle: handle.clone(),
            pidfd: child.pidfd,
            kept_end,
            notifications: None,
            leads_group: setup.ends_group(),
            adopted: false,
            announced: setup.get_shutdown_message(),
            ends_by: end_signals(setup),
            stop_group: setup.get_stop_group(),
            is_group_asked: false,
            cgroup,
            tree,
            user: setup.other_user(),
            sandbox,
            names_dead_paths: false,
            path_time: Duration::ZERO,
            refused: 0,
            since: self.now,
        };
        let has_no_channel = process.kept_end.is_some();
        self.workers.processes.insert(id, process);
        if has_no_channel {
            handle.shared.mailbox.refuse_all();
        }
        if (has_no_channel || setup.is_alone())
            && let Ok(online) = incoming::parse(ONLINE)
        {
            self.cluster.has_no_ipc(id, setup.is_alone() && setup.get_shutdown_message());
            // So this is all that will ever be known of it.
            self.cluster.primary.message(self.now, id, online);
        }
        Ok(handle)
    }

    /// Ends a process that is not announced yet.
    fn discard(&mut self, spawned: Spawned, setup: &Setup) {
        let Spawned { child, cgroup, tree, channel, .. } = spawned;
        if setup.leads_group() {
            let _ = process::signal_group(child.pid, 9);
        }
        let _ = process::signal(child.pidfd.as_fd(), 9);
        // However long its end takes.
        let _ = std::thread::Builder::new().name("troop-reap".into()).spawn(move || {
            let _ = process::reap(child.pidfd.as_fd());
            // What the process may have sent is closed with it.
            drop(channel);
        });
        self.workers.end_leftovers(self.now, None, cgroup, tree, None, false);
    }

    pub(in crate::primary::driver) fn handle(
        &self,
        id: WorkerId,
        pid: u32,
        pipes: [Option<OwnedFd>; 3],
        tail: Option<Arc<Tail>>,
    ) -> Result<WorkerHandle> {
        let wake = Arc::downgrade(&self.inbox.handle().wake);
        let ring = move || {
            if let Some(wake) = wake.upgrade() {
                Wake::posted(&wake, id);
            }
        };
        let status = self.cluster.primary.status(id).ok_or(Error::NoWorker(id))?;
        let shared = Shared {
            span: crate::trace::Span::of_worker(id, status.slot, pid),
            id,
            pid,
            mailbox: Mailbox::new(Box::new(ring), self.cluster.primary.budget().handle_share()),
            held: Arc::default(),
            status: std::sync::Mutex::new(status),
            pipes: std::sync::Mutex::new(pipes),
            tail,
            signals: std::sync::atomic::AtomicU64::new(0),
            asked: std::sync::atomic::AtomicU64::new(0),
            driver_handle: self.inbox.handle().clone(),
        };
        Ok(WorkerHandle { shared: Arc::new(shared) })
    }
}
