//! Connections that workers accept by themselves on activated sockets: how many they have, and
//! sockets from which no worker accepts although clients wait.
//!
//! The kernel counts no accepted connections, so the shell inspects now and then which are open:
//! what was opened and closed between two inspections is not counted.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Action, Cluster, Unshared};
use crate::id::{Time, WorkerId};
use crate::supervise::Vacancy;

/// Interval between two inspections.
const INTERVAL: Duration = Duration::from_secs(1);
/// Inspections take one part of this many of the time at most.
const PAUSE_FACTOR: u32 = 200;
/// Time for which clients wait, and workers are ready, before a socket counts as ignored if a worker
/// listens elsewhere instead.
const ELSEWHERE_TIMEOUT: Duration = Duration::from_secs(5);
/// The same where nothing is seen that explains it: a program may be slow to start.
const IGNORED_TIMEOUT: Duration = Duration::from_secs(20);

/// The number of quick ends in a slot after which a worker that is in the way is searched for.
const QUICK_ENDS: u32 = 2;

/// The connections of activated sockets at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Inspection {
    /// The workers that could be inspected.
    pub workers: Vec<WorkerConnections>,
    /// The sockets, in their order.
    pub sockets: Vec<SocketConnections>,
    /// What is in the way of accepting, if that was asked for.
    pub hindrances: Option<Hindrances>,
    /// The time that it took.
    pub took: Duration,
}

/// The connections of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerConnections {
    /// The worker.
    pub worker: WorkerId,
    /// The number of open connections.
    pub open: u32,
    /// The number of those that were not open at the inspection before.
    pub new: u32,
}

/// The connections of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SocketConnections {
    /// The number of open ones that were accepted.
    pub accepted: u32,
    /// The number of those that wait.
    pub waiting: u32,
}

/// What may explain that no worker accepts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Hindrances {
    /// An address on which a worker listens by itself.
    pub listens: Option<(WorkerId, String)>,
    /// Whether a worker has started other processes.
    pub has_children: bool,
}

/// A socket from which no worker accepts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ignored {
    /// The number of the socket, from 0.
    pub socket: usize,
    /// The number of connections that waited when this was found.
    pub waiting: u32,
    /// What may explain it.
    pub hindrances: Hindrances,
}

/// What is known about a socket.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Queue {
    /// Since when clients wait and none was seen to be accepted.
    since: Option<Time>,
    waiting: u32,
    /// A worker has accepted a connection since the last worker was started.
    is_served: bool,
    ignored: Option<Ignored>,
}

/// Inspections of activated sockets, and what follows from them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptedConnections {
    inspect_at: Option<Time>,
    queues: Vec<Queue>,
    /// Since when a worker is ready.
    ready_since: Option<Time>,
    /// Whether the next inspection must find hindrances.
    needs_hindrances: bool,
}

/// A change of what is known about a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// No worker accepts from it.
    Ignored(Ignored),
    /// One does again.
    Served(usize),
}

impl AcceptedConnections {
    /// Begins the inspections of this many sockets.
    pub fn start(&mut self, now: Time, sockets: usize) {
        self.queues.resize(sockets, Queue::default());
        self.inspect_at = (sockets > 0).then_some(now + INTERVAL);
    }

    /// Returns the time of the next inspection.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        self.inspect_at
    }

    /// Whether an inspection is due, and if so, whether it must find hindrances. The next one follows its
    /// result.
    pub fn due(&mut self, now: Time) -> Option<bool> {
        self.inspect_at.filter(|at| *at <= now)?;
        self.inspect_at = None;
        Some(std::mem::take(&mut self.needs_hindrances))
    }

    /// No result comes of an inspection that is under way.
    pub fn resumed(&mut self, now: Time) {
        if self.inspect_at.is_none() && !self.queues.is_empty() {
            self.inspect_at = Some(now + INTERVAL);
        }
    }

    /// Handles the start of a worker, which may do otherwise than its predecessor.
    pub fn forked(&mut self) {
        self.queues.iter_mut().for_each(|queue| queue.is_served = false);
    }

    /// Returns the number of connections that waited in a socket at the last inspection.
    fn waiting(&self, socket: usize) -> u32 {
        self.queues.get(socket).map_or(0, |queue| queue.waiting)
    }

    /// Returns the sockets from which no worker accepts.
    pub fn ignored(&self) -> impl Iterator<Item = &Ignored> {
        self.queues.iter().filter_map(|queue| queue.ignored.as_ref())
    }

    /// Handles the result of a inspection. `is_ready` is whether a worker is ready, `is_awaiting` whether
    /// one was seen to wait for connections: on the only socket, it accepts them.
    pub fn inspected(
        &mut self,
        now: Time,
        inspection: &Inspection,
        is_ready: bool,
        is_awaiting: bool,
    ) -> Vec<Change> {
        self.inspect_at =
            (!self.queues.is_empty()).then(|| now + INTERVAL.max(inspection.took * PAUSE_FACTOR));
        self.ready_since = is_ready.then(|| self.ready_since.unwrap_or(now));
        let is_only = self.queues.len() == 1;
        let mut changes = Vec::new();
        for (socket, (queue, seen)) in self.queues.iter_mut().zip(&inspection.sockets).enumerate() {
            let is_accepted = seen.accepted > 0 || seen.waiting < queue.waiting;
            queue.waiting = seen.waiting;
            queue.is_served |= is_accepted;
            if is_accepted || seen.waiting == 0 {
                queue.since = None;
            } else {
                queue.since = queue.since.or(Some(now));
            }
            if queue.ignored.is_some() {
                if is_accepted {
                    queue.ignored = None;
                    changes.push(Change::Served(socket));
                }
                continue;
            }
            let (Some(since), Some(ready_since)) = (queue.since, self.ready_since) else {
                continue;
            };
            let waited = now.since(since.max(ready_since));
            if queue.is_served || (is_only && is_awaiting) || waited < ELSEWHERE_TIMEOUT {
                continue;
            }
            let Some(hindrances) = &inspection.hindrances else {
                self.needs_hindrances = true;
                self.inspect_at = Some(now);
                continue;
            };
            if hindrances.listens.is_some() || waited >= IGNORED_TIMEOUT {
                let waiting = seen.waiting;
                let ignored = Ignored { socket, waiting, hindrances: hindrances.clone() };
                queue.ignored = Some(ignored.clone());
                changes.push(Change::Ignored(ignored));
            }
        }
        changes
    }
}

