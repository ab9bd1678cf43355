//! The state machine of the primary: workers, listeners and connections in flight.
//!
//! Report each event by its method, then carry out the [`Action`]s in order until
//! [`Primary::next_action`] returns `None`. The behaviour follows Node's `cluster` (v20 to v25)
//! except where Node loses connections or crashes on a worker's input.

mod action;
mod admission;
mod auto;
mod bind;
mod budget;
mod config;
mod disconnect;
mod final_read;
mod handover;
mod lapsed;
mod listen_key;
mod listener;
mod liveness;
mod membership;
mod moves;
mod rebalance;
mod rebuilt;
mod recovered;
mod registry;
mod repairs;
mod reports;
mod scheduling;
mod steering;
mod totals;
mod unused;
mod worker;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

pub use crate::worker_state::WorkerState;
pub use action::Action;
pub use bind::{Bind, BindSpec, Offered};
pub use budget::Budget;
pub use config::{Config, Rebalanced};
pub use handover::Needs;
use lapsed::Lapsed;
pub(crate) use rebuilt::FormerPrimary;
pub use recovered::MAX_UNWRITTEN_FORKS;
pub use repairs::{RepairReport, Repairs};
pub use reports::DEFAULT_REPORT_INTERVAL;
pub use totals::{Times, Totals};
pub use unused::Successors;
use unused::Unused;
pub use worker::{WorkerStats, WorkerStatus};

use serde::{Deserialize, Serialize};

use crate::event::{ExitHow, Listening, Notice, Violation};
use crate::id::{ListenerId, Time, WorkerId};
use crate::wire::incoming::{Act, ClusterMessage, Incoming, TroopMessage};
use crate::wire::outgoing;
use crate::worker_map::WorkerMap;
use listen_key::ListenKey;
use listener::Listener;
use rebalance::Rebalance;
use worker::{HandleWait, Worker};

/// The default weight of a worker.
pub const DEFAULT_WEIGHT: u32 = 100;

/// The state of one cluster's primary.
#[derive(Debug, Serialize, Deserialize)]
pub struct Primary {
    config: Config,
    budget: Budget,
    /// Whether descriptors are scarce: connections wait in the kernel unless a worker takes them at
    /// once.
    tight: bool,
    workers: WorkerMap<Worker>,
    listeners: BTreeMap<ListenerId, Listener>,
    #[serde(with = "crate::snapshot::pairs")]
    keys: BTreeMap<ListenKey, ListenerId>,
    /// Listeners without workers that are kept open for a successor.
    unused: BTreeMap<ListenerId, Unused>,
    /// Listeners that closed without waiting for a successor.
    lapsed: BTreeMap<ListenerId, Lapsed>,
    /// Whether the cluster ends, so that no successors are expected.
    is_ending: bool,
    /// Whether workers are supervised ([`Primary::set_supervised`]).
    supervised: bool,
    actions: VecDeque<Action>,
    /// Actions that follow all others: [`Action::Sample`] and [`Action::Open`].
    last_actions: VecDeque<Action>,
    /// Number of the next message to any worker (Node uses one counter for all).
    seq: u64,
    /// Answers to messages with lower numbers are ignored: a shell that was killed has sent them.
    #[serde(default)]
    forgotten: u64,
    /// Workers whose reports have not been passed to the policies yet.
    reported: Vec<WorkerId>,
    /// Memory for the workers whose descriptors are to be counted.
    #[serde(skip)]
    counted: Vec<WorkerId>,
    /// The number of workers at the last adjustment of the report intervals.
    crowd: u32,
    last_worker: u32,
    last_listener: u32,
    next_tick: Option<Time>,
    last_time: Time,
    rebalance: Rebalance,
    /// What workers had done that have ended, and the times of all hand-overs.
    #[serde(default)]
    former: Totals,
}

