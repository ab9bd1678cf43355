//! What workers print: taken line by line, written to files, to the terminal or to the journal, and
//! shown again by `troop logs`.
//!
//! Whoever prints never waits for a disk: [`collect`] puts lines into a bounded queue, [`writer`]
//! empties it from a thread of its own, and what does not fit is counted, and the count is written
//! when there is room again.

pub(crate) mod collect;
pub(crate) mod file;
pub(crate) mod journal;
pub(crate) mod line;
pub(crate) mod place;
pub(crate) mod show;
pub(crate) mod writer;
