//! Connections that workers accept by themselves: counted, and what goes by their number.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead as _, BufReader};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use serde_json::Value;
use support::Home;
use troop_testkit::wait_until;

/// Keeps its connections open, and tells each client its process.
const HOLDS: &str = "require('net').createServer(s => { s.on('error', () => {}); s.write(`${process.pid}\\n`) }).listen({ fd: 3 }); process.on('SIGTERM', () => process.exit(0))";

fn start(home: &Home, args: &[&str]) -> String {
    let start = ["start", "node", "-n", "web", "--set", "min_ready_time=0"];
    home.fine(&[&start[..], args, &["--", "server.js"]].concat());
    home.show("web")["listeners"][0]["address"].as_str().unwrap().to_owned()
}

fn workers(home: &Home) -> Vec<Value> {
    home.show("web")["workers"].as_array().unwrap().clone()
}

/// The sums of what workers have accepted and have open.
fn counted(home: &Home) -> (u64, u64) {
    let sum = |name: &str| -> u64 {
        workers(home).iter().map(|worker| worker["stats"][name].as_u64().unwrap()).sum()
    };
    (sum("taken"), sum("open"))
}

/// The process that has accepted a connection.
fn server_of(client: &TcpStream) -> u64 {
    let mut line = String::new();
    BufReader::new(client).read_line(&mut line).unwrap();
    line.trim().parse().unwrap()
}

#[test]
fn connections_that_workers_accept_by_themselves_are_counted_while_they_are_open() {
    let home = Home::with(&[("server.js", HOLDS)]);
    let socket = home.path().join("web.sock").display().to_string();
    for (bind, policy) in
        [("127.0.0.1:0", "shared"), ("[::]:0", "steered"), (socket.as_str(), "shared")]
    {
        let address = start(&home, &["-i", "2", "-b", bind, "--policy", policy]);
        let address = address.replace("[::]", "127.0.0.1");
        assert_eq!(counted(&home), (0, 0), "{bind}");
        let (mut tcp, mut unix) = (Vec::new(), Vec::new());
        for _ in 0..4 {
            match bind == socket {
                true => unix.push(UnixStream::connect(&address).unwrap()),
                false => tcp.push(TcpStream::connect(&address).unwrap()),
            }
        }
        wait_until("the connections", || counted(&home) == (4, 4));
        let shown = home.fine(&["show", "web"]);
        assert!(shown.contains("TAKEN") && shown.contains(policy), "{shown}");
        tcp.truncate(1);
        unix.truncate(1);
        wait_until("the end of three", || counted(&home) == (4, 1));
        home.fine(&["delete", "web"]);
    }
}

#[test]
fn workers_that_accept_by_themselves_are_recycled_by_connections() {
    let home = Home::with(&[("server.js", HOLDS)]);
    let limit = ["--set", "recycle.connections=3", "--set", "recycle.jitter=0"];
    let address = start(&home, &[&["-i", "1", "-b", "127.0.0.1:0"], &limit[..]].concat());
    let first = workers(&home)[0]["id"].clone();
    let two = [TcpStream::connect(&address).unwrap(), TcpStream::connect(&address).unwrap()];
    wait_until("the connections", || counted(&home) == (2, 2));
    assert_eq!(workers(&home)[0]["id"], first);
    let _third = TcpStream::connect(&address).unwrap();
    wait_until("a new worker", || {
        let workers = workers(&home);
        workers.len() == 1 && workers[0]["id"] != first
    });
    home.fine(&["stop", "web"]);
    let log = home.log("web.log");
    assert!(log.contains("it has taken 3 connections, of at most 3"), "{log}");
    assert!(log.contains("finished: exit code 0") && !log.contains("died"), "{log}");
    drop(two);
}

#[test]
fn under_least_connections_new_connections_go_rather_to_activated_workers_with_few() {
    let home = Home::with(&[("server.js", HOLDS)]);
    let address = start(&home, &["-i", "1", "-b", "127.0.0.1:0", "--policy", "least-connections"]);
    let shown = home.fine(&["show", "web"]);
    assert!(shown.contains("least-connections") && !shown.contains("steered"), "{shown}");
    let busy = workers(&home)[0]["pid"].as_u64().unwrap();
    let _held: Vec<_> = (0..40).map(|_| TcpStream::connect(&address).unwrap()).collect();
    wait_until("the connections", || counted(&home).1 == 40);
    home.fine(&["scale", "web", "2"]);
    wait_until("nearly all connections for the idle worker", || {
        let clients: Vec<_> = (0..40).map(|_| TcpStream::connect(&address).unwrap()).collect();
        clients.iter().filter(|client| server_of(client) == busy).count() < 10
    });
    home.fine(&["stop", "web"]);
}
