//! Listeners without workers: which of them close, and which wait for a successor.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::listener::Listener;
use super::{Action, Primary};
use crate::event::{Address, AddressType, Notice};
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
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Unused {
    /// The newest worker at the time when it became unused.
    newest: WorkerId,
    since: Time,
    /// Its last worker.
    last: WorkerId,
    /// Whether that worker closed it by itself.
    closed: bool,
    /// Whether a successor should take it over; if none does, it is reported as missed.
    is_due: bool,
}

impl Primary {
    /// Records that the last worker of a listener has left it.
    pub(super) fn note_unused(&mut self, id: ListenerId, last: WorkerId, closed: bool) {
        let (newest, since) = (WorkerId(self.last_worker), self.last_time);
        self.unused.insert(id, Unused { newest, since, last, closed, is_due: true });
    }

    /// Excuses a worker's successors from taking over its listeners.
    pub fn excuse(&mut self, worker: WorkerId) {
        self.unused
            .values_mut()
            .filter(|unused| unused.last == worker)
            .for_each(|unused| unused.is_due = false);
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

    /// Whether there are unused listeners, which [`Primary::close_abandoned`] may close.
    #[must_use]
    pub fn has_unused(&self) -> bool {
        !self.unused.is_empty()
    }

    /// Keeps a listener open until [`Primary::close_unused_listeners`], because its socket is open
    /// elsewhere too (in the service manager), so that closing it would not reject clients.
    pub fn keep_open(&mut self, id: ListenerId) {
        if let Some(listener) = self.listeners.get_mut(&id) {
            listener.lasting = true;
        }
    }

    /// Closes unused listeners that no starting worker may ask for. Call it once the successors of
    /// ended workers are known. Returns whether a listener was closed.
    pub fn close_abandoned(&mut self, now: Time, successors: Successors) -> bool {
        if self.unused.is_empty() || successors == Successors::Awaited {
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
        for (id, unused) in &self.unused {
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
    }

    /// Closes all unused listeners, at the end of a cluster.
    pub fn close_unused_listeners(&mut self) {
        let unused: Vec<_> =
            self.listeners.iter().filter(|(_, l)| l.is_unused()).map(|(id, _)| *id).collect();
        for listener in unused {
            self.close_unused(listener);
        }
    }

    /// Changes [`keep_listeners`](super::Config::keep_listeners); false closes unused ones.
    pub fn set_keep_listeners(&mut self, keep: bool) {
        self.config.keep_listeners = keep;
        if !keep {
            self.close_unused_listeners();
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
        let (at, listener) = (self.bound_address(id), self.listeners.get(&id));
        let counts = self.supervised && is_due;
        let missed = listener.filter(|listener| counts && listener.is_fixed).map(Listener::asked);
        let dropped = self.close_listener(id);
        if let Some(at) = at {
            self.notify(Notice::ListenerClosed { at, dropped, missed });
        }
    }

    /// Closes an unused listener that shall not wait for a successor.
    pub(super) fn close_unused(&mut self, id: ListenerId) {
        let at = self.bound_address(id);
        let dropped = self.close_listener(id);
        if let Some(at) = at.filter(|_| dropped > 0) {
            self.notify(Notice::ListenerClosed { at, dropped, missed: None });
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

    /// Records whether a listener is shared, and whether its address is specific to the worker that
    /// listens.
    pub(super) fn note_listening(&mut self, worker: WorkerId, id: ListenerId) {
        let Primary { workers, listeners, .. } = self;
        let (Some(listener), Some(state)) = (listeners.get_mut(&id), workers.get(&worker)) else {
            return;
        };
        let Address { address, port, address_type, .. } = listener.asked();
        let is_own = |path: String| names(&path, [state.pid(), worker.0]);
        let is_chosen = port == Some(0) || (port.is_none() && address_type.is_udp());
        let is_named_after_it = address_type == AddressType::Unix && address.is_some_and(is_own);
        listener.is_fixed = !(is_chosen || is_named_after_it);
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

    /// Returns the addresses that successors must take over: those that do not depend on the
    /// worker, and those that are kept open for successors. An address is shared if several workers
    /// listen there, or if there is a single worker (`only`).
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
                    holders,
                    is_shared,
                })
            })
            .collect()
    }

    /// Returns the addresses of a worker that do not depend on it.
    #[must_use]
    pub fn fixed_addresses_of(&self, worker: WorkerId) -> Vec<Address> {
        let memberships =
            self.workers.get(&worker).into_iter().flat_map(|state| state.memberships.iter());
        let listeners = memberships
            .filter(|membership| membership.listening)
            .filter_map(|membership| self.listeners.get(&membership.listener));
        listeners.filter(|listener| listener.is_fixed).map(Listener::asked).collect()
    }

    /// Returns the addresses of a worker, as the first worker asked for them, with the ports that
    /// the kernel chose.
    #[must_use]
    pub fn addresses_of(&self, worker: WorkerId) -> Vec<Address> {
        let memberships =
            self.workers.get(&worker).into_iter().flat_map(|state| state.memberships.iter());
        let address = |id| match self.listener_address(id)? {
            Address { port: Some(0), .. } => self.bound_address(id),
            asked => Some(asked),
        };
        memberships
            .filter(|membership| membership.listening)
            .filter_map(|membership| address(membership.listener))
            .collect()
    }
}

/// Whether a path contains one of the numbers: in the file name, or as a whole word of a directory
/// name, because directory names may be random letters and digits.
fn names(path: &str, numbers: [u32; 2]) -> bool {
    let is_one = |word: &str| word.parse().is_ok_and(|number: u32| numbers.contains(&number));
    let (directory, file) = path.rsplit_once('/').unwrap_or(("", path));
    directory.split(|c: char| !c.is_alphanumeric()).any(is_one)
        || file.split(|c: char| !c.is_ascii_digit()).any(is_one)
}
