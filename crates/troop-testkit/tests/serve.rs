//! `troop::serve`: connections that clients keep open and that cannot move to another worker end
//! little by little when theirs is replaced.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use troop::policy::Scheduling;
use troop::supervise::Progress;
use troop::{Builder, Cluster, Event, Setup, WorkerHandle};
use troop_testkit::http::{answer, ask, kept, open};
use troop_testkit::{TEST_TIMEOUT, Troop, at_once};

/// Where the first request chooses the worker, idle connections cannot be given to any.
fn immovable() -> Scheduling {
    "sticky:cookie=id".parse().unwrap()
}

fn serving(address: &str) -> Builder {
    let setup = Setup::new().program(env!("CARGO_BIN_EXE_troop-fixture")).args(["serve", address]);
    Cluster::builder().workers(1).scheduling(immovable()).replace(at_once()).setup(setup)
}

async fn listening(troop: &mut Troop) -> (WorkerHandle, u16) {
    let listens = |e: &Event| match e {
        Event::Listening { worker: w, address: at, .. } => {
            Some((w.clone(), u16::try_from(at.port.unwrap_or(0)).unwrap_or(0)))
        }
        _ => None,
    };
    troop.until("listening", listens).await
}

async fn reload(troop: &mut Troop) {
    let reload = troop.cluster.reload();
    let done = |e: &Event| matches!(e, Event::Supervision(Progress::ReloadFinished)).then_some(());
    troop.until("the end of the reload", done).await;
    reload.await.unwrap();
}

#[tokio::test]
async fn clients_of_a_replaced_worker_reconnect_spread_over_time() {
    let mut troop = Troop::start(serving("127.0.0.1:0").drain_spread(Duration::from_secs(3)));
    let (old, port) = listening(&mut troop).await;
    let mut streams = Vec::new();
    for _ in 0..40 {
        let mut stream = open(port).await;
        assert_eq!(ask(&mut stream, "/").await.unwrap(), format!("{} {}\n", old.id(), old.pid()));
        streams.push(stream);
    }
    reload(&mut troop).await;
    let ends = streams.into_iter().map(|mut stream| {
        tokio::spawn(async move {
            let end = tokio::time::timeout(TEST_TIMEOUT, stream.read(&mut [0; 64])).await;
            assert_eq!(end.expect("it is closed").unwrap(), 0, "and nothing else comes");
            Instant::now()
        })
    });
    let mut closed = Vec::new();
    for end in ends.collect::<Vec<_>>() {
        closed.push(end.await.unwrap());
    }
    closed.sort();
    // Only the least is asked for: a slow machine sees some of them late.
    let spread = closed[35] - closed[4];
    assert!(
        spread > Duration::from_millis(1000),
        "{:?}",
        closed.iter().map(|at| *at - closed[0]).collect::<Vec<_>>()
    );
    troop.exit(&old).await;
}

