//! One port, many processes: a process cluster for Rust, on the wire protocol of Node's `cluster`.
//!
//! One program is both primary and worker. The *primary* forks *workers* that run the same program,
//! holds the listening sockets, hands connections over, looks after the workers; the workers serve.
//! Either side can also be a Node process.
//!
//! ```no_run
//! use axum::{Router, routing::get};
//! use troop::{Cluster, Role};
//!
//! fn main() -> troop::Result<()> {
//!     match troop::role()? {
//!         // Forks a worker per CPU, restarts those that die, drains on SIGTERM, reloads on SIGHUP.
//!         Role::Primary => Cluster::builder().on_event(|event| eprintln!("{event}")).run(),
//!         Role::Worker(worker) => worker.block_on(async |worker| {
//!             let listener = worker.listen("0.0.0.0:8000").await?;
//!             let app = Router::new().route("/", get(async || "hello world\n"));
//!             # #[cfg(not(feature = "axum"))]
//!             # let _: (_, Router) = (listener, app);
//!             # #[cfg(feature = "axum")]
//!             troop::serve(listener, app).await;
//!             Ok(())
//!         }),
//!     }
//! }
//! ```
//!
//! # What to start with
//! - [`role`] says what this process is. Call it first in `main`: everything before it runs in the
//!   primary *and* in every worker.
//! - [`Cluster::builder`] configures a cluster; [`Builder::run`] supervises it, [`Builder::start`]
//!   gives a [`Cluster`] to steer from a tokio program, in Node's words: [`fork`](Cluster::fork),
//!   [`workers`](Cluster::workers), [`disconnect`](Cluster::disconnect).
//! - [`Worker`] is the worker's side, [`blocking::Worker`] the same for plain threads. [`worker`]
//!   is for programs that are only ever workers; without a primary they run alone, and listen by
//!   themselves.
//!
//! # What it guarantees
//! 1. A connection that was accepted reaches a worker that takes it, or waits for one. A worker
//!    that refuses it, dies, or hangs loses it to another one, unless it has already read from it.
//! 2. Nothing that a worker sends can harm the primary or other workers; a worker that breaks the
//!    rules of the channel is reported and, if nothing it sends can be trusted any more, killed.
//! 3. Every queue has a bound and every wait a deadline, or this documentation says that it has
//!    none.
//! 4. A fork that fails reports why, and leaves nothing behind.
//!
//! # Cancelling
//! Dropping a future of [`Cluster`] or [`WorkerHandle`] does not take back what was asked for. The
//! methods that say *cancel safe* can be used in `select!`: a dropped call has done all or nothing.
//!
//! # When the other side dies
//! Calls that wait for a worker end with [`Error::Closed`] when its channel closes. A worker whose
//! primary dies [drains](Worker::draining), and exits by itself after five seconds at the latest,
//! unless it [asks to go on](Worker::outlive_primary).

// The library never prints; what happens is an event.
#![warn(clippy::print_stdout, clippy::print_stderr)]

#[cfg(not(target_os = "linux"))]
compile_error!("troop runs on Linux");

mod activation;
pub mod blocking;
mod channel;
mod closer;
mod counted;
mod error;
mod events;
mod inherited;
mod message;
mod nesting;
mod net;
mod primary;
mod queue;
mod role;
#[cfg(feature = "axum")]
mod serve;
mod settings;
mod worker;

pub use activation::ActivationSocket;
pub use counted::Counted;
pub use error::{Error, Result};
pub use events::{Consequence, Event, Events};
pub use inherited::InheritedSocket;
pub use message::{Handle, Message, Request};
pub use net::{TcpListener, TcpStream, UnixListener, UnixStream};
pub use primary::{Adoption, Broadcast, Builder, Cgroup, Cluster, Fork, RelayIo, WorkerHandle};
pub use role::{Role, role, worker};
#[cfg(feature = "axum")]
pub use serve::{WorkerListener, serve};
pub use settings::{InspectPort, Resource, Sandbox, Settings, Setup, Stdio, SystemCalls};

pub use worker::{Draining, Listen, Worker, WorkerEvent, WorkerRole};

pub use primary::{
    HealthCheck, HealthTest, ListenerSnapshot, LostListener, Output, Phase, ReadyWhen,
    RecyclePolicy, Reload, ReplacePolicy, RestartPolicy, Snapshot, Source, Usage, VacantSlot,
    WhenFailed, WorkerSnapshot, available_workers, forget_startup,
};
pub use troop_core::event::{Address, AddressType, ExitHow, Listening, Violation, signal_name};
pub use troop_core::policy::{
    BadScheduling, Connection, Header, Http, Pattern, Policy, Question, Scheduling, Sticky,
    WorkerView,
};
pub use troop_core::primary::{WorkerState, WorkerStats};
pub use troop_core::supervise::{Afterwards, Cause, GiveUp, Progress, Restart};
pub use troop_core::{Time, WorkerId, text};

/// Paths that other users may be able to change, what those may do with files, and files that do
/// not answer. For the program `troop`, which needs the same walk as the engine: a second one would
/// be a second place for the same mistake. No part of the stable face.
#[doc(hidden)]
pub use troop_sys::{identity, safe_path, within};
