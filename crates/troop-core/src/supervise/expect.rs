//! What is expected: workers that are still to come, and the addresses that new workers have to
//! take over from old ones.

use serde::{Deserialize, Serialize};

use super::{RunState, Supervisor};
use crate::event::Address;
use crate::id::WorkerId;

/// An address that must not be lost when workers are replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The address, in the words of the worker that asked for it first.
    pub at: Address,
    /// The workers that listen there; none if it was left open for whoever comes next.
    pub holders: Vec<WorkerId>,
    /// Workers of several slots had it, or the only one: the first new worker must listen there
    /// before the first old one leaves. Otherwise it is enough that a new one does before the
    /// worker that has it leaves.
    pub is_shared: bool,
}

/// An address that a new worker has to listen on and none does.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lacking<'a> {
    pub(super) claim: &'a Claim,
    /// The worker that is to be replaced has it to itself, and another slot's new worker may take
    /// it as well.
    pub(super) may_come: bool,
}

/// The claims of a round, and what its workers have taken over so far.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Claims {
    claims: Vec<Claim>,
    listening: Vec<(WorkerId, Vec<Address>)>,
}

impl Claims {
    pub(super) fn new(claims: Vec<Claim>) -> Claims {
        Claims { claims, listening: Vec::new() }
    }

    /// Where a worker listens.
    pub(super) fn listens_at(&mut self, worker: WorkerId, at: Vec<Address>) {
        self.listening.retain(|(other, _)| *other != worker);
        self.listening.push((worker, at));
    }

    /// An address where none of the new ones listens, and that this holder has, or that was left
    /// open for whoever comes. With `is_last`, no more new ones are to come, so it is about all
    /// addresses.
    pub(super) fn lacking(
        &self,
        holder: Option<WorkerId>,
        is_last: bool,
        is_new: impl Fn(WorkerId) -> bool,
    ) -> Option<Lacking<'_>> {
        let is_held = |claim: &Claim| holder.is_some_and(|holder| claim.holders.contains(&holder));
        let concerns = |claim: &&Claim| {
            is_last || is_held(claim) || (claim.is_shared && claim.holders.is_empty())
        };
        let is_taken = |at: &Address| {
            self.listening.iter().any(|(worker, all)| all.contains(at) && is_new(*worker))
        };
        let claim = self.claims.iter().filter(concerns).find(|claim| !is_taken(&claim.at))?;
        Some(Lacking { claim, may_come: !claim.is_shared && !is_last })
    }

    /// Whether a worker has an address that no other one has.
    pub(super) fn has_own(&self, worker: WorkerId) -> bool {
        self.claims.iter().any(|claim| !claim.is_shared && claim.holders.contains(&worker))
    }

    /// These workers are not to have successors, so nobody has to take over what only they have.
    pub(super) fn let_go(&mut self, workers: &[WorkerId]) {
        self.claims.retain_mut(|claim| {
            let before = claim.holders.len();
            claim.holders.retain(|holder| !workers.contains(holder));
            before == 0 || !claim.holders.is_empty()
        });
    }

    /// Where a worker listens, for people: the first few addresses.
    pub(super) fn listed(&self, worker: WorkerId) -> String {
        const MAX_SHOWN: usize = 4;
        let all = self
            .listening
            .iter()
            .find(|(other, _)| *other == worker)
            .map(|(_, all)| all.as_slice())
            .unwrap_or_default();
        match all {
            [] => "nowhere".into(),
            all => {
                let few: Vec<_> = all.iter().take(MAX_SHOWN).map(ToString::to_string).collect();
                format!("on {}{}", few.join(", "), if all.len() > MAX_SHOWN { ", …" } else { "" })
            }
        }
    }
}

impl Supervisor {
    /// Whether workers are still to be started that may ask for a listener: a slot is empty or
    /// about to be, workers are being replaced, or none are wanted for now.
    #[must_use]
    pub fn expects_workers(&self) -> bool {
        match self.phase {
            RunState::Idle => true,
            RunState::Stopping(_) | RunState::Finished => false,
            RunState::Running => {
                let is_leaving =
                    |worker| self.leaving.iter().any(|leaving| leaving.worker == worker);
                let mut slots = self.slots.iter();
                self.slots.is_empty()
                    || self.round.is_some()
                    || self.rejected.is_some()
                    || slots.any(|slot| {
                        slot.current.map_or(slot.done.is_none(), |member| is_leaving(member.worker))
                    })
            }
        }
    }
}
