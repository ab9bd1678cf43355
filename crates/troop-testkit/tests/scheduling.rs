//! Policies of connections that the primary hands over.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use troop::policy::{Connection, Policy, WorkerView};
use troop::supervise::Progress;
use troop::{Cluster, Event, Fork, Scheduling, Setup, WorkerHandle, WorkerId};
use troop_testkit::{TEST_TIMEOUT, Troop, at_once, node_program, number, shares};

fn fixture<const N: usize>(args: [&str; N]) -> Setup {
    Setup::new().program(env!("CARGO_BIN_EXE_troop-fixture")).args(args)
}

fn js(text: &str) -> Setup {
    Setup::new().script(node_program("run.js")).args([text])
}

fn under(scheduling: &str, setup: Setup) -> Troop {
    Troop::start(Cluster::builder().scheduling(scheduling.parse().unwrap()).setup(setup))
}

async fn forks<const N: usize>(troop: &mut Troop) -> ([WorkerHandle; N], u16) {
    weighted(troop, [None; N]).await
}

async fn weighted<const N: usize>(
    troop: &mut Troop,
    weights: [Option<u32>; N],
) -> ([WorkerHandle; N], u16) {
    let (mut workers, mut port) = (Vec::new(), 0);
    for weight in weights {
        let fork = weight.map_or(Fork::new(), |weight| Fork::new().weight(weight));
        let worker = troop.cluster.fork(fork).await.unwrap();
        port = troop.listening(&worker).await;
        workers.push(worker);
    }
    (workers.try_into().unwrap(), port)
}

/// Returns a connection that stays open, and the worker that serves it.
fn open(port: u16) -> (BufReader<TcpStream>, u32) {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    (reader, number(&line))
}

