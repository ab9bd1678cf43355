//! Evens out the connections that clients keep open: workers with more than their share give idle
//! ones back, and workers with fewer get them.
//!
//! Begins a moment after a worker has joined a listener, and from time to time while connections
//! come. A round has two steps: all workers of a listener count its connections, and those with too
//! many are asked to return some ([`outgoing::rebalance`]), which come as [`Primary::may_move`] says.
//! Rounds follow each other until the shares are even or nothing moves any more.
//!
//! [`outgoing::rebalance`]: crate::wire::outgoing::rebalance

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::listener::Listener;
use super::membership::QueuedConnection;
use super::worker::Worker;
use super::{DEFAULT_WEIGHT, Primary, WorkerId};
use crate::event::Violation;
use crate::id::{ConnId, ListenerId, Time};
use crate::policy::Connection;
use crate::wire::outgoing;

/// Time from a worker's first connections to the first round.
const JOIN_DELAY: Duration = Duration::from_secs(1);
/// Time between two rounds while shares are uneven.
const ROUND_INTERVAL: Duration = Duration::from_secs(1);
/// Time from a new connection to the next round.
const INTERVAL: Duration = Duration::from_secs(10);
/// Time within which workers count.
const COUNT_TIMEOUT: Duration = Duration::from_millis(500);
/// Most connections of a listener that move in one round. It bounds the time that moving takes: a
/// move costs about as much as two hand-overs.
const MAX_MOVES: u32 = 512;
/// The interval doubles this many times at most while rounds move nothing.
const MAX_DOUBLINGS: u32 = 6;

/// When shares are next evened out.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Rebalance {
    /// The time of the next step.
    at: Option<Time>,
    /// Whether workers are counting.
    is_counting: bool,
    /// Number of workers' counts that are awaited.
    awaited: u32,
    /// Number of connections that workers were asked for in this round.
    asked: u32,
    /// Number of connections that workers with few have taken in this round.
    arrived: u32,
    /// Number of rounds in a row that have moved nothing.
    fruitless: u32,
}

impl Rebalance {
    /// Has the next round begin at this time, if not earlier. Returns the time if it was changed.
    fn begin_by(&mut self, at: Time) -> Option<Time> {
        if self.is_counting || self.at.is_some_and(|due| due <= at) {
            return None;
        }
        self.at = Some(at);
        self.at
    }

    fn interval(&self) -> Duration {
        INTERVAL * (1 << self.fruitless.min(MAX_DOUBLINGS))
    }
}

/// A worker's part in evening out one listener.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Share {
    /// Whether its count is awaited.
    is_counting: bool,
    /// The number of its connections.
    counted: Option<u32>,
    /// Number of connections that it may still return in this round.
    excess: u32,
    /// Number of connections that it is to get in this round.
    lack: u32,
    /// Number of those that are on their way to it.
    coming: u32,
}

impl Share {
    /// The worker has taken a connection.
    #[inline]
    pub(super) fn accepted(&mut self, rebalance: &mut Rebalance) {
        if self.coming > 0 {
            self.coming -= 1;
            rebalance.arrived = rebalance.arrived.saturating_add(1);
        }
    }

    /// The worker has rejected a connection, and gets no more of other workers in this round.
    pub(super) fn refused(&mut self) {
        (self.lack, self.coming) = (0, 0);
    }
}

impl Primary {
    /// A new connection may make the shares of listeners uneven.
    #[inline]
    pub(super) fn rebalance_soon(&mut self, now: Time) {
        if self.rebalance.at.is_none() && self.config.rebalance.is_possible() {
            let at = now + self.rebalance.interval();
            self.rebalance.at = Some(at);
            self.wake_at(at);
        }
    }

    /// A worker has joined listeners, which have none of the open connections yet.
    pub(super) fn rebalance_for_new_worker(&mut self, now: Time) {
        if !self.config.rebalance.is_possible() {
            return;
        }
        self.rebalance.fruitless = 0;
        if let Some(at) = self.rebalance.begin_by(now + JOIN_DELAY) {
            self.wake_at(at);
        }
    }

