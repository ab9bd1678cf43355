//! One listener: its key, its socket or shards, the workers that use it, and its scheduling.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::value::RawValue;

use serde::{Deserialize, Serialize};

use super::Config;
use super::bind::BindSpec;
use super::handover::Needs;
use super::listen_key::ListenKey;
use super::membership::QueuedConnection;
use crate::asked::{Asked, Numbers};
use crate::event::Address;
use crate::id::{Time, WorkerId};
use crate::policy::{ListenerPolicy, Policy, Scheduling, Sticky};
use crate::steer::auto::{AutoMode, CurrentMode, Mode, ModeReason};
use crate::steer::group::ShardGroup;
use crate::wire::outgoing::SockName;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Listener {
    pub(super) listen_key: ListenKey,
    pub(super) key: String,
    /// The configured scheduling. The effective one differs if that is not possible.
    pub(super) chosen: Scheduling,
    pub(super) scheduling: Scheduling,
    /// The policy; `None` for shared sockets.
    pub(super) policy: Option<ListenerPolicy>,
    pub(super) needs_counts: bool,
    /// Whether the policy chooses by load only.
    pub(super) by_counts: bool,
    pub(super) needs: Needs,
    pub(super) shards: Vec<Shard>,
    /// The shards of a steered listener.
    pub(super) group: Option<ShardGroup>,
    /// The mode of a listener with a group under [`Scheduling::Auto`].
    pub(super) auto: Option<AutoMode>,
    /// Workers that wait for a shard, with the number of their request.
    pub(super) growing: VecDeque<(WorkerId, u64)>,
    /// Whether the shell is opening a shard.
    pub(super) opening: bool,
    /// The time until which no more shards are opened, after a failure.
    pub(super) crowded_until: Time,
    pub(super) waiters: Vec<(WorkerId, u64)>,
    /// The worker and the socket for another attempt to bind, until the result of the first one.
    pub(super) retry: Option<(WorkerId, BindSpec)>,
    #[serde(with = "crate::snapshot::nested")]
    pub(super) bound: Option<Option<SockName>>,
    pub(super) data: Option<Box<RawValue>>,
    pub(super) queue: VecDeque<QueuedConnection>,
    /// Number of connections that wait for a certain worker.
    pub(super) reserved: usize,
    /// Number of connections that workers which stay are returning just now.
    pub(super) promised: u32,
    /// The worker whose share of descriptors it counts against: the one that had it opened, or
    /// later another one that uses it.
    pub(super) charged_to: WorkerId,
    /// Whether it stays open without workers.
    pub(super) lasting: bool,
    /// Whether workers of several slots have listened on it at the same time.
    pub(super) is_shared: bool,
    /// Whether the address was requested, and not chosen by the kernel.
    pub(super) is_fixed: bool,
    pub(super) listened: Listened,
}

/// The workers that have listened on a listener so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Listened {
    Nobody,
    /// One worker, whose program may have named it after the worker.
    One(Numbers),
    Several,
}

/// A shard of a listener, which a worker and its successors use.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Shard {
    /// The [slot](super::WorkerStatus::slot) of those workers.
    pub(super) slot: u32,
    pub(super) holders: Vec<WorkerId>,
    /// Those that were told to leave, and may not have closed its socket yet.
    #[serde(default)]
    pub(super) leaving: Vec<WorkerId>,
}

impl Shard {
    fn is_vacant(&self) -> bool {
        self.holders.is_empty() && self.leaving.is_empty()
    }
}

/// Maximum number of shards of a listener; further workers share them.
pub(super) const MAX_SHARDS: usize = 1024;

/// Time after which no connection waits any more in a queue of which a worker accepts, once the
/// kernel sends it no more.
const SETTLED_AFTER: Duration = Duration::from_secs(1);

/// Factor of the queue limit for sticky listeners, whose connections wait for a certain worker.
const STICKY_QUEUE_FACTOR: usize = 16;

impl Listener {
    pub(super) fn is_unused(&self) -> bool {
        self.waiters.is_empty()
            && self.growing.is_empty()
            && self.shards.iter().all(|shard| shard.holders.is_empty())
    }

    pub(super) fn limit(&self, config: &Config, tight: bool) -> usize {
        let pending = if tight { 1 } else { config.pending_limit };
        pending * if self.scheduling.sticky().is_some() { STICKY_QUEUE_FACTOR } else { 1 }
    }

    /// Returns the number of descriptors that count against a worker's share: its socket, or the
    /// group's first socket and the first shard.
    pub(super) fn charge(&self) -> usize {
        1 + usize::from(self.group.is_some())
    }

    /// Returns a worker that uses it.
    pub(super) fn user(&self) -> Option<WorkerId> {
        let held = self.shards.iter().flat_map(|shard| shard.holders.iter().copied());
        held.chain(self.waiters.iter().map(|(w, _)| *w))
            .chain(self.growing.iter().map(|(w, _)| *w))
            .next()
    }

