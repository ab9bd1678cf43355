//! What a cluster wants done.

use serde::{Deserialize, Serialize};

use crate::event::Address;
use crate::id::WorkerId;
use crate::primary;
use crate::supervise::{Answer, Outcome, Progress, Slot, Ticket};

/// Something the shell has to do.
#[derive(Debug, Serialize, Deserialize)]
pub enum Action {
    /// About channels, listeners and connections. Never [`primary::Action::Kill`].
    Primary(primary::Action),
    /// Fork a worker, then call [`Cluster::forked`](super::Cluster::forked) or
    /// [`Supervisor::fork_failed`](crate::supervise::Supervisor::fork_failed). This may take long;
    /// it can be dropped once
    /// [`Supervisor::awaits_fork`](crate::supervise::Supervisor::awaits_fork) says no.
    Fork {
        /// For which slot.
        slot: Slot,
        /// Its weight.
        weight: u32,
    },
    /// Send a signal to a worker's process; `SIGKILL` ends all that it has started.
    Signal {
        /// Which worker.
        worker: WorkerId,
        /// Which signal.
        signal: i32,
    },
    /// Measure the memory of workers, then call [`Cluster::measured`](super::Cluster::measured).
    Measure {
        /// Which workers.
        workers: Vec<WorkerId>,
    },
    /// See whether connections wait in a worker's activated sockets, then call
    /// [`Cluster::queues_measured`](super::Cluster::queues_measured).
    MeasureQueues {
        /// Which worker.
        worker: WorkerId,
    },
    /// Tell the kernel the shares of activated sockets.
    SetShares {
        /// By slot.
        shares: Vec<u32>,
    },
    /// See whether clients reach the listeners, then call
    /// [`Supervisor::listeners_checked`](crate::supervise::Supervisor::listeners_checked).
    CheckListeners,
    /// Start workers as before the reload that has failed. What was kept of it is not needed any
    /// more.
    RestoreSettings,
    /// The reload has succeeded: what was kept from before it is not needed any more.
    KeepSettings,
    /// Report that a worker has failed a health check.
    Unhealthy {
        /// Which worker.
        worker: WorkerId,
        /// Why.
        reason: String,
    },
    /// Report that a worker listens at an address that had been missed.
    Found {
        /// Which worker.
        worker: WorkerId,
        /// Where.
        at: Address,
    },
    /// Report what the supervisor does.
    Report(Progress),
    /// An operation that was requested is over.
    Answer(Ticket, Answer),
    /// All is over; nothing runs any more.
    Finish(Outcome),
}
