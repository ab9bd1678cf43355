//! `troop serve`: a worker that serves the files of a directory.

mod body;
mod path;
mod server;

pub(crate) use server::{authorization, is_authorized, is_same, run};
