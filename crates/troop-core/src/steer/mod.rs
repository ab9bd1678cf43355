//! Steered listeners: a group of sockets on one address, and a program by which the kernel chooses
//! the socket of each new connection.
//!
//! [`program`] generates the program; `group` decides on shares, by the sockets' queues and the
//! load of the workers; `auto` decides whether the kernel chooses at all, or the primary. A shard's number in the kernel's group is its index plus one, because the
//! first socket is the primary's own. Sockets are opened in order and closed only with the whole
//! listener, so the numbers never change.

pub(crate) mod auto;
pub(crate) mod group;
pub mod program;

pub use auto::{AutoLimits, CurrentMode, Mode, ModeReason};
pub use program::Instruction;