    /// Whether the primary accepts all connections, also those of a group.
    pub(super) fn is_own(&self) -> bool {
        self.group.as_ref().is_none_or(ShardGroup::is_own)
    }

    /// Whether the workers have not accepted by themselves for a while.
    pub(super) fn is_long_in_turns(&self, now: Time) -> bool {
        let is_long = |auto: &AutoMode| {
            let CurrentMode { mode, since, reason } = auto.current();
            let was_steered = reason != ModeReason::Opened && now.since(since) < SETTLED_AFTER;
            mode == Mode::Turns && !was_steered
        };
        self.auto.as_ref().is_some_and(is_long)
    }

    /// Whether workers get sockets of their own, or a shared one.
    pub(super) fn has_sockets(&self) -> bool {
        self.group.is_some() || !self.scheduling.is_handed()
    }

    /// Returns the scheduling by which the primary chooses workers.
    fn effective(&self) -> Scheduling {
        match (&self.scheduling, &self.auto) {
            (Scheduling::Auto, Some(auto)) if auto.is_steered() => Scheduling::Steered(None),
            (Scheduling::Auto, _) => Scheduling::RoundRobin,
            (scheduling, _) => scheduling.clone(),
        }
    }

    /// Sets the scheduling. Its policy has no workers yet.
    pub(super) fn schedule(&mut self, now: Time, scheduling: Scheduling, seed: u64) {
        let is_auto = scheduling == Scheduling::Auto && self.group.is_some();
        self.auto = is_auto.then(|| AutoMode::new(now));
        if let Some(group) = &mut self.group {
            if let Some(auto) = self.auto.as_mut().filter(|_| group.has_lost_numbers()) {
                auto.lose_numbers(now);
            }
            let own = match &self.auto {
                Some(auto) => auto.own(),
                None if scheduling.is_handed() => 1.0,
                None => 0.0,
            };
            group.set_own(now, own);
        }
        self.scheduling = scheduling;
        self.renew_policy(seed);
    }

    /// Creates the policy anew, without workers, after the scheduling or the mode has changed.
    pub(super) fn renew_policy(&mut self, seed: u64) {
        let scheduling = self.effective();
        self.policy = scheduling.policy(seed);
        self.needs_counts = self.policy.as_ref().is_some_and(|policy| policy.needs_counts());
        self.by_counts = matches!(
            scheduling,
            Scheduling::LeastConnections | Scheduling::PowerOfTwo | Scheduling::Steered(None)
        );
        self.needs = Needs {
            peer: self.policy.as_ref().is_some_and(|policy| policy.needs_peer()),
            bytes: scheduling.sticky().is_some_and(Sticky::needs_bytes),
            answer: matches!(scheduling, Scheduling::Callback(_)),
        };
    }

    /// Returns a shard for a worker: that of its slot, a vacant one, or a new one. A worker gets a
    /// shard apart from its predecessor's while that one is there, so that no new connection reaches
    /// a worker that is to leave, unless clients or flows stay with shards.
    pub(super) fn assign_shard(&mut self, worker: WorkerId, slot: u32) -> u16 {
        let apart = self.group.as_ref().is_some_and(|group| !group.keeps_shards());
        let is_own = |shard: &Shard| shard.slot == slot && (!apart || shard.is_vacant());
        let own = self.shards.iter().position(is_own);
        let at =
            own.or_else(|| self.shards.iter().position(Shard::is_vacant)).unwrap_or_else(|| {
                if self.shards.len() < MAX_SHARDS {
                    self.shards.push(Shard { slot, holders: Vec::new(), leaving: Vec::new() });
                    self.shards.len() - 1
                } else {
                    slot as usize % MAX_SHARDS
                }
            });
        let shard = &mut self.shards[at];
        if shard.holders.is_empty() {
            shard.slot = slot;
        }
        shard.holders.push(worker);
        at as u16
    }

    /// Whether a worker's `listening` with this address refers to this listener.
    pub(super) fn is_at(&self, at: &Address) -> bool {
        let ListenKey { address, port, address_type, fd, .. } = &self.listen_key;
        let bound =
            || self.bound.as_ref().and_then(Option::as_ref).map(|name| i64::from(name.port));
        // Node reports the bound port, even if the request was for port 0.
        let same_port =
            at.port == *port || port.is_none() || (*port == Some(0) && at.port == bound());
        *address_type == at.address_type && *address == at.address && *fd == at.fd && same_port
    }

    /// Returns the request, and whether its path may be specific to one worker.
    pub(super) fn asked_for(&self) -> Asked {
        match self.listened {
            Listened::One(numbers) => Asked::new(self.asked(), numbers),
            Listened::Nobody | Listened::Several => Asked::by_several(self.asked()),
        }
    }

    /// Returns the address that the first worker asked for.
    pub(super) fn asked(&self) -> Address {
        let ListenKey { address, port, address_type, fd, .. } = &self.listen_key;
        Address { address: address.clone(), port: *port, address_type: *address_type, fd: *fd }
    }
}
