//! `troop run`, as a person uses it.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use support::{node, run, start};
use troop_testkit::{is_running, talk, wait_until};

fn get(port: u16, path: &str) -> std::io::Result<String> {
    let answer = talk(([127, 0, 0, 1], port), &format!("GET {path} HTTP/1.0\r\n\r\n"))?;
    match answer.split_once("\r\n\r\n") {
        Some((_, body)) if !body.is_empty() => Ok(body.to_owned()),
        _ => Err(std::io::Error::other(format!("no answer, but {answer:?}"))),
    }
}

fn arguments(start: &[&str], program: &str) -> Vec<String> {
    start.iter().map(|a| (*a).to_owned()).chain([node(program).display().to_string()]).collect()
}

#[test]
fn an_unchanged_http_server_becomes_a_cluster() {
    let mut troop = run(arguments(&["-w", "3", "--env", "GREETING=hi", "--cwd", "/"], "hello.js"));
    let port = troop.listening(3);
    let answers: BTreeSet<String> = (0..9).map(|_| get(port, "/").unwrap()).collect();
    let expected: BTreeSet<String> =
        troop.workers().iter().map(|pid| format!("{pid} hi /")).collect();
    assert_eq!(answers, expected);
    troop.signal(Signal::TERM);
    let (code, log) = troop.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(troop.workers().iter().all(|pid| !is_running(*pid)));
}

#[test]
fn a_program_that_uses_cluster_itself_runs_its_worker_part() {
    let mut troop = run(arguments(&["-w", "3"], "clusters.js"));
    let port = troop.listening(3);
    let answers: BTreeSet<String> = (0..6).map(|_| get(port, "/").unwrap()).collect();
    assert_eq!(answers, ["worker 1", "worker 2", "worker 3"].map(String::from).into());
    troop.signal(Signal::TERM);
    let (code, log) = troop.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("the part for the primary"), "{log}");
}

#[test]
fn signals_scale_it_and_end_it_as_people_know_them() {
    let mut troop = run(arguments(&["-w", "1"], "stays.js"));
    troop.listening(1);
    troop.signal(Signal::TTIN);
    troop.listening(1);
    troop.signal(Signal::TTOU);
    // The last one is told to leave; this program never does.
    wait_until("one is too many", || {
        troop.troop(["show", "--json"]).1.contains("\"leaving_ms\": 2")
    });
    troop.signal(Signal::TTOU);
    wait_until("what becomes of that", || {
        troop.event_line().is_some_and(|line| {
            line.contains("TTOU: no worker less: -1 would leave none of 1 worker; `troop scale 0`")
        })
    });
    troop.signal(Signal::QUIT);
    let (code, log) = troop.end();
    assert_eq!((code, log.matches("\"signal\":\"SIGKILL\"").count()), (Some(0), 2), "{log}");
}

#[test]
fn scaling_below_zero_is_zero() {
    let mut troop = run(arguments(&["-w", "1"], "hello.js"));
    troop.listening(1);
    assert_eq!(troop.troop(["scale", "0"]).0, 0);
    troop.event("exit");
    // Whichever comes first, one is left.
    troop.signal(Signal::TTOU);
    troop.signal(Signal::TTIN);
    let port = troop.listening(1);
    get(port, "/").unwrap();
    let (_, shown, err) = troop.troop(["show", "--json"]);
    assert!(shown.contains("\"wanted\": 1"), "{shown}{err}");
}

#[test]
fn completions_and_manual_pages_are_written() {
    let troop =
        |args: &[&str]| Command::new(env!("CARGO_BIN_EXE_troop")).args(args).output().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        assert!(
            String::from_utf8_lossy(&troop(&["completions", shell]).stdout).contains("reload"),
            "{shell}"
        );
    }
    let directory = tempfile::tempdir().unwrap();
    assert!(troop(&["man", directory.path().to_str().unwrap()]).status.success());
    let page = std::fs::read_to_string(directory.path().join("troop-run.1")).unwrap();
    assert!(page.contains("SIGHUP") && page.contains("policy"));
    assert!(
        directory.path().join("troop.1").exists()
            && directory.path().join("troop-scale.1").exists()
    );
}

