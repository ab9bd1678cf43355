//! Node's IPC wire format: newline-delimited JSON over a Unix stream socket, descriptors beside it.
//!
//! The format was verified by capture against Node 20. [`frame`] splits the byte stream into lines
//! and keeps descriptors with their line; [`incoming`] parses lines; [`outgoing`] writes lines.
//! [`advanced`] translates Node's other serialization format.

pub mod advanced;
pub mod frame;
pub mod incoming;
pub mod outgoing;

/// The version that troop peers announce to each other in a field that Node ignores. 1: connections
/// in batches. 2: workers report their open connections.
pub const TROOP_VERSION: u32 = 2;

/// Maximum number of descriptors per line between troop peers; the kernel's limit is 253
/// (`SCM_MAX_FD`).
pub const MAX_BATCH: usize = 64;
