//! How workers are kept running: restarts, replacement, recycling, health checks.
//!
//! The policies are settings of a [`Builder`](crate::Builder). What the supervision does is seen as
//! [`Event::Supervision`](crate::Event::Supervision), whose [`Progress`] names each step.
//!
//! What a program asks of a running cluster ([`Cluster::reload`](crate::Cluster::reload),
//! [`recycle`](crate::Cluster::recycle), [`ready`](crate::Cluster::ready),
//! [`scale`](crate::Cluster::scale), [`pause`](crate::Cluster::pause),
//! [`stop`](crate::Cluster::stop)) is an [`Operation`] that says how it ended.

pub use crate::primary::{
    HealthCheck, HealthTest, Operation, ReadyWhen, RecyclePolicy, Reload, ReplacePolicy,
    RestartPolicy, WhenFailed,
};
pub use troop_core::supervise::{
    Afterwards, Cause, GiveUp, NotReady, Outcome, Progress, RecycleFailed, ReloadFailed, Reloaded,
    ReplaceFailure, Restart,
};
