//! The cost of a connection with very many workers and open connections.

use std::net::{Ipv4Addr, SocketAddr};

use crate::peer::{Peer, Result, ourselves};
use crate::table::{Table, number, times};
use crate::{Options, cpu, load};

const WORKERS: usize = 1000;
const OPEN_CONNECTIONS: usize = 100_000;
const CLIENTS: usize = 64;

/// Runs this section and prints its tables.
pub(crate) fn run(options: &Options) -> Result<()> {
    let (open, count) = (options.count(OPEN_CONNECTIONS), options.count(40_000));
    println!("## Crowds\n");
    println!(
        "The primary's CPU for a connection with 2 Rust workers and none open, with {WORKERS} workers, and with {WORKERS} workers that have {open} \
         connections open. The workers leave connections open until the client ends them.\n"
    );
    for scheduling in ["round-robin", "least-connections", "p2c", "sticky", "weighted", "steered"] {
        let mut table = Table::new(&[
            "",
            "workers",
            "open",
            "connections/s",
            "primary CPU µs",
            "/ 2 workers",
            "primary MiB",
            "failed",
        ]);
        let mut few = f64::NAN;
        for (workers, open) in [(2, 0), (WORKERS, 0), (WORKERS, open)] {
            let failed =
                |e: Box<dyn std::error::Error>| format!("{scheduling}, {workers} workers: {e}");
            let command = ourselves(&["primary", "rust-hold", &workers.to_string(), scheduling])?;
            let mut peer = Peer::start(command).map_err(failed)?;
            let port = peer.wait_for("ready").map_err(failed)?.first().copied().ok_or("no port")?;
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port as u16));
            let holders = hold(port as u16, open).map_err(failed)?;
            load::run_and_leave(address, CLIENTS, count / 4).map_err(failed)?;
            let before = cpu::time(peer.pid());
            let outcome = load::run_and_leave(address, CLIENTS, count).map_err(failed)?;
            let cost = (cpu::time(peer.pid()) - before).as_secs_f64() * 1e6 / count as f64;
            if workers == 2 {
                few = cost;
            }
            let memory = cpu::memory(peer.pid()).map_or(f64::NAN, |m| m.resident);
            table.row(vec![
                scheduling.into(),
                workers.to_string(),
                open.to_string(),
                number(count as f64 / outcome.took.as_secs_f64()),
                number(cost),
                times(cost / few),
                number(memory),
                outcome.failed.to_string(),
            ]);
            drop(holders);
        }
        table.print();
    }
    Ok(())
}

/// The largest number of connections per process.
const CONNECTIONS_PER_CLIENT: usize = 15_000;

/// Starts processes that together hold this many connections.
fn hold(port: u16, mut count: usize) -> Result<Vec<Peer>> {
    let mut holders = Vec::new();
    while count > 0 {
        let part = count.min(CONNECTIONS_PER_CLIENT);
        let mut holder =
            Peer::start(ourselves(&["holder", &port.to_string(), &part.to_string()])?)?;
        holder.wait_for("ready")?;
        holders.push(holder);
        count -= part;
    }
    Ok(holders)
}

/// Runs the peer: opens connections and leaves them open.
pub(crate) fn holder(port: u16, count: usize) -> Result<()> {
    let _ = troop_sys::process::raise_descriptor_limit();
    let held = load::hold(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), count)?;
    println!("ready {}", held.len());
    std::io::stdin().read_line(&mut String::new())?;
    Ok(())
}
