//! The worker of a slot, and when it is ready.

use serde::{Deserialize, Serialize};

use super::leaving::EndSignals;
use super::operation::NotServing;
use super::own::Standing;
use super::{ACTIVATED_READY_AGE, Config, ReadyWhen};
use crate::id::{Time, WorkerId};

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct SlotWorker {
    pub(super) worker: WorkerId,
    pub(super) since: Time,
    pub(super) generation: u32,
    pub(super) online: Option<Time>,
    /// Whether it speaks Node's protocol, or is known to do so once it has started.
    pub(super) has_ipc: bool,
    /// The time since which it listens.
    pub(super) listening: Option<Time>,
    /// Whether it listens only on paths that it has named after itself.
    pub(super) listens_privately: bool,
    /// Whether its predecessor listened, so that it does not count as ready before it had as long to
    /// listen as workers have to become ready.
    pub(super) is_to_listen: bool,
    /// What it was seen to do instead, with activated sockets.
    pub(super) not_serving: Option<NotServing>,
    /// Whether it listens where it must, if it is to be ready by its age.
    pub(super) standing: Standing,
    /// The time at which it reported that it is ready.
    pub(super) notified: Option<Time>,
    /// Whether it was reported that it counts as ready without having said so.
    pub(super) assumed: bool,
    /// The time at which it closed its channel; it is not ready from then on.
    pub(super) gone: Option<Time>,
    /// Whether it has taken connections.
    pub(super) served: bool,
    /// The deadline of its readiness outside of rounds.
    pub(super) due: Time,
    /// The signals that end it.
    pub(super) ends_by: EndSignals,
}

impl SlotWorker {
    /// Returns the time since which it is ready, or at which it will become ready without further
    /// events.
    pub(super) fn ready_at(&self, must_listen: bool, config: &Config) -> Option<Time> {
        self.ready_as(config.replace.ready_when, must_listen, config)
    }

    /// Returns the same by another condition than the configured one.
    pub(super) fn ready_as(
        &self,
        when: ReadyWhen,
        must_listen: bool,
        config: &Config,
    ) -> Option<Time> {
        if self.gone.is_some() { None } else { self.could_serve_as(when, must_listen, config) }
    }

    /// Returns the same, ignoring whether it has closed its channel.
    pub(super) fn could_serve_as(
        &self,
        when: ReadyWhen,
        must_listen: bool,
        config: &Config,
    ) -> Option<Time> {
        let (ready, by_age) = match when {
            ReadyWhen::Message | ReadyWhen::Notified => {
                let assumed = self.assumed_at(config);
                return self.notified.map_or(assumed, |at| Some(assumed.map_or(at, |a| a.min(at))));
            }
            ReadyWhen::Online => (self.online, false),
            ReadyWhen::Listening => (self.listening, false),
            ReadyWhen::Auto if self.listens_privately => {
                let ready = self.listening.and_then(|at| self.standing.ready_at(at));
                (ready, !must_listen && self.listening.is_none())
            }
            ReadyWhen::Auto => (self.listening, !must_listen),
        };
        let aged = self.aged_at(config).filter(|_| by_age);
        let aged = aged.map(|aged| if self.is_to_listen { aged.max(self.due) } else { aged });
        let aged = aged.and_then(|aged| self.standing.ready_at(aged));
        ready.map_or(aged, |ready| Some(aged.map_or(ready, |aged| aged.min(ready))))
    }

    /// Returns the time at which it is old enough to be ready without further events.
    pub(super) fn aged_at(&self, config: &Config) -> Option<Time> {
        match self.online {
            // A worker with Node's protocol may still listen.
            Some(online) if self.has_ipc => {
                Some(online + config.listen_patience.max(config.silent_age()))
            }
            // Its program is still being loaded.
            None if self.has_ipc => None,
            _ if config.is_activated => Some(self.since + ACTIVATED_READY_AGE),
            _ => Some(self.since + config.silent_age()),
        }
    }

    pub(super) fn is_ready(&self, now: Time, must_listen: bool, config: &Config) -> bool {
        self.ready_at(must_listen, config).is_some_and(|at| at <= now)
    }

    /// Returns the time at which it counts as ready even if it has not said so.
    fn assumed_at(&self, config: &Config) -> Option<Time> {
        let after = config.replace.assume_ready_after?;
        match self.online {
            Some(online) => Some(online + after),
            // Its program is still being loaded.
            None if self.has_ipc => None,
            None => Some(self.since + after),
        }
    }

    /// Whether it counts as ready although it has not said so, which was not reported yet.
    pub(super) fn is_newly_assumed(&self, now: Time, config: &Config) -> bool {
        let must_say =
            matches!(config.replace.ready_when, ReadyWhen::Message | ReadyWhen::Notified);
        must_say
            && !self.assumed
            && self.notified.is_none()
            && self.gone.is_none()
            && self.assumed_at(config).is_some_and(|at| at <= now)
    }
}
