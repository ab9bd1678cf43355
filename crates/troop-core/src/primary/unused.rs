//! Listeners without workers: which of them close, and which wait for a successor.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::lapsed::Lapsed;
use super::listener::{Listened, Listener};
use super::{Action, Primary};
use crate::asked::{Asked, Numbers};
use crate::event::{Address, Notice};
use crate::id::{ListenerId, Time, WorkerId};
use crate::supervise::Claim;

/// The workers that may still ask for unused listeners, besides those that are starting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Successors {
    /// Workers will be started. All listeners stay open.
    Awaited,
    /// A worker may be forked. A listener stays open until a worker is ready that was forked after
    /// the listener lost its last worker.
    #[default]
    Unknown,
    /// None. Without supervision a listener still stays open for a moment, because the program may
    /// not know of the end of its last worker yet.
    Nobody,
}

/// A listener without workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Unused {
    /// The newest worker at the time when it became unused.
    newest: WorkerId,
    since: Time,
    /// Its last worker.
    pub(super) last: WorkerId,
    /// Whether that worker closed it by itself.
    closed: bool,
    /// Whether a successor should take it over; if none does, it is reported as missed.
    pub(super) is_due: bool,
}

impl Primary {
    /// Records that the last worker of a listener has left it.
    pub(super) fn note_unused(&mut self, id: ListenerId, last: WorkerId, closed: bool) {
        self.unused.insert(id, self.unused_since_now(last, closed));
    }

    pub(super) fn unused_since_now(&self, last: WorkerId, closed: bool) -> Unused {
        let (newest, since) = (WorkerId(self.last_worker), self.last_time);
        let is_due = !self.has_failed_to_replace(last);
        Unused { newest, since, last, closed, is_due }
    }

    /// Whether a worker leaves whose predecessor serves on: nobody is to take over what only a
    /// replacement that has failed had opened.
    fn has_failed_to_replace(&self, worker: WorkerId) -> bool {
        let Some(slot) = self.workers.get(&worker).map(|state| state.slot) else { return false };
        self.workers
            .iter()
            .any(|(id, state)| *id < worker && state.slot == slot && state.is_there())
    }

    /// Excuses a worker's successors from taking over its listeners.
    pub fn excuse(&mut self, worker: WorkerId) {
        self.unused
            .values_mut()
            .filter(|unused| unused.last == worker)
            .for_each(|unused| unused.is_due = false);
        self.lapsed.retain(|_, lapsed| lapsed.unused.last != worker);
    }

    /// Returns the time until which a listener stays open whose last worker has closed it and still
    /// runs: the worker may be ending, and may have closed its servers first. `None` if it has
    /// ended or closed its channel, so that the listener waits for a successor.
    fn closed_until(&self, unused: &Unused) -> Option<Time> {
        let state =
            self.workers.get(&unused.last).filter(|state| unused.closed && state.is_there())?;
        let goes_on = state.memberships.iter().any(|membership| membership.listening);
        Some(
            unused.since
                + if goes_on { self.config.listen_patience } else { self.config.start_timeout },
        )
    }

    /// Sets whether workers are supervised. If so, every worker that ends has a successor, even if
    /// it disconnected by itself.
    pub fn set_supervised(&mut self, supervised: bool) {
        self.supervised = supervised;
    }

    /// Whether there are unused or lapsed listeners, which [`Primary::close_abandoned`] may handle.
    #[must_use]
    pub fn has_unused(&self) -> bool {
        !(self.unused.is_empty() && self.lapsed.is_empty())
    }

    /// Keeps a listener open until [`Primary::close_unused_listeners`], because its socket is open
    /// elsewhere too (in the service manager), so that closing it would not reject clients.
    pub fn keep_open(&mut self, id: ListenerId) {
        if let Some(listener) = self.listeners.get_mut(&id) {
            listener.lasting = true;
        }
    }

    /// Closes unused listeners that no starting worker may ask for, and reports lapsed ones that no
    /// successor has opened. Call it once the successors of ended workers are known. Returns whether
    /// there were any.
    pub fn close_abandoned(&mut self, now: Time, successors: Successors) -> bool {
        if !self.has_unused() || successors == Successors::Awaited {
            return false;
        }
        if let Some(until) = self.starting_until(now) {
            self.wake_at(until);
            return false;
        }
        // No worker is starting, so all are ready.
        let newest =
            self.workers.iter().filter(|(_, state)| state.is_there()).map(|(id, _)| *id).max();
        let moment = if self.supervised { Duration::ZERO } else { self.config.listen_patience };
        let (mut abandoned, mut later) = (Vec::new(), None);
        let lapsed = self.lapsed.iter().map(|(id, lapsed)| (id, &lapsed.unused));
        for (id, unused) in self.unused.iter().chain(lapsed) {
            let closed_until = self.closed_until(unused);
            let due = closed_until.unwrap_or(unused.since + moment);
            if closed_until.is_none()
                && successors != Successors::Nobody
                && newest <= Some(unused.newest)
            {
                continue;
            } else if due <= now {
                abandoned.push((*id, unused.is_due && closed_until.is_none()));
            } else {
                later = Some(later.map_or(due, |at: Time| at.min(due)));
            }
        }
        if let Some(at) = later {
            self.wake_at(at);
        }
        abandoned.iter().for_each(|(listener, is_due)| self.abandon(*listener, *is_due));
        !abandoned.is_empty()
    }

