//! Programs that would fork without end, and signals that reach a whole process group.

use std::io::Read as _;
use std::net::TcpStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use rustix::process::{Signal, kill_process_group};
use troop::{Cluster, Fork};
use troop_sys::process::Exit;

use crate::running::{Crowd, Running, open_directory, pid};
use crate::support::{is_root, troop_program};

const FIXTURE: &str = env!("CARGO_BIN_EXE_troop-fixture");

/// A program that takes no heed of its role ends with this error, and there were never more
/// processes than its first workers (and shells between it and them).
fn is_no_flood(test: &str, way: &str, error: &str) {
    if !is_root(test) {
        return;
    }
    let (most, exit, stderr) = Crowd::start(&[FIXTURE, "flood", way], &[]).outcome();
    assert!(most <= 10, "{most} processes");
    assert_eq!(exit, Exit::Code(1), "{stderr}");
    assert!(stderr.contains(error), "{stderr}");
}

const ROLE: &str = "call troop::role() first thing in main";
const COPIES: &str = "its workers would be copies of it";

#[test]
fn a_program_that_never_calls_role_does_not_start_itself_without_end() {
    is_no_flood("flooding::run", "run", ROLE);
    is_no_flood("flooding::fork", "fork", ROLE);
}

#[test]
fn a_program_that_clears_its_environment_does_not_start_itself_without_end() {
    is_no_flood("flooding::forgetful", "forgetful", ROLE);
}

#[test]
fn a_program_that_ignores_its_role_does_not_start_itself_without_end() {
    is_no_flood("flooding::heedless", "heedless", COPIES);
    is_no_flood("flooding::heedless by name", "heedless by name", COPIES);
}

#[test]
fn activation_of_the_program_itself_does_not_start_it_without_end() {
    is_no_flood(
        "flooding::activation",
        "activation",
        "need a program of their own (Setup::program)",
    );
    is_no_flood("flooding::activation by name", "activation by name", "TROOP_ACTIVATED");
}

#[test]
fn a_shell_between_primary_and_worker_does_not_start_workers_without_end() {
    is_no_flood("flooding::shell", "shell", ROLE);
    is_no_flood("flooding::activation by shell", "activation by shell", "TROOP_ACTIVATED");
}

#[test]
fn clusters_do_not_nest_without_end() {
    is_no_flood("flooding::deeper", "deeper", "4 primaries are above this process");
}

/// What a test does that forks: its workers are the harness with all its tests.
#[tokio::test]
async fn a_test_forks_its_own_harness() {
    if std::env::var_os("TEST_FORKS_ITSELF").is_none() {
        return;
    }
    let cluster = Cluster::builder().start().unwrap_or_else(|e| panic!("{}", e.chain()));
    let mut events = cluster.events();
    let _workers =
        (cluster.fork(Fork::new()).await.unwrap(), cluster.fork(Fork::new()).await.unwrap());
    let mut ended = 0;
    while ended < 2 {
        ended += u32::from(matches!(events.recv().await, Some(troop::Event::Exit { .. }) | None));
    }
}

#[test]
fn a_test_harness_that_forks_does_not_start_itself_without_end() {
    if !is_root("flooding::a_test_harness_that_forks_does_not_start_itself_without_end") {
        return;
    }
    let own = std::env::current_exe().unwrap();
    let argv =
        [own.to_str().unwrap(), "--exact", "flooding::a_test_forks_its_own_harness", "--nocapture"];
    let (most, exit, stderr) = Crowd::start(&argv, &[("TEST_FORKS_ITSELF", "1")]).outcome();
    assert!(most <= 3, "{most} processes");
    assert_eq!(exit, Exit::Code(0), "{stderr}");
    assert!(stderr.contains(ROLE), "{stderr}");
}

/// Whether a process is what a keeper has started to do the work. It has ended if nothing is known.
fn is_engine(pid: u32) -> bool {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment.is_empty() || String::from_utf8_lossy(&environment).contains("TROOP_KEEPER=engine:")
}