#[test]
fn a_shared_socket_serves_too() {
    let mut troop = run(arguments(&["-w", "2", "--policy", "shared"], "hello.js"));
    let port = troop.listening(2);
    for _ in 0..6 {
        get(port, "/").unwrap();
    }
    troop.signal(Signal::INT);
    assert_eq!(troop.end().0, Some(0));
}

#[test]
fn requests_that_are_served_when_it_stops_are_finished() {
    let mut troop = run(arguments(&["-w", "2"], "hello.js"));
    let port = troop.listening(2);
    let mut slow = TcpStream::connect(("127.0.0.1", port)).unwrap();
    slow.write_all(b"GET /slow HTTP/1.0\r\n\r\n").unwrap();
    // That this one is answered shows that the one before it has been handed over.
    get(port, "/").unwrap();
    troop.signal(Signal::TERM);
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer:?}");
    assert_eq!(troop.end().0, Some(0));
}

#[test]
fn workers_that_keep_ending_end_it_with_their_last_lines() {
    let mut troop = run(arguments(&["-w", "2"], "dies.js"));
    let (code, log) = troop.end();
    assert_eq!(code, Some(1));
    let last = &log[log.rfind("troop: ").expect("a last word")..];
    assert!(last.contains("exit code 7") && last.contains("cannot open the database"), "{last}");
    assert!(log.matches("\"event\":\"restarting\"").count() >= 5, "{log}");
}

#[test]
fn silence_hides_output_but_not_the_reason() {
    let mut troop = run(arguments(&["-w", "2", "--silent"], "dies.js"));
    let (code, log) = troop.end();
    assert_eq!((code, log.matches("cannot open the database").count()), (Some(1), 1), "{log}");
}

#[test]
fn the_last_lines_are_those_of_a_worker_that_failed_and_not_of_one_that_was_killed_after_it() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("half.js");
    let half = "if (process.env.TROOP_SLOT === '1') {
        console.error('cannot open the database');
        process.exit(7);
    }
    setInterval(() => {}, 1000);";
    std::fs::write(&program, half).unwrap();
    let never_ready =
        ["-w", "2", "--silent", "--ready", "message", "--set", "restart.max_delay=1ms"];
    let mut troop = run(never_ready.iter().map(std::ffi::OsStr::new).chain([program.as_os_str()]));
    let (code, log) = troop.end();
    assert_eq!((code, log.matches("cannot open the database").count()), (Some(1), 1), "{log}");
}

#[test]
fn a_program_that_does_not_exist_is_one_clear_error() {
    let mut troop = run(["-w", "4", "./no-such-program"]);
    let (code, log) = troop.end();
    assert_eq!(code, Some(1));
    assert!(log.ends_with("No such file or directory (os error 2)"), "{log}");
    assert_eq!(log.matches("restarting").count(), 0, "{log}");
}

#[test]
fn wrong_arguments_are_explained() {
    for args in [
        &["-w", "none", "x"][..],
        &["--policy", "best", "x"],
        &["--env", "novalue", "x"],
        &["--grace", "-1", "x"],
        &[],
    ] {
        let mut troop = run(args);
        let (code, log) = troop.end();
        assert_eq!(code, Some(2), "{log}");
        assert!(
            ["error:", "nothing to run", "NAME=VALUE"].iter().any(|part| log.contains(part)),
            "{log}"
        );
    }
}

