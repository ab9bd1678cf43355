//! New connections without end, while workers are killed, stopped and replaced: every one is
//! answered, except those that a killed worker was serving. That is counted: each worker keeps a
//! record of the clients that it serves, and every client has another address. A killed worker can
//! have accepted one more connection that it had no time to record, no more than one, and that
//! client loses it at that moment.
//!
//! `TROOP_ROUNDS` sets the number of rounds (12 if it is not set).
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use troop::supervise::{Progress, RestartPolicy};
use troop::{Cluster, Event, Setup};
use troop_testkit::{Troop, at_once, node_program, talk_from};

const WORKERS: usize = 4;
const CLIENTS: usize = 8;

fn rounds() -> usize {
    std::env::var("TROOP_ROUNDS")
        .map_or(12, |rounds| rounds.parse().expect("TROOP_ROUNDS is a number"))
}

/// A loopback address that no other client has.
fn source(n: u32) -> [u8; 4] {
    let [_, a, b, c] = (n + 0x0001_0000).to_be_bytes();
    [127, a, b, c]
}

/// What clients saw: how many were answered, and the addresses of those that were not, when they
/// knew, and how.
type Seen = (usize, Vec<([u8; 4], Instant, String)>);

/// How long after a kill a client may learn of it: the driver sends the signal, the kernel ends the
/// process, and the client's thread runs again, each late on a busy machine.
const NOTICE: Duration = Duration::from_secs(1);

struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<Seen>>,
}

impl Load {
    fn start(port: u16) -> Load {
        let (stop, next) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let client = || {
            let (stop, next) = (stop.clone(), next.clone());
            std::thread::spawn(move || {
                let (mut answered, mut lost) = (0, Vec::new());
                while !stop.load(Ordering::Relaxed) {
                    let from = source(next.fetch_add(1, Ordering::Relaxed));
                    match talk_from(from, ([127, 0, 0, 1], port), b"") {
                        Ok(answer) if answer.ends_with(b"\n") => answered += 1,
                        other => lost.push((from, Instant::now(), format!("{other:?}"))),
                    }
                }
                (answered, lost)
            })
        };
        let threads = (0..CLIENTS).map(|_| client()).collect();
        Load { stop, threads }
    }

    fn end(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().map(|t| t.join().unwrap()).fold(
            (0, Vec::new()),
            |(answered, mut lost), (a, l)| {
                lost.extend(l);
                (answered + a, lost)
            },
        )
    }
}

fn signal(pid: u32, signal: Signal) {
    let _ = kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal);
}

/// Lets stopped workers go on, however the test ends.
struct Continue(u32);

impl Drop for Continue {
    fn drop(&mut self) {
        signal(self.0, Signal::CONT);
    }
}

