//! No connection is lost, whatever becomes of the workers.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod reloads;

use std::collections::HashSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::task::JoinHandle;
use troop::event::{Consequence, ExitHow, Violation};
use troop::supervise::{Progress, RestartPolicy};
use troop::{Builder, Cluster, Event, Fork, Scheduling, Setup, WorkerHandle};
use troop_testkit::{TEST_TIMEOUT, Troop, ask, at_once, free_port, is_running, node_program, talk};

fn fixture<const N: usize>(args: [&str; N]) -> Setup {
    Setup::new().program(env!("CARGO_BIN_EXE_troop-fixture")).args(args)
}

/// A worker that does not end with its channel (it is stopped, or blocked), and must not survive
/// its test.
struct Stubborn(WorkerHandle);

impl Drop for Stubborn {
    fn drop(&mut self) {
        // As long as it is not known to be dead it has not been reaped, so the number is still its
        // own.
        if !self.0.is_dead() {
            kill(&self.0, Signal::KILL);
        }
    }
}

fn kill(worker: &WorkerHandle, signal: Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(worker.pid()).unwrap()).unwrap();
    let _ = rustix::process::kill_process(pid, signal);
}

/// Several clients that connect at once and wait for an answer.
fn clients(count: usize, port: u16) -> Vec<JoinHandle<std::io::Result<String>>> {
    (0..count).map(|_| tokio::spawn(ask(port, ""))).collect()
}

/// All clients get an answer from this worker.
async fn are_served(clients: Vec<JoinHandle<std::io::Result<String>>>, by: &WorkerHandle) {
    for client in clients {
        let answer = client.await.unwrap().expect("the client is answered");
        assert_eq!(answer.trim(), format!("{} {}", by.id(), by.pid()));
    }
}

