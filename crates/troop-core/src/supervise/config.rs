//! What a supervisor aims for: the number of workers, and the policies of restarts and replacement.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::event::ExitHow;

/// What a supervisor aims for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Config {
    /// How many workers to keep running.
    pub workers: usize,
    /// How long a worker that was told to finish may take before it is killed.
    pub grace: Duration,
    /// How long a worker that could listen is waited for, where it is not known that it will.
    pub listen_patience: Duration,
    /// When workers that end are followed by others.
    pub restart: RestartPolicy,
    /// How workers are replaced.
    pub replace: ReplacePolicy,
    /// Start of the random sequence that spreads restarts.
    pub seed: u64,
}

/// Methods that change one field each, so that policies can be written in one expression.
macro_rules! setters {
    ($policy:ident { $($field:ident: $kind:ty),+ $(,)? }) => {
        impl $policy {
            $(
                #[doc = concat!("Sets [`", stringify!($field), "`](#structfield.", stringify!($field), ").")]
                #[must_use]
                pub fn $field(mut self, $field: $kind) -> $policy {
                    self.$field = $field;
                    self
                }
            )+
        }
    };
}

/// When workers that end unexpectedly are followed by others, and when the cluster gives up.
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
/// listeners stay, clients wait, and restarts go on, unless `when_failed` says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RestartPolicy {
    /// Which ends are followed by a restart. Default: all that were not asked for.
    pub restart: Restart,
    /// Exit codes that are not followed by one, whatever `restart` says. Default: none. When all
    /// workers have ended for good, so has the cluster.
    pub final_codes: Vec<i32>,
    /// A worker that was ready for this long is restarted at once when it ends, and its end does
    /// not count. A worker that does not speak the protocol counts as ready after this time.
    /// Default: 1 s.
    pub min_uptime: Duration,
    /// The delay before the first restart of a slot whose worker was not ready for that long;
    /// doubled each time. Default: 100 ms.
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

setters!(RestartPolicy {
    restart: Restart,
    final_codes: Vec<i32>,
    min_uptime: Duration,
    first_delay: Duration,
    max_delay: Duration,
    window: Duration,
    max_ends: usize,
    when_failed: WhenFailed,
    been_ready: bool,
});

impl RestartPolicy {
    /// The defaults for this many workers.
    #[must_use]
    pub fn new(workers: usize) -> RestartPolicy {
        RestartPolicy {
            restart: Restart::Always,
            final_codes: Vec::new(),
            min_uptime: Duration::from_secs(1),
            first_delay: Duration::from_millis(100),
            max_delay: Duration::from_secs(5),
            window: Duration::from_secs(120),
            max_ends: 8.max(4 * workers),
            when_failed: WhenFailed::Stay,
            been_ready: false,
        }
    }
}

/// What a cluster does whose workers had been ready, when none is any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenFailed {
    /// It stays and goes on starting workers, up to [`RestartPolicy::max_delay`] apart.
    #[default]
    Stay,
    /// It gives up when no worker has been ready for [`RestartPolicy::window`].
    End,
}

/// How workers are replaced: by a reload, or one of them by recycling.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
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

setters!(ReplacePolicy {
    ready_when: ReadyWhen,
    ready_timeout: Duration,
    min_ready_time: Duration,
    max_surge: usize,
    max_unavailable: usize,
});

impl Default for ReplacePolicy {
    fn default() -> ReplacePolicy {
        ReplacePolicy {
            ready_when: ReadyWhen::Auto,
            ready_timeout: Duration::from_secs(30),
            min_ready_time: Duration::from_secs(2),
            max_surge: 1,
            max_unavailable: 0,
        }
    }
}

/// When a worker counts as ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
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

/// Which ends of workers are followed by a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// All that were not asked for.
    #[default]
    Always,
    /// All but exits with code 0.
    OnFailure,
    /// None.
    Never,
}

impl Config {
    /// Sensible values for this many workers.
    #[must_use]
    pub fn new(workers: usize) -> Config {
        Config {
            workers,
            grace: Duration::from_secs(30),
            listen_patience: Duration::from_secs(3),
            restart: RestartPolicy::new(workers),
            replace: ReplacePolicy::default(),
            seed: 0,
        }
    }

    pub(super) fn is_final(&self, how: ExitHow) -> bool {
        let by_code =
            matches!(how, ExitHow::Code(code) if self.restart.final_codes.contains(&code));
        by_code
            || match self.restart.restart {
                Restart::Always => false,
                Restart::OnFailure => how.is_success(),
                Restart::Never => true,
            }
    }
}
