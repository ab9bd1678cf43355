//! Clients that wait while no worker is ready: slots that wait out their back-off are told, so that
//! a worker comes soon.

use std::os::fd::AsFd;
use std::time::Duration;

use troop_core::Time;
use troop_core::supervise::Supervisor;
use troop_sys::socket;

use super::Driver;

/// Interval between looks for waiting clients, while no worker is ready.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);

impl Driver {
    /// Looks for waiting clients if it matters and it is time.
    pub(super) fn look_for_clients(&mut self) {
        if !self.cluster.supervisor().is_some_and(Supervisor::may_hurry) {
            self.demand_at = None;
            return;
        }
        if self.demand_at.is_some_and(|at| at > self.now) {
            return;
        }
        self.demand_at = Some(self.now + CHECK_INTERVAL);
        if self.is_awaited()
            && let Some(supervisor) = self.cluster.supervisor_mut()
        {
            supervisor.hurry(self.now);
        }
    }

    pub(super) fn demand_deadline(&self) -> Option<Time> {
        self.demand_at
    }

    /// Whether a client waits in the primary, or in the kernel's queue of a listener.
    fn is_awaited(&self) -> bool {
        let mut activated = self.setup.activation().iter();
        self.cluster
            .primary
            .listeners()
            .any(|listener| self.cluster.primary.listener_load(listener).1 > 0)
            || self.sockets.iter().any(|(_, own)| socket::is_readable(own.fd.as_fd()))
            || activated.any(|own| own.is_awaited())
    }
}
