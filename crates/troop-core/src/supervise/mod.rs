//! Supervision: keeps the configured number of workers running. Restarts, replacement, scaling,
//! shutdown.
//!
//! A state machine like [`crate::primary`]: report each event by its method, then carry out the
//! [`Order`]s in order.

mod config;
mod due;
mod embedded;
mod ends;
mod expect;
mod leave;
mod leaving;
mod member;
mod operation;
mod order;
mod own;
mod replace;
mod restart;
mod round;

use std::cell::Cell;
use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::asked::Asked;
use crate::event::ExitHow;
use crate::id::{Time, WorkerId};
pub use config::{
    ACTIVATED_READY_AGE, Config, ReadyWhen, ReplacePolicy, Restart, RestartPolicy, WhenFailed,
};
use ends::{Health, Level, Life};
pub use expect::Claim;
pub use leaving::EndSignals;
use leaving::Leaving;
use member::SlotWorker;
use operation::Waiting;
pub use operation::{
    Answer, NotReady, NotServing, RecycleFailed, ReloadFailed, Reloaded, ReplaceFailure, Request,
    Ticket,
};
pub use order::{Afterwards, Cause, GiveUp, Order, Outcome, Progress, Slot};
pub use own::{MAX_OWN_ADDRESSES, OwnAddress, OwnInspection, Seen, WorkerSeen};
use own::{OwnAddresses, Standing};
use restart::Restarts;
use round::Round;

#[derive(Debug, Default, Serialize, Deserialize)]
struct SlotState {
    current: Option<SlotWorker>,
    successor: Option<SlotWorker>,
    retry_at: Option<Time>,
    /// The time of the restart if clients wait and no worker is ready; set for slots whose last
    /// worker had been ready.
    hurry_at: Option<Time>,
    /// Number of consecutive ends of workers that were not ready for the minimum uptime.
    quick_ends: u32,
    /// Whether its last worker ended unexpectedly and none has been ready since.
    lost: bool,
    /// How its last worker ended, if the slot stays empty because of that.
    done: Option<(WorkerId, ExitHow)>,
    /// No worker is wanted here, until the program starts one that takes the number.
    is_retired: bool,
    /// Where its last worker that was ready listened by itself.
    listened: Vec<OwnAddress>,
    /// Whether such a worker listened nowhere, although others may have.
    listens_nowhere: bool,
    /// Whether its last worker listened.
    has_listened: bool,
}

impl SlotState {
    /// Notes whether a worker listened that leaves the slot. One that ended before it was ready does
    /// not tell that none listens.
    fn note_end(&mut self, member: &SlotWorker, was_ready: bool) {
        self.has_listened = member.listening.is_some() || (self.has_listened && !was_ready);
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum RunState {
    Running,
    /// No worker is started until the next reload.
    Idle,
    Stopping(Outcome),
    Finished,
}

/// The state of a supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SupervisorState {
    /// No worker has been ready yet; or slots have not had a ready worker yet, and none has lost
    /// its worker.
    Starting,
    /// Every slot has a ready worker.
    Running,
    /// A worker has been ready before; the workers of some slots have ended, or could not be
    /// started, and have no ready successor.
    Degraded,
    /// A reload is under way.
    Reloading,
    /// All workers have been ended, or are draining; a reload starts new ones.
    Paused,
    /// The cluster is stopping.
    Stopping,
}

/// A reload that has replaced all workers and is not verified yet.
#[derive(Debug, Serialize, Deserialize)]
struct Unchecked {
    ticket: Option<Ticket>,
    done: Reloaded,
}

/// A slot without a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vacancy {
    /// The slot.
    pub slot: Slot,
    /// The time of the next start; `None` if none follows, or one is under way.
    pub retry_at: Option<Time>,
    /// Number of consecutive workers that were not ready for the minimum uptime.
    pub quick_ends: u32,
    /// How its last worker ended, if none follows.
    pub done: Option<ExitHow>,
}

