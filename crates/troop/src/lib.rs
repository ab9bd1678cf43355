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
//!   [`workers`](Cluster::workers), [`disconnect`](Cluster::disconnect). Supervised clusters are
//!   steered by operations that say how they ended: [`ready`](Cluster::ready),
//!   [`reload`](Cluster::reload), [`recycle`](Cluster::recycle), [`scale`](Cluster::scale),
//!   [`pause`](Cluster::pause), [`stop`](Cluster::stop).
//! - [`Worker`] is the worker's side, [`blocking::Worker`] the same for plain threads. [`worker`]
//!   is for programs that are only ever workers; without a primary they run alone, and listen by
//!   themselves.
//!
//! A program that is its own primary has no control socket, so the program `troop` does not list or
//! steer it. Run as `troop run ./server`, the same program is a worker of troop's primary, and
//! `troop ls`, `troop reload` and the other verbs work.
//!
//! The modules have the rest: [`policy`] chooses workers for connections, [`supervise`] keeps
//! workers running, [`setup`] says what they are started with, [`message`] is what they and the
//! primary tell each other, [`event`] and [`snapshot`] are what can be observed, [`net`] and
//! [`blocking`] are what workers serve with, [`activation`] is for sockets of systemd and for
//! programs that expect such, [`text`] makes text of strangers safe to show.
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
//! Dropping a future of [`Cluster`] or [`WorkerHandle`] does not take back what was asked for. An
//! [`Operation`](supervise::Operation) is asked for when its method is called, even if it is never polled. The
//! methods that say *cancel safe* can be used in `select!`: a dropped call has done all or nothing.
//!
//! # When the other side dies
//! Calls that wait for a worker end with [`Error::Closed`] when its channel closes. A worker whose
//! primary dies [drains](Worker::draining), and exits by itself after five seconds at the latest,
//! unless it [asks to go on](Worker::outlive_primary).
//!
//! # Features
//! None is on by default.
//!
//! | feature | |
//! | --- | --- |
//! | `axum` | `troop::serve` takes what `axum::serve` takes; `axum::serve` takes the listeners |
//! | `hyper` | `troop::serve::hyper` serves a service of hyper's |
//! | `http2` | both of them speak HTTP/2, too |
//! | `tonic` | tonic's server takes [`TcpListener::incoming`] |
//! | `metrics` | `Worker::metrics` tells what a `prometheus-client` registry says |
//! | `tracing` | spans (`primary`, `worker`) and events of primary and workers, with each worker's number (`worker`) and slot (`slot`); a subscriber must not wait for the cluster |
//! | `embed` | for programs that start the workers' processes themselves |

// The library never prints; what happens is an event.
#![warn(clippy::print_stdout, clippy::print_stderr)]
// Without an embedding program nothing adopts workers or relays their messages.
#![cfg_attr(not(feature = "embed"), allow(dead_code, unreachable_pub))]

#[cfg(not(target_os = "linux"))]
compile_error!("troop runs on Linux");

pub mod activation;
mod channel;
mod closer;
#[cfg(feature = "embed")]
pub mod embed;
#[cfg(not(feature = "embed"))]
mod embed {
    pub(crate) mod direct_io;
}
mod error;
pub mod event;
mod inherited;
pub mod keeper;
pub mod message;
mod nesting;
pub mod policy;
mod primary;
mod queue;
pub mod replace;
mod role;
#[cfg(feature = "_serve")]
pub mod serve;
pub mod setup;
pub mod snapshot;
pub mod supervise;
mod trace;
mod worker;

pub use error::{Error, Result};
#[doc(inline)]
pub use event::{Event, Events};
#[doc(inline)]
pub use message::{Handle, Message, Request};
#[doc(inline)]
pub use net::{TcpListener, UnixListener};
#[doc(inline)]
pub use policy::Scheduling;
pub use primary::{Builder, Cluster, Fork, WorkerHandle, available_workers};
pub use role::{Role, role, worker};
#[cfg(feature = "axum")]
pub use serve::serve;
#[doc(inline)]
pub use setup::Setup;
#[doc(inline)]
pub use supervise::Reload;
pub use troop_core::{WorkerId, text};
pub use worker::{Worker, WorkerRole, blocking, net};

/// For the program `troop`, which needs the same walk along paths as the engine: a second one would
/// be a second place for the same mistake. Its own code's memory, as only `troop-sys` has unsafe
/// code. No part of the stable face.
#[doc(hidden)]
pub mod program {
    pub use troop_sys::{execute, identity, inherited, own_code, safe_path, sandbox, within};
}
