//! Steered listeners: opens shards, installs programs, and evaluates queues.

use super::listener::MAX_SHARDS;
use super::{Action, DEFAULT_WEIGHT, Primary};
use crate::event::{Address, Notice, Violation};
use crate::id::{ListenerId, Time, WorkerId};
use crate::policy::Scheduling;
use crate::steer::auto::AutoMode;
use crate::steer::group::{Change, ShardGroup, ShardLoad};

/// Delay before another attempt to add a shard.
const ADD_RETRY_DELAY: std::time::Duration = std::time::Duration::from_secs(10);
/// Interval between counts of the descriptors of workers that do not report their connections.
const COUNT_INTERVAL: std::time::Duration = std::time::Duration::from_millis(100);

impl Primary {
    /// Handles a listener that cannot form a group: its connections are handed over instead, and
    /// datagrams are read from a shared socket. Must be called before [`Primary::bound`].
    /// Under [`Scheduling::Auto`] nothing is reported, because round robin serves as well.
    pub fn cannot_steer(&mut self, id: ListenerId, reason: String) {
        if let Some(at) = self.hand_over_instead(id)
            && self.listeners.get(&id).is_some_and(|l| l.chosen != Scheduling::Auto)
        {
            self.notify(Notice::NotSteered { at, reason });
        }
    }

    /// Hands the connections of a listener over that cannot be steered.
    fn hand_over_instead(&mut self, id: ListenerId) -> Option<Address> {
        let (now, seed) = (self.last_time, self.config.seed ^ u64::from(id.0));
        let listener = self.listeners.get_mut(&id)?;
        listener.group = None;
        let udp = listener.asked().address_type.is_udp();
        let instead = if udp { Scheduling::Shared } else { Scheduling::RoundRobin };
        listener.schedule(now, instead, seed);
        Some(listener.asked())
    }

    /// Replies to workers whose shard has a socket, and opens another one if workers still wait.
    pub(super) fn grow(&mut self, id: ListenerId) {
        while let Some(listener) = self.listeners.get_mut(&id)
            && let Some((worker, ack)) = listener.growing.front().copied()
        {
            let Some(group) = &listener.group else { return };
            let shard = self
                .workers
                .get(&worker)
                .and_then(|state| state.membership(id))
                .map_or(0, |membership| membership.shard);
            if usize::from(shard) < group.len() {
                listener.growing.pop_front();
                self.answer_query(worker, id, ack);
            } else if listener.crowded_until > self.last_time && group.len() > 0 {
                self.crowd_together(id);
            } else {
                if !std::mem::replace(&mut listener.opening, true) {
                    self.last_actions.push_back(Action::Open { listener: id });
                }
                return;
            }
        }
    }

    /// Handles the result of [`Action::Open`]: a new shard with the next number, or the reason for
    /// a failure. After a failure workers share shards; if there is none, the listener's
    /// connections are handed over.
    pub fn opened(&mut self, now: Time, id: ListenerId, result: Result<(), String>) {
        self.clock(now);
        let Some(listener) = self.listeners.get_mut(&id) else { return };
        listener.opening = false;
        let Some(group) = &mut listener.group else { return };
        match result {
            Ok(()) => group.grow(),
            Err(reason) if group.len() == 0 => {
                // Without a shard, the group's first socket serves all workers.
                if let Some(at) = self.hand_over_instead(id) {
                    self.notify(Notice::NotSteered { at, reason });
                }
                let waiting = self
                    .listeners
                    .get_mut(&id)
                    .map(|l| std::mem::take(&mut l.growing))
                    .unwrap_or_default();
                waiting.into_iter().for_each(|(worker, ack)| self.answer_query(worker, id, ack));
                return;
            }
            Err(reason) => {
                listener.crowded_until = now + ADD_RETRY_DELAY;
                let at = listener.asked();
                self.notify(Notice::NotSteered { at, reason });
            }
        }
        self.update_group(now, id);
        self.grow(id);
    }

    /// Assigns workers that wait for a shard to existing shards.
    fn crowd_together(&mut self, id: ListenerId) {
        let Primary { listeners, workers, .. } = self;
        let Some(listener) = listeners.get_mut(&id) else { return };
        let sockets = listener.group.as_ref().map_or(0, ShardGroup::len).clamp(1, MAX_SHARDS);
        for shard in listener.shards.split_off(sockets.min(listener.shards.len())) {
            for worker in shard.holders {
                let at = shard.slot as usize % sockets;
                listener.shards[at].holders.push(worker);
                if let Some(membership) =
                    workers.get_mut(&worker).and_then(|state| state.membership_mut(id))
                {
                    membership.shard = at as u16;
                }
            }
        }
    }

