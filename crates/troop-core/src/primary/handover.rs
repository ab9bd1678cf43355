//! The hand-over of connections: waiting, in flight, acknowledged, rejected, re-dispatched.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::listener::Listener;
use super::membership::QueuedConnection;
use super::worker::{HandleWait, InFlight, Worker};
use super::{Action, Primary};
use crate::event::Violation;
use crate::id::{ConnId, ListenerId, Time, WorkerId};
use crate::policy::{Connection, Mixer, Policy};
use crate::wire::incoming::Numbers;

/// Interval between checks of the age of connections in flight.
pub(super) const CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// A worker's descriptors are counted again after this many acknowledged connections plus one per
/// this many open ones, for policies that choose by load.
const RECOUNT_AFTER: u32 = 4;

/// Maximum number of workers that a connection is dispatched to. After that it is closed.
const MAX_TRIES: u8 = 8;

/// What the shell must find out about a connection before [`Primary::accepted`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Needs {
    /// [`Connection::peer`].
    pub peer: bool,
    /// [`Connection::client`], from the first bytes, by the rules of [`Primary::sticky`].
    pub bytes: bool,
    /// [`Connection::client`], from the embedding program ([`Primary::callback`]).
    pub answer: bool,
}

impl Primary {
    /// Whether the shell should accept another connection: a worker is ready for it, or the queue
    /// has room.
    #[must_use]
    pub fn wants_connection(&self, listener: ListenerId) -> bool {
        self.listeners
            .get(&listener)
            .is_some_and(|l| l.queue.len() + l.reserved < l.limit(&self.config, self.tight))
    }

    /// Handles an accepted connection: dispatches it to a worker or queues it.
    pub fn accepted(&mut self, now: Time, id: ListenerId, conn: ConnId, mut about: Connection) {
        self.clock(now);
        self.apply_reports(now);
        match self.listeners.get_mut(&id) {
            Some(listener) => {
                if let (None, Some(sticky), Some(peer)) =
                    (about.client, listener.scheduling.sticky(), about.peer)
                {
                    about.client = Some(
                        Mixer::default()
                            .address(peer.ip(), sticky.prefix4, sticky.prefix6)
                            .finish(),
                    );
                }
                listener.queue.push_back(QueuedConnection { conn, about, tries: 0 });
                self.pump(now, id);
            }
            None => self.actions.push_back(Action::Release { conn, taken: false }),
        }
    }

    /// Injects a connection of the shell: dispatches it to this worker, as if one of its listeners
    /// had accepted it, whatever the policy says. It is never re-dispatched; if the worker does not
    /// take it, it is closed ([`Action::Release`]). Returns false if the worker cannot take it now.
    pub fn inject(&mut self, now: Time, worker: WorkerId, id: ListenerId, conn: ConnId) -> bool {
        self.clock(now);
        let Some(state) = self.workers.get(&worker) else { return false };
        let listens = state.membership(id).is_some_and(|membership| membership.admitted);
        let is_blocked = state.blocked || state.resyncs_until.is_some();
        if !state.is_there() || is_blocked || !listens || !self.listeners.contains_key(&id) {
            return false;
        }
        self.deliver(
            now,
            worker,
            id,
            QueuedConnection { conn, about: Connection::default(), tries: MAX_TRIES },
        );
        true
    }

    /// Returns the listeners that a worker takes connections of, the oldest first.
    pub fn listens_on(&self, worker: WorkerId) -> impl Iterator<Item = ListenerId> {
        let memberships =
            self.workers.get(&worker).into_iter().flat_map(|state| state.memberships.iter());
        memberships.filter(|membership| membership.admitted).map(|membership| membership.listener)
    }

