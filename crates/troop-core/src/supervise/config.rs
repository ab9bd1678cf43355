//! The configuration of a supervisor: the number of workers, and the policies of restarts and
//! replacement.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::event::ExitHow;

/// Age at which a worker with activated sockets is ready that is not seen to wait for connections.
pub const ACTIVATED_READY_AGE: Duration = Duration::from_secs(10);

/// The configuration of a supervisor.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Config {
    /// Number of workers to keep running.
    pub workers: usize,
    /// Grace period: time after which a disconnected worker is killed.
    pub grace: Duration,
    /// Time for which workers go on serving after a stop was requested, so that balancers that
    /// learn of it send no new clients. Default: none.
    pub drain_delay: Duration,
    /// Time to wait for a worker to listen that may listen, but need not.
    pub listen_patience: Duration,
    /// The restart policy.
    pub restart: RestartPolicy,
    /// The replacement policy.
    pub replace: ReplacePolicy,
    /// Whether workers have activated sockets: they are ready when they wait for connections, or at
    /// an age of [`ACTIVATED_READY_AGE`] where no worker before them was seen to do so.
    pub is_activated: bool,
    /// Whether the shell can see where workers listen by themselves. Those that are ready by their age
    /// must listen where their predecessors do, then.
    pub sees_own: bool,
    /// Seed of the random numbers that spread restarts.
    pub seed: u64,
    /// The program starts workers of its own accord, and each of them is a slot: see
    /// [`Supervisor::adopt`](super::Supervisor::adopt).
    pub(super) is_embedded: bool,
}

/// Generates methods that set one field each, so that a policy can be built in one expression.
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

/// The policy of restarts after unexpected ends, and of giving up.
///
/// Each slot has its own back-off. A worker that was ready for `min_uptime` is restarted
/// immediately. Others are restarted after `first_delay`, which doubles with every further quick
/// end of the slot, up to `max_delay`. If the worker had taken connections from the primary, the
/// delay stays at `first_delay`; and while clients wait and no worker is ready, it is reduced to
/// `first_delay` for slots whose workers had been ready, so that a request that crashes workers
/// does not delay other clients. Delays are randomly shortened by up to a quarter, and restarts of
/// many slots are spread.
///
/// A cluster that cannot start gives up: as long as no worker has ever been ready, after `max_ends`
/// ends within `window`, or if none becomes ready within `window` (or
/// [`ReplacePolicy::ready_timeout`], if that is longer). Once a worker has been ready, listeners
/// stay open, clients wait, and restarts continue, unless `when_failed` says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RestartPolicy {
    /// The ends after which a worker is restarted. Default: all unexpected ones.
    pub restart: Restart,
    /// Exit codes after which a worker is not restarted, whatever `restart` says. Default: none.
    /// The cluster ends when no worker is left to restart.
    pub final_codes: Vec<i32>,
    /// Workers that were ready for at least this long are restarted immediately, and their end does
    /// not count. Workers that say nothing of being ready, and need not listen, have to run for this
    /// time, but for 10 s or half of [`ReplacePolicy::ready_timeout`] at most, before they count as
    /// ready. Default: 1 s.
    pub min_uptime: Duration,
    /// Delay before the first restart of a slot after a quick end; doubles each time. Default: 100
    /// ms.
    pub first_delay: Duration,
    /// Maximum delay. Default: 5 s.
    pub max_delay: Duration,
    /// Time within which a start must have a ready worker; ends are counted over this time. With
    /// [`WhenFailed::End`], also the maximum time without a ready worker later. Default: 120 s.
    pub window: Duration,
    /// Number of ends within `window`, of all workers together, after which a start without a ready
    /// worker has failed. Default: 4 per worker, at least 8.
    pub max_ends: usize,
    /// What a running cluster does when no worker is ready any more. Default: [`WhenFailed::Stay`].
    pub when_failed: WhenFailed,
    /// Whether the cluster goes on when all workers have ended for good, without any, until it is
    /// scaled or stopped, and may begin without any: for jobs that run now and then. Default: false.
    pub stay_when_ended: bool,
    /// Whether workers of this cluster were ready before this process began, for example before a
    /// restart in place, so that the cluster does not give up as in a first start. Default: false.
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
    stay_when_ended: bool,
    been_ready: bool,
});

impl RestartPolicy {
    /// Returns the defaults for this number of workers.
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
            stay_when_ended: false,
            been_ready: false,
        }
    }
}