    fn shard_loads(&self, id: ListenerId) -> Vec<ShardLoad> {
        let Some(listener) = self.listeners.get(&id) else { return Vec::new() };
        let is_auto = listener.auto.is_some();
        let load = |holders: &[WorkerId]| {
            let mut load = ShardLoad::default();
            for state in holders.iter().filter_map(|worker| self.workers.get(worker)) {
                if state.is_able()
                    && state.membership(id).is_some_and(|membership| membership.listening)
                {
                    let busy = load.busy.saturating_add(state.open).saturating_add(state.load);
                    let weight = if is_auto { DEFAULT_WEIGHT } else { state.weight };
                    load = ShardLoad { present: true, weight, busy };
                }
            }
            load
        };
        listener.shards.iter().map(|shard| load(&shard.holders)).collect()
    }

    /// Updates the load of a listener's shards.
    pub(super) fn update_shard_loads(&mut self, now: Time, id: ListenerId) {
        let load = self.shard_loads(id);
        let Some(group) = self.listeners.get_mut(&id).and_then(|l| l.group.as_mut()) else {
            return;
        };
        for (shard, load) in (0..).zip(load) {
            group.set_load(shard, load);
        }
        self.update_group(now, id);
    }

    /// Emits actions for the changes of a group. The program comes first, so that no new connection
    /// arrives in a queue that is taken over.
    pub(super) fn update_group(&mut self, now: Time, id: ListenerId) {
        let Some(listener) = self.listeners.get_mut(&id) else { return };
        let Some(group) = &mut listener.group else { return };
        if let Some(program) = group.program() {
            self.actions.push_back(Action::Steer { listener: id, program });
        }
        for change in std::mem::take(&mut group.changes) {
            let (shard, stalled) = match change {
                Change::Watch(shard, on) => {
                    self.actions.push_back(Action::Watch { listener: id, shard, on });
                    continue;
                }
                Change::Take(shard, count) => {
                    self.actions.push_back(Action::Take { listener: id, shard, count });
                    continue;
                }
                Change::Stalled(shard) => (shard, true),
                Change::Recovered(shard) => (shard, false),
            };
            let holders = self
                .listeners
                .get(&id)
                .and_then(|l| l.shards.get(usize::from(shard)))
                .map(|p| p.holders.clone());
            for worker in holders.unwrap_or_default() {
                if let Some(membership) =
                    self.workers.get_mut(&worker).and_then(|state| state.membership_mut(id))
                    && std::mem::replace(&mut membership.stalled, stalled) != stalled
                {
                    self.notify(Notice::Stalled { worker, stalled });
                    self.refresh_and_pump(now, worker);
                }
            }
        }
    }

    /// Handles the result of [`Action::Sample`]: the queue lengths of a listener's shards, in
    /// order; `None` where unknown.
    pub fn sampled(&mut self, now: Time, id: ListenerId, waiting: &[Option<u32>]) {
        self.clock(now);
        let mut load = self.shard_loads(id);
        load.resize(waiting.len(), ShardLoad::default());
        let Some(group) = self.listeners.get_mut(&id).and_then(|l| l.group.as_mut()) else {
            return;
        };
        group.evaluate(now, waiting, &load);
        let next = group.next_check();
        self.wake_at(next);
        self.report_queues(now, id);
        self.evaluate_mode(now, id);
        self.update_group(now, id);
    }

    /// Adds the workers' own queues to their views, for the policy that re-dispatches connections
    /// of other shards.
    fn report_queues(&mut self, now: Time, id: ListenerId) {
        let Primary { listeners, workers, .. } = self;
        let Some(listener) = listeners.get(&id) else { return };
        let Some(group) = &listener.group else { return };
        let mut changed = Vec::new();
        for (number, shard) in (0..).zip(&listener.shards) {
            for worker in &shard.holders {
                if let Some(membership) =
                    workers.get_mut(worker).and_then(|state| state.membership_mut(id))
                    && std::mem::replace(&mut membership.queued, group.queue(number))
                        != group.queue(number)
                {
                    changed.push(*worker);
                }
            }
        }
        changed.into_iter().for_each(|worker| self.refresh_all(now, worker));
    }

