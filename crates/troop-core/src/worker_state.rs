//! The state of a worker, which decides about its life and whether it gets connections.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Node's five states of `worker.state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkerState {
    /// The process was started; nothing was heard of it yet.
    #[default]
    None,
    /// Its channel works.
    Online,
    /// A server of its listens.
    Listening,
    /// Its channel is closed.
    Disconnected,
    /// Its process has ended.
    Dead,
}

impl fmt::Display for WorkerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WorkerState::None => "none",
            WorkerState::Online => "online",
            WorkerState::Listening => "listening",
            WorkerState::Disconnected => "disconnected",
            WorkerState::Dead => "dead",
        })
    }
}
