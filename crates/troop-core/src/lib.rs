//! The decisions of a troop primary and the wire protocol, without I/O.
//!
//! Nothing in this crate opens a descriptor, reads a clock, starts a task or draws a random number.
//! Time and events are inputs, [`Action`](primary::Action)s are outputs, so that every transition
//! of a cluster can be tested.
//!
//! - [`primary`]: the state machine of the primary: workers, the registry of listeners, connections
//!   in flight.
//! - [`supervise`]: supervision: restarts with back-off, rolling reloads, scaling, shutdown.
//! - [`cluster`]: recycling, hung workers, health checks, missed addresses, activated sockets.
//! - [`policy`]: policies, which choose the worker for each connection.
//! - [`snapshot`]: the whole state as plain data.
//! - [`steer`]: steered listeners: kernel programs and shares.
//! - [`text`]: escaping of untrusted text.
//! - [`wire`]: Node's IPC protocol: framing, messages in, messages out.

#![forbid(unsafe_code)]

pub mod asked;
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