#[tokio::test]
async fn an_idle_connection_is_served_until_it_is_closed_by_the_drain() {
    let mut troop = Troop::start(serving("127.0.0.1:0").drain_spread(Duration::from_secs(20)));
    let (old, port) = listening(&mut troop).await;
    let name = format!("{} {}\n", old.id(), old.pid());
    let mut streams = Vec::new();
    for _ in 0..10 {
        let mut stream = open(port).await;
        assert_eq!(ask(&mut stream, "/").await.unwrap(), name);
        streams.push(stream);
    }
    reload(&mut troop).await;
    // What comes now is the new worker's.
    assert_ne!(ask(&mut open(port).await, "/").await.unwrap(), name);
    let mut served = 0;
    for stream in &mut streams {
        // A client that is done says so by closing; one that goes on is answered.
        if let Some(answer) = ask(stream, "/").await {
            assert_eq!(answer, name);
            served += 1;
        }
    }
    assert!(served >= 5, "only {served} of 10 still are");
    // Without connections it has no reason to stay.
    drop(streams);
    let before = Instant::now();
    troop.exit(&old).await;
    assert!(before.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn when_the_whole_cluster_ends_idle_connections_are_closed_without_waiting() {
    let mut troop = Troop::start(serving("127.0.0.1:0").drain_spread(Duration::from_secs(25)));
    let (worker, port) = listening(&mut troop).await;
    let _streams = kept(port, 20).await;
    let before = Instant::now();
    drop(troop.cluster.stop());
    troop.exit(&worker).await;
    assert!(before.elapsed() < Duration::from_secs(10), "it took {:?}", before.elapsed());
}

#[tokio::test]
async fn handlers_know_the_client_and_unix_sockets_are_served_too() {
    let mut troop = Troop::start(serving("127.0.0.1:0"));
    let (_, port) = listening(&mut troop).await;
    let mut stream = open(port).await;
    assert_eq!(
        ask(&mut stream, "/client").await.unwrap(),
        stream.local_addr().unwrap().to_string()
    );

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let mut troop = Troop::start(serving(path.to_str().unwrap()));
    let (worker, _) = listening(&mut troop).await;
    let mut stream = UnixStream::connect(&path).await.unwrap();
    assert_eq!(ask(&mut stream, "/").await.unwrap(), format!("{} {}\n", worker.id(), worker.pid()));
}

#[tokio::test]
async fn clients_that_keep_sending_requests_get_connection_close_and_lose_nothing() {
    clients_that_keep_sending_requests_lose_nothing(serving("127.0.0.1:0")).await;
}

#[tokio::test]
async fn clients_of_a_service_of_hypers_lose_nothing_either() {
    let directory = tempfile::tempdir().unwrap();
    let server = serving_as("hyper", &directory.path().join("ended"));
    clients_that_keep_sending_requests_lose_nothing(server).await;
}

async fn clients_that_keep_sending_requests_lose_nothing(server: Builder) {
    let mut troop = Troop::start(server.drain_spread(Duration::from_secs(4)));
    let (old, port) = listening(&mut troop).await;
    let clients = (0..20).map(|_| {
        tokio::spawn(async move {
            let mut stream = open(port).await;
            let first = ask(&mut stream, "/").await.unwrap();
            let deadline = Instant::now() + TEST_TIMEOUT;
            while Instant::now() < deadline {
                let (name, is_last) =
                    answer(&mut stream, "/").await.expect("an answer to every request");
                assert_eq!(name, first, "on one connection");
                if is_last {
                    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            panic!("the connection never ended");
        })
    });
    let clients: Vec<_> = clients.collect();
    while old.stats().await.open < 20 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    reload(&mut troop).await;
    for client in clients {
        client.await.unwrap();
    }
    troop.exit(&old).await;
}

/// Returns a connection that has been upgraded to another protocol, as a WebSocket is.
async fn upgraded(port: u16) -> tokio::net::TcpStream {
    let mut stream = open(port).await;
    stream
        .write_all(b"GET /echo HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
        .await
        .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        assert!(stream.read_buf(&mut head).await.unwrap() > 0);
    }
    stream
}

#[tokio::test]
async fn connections_that_are_cut_after_the_grace_period_are_counted_in_the_event() {
    let builder = serving("127.0.0.1:0").drain_spread(Duration::ZERO);
    let mut troop = Troop::start(builder.grace(Duration::from_millis(200)));
    let (worker, port) = listening(&mut troop).await;
    let _streams = (upgraded(port).await, upgraded(port).await);
    while worker.stats().await.open < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(troop.cluster.stop());
    let text = troop
        .until("exit", |event| matches!(event, Event::Exit { .. }).then(|| event.to_string()))
        .await;
    // Near the end of the grace period a worker gets SIGTERM, and SIGKILL at its end.
    assert!(text.contains("ended by troop: signal SIG"), "{text}");
    assert!(text.ends_with(", with 2 connections open"), "{text}");
}

#[tokio::test]
async fn a_connection_of_another_protocol_is_waited_for() {
    let mut troop = Troop::start(serving("127.0.0.1:0").drain_spread(Duration::ZERO));
    let (old, port) = listening(&mut troop).await;
    let mut stream = upgraded(port).await;
    reload(&mut troop).await;
    assert_ne!(
        ask(&mut open(port).await, "/").await.unwrap(),
        format!("{} {}\n", old.id(), old.pid())
    );
    let mut echo = [0; 5];
    stream.write_all(b"still").await.unwrap();
    stream.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"still");
    drop(stream);
    troop.exit(&old).await;
}

#[tokio::test]
async fn without_other_workers_idle_connections_are_closed_at_once() {
    // The successor starts only when the old worker has gone.
    let policy = at_once().max_surge(0).max_unavailable(1);
    let mut troop =
        Troop::start(serving("127.0.0.1:0").replace(policy).drain_spread(Duration::from_secs(25)));
    let (old, port) = listening(&mut troop).await;
    let _streams = kept(port, 20).await;
    let before = Instant::now();
    reload(&mut troop).await;
    assert!(before.elapsed() < Duration::from_secs(10), "it took {:?}", before.elapsed());
    troop.exit(&old).await;
    assert!(ask(&mut open(port).await, "/").await.is_some());

    // Nor when everything ends while a worker takes its time.
    let mut troop = Troop::start(serving("127.0.0.1:0").drain_spread(Duration::from_secs(25)));
    let (old, port) = listening(&mut troop).await;
    let _streams = kept(port, 20).await;
    reload(&mut troop).await;
    let before = Instant::now();
    drop(troop.cluster.stop());
    troop.exit(&old).await;
    assert!(before.elapsed() < Duration::from_secs(10), "it took {:?}", before.elapsed());
}

/// A server of this kind, on one worker, which writes into the file how it has ended.
fn serving_as(kind: &str, file: &std::path::Path) -> Builder {
    let args = ["serve as", kind, "127.0.0.1:0", file.to_str().unwrap()];
    let setup = Setup::new().program(env!("CARGO_BIN_EXE_troop-fixture")).args(args);
    Cluster::builder()
        .workers(1)
        .scheduling(immovable())
        .replace(at_once())
        .drain_spread(Duration::ZERO)
        .setup(setup)
}

async fn is_served(kind: &str, paths: &[&str]) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ended");
    let mut troop = Troop::start(serving_as(kind, &file));
    let (old, port) = listening(&mut troop).await;
    let mut stream = open(port).await;
    for path in paths {
        let expected = match *path {
            "/" => format!("{} {}\n", old.id(), old.pid()),
            "/known" => format!("1 {:?}", stream.local_addr().ok()),
            _ => stream.local_addr().unwrap().to_string(),
        };
        assert_eq!(ask(&mut stream, path).await.unwrap(), expected, "{path} of a {kind}");
    }
    reload(&mut troop).await;
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0, "the connection is closed");
    troop.exit(&old).await;
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "Drained");
}

