//! Connections of Node programs that do not move, and what counts for those that do.

use std::io::{BufRead, Write};
use std::process::{Child, Command, Stdio};

use super::*;

/// Asks once more after a reload. The old worker answers, and says that it is the last time.
async fn ends_after_an_announced_answer(kind: &str, scheduling: &str) {
    let builder = serving(kind, &json!({})).scheduling(scheduling.parse().unwrap());
    let mut troop = Troop::start(builder.drain_spread(Duration::from_secs(30)));
    let (old, port) = listening(&mut troop).await;
    if kind == "emitted" {
        listening(&mut troop).await;
    }
    let mut stream = kept(port, 1).await.remove(0);
    troop.cluster.reload().await.unwrap();
    let body = answer(&mut stream, "/").await;
    assert_eq!(body.expect("it is still open"), (name(&old), true), "{kind}, {scheduling}");
    assert_eq!(ask(&mut stream, "/").await, None);
    troop.exit(&old).await;
}

#[tokio::test]
async fn a_connection_that_the_program_marks_stays_and_ends_after_an_announced_answer() {
    ends_after_an_announced_answer("marked", "round-robin").await;
}

/// Another worker would not know the client, or call the listener again.
#[tokio::test]
async fn so_does_one_for_which_the_program_keeps_something() {
    ends_after_an_announced_answer("known", "round-robin").await;
    ends_after_an_announced_answer("greeted", "round-robin").await;
}

#[tokio::test]
async fn so_does_one_that_the_server_did_not_accept_itself() {
    ends_after_an_announced_answer("emitted", "round-robin").await;
}

#[tokio::test]
async fn so_does_one_that_the_primary_cannot_give_to_another_worker() {
    ends_after_an_announced_answer("http", "shared").await;
    ends_after_an_announced_answer("http", "sticky:cookie=id,wait=50").await;
}

#[tokio::test]
async fn clients_that_ask_often_are_told_before_their_connections_are_closed() {
    let builder = serving("http", &json!({})).scheduling("shared".parse().unwrap());
    let mut troop = Troop::start(builder.drain_spread(Duration::from_secs(4)));
    let (old, port) = listening(&mut troop).await;
    let mut streams = kept(port, 50).await;
    troop.cluster.reload().await.unwrap();
    listening(&mut troop).await;
    // Of those that are closed idle, none is before a quarter of the time.
    tokio::time::sleep(Duration::from_millis(500)).await;
    for stream in &mut streams {
        let body = answer(stream, "/").await;
        assert_eq!(body.expect("it is still open"), (name(&old), true));
    }
    troop.exit(&old).await;
}

/// A process that ends with its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Half of the clients ask all the time, half never again.
#[tokio::test]
async fn connections_with_tls_end_after_an_announced_answer_or_one_after_another() {
    let builder = program("kept.js", ["https"]).drain_spread(Duration::from_secs(2));
    let mut troop = Troop::start(builder);
    let (old, port) = listening(&mut troop).await;
    let mut command = Command::new("node");
    command.arg(node_program("tls_clients.js")).args([&port.to_string(), "40"]);
    let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut clients = Running(spawned.unwrap());
    let (sender, mut lines) = tokio::sync::mpsc::unbounded_channel();
    let output = std::io::BufReader::new(clients.0.stdout.take().unwrap());
    std::thread::spawn(move || {
        output.lines().map_while(Result::ok).all(|line| sender.send(line).is_ok())
    });
    let mut line = async || {
        let line = tokio::time::timeout(TEST_TIMEOUT, lines.recv()).await;
        line.expect("what the clients say").expect("the clients run")
    };
    assert_eq!(line().await, "ready");
    clients.0.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    troop.cluster.reload().await.unwrap();
    let noticed: Value = serde_json::from_str(&line().await).unwrap();
    troop.exit(&old).await;
    assert_eq!(noticed["failed"], json!([]));
    assert_eq!(noticed["announced"], 20, "{noticed}");
    let times = noticed["closed"].as_array().unwrap().iter().map(|time| time.as_u64().unwrap());
    let (first, last) = (times.clone().min().unwrap(), times.max().unwrap());
    assert!(first >= 500 && last >= first + 500, "{noticed}");
}

