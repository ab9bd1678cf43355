//! The verbs other than `run` and `start`.

pub(crate) mod attach;
pub(crate) mod check;
mod cpu;
mod each;
pub(crate) mod elsewhere;
pub(crate) mod exec_activated;
pub(crate) mod init;
pub(crate) mod lifecycle;
pub(crate) mod list;
pub(crate) mod man;
mod masked;
pub(crate) mod operate;
pub(crate) mod pm2;
pub(crate) mod probe;
pub(crate) mod progress;
pub(crate) mod save;
pub(crate) mod send;
pub(crate) mod show;
pub(crate) mod startup;
mod table;
mod times;
pub(crate) mod top;
pub(crate) mod wait;
pub(crate) mod write;
