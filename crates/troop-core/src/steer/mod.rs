//! Listeners steered in the kernel: one socket per place, and a program that the kernel asks which
//! of them a new connection is for.
//!
//! [`program`] writes the program; `group` decides what it should say, from what is seen of the
//! sockets' queues and of the workers. The number of a socket in the kernel's group is that of its
//! place and one more, because the first socket is the primary's own: sockets are opened in order
//! and never closed before the whole listener is, so the numbers never change.

pub(crate) mod group;
pub mod program;

pub use program::Instruction;
