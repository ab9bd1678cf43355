//! Connections between the accept and the worker that takes them: in flight, refused, reclaimed,
//! waiting.

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

/// How often connections in flight are checked for age.
pub(super) const CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// After so many connections that a worker has taken, and this part of those that it has open, its
/// descriptors are counted anew, for policies that go by them.
const RECOUNT_AFTER: u32 = 4;

/// After this many workers died with the same unanswered connection, or lost it, it is closed
/// instead of given to one more.
const MAX_TRIES: u8 = 8;

/// What a listener's connections have to be looked at for before they come to
/// [`Primary::accepted`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Needs {
    /// [`Connection::peer`].
    pub peer: bool,
    /// [`Connection::client`], from the first bytes, by the rules of [`Primary::sticky`].
    pub bytes: bool,
    /// [`Connection::client`], from the program: see [`Primary::callback`].
    pub answer: bool,
}

impl Primary {
    /// Whether the shell should accept one more connection: a worker is ready for it, or it may
    /// wait here.
    #[must_use]
    pub fn wants_connection(&self, listener: ListenerId) -> bool {
        self.listeners
            .get(&listener)
            .is_some_and(|l| l.queue.len() + l.reserved < l.limit(&self.config, self.tight))
    }

    /// A connection was accepted. It is handed to a worker, or waits.
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

    /// Gives one worker a connection of the shell's own, as if it had come from one of its
    /// listeners, whatever the policy says. It is never given to another one: who does not take it
    /// loses it ([`Action::Release`]). False if the worker cannot have it now.
    pub fn inject(&mut self, now: Time, worker: WorkerId, id: ListenerId, conn: ConnId) -> bool {
        self.clock(now);
        let Some(state) = self.workers.get(&worker) else { return false };
        let listens = state.membership(id).is_some_and(|membership| membership.admitted);
        if !state.is_there() || state.blocked || !listens || !self.listeners.contains_key(&id) {
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

    /// The listeners that a worker takes connections of, the oldest first.
    pub fn listens_on(&self, worker: WorkerId) -> impl Iterator<Item = ListenerId> {
        let memberships =
            self.workers.get(&worker).into_iter().flat_map(|state| state.memberships.iter());
        memberships.filter(|membership| membership.admitted).map(|membership| membership.listener)
    }

    /// Gives waiting connections to workers, oldest first.
    pub(super) fn pump(&mut self, now: Time, id: ListenerId) {
        // A policy that answers with workers that are not ready without knowing it is corrected,
        // but not for ever.
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
                // The policy knows that it has to wait for this one.
                listener.reserved += 1;
                if let Some(membership) = state.membership_mut(id) {
                    membership.reserved.push_back(waiting);
                }
                self.deliver_reserved(now, worker, id);
            }
        }
    }

    /// Gives a worker the connections that only it is meant to have, as far as it is ready for
    /// them.
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

    fn deliver(
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
        self.refresh_all(now, worker);
    }

