//! `troop upgrade`: another engine goes on with the app, or says why not.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs::Permissions;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;

use rustix::process::{Pid, Signal, kill_process};
use support::kept_client::while_clients_ask;
use support::{Home, Running, node, run, works_and_ends};
use troop_testkit::{engine, is_running, talk, wait_until};

/// How often it is upgraded under load.
const UPGRADES: usize = 10;

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

fn engine_of(troop: &Running) -> u32 {
    engine(troop.child.id()).expect("an engine")
}

/// Upgrades, and returns the process that goes on.
fn upgrade(troop: &Running, before: u32) -> u32 {
    let (code, out, err) = troop.troop(["upgrade", "--json"]);
    assert_eq!(code, 0, "{out}{err}");
    let answer: serde_json::Value = serde_json::from_str(&out).unwrap();
    let after = u32::try_from(answer["engine"].as_u64().unwrap()).unwrap();
    assert_ne!(after, before);
    wait_until("the end of the former engine", || !is_running(before));
    after
}

fn upgrades_under_load_fail_no_request(options: &[&str]) {
    let mut troop = app(&[&["-w", "2"], options].concat(), "hello.js");
    let port = troop.listening(2);
    let workers = troop.workers().to_vec();
    while_clients_ask(
        port,
        true,
        || get(port, "/"),
        || {
            let mut engine = engine_of(&troop);
            for _ in 0..UPGRADES {
                engine = upgrade(&troop, engine);
            }
        },
    );
    assert!(workers.iter().all(|pid| is_running(*pid)), "workers are as they were");
    works_and_ends(troop, workers[0], port);
}

#[test]
fn upgrades_under_load_lose_nothing() {
    upgrades_under_load_fail_no_request(&[]);
}

#[test]
fn upgrades_under_round_robin_lose_nothing() {
    upgrades_under_load_fail_no_request(&["--policy", "round-robin"]);
}

#[test]
fn upgrades_under_steering_lose_nothing() {
    upgrades_under_load_fail_no_request(&["--policy", "steered"]);
}

