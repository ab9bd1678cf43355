//! Admits workers to listeners: assigns a shard, replies to `queryServer`, and handles `listening`.

use super::listener::Listener;
use super::worker::HandleWait;
use super::{Action, Primary};
use crate::event::Listening;
use crate::id::{ListenerId, Time, WorkerId};
use crate::wire::TROOP_VERSION;
use crate::wire::outgoing::{self, Reply};

impl Primary {
    /// Assigns a shard to a worker, and replies as soon as the shard has a socket.
    pub(super) fn admit(&mut self, worker: WorkerId, id: ListenerId, ack: u64) {
        let Primary { listeners, workers, .. } = self;
        let Some(listener) = listeners.get_mut(&id) else { return };
        let may_accept = |worker: &WorkerId| workers.get(worker).is_some_and(|w| w.may_accept(id));
        for shard in &mut listener.shards {
            shard.leaving.retain(may_accept);
        }
        let Some(state) = workers.get_mut(&worker) else { return };
        let shard = listener.assign_shard(worker, state.slot);
        if let Some(membership) = state.membership_mut(id) {
            membership.shard = shard;
        }
        if listener.group.is_some() {
            listener.growing.push_back((worker, ack));
            self.grow(id);
        } else {
            self.answer_query(worker, id, ack);
        }
    }

    /// Replies to a worker that asked for a listener, which is admitted and takes connections from
    /// now on.
    pub(super) fn answer_query(&mut self, worker: WorkerId, id: ListenerId, ack: u64) {
        let seq = self.next_seq();
        let (Some(listener), Some(state)) =
            (self.listeners.get_mut(&id), self.workers.get_mut(&worker))
        else {
            return;
        };
        let troop = state.batched.then_some(TROOP_VERSION);
        let Some(membership) = state.membership_mut(id) else { return };
        membership.admitted = true;
        let shard = membership.shard;
        let Listener { key, data, .. } = &*listener;
        let (key, data) = (key.as_str(), data.as_deref());
        let mut line = Vec::with_capacity(256);
        if !listener.has_sockets() {
            let sockname = listener.bound.as_ref().and_then(Option::as_ref);
            outgoing::reply(
                &mut line,
                &Reply { key, ack, errno: None, data, sockname, troop, seq },
            );
            self.actions.push_back(Action::Send { worker, line });
        } else {
            let kind =
                if listener.asked().address_type.is_udp() { "dgram.Native" } else { "net.Native" };
            let reply = Reply { key, ack, errno: Some(0), data, sockname: None, troop, seq };
            outgoing::reply_with_handle(&mut line, kind, &reply);
            state.handle_waits.push_back(HandleWait::Listener { ack, listener: id });
            let shard = if listener.group.is_some() { shard } else { 0 };
            self.actions.push_back(Action::SendListener { worker, listener: id, shard, ack, line });
        }
        self.pace_reports(worker);
        let now = self.last_time;
        self.refresh_and_pump(now, worker);
    }

    /// Handles `listening`: the queue of the worker's socket is its own from now on.
    pub(super) fn listens(&mut self, now: Time, worker: WorkerId, at: &Listening) {
        let Primary { workers, listeners, .. } = self;
        let Some(state) = workers.get_mut(&worker) else { return };
        let (mut steered, mut joined) = (Vec::new(), Vec::new());
        for membership in state
            .memberships
            .iter_mut()
            .filter(|membership| membership.admitted && !membership.listening)
        {
            let Some(listener) = listeners.get_mut(&membership.listener) else { continue };
            if !listener.is_at(at) {
                continue;
            }
            membership.listening = true;
            joined.push(membership.listener);
            if let Some(group) = &mut listener.group {
                group.relieved(membership.shard);
                steered.push(membership.listener);
            }
        }
        if !joined.is_empty() && !state.reports {
            // Count the descriptors that it has open without connections.
            self.actions.push_back(Action::Count { worker });
        }
        if !joined.is_empty() {
            self.rebalance_for_new_worker(now);
        }
        for id in joined {
            self.note_listening(worker, id);
        }
        for id in steered {
            self.update_shard_loads(now, id);
        }
    }
}
