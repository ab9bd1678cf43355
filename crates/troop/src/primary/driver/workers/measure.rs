//! Measures what the core decides by: memory of workers, and queues of their activated sockets. Tells
//! the kernel the shares of those sockets.

use std::os::fd::AsFd;

use troop_core::WorkerId;
use troop_core::cluster::serving::Waits;
use troop_sys::{diag, group};

use super::Workers;
use super::serving::{Serving, ServingChecker};
use crate::activation::ActivationSocket;
use crate::error::Error;
use crate::primary::driver::Driver;

impl Workers {
    /// The resident memory of a worker.
    fn memory(&self, worker: WorkerId) -> Option<u64> {
        diag::usage(self.handle(worker)?.pid()).map(|usage| usage.rss)
    }

    fn steered_activation(&self) -> impl Iterator<Item = &ActivationSocket> {
        self.setup.activation().iter().filter(|socket| socket.is_steered())
    }

    /// What has to be checked to know whether a worker waits for connections.
    fn serving_check(&self, worker: WorkerId) -> Option<Serving> {
        let handle = self.handle(worker)?;
        let own = |socket: &ActivationSocket| match socket.is_steered() {
            true => socket.of_slot(handle.slot()).and_then(diag::inode).ok(),
            false => diag::inode(&socket.socket).ok(),
        };
        let sockets = self.setup.activation().iter().filter_map(own).collect();
        Some(Serving { worker, slot: handle.slot(), pid: handle.pid(), sockets })
    }

    /// Whether connections wait in the own sockets of a slot's worker.
    fn waits_at(&self, slot: u32) -> bool {
        self.steered_activation().any(|socket| {
            socket
                .of_slot(slot)
                .ok()
                .and_then(|own| group::waiting(own.as_fd()))
                .is_some_and(|n| n > 0)
        })
    }
}

impl Driver {
    /// Checks whether a worker waits for connections on its activated sockets, in a thread, because
    /// a worker can make that take long.
    pub(in crate::primary::driver) fn check_serving(&mut self, worker: WorkerId) {
        let Some(check) = self.workers.serving_check(worker) else { return };
        let handle = self.driver_handle();
        let checker = self.workers.serving.get_or_insert_with(|| ServingChecker::start(handle));
        if !checker.check(check) {
            self.cluster.serving_checked(self.now, worker, Waits::Hidden);
            self.note_copies(worker, Waits::Hidden);
        }
    }

    /// Measures the memory of workers.
    pub(in crate::primary::driver) fn measure(&mut self, workers: &[WorkerId]) {
        let measured: Vec<_> =
            workers.iter().map(|worker| (*worker, self.workers.memory(*worker))).collect();
        self.cluster.measured(self.now, &measured);
    }

    /// Counts the open connections of a worker.
    pub(in crate::primary::driver) fn count(&mut self, worker: WorkerId) {
        let Some(pid) = self.workers.handle(worker).map(|worker| worker.pid()) else { return };
        if let Some(open) = diag::open_descriptors(pid) {
            self.cluster.primary.counted(self.now, worker, open);
        }
    }

    /// Tells the core how many slots have activated sockets of their own.
    pub(in crate::primary::driver) fn count_activation_slots(&mut self) {
        let slots =
            self.workers.steered_activation().map(ActivationSocket::slots).max().unwrap_or(0);
        self.cluster.set_activation_slots(slots);
        self.cluster.set_activation_sockets(self.workers.setup.activation().len());
    }

    /// Whether connections wait in a worker's own sockets.
    pub(in crate::primary::driver) fn waits_for(&self, worker: WorkerId) -> bool {
        let status = self.cluster.primary.status(worker);
        status.is_some_and(|status| self.workers.waits_at(status.slot))
    }

    /// Sets in the kernel which workers get the connections of activated sockets.
    pub(in crate::primary::driver) fn set_shares(&mut self, shares: &[u32]) {
        let results: Vec<_> =
            self.workers.steered_activation().map(|socket| socket.steer(shares)).collect();
        for result in results {
            if let Err(Error::Io { doing, source }) = result {
                self.fail(doing, source);
            }
        }
    }
}
