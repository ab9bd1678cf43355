//! Recycling: replaces workers that are too big, too old or have served enough, one at a time, and
//! leaves a worker alone for a while whose successor did not become ready.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::{Time, WorkerId};
use crate::worker_map::WorkerMap;

/// Interval between checks whether a worker is due.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Time for which a worker is not recycled after its successor did not become ready.
const BACK_OFF: Duration = Duration::from_secs(60);

/// When a worker is replaced although nothing is wrong with it: one at a time, its successor first,
/// as in a reload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RecyclePolicy {
    /// When it has more resident memory than this, in bytes.
    pub memory: Option<u64>,
    /// When it is older than this.
    pub age: Option<Duration>,
    /// When it has taken more connections than this from the primary.
    pub connections: Option<u64>,
    /// By up to which part age and connections are lowered by chance, so that not all are due at
    /// once. Default: 0.1.
    #[serde(with = "crate::snapshot::bits")]
    pub jitter: f64,
}

impl Default for RecyclePolicy {
    fn default() -> RecyclePolicy {
        RecyclePolicy { memory: None, age: None, connections: None, jitter: 0.1 }
    }
}

impl RecyclePolicy {
    /// Sets [`memory`](#structfield.memory), in bytes.
    #[must_use]
    pub fn memory(mut self, limit: Option<u64>) -> RecyclePolicy {
        self.memory = limit;
        self
    }

    /// Sets [`age`](#structfield.age).
    #[must_use]
    pub fn age(mut self, limit: Option<Duration>) -> RecyclePolicy {
        self.age = limit;
        self
    }

    /// Sets [`connections`](#structfield.connections).
    #[must_use]
    pub fn connections(mut self, limit: Option<u64>) -> RecyclePolicy {
        self.connections = limit;
        self
    }

    /// Sets [`jitter`](#structfield.jitter), from 0 to 1.
    #[must_use]
    pub fn jitter(mut self, part: f64) -> RecyclePolicy {
        self.jitter = part;
        self
    }

    /// Whether no worker is ever due.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.memory.is_none() && self.age.is_none() && self.connections.is_none()
    }

    /// Why a worker is due, if it is.
    fn reason(&self, candidate: &Candidate) -> Option<String> {
        let Candidate { worker, age, taken, memory } = *candidate;
        // Different for each worker, and always the same for one.
        let chance = f64::from(worker.0.wrapping_mul(2_654_435_769) >> 8) / f64::from(1 << 24);
        let part = 1.0 - self.jitter.clamp(0.0, 1.0) * chance;
        if let Some(limit) = self.age.filter(|limit| age >= limit.mul_f64(part)) {
            return Some(format!("it is {} s old, of at most {}", age.as_secs(), limit.as_secs()));
        }
        if let Some(limit) = self.connections.filter(|limit| taken as f64 >= *limit as f64 * part) {
            return Some(format!("it has taken {taken} connections, of at most {limit}"));
        }
        let (limit, memory) = (self.memory?, memory?);
        (memory > limit)
            .then(|| format!("it has {} MiB of memory, and may have {}", memory >> 20, limit >> 20))
    }
}

/// A worker that is in service, as the shell has measured it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Which.
    pub worker: WorkerId,
    /// Time since it was started.
    pub age: Duration,
    /// Connections that it has taken from the primary.
    pub taken: u64,
    /// Its resident memory in bytes; `None` if that is not known.
    pub memory: Option<u64>,
}

/// When workers are recycled, when that is checked next, and which are left alone for now.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Recycling {
    policy: RecyclePolicy,
    check_at: Option<Time>,
    postponed: WorkerMap<Time>,
}

impl Recycling {
    /// By this policy, from [`Recycling::start`] on.
    #[must_use]
    pub fn new(policy: RecyclePolicy) -> Recycling {
        Recycling { policy, check_at: None, postponed: WorkerMap::default() }
    }

    /// Begins to check whether workers are due, if any can be.
    pub fn start(&mut self, now: Time) {
        if !self.policy.is_idle() {
            self.check_at = Some(now + CHECK_INTERVAL);
        }
    }