    /// Takes the next step if it is due. Returns the time of the one after.
    pub(super) fn continue_rebalance(&mut self, now: Time) -> Option<Time> {
        if self.rebalance.at.is_some_and(|at| at <= now) {
            self.rebalance.at = None;
            if self.rebalance.is_counting {
                self.even_out(now);
            } else {
                self.begin_round(now);
            }
        }
        self.rebalance.at
    }

    /// Has the workers count.
    fn begin_round(&mut self, now: Time) {
        let Rebalance { asked, arrived, .. } = self.rebalance;
        if asked > 0 {
            self.rebalance.fruitless =
                if arrived > 0 { 0 } else { self.rebalance.fruitless.saturating_add(1) };
        }
        (self.rebalance.asked, self.rebalance.arrived) = (0, 0);
        let mut counting = Vec::new();
        for (id, listener) in self.listeners.iter().filter(|(_, l)| self.is_evened_out(l)) {
            let workers = self.workers.iter().filter(|(_, state)| takes_part(state, *id));
            let workers: Vec<WorkerId> = workers.map(|(worker, _)| *worker).collect();
            if workers.len() > 1 {
                counting.extend(workers.iter().map(|worker| (*worker, *id, listener.key.clone())));
            }
        }
        for state in self.workers.values_mut() {
            for membership in &mut state.memberships {
                membership.share = Share::default();
            }
        }
        self.listeners.values_mut().for_each(|listener| listener.promised = 0);
        if counting.is_empty() {
            return;
        }
        for (worker, id, key) in &counting {
            if let Some(membership) =
                self.workers.get_mut(worker).and_then(|state| state.membership_mut(*id))
            {
                membership.share.is_counting = true;
            }
            self.send(*worker, |line| outgoing::count(line, key));
        }
        self.rebalance.is_counting = true;
        self.rebalance.awaited = u32::try_from(counting.len()).unwrap_or(u32::MAX);
        self.rebalance.at = Some(now + COUNT_TIMEOUT);
    }

    /// Handles a worker's count of a listener's connections. One that was not asked for is ignored:
    /// it may be late.
    pub(super) fn counted_connections(
        &mut self,
        now: Time,
        worker: WorkerId,
        key: &str,
        open: u32,
    ) {
        let Primary { config, workers, listeners, rebalance, .. } = self;
        let Some(state) = workers.get_mut(&worker) else { return };
        let counting = state.memberships.iter_mut().find(|membership| {
            membership.share.is_counting
                && listeners.get(&membership.listener).is_some_and(|l| l.key == key)
        });
        let Some(membership) = counting.filter(|_| rebalance.is_counting) else { return };
        // Its program will have those, too, that it has not accepted for a while. It may have counted
        // others whose acknowledgement follows.
        let in_flight = state.in_flight.iter().filter(|c| {
            c.listener == membership.listener && now.since(c.since) >= config.stale_after
        });
        let coming = u32::try_from(in_flight.count() + membership.reserved.len());
        membership.share.is_counting = false;
        membership.share.counted = Some(open.saturating_add(coming.unwrap_or(u32::MAX)));
        rebalance.awaited = rebalance.awaited.saturating_sub(1);
        if rebalance.awaited == 0 {
            rebalance.at = Some(now);
            self.wake_at(now);
        }
    }

    /// Asks workers with too many connections for the excess.
    fn even_out(&mut self, now: Time) {
        self.rebalance.is_counting = false;
        // Without those whose scheduling has changed since the count.
        let evened_out = self.listeners.iter().filter(|(_, l)| self.is_evened_out(l));
        let ids: Vec<ListenerId> = evened_out.map(|(id, _)| *id).collect();
        let mut asked = 0u32;
        let mut is_steered = false;
        for id in ids {
            asked = asked.saturating_add(self.even_out_listener(id));
        }
        for listener in self.listeners.values().filter(|listener| self.is_evened_out(listener)) {
            is_steered |= listener.group.is_some();
        }
        self.rebalance.asked = asked;
        if asked > 0 {
            self.rebalance.at = Some(now + ROUND_INTERVAL);
            if self.rebalance.fruitless > 0 {
                self.rebalance.at = Some(now + self.rebalance.interval());
            }
        } else if is_steered {
            // The primary sees none of its new connections.
            self.rebalance.at = Some(now + self.rebalance.interval());
        }
    }