#[test]
fn troop_below_troop_does_not_start_workers_without_end() {
    if !is_root("flooding::troop_below_troop_does_not_start_workers_without_end") {
        return;
    }
    let (home, troop) = (open_directory(), troop_program());
    let (troop, runtime) = (troop.to_str().unwrap(), home.path().join("run"));
    let argv = [
        troop,
        "run",
        "-w",
        "2",
        "--set",
        "restart.max=2",
        "--",
        troop,
        "run",
        "-w",
        "2",
        "--",
        FIXTURE,
        "line",
        "127.0.0.1:0",
    ];
    let crowd = Crowd::start(&argv, &[("TROOP_RUNTIME_DIR", runtime.to_str().unwrap())]);
    let keeper = crowd.first();
    let (mut most_kept, mut most_of_engine) = (0, 0);
    let (_, exit, stderr) = crowd.outcome_seeing(|members| {
        // Those that have ended since have none.
        let parents = members.iter().filter_map(|member| troop_sys::process::parent(*member));
        let others: Vec<u32> = parents.filter(|parent| members.contains(parent)).collect();
        most_kept = most_kept.max(others.iter().filter(|parent| **parent == keeper).count());
        let others: Vec<_> = others.iter().filter(|parent| **parent != keeper).collect();
        assert!(others.iter().all(|parent| is_engine(**parent)), "an inner troop has children");
        most_of_engine = most_of_engine.max(others.len());
    });
    // Below the keeper, which is the first process: the engine, and two workers, each of which is an inner
    // troop without a keeper or anything else below it.
    assert!(most_kept <= 1 + 2, "{most_kept} children of the keeper");
    // Where the engine looks for what a worker has left.
    assert!(most_of_engine <= 1, "{most_of_engine} children of the engine");
    assert_eq!(exit, Exit::Code(1), "{stderr}");
    assert!(stderr.contains("env -u NODE_UNIQUE_ID"), "{stderr}");
}

#[test]
fn a_program_that_is_its_own_primary_is_a_worker_below_troop() {
    let home = open_directory();
    let args = ["run", "--log", "json", "-w", "2", FIXTURE, "own", "127.0.0.1:0"];
    let mut troop = Running::start(&mut crate::support::troop(home.path(), &args));
    let (port, _) = (troop.event("listening")["port"].as_u64().unwrap(), troop.event("listening"));
    let answer = troop_testkit::talk(([127, 0, 0, 1], u16::try_from(port).unwrap()), "").unwrap();
    assert_eq!(answer, "begun\ndone\n");
    for worker in troop.workers.clone() {
        let children = troop_testkit::children(worker);
        assert!(children.is_empty(), "a worker has no workers of its own: {children:?}");
    }
}

/// A program that is its own primary, in a separate process group, gets this signal while a request
/// is in flight.
fn a_request_survives(signal: Signal) {
    let mut command = Command::new(FIXTURE);
    let mut child = command
        .args(["own", "127.0.0.1:0"])
        .process_group(0)
        .stdout(Stdio::piped())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let stdout = child.stdout.take().unwrap();
    let mut primary = Running::reading(child, stdout);
    let line = (primary.until("listening"), primary.until("listening")).1;
    let port =
        line.rsplit(':').next().unwrap().trim().parse::<u16>().unwrap_or_else(|_| panic!("{line}"));
    let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    client.set_read_timeout(Some(troop_testkit::TEST_TIMEOUT)).unwrap();
    client.read_exact(&mut [0; 6]).unwrap();
    kill_process_group(pid(primary.child.id()), signal).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "done\n");
    assert_eq!(primary.end(), Some(0));
}

#[test]
fn a_request_in_flight_is_answered_when_the_group_gets_sigint() {
    a_request_survives(Signal::INT);
}

#[test]
fn a_request_in_flight_is_answered_when_the_group_gets_sigterm() {
    a_request_survives(Signal::TERM);
}
