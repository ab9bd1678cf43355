//! One worker's life, as the primary sees it.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::budget::WastedBinds;
use super::liveness::Liveness;
use super::membership::ListenerMembership;
use super::reports::DEFAULT_REPORT_INTERVAL;
use crate::id::{ConnId, ListenerId, Time};
use crate::policy::Connection;
use crate::worker_state::WorkerState;

/// How long a worker that could not receive a descriptor (its limit is reached) gets no
/// connections.
pub(super) const NO_DESCRIPTOR_PAUSE: Duration = Duration::from_millis(500);

/// How long a Node worker has had its last connection before it is told to disconnect. From Node 26
/// on (nodejs/node#63470) it closes connections whose request it has not read yet, which a client
/// sees as a reset.
pub(super) const FINAL_READ_DELAY: Duration = Duration::from_millis(100);

/// Counters of one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WorkerStats {
    /// Connections handed over.
    pub handed: u64,
    /// Connections it took.
    pub taken: u64,
    /// Connections it refused or gave back.
    pub returned: u64,
    /// Minor violations so far.
    pub violations: u32,
    /// Handed over and not answered at the moment.
    pub in_flight: usize,
    /// Connections open at the worker: what it reported if it is a troop worker, else an estimate
    /// from the descriptors that it has open, where a policy needs it.
    pub open: u32,
    /// The load that it reported, in its own unit.
    pub load: u32,
}

/// What is known about a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerStatus {
    /// Its process.
    pub pid: u32,
    /// Its state.
    pub state: WorkerState,
    /// Whether its channel is open.
    pub connected: bool,
    /// Node's `exitedAfterDisconnect`: `None` until it is known.
    pub exited_after_disconnect: Option<bool>,
    /// Whether Node would still list it in `cluster.workers`.
    pub in_table: bool,
    /// A small number that no other worker has, but for a successor that replaces it; used again
    /// when it is gone.
    pub slot: u32,
    /// Its weight for policies that heed it.
    pub weight: u32,
    /// Its counters.
    pub stats: WorkerStats,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct InFlight {
    pub(super) seq: u64,
    pub(super) conn: ConnId,
    pub(super) listener: ListenerId,
    /// What the policy knew about it.
    pub(super) about: Connection,
    pub(super) since: Time,
    /// How many workers had it before and did not take it.
    pub(super) tries: u8,
    pub(super) recalled: bool,
}

/// What the next `NODE_HANDLE_ACK` of a worker is about.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum HandleWait {
    Conn {
        seq: u64,
    },
    Listener {
        ack: u64,
        listener: ListenerId,
    },
    User {
        ticket: u64,
    },
    /// A connection to nothing.
    Probe,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Worker {
    pid: u32,
    pub(super) slot: u32,
    pub(super) weight: u32,
    pub(super) state: WorkerState,
    /// When it was first heard of.
    pub(super) seen: Option<Time>,
    /// When it first listened.
    pub(super) listening_since: Option<Time>,
    pub(super) connected: bool,
    pub(super) in_table: bool,
    pub(super) voluntary: Option<bool>,
    pub(super) told_to_leave: bool,
    /// It was told to take its time with connections that stay open.
    pub(super) closes_slowly: bool,
    /// It has left its listeners and is told so once its connections have been read: the time to
    /// close open ones.
    #[serde(with = "crate::snapshot::nested")]
    pub(super) disconnect_due: Option<Option<Duration>>,
    /// When it last took a connection.
    pub(super) last_taken: Time,
    /// It is to get nothing yet.
    pub(super) held: bool,
    pub(super) cut_off: bool,
    /// It takes several connections per message.
    pub(super) batched: bool,
    /// Its channel has no room at the moment.
    pub(super) blocked: bool,
    pub(super) starved_until: Time,
    pub(super) violations: u32,
    pub(super) wasted_binds: WastedBinds,
    pub(super) in_flight: VecDeque<InFlight>,
    pub(super) handle_waits: VecDeque<HandleWait>,
    pub(super) liveness: Liveness,
    /// Its part in each listener that it asked for.
    pub(super) memberships: Vec<ListenerMembership>,
    pub(super) open: u32,
    pub(super) load: u32,
    /// It has reported something that its policies were not told yet.
    pub(super) report_pending: bool,
    /// It says itself how many connections it has open.
    pub(super) reports: bool,
    /// How often it does that at most, if it is a troop worker.
    pub(super) reports_every: Duration,
    /// Connections that it took since its descriptors were counted; which of them are open still is
    /// not known.
    pub(super) uncounted: u32,
    /// The fewest descriptors that it was ever seen to have open.
    pub(super) descriptors: Option<u32>,
    pub(super) handed: u64,
    pub(super) taken: u64,
    pub(super) returned: u64,
}

impl Worker {
    pub(super) fn new(pid: u32, slot: u32, weight: u32) -> Worker {
        Worker {
            pid,
            slot,
            weight,
            state: WorkerState::None,
            seen: None,
            listening_since: None,
            connected: true,
            in_table: true,
            voluntary: None,
            told_to_leave: false,
            closes_slowly: false,
            disconnect_due: None,
            last_taken: Time(0),
            held: false,
            cut_off: false,
            batched: false,
            blocked: false,
            starved_until: Time(0),
            violations: 0,
            wasted_binds: WastedBinds::default(),
            in_flight: VecDeque::new(),
            handle_waits: VecDeque::new(),
            liveness: Liveness::default(),
            memberships: Vec::new(),
            open: 0,
            load: 0,
            report_pending: false,
            reports: false,
            reports_every: DEFAULT_REPORT_INTERVAL,
            uncounted: 0,
            descriptors: None,
            handed: 0,
            taken: 0,
            returned: 0,
        }
    }

    /// Whether it can be given connections of clients.
    pub(super) fn is_able(&self) -> bool {
        self.is_there() && !self.held
    }

    /// Whether it can be given anything at all.
    pub(super) fn is_there(&self) -> bool {
        self.connected && !self.told_to_leave && !self.cut_off
    }

    /// When its program has surely begun to read all connections that it has; `None` while some are
    /// in flight.
    pub(super) fn all_read_at(&self) -> Option<Time> {
        self.in_flight.is_empty().then(|| self.last_taken + FINAL_READ_DELAY)
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it has said that it listens there.
    pub(super) fn listens_on(&self, listener: ListenerId) -> bool {
        self.membership(listener).is_some_and(|membership| membership.listening)
    }

    pub(super) fn membership(&self, listener: ListenerId) -> Option<&ListenerMembership> {
        self.memberships.iter().find(|membership| membership.listener == listener)
    }

    pub(super) fn membership_mut(
        &mut self,
        listener: ListenerId,
    ) -> Option<&mut ListenerMembership> {
        self.memberships.iter_mut().find(|membership| membership.listener == listener)
    }

    pub(super) fn status(&self) -> WorkerStatus {
        WorkerStatus {
            pid: self.pid,
            state: self.state,
            connected: self.connected,
            exited_after_disconnect: self.voluntary,
            in_table: self.in_table,
            slot: self.slot,
            weight: self.weight,
            stats: WorkerStats {
                handed: self.handed,
                taken: self.taken,
                returned: self.returned,
                violations: self.violations,
                in_flight: self.in_flight.len(),
                open: self.open,
                load: self.load,
            },
        }
    }
}
