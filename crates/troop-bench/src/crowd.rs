//! Whether a connection costs the primary more when there are very many workers and open connections.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;

use crate::peer::{Peer, Result, ourselves};
use crate::table::{Table, number, times};
use crate::{Options, cpu, load};

const MANY: usize = 1000;
const OPEN: usize = 100_000;
const CLIENTS: usize = 64;

/// The section.
pub(crate) fn run(options: &Options) -> Result<()> {
    let (open, count) = (options.count(OPEN), options.count(40_000));
    let enough = rustix::process::Rlimit { current: Some(open as u64 + 1000), maximum: Some(open as u64 + 1000) };
    if rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.is_some_and(|most| most < open as u64 + 1000)
        && rustix::process::setrlimit(rustix::process::Resource::Nofile, enough).is_err()
    {
        println!("Without the section on crowds: this process may not have {open} descriptors.\n");
        return Ok(());
    }
    let _ = troop_sys::process::raise_descriptor_limit();
    println!("## Crowds\n");
    println!(
        "The primary's CPU for a connection with 2 Rust workers and none open, with {MANY} workers, and with {MANY} workers that have {open} \
         connections open. The workers leave connections open until the client ends them.\n"
    );
    let mut table =
        Table::new(&["", "workers", "open", "connections/s", "primary CPU µs", "/ 2 workers", "primary MiB", "failed"]);
    for scheduling in ["round-robin", "weighted", "least-connections", "p2c", "sticky", "steered"] {
        let mut few = f64::NAN;
        for (workers, open) in [(2, 0), (MANY, 0), (MANY, open)] {
            let failed = |e: Box<dyn std::error::Error>| format!("{scheduling}, {workers} workers: {e}");
            let command = ourselves(&["primary", "rust-hold", &workers.to_string(), scheduling])?;
            let mut peer = Peer::start(command).map_err(failed)?;
            let port = peer.wait_for("ready").map_err(failed)?.first().copied().ok_or("no port")?;
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port as u16));
            let held: Vec<OwnedFd> = load::hold(address, open).map_err(failed)?;
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
                held.len().to_string(),
                number(count as f64 / outcome.took.as_secs_f64()),
                number(cost),
                times(cost / few),
                number(memory),
                outcome.failed.to_string(),
            ]);
        }
    }
    table.print();
    Ok(())
}
