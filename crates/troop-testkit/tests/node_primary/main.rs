//! Rust workers under an unchanged Node primary, alone and beside Node workers.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod messages;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use serde_json::{Value, json};
use troop_testkit::{TEST_TIMEOUT, free_port, is_running, node_program, talk, wait_until};

/// The scheduling, and the serialization if it is not JSON.
const ALL: [&str; 4] = ["rr", "none", "rr advanced", "none advanced"];
const FORMATS: [&str; 2] = ["rr", "rr advanced"];

/// A Node process that runs `node/primary.js`.
struct NodePrimary {
    process: Child,
    input: ChildStdin,
    lines: Receiver<Value>,
    /// What it said, and whether a test has already asked for it.
    seen: Vec<(Value, bool)>,
}

impl Drop for NodePrimary {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl NodePrimary {
    fn start(policy: &str) -> NodePrimary {
        NodePrimary::with_stderr(policy, Stdio::inherit())
    }

    fn with_stderr(policy: &str, stderr: Stdio) -> NodePrimary {
        let mut command = Command::new("node");
        command
            .arg(node_program("primary.js"))
            .arg(env!("CARGO_BIN_EXE_troop-fixture"))
            .args(policy.split(' '));
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .expect("node is installed");
        let (input, output) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                // Workers write to the same stream, but no JSON.
                if let Ok(value) = serde_json::from_str(&line) {
                    let _ = sender.send(value);
                }
            }
        });
        NodePrimary { process, input, lines, seen: Vec::new() }
    }

    /// Lets it run this.
    fn run(&mut self, text: &str) {
        // Node's readline takes U+2028 and U+2029 for ends of lines.
        let text = text.replace('\n', " ").replace('\u{2028}', "\\u2028");
        writeln!(self.input, "{text}").unwrap();
    }

    /// The first message that no earlier call has returned and that has these fields.
    fn until(&mut self, fields: &Value) -> Value {
        let matches = |value: &Value| {
            fields.as_object().unwrap().iter().all(|(name, field)| value[name] == *field)
        };
        if let Some((value, asked)) =
            self.seen.iter_mut().find(|(value, asked)| !asked && matches(value))
        {
            *asked = true;
            return value.clone();
        }
        let deadline = Instant::now() + TEST_TIMEOUT;
        loop {
            let next = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now()));
            let Ok(value) = next else {
                panic!("no {fields} after {TEST_TIMEOUT:?}; seen: {}", self.story())
            };
            let found = matches(&value);
            self.seen.push((value.clone(), found));
            if found {
                return value;
            }
        }
    }

    fn story(&self) -> String {
        self.seen.iter().map(|(value, _)| format!("\n  {value}")).collect()
    }

    fn event(&mut self, event: &str, worker: u32) -> Value {
        self.until(&json!({"event": event, "worker": worker}))
    }

    fn listening(&mut self, worker: u32) -> u16 {
        u16::try_from(self.event("listening", worker)["at"]["port"].as_i64().unwrap_or(0))
            .unwrap_or(0)
    }

    fn pid(&mut self, worker: u32) -> u32 {
        u32::try_from(self.event("online", worker)["pid"].as_u64().unwrap()).unwrap()
    }

    fn message(&mut self, worker: u32) -> Value {
        self.event("message", worker)["message"].take()
    }

    /// How a worker ended: its code or signal, and whether voluntarily.
    fn exit(&mut self, worker: u32) -> (Value, Value) {
        let report = self.event("exit", worker);
        let how = if report["code"].is_null() { &report["signal"] } else { &report["code"] };
        (how.clone(), report["voluntary"].clone())
    }
}

