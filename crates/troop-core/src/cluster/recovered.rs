//! Goes on with a state whose shell was killed.

use super::Cluster;
use crate::id::{ConnId, Time};
#[cfg(doc)]
use crate::primary::Primary;
#[cfg(doc)]
use crate::supervise::Supervisor;

impl Cluster {
    /// Another shell goes on with the state, which was written some time before the former one was
    /// killed: see [`Primary::recovered`] and [`Supervisor::recovered`].
    pub fn recovered(&mut self, now: Time, is_there: impl Fn(ConnId) -> bool) {
        let Cluster { primary, without_ipc, .. } = self;
        primary.recovered(now, is_there, |worker| without_ipc.contains(&worker));
        if let Some(supervisor) = &mut self.supervisor {
            supervisor.recovered(now);
        }
        // The kernel may have been told of others since.
        self.shares.forget();
        self.resumed(now);
    }
}
