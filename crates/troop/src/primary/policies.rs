//! How workers are replaced and tested.

use std::time::Duration;

pub use troop_core::cluster::recycle::RecyclePolicy;
pub use troop_core::supervise::{ReadyWhen, ReplacePolicy, RestartPolicy, WhenFailed};

use crate::setup::Setup;

/// Options of one reload, for [`Cluster::reload_with`](crate::Cluster::reload_with).
///
/// ```no_run
/// # async fn reload(cluster: troop::Cluster) -> troop::Result<()> {
/// use troop::{Reload, Setup};
///
/// let next = Setup::new().env("RELEASE", "2");
/// cluster.reload_with(Reload::new().setup(next).allow_moved(true)).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default)]
pub struct Reload {
    pub(super) changes: Option<Setup>,
    pub(super) allow_moved: bool,
    /// How it replaces workers, and how long they have to finish, if not as configured.
    pub(crate) replace: Option<(ReplacePolicy, Duration)>,
}

impl Reload {
    /// Returns a reload whose new workers are started like the present ones.
    #[must_use]
    pub fn new() -> Reload {
        Reload::default()
    }

    /// Starts the new workers with these changes; called again, it adds changes. If the reload
    /// fails, the changes are undone, and workers that it started are replaced again.
    #[must_use]
    pub fn setup(mut self, changes: Setup) -> Reload {
        self.changes = Some(self.changes.unwrap_or_default().merge(changes));
        self
    }

    /// Sets whether the new workers may listen elsewhere than the old ones. If not, the reload fails
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

/// A periodic test of each worker that is ready, for [`Builder::health`](crate::Builder::health).
///
/// A worker that fails it is replaced, its successor first. Without supervision a failure is an
/// event alone ([`Event::Unhealthy`](crate::Event::Unhealthy)).
///
/// ```
/// use std::time::Duration;
///
/// use troop::Cluster;
/// use troop::supervise::{HealthCheck, HealthTest};
///
/// let check = HealthCheck::new(HealthTest::Http("/health".into()))
///     .every(Duration::from_secs(5))
///     .timeout(Duration::from_secs(1))
///     .failures(2);
/// let builder = Cluster::builder().workers(4).health(check);
/// # drop(builder);
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HealthCheck {
    /// The test.
    pub test: HealthTest,
    /// Interval between the end of a test and the next one. Default: 10 s.
    pub every: Duration,
    /// Time after which a test has failed. Default: 5 s.
    pub timeout: Duration,
    /// Number of consecutive failures after which the worker is unhealthy. Default: 3.
    pub failures: u32,
    /// Listener that the connection is for, if a worker has several. Default: its first one. A
    /// command takes none.
    pub listener: Option<crate::policy::Pattern>,
}

/// The test of a [`HealthCheck`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealthTest {
    /// Hands the worker a connection, which it has to accept.
    Tcp,
    /// Sends a `GET` request for this path, which the worker has to answer with a status from 200 to
    /// 399.
    Http(String),
    /// Runs this command by `sh`, which has to exit with 0. Its environment has `TROOP_WORKER`,
    /// `TROOP_WORKER_PID` and `TROOP_SLOT`. It runs with the user, directory and limits of workers.
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

    /// Returns a check with this test and the defaults.
    #[must_use]
    pub fn new(test: HealthTest) -> HealthCheck {
        let (every, timeout) = (Duration::from_secs(10), Duration::from_secs(5));
        HealthCheck { test, every, timeout, failures: 3, listener: None }
    }
}
