//! Addresses that clients could reach and cannot any more, although nobody has wanted that.

use troop_core::WorkerId;
use troop_core::event::Address;

use super::Driver;
use crate::events::Event;
use crate::primary::snapshot::LostListener;

/// The most that are remembered; of more, the oldest are forgotten.
const MOST: usize = 64;

/// Addresses that workers should have taken over from those before them and did not.
#[derive(Default)]
pub(super) struct Missed {
    /// Where workers had asked to listen, and where that was.
    addresses: Vec<(Address, Address)>,
    /// The reload that is under way may do without addresses.
    may_move: bool,
}

impl Driver {
    /// No worker has an address any more, and a successor should.
    pub(super) fn is_missed(&mut self, asked: Address, at: Address) {
        let reason = "the worker that listened there has ended, and none that followed listens there; a reload starts new ones, and one with `allow-moved` accepts the move";
        self.events.push(Event::ListenerLost { address: at.clone(), reason: reason.into() });
        let known = &mut self.missed.addresses;
        known.retain(|(other, _)| *other != asked);
        if known.len() >= MOST {
            known.remove(0);
        }
        known.push((asked, at));
    }

    /// A worker has begun to listen: what it has is not missed any more.
    pub(super) fn is_found(&mut self, worker: WorkerId) {
        if self.missed.addresses.is_empty() {
            return;
        }
        let now = self.core.addresses_of(worker);
        let (found, missed) = std::mem::take(&mut self.missed.addresses)
            .into_iter()
            .partition(|(asked, _)| now.contains(asked));
        self.missed.addresses = missed;
        for (_, at) in found {
            self.events.push(Event::ListenerRestored {
                address: at,
                reason: format!("worker {worker} listens there"),
            });
        }
    }

    /// A reload begins that may, or may not, do without addresses that were served.
    pub(super) fn may_move(&mut self, may: bool) {
        self.missed.may_move = may;
    }

    /// It has succeeded. Where its workers may listen elsewhere, nothing is missed.
    pub(super) fn has_moved(&mut self) {
        if std::mem::take(&mut self.missed.may_move) {
            self.missed.addresses.clear();
        }
    }

    /// What clients cannot reach.
    pub(super) fn lost_listeners(&self) -> Vec<LostListener> {
        let missed = self.missed.addresses.iter().map(|(_, at)| LostListener {
            address: at.to_string(),
            reason: "no worker listens there since the one that did has ended".into(),
        });
        let unreached = self.listeners.iter().filter(|(_, listener)| listener.is_lost);
        let unreached =
            unreached.filter_map(|(id, _)| self.core.bound_address(*id)).map(|at| LostListener {
                address: at.to_string(),
                reason: "clients do not reach its socket".into(),
            });
        missed.chain(unreached).collect()
    }
}
