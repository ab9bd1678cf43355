//! How many workers there should be, and what to do when there are not: restarts, replacement,
//! shutdown.
//!
//! A state machine like [`crate::primary`]: call the method that fits what happened, then carry out
//! the [`Order`]s in order.

mod config;
mod ends;
mod expect;
mod leave;
mod operation;
mod order;
mod replace;
mod restart;
mod round;

use std::cell::Cell;
use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::event::{Address, ExitHow};
use crate::id::{Time, WorkerId};
pub use config::{Config, ReadyWhen, ReplacePolicy, Restart, RestartPolicy, WhenFailed};
use ends::{Health, Level, Life};
pub use expect::Claim;
use operation::Waiting;
pub use operation::{
    Answer, NotReady, RecycleFailed, ReloadFailed, Reloaded, ReplaceFailure, Request, Ticket,
};
pub use order::{Afterwards, Cause, GiveUp, Order, Outcome, Progress, Slot};
use restart::Restarts;
use round::Round;

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct SlotWorker {
    worker: WorkerId,
    since: Time,
    generation: u32,
    online: Option<Time>,
    /// It speaks Node's protocol, or surely will.
    has_ipc: bool,
    /// Since when it listens.
    listening: Option<Time>,
    /// When it said that it is ready.
    notified: Option<Time>,
    /// When it closed its channel; it has not been ready since.
    gone: Option<Time>,
    /// It has taken connections.
    served: bool,
    /// By when it has to be ready, where no round says so.
    due: Time,
}

impl SlotWorker {
    /// Since when it is ready, or from when on it will be if nothing happens.
    fn ready_at(&self, must_listen: bool, config: &Config) -> Option<Time> {
        if self.gone.is_some() { None } else { self.could_serve_at(must_listen, config) }
    }

    /// The same, whether or not it has closed its channel meanwhile.
    fn could_serve_at(&self, must_listen: bool, config: &Config) -> Option<Time> {
        let (ready, by_age) = match config.replace.ready_when {
            ReadyWhen::Message | ReadyWhen::Notified => (self.notified, false),
            ReadyWhen::Listening => (self.listening, false),
            ReadyWhen::Auto => (self.listening, !must_listen),
        };
        let aged = match self.online {
            // One that speaks Node's protocol may still be about to listen.
            Some(online) if self.has_ipc => {
                Some(online + config.listen_patience.max(config.restart.min_uptime))
            }
            // It is still being loaded.
            None if self.has_ipc => None,
            _ => Some(self.since + config.restart.min_uptime),
        };
        let aged = aged.filter(|_| by_age);
        ready.map_or(aged, |ready| Some(aged.map_or(ready, |aged| aged.min(ready))))
    }

    fn is_ready(&self, now: Time, must_listen: bool, config: &Config) -> bool {
        self.ready_at(must_listen, config).is_some_and(|at| at <= now)
    }
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Leaving {
    worker: WorkerId,
    kill_at: Time,
    /// When to follow up with `SIGTERM`.
    term_at: Option<Time>,
    killed: bool,
    /// It has no successor.
    is_surplus: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct SlotState {
    current: Option<SlotWorker>,
    successor: Option<SlotWorker>,
    retry_at: Option<Time>,
    /// When to retry if clients wait and no worker is ready: known of a slot whose last worker had
    /// been ready.
    hurry_at: Option<Time>,
    /// Ends in a row of workers that were not ready for the minimum time.
    quick_ends: u32,
    /// Its last worker ended unexpectedly, and none has been ready since.
    lost: bool,
    /// How its last worker ended, if it stays empty for that.
    done: Option<(WorkerId, ExitHow)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum RunState {
    Running,
    /// Nothing is started any more, until somebody wants it.
    Idle,
    Stopping(Outcome),
    Finished,
}

/// What a supervisor is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SupervisorState {
    /// No worker has been ready yet; or slots have not had a ready worker yet, and none has lost
    /// its worker.
    Starting,
    /// It keeps the workers running, and every slot has a ready one.
    Running,
    /// After a worker had been ready: the worker of some slots has ended, or could not be started,
    /// and no ready one has followed.
    Degraded,
    /// It replaces them.
    Reloading,
    /// It was told to end all workers, and waits to be told to start new ones.
    Paused,
    /// It ends.
    Stopping,
}

/// A reload that has replaced all workers.
#[derive(Debug, Serialize, Deserialize)]
struct Unchecked {
    ticket: Option<Ticket>,
    done: Reloaded,
}

/// A slot without a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vacancy {
    /// Which.
    pub slot: Slot,
    /// When the next worker is started; `None` if none is, or one is being started now.
    pub retry_at: Option<Time>,
    /// Workers in a row that were not ready for the minimum time.
    pub quick_ends: u32,
    /// How its last worker ended, if none is to follow.
    pub done: Option<ExitHow>,
}

/// How long a worker may linger between its disconnect and its end before `SIGTERM`.
const EXIT_TIMEOUT: Duration = Duration::from_secs(2);

/// Keeps a number of workers running: restarts, reloads, recycling, shutdown.
///
/// Call the method that fits what happened, then carry out the [`Order`]s in order.
#[derive(Debug, Serialize, Deserialize)]
pub struct Supervisor {
    config: Config,
    slots: Vec<SlotState>,
    leaving: Vec<Leaving>,
    restarts: Restarts,
    /// Unexpected ends that are too many, for so many workers.
    budget: (usize, usize),
    /// What workers are started now belong to; one more with each reload.
    generation: u32,
    round: Option<Round>,
    /// A generation that was rejected and is still there in part, and when it is tried again to
    /// replace that.
    rejected: Option<(u32, Option<Time>)>,
    /// A reload that has replaced all workers, while the shell checks whether clients reach them.
    unchecked: Option<Unchecked>,
    /// Requests that are answered later.
    waiting: Vec<Waiting>,
    /// Workers that had to be killed since the end began.
    killed: Vec<WorkerId>,
    phase: RunState,
    health: Health,
    orders: VecDeque<Order>,
    /// The next deadline, if it is known: it is asked for far more often than it changes.
    #[serde(skip)]
    due: Cell<Option<Option<Time>>>,
}

impl Supervisor {
    /// A supervisor that has not started anything.
    #[must_use]
    pub fn new(config: Config) -> Supervisor {
        Supervisor {
            restarts: Restarts::new(&config),
            budget: (config.restart.max_ends, config.workers),
            slots: Vec::new(),
            leaving: Vec::new(),
            generation: 1,
            round: None,
            rejected: None,
            unchecked: None,
            waiting: Vec::new(),
            killed: Vec::new(),
            phase: RunState::Running,
            health: Health::new(config.restart.been_ready),
            orders: VecDeque::new(),
            due: Cell::new(None),
            config,
        }
    }

