//! Expected workers, and the addresses that new workers must take over from old ones.

use serde::{Deserialize, Serialize};

use super::{RunState, Supervisor};
use crate::asked::{Asked, Numbers};
use crate::event::Address;
use crate::id::WorkerId;

/// An address that a replacement of workers must not lose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The address, as the first worker asked for it.
    pub at: Address,
    /// The worker whose numbers are in its path; a successor may ask for the same path with its own
    /// numbers instead ([`Asked`]).
    pub named_after: Option<Numbers>,
    /// The workers that listen there; none if it is kept for a successor.
    pub holders: Vec<WorkerId>,
    /// Whether workers of several slots, or the single worker, have it: then the first new worker
    /// must listen there before the first old one leaves. Otherwise a new worker must listen there
    /// before the one that has it leaves.
    pub is_shared: bool,
}

impl Claim {
    /// Returns the request that led to it.
    #[must_use]
    pub fn asked(&self) -> Asked {
        Asked { at: self.at.clone(), named_after: self.named_after }
    }
}

/// A claimed address on which no new worker listens yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lacking<'a> {
    pub(super) claim: &'a Claim,
    /// Whether another slot's new worker may take it over, because only the worker that is replaced
    /// has it.
    pub(super) may_come: bool,
}

/// The claims of a round, and the addresses on which its new workers listen.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Claims {
    claims: Vec<Claim>,
    listening: Vec<(WorkerId, Vec<Asked>)>,
}

impl Claims {
    pub(super) fn new(claims: Vec<Claim>) -> Claims {
        Claims { claims, listening: Vec::new() }
    }

    /// Sets the addresses of a worker.
    pub(super) fn listens_at(&mut self, worker: WorkerId, at: Vec<Asked>) {
        self.listening.retain(|(other, _)| *other != worker);
        self.listening.push((worker, at));
    }

    /// Returns the workers whose addresses are known.
    pub(super) fn listening(&self) -> Vec<WorkerId> {
        self.listening.iter().map(|(worker, _)| *worker).collect()
    }

    /// Returns a claimed address of this holder, or without holders, on which no new worker
    /// listens. With `is_last`, no further new worker will come, so all claimed addresses count.
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
        let is_taken = |claim: &Claim| {
            let before = claim.asked();
            self.listening.iter().any(|(worker, all)| {
                is_new(*worker) && all.iter().any(|asked| asked.takes_over(&before))
            })
        };
        let claim = self.claims.iter().filter(concerns).find(|claim| !is_taken(claim))?;
        Some(Lacking { claim, may_come: !claim.is_shared && !is_last })
    }

    /// Whether a worker has an address that no other worker has.
    pub(super) fn has_own(&self, worker: WorkerId) -> bool {
        self.claims.iter().any(|claim| !claim.is_shared && claim.holders.contains(&worker))
    }

    /// Drops the claims of workers that get no successors.
    pub(super) fn let_go(&mut self, workers: &[WorkerId]) {
        self.claims.retain_mut(|claim| {
            let before = claim.holders.len();
            claim.holders.retain(|holder| !workers.contains(holder));
            before == 0 || !claim.holders.is_empty()
        });
    }

    /// Returns the first few addresses of a worker, for messages.
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
                let few: Vec<_> =
                    all.iter().take(MAX_SHOWN).map(|asked| asked.at.to_string()).collect();
                format!("on {}{}", few.join(", "), if all.len() > MAX_SHOWN { ", …" } else { "" })
            }
        }
    }
}

impl Supervisor {
    /// Whether workers will be started that may ask for a listener: a slot is or becomes empty,
    /// workers are being replaced, or the cluster is paused.
    #[must_use]
    pub fn expects_workers(&self) -> bool {
        match self.phase {
            RunState::Idle => true,
            RunState::Stopping(_) | RunState::Finished => false,
            RunState::Running => {
                let is_leaving =
                    |worker| self.leaving.iter().any(|leaving| leaving.worker == worker);
                let mut slots = self.slots.iter().filter(|slot| !slot.is_retired);
                (self.slots.is_empty() && !self.config.is_embedded)
                    || self.round.is_some()
                    || self.rejected.is_some()
                    || slots.any(|slot| {
                        slot.current.map_or(slot.done.is_none(), |member| is_leaving(member.worker))
                    })
            }
        }
    }
}
