//! Memory of an idle primary with four workers.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::Options;
use crate::cpu::{self, Memory};
use crate::manager::Pm2;
use crate::peer::{Peer, Result, node, ourselves, script};
use crate::table::{Table, median, number, times};

/// Number of workers of every primary.
const WORKERS: usize = 4;
/// Time after the last worker listens at which the primary counts as idle.
const IDLE_DELAY: Duration = Duration::from_secs(1);

fn measure(command: Command) -> Result<Memory> {
    let mut peer = Peer::start(command)?;
    peer.wait_for("ready")?;
    std::thread::sleep(IDLE_DELAY);
    cpu::memory(peer.pid()).ok_or_else(|| "the memory of a peer cannot be read".into())
}

/// Measures PM2's daemon with as many workers.
fn pm2() -> Result<Memory> {
    let pm2 = Pm2::install()?;
    let started = pm2.run(&["start", &script("server.js"), "-i", &WORKERS.to_string()]);
    let (pid, _daemon) = pm2.group()?;
    let measured = started.and_then(|()| {
        let begin = Instant::now();
        while cpu::children(pid).len() < WORKERS {
            if begin.elapsed() > Duration::from_secs(30) {
                return Err("its workers did not start".into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        std::thread::sleep(IDLE_DELAY);
        cpu::memory(pid).ok_or_else(|| "its memory cannot be read".into())
    });
    // What this leaves over, the group's end takes away.
    let _ = pm2.run(&["kill"]);
    measured
}

/// Runs this section and prints its tables.
pub(crate) fn run(options: &Options) -> Result<()> {
    let workers = WORKERS.to_string();
    let names = [
        "Node's primary, Node workers",
        "PM2, Node workers",
        "troop, Node workers",
        "troop, Rust workers",
    ];
    let mut runs: [Vec<Memory>; 4] = Default::default();
    let mut absent = None;
    for _ in 0..options.repeat() {
        runs[0].push(measure(node("primary.js", &[&workers]))?);
        if absent.is_none() {
            match pm2() {
                Ok(memory) => runs[1].push(memory),
                Err(e) => absent = Some(e),
            }
        }
        runs[2].push(measure(ourselves(&["primary", "node", &workers, "round-robin"])?)?);
        runs[3].push(measure(ourselves(&["primary", "rust", &workers, "round-robin"])?)?);
    }
    println!("## Memory\n");
    println!("An idle primary, all of its {WORKERS} workers listening.\n");
    let mut table = Table::new(&["", "resident MiB", "/ Node", "proportional MiB", "/ Node"]);
    let resident = |at: usize| median(runs[at].iter().map(|m| m.resident));
    let proportional = |at: usize| median(runs[at].iter().map(|m| m.proportional));
    for (at, name) in names.into_iter().enumerate() {
        let mut row = vec![name.into()];
        if let (1, Some(_)) = (at, &absent) {
            row.extend(["not measured", "-", "not measured", "-"].map(Into::into));
        } else {
            for of in [&resident as &dyn Fn(usize) -> f64, &proportional] {
                row.extend([number(of(at)), times(of(at) / of(0))]);
            }
        }
        table.row(row);
    }
    table.print();
    if let Some(reason) = absent {
        println!("PM2 was not measured: {reason}.\n");
    }
    Ok(())
}
