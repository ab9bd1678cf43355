//! CPU time of the primary per connection under each scheduling, with few workers and with many.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use crate::peer::{Peer, Result, node, ourselves};
use crate::table::{Table, median, number, times};
use crate::{Options, cpu, load};

const CLIENTS: usize = 64;
/// Number of slices of a repeat, in which contenders take turns.
const SLICES: usize = 5;
/// Numbers of workers, by kind.
pub(crate) const NUMBERS: [(&str, &[usize]); 2] =
    [("node", &[1, 2, 8, 64, 256]), ("rust", &[1, 2, 8, 64, 256])];

struct Contender {
    name: &'static str,
    command: Command,
}

struct Racer {
    name: &'static str,
    peer: Peer,
    address: SocketAddr,
    rates: Vec<f64>,
    primary: Vec<f64>,
    failed: usize,
}

fn contenders(kind: &str, workers: usize) -> Result<Vec<Contender>> {
    let count = workers.to_string();
    let troop = |name, scheduling: &str| -> Result<Contender> {
        Ok(Contender { name, command: ourselves(&["primary", kind, &count, scheduling])? })
    };
    let mut all = Vec::new();
    if kind == "node" {
        all.push(Contender {
            name: "Node's primary, SCHED_RR",
            command: node("primary.js", &[&count, "rr"]),
        });
        all.push(Contender {
            name: "Node's primary, SCHED_NONE",
            command: node("primary.js", &[&count, "none"]),
        });
    }
    let workers_of = if kind == "rust" { "rust-troop" } else { kind };
    all.push(Contender { name: "bare loop", command: ourselves(&["bare", workers_of, &count])? });
    if kind == "rust" {
        all.push(Contender {
            name: "bare loop, bare workers",
            command: ourselves(&["bare", "rust", &count])?,
        });
    }
    // Next to those that they are compared with.
    all.push(troop("round-robin", "round-robin")?);
    all.push(troop("steered", "steered")?);
    all.push(troop("auto", "auto")?);
    all.push(troop("weighted", "weighted")?);
    all.push(troop("least-connections", "least-connections")?);
    all.push(troop("p2c", "p2c")?);
    all.push(troop("sticky", "sticky")?);
    all.push(troop("shared", "shared")?);
    all.push(troop("steered:sticky", "steered:sticky")?);
    Ok(all)
}

fn start(Contender { name, command }: Contender) -> Result<Racer> {
    let failed = |e: Box<dyn std::error::Error>| format!("{name}: {e}");
    let mut peer = Peer::start(command).map_err(failed)?;
    let port = peer.wait_for("ready").map_err(failed)?.first().copied().ok_or("no port")?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port as u16));
    Ok(Racer { name, peer, address, rates: Vec::new(), primary: Vec::new(), failed: 0 })
}

struct Outcome {
    name: &'static str,
    rate: f64,
    cost: f64,
    memory: f64,
    failed: usize,
}

impl Racer {
    fn slice(&mut self, count: usize) -> Result<()> {
        let before = cpu::time(self.peer.pid());
        // From many addresses, so that there are many clients for those that tell them apart.
        let outcome = load::run_from(self.address, CLIENTS, count)
            .map_err(|e| format!("{}: {e}", self.name))?;
        let spent = cpu::time(self.peer.pid()) - before;
        self.rates.push(count as f64 / outcome.took.as_secs_f64());
        self.primary.push(spent.as_secs_f64() * 1e6 / count as f64);
        self.failed += outcome.failed;
        Ok(())
    }
}

/// Runs this section and prints its tables.
pub(crate) fn run(options: &Options) -> Result<()> {
    println!("## Policies\n");
    println!(
        "{CLIENTS} connections at a time; the load generator runs on the same CPUs. *Bare loop*: the necessary system calls of a hand-over \
         alone, with the same workers; *bare workers* are such loops too.\n"
    );
    for (kind, numbers) in NUMBERS {
        for workers in numbers.iter().filter(|workers| options.has(kind, **workers)) {
            compare(kind, *workers, options)?;
        }
    }
    Ok(())
}

fn compare(kind: &str, workers: usize, options: &Options) -> Result<()> {
    let count = options.count(20_000);
    // Not all at once: many workers of many contenders would not fit into the memory.
    let fit = if kind == "node" { 320 } else { 1280 };
    let at_once = (fit / workers).clamp(1, 16);
    let mut results: Vec<Outcome> = Vec::new();
    let mut rest = contenders(kind, workers)?;
    while !rest.is_empty() {
        let later = rest.split_off(at_once.min(rest.len()));
        let mut racing = rest.into_iter().map(start).collect::<Result<Vec<_>>>()?;
        rest = later;
        for racer in &mut racing {
            racer.slice(count / 2)?;
            racer.rates.clear();
            racer.primary.clear();
        }
        for _ in 0..SLICES {
            for racer in &mut racing {
                racer.slice(count / SLICES * options.repeat().min(3))?;
            }
        }
        for racer in racing {
            results.push(Outcome {
                name: racer.name,
                rate: median(racer.rates),
                cost: median(racer.primary),
                memory: cpu::memory(racer.peer.pid()).map_or(f64::NAN, |m| m.resident),
                failed: racer.failed,
            });
        }
    }
    println!("### {workers} {} workers\n", if kind == "node" { "Node" } else { "Rust" });
    let of = |name: &str, what: fn(&Outcome) -> f64| {
        results.iter().find(|r| r.name == name).map_or(f64::NAN, what)
    };
    let (of_bare, of_node) =
        (of("bare loop", |r| r.cost), of("Node's primary, SCHED_RR", |r| r.cost));
    let none = of("Node's primary, SCHED_NONE", |r| r.rate);
    let mut table = Table::new(&[
        "",
        "connections/s",
        "x SCHED_NONE",
        "primary CPU µs",
        "/ Node's RR",
        "/ bare loop",
        "primary MiB",
        "failed",
    ]);
    for Outcome { name, rate, cost, memory, failed } in &results {
        table.row(vec![
            (*name).into(),
            number(*rate),
            times(rate / none),
            number(*cost),
            times(cost / of_node),
            times(cost / of_bare),
            number(*memory),
            failed.to_string(),
        ]);
    }
    table.print();
    Ok(())
}
