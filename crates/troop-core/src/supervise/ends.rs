//! Unexpected ends of workers: the back-off per slot, and when the cluster as a whole has failed.
//!
//! A cluster gives up only if it cannot start, or if the policy says to end without a ready worker.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    Cause, Config, ExitHow, GiveUp, Order, Outcome, Progress, ReadyWhen, ReplaceFailure, RunState,
    Slot, SlotWorker, Supervisor, Time, Vacancy, WhenFailed,
};

/// The uptime of a worker at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    /// It was never ready.
    Unready,
    /// It was ready, but not for the minimum time.
    Brief,
    /// It was ready for the minimum time.
    Full,
}

/// The readiness of the cluster as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Level {
    /// No worker has been ready yet; or slots have not had a ready worker yet, and none has lost
    /// its worker.
    Starting,
    /// Every slot that should have a ready worker has one.
    Complete,
    /// The workers of some slots have ended, or could not be started, and have no ready successor.
    Degraded,
    /// As degraded, and no slot has a ready worker.
    Down,
}

/// The health of the cluster at the last check.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Health {
    pub(super) level: Level,
    /// Whether a worker has ever been ready.
    pub(super) been_ready: bool,
    /// The time since which no worker is ready.
    pub(super) down_since: Option<Time>,
    /// Whether the degradation was reported.
    reported: bool,
    checked: Time,
}

impl Health {
    pub(super) fn new(been_ready: bool) -> Health {
        Health {
            level: Level::Starting,
            been_ready,
            down_since: None,
            reported: false,
            checked: Time(0),
        }
    }
}

impl Config {
    /// Whether a worker that ended like this is not restarted, because it is done.
    pub(super) fn is_finished(&self, how: ExitHow) -> bool {
        how.is_success()
            || matches!(how, ExitHow::Code(code) if self.restart.final_codes.contains(&code))
    }
}

impl Supervisor {
    fn life(&self, now: Time, member: &SlotWorker) -> Life {
        let end = member.gone.unwrap_or(now);
        match member
            .could_serve_as(self.config.replace.ready_when, false, &self.config)
            .filter(|ready| *ready <= end)
        {
            None => Life::Unready,
            Some(ready) if end.since(ready) >= self.config.restart.min_uptime => Life::Full,
            Some(_) => Life::Brief,
        }
    }

    /// Returns the failure that is the end of a new worker.
    pub(super) fn ended(&self, now: Time, member: &SlotWorker, how: ExitHow) -> ReplaceFailure {
        let end = member.gone.unwrap_or(now);
        let ready_when = self.round_policy().ready_when;
        let ready = member.could_serve_as(ready_when, true, &self.config);
        ReplaceFailure::Ended {
            worker: member.worker,
            how,
            was_ready: ready.is_some_and(|ready| ready <= end),
            last_lines: None,
        }
    }

    /// Handles the unexpected end of a slot's worker.
    pub(super) fn lost(&mut self, now: Time, slot: usize, member: SlotWorker, how: ExitHow) {
        let life = self.life(now, &member);
        self.health.been_ready |= life != Life::Unready;
        let state = &mut self.slots[slot];
        state.note_end(&member, life != Life::Unready);
        if let Some(successor) = state.successor.take() {
            // Its successor is starting already, and becomes the worker of this slot.
            let is_to_listen = state.has_listened && !self.config.is_embedded;
            (state.current, state.lost) = (Some(SlotWorker { is_to_listen, ..successor }), true);
            self.orders.push_back(Order::Admit(successor.worker));
            if let Some(round) = &mut self.round {
                round.has_lost_old(slot);
            }
            self.advance(now);
            return;
        }
        let is_new = self
            .round
            .as_ref()
            .is_some_and(|round| round.is_of(slot, member.generation, self.generation));
        if is_new {
            self.fail_round(now, self.ended(now, &member, how));
            if self.phase != RunState::Running {
                return;
            }
        }
        if self.config.is_embedded && (self.config.is_final(how) || self.has_given_up) {
            self.retire(now, slot);
            return;
        }
        if self.config.is_final(how) {
            self.slots[slot].done = Some((member.worker, how));
            self.orders
                .push_back(Order::Report(Progress::NotRestarting { worker: member.worker, how }));
            self.end_if_all_have(now);
            return;
        }
        self.vacant(now, slot, Cause::Ended(member.worker, how), life, member.served);
    }

