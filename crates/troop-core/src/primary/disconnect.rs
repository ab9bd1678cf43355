//! Workers that are to leave: what they are told, and when.

use std::time::Duration;

use super::final_read::FinalRead;
use super::{Action, Primary, membership};
use crate::id::{ListenerId, Time, WorkerId};
use crate::wire::outgoing;

impl Primary {
    /// Disconnects a worker: it gets no more connections, is sent `disconnect`, and leaves the
    /// table at once, as in Node. With `keep`, listeners that only it used stay open for a
    /// successor; in Node they close. `drain_spread` is the time over which it should close idle
    /// connections; without it, it closes them at once. A Node worker is sent `disconnect` only
    /// after it had time to read its last connections, because Node closes those whose request has
    /// not arrived, and to move idle ones, if it can. Returns false if there is no such worker or its channel is closed.
    pub fn disconnect(
        &mut self,
        worker: WorkerId,
        keep: bool,
        drain_spread: Option<Duration>,
    ) -> bool {
        let Some(state) = self.workers.get_mut(&worker) else { return false };
        state.voluntary = Some(true);
        if !state.connected {
            return false;
        }
        let told = std::mem::replace(&mut state.told_to_leave, true);
        state.in_table = false;
        // Only troop workers, and troop's script in others, know the time.
        let knows_spread = state.batched || state.moves_idle;
        state.closes_slowly |= !told && knows_spread && drain_spread.is_some();
        if !told {
            // New connections must stop before `disconnect` is sent.
            let accepts_itself = |membership: &membership::ListenerMembership| {
                let listener = self.listeners.get(&membership.listener);
                listener.is_some_and(|l| l.group.is_some() && !l.is_long_in_turns(self.last_time))
            };
            let accepts = state.memberships.iter().any(accepts_itself);
            let has_read = state.all_read_at().is_some_and(|at| at <= self.last_time)
                || state.taken == 0 && state.in_flight.is_empty();
            if !state.batched && (accepts || !has_read) {
                state.final_read = FinalRead::begin(self.last_time, accepts);
            }
            state.former_listeners =
                state.memberships.iter().map(|membership| membership.listener).collect();
            let keyed = |id: &ListenerId| Some((*id, self.listeners.get(id)?.key.to_string()));
            state.unclosed = state.former_listeners.iter().filter_map(keyed).collect();
            self.leave_listeners(worker, keep);
            self.begin_moving(worker, drain_spread);
            self.send_disconnect(worker, drain_spread);
            self.withdraw_moves();
        }
        true
    }

    /// Records that a worker was asked by a signal to end, which is no message of Node's.
    pub fn asked_to_leave(&mut self, worker: WorkerId) {
        if let Some(state) = self.workers.get_mut(&worker) {
            state.voluntary = Some(true);
        }
    }

    /// Sends `disconnect`, or has [`Primary::tick`] send it later.
    fn send_disconnect(&mut self, worker: WorkerId, drain_spread: Option<Duration>) {
        let Some(state) = self.workers.get_mut(&worker) else { return };
        if !state.batched && (state.moving.is_some() || !state.final_read.is_done()) {
            state.disconnect_due = Some(drain_spread);
            self.wake_at(self.last_time);
            return;
        }
        let stop = state.stop.map(|(signal, within)| {
            (signal, u64::try_from(within.as_millis()).unwrap_or(u64::MAX))
        });
        let moves = state.batched && self.takes_moves(worker);
        let seq = self.next_seq();
        let drain_spread =
            drain_spread.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        self.send(worker, |line| outgoing::disconnect(line, seq, drain_spread, moves, stop));
    }

    /// Sends each postponed `disconnect` that is due. Returns the time of the next one.
    pub(super) fn send_due_disconnects(&mut self, now: Time) -> Option<Time> {
        let mut due = Vec::new();
        let mut next: Option<Time> = None;
        let postponed = self.workers.iter().filter(|(_, state)| state.disconnect_due.is_some());
        let postponed: Vec<WorkerId> = postponed.map(|(id, _)| *id).collect();
        for worker in postponed {
            let Some(state) = self.workers.get_mut(&worker) else { continue };
            if !state.connected || state.cut_off {
                state.disconnect_due = None;
                continue;
            }
            let moved_at = state.moved_at(now);
            let at = moved_at.max(self.continue_final_read(now, worker));
            let Some(state) = self.workers.get_mut(&worker) else { continue };
            if at <= now {
                state.moving = None;
                due.extend(state.disconnect_due.take().map(|drain_spread| (worker, drain_spread)));
            } else {
                next = Some(at.min(next.unwrap_or(Time(u64::MAX))));
            }
        }
        for (worker, drain_spread) in due {
            self.send_disconnect(worker, drain_spread);
        }
        next
    }

    /// Whether a worker that was told to leave may not have read it yet, and accepts connections of
    /// a listener, which may be closed, by itself as before.
    #[must_use]
    pub fn may_still_accept(&self, listener: ListenerId) -> bool {
        self.workers.values().any(|state| state.may_accept(listener))
    }

    /// Has a worker be told with `disconnect` by which signal it is stopped: troop's script in a Node
    /// worker sends it to a program that has a handler for it, when its requests are answered, but
    /// within this time. Call before [`Primary::disconnect`].
    pub fn stops_by(&mut self, worker: WorkerId, signal: i32, within: Duration) {
        if let Some(state) = self.workers.get_mut(&worker).filter(|state| !state.batched) {
            state.stop = Some((signal, within));
        }
    }

    /// A worker that was told its stop signal sends it to itself.
    pub(super) fn raises(&mut self, worker: WorkerId) {
        let Some(state) = self.workers.get_mut(&worker) else { return };
        if state.told_to_leave && state.stop.take().is_some() {
            self.actions.push_back(Action::Raises { worker });
        }
    }

    /// Tells workers that close idle connections gradually to close them at once, because no worker
    /// is left for the clients to move to.
    pub fn hurry(&mut self) {
        let slow: Vec<WorkerId> = self
            .workers
            .iter()
            .filter(|(_, state)| state.closes_slowly && state.connected)
            .map(|(id, _)| *id)
            .collect();
        for worker in slow {
            let Some(state) = self.workers.get_mut(&worker) else { continue };
            state.closes_slowly = false;
            if !state.batched {
                self.end_moves(worker);
                continue;
            }
            let seq = self.next_seq();
            self.send(worker, |line| outgoing::disconnect(line, seq, Some(0), false, None));
        }
    }
}
