//! Connections that outlive their worker: between two requests they go back to the primary, and on
//! to another worker.
//!
//! A worker that is to leave sends them one by one ([`outgoing::move_connection`]), and keeps each
//! until it is acknowledged. From then on the connection is one that waits like any other: it goes
//! to a worker that takes it, and comes back from one that does not.
//!
//! [`outgoing::move_connection`]: crate::wire::outgoing::move_connection

use std::time::Duration;

use super::Primary;
use super::listener::Listener;
use super::worker::Moving;
use crate::event::Violation;
use crate::id::{ListenerId, Time, WorkerId};
use crate::wire::outgoing;

impl Primary {
    /// The listener that a connection goes to which a worker gives back, by its key. `None` if the
    /// worker has to keep it: no other worker could take it, or too many wait.
    ///
    /// # Errors
    /// If the worker was neither told to leave nor asked to return connections, or never had such a
    /// listener.
    pub fn may_move(
        &mut self,
        worker: WorkerId,
        key: &str,
    ) -> Result<Option<ListenerId>, Violation> {
        let Some(state) = self.workers.get(&worker) else { return Ok(None) };
        if !state.told_to_leave {
            return self.may_rebalance(worker, key);
        }
        let mut known = false;
        for id in &state.former_listeners {
            let Some(listener) = self.listeners.get(id) else { continue };
            if listener.key != key {
                continue;
            }
            known = true;
            if self.can_take_moved(*id, listener) && self.has_room_for_moved(listener) {
                return Ok(Some(*id));
            }
        }
        // One that has been closed meanwhile is forgotten with its key, and so is one that the
        // worker itself has closed, also before, or could not take.
        let all_open = state.former_listeners.iter().all(|id| self.listeners.contains_key(id));
        if known || !all_open || state.has_closed {
            return Ok(None);
        }
        Err(Violation::Malformed("a connection moved to a listener that it never had".into()))
    }

    /// Counts a connection that has come from a worker, as [`Primary::may_move`] has allowed. Returns
    /// whether it came to even out shares, so that [`Primary::rebalanced`] follows. Otherwise the
    /// worker is to leave, and the same follows as for a new one: [`Primary::accepted`].
    pub fn moved(&mut self, worker: WorkerId) -> bool {
        self.workers.get_mut(&worker).is_some_and(|state| {
            state.moved += 1;
            !state.told_to_leave
        })
    }

    /// A Node worker has troop's script, which moves its idle connections.
    pub(super) fn can_move_idle(&mut self, worker: WorkerId) {
        if let Some(state) = self.workers.get_mut(&worker) {
            // A troop worker learns from `disconnect` what it is to move.
            state.moves_idle = !state.batched;
        }
    }

    /// The connections have moved that were idle when the worker was told to leave.
    pub(super) fn idle_moved(&mut self, now: Time, worker: WorkerId) {
        if let Some(state) = self.workers.get_mut(&worker)
            && state.moving.take().is_some()
        {
            self.wake_at(now);
        }
    }

    /// Has a Node worker that is to leave move its idle connections, before it is disconnected.
    pub(super) fn begin_moving(&mut self, worker: WorkerId, drain_spread: Option<Duration>) {
        let Some(state) = self.workers.get(&worker).filter(|state| state.moves_idle) else {
            return;
        };
        let listeners = state.former_listeners.iter().filter_map(|id| {
            let listener = self.listeners.get(id)?;
            self.can_take_moved(*id, listener).then(|| listener.key.clone())
        });
        let keys: Vec<String> = listeners.collect();
        let spread = drain_spread.unwrap_or_default().as_millis();
        if keys.is_empty() && spread == 0 {
            return;
        }
        if let Some(state) = self.workers.get_mut(&worker) {
            state.moves_offered = !keys.is_empty();
            state.moving = state.moves_offered.then_some(Moving::Told);
        }
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let spread = u64::try_from(spread).unwrap_or(u64::MAX);
        self.send(worker, |line| outgoing::leave(line, &keys, spread));
    }

    /// Has workers that leave keep their connections when no worker stays that could take them.
    pub(super) fn withdraw_moves(&mut self) {
        let offered = self.workers.iter().filter(|(_, state)| state.moves_offered);
        let offered: Vec<WorkerId> = offered.map(|(id, _)| *id).collect();
        for worker in offered {
            if !self.takes_moves(worker) {
                self.end_moves(worker);
            }
        }
    }

    /// Has a Node worker that leaves close what is idle instead of moving it.
    pub(super) fn end_moves(&mut self, worker: WorkerId) {
        let Some(state) = self.workers.get_mut(&worker) else { return };
        (state.moves_offered, state.moving) = (false, None);
        if state.connected && !state.cut_off {
            self.send(worker, |line| outgoing::leave(line, &[], 0));
            self.wake_at(self.last_time);
        }
    }

    /// Whether there is any use for a worker that is to leave to give back connections.
    pub(super) fn takes_moves(&self, worker: WorkerId) -> bool {
        self.workers.get(&worker).is_some_and(|state| {
            state.former_listeners.iter().any(|id| {
                self.listeners.get(id).is_some_and(|listener| self.can_take_moved(*id, listener))
            })
        })
    }

    /// Whether somebody takes connections of this listener from the primary. Where its first bytes
    /// choose the worker, a silent connection cannot be given to any.
    fn can_take_moved(&self, id: ListenerId, listener: &Listener) -> bool {
        listener.policy.is_some()
            && !listener.needs.bytes
            && self.workers.values().any(|state| {
                state.is_able()
                    && state.membership(id).is_some_and(|membership| membership.admitted)
            })
    }

    /// New connections keep half of the room.
    pub(super) fn has_room_for_moved(&self, listener: &Listener) -> bool {
        let limit = listener.limit(&self.config, self.tight);
        listener.queue.len() + listener.reserved < limit.div_ceil(2)
    }
}