    /// Ends the cluster when no worker is left to restart.
    pub(super) fn end_if_all_have(&mut self, now: Time) {
        if self.phase != RunState::Running
            || self.config.is_embedded
            || self.config.restart.stay_when_ended
            || self.slots.is_empty()
            || self.slots.iter().any(|state| state.done.is_none())
        {
            return;
        }
        let failure = self
            .slots
            .iter()
            .filter_map(|state| state.done)
            .find(|(_, how)| !self.config.is_finished(*how));
        self.end(
            now,
            failure.map_or(Outcome::Stopped { killed: Vec::new() }, |(worker, how)| {
                Outcome::GaveUp(GiveUp::AllEnded { worker, how })
            }),
        );
    }

    /// Whether every slot has a worker that is ready.
    #[must_use]
    pub fn is_complete(&self, now: Time) -> bool {
        self.slots.iter().filter(|state| !state.is_retired).all(|state| {
            state.current.is_some_and(|member| member.is_ready(now, false, &self.config))
        })
    }

    /// Returns the slots without a worker.
    pub fn vacancies(&self) -> impl Iterator<Item = Vacancy> {
        let slots = self.slots.iter().enumerate().filter(|(_, state)| !state.is_retired);
        let empty = slots.filter(|(_, state)| state.current.is_none());
        empty.map(|(slot, state)| Vacancy {
            slot: Slot(slot),
            retry_at: state.retry_at,
            quick_ends: state.quick_ends,
            done: state.done.map(|(_, how)| how),
        })
    }

    /// Whether no worker is ready.
    pub(super) fn is_down(&self, now: Time) -> bool {
        !self.slots.iter().any(|state| {
            state.current.is_some_and(|member| member.is_ready(now, false, &self.config))
        })
    }

    /// Whether a worker runs, ready or not.
    pub(super) fn has_workers(&self) -> bool {
        self.slots.iter().any(|state| state.current.is_some_and(|member| member.online.is_some()))
    }

    /// Handles a slot whose worker has ended unexpectedly.
    pub(super) fn vacant(
        &mut self,
        now: Time,
        slot: usize,
        cause: Cause,
        life: Life,
        served: bool,
    ) {
        self.restarts.note();
        if !self.health.been_ready && (matches!(cause, Cause::Ended(..)) || !self.has_workers()) {
            let ends = self.restarts.ended(now);
            if ends >= self.config.restart.max_ends {
                self.give_up_start(now, ends, cause);
                return;
            }
        }
        let others = self
            .slots
            .iter()
            .enumerate()
            .filter(|(other, state)| *other != slot && state.lost)
            .count();
        let state = &mut self.slots[slot];
        state.lost = true;
        state.quick_ends = match life {
            Life::Full => 0,
            // A request may have crashed it; waiting clients need a worker soon.
            Life::Brief if served => 1,
            Life::Brief | Life::Unready => state.quick_ends.saturating_add(1),
        };
        let delay = self.restarts.delay(state.quick_ends, others);
        state.retry_at = Some(now + delay);
        let is_able = life != Life::Unready && state.quick_ends > 1;
        state.hurry_at = is_able.then(|| now + self.restarts.delay(1, others));
        self.orders.push_back(Order::Report(Progress::Restarting { cause, delay }));
        self.fill(now);
    }

    pub(super) fn fill(&mut self, now: Time) {
        for (slot, state) in self.slots.iter_mut().enumerate() {
            if state.retry_at.is_some_and(|at| at <= now) {
                (state.retry_at, state.hurry_at) = (None, None);
                self.orders.push_back(Order::Fork(Slot(slot)));
            }
        }
    }

