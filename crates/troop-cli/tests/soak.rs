//! Everything at once, for a minute, or for as many seconds as `TROOP_SOAK` says: load, reloads, kills of
//! workers and engines, upgrades, changes of the number of workers, floods of output.
//!
//! With `TROOP_SOAK_REPORT=FILE` a line for each round is written there, as CSV.

#![allow(clippy::unwrap_used)]

mod support;

use std::fmt::Write as _;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use support::kept_client::KeptClient;
use support::{Home, node};
use troop_testkit::{talk, wait_until};

/// Clients of each kind: those that make a connection for each request, and those that keep theirs.
const CLIENTS: usize = 3;
const MIB: u64 = 1 << 20;

/// What a process has.
#[derive(Debug, Clone, Copy, Default)]
struct Usage {
    /// What it has for itself, in bytes: how much of its code counts as its own depends on others.
    memory: u64,
    descriptors: usize,
    threads: usize,
}

impl Usage {
    fn of(pid: u64) -> Usage {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
        let count = |name: &str| std::fs::read_dir(format!("/proc/{pid}/{name}")).unwrap().count();
        let rollup = read("smaps_rollup");
        let memory = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:")).unwrap();
        let memory: u64 = memory.trim().trim_end_matches(" kB").parse().unwrap();
        Usage { memory: memory << 10, descriptors: count("fd"), threads: count("task") }
    }
}

/// What clients have seen.
#[derive(Debug, Default)]
struct Seen {
    is_over: AtomicBool,
    requests: AtomicUsize,
    refused: AtomicUsize,
    /// Requests on new connections, and on kept ones.
    lost: [AtomicUsize; 2],
}

impl Seen {
    fn count(&self, result: std::io::Result<()>, is_kept: bool) {
        match result {
            Ok(()) => &self.requests,
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => &self.refused,
            Err(_) => &self.lost[usize::from(is_kept)],
        }
        .fetch_add(1, Relaxed);
    }

    fn connect_anew(&self, port: u16) {
        while !self.is_over.load(Relaxed) {
            let answer = talk(([127, 0, 0, 1], port), "GET / HTTP/1.0\r\n\r\n");
            let whole = answer.and_then(|answer| match answer.contains("200 OK") {
                true => Ok(()),
                false => Err(ErrorKind::UnexpectedEof.into()),
            });
            self.count(whole, false);
        }
    }

    fn keep_a_connection(&self, port: u16) {
        let mut client = None;
        while !self.is_over.load(Relaxed) {
            let result = match &mut client {
                None => KeptClient::try_new(port).map(|new| drop(client.insert(new).try_get())),
                Some(open) => open.try_get().map(drop),
            };
            if result.is_err() {
                client = None;
            }
            self.count(result, true);
        }
    }
}

fn end(pid: u64) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
}

/// Waits until the app has this many workers, all of them ready, and an engine other than `before`.
fn settled(home: &Home, workers: usize, before: Option<u64>) -> serde_json::Value {
    let mut shown = serde_json::Value::Null;
    wait_until(&format!("{workers} workers are ready"), || {
        let (code, out, _) = home.troop(&["show", "web", "--json"]);
        let all: serde_json::Value = serde_json::from_str(&out).unwrap_or_default();
        shown = all[0].clone();
        let ready = shown["workers"]
            .as_array()
            .map_or(0, |all| all.iter().filter(|worker| worker["ready"] == true).count());
        code == 0 && ready == workers && shown["engine"].as_u64() != before
    });
    shown
}

/// Children of a process that have ended and were not reaped.
fn zombies(keeper: u64) -> usize {
    let children = std::fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children"));
    let children = children.unwrap_or_default();
    let has_ended = |pid: &&str| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
    };
    children.split_whitespace().filter(has_ended).count()
}