    /// Closes all unused listeners except `kept`: after a failed reload, those that only its
    /// workers have opened have no successor.
    pub fn close_unused_but(&mut self, kept: &[ListenerId]) {
        let others: Vec<_> = self.unused.keys().filter(|id| !kept.contains(id)).copied().collect();
        others.iter().for_each(|listener| self.abandon(*listener, false));
        self.lapsed.retain(|id, _| kept.contains(id));
    }

    /// Returns the listeners that [`Primary::close_unused_but`] must keep if a reload that begins
    /// now fails.
    #[must_use]
    pub fn listeners_to_keep(&self) -> Vec<ListenerId> {
        self.listeners.keys().chain(self.lapsed.keys()).copied().collect()
    }

    /// Closes all unused listeners, at the end of a cluster. From then on nothing is missed.
    pub fn close_unused_listeners(&mut self) {
        self.is_ending = true;
        self.lapsed.clear();
        let unused: Vec<_> =
            self.listeners.iter().filter(|(_, l)| l.is_unused()).map(|(id, _)| *id).collect();
        for listener in unused {
            self.close_unused(listener);
        }
    }

    /// Changes [`keep_listeners`](super::Config::keep_listeners); false closes unused ones.
    pub fn set_keep_listeners(&mut self, keep: bool) {
        self.config.keep_listeners = keep;
        if keep {
            return;
        }
        let all: Vec<_> =
            self.listeners.iter().filter(|(_, l)| l.is_unused()).map(|(id, _)| *id).collect();
        for id in all {
            if let Some(unused) = self.unused.get(&id).copied() {
                self.note_lapsed(id, unused);
            }
            self.close_unused(id);
        }
    }

    /// Returns the time until which a worker that has just started may ask for listeners.
    fn starting_until(&mut self, now: Time) -> Option<Time> {
        let (start_timeout, listen_patience) =
            (self.config.start_timeout, self.config.listen_patience);
        let starting = self.workers.values_mut().filter(|state| state.is_there()).map(|state| {
            // The time of the fork is unknown, so it counts from the first check.
            let seen = *state.seen.get_or_insert(now);
            state.listening_since.map_or(seen + start_timeout, |at| at + listen_patience)
        });
        starting.max().filter(|until| *until > now)
    }

    /// Closes a listener that another one replaces. If its worker died, its address is missed until
    /// a worker listens there again.
    pub(super) fn abandon_for_another(&mut self, id: ListenerId) {
        let is_due = self.unused.get(&id).is_some_and(|unused| unused.is_due && !unused.closed);
        self.abandon(id, is_due);
    }

    fn abandon(&mut self, id: ListenerId, is_due: bool) {
        if let Some(Lapsed { unused, asked, at, .. }) = self.lapsed.remove(&id) {
            if is_due {
                self.miss(at, asked, unused.last);
            }
            return;
        }
        let (at, last) = (self.bound_address(id), self.unused.get(&id).map(|unused| unused.last));
        let listener = self.listeners.get(&id).filter(|listener| is_due && listener.is_fixed);
        let asked = listener.map(Listener::asked_for);
        let dropped = self.close_listener(id);
        let Some(at) = at else { return };
        self.notify(Notice::ListenerClosed { at: at.clone(), dropped });
        if let (Some(asked), Some(last)) = (asked, last) {
            self.miss(at, asked, last);
        }
    }

    /// Closes an unused listener that shall not wait for a successor.
    pub(super) fn close_unused(&mut self, id: ListenerId) {
        let at = self.bound_address(id);
        let dropped = self.close_listener(id);
        if let Some(at) = at.filter(|_| dropped > 0) {
            self.notify(Notice::ListenerClosed { at, dropped });
        }
    }

    /// Closes a listener and its waiting connections, and returns their number.
    fn close_listener(&mut self, id: ListenerId) -> usize {
        self.unused.remove(&id);
        let Some(listener) = self.listeners.remove(&id) else { return 0 };
        self.keys.remove(&listener.listen_key);
        let dropped = listener.queue.len();
        for waiting in listener.queue {
            self.actions.push_back(Action::Release { conn: waiting.conn, taken: false });
        }
        self.actions.push_back(Action::Unbind { listener: id });
        dropped
    }

    // ---- claims: what a new generation must take over ----

