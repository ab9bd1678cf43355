//! Sockets of workers that take them by activation, one for each slot, among which the kernel
//! chooses by a program.
//!
//! A slot's socket goes to its successor, with what waits in it. Slots whose worker is not there,
//! or not ready while others are, get nothing new.

use std::os::fd::AsFd;
use std::time::Duration;

use troop_core::{Time, WorkerId};
use troop_sys::group;

use super::Driver;
use crate::error::Error;

/// How often it is looked who is ready.
const BEAT: Duration = Duration::from_millis(100);
/// How long a worker goes on accepting that gets nothing new, before it is told to leave and nobody
/// comes after it.
const LAST_CONNECTIONS: Duration = Duration::from_millis(200);
/// How long at most, if there are still some.
const LAST_PATIENCE: Duration = Duration::from_secs(2);

/// Shares of the sockets that workers take by activation, one socket for each slot.
#[derive(Default)]
pub(super) struct Activated {
    /// What the kernel was told last.
    told: Vec<u32>,
    beat_at: Option<Time>,
    /// Workers that are to leave when what waits for them is taken: when that is looked at, and
    /// until when.
    leaving: Vec<(WorkerId, Time, Time)>,
}

impl Activated {
    /// The kernel has to be told again.
    pub(super) fn forget(&mut self) {
        self.told.clear();
    }

    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.leaving.iter().map(|(_, at, _)| *at).chain(self.beat_at).min()
    }
}

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
            self.activated.beat_at = Some(self.now + BEAT);
        }
    }

    pub(super) fn tick_activated(&mut self) {
        if self.activated.beat_at.is_some_and(|due| due <= self.now) {
            self.activated.beat_at = Some(self.now + BEAT);
            self.steer_activated();
        }
        while let Some(at) = self.activated.leaving.iter().position(|(_, due, _)| *due <= self.now)
        {
            let (worker, _, until) = self.activated.leaving.swap_remove(at);
            if self.waits_for(worker) && self.now < until {
                self.activated.leaving.push((worker, self.now + BEAT, until));
            } else {
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

    /// Tells the kernel who takes part now. `without` is about to leave.
    fn shares(&self, without: Option<WorkerId>) -> Vec<u32> {
        let Some(supervisor) = &self.supervisor else { return Vec::new() };
        let slots = self
            .settings
            .activation
            .iter()
            .flat_map(|sockets| sockets.iter())
            .map(|socket| socket.slots())
            .max()
            .unwrap_or(0);
        let (mut ready, mut there) = (vec![0; slots], vec![0; slots]);
        for id in self.processes.keys().filter(|id| Some(**id) != without) {
            let (Some(status), Some((is_ready, _))) =
                (self.core.status(*id), supervisor.standing(self.now, *id))
            else {
                continue;
            };
            if supervisor.leaves_by(*id).is_some() {
                continue;
            }
            let at = status.slot as usize;
            let weight = self.weights.get(at).copied().unwrap_or(troop_core::primary::USUAL_WEIGHT);
            if at < slots {
                there[at] = weight;
                if is_ready {
                    ready[at] = weight;
                }
            }
        }
        // Where nobody is ready, those wait who will be; where nobody is there, whoever comes.
        [ready, there]
            .into_iter()
            .find(|shares| shares.iter().any(|share| *share > 0))
            .unwrap_or_else(|| vec![1; slots])
    }

    fn steer_activated(&mut self) {
        let shares = self.shares(None);
        self.update_kernel_shares(shares);
    }

    fn update_kernel_shares(&mut self, shares: Vec<u32>) {
        if shares == self.activated.told || shares.is_empty() {
            return;
        }
        let sockets = self.settings.activation.clone();
        for socket in
            sockets.iter().flat_map(|sockets| sockets.iter()).filter(|socket| socket.is_steered())
        {
            if let Err(Error::Io { doing, source }) = socket.steer(&shares) {
                self.fail(doing, source);
            }
        }
        self.activated.told = shares;
    }

    /// Before a worker is told to leave: nothing new comes to it any more. Returns whether the rest
    /// of it is done here.
    pub(super) fn leaves_activated(&mut self, worker: WorkerId) -> bool {
        if self.activated.beat_at.is_none() {
            return false;
        }
        let Some(slot) = self.core.status(worker).map(|status| status.slot) else { return false };
        let shares = self.shares(Some(worker));
        self.update_kernel_shares(shares);
        let is_ending = self.supervisor.as_ref().is_none_or(|supervisor| supervisor.is_stopping());
        let has_successor = self.processes.keys().any(|id| {
            *id != worker && self.core.status(*id).is_some_and(|other| other.slot == slot)
        });
        if is_ending || has_successor {
            return false;
        }
        self.activated.leaving.push((
            worker,
            self.now + LAST_CONNECTIONS,
            self.now + LAST_PATIENCE,
        ));
        true
    }
}
