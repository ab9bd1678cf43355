//! The process that keeps the one which runs an app: what everybody knows, and what becomes of it when
//! one of the two ends.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs::Permissions;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use rustix::process::{Pid, Signal, getpgid, kill_process};
use support::{Running, node, run, start};
use troop_testkit::{engine, is_running, wait_until};

fn to_pid(pid: u32) -> Pid {
    Pid::from_raw(pid.cast_signed()).unwrap()
}

fn engine_of(troop: &Running) -> u32 {
    engine(troop.child.id()).expect("an engine")
}

fn app(options: &[&str], program: &str) -> Running {
    let options = options.iter().map(|option| (*option).to_owned());
    run(options.chain([node(program).display().to_string()]))
}

/// Signals that a process catches, a bit for each (`proc_pid_status(5)`).
fn caught_signals(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap()
}

/// It waits for the lock of the records before the engine handles signals.
#[test]
fn a_stop_that_comes_during_the_start_is_not_lost() {
    let home = tempfile::tempdir().unwrap();
    std::fs::set_permissions(home.path(), Permissions::from_mode(0o700)).unwrap();
    let lock = std::fs::File::create(home.path().join(".lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_troop"));
    command.args(["run", "--log", "json"]).arg(node("hello.js"));
    command.env("TROOP_STATE_DIR", home.path());
    let mut troop = start(command);
    let (pid, term) = (troop.child.id(), 1 << (Signal::TERM.as_raw() - 1));
    wait_until("its engine catches SIGTERM", || {
        troop_testkit::engine(pid).is_some_and(|engine| caught_signals(engine) & term != 0)
    });
    troop.signal(Signal::TERM);
    drop(lock);
    assert_eq!(troop.end().0, Some(0));
}

/// Starts processes that are not its own children, but the primary's, and end.
const ADOPTED: &str = "
import ctypes, os, time
for _ in range(3):
    if ctypes.CDLL(None).syscall(56, 0x8000 | 17, 0, 0, 0, 0) == 0:
        os._exit(0)
os.write(2, b'started\\n')
time.sleep(1000)";

#[test]
#[cfg(target_arch = "x86_64")]
fn processes_that_a_worker_makes_children_of_the_primary_are_reaped() {
    adopted_processes_are_reaped(&[]);
}

#[test]
#[cfg(target_arch = "x86_64")]
fn processes_that_a_worker_makes_children_of_the_primary_are_reaped_without_a_keeper() {
    adopted_processes_are_reaped(&["--no-keeper"]);
}

#[cfg(target_arch = "x86_64")]
fn adopted_processes_are_reaped(options: &[&str]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_troop"));
    command.args(["run", "--log", "json", "-w", "1", "-b", "127.0.0.1:0"]).args(options);
    command.args(["--set", "restart.min_uptime=0", "python3", "--", "-c", ADOPTED]);
    let mut troop = start(command);
    wait_until("its processes", || troop.event_line().is_some_and(|line| line == "started"));
    let threads = format!("/proc/{}/task", troop.child.id());
    let is_zombie = |pid: &str| {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
    };
    let zombies = || {
        let lists = std::fs::read_dir(&threads).unwrap().flatten();
        let lists =
            lists.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
        lists
            .map(|list| list.split_whitespace().filter(|pid| is_zombie(pid)).count())
            .sum::<usize>()
    };
    if !options.is_empty() {
        // A keeper does not wait for somebody else to do it.
        wait_until("their end", || zombies() == 3);
    }
    wait_until("their reaping", || zombies() == 0);
    troop.signal(Signal::TERM);
    assert_eq!(troop.end().0, Some(0));
}

#[test]
fn workers_are_children_of_the_process_that_everybody_knows() {
    let mut troop = app(&["-w", "2"], "hello.js");
    troop.listening(2);
    let (keeper, engine) = (troop.child.id(), engine_of(&troop));
    let mut children = troop_testkit::children(keeper);
    let mut expected: Vec<u32> = troop.workers().iter().copied().chain([engine]).collect();
    children.sort_unstable();
    expected.sort_unstable();
    assert_eq!(children, expected);
    assert!(troop_testkit::children(engine).is_empty());
    let (_, shown, _) = troop.troop(["show", "--json"]);
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(
        (shown[0]["pid"].clone(), shown[0]["engine"].clone()),
        (keeper.into(), engine.into())
    );
    // Ctrl-C reaches the one in the terminal's foreground group only.
    let group = |pid: u32| getpgid(Some(to_pid(pid))).unwrap();
    assert!([engine, troop.workers()[0]].into_iter().all(|pid| group(pid) != group(keeper)));
}

