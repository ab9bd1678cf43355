//! troop beside Node's cluster, PM2, and loops that do only what must be done.
//!
//! `cargo run --release -p troop-bench -- --help` lists the sections; without names, all run. All
//! contenders of a section take turns in the same run, and the tables show medians. The ratios are
//! what counts: they hold on other machines too, the times do not. Node must be installed; PM2 is
//! fetched with npm if possible.
#![allow(clippy::print_stdout, clippy::print_stderr)]
#![expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "measured numbers are small and need few digits"
)]

mod balance;
mod bare;
mod connections;
mod cpu;
mod crowd;
mod dropin;
mod keepalive;
mod kills;
mod load;
mod manager;
mod memory;
mod messages;
mod peer;
mod policies;
mod rates;
mod reloads;
mod spawn;
mod table;
mod uneven;

use std::process::ExitCode;

use clap::Parser as _;

use peer::Result;

type Section = (&'static str, fn(&Options) -> Result<()>);

const SECTIONS: [Section; 13] = [
    ("connections", connections::run),
    ("policies", policies::run),
    ("rates", rates::run),
    ("balance", balance::run),
    ("crowd", crowd::run),
    ("keepalive", keepalive::run),
    ("reloads", reloads::run),
    ("kills", kills::run),
    ("messages", messages::run),
    ("dropin", dropin::run),
    ("spawn", spawn::run),
    ("memory", memory::run),
    ("manager", manager::section),
];

/// Measures troop beside Node's cluster, PM2, nginx and bare loops, and prints medians as tables.
#[derive(Debug, clap::Parser)]
#[command(name = "troop-bench")]
struct Options {
    /// Sections to run [default: all]
    #[arg(value_name = "SECTION", value_parser = SECTIONS.map(|(name, _)| name))]
    sections: Vec<String>,
    /// Measure less: two runs, a tenth of the work
    #[arg(long)]
    quick: bool,
    /// Runs of each contender [default: 5, or 2 with --quick]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    repeat: Option<u32>,
    /// Measure only this kind and number of workers where a section has several, as in rust:8; may
    /// be repeated
    #[arg(long, value_name = "KIND:N", value_parser = one_of_the_numbers)]
    workers: Vec<String>,
}

fn one_of_the_numbers(wanted: &str) -> std::result::Result<String, String> {
    let known = || {
        policies::NUMBERS
            .iter()
            .flat_map(|(kind, numbers)| numbers.iter().map(move |n| format!("{kind}:{n}")))
    };
    match known().find(|known| known == wanted) {
        Some(known) => Ok(known),
        None => Err(format!(
            "no section measures these; there are {}",
            known().collect::<Vec<_>>().join(", ")
        )),
    }
}

impl Options {
    /// Number of runs of each contender.
    fn repeat(&self) -> usize {
        self.repeat.map_or(if self.quick { 2 } else { 5 }, |runs| runs as usize)
    }

    /// Whether to measure this number of workers of this kind.
    fn has(&self, kind: &str, workers: usize) -> bool {
        self.workers.is_empty() || self.workers.contains(&format!("{kind}:{workers}"))
    }

    /// Returns a number of iterations: a tenth of it with `--quick`.
    fn count(&self, whole: usize) -> usize {
        if self.quick { whole / 10 } else { whole }
    }
}

/// Runs this program as one of the measured processes.
fn act(arguments: &[&str]) -> Result<()> {
    match arguments {
        ["load", port, clients, count] => {
            // By hand, while a contender runs under a profiler.
            let address = (std::net::Ipv4Addr::LOCALHOST, port.parse()?).into();
            println!("{:?}", load::run(address, clients.parse()?, count.parse()?)?);
            Ok(())
        }
        ["primary", kind, workers, scheduling, weights @ ..] => {
            let weights = weights.iter().flat_map(|list| list.split(',')).filter(|w| !w.is_empty());
            let weights = weights.map(str::parse).collect::<std::result::Result<Vec<u32>, _>>()?;
            connections::primary(kind, workers.parse()?, scheduling, &weights)
        }
        ["server"] => connections::server(),
        ["slow"] => connections::slow(),
        ["hold"] => connections::hold(),
        ["holder", port, count] => crowd::holder(port.parse()?, count.parse()?),
        ["http", how] => keepalive::server(how),
        ["uneven", how, load, mark @ ..] => uneven::server(how, load, mark.first().unwrap_or(&"")),
        ["kept", port] => reloads::server(port),
        ["bare", kind, workers] => bare::primary(kind, workers.parse()?),
        ["bare-worker"] => bare::worker(),
        ["messages", test, count] => messages::primary(test, count.parse()?),
        ["messages-worker", test, count] => messages::worker(test, count.parse()?),
        ["socketpair", test, count] => bare::socketpair(test, count.parse()?),
        ["socketpair-worker", test, count] => bare::socketpair_worker(test, count.parse()?),
        ["spawn", kind, workers, heap] => spawn::primary(kind, workers.parse()?, heap.parse()?),
        ["idle"] => spawn::idle(),
        other => Err(format!("there is no peer {other:?}").into()),
    }
}

fn measure() -> Result<()> {
    let options = Options::parse();
    peer::end_with_us()?;
    for (name, section) in SECTIONS {
        if options.sections.is_empty() || options.sections.iter().any(|chosen| chosen == name) {
            section(&options)?;
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["peer", ref rest @ ..] => act(rest),
        _ => measure(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("troop-bench: {e}");
            ExitCode::FAILURE
        }
    }
}
