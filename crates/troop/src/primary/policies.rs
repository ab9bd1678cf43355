//! What a supervised cluster is to do with its workers.

use std::time::Duration;

pub use troop_core::cluster::recycle::RecyclePolicy;
use troop_core::supervise::{self, Restart};

use crate::setup::Setup;

/// When workers that end unexpectedly are started again, and when the cluster gives up.
///
/// Each slot has a back-off of its own: a worker that was ready for `min_uptime` is followed by
/// another at once, others after `first_delay`, doubled for each further one of the slot, up to
/// `max_delay`. The delay stays at `first_delay` where the worker had taken connections from the
/// primary, and goes back to it for slots whose workers had been ready while clients wait and no
/// worker is ready: a request that ends workers does not keep the others waiting. Delays are
/// shortened by chance by up to a quarter; restarts of many slots at once are spread.
///
/// Giving up is for a cluster that cannot start: as long as no worker has ever been ready, it gives
/// up after `max_ends` ends within `window`, or when none has become ready for `window` (or
/// [`ReplacePolicy::ready_timeout`], if that is longer). Once a worker has been ready, it goes on:
/// listeners stay (see [`Builder::keep_listeners`](crate::Builder::keep_listeners)), clients wait,
/// and restarts go on, unless `when_failed` says otherwise.
#[derive(Debug, Clone)]
pub struct RestartPolicy {
    /// Which ends are followed by a restart. Default: all that were not asked for.
    pub restart: Restart,
    /// Exit codes that are not followed by one, whatever `restart` says. Default: none. When all
    /// workers have ended for good, so has the cluster.
    pub final_codes: Vec<i32>,
    /// A worker that was ready for this long is restarted at once when it ends. Default: 1 s.
    pub min_uptime: Duration,
    /// The delay before the first restart of a slot whose worker was not; doubled each time.
    /// Default: 100 ms.
    pub first_delay: Duration,
    /// The longest delay. Default: 5 s.
    pub max_delay: Duration,
    /// How long a start may be without a ready worker; ends are counted over this time. With
    /// [`WhenFailed::End`] also how long the cluster may be without one later. Default: 120 s.
    pub window: Duration,
    /// This many ends within the window, of all workers together, and a start that never had a
    /// ready worker has failed. Default: 4 per worker, at least 8.
    pub max_ends: usize,
    /// What follows when workers had been ready and none is any more. Default:
    /// [`WhenFailed::Stay`].
    pub when_failed: WhenFailed,
    /// Workers of this cluster were ready before this process began, for example before a restart
    /// in place: the cluster does not give up like one that was never ready. Default: false.
    pub been_ready: bool,
}

/// What a cluster does whose workers had been ready, when none is any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WhenFailed {
    /// It stays and goes on starting workers, up to [`RestartPolicy::max_delay`] apart.
    #[default]
    Stay,
    /// It ends with [`Error::GaveUp`](crate::Error::GaveUp) when no worker has been ready for
    /// [`RestartPolicy::window`].
    End,
}

impl RestartPolicy {
    /// The defaults for this many workers.
    #[must_use]
    pub fn new(workers: usize) -> RestartPolicy {
        let supervise::Config {
            restart,
            final_codes,
            min_uptime,
            first_delay,
            max_delay,
            window,
            max_ends,
            been_ready,
            ..
        } = supervise::Config::new(workers);
        let when_failed = WhenFailed::Stay;
        RestartPolicy {
            restart,
            final_codes,
            min_uptime,
            first_delay,
            max_delay,
            window,
            max_ends,
            when_failed,
            been_ready,
        }
    }

    pub(super) fn apply(&self, config: &mut supervise::Config) {
        (config.restart, config.final_codes) = (self.restart, self.final_codes.clone());
        (config.first_delay, config.max_delay) = (self.first_delay, self.max_delay);
        (config.window, config.max_ends) = (self.window, self.max_ends.max(1));
        (config.min_uptime, config.been_ready) = (self.min_uptime, self.been_ready);
        config.ends_when_failed = self.when_failed == WhenFailed::End;
    }
}

/// How workers are replaced: by a reload, or one of them because of a [`RecyclePolicy`].
#[derive(Debug, Clone)]
pub struct ReplacePolicy {
    /// When a new worker is ready.
    pub ready_when: ReadyWhen,
    /// How long it may take until it is. One that replaces a worker that ended is ended then, and
    /// followed like one that failed. Default: 30 s.
    pub ready_timeout: Duration,
    /// How long the first new worker of a reload must have been ready before the first old one
    /// leaves. Until then it gets no connections. Default: 2 s. So a version that dies a moment
    /// after it listens replaces nobody.
    pub min_ready_time: Duration,
    /// How many workers may be started beyond those that there should be. Default: 1.
    pub max_surge: usize,
    /// How many workers may be missing meanwhile: their old ones leave before the new ones start.
    /// Default: 0. With both at 0, one is started beyond.
    pub max_unavailable: usize,
}

impl Default for ReplacePolicy {
    fn default() -> ReplacePolicy {
        let supervise::Config { ready_timeout, min_ready_time, max_surge, max_unavailable, .. } =
            supervise::Config::new(1);
        ReplacePolicy {
            ready_when: ReadyWhen::Auto,
            ready_timeout,
            min_ready_time,
            max_surge,
            max_unavailable,
        }
    }
}

impl ReplacePolicy {
    pub(super) fn apply(&self, config: &mut supervise::Config) {
        config.readiness = match self.ready_when {
            ReadyWhen::Auto => supervise::Readiness::Auto,
            ReadyWhen::Listening => supervise::Readiness::Listening,
            ReadyWhen::Message | ReadyWhen::Notified => supervise::Readiness::Notified,
        };
        (config.ready_timeout, config.min_ready_time) = (self.ready_timeout, self.min_ready_time);
        (config.max_surge, config.max_unavailable) = (self.max_surge, self.max_unavailable);
    }
}

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
        self.changes = Some(changes);
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

/// When a worker counts as ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReadyWhen {
    /// When it listens. If its predecessor did not listen either: when it has been there for 3 s,
    /// or, if it does not speak Node's protocol, for [`RestartPolicy::min_uptime`].
    #[default]
    Auto,
    /// When it listens.
    Listening,
    /// When it sends the message `'ready'`: PM2's `wait_ready`.
    Message,
    /// When it, or a process of its group, says `READY=1`: `sd_notify(3)`.
    Notified,
}

/// A test of each worker, from time to time. One that fails it is replaced; a successor that fails
/// it too changes nothing for the worse.
#[derive(Debug, Clone)]
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
    /// This test, with the defaults.
    #[must_use]
    pub fn new(test: HealthTest) -> HealthCheck {
        let (every, timeout) = (Duration::from_secs(10), Duration::from_secs(5));
        HealthCheck { test, every, timeout, failures: 3, listener: None }
    }
}