#[tokio::test]
async fn routers_and_method_routers_are_served() {
    is_served("router", &["/", "/client"]).await;
    is_served("method router", &["/"]).await;
}

#[tokio::test]
async fn make_services_are_served_also_those_that_know_the_client_or_cannot_be_cloned() {
    is_served("make service", &["/", "/client"]).await;
    is_served("connect info", &["/", "/client"]).await;
    is_served("make service that cannot be cloned", &["/", "/client", "/known"]).await;
}

#[tokio::test]
async fn layers_around_a_router_are_served() {
    is_served("layers", &["/", "/client", "/client/"]).await;
}

#[tokio::test]
async fn services_of_hyper_are_served() {
    is_served("hyper", &["/", "/client"]).await;
}

/// Whether the server's side of a connection is open, as the kernel says.
fn is_open(client: std::net::SocketAddr) -> bool {
    const ESTABLISHED: &str = "01";
    let port = format!(":{:04X}", client.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().any(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        fields[2].ends_with(&port) && fields[3] == ESTABLISHED
    })
}

#[tokio::test]
async fn clients_that_send_or_take_nothing_are_disconnected_where_there_is_a_limit() {
    let directory = tempfile::tempdir().unwrap();
    let server = serving_as("hyper within a limit", &directory.path().join("ended"));
    let mut troop = Troop::start(server.scheduling(Scheduling::RoundRobin));
    let (worker, port) = listening(&mut troop).await;
    let mut silent = Vec::new();
    for sent in ["", "GET / HT", "GET /large HTTP/1.1\r\nHost: a\r\n\r\n"] {
        let mut stream = open(port).await;
        stream.write_all(sent.as_bytes()).await.unwrap();
        silent.push((sent, stream));
    }
    let mut idle = open(port).await;
    assert_eq!(ask(&mut idle, "/").await.unwrap(), format!("{} {}\n", worker.id(), worker.pid()));
    silent.push(("nothing more", idle));
    for (sent, stream) in silent {
        let client = stream.local_addr().unwrap();
        let closed = async {
            while is_open(client) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let closed = tokio::time::timeout(TEST_TIMEOUT, closed).await;
        assert!(closed.is_ok(), "a client that has sent {sent:?} is disconnected");
    }
    // A request that takes longer than that is answered.
    let mut slow = open(port).await;
    let answer = ask(&mut slow, "/slow/600").await.unwrap();
    assert_eq!(answer, format!("{} {}\n", worker.id(), worker.pid()));
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_at_once_and_others_are_served() {
    let directory = tempfile::tempdir().unwrap();
    let server = serving_as("hyper with three connections", &directory.path().join("ended"));
    let mut troop = Troop::start(server.scheduling(Scheduling::RoundRobin));
    let (worker, port) = listening(&mut troop).await;
    let name = format!("{} {}\n", worker.id(), worker.pid());
    let mut kept = Vec::new();
    for _ in 0..3 {
        let mut stream = open(port).await;
        assert_eq!(ask(&mut stream, "/").await.unwrap(), name);
        kept.push(stream);
    }
    for _ in 0..5 {
        let mut stream = open(port).await;
        let end = tokio::time::timeout(TEST_TIMEOUT, stream.read(&mut [0; 64])).await;
        assert_eq!(end.expect("it is closed").unwrap(), 0);
    }
    for stream in &mut kept {
        assert_eq!(ask(stream, "/").await.unwrap(), name);
    }
    // One that has gone makes room.
    kept.pop();
    let again = async {
        loop {
            if let Some(answer) = ask(&mut open(port).await, "/").await {
                return answer;
            }
        }
    };
    assert_eq!(tokio::time::timeout(TEST_TIMEOUT, again).await.expect("room"), name);
}

#[tokio::test]
async fn a_server_says_that_its_primary_has_gone() {
    use std::io::BufRead as _;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ended");
    let mut primary = std::process::Command::new(env!("CARGO_BIN_EXE_troop-fixture"))
        .args(["primary", "serve as", "router", "127.0.0.1:0", file.to_str().unwrap()])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufReader::new(primary.stdout.take().unwrap()).lines();
    lines.find(|line| line.as_ref().unwrap().contains("listen")).unwrap().unwrap();
    primary.kill().unwrap();
    primary.wait().unwrap();
    let ended = || std::fs::read_to_string(&file).is_ok_and(|text| text == "PrimaryGone");
    troop_testkit::wait_until("the server's end", ended);
}

/// A client of HTTP/2 whose request is being served when its worker is to finish.
async fn is_finished_over_http2(kind: &str) {
    let directory = tempfile::tempdir().unwrap();
    let mut troop = Troop::start(serving_as(kind, &directory.path().join("ended")));
    let (old, port) = listening(&mut troop).await;
    let name = format!("{} {}\n", old.id(), old.pid());
    let (mut sender, connection) = hyper::client::conn::http2::handshake(
        hyper_util::rt::TokioExecutor::new(),
        hyper_util::rt::TokioIo::new(open(port).await),
    )
    .await
    .unwrap();
    let connection = tokio::spawn(connection);
    let mut request = |path: &str| {
        let uri = format!("http://x{path}");
        sender.send_request(hyper::Request::get(uri).body(String::new()).unwrap())
    };
    let text = async |response: hyper::Response<hyper::body::Incoming>| {
        let body = axum::body::Body::new(response.into_body());
        String::from_utf8(axum::body::to_bytes(body, 1024).await.unwrap().into()).unwrap()
    };
    // Answered only when the worker is to finish.
    let last = request("/wait");
    // Requests arrive in order, so the other one is there when this is answered.
    assert_eq!(text(request("/").await.unwrap()).await, name);
    reload(&mut troop).await;
    assert_eq!(text(last.await.unwrap()).await, name);
    let _ = connection.await.unwrap();
    troop.exit(&old).await;
    assert_ne!(ask(&mut open(port).await, "/").await.unwrap(), name);
}

#[tokio::test]
async fn requests_of_http2_that_are_being_served_are_finished() {
    is_finished_over_http2("router").await;
    is_finished_over_http2("hyper").await;
}
