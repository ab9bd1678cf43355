//! A worker's part in one listener, and what the listener's policy knows about it.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Config;
use super::worker::Worker;
use crate::id::{ConnId, ListenerId, Time};
use crate::policy::{Connection, WorkerView};

/// The longest pause of a worker that refuses connections.
const MAX_COOLDOWN: Duration = Duration::from_millis(500);
/// How long it is remembered that a worker keeps refusing, after its pause is over.
const COOLDOWN_MEMORY: Duration = Duration::from_secs(1);

/// Unanswered connections that a worker may hold while descriptors are scarce.
const TIGHT_WINDOW: usize = 4;

/// A connection that no worker has.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct QueuedConnection {
    pub(super) conn: ConnId,
    pub(super) about: Connection,
    /// How many workers had it before and did not take it.
    pub(super) tries: u8,
}

/// A worker's membership in one listener.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ListenerMembership {
    pub(super) listener: ListenerId,
    pub(super) shard: u16,
    /// The worker has been answered, and takes part.
    pub(super) admitted: bool,
    /// It has said that it listens.
    pub(super) listening: bool,
    /// Connections in the queue of its own socket, when that was last looked at.
    pub(super) queued: u32,
    /// Its place's queue does not move, so that it is held to be hung.
    pub(super) stalled: bool,
    refusals: u32,
    pub(super) cooling_until: Time,
    /// Connections that only this worker is meant to have.
    pub(super) reserved: VecDeque<QueuedConnection>,
    /// What the policy was shown last.
    pub(super) shown: Option<WorkerView>,
}

impl ListenerMembership {
    pub(super) fn new(listener: ListenerId) -> ListenerMembership {
        ListenerMembership {
            listener,
            shard: 0,
            admitted: false,
            listening: false,
            queued: 0,
            stalled: false,
            refusals: 0,
            cooling_until: Time(0),
            reserved: VecDeque::new(),
            shown: None,
        }
    }

    /// It did not want a connection: a pause, which grows.
    pub(super) fn refused(&mut self, now: Time) {
        if now > self.cooling_until + COOLDOWN_MEMORY {
            self.refusals = 0;
        }
        self.refusals += 1;
        self.cooling_until =
            now + Duration::from_millis(1 << self.refusals.min(9)).min(MAX_COOLDOWN);
    }

    pub(super) fn accepted(&mut self) {
        self.refusals = 0;
        self.cooling_until = Time(0);
    }
}

impl Worker {
    /// What the policy of a listener should know about this worker now; `None` if it cannot be
    /// given anything. `by_counts`: the policy goes by how busy workers are.
    pub(super) fn view(
        &self,
        now: Time,
        (config, tight): (&Config, bool),
        id: super::WorkerId,
        membership: &ListenerMembership,
        by_counts: bool,
    ) -> Option<WorkerView> {
        // A program may be slow on one of its listeners and quick on another.
        let age = self
            .in_flight
            .iter()
            .find(|c| c.listener == membership.listener)
            .map_or(Duration::ZERO, |c| now.since(c.since));
        if !self.is_able()
            || !membership.admitted
            || membership.stalled
            || age >= config.recall_after
        {
            return None;
        }
        let window = if self.batched { config.troop_window } else { config.node_window };
        let window = if tight { window.min(TIGHT_WINDOW) } else { window };
        let ready = !self.blocked
            && self.in_flight.len() < window
            && self.starved_until <= now
            && membership.cooling_until <= now
            && age < if by_counts { config.busy_after } else { config.stale_after };
        Some(WorkerView {
            worker: id,
            shard: membership.shard,
            weight: self.weight,
            state: self.state,
            ready,
            open: self.open,
            pending: u32::try_from(self.in_flight.len())
                .unwrap_or(u32::MAX)
                .saturating_add(membership.queued),
            load: self.load,
        })
    }
}
