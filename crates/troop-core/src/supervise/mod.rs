//! How many workers there should be, and what to do when there are not: restarts, rolling reload, shutdown.
//!
//! A state machine like [`crate::primary`]: call the method that fits what happened, then carry out the [`Order`]s in order.

mod restart;

use std::cell::Cell;
use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::event::ExitHow;
use crate::id::{Time, WorkerId};
use restart::Restarts;

/// What a supervisor aims for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Config {
    /// How many workers to keep running.
    pub workers: usize,
    /// How long a worker that was told to finish may take before it is killed.
    pub grace: Duration,
    /// How long a new worker may take during a reload until it is ready.
    pub ready_timeout: Duration,
    /// A worker that ran this long counts as having come up; its end is restarted without delay.
    pub min_uptime: Duration,
    /// The delay before the first restart of a worker that did not run that long; doubled each time.
    pub first_delay: Duration,
    /// The longest such delay.
    pub max_delay: Duration,
    /// The window in which unexpected ends are counted.
    pub window: Duration,
    /// Unexpected ends within the window after which the supervisor gives up; one budget for all workers.
    pub max_ends: usize,
    /// Start of the random sequence that spreads restarts.
    pub seed: u64,
}

impl Config {
    /// Sensible values for this many workers.
    #[must_use]
    pub fn new(workers: usize) -> Config {
        Config {
            workers,
            grace: Duration::from_secs(30),
            ready_timeout: Duration::from_secs(30),
            min_uptime: Duration::from_secs(1),
            first_delay: Duration::from_millis(100),
            max_delay: Duration::from_secs(5),
            window: Duration::from_secs(120),
            max_ends: 8.max(4 * workers),
            seed: 0,
        }
    }
}

/// A place that should always be filled with a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Slot(pub usize);

/// Something the shell has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Fork a worker, then call [`Supervisor::forked`] or [`Supervisor::fork_failed`].
    Fork(Slot),
    /// Tell a worker to finish, over its channel.
    Disconnect(WorkerId),
    /// Ask a worker's process to end (`SIGTERM`), because it does not speak the protocol or lingers after it disconnected.
    Terminate(WorkerId),
    /// End a worker's process at once (`SIGKILL`).
    Kill(WorkerId),
    /// Report.
    Tell(Progress),
    /// All is over; nothing runs any more.
    Finish(Outcome),
}

/// How supervision ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was asked to stop.
    Stopped,
    /// Workers kept dying, or could not be started; this was the last straw.
    GaveUp(Cause),
}

/// Why a worker is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// It ended.
    Ended(WorkerId, ExitHow),
    /// It could not be started; the reason as text.
    NotStarted(String),
}

/// What the supervisor does, for people to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// A worker ended unexpectedly and will be replaced.
    Restarting {
        /// Why.
        cause: Cause,
        /// After this delay.
        delay: Duration,
    },
    /// A reload began.
    ReloadStarted {
        /// How many workers will be replaced.
        workers: usize,
    },
    /// A new worker took an old one's place.
    Replaced {
        /// The one that finishes.
        old: WorkerId,
        /// The one that serves now.
        new: WorkerId,
    },
    /// All workers have been replaced.
    ReloadFinished,
    /// A new worker did not come up; the old ones go on.
    ReloadFailed {
        /// Why.
        reason: String,
    },
    /// A reload was asked for while one runs, or while stopping.
    ReloadRefused,
    /// Workers were told to finish.
    Stopping,
    /// A worker did not finish within its grace and was killed.
    GraceOver(WorkerId),
    /// Workers keep dying; no more are started.
    GivingUp {
        /// How many unexpected ends.
        ends: usize,
        /// Within this time.
        within: Duration,
        /// The last one.
        cause: Cause,
    },
}

#[derive(Debug, Clone, Copy)]
struct Member {
    worker: WorkerId,
    since: Time,
    online: bool,
    listening: bool,
}

#[derive(Debug, Clone, Copy)]
struct Leaving {
    worker: WorkerId,
    kill_at: Time,
    /// When to follow up with `SIGTERM`.
    term_at: Option<Time>,
    killed: bool,
}

#[derive(Debug, Default)]
struct Place {
    current: Option<Member>,
    successor: Option<Member>,
    retry_at: Option<Time>,
    /// Quick deaths in a row.
    quick_ends: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    Running,
    Stopping(Outcome),
    Finished,
}

