//! The back-off of restarts, and the count of ends.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Config, RestartPolicy};
use crate::id::Time;

/// Restarts are spread over this time per other slot that waits for a worker.
const STAGGER: Duration = Duration::from_millis(20);

/// Counts unexpected ends in a sliding window, and computes delays of restarts.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Restarts {
    ends: VecDeque<Time>,
    total: u64,
    window: Duration,
    first_delay: Duration,
    max_delay: Duration,
    random: u64,
}

impl Restarts {
    pub(super) fn new(config: &Config) -> Restarts {
        Restarts {
            ends: VecDeque::new(),
            total: 0,
            window: config.restart.window,
            first_delay: config.restart.first_delay,
            max_delay: config.restart.max_delay,
            random: config.seed,
        }
    }

    /// Applies another policy from now on.
    pub(super) fn configure(&mut self, policy: &RestartPolicy) {
        self.window = policy.window;
        self.first_delay = policy.first_delay;
        self.max_delay = policy.max_delay;
    }

    /// Counts an end towards giving up, and returns the number within the window.
    pub(super) fn ended(&mut self, now: Time) -> usize {
        self.ends.push_back(now);
        while self.ends.front().is_some_and(|at| now.since(*at) > self.window) {
            self.ends.pop_front();
        }
        self.ends.len()
    }

    /// Counts an unexpected end.
    pub(super) fn note(&mut self) {
        self.total += 1;
    }

    /// Resets the window.
    pub(super) fn forget(&mut self) {
        self.ends.clear();
    }

    /// Returns the number of unexpected ends since the start.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Returns the delay after this many consecutive quick ends of a slot, while `others` wait for
    /// a worker too: exponential back-off with a jitter of up to a quarter, never less than the
    /// first delay. The jitter spreads slots that lose their workers together.
    pub(super) fn delay(&mut self, quick_ends: u32, others: usize) -> Duration {
        let nominal = match quick_ends.checked_sub(1) {
            None => Duration::ZERO,
            Some(doublings) => self
                .first_delay
                .saturating_mul(1 << doublings.min(16))
                .min(self.max_delay.max(self.first_delay)),
        };
        let stagger =
            STAGGER.saturating_mul(u32::try_from(others).unwrap_or(u32::MAX)).min(self.max_delay);
        let least = (nominal - nominal / 4).max(nominal.min(self.first_delay));
        let width = (nominal - least).max(stagger);
        least + width.mul_f64(self.fraction())
    }

    /// Returns the next number from 0 to 1 of a splitmix64 sequence.
    fn fraction(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}
