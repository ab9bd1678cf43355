//! The process that runs an app is killed, and another one goes on with it: workers and connections stay.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::process::{Pid, Signal, kill_process};
use support::kept_client::KeptClient;
use support::{Running, node, run};
use troop_testkit::{TEST_TIMEOUT, engine, is_running, talk, wait_until};

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

/// How many engines have ended, as the one that is there says.
fn crashes(troop: &Running) -> u64 {
    let (_, out, _) = troop.troop(["show", "--json"]);
    let shown = serde_json::from_str::<serde_json::Value>(&out).unwrap_or_default();
    shown[0]["crashes"].as_u64().unwrap_or(0)
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

/// The engine dies at this point, at the first to the last of these passages; an unchanged Node program
/// starts meanwhile, listens and is served.
fn deaths_while_workers_start_cost_no_worker(point: &str, passages: std::ops::RangeInclusive<u32>) {
    let directory = tempfile::tempdir().unwrap();
    let mut deaths = 0;
    for nth in passages {
        let once = directory.path().join(nth.to_string());
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_troop"));
        command.args(["run", "--log", "json", "-w", "2", "--policy", "round-robin"]);
        command.arg(node("hello.js"));
        command.env("TROOP_FAULT", format!("{point}:{nth}:{}", once.display()));
        let mut troop = support::start(command);
        let mut shown = serde_json::Value::Null;
        wait_until(&format!("both workers are ready after {point} {nth}"), || {
            let (_, out, _) = troop.troop(["ls"]);
            if !(out.contains("running") && out.contains("2/2")) {
                return false;
            }
            let (code, out, _) = troop.troop(["show", "--json"]);
            let mut all = serde_json::from_str::<serde_json::Value>(&out).unwrap_or_default();
            shown = all.get_mut(0).map(serde_json::Value::take).unwrap_or_default();
            code == 0
        });
        let address = shown["listeners"][0]["address"].as_str().unwrap();
        let port = address.rsplit_once(':').unwrap().1.parse().unwrap();
        let answers: std::collections::BTreeSet<_> =
            (0..8).map(|_| get(port, "/").unwrap()).collect();
        assert_eq!(answers.len(), 2, "{point} {nth}: each worker is served: {answers:?}");
        let has_died = once.exists();
        deaths += u32::from(has_died);
        assert_eq!(troop.troop(["stop"]).0, 0);
        let code = troop.end().0;
        // One that dies while it ends ends the app.
        assert!(code == Some(0) || (!has_died && once.exists()), "{point} {nth}: {code:?}");
    }
    assert!(deaths > 0, "it never died at {point}");
}

#[test]
fn what_was_read_when_the_engine_died_is_heard_by_the_next_one() {
    deaths_while_workers_start_cost_no_worker("read", 1..=8);
}

#[test]
fn what_was_noted_when_the_engine_died_is_heard_by_the_next_one() {
    deaths_while_workers_start_cost_no_worker("noted", 1..=8);
}

#[test]
fn what_was_answered_when_the_engine_died_is_known_to_the_next_one() {
    deaths_while_workers_start_cost_no_worker("written", 1..=8);
}

#[test]
fn a_state_that_was_written_when_the_engine_died_is_gone_on_with() {
    deaths_while_workers_start_cost_no_worker("held", 1..=8);
    deaths_while_workers_start_cost_no_worker("cleared", 1..=8);
}

/// It has closed a worker's channel, which the keeper does not hold any more either, and the state that is
/// held still names it.
#[test]
fn an_engine_that_dies_when_it_has_closed_a_channel_is_followed_by_one_that_goes_on() {
    let home = tempfile::tempdir().unwrap();
    let once = home.path().join("once");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_troop"));
    command.args(["run", "--log", "json", "-w", "2"]).arg(node("hello.js"));
    command.env("TROOP_FAULT", format!("released:1:{}", once.display()));
    let mut troop = support::start(command);
    troop.listening(2);
    let workers = troop.workers().to_vec();
    kill(workers[0]);
    wait_until("another engine", || crashes(&troop) == 1);
    assert!(once.exists());
    troop.event("listening");
    assert!(!is_running(workers[0]) && is_running(workers[1]));
    assert_eq!(troop.troop(["stop"]).0, 0);
    assert_eq!(troop.end().0, Some(0));
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

/// The inode of the server's end of a connection.
fn server_end(client: &TcpStream) -> String {
    let [local, peer] =
        [client.peer_addr(), client.local_addr()].map(|address| address.unwrap().port());
    let table = ["/proc/net/tcp", "/proc/net/tcp6"]
        .map(|path| std::fs::read_to_string(path).unwrap_or_default())
        .concat();
    let is_it = |fields: &[&str]| {
        fields.len() > 9
            && fields[1].ends_with(&format!(":{local:04X}"))
            && fields[2].ends_with(&format!(":{peer:04X}"))
    };
    let lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    lines
        .into_iter()
        .find(|fields| is_it(fields))
        .map_or(String::new(), |fields| fields[9].to_owned())
}

fn has_socket(pid: u32, inode: &str) -> bool {
    let held = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    held.flatten().any(|entry| {
        std::fs::read_link(entry.path())
            .is_ok_and(|to| to.as_os_str() == format!("socket:[{inode}]").as_str())
    })
}

#[test]
fn a_connection_that_waits_for_a_worker_is_served_after_a_crash() {
    let home = support::Home::with(&[(
        "slow.js",
        "const fs = require('fs'); const delay = fs.existsSync('again') ? 2000 : 0; fs.writeFileSync('again', '');
         setTimeout(() => require('http').createServer((q, r) => r.end('here')).listen(0), delay);",
    )]);
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_troop"));
    command.args(["run", "--log", "json", "-w", "1", "--policy", "round-robin", "slow.js"]);
    let mut troop = support::start({
        command.current_dir(home.path());
        command
    });
    let port = troop.listening(1);
    kill(troop.workers()[0]);
    troop.event("exit");
    let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    client.set_read_timeout(Some(3 * TEST_TIMEOUT)).unwrap();
    client.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let keeper = troop.child.id();
    let mut inode = String::new();
    wait_until("the keeper holds it", || {
        inode = server_end(&client);
        !inode.is_empty() && has_socket(keeper, &inode)
    });
    kill(engine(keeper).unwrap());
    let mut answer = String::new();
    // To the end, which would not come if the keeper held it still.
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("here"), "{answer}");
    assert!(!has_socket(keeper, &inode));
    assert_eq!(troop.troop(["stop"]).0, 0);
}

#[test]
fn a_signal_that_was_not_obeyed_is_passed_on_to_the_next_engine() {
    let directory = tempfile::tempdir().unwrap();
    let once = directory.path().join("once");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_troop"));
    command.args(["run", "--log", "json", "-w", "1"]).arg(node("hello.js"));
    command.env("TROOP_FAULT", format!("signalled:1:{}", once.display()));
    let mut troop = support::start(command);
    troop.listening(1);
    troop.signal(Signal::TTIN);
    troop.event("listening");
    assert!(once.exists());
    wait_until("both are ready, and no third", || troop.troop(["ls"]).1.contains("2/2"));
    assert_eq!(troop.troop(["stop"]).0, 0);
}

#[test]
fn a_state_that_no_engine_survives_is_set_aside() {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_troop"));
    command.args(["run", "--log", "json", "-w", "2"]).arg(node("hello.js"));
    command.env("TROOP_FAULT", "restoring:1:").env("TROOP_FAULT_SIGNAL", "6");
    let mut troop = support::start(command);
    troop.listening(2);
    let before = troop.workers().to_vec();
    kill(engine(troop.child.id()).unwrap());
    let port = troop.listening(2);
    get(port, "/").unwrap();
    assert!(
        troop.seen.iter().any(|line| line.contains("this one starts afresh")),
        "{:?}",
        troop.seen
    );
    wait_until("the former workers have ended", || !before.iter().any(|pid| is_running(*pid)));
    let (_, out, _) = troop.troop(["show", "--json"]);
    let shown: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(shown[0]["crashes"], 5, "{out}");
    assert_eq!(troop.troop(["stop"]).0, 0);
}

/// As the system kills processes when it has no memory left.
#[test]
fn engines_that_are_killed_before_they_are_ready_cost_no_state() {
    let directory = tempfile::tempdir().unwrap();
    let until = directory.path().join("until");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_troop"));
    command.args(["run", "--log", "json", "-w", "2"]).arg(node("hello.js"));
    command.env("TROOP_FAULT", format!("restoring:1:!{}", until.display()));
    let mut troop = support::start(command);
    let port = troop.listening(2);
    let (before, keeper) = (troop.workers().to_vec(), troop.child.id());
    let mut engines = std::collections::BTreeSet::from([engine(keeper).unwrap()]);
    kill(engine(keeper).unwrap());
    wait_until("more engines than a state may end", || {
        engines.extend(engine(keeper));
        engines.len() > 5
    });
    std::fs::write(&until, "").unwrap();
    let said = std::iter::repeat_with(|| troop.event_line().unwrap())
        .find(|line| line.contains("goes on with the app"))
        .unwrap();
    assert!(said.contains("in a row were killed before they were ready"), "{said}");
    assert!(before.iter().all(|pid| is_running(*pid)), "workers are as they were");
    assert_eq!(troop.workers(), before);
    get(port, "/").unwrap();
    assert_eq!(troop.troop(["stop"]).0, 0);
    assert_eq!(troop.end().0, Some(0));
}

#[test]
fn whoever_follows_events_goes_on_with_the_next_engine() {
    let mut troop = app(&["-w", "1"], "hello.js");
    troop.listening(1);
    let mut follower =
        troop.command(["events", "--json"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    crash(&troop);
    crash(&troop);
    assert_eq!(troop.troop(["scale", "2"]).0, 0);
    let found = lines.map_while(Result::ok).find(|line| line.contains("\"listening\""));
    assert!(found.is_some(), "it follows");
    assert_eq!(troop.troop(["stop"]).0, 0);
    assert_eq!(follower.wait().unwrap().code(), Some(0));
}

#[test]
fn the_keeper_is_the_last_process_that_a_system_without_memory_kills() {
    let mut troop = app(&["-w", "1"], "hello.js");
    troop.listening(1);
    let score = |pid: u32| -> i32 {
        let text = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
        text.trim().parse().unwrap()
    };
    let own = score(std::process::id());
    let keeper = troop.child.id();
    assert!(score(keeper) <= own);
    let lowers = "echo -999 2>/dev/null > /proc/self/oom_score_adj";
    let may_lower = std::process::Command::new("sh").args(["-c", lowers]).status().unwrap();
    if may_lower.success() {
        assert_eq!(score(keeper), -999);
    }
    assert_eq!((score(engine(keeper).unwrap()), score(troop.workers()[0])), (own, own));
    crash(&troop);
    assert_eq!(score(engine(keeper).unwrap()), own);
    assert_eq!(troop.troop(["stop"]).0, 0);
}

#[test]
fn an_app_whose_engine_dies_when_it_is_told_to_stop_is_stopped_by_the_next_one() {
    let directory = tempfile::tempdir().unwrap();
    let once = directory.path().join("once");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_troop"));
    command.args(["run", "--log", "json", "-w", "1"]).arg(node("hello.js"));
    command.env("TROOP_FAULT", format!("stopping:1:{}", once.display()));
    let mut troop = support::start(command);
    troop.listening(1);
    assert_eq!(troop.troop(["stop"]).0, 0);
    assert!(once.exists());
    assert_eq!(troop.end().0, Some(0));
}

#[test]
fn a_port_that_was_closed_when_the_engine_died_is_closed_by_the_next_one() {
    let mut deaths = 0;
    for nth in 1..=9 {
        // How often something was closed before is a matter of chance.
        if deaths > 0 {
            break;
        }
        let directory = tempfile::tempdir().unwrap();
        let once = directory.path().join(nth.to_string());
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_troop"));
        command.args(["run", "--log", "json", "-w", "1", "--policy", "round-robin"]);
        command.arg(node("closes.js"));
        command.env("TROOP_FAULT", format!("closed:{nth}:{}", once.display()));
        let mut troop = support::start(command);
        let mut ports = Vec::new();
        wait_until(&format!("it listens on both ports, {nth}"), || {
            let (_, out, _) = troop.troop(["show", "--json"]);
            let shown: serde_json::Value = serde_json::from_str(&out).unwrap_or_default();
            let listeners = shown[0]["listeners"].as_array().cloned().unwrap_or_default();
            let port =
                |l: &serde_json::Value| l["address"].as_str()?.rsplit_once(':')?.1.parse().ok();
            ports = listeners.iter().filter_map(port).collect();
            ports.len() == 2 && troop.troop(["ls"]).1.contains("1/1")
        });
        let is_first =
            |port: &&u16| get(**port, "/").is_ok_and(|answer| !answer.contains("second"));
        let first = *ports.iter().find(is_first).unwrap();
        let worker = get(first, "/").unwrap();
        let (worker, second) = worker.split_once(' ').unwrap();
        let second: u16 = second.trim().parse().unwrap();
        let died_before = once.exists();
        let closing = get(first, "/close").unwrap();
        assert_eq!(closing.trim(), format!("{worker} closed"), "{nth}");
        wait_until(&format!("the second port refuses, {nth}"), || {
            std::net::TcpStream::connect(("127.0.0.1", second)).is_err()
        });
        let died_by_it = once.exists() && !died_before;
        deaths += u32::from(died_by_it);
        let answer = get(first, "/").unwrap();
        assert_eq!(answer.trim(), format!("{worker} closed"), "the worker stays, {nth}");
        let (_, out, _) = troop.troop(["show", "--json"]);
        let shown: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(shown[0]["crashes"], u32::from(once.exists()), "{nth}: {out}");
        assert_eq!(troop.troop(["stop"]).0, 0);
        assert!(troop.end().0 == Some(0) || !died_by_it);
    }
    assert!(deaths > 0, "it never died when a port was closed");
}
