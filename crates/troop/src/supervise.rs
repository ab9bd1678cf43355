//! How workers are kept running: restarts, replacement, recycling, health checks.
//!
//! The policies are settings of a [`Builder`](crate::Builder). What the supervision does is seen as
//! [`Event::Supervision`](crate::Event::Supervision), whose [`Progress`] names each step.

pub use crate::primary::{
    HealthCheck, HealthTest, ReadyWhen, RecyclePolicy, Reload, ReplacePolicy, RestartPolicy,
    WhenFailed,
};
pub use troop_core::supervise::{Afterwards, Cause, GiveUp, Progress, Restart};
