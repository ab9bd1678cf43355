//! Snapshots of the state of a cluster.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use troop_core::WorkerId;
use troop_core::primary::{Totals, WorkerState, WorkerStats};
use troop_core::steer::Mode;

/// The state of a cluster at one moment, from [`Cluster::snapshot`](crate::Cluster::snapshot).
/// Times are in milliseconds, sizes in bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Snapshot {
    /// The number of the primary's process; that of its [keeper](crate::keeper), if it has one.
    pub pid: u32,
    /// The number of the process that is kept.
    #[serde(default)]
    pub engine: Option<u32>,
    /// The version of the keeper, if the cluster has one that tells it.
    #[serde(default)]
    pub keeper_version: Option<String>,
    /// How many engines of this app were killed, and others went on.
    #[serde(default)]
    pub crashes: u32,
    /// How the last one of these has ended.
    #[serde(default)]
    pub last_crash: Option<String>,
    /// Time since the start.
    pub uptime_ms: u64,
    /// The phase of the cluster.
    pub phase: Phase,
    /// Target number of workers; `None` if the program forks.
    pub wanted: Option<usize>,
    /// Number of supervised workers that are ready and not draining.
    #[serde(default)]
    pub ready: usize,
    /// Slots without a worker.
    #[serde(default)]
    pub vacant: Vec<VacantSlot>,
    /// Number of supervised workers that ended unexpectedly so far.
    pub restarts: u64,
    /// How the last worker with an unexpected end has ended.
    #[serde(default)]
    pub last_end: Option<String>,
    /// What the cluster has done since its start, its former workers included.
    #[serde(default)]
    pub totals: Totals,
    /// CPU time and resident memory of the primary's process, and of its keeper if it has one, without
    /// workers.
    pub usage: Option<Usage>,
    /// All workers whose processes run, by slot.
    pub workers: Vec<WorkerSnapshot>,
    /// The listeners of all workers.
    pub listeners: Vec<ListenerSnapshot>,
    /// Addresses on which workers, or processes that they have started, listen by themselves, past the
    /// primary. Workers that listen nowhere with it are inspected until they are a minute old.
    #[serde(default)]
    pub own: Vec<String>,
    /// Addresses that lost their workers without a request to close them.
    #[serde(default)]
    pub lost: Vec<LostListener>,
}

/// The phase of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Phase {
    /// No worker has been ready yet; or slots have not had a ready worker yet, and none has lost
    /// its worker.
    Starting,
    /// Every slot that should have a ready worker has one.
    Running,
    /// After a worker had been ready: the worker of some slots has ended, or could not be started,
    /// and no ready one has followed (see [`Snapshot::ready`]). Or clients cannot reach an address
    /// any more (see [`Snapshot::lost`]), or no worker accepts those that wait (see
    /// [`ListenerSnapshot::ignored`]).
    Degraded,
    /// It replaces its workers.
    Reloading,
    /// Its workers were ended; a reload starts new ones.
    Paused,
    /// It is ending.
    Stopping,
}

/// A slot without a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct VacantSlot {
    /// The number of the slot.
    pub slot: u32,
    /// Workers in a row that were not ready for
    /// [`RestartPolicy::min_uptime`](crate::supervise::RestartPolicy::min_uptime).
    pub quick_ends: u32,
    /// Milliseconds until the next one is started; `None` if it is being started now, or none is to
    /// follow.
    pub retry_ms: Option<u64>,
    /// How its last worker ended, if none is to follow.
    pub finished: Option<String>,
}

/// The resources that a process uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Usage {
    /// CPU time so far, of its user and system parts together.
    pub cpu_ms: u64,
    /// Resident memory.
    pub rss: u64,
}

impl Usage {
    /// Returns the usage of a process; `None` if it has ended, or must not be inspected.
    fn of(pid: u32) -> Option<Usage> {
        let usage = troop_sys::diag::usage(pid)?;
        Some(Usage { cpu_ms: millis(usage.cpu), rss: usage.rss })
    }
}

/// The state of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WorkerSnapshot {
    /// Its number.
    pub id: WorkerId,
    /// The number of its process.
    pub pid: u32,
    /// Its slot; a successor has the same one.
    pub slot: u32,
    /// Node's `worker.state`.
    pub state: WorkerState,
    /// Time since its start.
    pub age_ms: u64,
    /// Time until it is killed, if it is draining.
    pub leaving_ms: Option<u64>,
    /// Whether it is ready; `None` if the program forks.
    #[serde(default)]
    pub ready: Option<bool>,
    /// 1 for the first workers, one more with each reload; `None` if it is leaving, or the program
    /// forks.
    #[serde(default)]
    pub generation: Option<u32>,
    /// Its weight: its part of the connections.
    pub weight: u32,
    /// Its counters.
    pub stats: WorkerStats,
    /// CPU time and resident memory of its process.
    pub usage: Option<Usage>,
}

/// The state of a listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ListenerSnapshot {
    /// The address to which it is bound, such as `127.0.0.1:8000`.
    pub address: String,
    /// Its scheduling: the configured one, or the one that replaces it where that is impossible.
    pub scheduling: String,
    /// The mode of a listener under [`Scheduling::Auto`](crate::Scheduling::Auto).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<ModeSnapshot>,
    /// Number of workers that listen there.
    pub workers: usize,
    /// Number of connections that wait in the primary for a worker; those that wait in the kernel,
    /// where workers take sockets by [activation](crate::activation).
    pub waiting: usize,
    /// Why no worker accepts them, if they wait for long and none does; with
    /// [activation](crate::activation) only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ignored: Option<String>,
}

/// The mode of a listener under [`Scheduling::Auto`](crate::Scheduling::Auto).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ModeSnapshot {
    /// What chooses the workers.
    pub mode: Mode,
    /// Time since it began.
    pub age_ms: u64,
    /// Why it began, or lasts.
    pub reason: String,
}

/// An address where workers listened and that serves no clients any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LostListener {
    /// The address, such as `127.0.0.1:8000`.
    pub address: String,
    /// Why.
    pub reason: String,
}

impl Snapshot {
    /// Adds data that can be read without the primary.
    pub(crate) fn complete(&mut self) {
        let engine = self.engine.map(Usage::of);
        self.usage = match (Usage::of(self.pid), engine.flatten()) {
            (Some(keeper), Some(engine)) => {
                Some(Usage { cpu_ms: keeper.cpu_ms + engine.cpu_ms, rss: keeper.rss + engine.rss })
            }
            (of_one, other) => other.or(of_one),
        };
        self.workers.iter_mut().for_each(|worker| worker.usage = Usage::of(worker.pid));
    }
}

pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
