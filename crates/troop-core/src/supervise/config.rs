//! What a supervisor aims for.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::event::ExitHow;

/// What a supervisor aims for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Config {
    /// How many workers to keep running.
    pub workers: usize,
    /// How long a worker that was told to finish may take before it is killed.
    pub grace: Duration,
    /// When a worker counts as ready.
    pub readiness: Readiness,
    /// How long a worker that could listen is waited for, where it is not known that it will.
    pub listen_patience: Duration,
    /// How long a new worker may take to be ready when it replaces another one.
    pub ready_timeout: Duration,
    /// How long the first new worker of a reload must have been ready before the first old one leaves.
    pub settle: Duration,
    /// How many workers a reload may start beyond those that there should be.
    pub surge: usize,
    /// How many workers fewer than there should be a reload may make do with.
    pub unavailable: usize,
    /// A worker that ran this long counts as having come up; its end is restarted without delay.
    pub min_uptime: Duration,
    /// The delay before the first restart of a worker that did not run that long; doubled each time.
    pub first_delay: Duration,
    /// The longest such delay.
    pub max_delay: Duration,
    /// The window in which unexpected ends are counted.
    pub window: Duration,
    /// Unexpected ends within the window after which the supervisor gives up; one budget for all workers.
    pub max_ends: usize,
    /// Which ends are followed by a restart.
    pub restart: Restart,
    /// Exit codes that are not followed by one, whatever `restart` says.
    pub final_codes: Vec<i32>,
    /// After giving up, wait until somebody, or time, starts it again, instead of ending.
    pub stays_when_failed: bool,
    /// How long after giving up it is tried again by itself.
    pub retry_failed: Option<Duration>,
    /// Start of the random sequence that spreads restarts.
    pub seed: u64,
}

/// When a worker counts as ready to take the place of another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Readiness {
    /// When it listens. A program that never does is no server; there it is enough that a worker stays up: for its minimum time, or, if it speaks
    /// the protocol and could still listen, for `listen_patience` from when it is online.
    #[default]
    Auto,
    /// When it listens.
    Listening,
    /// When it says so: [`told_ready`](super::Supervisor::told_ready).
    Told,
}

/// Which ends of workers are followed by a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// All that were not asked for.
    #[default]
    Always,
    /// All but exits with code 0.
    OnFailure,
    /// None.
    Never,
}

impl Config {
    /// Sensible values for this many workers.
    #[must_use]
    pub fn new(workers: usize) -> Config {
        Config {
            workers,
            grace: Duration::from_secs(30),
            readiness: Readiness::Auto,
            listen_patience: Duration::from_secs(3),
            ready_timeout: Duration::from_secs(30),
            settle: Duration::from_secs(2),
            surge: 1,
            unavailable: 0,
            min_uptime: Duration::from_secs(1),
            first_delay: Duration::from_millis(100),
            max_delay: Duration::from_secs(5),
            window: Duration::from_secs(120),
            max_ends: 8.max(4 * workers),
            restart: Restart::Always,
            final_codes: Vec::new(),
            stays_when_failed: false,
            retry_failed: None,
            seed: 0,
        }
    }

    pub(super) fn is_final(&self, how: ExitHow) -> bool {
        let by_code = matches!(how, ExitHow::Code(code) if self.final_codes.contains(&code));
        by_code
            || match self.restart {
                Restart::Always => false,
                Restart::OnFailure => how.is_success(),
                Restart::Never => true,
            }
    }
}