/// What a running cluster does when no worker is ready any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenFailed {
    /// Keeps starting workers, at intervals of up to [`RestartPolicy::max_delay`].
    #[default]
    Stay,
    /// Gives up when no worker has been ready for [`RestartPolicy::window`].
    End,
}

/// The policy of replacing workers by reloads and recycling.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ReplacePolicy {
    /// The condition under which a new worker is ready.
    pub ready_when: ReadyWhen,
    /// Time within which a new worker must be ready. A restarted worker that exceeds it is killed,
    /// and the failure counts for the back-off. Default: 30 s.
    pub ready_timeout: Duration,
    /// Time after which a worker that does not say that it is ready ([`ReadyWhen::Message`],
    /// [`ReadyWhen::Notified`]) counts as ready all the same, with a report
    /// ([`Progress::AssumedReady`](super::Progress::AssumedReady)). Default: never.
    pub assume_ready_after: Option<Duration>,
    /// Time that the first new worker of a reload must stay ready before the first old one is
    /// drained. Until then it gets no connections, so that a version that crashes soon after it
    /// listens replaces no worker. Default: 2 s.
    pub min_ready_time: Duration,
    /// Number of workers that may run in addition to the configured number. Default: 1.
    pub max_surge: usize,
    /// Number of workers that may be missing: old workers that leave before their successors start.
    /// Default: 0. If `max_surge` is 0 too, it counts as 1.
    pub max_unavailable: usize,
    /// An old worker that listens on no address of the primary's, or only on paths that it has named
    /// after itself, leaves before its successor starts, whatever the limits say: it may have bound
    /// one by itself, which two cannot. Default: false.
    pub make_way_unless_listening: bool,
    /// A reload starts all new workers at once, whatever the limits say, and no old one leaves
    /// before all of them are ready: if it fails, no worker has been replaced. Default: false.
    pub all_or_none: bool,
}

setters!(ReplacePolicy {
    ready_when: ReadyWhen,
    ready_timeout: Duration,
    assume_ready_after: Option<Duration>,
    min_ready_time: Duration,
    max_surge: usize,
    max_unavailable: usize,
    make_way_unless_listening: bool,
    all_or_none: bool,
});

impl Default for ReplacePolicy {
    fn default() -> ReplacePolicy {
        ReplacePolicy {
            ready_when: ReadyWhen::Auto,
            ready_timeout: Duration::from_secs(30),
            assume_ready_after: None,
            min_ready_time: Duration::from_secs(2),
            max_surge: 1,
            max_unavailable: 0,
            make_way_unless_listening: false,
            all_or_none: false,
        }
    }
}

/// The condition under which a worker is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReadyWhen {
    /// It listens. If its predecessor did not listen either: it has run for
    /// [`RestartPolicy::min_uptime`], within the bounds named there, and with Node's protocol for
    /// 3 s, and listens by itself where its predecessor does so. With activated sockets: it waits for connections
    /// on one of them, as far as the system shows that, or it has run for
    /// [`ACTIVATED_READY_AGE`] and its predecessor was not seen to wait either.
    #[default]
    Auto,
    /// It listens.
    Listening,
    /// It has started, as Node's workers say before they execute their program.
    Online,
    /// It has sent the message `'ready'` (PM2's `wait_ready`).
    Message,
    /// It, or a process of its group, has sent `READY=1` (`sd_notify(3)`).
    Notified,
}

/// The ends after which a worker is restarted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// All unexpected ends.
    #[default]
    Always,
    /// All unexpected ends except exits with code 0.
    OnFailure,
    /// None.
    Never,
}

impl Config {
    /// Returns the defaults for this number of workers.
    #[must_use]
    pub fn new(workers: usize) -> Config {
        Config {
            workers,
            grace: Duration::from_secs(30),
            drain_delay: Duration::ZERO,
            listen_patience: Duration::from_secs(3),
            restart: RestartPolicy::new(workers),
            replace: ReplacePolicy::default(),
            is_activated: false,
            sees_own: false,
            seed: 0,
            is_embedded: false,
        }
    }

    /// The age at which a worker that says nothing is ready. An uptime that is long, as it may be in
    /// order to count ends, must not make a healthy worker late.
    pub(super) fn silent_age(&self) -> Duration {
        self.restart.min_uptime.min(ACTIVATED_READY_AGE).min(self.replace.ready_timeout / 2)
    }

    /// Whether a slot whose last worker ended like this is complete without one.
    pub(super) fn is_done(&self, how: ExitHow) -> bool {
        self.restart.stay_when_ended || self.is_finished(how)
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