    /// Dispatches waiting connections, the oldest first.
    pub(super) fn pump(&mut self, now: Time, id: ListenerId) {
        // A policy that picks a worker which it does not know to be not ready is updated and called
        // again, a bounded number of times.
        let mut corrections = 0;
        loop {
            let Some(listener) = self.listeners.get_mut(&id) else { return };
            let Some(policy) = &mut listener.policy else { return };
            let Some(waiting) = listener.queue.front() else { return };
            let Some(worker) = policy.pick(&waiting.about) else { return };
            let Some(state) = self.workers.get_mut(&worker) else { return };
            let Some(membership) = state.membership(id) else { return };
            let Some(shown) = membership.shown else { return };
            let view =
                state.view(now, (&self.config, self.tight), worker, membership, listener.by_counts);
            let is_ready = view.is_some_and(|view| view.ready);
            if shown.ready && !is_ready {
                corrections += 1;
                if corrections > self.workers.len() {
                    return;
                }
                self.refresh(now, worker, id);
                continue;
            }
            let Some(waiting) = listener.queue.pop_front() else { return };
            if listener.queue.is_empty() {
                listener.queue.clear();
            }
            let behind_others = !membership.reserved.is_empty();
            if is_ready && !behind_others {
                self.deliver(now, worker, id, waiting);
            } else {
                // The policy knows that the connection must wait for this worker.
                listener.reserved += 1;
                if let Some(membership) = state.membership_mut(id) {
                    membership.reserved.push_back(waiting);
                }
                self.deliver_reserved(now, worker, id);
            }
        }
    }

    /// Dispatches the connections that wait for this worker, while it is ready.
    fn deliver_reserved(&mut self, now: Time, worker: WorkerId, id: ListenerId) {
        loop {
            let (Some(state), Some(listener)) =
                (self.workers.get_mut(&worker), self.listeners.get_mut(&id))
            else {
                return;
            };
            let view = state.membership(id).and_then(|membership| {
                state.view(now, (&self.config, self.tight), worker, membership, listener.by_counts)
            });
            let is_ready = view.is_some_and(|view| view.ready);
            let waiting = if is_ready {
                state.membership_mut(id).and_then(|membership| membership.reserved.pop_front())
            } else {
                None
            };
            let Some(waiting) = waiting else { return };
            listener.reserved -= 1;
            self.deliver(now, worker, id, waiting);
        }
    }

    pub(super) fn deliver(
        &mut self,
        now: Time,
        worker: WorkerId,
        id: ListenerId,
        QueuedConnection { conn, about, tries }: QueuedConnection,
    ) {
        let Some(state) = self.workers.get_mut(&worker) else { return };
        let seq = self.seq;
        self.seq += 1;
        state.handed += 1;
        state.in_flight.push_back(InFlight {
            seq,
            conn,
            listener: id,
            about,
            since: now,
            tries,
            recalled: false,
        });
        if !state.batched {
            state.handle_waits.push_back(HandleWait::Conn { seq });
        }
        self.actions.push_back(Action::Deliver {
            worker,
            listener: id,
            conn,
            seq,
            batched: state.batched,
        });
        self.wake_at(now + CHECK_INTERVAL);
        self.rebalance_soon(now);
        self.refresh_all(now, worker);
    }

    /// Updates the policy of a listener after a worker has changed.
    fn refresh(&mut self, now: Time, worker: WorkerId, id: ListenerId) {
        let memberships = self.workers.get(&worker).map(|state| state.memberships.iter());
        if let Some(at) = memberships.and_then(|mut memberships| {
            memberships.position(|membership| membership.listener == id)
        }) {
            self.refresh_membership(now, worker, at);
        }
    }

    fn refresh_membership(&mut self, now: Time, worker: WorkerId, at: usize) {
        let Primary { config, tight, workers, listeners, .. } = self;
        let Some(state) = workers.get_mut(&worker) else { return };
        let Some(membership) = state.memberships.get(at) else { return };
        let Some(listener) = listeners.get_mut(&membership.listener) else { return };
        let view = state.view(now, (config, *tight), worker, membership, listener.by_counts);
        let Listener { policy: Some(policy), needs_counts, queue, reserved, .. } = listener else {
            return;
        };
        let membership = &mut state.memberships[at];
        match (membership.shown, view) {
            (Some(before), Some(view)) => {
                let same = before.ready == view.ready
                    && before.weight == view.weight
                    && before.state == view.state
                    && before.shard == view.shard
                    && (!*needs_counts || before == view);
                if same {
                    return;
                }
                if before.shard != view.shard {
                    // A worker must not be in two shards.
                    policy.remove(worker);
                }
                policy.update(view);
            }
            (None, Some(view)) => policy.update(view),
            (Some(_), None) => {
                policy.remove(worker);
                // Requeue connections reserved for a worker that left service.
                *reserved -= membership.reserved.len();
                for waiting in membership.reserved.drain(..).rev() {
                    queue.push_front(waiting);
                }
            }
            (None, None) => {}
        }
        membership.shown = view;
    }

