//! The same worker for the same client.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use troop::{Cluster, Setup, WorkerHandle};
use troop_testkit::{TEST_TIMEOUT, Troop, connect_from, node_program, talk_from};

fn rust() -> Setup {
    Setup::new().program(env!("CARGO_BIN_EXE_troop-fixture")).args(["repeat", "127.0.0.1:0"])
}

/// Answers with its name and everything that the client has said.
fn node() -> Setup {
    let server = "const server = net.createServer({ allowHalfOpen: true }, (socket) => {
        const said = [];
        socket.on('data', (data) => said.push(data)).on('error', () => {});
        socket.on('end', () => socket.end(Buffer.concat([Buffer.from(`${me}\\n`), ...said])));
    });
    watched(server).listen(0, '127.0.0.1')";
    Setup::new().script(node_program("run.js")).args([server])
}

async fn start(scheduling: &str, setup: Setup, workers: usize) -> (Troop, Vec<WorkerHandle>, u16) {
    let mut troop =
        Troop::start(Cluster::builder().scheduling(scheduling.parse().unwrap()).setup(setup));
    let (mut all, mut port) = (Vec::new(), 0);
    for _ in 0..workers {
        let worker = troop.fork().await;
        port = troop.listening(&worker).await;
        all.push(worker);
    }
    (troop, all, port)
}

/// Returns the worker that serves, and the echoed bytes.
fn parse(answer: &[u8]) -> (u32, Vec<u8>) {
    let end = answer.iter().position(|byte| *byte == b'\n').expect("an answer with a name");
    let name = std::str::from_utf8(&answer[..end]).unwrap();
    (name.split(' ').next().unwrap().parse().unwrap(), answer[end + 1..].to_vec())
}

fn client(n: u8) -> [u8; 4] {
    [127, 9, n, 1]
}

/// Returns the worker of each of these clients, which must be the same in three connections.
async fn served(port: u16, clients: u8) -> BTreeMap<u8, u32> {
    let ask = move || {
        let mut all = BTreeMap::new();
        for round in 0..3 {
            for n in 0..clients {
                let (worker, _) =
                    parse(&talk_from(client(n), ([127, 0, 0, 1], port), b"").unwrap());
                assert_eq!(
                    *all.entry(n).or_insert(worker),
                    worker,
                    "client {n} has changed its worker in round {round}"
                );
            }
        }
        all
    };
    tokio::task::spawn_blocking(ask).await.unwrap()
}