    /// When [`Recycling::is_due`] will be true.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        self.check_at
    }

    /// Whether workers are to be checked now; then the next check is planned.
    pub fn is_due(&mut self, now: Time) -> bool {
        let is_due = self.check_at.is_some_and(|due| due <= now);
        if is_due {
            self.check_at = Some(now + CHECK_INTERVAL);
        }
        is_due
    }

    /// Whether a worker's memory has to be measured for a check.
    #[must_use]
    pub fn needs_memory(&self) -> bool {
        self.policy.memory.is_some()
    }

    /// The first of these workers that is due, and why.
    pub fn first_due(
        &self,
        now: Time,
        candidates: impl IntoIterator<Item = Candidate>,
    ) -> Option<(WorkerId, String)> {
        candidates
            .into_iter()
            .filter(|candidate| !self.is_postponed(now, candidate.worker))
            .find_map(|candidate| Some((candidate.worker, self.policy.reason(&candidate)?)))
    }

    /// The successor of a worker did not become ready.
    pub fn failed(&mut self, now: Time, worker: WorkerId) {
        self.postponed.insert(worker, now + BACK_OFF);
    }

    /// Whether a worker is not to be replaced for what it is, as its last successor did not become
    /// ready.
    #[must_use]
    pub fn is_postponed(&self, now: Time, worker: WorkerId) -> bool {
        self.postponed.get(&worker).is_some_and(|until| *until > now)
    }

    /// A worker's process has ended.
    pub fn exited(&mut self, worker: WorkerId) {
        self.postponed.remove(&worker);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn recycling() -> Recycling {
        Recycling::new(RecyclePolicy {
            memory: Some(100 * MIB),
            age: Some(Duration::from_secs(100)),
            connections: Some(1000),
            jitter: 0.0,
        })
    }

    fn candidate(worker: u32) -> Candidate {
        let worker = WorkerId(worker);
        Candidate { worker, age: Duration::ZERO, taken: 0, memory: Some(0) }
    }

    fn reason(candidate: Candidate) -> Option<String> {
        recycling().first_due(Time(0), [candidate]).map(|(_, reason)| reason)
    }

    #[test]
    fn a_worker_is_due_by_age_or_connections_or_memory() {
        assert_eq!(reason(candidate(1)), None);
        let at = |age| Candidate { age: Duration::from_secs(age), ..candidate(1) };
        assert_eq!(reason(at(99)), None);
        assert_eq!(reason(at(100)).unwrap(), "it is 100 s old, of at most 100");
        let with = |taken| Candidate { taken, ..candidate(1) };
        assert_eq!(reason(with(999)), None);
        assert_eq!(reason(with(1000)).unwrap(), "it has taken 1000 connections, of at most 1000");
        let of = |memory| Candidate { memory, ..candidate(1) };
        assert_eq!(reason(of(None)), None);
        assert_eq!(reason(of(Some(100 * MIB))), None);
        let what = "it has 101 MiB of memory, and may have 100";
        assert_eq!(reason(of(Some(101 * MIB))).unwrap(), what);
    }

    #[test]
    fn nothing_is_checked_without_a_limit_and_otherwise_every_second() {
        let mut idle = Recycling::new(RecyclePolicy::default());
        idle.start(Time(0));
        assert_eq!((idle.next_deadline(), idle.is_due(Time(99_999))), (None, false));
        let mut recycling = recycling();
        recycling.start(Time(10));
        assert!(!recycling.is_due(Time(1009)) && recycling.is_due(Time(1010)));
        assert!(!recycling.is_due(Time(1010)));
        assert_eq!(recycling.next_deadline(), Some(Time(2010)));
    }

    #[test]
    fn a_worker_whose_successor_failed_is_left_alone_for_a_minute() {
        let mut recycling = recycling();
        let old = |worker| Candidate { taken: 9999, ..candidate(worker) };
        let due = |recycling: &Recycling, now| {
            recycling.first_due(Time(now), [old(1), old(2)]).map(|(worker, _)| worker.0)
        };
        assert_eq!(due(&recycling, 0), Some(1));
        recycling.failed(Time(0), WorkerId(1));
        assert_eq!(due(&recycling, 0), Some(2));
        recycling.failed(Time(5), WorkerId(2));
        assert_eq!(due(&recycling, 59_999), None);
        assert_eq!(due(&recycling, 60_000), Some(1));
        // Nothing is kept of one that is gone.
        recycling.exited(WorkerId(2));
        assert!(!recycling.is_postponed(Time(6), WorkerId(2)));
    }

    proptest! {
        /// Chance brings a worker's limit forward by no more than the part that it may, and is the
        /// same each time.
        #[test]
        fn jitter_only_ever_lowers_limits(worker in any::<u32>(), jitter in -1.0..2.0f64, age in 0..200u64) {
            let limit = Duration::from_secs(100);
            let policy = RecyclePolicy { age: Some(limit), jitter, ..RecyclePolicy::default() };
            let recycling = Recycling::new(policy);
            let age = Duration::from_secs(age);
            let candidate = Candidate { age, ..candidate(worker) };
            let due = recycling.first_due(Time(0), [candidate]).is_some();
            prop_assert_eq!(due, recycling.first_due(Time(0), [candidate]).is_some());
            if age >= limit {
                prop_assert!(due);
            }
            if age < limit.mul_f64(1.0 - jitter.clamp(0.0, 1.0)) {
                prop_assert!(!due);
            }
        }
    }
}