impl Cluster {
    /// Handles the result of [`Action::InspectConnections`].
    pub fn connections_inspected(&mut self, now: Time, inspection: &Inspection) {
        for seen in &inspection.workers {
            self.primary.has_accepted(seen.worker, seen.open, seen.new);
        }
        if let Some(hindrances) = &inspection.hindrances
            && let Some(ended) = self.ended_quickly.take()
            && let Some((worker, address)) = &hindrances.listens
        {
            let ended = Unshared::Ended(ended);
            self.tell_not_shared(ended, *worker, address.clone(), hindrances.has_children);
        }
        let Some(supervisor) = &self.supervisor else { return };
        let mut workers = self.primary.workers();
        let is_ready = |worker| supervisor.standing(now, worker).is_some_and(|(ready, _)| ready);
        let is_ready = workers.any(|(worker, _)| is_ready(worker));
        let changes =
            self.accepted.inspected(now, inspection, is_ready, self.serving.is_one_awaiting());
        if supervisor.is_stopping() {
            return;
        }
        self.pending.extend(changes.into_iter().map(|change| match change {
            Change::Ignored(ignored) => Action::Ignored(ignored),
            Change::Served(socket) => Action::Served { socket },
        }));
    }

    /// Reports that a worker listens by itself, once for each address in a row.
    pub(super) fn tell_not_shared(
        &mut self,
        other: Unshared,
        worker: WorkerId,
        address: String,
        has_children: bool,
    ) {
        if self.not_shared.as_ref() != Some(&address) {
            self.not_shared = Some(address.clone());
            self.pending.push_back(Action::NotShared { other, worker, address, has_children });
        }
    }

    /// What was to be told could not be: the last words of the worker that has ended are not known yet.
    pub fn was_not_told(&mut self) {
        self.not_shared = None;
    }

    /// A worker has ended. If those of its slot do so quickly and others run, one of these may have
    /// the address that it needs.
    pub(super) fn search_for_clash(&mut self, worker: WorkerId) {
        let Some(supervisor) = &self.supervisor else { return };
        // Once where it is told, and until then each time.
        let is_untold = self.not_shared.is_none();
        let keeps_ending = |vacancy: Vacancy| {
            vacancy.quick_ends == QUICK_ENDS || (is_untold && vacancy.quick_ends > QUICK_ENDS)
        };
        if supervisor.is_embedded()
            || !supervisor.vacancies().any(keeps_ending)
            || !self.primary.workers().any(|(other, _)| other != worker)
        {
            return;
        }
        self.ended_quickly = Some(worker);
        self.pending.push_back(Action::InspectConnections { needs_hindrances: true });
    }

    /// Returns the number of connections that waited in an activated socket when it was inspected
    /// last.
    #[must_use]
    pub fn waited(&self, socket: usize) -> u32 {
        self.accepted.waiting(socket)
    }

