//! Engines of apps with `-b` are upgraded and killed, and others go on with them: workers, sockets and
//! connections stay.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::kept_client::{KeptClient, while_clients_ask};
use support::{Running, get, node, run};
use troop_testkit::{children, engine, free_port, is_running, wait_until};

/// How often an engine is replaced under load.
const ROUNDS: usize = 6;

/// How an engine ends.
#[derive(Debug, Clone, Copy)]
enum How {
    Upgrade,
    Crash,
}

fn app(options: &[&str], program: &[&str]) -> Running {
    let options = options.iter().chain(program);
    run(options.map(|option| (*option).to_owned()))
}

fn shown(troop: &Running) -> Value {
    let (_, out, _) = troop.troop(["show", "--json"]);
    let mut all = serde_json::from_str::<Value>(&out).unwrap_or_default();
    all.get_mut(0).map(Value::take).unwrap_or_default()
}

/// Waits until all of this many workers are ready. Returns the address of the first socket.
fn ready(troop: &Running, workers: usize) -> String {
    let count = format!("{workers}/{workers}");
    wait_until("the workers are ready", || {
        let (_, out, _) = troop.troop(["ls"]);
        out.contains("running") && out.contains(&count)
    });
    shown(troop)["listeners"][0]["address"].as_str().unwrap().to_owned()
}

fn port(address: &str) -> u16 {
    address.rsplit(':').next().unwrap().parse().unwrap()
}

fn pids(troop: &Running) -> BTreeSet<u32> {
    let shown = shown(troop);
    let workers = shown["workers"].as_array().unwrap().iter();
    workers.map(|worker| u32::try_from(worker["pid"].as_u64().unwrap()).unwrap()).collect()
}

/// The sums of what workers have accepted and have open.
fn counted(troop: &Running) -> (u64, u64) {
    let shown = shown(troop);
    let workers = shown["workers"].as_array().cloned().unwrap_or_default();
    let sum = |name: &str| workers.iter().map(|one| one["stats"][name].as_u64().unwrap_or(0)).sum();
    (sum("taken"), sum("open"))
}

fn kill(pid: u32) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
}

/// Another engine goes on.
fn replace(troop: &Running, how: How) {
    let before = engine(troop.child.id()).expect("an engine");
    match how {
        How::Crash => kill(before),
        How::Upgrade => {
            let (code, out, err) = troop.troop(["upgrade"]);
            assert_eq!(code, 0, "{out}{err}");
        }
    }
    wait_until("another engine", || {
        let now = shown(troop)["engine"].as_u64();
        now.is_some_and(|now| now != u64::from(before))
    });
}

fn clients_notice_nothing(how: How, options: &[&str], program: &[&str], keeps: bool) {
    let options = [&["-w", "2", "-b", "127.0.0.1:0"], options].concat();
    let mut troop = app(&options, program);
    let port = port(&ready(&troop, 2));
    let workers = pids(&troop);
    while_clients_ask(
        port,
        keeps,
        || get(port),
        || {
            for _ in 0..ROUNDS {
                replace(&troop, how);
            }
        },
    );
    assert_eq!(pids(&troop), workers, "workers are as they were");
    // They are still looked after.
    let killed = *workers.first().unwrap();
    kill(killed);
    let exit = troop.event("exit");
    assert_eq!((&exit["pid"], &exit["signal"]), (&killed.into(), &"SIGKILL".into()));
    wait_until("its successor", || {
        let now = pids(&troop);
        now.len() == 2 && !now.contains(&killed)
    });
    ready(&troop, 2);
    let (_, out, err) = troop.troop(["reload"]);
    assert!(out.contains("2 workers replaced"), "{out}{err}");
    get(port).unwrap();
    assert_eq!(troop.troop(["stop"]).0, 0);
    assert_eq!(troop.end().0, Some(0));
    let refused = TcpStream::connect(("127.0.0.1", port)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "the port is free");
}

