//! Node's IPC wire format: newline-delimited JSON over a Unix stream socket, descriptors beside it.
//!
//! The format was verified by capture against Node 20. [`frame`] cuts the byte stream into lines
//! and keeps descriptors with the line they came with; [`incoming`] gives each line its meaning;
//! [`outgoing`] writes lines. [`advanced`] translates Node's other format.

pub mod advanced;
pub mod frame;
pub mod incoming;
pub mod outgoing;

/// The version that troop peers announce to each other in a field that Node ignores. 1: connections
/// in batches. 2: workers report their open connections.
pub const TROOP_VERSION: u32 = 2;

/// Most descriptors that one line may carry between troop peers; the kernel's own limit is 253
/// (`SCM_MAX_FD`).
pub const MAX_BATCH: usize = 64;
