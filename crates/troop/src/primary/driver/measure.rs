//! Measures what the core decides by: memory of workers, and queues of their activated sockets. Tells
//! the kernel the shares of those sockets.

use std::os::fd::AsFd;

use troop_core::WorkerId;
use troop_sys::{diag, group};

use super::Driver;
use crate::activation::ActivationSocket;
use crate::error::Error;

impl Driver {
    /// Measures the memory of workers.
    pub(super) fn measure(&mut self, workers: &[WorkerId]) {
        let memory = |worker: &WorkerId| {
            let process = self.processes.get(worker)?;
            diag::usage(process.handle.pid()).map(|usage| usage.rss)
        };
        let measured: Vec<_> = workers.iter().map(|worker| (*worker, memory(worker))).collect();
        self.cluster.measured(self.now, &measured);
    }

    fn steered_activation(&self) -> impl Iterator<Item = &ActivationSocket> {
        let sockets = self.setup.activation().iter();
        sockets.filter(|socket| socket.is_steered())
    }

    /// Tells the core how many slots have activated sockets of their own.
    pub(super) fn count_activation_slots(&mut self) {
        let slots = self.steered_activation().map(ActivationSocket::slots).max().unwrap_or(0);
        self.cluster.set_activation_slots(slots);
    }

    /// Whether connections wait in a worker's own sockets.
    pub(super) fn waits_for(&self, worker: WorkerId) -> bool {
        let Some(slot) = self.cluster.primary.status(worker).map(|status| status.slot) else {
            return false;
        };
        let sockets = self.setup.cluster.activation.clone();
        let waiting = |socket: &ActivationSocket| {
            socket.is_steered()
                && socket
                    .of_slot(slot)
                    .ok()
                    .and_then(|own| group::waiting(own.as_fd()))
                    .is_some_and(|n| n > 0)
        };
        sockets.is_some_and(|sockets| sockets.iter().any(waiting))
    }

    /// Tells the kernel who gets connections of activated sockets.
    pub(super) fn set_shares(&mut self, shares: &[u32]) {
        let results: Vec<_> =
            self.steered_activation().map(|socket| socket.steer(shares)).collect();
        for result in results {
            if let Err(Error::Io { doing, source }) = result {
                self.fail(doing, source);
            }
        }
    }
}