fn activated() -> String {
    node("activated.js").display().to_string()
}

#[test]
fn clients_of_a_shared_activated_socket_notice_nothing_of_upgrades() {
    clients_notice_nothing(How::Upgrade, &[], &[&activated()], true);
}

#[test]
fn clients_of_a_shared_activated_socket_notice_nothing_of_crashes() {
    clients_notice_nothing(How::Crash, &[], &[&activated()], true);
}

#[test]
fn clients_of_steered_activated_sockets_notice_nothing_of_upgrades() {
    clients_notice_nothing(How::Upgrade, &["--policy", "steered"], &[&activated()], true);
}

#[test]
fn clients_of_steered_activated_sockets_notice_nothing_of_crashes() {
    clients_notice_nothing(How::Crash, &["--policy", "steered"], &[&activated()], true);
}

#[test]
fn clients_of_a_python_server_notice_nothing_of_upgrades_and_crashes() {
    let program = node("activated.py").display().to_string();
    for how in [How::Upgrade, How::Crash] {
        clients_notice_nothing(
            how,
            &["--policy", "least-connections"],
            &["python3", &program],
            false,
        );
    }
}

#[test]
fn connections_on_activated_sockets_are_counted_once_whichever_engine_looks() {
    for how in [How::Upgrade, How::Crash] {
        let troop = app(&["-w", "2", "-b", "127.0.0.1:0"], &[&activated()]);
        let port = port(&ready(&troop, 2));
        let mut clients: Vec<_> = (0..3).map(|_| KeptClient::new(port)).collect();
        let ask = |clients: &mut Vec<KeptClient>| {
            // An idle one would be closed.
            clients.iter_mut().for_each(|client| drop(client.get()));
            counted(&troop)
        };
        wait_until("the connections", || ask(&mut clients) == (3, 3));
        replace(&troop, how);
        clients.push(KeptClient::new(port));
        wait_until("the other one", || ask(&mut clients).1 == 4);
        assert_eq!(ask(&mut clients), (4, 4), "{how:?}");
        clients.clear();
        wait_until("their end", || counted(&troop).1 == 0);
    }
}

