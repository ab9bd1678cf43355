//! Processes of the workers' user that stop a new worker before it executes its program, while the
//! primary waits for that.

use std::time::Instant;

use rustix::process::{Signal, kill_process};
use troop_testkit::{TEST_TIMEOUT, talk, wait_until};

use super::home::Home;
use super::running::{Crowd, Running, file, nobody_else, open_directory, pid};
use super::support::{is_root, troop};

const FIXTURE: &str = env!("CARGO_BIN_EXE_troop-fixture");

#[test]
fn stopping_workers_during_their_start_delays_neither_the_primary_nor_serving_workers() {
    if !is_root(
        "stopping::stopping_workers_during_their_start_delays_neither_the_primary_nor_serving_workers",
    ) {
        return;
    }
    let (home, user) = (open_directory(), nobody_else().to_string());
    // Its user reaches it here, wherever the fixture itself is.
    std::fs::copy(FIXTURE, home.path().join("program")).unwrap();
    // Each is tried in vain before the program is found, so that there is time to stop the process.
    let path = format!("{}{}", "/1:".repeat(40_000), home.path().display());
    let env = format!("PATH={path}");
    let who = ["--user", &user, "--group", &user, "--env", &env];
    let args = [
        &["run", "--log", "json", "--name", "web", "-w", "3"],
        &who[..],
        &["--", "program", "line", "127.0.0.1:0"],
    ]
    .concat();
    let mut primary = Running::start(&mut troop(home.path(), &args));
    let port = u16::try_from(primary.event("listening")["port"].as_u64().unwrap()).unwrap();
    (0..2).for_each(|_| drop(primary.event("listening")));
    let shown = Home::ended(troop(home.path(), &["show", "web", "--json"])).out;
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let number = shown[0]["engine"].as_u64().unwrap();
    let descriptors = || std::fs::read_dir(format!("/proc/{number}/fd")).unwrap().count();
    let before = descriptors();

    let report = home.path().join("stopped");
    let attacker =
        Crowd::start(&[FIXTURE, "stop", &number.to_string(), report.to_str().unwrap()], &[]);
    kill_process(pid(primary.workers[0]), Signal::KILL).unwrap();
    let asked = |primary: &mut Running| {
        let ended = Home::ended(troop(home.path(), &["ls", "--json"]));
        assert_eq!(ended.code, Some(0), "{ended:?} {:?}", primary.seen);
        assert!(talk(([127, 0, 0, 1], port), "").unwrap().contains(' '));
    };
    let (mut restarts, deadline) = (0, Instant::now() + TEST_TIMEOUT);
    while restarts < 3 {
        assert!(Instant::now() < deadline, "{restarts} restarts: {:?}", primary.seen);
        asked(&mut primary);
        restarts += std::iter::from_fn(|| primary.soon())
            .filter(|line| line.contains("\"restarting\""))
            .count();
        // One that has executed its program by luck. Those that serve are left alone.
        if let Some(newest) = primary.workers.get(3..).and_then(<[u32]>::last) {
            let _ = kill_process(pid(*newest), Signal::KILL);
        }
    }
    assert_eq!(file(&report), "stopped one");
    // Ends all processes of this user, the workers among them.
    drop(attacker);
    (0..3).for_each(|_| drop(primary.event("listening")));
    asked(&mut primary);
    wait_until("no more descriptors than before", || descriptors() <= before);
}