async fn nothing_is_lost(scheduling: &str, node: bool) {
    let directory = tempfile::tempdir().unwrap();
    let record = directory.path().join("record");
    std::fs::write(&record, "").unwrap();
    let port = troop_testkit::free_port();
    let setup = if node {
        Setup::new()
            .script(node_program("record.js"))
            .args([port.to_string().into(), record.clone().into_os_string()])
    } else {
        let fixture = Setup::new().program(env!("CARGO_BIN_EXE_troop-fixture"));
        fixture.args([
            "record".into(),
            format!("127.0.0.1:{port}").into(),
            record.clone().into_os_string(),
        ])
    };
    let restart =
        RestartPolicy::new(WORKERS).max_ends(100_000).first_delay(Duration::from_millis(1));
    let builder = Cluster::builder()
        .workers(WORKERS)
        .restart(restart)
        .replace(at_once())
        .scheduling(scheduling.parse().unwrap())
        .setup(setup);
    let mut troop = Troop::start(builder);
    for _ in 0..WORKERS {
        troop.until("listening", |e| matches!(e, Event::Listening { .. }).then_some(())).await;
    }
    let load = Load::start(port);
    let (mut killed, mut kills, mut random) =
        (HashSet::new(), Vec::new(), 88_172_645_463_325_252u64);
    for _ in 0..rounds() {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let workers = troop.cluster.workers();
        let Some(worker) = workers.get((random >> 8) as usize % workers.len().max(1)).cloned()
        else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let pause = Duration::from_millis(20 + random % 100);
        match random % 5 {
            0 | 1 => {
                killed.insert(worker.pid());
                kills.push(Instant::now());
                let _ = worker.kill(9).await;
            }
            // Stopped for a while; then it goes on, or it is killed.
            choice @ (2 | 3) => {
                let stopped = Continue(worker.pid());
                signal(worker.pid(), Signal::STOP);
                tokio::time::sleep(pause * 4).await;
                if choice == 3 {
                    killed.insert(worker.pid());
                    kills.push(Instant::now());
                    let _ = worker.kill(9).await;
                } else {
                    drop(stopped);
                }
            }
            _ => {
                let reload = troop.cluster.reload();
                let over = |e: &Event| {
                    matches!(
                        e,
                        Event::Supervision(
                            Progress::ReloadFinished | Progress::ReloadFailed { .. }
                        )
                    )
                    .then_some(())
                };
                troop.until("the end of the reload", over).await;
                // Whether it succeeds is up to the chaos.
                let _ = reload.await;
            }
        }
        tokio::time::sleep(pause).await;
    }
    let (answered, lost) = tokio::task::spawn_blocking(|| load.end()).await.unwrap();
    drop(troop.cluster.stop());
    let mut serving: HashMap<String, Vec<u32>> = HashMap::new();
    for line in std::fs::read_to_string(&record).unwrap().lines() {
        let mut words = line.split(' ');
        let (what, whom, who) =
            (words.next().unwrap(), words.next().unwrap(), words.next().unwrap().parse().unwrap());
        match what {
            "A" => serving.entry(whom.to_owned()).or_default().push(who),
            _ => serving.entry(whom.to_owned()).or_default().retain(|w| *w != who),
        }
    }
    let of_killed = |from: &[u8; 4]| {
        let whom = std::net::Ipv4Addr::from(*from).to_string();
        serving.get(&whom).is_some_and(|who: &Vec<u32>| who.iter().any(|w| killed.contains(w)))
    };
    let (served, mut unrecorded): (Vec<_>, Vec<_>) =
        lost.iter().partition(|(from, ..)| of_killed(from));
    // Each kill explains one loss, soon after it. In order of time, so that a loss takes no kill
    // that an earlier one needs.
    unrecorded.sort_by_key(|(_, when, _)| *when);
    let mut unexplained = Vec::new();
    for (from, when, how) in &unrecorded {
        match kills.iter().position(|kill| *when >= *kill && *when - *kill < NOTICE) {
            Some(kill) => drop(kills.remove(kill)),
            None => unexplained.push((
                from,
                how,
                serving.get(&std::net::Ipv4Addr::from(*from).to_string()),
            )),
        }
    }
    eprintln!(
        "{scheduling}, {}: {answered} answered, {} workers killed, {} lost that they served, {} that they had just accepted, {} for no reason",
        if node { "Node" } else { "Rust" },
        killed.len(),
        served.len(),
        unrecorded.len() - unexplained.len(),
        unexplained.len()
    );
    let few = &unexplained[..unexplained.len().min(5)];
    assert!(unexplained.is_empty(), "{scheduling}: {few:?}");
    assert!(answered > 10 * rounds() && !killed.is_empty(), "{answered} answered");
}

macro_rules! chaos {
    ($($name:ident: $scheduling:literal;)*) => {
        $(mod $name {
            #[tokio::test(flavor = "multi_thread")]
            async fn rust_workers_lose_only_what_they_serve_when_they_are_killed() {
                super::nothing_is_lost($scheduling, false).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn node_workers_lose_only_what_they_serve_when_they_are_killed() {
                super::nothing_is_lost($scheduling, true).await;
            }
        })*
    };
}

chaos! {
    round_robin: "round-robin";
    auto: "auto";
    weighted: "weighted";
    least_connections: "least-connections";
    p2c: "p2c";
    sticky: "sticky";
    shared: "shared";
    steered: "steered";
    steered_sticky: "steered:sticky";
}
