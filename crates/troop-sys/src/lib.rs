//! Safe wrappers of system calls: the only crate of troop with `unsafe` code, but for the calls of
//! Node.
//!
//! The crate decides nothing. Every descriptor is an `OwnedFd` or a `BorrowedFd`, and is created
//! close-on-exec.

#![cfg(target_os = "linux")]

pub mod accepted;
mod aside;
pub mod connections;
pub mod diag;
pub mod environment;
pub mod execute;
pub mod fault;
pub mod fdpass;
pub mod group;
pub mod identity;
pub mod inherited;
pub mod interrupt;
pub mod keeping;
pub mod listen;
pub mod notify;
pub mod options;
pub mod own_code;
pub mod poll;
mod proc_file;
pub mod process;
pub mod process_group;
pub mod safe_path;
pub mod sandbox;
pub mod serving;
pub mod shared;
mod shut_down;
pub mod signals;
pub mod socket;
pub mod spawn;
pub mod tree;
pub mod unblock;
pub mod unix;
pub mod within;

pub use aside::{Bequeathed, LeftBehind};
