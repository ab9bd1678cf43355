//! The verbs other than `run` and `start`.

pub(crate) mod check;
pub(crate) mod init;
pub(crate) mod man;
pub(crate) mod operate;
pub(crate) mod send;
pub(crate) mod show;
pub(crate) mod startup;
mod table;
pub(crate) mod write;
