//! A Rust program that is its own primary, and is kept: another engine goes on with its workers.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "helpers of tests fail as tests do")]

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use rustix::process::{Pid, Signal, kill_process};
use troop_testkit::kept::Crowd;
use troop_testkit::{TEST_TIMEOUT, children, is_running, wait_until};

struct Program {
    child: Child,
    lines: Receiver<String>,
}

impl Program {
    fn start(scheduling: &str, faults: &[(&str, &str)]) -> Program {
        let args = ["serve as", "router", "127.0.0.1:0", "/dev/null"];
        let mut child = Command::new(env!("CARGO_BIN_EXE_troop-fixture"))
            .args(["kept", scheduling])
            .args(args)
            .envs(faults.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Program { child, lines }
    }

    /// The rest of the next line that begins so.
    fn until(&self, beginning: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(TEST_TIMEOUT).expect("a line");
            if let Some(rest) = line.strip_prefix(beginning) {
                return rest.to_owned();
            }
        }
    }

    fn workers(&self, engine: u32) -> Vec<u32> {
        let mut workers = children(self.child.id());
        workers.retain(|pid| *pid != engine && is_running(*pid));
        workers.sort_unstable();
        workers
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let all = children(self.child.id());
        let _ = self.child.kill();
        let _ = self.child.wait();
        all.into_iter().for_each(|pid| send(pid, Signal::KILL));
    }
}

fn send(pid: u32, signal: Signal) {
    let _ = kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal);
}

/// What happens to the primary.
#[derive(Clone, Copy, PartialEq)]
enum Change {
    Killed,
    /// And the next engines die that read what it had left.
    Poisoned,
    Upgraded,
    /// The engine stays.
    KeeperUpgraded,
}

/// It happens again and again, and clients notice nothing.
async fn check(scheduling: &str, rounds: usize, change: Change) {
    let faults: &[_] = match change {
        Change::Poisoned => &[("TROOP_FAULT", "recovering:1:"), ("TROOP_FAULT_SIGNAL", "6")],
        _ => &[],
    };
    let mut program = Program::start(scheduling, faults);
    let mut engine: u32 = program.until("engine ").parse().unwrap();
    let port = program.until("listening ").parse().unwrap();
    program.until("listening ");
    let workers = program.workers(engine);
    assert_eq!(workers.len(), 2);
    let crowd = Crowd::start(port, "");
    crowd.all_served().await;
    for round in 0..rounds {
        let keeper = program.child.id();
        match change {
            Change::Killed | Change::Poisoned => send(engine, Signal::KILL),
            Change::Upgraded => send(keeper, Signal::USR1),
            Change::KeeperUpgraded => send(keeper, Signal::USR2),
        }
        if change == Change::KeeperUpgraded {
            let from = tokio::task::block_in_place(|| program.until("keeper from "));
            assert_eq!(from, env!("CARGO_PKG_VERSION"));
            assert!(is_running(engine));
        } else {
            let former = engine;
            // Three more die.
            for _ in 0..if change == Change::Poisoned { 4 } else { 1 } {
                engine = tokio::task::block_in_place(|| program.until("engine ")).parse().unwrap();
            }
            wait_until("the end of the former engine", || !is_running(former));
        }
        crowd.all_served().await;
        assert_eq!(program.workers(engine), workers, "{scheduling}, round {round}");
        let noticed = crowd.noticed();
        eprintln!("{scheduling}, round {round}: {} answers", noticed.answered);
        assert!(noticed.failed.is_empty() && noticed.closed.is_empty(), "{noticed:#?}");
    }
    crowd.stop().await;
    // The next one still has workers that it can end, and ends as it should.
    send(workers[0], Signal::KILL);
    let exit = tokio::task::block_in_place(|| program.until(&format!("exit {}: ", workers[0])));
    assert_eq!(exit, "signal SIGKILL");
    tokio::task::block_in_place(|| program.until("listening "));
    send(program.child.id(), Signal::TERM);
    let mut status = None;
    wait_until("the end of the program", || {
        status = program.child.try_wait().unwrap();
        status.is_some()
    });
    assert!(status.unwrap().success(), "{status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_rust_workers_notice_nothing_of_upgrades() {
    for scheduling in ["round-robin", "auto", "steered", "shared"] {
        check(scheduling, 5, Change::Upgraded).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_rust_workers_notice_nothing_of_upgrades_of_the_keeper() {
    for scheduling in ["round-robin", "steered"] {
        check(scheduling, 5, Change::KeeperUpgraded).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_rust_workers_notice_nothing_of_crashes() {
    for scheduling in ["round-robin", "auto", "steered", "shared"] {
        check(scheduling, 5, Change::Killed).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_rust_workers_notice_nothing_of_a_state_that_no_engine_survives() {
    for scheduling in ["round-robin", "auto", "steered", "shared"] {
        check(scheduling, 1, Change::Poisoned).await;
    }
}
