//! A reload to a version that does not work: the old one serves on, every request is answered, and
//! the command says why.

#![allow(clippy::unwrap_used)]

mod support;

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{Running, start};
use troop_testkit::{talk, wait_until};

const GOOD: &str =
    "require('http').createServer((q, s) => s.end('good')).listen(PORT, '127.0.0.1');";

/// Requests without a pause, until it is told to end.
struct Load {
    ended: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    clients: Vec<std::thread::JoinHandle<Vec<String>>>,
}

impl Load {
    fn start(port: u16) -> Load {
        let (ended, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let client = |ended: Arc<AtomicBool>, served: Arc<AtomicUsize>| {
            move || {
                let mut failures = Vec::new();
                while !ended.load(Ordering::Relaxed) {
                    match talk(([127, 0, 0, 1], port), "GET / HTTP/1.0\r\n\r\n") {
                        Ok(answer) if answer.ends_with("good") => {
                            served.fetch_add(1, Ordering::Relaxed);
                        }
                        other => failures.push(format!("{other:?}")),
                    }
                }
                failures
            }
        };
        let clients = (0..3).map(|_| std::thread::spawn(client(ended.clone(), served.clone())));
        Load { clients: clients.collect(), ended, served }
    }

    /// Waits until so many more requests have been served.
    fn go_on(&self, more: usize) {
        let before = self.served.load(Ordering::Relaxed);
        wait_until("requests are served", || self.served.load(Ordering::Relaxed) >= before + more);
    }

    /// Returns the failures.
    fn end(self) -> Vec<String> {
        self.ended.store(true, Ordering::Relaxed);
        self.clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    }
}

fn ids(app: &Running) -> Vec<u64> {
    let shown: Vec<Value> = serde_json::from_str(&app.troop(["show", "--json"]).1).unwrap();
    let workers = shown[0]["workers"].as_array().unwrap();
    workers
        .iter()
        .filter(|worker| worker["leaving_ms"].is_null())
        .map(|worker| worker["id"].as_u64().unwrap())
        .collect()
}

fn is_survived(version: &str, parts: &[&str]) {
    is_survived_under("round-robin", version, parts);
}

fn is_survived_under(policy: &str, version: &str, parts: &[&str]) {
    let directory = tempfile::tempdir().unwrap();
    let port = troop_testkit::free_port();
    let app_js = directory.path().join("app.js");
    std::fs::write(&app_js, GOOD.replace("PORT", &port.to_string())).unwrap();
    std::fs::write(
        directory.path().join("troop.toml"),
        format!("[app.web]\nprogram = \"app.js\"\nworkers = 2\nlog = \"json\"\nready_timeout = 2\npolicy = \"{policy}\"\n"),
    )
    .unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_troop"));
    command.arg("run").current_dir(directory.path());
    let mut app = start(command);
    app.listening(2);
    let before = ids(&app);
    let load = Load::start(port);
    load.go_on(10);
    std::fs::write(&app_js, version.replace("PORT", &port.to_string())).unwrap();
    let began = Instant::now();
    let (code, _, err) = app.troop(["reload", "web"]);
    assert_eq!(code, 1, "{err}");
    assert!(began.elapsed() < Duration::from_secs(15));
    for part in parts {
        assert!(err.contains(part), "{part} in {err}");
    }
    assert_eq!(ids(&app), before, "the old workers are the only ones");
    load.go_on(10);
    let failures = load.end();
    assert!(failures.is_empty(), "{} failed, the first: {:?}", failures.len(), failures.first());
    // And then one that works, once node starts within the two seconds.
    std::fs::write(&app_js, GOOD.replace("PORT", &port.to_string())).unwrap();
    wait_until("a version that works", || {
        let (code, _, err) = app.troop(["reload", "web"]);
        // What such a reload has replaced is rolled back.
        let is_too_early = ["not ready after 2 s", "a reload is under way"];
        assert!(code == 0 || is_too_early.iter().any(|text| err.contains(text)), "{err}");
        code == 0
    });
}

#[test]
fn one_that_throws_at_its_start() {
    is_survived("throw new Error('bad config')", &["exit code 1", "bad config"]);
}

#[test]
fn one_that_hangs_at_its_start() {
    is_survived("for (;;);", &["not ready after 2 s"]);
}

#[test]
fn one_that_never_listens() {
    is_survived("setInterval(() => {}, 1000)", &["not ready after 2 s"]);
}

#[test]
fn one_that_ends_after_a_second() {
    // It serves meanwhile, if it is let: it is given nothing before it has shown that it stays.
    for policy in ["round-robin", "least-connections", "steered"] {
        is_survived_under(
            policy,
            &format!("{GOOD} setTimeout(() => process.exit(3), 1000)"),
            &["exit code 3"],
        );
    }
}

#[test]
fn one_that_cannot_bind() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    is_survived(
        &format!("require('net').createServer().listen({port}, '127.0.0.1')"),
        &["exit code 1", "EADDRINUSE"],
    );
}

#[test]
fn one_that_cannot_be_executed() {
    let directory = tempfile::tempdir().unwrap();
    let (program, gone) = (directory.path().join("run"), directory.path().join("gone"));
    std::fs::write(directory.path().join("app.js"), GOOD.replace("PORT", "0")).unwrap();
    std::fs::write(&program, "#!/bin/sh\nexec node \"$(dirname $0)/app.js\"\n").unwrap();
    rustix::fs::chmod(&program, 0o755.into()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_troop"));
    command.args(["run", "--log", "json", "-w", "2"]).arg(&program);
    let mut app = start(command);
    app.listening(2);
    std::fs::rename(&program, gone).unwrap();
    let (code, _, err) = app.troop(["reload"]);
    assert!(code == 1 && err.contains("could not be started"), "{code} {err}");
    assert_eq!(ids(&app), [1, 2]);
}
