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
    /// How long the first new worker of a reload must have been ready before the first old one
    /// leaves.
    pub min_ready_time: Duration,
    /// How many workers a reload may start beyond those that there should be.
    pub max_surge: usize,
    /// How many workers fewer than there should be a reload may make do with.
    pub max_unavailable: usize,
    /// A worker that was ready for this long is restarted at once when it ends, and its end does
    /// not count. Also how long a worker that does not speak the protocol runs until it counts as
    /// ready.
    pub min_uptime: Duration,
    /// The delay before the first restart of a slot whose worker was not ready for that long;
    /// doubled each time.
    pub first_delay: Duration,
    /// The longest such delay.
    pub max_delay: Duration,
    /// While no worker has been ready: how long the first may take, and the window in which ends
    /// are counted. Later, with `ends_when_failed`: how long the app may be without a ready worker.
    pub window: Duration,
    /// Ends within the window after which the start has failed, if no worker has ever been ready;
    /// one budget for all workers.
    pub max_ends: usize,
    /// Which ends are followed by a restart.
    pub restart: Restart,
    /// Exit codes that are not followed by one, whatever `restart` says.
    pub final_codes: Vec<i32>,
    /// End when no worker has been ready for `window`, instead of retrying for ever.
    pub ends_when_failed: bool,
    /// A worker was ready before this supervisor began, so this is not the first start.
    pub been_ready: bool,
    /// Start of the random sequence that spreads restarts.
    pub seed: u64,
}

/// When a worker counts as ready to take the place of another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Readiness {
    /// When it listens. A program that never does is no server; there it is enough that a worker
    /// stays up: for its minimum time, or, if it speaks the protocol and could still listen, for
    /// `listen_patience` from when it is online.
    #[default]
    Auto,
    /// When it listens.
    Listening,
    /// When it says so: [`reported_ready`](super::Supervisor::reported_ready).
    Notified,
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
            min_ready_time: Duration::from_secs(2),
            max_surge: 1,
            max_unavailable: 0,
            min_uptime: Duration::from_secs(1),
            first_delay: Duration::from_millis(100),
            max_delay: Duration::from_secs(5),
            window: Duration::from_secs(120),
            max_ends: 8.max(4 * workers),
            restart: Restart::Always,
            final_codes: Vec::new(),
            ends_when_failed: false,
            been_ready: false,
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
