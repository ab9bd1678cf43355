//! The scheduling of listeners, and its changes at run time.

use super::{Config, Needs, Primary};
use crate::event::AddressType;
use crate::id::{ListenerId, Time, WorkerId};
use crate::policy::{Callback, Pattern, Scheduling, Sticky, WorkerView};
use crate::steer::group::ShardGroup;

impl Primary {
    /// Returns what the shell must find out about a listener's connections.
    #[must_use]
    pub fn needs(&self, id: ListenerId) -> Needs {
        self.listeners.get(&id).map(|l| l.needs).unwrap_or_default()
    }

    /// Returns how a listener identifies clients.
    #[must_use]
    pub fn sticky(&self, id: ListenerId) -> Option<&Sticky> {
        self.listeners.get(&id).and_then(|l| l.scheduling.sticky())
    }

    /// Returns the function that chooses workers for a listener's connections.
    #[must_use]
    pub fn callback(&self, id: ListenerId) -> Option<Callback> {
        match self.scheduling(id) {
            Some(Scheduling::Callback(asked)) => Some(asked.clone()),
            _ => None,
        }
    }

    /// Returns the workers that a listener's policy has, by shard.
    #[must_use]
    pub fn views(&self, id: ListenerId) -> Vec<WorkerView> {
        let holders = self
            .listeners
            .get(&id)
            .into_iter()
            .flat_map(|l| &l.shards)
            .flat_map(|shard| &shard.holders);
        holders
            .filter_map(|worker| {
                self.workers
                    .get(worker)?
                    .memberships
                    .iter()
                    .find(|membership| membership.listener == id)?
                    .shown
            })
            .collect()
    }

    /// Returns whether the scheduling of any listener, present or future, goes by workers' weights.
    #[must_use]
    pub fn has_weights(&self) -> bool {
        let Config { scheduling, listeners, .. } = &self.config;
        scheduling.is_weighted()
            || listeners.iter().any(|(_, one)| one.is_weighted())
            // An open listener may keep its scheduling until it is opened again.
            || self.listeners.values().any(|listener| listener.scheduling.is_weighted())
    }

    /// Returns the effective scheduling of a listener.
    #[must_use]
    pub fn scheduling(&self, id: ListenerId) -> Option<&Scheduling> {
        self.listeners.get(&id).map(|l| &l.scheduling)
    }

    /// Returns the fraction of new connections that each shard of a steered listener gets; they add
    /// up to 1.
    #[must_use]
    pub fn shares(&self, id: ListenerId) -> Option<Vec<f64>> {
        self.listeners.get(&id).and_then(|l| l.group.as_ref()).map(ShardGroup::shares)
    }

    // ---- changes at run time ----

    /// Changes the scheduling of the listeners that match a pattern, or the default of all others.
    /// Open listeners change at once if the primary hands over their connections before and after,
    /// or their workers have sockets of a group before and after. The others are returned; they
    /// change when they are opened again.
    pub fn set_scheduling(
        &mut self,
        now: Time,
        pattern: Option<Pattern>,
        scheduling: Scheduling,
    ) -> Vec<ListenerId> {
        match pattern {
            None => self.config.scheduling = scheduling,
            Some(pattern) => {
                match self.config.listeners.iter_mut().find(|(known, _)| *known == pattern) {
                    Some((_, known)) => *known = scheduling,
                    None => self.config.listeners.push((pattern, scheduling)),
                }
            }
        }
        let mut later = Vec::new();
        for id in self.listeners.keys().copied().collect::<Vec<_>>() {
            let Some(listener) = self.listeners.get_mut(&id) else { continue };
            let asked = listener.asked();
            let chosen = self.config.scheduling_for(&asked);
            if chosen == listener.chosen {
                continue;
            }
            let scheduling = match chosen {
                Scheduling::Auto if asked.address_type == AddressType::Unix => {
                    Scheduling::RoundRobin
                }
                _ => chosen.clone(),
            };
            let can_change = match &listener.group {
                // The workers have the sockets of a group, whichever ones the connections come to.
                Some(group) => {
                    !group.keeps_shards()
                        && !matches!(scheduling, Scheduling::Shared | Scheduling::Steered(Some(_)))
                }
                None => scheduling.is_handed() && listener.scheduling.is_handed(),
            };
            if !can_change {
                if !asked.address_type.is_udp() || matches!(chosen, Scheduling::Steered(_)) {
                    later.push(id);
                }
                continue;
            }
            listener.chosen = chosen;
            listener.schedule(now, scheduling, self.config.seed ^ u64::from(id.0));
            self.policy_renewed(now, id);
        }
        later
    }

    /// Adds the workers of a listener to its new policy, which may choose otherwise for all
    /// connections that wait.
    pub(super) fn policy_renewed(&mut self, now: Time, id: ListenerId) {
        let Some(listener) = self.listeners.get(&id) else { return };
        let holders: Vec<WorkerId> =
            listener.shards.iter().flat_map(|shard| shard.holders.iter().copied()).collect();
        for worker in &holders {
            // The new policy has no workers yet.
            let Some(membership) =
                self.workers.get_mut(worker).and_then(|state| state.membership_mut(id))
            else {
                continue;
            };
            membership.shown = None;
            let reserved = std::mem::take(&mut membership.reserved);
            if let Some(listener) = self.listeners.get_mut(&id) {
                listener.reserved -= reserved.len();
                reserved.into_iter().rev().for_each(|waiting| listener.queue.push_front(waiting));
            }
        }
        // The program first, by which connections come to the primary or to the workers.
        self.update_shard_loads(now, id);
        // Add all workers before the first connection is dispatched.
        holders.iter().for_each(|worker| self.refresh_all(now, *worker));
        holders.iter().for_each(|worker| self.pace_reports(*worker));
        self.pump(now, id);
        if let Some(group) = self.listeners.get(&id).and_then(|l| l.group.as_ref()) {
            let next = group.next_check();
            self.wake_at(next);
        }
    }

    /// Sets whether a worker is held, so that it gets no connections of clients yet. Must be called
    /// before it asks for listeners. A held worker still accepts on a shared socket, and on its
    /// predecessor's shard of a steered listener that is sticky or UDP.
    pub fn hold(&mut self, now: Time, worker: WorkerId, held: bool) {
        let Some(state) = self.workers.get_mut(&worker) else { return };
        if std::mem::replace(&mut state.held, held) == held {
            return;
        }
        let memberships: Vec<ListenerId> =
            state.memberships.iter().map(|membership| membership.listener).collect();
        self.refresh_and_pump(now, worker);
        memberships.into_iter().for_each(|id| self.update_shard_loads(now, id));
    }

    /// Changes a worker's weight. Returns false if there is no such worker.
    pub fn set_weight(&mut self, now: Time, worker: WorkerId, weight: u32) -> bool {
        let Some(state) = self.workers.get_mut(&worker) else { return false };
        state.weight = weight;
        let memberships: Vec<ListenerId> =
            state.memberships.iter().map(|membership| membership.listener).collect();
        self.refresh_and_pump(now, worker);
        memberships.into_iter().for_each(|id| self.update_shard_loads(now, id));
        true
    }
}