/// Keeps a number of workers running: restarts, reloads, recycling, shutdown.
///
/// Report each event by its method, then carry out the [`Order`]s in order.
#[derive(Debug, Serialize, Deserialize)]
pub struct Supervisor {
    config: Config,
    slots: Vec<SlotState>,
    leaving: Vec<Leaving>,
    restarts: Restarts,
    /// The number of ends that are too many, and the number of workers that it is meant for.
    budget: (usize, usize),
    /// The generation of workers that are started now; increases with each reload.
    generation: u32,
    round: Option<Round>,
    /// A rejected generation of which workers remain, and the time of the next attempt to replace
    /// them.
    rejected: Option<(u32, Option<Time>)>,
    /// Nothing is started any more, until the program starts a worker.
    has_given_up: bool,
    /// With an embedding program: the ends that are too many go by the number of workers.
    scales_ends: bool,
    /// How the next reload goes, if not as configured.
    reload: Option<ReplacePolicy>,
    /// A reload that has replaced all workers, while the shell checks whether clients reach them.
    unchecked: Option<Unchecked>,
    /// Operations that are not complete yet.
    waiting: Vec<Waiting>,
    /// Workers that were killed since the stop began.
    killed: Vec<WorkerId>,
    own: OwnAddresses,
    phase: RunState,
    /// The end of the drain delay: the workers serve until then, and are drained.
    stop_at: Option<Time>,
    health: Health,
    orders: VecDeque<Order>,
    /// Cache of the next deadline, which is read far more often than it changes.
    #[serde(skip)]
    due: Cell<Option<Option<Time>>>,
}

