//! What a troop primary *decides*, and how the two sides talk, without any I/O.
//!
//! Nothing in this crate opens a descriptor, reads a clock, starts a task or draws a random number.
//! Inputs go in, decisions come out; time is an input. That is what makes the behaviour of a
//! cluster testable to the last transition.
//!
//! - [`primary`]: the state machine of the primary: worker lives, the registry of listeners,
//!   connections in flight.
//! - [`supervise`]: how many workers there should be: restarts with back-off, rolling reload,
//!   shutdown.
//! - [`cluster`]: recycling, hung workers, health checks, missed addresses, activated sockets.
//! - [`policy`]: which worker gets the next connection.
//! - [`snapshot`]: the state of all that, written down and read again.
//! - [`steer`]: what the kernel is told to do by itself.
//! - [`text`]: text of strangers, made safe to show.
//! - [`wire`]: Node's IPC protocol: framing, messages in, messages out.

#![forbid(unsafe_code)]

pub mod cluster;
pub mod event;
pub mod id;
pub mod policy;
pub mod primary;
pub mod snapshot;
pub mod steer;
pub mod supervise;
pub mod text;
pub mod wire;
pub mod worker_map;
mod worker_state;

pub use event::{Address, AddressType, ExitHow, Listening, Notice, Violation};
pub use id::{ConnId, ListenerId, Time, WorkerId};
pub use worker_state::WorkerState;