/// A program that does this in place of an engine.
fn program(directory: &std::path::Path, name: &str, script: &str) -> String {
    let path = directory.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

#[test]
fn a_program_that_cannot_go_on_changes_nothing_and_the_reason_is_said() {
    let mut troop = app(&["-w", "1"], "hello.js");
    let port = troop.listening(1);
    let (engine, worker) = (engine_of(&troop), get(port, "/").unwrap());
    let directory = tempfile::tempdir().unwrap();
    let program = |name: &str, script: &str| program(directory.path(), name, script);
    for (path, why) in [
        (directory.path().join("none").display().to_string(), "cannot execute"),
        (program("exits", "exit 3"), "the new engine has ended: exit code 3"),
        (program("dies", "kill -9 $$"), "the new engine has ended: signal 9"),
        (program("hangs", "exec sleep 1000"), "not ready within 5 s"),
    ] {
        let (code, out, err) = troop.troop(["upgrade", "--path", &path]);
        assert!(code == 1 && err.contains(why) && err.contains("the app goes on"), "{out}{err}");
        assert_eq!((engine_of(&troop), get(port, "/").unwrap()), (engine, worker.clone()));
    }
    upgrade(&troop, engine);
    assert_eq!(get(port, "/").unwrap(), worker);
}

#[test]
fn a_configuration_that_was_broken_since_is_no_obstacle() {
    let home = support::Home::with(&[(
        "troop.toml",
        &format!("[app.web]\nprogram = {:?}\nworkers = 1\n", node("hello.js")),
    )]);
    home.fine(&["start", "web"]);
    let engine = home.show("web")["engine"].clone();
    std::fs::write(home.path().join("troop.toml"), "[app.web]\nprogramm = 1\n").unwrap();
    home.fine(&["upgrade", "web"]);
    assert_ne!(home.show("web")["engine"], engine);
    // It is one for what reads it.
    let (code, _, err) = home.troop(&["reload", "web"]);
    assert!(code != 0 && err.contains("programm"), "{err}");
}

#[test]
fn the_options_of_an_app_stay_what_they_were_until_a_reload() {
    let text = |greeting: &str| {
        format!(
            "[app.web]\nprogram = {:?}\nworkers = 1\nenv = {{ GREETING = \"{greeting}\" }}\n",
            node("hello.js")
        )
    };
    let home = support::Home::with(&[("troop.toml", &text("one"))]);
    home.fine(&["start", "web"]);
    let answer = || {
        let shown = home.show("web");
        let address = shown["listeners"][0]["address"].as_str().unwrap().to_owned();
        get(address.rsplit_once(':').unwrap().1.parse().unwrap(), "/").unwrap()
    };
    std::fs::write(home.path().join("troop.toml"), text("two")).unwrap();
    let before = answer();
    home.fine(&["upgrade", "web"]);
    assert_eq!(answer(), before);
    home.fine(&["scale", "web", "2"]);
    let shown = home.show("web");
    let pids: Vec<u64> =
        shown["workers"].as_array().unwrap().iter().filter_map(|one| one["pid"].as_u64()).collect();
    for pid in pids {
        let env = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
        assert!(env.split(|byte| *byte == 0).any(|entry| entry == b"GREETING=one"));
    }
    home.fine(&["reload", "web"]);
    assert!(answer().contains("two"));
}

#[test]
fn the_keeper_holds_nothing_that_an_engine_has_closed() {
    let mut troop = app(&["-w", "1"], "hello.js");
    let port = troop.listening(1);
    let descriptors =
        || std::fs::read_dir(format!("/proc/{}/fd", troop.child.id())).unwrap().count();
    let before = descriptors();
    upgrade(&troop, engine_of(&troop));
    let directory = tempfile::tempdir().unwrap();
    let exits = program(directory.path(), "exits", "exit 1");
    assert_eq!(troop.troop(["upgrade", "--path", &exits]).0, 1);
    wait_until("the keeper holds no copies", || descriptors() <= before);
    assert_eq!(troop.troop(["scale", "0"]).0, 0);
    assert_eq!(troop.troop(["scale", "1"]).0, 0);
    get(port, "/").unwrap();
    assert_eq!(troop.troop(["stop"]).0, 0);
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
}

#[test]
fn an_upgrade_during_another_one_or_a_reload_is_refused_or_waits() {
    let mut troop = app(&["-w", "2"], "hello.js");
    troop.listening(2);
    let directory = tempfile::tempdir().unwrap();
    let hangs = program(directory.path(), "hangs", "exec sleep 1000");
    let mut first = troop.command(["upgrade", "--path", &hangs]).spawn().unwrap();
    let engine = engine_of(&troop);
    wait_until("it is started", || {
        troop_testkit::children(troop.child.id()).len() == 2 + troop.workers().len()
    });
    let (code, _, err) = troop.troop(["upgrade"]);
    assert!(code == 1 && err.contains("another replacement is under way"), "{err}");
    assert_eq!(first.wait().unwrap().code(), Some(1));
    let mut reload = troop.command(["reload"]).spawn().unwrap();
    troop.event("reload-started");
    let (code, _, err) = troop.troop(["upgrade"]);
    assert!(code == 0 || err.contains("a reload is under way"), "{err}");
    assert!(reload.wait().unwrap().success() || code == 0);
    assert!(code != 0 || engine_of(&troop) != engine);
}

#[test]
fn pid_files_stay_while_engines_come_and_go() {
    let server = format!(
        "[app.web]\nprogram = {:?}\nworkers = 2\npid_file = \"web.pid\"\nworker_pid_file = \"worker.pid\"\n",
        node("hello.js")
    );
    let home = support::Home::with(&[("troop.toml", &server)]);
    home.fine(&["start", "web"]);
    let shown = home.show("web");
    let numbers = |shown: &serde_json::Value| {
        // Others may still be leaving.
        let is_there =
            |one: &&serde_json::Value| one["leaving_ms"].is_null() && one["ready"] == true;
        let workers = shown["workers"].as_array().unwrap().iter().filter(is_there);
        let workers =
            workers.map(|one| (format!("worker-{}.pid", one["slot"]), one["pid"].clone()));
        std::iter::once(("web.pid".to_owned(), shown["pid"].clone()))
            .chain(workers)
            .collect::<Vec<_>>()
    };
    let have = |numbers: &[(String, serde_json::Value)]| {
        numbers.iter().all(|(file, pid)| {
            let written = std::fs::read_to_string(home.path().join(file)).unwrap_or_default();
            written.parse().ok() == pid.as_u64()
        })
    };
    let before = numbers(&shown);
    wait_until("the files", || have(&before));
    let directory = tempfile::tempdir().unwrap();
    let exits = program(directory.path(), "exits", "exit 1");
    assert_ne!(home.troop(&["upgrade", "web", "--path", &exits]).0, 0);
    assert!(have(&before));
    home.fine(&["upgrade", "web"]);
    assert!(have(&before));
    let engine = home.show("web")["engine"].as_u64().unwrap();
    kill_process(Pid::from_raw(i32::try_from(engine).unwrap()).unwrap(), Signal::KILL).unwrap();
    wait_until("another engine", || home.troop(&["show", "web"]).1.contains("another one went on"));
    assert!(have(&before));
    home.fine(&["reload", "web"]);
    let after = numbers(&home.show("web"));
    assert_ne!(after, before);
    wait_until("the new numbers", || have(&after));
    home.fine(&["stop", "web"]);
    assert!(after.iter().all(|(file, _)| !home.path().join(file).exists()), "{after:?}");
}

#[test]
fn another_program_at_the_path_of_this_one_restarts_nothing() {
    let home = Home::with(&[("server.js", "require('http').createServer().listen(0)")]);
    let own = home.path().join("troop");
    std::fs::copy(env!("CARGO_BIN_EXE_troop"), &own).unwrap();
    let start = home.command(&["start", "server.js", "-n", "web"]);
    let variables = start.get_envs().filter_map(|(name, value)| Some((name, value?)));
    let mut copied = std::process::Command::new(&own);
    copied.args(start.get_args()).envs(variables).current_dir(home.path());
    assert!(copied.output().unwrap().status.success());
    let before = home.show("web")["pid"].clone();
    std::fs::remove_file(&own).unwrap();
    std::fs::copy("/bin/true", &own).unwrap();
    let (code, out, err) = home.troop(&["restart", "web"]);
    assert!(code == 1 && err.contains("it is not troop"), "{code} {out}{err}");
    assert_eq!(home.show("web")["pid"], before);
}
