//! A round: workers that are being replaced, and how far each of their slots is.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::expect::Claims;
use super::{
    Afterwards, Answer, Order, Progress, RecycleFailed, ReloadFailed, ReplaceFailure, Ticket,
};
use crate::event::Address;
use crate::id::{Time, WorkerId};

/// Why workers are replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Why {
    Reload,
    /// Back to what there was before a reload that failed.
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

/// How a slot gets its new worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Step {
    /// The new one starts beside the old one, which leaves when it is ready.
    Beside,
    /// The old one leaves first.
    Emptying(WorkerId),
    /// The new one starts in an empty slot, after the old one, if there was one.
    Filling(Option<WorkerId>),
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Active {
    pub(super) slot: usize,
    pub(super) step: Step,
    /// Until when the new worker must be ready.
    pub(super) deadline: Time,
    /// It was told that the new worker is ready but does not listen everywhere yet.
    pub(super) is_awaited: bool,
}

/// Workers that are being replaced.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Round {
    pub(super) why: Why,
    /// Who is told how it ended.
    pub(super) ticket: Option<Ticket>,
    /// Workers that have been replaced.
    pub(super) replaced: usize,
    /// Workers that were started in slots that had none.
    pub(super) started: usize,
    /// The last one that took over.
    pub(super) successor: Option<WorkerId>,
    /// Slots still to be done, the next one first.
    pub(super) todo: VecDeque<usize>,
    pub(super) active: Vec<Active>,
    /// A new worker has shown that it stays.
    pub(super) proven: bool,
    /// It fills slots that are empty because of a pause.
    pub(super) revives: bool,
    /// The addresses that new workers have to take over.
    pub(super) claims: Claims,
    /// Slots that were put off since the last one was done: their new workers did not take over
    /// what only their old ones have.
    pub(super) put_off: Vec<usize>,
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

    /// Whether a worker of this slot and generation is what this round brings.
    pub(super) fn is_of(&self, slot: usize, generation: u32, newest: u32) -> bool {
        let fills =
            |active: &Active| active.slot == slot && matches!(active.step, Step::Filling(_));
        self.active.iter().any(fills) || (self.is_reload() && generation == newest)
    }

    /// What is told when it is given up.
    pub(super) fn failure(&self, reason: ReplaceFailure, then: Afterwards) -> Vec<Order> {
        let progress = Order::Tell(self.why.failure(reason.to_string(), then));
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

    pub(super) fn listens_at(&mut self, worker: WorkerId, at: Vec<Address>) {
        self.claims.listens_at(worker, at);
    }

    /// Whether this slot is still to be filled, having been empty.
    #[cfg(test)]
    pub(super) fn revives(&self, slot: usize) -> bool {
        self.revives && self.todo.contains(&slot)
    }

    pub(super) fn let_go(&mut self, slot: usize) {
        self.active.retain(|active| active.slot != slot);
    }

    /// There are fewer slots, and these workers leave for good.
    pub(super) fn shrink(&mut self, slots: usize, gone: &[WorkerId]) {
        self.todo.retain(|slot| *slot < slots);
        self.active.retain(|active| active.slot < slots);
        self.claims.let_go(gone);
    }

    /// Whether the new worker of an active slot is the last one that is to come.
    pub(super) fn is_last(&self) -> bool {
        self.is_reload() && self.todo.is_empty() && self.active.len() == 1
    }

    /// Whether another slot may bring what the new worker of this one lacks.
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
