//! How many workers there should be, and what to do when there are not: restarts, replacement, shutdown.
//!
//! A state machine like [`crate::primary`]: call the method that fits what happened, then carry out the [`Order`]s in order.

mod config;
mod expect;
mod order;
mod replace;
mod restart;

use std::cell::Cell;
use std::collections::VecDeque;
use std::time::Duration;

use crate::event::{Address, ExitHow};
use crate::id::{Time, WorkerId};
pub use config::{Config, Readiness, Restart};
pub use expect::Claim;
pub use order::{Cause, Order, Outcome, Progress, Slot};
use replace::Round;
use restart::Restarts;

#[derive(Debug, Clone, Copy)]
struct Member {
    worker: WorkerId,
    since: Time,
    generation: u32,
    online: Option<Time>,
    /// It speaks Node's protocol, or surely will.
    speaks: bool,
    /// Since when it listens.
    listening: Option<Time>,
    /// When it said that it is ready.
    told: Option<Time>,
}

impl Member {
    /// Since when it is ready, or from when on it will be if nothing happens.
    fn ready_at(&self, must_listen: bool, config: &Config) -> Option<Time> {
        let (ready, by_age) = match config.readiness {
            Readiness::Told => (self.told, false),
            Readiness::Listening => (self.listening, false),
            Readiness::Auto => (self.listening, !must_listen),
        };
        let aged = match self.online {
            // One that speaks Node's protocol may still be about to listen.
            Some(online) if self.speaks => Some(online + config.listen_patience.max(config.min_uptime)),
            // It is still being loaded.
            None if self.speaks => None,
            _ => Some(self.since + config.min_uptime),
        };
        let aged = aged.filter(|_| by_age);
        ready.map_or(aged, |ready| Some(aged.map_or(ready, |aged| aged.min(ready))))
    }

    fn is_ready(&self, now: Time, must_listen: bool, config: &Config) -> bool {
        self.ready_at(must_listen, config).is_some_and(|at| at <= now)
    }
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
    /// How its last worker ended, if it stays empty for that.
    done: Option<(WorkerId, ExitHow)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    Running,
    /// Nothing is started any more, until somebody, or the time, wants it.
    Idle {
        failed: bool,
        retry_at: Option<Time>,
    },
    Stopping(Outcome),
    Finished,
}

