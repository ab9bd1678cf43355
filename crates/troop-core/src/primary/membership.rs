//! A worker's membership in a listener, and the view of it that the policy gets.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Config;
use super::rebalance::Share;
use super::worker::Worker;
use crate::id::{ConnId, ListenerId, Time};
use crate::policy::{Connection, WorkerView};

/// Maximum pause of a worker that rejects connections.
const MAX_COOLDOWN: Duration = Duration::from_millis(500);
/// Time after a pause within which another rejection makes the next pause longer.
const COOLDOWN_MEMORY: Duration = Duration::from_secs(1);

/// Maximum number of connections in flight to a worker while descriptors are scarce.
const TIGHT_WINDOW: usize = 4;

/// A connection that waits for a worker.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct QueuedConnection {
    pub(super) conn: ConnId,
    pub(super) about: Connection,
    /// Number of workers that it was dispatched to and that did not take it.
    pub(super) tries: u8,
}

/// A worker's membership in one listener.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ListenerMembership {
    pub(super) listener: ListenerId,
    pub(super) shard: u16,
    /// Whether the worker's request has been granted.
    pub(super) admitted: bool,
    /// Whether the worker has sent `listening`.
    pub(super) listening: bool,
    /// Length of its shard's queue at the last check.
    pub(super) queued: u32,
    /// Whether its shard counts as stalled.
    pub(super) stalled: bool,
    refusals: u32,
    pub(super) cooling_until: Time,
    /// Connections that wait for this worker only.
    pub(super) reserved: VecDeque<QueuedConnection>,
    /// The view that the policy has.
    pub(super) shown: Option<WorkerView>,
    pub(super) share: Share,
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
            share: Share::default(),
        }
    }

    /// Handles a rejection: begins a pause, which grows with every one.
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
    /// Returns the worker's view for the policy; `None` if it cannot take connections at all.
    /// `by_counts` is whether the policy chooses by load.
    pub(super) fn view(
        &self,
        now: Time,
        (config, tight): (&Config, bool),
        id: super::WorkerId,
        membership: &ListenerMembership,
        by_counts: bool,
    ) -> Option<WorkerView> {
        // A program may be slow on one listener and fast on another.
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
            && self.resyncs_until.is_none()
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