    /// The next thing to do.
    pub fn next_order(&mut self) -> Option<Order> {
        self.orders.pop_front()
    }

    /// Starts the workers.
    pub fn start(&mut self, now: Time) {
        self.due.set(None);
        self.health.down_since = Some(now);
        for slot in 0..self.config.workers {
            self.slots.push(SlotState::default());
            self.orders.push_back(Order::Fork(Slot(slot)));
        }
    }

    /// A fork that was ordered succeeded.
    pub fn forked(&mut self, now: Time, slot: Slot, worker: WorkerId) {
        self.due.set(None);
        let generation = self.generation;
        let member = SlotWorker {
            worker,
            since: now,
            generation,
            online: None,
            has_ipc: false,
            listening: None,
            notified: None,
            gone: None,
            served: false,
            due: now + self.ready_limit(),
        };
        let state = self.slots.get_mut(slot.0).filter(|_| self.phase == RunState::Running);
        let Some(state) = state else {
            // There is no use for it any more.
            self.leave(now, member);
            return;
        };
        let is_awaited = self.round.as_ref().is_some_and(|round| round.awaits_successor(slot.0));
        if state.current.is_none() {
            state.current = Some(member);
        } else if is_awaited && state.successor.is_none() {
            state.successor = Some(member);
            self.orders.push_back(Order::Hold(worker));
        } else {
            // Somebody else was faster.
            self.leave(now, member);
        }
    }

    /// Whether a fork that was ordered for a slot is still of use: one that succeeds now does not
    /// have to leave at once.
    #[must_use]
    pub fn awaits_fork(&self, slot: Slot) -> bool {
        let is_awaited = self.round.as_ref().is_some_and(|round| round.awaits_successor(slot.0));
        let state = self.slots.get(slot.0).filter(|_| self.phase == RunState::Running);
        state.is_some_and(|state| match state.current {
            None => state.retry_at.is_none(),
            Some(_) => is_awaited && state.successor.is_none(),
        })
    }

    /// How many workers are kept running.
    #[must_use]
    pub fn wanted(&self) -> usize {
        self.config.workers
    }

    /// Unexpected ends so far.
    #[must_use]
    pub fn unexpected_ends(&self) -> u64 {
        self.restarts.total()
    }

    /// What it is about.
    #[must_use]
    pub fn state(&self) -> SupervisorState {
        match &self.phase {
            RunState::Running if self.round.as_ref().is_some_and(|round| !round.is_recycling()) => {
                SupervisorState::Reloading
            }
            RunState::Running => match self.health.level {
                Level::Starting => SupervisorState::Starting,
                Level::Complete => SupervisorState::Running,
                Level::Degraded | Level::Down => SupervisorState::Degraded,
            },
            RunState::Idle => SupervisorState::Paused,
            RunState::Stopping(_) | RunState::Finished => SupervisorState::Stopping,
        }
    }

