//! Supervision of workers that a program starts of its own accord, as Node's `cluster.fork` does.
//!
//! Each of them is a slot. What ends without having been told to is followed by another one, if
//! that is wanted; a worker that the program tells to leave gives its slot up. Nothing but a reload
//! ends a worker, and giving up ends none: the others go on.

use super::{
    Answer, Config, Order, ReloadFailed, ReplaceFailure, ReplacePolicy, Restart, RestartPolicy,
    Slot, SlotState, SlotWorker, Supervisor,
};
use crate::id::{Time, WorkerId};

/// Ends that are too many, where the program does not say it: 8 restarts, or 4 for each worker.
fn usual_ends(workers: usize) -> usize {
    1 + workers.saturating_mul(4).max(8)
}

impl Supervisor {
    /// A supervisor without slots, for workers that the program starts. None of them is followed by
    /// another one before [`Supervisor::restart_as`].
    #[must_use]
    pub fn embedded(seed: u64) -> Supervisor {
        let mut config = Config { is_embedded: true, seed, ..Config::new(0) };
        config.restart.restart = Restart::Never;
        Supervisor::new(config)
    }

    /// Whether the program starts the workers.
    #[must_use]
    pub fn is_embedded(&self) -> bool {
        self.config.is_embedded
    }

    /// Sets when workers are followed by others. With `scales_ends`, how many ends are too many
    /// goes by the number of workers. The program is about to start a worker, so what had been
    /// given up is tried again.
    pub fn restart_as(&mut self, policy: RestartPolicy, scales_ends: bool) {
        self.due.set(None);
        self.restarts.configure(&policy);
        self.config.restart = policy;
        self.scales_ends = scales_ends;
        self.scale_ends();
    }

    /// Whether workers that end are followed by others.
    #[must_use]
    pub fn restarts_workers(&self) -> bool {
        self.config.restart.restart != Restart::Never
    }

    /// Whether it has given up, and the program has started no worker since.
    #[must_use]
    pub fn has_given_up(&self) -> bool {
        self.has_given_up
    }

    /// Sets how the next reload replaces workers, and how long those have to finish from now on.
    pub fn reload_as(&mut self, policy: ReplacePolicy, grace: std::time::Duration) {
        self.reload = Some(policy);
        self.config.grace = grace;
    }

    /// The number of the slot that the next worker of the program's gets.
    #[must_use]
    pub fn free_slot(&self) -> Slot {
        let is_free = |(slot, state): (usize, &SlotState)| {
            state.is_retired && !self.round.as_ref().is_some_and(|round| round.is_at(slot))
        };
        let free = self.slots.iter().enumerate().position(is_free);
        Slot(free.unwrap_or(self.slots.len()))
    }

    /// The program has started a worker. It gets [`Supervisor::free_slot`].
    pub fn adopt(&mut self, now: Time, worker: WorkerId) {
        self.due.set(None);
        if std::mem::take(&mut self.has_given_up) {
            self.restarts.forget();
        }
        let Slot(slot) = self.free_slot();
        if slot == self.slots.len() {
            self.slots.push(SlotState::default());
        } else {
            self.slots[slot] = SlotState::default();
        }
        self.config.workers += 1;
        self.scale_ends();
        self.forked(now, Slot(slot), worker);
        self.expect_ipc(now, worker);
        self.update_health(now);
    }

    /// Handles a worker that the program disconnects: it gets no successor.
    pub fn release(&mut self, now: Time, worker: WorkerId) {
        self.due.set(None);
        let is_it = |member: SlotWorker| member.worker == worker;
        let slot = self.slots.iter().position(|state| state.current.is_some_and(is_it));
        if let Some(slot) = slot.filter(|_| self.config.is_embedded) {
            self.retire(now, slot);
            self.update_health(now);
        }
    }

    /// Handles a slot whose last worker the program has ended while that worker's process was ending
    /// of itself: it gets no successor. Nothing happens if the slot has another worker.
    pub fn release_vacant(&mut self, now: Time, slot: Slot) {
        self.due.set(None);
        if self.config.is_embedded && self.vacancies().any(|vacancy| vacancy.slot == slot) {
            self.retire(now, slot.0);
            self.update_health(now);
        }
    }

    /// The program has told all workers to leave. What is being replaced is taken back.
    pub fn release_all(&mut self, now: Time) {
        self.due.set(None);
        if !self.config.is_embedded {
            return;
        }
        let ticket = self.round.as_mut().and_then(|round| round.ticket.take());
        self.fail_round(now, ReplaceFailure::Ending);
        if let Some(ticket) = ticket {
            self.answer(ticket, Answer::Reload(Err(ReloadFailed::Stopped)));
        }
        self.has_given_up = false;
        for slot in 0..self.slots.len() {
            self.retire(now, slot);
        }
        self.update_health(now);
    }

    /// No worker is wanted in this slot any more.
    pub(super) fn retire(&mut self, now: Time, slot: usize) {
        let retired = SlotState { is_retired: true, ..SlotState::default() };
        let before = std::mem::replace(&mut self.slots[slot], retired);
        if before.is_retired {
            return;
        }
        self.config.workers = self.config.workers.saturating_sub(1);
        self.scale_ends();
        self.orders.retain(|order| *order != Order::Fork(Slot(slot)));
        if let Some(successor) = before.successor {
            self.leave_unready(now, successor);
        }
        if let Some(round) = &mut self.round {
            let gone: Vec<_> = before.current.iter().map(|member| member.worker).collect();
            round.retire(slot, &gone);
            self.advance(now);
        }
    }

    /// Has given up: nothing is started in slots that have no worker, nor in others when theirs
    /// end.
    pub(super) fn start_no_more(&mut self, now: Time) {
        self.fail_round(now, ReplaceFailure::Ending);
        self.has_given_up = true;
        for slot in 0..self.slots.len() {
            if self.slots[slot].current.is_none() {
                self.retire(now, slot);
            }
        }
    }

    fn scale_ends(&mut self) {
        if self.scales_ends {
            self.config.restart.max_ends = usual_ends(self.config.workers);
        }
    }
}
