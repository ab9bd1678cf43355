//! Recycling: replaces workers for memory, age or number of connections, one at a time, and backs
//! off if a successor does not become ready.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::{Time, WorkerId};
use crate::worker_map::WorkerMap;

/// Interval between checks for workers that are due.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Time for which a worker is not recycled after its successor did not become ready.
const BACK_OFF: Duration = Duration::from_secs(60);
/// Age before which a worker is not recycled that has exceeded the memory limit from the start, as
/// its predecessor had; doubles with each further one in the slot.
const FIRST_MEMORY_DELAY: Duration = Duration::from_secs(10);
/// Maximum of this age.
const MAX_MEMORY_DELAY: Duration = Duration::from_secs(600);

/// The recycling policy. Workers are replaced one at a time, their successor first, as in a reload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RecyclePolicy {
    /// Maximum resident memory of a worker, in bytes.
    pub memory: Option<u64>,
    /// Maximum age of a worker.
    pub age: Option<Duration>,
    /// Maximum number of connections that a worker takes from the primary; with activated sockets,
    /// that it was seen to have, of which brief ones are missed.
    pub connections: Option<u64>,
    /// Maximum fraction by which age and connections are randomly lowered per worker, so that not
    /// all are due at once. Default: 0.1.
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

    /// Returns the reason if a worker is due.
    fn reason(&self, candidate: &Candidate) -> Option<String> {
        let Candidate { worker, age, taken, memory, .. } = *candidate;
        // A hash of the worker's id, so that each worker has a constant value.
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

    fn exceeds_memory(&self, candidate: &Candidate) -> bool {
        matches!((self.memory, candidate.memory), (Some(limit), Some(memory)) if memory > limit)
    }
}

/// The measurements of a worker in service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// The worker.
    pub worker: WorkerId,
    /// Its slot.
    pub slot: u32,
    /// Time since it was started.
    pub age: Duration,
    /// Number of connections that it has taken from the primary.
    pub taken: u64,
    /// Its resident memory in bytes; `None` if unknown.
    pub memory: Option<u64>,
}

/// The state of recycling: the policy, the next check, and the back-off of workers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Recycling {
    policy: RecyclePolicy,
    check_at: Option<Time>,
    postponed: WorkerMap<Time>,
    /// Whether each worker exceeded the memory limit when it was measured first.
    heavy: WorkerMap<bool>,
    /// Per slot, how many workers in a row were recycled that had exceeded the memory limit from
    /// the start.
    heavy_lives: BTreeMap<u32, u32>,
}

impl Recycling {
    /// Creates the state; checks begin with [`Recycling::start`].
    #[must_use]
    pub fn new(policy: RecyclePolicy) -> Recycling {
        Recycling { policy, ..Recycling::default() }
    }

    /// Begins the checks, if the policy has a limit.
    pub fn start(&mut self, now: Time) {
        if !self.policy.is_idle() {
            self.check_at = Some(now + CHECK_INTERVAL);
        }
    }

