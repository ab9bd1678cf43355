//! The state of a cluster at one moment, as [`Cluster::snapshot`](crate::Cluster::snapshot)
//! returns it.
//!
//! ```no_run
//! # async fn watch(cluster: troop::Cluster) -> troop::Result<()> {
//! let snapshot = cluster.snapshot().await?;
//! for worker in &snapshot.workers {
//!     println!("worker {}: {:?}", worker.id, worker.usage);
//! }
//! # Ok(())
//! # }
//! ```

pub use crate::primary::{
    ListenerSnapshot, LostListener, ModeSnapshot, Phase, Snapshot, Usage, VacantSlot,
    WorkerSnapshot,
};
pub use troop_core::primary::{Times, Totals, WorkerState, WorkerStats};
pub use troop_core::steer::Mode;
