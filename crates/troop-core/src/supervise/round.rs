//! A round: workers that are being replaced, and the progress of their slots.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::expect::Claims;
use super::own::Parting;
use super::{
    Afterwards, Answer, Order, Progress, RecycleFailed, ReloadFailed, ReplaceFailure,
    ReplacePolicy, Ticket,
};
use crate::asked::Asked;
use crate::event::Address;
use crate::id::{Time, WorkerId};

/// The reason of a round.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Why {
    Reload,
    /// The roll-back of a failed reload.
    RollBack,
    Recycle(WorkerId),
}

impl Why {
    fn failure(&self, reason: String, then: Afterwards) -> Progress {
        match self {
            Why::Recycle(worker) => Progress::RecycleFailed { worker: *worker, reason },
            Why::Reload => Progress::ReloadFailed { reason, then },
            Why::RollBack => Progress::RollBackFailed { reason },
        }
    }
}

/// The step of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Step {
    /// The new worker starts beside the old one, which is drained when the new one is ready.
    Beside,
    /// The old worker leaves first.
    Emptying(WorkerId),
    /// The new worker starts in an empty slot, after the old one, if there was one.
    Filling(Option<WorkerId>),
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Active {
    pub(super) slot: usize,
    pub(super) step: Step,
    /// The deadline of the new worker's readiness.
    pub(super) deadline: Time,
    /// Whether it was reported that the new worker is ready but does not listen on all addresses
    /// yet.
    pub(super) is_awaited: bool,
}

/// A set of workers that are being replaced.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Round {
    pub(super) why: Why,
    pub(super) policy: ReplacePolicy,
    /// The ticket to answer at the end.
    pub(super) ticket: Option<Ticket>,
    /// Number of replaced workers.
    pub(super) replaced: usize,
    /// Workers that were started in slots that had none.
    pub(super) started: usize,
    /// The last worker that took over.
    pub(super) successor: Option<WorkerId>,
    /// The remaining slots, the next one first.
    pub(super) todo: VecDeque<usize>,
    pub(super) active: Vec<Active>,
    /// Whether a new worker has stayed ready for the minimum time.
    pub(super) proven: bool,
    /// Whether it fills slots that are empty because of a pause.
    pub(super) revives: bool,
    /// The addresses that new workers must take over.
    pub(super) claims: Claims,
    /// Slots that were put off since the last completed one, because their new workers did not take
    /// over addresses that only their old ones have.
    pub(super) put_off: Vec<usize>,
    /// Whether new workers may listen elsewhere by themselves.
    pub(super) may_move: bool,
    /// Slots whose new workers serve, and whose old ones may remove a path of theirs.
    #[serde(default)]
    pub(super) partings: Vec<Parting>,
    /// Paths that old workers have removed, so that new ones were started once more.
    #[serde(default)]
    pub(super) started_again: Vec<Address>,
}

impl Round {
    pub(super) fn is_reload(&self) -> bool {
        self.why == Why::Reload
    }

    pub(super) fn is_recycling(&self) -> bool {
        matches!(self.why, Why::Recycle(_))
    }

    pub(super) fn awaits_successor(&self, slot: usize) -> bool {
        self.active.iter().any(|active| active.slot == slot && active.step == Step::Beside)
    }

    pub(super) fn is_at(&self, slot: usize) -> bool {
        self.active.iter().any(|active| active.slot == slot)
    }

    /// Begins the next slot.
    pub(super) fn begin(&mut self, slot: usize, step: Step, deadline: Time) {
        self.todo.pop_front();
        self.active.push(Active { slot, step, deadline, is_awaited: false });
    }

    /// Whether a worker of this slot and generation is a new worker of this round.
    pub(super) fn is_of(&self, slot: usize, generation: u32, newest: u32) -> bool {
        let fills =
            |active: &Active| active.slot == slot && matches!(active.step, Step::Filling(_));
        self.active.iter().any(fills) || (self.is_reload() && generation == newest)
    }

    /// Returns the orders that report its failure.
    pub(super) fn failure(&self, reason: ReplaceFailure, then: Afterwards) -> Vec<Order> {
        let progress = Order::Report(self.why.failure(reason.to_string(), then));
        let answer = match self.why {
            Why::Reload => {
                Answer::Reload(Err(ReloadFailed::Failed { reason, replaced: self.replaced, then }))
            }
            Why::Recycle(_) => Answer::Recycle(Err(RecycleFailed::Failed(reason))),
            Why::RollBack => return vec![progress],
        };
        std::iter::once(progress).chain(self.answer(answer)).collect()
    }

    pub(super) fn answer(&self, answer: Answer) -> Option<Order> {
        self.ticket.map(|ticket| Order::Answer(ticket, answer))
    }

    pub(super) fn listens_at(&mut self, worker: WorkerId, at: Vec<Asked>) {
        self.claims.listens_at(worker, at);
    }

    pub(super) fn listening(&self) -> Vec<WorkerId> {
        self.claims.listening()
    }

    /// Whether this slot was empty and still gets a worker.
    #[cfg(test)]
    pub(super) fn revives(&self, slot: usize) -> bool {
        self.revives && self.todo.contains(&slot)
    }

    /// The old worker of a slot has ended by itself, beside the new one.
    pub(super) fn has_lost_old(&mut self, slot: usize) {
        if self.is_reload() {
            // The new one must become ready all the same.
            let at = self.active.iter_mut().filter(|active| active.slot == slot);
            at.for_each(|active| active.step = Step::Filling(None));
        } else {
            self.let_go(slot);
        }
    }

    /// Whether all of its workers have been replaced, or have ended.
    pub(super) fn is_over(&self) -> bool {
        self.todo.is_empty() && self.active.is_empty() && self.partings.is_empty()
    }

    fn let_go(&mut self, slot: usize) {
        self.active.retain(|active| active.slot != slot);
        self.partings.retain(|parting| parting.slot != slot);
    }

    /// Removes slots after scaling down; these workers leave without successors.
    pub(super) fn shrink(&mut self, slots: usize, gone: &[WorkerId]) {
        self.todo.retain(|slot| *slot < slots);
        self.active.retain(|active| active.slot < slots);
        self.partings.retain(|parting| parting.slot < slots);
        self.claims.let_go(gone);
    }

    /// Removes a slot, whose worker leaves for good.
    pub(super) fn retire(&mut self, slot: usize, gone: &[WorkerId]) {
        self.todo.retain(|other| *other != slot);
        self.let_go(slot);
        self.claims.let_go(gone);
    }

    /// Whether no more new workers follow that of an active slot, or those that wait for each other.
    pub(super) fn is_last(&self) -> bool {
        self.is_reload()
            && self.todo.is_empty()
            && (self.active.len() == 1 || self.policy.all_or_none)
    }

    /// Whether another slot may take over an address that the new worker of this slot lacks.
    pub(super) fn may_put_off(&self, slot: usize) -> bool {
        let mut others = self
            .todo
            .iter()
            .copied()
            .chain(self.active.iter().map(|active| active.slot))
            .filter(|other| *other != slot);
        self.is_reload()
            && !self.put_off.contains(&slot)
            && others.any(|other| !self.put_off.contains(&other))
    }
}