impl Primary {
    /// Creates a primary without workers.
    #[must_use]
    pub fn new(config: Config) -> Primary {
        Primary {
            config,
            budget: Budget::default(),
            tight: false,
            workers: WorkerMap::default(),
            listeners: BTreeMap::new(),
            keys: BTreeMap::new(),
            unused: BTreeMap::new(),
            lapsed: BTreeMap::new(),
            is_ending: false,
            supervised: false,
            actions: VecDeque::new(),
            last_actions: VecDeque::new(),
            seq: 0,
            forgotten: 0,
            reported: Vec::new(),
            counted: Vec::new(),
            crowd: 1,
            last_worker: 0,
            last_listener: 0,
            next_tick: None,
            last_time: Time(0),
            rebalance: Rebalance::default(),
            former: Totals::default(),
        }
    }

    /// Returns the next action.
    pub fn next_action(&mut self) -> Option<Action> {
        while let Some(action) = self.actions.pop_front() {
            if self.is_current(&action) {
                return Some(action);
            }
        }
        // Clearing moves the queue to the beginning of its memory, which is in the processor's cache.
        self.actions.clear();
        self.last_actions.pop_front()
    }

    /// Returns the time at which [`Primary::tick`] must be called, if any.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        self.next_tick
    }

    // ---- workers ----

    /// Returns the id of a worker to fork. Ids start at 1; a failed fork uses up its id.
    pub fn fork(&mut self) -> WorkerId {
        self.last_worker += 1;
        WorkerId(self.last_worker)
    }

    /// Reserves an id that the embedding program has chosen. Returns false if it is used already.
    pub fn name(&mut self, worker: WorkerId) -> bool {
        let fresh = worker.0 > self.last_worker;
        self.last_worker = self.last_worker.max(worker.0);
        fresh
    }

    /// Handles a started process. Without a slot it gets the lowest free one.
    pub fn spawned(&mut self, worker: WorkerId, pid: u32, slot: Option<u32>, weight: u32) {
        let slot = slot.unwrap_or_else(|| {
            let taken: std::collections::BTreeSet<u32> =
                self.workers.values().map(|state| state.slot).collect();
            (0..).find(|slot| !taken.contains(slot)).unwrap_or(0)
        });
        self.workers.insert(worker, Worker::new(pid, slot, weight));
        self.notify(Notice::Forked { worker, pid });
        self.pace_all_reports();
    }

    /// Returns the status of a worker whose process has not been reaped.
    #[must_use]
    pub fn status(&self, worker: WorkerId) -> Option<WorkerStatus> {
        self.workers.get(&worker).map(Worker::status)
    }

    /// Returns all workers whose processes have not been reaped.
    pub fn workers(&self) -> impl Iterator<Item = (WorkerId, WorkerStatus)> {
        self.workers.iter().map(|(id, worker)| (*id, worker.status()))
    }

    /// Handles a message of a worker.
    ///
    /// User messages are ignored here; the shell handles them.
    pub fn message(&mut self, now: Time, worker: WorkerId, message: Incoming<'_>) {
        self.clock(now);
        let result = match message {
            Incoming::Answer { ack, accepted } => self.answered(now, worker, ack, accepted),
            Incoming::HandleAck => self.handle_acked(now, worker, true),
            Incoming::HandleNack => self.handle_acked(now, worker, false),
            Incoming::Cluster(message) => self.cluster_message(now, worker, &message),
            Incoming::Troop(TroopMessage::Taken { taken, returned, open }) => {
                let result = self.taken(now, worker, &taken, &returned);
                if open.is_some() {
                    self.reported(worker, open, None);
                }
                result
            }
            Incoming::Troop(TroopMessage::Load { open, load }) => {
                self.reported(worker, open, load);
                Ok(())
            }
            Incoming::Troop(TroopMessage::Moves) => {
                self.can_move_idle(worker);
                Ok(())
            }
            Incoming::Troop(TroopMessage::Counted { key, open }) => {
                self.counted_connections(now, worker, &key, open);
                Ok(())
            }
            Incoming::Troop(TroopMessage::Moved) => {
                self.idle_moved(now, worker);
                Ok(())
            }
            Incoming::Troop(TroopMessage::Limited { key }) => {
                self.limited(now, worker, &key);
                Ok(())
            }
            Incoming::Troop(TroopMessage::Raises) => {
                self.raises(worker);
                Ok(())
            }
            _ => Ok(()),
        };
        if let Err(violation) = result {
            self.violated(worker, violation);
        }
    }

    fn cluster_message(
        &mut self,
        now: Time,
        worker: WorkerId,
        message: &ClusterMessage<'_>,
    ) -> Result<(), Violation> {
        let mut result = Ok(());
        if let (Some(ack), Some(accepted)) = (message.ack, message.accepted) {
            // As in Node, an `act` in the same message is handled too.
            result = u64::try_from(ack)
                .map_err(|_| Violation::UnaskedAck)
                .and_then(|ack| self.answered(now, worker, ack, accepted));
        } else if let Some(ack) = message.ack.and_then(|ack| u64::try_from(ack).ok()) {
            // As in Node, a reply without `accepted` is a rejection, and unknown acknowledgements
            // are ignored.
            if self.in_flight_with(worker, ack) {
                self.answered(now, worker, ack, false)?;
            }
        }
        let Some(state) = self.workers.get_mut(&worker) else { return result };
        match message.act {
            Some(Act::Online) => {
                state.state = WorkerState::Online;
                state.seen.get_or_insert(now);
                state.batched = message.troop.is_some_and(|version| version >= 1);
                self.notify(Notice::Online { worker });
            }
            Some(Act::QueryServer) => self.query(worker, message)?,
            Some(Act::Listening) => {
                let Some(address_type) = message.address_type else {
                    return Err(Violation::Malformed("listening without addressType".into()));
                };
                if message
                    .address
                    .as_deref()
                    .is_some_and(|address| listen_key::is_too_long(address, address_type))
                {
                    return Err(Violation::Malformed(
                        "listening at an address longer than any can be".into(),
                    ));
                }
                state.state = WorkerState::Listening;
                state.listening_since.get_or_insert(now);
                let at = Listening {
                    address: message.address.as_deref().map(str::to_owned),
                    port: message.port,
                    address_type,
                    fd: message.fd,
                };
                self.listens(now, worker, &at);
                self.schedule_probe(now);
                self.notify(Notice::Listening { worker, at });
            }
            Some(Act::Close) => {
                if let Some(key) = message.key.as_deref() {
                    self.server_closed(worker, key);
                }
            }
            Some(Act::ExitedAfterDisconnect) => {
                let Some(ack) = message.seq else {
                    return Err(Violation::Malformed("exitedAfterDisconnect without seq".into()));
                };
                state.voluntary = Some(true);
                let seq = self.next_seq();
                self.send(worker, |line| outgoing::ack(line, ack, seq));
            }
            Some(Act::Newconn | Act::Disconnect | Act::Unknown) | None => {}
        }
        result
    }

    /// Handles the end of a worker's channel; all of its messages must have been passed to
    /// [`Primary::message`] before. Its connections in flight are re-dispatched: at once if the
    /// worker closed the channel, and after the end of its process if the primary did, because the
    /// worker may still read what is in the channel.
    pub fn channel_closed(&mut self, now: Time, worker: WorkerId, by_worker: bool) {
        self.clock(now);
        let Some(state) = self.workers.get_mut(&worker) else { return };
        if !std::mem::replace(&mut state.connected, false) {
            return;
        }
        state.state = WorkerState::Disconnected;
        let voluntary = *state.voluntary.get_or_insert(false);
        let waits: Vec<_> = state.handle_waits.drain(..).collect();
        for wait in waits {
            if let HandleWait::User { ticket } = wait {
                self.actions.push_back(Action::HandleSettled { worker, ticket, delivered: false });
            }
        }
        self.leave_listeners(worker, (self.supervised || !voluntary) && self.config.keep_listeners);
        if by_worker {
            self.reclaim(worker);
        }
        self.notify(Notice::Disconnected { worker, voluntary });
    }

    /// Handles the end of a worker's process. Call [`Primary::channel_closed`] before.
    pub fn exited(&mut self, now: Time, worker: WorkerId, how: ExitHow) {
        self.channel_closed(now, worker, true);
        self.reclaim(worker);
        if let Some(state) = self.workers.remove(&worker) {
            self.note_former(&state);
            self.notify(Notice::Exited {
                worker,
                how,
                voluntary: state.voluntary.unwrap_or(false),
            });
            self.pace_all_reports();
        }
    }

    /// Handles a violation. Fatal violations, and too many minor ones, end the worker.
    pub fn violated(&mut self, worker: WorkerId, violation: Violation) {
        let Some(state) = self.workers.get_mut(&worker) else { return };
        if state.cut_off {
            return;
        }
        state.violations += 1;
        let cut_off = violation.is_fatal() || state.violations > self.config.max_violations;
        // Report the first, the second, the fourth and so on.
        let report = state.violations.is_power_of_two();
        if cut_off {
            // Kill it rather than disconnect it: descriptors in its channel must be out of its
            // reach before its connections are re-dispatched.
            state.cut_off = true;
            state.in_table = false;
            // Excessive listeners are not kept for a successor.
            let is_greedy =
                matches!(violation, Violation::TooManyListeners(_) | Violation::OverShare(_));
            let keep = self.config.keep_listeners && !is_greedy;
            self.leave_listeners(worker, keep);
            let hung = matches!(violation, Violation::Hung(_) | Violation::Silent(_));
            self.actions.push_back(Action::Kill { worker, hung });
        }
        if cut_off || report {
            self.notify(Notice::Misbehaved { worker, violation, cut_off });
        }
    }

    /// Whether messages of the worker are ignored, because it was cut off.
    #[must_use]
    pub fn is_cut_off(&self, worker: WorkerId) -> bool {
        self.workers.get(&worker).is_none_or(|state| state.cut_off)
    }

    /// Whether a worker was cut off whose process has not ended yet.
    pub(crate) fn has_cut_off(&self) -> bool {
        self.workers.values().any(|state| state.cut_off)
    }

    // ---- handles of the program ----

    /// Records that the shell has written a user handle to the worker's channel. The
    /// acknowledgement is reported by [`Action::HandleSettled`].
    pub fn user_handle_sent(&mut self, worker: WorkerId, ticket: u64) {
        match self.workers.get_mut(&worker) {
            Some(state) if state.connected => {
                state.handle_waits.push_back(HandleWait::User { ticket })
            }
            _ => self.actions.push_back(Action::HandleSettled { worker, ticket, delivered: false }),
        }
    }

    fn handle_acked(
        &mut self,
        now: Time,
        worker: WorkerId,
        arrived: bool,
    ) -> Result<(), Violation> {
        let Some(state) = self.workers.get_mut(&worker) else { return Ok(()) };
        if state.resyncs_until.is_some() {
            // Which descriptor it is about is not known.
            return Ok(());
        }
        let wait = state.handle_waits.pop_front();
        if state.handle_waits.is_empty() {
            // Clearing reuses the same memory, as for the actions.
            state.handle_waits.clear();
        }
        match wait {
            None => return Err(Violation::UnaskedAck),
            Some(HandleWait::Conn { .. }) if arrived => {}
            Some(HandleWait::Conn { seq }) => {
                state.starved_until = now + worker::NO_DESCRIPTOR_PAUSE;
                self.wake_at(now + worker::NO_DESCRIPTOR_PAUSE);
                self.refresh_all(now, worker);
                self.refused(now, worker, seq);
            }
            Some(HandleWait::Listener { .. }) if arrived => {}
            // The worker has dropped the reply together with its descriptor. Without another reply
            // its `listen` would hang.
            Some(HandleWait::Listener { ack, listener }) => {
                self.listener_lost(worker, listener, ack)
            }
            Some(HandleWait::Probe) => self.probe_answered(now, worker, arrived),
            Some(HandleWait::User { ticket }) => {
                self.actions.push_back(Action::HandleSettled {
                    worker,
                    ticket,
                    delivered: arrived,
                });
            }
        }
        Ok(())
    }

    // ---- time ----

    /// Advances the time. Call at [`Primary::next_deadline`] or more often.
    pub fn tick(&mut self, now: Time) {
        self.clock(now);
        self.apply_reports(now);
        self.next_tick = None;
        let mut hung = Vec::new();
        let mut recalls = Vec::new();
        let mut unsettled = Vec::new();
        let mut next: Option<Time> = None;
        let mut wake = |at: Time| next = Some(next.map_or(at, |n| n.min(at)));
        for (id, state) in self.workers.iter_mut() {
            if state.starved_until > now {
                wake(state.starved_until);
            }
            for membership in
                state.memberships.iter().filter(|membership| membership.cooling_until > now)
            {
                wake(membership.cooling_until);
            }
            if !state
                .memberships
                .iter()
                .all(|membership| membership.shown.is_some_and(|view| view.ready))
                || !state.in_flight.is_empty()
            {
                unsettled.push(*id);
            }
            let Some(oldest) = state.in_flight.front().map(|c| c.since).filter(|_| !state.cut_off)
            else {
                continue;
            };
            wake(now + handover::CHECK_INTERVAL);
            if self.config.hang_timeout.is_some_and(|limit| now.since(oldest) >= limit) {
                hung.push((*id, now.since(oldest)));
            } else if state.batched {
                let due: Vec<u64> = state
                    .in_flight
                    .iter_mut()
                    .take_while(|c| now.since(c.since) >= self.config.recall_after)
                    .filter_map(|c| (!std::mem::replace(&mut c.recalled, true)).then_some(c.seq))
                    .collect();
                if !due.is_empty() {
                    recalls.push((*id, due));
                }
            }
        }
        if let Some(at) = next {
            self.wake_at(at);
        }
        for (worker, age) in hung {
            self.violated(
                worker,
                Violation::Hung(u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
            );
        }
        for (worker, seqs) in recalls {
            // From a single worker too: its reply shows that it is alive.
            self.send(worker, |line| outgoing::recall(line, &seqs));
        }
        // A pause is over, or a connection has been in flight for too long.
        for worker in unsettled {
            self.refresh_and_pump(now, worker);
        }
        if let Some(at) = self.send_due_disconnects(now) {
            self.wake_at(at);
        }
        if let Some(at) = self.measure(now) {
            self.wake_at(at);
        }
        if let Some(at) = self.continue_rebalance(now) {
            self.wake_at(at);
        }
        if let Some(at) = self.probe_silent_workers(now) {
            self.wake_at(at);
        }
    }

    /// Detects a gap in time, in which the primary was stopped and no worker could reply, so that
    /// workers do not look hung.
    fn clock(&mut self, now: Time) {
        const STOPPED_GAP: Duration = Duration::from_secs(5);
        if now.since(self.last_time) > STOPPED_GAP
            && self.next_tick.is_some_and(|due| now.since(due) > STOPPED_GAP)
        {
            for state in self.workers.values_mut() {
                state.in_flight.iter_mut().for_each(|c| c.since = now);
                state.liveness.restart_measurement(now);
            }
            self.listeners
                .values_mut()
                .filter_map(|l| l.group.as_mut())
                .for_each(|group| group.restart_measurement(now));
        }
        self.last_time = self.last_time.max(now);
    }

    fn wake_at(&mut self, at: Time) {
        self.next_tick = Some(self.next_tick.map_or(at, |due| due.min(at)));
    }
}