#[test]
fn a_reload_under_load_fails_no_request() {
    let mut troop = run(arguments(&["-w", "2"], "hello.js"));
    let port = troop.listening(2);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut done = 0;
                    while !stop.load(Ordering::Relaxed) {
                        get(port, "/").expect("no request fails");
                        done += 1;
                    }
                    done
                })
            })
            .collect();
        for _ in 0..3 {
            troop.signal(Signal::HUP);
            troop.event("reload-finished");
        }
        stop.store(true, Ordering::Relaxed);
        let done: usize = clients.into_iter().map(|c| c.join().expect("no request fails")).sum();
        assert!(done > 20, "only {done} requests");
    });
    assert_eq!(troop.workers().len(), 8);
    let forks: Vec<u32> = troop.workers().to_vec();
    wait_until("the old workers leave", || forks[..6].iter().all(|pid| !is_running(*pid)));
}

#[test]
fn a_reload_that_fails_keeps_the_old_workers() {
    let directory = tempfile::tempdir().unwrap();
    let broken = directory.path().join("broken").display().to_string();
    let mut troop =
        run(arguments(&["-w", "2"], "fails_on_reload.js").into_iter().chain([broken.clone()]));
    let port = troop.listening(2);
    std::fs::write(&broken, "").unwrap();
    troop.signal(Signal::HUP);
    let failed = troop.event("reload-failed");
    assert!(failed["reason"].as_str().unwrap().contains("exit code 1"), "{failed}");
    let old = troop.workers()[..2].to_vec();
    for _ in 0..4 {
        let pid = get(port, "/").unwrap().parse().unwrap();
        assert!(old.contains(&pid));
    }
}

#[test]
fn a_worker_that_does_not_leave_is_killed_after_its_grace() {
    let mut troop = run(arguments(&["-w", "1", "--grace", "1"], "stays.js"));
    troop.listening(1);
    let before = Instant::now();
    troop.signal(Signal::TERM);
    troop.event("grace-over");
    assert!(before.elapsed() >= Duration::from_millis(900));
    assert_eq!(troop.event("exit")["signal"], "SIGKILL");
    assert_eq!(troop.end().0, Some(0));
}

#[test]
fn a_second_signal_hurries() {
    let mut troop = run(arguments(&["-w", "1", "--grace", "600"], "stays.js"));
    troop.listening(1);
    troop.signal(Signal::INT);
    troop.event("stopping");
    // Signals within half a second of the first one are the same request, so this one is repeated
    // until it counts. Without the second request the worker stays for 600 s.
    let primary = Pid::from_raw(troop.child.id().cast_signed()).unwrap();
    let (done, is_done) = std::sync::mpsc::channel::<()>();
    let presses = std::thread::spawn(move || {
        while is_done.recv_timeout(Duration::from_millis(100)) == Err(RecvTimeoutError::Timeout) {
            let _ = kill_process(primary, Signal::INT);
        }
    });
    assert_eq!(troop.event("exit")["signal"], "SIGKILL");
    drop(done);
    presses.join().unwrap();
    assert_eq!(troop.end().0, Some(0));
}

/// `timeout 60 troop run …` signals the process and then its group.
#[test]
fn two_signals_at_the_same_time_are_one_request_to_stop() {
    let mut troop = run(arguments(&["-w", "1", "--grace", "600"], "echoes.js"));
    let port = troop.listening(1);
    let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    client.set_read_timeout(Some(troop_testkit::TEST_TIMEOUT)).unwrap();
    let mut echo = |text: &str| {
        client.write_all(text.as_bytes()).unwrap();
        let mut answer = vec![0; text.len()];
        client.read_exact(&mut answer).map(|()| answer).unwrap()
    };
    echo("before");
    // While the primary is stopped both become pending; it sees them in the same turn.
    troop.signal(Signal::STOP);
    troop.signal(Signal::TERM);
    troop.signal(Signal::INT);
    troop.signal(Signal::CONT);
    troop.event("stopping");
    assert_eq!(echo("after"), b"after");
    drop(client);
    assert_eq!(troop.event("exit")["code"], 0);
    assert_eq!(troop.end().0, Some(0));
}