#[derive(Debug)]
struct Reload {
    /// Slots still to be replaced, the next one first.
    todo: VecDeque<usize>,
    /// The slot whose successor is starting, and until when it may.
    active: Option<(usize, Time)>,
}

/// How long a worker may linger between its disconnect and its end before `SIGTERM`.
const LINGER: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug)]
pub struct Supervisor {
    config: Config,
    places: Vec<Place>,
    leaving: Vec<Leaving>,
    restarts: Restarts,
    reload: Option<Reload>,
    phase: Phase,
    orders: VecDeque<Order>,
    /// The next deadline, if it is known: it is asked for far more often than it changes.
    due: Cell<Option<Option<Time>>>,
}

impl Supervisor {
    /// A supervisor that has not started anything.
    #[must_use]
    pub fn new(config: Config) -> Supervisor {
        Supervisor {
            restarts: Restarts::new(&config),
            places: Vec::new(),
            leaving: Vec::new(),
            reload: None,
            phase: Phase::Running,
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
    pub fn start(&mut self) {
        self.due.set(None);
        for slot in 0..self.config.workers {
            self.places.push(Place::default());
            self.orders.push_back(Order::Fork(Slot(slot)));
        }
    }

    /// A fork that was ordered succeeded.
    pub fn forked(&mut self, now: Time, slot: Slot, worker: WorkerId) {
        self.due.set(None);
        let member = Member { worker, since: now, online: false, listening: false };
        let place = self.places.get_mut(slot.0).filter(|_| self.phase == Phase::Running);
        let Some(place) = place else {
            // There is no use for it any more.
            self.leave(now, member);
            return;
        };
        let is_awaited = self.reload.as_ref().and_then(|reload| reload.active).is_some_and(|(active, _)| active == slot.0);
        if place.current.is_none() {
            place.current = Some(member);
        } else if is_awaited && place.successor.is_none() {
            place.successor = Some(member);
        } else {
            // Somebody else was faster.
            self.leave(now, member);
        }
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

    /// Whether workers are being replaced.
    #[must_use]
    pub fn is_reloading(&self) -> bool {
        self.reload.is_some()
    }

    /// When a worker that is to finish will be killed.
    #[must_use]
    pub fn leaves_by(&self, worker: WorkerId) -> Option<Time> {
        self.leaving.iter().find(|l| l.worker == worker).map(|l| l.kill_at)
    }

    /// Changes how many workers are kept running. Those that are too many finish, the last ones first. Without effect while stopping.
    pub fn scale(&mut self, now: Time, workers: usize) {
        self.due.set(None);
        if self.phase != Phase::Running {
            return;
        }
        // In proportion, so that what is much for a few is little for many.
        let before = self.config.workers.max(1);
        self.config.max_ends = self.config.max_ends.max(self.config.max_ends.saturating_mul(workers).div_ceil(before));
        self.config.workers = workers;
        self.orders.retain(|order| !matches!(order, Order::Fork(slot) if slot.0 >= workers));
        while self.places.len() < workers {
            self.orders.push_back(Order::Fork(Slot(self.places.len())));
            self.places.push(Place::default());
        }
        for place in self.places.split_off(workers) {
            place.current.into_iter().chain(place.successor).for_each(|member| self.leave(now, member));
        }
        if let Some(reload) = &mut self.reload {
            reload.todo.retain(|slot| *slot < workers);
            reload.active = reload.active.filter(|(slot, _)| *slot < workers);
        }
        self.advance_reload(now);
    }

    /// A fork that was ordered failed. `for_good` means that trying again cannot help (the program does not exist).
    pub fn fork_failed(&mut self, now: Time, slot: Slot, reason: String, for_good: bool) {
        self.due.set(None);
        if self.phase != Phase::Running || slot.0 >= self.places.len() {
            return;
        }
        let is_successor = self.places.get(slot.0).is_some_and(|place| place.current.is_some());
        if is_successor {
            self.fail_reload(now, format!("the new worker could not be started: {reason}"));
        } else if for_good && !self.serves() {
            self.give_up(now, 1, Cause::NotStarted(reason));
        } else {
            self.vacant(now, slot.0, Cause::NotStarted(reason), true);
        }
    }

    /// Whether it is on its way to the end.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.phase != Phase::Running
    }

    /// A worker's channel works.
    pub fn online(&mut self, now: Time, worker: WorkerId) {
        self.due.set(None);
        if let Some(member) = self.member(worker) {
            member.online = true;
            self.advance_reload(now);
        }
    }

    /// A worker's server listens.
    pub fn listening(&mut self, now: Time, worker: WorkerId) {
        self.due.set(None);
        if let Some(member) = self.member(worker) {
            member.listening = true;
            self.advance_reload(now);
        }
    }

    /// A worker's channel closed.
    pub fn disconnected(&mut self, now: Time, worker: WorkerId) {
        self.due.set(None);
        if let Some(leaving) = self.leaving.iter_mut().find(|l| l.worker == worker) {
            leaving.term_at.get_or_insert(now + LINGER);
        } else if let Some(member) = self.member(worker) {
            // It cannot be given connections any more. Normally it ends by itself at once; its end refills the slot.
            let member = *member;
            let kill_at = now + self.config.grace;
            self.leaving.push(Leaving { worker: member.worker, kill_at, term_at: Some(now + LINGER), killed: false });
        }
    }

    /// A worker's process ended.
    pub fn exited(&mut self, now: Time, worker: WorkerId, how: ExitHow) {
        self.due.set(None);
        self.leaving.retain(|l| l.worker != worker);
        let position = |get: fn(&Place) -> Option<Member>, places: &[Place]| {
            places.iter().position(|p| get(p).is_some_and(|m| m.worker == worker))
        };
        if let Some(slot) = position(|p| p.successor, &self.places) {
            self.places[slot].successor = None;
            self.fail_reload(now, format!("the new worker ended with {how}"));
        } else if let Some(slot) = position(|p| p.current, &self.places) {
            let quick = self.places[slot].current.take().is_some_and(|m| now.since(m.since) < self.config.min_uptime);
            if self.phase == Phase::Running {
                if self.places[slot].successor.is_some() {
                    // Its successor is on the way; it is the worker of this slot now, whatever becomes of the reload.
                    self.places[slot].current = self.places[slot].successor.take();
                    if let Some(reload) = &mut self.reload {
                        reload.active = None;
                    }
                    self.advance_reload(now);
                } else {
                    self.vacant(now, slot, Cause::Ended(worker, how), quick);
                }
            }
        }
        self.finish_if_done();
    }

    /// Whether a worker is up.
    fn serves(&self) -> bool {
        self.places.iter().any(|place| place.current.is_some_and(|member| member.online))
    }

    /// A slot lost its worker unexpectedly.
    fn vacant(&mut self, now: Time, slot: usize, cause: Cause, quick: bool) {
        // That no more can be started is no reason to send those away that serve.
        if matches!(cause, Cause::Ended(..)) || !self.serves() {
            let ends = self.restarts.ended(now);
            if ends >= self.config.max_ends {
                self.give_up(now, ends, cause);
                return;
            }
        }
        let place = &mut self.places[slot];
        place.quick_ends = if quick { place.quick_ends + 1 } else { 0 };
        let delay = self.restarts.delay(place.quick_ends);
        place.retry_at = Some(now + delay);
        self.orders.push_back(Order::Tell(Progress::Restarting { cause, delay }));
        self.fill(now);
    }

    fn fill(&mut self, now: Time) {
        for (slot, place) in self.places.iter_mut().enumerate() {
            if place.retry_at.is_some_and(|at| at <= now) {
                place.retry_at = None;
                self.orders.push_back(Order::Fork(Slot(slot)));
            }
        }
    }

    fn give_up(&mut self, now: Time, ends: usize, cause: Cause) {
        self.orders.push_back(Order::Tell(Progress::GivingUp { ends, within: self.config.window, cause: cause.clone() }));
        self.end(now, Outcome::GaveUp(cause));
    }

    // ---- stopping ----

    /// Finish all workers, then report [`Order::Finish`]. A second call kills what is left.
    pub fn stop(&mut self, now: Time) {
        self.due.set(None);
        match self.phase {
            Phase::Running => {
                self.orders.push_back(Order::Tell(Progress::Stopping));
                self.end(now, Outcome::Stopped);
            }
            Phase::Stopping(_) => {
                for leaving in &mut self.leaving {
                    if !std::mem::replace(&mut leaving.killed, true) {
                        self.orders.push_back(Order::Kill(leaving.worker));
                    }
                }
            }
            Phase::Finished => {}
        }
    }

    fn end(&mut self, now: Time, outcome: Outcome) {
        self.phase = Phase::Stopping(outcome);
        self.reload = None;
        let mut members = Vec::new();
        for place in &mut self.places {
            place.retry_at = None;
            members.extend(place.current.take().into_iter().chain(place.successor.take()));
        }
        for member in members {
            self.leave(now, member);
        }
        self.finish_if_done();
    }

    fn leave(&mut self, now: Time, member: Member) {
        if self.leaving.iter().any(|l| l.worker == member.worker) {
            return;
        }
        self.orders.push_back(if member.online { Order::Disconnect(member.worker) } else { Order::Terminate(member.worker) });
        self.leaving.push(Leaving { worker: member.worker, kill_at: now + self.config.grace, term_at: None, killed: false });
    }

    fn finish_if_done(&mut self) {
        if self.leaving.is_empty()
            && let Phase::Stopping(outcome) = &self.phase
        {
            self.orders.push_back(Order::Finish(outcome.clone()));
            self.phase = Phase::Finished;
        }
    }

    // ---- reload ----

    /// Replace the workers one by one, each old one told to finish only when its successor is ready.
    pub fn reload(&mut self, now: Time) {
        self.due.set(None);
        if self.phase != Phase::Running || self.reload.is_some() {
            self.orders.push_back(Order::Tell(Progress::ReloadRefused));
            return;
        }
        self.orders.push_back(Order::Tell(Progress::ReloadStarted { workers: self.places.len() }));
        self.reload = Some(Reload { todo: (0..self.places.len()).collect(), active: None });
        self.advance_reload(now);
    }

    fn advance_reload(&mut self, now: Time) {
        while let Some(reload) = &mut self.reload {
            if let Some((slot, deadline)) = reload.active {
                let place = &mut self.places[slot];
                let (Some(old), Some(new)) = (place.current, place.successor) else {
                    if place.current.is_some() {
                        // The fork is still under way.
                        return;
                    }
                    reload.active = None;
                    continue;
                };
                // A worker that never listened is no server; there it is enough that its successor stays up.
                let ready = new.listening || (!old.listening && new.online && now.since(new.since) >= self.config.min_uptime);
                if !ready {
                    if now >= deadline {
                        let timeout = self.config.ready_timeout.as_secs();
                        self.fail_reload(now, format!("the new worker was not ready after {timeout} s"));
                    }
                    return;
                }
                place.current = place.successor.take();
                place.quick_ends = 0;
                reload.active = None;
                self.orders.push_back(Order::Tell(Progress::Replaced { old: old.worker, new: new.worker }));
                self.leave(now, old);
                continue;
            }
            match reload.todo.pop_front() {
                // A vacant slot is filled with a new worker anyway.
                Some(slot) if self.places[slot].current.is_none() => {}
                Some(slot) => {
                    reload.active = Some((slot, now + self.config.ready_timeout));
                    self.orders.push_back(Order::Fork(Slot(slot)));
                    return;
                }
                None => {
                    self.reload = None;
                    self.orders.push_back(Order::Tell(Progress::ReloadFinished));
                }
            }
        }
    }

    fn fail_reload(&mut self, now: Time, reason: String) {
        let Some(reload) = self.reload.take() else { return };
        if let Some((slot, _)) = reload.active
            && let Some(successor) = self.places[slot].successor.take()
        {
            self.leave(now, successor);
        }
        self.orders.push_back(Order::Tell(Progress::ReloadFailed { reason }));
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
        let retries = self.places.iter().filter_map(|p| p.retry_at);
        let kills = self.leaving.iter().filter(|l| !l.killed).map(|l| l.kill_at);
        let terms = self.leaving.iter().filter_map(|l| l.term_at);
        let ready = self.reload.as_ref().and_then(|r| r.active).into_iter().flat_map(|(slot, deadline)| {
            let place = &self.places[slot];
            let must_listen = place.current.is_some_and(|old| old.listening);
            let settled = place.successor.filter(|s| s.online && !must_listen).map(|s| s.since + self.config.min_uptime);
            [Some(deadline), settled].into_iter().flatten()
        });
        retries.chain(kills).chain(terms).chain(ready).min()
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
        self.advance_reload(now);
    }

    fn member(&mut self, worker: WorkerId) -> Option<&mut Member> {
        self.places.iter_mut().flat_map(|p| p.current.iter_mut().chain(p.successor.iter_mut())).find(|m| m.worker == worker)
    }
}

#[cfg(test)]
mod tests;
