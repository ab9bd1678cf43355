//! CPU time of the primary per connection, and connections per second.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use troop::{Cluster, Event, Setup};

use crate::peer::{Peer, Result, node, ourselves, script};
use crate::table::{Table, median, number, times};
use crate::{Options, cpu, load};

/// Number of workers of every peer.
const WORKERS: usize = 2;
/// Number of clients: many, so that work comes in batches, and few, so that it does not.
const CLIENTS: [usize; 2] = [64, 4];

/// Number of slices of a repeat. Contenders take turns, so that all of them see the same machine.
const SLICES: usize = 10;

struct Contender {
    name: &'static str,
    command: fn() -> Result<Command>,
    /// The contender that is the lower limit of this one.
    limit: usize,
}

/// CPU times, in microseconds per connection.
#[derive(Debug, Default)]
struct Run {
    rate: f64,
    primary: f64,
    workers: f64,
    largest_share: f64,
    failed: usize,
}

/// A running contender.
struct Racer {
    peer: Peer,
    address: SocketAddr,
    workers: Vec<u32>,
    count: usize,
    took: Duration,
    primary_time: Duration,
    workers_time: Duration,
    shares: BTreeMap<u8, usize>,
    failed: usize,
}

impl Racer {
    fn start(command: Command, clients: usize, warm_up: usize) -> Result<Racer> {
        let mut peer = Peer::start(command)?;
        let port = peer.wait_for("ready")?.first().copied().ok_or("no port")?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port as u16));
        load::run(address, clients, warm_up)?;
        let workers = peer.workers();
        let (took, primary_time, workers_time) = Default::default();
        Ok(Racer {
            peer,
            address,
            workers,
            count: 0,
            took,
            primary_time,
            workers_time,
            shares: BTreeMap::new(),
            failed: 0,
        })
    }

    fn times(&self) -> (Duration, Duration) {
        (cpu::time(self.peer.pid()), cpu::times(&self.workers).iter().sum())
    }

    fn slice(&mut self, clients: usize, count: usize) -> Result<()> {
        let (primary, workers) = self.times();
        let outcome = load::run(self.address, clients, count)?;
        let (primary_after, workers_after) = self.times();
        self.count += count;
        self.took += outcome.took;
        self.primary_time += primary_after - primary;
        self.workers_time += workers_after - workers;
        self.failed += outcome.failed;
        for (mark, count) in outcome.shares {
            *self.shares.entry(mark).or_default() += count;
        }
        Ok(())
    }

    fn finish(self) -> Run {
        let count = self.count as f64;
        Run {
            rate: count / self.took.as_secs_f64(),
            primary: self.primary_time.as_secs_f64() * 1e6 / count,
            workers: self.workers_time.as_secs_f64() * 1e6 / count,
            largest_share: 100.0 * self.shares.values().max().copied().unwrap_or(0) as f64 / count,
            failed: self.failed,
        }
    }
}

/// Runs one repeat: all contenders run, and the load goes to one after the other.
fn race(contenders: &[Contender], clients: usize, count: usize) -> Result<Vec<Run>> {
    let mut racers = Vec::new();
    for contender in contenders {
        racers.push(
            Racer::start((contender.command)()?, clients, count / 5)
                .map_err(|e| format!("{}: {e}", contender.name))?,
        );
    }
    for _ in 0..SLICES {
        for (contender, racer) in contenders.iter().zip(&mut racers) {
            racer.slice(clients, count / SLICES).map_err(|e| format!("{}: {e}", contender.name))?;
        }
    }
    Ok(racers.into_iter().map(Racer::finish).collect())
}

/// Runs this section and prints its tables.
pub(crate) fn run(options: &Options) -> Result<()> {
    let contender = |name, limit, command| Contender { name, command, limit };
    let all = [
        contender("Node's primary, Node workers", 2, || {
            Ok(node("primary.js", &[WORKERS.to_string()]))
        }),
        contender("troop, Node workers", 2, || {
            ourselves(&["primary", "node", &WORKERS.to_string(), "round-robin"])
        }),
        contender("bare loop, Node workers", 2, || {
            ourselves(&["bare", "node", &WORKERS.to_string()])
        }),
        contender("troop, Rust workers", 4, || {
            ourselves(&["primary", "rust", &WORKERS.to_string(), "round-robin"])
        }),
        contender("bare batches, Rust workers", 4, || {
            ourselves(&["bare", "rust-troop", &WORKERS.to_string()])
        }),
        contender("bare batches, bare workers", 4, || {
            ourselves(&["bare", "rust", &WORKERS.to_string()])
        }),
    ];
    println!("## Connections\n");
    for clients in CLIENTS {
        compare(&all, clients, options)?;
    }
    Ok(())
}

