//! Connections that clients of unchanged Node programs keep open outlive their workers.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod exceptions;

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use troop::{Builder, Cluster, Setup, WorkerHandle};
use troop_testkit::http::{
    Clients, answer, are_shared_out, ask, kept, open, read_answer, read_answers, send_together,
};
use troop_testkit::{TEST_TIMEOUT, Troop, at_once, listening, node_program};

/// Troop's script for Node workers.
fn script() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../npm/lib/moves.js")
}

/// Workers that run this Node program.
fn program<const N: usize>(name: &str, args: [&str; N]) -> Builder {
    let setup = Setup::new().script(node_program(name)).args(args).preload(script());
    Cluster::builder().workers(1).replace(at_once()).drain_spread(Duration::ZERO).setup(setup)
}

fn serving(kind: &str, options: &Value) -> Builder {
    program("moving.js", [kind, &options.to_string()])
}

fn name(worker: &WorkerHandle) -> String {
    format!("{} {}\n", worker.id(), worker.pid())
}

/// Idle connections of a worker that is replaced are served by its successor, and by the next one.
async fn move_to_the_successor(kind: &str) {
    let mut troop = Troop::start(serving(kind, &json!({})));
    let (mut old, port) = listening(&mut troop).await;
    let mut streams = kept(port, 20).await;
    // One that has not asked for anything yet.
    streams.push(open(port).await);
    for _ in 0..2 {
        troop.cluster.reload().await.unwrap();
        let (new, _) = listening(&mut troop).await;
        troop.exit(&old).await;
        for stream in &mut streams {
            let (body, is_last) = answer(stream, "/").await.expect("it is still open");
            assert_eq!(body, name(&new), "{kind}");
            assert!(!is_last);
        }
        old = new;
    }
}

#[tokio::test]
async fn idle_connections_move_to_the_successor_of_their_worker() {
    move_to_the_successor("http").await;
    // The program has said that its own listener does not matter.
    move_to_the_successor("observed").await;
}

#[tokio::test]
async fn those_of_express_and_fastify_move_too() {
    move_to_the_successor("express").await;
    move_to_the_successor("fastify").await;
}

/// Asks until the successor answers, which it does as soon as the client leaves it the time to move.
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

/// Sends a part of something, waits until the worker has it, reloads, and sends the rest.
async fn is_answered_by_who_has_the_beginning(
    mut stream: TcpStream,
    port: u16,
    troop: &mut Troop,
    old: &WorkerHandle,
    texts: [&str; 2],
) {
    let [part, rest] = texts;
    stream.write_all(part.as_bytes()).await.unwrap();
    // Another client is answered after that, by a worker that has read the part.
    let mut other = open(port).await;
    for _ in 0..2 {
        ask(&mut other, "/").await.unwrap();
    }
    troop.cluster.reload().await.unwrap();
    let (new, _) = listening(troop).await;
    // Its connection moves, so the worker has decided about this one too.
    moves(&mut other, old, &new).await;
    stream.write_all(rest.as_bytes()).await.unwrap();
    let (body, is_last) = read_answer(&mut stream).await.expect("an answer");
    assert_eq!((body, is_last), (name(old), false), "{part:?}");
    moves(&mut stream, old, &new).await;
    troop.exit(old).await;
}

#[tokio::test]
async fn a_request_of_which_a_part_has_come_is_answered_by_the_worker_that_has_it() {
    let head = "GET / HTTP/1.1\r\nHos";
    let post = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\nabc";
    for (is_used, part, rest) in [
        (false, head, "t: x\r\n\r\n"),
        (true, head, "t: x\r\n\r\n"),
        (true, "G", "ET / HTTP/1.1\r\nHost: x\r\n\r\n"),
        (false, post, "def"),
        (true, post, "def"),
    ] {
        let mut troop = Troop::start(serving("http", &json!({})));
        let (old, port) = listening(&mut troop).await;
        let stream = if is_used { kept(port, 1).await.remove(0) } else { open(port).await };
        is_answered_by_who_has_the_beginning(stream, port, &mut troop, &old, [part, rest]).await;
    }
}

