//! Workers and programs that die, fork or never serve.
//!
//! `TROOP_ROUNDS` sets the number of poisonous requests, one each 200 ms (25 if it is not set; 300
//! are a minute).

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use troop_testkit::{talk_from, wait_until};

use super::support::troop;

/// An unchanged server that keeps a record of whom it serves, and ends at `GET /poison`.
const SERVER: &str = r"
const fs = require('fs');
const record = fs.openSync(process.argv[3], 'a');
const note = (what, socket) => fs.writeSync(record, `${what} ${socket.peer} ${process.pid}\n`);
const server = require('http').createServer((request, response) => {
  const { socket } = request;
  if (request.url === '/poison') {
    note('P', socket);
    process.exit(1);
  }
  socket.on('finish', () => note('D', socket));
  response.end('good\n');
});
server.on('connection', (socket) => {
  socket.peer = socket.remoteAddress;
  note('A', socket);
});
server.listen(Number(process.argv[2]), '127.0.0.1');
";

const CLIENTS: usize = 8;
const WORKERS: usize = 4;
/// How long a request may take; a client that waits longer is not served.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(15);

fn rounds() -> u32 {
    std::env::var("TROOP_ROUNDS")
        .map_or(25, |rounds| rounds.parse().expect("TROOP_ROUNDS is a number"))
}

/// `troop run` in the foreground; ends with the test.
struct App {
    home: TempDir,
    primary: Child,
    port: u16,
}

impl App {
    fn run(program: &[&str], more: &[&str]) -> App {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("server.js"), SERVER).unwrap();
        std::fs::write(home.path().join("record"), "").unwrap();
        let port = troop_testkit::free_port();
        let at = if program[0].ends_with(".js") {
            port.to_string()
        } else {
            format!("127.0.0.1:{port}")
        };
        let (workers, (program, before)) = (WORKERS.to_string(), program.split_first().unwrap());
        let own: Vec<&str> = before.iter().copied().chain([at.as_str(), "record"]).collect();
        let args =
            [&["run", "-w", &workers, "-n", "web"][..], more, &[*program, "--"][..], &own[..]]
                .concat();
        let log = std::fs::File::create(home.path().join("log")).unwrap();
        let primary = troop(home.path(), &args).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let app = App { home, primary, port };
        wait_until("all workers", || app.show()["phase"] == "running");
        app
    }

    fn show(&self) -> serde_json::Value {
        let shown = troop(self.home.path(), &["show", "web", "--json"]).output().unwrap();
        let mut all =
            serde_json::from_slice::<Vec<serde_json::Value>>(&shown.stdout).unwrap_or_default();
        all.pop().unwrap_or_default()
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.home.path().join(name)).unwrap()
    }

    fn get(&self, from: u32, path: &str) -> std::io::Result<Vec<u8>> {
        talk_from(
            source(from),
            ([127, 0, 0, 1], self.port),
            format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes(),
        )
    }

    fn kill_workers(&self) {
        for worker in self.show()["workers"].as_array().unwrap() {
            let pid = i32::try_from(worker["pid"].as_i64().unwrap()).unwrap();
            kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
        }
    }
}

impl Drop for App {
    fn drop(&mut self) {
        let _ = troop(self.home.path(), &["stop", "web", "--quick"]).output();
        let _ = self.primary.kill();
        let _ = self.primary.wait();
    }
}

/// A loopback address that no other client has.
fn source(n: u32) -> [u8; 4] {
    let [_, a, b, c] = (n + 0x0001_0000).to_be_bytes();
    [127, a, b, c]
}

fn is_good(answer: &std::io::Result<Vec<u8>>) -> bool {
    answer.as_ref().is_ok_and(|answer| answer.starts_with(b"HTTP/1") && answer.ends_with(b"good\n"))
}

/// Results of the good clients: the longest wait of the answered ones, their number, and the
/// unanswered ones.
#[derive(Default)]
struct Seen {
    answered: usize,
    slowest: Duration,
    lost: Vec<(u32, Instant, String)>,
}

