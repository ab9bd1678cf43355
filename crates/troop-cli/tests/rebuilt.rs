//! A state that ends each engine before that is ready: one goes on with the workers and listeners in it, and
//! leaves the rest.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs::File;
use std::net::TcpStream;
use std::os::unix::fs::FileExt as _;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::kept_client::KeptClient;
use support::{Running, get, node, start};
use troop_testkit::{engine, is_running, wait_until};

/// An app each of whose engines dies that reads the state as it is.
fn app(options: &[&str]) -> Running {
    let mut command = Command::new(env!("CARGO_BIN_EXE_troop"));
    command.args(["run", "--log", "json", "-w", "2"]).args(options).arg(node("hello.js"));
    command.env("TROOP_FAULT", "recovering:1:").env("TROOP_FAULT_SIGNAL", "6");
    start(command)
}

fn kill(pid: u32) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
}

fn shown(troop: &Running) -> Option<Value> {
    let (code, out, _) = troop.troop(["show", "--json"]);
    let all = serde_json::from_str::<Vec<Value>>(&out).unwrap_or_default();
    all.into_iter().next().filter(|_| code == 0)
}

/// Waits for the engine after this many others.
fn crashed(troop: &Running, times: u64) {
    wait_until("another engine", || {
        shown(troop).is_some_and(|shown| shown["crashes"].as_u64() == Some(times))
    });
}

fn said(troop: &mut Running) {
    let mut lines = std::iter::repeat_with(|| troop.event_line().unwrap());
    let line = lines.find(|line| line.contains("goes on with the app")).unwrap();
    assert!(line.contains("nothing of what they had left but workers and addresses"), "{line}");
}

/// Workers are served, looked after, replaced and ended, as if nothing had been.
fn is_as_before(mut troop: Running, port: u16, workers: &[u32], may_upgrade: bool) {
    let (_, out, err) = troop.troop(["ls"]);
    assert!(out.contains("running") && out.contains("2/2"), "{out}{err}");
    kill(workers[0]);
    let exit = troop.event("exit");
    assert_eq!(
        (exit["pid"].as_u64(), &exit["signal"]),
        (Some(workers[0].into()), &"SIGKILL".into())
    );
    troop.event("listening");
    wait_until("both are ready", || troop.troop(["ls"]).1.contains("2/2"));
    let verbs =
        [("scale 3", "3 workers"), ("reload", "3 workers replaced"), ("upgrade", "upgraded")];
    for (verb, expected) in &verbs[..if may_upgrade { 3 } else { 2 }] {
        let args: Vec<_> = verb.split(' ').collect();
        let (code, out, err) = troop.troop(&args);
        assert!(code == 0 && out.contains(expected), "{args:?}: {out}{err}");
        get(port).unwrap();
    }
    wait_until("the end of those that were replaced", || !is_running(workers[1]));
    assert_eq!(troop.troop(["stop"]).0, 0);
    assert_eq!(troop.end().0, Some(0));
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "the port is free");
}

fn workers_and_clients_stay(options: &[&str]) {
    let mut troop = app(options);
    let port = troop.listening(2);
    let workers = troop.workers().to_vec();
    let mut clients: Vec<_> = (0..4).map(|_| KeptClient::new(port)).collect();
    let served: Vec<_> = clients.iter_mut().map(KeptClient::get).collect();
    let keeper = troop.child.id();
    // Twice: what is written down then is a state like others.
    for round in 1..=2 {
        kill(engine(keeper).unwrap());
        let waiting = std::thread::spawn(move || get(port));
        // Three more read the state, and die. Workers close connections that are not used.
        wait_until("another engine", || {
            let now: Vec<_> = clients.iter_mut().map(KeptClient::get).collect();
            assert_eq!(now, served, "connections stay where they are");
            shown(&troop).is_some_and(|shown| shown["crashes"].as_u64() == Some(round * 4))
        });
        said(&mut troop);
        waiting.join().unwrap().expect("who comes meanwhile waits");
        let now: Vec<_> = clients.iter_mut().map(KeptClient::get).collect();
        assert_eq!(now, served, "connections stay where they are");
        let answers: std::collections::BTreeSet<_> = (0..12).map(|_| get(port).unwrap()).collect();
        assert_eq!(answers.len(), 2, "both are served: {answers:?}");
        assert!(workers.iter().all(|pid| is_running(*pid)), "workers are as they were");
        assert_eq!(troop.workers(), workers, "none was started");
        let shown = shown(&troop).unwrap();
        let mut numbers: Vec<_> =
            shown["workers"].as_array().unwrap().iter().map(|one| one["id"].as_u64()).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [Some(1), Some(2)], "{shown}");
    }
    drop(clients);
    // Another engine that reads the state would die, too.
    is_as_before(troop, port, &workers, false);
}