    /// Schedules the next worker of a slot.
    pub(super) fn retry(&mut self, now: Time, slot: usize) {
        let others = self
            .slots
            .iter()
            .enumerate()
            .filter(|(other, state)| *other != slot && state.lost)
            .count();
        let delay = self.restarts.delay(self.slots[slot].quick_ends, others);
        self.slots[slot].retry_at = Some(now + delay);
    }

    /// Whether [`Supervisor::hurry`] would have an effect: no worker is ready, and slots wait whose
    /// last workers had been ready.
    #[must_use]
    pub fn may_hurry(&self) -> bool {
        let waits = |state: &super::SlotState| matches!((state.hurry_at, state.retry_at), (Some(soon), Some(late)) if soon < late);
        self.phase == RunState::Running
            && self.health.down_since.is_some()
            && self.slots.iter().any(waits)
    }

    /// Shortens delays because clients wait while no worker is ready. Slots whose last workers had
    /// been ready wait no longer than after a first quick end, so that a request that crashes
    /// workers does not delay other clients.
    pub fn hurry(&mut self, now: Time) {
        self.due.set(None);
        if !self.may_hurry() {
            return;
        }
        for state in &mut self.slots {
            state.retry_at =
                state.retry_at.map(|at| state.hurry_at.map_or(at, |soon| at.min(soon)));
        }
        self.fill(now);
    }

    // ---- workers that are never ready ----

    /// Returns the time within which a worker that is started now must be ready. Workers of the
    /// first start have the whole window.
    pub(super) fn ready_limit(&self) -> Duration {
        if self.health.been_ready { self.config.replace.ready_timeout } else { self.down_limit() }
    }

    /// Returns the workers that are not ready, will not become so by uptime alone, and are not part
    /// of a round.
    fn unready(&self) -> impl Iterator<Item = (usize, SlotWorker)> {
        let is_leaving =
            |member: &SlotWorker| self.leaving.iter().any(|l| l.worker == member.worker);
        let is_in_round = |slot| self.round.as_ref().is_some_and(|round| round.is_at(slot));
        // A first start fails as a whole, by its window. Workers of an embedding program may take
        // any time.
        let counts =
            self.phase == RunState::Running && self.health.been_ready && !self.config.is_embedded;
        let members =
            self.slots.iter().enumerate().filter_map(|(slot, state)| Some((slot, state.current?)));
        members.filter(move |(slot, member)| {
            counts
                && member.ready_at(false, &self.config).is_none()
                && !is_leaving(member)
                && !is_in_round(*slot)
        })
    }

    pub(super) fn late_deadlines(&self) -> impl Iterator<Item = Time> {
        self.unready().map(|(_, member)| member.due)
    }

    /// Ends workers that are not ready in time. Their end counts as a failure.
    pub(super) fn end_late(&mut self, now: Time) {
        let late: Vec<_> = self.unready().filter(|(_, member)| member.due <= now).collect();
        for (slot, member) in late {
            // The next one is not measured by it: the program may have changed.
            self.slots[slot].listened.clear();
            self.orders.push_back(Order::Report(Progress::NotReady {
                worker: member.worker,
                within: member.due.since(member.since),
            }));
            self.leave_unready(now, member);
        }
    }

    /// Gives up a start without a ready worker.
    pub(super) fn give_up_start(&mut self, now: Time, ends: usize, cause: Cause) {
        self.give_up(now, GiveUp::NeverReady { ends, within: self.config.restart.window, cause });
    }

    fn give_up(&mut self, now: Time, why: GiveUp) {
        self.orders.push_back(Order::Report(Progress::GivingUp(why.clone())));
        if self.config.is_embedded {
            self.start_no_more(now);
        } else {
            self.end(now, Outcome::GaveUp(why));
        }
    }

    // ---- the cluster as a whole ----

    /// Returns the maximum time without a ready worker.
    fn down_limit(&self) -> Duration {
        if self.health.been_ready {
            self.config.restart.window
        } else {
            self.config.restart.window.max(self.config.replace.ready_timeout)
        }
    }