fn local(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

fn served(port: u16) -> String {
    talk(local(port), "").unwrap()
}

fn get(port: u16) -> String {
    talk(local(port), "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap()
}

fn whole(mut stream: impl Read) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(local(port)).unwrap();
    stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    stream
}

fn left_voluntarily() -> (Value, Value) {
    (json!(0), json!(true))
}

#[test]
fn connections_alternate_exactly_between_rust_workers() {
    let mut primary = NodePrimary::start("rr");
    primary.run("rust('line', '127.0.0.1:0'); rust('line', '127.0.0.1:0')");
    let port = primary.listening(1);
    assert_eq!(primary.listening(2), port);
    let answers: Vec<String> = (0..10).map(|_| served(port)).collect();
    assert!(answers.windows(2).all(|pair| pair[0] != pair[1]), "{answers:?}");
}

#[test]
fn events_come_in_nodes_order() {
    for policy in ALL {
        let mut primary = NodePrimary::start(policy);
        primary.run("rust('line', '127.0.0.1:0')");
        primary.listening(1);
        primary.run("cluster.workers[1].disconnect()");
        primary.event("exit", 1);
        let names: Vec<_> =
            primary.seen.iter().map(|(value, _)| value["event"].as_str().unwrap()).collect();
        assert_eq!(names, ["fork", "online", "listening", "disconnect", "exit"]);
        let states: Vec<_> =
            primary.seen.iter().map(|(value, _)| value["state"].as_str().unwrap()).collect();
        assert_eq!(states, ["none", "online", "listening", "disconnected", "dead"]);
    }
}

#[test]
fn listening_tells_what_a_node_worker_would() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s").display().to_string();
    let port = free_port();
    for (call, at) in [
        (
            format!("rust('line', ':{port}')"),
            json!({"addressType": 4, "address": null, "port": port}),
        ),
        (
            format!("rust('line', '127.0.0.1:{port}')"),
            json!({"addressType": 4, "address": "127.0.0.1", "port": port}),
        ),
        (
            format!("rust('line', '[::1]:{port}')"),
            json!({"addressType": 6, "address": "::1", "port": port}),
        ),
        (
            format!("rust('unix', '{path}')"),
            json!({"addressType": -1, "address": path, "port": -1}),
        ),
        (
            format!("rust('udp', '127.0.0.1:{port}')"),
            json!({"addressType": "udp4", "address": "127.0.0.1", "port": port, "fd": -1}),
        ),
        (
            format!("rust('udp', '[::1]:{port}')"),
            json!({"addressType": "udp6", "address": "::1", "port": port, "fd": -1}),
        ),
    ] {
        for policy in ALL {
            let mut primary = NodePrimary::start(policy);
            primary.run(&call);
            assert_eq!(primary.event("listening", 1)["at"], at, "{call}");
            primary.run("cluster.workers[1].disconnect()");
            primary.event("exit", 1);
        }
    }
}

#[test]
fn every_api_is_served_under_both_policies() {
    for policy in ALL {
        for face in ["line", "blocking"] {
            let mut primary = NodePrimary::start(policy);
            primary.run(&format!("rust('{face}', '127.0.0.1:0'); rust('{face}', '127.0.0.1:0')"));
            let port = primary.listening(1);
            assert_eq!(primary.listening(2), port);
            let mut pids = BTreeMap::from([(1, primary.pid(1)), (2, primary.pid(2))]);
            for _ in 0..10 {
                let answer = served(port);
                let (id, pid) = answer.trim().split_once(' ').unwrap();
                assert_eq!(
                    pids[&id.parse().unwrap()],
                    pid.parse::<u32>().unwrap(),
                    "{policy} {face}"
                );
            }
            primary.run("cluster.disconnect()");
            for id in [1, 2] {
                assert_eq!(primary.exit(id), left_voluntarily(), "{policy} {face}");
                pids.remove(&id);
            }
        }
    }
}

#[test]
fn http_is_served_under_both_policies() {
    for policy in ALL {
        let mut primary = NodePrimary::start(policy);
        primary.run("rust('http', '127.0.0.1:0'); rust('http', '127.0.0.1:0')");
        let port = primary.listening(1);
        assert_eq!(primary.listening(2), port);
        for _ in 0..10 {
            assert!(get(port).starts_with("HTTP/1.1 200 OK"), "{policy}");
        }
        primary.run("cluster.disconnect()");
        assert_eq!(
            (primary.exit(1), primary.exit(2)),
            (left_voluntarily(), left_voluntarily()),
            "{policy}"
        );
    }
}

#[test]
fn a_unix_socket_is_served_under_both_policies() {
    for policy in ALL {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let mut primary = NodePrimary::start(policy);
        let call = format!("rust('unix', '{}');", path.display());
        primary.run(&call.repeat(2));
        let pids = [primary.pid(1), primary.pid(2)];
        primary.listening(1);
        primary.listening(2);
        for _ in 0..6 {
            let answer = whole(UnixStream::connect(&path).unwrap());
            assert!(
                pids.iter().any(|pid| answer.ends_with(&format!(" {pid}\n"))),
                "{policy} {answer}"
            );
        }
        primary.run("cluster.disconnect()");
        assert_eq!(
            (primary.exit(1), primary.exit(2)),
            (left_voluntarily(), left_voluntarily()),
            "{policy}"
        );
        assert!(!path.exists());
    }
}

