//! Clients that wait while no worker is ready: slots that wait out their back-off are told, so that
//! a worker comes soon.

use std::os::fd::AsFd;
use std::time::Duration;

use troop_core::supervise::Supervisor;
use troop_sys::socket;

use crate::primary::driver::Driver;

/// Interval between looks for waiting clients, while no worker is ready.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);

impl Driver {
    /// Looks for waiting clients if it matters and it is time.
    pub(in crate::primary::driver) fn look_for_clients(&mut self) {
        if !self.cluster.supervisor().is_some_and(Supervisor::may_hurry) {
            self.listeners.demand_at = None;
            return;
        }
        if self.listeners.demand_at.is_some_and(|at| at > self.now) {
            return;
        }
        self.listeners.demand_at = Some(self.now + CHECK_INTERVAL);
        if self.is_awaited()
            && let Some(supervisor) = self.cluster.supervisor_mut()
        {
            supervisor.hurry(self.now);
        }
    }

    /// Whether a client waits in the primary, or in the kernel's queue of a listener.
    fn is_awaited(&self) -> bool {
        let mut activated = self.workers.setup().activation().iter();
        self.cluster
            .primary
            .listeners()
            .any(|listener| self.cluster.primary.listener_load(listener).1 > 0)
            || self.listeners.sockets.iter().any(|(_, own)| socket::is_readable(own.fd.as_fd()))
            || activated.any(|own| own.is_awaited())
    }
}