    /// Returns the activated sockets from which no worker accepts although clients wait.
    pub fn ignored_sockets(&self) -> impl Iterator<Item = &Ignored> {
        self.accepted.ignored()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn queue(waiting: u32, accepted: u32) -> Inspection {
        Inspection {
            sockets: vec![SocketConnections { accepted, waiting }],
            ..Inspection::default()
        }
    }

    /// Looks each second, until something is told. Returns when that was, in seconds.
    fn told_after(
        accepted: &mut AcceptedConnections,
        elsewhere: bool,
        seen: impl Fn(u64) -> (u32, u32),
    ) -> Option<u64> {
        for second in 1..60 {
            let now = Time(second * 1000);
            while let Some(needs) = accepted.due(now) {
                let (waiting, open) = seen(second);
                let mut inspection = queue(waiting, open);
                inspection.hindrances = needs.then(|| Hindrances {
                    listens: elsewhere.then(|| (WorkerId(1), "127.0.0.1:5000".into())),
                    has_children: false,
                });
                if !accepted.inspected(now, &inspection, true, false).is_empty() {
                    return Some(second);
                }
            }
        }
        None
    }

    fn started() -> AcceptedConnections {
        let mut accepted = AcceptedConnections::default();
        accepted.start(Time(0), 1);
        accepted
    }

    #[test]
    fn a_socket_is_ignored_when_clients_wait_and_none_is_accepted() {
        assert_eq!(told_after(&mut started(), true, |_| (2, 0)), Some(6));
        assert_eq!(told_after(&mut started(), false, |_| (2, 0)), Some(21), "it may be starting");
        assert_eq!(told_after(&mut started(), true, |_| (0, 0)), None);
        // More and more clients wait.
        assert_eq!(told_after(&mut started(), true, |second| (second as u32, 0)), Some(6));
    }

    #[test]
    fn a_worker_that_accepts_now_and_then_ignores_no_socket() {
        let slow = |second: u64| (10 + (second % 3) as u32, 0);
        assert_eq!(told_after(&mut started(), true, slow), None);
        assert_eq!(told_after(&mut started(), true, |_| (10, 1)), None, "it is about a request");
        // It has accepted before.
        assert_eq!(told_after(&mut started(), true, |second| (9, u32::from(second < 3))), None);
        let mut accepted = started();
        let waiting = queue(3, 0);
        let told =
            (1..60).any(|now| !accepted.inspected(Time(now), &waiting, true, true).is_empty());
        assert!(!told, "it was seen to wait for connections");
    }

    #[test]
    fn it_is_told_once_and_again_when_that_has_changed() {
        let mut accepted = started();
        assert_eq!(told_after(&mut accepted, true, |_| (2, 0)), Some(6));
        assert_eq!(accepted.ignored().count(), 1);
        let later = |accepted: &mut AcceptedConnections, now, waiting, open| {
            accepted.inspected(Time(now), &queue(waiting, open), true, false)
        };
        assert_eq!(later(&mut accepted, 7_000, 5, 0), []);
        accepted.forked();
        assert_eq!(later(&mut accepted, 8_000, 5, 0), []);
        assert_eq!(later(&mut accepted, 9_000, 4, 0), [Change::Served(0)]);
        assert_eq!(accepted.ignored().count(), 0);
        // Nor is one ignored that a worker has accepted from, but its successor may do otherwise.
        let mut accepted = started();
        later(&mut accepted, 0, 1, 1);
        assert_eq!(told_after(&mut accepted, true, |_| (1, 0)), None);
        let mut accepted = started();
        later(&mut accepted, 0, 1, 1);
        accepted.forked();
        assert_eq!(told_after(&mut accepted, true, |_| (1, 0)), Some(6));
    }

    #[test]
    fn nothing_is_told_while_no_worker_is_ready() {
        let mut accepted = started();
        let waiting = Inspection { hindrances: Some(Hindrances::default()), ..queue(1, 0) };
        for second in 1..100 {
            assert_eq!(accepted.inspected(Time(second * 1000), &waiting, false, false), []);
        }
        assert_eq!(accepted.inspected(Time(100_000), &waiting, true, false), []);
        assert_eq!(accepted.inspected(Time(119_999), &waiting, true, false), []);
        assert_eq!(accepted.inspected(Time(120_000), &waiting, true, false).len(), 1);
    }

    #[test]
    fn inspections_that_take_long_are_rare() {
        let mut accepted = started();
        let long = Inspection { took: Duration::from_millis(50), ..queue(0, 0) };
        accepted.inspected(Time(1000), &long, true, false);
        assert_eq!(accepted.next_deadline(), Some(Time(11_000)));
    }

    proptest! {
        /// Of each socket it is told by turns that it is ignored and that it is served.
        #[test]
        fn each_socket_is_told_about_by_turns(
            inspections in prop::collection::vec((0..3u32, 0..3u32, 0..2u32, any::<bool>(), 0..9_000u64), 0..60)
        ) {
            let mut accepted = AcceptedConnections::default();
            accepted.start(Time(0), 2);
            let (mut now, mut told) = (0, [false; 2]);
            for (first, second, open, ready, pause) in inspections {
                now += pause;
                let of = |waiting, accepted| SocketConnections { waiting, accepted };
                let inspection = Inspection {
                    sockets: vec![of(first, 0), of(second, open)],
                    hindrances: Some(Hindrances::default()),
                    ..Inspection::default()
                };
                for change in accepted.inspected(Time(now), &inspection, ready, true) {
                    let (socket, is_ignored) = match change {
                        Change::Ignored(ignored) => (ignored.socket, true),
                        Change::Served(socket) => (socket, false),
                    };
                    prop_assert_eq!(std::mem::replace(&mut told[socket], is_ignored), !is_ignored);
                    prop_assert!(!is_ignored || ready && [first, second][socket] > 0);
                }
                let ignored: Vec<_> = accepted.ignored().map(|ignored| ignored.socket).collect();
                prop_assert_eq!(ignored, (0..2).filter(|at| told[*at]).collect::<Vec<_>>());
            }
        }
    }
}
