//! Attacks on the primary, one file per target. Each asserts the outcome for root's files, for the
//! clients of the sibling worker, and for the primary's memory and descriptors. Those that need a
//! root primary and a worker of another user are skipped by name elsewhere.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod fuse;
mod home;
#[path = "../replaceable/mod.rs"]
mod replaceable;
#[path = "../scene/mod.rs"]
mod scene;
mod support;

mod abandoned;
mod closing;
mod descriptors;
mod environment;
mod exchanged;
mod few_descriptors;
mod files;
mod flooding;
mod hanging;
mod kept;
mod limits;
mod listeners;
mod moves;
mod notifications;
mod options;
mod paths;
mod poison;
mod privileges;
mod replacing;
mod running;
mod sandbox;
mod stopping;
mod supervision;
mod terminal;
mod unkillable;