#[test]
fn a_worker_that_is_killed_is_started_again() {
    let mut troop = run(arguments(&["-w", "2"], "hello.js"));
    let port = troop.listening(2);
    let first = rustix::process::Pid::from_raw(troop.workers()[0].cast_signed()).unwrap();
    rustix::process::kill_process(first, Signal::KILL).unwrap();
    assert_eq!(troop.event("exit")["signal"], "SIGKILL");
    assert_eq!(troop.listening(1), port);
    for _ in 0..4 {
        get(port, "/").unwrap();
    }
}

#[test]
fn ctrl_c_does_not_reach_the_workers_first() {
    let mut troop = run(arguments(&["-w", "2"], "hello.js"));
    troop.listening(2);
    let group = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit(')').next().unwrap().split_whitespace().nth(2).unwrap().parse::<u32>().unwrap()
    };
    for pid in troop.workers() {
        assert_eq!(group(*pid), *pid, "a worker leads its own process group");
    }
}

#[test]
fn auto_means_the_cpus_that_may_be_used() {
    let mut command = Command::new("taskset");
    command
        .args(["-c", "0", env!("CARGO_BIN_EXE_troop"), "run", "--log", "json", "-w", "auto"])
        .arg(node("hello.js"));
    let mut troop = start(command);
    troop.listening(1);
    troop.signal(Signal::TERM);
    let (_, log) = troop.end();
    assert_eq!(log.matches("\"event\":\"fork\"").count(), 1, "{log}");
}

#[test]
fn it_runs_as_pid_1() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let mut command = Command::new("unshare");
    command.args([
        "--pid",
        "--fork",
        "--kill-child",
        env!("CARGO_BIN_EXE_troop"),
        "run",
        "--log",
        "json",
        "-w",
        "1",
    ]);
    command.arg(node("orphan.js"));
    let mut troop = start(command);
    troop.listening(1);
    // The process that `unshare` started is process 1 in there; its pid here is its child's.
    let children = format!("/proc/{0}/task/{0}/children", troop.child.id());
    let init: u32 = std::fs::read_to_string(children).unwrap().trim().parse().unwrap();
    let orphans = || {
        // Of all its threads: one starts workers, another one gets orphans.
        let threads = std::fs::read_dir(format!("/proc/{init}/task")).into_iter().flatten();
        let children = threads
            .flatten()
            .filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
        children.map(|children| children.split_whitespace().count()).sum::<usize>()
    };
    // The other one is the engine.
    wait_until("the orphan is reaped and only the worker is left", || orphans() == 2);
    let pid = rustix::process::Pid::from_raw(init.cast_signed()).unwrap();
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(troop.event("exit")["code"], 0);
    assert_eq!(troop.end().0, Some(0));
}

#[test]
fn the_log_is_for_people_by_default() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_troop"));
    command.args(["run", "-w", "1"]).arg(node("hello.js"));
    let mut troop = start(command);
    wait_until("the worker listens", || {
        let _ = troop.event_line();
        troop.seen.iter().any(|l| l.starts_with("troop worker 1 listening on 127.0.0.1:"))
    });
    troop.signal(Signal::TERM);
    let (code, log) = troop.end();
    assert_eq!(code, Some(0));
    assert!(log.contains("troop worker 1 finished: exit code 0"), "{log}");
}

/// Whether a process has a listening TCP socket with this port of its own.
fn listens_itself(pid: u32, port: u16) -> bool {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let port = format!(":{port:04X}");
    const LISTEN: &str = "0A";
    let inodes: BTreeSet<String> = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields.len() > 9 && fields[1].ends_with(&port) && fields[3] == LISTEN)
        .map(|fields| format!("socket:[{}]", fields[9]))
        .collect();
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    fds.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok())
        .any(|link| inodes.contains(&link.display().to_string()))
}

