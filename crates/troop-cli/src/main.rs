//! `troop`: runs any program as a cluster.

mod args;
mod config;
mod control;
mod log;
mod plan;
mod program;
mod run;
mod verbs;

use std::process::ExitCode;

use clap::Parser;

use args::Command;
use control::client::Trouble;
use verbs::{check, look, steer};

/// The exit code when there is no such app.
const NO_APP: u8 = 3;

fn main() -> ExitCode {
    let args::Troop { command } = args::Troop::parse();
    let result = match command {
        Command::Run(args) => return run(args),
        Command::Check(args) => check::check(&args).map_err(Trouble::Nonsense),
        Command::Ls(args) => look::ls(&args),
        Command::Show(args) => look::show(&args),
        Command::Events(args) => look::events(&args),
        Command::Reload(args) => steer::reload(&args),
        Command::Scale(args) => steer::scale(&args),
        Command::Stop(args) => steer::stop(&args),
        Command::Policy(args) => steer::policy(&args),
        Command::Signal(args) => steer::signal(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(trouble) => {
            log::say(&format!("troop: {trouble}"));
            ExitCode::from(if matches!(trouble, Trouble::NoApp(_)) { NO_APP } else { 1 })
        }
    }
}

fn run(args: args::Run) -> ExitCode {
    match run::run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            log::say(&format!("troop: {e}"));
            // As for what cannot be typed.
            ExitCode::from(if matches!(e, run::Refused::Nonsense(_)) { 2 } else { 1 })
        }
    }
}
