//! Listeners that no worker has: which of them close, and which wait for workers that are starting.

use std::time::Duration;

use super::listener::Listener;
use super::{Action, Primary};
use crate::event::{Address, AddressType, Notice};
use crate::id::{ListenerId, Time, WorkerId};
use crate::supervise::Claim;

/// Who may ask for the listeners that no worker has, besides the workers that are starting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Successors {
    /// Workers that are to be started. All listeners stay open.
    Awaited,
    /// Whoever is forked next, if anybody is. A listener stays open until a worker is ready that was forked after the listener lost its last
    /// worker.
    #[default]
    Unknown,
    /// Nobody. A listener stays open for a moment all the same where workers are not supervised: the program may not know yet of the end of its
    /// last worker.
    Nobody,
}

impl Primary {
    /// Workers are supervised, so each one that ends has a successor, also one that ends of its own accord.
    pub fn set_supervised(&mut self, supervised: bool) {
        self.supervised = supervised;
    }

    /// Whether a listener is open that no worker has, so that [`Primary::close_abandoned`] may have something to do.
    #[must_use]
    pub fn has_unused(&self) -> bool {
        !self.unused.is_empty()
    }

    /// A listener's socket is open elsewhere too (the service manager has it), so closing it would turn nobody away. It stays open until
    /// [`Primary::close_unused_listeners`].
    pub fn keep_open(&mut self, id: ListenerId) {
        if let Some(listener) = self.listeners.get_mut(&id) {
            listener.lasting = true;
        }
    }

    /// Closes the listeners that no worker has and that nobody who is starting may still ask for. Call after the successors of workers that
    /// ended are known. Returns whether a listener was closed.
    pub fn close_abandoned(&mut self, now: Time, successors: Successors) -> bool {
        if self.unused.is_empty() || successors == Successors::Awaited {
            return false;
        }
        if let Some(until) = self.starting_until(now) {
            self.wake_at(until);
            return false;
        }
        // Nobody is starting, so every worker is ready.
        let newest = self.workers.iter().filter(|(_, state)| state.is_there()).map(|(id, _)| *id).max();
        let moment = if self.supervised { Duration::ZERO } else { self.config.listen_patience };
        let (mut abandoned, mut later) = (Vec::new(), None);
        for (id, (newest_then, since)) in &self.unused {
            let due = *since + moment;
            if successors != Successors::Nobody && newest <= Some(*newest_then) {
                continue;
            } else if due <= now {
                abandoned.push(*id);
            } else {
                later = Some(later.map_or(due, |at: Time| at.min(due)));
            }
        }
        if let Some(at) = later {
            self.wake_at(at);
        }
        abandoned.iter().for_each(|listener| self.abandon(*listener));
        !abandoned.is_empty()
    }

    /// Closes the listeners that no worker has but these. After a reload that failed: what only its workers have opened waits for nobody.
    pub fn close_unused_but(&mut self, kept: &[ListenerId]) {
        let others: Vec<_> = self.unused.keys().filter(|id| !kept.contains(id)).copied().collect();
        others.iter().for_each(|listener| self.abandon(*listener));
    }

    /// Until when a worker may still ask for listeners because it has just started.
    fn starting_until(&mut self, now: Time) -> Option<Time> {
        let (start_timeout, listen_patience) = (self.config.start_timeout, self.config.listen_patience);
        let starting = self.workers.values_mut().filter(|state| state.is_there()).map(|state| {
            // The time of a fork is not known, so it counts from when it is first looked at.
            let seen = *state.seen.get_or_insert(now);
            state.listening_since.map_or(seen + start_timeout, |at| at + listen_patience)
        });
        starting.max().filter(|until| *until > now)
    }

    fn abandon(&mut self, id: ListenerId) {
        let at = self.bound_address(id);
        let dropped = self.close_listener(id);
        if let Some(at) = at {
            self.notify(Notice::ListenerClosed { at, dropped });
        }
    }