    /// Returns how many connections it has asked for.
    fn even_out_listener(&mut self, id: ListenerId) -> u32 {
        let Some(listener) = self.listeners.get(&id) else { return 0 };
        let (key, is_weighted) = (listener.key.clone(), listener.chosen.is_weighted());
        let weight = |state: &Worker| if is_weighted { state.weight } else { DEFAULT_WEIGHT };
        let counts: Vec<(WorkerId, u32, u32)> = self
            .workers
            .iter()
            .filter(|(_, state)| takes_part(state, id))
            .filter_map(|(worker, state)| {
                Some((*worker, state.membership(id)?.share.counted?, weight(state)))
            })
            .collect();
        let plan = even_shares(&counts);
        let mut asked = 0;
        for ((worker, ..), (excess, lack)) in counts.iter().zip(plan) {
            let Some(state) = self.workers.get_mut(worker) else { continue };
            state.may_offer = state.may_offer.saturating_add(excess);
            if let Some(membership) = state.membership_mut(id) {
                (membership.share.excess, membership.share.lack) = (excess, lack);
            }
            if excess > 0 {
                asked += excess;
                self.send(*worker, |line| outgoing::rebalance(line, &key, excess));
            }
        }
        asked
    }

    /// The listener of a connection that a worker returns which is not to leave. `None` if it has to
    /// keep it: the round is over, nobody can take it now, or too many wait.
    ///
    /// # Errors
    /// If it offers more than it was ever asked for.
    pub(super) fn may_rebalance(
        &mut self,
        worker: WorkerId,
        key: &str,
    ) -> Result<Option<ListenerId>, Violation> {
        let Some(state) = self.workers.get_mut(&worker) else { return Ok(None) };
        let Some(left) = state.may_offer.checked_sub(1) else {
            return Err(Violation::Malformed("a connection moved without need".into()));
        };
        state.may_offer = left;
        let Some(state) = self.workers.get(&worker) else { return Ok(None) };
        let own = state.memberships.iter().find_map(|membership| {
            let listener = self.listeners.get(&membership.listener)?;
            let is_due = membership.share.excess > 0 && listener.key == key;
            (is_due && self.is_evened_out(listener) && self.has_room_for_moved(listener))
                .then_some(membership.listener)
        });
        let Some(id) = own else { return Ok(None) };
        let places = self.lacking(self.last_time, id).map(|(lack, ..)| lack).sum::<u32>();
        let (Some(listener), Some(membership)) = (
            self.listeners.get_mut(&id),
            self.workers.get_mut(&worker).and_then(|state| state.membership_mut(id)),
        ) else {
            return Ok(None);
        };
        if places <= listener.promised {
            return Ok(None);
        }
        listener.promised += 1;
        membership.share.excess -= 1;
        Ok(Some(id))
    }

    /// The workers that can get connections which others return: how many each lacks, and whether it
    /// is ready for one. The others soon will be.
    fn lacking(&self, now: Time, id: ListenerId) -> impl Iterator<Item = (u32, bool, WorkerId)> {
        let candidates = self.workers.iter().filter(move |(_, state)| takes_part(state, id));
        candidates.filter_map(move |(worker, state)| {
            let membership = state.membership(id).filter(|membership| membership.share.lack > 0)?;
            let is_ready = membership.shown?.ready && membership.reserved.is_empty();
            // It has as many under way as it may have, and answers.
            let answers = state
                .in_flight
                .front()
                .is_none_or(|oldest| now.since(oldest.since) < self.config.stale_after);
            let is_soon = answers
                && !state.blocked
                && state.resyncs_until.is_none()
                && state.starved_until <= now
                && membership.cooling_until <= now;
            (is_ready || is_soon).then_some((membership.share.lack, is_ready, *worker))
        })
    }