#[test]
fn udp_is_served_under_both_policies() {
    for policy in ALL {
        for host in ["127.0.0.1", "::1"] {
            let mut primary = NodePrimary::start(policy);
            let address = SocketAddr::new(host.parse().unwrap(), 0);
            primary.run(&format!("rust('udp', '{address}'); rust('udp', '{address}')"));
            let port = primary.listening(1);
            assert_eq!(primary.listening(2), port);
            let client = UdpSocket::bind(address).unwrap();
            client.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
            for _ in 0..10 {
                client.send_to(b"hello", (host, port)).unwrap();
                let mut buffer = [0; 100];
                let n = client.recv(&mut buffer).unwrap();
                assert!(buffer[..n].starts_with(b"hello "), "{policy} {host}");
            }
            primary.run("cluster.disconnect()");
            assert_eq!(
                (primary.exit(1), primary.exit(2)),
                (left_voluntarily(), left_voluntarily()),
                "{policy}"
            );
        }
    }
}

#[test]
fn a_descriptor_of_the_primary_is_served() {
    for policy in ALL {
        let listener = TcpListener::bind(local(0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        // As its standard error, which Node does not touch.
        let mut primary = NodePrimary::with_stderr(policy, OwnedFd::from(listener).into());
        primary.run("rust('options', 'x', '2')");
        assert_eq!(primary.message(1), json!({"port": port}), "{policy}");
        assert!(!served(port).is_empty());
    }
}

#[test]
fn a_taken_port_is_an_error_in_the_worker() {
    let other = TcpListener::bind(local(0)).unwrap();
    for policy in ALL {
        for face in ["line", "blocking"] {
            let mut primary = NodePrimary::start(policy);
            primary.run(&format!("rust('{face}', '{}')", other.local_addr().unwrap()));
            assert_eq!(primary.exit(1), (json!(1), json!(false)), "{policy} {face}");
            assert!(!primary.story().contains("\"listening\""));
        }
    }
}

#[test]
fn a_taken_udp_port_is_an_error_in_the_worker() {
    let other = UdpSocket::bind(local(0)).unwrap();
    for policy in ALL {
        let mut primary = NodePrimary::start(policy);
        primary.run(&format!("rust('udp', '{}')", other.local_addr().unwrap()));
        assert_eq!(primary.exit(1), (json!(1), json!(false)), "{policy}");
    }
}

#[test]
fn an_exclusive_listener_is_bound_by_the_worker_itself() {
    let mut primary = NodePrimary::start("rr");
    primary.run(
        "rust('options', '127.0.0.1:0', 'exclusive'); rust('options', '127.0.0.1:0', 'exclusive')",
    );
    let ports = [
        primary.message(1)["port"].as_u64().unwrap(),
        primary.message(2)["port"].as_u64().unwrap(),
    ];
    assert_ne!(ports[0], ports[1]);
    for port in ports {
        assert!(!served(u16::try_from(port).unwrap()).is_empty());
    }
    assert!(!primary.story().contains("\"listening\""));
}

#[test]
fn rust_and_node_workers_serve_one_port_in_turn() {
    let port = free_port();
    let mut primary = NodePrimary::start("rr");
    primary.run(&format!("rust('line', ':{port}'); script('serve({port})')"));
    assert_eq!((primary.listening(1), primary.listening(2)), (port, port));
    let answers: Vec<String> = (0..10).map(|_| served(port)).collect();
    assert!(answers.windows(2).all(|pair| pair[0] != pair[1]), "{answers:?}");
    for id in [1, 2] {
        assert_eq!(
            answers
                .iter()
                .filter(|a| **a == format!("{id} {}\n", a.trim().split_once(' ').unwrap().1))
                .count(),
            5
        );
    }
    primary.run("cluster.disconnect()");
    assert_eq!((primary.exit(1), primary.exit(2)), (left_voluntarily(), left_voluntarily()));
}

#[test]
fn rust_and_node_workers_share_one_socket() {
    let port = free_port();
    let mut primary = NodePrimary::start("none");
    primary.run(&format!("rust('line', ':{port}'); script('serve({port})')"));
    let rust = primary.pid(1);
    assert_eq!((primary.listening(1), primary.listening(2)), (port, port));
    primary.run("cluster.workers[2].disconnect()");
    assert_eq!(primary.exit(2), left_voluntarily());
    // The remaining worker serves.
    assert_eq!(served(port), format!("1 {rust}\n"));
}

// ---- ends ----

#[test]
fn a_disconnected_worker_ends_voluntarily_with_code_0() {
    for policy in ALL {
        for call in [
            "rust('line', '127.0.0.1:0')",
            "rust('blocking', '127.0.0.1:0')",
            "rust('udp', '127.0.0.1:0')",
        ] {
            let mut primary = NodePrimary::start(policy);
            primary.run(call);
            primary.listening(1);
            primary.run("cluster.workers[1].disconnect()");
            let disconnect = primary.event("disconnect", 1);
            assert_eq!(
                (&disconnect["voluntary"], &disconnect["known"]),
                (&json!(true), &json!(false)),
                "{policy} {call}"
            );
            assert_eq!(primary.exit(1), left_voluntarily(), "{policy} {call}");
        }
    }
}

#[test]
fn a_worker_disconnected_before_it_runs_comes_online_and_ends() {
    let mut primary = NodePrimary::start("rr");
    primary.run("rust('line', '127.0.0.1:0').disconnect()");
    assert_eq!(primary.event("online", 1)["known"], false);
    assert_eq!(primary.exit(1).1, true);
    assert!(!primary.story().contains("\"listening\""));
}

#[test]
fn a_worker_that_leaves_by_itself_is_voluntary() {
    for policy in ALL {
        let mut primary = NodePrimary::start(policy);
        primary.run("rust('leave', '127.0.0.1:0')");
        assert_eq!(primary.exit(1), left_voluntarily(), "{policy}");
    }
}

#[test]
fn a_worker_that_exits_is_reported_with_its_code_and_not_voluntary() {
    let mut primary = NodePrimary::start("rr");
    primary.run("rust('exit', '3')");
    assert_eq!(primary.exit(1), (json!(3), json!(false)));
    primary.run("rust('line', '127.0.0.1:0')");
    primary.listening(2);
    primary.run("cluster.workers[2].kill()");
    assert_eq!(primary.exit(2), (json!("SIGTERM"), json!(false)));
}

#[test]
fn a_worker_whose_channel_is_closed_ends_with_code_0_involuntarily() {
    let mut primary = NodePrimary::start("rr");
    primary.run("rust('http', '127.0.0.1:0')");
    primary.listening(1);
    primary.run("cluster.workers[1].process.disconnect()");
    assert_eq!(primary.exit(1), (json!(0), json!(false)));
}

#[test]
fn a_request_in_progress_is_finished_before_its_worker_ends() {
    for policy in ALL {
        let mut primary = NodePrimary::start(policy);
        primary.run("rust('http', '127.0.0.1:0')");
        let port = primary.listening(1);
        let mut slow = connect(port);
        slow.write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        // Once this is answered, the other one has arrived.
        get(port);
        primary.run("cluster.workers[1].disconnect()");
        assert!(whole(slow).ends_with("slow\n"), "{policy}");
        assert_eq!(primary.exit(1), left_voluntarily(), "{policy}");
    }
}

#[test]
fn the_port_is_closed_when_the_last_worker_has_left() {
    let mut primary = NodePrimary::start("rr");
    primary.run("rust('line', '127.0.0.1:0')");
    let port = primary.listening(1);
    primary.run("cluster.workers[1].disconnect()");
    primary.exit(1);
    assert!(TcpStream::connect(local(port)).is_err());
}

#[test]
fn workers_go_away_with_their_primary() {
    for (face, listens) in [("http", true), ("blocking", true), ("orphan", false)] {
        let mut primary = NodePrimary::start("rr");
        primary.run(&format!("rust('{face}', '127.0.0.1:0')"));
        let pid = primary.pid(1);
        if listens {
            primary.listening(1);
        }
        primary.process.kill().unwrap();
        wait_until(&format!("the end of {face}"), || !is_running(pid));
    }
}

#[test]
fn a_worker_can_outlive_its_primary_if_it_asks_to() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("f");
    let mut primary = NodePrimary::start("rr");
    primary.run(&format!("rust('outlive', '{}')", file.display()));
    let pid = primary.pid(1);
    primary.process.kill().unwrap();
    primary.process.wait().unwrap();
    wait_until("the file", || std::fs::read_to_string(&file).is_ok_and(|text| text == "outlived"));
    wait_until("its end", || !is_running(pid));
}