#[test]
fn the_policy_comes_from_the_environment_or_the_command_line() {
    for (variable, option, policy) in [
        ("", "", "auto"),
        ("rr", "", "round-robin"),
        ("none", "", "shared"),
        ("best", "", "auto"),
        ("none", "round-robin", "round-robin"),
        ("rr", "shared", "shared"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_troop"));
        command
            .args(["run", "--log", "json", "-w", "1"])
            .env("NODE_CLUSTER_SCHED_POLICY", variable);
        if !option.is_empty() {
            command.args(["--policy", option]);
        }
        let mut troop = start({
            command.arg(node("hello.js"));
            command
        });
        let port = troop.listening(1);
        let shown = troop.troop(["show", "--json"]).1;
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(shown[0]["listeners"][0]["scheduling"], policy, "{variable} {option}");
        // Under all but round robin the worker has a socket.
        let listens = listens_itself(troop.workers()[0], port);
        assert_eq!(listens, policy != "round-robin", "{variable} {option}");
    }
}

/// Nanoseconds of CPU time that a process's main thread has had.
fn cpu_nanos(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap();
    stat.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn clients_of_a_blocked_worker_wait_in_the_kernel_and_cost_nothing() {
    let mut troop = run(arguments(&["-w", "1"], "blocks.js"));
    let port = troop.listening(1);
    let primary = troop_testkit::engine(troop.child.id()).unwrap();
    let mut clients: Vec<TcpStream> =
        (0..400).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    let descriptors = || std::fs::read_dir(format!("/proc/{primary}/fd")).unwrap().count();
    wait_until("the primary has accepted as many as it keeps", || descriptors() >= 64);
    let before = cpu_nanos(primary);
    std::thread::sleep(Duration::from_millis(500));
    // A primary that asks again and again whether it may accept would have used all of that.
    assert!(cpu_nanos(primary) - before < 250_000_000, "the primary is busy with waiting");
    assert!(descriptors() < 150, "{} descriptors", descriptors());
    for client in &mut clients {
        client.set_read_timeout(Some(troop_testkit::TEST_TIMEOUT)).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, format!("{}\n", troop.workers()[0]));
    }
}

#[test]
fn workers_with_an_inspector_do_not_fight_over_its_port() {
    let program = node("hello.js").display().to_string();
    let mut troop = run(["-w", "2", "node", "--inspect=0", &program]);
    troop.listening(2);
    let inspectors =
        |log: &[String]| log.iter().filter(|l| l.contains("Debugger listening on ws://")).count();
    assert_eq!(inspectors(&troop.seen), 2);
}

#[test]
fn a_script_that_node_cannot_run_is_refused_with_the_reason_or_runs() {
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("server.ts");
    std::fs::write(&script, "const port: number = 0; require('http').createServer().listen(port);")
        .unwrap();
    let mut troop = run(["-w", "1", &script.display().to_string()]);
    let version = Command::new("node").arg("--version").output().unwrap().stdout;
    let version = String::from_utf8(version).unwrap();
    let mut numbers =
        version.trim_start_matches('v').split('.').map(|n| n.parse::<u32>().unwrap_or(0));
    if (numbers.next(), numbers.next()) < (Some(22), Some(6)) {
        let (code, log) = troop.end();
        assert_eq!(code, Some(1));
        assert!(log.contains("does not run TypeScript"), "{log}");
    } else {
        troop.listening(1);
    }
}

#[test]
fn a_fork_that_may_succeed_later_is_tried_again_and_says_why() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    // A user who has no processes yet may have one: the primary. Forks fail with EAGAIN.
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("troop");
    std::fs::copy(env!("CARGO_BIN_EXE_troop"), &program).unwrap();
    std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    let mut command = Command::new("setpriv");
    command.args([
        "--reuid",
        "64123",
        "--regid",
        "64123",
        "--clear-groups",
        "prlimit",
        "--nproc=1",
    ]);
    command.arg(program).args(["run", "--no-keeper", "--log", "json", "-w", "1", "/bin/true"]);
    let mut troop = start(command);
    for _ in 0..2 {
        let again = troop.event("restarting");
        assert!(
            again["reason"].as_str().unwrap().contains("Resource temporarily unavailable"),
            "{again}"
        );
        assert!(again["delay_ms"].as_u64().unwrap() > 0);
    }
}
