//! Draining workers: single ones for a successor, all of them for a pause or a stop.

use std::time::Duration;

use crate::id::WorkerId;

use super::{
    Afterwards, Answer, EndSignals, Leaving, Order, Outcome, Progress, RecycleFailed, ReloadFailed,
    ReplaceFailure, RunState, SlotWorker, Supervisor, Time,
};

impl Supervisor {
    // ---- pausing ----

    /// Drains all workers and starts none until [`Supervisor::reload`].
    pub fn pause(&mut self, now: Time) {
        self.due.set(None);
        if self.phase == RunState::Running && self.stop_at.is_none() {
            self.orders.push_back(Order::Report(Progress::Pausing));
            self.rest(now);
        }
    }

    pub(super) fn rest(&mut self, now: Time) {
        self.phase = RunState::Idle;
        self.empty(now);
        self.update_health(now);
    }

    pub(super) fn wake(&mut self) {
        self.restarts.forget();
        self.phase = RunState::Running;
        for state in &mut self.slots {
            (state.quick_ends, state.done, state.lost) = (0, None, false);
        }
    }

    // ---- stopping ----

    /// Whether it is stopping or has stopped.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stop_at.is_some() || matches!(self.phase, RunState::Stopping(_) | RunState::Finished)
    }

    /// Returns the time at which a draining worker will be killed.
    #[must_use]
    pub fn leaves_by(&self, worker: WorkerId) -> Option<Time> {
        self.leaving.iter().find(|l| l.worker == worker).map(|l| l.kill_at)
    }

    /// Returns the end of the grace period of a draining worker; `None` if it was ended before.
    #[must_use]
    pub fn grace_of(&self, worker: WorkerId) -> Option<Time> {
        let leaving = self.leaving.iter().find(|leaving| leaving.worker == worker)?;
        (!leaving.is_killed()).then_some(leaving.kill_at)
    }

    /// Whether a worker drains because of scaling down, without a successor.
    #[must_use]
    pub fn is_surplus(&self, worker: WorkerId) -> bool {
        self.leaving.iter().any(|l| l.worker == worker && l.is_surplus)
    }

    /// Drains all workers, then emits [`Order::Finish`]. Has no effect while stopping.
    ///
    /// With a [drain delay](super::Config::drain_delay) the workers serve for that time before.
    pub fn stop(&mut self, now: Time) {
        self.due.set(None);
        let delay = self.config.drain_delay;
        match self.phase {
            _ if self.stop_at.is_some() => {}
            RunState::Running if !delay.is_zero() => {
                self.stop_at = Some(now + delay);
                self.orders.push_back(Order::Report(Progress::StopDelayed { delay }));
                self.answer_due(now);
            }
            RunState::Running | RunState::Idle => self.end_delay(now),
            RunState::Stopping(_) | RunState::Finished => {}
        }
    }

    /// Stops without a drain delay, or ends it.
    pub fn end_delay(&mut self, now: Time) {
        self.due.set(None);
        self.stop_at = None;
        if matches!(self.phase, RunState::Running | RunState::Idle) {
            self.orders.push_back(Order::Report(Progress::Stopping));
            self.end(now, Outcome::Stopped { killed: Vec::new() });
        }
    }

    /// Kills all remaining workers, then emits [`Order::Finish`].
    pub fn stop_now(&mut self, now: Time) {
        self.end_delay(now);
        self.leaving.iter_mut().for_each(|leaving| leaving.kill(&mut self.orders));
    }

    pub(super) fn end(&mut self, now: Time, outcome: Outcome) {
        self.phase = RunState::Stopping(outcome);
        self.stop_at = None;
        self.empty(now);
        self.answer_due(now);
        self.finish_if_done();
    }

    /// Drains all workers.
    fn empty(&mut self, now: Time) {
        self.rejected = None;
        if let Some(round) = self.round.take() {
            let mut told = round.failure(ReplaceFailure::Ending, Afterwards::Ends);
            if let Some(Order::Answer(_, answer)) = told.last_mut() {
                self.overtake(answer);
            }
            self.orders.extend(told);
        }
        let mut members = Vec::new();
        for state in &mut self.slots {
            (state.retry_at, state.hurry_at) = (None, None);
            members.extend(state.current.take().into_iter().chain(state.successor.take()));
        }
        self.orders.retain(|order| !matches!(order, Order::Fork(_)));
        for member in members {
            self.leave(now, member);
        }
    }

    /// Adjusts the answer of an operation that ends because all workers are being ended.
    fn overtake(&self, answer: &mut Answer) {
        let is_stopping = matches!(self.phase, RunState::Stopping(Outcome::Stopped { .. }));
        match answer {
            Answer::Reload(result) if is_stopping => *result = Err(ReloadFailed::Stopped),
            Answer::Recycle(result) if self.phase == RunState::Idle => {
                *result = Err(RecycleFailed::Paused);
            }
            Answer::Recycle(result) => *result = Err(RecycleFailed::Stopping),
            _ => {}
        }
    }

    pub(super) fn leave(&mut self, now: Time, member: SlotWorker) {
        if self.leaving.iter().any(|l| l.worker == member.worker) {
            return;
        }
        // An embedding program's worker that is not online yet reads it when it is.
        let mut leaving = Leaving::new(now, &member, &self.config);
        self.orders.push_back(if member.online.is_some() || self.config.is_embedded {
            Order::Disconnect(member.worker)
        } else {
            leaving.signalled();
            Order::Terminate(member.worker)
        });
        self.leaving.push(leaving);
    }

    /// Records that a draining worker was sent the stop signal instead of a message, or says that it
    /// sends that to itself; which decides only which signal it gets next.
    pub fn signalled(&mut self, worker: WorkerId) {
        self.due.set(None);
        let mut leaving = self.leaving.iter_mut();
        leaving.find(|l| l.worker == worker).into_iter().for_each(Leaving::signalled);
    }

    /// Returns the stop signal of a draining worker, and the time within which it gets that once it
    /// has hardly anything to finish. An embedding program signals its workers itself.
    #[must_use]
    pub fn stop_signal(&self, now: Time, worker: WorkerId) -> Option<(i32, Duration)> {
        self.leaving.iter().find(|leaving| leaving.worker == worker)?.stop_signal(now)
    }

    /// Sets the signals that end a worker, which are `SIGTERM` otherwise.
    pub fn ends_by(&mut self, worker: WorkerId, signals: EndSignals) {
        let slots = self.slots.iter_mut();
        let mut members =
            slots.flat_map(|slot| slot.current.iter_mut().chain(slot.successor.iter_mut()));
        if let Some(member) = members.find(|member| member.worker == worker) {
            member.ends_by = signals;
        }
        // One that nobody needs any more leaves as soon as it is there.
        let mut leaving = self.leaving.iter_mut();
        if let Some(leaving) = leaving.find(|leaving| leaving.worker == worker) {
            leaving.set_signals(signals);
        }
    }

    /// Ends a worker that was never ready, so that it has hardly anything to drain.
    pub(super) fn leave_unready(&mut self, now: Time, member: SlotWorker) {
        self.leave(now, member);
        self.leaving
            .iter_mut()
            .filter(|l| l.worker == member.worker)
            .for_each(|l| l.expect_end(now));
    }

    /// Drains a worker that has a successor. Bounds the number of draining workers.
    pub(super) fn make_way(&mut self, now: Time, member: SlotWorker) {
        self.leave(now, member);
        let most = 4 + 2 * self.config.workers;
        let surplus = self.leaving.iter().filter(|l| !l.is_killed()).count().saturating_sub(most);
        let grace = self.config.grace;
        // Reloads may follow each other faster than old workers can end.
        let has_had_time = |l: &&mut Leaving| l.has_had_time(now, grace);
        for oldest in self.leaving.iter_mut().filter(has_had_time).take(surplus) {
            self.orders.push_back(Order::Report(Progress::GraceOver(oldest.worker)));
            oldest.kill(&mut self.orders);
        }
    }

    pub(super) fn finish_if_done(&mut self) {
        if self.leaving.is_empty()
            && let RunState::Stopping(outcome) = &self.phase
        {
            let mut outcome = outcome.clone();
            if let Outcome::Stopped { killed } = &mut outcome {
                *killed = std::mem::take(&mut self.killed);
            }
            self.orders.push_back(Order::Finish(outcome));
            self.phase = RunState::Finished;
        }
    }
}
