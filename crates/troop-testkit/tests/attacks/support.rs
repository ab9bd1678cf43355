//! What the attacks share: the program `troop`, a throw-away user, and whether this machine allows the attack.
#![allow(dead_code, unreachable_pub, reason = "each attack uses a part of it")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A user and group that exist nowhere else, so that no other process has their rights.
pub const STRANGER: u32 = 64_017;

/// Whether this process is root, as attacks on a root primary need. Says which test it skips otherwise.
pub fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: {test} needs root");
    }
    root
}

/// The program `troop`, built beside the fixture.
pub fn troop_program() -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_troop-fixture")).with_file_name("troop");
    assert!(program.exists(), "{} is missing: build the whole workspace (cargo build --workspace)", program.display());
    program
}

/// `troop` with these arguments, with its control sockets and logs below `home`.
pub fn troop(home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(troop_program());
    command.args(args).current_dir(home).stdin(Stdio::null());
    command.env("TROOP_RUNTIME_DIR", home.join("run")).env("TROOP_LOG_DIR", home.join("logs"));
    command
}