    /// Records whether a listener is shared, and whether its address may be specific to the worker
    /// that listens.
    pub(super) fn note_listening(&mut self, worker: WorkerId, id: ListenerId) {
        let Primary { workers, listeners, .. } = self;
        let (Some(listener), Some(state)) = (listeners.get_mut(&id), workers.get(&worker)) else {
            return;
        };
        let asked = listener.asked();
        self.lapsed.retain(|_, lapsed| lapsed.asked.at != asked);
        let Address { port, address_type, .. } = asked;
        listener.is_fixed = !(port == Some(0) || (port.is_none() && address_type.is_udp()));
        let numbers = Numbers { pid: state.pid(), id: worker };
        listener.listened = match listener.listened {
            Listened::Nobody => Listened::One(numbers),
            Listened::One(other) if other == numbers => Listened::One(numbers),
            Listened::One(_) | Listened::Several => Listened::Several,
        };
        let holders = || listener.shards.iter().flat_map(|shard| shard.holders.iter());
        // A worker and its successor count as one.
        let is_other = |other: &WorkerId| {
            workers.get(other).is_some_and(|s| s.slot != state.slot && s.listens_on(id))
        };
        listener.is_shared = listener.is_shared || holders().any(is_other);
    }

    /// Forgets which listeners were shared, once a new generation serves.
    pub fn forget_shared(&mut self) {
        let Primary { workers, listeners, unused, .. } = self;
        unused.values_mut().for_each(|unused| unused.is_due = false);
        self.lapsed.clear();
        for (id, listener) in listeners.iter_mut().filter(|(_, listener)| listener.is_shared) {
            let holders = listener.shards.iter().flat_map(|shard| shard.holders.iter());
            let mut slots = holders
                .filter_map(|worker| workers.get(worker))
                .filter(|s| s.listens_on(*id))
                .map(|s| s.slot);
            let first = slots.next();
            listener.is_shared = slots.any(|slot| Some(slot) != first);
        }
    }

    /// Returns the addresses that successors must take over: those that workers asked for, and those
    /// that are left for successors, open or lapsed. An address is shared if several workers listen
    /// there, or if there is a single worker (`only`).
    #[must_use]
    pub fn claims(&self, only: bool) -> Vec<Claim> {
        let serves = |worker: &WorkerId, id: ListenerId| {
            self.workers.get(worker).is_some_and(|state| state.is_able() && state.listens_on(id))
        };
        let counts = self
            .listeners
            .iter()
            .filter(|(_, l)| l.asked().port != Some(0) && (l.is_shared || l.is_fixed));
        let is_served =
            self.workers.keys().any(|worker| self.listeners.keys().any(|id| serves(worker, *id)));
        let lapsed = self.lapsed.values().map(|lapsed| Claim {
            at: lapsed.asked.at.clone(),
            named_after: lapsed.asked.named_after,
            holders: Vec::new(),
            is_shared: (lapsed.is_shared || only) && !is_served,
        });
        counts
            .filter_map(|(id, listener)| {
                let holders =
                    listener.shards.iter().flat_map(|shard| shard.holders.iter().copied());
                let holders: Vec<_> = holders.filter(|worker| serves(worker, *id)).collect();
                let is_due = || self.unused.get(id).is_some_and(|unused| unused.is_due);
                // While other workers serve the address, any new worker may take it over; otherwise
                // the first one must.
                let is_shared = (listener.is_shared || only) && !(holders.is_empty() && is_served);
                (!holders.is_empty() || is_due()).then(|| Claim {
                    at: listener.asked(),
                    named_after: listener.asked_for().named_after,
                    holders,
                    is_shared,
                })
            })
            .chain(lapsed)
            .collect()
    }

    /// Returns the addresses of a worker that do not depend on it. A path with its number counts as
    /// its own until another worker has the same one.
    #[must_use]
    pub fn fixed_addresses_of(&self, worker: WorkerId) -> Vec<Address> {
        let memberships =
            self.workers.get(&worker).into_iter().flat_map(|state| state.memberships.iter());
        let listeners = memberships
            .filter(|membership| membership.listening)
            .filter_map(|membership| self.listeners.get(&membership.listener));
        let fixed = listeners.filter(|listener| listener.is_fixed).map(Listener::asked_for);
        fixed.filter(|asked| asked.named_after.is_none()).map(|asked| asked.at).collect()
    }

    /// Returns the addresses of a worker, as the first worker asked for them, with the ports that
    /// the kernel chose.
    #[must_use]
    pub fn asked_by(&self, worker: WorkerId) -> Vec<Asked> {
        let Some(state) = self.workers.get(&worker) else { return Vec::new() };
        let (numbers, memberships) =
            (Numbers { pid: state.pid(), id: worker }, state.memberships.iter());
        let address = |id| match self.listener_address(id)? {
            Address { port: Some(0), .. } => self.bound_address(id),
            asked => Some(asked),
        };
        memberships
            .filter(|membership| membership.listening)
            .filter_map(|membership| address(membership.listener))
            .map(|at| Asked::new(at, numbers))
            .collect()
    }
}
