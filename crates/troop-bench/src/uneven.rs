//! Uneven loads over HTTP connections that stay open: costly requests, a slower worker, and a worker
//! that is added.

use std::io::BufRead as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use axum::{Router, routing::get};
use rustix::time::{ClockId, clock_gettime};
use troop::policy::Rebalanced;
use troop::{Cluster, Event, Setup};

use crate::peer::{Peer, Result, ourselves};
use crate::reloads::installed;
use crate::table::{Table, median, number};
use crate::{Options, load};

const CONNECTIONS: [usize; 2] = [64, 1000];
const SCHEDULINGS: [&str; 6] =
    ["round-robin", "auto", "least-connections", "p2c", "steered", "shared"];
/// CPU time of a costly request.
const COSTLY: Duration = Duration::from_millis(20);
/// Interval between costly requests, in requests.
const COSTLY_INTERVAL: usize = 20;
/// CPU time of a request where one worker is slower, which takes four times as long.
const USUAL: Duration = Duration::from_micros(200);

const CHEAP_REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
const COSTLY_REQUEST: &[u8] = b"GET /costly HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// A kind of load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Load {
    Costly,
    SlowWorker,
}

impl Load {
    fn name(self) -> &'static str {
        match self {
            Load::Costly => "costly",
            Load::SlowWorker => "slow",
        }
    }

    fn request(self, number: usize) -> &'static [u8] {
        let is_costly = self == Load::Costly && number % COSTLY_INTERVAL == COSTLY_INTERVAL - 1;
        if is_costly { COSTLY_REQUEST } else { CHEAP_REQUEST }
    }
}

struct Racer {
    name: String,
    /// The processes; clients connect to the first one.
    peers: Vec<Peer>,
    address: SocketAddr,
    _directory: Option<tempfile::TempDir>,
    /// Requests per second, the three percentiles in ms, and the largest share in %.
    measured: [Vec<f64>; 5],
}

fn address_of(peer: &mut Peer) -> Result<SocketAddr> {
    let port = peer.wait_for("ready")?.first().copied().ok_or("no port")?;
    Ok((Ipv4Addr::LOCALHOST, port as u16).into())
}

fn start(name: &str, command: Command) -> Result<Racer> {
    let mut peer = Peer::start(command)?;
    let address = address_of(&mut peer)?;
    let measured = Default::default();
    Ok(Racer { name: name.to_owned(), peers: vec![peer], address, _directory: None, measured })
}

/// nginx, which chooses a process for each request.
fn behind_nginx(load: Load) -> Result<Racer> {
    let program = installed("nginx")?;
    let (mut peers, mut servers) = (Vec::new(), String::new());
    for number in 1..=troop::available_workers() {
        let mut peer =
            Peer::start(ourselves(&["uneven", "single", load.name(), &number.to_string()])?)?;
        servers += &format!("server {}; ", address_of(&mut peer)?);
        peers.push(peer);
    }
    let (directory, port) = (tempfile::tempdir()?, crate::manager::free_port()?);
    let (path, workers) = (directory.path().display(), troop::available_workers());
    let configuration = format!(
        "daemon off; worker_processes {workers}; pid {path}/pid; error_log {path}/errors;\n\
         events {{ worker_connections 4096; }}\n\
         http {{ access_log off; keepalive_requests 1000000000; client_body_temp_path {path}/a; proxy_temp_path {path}/b;\n\
         fastcgi_temp_path {path}/c; uwsgi_temp_path {path}/d; scgi_temp_path {path}/e;\n\
         upstream app {{ {servers} keepalive 1024; keepalive_requests 1000000000; }}\n\
         server {{ listen 127.0.0.1:{port} reuseport; location / {{\n\
         proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection ''; }} }} }}\n"
    );
    let file = directory.path().join("nginx.conf");
    std::fs::write(&file, configuration)?;
    let mut command = Command::new(program);
    command.arg("-c").arg(&file).arg("-p").arg(directory.path());
    peers.insert(0, Peer::start(command)?);
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    crate::manager::until("nginx", || std::net::TcpStream::connect(address).is_ok())?;
    let name = format!("nginx in front of {workers} processes");
    Ok(Racer { name, peers, address, _directory: Some(directory), measured: Default::default() })
}

/// Runs these tables.
pub(crate) fn run(options: &Options) -> Result<()> {
    let workers = troop::available_workers();
    println!(
        "One request in {COSTLY_INTERVAL} computes for {COSTLY:?}; {workers} workers of one thread, or one process with {workers} threads.\n"
    );
    for connections in CONNECTIONS {
        tables(options, Load::Costly, connections, options.count(8_000).max(2_000))?;
    }
    println!("Each request computes for {USUAL:?}, in the first worker for four times as long.\n");
    for connections in CONNECTIONS {
        tables(options, Load::SlowWorker, connections, options.count(20_000))?;
    }
    added(options)
}