fn good_clients(app: &App, stop: &AtomicBool) -> Seen {
    let next = AtomicU32::new(0);
    let client = || {
        let mut seen = Seen::default();
        while !stop.load(Ordering::Relaxed) {
            let (from, began) = (next.fetch_add(1, Ordering::Relaxed), Instant::now());
            let answer = app.get(from, "/");
            if is_good(&answer) {
                seen.answered += 1;
                seen.slowest = seen.slowest.max(began.elapsed());
            } else {
                seen.lost.push((
                    from,
                    Instant::now(),
                    format!("{answer:?} after {:?}", began.elapsed()),
                ));
            }
        }
        seen
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).fold(
            Seen::default(),
            |mut all, seen| {
                all.answered += seen.answered;
                all.slowest = all.slowest.max(seen.slowest);
                all.lost.extend(seen.lost);
                all
            },
        )
    })
}

/// One poisonous request per 200 ms beside eight clients with good ones: these lose what a worker
/// had taken that was killed, and nothing else.
fn poison_costs_only_what_its_worker_had_taken(policy: &str, program: &[&str]) {
    let app = App::run(program, &["--policy", policy, "--log", "json"]);
    let stop = Arc::new(AtomicBool::new(false));
    let seen = std::thread::scope(|scope| {
        let good = scope.spawn(|| good_clients(&app, &stop));
        let begun = Instant::now();
        let poisons: Vec<_> = (0..rounds())
            .map(|round| {
                std::thread::sleep(
                    (begun + Duration::from_millis(200) * round)
                        .saturating_duration_since(Instant::now()),
                );
                let app = &app;
                scope.spawn(move || app.get(0x0040_0000 + round, "/poison"))
            })
            .collect();
        let ended = poisons.into_iter().map(|poison| poison.join().unwrap()).collect::<Vec<_>>();
        assert!(!ended.iter().any(is_good));
        stop.store(true, Ordering::Relaxed);
        good.join().unwrap()
    });
    // Which worker has taken which connections without answering, and which request has ended which
    // worker.
    let (mut serving, mut killed) = (BTreeMap::<String, Vec<u32>>::new(), BTreeSet::new());
    for line in app.text("record").lines() {
        let words: Vec<_> = line.split(' ').collect();
        let (whom, who) = (words[1].to_owned(), words[2].parse::<u32>().unwrap());
        match words[0] {
            "A" => serving.entry(whom).or_default().push(who),
            "P" => drop(killed.insert(who)),
            _ => serving.entry(whom).or_default().retain(|worker| *worker != who),
        }
    }
    let of_killed = |from: u32| {
        let taken_by = serving.get(&Ipv4Addr::from(source(from)).to_string());
        taken_by.is_some_and(|workers| workers.iter().any(|worker| killed.contains(worker)))
    };
    let (served, others): (Vec<_>, Vec<_>) =
        seen.lost.iter().partition(|(from, ..)| of_killed(*from));
    eprintln!(
        "{policy}, {}: {} good requests answered, the slowest after {:?}; {} workers killed by {} poisonous ones; {} good ones lost that these had taken, {} otherwise",
        program[0],
        seen.answered,
        seen.slowest,
        killed.len(),
        rounds(),
        served.len(),
        others.len()
    );
    // A worker with several threads can have taken one more that it had no time to record.
    let unrecorded = if program[0].ends_with(".js") { 0 } else { killed.len() };
    if others.len() > unrecorded {
        let (record, few) = (app.text("record"), &others[..others.len().min(5)]);
        let lines = few.iter().map(|(from, ..)| {
            let whom = format!(" {} ", Ipv4Addr::from(source(*from)));
            record.lines().filter(|line| line.contains(&whom)).collect::<Vec<_>>()
        });
        let lines: Vec<_> = lines.collect();
        panic!("{few:?}\nrecorded of them: {lines:?}\nkilled: {killed:?}\n{}", app.text("log"));
    }
    // One worker can have taken several before it ended.
    assert!(killed.len() >= rounds() as usize / 3, "{} workers ended by poison", killed.len());
    assert!(
        seen.slowest < CLIENT_TIMEOUT && seen.answered > rounds() as usize,
        "{} after {:?}",
        seen.answered,
        seen.slowest
    );
    wait_until("all workers are back", || app.show()["phase"] == "running");
    assert!(!app.text("log").contains("giving-up"));
}

macro_rules! poison {
    ($($name:ident: $policy:literal;)*) => {
        $(mod $name {
            #[test]
            fn poison_costs_a_node_worker_only_what_it_had_taken() {
                super::poison_costs_only_what_its_worker_had_taken($policy, &["server.js"]);
            }

            #[test]
            fn poison_costs_a_rust_worker_only_what_it_had_taken() {
                super::poison_costs_only_what_its_worker_had_taken($policy, &[env!("CARGO_BIN_EXE_troop-fixture"), "poisoned"]);
            }
        })*
    };
}