/// Waits until the primary believes that a worker has this many connections open.
async fn has_open(worker: &WorkerHandle, count: u32) {
    let deadline = Instant::now() + TEST_TIMEOUT;
    while worker.stats().await.open != count {
        assert!(Instant::now() < deadline, "{:?}", worker.stats().await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_are_kept_exactly_and_can_be_changed() {
    let mut troop = under("weighted", fixture(["line", "127.0.0.1:0"]));
    let ([canary, ..], port) = weighted(&mut troop, [Some(20), None, None]).await;
    let first = shares(port, 220).await;
    assert!(first[&1].abs_diff(20) <= 1 && first[&2].abs_diff(100) <= 1, "{first:?}");
    canary.set_weight(100).await.unwrap();
    let equal = shares(port, 90).await;
    assert!(equal.values().all(|share| share.abs_diff(30) <= 1), "{equal:?}");
    canary.set_weight(0).await.unwrap();
    assert!(!shares(port, 40).await.contains_key(&1));
}

async fn the_least_busy_worker_is_chosen(scheduling: &str, setup: Setup) {
    let mut troop = under(scheduling, setup);
    let ([one, two], port) = forks(&mut troop).await;
    let mut held: Vec<_> = (0..12).map(|_| open(port)).collect();
    let of = |who: u32, held: &[(BufReader<TcpStream>, u32)]| {
        held.iter().filter(|(_, w)| *w == who).count()
    };
    assert_eq!((of(1, &held), of(2, &held)), (6, 6));
    // All of the first worker's end; the next ones are its own until it has as many as the other.
    held.retain(|(_, who)| *who == 2);
    has_open(&one, 0).await;
    has_open(&two, 6).await;
    held.extend((0..5).map(|_| open(port)));
    assert_eq!((of(1, &held), of(2, &held)), (5, 6), "{scheduling}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rust_worker_with_fewer_open_connections_gets_the_next_ones() {
    for scheduling in ["least-connections", "p2c"] {
        the_least_busy_worker_is_chosen(scheduling, fixture(["hold", "127.0.0.1:0"])).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn open_connections_of_an_unmodified_node_worker_are_estimated_by_its_descriptors() {
    for scheduling in ["least-connections", "p2c"] {
        the_least_busy_worker_is_chosen(scheduling, js("hold(0, '127.0.0.1')")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_event_of_an_exit_says_no_estimate_of_open_connections() {
    let builder = Cluster::builder()
        .scheduling("least-connections".parse().unwrap())
        .setup(js("hold(0, '127.0.0.1')"))
        .workers(1)
        .grace(Duration::from_millis(200));
    let mut troop = Troop::start(builder);
    let (worker, port) = troop
        .until("listening", |event| match event {
            Event::Listening { worker, address, .. } => {
                Some((worker.clone(), u16::try_from(address.port?).ok()?))
            }
            _ => None,
        })
        .await;
    let _held = (open(port), open(port));
    has_open(&worker, 2).await;
    drop(troop.cluster.stop());
    let text = troop
        .until("exit", |event| matches!(event, Event::Exit { .. }).then(|| event.to_string()))
        .await;
    // Only the worker knows which of them are closed.
    assert!(text.contains("was ended by troop: signal SIG") && !text.contains(" open"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_that_a_program_reports_counts_like_connections() {
    for (scheduling, setup) in [
        ("least-connections", fixture(["busy", "127.0.0.1:0"])),
        (
            "p2c",
            js(
                "serve(0, '127.0.0.1'); process.on('message', (load) => tell({ cmd: 'NODE_TROOP', act: 'load', load }))",
            ),
        ),
    ] {
        let mut troop = under(scheduling, setup);
        let ([one, _two], port) = forks(&mut troop).await;
        let deadline = Instant::now() + TEST_TIMEOUT;
        while one.stats().await.load == 0 {
            assert!(Instant::now() < deadline);
            one.send(&1000).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(one.stats().await.load, 1000);
        assert_eq!(shares(port, 20).await, BTreeMap::from([(2, 20)]), "{scheduling}");
    }
}

/// Sends clients to one worker or the other by their port. (Halved, because the kernel prefers even
/// ones.)
#[derive(Debug, Default)]
struct ByPort {
    workers: Vec<WorkerId>,
}

impl Policy for ByPort {
    fn update(&mut self, worker: WorkerView) {
        if !self.workers.contains(&worker.worker) {
            self.workers.push(worker.worker);
        }
    }

    fn remove(&mut self, worker: WorkerId) {
        self.workers.retain(|w| *w != worker);
    }

    fn pick(&mut self, connection: &Connection) -> Option<WorkerId> {
        let port = usize::from(connection.peer.map_or(0, |peer| peer.port() / 2));
        self.workers.get(port % self.workers.len().max(1)).copied()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_can_use_a_custom_policy() {
    let scheduling = Scheduling::custom(ByPort::default);
    let mut troop = Troop::start(
        Cluster::builder().scheduling(scheduling).setup(fixture(["line", "127.0.0.1:0"])),
    );
    let ([_, two], port) = forks(&mut troop).await;
    let from = |half: u16| loop {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        if stream.local_addr().unwrap().port() / 2 % 2 == half {
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).unwrap();
            return number(&line);
        }
    };
    for _ in 0..10 {
        assert_eq!((from(0), from(1)), (1, 2));
    }
    two.kill(9).await.unwrap();
    troop.exit(&two).await;
    assert_eq!((from(0), from(1)), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callback_chooses_the_worker_for_each_connection() {
    let (questions, asked) = std::sync::mpsc::channel();
    let wait = Duration::from_millis(300);
    let scheduling = Scheduling::callback(wait, move |question| questions.send(question).unwrap());
    let mut troop = Troop::start(
        Cluster::builder().scheduling(scheduling).setup(fixture(["line", "127.0.0.1:0"])),
    );
    let ([one, two], port) = forks(&mut troop).await;
    let served = async |answer: Option<Option<WorkerId>>| {
        let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", port)).unwrap());
        let question = asked.recv_timeout(TEST_TIMEOUT).unwrap();
        assert_eq!(question.peer, Some(stream.get_ref().local_addr().unwrap()));
        assert_eq!(question.listener.port, Some(i64::from(port)));
        assert!(question.workers.iter().all(|worker| worker.ready), "{question:?}");
        let mut unanswered = None;
        match answer {
            Some(Some(worker)) => question.assign(worker),
            Some(None) => drop(question),
            None => unanswered = Some(question),
        }
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        // Too late, and for nothing.
        if let Some(question) = unanswered {
            question.assign(one.id());
        }
        number(&line)
    };
    for worker in [&one, &two, &two, &one, &one] {
        assert_eq!(served(Some(Some(worker.id()))).await, worker.id().0);
    }
    // A program that passes, does not answer, or names no worker leaves the choice to turns.
    let mut turns = [
        served(Some(None)).await,
        served(None).await,
        served(Some(Some(WorkerId(9)))).await,
        served(Some(None)).await,
    ];
    turns.sort_unstable();
    assert_eq!(turns, [1, 1, 2, 2]);
    // Without an answer, connections wait for that long, not for ever, and not one after the other.
    let begin = Instant::now();
    let mut clients: Vec<_> =
        (0..20).map(|_| BufReader::new(TcpStream::connect(("127.0.0.1", port)).unwrap())).collect();
    for client in &mut clients {
        client.read_line(&mut String::new()).unwrap();
    }
    assert!(begin.elapsed() >= wait);
    assert_eq!(asked.try_iter().count(), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_question_is_decided_by_round_robin() {
    // Longer than any client waits.
    let scheduling = Scheduling::callback(10 * TEST_TIMEOUT, drop);
    let mut troop = Troop::start(
        Cluster::builder().scheduling(scheduling).setup(fixture(["line", "127.0.0.1:0"])),
    );
    let (_workers, port) = forks::<2>(&mut troop).await;
    assert_eq!(shares(port, 20).await, BTreeMap::from([(1, 10), (2, 10)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scheduling_of_an_open_listener_can_be_changed() {
    // A fork is given a weight only where something goes by weights.
    let mut troop = under("weighted", fixture(["line", "127.0.0.1:0"]));
    let (_, port) = weighted(&mut troop, [Some(300), None]).await;
    assert_eq!(troop.cluster.set_scheduling(None, Scheduling::RoundRobin).await.unwrap(), []);
    assert_eq!(shares(port, 40).await, BTreeMap::from([(1, 20), (2, 20)]));
    assert_eq!(troop.cluster.set_scheduling(None, Scheduling::Weighted).await.unwrap(), []);
    let weighted = shares(port, 40).await;
    assert!(weighted[&1].abs_diff(30) <= 1, "{weighted:?}");
    // For another listener this changes nothing here.
    let other = troop
        .cluster
        .set_scheduling(Some("1.2.3.4:80".parse().unwrap()), Scheduling::RoundRobin)
        .await;
    assert_eq!(other.unwrap(), []);
    assert!(shares(port, 40).await[&1].abs_diff(30) <= 1);
    troop
        .cluster
        .set_scheduling(Some("127.0.0.1:0".parse().unwrap()), Scheduling::RoundRobin)
        .await
        .unwrap();
    assert_eq!(shares(port, 40).await, BTreeMap::from([(1, 20), (2, 20)]));
    // What the workers' sockets depend on cannot be changed under them.
    let later = troop
        .cluster
        .set_scheduling(Some("127.0.0.1:0".parse().unwrap()), Scheduling::Steered(None))
        .await
        .unwrap();
    assert_eq!(later.iter().map(ToString::to_string).collect::<Vec<_>>(), ["127.0.0.1:0"]);
    assert_eq!(shares(port, 40).await, BTreeMap::from([(1, 20), (2, 20)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn supervised_workers_have_the_weights_of_their_slots() {
    let builder = Cluster::builder()
        .workers(3)
        .replace(at_once())
        .weights([50, 150])
        .scheduling(Scheduling::Weighted);
    let mut troop = Troop::start(builder.setup(fixture(["line", "127.0.0.1:0"])));
    let (mut port, mut slots) = (0, BTreeMap::new());
    for _ in 0..3 {
        let listening = |e: &Event| match e {
            Event::Listening { worker: w, address: at, .. } => {
                Some((w.clone(), u16::try_from(at.port?).ok()?))
            }
            _ => None,
        };
        let (worker, at) = troop.until("listening", listening).await;
        (port, slots) = (at, slots.into_iter().chain([(worker.id().0, worker.slot())]).collect());
    }
    let by_slot = |shares: BTreeMap<u32, usize>, slots: &BTreeMap<u32, u32>| -> Vec<usize> {
        let mut all: Vec<_> =
            shares.into_iter().map(|(worker, share)| (slots[&worker], share)).collect();
        all.sort_unstable();
        all.into_iter().map(|(_, share)| share).collect()
    };
    let first = by_slot(shares(port, 60).await, &slots);
    assert!(
        first.iter().zip([10, 30, 20]).all(|(share, expected)| share.abs_diff(expected) <= 1),
        "{first:?}"
    );
    // Successors have their slots, and so their weights.
    let reload = troop.cluster.reload();
    troop
        .until("the reload", |e| {
            matches!(e, Event::Supervision(Progress::ReloadFinished)).then_some(())
        })
        .await;
    reload.await.unwrap();
    let slots = troop.cluster.workers().iter().map(|w| (w.id().0, w.slot())).collect();
    let second = by_slot(shares(port, 60).await, &slots);
    assert!(
        second.iter().zip([10, 30, 20]).all(|(share, expected)| share.abs_diff(expected) <= 1),
        "{second:?}"
    );
}