#[tokio::test]
async fn an_upgraded_connection_stays_where_it_is() {
    let mut troop = Troop::start(serving("http", &json!({})));
    let (old, port) = listening(&mut troop).await;
    let mut stream = open(port).await;
    let head = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
    stream.write_all(head).await.unwrap();
    let mut answered = Vec::new();
    while !answered.ends_with(b"\r\n\r\n") {
        stream.read_buf(&mut answered).await.unwrap();
    }
    troop.cluster.reload().await.unwrap();
    listening(&mut troop).await;
    stream.write_all(b"hello").await.unwrap();
    let mut echo = [0; 5];
    stream.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"hello");
    drop(stream);
    troop.exit(&old).await;
}

#[tokio::test]
async fn a_server_that_the_program_closes_by_itself_closes_its_idle_connections() {
    let mut troop = Troop::start(serving("http", &json!({})).workers(2));
    let (worker, port) = listening(&mut troop).await;
    listening(&mut troop).await;
    let mut streams = Vec::new();
    while streams.len() < 3 {
        let mut stream = open(port).await;
        if ask(&mut stream, "/").await.unwrap() == name(&worker) {
            streams.push(stream);
        }
    }
    worker.send(&"close").await.unwrap();
    for stream in &mut streams {
        let read = tokio::time::timeout(TEST_TIMEOUT, stream.read_u8()).await.unwrap();
        assert!(read.is_err(), "it is closed");
    }
}

#[tokio::test]
async fn a_moved_connection_has_the_timeout_of_one_that_was_just_answered() {
    let options = |keep_alive: u32| json!({"keepAliveTimeout": keep_alive, "headersTimeout": 200, "connectionsCheckingInterval": 50});
    for keep_alive in [60_000, 300] {
        let mut troop = Troop::start(serving("http", &options(keep_alive)));
        let (old, port) = listening(&mut troop).await;
        let mut stream = kept(port, 1).await.remove(0);
        troop.cluster.reload().await.unwrap();
        let (new, _) = listening(&mut troop).await;
        troop.exit(&old).await;
        if keep_alive == 300 {
            // It ends without a word, as every idle one.
            let mut said = String::new();
            stream.read_to_string(&mut said).await.unwrap();
            assert_eq!(said, "");
            continue;
        }
        // A client that comes later, begins a request, and is told that this takes too long.
        let mut slow = open(port).await;
        slow.write_all(b"GET / HT").await.unwrap();
        let mut said = String::new();
        slow.read_to_string(&mut said).await.unwrap();
        assert!(said.starts_with("HTTP/1.1 408"), "{said}");
        assert_eq!(ask(&mut stream, "/").await.expect("it is still open"), name(&new));
        // From then on it is one as all others: it moves again.
        troop.cluster.reload().await.unwrap();
        troop.exit(&new).await;
        assert!(ask(&mut stream, "/").await.is_some());
    }
}

#[tokio::test]
async fn sockets_and_messages_of_the_program_keep_their_order_meanwhile() {
    let mut troop = Troop::start(serving("http", &json!({})));
    let (old, port) = listening(&mut troop).await;
    let mut streams = kept(port, 20).await;
    let others = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = others.local_addr().unwrap().port();
    old.send(&json!({"sockets": at})).await.unwrap();
    let mut held = Vec::new();
    while held.len() < 20 {
        held.push(others.accept().await.unwrap());
    }
    troop.cluster.reload().await.unwrap();
    for number in 0..20 {
        assert_eq!(troop.message(&old).await, json!({"number": number}));
    }
    let (new, _) = listening(&mut troop).await;
    troop.exit(&old).await;
    for stream in &mut streams {
        assert_eq!(ask(stream, "/").await.expect("it is still open"), name(&new));
    }
}

#[tokio::test]
async fn connections_of_unix_sockets_move_too() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let mut troop = Troop::start(serving("http", &json!({"where": [path]})));
    let (old, _) = listening(&mut troop).await;
    let mut stream = tokio::net::UnixStream::connect(&path).await.unwrap();
    assert_eq!(ask(&mut stream, "/").await.unwrap(), name(&old));
    troop.cluster.reload().await.unwrap();
    let (new, _) = listening(&mut troop).await;
    troop.exit(&old).await;
    assert_eq!(ask(&mut stream, "/").await.expect("it is still open"), name(&new));
}

#[tokio::test]
async fn when_all_workers_leave_idle_connections_are_closed_at_once() {
    let mut troop = Troop::start(serving("http", &json!({})).workers(2));
    let (_, port) = listening(&mut troop).await;
    let mut streams = kept(port, 10).await;
    drop(troop.cluster.stop());
    for stream in &mut streams {
        let read = tokio::time::timeout(TEST_TIMEOUT, stream.read_u8()).await.unwrap();
        assert!(read.is_err(), "it is closed");
    }
}
