//! Listeners under [`Scheduling::Auto`]: measures the rate of their connections, and changes their
//! mode.
//!
//! [`Scheduling::Auto`]: crate::policy::Scheduling::Auto

use super::Primary;
use crate::event::Notice;
use crate::id::{ListenerId, Time, WorkerId};
use crate::steer::CurrentMode;
use crate::steer::auto::AutoMode;

impl Primary {
    /// Handles the number of connections that came to a listener's first socket, after
    /// [`Primary::accepted`] for each of them. Connections of shards must not be counted.
    pub fn arrived(&mut self, now: Time, id: ListenerId, connections: u32) {
        if self.mode(id).is_none() {
            return;
        }
        self.clock(now);
        self.evaluate_mode(now, id);
        if let Some(auto) = self.listeners.get_mut(&id).and_then(|l| l.auto.as_mut()) {
            auto.count(connections);
        }
    }

    /// Returns the mode of a listener under [`Scheduling::Auto`](crate::policy::Scheduling::Auto).
    #[must_use]
    pub fn mode(&self, id: ListenerId) -> Option<CurrentMode> {
        self.listeners.get(&id)?.auto.as_ref().map(AutoMode::current)
    }

    /// Handles whether sockets of other processes are in a listener's group. Returns true if the
    /// listener is under [`Scheduling::Auto`](crate::policy::Scheduling::Auto), so that they send
    /// it back to its first socket.
    pub fn joined_by_others(&mut self, now: Time, id: ListenerId, are_there: bool) -> bool {
        let is_auto = self.mode(id).is_some();
        self.hold_in_turns(now, id, |auto, now| auto.set_foreign(now, are_there));
        is_auto
    }

    /// Notes that a Node worker has rejected a connection although it listens: it limits their
    /// number (`maxConnections`), and would close those beyond that accepted by itself.
    pub(super) fn note_limit(&mut self, now: Time, worker: WorkerId, seq: u64) {
        let Some(state) = self.workers.get(&worker).filter(|state| !state.batched) else { return };
        let Some(id) = state.in_flight.iter().find(|c| c.seq == seq).map(|c| c.listener) else {
            return;
        };
        if state.is_able() && state.membership(id).is_some() {
            self.limits_itself(now, worker, id);
        }
    }

    /// Handles the report of the script in a Node worker that a server limits its connections. A
    /// listener that the worker does not have is ignored.
    pub(super) fn limited(&mut self, now: Time, worker: WorkerId, key: &str) {
        let memberships =
            self.workers.get(&worker).into_iter().flat_map(|state| state.memberships.iter());
        let has_key =
            |id: &ListenerId| self.listeners.get(id).is_some_and(|listener| listener.key == key);
        let found = memberships.map(|membership| membership.listener).find(has_key);
        if let Some(id) = found {
            self.limits_itself(now, worker, id);
        }
    }

    /// Keeps a listener in turns, because one of its workers limits its connections.
    pub(super) fn limits_itself(&mut self, now: Time, worker: WorkerId, id: ListenerId) {
        self.hold_in_turns(now, id, |auto, now| auto.limit(now, worker));
    }

    /// Lets the mode of a listener be held in turns.
    pub(super) fn hold_in_turns(
        &mut self,
        now: Time,
        id: ListenerId,
        hold: impl FnOnce(&mut AutoMode, Time) -> bool,
    ) {
        let auto = self.listeners.get_mut(&id).and_then(|listener| listener.auto.as_mut());
        if auto.is_some_and(|auto| hold(auto, now)) {
            self.mode_changed(now, id);
        }
    }

    /// Changes the mode of a listener if its rate says so.
    pub(super) fn evaluate_mode(&mut self, now: Time, id: ListenerId) {
        let Some(listener) = self.listeners.get_mut(&id) else { return };
        let (Some(auto), Some(group)) = (&mut listener.auto, &listener.group) else { return };
        let before = auto.current().mode;
        if !auto.is_due(now, &self.config.auto)
            || !auto.evaluate(now, group.serving(), &self.config.auto)
        {
            return;
        }
        if auto.current().mode == before {
            self.set_own(now, id);
            self.update_group(now, id);
        } else {
            self.mode_changed(now, id);
        }
    }

    fn set_own(&mut self, now: Time, id: ListenerId) {
        if let Some(listener) = self.listeners.get_mut(&id)
            && let (Some(auto), Some(group)) = (&listener.auto, &mut listener.group)
        {
            group.set_own(now, auto.own());
        }
    }

    /// Has the kernel and the policy follow a changed mode. Connections that wait in the queues of
    /// the sockets are accepted by those who accept on them: both the first socket and the shards
    /// keep those who do.
    fn mode_changed(&mut self, now: Time, id: ListenerId) {
        self.set_own(now, id);
        let seed = self.config.seed ^ u64::from(id.0) ^ now.0;
        let Some(listener) = self.listeners.get_mut(&id) else { return };
        listener.renew_policy(seed);
        let current = listener.auto.as_ref().map(AutoMode::current);
        self.policy_renewed(now, id);
        if let (Some(CurrentMode { mode, reason, .. }), Some(at)) =
            (current, self.bound_address(id))
        {
            self.notify(Notice::ModeChanged { at, mode, reason });
        }
    }
}
