//! Unchanged Node workers under our primary: their listeners, and the distribution of connections.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod listening;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use troop::activation::InheritedSocket;
use troop::event::{Address, AddressType, ExitHow};
use troop::{Cluster, Event, Scheduling, Setup, WorkerHandle};
use troop_testkit::{TEST_TIMEOUT, Troop, free_port, get, node_program, talk, wait_until};

/// Whatever the scheduling, a Node program must see the same.
fn every_scheduling() -> [Scheduling; 9] {
    [
        "round-robin",
        "auto",
        "shared",
        "steered",
        "steered:sticky",
        "least-connections",
        "p2c",
        "weighted",
        "sticky:cookie=sid,wait=50",
    ]
    .map(|text| text.parse().unwrap())
}

/// A worker that runs this text.
fn js(text: impl Into<String>) -> Setup {
    Setup::new().script(node_program("run.js")).args([text.into()])
}

fn under(scheduling: Scheduling, setup: Setup) -> Troop {
    Troop::start(Cluster::builder().scheduling(scheduling).setup(setup))
}

fn local(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

/// Returns the worker that serves the next connection.
fn served(port: u16) -> String {
    talk(local(port), "").unwrap()
}

fn name(worker: &WorkerHandle) -> String {
    format!("{} {}\n", worker.id(), worker.pid())
}

/// Returns a connection that stays open, and the worker that serves it.
fn open(port: u16) -> (BufReader<TcpStream>, String) {
    let stream = TcpStream::connect_timeout(&local(port), TEST_TIMEOUT).unwrap();
    stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    (reader, line)
}

async fn listening_at(troop: &mut Troop, worker: &WorkerHandle) -> Address {
    let what = |event: &Event| match event {
        Event::Listening { worker: w, address: at, .. } if w == worker => Some(at.clone()),
        _ => None,
    };
    troop.until("listening", what).await
}

async fn forks<const N: usize>(troop: &mut Troop) -> ([WorkerHandle; N], u16) {
    let mut workers = Vec::new();
    let mut ports = BTreeSet::new();
    for _ in 0..N {
        workers.push(troop.fork().await);
    }
    for worker in &workers {
        ports.insert(troop.listening(worker).await);
    }
    assert_eq!(ports.len(), 1, "all workers have the same port");
    (workers.try_into().unwrap(), ports.pop_first().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_alternate_exactly_between_http_workers() {
    let mut troop = Troop::with(Setup::new().script(node_program("http.js")).args(["0"]));
    let (workers, port) = forks::<2>(&mut troop).await;
    let mut answers = Vec::new();
    for _ in 0..10 {
        answers.push(get(port, "/").await.unwrap());
    }
    let names: BTreeSet<_> = workers.iter().map(|w| name(w).trim().to_owned()).collect();
    assert_eq!(answers.iter().cloned().collect::<BTreeSet<_>>(), names);
    assert!(answers.windows(2).all(|pair| pair[0] != pair[1]), "{answers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_come_in_nodes_order() {
    let mut troop = Troop::with(js("process.on('message', (m) => tell(m)); serve(0, '127.0.0.1')"));
    let worker = troop.fork().await;
    let mut names = Vec::new();
    while names.last() != Some(&"exit") {
        let event = tokio::time::timeout(TEST_TIMEOUT, troop.events.recv()).await.unwrap().unwrap();
        names.push(match &event {
            Event::Setup { .. } => "setup",
            Event::Fork { .. } => "fork",
            Event::Online { .. } => "online",
            Event::Listening { .. } => "listening",
            Event::Message { .. } => "message",
            Event::Disconnect { .. } => "disconnect",
            Event::Exit { .. } => "exit",
            other => panic!("{other}"),
        });
        match event {
            Event::Listening { .. } => worker.send("hello").await.unwrap(),
            Event::Message { .. } => worker.disconnect().unwrap(),
            _ => {}
        }
    }
    let own: Vec<_> = names.into_iter().skip_while(|n| *n == "setup").collect();
    assert_eq!(own, ["fork", "online", "listening", "message", "disconnect", "exit"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn udp_workers_share_a_socket() {
    for scheduling in every_scheduling() {
        for (family, host) in [("udp4", "127.0.0.1"), ("udp6", "::1")] {
            let mut troop = under(scheduling.clone(), js(format!("echo('{family}', 0, '{host}')")));
            let (workers, port) = forks::<2>(&mut troop).await;
            let client = UdpSocket::bind((host, 0)).unwrap();
            client.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
            for _ in 0..10 {
                client.send_to(b"hello", (host, port)).unwrap();
                let mut buffer = [0; 100];
                let n = client.recv(&mut buffer).unwrap();
                let answer = String::from_utf8_lossy(&buffer[..n]).into_owned();
                assert!(workers.iter().any(|w| answer == format!("hello {}", name(w))), "{answer}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_udp_port_of_another_program_is_an_error_in_the_worker() {
    let other = UdpSocket::bind(local(0)).unwrap();
    let mut troop = Troop::with(js(format!(
        "echo('udp4', {}, '127.0.0.1')",
        other.local_addr().unwrap().port()
    )));
    let worker = troop.fork().await;
    assert_eq!(troop.message(&worker).await, json!({"error": "EADDRINUSE"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn http_workers_serve_on_a_shared_socket() {
    let http = Setup::new().script(node_program("http.js")).args(["0"]);
    let mut troop = under(Scheduling::Shared, http);
    let (workers, port) = forks::<2>(&mut troop).await;
    for _ in 0..10 {
        let answer = get(port, "/").await.unwrap();
        assert!(workers.iter().any(|w| name(w).trim() == answer), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_a_full_worker_rejects_move_on_to_others() {
    let limit = "if (cluster.worker.id === 1) s.maxConnections = 1";
    let mut troop = Troop::with(js(format!("const s = hold(0, '127.0.0.1'); {limit}")));
    let ([one, two], port) = forks(&mut troop).await;
    let open: Vec<_> = (0..8).map(|_| open(port)).collect();
    let count = |worker| open.iter().filter(|(_, who)| *who == name(worker)).count();
    assert_eq!((count(&one), count(&two)), (1, 7));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_all_reject_waits_until_one_has_room() {
    let mut troop = Troop::with(js("const s = hold(0, '127.0.0.1'); s.maxConnections = 1"));
    let (_, port) = forks::<2>(&mut troop).await;
    let (first, who) = open(port);
    let (_second, other) = open(port);
    assert_ne!(who, other);
    let third = TcpStream::connect(local(port)).unwrap();
    third.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut third = BufReader::new(third);
    let mut line = String::new();
    assert!(third.read_line(&mut line).is_err(), "nobody had room, but {line:?} answered");
    third.get_ref().set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    drop(first);
    third.read_line(&mut line).unwrap();
    assert_eq!(line, who);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_in_flight_to_a_worker_that_dies_is_re_dispatched() {
    let mut troop = Troop::with(js("serve(0, '127.0.0.1')"));
    let ([one, two], port) = forks(&mut troop).await;
    // It cannot answer, and does not know yet.
    one.kill(libc::SIGSTOP).await.unwrap();
    wait_until("the worker's halt", || {
        std::fs::read_to_string(format!("/proc/{}/stat", one.pid()))
            .is_ok_and(|s| s.contains(") T "))
    });
    let clients: Vec<_> = (0..6).map(|_| std::thread::spawn(move || served(port))).collect();
    wait_until("all but the stopped worker's connections", || {
        clients.iter().filter(|c| c.is_finished()).count() >= 3
    });
    one.kill(libc::SIGKILL).await.unwrap();
    for client in clients {
        assert_eq!(client.join().unwrap(), name(&two));
    }
    assert_eq!(troop.exit(&one).await, ExitHow::Signal(libc::SIGKILL));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_forked_for_the_last_one_that_died_serves_the_same_port() {
    for scheduling in every_scheduling() {
        let port = free_port();
        let mut troop = under(scheduling.clone(), js(format!("serve({port}, '127.0.0.1')")));
        let one = troop.fork().await;
        assert_eq!(troop.listening(&one).await, port);
        one.kill(libc::SIGKILL).await.unwrap();
        troop.exit(&one).await;
        let two = troop.fork().await;
        assert_eq!(troop.listening(&two).await, port);
        assert_eq!(served(port), name(&two));
        troop.cluster.disconnect().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn node_and_rust_workers_serve_one_port_in_turn() {
    let port = free_port();
    let mut troop = Troop::with(js(format!("serve({port})")));
    let node = troop.fork().await;
    assert_eq!(troop.listening(&node).await, port);
    // A script is not taken back by a change of the program; so the Rust worker's face stands where
    // the script stood.
    let rust = Setup::new()
        .program(env!("CARGO_BIN_EXE_troop-fixture"))
        .script("line")
        .args([format!(":{port}")]);
    troop.cluster.setup(rust).unwrap();
    let rust = troop.fork().await;
    assert_eq!(troop.listening(&rust).await, port);
    let answers: Vec<String> = (0..6).map(|_| served(port)).collect();
    assert!(answers.windows(2).all(|pair| pair[0] != pair[1]), "{answers:?}");
    assert_eq!(
        answers.into_iter().collect::<BTreeSet<_>>(),
        BTreeSet::from([name(&node), name(&rust)])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn node_and_rust_workers_share_one_socket() {
    let port = free_port();
    let mut troop = under(Scheduling::Shared, js(format!("serve({port})")));
    let node = troop.fork().await;
    assert_eq!(troop.listening(&node).await, port);
    let rust = Setup::new()
        .program(env!("CARGO_BIN_EXE_troop-fixture"))
        .script("line")
        .args([format!(":{port}")]);
    troop.cluster.setup(rust).unwrap();
    let rust = troop.fork().await;
    assert_eq!(troop.listening(&rust).await, port);
    // The remaining worker serves.
    node.disconnect().unwrap();
    assert_eq!(troop.exit(&node).await, ExitHow::Code(0));
    assert_eq!(served(port), name(&rust));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_has_its_own_environment_but_not_its_own_identity() {
    let mut troop = Troop::with(js(
        "tell([process.env.TEST_VALUE, cluster.worker.id, process.env.NODE_UNIQUE_ID ?? null])",
    ));
    let fork = troop::Fork::new().env("TEST_VALUE", "mine").env("NODE_UNIQUE_ID", "77");
    let worker = troop.cluster.fork(fork).await.unwrap();
    assert_eq!(troop.message(&worker).await, json!(["mine", 1, null]));
    let worker = troop.fork().await;
    assert_eq!(troop.message(&worker).await, json!([null, 2, null]));
}

#[tokio::test(flavor = "multi_thread")]
async fn profiles_of_workers_have_names_of_their_own() {
    let directory = tempfile::tempdir().unwrap();
    let mut troop = Troop::with(js("").exec_argv(["--prof"]).cwd(directory.path()));
    let workers = [troop.fork().await, troop.fork().await];
    for worker in workers {
        troop
            .until("online", |e| {
                matches!(e, Event::Online { worker: w, .. } if *w == worker).then_some(())
            })
            .await;
        // Node puts the isolate's address in front.
        let end = format!("v8-{}.log", worker.pid());
        let files: Vec<_> =
            directory.path().read_dir().unwrap().map(|f| f.unwrap().file_name()).collect();
        assert!(files.iter().any(|f| f.to_str().unwrap().ends_with(&end)), "{files:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn inspectors_of_workers_have_ports_of_their_own() {
    let port = free_port();
    let mut troop = Troop::with(
        js("tell([process.debugPort, inspector.url() ?? null])")
            .exec_argv([format!("--inspect=127.0.0.1:{port}")]),
    );
    let workers = [troop.fork().await, troop.fork().await];
    for (worker, port) in workers.iter().zip(port + 1..) {
        let answer: Vec<Value> = serde_json::from_value(troop.message(worker).await).unwrap();
        assert_eq!(answer[0], port);
        assert!(
            answer[1]
                .as_str()
                .is_some_and(|url| url.starts_with(&format!("ws://127.0.0.1:{port}/"))),
            "{answer:?}"
        );
    }
}

/// Also if the primary reads both at once.
#[test]
fn a_worker_is_reported_online_before_its_first_message() {
    let directory = tempfile::tempdir().unwrap();
    let sent = directory.path().join("sent");
    let (sender, seen) = std::sync::mpsc::channel();
    let setup = Setup::new().script(node_program("speaks.js")).args([&sent]);
    let observe = move |event: &Event| match event {
        // The primary reads nothing meanwhile.
        Event::Fork { .. } => wait_until("the worker's message", || sent.exists()),
        Event::Online { .. } => sender.send("online").unwrap_or_default(),
        Event::Message { .. } => sender.send("message").unwrap_or_default(),
        _ => {}
    };
    let _cluster = Cluster::builder().workers(1).setup(setup).start_in_thread(observe).unwrap();
    let both = [(); 2].map(|()| seen.recv_timeout(TEST_TIMEOUT).unwrap());
    assert_eq!(both, ["online", "message"]);
}