async fn a_client_changes_its_worker_only_when_that_dies(scheduling: &str, setup: Setup) {
    let (mut troop, workers, port) = start(scheduling, setup, 8).await;
    let before = served(port, 64).await;
    assert_eq!(
        before.values().collect::<BTreeSet<_>>().len(),
        8,
        "all of them have clients: {before:?}"
    );
    let dead = &workers[3];
    dead.kill(9).await.unwrap();
    troop.exit(dead).await;
    let without = served(port, 64).await;
    for (client, worker) in &before {
        let now = without[client];
        assert!(
            now == *worker || *worker == dead.id().0,
            "client {client} moved from {worker} to {now} for nothing"
        );
    }
    assert!(without.values().all(|worker| *worker != dead.id().0));
    let successor = troop.fork().await;
    troop.listening(&successor).await;
    let after = served(port, 64).await;
    for (client, worker) in &before {
        let expected = if *worker == dead.id().0 { successor.id().0 } else { *worker };
        assert_eq!(
            after[client], expected,
            "client {client}, which was served by {worker} at first"
        );
    }
    // A ninth takes only its share.
    let ninth = troop.fork().await;
    troop.listening(&ninth).await;
    let more = served(port, 64).await;
    assert!(
        more.iter().all(|(client, worker)| *worker == after[client] || *worker == ninth.id().0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_rust_workers_stay_where_they_are() {
    a_client_changes_its_worker_only_when_that_dies("sticky", rust()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_node_workers_stay_where_they_are() {
    a_client_changes_its_worker_only_when_that_dies("sticky", node()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_steered_rust_workers_stay_where_they_are() {
    a_client_changes_its_worker_only_when_that_dies("steered:sticky", rust()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_steered_node_workers_stay_where_they_are() {
    a_client_changes_its_worker_only_when_that_dies("steered:sticky", node()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_primary_and_the_kernel_agree_whose_client_one_is() {
    let (_one, _, handed) = start("sticky:prefix=24", rust(), 5).await;
    let (_two, _, steered) = start("steered:sticky,prefix=24", rust(), 5).await;
    assert_eq!(served(handed, 40).await, served(steered, 40).await);
    // The last of the four numbers does not count.
    let who =
        |last: u8| parse(&talk_from([127, 9, 7, last], ([127, 0, 0, 1], handed), b"").unwrap()).0;
    assert!((2..30).all(|last| who(last) == who(1)));
}

fn proxied(from: &str, body: &[u8]) -> Vec<u8> {
    [format!("PROXY TCP4 {from} 198.51.100.1 4000 80\r\n").as_bytes(), body].concat()
}

/// Every byte there is, and many of them.
fn binary() -> Vec<u8> {
    (0..100_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

async fn talks(port: u16, say: Vec<u8>) -> (u32, Vec<u8>) {
    let talk = move || parse(&talk_from([127, 0, 0, 1], ([127, 0, 0, 1], port), &say).unwrap());
    tokio::task::spawn_blocking(talk).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_proxy_its_header_tells_the_clients_apart_and_is_passed_on_or_stripped() {
    for setup in [rust(), node()] {
        for (options, strip) in [("proxy=pass", false), ("proxy=strip", true)] {
            let (_troop, _, port) = start(&format!("sticky:{options}"), setup.clone(), 4).await;
            let mut workers = BTreeMap::new();
            for n in 0..48u32 {
                let from = format!("203.0.113.{}", n % 16);
                let say = proxied(&from, &binary());
                let (worker, said) = talks(port, say.clone()).await;
                assert_eq!(*workers.entry(from).or_insert(worker), worker);
                assert!(
                    said == if strip { binary() } else { say },
                    "{options}: {} bytes came through",
                    said.len()
                );
            }
            assert_eq!(workers.values().collect::<BTreeSet<_>>().len(), 4, "{workers:?}");
            // A client without a header is served, too.
            assert_eq!(talks(port, b"no header".to_vec()).await.1, b"no header");
        }
    }
}

fn request(cookie: &str) -> Vec<u8> {
    let head = format!(
        "POST /a?id={cookie}&x=1 HTTP/1.1\r\nHost: x\r\nCookie: other=1; sid={cookie}\r\nContent-Length: 100000\r\n\r\n"
    );
    [head.as_bytes(), &binary()].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cookie_or_a_parameter_identifies_clients_and_requests_stay_unchanged() {
    for setup in [rust(), node()] {
        for options in ["cookie=sid", "query=id", "cookie=sid,proxy=strip"] {
            let (_troop, _, port) = start(&format!("sticky:{options}"), setup.clone(), 4).await;
            let mut workers = BTreeMap::new();
            for n in 0..48 {
                let cookie = format!("session-{}", n % 16);
                let (mut say, expected) = (request(&cookie), request(&cookie));
                if options.ends_with("strip") {
                    say = proxied("192.0.2.1", &say);
                }
                let (worker, said) = talks(port, say).await;
                assert_eq!(*workers.entry(cookie).or_insert(worker), worker, "{options}");
                assert!(said == expected, "{options}: {} bytes came through", said.len());
            }
            assert_eq!(
                workers.values().collect::<BTreeSet<_>>().len(),
                4,
                "{options}: {workers:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn first_bytes_may_come_slowly_late_or_never() {
    let (troop, _, port) = start("sticky:cookie=sid,wait=700", rust(), 4).await;
    let at = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let drip = move |say: Vec<u8>, pause: Duration| {
        let mut stream = connect_from([127, 0, 0, 1], at).unwrap();
        stream.set_nodelay(true).unwrap();
        for piece in say.chunks(say.len().div_ceil(6).max(1)) {
            stream.write_all(piece).unwrap();
            std::thread::sleep(pause);
        }
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        parse(&answer)
    };
    let run = move || {
        let say = b"GET / HTTP/1.1\r\nHost: x\r\nCookie: sid=abc\r\n\r\n".to_vec();
        let (worker, said) = drip(say.clone(), Duration::ZERO);
        assert_eq!(said, say);
        // In pieces, but in time: the cookie counts.
        assert_eq!(drip(say.clone(), Duration::from_millis(50)), (worker, say.clone()));
        // Too late, or nothing at all: by the address, which is everybody's here.
        let silent = drip(Vec::new(), Duration::ZERO).0;
        let before = Instant::now();
        let (late, said) = drip(say.clone(), Duration::from_millis(200));
        assert_eq!((late, said), (silent, say));
        assert!(before.elapsed() > Duration::from_millis(700));
        // A silent client gets a worker soon, and does not delay others.
        let mut idle = TcpStream::connect(at).unwrap();
        idle.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        assert_eq!(drip(Vec::new(), Duration::ZERO).0, silent);
        std::thread::sleep(Duration::from_millis(800));
        idle.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        idle.read_to_end(&mut answer).unwrap();
        assert_eq!(parse(&answer).0, silent);
    };
    tokio::task::spawn_blocking(run).await.unwrap();
    drop(troop);
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_silent_clients_delay_no_other() {
    let (_troop, _, port) = start("sticky:cookie=sid,wait=60000", rust(), 2).await;
    let run = move || {
        let at = std::net::SocketAddr::from(([127, 0, 0, 1], port));
        let silent: Vec<_> = (0..3000).map(|_| TcpStream::connect(at).unwrap()).collect();
        let before = Instant::now();
        let say = b"GET / HTTP/1.1\r\nCookie: sid=abc\r\n\r\n";
        assert_eq!(parse(&talk_from([127, 0, 0, 1], at, say).unwrap()).1, say);
        assert!(before.elapsed() < Duration::from_secs(10), "{:?}", before.elapsed());
        drop(silent);
    };
    tokio::task::spawn_blocking(run).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_waits_for_its_worker_while_that_is_busy() {
    // This one takes its time for each connection, one after the other.
    let text = "const server = net.createServer((socket) => {
        Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 30);
        socket.end(`${me}\\n`);
    });
    watched(server).listen(0, '127.0.0.1')";
    let setup = Setup::new().script(node_program("run.js")).args([text]);
    let (_troop, _, port) = start("sticky", setup, 3).await;
    let ask = |n: u8| {
        std::thread::spawn(move || {
            parse(&talk_from(client(n), ([127, 0, 0, 1], port), b"").unwrap()).0
        })
    };
    let clients: Vec<_> = (0..60).map(|n| (n % 3, ask(n % 3))).collect();
    let mut workers = BTreeMap::new();
    for (n, client) in clients {
        let worker = client.join().unwrap();
        assert_eq!(*workers.entry(n).or_insert(worker), worker, "client {n} was served by two");
    }
}
