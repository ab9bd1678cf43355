//! Poisonous requests on sockets that have no addresses of clients, and on those that workers have
//! by activation: requests are lost only with a worker that had taken them.
//!
//! `TROOP_ROUNDS` sets the number of poisonous requests, one each 200 ms (25 if it is not set).

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use troop_testkit::wait_until;

use super::support::troop;

/// An unchanged server that keeps a record of the connections that it takes (`A`) and serves (`D`),
/// and of its end (`P`).
const SERVER: &str = r"
const fs = require('fs');
const record = fs.openSync('record', 'a');
const note = (what) => fs.writeSync(record, `${what} ${process.pid}\n`);
const server = require('http').createServer((request, response) => {
  if (request.url === '/poison') {
    note('P');
    process.exit(1);
  }
  request.socket.on('finish', () => note('D'));
  response.end('good\n');
});
server.on('connection', () => note('A'));
server.listen(process.argv[2] === 'fd' ? { fd: 3 } : process.argv[2]);
";

const CLIENTS: usize = 8;
/// How long a request may take; a client that waits longer is not served.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Clone)]
enum Place {
    Port(u16),
    Path(PathBuf),
}

impl Place {
    fn get(&self, path: &str) -> std::io::Result<Vec<u8>> {
        fn talk(mut client: impl Read + Write, path: &str) -> std::io::Result<Vec<u8>> {
            write!(client, "GET {path} HTTP/1.0\r\n\r\n")?;
            let mut answer = Vec::new();
            client.read_to_end(&mut answer)?;
            Ok(answer)
        }
        match self {
            Place::Port(port) => {
                let client = TcpStream::connect(("127.0.0.1", *port))?;
                client.set_read_timeout(Some(CLIENT_TIMEOUT))?;
                talk(client, path)
            }
            Place::Path(at) => {
                let client = UnixStream::connect(at)?;
                client.set_read_timeout(Some(CLIENT_TIMEOUT))?;
                talk(client, path)
            }
        }
    }
}

/// `troop run` in the foreground; ends with the test.
struct App {
    home: TempDir,
    primary: Child,
}

impl App {
    fn show(&self) -> serde_json::Value {
        let shown = troop(self.home.path(), &["show", "web", "--json"]).output().unwrap();
        serde_json::from_slice::<Vec<serde_json::Value>>(&shown.stdout)
            .unwrap_or_default()
            .pop()
            .unwrap_or_default()
    }
}

impl Drop for App {
    fn drop(&mut self) {
        let _ = troop(self.home.path(), &["stop", "web", "--quick"]).output();
        let _ = self.primary.kill();
        let _ = self.primary.wait();
    }
}

fn is_good(answer: &std::io::Result<Vec<u8>>) -> bool {
    answer.as_ref().is_ok_and(|answer| answer.starts_with(b"HTTP/1") && answer.ends_with(b"good\n"))
}

/// `{path}` and `{port}` stand for unused addresses.
fn costs_only_what_its_worker_had_taken(args: &[&str], listens_at: &str) {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("server.js"), SERVER).unwrap();
    std::fs::write(home.path().join("record"), "").unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let path = home.path().join("s");
    let uses_path = args.iter().chain([&listens_at]).any(|arg| arg.contains("{path}"));
    let place = if uses_path { Place::Path(path.clone()) } else { Place::Port(port) };
    let filled = |text: &str| {
        text.replace("{path}", path.to_str().unwrap()).replace("{port}", &port.to_string())
    };
    let args: Vec<String> = ["run", "-w", "4", "-n", "web", "--log", "json"]
        .iter()
        .chain(args)
        .chain(&["server.js", "--", listens_at])
        .map(|arg| filled(arg))
        .collect();
    let log = std::fs::File::create(home.path().join("log")).unwrap();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let primary = troop(home.path(), &args).stdout(Stdio::null()).stderr(log).spawn().unwrap();
    let app = App { home, primary };
    wait_until("all workers", || app.show()["phase"] == "running" && is_good(&place.get("/")));

    let rounds: u32 = std::env::var("TROOP_ROUNDS")
        .map_or(25, |rounds| rounds.parse().expect("TROOP_ROUNDS is a number"));
    let (stop, answered, lost) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    let answer = place.get("/");
                    assert!(began.elapsed() < CLIENT_TIMEOUT, "{answer:?}");
                    if is_good(&answer) { &answered } else { &lost }
                        .fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let begun = Instant::now();
        let poisons: Vec<_> = (0..rounds)
            .map(|round| {
                std::thread::sleep(
                    (begun + Duration::from_millis(200) * round)
                        .saturating_duration_since(Instant::now()),
                );
                scope.spawn(|| place.get("/poison"))
            })
            .collect();
        let ended: Vec<_> = poisons.into_iter().map(|poison| poison.join().unwrap()).collect();
        stop.store(true, Ordering::Relaxed);
        assert!(!ended.iter().any(is_good));
    });
    let (answered, lost) = (answered.into_inner(), lost.into_inner());

    // What workers that died of poison had taken and not served; one of these was the poison
    // itself.
    let mut taken = BTreeMap::<String, (usize, usize, usize)>::new();
    for line in std::fs::read_to_string(app.home.path().join("record")).unwrap().lines() {
        let (what, who) = line.split_once(' ').unwrap();
        let of = taken.entry(who.to_owned()).or_default();
        match what {
            "A" => of.0 += 1,
            "D" => of.1 += 1,
            _ => of.2 += 1,
        }
    }
    let killed: Vec<_> = taken.values().filter(|of| of.2 > 0).collect();
    let with_them: usize = killed.iter().map(|of| of.0.saturating_sub(of.1 + 1)).sum();
    eprintln!(
        "{args:?}: {answered} answered, {lost} lost, {with_them} with the {} workers that died",
        killed.len()
    );
    assert!(lost <= with_them, "{lost} lost, {with_them} with the workers that had taken them");
    assert!(
        killed.len() >= rounds as usize / 3 && answered > rounds as usize,
        "{} ended, {answered} answered",
        killed.len()
    );
    wait_until("all workers are back", || {
        app.show()["phase"] == "running" && is_good(&place.get("/"))
    });
    assert!(!std::fs::read_to_string(app.home.path().join("log")).unwrap().contains("giving-up"));
}

#[test]
fn poison_costs_only_what_its_worker_had_taken_on_a_port_by_activation() {
    costs_only_what_its_worker_had_taken(&["-b", "127.0.0.1:{port}"], "fd");
}

#[test]
fn poison_costs_only_what_its_worker_had_taken_on_a_port_of_its_own_by_activation() {
    costs_only_what_its_worker_had_taken(&["-b", "127.0.0.1:{port}", "--policy", "steered"], "fd");
}

#[test]
fn poison_costs_only_what_its_worker_had_taken_on_a_path_by_activation() {
    costs_only_what_its_worker_had_taken(&["-b", "{path}"], "fd");
}

#[test]
fn poison_costs_only_what_its_worker_had_taken_on_a_path_under_round_robin() {
    costs_only_what_its_worker_had_taken(&["--policy", "round-robin"], "{path}");
}

#[test]
fn poison_costs_only_what_its_worker_had_taken_on_a_path_that_is_shared() {
    costs_only_what_its_worker_had_taken(&["--policy", "shared"], "{path}");
}
