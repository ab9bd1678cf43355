//! The same JavaScript primary with Node's `cluster` and with the npm package.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use rustix::thread::CpuSet;

use crate::peer::{Peer, Result, node, node_with, ourselves};
use crate::table::{Table, median, number, times};
use crate::{Options, cpu, load, messages};

const WORKERS: &str = "2";
const CLIENTS: usize = 64;
/// Number of slices of a repeat, in which contenders take turns.
const SLICES: usize = 5;
/// Time for which JavaScript's thread is observed.
const WATCH_DURATION: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(1500);

/// The option that replaces Node's `cluster` by the package.
fn register() -> [String; 2] {
    ["--require".into(), format!("{NPM}/register.js")]
}

const NPM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../npm");

/// Builds the engine in release mode.
fn build() -> Result<()> {
    let status = Command::new("node")
        .arg(format!("{NPM}/build.js"))
        .stdout(std::process::Stdio::null())
        .status()?;
    if status.success() {
        Ok(())
    } else {
        Err("the npm package could not be built; see above".into())
    }
}

struct Racer {
    peer: Peer,
    address: SocketAddr,
    /// The measurements, by slice.
    slices: Vec<Slice>,
    /// Delays of timers and messages without load.
    idle: Vec<f64>,
    /// Delays of timers and messages under load.
    busy: Vec<f64>,
}

struct Slice {
    rate: f64,
    primary: f64,
    largest_share: f64,
    failed: usize,
}

impl Racer {
    fn start((name, command): (&str, Command)) -> Result<Racer> {
        let mut peer = Peer::start(command).map_err(|e| format!("{name}: {e}"))?;
        let port = peer
            .wait_for("ready")
            .map_err(|e| format!("{name}: {e}"))?
            .first()
            .copied()
            .ok_or("no port")?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port as u16));
        load::run(address, CLIENTS, 10_000)?;
        Ok(Racer { peer, address, slices: Vec::new(), idle: Vec::new(), busy: Vec::new() })
    }

    fn slice(&mut self, count: usize) -> Result<()> {
        let before = cpu::time(self.peer.pid());
        let outcome = load::run(self.address, CLIENTS, count)?;
        let spent = cpu::time(self.peer.pid()) - before;
        self.slices.push(Slice {
            rate: count as f64 / outcome.took.as_secs_f64(),
            primary: spent.as_secs_f64() * 1e6 / count as f64,
            largest_share: 100.0 * outcome.shares.values().max().copied().unwrap_or(0) as f64
                / count as f64,
            failed: outcome.failed,
        });
        Ok(())
    }

    /// Measures JavaScript's thread while `meanwhile` runs.
    fn watch(&mut self, meanwhile: impl FnOnce(SocketAddr) -> Result<()>) -> Result<Vec<f64>> {
        self.peer.go()?;
        meanwhile(self.address)?;
        self.peer.go()?;
        self.peer.wait_for("done")
    }

    /// Measures JavaScript's thread without load, and under a load that all contenders can serve.
    /// The primary has its own CPU, so the delays come from the primary and not from other
    /// processes.
    fn attend(&mut self, every: Duration, [own, others]: &[CpuSet; 2]) -> Result<()> {
        cpu::children(self.peer.pid()).into_iter().for_each(|worker| cpu::confine(worker, others));
        cpu::confine(self.peer.pid(), own);
        // The load before must be forgotten.
        std::thread::sleep(PAUSE);
        self.idle = self.watch(|_| {
            std::thread::sleep(WATCH_DURATION);
            Ok(())
        })?;
        let count = (WATCH_DURATION.as_secs_f64() / every.as_secs_f64()) as usize;
        self.busy =
            self.watch(|address| load::run_paced(address, CLIENTS, count, every).map(drop))?;
        Ok(())
    }
}

/// Runs this section and prints its tables.
pub(crate) fn run(options: &Options) -> Result<()> {
    build()?;
    println!("## The npm package\n");
    connections(options)?;
    message_rates(options)
}