    /// Updates all policies after a worker has changed.
    pub(super) fn refresh_all(&mut self, now: Time, worker: WorkerId) {
        for at in 0..self.workers.get(&worker).map_or(0, |state| state.memberships.len()) {
            self.refresh_membership(now, worker, at);
        }
    }

    /// Updates all policies after a worker has changed, and dispatches waiting connections.
    pub(super) fn refresh_and_pump(&mut self, now: Time, worker: WorkerId) {
        let mut at = 0;
        while let Some(id) = self
            .workers
            .get(&worker)
            .and_then(|state| state.memberships.get(at))
            .map(|membership| membership.listener)
        {
            self.refresh_membership(now, worker, at);
            let (reserved, waiting) = self
                .listeners
                .get(&id)
                .map_or((false, false), |l| (l.reserved > 0, !l.queue.is_empty()));
            if reserved {
                self.deliver_reserved(now, worker, id);
            }
            if waiting || reserved {
                self.pump(now, id);
            }
            at += 1;
        }
    }

    /// Sets whether the channel to a worker is full. A worker whose channel is full gets no
    /// connections.
    pub fn set_blocked(&mut self, now: Time, worker: WorkerId, blocked: bool) {
        let Some(state) = self.workers.get_mut(&worker) else { return };
        if std::mem::replace(&mut state.blocked, blocked) != blocked {
            self.refresh_and_pump(now, worker);
        }
    }

    /// Returns the connections in flight to a worker.
    pub fn in_flight(&self, worker: WorkerId) -> impl Iterator<Item = (u64, ConnId)> {
        self.workers
            .get(&worker)
            .into_iter()
            .flat_map(|state| state.in_flight.iter().map(|c| (c.seq, c.conn)))
    }

    pub(super) fn in_flight_with(&self, worker: WorkerId, seq: u64) -> bool {
        self.in_flight(worker).any(|(s, _)| s == seq)
    }

    /// Handles a worker's reply to `newconn`.
    pub(super) fn answered(
        &mut self,
        now: Time,
        worker: WorkerId,
        seq: u64,
        accepted: bool,
    ) -> Result<(), Violation> {
        if !accepted {
            return if self.in_flight_with(worker, seq) {
                self.note_limit(now, worker, seq);
                self.refused(now, worker, seq);
                Ok(())
            } else if self.is_probe_reply(now, worker, seq)
                || self.ends_resync(now, worker, seq)
                || seq < self.forgotten
            {
                Ok(())
            } else {
                Err(Violation::UnaskedAck)
            };
        }
        self.took(worker, seq)?;
        // Its window is shared by all its listeners.
        self.refresh_and_pump(now, worker);
        Ok(())
    }

    /// Handles a troop worker's reply to several connections.
    pub(super) fn taken(
        &mut self,
        now: Time,
        worker: WorkerId,
        taken: &Numbers<'_>,
        returned: &Numbers<'_>,
    ) -> Result<(), Violation> {
        let mut result = Ok(());
        for seq in taken.iter() {
            // An invalid number does not invalidate the others.
            result = result.and(self.took(worker, seq));
        }
        self.refresh_and_pump(now, worker);
        for seq in returned.iter() {
            result = result.and(self.answered(now, worker, seq, false));
        }
        result
    }

    /// Handles an acknowledged connection. The caller dispatches what its window has room for.
    fn took(&mut self, worker: WorkerId, seq: u64) -> Result<(), Violation> {
        let now = self.last_time;
        let state = self.workers.get_mut(&worker).ok_or(Violation::UnaskedAck)?;
        let InFlight { conn, listener, since, .. } = match state.take(seq) {
            Some(taken) => taken,
            None if seq < self.forgotten => return Ok(()),
            None => return Err(Violation::UnaskedAck),
        };
        if let Some(at) = state
            .handle_waits
            .iter()
            .position(|w| matches!(w, HandleWait::Conn { seq: s } if *s == seq))
        {
            // A worker with the connection has its descriptor, even if it does not acknowledge
            // that.
            state.handle_waits.remove(at);
        }
        state.taken += 1;
        state.last_taken = now;
        if state.reports || state.descriptors.is_some() {
            // An estimate until the next count or report. Not estimated where neither follows.
            state.open = state.open.saturating_add(1);
        }
        if let Some(membership) = state.membership_mut(listener) {
            membership.accepted();
            membership.share.accepted(&mut self.rebalance);
        }
        self.actions.push_back(Action::Release { conn, taken: true });
        self.former.handover.add(now.since(since));
        if !state.reports {
            state.uncounted += 1;
            let needed = self.listeners.get(&listener).is_some_and(|l| l.needs_counts);
            if needed && state.uncounted > RECOUNT_AFTER + state.open / RECOUNT_AFTER {
                state.uncounted = 0;
                self.actions.push_back(Action::Count { worker });
            }
        }
        Ok(())
    }