#[test]
fn workers_outlive_a_state_that_no_engine_survives() {
    workers_and_clients_stay(&[]);
}

#[test]
fn workers_outlive_a_state_that_no_engine_survives_under_round_robin() {
    workers_and_clients_stay(&["--policy", "round-robin"]);
}

#[test]
fn workers_outlive_a_state_that_no_engine_survives_under_steering() {
    workers_and_clients_stay(&["--policy", "steered"]);
}

#[test]
fn workers_outlive_a_state_that_no_engine_survives_with_a_shared_socket() {
    workers_and_clients_stay(&["--policy", "shared"]);
}

/// Tells a state that was completely written from one that was not, as the library does.
fn checksum(number: u64, state: &[u8]) -> u64 {
    let mut sum = 0xcbf2_9ce4_8422_2325_u64 ^ number;
    let mut add = |word: u64| sum = (sum ^ word).wrapping_mul(0x0100_0000_01b3);
    let mut words = state.chunks_exact(8);
    for word in &mut words {
        add(u64::from_ne_bytes(word.try_into().unwrap()));
    }
    words.remainder().iter().for_each(|byte| add(u64::from(*byte)));
    add(state.len() as u64);
    sum ^ sum >> 29
}

/// Replaces text in the state that a keeper holds by as much other text.
fn tamper(keeper: u32, text: &str, instead: &str) {
    assert_eq!(text.len(), instead.len());
    let all = std::fs::read_dir(format!("/proc/{keeper}/fd")).unwrap().flatten();
    let is_state = |path: &std::path::PathBuf| {
        std::fs::read_link(path).is_ok_and(|to| to.to_str().unwrap().contains("memfd:troop-state"))
    };
    let path = all.map(|fd| fd.path()).find(is_state).expect("a state");
    let file = File::options().read(true).write(true).open(path).unwrap();
    for slot in 0..2 {
        let mut head = [0; 32];
        file.read_exact_at(&mut head, slot * 32).unwrap();
        let word = |at: usize| u64::from_ne_bytes(head[at * 8..][..8].try_into().unwrap());
        let (number, at, len) = (word(0), word(1), word(2));
        if number == 0 {
            continue;
        }
        let mut state = vec![0; usize::try_from(len).unwrap()];
        file.read_exact_at(&mut state, at).unwrap();
        let found: Vec<_> = memchr::memmem::find_iter(&state, text.as_bytes()).collect();
        assert!(!found.is_empty(), "{text} is in the state");
        for place in found {
            state[place..][..text.len()].copy_from_slice(instead.as_bytes());
        }
        file.write_all_at(&state, at).unwrap();
        let sum = checksum(number, &state).to_ne_bytes();
        file.write_all_at(&sum, slot * 32 + 24).unwrap();
    }
}

fn with_a_tampered_state(text: &str, instead: &str) -> (Running, u16, Vec<u32>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_troop"));
    command.args(["run", "--log", "json", "-w", "2"]).arg(node("hello.js"));
    let mut troop = start(command);
    let port = troop.listening(2);
    let (keeper, workers) = (troop.child.id(), troop.workers().to_vec());
    wait_until("both are ready", || troop.troop(["ls"]).1.contains("2/2"));
    let before = engine(keeper).unwrap();
    // It would write another one.
    kill_process(Pid::from_raw(before.cast_signed()).unwrap(), Signal::STOP).unwrap();
    tamper(keeper, text, instead);
    kill(before);
    (troop, port, workers)
}

#[test]
fn workers_outlive_a_state_of_which_most_is_damaged() {
    let (mut troop, port, workers) =
        with_a_tampered_state("\"liveness\":{\"heard\"", "\"liveness\":{\"heart\"");
    crashed(&troop, 4);
    said(&mut troop);
    assert_eq!(troop.workers(), workers);
    get(port).unwrap();
    is_as_before(troop, port, &workers, true);
}

#[test]
fn an_app_starts_afresh_where_not_even_the_workers_can_be_read() {
    let (mut troop, _, workers) = with_a_tampered_state("\"memberships\"", "\"membershipz\"");
    let port = troop.listening(2);
    crashed(&troop, 5);
    get(port).unwrap();
    wait_until("the former workers have ended", || !workers.iter().any(|pid| is_running(*pid)));
    assert!(troop.seen.iter().any(|line| line.contains("this one starts afresh")));
    assert_eq!(troop.troop(["stop"]).0, 0);
}
