//! CPU time of the primary per fork, with little and with much memory, and the time until workers
//! are online.

use std::process::Command;
use std::time::Instant;

use rustix::time::{ClockId, Timespec, clock_gettime};
use troop::{Cluster, Event, Fork, Setup};

use crate::Options;
use crate::peer::{Peer, Result, node, ourselves, script};
use crate::table::{Table, median, number, times};

/// Memory that the primary has touched in the tests with much memory, in MiB.
const HEAP: usize = 1024;

struct Contender {
    name: &'static str,
    heap: usize,
    command: fn(&str, &str) -> Result<Command>,
    runs: Vec<Run>,
}

struct Run {
    /// Milliseconds per worker: in the calls that fork, and until the worker is online.
    forking: f64,
    whole: f64,
    /// Milliseconds from the first fork until the last worker is online.
    online: f64,
}

fn measure(command: Command) -> Result<Run> {
    let answer = Peer::start(command)?.wait_for("done")?;
    let [forking, whole, online, _] = answer[..] else {
        return Err("a peer's answer is incomplete".into());
    };
    Ok(Run { forking: forking / 1e3, whole: whole / 1e3, online: online / 1e6 })
}

/// Runs this section and prints its tables.
pub(crate) fn run(options: &Options) -> Result<()> {
    let contender = |name, heap, command| Contender { name, heap, command, runs: Vec::new() };
    let mut all = [
        contender("Node's primary, Node workers", 0, |n, heap| Ok(node("spawn.js", &[n, heap]))),
        contender("troop, Node workers", 0, |n, heap| ourselves(&["spawn", "node", n, heap])),
        contender("troop, Rust workers", 0, |n, heap| ourselves(&["spawn", "rust", n, heap])),
        contender("Node's primary, Node workers", HEAP, |n, heap| Ok(node("spawn.js", &[n, heap]))),
        contender("troop, Node workers", HEAP, |n, heap| ourselves(&["spawn", "node", n, heap])),
        contender("troop, Rust workers", HEAP, |n, heap| ourselves(&["spawn", "rust", n, heap])),
    ];
    let workers = if options.quick { 10 } else { 50 };
    for _ in 0..options.repeat() {
        for contender in &mut all {
            let command = (contender.command)(&workers.to_string(), &contender.heap.to_string())?;
            contender.runs.push(measure(command).map_err(|e| format!("{}: {e}", contender.name))?);
        }
    }
    println!("## Spawning\n");
    println!("{workers} forks in a row; the primary's own CPU time for each.\n");
    let mut table = Table::new(&[
        "",
        "heap MiB",
        "CPU ms to fork",
        "/ Node",
        "CPU ms until online",
        "/ Node",
        "all online ms",
        "/ Node",
    ]);
    for half in all.chunks(3) {
        for contender in half {
            let of = |what: fn(&Run) -> f64| number(median(contender.runs.iter().map(what)));
            let against_node = |what: fn(&Run) -> f64| {
                times(median(
                    contender
                        .runs
                        .iter()
                        .zip(&half[0].runs)
                        .map(|(run, node)| what(run) / what(node)),
                ))
            };
            let columns: [fn(&Run) -> f64; 3] = [|r| r.forking, |r| r.whole, |r| r.online];
            let mut row = vec![contender.name.into(), contender.heap.to_string()];
            for what in columns {
                row.extend([of(what), against_node(what)]);
            }
            table.row(row);
        }
    }
    table.print();
    Ok(())
}

/// Returns the CPU time of this process, in microseconds.
fn cpu() -> f64 {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::ProcessCPUTime);
    tv_sec as f64 * 1e6 + tv_nsec as f64 / 1e3
}

/// Runs the peer: a primary in a tokio program that forks workers in a row.
#[tokio::main(flavor = "current_thread")]
pub(crate) async fn primary(kind: &str, workers: usize, heap: usize) -> Result<()> {
    let blocks: Vec<Vec<u8>> = (0..heap).map(|_| vec![1; 1 << 20]).collect();
    let setup = match kind {
        "node" => Setup::new().script(script("idle.js")).args::<&str>([]),
        _ => Setup::new().args(["peer", "idle"]),
    };
    let cluster = Cluster::builder().setup(setup).start()?;
    let mut events = cluster.events();
    let (begin, before) = (Instant::now(), cpu());
    for _ in 0..workers {
        cluster.fork(Fork::new()).await?;
    }
    let forking = cpu() - before;
    let mut online = 0;
    while online < workers {
        if let Event::Online { .. } = events.recv().await.ok_or("the cluster is over")? {
            online += 1;
        }
    }
    let (took, count) = (begin.elapsed().as_nanos(), workers as f64);
    println!("done {} {} {took} {}", forking / count, (cpu() - before) / count, blocks.len());
    std::io::stdin().read_line(&mut String::new())?;
    Ok(())
}

/// Runs a worker that does nothing.
pub(crate) fn idle() -> Result<()> {
    troop::worker()?.block_on(async |worker| {
        worker.draining().await;
        Ok(())
    })
}