impl Supervisor {
    /// Creates a supervisor that has not started any worker.
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
            has_given_up: false,
            scales_ends: false,
            reload: None,
            unchecked: None,
            waiting: Vec::new(),
            killed: Vec::new(),
            own: OwnAddresses::default(),
            phase: RunState::Running,
            stop_at: None,
            health: Health::new(config.restart.been_ready),
            orders: VecDeque::new(),
            due: Cell::new(None),
            config,
        }
    }

    /// Returns the next order.
    pub fn next_order(&mut self) -> Option<Order> {
        self.orders.pop_front()
    }

    /// Leaves orders out that are not needed.
    pub(crate) fn retain_orders(&mut self, is_needed: impl FnMut(&Order) -> bool) {
        self.orders.retain(is_needed);
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

    /// Handles a successful fork.
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
            listens_privately: false,
            is_to_listen: false,
            not_serving: None,
            standing: if self.config.sees_own { Standing::Pending } else { Standing::Fine(now) },
            notified: None,
            assumed: false,
            gone: None,
            served: false,
            due: now + self.ready_limit(),
            ends_by: EndSignals::default(),
        };
        let is_running = self.phase == RunState::Running;
        let state = self.slots.get_mut(slot.0).filter(|state| is_running && !state.is_retired);
        let Some(state) = state else {
            // The worker is not needed any more.
            self.leave(now, member);
            return;
        };
        let is_awaited = self.round.as_ref().is_some_and(|round| round.awaits_successor(slot.0));
        if state.current.is_none() {
            let is_to_listen = state.has_listened && !self.config.is_embedded;
            state.current = Some(SlotWorker { is_to_listen, ..member });
        } else if is_awaited && state.successor.is_none() {
            state.successor = Some(member);
            self.orders.push_back(Order::Hold(worker));
        } else {
            // The slot has another worker already.
            self.leave(now, member);
        }
    }

    /// Whether the fork of a slot is still needed, so that its worker would not be ended at once.
    #[must_use]
    pub fn awaits_fork(&self, slot: Slot) -> bool {
        let is_awaited = self.round.as_ref().is_some_and(|round| round.awaits_successor(slot.0));
        let is_running = self.phase == RunState::Running;
        let state = self.slots.get(slot.0).filter(|state| is_running && !state.is_retired);
        state.is_some_and(|state| match state.current {
            None => state.retry_at.is_none(),
            Some(_) => is_awaited && state.successor.is_none(),
        })
    }

    /// Returns the number of workers to keep running.
    #[must_use]
    pub fn wanted(&self) -> usize {
        self.config.workers
    }

    /// Returns the number of unexpected ends so far.
    #[must_use]
    pub fn unexpected_ends(&self) -> u64 {
        self.restarts.total()
    }

    /// Returns the state.
    #[must_use]
    pub fn state(&self) -> SupervisorState {
        match &self.phase {
            RunState::Running if self.stop_at.is_some() => SupervisorState::Stopping,
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

    /// Returns whether a worker is ready, and its generation: 1 for the first, increasing with each
    /// reload. `None` if it is draining or has ended.
    #[must_use]
    pub fn standing(&self, now: Time, worker: WorkerId) -> Option<(bool, u32)> {
        let members =
            self.slots.iter().flat_map(|state| state.current.iter().chain(&state.successor));
        let member = members.into_iter().find(|member| member.worker == worker)?;
        Some((member.is_ready(now, false, &self.config), member.generation))
    }

    /// Whether workers are ready when they wait for connections on activated sockets.
    #[must_use]
    pub fn sees_activated_workers(&self) -> bool {
        self.config.is_activated && self.config.replace.ready_when == ReadyWhen::Auto
    }

    /// Whether a slot's worker has run for the minimum uptime.
    #[must_use]
    pub fn is_past_min_uptime(&self, now: Time, worker: WorkerId) -> bool {
        self.started_at(worker)
            .is_some_and(|since| now.since(since) >= self.config.restart.min_uptime)
    }

    /// Returns the start time of a slot's worker.
    #[must_use]
    pub fn started_at(&self, worker: WorkerId) -> Option<Time> {
        let mut members =
            self.slots.iter().flat_map(|state| state.current.iter().chain(&state.successor));
        members.find(|member| member.worker == worker).map(|member| member.since)
    }

    /// Changes the number of workers to keep running. Surplus workers are drained, the highest
    /// slots first. Has no effect while stopping.
    pub fn scale(&mut self, now: Time, workers: usize) {
        self.due.set(None);
        if !matches!(self.phase, RunState::Running | RunState::Idle) || self.stop_at.is_some() {
            return;
        }
        // The number of ends that are too many is in proportion to the number of workers.
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
        self.update_health(now);
    }

    /// Handles a failed fork. `for_good` is whether another attempt cannot succeed, because the
    /// program does not exist.
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
        self.update_health(now);
    }

    /// Handles the end of the shell, some time after this state was written: starts that it had begun
    /// have failed, and so has a reload, whose settings it has taken with it.
    pub fn recovered(&mut self, now: Time) {
        const WHY: &str = "the engine has ended meanwhile";
        if self.round.is_some() {
            self.fail_round(now, ReplaceFailure::NotStarted { reason: WHY.into() });
        }
        for slot in (0..self.slots.len()).map(Slot) {
            // What is to be started again has an order now.
            let is_ordered = |order: &Order| matches!(order, Order::Fork(other) if *other == slot);
            if self.awaits_fork(slot) && !self.orders.iter().any(is_ordered) {
                self.fork_failed(now, slot, WHY.into(), false);
            }
        }
        // Those that the shell was to kill may be there still.
        let killed = self.leaving.iter().filter(|leaving| leaving.is_killed());
        self.orders.extend(killed.map(|leaving| Order::Kill(leaving.worker)));
    }

    /// Returns the generation of workers that are started now: 1 at first, increasing with each
    /// reload.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Records that a worker's program speaks Node's protocol, so that a slow start is not taken
    /// for its lack.
    pub fn expect_ipc(&mut self, now: Time, worker: WorkerId) {
        self.with_slot_worker(now, worker, |member| member.has_ipc = true);
    }

    /// Handles a running worker. `has_ipc` is whether it has sent `online`.
    pub fn online(&mut self, now: Time, worker: WorkerId, has_ipc: bool) {
        self.with_slot_worker(now, worker, |member| {
            (member.online, member.has_ipc) = (member.online.or(Some(now)), has_ipc)
        });
    }

    /// Handles a worker whose server listens.
    pub fn listening(&mut self, now: Time, worker: WorkerId) {
        self.with_slot_worker(now, worker, |member| {
            member.listening = member.listening.or(Some(now));
            member.not_serving = None;
        });
    }

    /// Sets the addresses of a worker. Call before [`Supervisor::listening`].
    pub fn listens_at(&mut self, worker: WorkerId, at: Vec<Asked>) {
        if let Some(round) = &mut self.round {
            round.listens_at(worker, at);
        }
    }

    /// Returns the workers of a round whose addresses were [set](Supervisor::listens_at).
    #[must_use]
    pub fn listening_anew(&self) -> Vec<WorkerId> {
        self.round.as_ref().map(Round::listening).unwrap_or_default()
    }

    /// Handles a worker's report that it is ready.
    pub fn reported_ready(&mut self, now: Time, worker: WorkerId) {
        self.with_slot_worker(now, worker, |member| {
            member.notified = member.notified.or(Some(now))
        });
    }

    /// Records that a worker has taken connections.
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
            self.update_health(now);
        }
    }

    /// Handles the end of a worker's channel.
    pub fn disconnected(&mut self, now: Time, worker: WorkerId) {
        self.due.set(None);
        if let Some(leaving) = self.leaving.iter_mut().find(|l| l.worker == worker) {
            leaving.disconnected(now);
            return;
        }
        let mut members =
            self.slots.iter_mut().flat_map(|p| p.current.iter_mut().chain(p.successor.iter_mut()));
        if let Some(member) = members.find(|member| member.worker == worker) {
            member.gone = Some(now);
            // It cannot take connections any more. Normally its process ends soon, which refills
            // the slot.
            if !self.config.is_embedded {
                let mut leaving = Leaving::new(now, member, &self.config);
                leaving.disconnected(now);
                self.leaving.push(leaving);
            }
            self.update_health(now);
        }
    }

    /// Handles the end of a worker's process.
    pub fn exited(&mut self, now: Time, worker: WorkerId, how: ExitHow) {
        self.due.set(None);
        if let Some(at) = self.leaving.iter().position(|l| l.worker == worker) {
            let leaving = self.leaving.remove(at);
            let was_ended_late = leaving.was_ended_late(how);
            if was_ended_late {
                self.orders.push_back(Order::Report(Progress::GraceOver(worker)));
            }
            if (leaving.is_killed() || was_ended_late) && self.is_stopping() {
                self.killed.push(worker);
            }
        }
        let position = |get: fn(&SlotState) -> Option<SlotWorker>, slots: &[SlotState]| {
            slots.iter().position(|p| get(p).is_some_and(|m| m.worker == worker))
        };
        if let Some(slot) = position(|p| p.successor, &self.slots) {
            if let Some(member) = self.slots[slot].successor.take() {
                self.fail_round(now, self.ended(now, &member, how));
            }
            self.fill(now);
        } else if let Some(slot) = position(|p| p.current, &self.slots) {
            if let Some(member) = self.slots[slot].current.take()
                && self.phase == RunState::Running
            {
                self.lost(now, slot, member, how);
            }
        } else {
            self.parted(now, worker);
            self.emptied(now, worker);
            // One more may be started now.
            self.advance(now);
        }
        self.update_health(now);
        self.finish_if_done();
    }

    // ---- time ----

    /// Returns the time at which [`Supervisor::tick`] must be called.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        let due = self.due.get().unwrap_or_else(|| self.reckon());
        self.due.set(Some(due));
        due
    }

    fn reckon(&self) -> Option<Time> {
        let retries = self.slots.iter().filter_map(|p| p.retry_at);
        let steps = self.leaving.iter().filter_map(Leaving::next_deadline);
        let back = self.rejected.and_then(|(_, at)| at);
        let late = self.late_deadlines();
        retries
            .chain(steps)
            .chain(self.stop_at)
            .chain(self.round_deadlines())
            .chain(self.health_deadlines())
            .chain(back)
            .chain(late)
            .chain(self.inspection_deadline())
            .min()
    }

    /// Advances the time.
    pub fn tick(&mut self, now: Time) {
        self.due.set(None);
        self.leaving.iter_mut().for_each(|leaving| leaving.tick(now, &mut self.orders));
        if self.stop_at.is_some_and(|at| at <= now) {
            self.end_delay(now);
        }
        self.fill(now);
        self.advance(now);
        self.roll_back_again(now);
        self.end_late(now);
        self.inspect_if_due(now);
        self.update_health(now);
    }
}

#[cfg(test)]
mod tests;