#[test]
fn each_signal_is_passed_on_once() {
    let mut troop = app(&["-w", "1"], "hello.js");
    troop.listening(1);
    troop.signal(Signal::HUP);
    troop.event("reload-finished");
    troop.signal(Signal::TTIN);
    troop.event("listening");
    troop.signal(Signal::INT);
    // A second one would have killed them.
    for _ in 0..2 {
        assert_eq!(troop.event("exit")["code"], 0);
    }
    assert_eq!(troop.end().0, Some(0));
    let started = |line: &&String| line.contains("\"reload-started\"");
    assert_eq!(troop.seen.iter().filter(started).count(), 1);
    assert_eq!(troop.workers().len(), 3);
}

#[test]
fn a_signal_that_comes_before_the_engine_catches_it_is_not_lost() {
    let home = tempfile::tempdir().unwrap();
    std::fs::set_permissions(home.path(), Permissions::from_mode(0o700)).unwrap();
    let lock = std::fs::File::create(home.path().join(".lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_troop"));
    command.args(["run", "--log", "json", "-w", "1"]).arg(node("hello.js"));
    command.env("TROOP_STATE_DIR", home.path());
    let mut troop = start(command);
    wait_until("the engine", || engine(troop.child.id()).is_some());
    // Of both at once only the first would be there, were they one.
    troop.signal(Signal::TTIN);
    troop.signal(Signal::HUP);
    wait_until("it has read them", || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", troop.child.id())).unwrap();
        status
            .lines()
            .any(|line| line.starts_with("ShdPnd") && line.ends_with(":\t0000000000000000"))
    });
    drop(lock);
    wait_until("both workers", || {
        troop.event("online");
        troop.workers().len() >= 2
    });
    troop.event("reload-finished");
}

#[test]
fn the_exit_code_is_that_of_the_app() {
    for (program, code) in [("exit 7", Some(7)), ("kill -9 $$", Some(137)), ("exit 0", Some(0))] {
        let mut troop = run(["--restart", "never", "sh", "-c", program]);
        assert_eq!(troop.end().0, code, "{program}");
    }
    // Nothing is kept of a program that runs alone.
    let mut troop = run(["-w", "0", "sh", "-c", "echo $PPID; kill -9 $$"]);
    assert_eq!(troop.end().0, None);
}

#[test]
fn without_its_keeper_the_engine_ends_the_app_and_says_so() {
    let mut troop = app(&["-w", "2"], "hello.js");
    let port = troop.listening(2);
    let engine = engine_of(&troop);
    let mut slow = TcpStream::connect(("127.0.0.1", port)).unwrap();
    // It is a worker's once that has answered.
    slow.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert_ne!(slow.read(&mut [0; 4096]).unwrap(), 0);
    slow.write_all(b"GET /slow HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    troop.child.kill().unwrap();
    let error = troop.event("error");
    assert!(error["error"].as_str().unwrap().contains("the keeper, process"), "{error}");
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("HTTP/1.1 200"), "{answer:?}");
    wait_until("the end of the engine", || !is_running(engine));
    assert!(troop.workers().iter().all(|pid| !is_running(*pid)));
    troop.child.wait().unwrap();
}

#[test]
fn an_app_can_be_without_a_keeper() {
    let mut troop = app(&["-w", "1", "--no-keeper"], "hello.js");
    troop.listening(1);
    assert_eq!(engine(troop.child.id()), None);
    assert_eq!(troop_testkit::children(troop.child.id()), troop.workers());
    let (code, _, err) = troop.troop(["upgrade"]);
    assert!(code == 1 && err.contains("it has no keeper"), "{err}");
    kill_process(to_pid(troop.workers()[0]), Signal::KILL).unwrap();
    assert_eq!(troop.event("exit")["signal"], "SIGKILL");
    troop.event("listening");
    troop.signal(Signal::TERM);
    assert_eq!(troop.end().0, Some(0));
}

#[test]
fn workers_know_nothing_of_the_keeper_and_its_variable_alone_makes_no_engine() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_troop"));
    command.args(["run", "--log", "json", "-w", "1"]).arg(node("hello.js"));
    // What a program might have inherited, and no keeper behind it.
    command.env("TROOP_KEEPER", "engine:0");
    let mut troop = start(command);
    troop.listening(1);
    let (engine, worker) = (engine_of(&troop), troop.workers()[0]);
    let environment = std::fs::read(format!("/proc/{worker}/environ")).unwrap();
    assert!(!environment.split(|byte| *byte == 0).any(|entry| entry.starts_with(b"TROOP_KEEPER")));
    let sockets = |pid: u32| {
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        let links = fds.filter_map(|fd| std::fs::read_link(fd.path()).ok());
        links.map(|link| link.display().to_string()).collect::<Vec<_>>()
    };
    // Those for messages (`SOCK_SEQPACKET`).
    let all = std::fs::read_to_string("/proc/net/unix").unwrap();
    let for_messages: Vec<_> = all
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields.get(4) == Some(&"0005"))
        .map(|fields| format!("socket:[{}]", fields[6]))
        .collect();
    let has_one = |pid: u32| sockets(pid).iter().any(|socket| for_messages.contains(socket));
    assert!(has_one(engine) && has_one(troop.child.id()) && !has_one(worker));
    assert!(is_running(engine));
}
