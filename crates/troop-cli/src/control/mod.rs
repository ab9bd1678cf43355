//! The control socket: its messages, and both of its sides. `docs/control.md` describes it for
//! clients of other kinds.

mod audit;
pub(crate) mod client;
pub(crate) mod connection;
pub(crate) mod missing;
mod pending;
pub(crate) mod protocol;
pub(crate) mod select;
pub(crate) mod server;
pub(crate) mod sockets;
pub(crate) mod targets;