    /// Returns the time of the next check.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        self.check_at
    }

    /// Whether a check is due; if so, schedules the next one.
    pub fn is_due(&mut self, now: Time) -> bool {
        let is_due = self.check_at.is_some_and(|due| due <= now);
        if is_due {
            self.check_at = Some(now + CHECK_INTERVAL);
        }
        is_due
    }

    /// Whether checks need the workers' memory.
    #[must_use]
    pub fn needs_memory(&self) -> bool {
        self.policy.memory.is_some()
    }

    /// Records whether workers exceed the memory limit from the start. Returns those that do and are
    /// recycled later because of that, with the reason; each of them once.
    pub fn measured(&mut self, candidates: &[Candidate]) -> Vec<(WorkerId, String)> {
        let mut later = Vec::new();
        for candidate in candidates.iter().filter(|candidate| candidate.memory.is_some()) {
            if self.heavy.get(&candidate.worker).is_some() {
                continue;
            }
            let is_heavy = self.policy.exceeds_memory(candidate);
            self.heavy.insert(candidate.worker, is_heavy);
            let delay = self.memory_delay(candidate);
            if let Some(reason) = self.policy.reason(candidate).filter(|_| candidate.age < delay) {
                later.push((
                    candidate.worker,
                    format!(
                        "{reason} from the start, as its predecessor did: raise recycle.memory; replacing it in {} s",
                        (delay - candidate.age).as_secs()
                    ),
                ));
            }
        }
        later
    }

    /// Returns the first of these workers that is due, with the reason.
    #[must_use]
    pub fn first_due(&self, now: Time, candidates: &[Candidate]) -> Option<(WorkerId, String)> {
        candidates
            .iter()
            .filter(|candidate| !self.is_postponed(now, candidate.worker))
            .filter(|candidate| {
                !self.policy.exceeds_memory(candidate)
                    || candidate.age >= self.memory_delay(candidate)
            })
            .find_map(|candidate| Some((candidate.worker, self.policy.reason(candidate)?)))
    }

    /// The age before which a worker is not recycled for memory.
    fn memory_delay(&self, candidate: &Candidate) -> Duration {
        let lives = self.heavy_lives.get(&candidate.slot).copied().unwrap_or(0);
        if lives == 0 || self.heavy.get(&candidate.worker) != Some(&true) {
            return Duration::ZERO;
        }
        FIRST_MEMORY_DELAY.saturating_mul(1 << (lives - 1).min(16)).min(MAX_MEMORY_DELAY)
    }

    /// Handles the beginning of a worker's replacement.
    pub fn began(&mut self, worker: WorkerId, slot: u32) {
        if self.heavy.get(&worker) == Some(&true) {
            *self.heavy_lives.entry(slot).or_default() += 1;
        } else {
            self.heavy_lives.remove(&slot);
        }
    }

    /// Begins the back-off of a worker whose successor did not become ready.
    pub fn failed(&mut self, now: Time, worker: WorkerId) {
        self.postponed.insert(worker, now + BACK_OFF);
    }

    /// Whether a worker is in back-off, because its last successor did not become ready.
    #[must_use]
    pub fn is_postponed(&self, now: Time, worker: WorkerId) -> bool {
        self.postponed.get(&worker).is_some_and(|until| *until > now)
    }

    /// Handles the end of a worker's process.
    pub fn exited(&mut self, worker: WorkerId) {
        self.postponed.remove(&worker);
        self.heavy.remove(&worker);
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
        Candidate { worker, slot: 0, age: Duration::ZERO, taken: 0, memory: Some(0) }
    }

    fn reason(candidate: Candidate) -> Option<String> {
        recycling().first_due(Time(0), &[candidate]).map(|(_, reason)| reason)
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
            recycling.first_due(Time(now), &[old(1), old(2)]).map(|(worker, _)| worker.0)
        };
        assert_eq!(due(&recycling, 0), Some(1));
        recycling.failed(Time(0), WorkerId(1));
        assert_eq!(due(&recycling, 0), Some(2));
        recycling.failed(Time(5), WorkerId(2));
        assert_eq!(due(&recycling, 59_999), None);
        assert_eq!(due(&recycling, 60_000), Some(1));
        // The state of an ended worker is removed.
        recycling.exited(WorkerId(2));
        assert!(!recycling.is_postponed(Time(6), WorkerId(2)));
    }

    #[test]
    fn a_worker_that_is_too_large_from_the_start_as_its_predecessor_was_is_replaced_ever_later() {
        let mut recycling = recycling();
        let at = |worker, age, mib| Candidate {
            age: Duration::from_secs(age),
            memory: Some(mib * MIB),
            ..candidate(worker)
        };
        let due = |recycling: &mut Recycling, candidate: Candidate| {
            let later = recycling.measured(&[candidate]);
            (recycling.first_due(Time(0), &[candidate]).is_some(), later.len())
        };
        // The first one at once.
        assert_eq!(due(&mut recycling, at(1, 1, 120)), (true, 0));
        recycling.began(WorkerId(1), 0);
        assert_eq!(due(&mut recycling, at(2, 1, 120)), (false, 1));
        assert_eq!(due(&mut recycling, at(2, 9, 120)), (false, 0));
        assert_eq!(due(&mut recycling, at(2, 10, 120)), (true, 0));
        recycling.began(WorkerId(2), 0);
        assert_eq!(due(&mut recycling, at(3, 19, 120)), (false, 1));
        assert_eq!(due(&mut recycling, at(3, 20, 120)), (true, 0));
        recycling.began(WorkerId(3), 0);
        // One that has grown is replaced at once, and with it the history is forgotten.
        assert_eq!(due(&mut recycling, at(4, 1, 50)), (false, 0));
        assert_eq!(due(&mut recycling, at(4, 2, 120)), (true, 0));
        recycling.began(WorkerId(4), 0);
        assert_eq!(due(&mut recycling, at(5, 1, 120)), (true, 0));
    }

    proptest! {
        /// Jitter lowers a worker's limit by at most the configured fraction, and by the same
        /// amount each time.
        #[test]
        fn jitter_only_ever_lowers_limits(worker in any::<u32>(), jitter in -1.0..2.0f64, age in 0..200u64) {
            let limit = Duration::from_secs(100);
            let policy = RecyclePolicy { age: Some(limit), jitter, ..RecyclePolicy::default() };
            let recycling = Recycling::new(policy);
            let age = Duration::from_secs(age);
            let candidate = Candidate { age, ..candidate(worker) };
            let due = recycling.first_due(Time(0), &[candidate]).is_some();
            prop_assert_eq!(due, recycling.first_due(Time(0), &[candidate]).is_some());
            if age >= limit {
                prop_assert!(due);
            }
            if age < limit.mul_f64(1.0 - jitter.clamp(0.0, 1.0)) {
                prop_assert!(!due);
            }
        }
    }
}