/// Waits until this many connections are with a worker that does not answer them.
async fn in_flight(worker: &WorkerHandle, count: usize) {
    let deadline = Instant::now() + TEST_TIMEOUT;
    while worker.stats().await.in_flight < count {
        assert!(Instant::now() < deadline, "{:?}", worker.stats().await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn fork_as<const N: usize>(troop: &Troop, args: [&str; N]) -> WorkerHandle {
    troop.cluster.setup(Setup::new().args(args)).unwrap();
    troop.cluster.fork(Fork::new()).await.unwrap()
}

// ---- workers that die ----

#[tokio::test]
async fn connections_that_an_idle_worker_never_took_are_served_when_it_is_killed() {
    let mut troop = Troop::with(fixture(["idle", "127.0.0.1:0"]));
    let idle = troop.fork().await;
    let port = troop.listening(&idle).await;
    let clients = clients(10, port);
    in_flight(&idle, 1).await;
    let honest = fork_as(&troop, ["line", "127.0.0.1:0"]).await;
    troop.listening(&honest).await;
    idle.kill(9).await.unwrap();
    are_served(clients, &honest).await;
    assert_eq!(troop.exit(&idle).await, ExitHow::Signal(9));
}

#[tokio::test]
async fn connections_of_a_blocked_worker_are_served_when_it_is_killed() {
    let mut troop = Troop::with(fixture(["blocked", "127.0.0.1:0"]));
    let blocked = Stubborn(troop.fork().await);
    let port = troop.listening(&blocked.0).await;
    // By then it sleeps; what comes now stays in its channel.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let clients = clients(10, port);
    in_flight(&blocked.0, 1).await;
    let honest = fork_as(&troop, ["line", "127.0.0.1:0"]).await;
    troop.listening(&honest).await;
    blocked.0.kill(9).await.unwrap();
    are_served(clients, &honest).await;
}

async fn stopped_worker_loses_nothing(setup: Setup, port: u16) {
    let mut troop = Troop::with(setup);
    let stopped = Stubborn(troop.fork().await);
    let port = troop.listening(&stopped.0).await.max(port);
    kill(&stopped.0, Signal::STOP);
    let first = clients(5, port);
    in_flight(&stopped.0, 1).await;
    troop.cluster.setup(fixture(["line", &format!("127.0.0.1:{port}")])).unwrap();
    // The same address in other words would be another listener: port 0 stays port 0.
    let honest = troop.cluster.fork(Fork::new()).await.unwrap();
    let listening = tokio::time::timeout(Duration::from_secs(5), troop.listening(&honest)).await;
    assert_eq!(listening.ok(), Some(port));
    stopped.0.kill(9).await.unwrap();
    are_served(first, &honest).await;
    assert_eq!(troop.exit(&stopped.0).await, ExitHow::Signal(9));
}

#[tokio::test]
async fn connections_of_a_stopped_rust_worker_are_served_when_it_is_killed() {
    let port = free_port();
    stopped_worker_loses_nothing(fixture(["line", &format!("127.0.0.1:{port}")]), port).await;
}

#[tokio::test]
async fn connections_of_a_stopped_node_worker_are_served_when_it_is_killed() {
    let port = free_port();
    let mut troop =
        Troop::with(Setup::new().script(node_program("plain.js")).args([port.to_string()]));
    let (one, two) = (Stubborn(troop.fork().await), troop.fork().await);
    troop.listening(&one.0).await;
    troop.listening(&two).await;
    kill(&one.0, Signal::STOP);
    let clients: Vec<_> =
        (0..10).map(|_| tokio::spawn(async move { troop_testkit::get(port, "/").await })).collect();
    in_flight(&one.0, 1).await;
    one.0.kill(9).await.unwrap();
    for client in clients {
        assert_eq!(client.await.unwrap().unwrap().trim(), two.pid().to_string());
    }
}

#[tokio::test]
async fn a_connection_that_was_read_from_is_not_re_dispatched() {
    let mut troop = Troop::with(fixture(["read and die", "127.0.0.1:0"]));
    let reader = troop.fork().await;
    let port = troop.listening(&reader).await;
    let client = tokio::spawn(ask(port, "some request"));
    assert_eq!(troop.exit(&reader).await, ExitHow::Signal(9));
    let honest = fork_as(&troop, ["line", "127.0.0.1:0"]).await;
    troop.listening(&honest).await;
    // Cut off, not answered by a worker that cannot know what was read.
    let answer = client.await.unwrap();
    assert!(answer.as_ref().map_or(true, String::is_empty), "{answer:?}");
    assert_eq!(honest.stats().await.handed, 0);
    assert!(ask(port, "").await.unwrap().starts_with("2 "), "the next one is served");
}

#[tokio::test]
async fn connections_wait_while_all_workers_are_dead() {
    let mut troop = Troop::with(fixture(["line", "127.0.0.1:0"]));
    let first = troop.fork().await;
    let port = troop.listening(&first).await;
    first.kill(9).await.unwrap();
    troop.exit(&first).await;
    let clients = clients(20, port);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(clients.iter().all(|c| !c.is_finished()), "nobody is refused meanwhile");
    let second = troop.fork().await;
    are_served(clients, &second).await;
}

#[tokio::test]
async fn killing_workers_under_load_loses_only_what_they_had_taken() {
    let restart = RestartPolicy::new(3).max_ends(1000).first_delay(Duration::from_millis(1));
    let builder =
        Cluster::builder().workers(3).restart(restart).setup(fixture(["line", "127.0.0.1:0"]));
    let mut troop = Troop::start(builder);
    let port = troop
        .until("listening", |e| {
            if let Event::Listening { address: at, .. } = e { at.port } else { None }
        })
        .await;
    let port = u16::try_from(port).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let load: Vec<_> = (0..4)
        .map(|_| {
            let stop = stop.clone();
            tokio::task::spawn_blocking(move || {
                let (mut served, mut lost) = (0u64, 0u64);
                while !stop.load(Ordering::Relaxed) {
                    match talk(([127, 0, 0, 1], port), "") {
                        Ok(answer) if !answer.is_empty() => served += 1,
                        _ => lost += 1,
                    }
                }
                (served, lost)
            })
        })
        .collect();
    let mut killed = Vec::new();
    for n in 0..15 {
        tokio::time::sleep(Duration::from_millis(60)).await;
        let workers = troop.cluster.workers();
        if let Some(worker) = workers.get(n % workers.len().max(1)) {
            let _ = worker.kill(9).await;
            killed.push(worker.clone());
        }
    }
    stop.store(true, Ordering::Relaxed);
    let (mut served, mut lost) = (0, 0);
    for task in load {
        let (s, l) = task.await.unwrap();
        (served, lost) = (served + s, lost + l);
    }
    assert!(served > 100, "{served}");
    // A worker answers a connection at once after it took it, so it rarely has more than one per
    // client when it is killed.
    let bound = 4 * killed.len() as u64;
    assert!(
        lost <= bound,
        "{lost} connections of {} were lost to {} kills",
        served + lost,
        killed.len()
    );
}

// ---- workers that live, but do not take ----

#[tokio::test]
async fn a_worker_that_does_not_take_connections_returns_them_to_one_that_does() {
    let mut troop = Troop::with(fixture(["line", "127.0.0.1:0"]));
    let honest = troop.fork().await;
    let port = troop.listening(&honest).await;
    let idle = fork_as(&troop, ["idle", "127.0.0.1:0"]).await;
    troop.listening(&idle).await;
    let before = Instant::now();
    are_served(clients(20, port), &honest).await;
    assert!(before.elapsed() < Duration::from_secs(5), "it took {:?}", before.elapsed());
    assert!(idle.stats().await.returned > 0, "{:?}", idle.stats().await);
}

#[tokio::test]
async fn connections_that_a_single_worker_does_not_take_go_to_a_second_one_when_it_starts() {
    let mut troop = Troop::with(fixture(["idle", "127.0.0.1:0"]));
    let idle = troop.fork().await;
    let port = troop.listening(&idle).await;
    let clients = clients(5, port);
    in_flight(&idle, 1).await;
    // Longer than the primary waits before it asks for them back.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let honest = fork_as(&troop, ["line", "127.0.0.1:0"]).await;
    troop.listening(&honest).await;
    let before = Instant::now();
    are_served(clients, &honest).await;
    assert!(before.elapsed() < Duration::from_secs(8), "it took {:?}", before.elapsed());
}

#[tokio::test]
async fn a_worker_that_hangs_is_killed_and_its_connections_are_served() {
    let builder = Cluster::builder().hang_timeout(Some(Duration::from_millis(1500)));
    let mut troop = Troop::start(builder.setup(fixture(["blocked", "127.0.0.1:0"])));
    let blocked = Stubborn(troop.fork().await);
    let port = troop.listening(&blocked.0).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let clients = clients(5, port);
    in_flight(&blocked.0, 1).await;
    let honest = fork_as(&troop, ["line", "127.0.0.1:0"]).await;
    troop.listening(&honest).await;
    are_served(clients, &honest).await;
    let id = blocked.0.id();
    let hung = |e: &Event| {
        matches!(
            e,
            Event::Misbehaved {
                worker: w,
                violation: Violation::Hung(_),
                consequence: Consequence::Killed,
                ..
            } if w.id() == id
        )
        .then_some(())
    };
    troop.until("the report", hung).await;
    assert_eq!(troop.exit(&blocked.0).await, ExitHow::Signal(6));
}

#[tokio::test]
async fn a_blocked_worker_is_left_alone_without_a_hang_timeout() {
    let mut troop = Troop::start(
        Cluster::builder().hang_timeout(None).setup(fixture(["blocked", "127.0.0.1:0"])),
    );
    let blocked = Stubborn(troop.fork().await);
    let port = troop.listening(&blocked.0).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let clients = clients(3, port);
    in_flight(&blocked.0, 1).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(blocked.0.is_connected());
    let honest = fork_as(&troop, ["line", "127.0.0.1:0"]).await;
    troop.listening(&honest).await;
    blocked.0.kill(9).await.unwrap();
    are_served(clients, &honest).await;
}

#[tokio::test]
async fn a_worker_at_its_descriptor_limit_loses_nothing_and_comes_back() {
    let mut troop = Troop::with(fixture(["starved", "127.0.0.1:0"]));
    let starved = troop.fork().await;
    let port = troop.listening(&starved).await;
    assert_eq!(troop.message(&starved).await, "starved");
    let honest = fork_as(&troop, ["line", "127.0.0.1:0"]).await;
    troop.listening(&honest).await;
    are_served(clients(20, port), &honest).await;
    assert!(starved.stats().await.returned > 0);
    // It recovers, and is given connections again.
    starved.send(&"you may").await.unwrap();
    let deadline = Instant::now() + TEST_TIMEOUT;
    while !ask(port, "").await.unwrap().starts_with("1 ") {
        assert!(Instant::now() < deadline, "the worker that recovered never serves");
    }
}

#[tokio::test]
async fn a_node_worker_that_cannot_receive_descriptors_loses_nothing() {
    // It speaks as a Node worker does: one connection per message, and a refusal for each.
    let query = r#"line {"cmd":"NODE_CLUSTER","act":"queryServer","seq":1,"index":0,"address":"127.0.0.1","port":0,"addressType":4}"#;
    let builder = Cluster::builder().scheduling(Scheduling::RoundRobin);
    let mut troop = Troop::start(builder.setup(fixture(["line", "127.0.0.1:0"])));
    let honest = troop.fork().await;
    let port = troop.listening(&honest).await;
    let starved = fork_as(
        &troop,
        ["raw", r#"line {"cmd":"NODE_CLUSTER","act":"online","seq":0}"#, query, "nack"],
    )
    .await;
    let id = starved.id();
    troop
        .until("online", |e| {
            matches!(e, Event::Online { worker: w, .. } if w.id() == id).then_some(())
        })
        .await;
    let deadline = Instant::now() + TEST_TIMEOUT;
    while starved.stats().await.returned < 3 {
        are_served(clients(8, port), &honest).await;
        assert!(Instant::now() < deadline, "{:?}", starved.stats().await);
    }
    assert!(starved.is_connected(), "being short of descriptors is no offence");
}

#[tokio::test]
async fn an_acknowledgement_frees_a_worker_for_all_its_listeners() {
    let mut troop = Troop::with(fixture(["two", "127.0.0.1:0"]));
    let worker = troop.fork().await;
    let (one, two) = (troop.listening(&worker).await, troop.listening(&worker).await);
    for port in [one, two, one, two] {
        assert!(ask(port, "").await.unwrap().starts_with("1 "));
    }
}

// ---- channels that the program closes ----

#[tokio::test]
async fn closing_the_channel_of_an_idle_worker_gives_its_connections_to_another_when_it_is_gone() {
    let mut troop = Troop::with(fixture(["idle", "127.0.0.1:0"]));
    let idle = troop.fork().await;
    let port = troop.listening(&idle).await;
    let clients = clients(10, port);
    in_flight(&idle, 1).await;
    let honest = fork_as(&troop, ["line", "127.0.0.1:0"]).await;
    troop.listening(&honest).await;
    idle.close_channel().unwrap();
    are_served(clients, &honest).await;
    assert!(!is_running(idle.pid()), "the old worker is gone before others have its connections");
    assert_eq!(troop.exit(&idle).await, ExitHow::Code(0));
    assert_eq!(idle.stats().await.taken, 0);
}

/// A stopped worker with at least one connection in its closed channel, an honest one beside it,
/// and all clients.
async fn stopped_behind_a_closed_channel()
-> (Troop, Stubborn, WorkerHandle, Vec<JoinHandle<std::io::Result<String>>>) {
    let mut troop = Troop::with(fixture(["line", "127.0.0.1:0"]));
    let stopped = Stubborn(troop.fork().await);
    let port = troop.listening(&stopped.0).await;
    kill(&stopped.0, Signal::STOP);
    let clients = clients(10, port);
    in_flight(&stopped.0, 1).await;
    let honest = fork_as(&troop, ["line", "127.0.0.1:0"]).await;
    troop.listening(&honest).await;
    stopped.0.close_channel().unwrap();
    let id = stopped.0.id();
    troop
        .until("its disconnect", |e| {
            matches!(e, Event::Disconnect { worker: w, .. } if w.id() == id).then_some(())
        })
        .await;
    // It may still read the connections in its channel, so no other worker gets them.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(
        clients.iter().any(|c| !c.is_finished()),
        "what the stopped worker may have is with nobody else"
    );
    (troop, stopped, honest, clients)
}

#[tokio::test]
async fn connections_in_a_closed_channel_are_served_when_their_worker_is_killed() {
    let (mut troop, stopped, honest, clients) = stopped_behind_a_closed_channel().await;
    stopped.0.kill(9).await.unwrap();
    are_served(clients, &honest).await;
    assert_eq!(troop.exit(&stopped.0).await, ExitHow::Signal(9));
}

#[tokio::test]
async fn connections_in_a_closed_channel_are_answered_once_when_their_worker_goes_on() {
    let (mut troop, stopped, honest, clients) = stopped_behind_a_closed_channel().await;
    kill(&stopped.0, Signal::CONT);
    let names = [&stopped.0, &honest].map(|w| format!("{} {}\n", w.id(), w.pid()));
    for client in clients {
        let answer = client.await.unwrap().expect("the client is answered");
        assert!(names.contains(&answer), "{answer:?} is not one answer");
    }
    troop.exit(&stopped.0).await;
}

// ---- workers that finish ----

#[tokio::test]
async fn a_disconnected_worker_returns_connections_that_it_has_not_taken() {
    let mut troop = Troop::with(fixture(["idle", "127.0.0.1:0"]));
    let idle = troop.fork().await;
    let port = troop.listening(&idle).await;
    let clients = clients(10, port);
    in_flight(&idle, 1).await;
    let honest = fork_as(&troop, ["line", "127.0.0.1:0"]).await;
    troop.listening(&honest).await;
    idle.disconnect().unwrap();
    are_served(clients, &honest).await;
    assert_eq!(troop.exit(&idle).await, ExitHow::Code(0));
}

#[tokio::test]
async fn a_worker_that_is_disconnected_before_it_listens_ends_at_once() {
    let mut troop = Troop::with(fixture(["late", "127.0.0.1:0"]));
    let late = troop.fork().await;
    let id = late.id();
    troop
        .until("online", |e| {
            matches!(e, Event::Online { worker: w, .. } if w.id() == id).then_some(())
        })
        .await;
    let before = Instant::now();
    late.disconnect().unwrap();
    troop.exit(&late).await;
    assert!(before.elapsed() < Duration::from_secs(10), "it took {:?}", before.elapsed());
}

/// Sends requests until it is stopped; counts failures, and records the workers that answered.
struct Load {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<(Vec<String>, HashSet<String>)>>,
}

impl Load {
    fn start(request: impl Fn() -> std::io::Result<String> + Send + Sync + 'static) -> Load {
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let request = Arc::new(request);
        let threads = (0..3)
            .map(|_| {
                let (stop, served, request) = (stop.clone(), served.clone(), request.clone());
                std::thread::spawn(move || {
                    let (mut failures, mut answers) = (Vec::new(), HashSet::new());
                    while !stop.load(Ordering::Relaxed) {
                        match request() {
                            Ok(answer) if !answer.is_empty() => {
                                answers.insert(answer);
                                served.fetch_add(1, Ordering::Relaxed);
                            }
                            other => failures.push(format!("{other:?}")),
                        }
                    }
                    (failures, answers)
                })
            })
            .collect();
        Load { stop, served, threads }
    }

    /// Goes on until it has served more than so many, however fast what it tests was.
    fn goes_on_after(&self, served: u64) {
        troop_testkit::wait_until("enough requests", || {
            self.served.load(Ordering::Relaxed) > served
        });
    }

    fn end(self) -> (u64, Vec<String>, HashSet<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let (mut failures, mut answers) = (Vec::new(), HashSet::new());
        for thread in self.threads {
            let (f, a) = thread.join().unwrap();
            failures.extend(f);
            answers.extend(a);
        }
        (self.served.load(Ordering::Relaxed), failures, answers)
    }
}

// ---- a primary that is short of descriptors ----

/// A primary in a separate process, which ends with its test.
struct Primary(std::process::Child);

impl Drop for Primary {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_primary_at_its_descriptor_limit_lets_clients_wait_and_closes_no_connection() {
    let port = free_port();
    let script = format!("ulimit -n 40; exec \"$0\" primary line 127.0.0.1:{port}");
    let mut command = std::process::Command::new("sh");
    command
        .args(["-c", &script, env!("CARGO_BIN_EXE_troop-fixture")])
        .stdout(std::process::Stdio::null());
    let _primary = Primary(command.spawn().unwrap());
    troop_testkit::wait_until("the primary listens", || {
        talk(([127, 0, 0, 1], port), "").is_ok_and(|a| !a.is_empty())
    });
    // Stopped workers take nothing, so the connections fill the primary's table.
    let workers: Vec<i32> = children(_primary.0.id());
    assert_eq!(workers.len(), 2);
    let signal = |signal| {
        workers.iter().for_each(|w| {
            rustix::process::kill_process(rustix::process::Pid::from_raw(*w).unwrap(), signal)
                .unwrap()
        });
    };
    signal(Signal::STOP);
    let clients: Vec<_> =
        (0..100).map(|_| std::thread::spawn(move || talk(([127, 0, 0, 1], port), ""))).collect();
    let open =
        || std::fs::read_dir(format!("/proc/{}/fd", _primary.0.id())).map_or(0, Iterator::count);
    // It stops accepting while it still has some for restarts and control clients.
    let mut before = 0;
    troop_testkit::wait_until("the primary accepts no more", || {
        std::thread::sleep(Duration::from_millis(300));
        std::mem::replace(&mut before, open()) == open()
    });
    assert!(open() < 36, "{} of 40 descriptors are in use", open());
    let early = clients.iter().filter(|c| c.is_finished()).count();
    signal(Signal::CONT);
    assert_eq!(early, 0, "nobody was turned away");
    for client in clients {
        assert!(
            !client.join().unwrap().expect("no connection is reset").is_empty(),
            "no connection is closed silently"
        );
    }
}

/// The running children of a process.
fn children(parent: u32) -> Vec<i32> {
    troop_testkit::children(parent).into_iter().map(u32::cast_signed).collect()
}
