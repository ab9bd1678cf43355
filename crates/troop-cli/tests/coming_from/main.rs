//! What people know from other programs beside what it is here: tables, from which `docs/coming-from-*.md`
//! are written, and which are run against the program.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod gunicorn;
mod pm2;
mod supervisord;
#[path = "../support/mod.rs"]
mod support;
mod table;