/// What a supervisor is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// It keeps the workers running.
    Running,
    /// It replaces them.
    Reloading,
    /// It has given up, and waits to be told to try again.
    Failed,
    /// It was told to end all workers, and waits to be told to start new ones.
    Paused,
    /// It ends.
    Stopping,
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
    /// Unexpected ends that are too many, for so many workers.
    budget: (usize, usize),
    /// What workers are started now belong to; one more with each reload.
    generation: u32,
    round: Option<Round>,
    /// A generation that was rejected and is still there in part, and when it is tried again to replace that.
    rejected: Option<(u32, Option<Time>)>,
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
            budget: (config.max_ends, config.workers),
            places: Vec::new(),
            leaving: Vec::new(),
            generation: 1,
            round: None,
            rejected: None,
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
        let generation = self.generation;
        let member = Member { worker, since: now, generation, online: None, speaks: false, listening: None, told: None };
        let place = self.places.get_mut(slot.0).filter(|_| self.phase == Phase::Running);
        let Some(place) = place else {
            // There is no use for it any more.
            self.leave(now, member);
            return;
        };
        let is_awaited = self.round.as_ref().is_some_and(|round| round.awaits_successor(slot.0));
        if place.current.is_none() {
            place.current = Some(member);
        } else if is_awaited && place.successor.is_none() {
            place.successor = Some(member);
            self.orders.push_back(Order::Hold(worker));
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

    /// What it is about.
    #[must_use]
    pub fn doing(&self) -> Doing {
        match &self.phase {
            Phase::Running if self.round.as_ref().is_some_and(|round| !round.is_recycling()) => Doing::Reloading,
            Phase::Running => Doing::Running,
            Phase::Idle { failed: true, .. } => Doing::Failed,
            Phase::Idle { failed: false, .. } => Doing::Paused,
            Phase::Stopping(_) | Phase::Finished => Doing::Stopping,
        }
    }

    /// When a worker that is to finish will be killed.
    #[must_use]
    pub fn leaves_by(&self, worker: WorkerId) -> Option<Time> {
        self.leaving.iter().find(|l| l.worker == worker).map(|l| l.kill_at)
    }

    /// Whether a worker counts as up, and which generation it belongs to: 1 for the first, one more for each reload. `None` if it has left, or is leaving.
    #[must_use]
    pub fn standing(&self, now: Time, worker: WorkerId) -> Option<(bool, u32)> {
        let members = self.places.iter().flat_map(|place| place.current.iter().chain(&place.successor));
        let member = members.into_iter().find(|member| member.worker == worker)?;
        Some((member.is_ready(now, false, &self.config), member.generation))
    }

    /// Changes how many workers are kept running. Those that are too many finish, the last ones first. Without effect while stopping.
    pub fn scale(&mut self, now: Time, workers: usize) {
        self.due.set(None);
        if !matches!(self.phase, Phase::Running | Phase::Idle { .. }) {
            return;
        }
        // In proportion, so that what is much for a few is little for many.
        let (ends, among) = self.budget;
        self.config.max_ends = ends.max(ends.saturating_mul(workers).div_ceil(among.max(1)));
        self.config.workers = workers;
        self.orders.retain(|order| !matches!(order, Order::Fork(slot) if slot.0 >= workers));
        while self.places.len() < workers {
            if self.phase == Phase::Running {
                self.orders.push_back(Order::Fork(Slot(self.places.len())));
            }
            self.places.push(Place::default());
        }
        for place in self.places.split_off(workers) {
            place.current.into_iter().chain(place.successor).for_each(|member| self.leave(now, member));
        }
        if let Some(round) = &mut self.round {
            round.shrink(workers);
        }
        self.advance(now);
        self.end_if_all_have(now);
    }

    /// A fork that was ordered failed. `for_good` means that trying again cannot help (the program does not exist).
    pub fn fork_failed(&mut self, now: Time, slot: Slot, reason: String, for_good: bool) {
        self.due.set(None);
        if self.phase != Phase::Running || slot.0 >= self.places.len() {
            return;
        }
        let is_new = self.round.as_ref().is_some_and(|round| round.is_at(slot.0));
        if is_new {
            self.fail_round(now, format!("the new worker could not be started: {reason}"));
        }
        if !matches!(self.phase, Phase::Running) || self.places[slot.0].current.is_some() {
            return;
        }
        if for_good && !self.serves() {
            self.give_up(now, 1, Cause::NotStarted(reason));
        } else {
            self.vacant(now, slot.0, Cause::NotStarted(reason), true);
        }
    }

    /// Whether it is on its way to the end.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        matches!(self.phase, Phase::Stopping(_) | Phase::Finished)
    }

    /// A worker that was forked is known to speak Node's protocol, so that it is not taken for one that does not when it takes its time.
    pub fn will_speak(&mut self, now: Time, worker: WorkerId) {
        self.with_member(now, worker, |member| member.speaks = true);
    }

    /// A worker runs. `speaks` means that it says so itself.
    pub fn online(&mut self, now: Time, worker: WorkerId, speaks: bool) {
        self.with_member(now, worker, |member| (member.online, member.speaks) = (member.online.or(Some(now)), speaks));
    }

    /// A worker's server listens.
    pub fn listening(&mut self, now: Time, worker: WorkerId) {
        self.with_member(now, worker, |member| member.listening = member.listening.or(Some(now)));
    }

    /// Where a worker listens now. Call before [`Supervisor::listening`].
    pub fn listens_at(&mut self, worker: WorkerId, at: Vec<Address>) {
        if let Some(round) = &mut self.round {
            round.listens_at(worker, at);
        }
    }

    /// A worker says that it is ready.
    pub fn told_ready(&mut self, now: Time, worker: WorkerId) {
        self.with_member(now, worker, |member| member.told = member.told.or(Some(now)));
    }

    fn with_member(&mut self, now: Time, worker: WorkerId, change: impl FnOnce(&mut Member)) {
        self.due.set(None);
        let mut members = self.places.iter_mut().flat_map(|p| p.current.iter_mut().chain(p.successor.iter_mut()));
        if let Some(member) = members.find(|m| m.worker == worker) {
            change(member);
            self.advance(now);
        }
    }

    /// A worker's channel closed.
    pub fn disconnected(&mut self, now: Time, worker: WorkerId) {
        self.due.set(None);
        if let Some(leaving) = self.leaving.iter_mut().find(|l| l.worker == worker) {
            leaving.term_at.get_or_insert(now + LINGER);
        } else if self.places.iter().flat_map(|p| p.current.iter().chain(&p.successor)).any(|m| m.worker == worker) {
            // It cannot be given connections any more. Normally it ends by itself at once; its end refills the slot.
            let kill_at = now + self.config.grace;
            self.leaving.push(Leaving { worker, kill_at, term_at: Some(now + LINGER), killed: false });
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
            self.fail_round(now, format!("the new worker ended with {how}"));
            self.fill(now);
        } else if let Some(slot) = position(|p| p.current, &self.places) {
            if let Some(member) = self.places[slot].current.take()
                && self.phase == Phase::Running
            {
                self.lost(now, slot, member, how);
            }
        } else {
            self.emptied(now, worker);
        }
        self.finish_if_done();
    }

    /// The worker of a slot has ended without having been told to.
    fn lost(&mut self, now: Time, slot: usize, member: Member, how: ExitHow) {
        if self.places[slot].successor.is_some() {
            // Its successor is on the way; it is the worker of this slot now, whatever becomes of the rest.
            self.places[slot].current = self.places[slot].successor.take();
            self.orders.extend(self.places[slot].current.map(|member| Order::Admit(member.worker)));
            if let Some(round) = &mut self.round {
                round.let_go(slot);
            }
            self.advance(now);
            return;
        }
        let is_new = self.round.as_ref().is_some_and(|round| round.is_of(slot, member.generation, self.generation));
        if is_new {
            self.fail_round(now, format!("the new worker ended with {how}"));
            if self.phase != Phase::Running {
                return;
            }
        }
        if self.config.is_final(how) {
            self.restarts.note();
            self.places[slot].done = Some((member.worker, how));
            self.orders.push_back(Order::Tell(Progress::NotRestarting { worker: member.worker, how }));
            self.end_if_all_have(now);
            return;
        }
        let quick = now.since(member.since) < self.config.min_uptime;
        self.vacant(now, slot, Cause::Ended(member.worker, how), quick);
    }

    /// When all workers have ended for good, so has everything.
    fn end_if_all_have(&mut self, now: Time) {
        if self.phase != Phase::Running || self.places.is_empty() || self.places.iter().any(|place| place.done.is_none()) {
            return;
        }
        let failure =
            self.places.iter().filter_map(|place| place.done).find(|(_, how)| {
                !how.is_success() && !matches!(how, ExitHow::Code(code) if self.config.final_codes.contains(code))
            });
        self.end(now, failure.map_or(Outcome::Stopped, |(worker, how)| Outcome::GaveUp(Cause::Ended(worker, how))));
    }

    /// Whether every slot has a worker that is ready.
    #[must_use]
    pub fn is_complete(&self, now: Time) -> bool {
        self.places.iter().all(|place| place.current.is_some_and(|member| member.is_ready(now, false, &self.config)))
    }

    /// Whether a worker is up.
    fn serves(&self) -> bool {
        self.places.iter().any(|place| place.current.is_some_and(|member| member.online.is_some()))
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
        if self.config.stays_when_failed {
            self.rest(now, true);
        } else {
            self.end(now, Outcome::GaveUp(cause));
        }
    }

    // ---- resting ----

    /// Finishes all workers, and starts none until [`Supervisor::reload`].
    pub fn pause(&mut self, now: Time) {
        self.due.set(None);
        if self.phase == Phase::Running {
            self.orders.push_back(Order::Tell(Progress::Pausing));
            self.rest(now, false);
        }
    }

    fn rest(&mut self, now: Time, failed: bool) {
        let retry_at = self.config.retry_failed.filter(|_| failed).map(|after| now + after);
        self.phase = Phase::Idle { failed, retry_at };
        self.empty(now);
    }

    /// Starts workers again after giving up, with the whole budget.
    fn try_again(&mut self, now: Time) {
        self.orders.push_back(Order::Tell(Progress::TryingAgain));
        self.wake();
        for place in &mut self.places {
            place.retry_at = Some(now);
        }
        self.fill(now);
    }

    fn wake(&mut self) {
        self.restarts.forget();
        self.phase = Phase::Running;
        for place in &mut self.places {
            (place.quick_ends, place.done) = (0, None);
        }
    }

    // ---- stopping ----

    /// Finish all workers, then report [`Order::Finish`]. A second call kills what is left.
    pub fn stop(&mut self, now: Time) {
        self.due.set(None);
        match self.phase {
            Phase::Running | Phase::Idle { .. } => {
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
        self.empty(now);
        self.finish_if_done();
    }

    /// Has all workers leave.
    fn empty(&mut self, now: Time) {
        self.rejected = None;
        if let Some(round) = self.round.take() {
            self.orders.push_back(Order::Tell(round.failure("all workers are being ended".into())));
        }
        let mut members = Vec::new();
        for place in &mut self.places {
            place.retry_at = None;
            members.extend(place.current.take().into_iter().chain(place.successor.take()));
        }
        self.orders.retain(|order| !matches!(order, Order::Fork(_)));
        for member in members {
            self.leave(now, member);
        }
    }

    fn leave(&mut self, now: Time, member: Member) {
        if self.leaving.iter().any(|l| l.worker == member.worker) {
            return;
        }
        self.orders.push_back(if member.online.is_some() {
            Order::Disconnect(member.worker)
        } else {
            Order::Terminate(member.worker)
        });
        self.leaving.push(Leaving { worker: member.worker, kill_at: now + self.config.grace, term_at: None, killed: false });
    }

    /// Has a worker leave for a successor. Those that never leave must not become more and more.
    fn make_way(&mut self, now: Time, member: Member) {
        self.leave(now, member);
        let most = 4 + 2 * self.config.workers;
        let surplus = self.leaving.iter().filter(|l| !l.killed).count().saturating_sub(most);
        let grace = self.config.grace;
        // Reloads may be faster than any worker can end that is about to.
        let has_had_time = |l: &&mut Leaving| !l.killed && now + grace >= l.kill_at + LINGER;
        for oldest in self.leaving.iter_mut().filter(has_had_time).take(surplus) {
            oldest.killed = true;
            self.orders.push_back(Order::Tell(Progress::GraceOver(oldest.worker)));
            self.orders.push_back(Order::Kill(oldest.worker));
        }
    }

    fn finish_if_done(&mut self) {
        if self.leaving.is_empty()
            && let Phase::Stopping(outcome) = &self.phase
        {
            self.orders.push_back(Order::Finish(outcome.clone()));
            self.phase = Phase::Finished;
        }
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
        let again = if let Phase::Idle { retry_at, .. } = self.phase { retry_at } else { None };
        let back = self.rejected.and_then(|(_, at)| at);
        retries.chain(kills).chain(terms).chain(self.round_deadlines()).chain(again).chain(back).min()
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
        if matches!(self.phase, Phase::Idle { retry_at: Some(at), .. } if at <= now) {
            self.try_again(now);
        }
        self.fill(now);
        self.advance(now);
        self.roll_back_again(now);
    }
}

#[cfg(test)]
mod tests;
