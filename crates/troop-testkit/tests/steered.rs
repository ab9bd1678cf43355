//! Listeners that the kernel balances by the primary's program.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use troop::{Cluster, Event, Fork, Scheduling, Setup, WorkerHandle};
use troop_testkit::{TEST_TIMEOUT, Troop, ask, node_program, number, shares, talk, talk_from};

fn rust<const N: usize>(args: [&str; N]) -> Setup {
    Setup::new().program(env!("CARGO_BIN_EXE_troop-fixture")).args(args)
}
fn line() -> Setup {
    rust(["line", "127.0.0.1:0"])
}
fn node(text: &str) -> Setup {
    Setup::new().script(node_program("run.js")).args([text])
}

fn steered(setup: Setup) -> Troop {
    Troop::start(Cluster::builder().scheduling(Scheduling::Steered(None)).setup(setup))
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

fn signal(worker: &WorkerHandle, signal: Signal) {
    if !worker.is_dead() {
        let pid = rustix::process::Pid::from_raw(i32::try_from(worker.pid()).unwrap()).unwrap();
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Stops a worker, and waits until it stands still.
fn stop(worker: &WorkerHandle) {
    signal(worker, Signal::STOP);
    let path = format!("/proc/{}/stat", worker.pid());
    let stat = || std::fs::read_to_string(&path).unwrap_or_default();
    let is_stopped = || stat().rsplit(')').next().is_some_and(|s| s.starts_with(" T"));
    troop_testkit::wait_until("the worker stands still", is_stopped);
}

/// A worker that may be stopped at the end of the test, and must not survive it.
struct Stopped<'a>(&'a WorkerHandle);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        signal(self.0, Signal::KILL);
    }
}

