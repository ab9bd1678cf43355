//! Reports addresses that clients could reach and cannot any more.

use troop_core::WorkerId;
use troop_core::event::Address;

use super::Driver;
use crate::event::Event;
use crate::primary::snapshot::LostListener;

impl Driver {
    /// No worker has an address any more, and a successor should.
    pub(super) fn is_missed(&mut self, asked: Address, at: Address) {
        let reason = "the worker that listened there has ended, and none that followed listens there; a reload starts new ones, and one with `--allow-moved` accepts the move";
        self.events.push(Event::ListenerLost { address: at.clone(), reason: reason.into() });
        self.missed.lost(asked, at);
    }

    /// A worker has begun to listen: what it has is not missed any more.
    pub(super) fn is_found(&mut self, worker: WorkerId) {
        if self.missed.is_empty() {
            return;
        }
        for at in self.missed.found(&self.core.addresses_of(worker)) {
            self.events.push(Event::ListenerRestored {
                address: at,
                reason: format!("worker {worker} listens there"),
            });
        }
    }

    /// What clients cannot reach.
    pub(super) fn lost_listeners(&self) -> Vec<LostListener> {
        let missed = self.missed.iter().map(|at| LostListener {
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
