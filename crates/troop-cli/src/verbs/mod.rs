//! The verbs other than `run` and `start`.

pub(crate) mod check;
pub(crate) mod init;
pub(crate) mod look;
pub(crate) mod man;
pub(crate) mod send;
pub(crate) mod startup;
pub(crate) mod steer;
mod table;
pub(crate) mod write;
