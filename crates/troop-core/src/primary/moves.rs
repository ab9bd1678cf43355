//! Connections that outlive their worker: between two requests they go back to the primary, and on
//! to another worker.
//!
//! A worker that is to leave sends them one by one ([`outgoing::move_connection`]), and keeps each
//! until it is acknowledged. From then on the connection is one that waits like any other: it goes
//! to a worker that takes it, and comes back from one that does not.
//!
//! [`outgoing::move_connection`]: crate::wire::outgoing::move_connection

use super::Primary;
use super::listener::Listener;
use crate::event::Violation;
use crate::id::{ListenerId, WorkerId};

impl Primary {
    /// The listener that a connection goes to which a worker gives back, by its key. `None` if the
    /// worker has to keep it: nobody else could take it, or too many wait.
    ///
    /// # Errors
    /// If the worker was not told to leave, or never had such a listener.
    pub fn may_move(&self, worker: WorkerId, key: &str) -> Result<Option<ListenerId>, Violation> {
        let Some(state) = self.workers.get(&worker) else { return Ok(None) };
        if !state.told_to_leave {
            return Err(Violation::Malformed("a connection moved without need".into()));
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
        // One that has been closed meanwhile is forgotten with its key.
        let all_open = state.former_listeners.iter().all(|id| self.listeners.contains_key(id));
        if known || !all_open {
            return Ok(None);
        }
        Err(Violation::Malformed("a connection moved to a listener that it never had".into()))
    }

    /// A connection has come from a worker that is to leave, as [`Primary::may_move`] has allowed.
    /// What follows is the same as for a new one: [`Primary::accepted`].
    pub fn moved(&mut self, worker: WorkerId) {
        if let Some(state) = self.workers.get_mut(&worker) {
            state.moved += 1;
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
    fn has_room_for_moved(&self, listener: &Listener) -> bool {
        let limit = listener.limit(&self.config, self.tight);
        listener.queue.len() + listener.reserved < limit.div_ceil(2)
    }
}
