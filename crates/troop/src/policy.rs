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

pub use troop_core::Time;
pub use troop_core::policy::{
    BadScheduling, Connection, Header, Http, Pattern, Policy, Question, Scheduling, Sticky,
    WorkerView,
};
