//! How workers are kept running: restarts, replacement, recycling, health checks.
//!
//! The policies are settings of a [`Builder`](crate::Builder). What the supervision does is seen as
//! [`Event::Supervision`](crate::Event::Supervision), whose [`Progress`] names each step.
//!
//! What a program asks of a running cluster ([`Cluster::reload`](crate::Cluster::reload),
//! [`recycle`](crate::Cluster::recycle), [`ready`](crate::Cluster::ready),
//! [`scale`](crate::Cluster::scale), [`pause`](crate::Cluster::pause),
//! [`stop`](crate::Cluster::stop)) is an [`Operation`] that says how it ended.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use troop::Cluster;
//! use troop::supervise::{
//!     HealthCheck, HealthTest, RecyclePolicy, ReplacePolicy, RestartPolicy, WhenFailed,
//! };
//!
//! # async fn supervise() -> troop::Result<()> {
//! let workers = 4;
//! let cluster = Cluster::builder()
//!     .workers(workers)
//!     // After failures: back off up to 10 s, and end if no worker is ready for a minute.
//!     .restart(
//!         RestartPolicy::new(workers)
//!             .max_delay(Duration::from_secs(10))
//!             .window(Duration::from_secs(60))
//!             .when_failed(WhenFailed::End),
//!     )
//!     // At a reload: two new workers at a time, which have a minute to become ready.
//!     .replace(ReplacePolicy::default().max_surge(2).ready_timeout(Duration::from_secs(60)))
//!     // In between: replace workers that are a day old, or have grown beyond 1 GiB.
//!     .recycle(
//!         RecyclePolicy::default()
//!             .age(Some(Duration::from_secs(86_400)))
//!             .memory(Some(1024 * 1024 * 1024)),
//!     )
//!     .health(HealthCheck::new(HealthTest::Http("/health".into())).every(Duration::from_secs(5)))
//!     .start()?;
//! cluster.ready().await?;
//! let done = cluster.reload().await?;
//! println!("{} workers replaced", done.replaced);
//! # Ok(())
//! # }
//! ```

pub use crate::primary::{
    HealthCheck, HealthTest, Operation, ReadyWhen, RecyclePolicy, Reload, ReplacePolicy,
    RestartPolicy, WhenFailed,
};
pub use troop_core::supervise::{
    Afterwards, Cause, GiveUp, NotReady, NotServing, Outcome, Progress, RecycleFailed,
    ReloadFailed, Reloaded, ReplaceFailure, Restart,
};
