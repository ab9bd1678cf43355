//! What can be set, and the blocking face of a worker.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};
use troop::event::{Consequence, ExitHow};
use troop::supervise::{Cause, GiveUp, Progress, RestartPolicy};
use troop::{Cluster, Event, Fork, Handle, Setup};
use troop_testkit::{TEST_TIMEOUT, Troop, ask, node_program, open_descriptors, wait_until};

fn fixture<const N: usize>(args: [&str; N]) -> Setup {
    Setup::new().program(env!("CARGO_BIN_EXE_troop-fixture")).args(args)
}

#[tokio::test]
async fn a_restart_policy_decides_when_to_give_up() {
    let policy = RestartPolicy::new(2).first_delay(Duration::from_millis(1)).max_ends(3);
    let mut troop =
        Troop::start(Cluster::builder().workers(2).setup(fixture(["exit", "9"])).restart(policy));
    let (ends, cause) = troop
        .until("giving up", |event| match event {
            Event::Supervision(Progress::GivingUp(GiveUp::NeverReady { ends, cause, .. })) => {
                Some((*ends, cause.clone()))
            }
            _ => None,
        })
        .await;
    assert_eq!(ends, 3, "no worker became ready");
    assert!(matches!(cause, Cause::Ended(_, ExitHow::Code(9))), "{cause:?}");
    // The stream of events ends with the cluster.
    while tokio::time::timeout(TEST_TIMEOUT, troop.events.recv()).await.unwrap().is_some() {}
    assert!(troop.cluster.fork(Fork::new()).await.is_err(), "a cluster that is over forks nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_connections_are_accepted_than_may_wait() {
    let mut troop = Troop::start(
        Cluster::builder()
            .setup(fixture(["blocked", "127.0.0.1:0"]))
            .pending_limit(5)
            .hang_timeout(None),
    );
    let worker = troop.fork().await;
    let port = troop.listening(&worker).await;
    let before = open_descriptors();
    let clients: Vec<TcpStream> =
        (0..300).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    // 64 at the worker, 5 that wait for it, and not one more.
    let accepted = || open_descriptors() - before - clients.len();
    wait_until("the primary has accepted what it may", || accepted() >= 6);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(accepted() <= 64 + 5, "{} connections are open in the primary", accepted());
    worker.kill(9).await.unwrap();
}

#[tokio::test]
async fn two_udp_sockets_of_a_worker_share_a_port_if_they_both_allow_it() {
    let mut troop = Troop::with(fixture(["udp-reuse", "127.0.0.1:0"]));
    let worker = troop.fork().await;
    assert_eq!(troop.message(&worker).await, json!({"same": true}));
}

#[tokio::test]
async fn workers_are_found_by_their_number_as_long_as_they_live() {
    let mut troop = Troop::with(fixture(["echo"]));
    let worker = troop.fork().await;
    assert_eq!(troop.cluster.worker(worker.id()), Some(worker.clone()));
    worker.kill(9).await.unwrap();
    troop.exit(&worker).await;
    assert_eq!(troop.cluster.worker(worker.id()), None);
    assert!(worker.kill(9).await.is_err(), "nobody else is hit by a signal that comes late");
}

#[tokio::test]
async fn groups_are_set_if_one_may() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let setup = Setup::new()
        .program("sh")
        .args(["-c", "id -G"])
        .uid(65534)
        .gid(65534)
        .groups([4, 5])
        .silent(true);
    let mut troop = Troop::with(setup);
    let worker = troop.fork().await;
    let mut output = worker.take_stdout().unwrap();
    troop.exit(&worker).await;
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    assert_eq!(text.trim(), "65534 4 5");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocking_worker_talks_asks_answers_and_ends() {
    let mut troop = Troop::with(fixture(["blocking-echo"]));
    let worker = troop.fork().await;
    worker.send(&json!([1, null])).await.unwrap();
    assert_eq!(troop.message(&worker).await, json!({"echo": [1, null]}));
    let answer: Value = worker.request(&"why", TEST_TIMEOUT).await.unwrap();
    assert_eq!(answer, json!({"you asked": "why"}));
    worker.send(&"ask").await.unwrap();
    troop
        .until("its question", |e| {
            if let Event::Request { request: r, .. } = e { r.reply(&42).ok() } else { None }
        })
        .await;
    assert_eq!(troop.message(&worker).await, json!({"answer": 42}));
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    worker.send_handle(&"take this", theirs).await.unwrap();
    let back = troop
        .until("the socket", |e| {
            if let Event::Message { message: m, .. } = e { m.take_handle() } else { None }
        })
        .await;
    let Handle::UnixStream(mut back) = back else { panic!("{back:?}") };
    back.write_all(b"went there and back").unwrap();
    drop(back);
    let mut text = String::new();
    ours.read_to_string(&mut text).unwrap();
    assert_eq!(text, "went there and back");
    troop.cluster.disconnect().await.unwrap();
    assert_eq!(troop.exit(&worker).await, ExitHow::Code(0));
    assert_eq!(troop.message(&worker).await, json!({"drained": true}));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_can_be_read_by_a_thread_that_blocks() {
    let troop = Troop::with(fixture(["echo"]));
    let mut events = troop.cluster.events();
    let reader = std::thread::spawn(move || {
        let mut names = Vec::new();
        while let Some(event) = events.blocking_recv(TEST_TIMEOUT) {
            names.push(event.to_string());
            if matches!(event, Event::Exit { .. }) {
                break;
            }
        }
        (names, events.blocking_recv(Duration::from_millis(1)).is_none())
    });
    let worker = troop.fork().await;
    worker.request::<_, Value>(&1, TEST_TIMEOUT).await.unwrap();
    worker.disconnect().unwrap();
    let (names, nothing_more) =
        tokio::task::spawn_blocking(|| reader.join().unwrap()).await.unwrap();
    assert_eq!(names.last().unwrap(), "worker 1 finished: exit code 0");
    assert!(nothing_more);
}

#[tokio::test]
async fn workers_listen_where_they_may_and_nowhere_else() {
    let builder = Cluster::builder()
        .may_listen("0".parse().unwrap())
        .may_listen("udp:127.0.0.1:0".parse().unwrap());
    let text = "
        const tries = [[{ port: 0 }, 'tcp'], [{ port: 47111, host: '127.0.0.1' }, 'port'], [{ path: '/tmp/troop-not-here' }, 'path'], [{ fd: 0 }, 'fd']];
        (async () => {
            const told = {};
            for (const [options, name] of tries) {
                told[name] = await new Promise((done) => {
                    const server = require('net').createServer((s) => s.end('served')).listen(options, () => done('listens'));
                    server.on('error', (e) => done(e.code));
                });
            }
            for (const port of [0, 47112]) {
                told[`udp ${port}`] = await new Promise((done) => {
                    require('dgram').createSocket('udp4').on('error', (e) => done(e.code)).bind(port, '127.0.0.1', () => done('listens'));
                });
            }
            process.send(told);
        })()";
    let mut troop =
        Troop::start(builder.setup(Setup::new().script(node_program("run.js")).args([text])));
    let worker = troop.fork().await;
    let port = troop.listening(&worker).await;
    let told = troop.message(&worker).await;
    let expected = json!({
        "tcp": "listens", "port": "EACCES", "path": "EACCES", "fd": "EACCES", "udp 0": "listens", "udp 47112": "EACCES"
    });
    assert_eq!(told, expected);
    let mut forbidden = Vec::new();
    for _ in 0..3 {
        // Each power of two is reported.
        let id = worker.id();
        let seen = |e: &Event| match e {
            Event::Misbehaved {
                worker: w,
                violation: troop::event::Violation::Forbidden(at),
                consequence: Consequence::Reported,
                ..
            } if w.id() == id => Some(at.clone()),
            _ => None,
        };
        forbidden.push(troop.until("the report", seen).await);
    }
    assert_eq!(forbidden, ["127.0.0.1:47111", "/tmp/troop-not-here", "udp 127.0.0.1:47112"]);
    assert_eq!(ask(port, "").await.unwrap(), "served");
    // A Rust worker has the same rules.
    let builder = Cluster::builder().may_listen("0".parse().unwrap());
    let mut troop = Troop::start(builder.setup(fixture(["line", "127.0.0.1:47113"])));
    let worker = troop.fork().await;
    assert_eq!(troop.exit(&worker).await, ExitHow::Code(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_from_before_the_start_misses_no_event() {
    for _ in 0..20 {
        let (sender, events) = std::sync::mpsc::channel();
        let builder =
            Cluster::builder().setup(Setup::new().program("sleep").args(["60"])).workers(1);
        let cluster = builder
            .on_start(move |cluster| sender.send(cluster.events()).unwrap())
            .start()
            .unwrap();
        let mut events = events.recv().unwrap();
        let first = events.recv().await.unwrap();
        assert!(matches!(first, Event::Setup { .. } | Event::Fork { .. }), "{first}");
        assert!(cluster.stop().await.unwrap().is_graceful());
        while events.recv().await.is_some() {}
    }
}
