//! HTTP over connections that stay open: workers on all CPUs, one process with as many threads, and
//! nginx.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Command;

use axum::{Router, routing::get};
use troop::{Cluster, Event, Setup};

use crate::peer::{Peer, Result, ourselves};
use crate::table::{Table, median, number, times};
use crate::{Options, cpu, load};

const CLIENTS: usize = 64;
const SLICES: usize = 5;

struct Racer {
    name: &'static str,
    peer: Peer,
    address: SocketAddr,
    rates: Vec<f64>,
    costs: Vec<f64>,
    slowest: Vec<f64>,
}

impl Racer {
    fn slice(&mut self, count: usize) -> Result<()> {
        let before = cpu::whole(self.peer.pid());
        let mut outcome = load::keep_alive(self.address, CLIENTS, count)
            .map_err(|e| format!("{}: {e}", self.name))?;
        let spent = cpu::whole(self.peer.pid()) - before;
        self.rates.push(count as f64 / outcome.took.as_secs_f64());
        self.costs.push(spent.as_secs_f64() * 1e6 / count as f64);
        self.slowest.push(outcome.percentile(0.99).as_secs_f64() * 1e3);
        Ok(())
    }
}

fn start(name: &'static str, command: Command) -> Result<Racer> {
    let failed = |e: Box<dyn std::error::Error>| format!("{name}: {e}");
    let mut peer = Peer::start(command).map_err(failed)?;
    let port = peer.wait_for("ready").map_err(failed)?.first().copied().ok_or("no port")?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port as u16));
    Ok(Racer { name, peer, address, rates: Vec::new(), costs: Vec::new(), slowest: Vec::new() })
}

/// Starts nginx with as many workers, each with its own socket; the directory holds its
/// configuration.
fn nginx(directory: &std::path::Path) -> Result<Racer> {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    let (workers, path) = (troop::available_workers(), directory.display());
    let configuration = format!(
        "daemon off; worker_processes {workers}; pid {path}/pid; error_log {path}/errors;\n\
         events {{ worker_connections 1024; }}\n\
         http {{ access_log off; keepalive_requests 1000000000; client_body_temp_path {path}/a; proxy_temp_path {path}/b;\n\
         fastcgi_temp_path {path}/c; uwsgi_temp_path {path}/d; scgi_temp_path {path}/e; default_type text/plain;\n\
         server {{ listen 127.0.0.1:{port} reuseport; location / {{ return 200 \"hello world\\n\"; }} }} }}\n"
    );
    let file = directory.join("nginx.conf");
    std::fs::write(&file, configuration)?;
    // It does not say when it is ready, so the shell does.
    let mut command = Command::new("sh");
    let wait = "nginx -c \"$0\" & while ! (exec 3<>/dev/tcp/127.0.0.1/$1) 2>/dev/null; do sleep 0.05; kill -0 $! || exit 1; done; echo ready $1; wait";
    let program = crate::reloads::installed("nginx")?;
    let directory = program.parent().unwrap_or(std::path::Path::new("/usr/sbin"));
    command.env("PATH", format!("{}:{}", std::env::var("PATH")?, directory.display()));
    command.args([
        "-c",
        "exec bash -c \"$2\" \"$0\" \"$1\"",
        &file.display().to_string(),
        &port.to_string(),
        wait,
    ]);
    start("nginx, reuseport", command)
}

/// Runs this section and prints its tables.
pub(crate) fn run(options: &Options) -> Result<()> {
    let count = options.count(200_000);
    let workers = troop::available_workers();
    println!("## Keep-alive\n");
    println!(
        "{count} requests over {CLIENTS} connections that stay open, an axum program that says hello. {workers} CPUs, which the load generator uses too.\n"
    );
    let directory = tempfile::tempdir()?;
    let mut racers = vec![
        start("one process, a thread for each CPU", ourselves(&["http", "threads"])?)?,
        start("one process, a loop of its own for each CPU", ourselves(&["http", "loops"])?)?,
        start("troop, auto", ourselves(&["http", "auto"])?)?,
        start("troop, round-robin", ourselves(&["http", "round-robin"])?)?,
        start("troop, p2c", ourselves(&["http", "p2c"])?)?,
        start("troop, shared", ourselves(&["http", "shared"])?)?,
        start("troop, steered", ourselves(&["http", "steered"])?)?,
    ];
    match nginx(directory.path()) {
        Ok(racer) => racers.push(racer),
        Err(e) => println!("Without nginx: {e}.\n"),
    }
    for racer in &mut racers {
        racer.slice(count / 10)?;
        (racer.rates, racer.costs, racer.slowest) = Default::default();
    }
    for _ in 0..SLICES * options.repeat() {
        for racer in &mut racers {
            racer.slice(count / SLICES)?;
        }
    }
    let mut table = Table::new(&[
        "",
        "requests/s",
        "x one process",
        "CPU µs per request",
        "/ one process",
        "99 % ms",
    ]);
    let (rate, cost) = (racers[0].rates.clone(), racers[0].costs.clone());
    // Of each round, so that what slowed all of them down cancels out.
    let against =
        |ours: &[f64], base: &[f64]| times(median(ours.iter().zip(base).map(|(a, b)| a / b)));
    for racer in &racers {
        table.row(vec![
            racer.name.into(),
            number(median(racer.rates.iter().copied())),
            against(&racer.rates, &rate),
            number(median(racer.costs.iter().copied())),
            against(&racer.costs, &cost),
            number(median(racer.slowest.iter().copied())),
        ]);
    }
    table.print();
    drop(racers);
    crate::uneven::run(options)
}

fn app() -> Router {
    Router::new().route("/", get(async || "hello world\n"))
}

/// Runs a thread for each CPU, each with its own socket, connections and runtime, so that none can
/// serve the connections of another one.
fn loops() -> Result<()> {
    let mut port = 0;
    let mut threads = Vec::new();
    for _ in 0..troop::available_workers() {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.set_reuseport(true)?;
        socket.bind((Ipv4Addr::LOCALHOST, port).into())?;
        port = socket.local_addr()?.port();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        threads.push(std::thread::spawn(move || {
            runtime.block_on(async { axum::serve(socket.listen(1024)?, app()).await })
        }));
    }
    println!("ready {port}");
    for thread in threads {
        thread.join().map_err(|_| "a thread has panicked")??;
    }
    Ok(())
}

/// Runs the peer: the same program as one process with threads, as a primary, or as its worker.
pub(crate) fn server(how: &str) -> Result<()> {
    match how {
        "threads" => {
            let mut runtime = tokio::runtime::Builder::new_multi_thread();
            runtime.worker_threads(troop::available_workers()).enable_all().build()?.block_on(
                async {
                    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
                    println!("ready {}", listener.local_addr()?.port());
                    Ok(axum::serve(listener, app()).await?)
                },
            )
        }
        "loops" => loops(),
        "worker" => troop::worker()?.block_on(async |worker| {
            let listener = worker.listen("127.0.0.1:0").await?;
            Ok(axum::serve(listener, app()).with_graceful_shutdown(worker.draining()).await?)
        }),
        scheduling => {
            let (workers, mut listening) = (troop::available_workers(), 0);
            let ready = move |event: &Event| {
                if let Event::Listening { address: at, .. } = event {
                    listening += 1;
                    if listening == workers {
                        println!("ready {}", at.port.unwrap_or(0));
                    }
                }
            };
            let setup = Setup::new().args(["peer", "http", "worker"]);
            Ok(Cluster::builder()
                .workers(workers)
                .scheduling(scheduling.parse()?)
                .setup(setup)
                .on_event(ready)
                .run()?)
        }
    }
}