    /// Dispatches a connection that a worker with too many has returned to the worker that lacks
    /// most. If there is none any more, the policy chooses.
    pub fn rebalanced(&mut self, now: Time, id: ListenerId, conn: ConnId, about: Connection) {
        self.clock(now);
        let lacking = self.lacking(now, id).max_by_key(|(lack, is_ready, _)| (*is_ready, *lack));
        if let Some(listener) = self.listeners.get_mut(&id) {
            listener.promised = listener.promised.saturating_sub(1);
        }
        let (Some((_, is_ready, worker)), Some(listener)) = (lacking, self.listeners.get_mut(&id))
        else {
            return self.accepted(now, id, conn, about);
        };
        let Some(membership) =
            self.workers.get_mut(&worker).and_then(|state| state.membership_mut(id))
        else {
            return;
        };
        membership.share.lack -= 1;
        membership.share.coming += 1;
        let waiting = QueuedConnection { conn, about, tries: 0 };
        if is_ready {
            self.deliver(now, worker, id, waiting);
        } else {
            listener.reserved += 1;
            membership.reserved.push_back(waiting);
        }
    }

    /// Whether connections of a listener may move from one worker to any other.
    fn is_evened_out(&self, listener: &Listener) -> bool {
        listener.policy.is_some()
            && !listener.needs.bytes
            && !listener.needs.answer
            && listener.scheduling.sticky().is_none()
            && self.config.rebalances(&listener.asked())
    }
}

/// Whether a worker counts and moves connections of a listener.
fn takes_part(state: &Worker, id: ListenerId) -> bool {
    state.is_able()
        && (state.batched || state.moves_idle)
        && state.membership(id).is_some_and(|membership| membership.admitted)
}

/// Returns for each worker, given its connections and its weight, how many it is to return and how
/// many it is to get. Small differences stay.
fn even_shares(counts: &[(WorkerId, u32, u32)]) -> Vec<(u32, u32)> {
    let total: u64 = counts.iter().map(|(_, open, _)| u64::from(*open)).sum();
    let weights: u64 = counts.iter().map(|(_, _, weight)| u64::from(*weight)).sum();
    let mut shares = vec![(0, 0); counts.len()];
    if counts.len() < 2 || weights == 0 {
        return shares;
    }
    let share = |weight: u32, round_up: bool| {
        let whole = total.saturating_mul(weight.into());
        let share = if round_up { whole.div_ceil(weights) } else { whole / weights };
        u32::try_from(share).unwrap_or(u32::MAX)
    };
    for ((excess, _), (_, open, weight)) in shares.iter_mut().zip(counts) {
        *excess = open.saturating_sub(share(*weight, true));
    }
    let is_uneven = shares
        .iter()
        .zip(counts)
        .any(|((excess, _), (_, open, _))| *excess > 1 && *excess >= (open - excess) / 8);
    if !is_uneven {
        shares.iter_mut().for_each(|(excess, _)| *excess = 0);
        return shares;
    }
    // Where shares are no whole numbers, some get one more than others.
    let mut received = shares.iter().map(|(excess, _)| *excess).fold(0, u32::saturating_add);
    received = received.min(MAX_MOVES);
    let mut returned = received;
    for round_up in [false, true] {
        for ((_, lack), (_, open, weight)) in shares.iter_mut().zip(counts) {
            let more =
                share(*weight, round_up).saturating_sub(open.saturating_add(*lack)).min(received);
            *lack += more;
            received -= more;
        }
    }
    returned -= received;
    for (excess, _) in &mut shares {
        *excess = (*excess).min(returned);
        returned -= *excess;
    }
    shares
}

#[cfg(test)]
mod tests;
