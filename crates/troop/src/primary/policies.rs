//! What a supervised cluster is to do with its workers.

use std::time::Duration;

pub use troop_core::cluster::recycle::RecyclePolicy;
pub use troop_core::supervise::{ReadyWhen, ReplacePolicy, RestartPolicy, WhenFailed};

use crate::setup::Setup;

/// What a reload brings; see [`Cluster::reload_with`](crate::Cluster::reload_with).
#[derive(Debug, Clone, Default)]
pub struct Reload {
    pub(super) changes: Option<Setup>,
    pub(super) allow_moved: bool,
}

impl Reload {
    /// Workers that are started as those that there are.
    #[must_use]
    pub fn new() -> Reload {
        Reload::default()
    }

    /// Starts the new workers as these changes say. If the reload fails, the changes are taken
    /// back, and so are the workers that it had brought.
    #[must_use]
    pub fn setup(mut self, changes: Setup) -> Reload {
        self.changes = Some(self.changes.unwrap_or_default().merge(changes));
        self
    }

    /// Whether the new workers may listen elsewhere than the old ones. Otherwise the reload fails
    /// when a new worker is ready but does not listen, within [`ReplacePolicy::ready_timeout`], on
    /// an address that several of the old workers have, or that the only one has; and when no new
    /// worker listens where only one of several did, before that one leaves. Port 0 and paths with
    /// the number of the process do not count. Default: false. An old address that no worker has
    /// any more is closed.
    #[must_use]
    pub fn allow_moved(mut self, allow: bool) -> Reload {
        self.allow_moved = allow;
        self
    }
}

/// A test of each worker, from time to time. One that fails it is replaced; a successor that fails
/// it too changes nothing for the worse.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HealthCheck {
    /// What is tested.
    pub test: HealthTest,
    /// The pause between two tests. Default: 10 s.
    pub every: Duration,
    /// How long one may take. Default: 5 s.
    pub timeout: Duration,
    /// How many in a row have to fail. Default: 3.
    pub failures: u32,
    /// Which listener the connection is to come from, if a worker has several. Default: its first.
    pub listener: Option<crate::policy::Pattern>,
}

/// What a [`HealthCheck`] does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealthTest {
    /// The worker takes a connection.
    Tcp,
    /// The worker takes a connection and answers `GET` of this path with a status from 200 to 399.
    Http(String),
    /// This command, run by `sh`, ends with 0. It finds `TROOP_WORKER`, `TROOP_WORKER_PID` and
    /// `TROOP_SLOT` in its environment.
    Command(String),
}

impl HealthCheck {
    /// Sets [`every`](#structfield.every).
    #[must_use]
    pub fn every(mut self, interval: Duration) -> HealthCheck {
        self.every = interval;
        self
    }

    /// Sets [`timeout`](#structfield.timeout).
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> HealthCheck {
        self.timeout = timeout;
        self
    }

    /// Sets [`failures`](#structfield.failures).
    #[must_use]
    pub fn failures(mut self, failures: u32) -> HealthCheck {
        self.failures = failures;
        self
    }

    /// Sets [`listener`](#structfield.listener).
    #[must_use]
    pub fn listener(mut self, listener: crate::policy::Pattern) -> HealthCheck {
        self.listener = Some(listener);
        self
    }

    /// This test, with the defaults.
    #[must_use]
    pub fn new(test: HealthTest) -> HealthCheck {
        let (every, timeout) = (Duration::from_secs(10), Duration::from_secs(5));
        HealthCheck { test, every, timeout, failures: 3, listener: None }
    }
}
