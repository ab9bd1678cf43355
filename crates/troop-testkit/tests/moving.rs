//! Connections that clients keep open outlive their workers: between two requests they move to
//! another one, and their clients notice nothing.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use troop::{Builder, Cluster, Setup, WorkerHandle};
use troop_testkit::http::{
    Clients, answer, are_shared_out, ask, kept, open, read_answer, read_answers, send_together,
};
use troop_testkit::{TEST_TIMEOUT, Troop, at_once, listening};

fn fixture<const N: usize>(args: [&str; N]) -> Builder {
    let setup = Setup::new().program(env!("CARGO_BIN_EXE_troop-fixture")).args(args);
    Cluster::builder().workers(1).replace(at_once()).drain_spread(Duration::ZERO).setup(setup)
}

/// A server of this kind, which writes into the file how it has ended.
fn serving(kind: &str, directory: &tempfile::TempDir) -> Builder {
    let ended = directory.path().join("ended");
    fixture(["serve as", kind, "127.0.0.1:0", ended.to_str().unwrap()])
}

async fn reload(troop: &mut Troop) {
    troop.cluster.reload().await.unwrap();
}

fn name(worker: &WorkerHandle) -> String {
    format!("{} {}\n", worker.id(), worker.pid())
}

/// A connection that was busy moves as soon as its client leaves it the time for that.
async fn moves(stream: &mut TcpStream, old: &WorkerHandle, new: &WorkerHandle) {
    let deadline = tokio::time::Instant::now() + TEST_TIMEOUT;
    loop {
        let (body, is_last) = answer(stream, "/").await.expect("it is still open");
        assert!(!is_last);
        if body == name(new) {
            return;
        }
        assert_eq!(body, name(old));
        assert!(tokio::time::Instant::now() < deadline, "it does not move");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Idle connections of a worker that is replaced are served by its successor.
async fn move_to_the_successor(kind: &str) {
    let directory = tempfile::tempdir().unwrap();
    let mut troop = Troop::start(serving(kind, &directory));
    let (old, port) = listening(&mut troop).await;
    let mut streams = kept(port, 20).await;
    // One that has not asked for anything yet.
    streams.push(open(port).await);
    reload(&mut troop).await;
    let (new, _) = listening(&mut troop).await;
    troop.exit(&old).await;
    for stream in &mut streams {
        let (body, is_last) = answer(stream, "/").await.expect("it is still open");
        assert_eq!(body, name(&new), "{kind}");
        assert!(!is_last);
    }
    assert_eq!(std::fs::read_to_string(directory.path().join("ended")).unwrap(), "Drained");
    // And again.
    reload(&mut troop).await;
    troop.exit(&new).await;
    let third = listening(&mut troop).await.0;
    for stream in &mut streams {
        assert_eq!(ask(stream, "/").await.expect("it is still open"), name(&third));
    }
}

#[tokio::test]
async fn idle_connections_move_to_the_successor_of_their_worker() {
    move_to_the_successor("router").await;
}

#[tokio::test]
async fn those_of_a_service_of_hypers_move_too() {
    move_to_the_successor("hyper").await;
}

#[tokio::test]
async fn those_of_unix_sockets_move_too() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let mut troop = Troop::start(fixture(["serve", path.to_str().unwrap()]));
    let (old, _) = listening(&mut troop).await;
    let mut stream = UnixStream::connect(&path).await.unwrap();
    assert_eq!(ask(&mut stream, "/").await.unwrap(), name(&old));
    reload(&mut troop).await;
    let (new, _) = listening(&mut troop).await;
    troop.exit(&old).await;
    assert_eq!(ask(&mut stream, "/").await.expect("it is still open"), name(&new));
}

#[tokio::test]
async fn a_busy_connection_is_answered_first_and_then_moves() {
    let directory = tempfile::tempdir().unwrap();
    let mut troop = Troop::start(serving("router", &directory));
    let (old, port) = listening(&mut troop).await;
    let mut stream = open(port).await;
    // Answered only when the worker is to finish.
    let asked = tokio::spawn(async move { (answer(&mut stream, "/wait").await, stream) });
    while old.stats().await.taken < 1 {
        tokio::task::yield_now().await;
    }
    reload(&mut troop).await;
    let (first, mut stream) = asked.await.unwrap();
    assert_eq!(first.expect("it is answered"), (name(&old), false));
    let (new, _) = listening(&mut troop).await;
    moves(&mut stream, &old, &new).await;
    troop.exit(&old).await;
}

#[tokio::test]
async fn a_request_of_which_a_part_has_come_is_answered_by_the_worker_that_has_it() {
    let directory = tempfile::tempdir().unwrap();
    let mut troop = Troop::start(serving("router", &directory));
    let (old, port) = listening(&mut troop).await;
    let (head, rest) = ("GET / HTTP/1.1\r\nHos", "t: x\r\n\r\n");
    let mut fresh = open(port).await;
    let mut used = kept(port, 1).await.remove(0);
    for stream in [&mut fresh, &mut used] {
        stream.write_all(head.as_bytes()).await.unwrap();
    }
    while old.stats().await.taken < 2 {
        tokio::task::yield_now().await;
    }
    reload(&mut troop).await;
    let (new, _) = listening(&mut troop).await;
    for stream in [&mut fresh, &mut used] {
        stream.write_all(rest.as_bytes()).await.unwrap();
        let (body, is_last) = read_answer(stream).await.expect("an answer");
        // Bytes that had not been read when it moved are the next worker's.
        assert!([name(&old), name(&new)].contains(&body), "{body}");
        assert!(!is_last);
        moves(stream, &old, &new).await;
    }
    troop.exit(&old).await;
}

#[tokio::test]
async fn requests_that_were_sent_together_are_all_answered_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let mut troop = Troop::start(serving("router", &directory).workers(2));
    let (_, port) = listening(&mut troop).await;
    let mut stream = open(port).await;
    for _ in 0..5 {
        send_together(&mut stream, 50).await;
        let reload = troop.cluster.reload();
        read_answers(&mut stream, 50).await;
        reload.await.unwrap();
    }
}