#[tokio::test]
async fn half_a_request_that_came_with_a_whole_one_keeps_the_connection_where_it_is() {
    let mut troop = Troop::start(serving("http", &json!({})));
    let (old, port) = listening(&mut troop).await;
    let mut stream = open(port).await;
    let request = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    stream.write_all(format!("{request}GET / HT").as_bytes()).await.unwrap();
    let (body, _) = read_answer(&mut stream).await.unwrap();
    assert_eq!(body, name(&old));
    is_answered_by_who_has_the_beginning(
        stream,
        port,
        &mut troop,
        &old,
        ["TP/1.1\r\nHos", "t: x\r\n\r\n"],
    )
    .await;
}

#[tokio::test]
async fn a_busy_connection_is_answered_first_and_then_moves() {
    for kind in ["http", "express", "fastify"] {
        let mut troop = Troop::start(serving(kind, &json!({})));
        let (old, port) = listening(&mut troop).await;
        let mut stream = kept(port, 1).await.remove(0);
        let asked = tokio::spawn(async move { (answer(&mut stream, "/wait").await, stream) });
        assert_eq!(troop.message(&old).await, "waits");
        troop.cluster.reload().await.unwrap();
        let (new, _) = listening(&mut troop).await;
        old.send(&"answer").await.unwrap();
        let (first, mut stream) = asked.await.unwrap();
        assert_eq!(first.expect("it is answered"), (name(&old), false), "{kind}");
        moves(&mut stream, &old, &new).await;
        troop.exit(&old).await;
    }
}

#[tokio::test]
async fn requests_that_were_sent_together_are_all_answered_in_order() {
    let mut troop = Troop::start(serving("http", &json!({})).workers(2));
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
    for (kind, scheduling) in [("http", "round-robin"), ("express", "p2c"), ("fastify", "steered")]
    {
        let builder = serving(kind, &json!({})).scheduling(scheduling.parse().unwrap());
        let mut troop = Troop::start(builder);
        let (_, port) = listening(&mut troop).await;
        let mut streams = kept(port, 40).await;
        let clients = Clients::start(port, 8);
        troop.cluster.scale(2).await.unwrap();
        are_shared_out(&mut streams, 2, 15).await;
        clients.none_has_noticed(&format!("{kind}, {scheduling}")).await;
    }
}

async fn nobody_notices(kind: &str, scheduling: &str) {
    let rounds: u32 = std::env::var("TROOP_ROUNDS").map_or(4, |text| text.parse().unwrap());
    let builder = serving(kind, &json!({})).workers(3);
    let mut troop = Troop::start(builder.scheduling(scheduling.parse().unwrap()));
    let (_, port) = listening(&mut troop).await;
    troop.cluster.ready().await.unwrap();
    let clients = Clients::start(port, 20);
    for round in 0..rounds {
        clients.more().await;
        match round % 4 {
            0 | 2 => drop(troop.cluster.reload().await.unwrap()),
            1 => troop.cluster.scale(1).await.unwrap(),
            _ => troop.cluster.scale(3).await.unwrap(),
        }
    }
    clients.more().await;
    clients.none_has_noticed(&format!("{kind}, {scheduling}")).await;
}

#[tokio::test]
async fn nobody_notices_reloads_and_scaling() {
    nobody_notices("http", "round-robin").await;
}

#[tokio::test]
async fn nobody_notices_them_with_express_and_fastify() {
    nobody_notices("express", "round-robin").await;
    nobody_notices("fastify", "round-robin").await;
}

#[tokio::test]
async fn nobody_notices_them_under_other_policies() {
    nobody_notices("http", "least-connections").await;
    nobody_notices("http", "sticky").await;
    nobody_notices("http", "steered").await;
}
