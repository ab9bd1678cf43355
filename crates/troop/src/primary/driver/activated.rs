//! Carries out what the core decides about sockets that workers take by activation, one for each
//! slot: measures their queues, and tells the kernel the shares.

use std::os::fd::AsFd;

use troop_core::WorkerId;
use troop_core::cluster::activation::Participant;
use troop_core::primary::USUAL_WEIGHT;
use troop_sys::group;

use super::Driver;
use crate::error::Error;

impl Driver {
    fn steers_activated(&self) -> bool {
        self.settings
            .activation
            .iter()
            .flat_map(|sockets| sockets.iter())
            .any(|socket| socket.is_steered())
    }

    /// Begins to look who is ready, if anything depends on it.
    pub(super) fn begin_activated(&mut self) {
        if self.steers_activated() {
            self.activated.start(self.now);
        }
    }

    pub(super) fn tick_activated(&mut self) {
        if self.activated.is_due(self.now) {
            self.update_kernel_shares(None);
        }
        while let Some(worker) = self.activated.next_leaving(self.now) {
            let waits = self.waits_for(worker);
            if self.activated.measured(self.now, worker, waits) {
                self.kill(worker, 15);
            }
        }
    }

    /// Whether connections wait in a worker's own sockets.
    fn waits_for(&self, worker: WorkerId) -> bool {
        let Some(slot) = self.core.status(worker).map(|status| status.slot) else { return false };
        let sockets = self.settings.activation.clone();
        let waiting = |socket: &crate::activation::ActivationSocket| {
            socket.is_steered()
                && socket
                    .of_slot(slot)
                    .ok()
                    .and_then(|own| group::waiting(own.as_fd()))
                    .is_some_and(|n| n > 0)
        };
        sockets.is_some_and(|sockets| sockets.iter().any(waiting))
    }

    /// Tells the kernel who takes part now, if that has changed. `without` is about to leave.
    fn update_kernel_shares(&mut self, without: Option<WorkerId>) {
        let Some(supervisor) = &self.supervisor else { return };
        let sockets = self.settings.activation.clone();
        let steered = || {
            sockets.iter().flat_map(|sockets| sockets.iter()).filter(|socket| socket.is_steered())
        };
        let slots = steered().map(|socket| socket.slots()).max().unwrap_or(0);
        let (core, weights, now) = (&self.core, &self.weights, self.now);
        let workers = self.processes.keys().filter(|id| Some(**id) != without);
        let participants = workers.filter_map(|id| {
            let (status, (ready, _)) = (core.status(*id)?, supervisor.standing(now, *id)?);
            let weight = weights.get(status.slot as usize).copied().unwrap_or(USUAL_WEIGHT);
            supervisor.leaves_by(*id).is_none().then_some(Participant {
                slot: status.slot,
                weight,
                ready,
            })
        });
        let Some(shares) = self.activated.update(slots, participants) else { return };
        let results: Vec<_> = steered().map(|socket| socket.steer(shares)).collect();
        for result in results {
            if let Err(Error::Io { doing, source }) = result {
                self.fail(doing, source);
            }
        }
    }

    /// Before a worker is told to leave: nothing new comes to it any more. Returns whether the rest
    /// of it is done here.
    pub(super) fn leaves_activated(&mut self, worker: WorkerId) -> bool {
        if !self.activated.is_active() {
            return false;
        }
        let Some(slot) = self.core.status(worker).map(|status| status.slot) else { return false };
        self.update_kernel_shares(Some(worker));
        let is_ending = self.supervisor.as_ref().is_none_or(|supervisor| supervisor.is_stopping());
        let has_successor = self.processes.keys().any(|id| {
            *id != worker && self.core.status(*id).is_some_and(|other| other.slot == slot)
        });
        if is_ending || has_successor {
            return false;
        }
        self.activated.leaves(self.now, worker);
        true
    }
}
