//! `troop`: runs any program as a cluster.

mod args;
mod log;
mod program;
mod run;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let args::Troop { command } = args::Troop::parse();
    let result = match command {
        args::Command::Run(args) => run::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            log::failure(&e);
            ExitCode::FAILURE
        }
    }
}