#[tokio::test]
async fn a_worker_that_is_added_gets_its_share_of_the_open_connections() {
    for scheduling in ["round-robin", "steered"] {
        let directory = tempfile::tempdir().unwrap();
        let builder = serving("router", &directory).scheduling(scheduling.parse().unwrap());
        let mut troop = Troop::start(builder);
        let (_, port) = listening(&mut troop).await;
        let mut streams = kept(port, 40).await;
        let clients = Clients::start(port, 8);
        troop.cluster.scale(2).await.unwrap();
        are_shared_out(&mut streams, 2, 15).await;
        clients.none_has_noticed(scheduling).await;
    }
}

async fn clients_notice_nothing(scheduling: &str) {
    let rounds: u32 = std::env::var("TROOP_ROUNDS").map_or(4, |text| text.parse().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let builder = serving("router", &directory).workers(3);
    let mut troop = Troop::start(builder.scheduling(scheduling.parse().unwrap()));
    let (_, port) = listening(&mut troop).await;
    troop.cluster.ready().await.unwrap();
    let clients = Clients::start(port, 20);
    for round in 0..rounds {
        clients.more().await;
        match round % 4 {
            0 | 2 => reload(&mut troop).await,
            1 => troop.cluster.scale(1).await.unwrap(),
            _ => troop.cluster.scale(3).await.unwrap(),
        }
    }
    clients.more().await;
    clients.none_has_noticed(scheduling).await;
}

#[tokio::test]
async fn clients_notice_no_reload_and_no_scaling_under_round_robin_and_weighted() {
    clients_notice_nothing("round-robin").await;
    clients_notice_nothing("weighted").await;
}

#[tokio::test]
async fn clients_notice_no_reload_and_no_scaling_under_policies_that_count() {
    clients_notice_nothing("least-connections").await;
    clients_notice_nothing("p2c").await;
}

#[tokio::test]
async fn clients_notice_no_reload_and_no_scaling_under_sticky_and_steered() {
    clients_notice_nothing("sticky").await;
    clients_notice_nothing("steered").await;
}

#[tokio::test]
async fn a_protocol_of_the_programs_own_moves_when_it_says_so() {
    let mut troop = Troop::start(fixture(["moving echo", "127.0.0.1:0"]));
    let (old, port) = listening(&mut troop).await;
    let mut stream = open(port).await;
    let echo = async |stream: &mut TcpStream, text: &[u8]| {
        stream.write_all(text).await.unwrap();
        let mut line = vec![0; text.len()];
        tokio::time::timeout(TEST_TIMEOUT, stream.read_exact(&mut line)).await.unwrap().unwrap();
        assert_eq!(line, text);
    };
    echo(&mut stream, b"one").await;
    reload(&mut troop).await;
    troop.exit(&old).await;
    echo(&mut stream, b"two").await;
    assert_eq!(old.stats().await.moved, 1);
}

#[tokio::test]
async fn the_program_keeps_a_connection_that_no_other_worker_can_take() {
    let mut troop = Troop::start(fixture(["moving echo", "127.0.0.1:0"]));
    let (worker, port) = listening(&mut troop).await;
    let mut stream = open(port).await;
    stream.write_all(b"x").await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'x');
    drop(troop.cluster.stop());
    let mut said = String::new();
    stream.read_to_string(&mut said).await.unwrap();
    assert_eq!(said, "kept: the other process cannot take the socket");
    troop.exit(&worker).await;
}
