//! The process that keeps a primary, and what it holds for another engine.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use troop_testkit::{children, engine, is_running, wait_until};

use super::running::{Running, nobody_else, open_directory, pid};
use super::support::{STRANGER, is_root, troop, troop_program};

const FIXTURE: &str = env!("CARGO_BIN_EXE_troop-fixture");
const ONLINE: &str = r#"line {"cmd":"NODE_CLUSTER","act":"online","seq":0}"#;
/// Asks for so many listeners, each on a port of its own.
const LISTENERS: &str = r#"each 300 {"cmd":"NODE_CLUSTER","act":"queryServer","seq":#,"index":#,"address":"127.0.0.1","port":0,"addressType":4}"#;
/// Reads the answers to them: an engine that has a part of a line left to send when it is killed
/// has its worker replaced.
const ANSWERS: &str = "answers 300";
const LISTENING: &str = r#"line {"cmd":"NODE_CLUSTER","act":"listening","seq":300,"address":"127.0.0.1","port":1,"addressType":4}"#;

/// An app whose workers do these steps.
fn raw(home: &Path, options: &[&str], steps: &[&str]) -> Command {
    let run = ["run", "--log", "json", "-w", "1"];
    troop(home, &[&run, options, &["--", FIXTURE, "raw"], steps].concat())
}

fn kill(number: u32) {
    let _ = kill_process(pid(number), Signal::KILL);
}

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Kills the engine, and waits until another one goes on.
fn crash(troop: &mut Running) -> u32 {
    kill(engine(troop.child.id()).expect("an engine"));
    let line = troop.until("goes on with the app");
    let next = line.split_once("process ").unwrap().1.split_once(' ').unwrap().0;
    next.parse().unwrap()
}

#[test]
fn sockets_that_take_for_ever_to_close_do_not_delay_the_keeper() {
    if !is_root("kept::sockets_that_take_for_ever_to_close_do_not_delay_the_keeper") {
        return;
    }
    let home = open_directory();
    // What is sent to it, it does not read.
    let peer = TcpListener::bind("127.0.0.1:0").unwrap();
    rustix::net::sockopt::set_socket_recv_buffer_size(&peer, 2048).unwrap();
    let unread = format!("unread 8 {}", peer.local_addr().unwrap());
    let (user, group) = (format!("user={STRANGER}"), format!("group={STRANGER}"));
    let options = [
        "--set",
        &user,
        "--set",
        &group,
        "--set",
        "restart.delay=300ms",
        "--set",
        "restart.max_delay=300ms",
    ];
    let mut troop = Running::start(&mut raw(home.path(), &options, &[ONLINE, &unread]));
    for _ in 0..5 {
        let exit = troop.event("exit");
        // As the keeper has told.
        assert!(exit["signal"] == "SIGKILL" || exit["code"] == 0, "{exit}");
    }
    assert!(is_running(crash(&mut troop)));
    kill_process(Pid::from_child(&troop.child), Signal::TERM).unwrap();
    assert_eq!(troop.end(), Some(0));
}

#[test]
fn more_descriptors_than_a_process_begins_with_are_held_for_the_next_engine() {
    let home = open_directory();
    let steps = [ONLINE, LISTENERS, ANSWERS, LISTENING, "sleep 600000"];
    let app = raw(home.path(), &["--policy", "round-robin"], &steps);
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -Sn 200 && exec \"$0\" \"$@\""]);
    limited.arg(app.get_program()).args(app.get_args()).current_dir(home.path());
    limited.envs(app.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut troop = Running::start(&mut limited);
    let keeper = troop.child.id();
    troop.event("listening");
    for round in 0..3 {
        wait_until("all are held", || {
            descriptors(engine(keeper).unwrap_or(0)) > 300 && descriptors(keeper) > 300
        });
        let open = descriptors(keeper);
        assert!(open < 400, "each one once: {open} in round {round}");
        let next = crash(&mut troop);
        let worker = troop.workers[0];
        assert!(is_running(worker) && troop.workers.len() == 1, "{:?}", troop.workers);
        assert!(children(keeper).contains(&worker) && is_running(next));
    }
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", troop.workers[0])).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().nth(3), Some("200"), "workers have what there was");
    kill_process(Pid::from_child(&troop.child), Signal::QUIT).unwrap();
    assert_eq!(troop.end(), Some(0));
}

/// Sets the soft limit on processes and threads of a process of this user.
fn limit(user: &str, pid: u32, soft: usize) {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", user, "--regid", user, "--clear-groups", "--"]);
    command.args(["prlimit", &format!("--nproc={soft}:"), "--pid", &pid.to_string()]);
    assert!(command.status().unwrap().success());
}

/// An app of a user of its own, for which there is a limit on processes; root has none.
fn app_of(user: &str, home: &Path) -> Running {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", user, "--regid", user, "--clear-groups", "--"]);
    command.arg(troop_program()).args(["run", "--log", "json", "-w", "1", "--"]);
    command.args([FIXTURE, "raw", ONLINE, "sleep 600000"]).current_dir(home);
    command.env("TROOP_RUNTIME_DIR", home.join("run"));
    command.env("TROOP_LOG_DIR", home.join("logs"));
    command.env("TROOP_STATE_DIR", home.join("state"));
    let mut troop = Running::start(&mut command);
    troop.event("online");
    wait_until("its state is held", || descriptors(troop.child.id()) > 8);
    troop
}

#[test]
fn engines_that_can_have_no_threads_cost_no_state() {
    if !is_root("kept::engines_that_can_have_no_threads_cost_no_state") {
        return;
    }
    let (home, user) = (open_directory(), nobody_else().to_string());
    let mut troop = app_of(&user, home.path());
    let (keeper, worker) = (troop.child.id(), troop.workers[0]);
    let threads = |pid: u32| std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().count();
    // One more than these: the first thread of an engine.
    limit(&user, keeper, threads(keeper) + threads(worker) + 1);
    let mut engines = std::collections::BTreeSet::from([engine(keeper).unwrap()]);
    kill(engine(keeper).unwrap());
    wait_until("more engines than a state may end", || {
        engines.extend(engine(keeper));
        engines.len() > 5
    });
    limit(&user, keeper, 200);
    troop.until("goes on with the app");
    assert!(is_running(worker) && troop.workers.len() == 1, "{:?}", troop.seen);
    kill_process(Pid::from_child(&troop.child), Signal::QUIT).unwrap();
    assert_eq!(troop.end(), Some(0));
}

#[test]
fn an_engine_is_started_as_soon_as_there_can_be_one() {
    if !is_root("kept::an_engine_is_started_as_soon_as_there_can_be_one") {
        return;
    }
    let (home, user) = (open_directory(), nobody_else().to_string());
    let mut troop = app_of(&user, home.path());
    let keeper = troop.child.id();
    limit(&user, keeper, 1);
    let first = engine(keeper).unwrap();
    kill(first);
    wait_until("it is reaped", || !Path::new(&format!("/proc/{first}")).exists());
    limit(&user, keeper, 200);
    troop.until("goes on with the app");
    assert!(is_running(troop.workers[0]) && troop.workers.len() == 1);
    kill_process(Pid::from_child(&troop.child), Signal::QUIT).unwrap();
    assert_eq!(troop.end(), Some(0));
}
