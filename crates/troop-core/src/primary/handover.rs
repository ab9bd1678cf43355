//! Connections between the accept and the worker that takes them: in flight, refused, reclaimed, waiting.

use std::time::Duration;

use super::listener::{Cooling, Waiting};
use super::worker::{HandleWait, InFlight, Worker};
use super::{Action, Config, Primary};
use crate::event::Violation;
use crate::id::{ConnId, ListenerId, Time, WorkerId};

/// How often connections in flight are checked for age.
pub(super) const CHECK_EVERY: Duration = Duration::from_millis(250);

/// After this many workers died with the same unanswered connection, or lost it, it is closed instead of given to one more.
const MAX_TRIES: u8 = 8;

/// The longest pause of a worker that refuses connections.
const MAX_COOLING: Duration = Duration::from_millis(500);

impl Worker {
    fn is_ready(&self, now: Time, config: &Config, listener: ListenerId) -> bool {
        let window = if self.batched { config.troop_window } else { config.node_window };
        // A program may be slow on one of its listeners and quick on another.
        let oldest = self.in_flight.iter().find(|c| c.listener == listener);
        self.connected
            && !self.told_to_leave
            && !self.cut_off
            && !self.blocked
            && self.in_flight.len() < window
            && self.starved_until <= now
            && oldest.is_none_or(|oldest| now.since(oldest.since) < config.stale_after)
    }
}

impl Primary {
    /// Whether the shell should accept one more connection: a worker is ready for it, or it may wait here.
    #[must_use]
    pub fn wants_connection(&self, listener: ListenerId) -> bool {
        self.listeners.get(&listener).is_some_and(|l| l.queue.len() < self.config.pending_limit)
    }

    /// A connection was accepted. It is handed to a worker, or waits.
    pub fn accepted(&mut self, now: Time, id: ListenerId, conn: ConnId) {
        self.clock(now);
        match self.listeners.get_mut(&id) {
            Some(listener) => {
                listener.queue.push_back(Waiting { conn, tries: 0 });
                self.pump(now, id);
            }
            None => self.actions.push_back(Action::Release { conn }),
        }
    }

    /// Gives waiting connections to ready workers, oldest first.
    pub(super) fn pump(&mut self, now: Time, id: ListenerId) {
        let Primary { config, workers, listeners, actions, seq, next_tick, .. } = self;
        let Some(listener) = listeners.get_mut(&id) else { return };
        let Some(schedule) = &mut listener.schedule else { return };
        let cooling = &listener.cooling;
        while let Some(waiting) = listener.queue.front() {
            let mut ready = |worker: WorkerId| {
                workers.get(&worker).is_some_and(|state| state.is_ready(now, config, id))
                    && !cooling.iter().any(|c| c.worker == worker && c.until > now)
            };
            let Some(worker) = schedule.pick(&mut ready) else { break };
            let Some(state) = workers.get_mut(&worker) else { break };
            let (conn, tries) = (waiting.conn, waiting.tries);
            listener.queue.pop_front();
            let number = *seq;
            *seq += 1;
            state.handed += 1;
            state.in_flight.push_back(InFlight { seq: number, conn, listener: id, since: now, tries, recalled: false });
            if !state.batched {
                state.handle_waits.push_back(HandleWait::Conn { seq: number });
            }
            if next_tick.is_none() {
                *next_tick = Some(now + CHECK_EVERY);
            }
            actions.push_back(Action::Deliver { worker, listener: id, conn, seq: number, batched: state.batched });
        }
        if !listener.queue.is_empty() {
            // Somebody may be pausing after a refusal.
            if let Some(until) = listener.cooling.iter().map(|c| c.until).filter(|until| *until > now).min() {
                self.wake_at(until);
            }
        }
    }

    /// The shell's channel to a worker is full, or has room again. A worker whose channel is full gets no connections.
    pub fn set_blocked(&mut self, now: Time, worker: WorkerId, blocked: bool) {
        let Some(state) = self.workers.get_mut(&worker) else { return };
        if std::mem::replace(&mut state.blocked, blocked) && !blocked {
            self.pump_all(now, worker);
        }
    }

    /// The connections that a worker holds without having answered.
    pub fn in_flight(&self, worker: WorkerId) -> impl Iterator<Item = (u64, ConnId)> {
        self.workers.get(&worker).into_iter().flat_map(|state| state.in_flight.iter().map(|c| (c.seq, c.conn)))
    }

    pub(super) fn in_flight_with(&self, worker: WorkerId, seq: u64) -> bool {
        self.in_flight(worker).any(|(s, _)| s == seq)
    }