    /// Returns the time at which the cluster gives up if no worker becomes ready.
    fn gives_up_at(&self) -> Option<Time> {
        let limited = !self.health.been_ready || self.config.restart.when_failed == WhenFailed::End;
        let down_since = self
            .health
            .down_since
            .filter(|_| limited && self.phase == RunState::Running && !self.slots.is_empty())
            // A program's workers that are not ready may be about anything.
            .filter(|_| !self.config.is_embedded)?;
        Some(down_since + self.down_limit())
    }

    /// Returns the times at which health may change without an event: a worker becomes ready by its
    /// uptime, or the cluster gives up.
    pub(super) fn health_deadlines(&self) -> impl Iterator<Item = Time> {
        let checked = self.health.checked;
        let ready =
            self.slots.iter().filter_map(move |state| state.current?.ready_at(false, &self.config));
        ready
            .filter(move |at| *at > checked && self.phase == RunState::Running)
            .chain(self.gives_up_at())
    }

    /// Reports workers that count as ready although they have not said so.
    fn report_assumed(&mut self, now: Time) {
        let members = self
            .slots
            .iter_mut()
            .flat_map(|state| state.current.iter_mut().chain(&mut state.successor));
        for member in members.filter(|member| member.is_newly_assumed(now, &self.config)) {
            member.assumed = true;
            self.orders.push_back(Order::Report(Progress::AssumedReady {
                worker: member.worker,
                by_notification: self.config.replace.ready_when == ReadyWhen::Notified,
                within: self.config.replace.assume_ready_after.unwrap_or_default(),
            }));
        }
    }

    /// Updates the health and reports changes. Must be called after every change of a worker.
    pub(super) fn update_health(&mut self, now: Time) {
        self.due.set(None);
        self.health.checked = now;
        if self.phase != RunState::Running {
            self.health.down_since = None;
            self.answer_due(now);
            return;
        }
        self.report_assumed(now);
        let (mut ready, mut awaited, mut lost) = (0_usize, 0_usize, 0_usize);
        for state in self.slots.iter_mut().filter(|state| !state.is_retired) {
            if state.current.is_some_and(|member| member.is_ready(now, false, &self.config)) {
                ready += 1;
                state.lost = false;
            } else if state.done.is_some_and(|(_, how)| self.config.is_done(how)) {
                state.lost = false;
            } else if state.lost || state.done.is_some() {
                lost += 1;
            } else {
                awaited += 1;
            }
        }
        let health = &mut self.health;
        health.been_ready |= ready > 0;
        // With a target of 0 no worker is missing.
        health.down_since = if ready + lost + awaited == 0 || ready > 0 {
            None
        } else {
            health.down_since.or(Some(now))
        };
        let level = match (health.been_ready, lost, ready, awaited) {
            (false, ..) => Level::Starting,
            (_, 1.., 0, _) => Level::Down,
            (_, 1.., ..) => Level::Degraded,
            (_, 0, _, 1..) => Level::Starting,
            (_, 0, _, 0) => Level::Complete,
        };
        let before = std::mem::replace(&mut health.level, level);
        if before != level {
            let wanted = self.config.workers;
            match level {
                Level::Degraded if before == Level::Down => {
                    self.orders.push_back(Order::Report(Progress::Recovering { ready, wanted }));
                }
                Level::Degraded | Level::Down => {
                    health.reported = true;
                    self.orders.push_back(Order::Report(Progress::Degraded { ready, wanted }));
                }
                Level::Complete if std::mem::take(&mut health.reported) => {
                    self.orders.push_back(Order::Report(Progress::Recovered { workers: ready }));
                }
                Level::Complete | Level::Starting => {}
            }
        }
        if self.gives_up_at().is_some_and(|at| at <= now) {
            self.give_up(
                now,
                GiveUp::NotReady { been_ready: self.health.been_ready, within: self.down_limit() },
            );
        }
        self.answer_due(now);
    }
}