#[test]
fn everything_at_once_leaves_memory_descriptors_and_threads_as_they_were() {
    let seconds = std::env::var("TROOP_SOAK").ok().map_or(60, |text| text.parse().unwrap());
    let begun = Instant::now();
    let home = Home::with(&[]);
    let program = node("soaks.js").display().to_string();
    home.fine(&["start", &program, "-n", "web", "-w", "2", "--set", "rebalance=false"]);
    let shown = settled(&home, 2, None);
    let address = shown["listeners"][0]["address"].as_str().unwrap();
    let port: u16 = address.rsplit_once(':').unwrap().1.parse().unwrap();
    let keeper = shown["pid"].as_u64().unwrap();
    let seen = Seen::default();
    let (mut worker_kills, mut engine_kills) = (0, 0);
    let mut report = String::from(
        "seconds,keeper KiB,engine KiB,keeper descriptors,engine descriptors,engine threads,requests,refused,lost new,lost kept\n",
    );
    let mut first: Option<[Usage; 2]> = None;
    let mut last = [Usage::default(); 2];
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| seen.connect_anew(port));
            scope.spawn(|| seen.keep_a_connection(port));
        }
        // Also where something fails, or the clients would go on for ever.
        let rounds = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            while first.is_none() || begun.elapsed() < Duration::from_secs(seconds) {
                home.fine(&["reload", "web"]);
                let shown = settled(&home, 2, None);
                let workers = shown["workers"].as_array().unwrap();
                // Others leave.
                let one = workers.iter().find(|worker| worker["ready"] == true).unwrap();
                end(one["pid"].as_u64().unwrap());
                worker_kills += 1;
                home.fine(&["scale", "web", "3"]);
                let shown = settled(&home, 3, None);
                let engine = shown["engine"].as_u64().unwrap();
                end(engine);
                engine_kills += 1;
                let shown = settled(&home, 3, Some(engine));
                talk(([127, 0, 0, 1], port), "GET /flood HTTP/1.0\r\n\r\n").unwrap();
                home.fine(&["upgrade", "web"]);
                home.fine(&["scale", "web", "2"]);
                let shown = settled(&home, 2, shown["engine"].as_u64());
                wait_until("all children that have ended are reaped", || zombies(keeper) == 0);
                assert_eq!(shown["pid"].as_u64(), Some(keeper));
                // Workers that leave still have some.
                if let Some([then, _]) = first {
                    wait_until("the keeper has as many descriptors as at first", || {
                        Usage::of(keeper).descriptors <= then.descriptors + 2
                    });
                }
                last = [Usage::of(keeper), Usage::of(shown["engine"].as_u64().unwrap())];
                first.get_or_insert(last);
                let [keeper, engine] = last;
                let count = |count: &AtomicUsize| count.load(Relaxed);
                writeln!(
                    report,
                    "{},{},{},{},{},{},{},{},{},{}",
                    begun.elapsed().as_secs(),
                    keeper.memory >> 10,
                    engine.memory >> 10,
                    keeper.descriptors,
                    engine.descriptors,
                    engine.threads,
                    count(&seen.requests),
                    count(&seen.refused),
                    count(&seen.lost[0]),
                    count(&seen.lost[1]),
                )
                .unwrap();
            }
        }));
        seen.is_over.store(true, Relaxed);
        if let Err(panic) = rounds {
            std::panic::resume_unwind(panic);
        }
    });
    home.fine(&["delete", "web"]);
    if let Some(path) = std::env::var_os("TROOP_SOAK_REPORT") {
        std::fs::write(path, &report).unwrap();
    }
    eprintln!("{report}");
    let [lost_new, lost_kept] = seen.lost.map(AtomicUsize::into_inner);
    assert_eq!(seen.refused.into_inner(), 0, "the port stays open");
    // A worker that is killed takes what it answers with it, an engine what it has just accepted.
    assert!(lost_new <= CLIENTS * (worker_kills + engine_kills), "{report}");
    assert!(lost_kept <= CLIENTS * worker_kills, "{report}");
    let [keeper, engine] = first.unwrap();
    assert!(last[0].descriptors <= keeper.descriptors + 2, "{report}");
    assert!(last[1].descriptors <= engine.descriptors + 8, "{report}");
    assert!(last[0].threads == 1 && last[1].threads <= engine.threads + 2, "{report}");
    assert!(last[0].memory <= keeper.memory + MIB / 2, "{report}");
    assert!(last[1].memory <= engine.memory + 4 * MIB, "{report}");
}