    /// When a worker that is to finish will be killed.
    #[must_use]
    pub fn leaves_by(&self, worker: WorkerId) -> Option<Time> {
        self.leaving.iter().find(|l| l.worker == worker).map(|l| l.kill_at)
    }

    /// Whether a worker leaves because fewer are wanted, so that it has no successor.
    #[must_use]
    pub fn is_surplus(&self, worker: WorkerId) -> bool {
        self.leaving.iter().any(|l| l.worker == worker && l.is_surplus)
    }

    /// Whether a worker counts as up, and which generation it belongs to: 1 for the first, one more
    /// for each reload. `None` if it has left, or is leaving.
    #[must_use]
    pub fn standing(&self, now: Time, worker: WorkerId) -> Option<(bool, u32)> {
        let members =
            self.slots.iter().flat_map(|state| state.current.iter().chain(&state.successor));
        let member = members.into_iter().find(|member| member.worker == worker)?;
        Some((member.is_ready(now, false, &self.config), member.generation))
    }

    /// When a worker of a slot was started.
    #[must_use]
    pub fn started_at(&self, worker: WorkerId) -> Option<Time> {
        let mut members =
            self.slots.iter().flat_map(|state| state.current.iter().chain(&state.successor));
        members.find(|member| member.worker == worker).map(|member| member.since)
    }

    /// Changes how many workers are kept running. Those that are too many finish, the last ones
    /// first. Without effect while stopping.
    pub fn scale(&mut self, now: Time, workers: usize) {
        self.due.set(None);
        if !matches!(self.phase, RunState::Running | RunState::Idle) {
            return;
        }
        // In proportion, so that what is much for a few is little for many.
        let (ends, among) = self.budget;
        self.config.restart.max_ends =
            ends.max(ends.saturating_mul(workers).div_ceil(among.max(1)));
        self.config.workers = workers;
        self.orders.retain(|order| !matches!(order, Order::Fork(slot) if slot.0 >= workers));
        while self.slots.len() < workers {
            if self.phase == RunState::Running {
                self.orders.push_back(Order::Fork(Slot(self.slots.len())));
            }
            self.slots.push(SlotState::default());
        }
        let surplus = self
            .slots
            .split_off(workers)
            .into_iter()
            .flat_map(|state| state.current.into_iter().chain(state.successor));
        let surplus: Vec<_> = surplus.collect();
        surplus.iter().for_each(|member| self.leave(now, *member));
        let gone: Vec<_> = surplus.iter().map(|member| member.worker).collect();
        self.leaving
            .iter_mut()
            .filter(|l| gone.contains(&l.worker))
            .for_each(|l| l.is_surplus = true);
        if let Some(round) = &mut self.round {
            round.shrink(workers, &gone);
        }
        self.advance(now);
        self.end_if_all_have(now);
        self.look(now);
    }

    /// A fork that was ordered failed. `for_good` means that trying again cannot help (the program
    /// does not exist).
    pub fn fork_failed(&mut self, now: Time, slot: Slot, reason: String, for_good: bool) {
        self.due.set(None);
        if self.phase != RunState::Running || slot.0 >= self.slots.len() {
            return;
        }
        let is_new = self.round.as_ref().is_some_and(|round| round.is_at(slot.0));
        if is_new {
            self.fail_round(now, ReplaceFailure::NotStarted { reason: reason.clone() });
        }
        if !matches!(self.phase, RunState::Running) || self.slots[slot.0].current.is_some() {
            return;
        }
        if for_good && !self.health.been_ready && !self.has_workers() {
            self.give_up_start(now, 1, Cause::NotStarted(reason));
        } else {
            self.vacant(now, slot.0, Cause::NotStarted(reason), Life::Unready, false);
        }
        self.look(now);
    }

    /// What a worker that is started now belongs to: 1 for the first ones, more with each reload.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Whether it is on its way to the end.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        matches!(self.phase, RunState::Stopping(_) | RunState::Finished)
    }

    /// A worker that was forked is known to speak Node's protocol, so that it is not taken for one
    /// that does not when it takes its time.
    pub fn expect_ipc(&mut self, now: Time, worker: WorkerId) {
        self.with_slot_worker(now, worker, |member| member.has_ipc = true);
    }

    /// A worker runs. `has_ipc` means that it says so itself.
    pub fn online(&mut self, now: Time, worker: WorkerId, has_ipc: bool) {
        self.with_slot_worker(now, worker, |member| {
            (member.online, member.has_ipc) = (member.online.or(Some(now)), has_ipc)
        });
    }

    /// A worker's server listens.
    pub fn listening(&mut self, now: Time, worker: WorkerId) {
        self.with_slot_worker(now, worker, |member| {
            member.listening = member.listening.or(Some(now))
        });
    }