    /// Shows the policy of a listener what has changed about a worker.
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
                    // Nobody is in two places.
                    policy.remove(worker);
                }
                policy.update(view);
            }
            (None, Some(view)) => policy.update(view),
            (Some(_), None) => {
                policy.remove(worker);
                // Nobody waits for one that is out of service.
                *reserved -= membership.reserved.len();
                for waiting in membership.reserved.drain(..).rev() {
                    queue.push_front(waiting);
                }
            }
            (None, None) => {}
        }
        membership.shown = view;
    }

    /// Shows all policies what has changed about a worker.
    pub(super) fn refresh_all(&mut self, now: Time, worker: WorkerId) {
        for at in 0..self.workers.get(&worker).map_or(0, |state| state.memberships.len()) {
            self.refresh_membership(now, worker, at);
        }
    }

    /// Something has changed about a worker that may let it, or others, have connections that wait.
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

    /// The shell's channel to a worker is full, or has room again. A worker whose channel is full
    /// gets no connections.
    pub fn set_blocked(&mut self, now: Time, worker: WorkerId, blocked: bool) {
        let Some(state) = self.workers.get_mut(&worker) else { return };
        if std::mem::replace(&mut state.blocked, blocked) != blocked {
            self.refresh_and_pump(now, worker);
        }
    }

    /// The connections that a worker holds without having answered.
    pub fn in_flight(&self, worker: WorkerId) -> impl Iterator<Item = (u64, ConnId)> {
        self.workers
            .get(&worker)
            .into_iter()
            .flat_map(|state| state.in_flight.iter().map(|c| (c.seq, c.conn)))
    }

    pub(super) fn in_flight_with(&self, worker: WorkerId, seq: u64) -> bool {
        self.in_flight(worker).any(|(s, _)| s == seq)
    }

    /// The worker's answer to `newconn`.
    pub(super) fn answered(
        &mut self,
        now: Time,
        worker: WorkerId,
        seq: u64,
        accepted: bool,
    ) -> Result<(), Violation> {
        if !accepted {
            return if self.in_flight_with(worker, seq) {
                self.refused(now, worker, seq);
                Ok(())
            } else if self.is_probe_reply(now, worker, seq) {
                Ok(())
            } else {
                Err(Violation::UnaskedAck)
            };
        }
        self.took(worker, seq)?;
        // The room in its window is for all its listeners.
        self.refresh_and_pump(now, worker);
        Ok(())
    }

    /// A troop worker's answer for several connections.
    pub(super) fn taken(
        &mut self,
        now: Time,
        worker: WorkerId,
        taken: &Numbers<'_>,
        returned: &Numbers<'_>,
    ) -> Result<(), Violation> {
        let mut result = Ok(());
        for seq in taken.iter() {
            // A wrong number does not make the right ones wrong.
            result = result.and(self.took(worker, seq));
        }
        self.refresh_and_pump(now, worker);
        for seq in returned.iter() {
            result = result.and(self.answered(now, worker, seq, false));
        }
        result
    }

    /// A worker has a connection for good. What that makes room for is not settled yet.
    fn took(&mut self, worker: WorkerId, seq: u64) -> Result<(), Violation> {
        let now = self.last_time;
        let state = self.workers.get_mut(&worker).ok_or(Violation::UnaskedAck)?;
        let InFlight { conn, listener, .. } = state.take(seq).ok_or(Violation::UnaskedAck)?;
        if let Some(at) = state
            .handle_waits
            .iter()
            .position(|w| matches!(w, HandleWait::Conn { seq: s } if *s == seq))
        {
            // It has the connection, so it has the descriptor, whether or not it says so.
            state.handle_waits.remove(at);
        }
        state.taken += 1;
        state.last_taken = now;
        if state.reports || state.descriptors.is_some() {
            // Until it is known better. What is never known is not added up.
            state.open = state.open.saturating_add(1);
        }
        if let Some(membership) = state.membership_mut(listener) {
            membership.accepted();
        }
        self.actions.push_back(Action::Release { conn, taken: true });
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

    /// Puts back a connection that a worker does not have after all.
    fn put_back(&mut self, id: ListenerId, waiting: QueuedConnection) -> bool {
        match self.listeners.get_mut(&id) {
            // Unless it was meant for that one alone, or for no more than have had it.
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

    /// A worker does not want a connection, or could not receive it: somebody else's turn, and a
    /// pause for this one that grows.
    pub(super) fn refused(&mut self, now: Time, worker: WorkerId, seq: u64) {
        let Some(state) = self.workers.get_mut(&worker) else { return };
        let Some(InFlight { conn, listener: id, about, tries, .. }) = state.take(seq) else {
            return;
        };
        state.returned += 1;
        if let Some(membership) = state.membership_mut(id) {
            membership.refused(now);
            let until = membership.cooling_until;
            self.wake_at(until);
        }
        self.put_back(id, QueuedConnection { conn, about, tries });
        // It may be ready on its other listeners, where there is room in its window now.
        self.refresh_and_pump(now, worker);
        self.pump(now, id);
    }

    /// The shell could not write a connection to a worker's channel after all: it is full, gone, or
    /// the kernel refused the descriptor.
    pub fn undelivered(&mut self, now: Time, worker: WorkerId, seq: u64) {
        let Some(state) = self.workers.get_mut(&worker) else { return };
        state.handle_waits.retain(|wait| !matches!(wait, HandleWait::Conn { seq: s } if *s == seq));
        if !state.blocked {
            self.refused(now, worker, seq);
            return;
        }
        // Nothing that the worker did; its turn comes when there is room.
        let Some(InFlight { conn, listener: id, about, tries, .. }) = state.take(seq) else {
            return;
        };
        state.handed -= 1;
        self.refresh_all(now, worker);
        if self.put_back(id, QueuedConnection { conn, about, tries }) {
            self.pump(now, id);
        }
    }

    /// The shell found that somebody has read from a connection, so it must not be given to another
    /// worker.
    pub fn consumed(&mut self, worker: WorkerId, seq: u64) {
        if let Some(InFlight { conn, .. }) =
            self.workers.get_mut(&worker).and_then(|state| state.take(seq))
        {
            self.actions.push_back(Action::Release { conn, taken: false });
        }
    }

    /// Everything a worker did not answer goes to the front of the queues.
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
    /// Workers answer in order, or nearly, so the search ends at once.
    fn take(&mut self, seq: u64) -> Option<InFlight> {
        let at = self.in_flight.iter().position(|c| c.seq == seq)?;
        let taken = self.in_flight.remove(at);
        if self.in_flight.is_empty() {
            // The next ones in the same place, as with the actions.
            self.in_flight.clear();
        }
        taken
    }
}
