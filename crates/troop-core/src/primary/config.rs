//! Limits, timeouts and permissions of a primary's workers.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Offered;
use crate::event::Address;
use crate::policy::{Pattern, Scheduling};
use crate::steer::AutoLimits;

/// The listeners whose connections are shared out anew among their workers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rebalanced {
    /// All listeners whose scheduling allows it.
    #[default]
    All,
    /// None.
    None,
    /// Those of these patterns.
    Only(Vec<Pattern>),
}

impl Rebalanced {
    /// Whether there may be any.
    #[must_use]
    pub fn is_possible(&self) -> bool {
        !matches!(self, Rebalanced::None)
    }
}

/// The configuration of a primary.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Config {
    /// The default scheduling of listeners.
    pub scheduling: Scheduling,
    /// Scheduling by pattern; the last matching pattern applies.
    pub listeners: Vec<(Pattern, Scheduling)>,
    /// The rates at which listeners under [`Scheduling::Auto`] change their mode.
    pub auto: AutoLimits,
    /// Seed of the random policies.
    pub seed: u64,
    /// Maximum number of connections in flight to a Node worker. Node's own primary allows one.
    pub node_window: usize,
    /// Maximum number of connections in flight to a troop worker: those that its program has not
    /// accepted.
    pub troop_window: usize,
    /// A worker whose oldest connection in flight is older than this gets no more connections until
    /// it acknowledges it.
    pub stale_after: Duration,
    /// The same for policies that choose by load only. They promise no turns, so it can be shorter.
    pub busy_after: Duration,
    /// Maximum number of connections per listener that wait in the primary for a worker; further
    /// ones wait in the kernel's accept queue.
    pub pending_limit: usize,
    /// Time after which a troop worker is asked to return a connection that its program has not
    /// accepted.
    pub recall_after: Duration,
    /// Time after which a worker is killed that does not acknowledge a connection, so that the
    /// connection can be re-dispatched, or that listens and does not answer a probe. `None` for
    /// never.
    pub hang_timeout: Option<Duration>,
    /// Whether a listener stays open for a successor after its last worker has ended. Node closes
    /// it.
    pub keep_listeners: bool,
    /// Time from a worker's start within which it may ask for listeners that are kept open for
    /// successors.
    pub start_timeout: Duration,
    /// Time within which a worker that listens already may ask for more of them.
    pub listen_patience: Duration,
    /// The listeners whose idle connections move from workers with many to workers with few.
    pub rebalance: Rebalanced,
    /// Patterns of the listeners that workers may ask for; `None` for any.
    pub may_listen: Option<Vec<Pattern>>,
    /// The descriptors of the primary that workers may listen on by number.
    pub offered: Vec<Offered>,
    /// Maximum number of listeners per worker.
    pub max_listeners_per_worker: usize,
    /// Maximum number of minor violations (see
    /// [`Violation::is_fatal`](crate::event::Violation::is_fatal)) before a worker's channel is
    /// closed.
    pub max_violations: u32,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            scheduling: Scheduling::RoundRobin,
            listeners: Vec::new(),
            auto: AutoLimits::default(),
            seed: 0,
            node_window: 16,
            troop_window: 64,
            stale_after: Duration::from_millis(50),
            busy_after: Duration::from_millis(10),
            pending_limit: 64,
            recall_after: Duration::from_secs(1),
            hang_timeout: Some(Duration::from_secs(30)),
            keep_listeners: true,
            start_timeout: Duration::from_secs(30),
            listen_patience: Duration::from_secs(3),
            rebalance: Rebalanced::All,
            may_listen: None,
            offered: Vec::new(),
            max_listeners_per_worker: 1024,
            max_violations: 100,
        }
    }
}

impl Config {
    /// Checks whether workers may have this listener. The error is the reason, for people.
    pub(super) fn allows(&self, asked: &Address) -> Result<(), String> {
        let is_listed = || {
            let covers = |pattern: &Pattern| self.is_meant(asked, |at| pattern.covers(at));
            self.may_listen.as_ref().is_none_or(|patterns| patterns.iter().any(covers))
        };
        match asked.fd.filter(|fd| *fd >= 0) {
            Some(fd) if self.offered(fd).is_none() => Err(format!(
                "descriptor {fd}, which is not offered to workers (name it with `fds`, `--offer-fd` or `Builder::inherited`)"
            )),
            _ if is_listed() => Ok(()),
            _ => Err(asked.to_string()),
        }
    }

    /// Returns the configured scheduling of a listener.
    pub(super) fn scheduling_for(&self, asked: &Address) -> Scheduling {
        let own = self
            .listeners
            .iter()
            .rev()
            .find(|(pattern, _)| self.is_meant(asked, |at| pattern.matches(at)));
        own.map_or(&self.scheduling, |(_, scheduling)| scheduling).clone()
    }

    /// Whether connections of a listener are shared out anew.
    pub(super) fn rebalances(&self, asked: &Address) -> bool {
        match &self.rebalance {
            Rebalanced::All => true,
            Rebalanced::None => false,
            Rebalanced::Only(patterns) => {
                patterns.iter().any(|pattern| self.is_meant(asked, |at| pattern.matches(at)))
            }
        }
    }

    fn offered(&self, fd: i64) -> Option<&Offered> {
        self.offered.iter().find(|offered| i64::from(offered.number) == fd)
    }

    /// Whether a predicate holds for the requested address, or for the bound address of an offered
    /// descriptor.
    fn is_meant(&self, asked: &Address, is_true: impl Fn(&Address) -> bool) -> bool {
        let at = asked.fd.and_then(|fd| self.offered(fd)).and_then(|offered| offered.at.as_ref());
        is_true(asked) || at.is_some_and(is_true)
    }
}
