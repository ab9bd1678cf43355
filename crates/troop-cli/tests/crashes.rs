//! The process that runs an app is killed, and another one goes on with it: workers and connections stay.

#![allow(clippy::unwrap_used)]

mod support;

use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::process::{Pid, Signal, kill_process};
use support::kept_client::KeptClient;
use support::{Running, node, run};
use troop_testkit::{engine, is_running, talk, wait_until};

/// How often it is killed under load.
const CRASHES: usize = 10;
/// The clients that make a new connection for each request.
const NEW_CLIENTS: usize = 3;

fn app(options: &[&str], program: &str) -> Running {
    let options = options.iter().map(|option| (*option).to_owned());
    run(options.chain([node(program).display().to_string()]))
}

fn get(port: u16, path: &str) -> std::io::Result<String> {
    let answer = talk(([127, 0, 0, 1], port), &format!("GET {path} HTTP/1.0\r\n\r\n"))?;
    match answer.split_once("\r\n\r\n") {
        Some((_, body)) if !body.is_empty() => Ok(body.to_owned()),
        _ => Err(std::io::Error::other(format!("no answer, but {answer:?}"))),
    }
}

fn kill(pid: u32) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
}

/// Kills the engine, and waits until another one answers. Returns the number of crashes that it shows.
fn crash(troop: &Running) -> u64 {
    let before = engine(troop.child.id()).expect("an engine");
    kill(before);
    let mut crashes = 0;
    wait_until("another engine", || {
        let (code, out, _) = troop.troop(["show", "--json"]);
        let shown: Vec<serde_json::Value> = match code {
            0 => serde_json::from_str(&out).unwrap(),
            _ => return false,
        };
        let [shown] = &shown[..] else { return false };
        crashes = shown["crashes"].as_u64().unwrap_or(0);
        shown["engine"].as_u64().is_some_and(|now| now != u64::from(before))
    });
    crashes
}

/// Connections are lost that the engine has in its hands when it is killed: new ones, of each client one at
/// most, and those that move to another worker, which is turned off here.
fn crashes_under_load_cost_no_worker(options: &[&str]) {
    let mut troop = app(&[&["-w", "2", "--set", "rebalance=false"], options].concat(), "hello.js");
    let port = troop.listening(2);
    let workers = troop.workers().to_vec();
    let mut kept_clients: Vec<_> = (0..NEW_CLIENTS).map(|_| KeptClient::new(port)).collect();
    kept_clients.iter_mut().for_each(|client| drop(client.get()));
    let (stop, lost, refused) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let clients: Vec<_> = (kept_clients.into_iter().map(Some))
            .chain((0..NEW_CLIENTS).map(|_| None))
            .map(|mut kept| {
                let (stop, lost, refused) = (&stop, &lost, &refused);
                scope.spawn(move || {
                    let mut done = 0;
                    while !stop.load(Ordering::Relaxed) {
                        match &mut kept {
                            Some(client) => drop(client.get()),
                            None => match get(port, "/") {
                                Ok(_) => {}
                                Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => {
                                    refused.fetch_add(1, Ordering::Relaxed);
                                }
                                Err(_) => drop(lost.fetch_add(1, Ordering::Relaxed)),
                            },
                        }
                        done += 1;
                    }
                    done
                })
            })
            .collect();
        for round in 1..=CRASHES {
            assert_eq!(crash(&troop), round as u64);
        }
        stop.store(true, Ordering::Relaxed);
        let done: Vec<u32> = clients.into_iter().map(|client| client.join().unwrap()).collect();
        assert!(done.iter().all(|done| *done > 0), "{done:?}");
    });
    let (lost, refused) = (lost.into_inner(), refused.into_inner());
    eprintln!("{CRASHES} crashes: {lost} new connections lost, {refused} refused");
    assert_eq!(refused, 0, "the port stays open");
    assert!(lost <= CRASHES * NEW_CLIENTS, "{lost} connections were lost");
    assert!(workers.iter().all(|pid| is_running(*pid)), "workers are as they were");
    // They are still looked after.
    kill(workers[0]);
    assert_eq!(troop.event("exit")["signal"], "SIGKILL");
    troop.event("listening");
    let (_, out, err) = troop.troop(["reload"]);
    assert!(out.contains("2 workers replaced"), "{out}{err}");
    assert_eq!(troop.troop(["stop"]).0, 0);
    assert_eq!(troop.end().0, Some(0));
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "the port is free");
    let restarts = troop.seen.iter().filter(|line| line.contains("\"restarting\"")).count();
    assert_eq!(restarts, 1, "of the one that was killed");
}

#[test]
fn crashes_under_load_lose_no_worker_and_no_open_connection() {
    crashes_under_load_cost_no_worker(&[]);
}

#[test]
fn crashes_under_round_robin_lose_no_worker_and_no_open_connection() {
    crashes_under_load_cost_no_worker(&["--policy", "round-robin"]);
}

