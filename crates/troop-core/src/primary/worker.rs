//! The state of one worker.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::budget::WastedBinds;
use super::final_read::FinalRead;
use super::liveness::Liveness;
use super::membership::ListenerMembership;
use super::reports::DEFAULT_REPORT_INTERVAL;
use crate::id::{ConnId, ListenerId, Time};
use crate::policy::Connection;
use crate::worker_state::WorkerState;

/// Pause of a worker that could not receive a descriptor, because its limit is reached.
pub(super) const NO_DESCRIPTOR_PAUSE: Duration = Duration::from_millis(500);

/// Minimum time between a Node worker's last connection and its `disconnect`, in which clients send
/// their requests ([`super::final_read`]).
pub(super) const FINAL_READ_DELAY: Duration = Duration::from_millis(100);

/// How long the idle connections of a Node worker may move before it is sent `disconnect`.
const MOVE_TIMEOUT: Duration = Duration::from_secs(1);

/// A Node worker whose idle connections move.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) enum Moving {
    /// It was told just now.
    Told,
    /// It is not waited for any longer than this.
    Until(Time),
}

/// Counters of one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WorkerStats {
    /// Connections handed over.
    pub handed: u64,
    /// Connections acknowledged; for workers with activated sockets, those that were seen.
    pub taken: u64,
    /// Connections rejected or returned.
    pub returned: u64,
    /// Minor violations so far.
    pub violations: u32,
    /// Connections in flight.
    pub in_flight: usize,
    /// Open connections: reported by troop workers, seen where workers have activated sockets, for
    /// others estimated from their open descriptors, where a policy needs it.
    pub open: u32,
    /// The reported load, in the worker's own unit.
    pub load: u32,
    /// Connections that it served for a while and then gave to others, when it was to leave.
    pub moved: u64,
}

/// The status of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerStatus {
    /// Its process id.
    pub pid: u32,
    /// Its state.
    pub state: WorkerState,
    /// Whether its channel is open.
    pub connected: bool,
    /// Node's `exitedAfterDisconnect`; `None` until it is known.
    pub exited_after_disconnect: Option<bool>,
    /// Whether Node would still list it in `cluster.workers`.
    pub in_table: bool,
    /// Its slot: a small number, unique except for a successor that replaces it, and reused when it
    /// is gone.
    pub slot: u32,
    /// Its weight, for policies that use weights.
    pub weight: u32,
    /// Whether it reports its open connections; otherwise [`WorkerStats::open`] is an estimate, of
    /// which closed connections may still be a part.
    pub reports_open: bool,
    /// Its counters.
    pub stats: WorkerStats,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct InFlight {
    pub(super) seq: u64,
    pub(super) conn: ConnId,
    pub(super) listener: ListenerId,
    /// The connection, as the policy saw it.
    pub(super) about: Connection,
    pub(super) since: Time,
    /// Number of workers that it was dispatched to before and that did not take it.
    pub(super) tries: u8,
    pub(super) recalled: bool,
}

