//! What can be done with apps that run.

pub(crate) mod check;
pub(crate) mod look;
pub(crate) mod steer;
mod table;
