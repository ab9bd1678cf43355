//! Listeners under `auto`: in exact turns while connections are few, spread by the kernel while they are many.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use troop::event::{Mode, ModeReason};
use troop::policy::AutoLimits;
use troop::supervise::Progress;
use troop::{Cluster, Event, Scheduling, Setup, WorkerHandle};
use troop_testkit::{
    TEST_TIMEOUT, Troop, at_once, free_port, node_program, number, shares, talk, wait_until,
};

fn rust<const N: usize>(args: [&str; N]) -> Setup {
    Setup::new().program(env!("CARGO_BIN_EXE_troop-fixture")).args(args)
}

fn node(text: &str) -> Setup {
    Setup::new().script(node_program("run.js")).args([text])
}

/// Limits that nothing but a flood exceeds, soon.
fn quick() -> AutoLimits {
    AutoLimits::default()
        .rate_per_worker(50)
        .hot_after(Duration::from_millis(40))
        .calm_after(Duration::from_millis(200))
}

/// Limits that any connection exceeds.
fn hot() -> AutoLimits {
    AutoLimits::default().max_rate(1).hot_after(Duration::from_millis(2))
}

fn auto(setup: Setup, limits: AutoLimits) -> Troop {
    let builder = Cluster::builder().scheduling(Scheduling::Auto).auto_limits(limits);
    Troop::start(builder.setup(setup))
}

async fn forks(troop: &mut Troop, count: usize) -> (Vec<WorkerHandle>, u16) {
    let (mut workers, mut port) = (Vec::new(), 0);
    for _ in 0..count {
        let worker = troop.fork().await;
        port = troop.listening(&worker).await;
        workers.push(worker);
    }
    (workers, port)
}

async fn mode(troop: &Troop) -> Mode {
    troop.cluster.snapshot().await.unwrap().listeners[0].mode.as_ref().unwrap().mode
}

/// Waits until a listener has this mode, and returns why.
async fn changes_to(troop: &mut Troop, expected: Mode) -> ModeReason {
    troop
        .until(&format!("{expected}"), |event| match event {
            Event::ModeChanged { mode, reason, .. } if *mode == expected => Some(*reason),
            _ => None,
        })
        .await
}

/// Clients that connect one after the other until they are dropped, and count who serves them. A
/// connection without an answer fails the test.
struct Flood {
    ends: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    clients: Vec<std::thread::JoinHandle<BTreeMap<u32, usize>>>,
}