    /// Requeues a connection that a worker did not take.
    fn put_back(&mut self, id: ListenerId, waiting: QueuedConnection) -> bool {
        match self.listeners.get_mut(&id) {
            // Injected connections and those at the limit of tries are not requeued.
            Some(listener) if waiting.tries < MAX_TRIES => {
                listener.queue.push_front(waiting);
                true
            }
            _ => {
                self.actions.push_back(Action::Release { conn: waiting.conn, taken: false });
                false
            }
        }
    }

    /// Handles a rejected connection, or one that the worker could not receive: re-dispatches it,
    /// and pauses the worker for a growing time.
    pub(super) fn refused(&mut self, now: Time, worker: WorkerId, seq: u64) {
        let Some(state) = self.workers.get_mut(&worker) else { return };
        let Some(InFlight { conn, listener: id, about, tries, .. }) = state.take(seq) else {
            return;
        };
        state.returned += 1;
        if let Some(membership) = state.membership_mut(id) {
            membership.refused(now);
            membership.share.refused();
            let until = membership.cooling_until;
            self.wake_at(until);
        }
        self.put_back(id, QueuedConnection { conn, about, tries });
        // Its window has room now, which its other listeners may use.
        self.refresh_and_pump(now, worker);
        self.pump(now, id);
    }

    /// Handles a connection that the shell could not write to the worker's channel, because it is
    /// full or closed, or the kernel rejected the descriptor.
    pub fn undelivered(&mut self, now: Time, worker: WorkerId, seq: u64) {
        let Some(state) = self.workers.get_mut(&worker) else { return };
        state.handle_waits.retain(|wait| !matches!(wait, HandleWait::Conn { seq: s } if *s == seq));
        if !state.blocked {
            self.refused(now, worker, seq);
            return;
        }
        // Not the worker's fault, so it is not paused.
        self.withdraw(now, worker, seq);
    }

    /// Dispatches a connection again that the worker was not sent.
    pub(super) fn withdraw(&mut self, now: Time, worker: WorkerId, seq: u64) {
        let Some(state) = self.workers.get_mut(&worker) else { return };
        let Some(InFlight { conn, listener: id, about, tries, .. }) = state.take(seq) else {
            return;
        };
        state.handed -= 1;
        // What is counted since the start never decreases.
        self.former.handed += 1;
        self.refresh_all(now, worker);
        if self.put_back(id, QueuedConnection { conn, about, tries }) {
            self.pump(now, id);
        }
    }

    /// Handles a connection from which a worker has read, so that it must not be re-dispatched.
    pub fn consumed(&mut self, worker: WorkerId, seq: u64) {
        if let Some(InFlight { conn, .. }) =
            self.workers.get_mut(&worker).and_then(|state| state.take(seq))
        {
            self.actions.push_back(Action::Release { conn, taken: false });
        }
    }

    /// Requeues all connections in flight to a worker, at the front of the queues.
    pub(super) fn reclaim(&mut self, worker: WorkerId) {
        let Some(state) = self.workers.get_mut(&worker) else { return };
        let in_flight = std::mem::take(&mut state.in_flight);
        let mut touched = Vec::new();
        for InFlight { conn, listener: id, about, tries, .. } in in_flight.into_iter().rev() {
            if tries.saturating_add(1) >= MAX_TRIES {
                self.actions.push_back(Action::Release { conn, taken: false });
            } else if self.put_back(id, QueuedConnection { conn, about, tries: tries + 1 })
                && !touched.contains(&id)
            {
                touched.push(id);
            }
        }
        let now = self.last_time;
        for listener in touched {
            self.pump(now, listener);
        }
    }
}

impl Worker {
    /// Workers reply nearly in order, so the search is short.
    fn take(&mut self, seq: u64) -> Option<InFlight> {
        let at = self.in_flight.iter().position(|c| c.seq == seq)?;
        let taken = self.in_flight.remove(at);
        if self.in_flight.is_empty() {
            // Clearing reuses the same memory, as for the actions.
            self.in_flight.clear();
        }
        taken
    }
}