    /// Closes a listener that no worker has any more, because it is not to wait for a successor.
    pub(super) fn close_unused(&mut self, id: ListenerId) {
        let at = self.bound_address(id);
        let dropped = self.close_listener(id);
        if let Some(at) = at.filter(|_| dropped > 0) {
            self.notify(Notice::ListenerClosed { at, dropped });
        }
    }

    /// Closes a listener. Returns how many connections waited there; they are closed.
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

    // ---- what a new generation has to take over ----

    /// A worker has begun to listen: notes whether the listener is shared, and whether its name is the worker's own.
    pub(super) fn note_listening(&mut self, worker: WorkerId, id: ListenerId) {
        let Primary { workers, listeners, .. } = self;
        let (Some(listener), Some(state)) = (listeners.get_mut(&id), workers.get(&worker)) else { return };
        let Address { address, port, address_type, .. } = listener.asked();
        let is_own = |path: String| names(&path, [state.pid(), worker.0]);
        listener.is_fixed = port != Some(0) && !(address_type == AddressType::Unix && address.is_some_and(is_own));
        let holders = || listener.places.iter().flat_map(|place| place.holders.iter());
        // A worker and its successor are one worker, seen from outside.
        let is_other = |other: &WorkerId| workers.get(other).is_some_and(|s| s.slot != state.slot && s.listens_on(id));
        listener.is_shared = listener.is_shared || holders().any(is_other);
    }

    /// A new generation serves, so what the one before it had in common does not matter any more.
    pub fn forget_shared(&mut self) {
        let Primary { workers, listeners, .. } = self;
        for (id, listener) in listeners.iter_mut().filter(|(_, listener)| listener.is_shared) {
            let holders = listener.places.iter().flat_map(|place| place.holders.iter());
            let mut slots = holders.filter_map(|worker| workers.get(worker)).filter(|s| s.listens_on(*id)).map(|s| s.slot);
            let first = slots.next();
            listener.is_shared = slots.any(|slot| Some(slot) != first);
        }
    }

    /// The addresses that successors have to take over from the workers that serve: those that several workers listen on, or, where there is
    /// an `only` worker, all that it listens on under a name that does not depend on the process. Where no worker serves, those that were left
    /// open for successors.
    #[must_use]
    pub fn claims(&self, only: bool) -> Vec<Claim> {
        let serves = |worker: &WorkerId, id: ListenerId| {
            self.workers.get(worker).is_some_and(|state| state.is_able() && state.listens_on(id))
        };
        let counts = self.listeners.iter().filter(|(_, l)| l.asked().port != Some(0) && (l.is_shared || (only && l.is_fixed)));
        let mut claims: Vec<Claim> = counts
            .map(|(id, listener)| {
                let holders = listener.places.iter().flat_map(|place| place.holders.iter().copied());
                Claim { at: listener.asked(), holders: holders.filter(|worker| serves(worker, *id)).collect() }
            })
            .collect();
        let is_served = self.workers.keys().any(|worker| self.listeners.keys().any(|id| serves(worker, *id)));
        claims.retain(|claim| !is_served || !claim.holders.is_empty());
        claims
    }

    /// Where a worker listens under names that do not depend on the worker.
    #[must_use]
    pub fn fixed_addresses_of(&self, worker: WorkerId) -> Vec<Address> {
        let seats = self.workers.get(&worker).into_iter().flat_map(|state| state.seats.iter());
        let listeners = seats.filter(|seat| seat.listening).filter_map(|seat| self.listeners.get(&seat.listener));
        listeners.filter(|listener| listener.is_fixed).map(Listener::asked).collect()
    }

    /// Where a worker listens.
    #[must_use]
    pub fn addresses_of(&self, worker: WorkerId) -> Vec<Address> {
        let seats = self.workers.get(&worker).into_iter().flat_map(|state| state.seats.iter());
        seats.filter(|seat| seat.listening).filter_map(|seat| self.listener_address(seat.listener)).collect()
    }
}

/// Whether one of the numbers stands in a name, as a whole number.
fn names(name: &str, numbers: [u32; 2]) -> bool {
    name.split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .any(|number: u32| numbers.contains(&number))
}
