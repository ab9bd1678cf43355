//! A newer version of the primary's program that goes on with the running cluster: its workers,
//! listeners, connections and messages stay, and clients notice nothing.
//!
//! ```no_run
//! use std::process::Command;
//!
//! use troop::replace::RestoredState;
//! use troop::{Cluster, Role};
//!
//! const STATE: &str = "MY_STATE";
//!
//! fn main() -> troop::Result<()> {
//!     let Role::Primary = troop::role()? else { return Ok(()) };
//!     let mut builder = Cluster::builder().workers(4);
//!     if let Some(state) = RestoredState::from_env(STATE)? {
//!         builder = builder.restore(state);
//!     }
//!     builder.on_start(|cluster| drop(std::thread::spawn(|| replace_when_asked(cluster)))).run()
//! }
//!
//! fn replace_when_asked(cluster: Cluster) {
//! #   let wait_until_asked = || {};
//!     wait_until_asked();
//!     let failed = cluster.replace_blocking(|state| {
//!         let mut program = Command::new("/usr/local/bin/server");
//!         state.execute(program.args(std::env::args_os().skip(1)), STATE, b"")
//!     });
//!     eprintln!("{failed}");
//! }
//! ```
//!
//! The process stays the same, and so do its number, its children and its standard streams. What the
//! program itself has in memory is lost but for a note of its own ([`SavedState::execute`]); answers
//! to requests of workers' programs ([`Request`](crate::Request)) that are not given yet never come.
//!
//! A version of this crate reads the state of the same version. Try the new program before (with
//! `--version`, for example): when it is executed and does not go on, the cluster has ended.

pub use crate::primary::{RestoredState, SavedState};
