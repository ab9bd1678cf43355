//! Steered listeners: a group of sockets on one address, and a program by which the kernel chooses
//! the socket of each new connection.
//!
//! [`program`] generates the program; `group` decides on shares, by the sockets' queues and the
//! load of the workers. A shard's number in the kernel's group is its index plus one, because the
//! first socket is the primary's own. Sockets are opened in order and closed only with the whole
//! listener, so the numbers never change.

pub(crate) mod group;
pub mod program;

pub use program::Instruction;