async fn the_kernel_shares_connections_out(setup: Setup) {
    let mut troop = steered(setup);
    let (workers, port) = forks(&mut troop, 4).await;
    let even = shares(port, 400).await;
    assert!(even.len() == 4 && even.values().all(|share| (60..150).contains(share)), "{even:?}");
    for worker in &workers {
        assert_eq!(worker.stats().await.handed, 0, "nothing went through the primary");
    }
    workers[0].set_weight(0).await.unwrap();
    workers[1].set_weight(300).await.unwrap();
    let weighted = shares(port, 500).await;
    assert!(!weighted.contains_key(&1) && (240..360).contains(&weighted[&2]), "{weighted:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kernel_shares_connections_out_to_rust_workers() {
    the_kernel_shares_connections_out(line()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kernel_shares_connections_out_to_unchanged_node_workers() {
    the_kernel_shares_connections_out(node("serve(0, '127.0.0.1')")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_with_plain_threads_take_what_the_kernel_and_the_primary_give_them() {
    let mut troop = steered(rust(["blocking", "127.0.0.1:0"]));
    let (workers, port) = forks(&mut troop, 2).await;
    let served = shares(port, 60).await;
    assert_eq!(
        served.len(),
        2,
        "{served:?} {:?} {:?}",
        workers[0].stats().await,
        workers[1].stats().await
    );
    stop(&workers[0]);
    let waiting = clients(30, port).await;
    workers[0].kill(9).await.unwrap();
    are_served(waiting, 2).await;
    troop.cluster.disconnect().await.unwrap();
}

type Clients = Vec<tokio::task::JoinHandle<std::io::Result<String>>>;

/// Clients that connect at once, of which all have connected when this returns.
async fn clients(count: usize, port: u16) -> Clients {
    let (connected, mut all) =
        (std::sync::Arc::new(std::sync::Barrier::new(count + 1)), Vec::new());
    for _ in 0..count {
        let connected = connected.clone();
        all.push(tokio::task::spawn_blocking(move || {
            let stream = troop_testkit::connect_from([127, 0, 0, 1], ([127, 0, 0, 1], port));
            connected.wait();
            let mut answer = String::new();
            std::io::Read::read_to_string(&mut stream?, &mut answer)?;
            Ok(answer)
        }));
    }
    tokio::task::spawn_blocking(move || connected.wait()).await.unwrap();
    all
}

async fn are_served(clients: Clients, by: u32) {
    for client in clients {
        let answer = tokio::time::timeout(TEST_TIMEOUT, client)
            .await
            .expect("an answer in time")
            .unwrap()
            .expect("an answer");
        assert_eq!(number(&answer), by);
    }
}

async fn connections_that_wait_for_a_dead_worker_are_served_by_others(setup: Setup) {
    let mut troop = steered(setup);
    let (workers, port) = forks(&mut troop, 2).await;
    let stopped = Stopped(&workers[0]);
    stop(&workers[0]);
    // All of them go to its socket: the kernel still believes in it.
    workers[1].set_weight(0).await.unwrap();
    let waiting = clients(100, port).await;
    workers[1].set_weight(100).await.unwrap();
    workers[0].kill(9).await.unwrap();
    are_served(waiting, 2).await;
    drop(stopped);
    assert!(workers[1].stats().await.handed > 0, "the primary handed them over");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_wait_for_a_dead_rust_worker_are_served_by_others() {
    connections_that_wait_for_a_dead_worker_are_served_by_others(line()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_wait_for_a_dead_node_worker_are_served_by_other_unmodified_ones() {
    connections_that_wait_for_a_dead_worker_are_served_by_others(node("serve(0, '127.0.0.1')"))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_wait_for_a_single_worker_wait_for_its_successor() {
    let mut troop = steered(line());
    let (workers, port) = forks(&mut troop, 1).await;
    stop(&workers[0]);
    let waiting = clients(100, port).await;
    workers[0].kill(9).await.unwrap();
    troop.exit(&workers[0]).await;
    let more = clients(20, port).await;
    let successor = troop.fork().await;
    troop.listening(&successor).await;
    are_served(waiting, 2).await;
    are_served(more, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_are_under_way_when_a_worker_goes_are_finished() {
    let mut troop = steered(rust(["deferred", "127.0.0.1:0"]));
    let (workers, port) = forks(&mut troop, 3).await;
    for worker in &workers {
        // The kernel keeps a client among the unfinished handshakes until that has said something,
        // although it knows the last ACK.
        worker.send(&"defer").await.unwrap();
        assert_eq!(troop.message(worker).await, "deferred");
    }
    let connect = || troop_testkit::connect_from([127, 0, 0, 1], ([127, 0, 0, 1], port)).unwrap();
    let mut clients: Vec<_> = (0..90).map(|_| connect()).collect();
    tokio::time::sleep(Duration::from_millis(200)).await;
    for client in &clients {
        client.set_nonblocking(true).unwrap();
        assert!(
            client.peek(&mut [0]).is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock),
            "nobody has accepted it"
        );
        client.set_nonblocking(false).unwrap();
    }
    // One dies, one is disconnected without a successor, one is replaced by a successor that
    // listens before it leaves.
    workers[0].kill(9).await.unwrap();
    troop.exit(&workers[0]).await;
    workers[1].disconnect().unwrap();
    troop.exit(&workers[1]).await;
    let successor = troop.fork().await;
    troop.listening(&successor).await;
    workers[2].disconnect().unwrap();
    troop.exit(&workers[2]).await;
    let finish = move || {
        for client in &mut clients {
            std::io::Write::write_all(client, b"x").unwrap();
            let mut answer = [0; 2];
            std::io::Read::read_exact(client, &mut answer).expect("an answer");
            assert_eq!(&answer, b"4 ");
        }
    };
    tokio::task::spawn_blocking(finish).await.unwrap();
}

async fn a_hung_worker_is_detected(setup: Setup) {
    let mut troop = steered(setup);
    let (workers, port) = forks(&mut troop, 3).await;
    shares(port, 30).await;
    let hung = Stopped(&workers[1]);
    stop(hung.0);
    let before = Instant::now();
    // No client waits for long, although the primary is not notified.
    let served = shares(port, 300).await;
    assert!(!served.contains_key(&2), "{served:?}");
    assert!(before.elapsed() < Duration::from_secs(8), "{:?}", before.elapsed());
    let id = hung.0.id();
    let stalled = |e: &Event| match e {
        Event::Stalled { worker: w, .. } if w.id() == id => Some(true),
        Event::Resumed { worker: w, .. } if w.id() == id => Some(false),
        _ => None,
    };
    troop.until("the report", |e| stalled(e).filter(|stalled| *stalled)).await;
    let before = Instant::now();
    shares(port, 100).await;
    assert!(before.elapsed() < Duration::from_secs(3), "{:?}", before.elapsed());
    signal(hung.0, Signal::CONT);
    let deadline = Instant::now() + TEST_TIMEOUT;
    while !shares(port, 20).await.contains_key(&2) {
        assert!(Instant::now() < deadline, "it never gets connections again");
    }
    troop.until("the recovery", |e| stalled(e).filter(|stalled| !stalled)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_rust_worker_is_detected_by_its_queue() {
    a_hung_worker_is_detected(line()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_node_worker_is_detected_by_its_queue() {
    a_hung_worker_is_detected(node("serve(0, '127.0.0.1')")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_hangs_for_too_long_is_killed() {
    let builder = Cluster::builder()
        .scheduling(Scheduling::Steered(None))
        .hang_timeout(Some(Duration::from_secs(2)));
    let mut troop = Troop::start(builder.setup(line()));
    let (workers, port) = forks(&mut troop, 2).await;
    let _hung = Stopped(&workers[0]);
    stop(&workers[0]);
    let load = tokio::task::spawn_blocking(move || {
        let end = Instant::now() + Duration::from_secs(5);
        while Instant::now() < end {
            talk(([127, 0, 0, 1], port), "").unwrap();
        }
    });
    assert_eq!(troop.exit(&workers[0]).await, troop::event::ExitHow::Signal(9));
    load.await.unwrap();
}

/// Every one of these workers is reached through its own socket: when all others have no weight, it
/// gets all.
async fn have_their_own_sockets(
    these: &[WorkerHandle],
    all: &[WorkerHandle],
    port: u16,
) -> Result<(), String> {
    let mut result = Ok(());
    for worker in all {
        worker.set_weight(0).await.unwrap();
    }
    for worker in these {
        worker.set_weight(100).await.unwrap();
        let served = shares(port, 6).await;
        if served != BTreeMap::from([(worker.id().0, 6)]) {
            result = Err(format!("all of worker {}'s went to {served:?}", worker.id()));
        }
        worker.set_weight(0).await.unwrap();
    }
    for worker in all {
        worker.set_weight(100).await.unwrap();
    }
    result
}

async fn each_has_its_own_socket(workers: &[WorkerHandle], port: u16) {
    have_their_own_sockets(workers, workers, port).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn scaling_and_failures_misdirect_no_connection() {
    let mut troop = steered(line());
    let (mut workers, port) = forks(&mut troop, 3).await;
    each_has_its_own_socket(&workers, port).await;
    for round in 0..6 {
        // The middle one dies, two more start, and the first one is disconnected.
        let dead = workers.remove(workers.len() / 2);
        dead.kill(9).await.unwrap();
        troop.exit(&dead).await;
        each_has_its_own_socket(&workers, port).await;
        workers.extend(forks(&mut troop, 3).await.0);
        each_has_its_own_socket(&workers, port).await;
        if round % 2 == 0 {
            let gone = workers.remove(0);
            gone.disconnect().unwrap();
            troop.exit(&gone).await;
            each_has_its_own_socket(&workers, port).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_worker_of_two_hundred_is_reached() {
    let mut troop = steered(line());
    let (workers, port) = forks(&mut troop, 200).await;
    let served = shares(port, 4000).await;
    assert!(served.len() > 195, "{} of {}", served.len(), workers.len());
    have_their_own_sockets(&workers[190..], &workers, port).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_shuts_its_socket_down_harms_no_other_worker() {
    let mut troop = steered(rust(["shut", "127.0.0.1:0"]));
    let (workers, port) = forks(&mut troop, 4).await;
    each_has_its_own_socket(&workers, port).await;
    // Its runtime goes round in circles from then on, which is its own affair.
    let shut = Stopped(&workers[1]);
    shut.0.send(&"shut").await.unwrap();
    troop.message(shut.0).await;
    // Until the primary has looked, the kernel's numbers are others than it believes, and all the
    // same everybody is answered.
    let deadline = Instant::now() + TEST_TIMEOUT;
    while let Err(who) = have_their_own_sockets(&workers, &workers, port).await {
        assert!(Instant::now() < deadline, "{who}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_cannot_draw_the_connections_of_others_to_itself() {
    let mut troop = steered(rust(["greedy", "127.0.0.1:0"]));
    let (workers, port) = forks(&mut troop, 3).await;
    workers[2].set_weight(0).await.unwrap();
    // It tries to give the kernel a program that chooses its own socket, and then at least to take
    // ours away.
    workers[1].send(&"be greedy").await.unwrap();
    assert_eq!(troop.message(&workers[1]).await, "Operation not permitted (os error 1)");
    // Without a program the kernel would go on giving some to the one that is to have none. Nothing
    // here makes the primary write a new one: it looks by itself.
    let deadline = Instant::now() + TEST_TIMEOUT;
    while shares(port, 100).await.contains_key(&3) {
        assert!(Instant::now() < deadline, "the program is not put back");
    }
    assert!(shares(port, 300).await[&2] < 220, "and it is no program of the greedy one");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_port_has_one_cluster() {
    let mut first = steered(line());
    let (_, port) = forks(&mut first, 2).await;
    for scheduling in ["steered", "auto", "round-robin", "shared"] {
        let setup = rust(["tries", &format!("127.0.0.1:{port}")]);
        let mut second =
            Troop::start(Cluster::builder().scheduling(scheduling.parse().unwrap()).setup(setup));
        let worker = second.fork().await;
        worker.send(&"try").await.unwrap();
        let answer = second.message(&worker).await;
        assert!(
            answer["error"].as_str().is_some_and(|e| e.contains("Address already in use")),
            "{scheduling}: {answer}"
        );
    }
    assert_eq!(shares(port, 40).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_socket_in_the_group_is_reported_and_gets_no_connections() {
    let mut troop = steered(line());
    let (mut workers, port) = forks(&mut troop, 2).await;
    let intruder = troop_testkit::join_group(port);
    let reported = |e: &Event| match e {
        Event::NotSteered { address: at, reason: why, .. } => Some(format!("{at}: {why}")),
        _ => None,
    };
    // A third worker would have the wrong number, so it shares a socket.
    workers.push(troop.fork().await);
    assert_eq!(troop.listening(&workers[2]).await, port);
    let report = troop.until("the report", reported).await;
    assert!(
        report.starts_with("127.0.0.1:0: process ")
            && report.contains(&format!("process {}", std::process::id())),
        "{report}"
    );
    let served = shares(port, 200).await;
    assert_eq!(served.len(), 3, "{served:?}");
    assert!(intruder.accept().is_err(), "nothing went to the stranger");
    drop(intruder);
}

#[tokio::test(flavor = "multi_thread")]
async fn both_families_at_once_are_steered_too() {
    for (scheduling, spread) in [("steered", true), ("steered:sticky", false)] {
        for setup in [rust(["line", "0"]), node("serve(0)")] {
            let mut troop = Troop::start(
                Cluster::builder().scheduling(scheduling.parse().unwrap()).setup(setup),
            );
            let (_, port) = forks(&mut troop, 3).await;
            for host in ["127.0.0.1", "::1"] {
                let at = std::net::SocketAddr::new(host.parse().unwrap(), port);
                let answers: BTreeSet<u32> =
                    (0..40).map(|_| number(&talk(at, "").unwrap())).collect();
                assert_eq!(answers.len(), if spread { 3 } else { 1 }, "{scheduling} {host}");
            }
            if !spread {
                // Clients are told apart although the socket is of the other family.
                let from = |n| talk_from([127, 0, 3, n], ([127, 0, 0, 1], port), b"").unwrap();
                let answers: BTreeSet<Vec<u8>> = (1..50).map(from).collect();
                assert_eq!(answers.len(), 3);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_may_have_several_listeners() {
    for setup in [
        rust(["two", "127.0.0.1:0"]),
        node("serve(0, '127.0.0.1'); setTimeout(() => serve(0, '127.0.0.1'), 200)"),
    ] {
        let mut troop = steered(setup);
        let (one, two) = (troop.fork().await, troop.fork().await);
        for worker in [&one, &one, &two, &two] {
            let port = troop.listening(worker).await;
            assert!(!ask(port, "").await.unwrap().is_empty());
            if worker.id() == two.id() {
                assert_eq!(shares(port, 40).await.len(), 2);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn listeners_that_cannot_be_steered_are_handed_over_and_reported_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    for setup in
        [rust(["unix", path.to_str().unwrap()]), node(&format!("serve('{}')", path.display()))]
    {
        let mut troop = steered(setup);
        forks(&mut troop, 2).await;
        let mut answers = BTreeSet::new();
        for _ in 0..4 {
            let mut answer = String::new();
            std::io::Read::read_to_string(&mut UnixStream::connect(&path).unwrap(), &mut answer)
                .unwrap();
            answers.insert(answer);
        }
        assert_eq!(answers.len(), 2);
        troop
            .until("the report", |e| {
                matches!(e, Event::NotSteered { reason: why, .. } if why.contains("Unix"))
                    .then_some(())
            })
            .await;
        assert_eq!(troop.story().matches("Unix").count(), 1, "{}", troop.story());
        troop.cluster.disconnect().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_descriptor_of_the_primary_can_be_steered() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut troop = steered(node(&format!("serve({{ fd: {} }})", listener.as_raw_fd())));
    troop.cluster.offer(troop::activation::InheritedSocket::of(&listener).unwrap()).unwrap();
    for _ in 0..3 {
        let worker = troop.fork().await;
        troop.listening(&worker).await;
    }
    let served = shares(port, 60).await;
    assert_eq!(served.len(), 3, "{served:?}");
    for worker in troop.cluster.workers() {
        assert_eq!(worker.stats().await.handed, 0);
    }
}

fn udp(socket: &UdpSocket, port: u16) -> u32 {
    socket.send_to(b"hello", ("127.0.0.1", port)).unwrap();
    let mut buffer = [0; 100];
    let n = socket.recv(&mut buffer).unwrap_or_else(|e| panic!("no answer: {e}"));
    number(std::str::from_utf8(&buffer[..n]).unwrap().strip_prefix("hello ").unwrap())
}

fn udp_client() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_of_one_flow_stay_with_one_worker() {
    for setup in [rust(["udp", "127.0.0.1:0"]), node("echo('udp4', 0, '127.0.0.1')")] {
        let mut troop = steered(setup);
        let (workers, port) = forks(&mut troop, 3).await;
        let flows: Vec<UdpSocket> = (0..30).map(|_| udp_client()).collect();
        let before: Vec<u32> = flows.iter().map(|flow| udp(flow, port)).collect();
        assert_eq!(before.iter().collect::<BTreeSet<_>>().len(), 3, "{before:?}");
        let again: Vec<u32> = flows.iter().map(|flow| udp(flow, port)).collect();
        assert_eq!(before, again);
        workers[1].kill(9).await.unwrap();
        troop.exit(&workers[1]).await;
        let without: Vec<u32> = flows.iter().map(|flow| udp(flow, port)).collect();
        assert!(
            before.iter().zip(&without).all(|(b, w)| b == w || *b == 2),
            "only those of the dead one move"
        );
        let successor = troop.fork().await;
        troop.listening(&successor).await;
        let back: Vec<u32> = flows.iter().map(|flow| udp(flow, port)).collect();
        let expected: Vec<u32> = before.iter().map(|w| if *w == 2 { 4 } else { *w }).collect();
        assert_eq!(back, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_worker_gets_less() {
    // Each connection takes 20 ms, or 80, during which nothing else happens there: long beside the
    // time for which a worker waits for a processor.
    let text = "const time = process.env.SLOW ? 80 : 20;
    const pause = new Int32Array(new SharedArrayBuffer(4));
    watched(net.createServer((socket) => {
        Atomics.wait(pause, 0, 0, time);
        socket.end(`${me}\\n`);
    })).listen(0, '127.0.0.1')";
    for scheduling in ["steered", "least-connections", "p2c"] {
        let mut troop = Troop::start(
            Cluster::builder().scheduling(scheduling.parse().unwrap()).setup(node(text)),
        );
        let slow = troop.cluster.fork(Fork::new().env("SLOW", "1")).await.unwrap();
        let port = troop.listening(&slow).await;
        forks(&mut troop, 3).await;
        // More clients than it takes to keep all of them busy.
        let load = |seconds| {
            let threads: Vec<_> = (0..24)
                .map(|_| {
                    std::thread::spawn(move || {
                        let (end, mut shares) =
                            (Instant::now() + Duration::from_secs(seconds), BTreeMap::new());
                        while Instant::now() < end {
                            *shares
                                .entry(number(&talk(([127, 0, 0, 1], port), "").unwrap()))
                                .or_insert(0usize) += 1;
                        }
                        shares
                    })
                })
                .collect();
            threads.into_iter().flat_map(|t| t.join().unwrap()).fold(
                BTreeMap::new(),
                |mut all, (worker, share)| {
                    *all.entry(worker).or_insert(0) += share;
                    all
                },
            )
        };
        tokio::task::block_in_place(|| load(2));
        let shares = tokio::task::block_in_place(|| load(3));
        let (slow, all) = (shares[&1], shares.values().sum::<usize>());
        // A quarter of the others' would be one thirteenth.
        assert!(slow * 7 < all, "{scheduling}: {slow} of {all}: {shares:?}");
    }
}
