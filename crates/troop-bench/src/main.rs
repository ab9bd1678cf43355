//! troop beside Node's cluster, PM2, and loops that do only what must be done.
//!
//! ```text
//! cargo run --release -p troop-bench [-- [connections] [policies] [balance] [crowd] [keepalive] [messages] [dropin] [spawn]
//!     [memory] [manager] [--quick] [--repeat N] [--workers KIND:N]]
//! ```
//!
//! Without names, all sections run. All contenders of a section take turns in the same run, and the tables show medians. The ratios are
//! what counts: they hold on other machines too, the times do not. Node must be installed; PM2 is fetched with npm if possible.
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
mod load;
mod manager;
mod memory;
mod messages;
mod peer;
mod policies;
mod spawn;
mod table;

use std::process::ExitCode;

use peer::Result;

type Section = (&'static str, fn(&Options) -> Result<()>);

const SECTIONS: [Section; 10] = [
    ("connections", connections::run),
    ("policies", policies::run),
    ("balance", balance::run),
    ("crowd", crowd::run),
    ("keepalive", keepalive::run),
    ("messages", messages::run),
    ("dropin", dropin::run),
    ("spawn", spawn::run),
    ("memory", memory::run),
    ("manager", manager::section),
];

/// How to measure.
#[derive(Debug, Default)]
struct Options {
    sections: Vec<String>,
    quick: bool,
    /// Runs of every contender.
    repeat: usize,
    /// Only so many workers of this kind, where a section has several numbers: `rust:8`.
    workers: Vec<String>,
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Options> {
        let mut options = Options::default();
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--quick" => options.quick = true,
                "--repeat" => options.repeat = arguments.next().ok_or("--repeat needs a number")?.parse()?,
                "--workers" => {
                    let wanted = arguments.next().ok_or("--workers needs a kind and a number, as in rust:8")?;
                    if !policies::NUMBERS.iter().any(|(kind, numbers)| numbers.iter().any(|n| *wanted == format!("{kind}:{n}"))) {
                        return Err(format!("--workers {wanted}: no section has these").into());
                    }
                    options.workers.push(wanted.clone());
                }
                name if SECTIONS.iter().any(|(section, _)| *section == name) => options.sections.push(name.into()),
                other => {
                    let names = SECTIONS.map(|(name, _)| name).join(", ");
                    return Err(
                        format!("{other:?} is neither a section ({names}) nor --quick, --repeat N or --workers KIND:N").into()
                    );
                }
            }
        }
        if options.repeat == 0 {
            options.repeat = if options.quick { 2 } else { 5 };
        }
        Ok(options)
    }

    /// Whether so many workers of this kind are to be measured.
    fn has(&self, kind: &str, workers: usize) -> bool {
        self.workers.is_empty() || self.workers.contains(&format!("{kind}:{workers}"))
    }

    /// How many of something that is counted in thousands.
    fn count(&self, whole: usize) -> usize {
        if self.quick { whole / 10 } else { whole }
    }
}

/// What this program does as one of the measured processes.
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

fn measure(arguments: &[String]) -> Result<()> {
    let options = Options::parse(arguments)?;
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
        _ => measure(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("troop-bench: {e}");
            ExitCode::FAILURE
        }
    }
}