poison! {
    round_robin: "round-robin";
    auto: "auto";
    shared: "shared";
    steered: "steered";
}

#[test]
fn workers_that_all_die_at_once_are_waited_for_and_come_back() {
    let app = App::run(&["server.js"], &[]);
    for round in 0..5 {
        app.kill_workers();
        let answers = std::thread::scope(|scope| {
            let ask = |from: u32| {
                scope.spawn({
                    let app = &app;
                    move || app.get(from, "/")
                })
            };
            let asked: Vec<_> =
                (0..CLIENTS as u32).map(|client| ask(100 * round + client)).collect();
            asked.into_iter().map(|client| client.join().unwrap()).collect::<Vec<_>>()
        });
        assert!(answers.iter().all(is_good), "{answers:?}");
        wait_until("all workers are back", || app.show()["phase"] == "running");
    }
}

#[test]
fn deleting_the_program_ends_no_serving_worker() {
    let app =
        App::run(&["server.js"], &["--set", "restart.max_delay=200ms", "--set", "restart.max=2"]);
    let (there, away) = (app.home.path().join("server.js"), app.home.path().join("away.js"));
    std::fs::rename(&there, &away).unwrap();
    let first = app.show()["workers"][0]["pid"].as_i64().unwrap();
    kill_process(Pid::from_raw(i32::try_from(first).unwrap()).unwrap(), Signal::KILL).unwrap();
    wait_until("many restarts", || app.show()["restarts"].as_u64() > Some(6));
    let shown = app.show();
    assert_eq!((&shown["phase"], &shown["ready"]), (&"degraded".into(), &3.into()));
    assert!((0..20).all(|from| is_good(&app.get(from, "/"))));
    // Nor does it end when no worker is left; clients wait for the next one.
    app.kill_workers();
    wait_until("that nobody is ready", || app.show()["ready"] == 0);
    let client = std::thread::scope(|scope| {
        let client = scope.spawn(|| app.get(50, "/"));
        wait_until("more restarts", || app.show()["restarts"].as_u64() > Some(20));
        std::fs::rename(&away, &there).unwrap();
        client.join().unwrap()
    });
    assert!(is_good(&client), "{client:?}");
    wait_until("all workers are back", || app.show()["phase"] == "running");
}

/// A server on a socket that it was given, which ends at `GET /poison`.
const ACTIVATED: &str = r"
const server = require('http').createServer((request, response) => {
  if (request.url === '/poison') process.exit(1);
  response.end('good\n');
});
server.listen({ fd: 3 });
";

#[test]
fn clusters_with_activated_sockets_do_not_give_up_either() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("server.js"), ACTIVATED).unwrap();
    let port = troop_testkit::free_port();
    let bind = format!("127.0.0.1:{port}");
    let args = ["run", "-w", "2", "-n", "web", "-b", &bind, "--set", "restart.max=2", "server.js"];
    let log = std::fs::File::create(home.path().join("log")).unwrap();
    let primary = troop(home.path(), &args).stdout(Stdio::null()).stderr(log).spawn().unwrap();
    let app = App { home, primary, port };
    wait_until("all workers", || app.show()["phase"] == "running");
    for round in 0..6 {
        // One for each worker, so that none is left.
        let _ = (app.get(round, "/poison"), app.get(round, "/poison"));
        assert!(is_good(&app.get(round, "/")), "{}", app.text("log"));
    }
    wait_until("all workers are back", || app.show()["phase"] == "running");
}

#[test]
fn a_cluster_that_cannot_start_ends_with_an_error_and_leaves_no_process() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("bad.js"), "console.error('no database'); process.exit(7)")
        .unwrap();
    let ended = troop(home.path(), &["run", "-w", "3", "--set", "restart.delay=1ms", "bad.js"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(
        ended.status.code() == Some(1)
            && said.contains("exit code 7")
            && said.contains("no database"),
        "{said}"
    );
    let directory = home.path().join("run");
    let left = |directory: &Path, kept: &str| {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        entries.filter(|entry| entry.file_name() != kept).count()
    };
    assert_eq!(left(&directory, "apps"), 0, "no control socket is left");
    assert_eq!(left(&directory.join("apps"), ".lock"), 0, "no record is left");
}