fn connections(options: &Options) -> Result<()> {
    let names = [
        "stock, SCHED_RR",
        "drop-in, SCHED_RR",
        "stock, SCHED_NONE",
        "drop-in, SCHED_NONE",
        "drop-in, steered",
        "bare loop, round robin",
    ];
    let last = names.len() - 1;
    let commands = || -> Result<Vec<Command>> {
        let register = register();
        let with = |policy| node_with(&register, "dropin.js", &[WORKERS, policy]);
        Ok(vec![
            node("dropin.js", &[WORKERS, "rr"]),
            with("rr"),
            node("dropin.js", &[WORKERS, "none"]),
            with("none"),
            with("steered"),
            ourselves(&["bare", "node", WORKERS])?,
        ])
    };
    let count = options.count(50_000);
    let (mut races, mut paces) = (Vec::new(), Vec::new());
    for _ in 0..options.repeat() {
        let mut racers =
            names.into_iter().zip(commands()?).map(Racer::start).collect::<Result<Vec<_>>>()?;
        for _ in 0..SLICES {
            for racer in &mut racers {
                racer.slice(count / SLICES)?;
            }
        }
        // Half of what Node's own round robin can do.
        let every =
            Duration::from_secs_f64(2.0 / median(racers[0].slices.iter().map(|slice| slice.rate)));
        let all = cpu::available()?;
        let pair = cpu::two_of(&all)?;
        cpu::confine_caller(&pair[1])?;
        for racer in &mut racers[..last] {
            racer.attend(every, &pair)?;
        }
        cpu::confine_caller(&all)?;
        paces.push(1.0 / every.as_secs_f64());
        races.push(racers);
    }
    println!(
        "One JavaScript primary, {WORKERS} workers, {count} connections, {CLIENTS} at a time. CPU is of the primary's whole process.\n"
    );
    let mut table = Table::new(&[
        "",
        "connections/s",
        "x stock",
        "primary CPU µs",
        "/ stock",
        "largest share %",
        "failed",
    ]);
    let slices = |at: usize| races.iter().flat_map(move |race| &race[at].slices);
    for (at, name) in names.iter().enumerate() {
        let of = |what: fn(&Slice) -> f64| number(median(slices(at).map(what)));
        let against = |what: fn(&Slice) -> f64| {
            times(median(slices(at).zip(slices(0)).map(|(own, stock)| what(own) / what(stock))))
        };
        table.row(vec![
            (*name).into(),
            of(|s| s.rate),
            against(|s| s.rate),
            of(|s| s.primary),
            against(|s| s.primary),
            of(|s| s.largest_share),
            slices(at).map(|s| s.failed).sum::<usize>().to_string(),
        ]);
    }
    table.print();

    println!(
        "JavaScript's thread, which sends a message every 5 ms: how late its timers are, and the way of a message there and back, in µs; with nothing else to do, \
         and under {} connections/s, half of what stock round robin can do. The primary has one processor, everything else another.\n",
        number(median(paces.into_iter()))
    );
    let mut table = Table::new(&[
        "",
        "late, idle: mean",
        "99 %",
        "under load: mean",
        "99 %",
        "trip, idle: mean",
        "99 %",
        "under load: mean",
        "99 %",
    ]);
    for (at, name) in names[..last].iter().enumerate() {
        let idle = |index: usize| {
            number(median(races.iter().filter_map(|race| race[at].idle.get(index).copied())))
        };
        let busy = |index: usize| {
            number(median(races.iter().filter_map(|race| race[at].busy.get(index).copied())))
        };
        table.row(vec![
            (*name).into(),
            idle(0),
            idle(1),
            busy(0),
            busy(1),
            idle(2),
            idle(3),
            busy(2),
            busy(3),
        ]);
    }
    table.print();
    Ok(())
}

fn message_rates(options: &Options) -> Result<()> {
    println!("Messages of about 100 bytes between the primary and one worker.\n");
    let register = register();
    let mut table = Table::new(&[
        "",
        "stock µs each",
        "drop-in µs each",
        "/ stock",
        "CPU µs, stock",
        "drop-in",
        "/ stock",
    ]);
    for (test, title) in messages::TESTS {
        let count = options.count(if test == "trip" { 20_000 } else { 200_000 });
        let (mut stock, mut own) = (Vec::new(), Vec::new());
        for _ in 0..options.repeat() {
            let arguments = [test.to_owned(), count.to_string()];
            stock.push(messages::measure(node("messages.js", &arguments), count)?);
            own.push(messages::measure(node_with(&register, "messages.js", &arguments), count)?);
        }
        let of = |runs: &[messages::Run], what: fn(&messages::Run) -> f64| {
            number(median(runs.iter().map(what)))
        };
        let ratio = |what: fn(&messages::Run) -> f64| {
            times(median(own.iter().zip(&stock).map(|(own, stock)| what(own) / what(stock))))
        };
        table.row(vec![
            title.into(),
            of(&stock, |r| r.took),
            of(&own, |r| r.took),
            ratio(|r| r.took),
            of(&stock, |r| r.cpu),
            of(&own, |r| r.cpu),
            ratio(|r| r.cpu),
        ]);
    }
    table.print();
    Ok(())
}