    /// Emits the measurements that are due. Returns the time of the next ones.
    pub(super) fn measure(&mut self, now: Time) -> Option<Time> {
        // First, because a sample may find that shards have been renumbered.
        self.kill_hung_shards(now);
        let mut next: Option<Time> = None;
        let mut counted = std::mem::take(&mut self.counted);
        for (id, listener) in &self.listeners {
            let Some(group) = &listener.group else { continue };
            if group.next_check() > now {
                next = Some(next.map_or(group.next_check(), |n| n.min(group.next_check())));
                continue;
            }
            if !group.is_own() {
                let holders = listener.shards.iter().flat_map(|shard| shard.holders.iter());
                counted.extend(holders.copied());
            }
            self.last_actions.push_back(Action::Sample { listener: *id });
        }
        if self.listeners.values().any(|l| l.is_own() && l.needs_counts) {
            for (id, state) in self
                .workers
                .iter()
                .filter(|(_, state)| !state.reports && state.open > 0 && state.connected)
            {
                counted.push(*id);
                if state.descriptors.is_some() {
                    next = Some(next.map_or(now + COUNT_INTERVAL, |n| n.min(now + COUNT_INTERVAL)));
                }
            }
        }
        counted.sort_unstable();
        counted.dedup();
        for worker in counted.drain(..) {
            if self.workers.get(&worker).is_some_and(|state| !state.reports) {
                // Before the samples, whose evaluation uses the count.
                self.actions.push_front(Action::Count { worker });
            }
        }
        self.counted = counted;
        next
    }

    /// Kills workers that have hung for too long.
    fn kill_hung_shards(&mut self, now: Time) {
        let Some(limit) = self.config.hang_timeout else { return };
        let mut hung = Vec::new();
        for (id, listener) in &self.listeners {
            let Some(group) = &listener.group else { continue };
            for (number, shard) in (0..).zip(&listener.shards) {
                if let Some(age) = group
                    .hung_since(number)
                    .map(|since| now.since(since))
                    .filter(|age| *age >= limit)
                {
                    let listens = |worker: &&WorkerId| {
                        self.workers
                            .get(worker)
                            .and_then(|state| state.membership(*id))
                            .is_some_and(|membership| membership.listening)
                    };
                    hung.extend(shard.holders.iter().filter(listens).map(|worker| (*worker, age)));
                }
            }
        }
        for (worker, age) in hung {
            self.violated(
                worker,
                Violation::Hung(u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
            );
        }
    }

    /// Handles the exchange of two shards' numbers, which happens only after a worker has shut one
    /// of them down.
    pub fn renumbered(&mut self, now: Time, id: ListenerId, one: u16, other: u16) {
        let Some(listener) = self.listeners.get_mut(&id) else { return };
        let Some(group) = &mut listener.group else { return };
        if one == other || group.len().min(listener.shards.len()) <= usize::from(one.max(other)) {
            return;
        }
        group.swap(one, other);
        listener.shards.swap(usize::from(one), usize::from(other));
        for (shard, holders) in
            [one, other].map(|shard| (shard, listener.shards[usize::from(shard)].holders.clone()))
        {
            for worker in holders {
                if let Some(membership) =
                    self.workers.get_mut(&worker).and_then(|state| state.membership_mut(id))
                {
                    membership.shard = shard;
                }
                self.refresh_all(now, worker);
            }
        }
        self.update_group(now, id);
    }

    /// Handles the loss of the shards' numbers, after workers have shut several sockets down: new
    /// connections are spread evenly until the listener is opened again.
    pub fn numbers_lost(&mut self, now: Time, id: ListenerId) {
        let Some(listener) = self.listeners.get_mut(&id) else { return };
        let Some(group) = &mut listener.group else { return };
        if group.lose_numbers() {
            let at = listener.asked();
            let reason = if listener.auto.is_some() {
                "workers have shut its sockets down, so all connections are handed over in turn"
            } else {
                "workers have shut its sockets down, so the kernel spreads connections evenly over those that are left"
            };
            self.notify(Notice::NotSteered { at, reason: reason.into() });
            self.hold_in_turns(now, id, AutoMode::lose_numbers);
            self.update_group(now, id);
        }
    }
}