/// The descriptor that the next `NODE_HANDLE_ACK` of a worker acknowledges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
    /// A probe.
    Probe,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Worker {
    pid: u32,
    pub(super) slot: u32,
    pub(super) weight: u32,
    pub(super) state: WorkerState,
    /// The time at which it was first seen.
    pub(super) seen: Option<Time>,
    /// The time at which it first listened.
    pub(super) listening_since: Option<Time>,
    pub(super) connected: bool,
    pub(super) in_table: bool,
    pub(super) voluntary: Option<bool>,
    pub(super) told_to_leave: bool,
    /// Whether it closes idle connections gradually.
    pub(super) closes_slowly: bool,
    /// A postponed `disconnect`, with its drain spread: it is sent once the worker has read its
    /// connections.
    #[serde(with = "crate::snapshot::nested")]
    pub(super) disconnect_due: Option<Option<Duration>>,
    /// Whether troop's script in it moves idle connections when it is to leave.
    pub(super) moves_idle: bool,
    /// While idle connections move, before it is sent `disconnect`.
    pub(super) moving: Option<Moving>,
    /// Whether it was told to move connections.
    pub(super) moves_offered: bool,
    /// Number of connections that it may still offer to return although it is not to leave.
    pub(super) may_offer: u32,
    /// The stop signal that its program gets from troop's script, and within which time, once it has
    /// been told to leave.
    pub(super) stop: Option<(i32, Duration)>,
    /// The time of its last acknowledged connection.
    pub(super) last_taken: Time,
    /// Whether it has read what its clients sent, when it is to leave.
    #[serde(default)]
    pub(super) final_read: FinalRead,
    /// Whether it is held: it gets no connections of clients yet.
    pub(super) held: bool,
    pub(super) cut_off: bool,
    /// Whether it takes several connections per message.
    pub(super) batched: bool,
    /// Whether its channel is full.
    pub(super) blocked: bool,
    /// The number of a probe that was sent when another shell went on without the former one's word
    /// ([`Primary::recovered`](super::Primary::recovered)): acknowledgements before its answer are for
    /// what is not known any more.
    #[serde(default)]
    pub(super) resyncs_until: Option<u64>,
    pub(super) starved_until: Time,
    pub(super) violations: u32,
    pub(super) wasted_binds: WastedBinds,
    pub(super) in_flight: VecDeque<InFlight>,
    pub(super) handle_waits: VecDeque<HandleWait>,
    pub(super) liveness: Liveness,
    /// Its memberships, one per listener that it asked for.
    pub(super) memberships: Vec<ListenerMembership>,
    /// The listeners that it had when it was told to leave, whose connections it may give to others.
    pub(super) former_listeners: Vec<ListenerId>,
    /// Those of them that it has not closed since, with their keys.
    pub(super) unclosed: Vec<(ListenerId, String)>,
    /// Whether it has closed a server of its own accord, or lost one whose descriptor did not reach it.
    pub(super) has_closed: bool,
    pub(super) open: u32,
    pub(super) load: u32,
    /// Whether a report has not been passed to the policies yet.
    pub(super) report_pending: bool,
    /// Whether it reports its open connections.
    pub(super) reports: bool,
    /// Its minimum report interval, if it is a troop worker.
    pub(super) reports_every: Duration,
    /// Connections acknowledged since its descriptors were counted; some may be closed again.
    pub(super) uncounted: u32,
    /// The lowest number of descriptors that it was seen to have open.
    pub(super) descriptors: Option<u32>,
    pub(super) handed: u64,
    pub(super) taken: u64,
    pub(super) returned: u64,
    pub(super) moved: u64,
}

impl Worker {
    /// Notes that a handle is about to be written, so its acknowledgement follows those of all
    /// handles written before. Returns false if its acknowledgement is no longer awaited.
    #[inline]
    pub(super) fn wait_last(&mut self, wait: HandleWait) -> bool {
        if self.handle_waits.back() == Some(&wait) {
            return true;
        }
        let Some(at) = self.handle_waits.iter().position(|other| *other == wait) else {
            return false;
        };
        self.handle_waits.remove(at);
        self.handle_waits.push_back(wait);
        true
    }

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
            moves_idle: false,
            moving: None,
            moves_offered: false,
            may_offer: 0,
            stop: None,
            last_taken: Time(0),
            final_read: FinalRead::default(),
            held: false,
            cut_off: false,
            batched: false,
            blocked: false,
            resyncs_until: None,
            starved_until: Time(0),
            violations: 0,
            wasted_binds: WastedBinds::default(),
            in_flight: VecDeque::new(),
            handle_waits: VecDeque::new(),
            liveness: Liveness::default(),
            memberships: Vec::new(),
            former_listeners: Vec::new(),
            unclosed: Vec::new(),
            has_closed: false,
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
            moved: 0,
        }
    }

    /// Whether it can take connections of clients.
    pub(super) fn is_able(&self) -> bool {
        self.is_there() && !self.held
    }

    /// Whether it can take any connection.
    pub(super) fn is_there(&self) -> bool {
        self.connected && !self.told_to_leave && !self.cut_off
    }

    /// Whether it was told to leave, and may not have closed this listener yet.
    pub(super) fn may_accept(&self, id: ListenerId) -> bool {
        self.connected && self.unclosed.iter().any(|(unclosed, _)| *unclosed == id)
    }

    /// Returns the time at which its program has read from all its connections; `None` while some
    /// are in flight.
    pub(super) fn all_read_at(&self) -> Option<Time> {
        self.in_flight.is_empty().then(|| self.last_taken + FINAL_READ_DELAY)
    }

    /// Returns the time at which the idle connections of a Node worker that is to leave have moved or
    /// had the time to.
    pub(super) fn moved_at(&mut self, now: Time) -> Time {
        let Some(moving) = &mut self.moving else { return now };
        match *moving {
            Moving::Told => {
                let at = now + MOVE_TIMEOUT;
                *moving = Moving::Until(at);
                at
            }
            Moving::Until(at) => at,
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it listens on a listener.
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
            reports_open: self.reports,
            stats: WorkerStats {
                handed: self.handed,
                taken: self.taken,
                returned: self.returned,
                violations: self.violations,
                in_flight: self.in_flight.len(),
                open: self.open,
                load: self.load,
                moved: self.moved,
            },
        }
    }
}
