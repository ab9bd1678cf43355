//! Limits and deadlines of a primary, and what its workers may have.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Offered;
use crate::event::Address;
use crate::policy::{Pattern, Scheduling};

/// Limits and deadlines of a primary.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Config {
    /// How connections reach workers, for listeners that nothing else was chosen for.
    pub scheduling: Scheduling,
    /// The same for certain listeners; the last one that fits counts.
    pub listeners: Vec<(Pattern, Scheduling)>,
    /// Start of the random sequences of policies that draw lots.
    pub seed: u64,
    /// Unanswered connections that a Node worker may hold. Node's own primary allows one.
    pub node_window: usize,
    /// Connections that a troop worker may hold without its program having taken them.
    pub troop_window: usize,
    /// A worker whose oldest unanswered connection is older than this gets no more until it
    /// answers.
    pub stale_after: Duration,
    /// The same under policies that go by nothing but how busy workers are. They promise no turns,
    /// so it can be short.
    pub busy_after: Duration,
    /// Connections that may wait in the primary for a worker, per listener; the rest wait in the
    /// kernel's accept queue.
    pub pending_limit: usize,
    /// A troop worker whose program does not take a connection for this long is asked to give it
    /// back.
    pub recall_after: Duration,
    /// A worker that does not answer a connection for this long is killed, so that the connection
    /// can be given to another; so is one that listens and gives no other sign of life when it is
    /// asked for one. `None` waits for ever.
    pub hang_timeout: Option<Duration>,
    /// Whether a listener stays open when its last worker has died, for a successor. Node closes
    /// it.
    pub keep_listeners: bool,
    /// How long a worker may take, from its start, to ask for the listeners that are kept open for
    /// successors.
    pub start_timeout: Duration,
    /// How long a worker that listens may take to ask for more of them.
    pub listen_patience: Duration,
    /// The only listeners that workers may ask for; `None`: any.
    pub may_listen: Option<Vec<Pattern>>,
    /// The only descriptors of the primary's that workers may listen on by their numbers.
    pub offered: Vec<Offered>,
    /// Listeners that one worker may have open.
    pub max_listeners_per_worker: usize,
    /// Minor violations (see [`Violation::is_fatal`](crate::event::Violation::is_fatal)) after
    /// which a worker is cut off.
    pub max_violations: u32,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            scheduling: Scheduling::RoundRobin,
            listeners: Vec::new(),
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
            may_listen: None,
            offered: Vec::new(),
            max_listeners_per_worker: 1024,
            max_violations: 100,
        }
    }
}

impl Config {
    /// Whether workers may have the listener that one asks for in these words. If not, what to say.
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

    /// What was chosen for the listener that a worker asks for in these words.
    pub(super) fn scheduling_for(&self, asked: &Address) -> Scheduling {
        let own = self
            .listeners
            .iter()
            .rev()
            .find(|(pattern, _)| self.is_meant(asked, |at| pattern.matches(at)));
        own.map_or(&self.scheduling, |(_, scheduling)| scheduling).clone()
    }

    fn offered(&self, fd: i64) -> Option<&Offered> {
        self.offered.iter().find(|offered| i64::from(offered.number) == fd)
    }

    /// Whether this is true of the listener that is asked for, or of what an offered descriptor
    /// really is bound to.
    fn is_meant(&self, asked: &Address, is_true: impl Fn(&Address) -> bool) -> bool {
        let at = asked.fd.and_then(|fd| self.offered(fd)).and_then(|offered| offered.at.as_ref());
        is_true(asked) || at.is_some_and(is_true)
    }
}
