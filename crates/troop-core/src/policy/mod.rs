//! Which worker gets the next connection of a listener.

mod round_robin;

pub use round_robin::RoundRobin;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::WorkerId;

/// How the connections of a listener reach the workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Policy {
    /// The primary accepts and hands each connection to the next ready worker in turn (Node's `SCHED_RR`).
    #[default]
    RoundRobin,
    /// All workers accept on one socket and the kernel decides (Node's `SCHED_NONE`). Costs the primary nothing, is uneven.
    Shared,
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Policy::RoundRobin => "round-robin",
            Policy::Shared => "shared",
        })
    }
}

impl FromStr for Policy {
    type Err = UnknownPolicy;

    /// Takes our names and those of `NODE_CLUSTER_SCHED_POLICY` (`rr`, `none`).
    fn from_str(s: &str) -> Result<Policy, UnknownPolicy> {
        match s {
            "round-robin" | "rr" => Ok(Policy::RoundRobin),
            "shared" | "none" => Ok(Policy::Shared),
            _ => Err(UnknownPolicy(s.to_owned())),
        }
    }
}

/// There is no policy of this name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownPolicy(String);

impl fmt::Display for UnknownPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "there is no policy {:?}; there are round-robin and shared", self.0)
    }
}

impl std::error::Error for UnknownPolicy {}

/// Chooses among the workers of one listener. Called once per connection; must not allocate.
pub trait Schedule: fmt::Debug + Send {
    /// One more worker takes part.
    fn add(&mut self, worker: WorkerId);
    /// A worker no longer takes part.
    fn remove(&mut self, worker: WorkerId);
    /// The worker for the next connection, among those that `ready` accepts; `None` when it accepts nobody.
    fn pick(&mut self, ready: &mut dyn FnMut(WorkerId) -> bool) -> Option<WorkerId>;
}
