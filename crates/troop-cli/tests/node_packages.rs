//! Servers made with packages from npm, run as clusters unchanged. `npm install` in `examples/node`
//! comes before.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;

use support::{Running, example, run};
use troop_testkit::{TEST_TIMEOUT, talk};

/// The examples take their port from the environment; 0 lets the kernel choose.
fn cluster(name: &str) -> (Running, u16) {
    let installed = example("node_modules");
    assert!(installed.exists(), "run `npm install` in examples/node first");
    let program = example(name).display().to_string();
    let mut troop = run(["-w", "2", "--env", "PORT=0", program.as_str()]);
    let port = troop.listening(2);
    (troop, port)
}

fn is_served_by_both(name: &str) {
    let (troop, port) = cluster(name);
    let request = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let mut served_by = BTreeSet::new();
    for _ in 0..6 {
        // Fastify listens on localhost, which may be either family.
        let answer = talk(([127, 0, 0, 1], port), request).unwrap();
        let pid = troop
            .workers()
            .iter()
            .find(|pid| answer.contains(&format!("hello from process {pid}")));
        served_by.insert(*pid.unwrap_or_else(|| panic!("{answer}")));
    }
    assert_eq!(served_by.len(), 2);
}

#[test]
fn the_plain_http_example_is_clustered() {
    is_served_by_both("hello.js");
}

#[test]
fn an_express_app_is_clustered() {
    is_served_by_both("express.js");
}

#[test]
fn a_fastify_app_is_clustered() {
    is_served_by_both("fastify.mjs");
}

#[test]
fn a_websocket_server_is_clustered() {
    let (troop, port) = cluster("websocket.js");
    let mut heard_by = BTreeSet::new();
    for _ in 0..4 {
        let answer = websocket(port);
        let pid = troop.workers().iter().find(|pid| answer == format!("{pid} heard hello"));
        heard_by.insert(*pid.unwrap_or_else(|| panic!("{answer}")));
    }
    assert_eq!(heard_by.len(), 2);
}

/// Opens a WebSocket, sends `hello`, and returns the answer (RFC 6455, as little as needed).
fn websocket(port: u16) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    let request = "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    // A text frame of five bytes, masked with zeros.
    stream.write_all(b"\x81\x85\0\0\0\0hello").unwrap();
    let mut header = [0; 2];
    stream.read_exact(&mut header).unwrap();
    assert_eq!(header[0], 0x81);
    let mut text = vec![0; usize::from(header[1])];
    stream.read_exact(&mut text).unwrap();
    String::from_utf8(text).unwrap()
}