    /// Where a worker listens now. Call before [`Supervisor::listening`].
    pub fn listens_at(&mut self, worker: WorkerId, at: Vec<Address>) {
        if let Some(round) = &mut self.round {
            round.listens_at(worker, at);
        }
    }

    /// A worker says that it is ready.
    pub fn reported_ready(&mut self, now: Time, worker: WorkerId) {
        self.with_slot_worker(now, worker, |member| {
            member.notified = member.notified.or(Some(now))
        });
    }

    /// A worker has taken connections.
    pub fn served(&mut self, worker: WorkerId) {
        let mut members = self.slots.iter_mut().flat_map(|state| &mut state.current);
        if let Some(member) = members.find(|member| member.worker == worker) {
            member.served = true;
        }
    }

    fn with_slot_worker(
        &mut self,
        now: Time,
        worker: WorkerId,
        change: impl FnOnce(&mut SlotWorker),
    ) {
        self.due.set(None);
        let mut members =
            self.slots.iter_mut().flat_map(|p| p.current.iter_mut().chain(p.successor.iter_mut()));
        if let Some(member) = members.find(|m| m.worker == worker) {
            change(member);
            self.advance(now);
            self.look(now);
        }
    }

    /// A worker's channel closed.
    pub fn disconnected(&mut self, now: Time, worker: WorkerId) {
        self.due.set(None);
        if let Some(leaving) = self.leaving.iter_mut().find(|l| l.worker == worker) {
            leaving.term_at.get_or_insert(now + EXIT_TIMEOUT);
            return;
        }
        let mut members =
            self.slots.iter_mut().flat_map(|p| p.current.iter_mut().chain(p.successor.iter_mut()));
        if let Some(member) = members.find(|member| member.worker == worker) {
            member.gone = Some(now);
            // It cannot be given connections any more. Normally it ends by itself at once; its end
            // refills the slot.
            let kill_at = now + self.config.grace;
            self.leaving.push(Leaving {
                worker,
                kill_at,
                term_at: Some(now + EXIT_TIMEOUT),
                killed: false,
                is_surplus: false,
            });
            self.look(now);
        }
    }

    /// A worker's process ended.
    pub fn exited(&mut self, now: Time, worker: WorkerId, how: ExitHow) {
        self.due.set(None);
        if let Some(at) = self.leaving.iter().position(|l| l.worker == worker)
            && self.leaving.remove(at).killed
            && self.is_stopping()
        {
            self.killed.push(worker);
        }
        let position = |get: fn(&SlotState) -> Option<SlotWorker>, slots: &[SlotState]| {
            slots.iter().position(|p| get(p).is_some_and(|m| m.worker == worker))
        };
        if let Some(slot) = position(|p| p.successor, &self.slots) {
            self.slots[slot].successor = None;
            self.fail_round(now, ReplaceFailure::Ended { worker, how, last_lines: None });
            self.fill(now);
        } else if let Some(slot) = position(|p| p.current, &self.slots) {
            if let Some(member) = self.slots[slot].current.take()
                && self.phase == RunState::Running
            {
                self.lost(now, slot, member, how);
            }
        } else {
            self.emptied(now, worker);
        }
        self.look(now);
        self.finish_if_done();
    }

    // ---- time ----

    /// When [`Supervisor::tick`] wants to be called.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        let due = self.due.get().unwrap_or_else(|| self.reckon());
        self.due.set(Some(due));
        due
    }

    fn reckon(&self) -> Option<Time> {
        let retries = self.slots.iter().filter_map(|p| p.retry_at);
        let kills = self.leaving.iter().filter(|l| !l.killed).map(|l| l.kill_at);
        let terms = self.leaving.iter().filter_map(|l| l.term_at);
        let back = self.rejected.and_then(|(_, at)| at);
        let late = self.late_deadlines();
        retries
            .chain(kills)
            .chain(terms)
            .chain(self.round_deadlines())
            .chain(self.health_deadlines())
            .chain(back)
            .chain(late)
            .min()
    }

    /// Time passes.
    pub fn tick(&mut self, now: Time) {
        self.due.set(None);
        for leaving in &mut self.leaving {
            if leaving.term_at.is_some_and(|at| at <= now) {
                leaving.term_at = None;
                self.orders.push_back(Order::Terminate(leaving.worker));
            }
            if leaving.kill_at <= now && !std::mem::replace(&mut leaving.killed, true) {
                self.orders.push_back(Order::Tell(Progress::GraceOver(leaving.worker)));
                self.orders.push_back(Order::Kill(leaving.worker));
            }
        }
        self.fill(now);
        self.advance(now);
        self.roll_back_again(now);
        self.end_late(now);
        self.look(now);
    }
}

#[cfg(test)]
mod tests;