fn tables(options: &Options, load: Load, connections: usize, count: usize) -> Result<()> {
    let mut racers = Vec::new();
    if load == Load::Costly {
        let command = ourselves(&["uneven", "threads", load.name()])?;
        racers.push(start("one process, a thread for each CPU", command)?);
    }
    for scheduling in SCHEDULINGS {
        let command = ourselves(&["uneven", scheduling, load.name()])?;
        racers.push(start(&format!("troop, {scheduling}"), command)?);
    }
    match behind_nginx(load) {
        Ok(racer) => racers.push(racer),
        Err(e) => println!("Without nginx: {e}.\n"),
    }
    for _ in 0..options.repeat() {
        for racer in &mut racers {
            let request = |number| load.request(number);
            let outcome =
                load::keep_alive_with(racer.address, connections, count, request, |_, _| Ok(()));
            let mut outcome = outcome.map_err(|e| format!("{}: {e}", racer.name))?;
            let most = outcome.shares.values().max().copied().unwrap_or(0);
            let ms = [0.5, 0.99, 0.999].map(|part| outcome.percentile(part).as_secs_f64() * 1e3);
            let rate = count as f64 / outcome.took.as_secs_f64();
            let share = 100.0 * most as f64 / count as f64;
            for (all, value) in racer.measured.iter_mut().zip([rate, ms[0], ms[1], ms[2], share]) {
                all.push(value);
            }
        }
    }
    let what = format!("{connections} connections");
    let columns = [&what, "requests/s", "50 % ms", "99 % ms", "99.9 % ms", "largest share %"];
    let mut table = Table::new(&columns);
    for racer in racers {
        let medians = racer.measured.iter().map(|all| number(median(all.iter().copied())));
        table.row([racer.name.clone()].into_iter().chain(medians).collect());
        drop(racer.peers);
    }
    table.print();
    Ok(())
}

/// A worker comes when a quarter of the requests is answered.
fn added(options: &Options) -> Result<()> {
    // For some seconds: connections move from the first one on.
    let count = options.count(80_000).max(40_000);
    println!(
        "A second worker is added after a quarter of {count} requests, each of which computes for {USUAL:?}: its share in each quarter, in %.\n"
    );
    let columns = ["64 connections", "1st", "2nd", "3rd", "4th", "requests/s in the 4th"];
    let mut table = Table::new(&columns);
    let moving = SCHEDULINGS.iter().map(|scheduling| (*scheduling, "added"));
    for (scheduling, load) in moving.chain([("round-robin", "added, stays")]) {
        let mut peer = Peer::start(ourselves(&["uneven", scheduling, load])?)?;
        let address = address_of(&mut peer)?;
        let connections = CONNECTIONS[0];
        let (mut times, mut marks) = (Vec::new(), Vec::with_capacity(count));
        let begin = std::time::Instant::now();
        load::keep_alive_with(
            address,
            connections,
            count,
            |_| CHEAP_REQUEST,
            |answered, mark| {
                marks.push(mark);
                if answered % (count / 4) == 0 {
                    times.push(begin.elapsed());
                }
                if answered == count / 4 { peer.go() } else { Ok(()) }
            },
        )?;
        let stays = if load == "added" { "" } else { ", connections stay" };
        let mut row = vec![format!("troop, {scheduling}{stays}")];
        for quarter in marks.chunks(count / 4) {
            let of_second = quarter.iter().filter(|mark| **mark == b'2').count();
            row.push(number(100.0 * of_second as f64 / quarter.len() as f64));
        }
        let last = times[3].saturating_sub(times[2]).as_secs_f64();
        row.push(number((count / 4) as f64 / last));
        table.row(row);
    }
    table.print();
    Ok(())
}

/// Computes for so long, in the thread's own CPU time.
fn compute(time: Duration) {
    let now = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).unwrap_or(0))
    };
    let begin = now();
    while now().saturating_sub(begin) < time {
        std::hint::spin_loop();
    }
}

/// The program: it answers with one byte, which tells the worker.
fn app(load: &str, mark: &str) -> Router {
    let usual = match load {
        "costly" => Duration::ZERO,
        "slow" if mark == "1" => USUAL * 4,
        _ => USUAL,
    };
    let answer = |time: Duration| {
        let mark = mark.to_owned();
        get(async move || {
            compute(time);
            mark
        })
    };
    Router::new().route("/", answer(usual)).route("/costly", answer(COSTLY))
}

/// Runs the peer: the program as one process, alone, as a primary, or as its worker.
pub(crate) fn server(how: &str, load: &str, mark: &str) -> Result<()> {
    match how {
        "threads" | "single" => {
            let threads = if how == "threads" { troop::available_workers() } else { 1 };
            let mut runtime = tokio::runtime::Builder::new_multi_thread();
            runtime.worker_threads(threads).enable_all().build()?.block_on(async {
                let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
                println!("ready {}", listener.local_addr()?.port());
                Ok(axum::serve(listener, app(load, if mark.is_empty() { "t" } else { mark }))
                    .await?)
            })
        }
        "worker" => troop::worker()?.block_on(async |worker| {
            let mark = worker.id().map_or(0, |id| id.0).to_string();
            troop::serve(worker.listen("127.0.0.1:0").await?, app(load, &mark)).await;
            Ok(())
        }),
        scheduling => {
            let workers = if load.starts_with("added") { 1 } else { troop::available_workers() };
            let mut listening = 0;
            let ready = move |event: &Event| {
                if let Event::Listening { address: at, .. } = event {
                    listening += 1;
                    if listening == workers {
                        println!("ready {}", at.port.unwrap_or(0));
                    }
                }
            };
            let grow = |cluster: Cluster| {
                std::thread::spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().build();
                    if std::io::stdin().lock().read_line(&mut String::new()).is_ok_and(|n| n > 0) {
                        let _ = runtime.map(|runtime| runtime.block_on(cluster.scale(2)));
                    }
                });
            };
            let rebalanced =
                if load.ends_with("stays") { Rebalanced::None } else { Rebalanced::All };
            Ok(Cluster::builder()
                .workers(workers)
                .rebalance(rebalanced)
                .scheduling(scheduling.parse()?)
                .setup(Setup::new().args(["peer", "uneven", "worker", load]))
                .on_event(ready)
                .on_start(grow)
                .run()?)
        }
    }
}
