//! The actions of a cluster.

use serde::{Deserialize, Serialize};

use super::accepted::Ignored;
use crate::event::Address;
use crate::id::WorkerId;
use crate::primary;
use crate::supervise::{Answer, Outcome, Progress, Slot, Ticket};

/// A worker that cannot listen where another one listens by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unshared {
    /// It has ended, perhaps because of that.
    Ended(WorkerId),
    /// It runs, and does not listen there.
    Runs(WorkerId),
}

/// An action that the shell must carry out.
#[derive(Debug, Serialize, Deserialize)]
pub enum Action {
    /// An action on channels, listeners and connections. Never [`primary::Action::Kill`] or
    /// [`primary::Action::Raises`].
    Primary(primary::Action),
    /// Fork a worker, then call [`Cluster::forked`](super::Cluster::forked) or
    /// [`Supervisor::fork_failed`](crate::supervise::Supervisor::fork_failed). This may take long;
    /// it can be dropped once
    /// [`Supervisor::awaits_fork`](crate::supervise::Supervisor::awaits_fork) says no.
    Fork {
        /// The slot.
        slot: Slot,
        /// Its weight.
        weight: u32,
    },
    /// Report that a worker has been told to finish, where the program starts the workers.
    Draining {
        /// The worker.
        worker: WorkerId,
    },
    /// Send a worker the message that announces its end, if it is to have one.
    Announce {
        /// The worker.
        worker: WorkerId,
    },
    /// Send the stop signal to a worker's process.
    Terminate {
        /// The worker.
        worker: WorkerId,
    },
    /// Send the kill signal to a worker's process, if there is one.
    Insist {
        /// The worker.
        worker: WorkerId,
    },
    /// A worker has not ended after `SIGKILL`. Report that, treat it as ended, and call
    /// [`Cluster::exited`](super::Cluster::exited); when the process ends after all, call
    /// [`Cluster::ended_at_last`](super::Cluster::ended_at_last).
    Abandon {
        /// The worker.
        worker: WorkerId,
    },
    /// Begin a reload that was requested while another one was under way.
    Reload,
    /// Send a signal to a worker's process; `SIGKILL` also goes to all processes that it has
    /// started.
    Signal {
        /// The worker.
        worker: WorkerId,
        /// The signal.
        signal: i32,
    },
    /// Measure the resident memory of workers, then call
    /// [`Cluster::measured`](super::Cluster::measured).
    Measure {
        /// The workers.
        workers: Vec<WorkerId>,
    },
    /// Check whether connections wait in a worker's activated sockets, then call
    /// [`Cluster::queues_measured`](super::Cluster::queues_measured).
    MeasureQueues {
        /// The worker.
        worker: WorkerId,
    },
    /// Check whether a worker with activated sockets waits for connections, then call
    /// [`Cluster::serving_checked`](super::Cluster::serving_checked).
    CheckServing {
        /// The worker.
        worker: WorkerId,
    },
    /// Inspect the connections of activated sockets, then call
    /// [`Cluster::connections_inspected`](super::Cluster::connections_inspected).
    InspectConnections {
        /// Whether to search also for what keeps workers from accepting.
        needs_hindrances: bool,
    },
    /// Report that no worker accepts from an activated socket although clients wait.
    Ignored(Ignored),
    /// Inspect where all workers listen by themselves, then call
    /// [`Supervisor::listeners_inspected`](crate::supervise::Supervisor::listeners_inspected).
    InspectListeners {
        /// Workers whose last words on standard error are of interest.
        words_of: Vec<WorkerId>,
    },
    /// Report that a worker listens by itself, because of which another one cannot.
    NotShared {
        /// The other one.
        other: Unshared,
        /// The one that listens.
        worker: WorkerId,
        /// Where it listens.
        address: String,
        /// Whether workers have started other processes.
        has_children: bool,
    },
    /// Report that a worker accepts from an activated socket of which the contrary was reported.
    Served {
        /// The number of the socket, from 0.
        socket: usize,
    },
    /// Install the shares of activated sockets in the kernel.
    SetShares {
        /// The shares, by slot.
        shares: Vec<u32>,
    },
    /// Check whether clients reach the listeners, then call
    /// [`Supervisor::listeners_checked`](crate::supervise::Supervisor::listeners_checked).
    CheckListeners,
    /// Start workers with the settings from before the failed reload, and drop its settings.
    RestoreSettings,
    /// Drop the settings from before the reload, which has succeeded.
    KeepSettings,
    /// Report that a worker has failed a health check.
    Unhealthy {
        /// The worker.
        worker: WorkerId,
        /// The reason.
        reason: String,
    },
    /// Report that a worker listens on an address that had been missed.
    Found {
        /// The worker.
        worker: WorkerId,
        /// The address.
        at: Address,
    },
    /// Report progress of the supervisor.
    Report(Progress),
    /// Answer an operation.
    Answer(Ticket, Answer),
    /// End: no worker runs any more.
    Finish(Outcome),
}
