//! What clients notice when the process is killed that holds the listener and looks after the workers:
//! troop's engine, and what its peers have in its place.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::Options;
use crate::manager::until;
use crate::peer::Result;
use crate::reloads::{CLIENTS, Clients, Server, WORKERS, print_each, serves};
use crate::table::Table;

/// How long the clients run after the kill.
const AFTERWARDS: Duration = Duration::from_secs(5);
/// How long they run before it.
const BEFORE: Duration = Duration::from_secs(1);

fn measure(name: &str, mut server: Box<dyn Server>, port: u16, table: &mut Table) -> Result<()> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    until("the server", || serves(address))?;
    let clients = Clients::start(address);
    std::thread::sleep(BEFORE);
    let primary = Pid::from_raw(server.primary()?.cast_signed()).ok_or("no process")?;
    kill_process(primary, Signal::KILL)?;
    let killed = Instant::now();
    let mut again = None;
    while killed.elapsed() < AFTERWARDS && again.is_none() {
        // Servers whose workers notice it go on for a moment.
        again = serves(address).then(|| killed.elapsed());
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(AFTERWARDS.saturating_sub(killed.elapsed()));
    let goes_on = serves(address);
    let counted = clients.end();
    let is_managed = server.reload().is_ok() && serves(address);
    table.row(vec![
        name.into(),
        counted.answered.load(Ordering::Relaxed).to_string(),
        counted.failed.load(Ordering::Relaxed).to_string(),
        counted.closed.load(Ordering::Relaxed).to_string(),
        match again {
            Some(time) if goes_on => format!("{:.0}", time.as_secs_f64() * 1000.0),
            _ => "none does".into(),
        },
        if is_managed { "yes" } else { "no" }.into(),
    ]);
    Ok(())
}

/// Runs this section and prints its table.
pub(crate) fn run(_: &Options) -> Result<()> {
    println!("## A killed primary\n");
    println!(
        "{CLIENTS} clients that keep their connections open, {WORKERS} workers; after {BEFORE:?} SIGKILL for the process that holds the listener and looks after the \
         workers (troop's engine), then {AFTERWARDS:?} more.\n"
    );
    let columns = [
        "",
        "requests answered",
        "failed requests",
        "closed connections",
        "next new connection answered, ms",
        "workers can be replaced afterwards",
    ];
    print_each(&columns, |name, _, server, port, table| measure(name, server, port, table))
}