    /// The worker's answer to `newconn`.
    pub(super) fn answered(&mut self, now: Time, worker: WorkerId, seq: u64, accepted: bool) -> Result<(), Violation> {
        if !accepted {
            return if self.in_flight_with(worker, seq) {
                self.refused(now, worker, seq);
                Ok(())
            } else {
                Err(Violation::UnaskedAck)
            };
        }
        let state = self.workers.get_mut(&worker).ok_or(Violation::UnaskedAck)?;
        let InFlight { conn, listener, .. } = state.take(seq).ok_or(Violation::UnaskedAck)?;
        if let Some(at) = state.handle_waits.iter().position(|w| matches!(w, HandleWait::Conn { seq: s } if *s == seq)) {
            // It has the connection, so it has the descriptor, whether or not it says so.
            state.handle_waits.remove(at);
        }
        state.taken += 1;
        self.actions.push_back(Action::Release { conn });
        if let Some(listener) = self.listeners.get_mut(&listener)
            && !listener.cooling.is_empty()
        {
            listener.cooling.retain(|c| c.worker != worker);
        }
        self.pump(now, listener);
        // The room in its window is for all its listeners.
        self.pump_all(now, worker);
        Ok(())
    }

    /// A troop worker's answer for several connections.
    pub(super) fn taken(&mut self, now: Time, worker: WorkerId, taken: &[u64], returned: &[u64]) -> Result<(), Violation> {
        let answers = taken.iter().map(|seq| (seq, true)).chain(returned.iter().map(|seq| (seq, false)));
        let mut result = Ok(());
        for (seq, accepted) in answers {
            // A wrong number does not make the right ones wrong.
            result = result.and(self.answered(now, worker, *seq, accepted));
        }
        result
    }

    /// A worker does not want a connection, or could not receive it: somebody else's turn, and a pause for this one that grows.
    pub(super) fn refused(&mut self, now: Time, worker: WorkerId, seq: u64) {
        let Some(state) = self.workers.get_mut(&worker) else { return };
        let Some(InFlight { conn, listener: id, tries, .. }) = state.take(seq) else { return };
        state.returned += 1;
        let Some(listener) = self.listeners.get_mut(&id) else {
            self.actions.push_back(Action::Release { conn });
            return;
        };
        let position = listener.cooling.iter().position(|c| c.worker == worker);
        let at = position.unwrap_or_else(|| {
            listener.cooling.push(Cooling { worker, until: now, refusals: 0 });
            listener.cooling.len() - 1
        });
        let entry = &mut listener.cooling[at];
        entry.refusals += 1;
        entry.until = now + Duration::from_millis(1 << entry.refusals.min(9)).min(MAX_COOLING);
        listener.queue.push_front(Waiting { conn, tries });
        self.pump(now, id);
    }

    /// The shell could not write a connection to a worker's channel after all: it is full, gone, or the kernel refused the descriptor.
    pub fn undelivered(&mut self, now: Time, worker: WorkerId, seq: u64) {
        let Some(state) = self.workers.get_mut(&worker) else { return };
        state.handle_waits.retain(|wait| !matches!(wait, HandleWait::Conn { seq: s } if *s == seq));
        if !state.blocked {
            self.refused(now, worker, seq);
            return;
        }
        // Nothing that the worker did; its turn comes when there is room.
        let Some(InFlight { conn, listener: id, tries, .. }) = state.take(seq) else { return };
        state.handed -= 1;
        match self.listeners.get_mut(&id) {
            Some(listener) => {
                listener.queue.push_front(Waiting { conn, tries });
                self.pump(now, id);
            }
            None => self.actions.push_back(Action::Release { conn }),
        }
    }

    /// The shell found that somebody has read from a connection, so it must not be given to another worker.
    pub fn consumed(&mut self, worker: WorkerId, seq: u64) {
        if let Some(InFlight { conn, .. }) = self.workers.get_mut(&worker).and_then(|state| state.take(seq)) {
            self.actions.push_back(Action::Release { conn });
        }
    }

    /// Everything a worker did not answer goes to the front of the queues.
    pub(super) fn reclaim(&mut self, worker: WorkerId) {
        let Some(state) = self.workers.get_mut(&worker) else { return };
        let in_flight = std::mem::take(&mut state.in_flight);
        let mut touched = Vec::new();
        for InFlight { conn, listener: id, tries, .. } in in_flight.into_iter().rev() {
            match self.listeners.get_mut(&id) {
                Some(listener) if tries + 1 < MAX_TRIES => {
                    listener.queue.push_front(Waiting { conn, tries: tries + 1 });
                    if !touched.contains(&id) {
                        touched.push(id);
                    }
                }
                _ => self.actions.push_back(Action::Release { conn }),
            }
        }
        let now = self.last_time;
        for listener in touched {
            self.pump(now, listener);
        }
    }

    /// Gives a worker's listeners their turn that have connections waiting.
    fn pump_all(&mut self, now: Time, worker: WorkerId) {
        let mut at = 0;
        while let Some(id) = self.workers.get(&worker).and_then(|state| state.listeners.get(at)).copied() {
            if self.listeners.get(&id).is_some_and(|l| !l.queue.is_empty()) {
                self.pump(now, id);
            }
            at += 1;
        }
    }
}

impl Worker {
    /// Workers answer in order, or nearly, so the search ends at once.
    fn take(&mut self, seq: u64) -> Option<InFlight> {
        let at = self.in_flight.iter().position(|c| c.seq == seq)?;
        self.in_flight.remove(at)
    }
}
