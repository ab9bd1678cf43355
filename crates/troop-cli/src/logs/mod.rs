//! Output of workers: collected by line, written to files, the terminal or the journal, and shown
//! by `troop logs`.
//!
//! Workers never wait for a disk: [`collect`] pushes lines into a bounded queue, and the thread of
//! [`writer`] empties it. Lines that overflow the queue are dropped and counted, and the count is
//! written when there is room again.

pub(crate) mod collect;
pub(crate) mod file;
pub(crate) mod journal;
pub(crate) mod line;
pub(crate) mod paths;
pub(crate) mod show;
pub(crate) mod writer;
