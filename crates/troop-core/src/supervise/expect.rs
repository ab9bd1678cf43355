//! What is expected: workers that are still to come, and the addresses that new workers have to take over from old ones.

use super::{Phase, Supervisor};
use crate::event::Address;
use crate::id::WorkerId;

/// An address that must not be lost when workers are replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The address, in the words of the worker that asked for it first.
    pub at: Address,
    /// The workers that listen there; none if it was left open for whoever comes next.
    pub holders: Vec<WorkerId>,
}

/// The claims of a round, and what its workers have taken over so far.
#[derive(Debug, Default)]
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

    /// An address that this holder has to itself, or that was left open for whoever comes, and where none of the new ones listens.
    pub(super) fn lacking(&self, holder: Option<WorkerId>, is_new: impl Fn(WorkerId) -> bool) -> Option<&Address> {
        let concerns = |claim: &&Claim| claim.holders.is_empty() || holder.is_some_and(|holder| claim.holders.contains(&holder));
        let is_taken = |at: &Address| self.listening.iter().any(|(worker, all)| all.contains(at) && is_new(*worker));
        self.claims.iter().filter(concerns).map(|claim| &claim.at).find(|at| !is_taken(at))
    }

    /// Where a worker listens, for people: the first few addresses.
    pub(super) fn listed(&self, worker: WorkerId) -> String {
        const FEW: usize = 4;
        let all = self.listening.iter().find(|(other, _)| *other == worker).map(|(_, all)| all.as_slice()).unwrap_or_default();
        match all {
            [] => "nowhere".into(),
            all => {
                let few: Vec<_> = all.iter().take(FEW).map(ToString::to_string).collect();
                format!("on {}{}", few.join(", "), if all.len() > FEW { ", …" } else { "" })
            }
        }
    }
}

impl Supervisor {
    /// Whether workers are still to be started that may ask for a listener: a slot is empty or about to be, workers are being replaced, or
    /// none are wanted for now.
    #[must_use]
    pub fn expects_workers(&self) -> bool {
        match self.phase {
            Phase::Idle => true,
            Phase::Stopping(_) | Phase::Finished => false,
            Phase::Running => {
                let is_leaving = |worker| self.leaving.iter().any(|leaving| leaving.worker == worker);
                let mut slots = self.places.iter();
                self.places.is_empty()
                    || self.round.is_some()
                    || self.rejected.is_some()
                    || slots.any(|slot| slot.current.map_or(slot.done.is_none(), |member| is_leaving(member.worker)))
            }
        }
    }
}
