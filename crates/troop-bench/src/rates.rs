//! Schedulings at rates of connections from a few a second to the most: the primary's CPU time, waits
//! and shares.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use crate::peer::{Peer, Result, node, ourselves};
use crate::table::{Table, median, number};
use crate::{Options, cpu, load};

/// Connections per second; the last one is as many as are served.
const RATES: [Option<u32>; 6] = [Some(10), Some(100), Some(500), Some(1500), Some(5000), None];
/// Connections at a time at most.
const CLIENTS: usize = 64;
/// Duration of a slice and of the load before it, in which schedulings that adapt do so.
const SLICE: Duration = Duration::from_millis(1500);
const WARM_UP: Duration = Duration::from_millis(500);
/// Number of workers of each kind.
const WORKERS: [(&str, [usize; 3]); 2] = [("node", [2, 8, 64]), ("rust", [2, 8, 64])];

/// The measurements of a contender at one rate, one of each slice.
#[derive(Default)]
struct Measured {
    rate: Vec<f64>,
    primary: Vec<f64>,
    latency: Vec<f64>,
    shares: BTreeMap<u8, usize>,
    failed: usize,
}

struct Racer {
    name: &'static str,
    peer: Peer,
    address: SocketAddr,
}

impl Racer {
    fn start((name, command): (&'static str, Command)) -> Result<Racer> {
        let failed = |e: Box<dyn std::error::Error>| format!("{name}: {e}");
        let mut peer = Peer::start(command).map_err(failed)?;
        let port = peer.wait_for("ready").map_err(failed)?.first().copied().ok_or("no port")?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port as u16));
        Ok(Racer { name, peer, address })
    }

    fn load(&self, rate: Option<u32>, time: Duration) -> Result<load::Outcome> {
        // Without a rate, a number that takes about as long.
        let count = f64::from(rate.unwrap_or(20_000)) * time.as_secs_f64();
        let every = rate.map_or(Duration::ZERO, |rate| Duration::from_secs(1) / rate);
        load::run_paced(self.address, CLIENTS, (count as usize).max(1), every)
            .map_err(|e| format!("{}: {e}", self.name).into())
    }

    fn slice(&self, rate: Option<u32>, to: &mut Measured) -> Result<()> {
        if rate.is_none_or(|rate| rate >= 500) {
            self.load(rate, WARM_UP)?;
        }
        let before = cpu::time(self.peer.pid());
        let mut outcome = self.load(rate, SLICE)?;
        let spent = cpu::time(self.peer.pid()) - before;
        let count = outcome.latencies.len() as f64;
        to.rate.push(count / outcome.took.as_secs_f64());
        to.primary.push(spent.as_secs_f64() * 1e6 / count);
        to.latency.push(outcome.percentile(0.99).as_secs_f64() * 1e3);
        to.failed += outcome.failed;
        for (mark, count) in outcome.shares {
            *to.shares.entry(mark).or_default() += count;
        }
        Ok(())
    }
}

/// Returns how far the worst share is from an even one, in percent of that.
fn worst(shares: &BTreeMap<u8, usize>, workers: usize) -> f64 {
    let even = shares.values().sum::<usize>() as f64 / workers as f64;
    let absent = if shares.len() < workers { even } else { 0.0 };
    let off = shares.values().map(|count| (*count as f64 - even).abs()).fold(absent, f64::max);
    100.0 * off / even
}

fn contenders(kind: &str, workers: usize) -> Result<Vec<(&'static str, Command)>> {
    let count = workers.to_string();
    let mut all = Vec::new();
    if kind == "node" {
        all.push(("Node's primary, SCHED_RR", node("primary.js", &[&count, "rr"])));
        all.push(("Node's primary, SCHED_NONE", node("primary.js", &[&count, "none"])));
    }
    for scheduling in ["round-robin", "auto", "steered"] {
        all.push((scheduling, ourselves(&["primary", kind, &count, scheduling])?));
    }
    Ok(all)
}

/// Runs this section and prints its tables.
pub(crate) fn run(options: &Options) -> Result<()> {
    println!("## Rates\n");
    println!(
        "Connections that come at a rate, {CLIENTS} at a time at most; the load generator runs on the same CPUs. *Worst share*: how far a worker's \
         connections are from an even share.\n"
    );
    for (kind, numbers) in WORKERS {
        for workers in numbers.into_iter().filter(|workers| options.has(kind, *workers)) {
            compare(kind, workers, options)?;
        }
    }
    Ok(())
}

fn compare(kind: &str, workers: usize, options: &Options) -> Result<()> {
    println!("### {workers} {} workers\n", if kind == "node" { "Node" } else { "Rust" });
    let racers =
        contenders(kind, workers)?.into_iter().map(Racer::start).collect::<Result<Vec<_>>>()?;
    let mut table = Table::new(&[
        "",
        "asked for",
        "connections/s",
        "primary CPU µs",
        "99 % ms",
        "worst share %",
        "failed",
    ]);
    for rate in RATES {
        let mut measured: Vec<Measured> = racers.iter().map(|_| Measured::default()).collect();
        for _ in 0..options.repeat() {
            for (racer, measured) in racers.iter().zip(&mut measured) {
                racer.slice(rate, measured)?;
            }
        }
        for (racer, measured) in racers.iter().zip(measured) {
            table.row(vec![
                racer.name.into(),
                rate.map_or("the most".into(), |rate| rate.to_string()),
                number(median(measured.rate)),
                number(median(measured.primary)),
                number(median(measured.latency)),
                number(worst(&measured.shares, workers)),
                measured.failed.to_string(),
            ]);
        }
    }
    table.print();
    Ok(())
}
