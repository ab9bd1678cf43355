//! The shares of eight workers under each scheduling, and the effect of a slow worker on the
//! others.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use crate::peer::{Peer, Result, node, ourselves};
use crate::table::{Table, number};
use crate::{Options, load};

const WORKERS: usize = 8;
const CLIENTS: usize = 16;
/// More clients than all slow workers can serve.
const SLOW_CLIENTS: usize = 32;

struct Contender {
    name: String,
    command: Command,
}

fn troop(kind: &str, scheduling: &str, weights: &str) -> Result<Contender> {
    let of = if kind.starts_with("node") { "Node" } else { "Rust" };
    let with = if weights.is_empty() { String::new() } else { format!(", weights {weights}") };
    let command = ourselves(&["primary", kind, &WORKERS.to_string(), scheduling, weights])?;
    Ok(Contender { name: format!("troop, {scheduling}, {of} workers{with}"), command })
}

fn nodes_own(policy: &str, script: &str) -> Contender {
    let name =
        if policy == "rr" { "Node's primary, SCHED_RR" } else { "Node's primary, SCHED_NONE" };
    Contender {
        name: name.into(),
        command: node("primary.js", &[&WORKERS.to_string(), policy, script]),
    }
}

fn run_one(contender: Contender, clients: usize, count: usize) -> Result<load::Outcome> {
    let mut peer =
        Peer::start(contender.command).map_err(|e| format!("{}: {e}", contender.name))?;
    let port = peer.wait_for("ready")?.first().copied().ok_or("no port")?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port as u16));
    // Also lets what adapts adapt.
    load::run(address, clients, count / 5)?;
    load::run(address, clients, count)
}

/// Runs this section and prints its tables.
pub(crate) fn run(options: &Options) -> Result<()> {
    println!("## Balance\n");
    shares(options)?;
    slow(options)
}

fn shares(options: &Options) -> Result<()> {
    let count = options.count(100_000);
    println!(
        "{count} connections, {CLIENTS} at a time, {WORKERS} workers: the connections of each, and how far they are from what they should be.\n"
    );
    let weights = "100,100,100,100,150,150,200,200";
    let mut all = vec![nodes_own("rr", "server.js"), nodes_own("none", "server.js")];
    for kind in ["node", "rust"] {
        for scheduling in
            ["round-robin", "auto", "weighted", "least-connections", "p2c", "steered", "shared"]
        {
            all.push(troop(kind, scheduling, "")?);
        }
        all.push(troop(kind, "weighted", weights)?);
        all.push(troop(kind, "steered", weights)?);
    }
    let mut table =
        Table::new(&["", "1", "2", "3", "4", "5", "6", "7", "8", "furthest off", "in %", "failed"]);
    for contender in all {
        let name = contender.name.clone();
        let wanted: Vec<f64> = match name.rsplit_once("weights ") {
            Some((_, weights)) => weights.split(',').filter_map(|w| w.parse().ok()).collect(),
            None => vec![1.0; WORKERS],
        };
        let outcome = run_one(contender, CLIENTS, count)?;
        // Workers are numbered from 1 in the order of their slots, and none has been replaced.
        let of = |n: usize| outcome.shares.get(&(b'1' + n as u8)).copied().unwrap_or(0);
        let mut off = (0.0f64, 0.0f64);
        for (n, weight) in wanted.iter().enumerate() {
            let expected = count as f64 * weight / wanted.iter().sum::<f64>();
            let difference = (of(n) as f64 - expected).abs();
            off = (off.0.max(difference), off.1.max(100.0 * difference / expected));
        }
        let mut row = vec![name];
        row.extend((0..WORKERS).map(|n| of(n).to_string()));
        row.extend([number(off.0), number(off.1), outcome.failed.to_string()]);
        table.row(row);
    }
    table.print();
    Ok(())
}

fn slow(options: &Options) -> Result<()> {
    let count = options.count(20_000);
    println!(
        "{count} connections, {SLOW_CLIENTS} at a time, {WORKERS} workers that take 2 ms for each, one after the other; the first one takes 8. In \
         proportion, it would get 3.4 %.\n"
    );
    let mut all = vec![nodes_own("rr", "slow.js"), nodes_own("none", "slow.js")];
    for kind in ["node-slow", "rust-slow"] {
        for scheduling in ["round-robin", "auto", "least-connections", "p2c", "steered", "shared"] {
            all.push(troop(kind, scheduling, "")?);
        }
    }
    let mut table = Table::new(&[
        "",
        "the slow one's share %",
        "connections/s",
        "median ms",
        "99 % ms",
        "99.9 % ms",
        "failed",
    ]);
    for contender in all {
        let name = contender.name.clone();
        let mut outcome = run_one(contender, SLOW_CLIENTS, count)?;
        let share = 100.0 * outcome.shares.get(&b'1').copied().unwrap_or(0) as f64 / count as f64;
        let rate = count as f64 / outcome.took.as_secs_f64();
        let mut row = vec![name, number(share), number(rate)];
        row.extend(
            [0.5, 0.99, 0.999].map(|part| number(outcome.percentile(part).as_secs_f64() * 1e3)),
        );
        row.push(outcome.failed.to_string());
        table.row(row);
    }
    table.print();
    Ok(())
}