#[test]
fn crashes_under_steering_lose_no_worker_and_no_open_connection() {
    crashes_under_load_cost_no_worker(&["--policy", "steered"]);
}

#[test]
fn what_happens_while_there_is_no_engine_is_seen_by_the_next_one() {
    let mut troop = app(&["-w", "2"], "hello.js");
    let port = troop.listening(2);
    let (first, second) = (troop.workers()[0], troop.workers()[1]);
    // The keeper cannot start another one before it goes on itself.
    troop.signal(Signal::STOP);
    let engine = engine(troop.child.id()).unwrap();
    kill(engine);
    // A signal to one whose threads are still ending is lost.
    wait_until("the end of the engine", || {
        let threads = std::fs::read_dir(format!("/proc/{engine}/task")).map_or(0, Iterator::count);
        !is_running(engine) && threads <= 1
    });
    kill(first);
    wait_until("the end of the worker", || !is_running(first));
    troop.signal(Signal::HUP);
    let waiting = std::thread::spawn(move || get(port, "/"));
    troop.signal(Signal::CONT);
    let exit = troop.event("exit");
    assert_eq!(
        (exit["pid"].as_u64(), exit["signal"].as_str()),
        (Some(u64::from(first)), Some("SIGKILL"))
    );
    assert!(is_running(second));
    assert!(waiting.join().unwrap().is_ok(), "who comes meanwhile waits");
    troop.event("reload-finished");
}

#[test]
fn a_crash_during_a_reload_fails_that_and_the_old_workers_go_on() {
    let mut troop = app(&["-w", "2"], "hello.js");
    let port = troop.listening(2);
    let mut reload = troop.command(["reload"]).spawn().unwrap();
    troop.event("reload-started");
    troop.event("fork");
    crash(&troop);
    assert_ne!(reload.wait().unwrap().code(), Some(0));
    wait_until("all workers are ready", || {
        let (_, out, _) = troop.troop(["ls"]);
        out.contains("running") && out.contains("2/2")
    });
    get(port, "/").unwrap();
    let (code, out, err) = troop.troop(["reload"]);
    assert!(code == 0 && out.contains("2 workers replaced"), "{out}{err}");
    assert_eq!(troop.troop(["stop"]).0, 0);
    assert_eq!(troop.end().0, Some(0));
}

#[test]
fn a_port_that_is_closed_refuses_whatever_the_keeper_holds() {
    let mut troop = app(&["-w", "1"], "hello.js");
    let port = troop.listening(1);
    crash(&troop);
    let worker = troop.workers()[0];
    let held = format!("/proc/{}/fd", troop.child.id());
    let copies = || std::fs::read_dir(&held).unwrap().count();
    let before = copies();
    kill(worker);
    troop.event("listening");
    wait_until("the copies of what has ended are closed", || copies() <= before);
    assert_eq!(troop.troop(["stop"]).0, 0);
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
}

#[test]
fn an_app_that_is_told_to_end_is_not_started_again() {
    let mut troop = app(&["-w", "1"], "hello.js");
    troop.listening(1);
    crash(&troop);
    troop.signal(Signal::TERM);
    assert_eq!(troop.end().0, Some(0));
    let mut troop = run(["--restart", "never", "sh", "-c", "exit 7"]);
    assert_eq!(troop.end().0, Some(7));
}

#[test]
fn apps_in_the_background_go_on_too_with_their_names_records_and_logs() {
    let home = support::Home::with(&[(
        "server.js",
        "console.log('it', 'prints'); require('http').createServer((q, r) => { console.log('asked', q.url); r.end('x'); }).listen(0);",
    )]);
    home.fine(&["start", "server.js", "-n", "web", "-i", "1"]);
    let shown = home.show("web");
    kill(u32::try_from(shown["engine"].as_u64().unwrap()).unwrap());
    wait_until("another engine", || {
        let (code, out, _) = home.troop(&["show", "web", "--json"]);
        code == 0
            && serde_json::from_str::<Vec<serde_json::Value>>(&out).unwrap()[0]["crashes"] == 1
    });
    let again = home.show("web");
    assert_eq!((&again["pid"], &again["last_crash"]), (&shown["pid"], &"signal SIGKILL".into()));
    assert_eq!(again["workers"][0]["pid"], shown["workers"][0]["pid"]);
    let address = again["listeners"][0]["address"].as_str().unwrap();
    get(address.rsplit_once(':').unwrap().1.parse().unwrap(), "/after").unwrap();
    wait_until("its output", || home.log("web.log").contains("asked /after"));
    assert!(home.log("web.log").contains("goes on with the app"));
    let (_, out, _) = home.troop(&["show", "web"]);
    assert!(
        out.contains("its engine has ended 1 time, and another one went on: signal SIGKILL"),
        "{out}"
    );
    home.fine(&["stop", "web"]);
    assert!(home.fine(&["ls"]).contains("stopped"));
    home.fine(&["start", "web"]);
}
