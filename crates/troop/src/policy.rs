//! Which worker gets the next connection.
//!
//! [`Scheduling`] names the built-in policies; [`Builder::scheduling`](crate::Builder::scheduling)
//! takes one for all listeners, [`Builder::scheduling_of`](crate::Builder::scheduling_of) one for
//! those that a [`Pattern`] matches. A program's own policy implements [`Policy`], or answers a
//! [`Question`] for each connection.
//!
//! ```no_run
//! use troop::{Cluster, Scheduling};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // The least busy of two drawn workers; on port 8001 the same worker for the same client.
//! let cluster = Cluster::builder()
//!     .scheduling(Scheduling::PowerOfTwo)
//!     .scheduling_of("8001".parse()?, "sticky".parse()?);
//! cluster.run()?;
//! # Ok(())
//! # }
//! ```
//!
//! Policies are written as on the command line; [`Display`](std::fmt::Display) writes them back:
//!
//! ```
//! use troop::Scheduling;
//! use troop::policy::{Http, Pattern};
//!
//! let scheduling: Scheduling = "sticky:cookie=sid,wait=500".parse()?;
//! assert_eq!(scheduling.sticky().and_then(|by| by.http.clone()), Some(Http::Cookie("sid".into())));
//! assert_eq!(scheduling.to_string(), "sticky:cookie=sid,wait=500");
//! let listeners: Pattern = "127.0.0.1:8000".parse()?;
//! # let _ = listeners;
//! # Ok::<(), troop::policy::BadScheduling>(())
//! ```
//!
//! A custom policy is notified of each worker of a listener, and picks one for each connection:
//!
//! ```
//! use troop::policy::{Connection, Policy, WorkerView};
//! use troop::{Scheduling, WorkerId};
//!
//! /// The worker with the fewest connections, whatever its weight.
//! #[derive(Debug, Default)]
//! struct Fewest(Vec<WorkerView>);
//!
//! impl Policy for Fewest {
//!     fn update(&mut self, worker: WorkerView) {
//!         self.remove(worker.worker);
//!         self.0.push(worker);
//!     }
//!
//!     fn remove(&mut self, worker: WorkerId) {
//!         self.0.retain(|view| view.worker != worker);
//!     }
//!
//!     fn pick(&mut self, _: &Connection) -> Option<WorkerId> {
//!         let ready = self.0.iter().filter(|view| view.ready);
//!         ready.min_by_key(|view| view.busy()).map(|view| view.worker)
//!     }
//! }
//!
//! let builder = troop::Cluster::builder().scheduling(Scheduling::custom(Fewest::default));
//! # drop(builder);
//! ```
//!
//! A decision that is made elsewhere, on another thread for example, answers a [`Question`], which
//! can be kept until then:
//!
//! ```
//! use std::time::Duration;
//!
//! use troop::{Cluster, Scheduling};
//!
//! let scheduling = Scheduling::callback(Duration::from_millis(100), |question| {
//!     // The first ready worker. Without an answer it is the next worker's turn.
//!     let chosen = question.workers.iter().find(|worker| worker.ready).map(|view| view.worker);
//!     if let Some(worker) = chosen {
//!         question.assign(worker);
//!     }
//! });
//! let builder = Cluster::builder().scheduling(scheduling);
//! # drop(builder);
//! ```

pub use troop_core::Time;
pub use troop_core::policy::{
    BadScheduling, Connection, Header, Http, Pattern, Policy, Question, Scheduling, Sticky,
    WorkerView,
};
pub use troop_core::primary::Rebalanced;
pub use troop_core::steer::AutoLimits;

/// Returns the scheduling of listeners for which none is set: [`Scheduling::Auto`], unless the
/// environment variable `NODE_CLUSTER_SCHED_POLICY` is exactly `rr` ([`Scheduling::RoundRobin`]) or
/// `none` ([`Scheduling::Shared`]). Node, too, ignores other values.
pub fn default_scheduling() -> Scheduling {
    match std::env::var("NODE_CLUSTER_SCHED_POLICY").as_deref() {
        Ok("rr") => Scheduling::RoundRobin,
        Ok("none") => Scheduling::Shared,
        _ => Scheduling::Auto,
    }
}