fn get_at(path: &Path) -> std::io::Result<String> {
    let mut client = UnixStream::connect(path)?;
    client.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    client.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn the_file_of_an_activated_unix_socket_is_looked_after_by_the_next_engine() {
    for how in [How::Upgrade, How::Crash] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web.sock");
        let bind = path.display().to_string();
        let mut troop = app(&["-w", "1", "-b", &bind], &[&activated()]);
        ready(&troop, 1);
        replace(&troop, how);
        get_at(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        troop.event("listener-restored");
        troop.event("reload-finished");
        assert!(get_at(&path).unwrap().contains("200 OK"));
        replace(&troop, how);
        assert!(get_at(&path).unwrap().contains("200 OK"));
        assert_eq!(troop.troop(["stop"]).0, 0);
        assert_eq!(troop.end().0, Some(0));
        assert!(!path.exists(), "{how:?}");
    }
}

#[test]
fn sockets_of_systemd_are_gone_on_with() {
    let starter = "
import os, socket, sys
s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(100)
os.dup2(s.fileno(), 30); os.dup2(30, 3); os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1', LISTEN_FDNAMES='web')
os.execv(sys.argv[1], sys.argv[1:])
";
    let mut command = Command::new("python3");
    command.args(["-c", starter, env!("CARGO_BIN_EXE_troop"), "run", "--log", "json", "-w", "1"]);
    command.args(["-b", "systemd:web", &activated()]);
    let mut troop = support::start(command);
    let port = port(&ready(&troop, 1));
    let worker = get(port).unwrap();
    for how in [How::Upgrade, How::Crash] {
        replace(&troop, how);
        assert_eq!(get(port).unwrap(), worker);
    }
    let (_, out, err) = troop.troop(["reload"]);
    assert!(out.contains("1 worker replaced"), "{out}{err}");
    assert_eq!(troop.troop(["restart"]).0, 0, "they are left to the next primary");
    get(port).unwrap();
    assert_eq!(troop.troop(["stop"]).0, 0);
    assert_eq!(troop.end().0, Some(0));
}

/// They have no channel whose end they would see.
#[test]
fn activated_workers_that_a_killed_engine_was_starting_do_not_stay_beside_others() {
    let directory = tempfile::tempdir().unwrap();
    let mut deaths = 0;
    for (point, nth) in
        ["held", "cleared"].iter().flat_map(|point| (1..=5).map(move |n| (point, n)))
    {
        let once = directory.path().join(format!("{point}{nth}"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_troop"));
        command.args([
            "run",
            "--log",
            "json",
            "-w",
            "2",
            "-b",
            "127.0.0.1:0",
            "--policy",
            "steered",
        ]);
        command.arg(activated()).env("TROOP_FAULT", format!("{point}:{nth}:{}", once.display()));
        let mut troop = support::start(command);
        let port = port(&ready(&troop, 2));
        let own = || {
            let engine = engine(troop.child.id());
            let all = children(troop.child.id()).into_iter();
            all.filter(|child| Some(*child) != engine).collect::<BTreeSet<_>>()
        };
        wait_until(&format!("no others after {point} {nth}"), || own() == pids(&troop));
        get(port).unwrap();
        deaths += u32::from(once.exists());
        assert_eq!(troop.troop(["stop"]).0, 0);
        troop.end();
    }
    assert!(deaths > 0, "it never died");
}

#[test]
fn an_app_with_activated_sockets_goes_on_by_a_signal_too_and_then_starts_more_workers() {
    let mut troop = app(&["-w", "2", "-b", "127.0.0.1:0", "--policy", "steered"], &[&activated()]);
    let port = port(&ready(&troop, 2));
    let (workers, before) = (pids(&troop), engine(troop.child.id()));
    troop.signal(Signal::USR2);
    wait_until("another engine", || {
        let now = engine(troop.child.id());
        now.is_some() && now != before && !is_running(before.unwrap())
    });
    assert_eq!(troop.troop(["scale", "4"]).0, 0);
    ready(&troop, 4);
    assert!(workers.is_subset(&pids(&troop)));
    let mut seen = BTreeSet::new();
    wait_until("all of them serve", || {
        let answer: Value = serde_json::from_str(&get(port).unwrap()).unwrap();
        seen.insert(answer["pid"].as_u64().unwrap());
        seen.len() == 4
    });
    assert_eq!(troop.troop(["stop"]).0, 0);
    assert_eq!(troop.end().0, Some(0));
}

#[test]
fn an_app_with_activated_sockets_starts_afresh_when_its_state_is_set_aside() {
    let port = free_port();
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("leaves_late.js");
    // It has the socket for longer than the next engine takes to begin.
    let text = "require('http').createServer((q, s) => s.end('late')).listen({ fd: 3 });
        process.on('SIGTERM', () => setTimeout(() => process.exit(0), 1500));";
    std::fs::write(&program, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_troop"));
    let bind = format!("127.0.0.1:{port}");
    command.args(["run", "--log", "json", "-w", "2", "-b", &bind]).arg(&program);
    command.env("TROOP_FAULT", "restoring:1:").env("TROOP_FAULT_SIGNAL", "6");
    let mut troop = support::start(command);
    ready(&troop, 2);
    let before = pids(&troop);
    kill(engine(troop.child.id()).unwrap());
    wait_until("others", || before.iter().all(|pid| !is_running(*pid)));
    ready(&troop, 2);
    assert!(pids(&troop).is_disjoint(&before));
    get(port).unwrap();
    assert_eq!(troop.troop(["stop"]).0, 0);
    assert_eq!(troop.end().0, Some(0));
}