fn compare(all: &[Contender], clients: usize, options: &Options) -> Result<()> {
    let count = options.count(40_000);
    let races: Vec<_> =
        (0..options.repeat()).map(|_| race(all, clients, count)).collect::<Result<_>>()?;
    println!(
        "{count} connections, {clients} at a time, {WORKERS} workers that write one byte and end the connection.\n"
    );
    let mut table = Table::new(&[
        "",
        "connections/s",
        "x Node",
        "primary CPU µs",
        "/ Node",
        "/ limit",
        "workers' CPU µs",
        "largest share %",
        "failed",
    ]);
    for (at, contender) in all.iter().enumerate() {
        let of = |what: fn(&Run) -> f64| number(median(races.iter().map(|race| what(&race[at]))));
        // Of each race, so that what slowed all of them down cancels out.
        let against = |other: usize, what: fn(&Run) -> f64| {
            times(median(races.iter().map(|race| what(&race[at]) / what(&race[other]))))
        };
        table.row(vec![
            contender.name.into(),
            of(|r| r.rate),
            against(0, |r| r.rate),
            of(|r| r.primary),
            against(0, |r| r.primary),
            against(contender.limit, |r| r.primary),
            of(|r| r.workers),
            of(|r| r.largest_share),
            races.iter().map(|race| race[at].failed).sum::<usize>().to_string(),
        ]);
    }
    table.print();
    Ok(())
}

/// Runs the peer: a supervised cluster of servers, of Node or Rust.
pub(crate) fn primary(kind: &str, workers: usize, scheduling: &str, weights: &[u32]) -> Result<()> {
    let setup = match kind {
        "node" => Setup::new().script(script("server.js")).args::<&str>([]),
        "node-slow" => Setup::new().script(script("slow.js")).args::<&str>([]),
        "rust-slow" => Setup::new().args(["peer", "slow"]),
        "rust-hold" => Setup::new().args(["peer", "hold"]),
        _ => Setup::new().args(["peer", "server"]),
    };
    let mut listening = 0;
    Cluster::builder()
        .workers(workers)
        .weights(weights)
        .scheduling(scheduling.parse()?)
        .setup(setup)
        .on_event(move |event| match event {
            Event::Listening { address: at, .. } => {
                listening += 1;
                if listening == workers {
                    println!("ready {}", at.port.unwrap_or(0));
                }
            }
            Event::NotSteered { .. } | Event::Stalled { .. } | Event::Misbehaved { .. } => {
                eprintln!("{event}")
            }
            _ => {}
        })
        .run()?;
    Ok(())
}

/// Runs a Rust worker that does what the script for Node does.
pub(crate) fn server() -> Result<()> {
    troop::worker()?.block_on(async |worker| {
        let mark = [b'0' + (worker.id().map_or(0, |id| id.0) % 200) as u8];
        let listener = worker.listen("127.0.0.1:0").await?;
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.write_all(&mark).await;
            });
        }
        Ok(())
    })
}

/// Runs a Rust worker that leaves connections open until the client closes them.
pub(crate) fn hold() -> Result<()> {
    troop::worker()?.block_on(async |worker| {
        let mark = [b'0' + (worker.id().map_or(0, |id| id.0) % 10) as u8];
        let listener = worker.listen("127.0.0.1:0").await?;
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.write_all(&mark).await;
                let _ = stream.read(&mut [0]).await;
            });
        }
        Ok(())
    })
}

/// Runs a Rust worker that does what the slow script does: one connection after the other, the
/// first worker slower than the others.
pub(crate) fn slow() -> Result<()> {
    let worker = troop::worker()?.blocking()?;
    let id = worker.id().map_or(0, |id| id.0);
    let listener = worker.listen("127.0.0.1:0")?;
    while let Ok((mut stream, _)) = listener.accept() {
        std::thread::sleep(Duration::from_millis(if id == 1 { 8 } else { 2 }));
        let _ = std::io::Write::write_all(&mut stream, &[b'0' + (id % 10) as u8]);
    }
    worker.finish();
    Ok(())
}