impl Flood {
    fn new(port: u16, clients: usize) -> Flood {
        let (ends, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let client = |_| {
            let (ends, served) = (ends.clone(), served.clone());
            std::thread::spawn(move || {
                let mut by = BTreeMap::new();
                while !ends.load(Ordering::Relaxed) {
                    let answer = talk(([127, 0, 0, 1], port), "").expect("an answer");
                    *by.entry(number(&answer)).or_default() += 1;
                    served.fetch_add(1, Ordering::Relaxed);
                }
                by
            })
        };
        let clients = (0..clients).map(client).collect();
        Flood { ends, served, clients }
    }

    fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    /// Ends it, and returns how many connections each worker has served.
    async fn end(mut self) -> BTreeMap<u32, usize> {
        self.ends.store(true, Ordering::Relaxed);
        let clients = std::mem::take(&mut self.clients);
        let join = move || {
            let mut all = BTreeMap::new();
            for client in clients {
                for (worker, count) in client.join().expect("every connection is answered") {
                    *all.entry(worker).or_default() += count;
                }
            }
            all
        };
        tokio::task::spawn_blocking(join).await.unwrap()
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
    }
}

async fn handed(workers: &[WorkerHandle]) -> u64 {
    let mut sum = 0;
    for worker in workers {
        sum += worker.stats().await.handed;
    }
    sum
}

/// Opens so many connections at once, which stay open, and returns them by their worker.
fn burst(port: u16, count: usize) -> BTreeMap<u32, Vec<TcpStream>> {
    let connect = move || {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        (number(&line), reader.into_inner())
    };
    let clients: Vec<_> = (0..count).map(|_| std::thread::spawn(connect)).collect();
    let mut all: BTreeMap<u32, Vec<TcpStream>> = BTreeMap::new();
    for client in clients {
        let (worker, stream) = client.join().unwrap();
        all.entry(worker).or_default().push(stream);
    }
    all
}

async fn a_burst_of_long_connections_comes_out_even(setup: Setup) {
    let mut troop = auto(setup, AutoLimits::default());
    let (_workers, port) = forks(&mut troop, 4).await;
    let held = tokio::task::spawn_blocking(move || burst(port, 64)).await.unwrap();
    let counts: Vec<usize> = held.values().map(Vec::len).collect();
    assert_eq!(counts, [16; 4]);
    assert_eq!(mode(&troop).await, Mode::Turns);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_long_connections_comes_out_even_among_rust_workers() {
    a_burst_of_long_connections_comes_out_even(rust(["hold", "127.0.0.1:0"])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_long_connections_comes_out_even_among_unchanged_node_workers() {
    a_burst_of_long_connections_comes_out_even(node("hold(0, '127.0.0.1')")).await;
}

async fn a_flood_costs_the_primary_nothing_and_turns_come_back(setup: Setup) {
    let mut troop = auto(setup, quick());
    let (workers, port) = forks(&mut troop, 2).await;
    assert_eq!(shares(port, 3).await.values().sum::<usize>(), 3);
    assert_eq!(handed(&workers).await, 3, "few connections are handed over");
    let flood = Flood::new(port, 4);
    assert!(
        matches!(changes_to(&mut troop, Mode::Steered).await, ModeReason::Rate(rate) if rate >= 100)
    );
    let (handed_before, served_before) = (handed(&workers).await, flood.served());
    wait_until("many more connections", || flood.served() > served_before + 3000);
    // A sample of the connections tells how many there are.
    let through_primary = handed(&workers).await - handed_before;
    assert!(through_primary < 1500, "{through_primary} of 3000");
    let snapshot = troop.cluster.snapshot().await.unwrap();
    let shown = snapshot.listeners[0].mode.clone().unwrap();
    assert_eq!((snapshot.listeners[0].scheduling.as_str(), shown.mode), ("auto", Mode::Steered));
    assert!(shown.reason.contains("connections per second"), "{shown:?}");
    let served = flood.end().await;
    assert_eq!(served.len(), 2, "{served:?}");
    changes_to(&mut troop, Mode::Turns).await;
    assert_eq!(mode(&troop).await, Mode::Turns);
    let first = shares(port, 4).await;
    assert_eq!(first, BTreeMap::from([(1, 2), (2, 2)]), "exact turns again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_rust_workers_costs_the_primary_nothing_and_turns_come_back() {
    a_flood_costs_the_primary_nothing_and_turns_come_back(rust(["line", "127.0.0.1:0"])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_unchanged_node_workers_costs_the_primary_nothing_and_turns_come_back() {
    a_flood_costs_the_primary_nothing_and_turns_come_back(node("serve(0, '127.0.0.1')")).await;
}

async fn no_connection_is_lost_while_the_mode_changes_over_and_over(setup: Setup) {
    // Before the mode has lasted, the flood ends, and begins again.
    let limits = AutoLimits::default()
        .max_rate(50)
        .hot_after(Duration::from_millis(4))
        .calm_after(Duration::from_millis(4));
    let mut troop = auto(setup, limits);
    let (_workers, port) = forks(&mut troop, 2).await;
    let changed = |event: &Event| matches!(event, Event::ModeChanged { .. }).then_some(());
    let mut changes = 0;
    let flood = Flood::new(port, 3);
    // The program sets it, too.
    for round in 0..100 {
        let now = if round % 2 == 0 { Scheduling::Steered(None) } else { Scheduling::RoundRobin };
        assert_eq!(troop.cluster.set_scheduling(None, now).await.unwrap(), []);
        let before = flood.served();
        wait_until("further connections", || flood.served() > before + 5);
    }
    assert_eq!(troop.cluster.set_scheduling(None, Scheduling::Auto).await.unwrap(), []);
    let served = flood.end().await;
    assert_eq!(served.len(), 2, "{served:?}");
    while changes < 40 {
        let flood = Flood::new(port, 2);
        troop.until("a change of the mode", changed).await;
        flood.end().await;
        troop.until("a change of the mode", changed).await;
        changes += 2;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_connection_of_rust_workers_is_lost_while_the_mode_changes_over_and_over() {
    no_connection_is_lost_while_the_mode_changes_over_and_over(rust(["line", "127.0.0.1:0"])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_connection_of_unchanged_node_workers_is_lost_while_the_mode_changes_over_and_over() {
    no_connection_is_lost_while_the_mode_changes_over_and_over(node("serve(0, '127.0.0.1')")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_socket_in_the_group_sends_a_listener_back_to_turns_and_is_named() {
    let mut troop = auto(rust(["line", "127.0.0.1:0"]), hot());
    let (workers, port) = forks(&mut troop, 2).await;
    let flood = Flood::new(port, 2);
    changes_to(&mut troop, Mode::Steered).await;
    let intruder = troop_testkit::join_group(port);
    assert_eq!(changes_to(&mut troop, Mode::Turns).await, ModeReason::Foreign);
    let named = troop
        .until("the report", |event| match event {
            Event::NotSteered { reason, .. } => Some(reason.clone()),
            _ => None,
        })
        .await;
    assert!(named.contains(&format!("process {}", std::process::id())), "{named}");
    assert!(named.contains("handed over in turn"), "{named}");
    let (handed_before, served) = (handed(&workers).await, flood.served());
    wait_until("further connections", || flood.served() > served + 200);
    assert!(handed(&workers).await >= handed_before + 200, "all of them are handed over");
    assert!(intruder.accept().is_err(), "nothing went to the stranger");
    drop(intruder);
    changes_to(&mut troop, Mode::Steered).await;
    flood.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_with_a_node_worker_that_rejects_connections_stays_in_turns() {
    let limit = "if (cluster.worker.id === 1) s.maxConnections = 1";
    let mut troop = auto(node(&format!("const s = hold(0, '127.0.0.1'); {limit}")), quick());
    let (_workers, port) = forks(&mut troop, 2).await;
    let held = tokio::task::spawn_blocking(move || burst(port, 8)).await.unwrap();
    assert_eq!(held.values().map(Vec::len).collect::<Vec<_>>(), [1, 7]);
    // A worker that accepts by itself would close each of these at once.
    let flood = move || {
        let end = Instant::now() + Duration::from_millis(600);
        while Instant::now() < end {
            assert_eq!(burst(port, 4).keys().copied().collect::<Vec<_>>(), [2]);
        }
    };
    tokio::task::spawn_blocking(flood).await.unwrap();
    let shown = troop.cluster.snapshot().await.unwrap().listeners[0].mode.clone().unwrap();
    assert_eq!(shown.mode, Mode::Turns);
    assert!(shown.reason.contains("worker 1 limits"), "{shown:?}");
    drop(held);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_a_node_program_sets_is_known_before_it_is_reached() {
    for program in [
        "const s = hold(0, '127.0.0.1'); s.maxConnections = 5",
        "const s = net.createServer().listen(0, '127.0.0.1', () => { s.maxConnections = null; s.maxConnections = 5 })",
        "const s = http.createServer(); s.maxConnections = 5; s.listen(0, '127.0.0.1')",
    ] {
        let script =
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../npm/lib/moves.js");
        let mut troop = auto(node(program).preload(script), quick());
        let worker = troop.fork().await;
        troop.listening(&worker).await;
        let deadline = Instant::now() + TEST_TIMEOUT;
        loop {
            let listeners = troop.cluster.snapshot().await.unwrap().listeners;
            let shown = listeners[0].mode.clone().unwrap();
            if shown.reason.contains("worker 1 limits") {
                break;
            }
            assert!(Instant::now() < deadline, "{program}: {shown:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Reloads under load, in turns and with the kernel's choice, lose nothing, and each of two workers
/// whose predecessor has died serves.
async fn reloads_and_deaths_lose_nothing(program: impl Fn(u16) -> Setup) {
    for (limits, expected) in [
        (AutoLimits::default().max_rate(u32::MAX).rate_per_worker(u32::MAX), Mode::Turns),
        (hot(), Mode::Steered),
    ] {
        let port = free_port();
        let builder = Cluster::builder()
            .workers(2)
            .replace(at_once())
            .scheduling(Scheduling::Auto)
            .auto_limits(limits);
        let mut troop = Troop::start(builder.setup(program(port)));
        for _ in 0..2 {
            troop.until("listening", |e| matches!(e, Event::Listening { .. }).then_some(())).await;
        }
        let flood = Flood::new(port, 3);
        if expected == Mode::Steered {
            changes_to(&mut troop, Mode::Steered).await;
        }
        for _ in 0..3 {
            troop.cluster.reload().await.unwrap();
            assert_eq!(mode(&troop).await, expected);
        }
        let served = flood.end().await;
        assert!(served.len() >= 4, "{served:?}");
        // One dies while nobody is served: what comes to its socket goes to others.
        let workers = troop.cluster.workers();
        workers.iter().max_by_key(|worker| worker.id()).unwrap().kill(9).await.unwrap();
        let flood = Flood::new(port, 3);
        troop
            .until("the restart", |e| {
                matches!(e, Event::Supervision(Progress::Restarting { .. })).then_some(())
            })
            .await;
        let deadline = Instant::now() + TEST_TIMEOUT;
        while shares(port, 20).await.len() < 2 {
            assert!(Instant::now() < deadline, "no successor");
        }
        flood.end().await;
        troop.cluster.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reloads_and_deaths_of_rust_workers_lose_nothing_in_either_mode() {
    reloads_and_deaths_lose_nothing(|port| rust(["line", &format!("127.0.0.1:{port}")])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reloads_and_deaths_of_unchanged_node_workers_lose_nothing_in_either_mode() {
    reloads_and_deaths_lose_nothing(|port| node(&format!("serve({port}, '127.0.0.1')"))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_steered_is_handed_over_in_turn_without_a_report() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let mut troop = auto(rust(["unix", path.to_str().unwrap()]), AutoLimits::default());
    forks(&mut troop, 2).await;
    let ask = || {
        let mut answer = String::new();
        let mut stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
        std::io::Read::read_to_string(&mut stream, &mut answer).unwrap();
        answer
    };
    let (one, two) = (ask(), ask());
    assert!(one != two && one == ask() && two == ask());
    let snapshot = troop.cluster.snapshot().await.unwrap();
    assert_eq!(snapshot.listeners[0].scheduling, "round-robin");
    assert_eq!(snapshot.listeners[0].mode, None);
    // A socket that another process may have, too.
    let given = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = given.local_addr().unwrap().port();
    let mut troop = auto(rust(["line", &format!("127.0.0.1:{port}")]), hot());
    troop.cluster.offer(troop::activation::InheritedSocket::of(&given).unwrap()).unwrap();
    forks(&mut troop, 2).await;
    assert_eq!(shares(port, 40).await, BTreeMap::from([(1, 20), (2, 20)]));
    let snapshot = troop.cluster.snapshot().await.unwrap();
    assert_eq!(snapshot.listeners[0].scheduling, "round-robin");
    assert!(!troop.story().contains("steered"), "{}", troop.story());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_may_go_from_auto_to_any_policy_of_the_primary_and_back() {
    let mut troop = auto(node("serve(0, '127.0.0.1')"), AutoLimits::default());
    let (workers, port) = forks(&mut troop, 2).await;
    for policy in ["p2c", "sticky", "least-connections", "auto", "weighted", "auto"] {
        let later = troop.cluster.set_scheduling(None, policy.parse().unwrap()).await.unwrap();
        assert_eq!(later, [], "{policy}");
        let before = handed(&workers).await;
        assert_eq!(shares(port, 10).await.values().sum::<usize>(), 10);
        assert_eq!(handed(&workers).await, before + 10, "{policy}");
    }
    assert_eq!(troop.cluster.set_scheduling(None, Scheduling::Steered(None)).await.unwrap(), []);
    let before = handed(&workers).await;
    assert_eq!(shares(port, 40).await.len(), 2);
    assert_eq!(handed(&workers).await, before, "the kernel has chosen");
}
