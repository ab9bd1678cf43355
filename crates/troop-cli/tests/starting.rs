//! What `troop start` waits for, what it says when not all is well, and what Ctrl-C does to it.

#![allow(clippy::unwrap_used)]

mod support;

use std::net::TcpListener;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::process::Stdio;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, kill_process};
use support::{Home, run, without_progress};
use troop_testkit::wait_until;

const SERVER: &str = "
require('http').createServer((request, response) => response.end()).listen(0, '127.0.0.1');
";

/// The first worker listens; the second one does what `THEN` says.
const HALF: &str = "
if (process.env.TROOP_SLOT === '0') require('http').createServer(() => {}).listen(0, '127.0.0.1');
else if (process.env.THEN !== 'wait') setTimeout(() => process.exit(Number(process.env.THEN)), 100);
else setInterval(() => {}, 1e6);
";

#[test]
fn a_start_with_some_ready_workers_reports_their_number_and_the_app_keeps_running() {
    let home = Home::with(&[("half.js", HALF)]);
    let mut command = home.command(&[
        "start",
        "half.js",
        "-i",
        "2",
        "--ready",
        "listening",
        "--set",
        "ready_timeout=1",
    ]);
    let output = command.env("THEN", "wait").output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code() == Some(1)
            && err.contains("half: not all workers are ready, 1 of 2, after 6s; it keeps running"),
        "{err}"
    );
    assert_eq!(home.show("half")["ready"], 1);
}

/// Writes down that it is executed, and serves; one that is a primary has two workers that serve.
const COUNTED: &str = "
require('fs').appendFileSync('executed', `${process.env.name} ${process.env.NUMBER}\\n`);
require('http').createServer((request, response) => response.end()).listen(0, '127.0.0.1');
";
const CLUSTERED: &str = "
const cluster = require('cluster');
require('fs').appendFileSync('executed', `${process.env.name} ${cluster.isPrimary}\\n`);
if (cluster.isPrimary) for (let number = 0; number < 2; number++) cluster.fork({ NUMBER: number });
else require('http').createServer((request, response) => response.end()).listen(0, '127.0.0.1');
";

#[test]
fn a_start_executes_a_program_once_for_each_worker_and_a_file_once_for_each_app() {
    let ecosystem = "
        require('fs').appendFileSync('executed', 'file\\n');
        const one = { script: 'counted.js' };
        module.exports = { apps: [{ name: 'one', ...one }, { name: 'two', ...one, instances: 2 }, { name: 'own', script: 'clustered.js' }] };
    ";
    let home = Home::with(&[
        ("counted.js", COUNTED),
        ("clustered.js", CLUSTERED),
        ("ecosystem.config.js", ecosystem),
    ]);
    let executed = || {
        let text = std::fs::read_to_string(home.path().join("executed")).unwrap();
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let (code, out, err) = home.troop(&["start"]);
    assert_eq!(code, 0, "{out}{err}");
    assert!(err.contains("runs alone") && err.contains("clustered.js:3"), "{err}");
    wait_until("the workers of its own", || executed().len() >= 10);
    // The file is executed by the verb, too.
    let file = ["file"; 4];
    let workers =
        ["one undefined", "own false", "own false", "own true", "two undefined", "two undefined"];
    assert_eq!(executed(), [&file[..], &workers].concat());
    // What it is stays when its engine is killed.
    let engine = || home.show("own")["engine"].as_u64();
    let killed = engine().unwrap();
    kill_process(Pid::from_raw(killed as i32).unwrap(), Signal::KILL).unwrap();
    wait_until("another engine", || engine().is_some_and(|engine| engine != killed));
    assert!(home.fine(&["show", "own"]).contains("runs alone"));
    assert_eq!(executed().len(), 10);
}

#[test]
fn what_ends_as_if_all_was_well_is_told_to_stay_in_the_foreground_or_to_be_started_once() {
    let home = Home::with(&[("daemon.sh", "sleep 0.1 & exit $CODE")]);
    let start = |code: &str| {
        let mut command = home.command(&["start", "daemon.sh", "--max-restarts", "2"]);
        let output = command.env("CODE", code).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let err = start("0");
    assert!(err.contains("\ntip: ") && err.contains("(--daemon)"), "{err}");
    assert!(err.contains("--restart never"), "{err}");
    assert!(!start("3").contains("tip: "));
}

#[test]
fn a_start_does_not_wait_for_workers_that_have_ended_for_good() {
    let home = Home::with(&[("half.js", HALF)]);
    let start = |then: &str, name: &str| {
        let mut command =
            home.command(&["start", "half.js", "-i", "2", "--restart", "never", "-n", name]);
        let output = command.args(["--ready", "listening"]).env("THEN", then).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    };
    let (code, out, err) = start("0", "done");
    assert!(code == 0 && out.starts_with("done: 1 worker ready"), "{out}{err}");
    let (code, _, err) = start("3", "failed");
    let why = "not all workers are ready, 1 of 2, because the worker of slot 1 has ended for good: exit code 3; it keeps running";
    assert!(code == 1 && err.contains(why), "{err}");
    assert_eq!(home.show("failed")["restarts"], 0, "nobody was started again");
}

#[test]
fn an_interrupted_start_reports_the_state_of_the_app() {
    let home = Home::with(&[("slow.js", "setInterval(() => {}, 1e6)"), ("server.js", SERVER)]);
    let mut command = home.command(&["start", "slow.js", "-n", "slow", "--ready", "listening"]);
    let start = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("the app is there", || home.troop(&["show", "slow"]).0 == 0);
    kill_process(Pid::from_child(&start), Signal::INT).unwrap();
    let output = start.wait_with_output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code() == Some(1)
            && err.contains("slow: interrupted, but the app keeps starting"),
        "{err}"
    );
    assert_eq!(home.show("slow")["phase"], "starting");
    home.fine(&["stop", "slow", "--quick"]);
    // However early it is, what is said is true.
    for pause in [0, 5, 20, 60] {
        let mut command = home.command(&["start", "slow.js", "-n", "slow", "--ready", "listening"]);
        let start = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(pause));
        kill_process(Pid::from_child(&start), Signal::INT).unwrap();
        let output = start.wait_with_output().unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        if err.contains("keeps starting") {
            wait_until("the app is there", || home.troop(&["show", "slow"]).0 == 0);
            home.fine(&["stop", "slow", "--quick"]);
        } else {
            assert_eq!(home.troop(&["show", "slow"]).0, 3, "{err}");
        }
    }
}

#[test]
fn a_running_app_is_reported_even_if_its_descriptors_are_missing() {
    let home = Home::with(&[("server.js", SERVER)]);
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let number = socket.as_raw_fd().to_string();
    fcntl_setfd(socket.as_fd(), FdFlags::empty()).unwrap();
    let args = ["start", "server.js", "-i", "1", "-n", "web", "--offer-fd", &number];
    home.fine(&args);
    fcntl_setfd(socket.as_fd(), FdFlags::CLOEXEC).unwrap();
    let (code, _, err) = home.troop(&args);
    assert!(code == 1 && err.contains("runs already"), "{code} {err}");
}

#[test]
fn a_program_has_one_worker_unless_more_are_asked_for() {
    let home = Home::with(&[
        ("server.js", SERVER),
        ("troop.toml", "[app.web]\nprogram = \"server.js\"\n"),
    ]);
    let cpus = troop::available_workers();
    let count = |name: &str| home.show(name)["workers"].as_array().unwrap().len();
    let out = home.fine(&["start", "server.js", "-n", "one"]);
    assert!(out.starts_with("one: 1 worker ready on 127.0.0.1:"), "{out}");
    assert_eq!(out.contains("; -w auto for one per CPU"), cpus > 1, "{out}");
    assert_eq!(count("one"), 1);
    for (name, how) in [
        ("a", ["-w", "auto"]),
        ("b", ["-i", "max"]),
        ("c", ["-i", "0"]),
        ("d", ["--instances", "0"]),
        ("e", ["--set", "workers=auto"]),
    ] {
        let out = home.fine(&["start", "server.js", "-n", name, how[0], how[1]]);
        assert!(!out.contains("-w auto"), "{out}");
        assert_eq!(count(name), cpus, "{how:?}");
    }
    let out = home.fine(&["start", "server.js", "-n", "typed", "-w", "1"]);
    assert!(!out.contains("-w auto"), "it was asked for: {out}");
    home.fine(&["start", "web"]);
    assert_eq!(count("web"), cpus);
    home.fine(&["reload", "one"]);
    assert_eq!(home.show("one")["wanted"], 1, "a reload keeps it");
}

#[test]
fn in_the_foreground_the_one_worker_is_said_at_the_start() {
    let home = Home::with(&[]);
    for (args, is_said) in [(&["run", "true"][..], true), (&["run", "-w", "1", "true"], false)] {
        let (code, _, err) = home.troop(&[args, &["--restart", "never"]].concat());
        let is_said = is_said && troop::available_workers() > 1;
        assert_eq!(
            err.contains("troop: 1 worker; -w auto for one per CPU"),
            is_said,
            "{code} {err}"
        );
    }
}

#[test]
fn several_workers_of_npm_are_told_what_to_start_instead_and_why_they_fail() {
    const PACKAGE: &str = r#"{ "scripts": { "start": "node server.js" } }"#;
    const FIXED: &str =
        "require('http').createServer(() => {}).listen(process.env.PORT, '127.0.0.1');";
    let home = Home::with(&[("package.json", PACKAGE), ("server.js", FIXED)]);
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let mut command = home.command(&["start", "npm", "-n", "web", "-w", "2", "--", "start"]);
    let output = command.env("PORT", port).output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    for part in [
        "npm starts `node server.js` as a process of its own",
        "start that instead: `troop start -w 2 server.js`",
        "not all workers are ready, 1 of 2, because the others cannot listen where the first one does",
        "EADDRINUSE",
    ] {
        assert!(err.contains(part), "{part}: {err}");
    }
    assert_eq!(output.status.code(), Some(1), "{err}");
    // One is no problem.
    let (code, _, err) = home.troop(&["start", "npm", "-n", "one", "--", "start"]);
    assert!(code == 0 && without_progress(&err).is_empty(), "{err}");
}

/// Such as do not speak Node's protocol, which end by the signal that they are sent.
#[test]
fn an_exit_that_troop_has_caused_is_reported_as_such() {
    let mut gives_up = run([
        "-w",
        "2",
        "--ready",
        "listening",
        "--set",
        "restart.window=1s",
        "--set",
        "ready_timeout=1s",
        "sleep",
        "600",
    ]);
    let (code, log) = gives_up.end();
    assert_eq!(code, Some(1), "{log}");
    let mut stops = run(["-w", "2", "sleep", "600"]);
    (0..2).for_each(|_| drop(stops.event("fork")));
    stops.signal(Signal::TERM);
    let (_, stopped) = stops.end();
    for log in [log, stopped] {
        let ends = || log.lines().filter(|line| line.contains(r#""event":"exit""#));
        assert_eq!(ends().count(), 2, "{log}");
        assert!(
            ends().all(|end| end.contains("ended as asked: signal SIGTERM")
                && end.contains(r#""endedByTroop":true"#)
                && end.contains(r#""exitedAfterDisconnect":true"#)),
            "{log}"
        );
    }
    // Nor does one die that has nothing left to do.
    let mut done = run(["-w", "1", "--restart", "never", "true"]);
    assert_eq!(done.event("exit")["text"], "worker 1 ended: exit code 0");
    done.end();
    // One that somebody else ends is not.
    let mut dies = run(["-w", "1", "--restart", "never", "sleep", "600"]);
    let pid = dies.event("fork")["pid"].as_i64().unwrap();
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), Signal::TERM).unwrap();
    assert!(dies.event("exit")["text"].as_str().unwrap().contains("worker 1 died: signal SIGTERM"));
    dies.end();
}

#[test]
fn a_restart_with_a_release_that_does_not_start_quotes_its_last_lines() {
    let home = Home::with(&[("server.js", "require('http').createServer(() => {}).listen(0)")]);
    home.fine(&["start", "server.js", "-n", "web", "--set", "restart.delay=10ms"]);
    std::fs::write(home.path().join("server.js"), "require('nosuch')").unwrap();
    let (code, _, err) = home.troop(&["restart", "web"]);
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("exit code 1; its last lines:\n"), "{err}");
    let quoted = "  | Error: Cannot find module 'nosuch'";
    assert!(err.lines().any(|line| line.starts_with(quoted)), "{err}");
    // So does what waits for it.
    let (code, _, err) = home.troop(&["wait", "web"]);
    assert!(code == 1 && err.contains("Cannot find module 'nosuch'"), "{code} {err}");
}

#[test]
fn a_restart_that_fails_says_why_and_what_the_app_does_now() {
    const SERVER: &str = "require('http').createServer(() => {}).listen(0)";
    const FAILS: &str = "console.error('no config'); process.exit(3)";
    const HANGS: &str = "console.error('no answer'); setInterval(() => {}, 1000)";
    const DONE: &str = "process.exit(0)";
    let never = &["--restart", "never"][..];
    let in_time = &["--ready", "listening", "--set", "ready_timeout=1"];
    let again = &["--set", "restart.delay=10ms"];
    for (program, args, expected) in [
        (
            FAILS,
            never,
            &[
                "web was restarted, and has ended; it is listed as failed; `troop start web` tries again: ",
                "exit code 3; the last lines of its standard error:\n    | no config\n",
            ][..],
        ),
        (
            FAILS,
            again,
            &[
                "web was restarted, and no worker gets ready; it is degraded, and troop goes on trying ",
                "exit code 3; its last lines:\n  | no config\n",
            ],
        ),
        (
            HANGS,
            in_time,
            &[
                "web was restarted, and is not ready after ",
                "s: it is degraded, 0 of 1 workers ready",
                "its last lines:\n  | no answer\n",
            ],
        ),
        (DONE, never, &[]),
    ] {
        let home = Home::with(&[("server.js", SERVER)]);
        home.fine(&[&["start", "server.js", "-n", "web"], args].concat());
        std::fs::write(home.path().join("server.js"), program).unwrap();
        let (code, out, err) = home.troop(&["restart", "web"]);
        assert_eq!(code, i32::from(!expected.is_empty()), "{program}: {out}{err}");
        for part in expected {
            assert!(err.contains(part), "{program}: {part}: {err}");
        }
        if expected.is_empty() {
            assert_eq!(out, "web: finished: exit code 0\n");
        }
    }
}

/// Each costs memory. With -b they stay: when one ends, the system ends what it has started.
#[test]
fn threads_that_start_workers_end_when_all_have_started() {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_troop"));
    command.args(["run", "--log", "json", "-w", "2"]).arg(support::node("hello.js"));
    let mut troop = support::start(command);
    troop.listening(2);
    let names = format!("/proc/{}/task", troop.child.id());
    let is_starter = |thread: std::fs::DirEntry| {
        std::fs::read_to_string(thread.path().join("comm")).is_ok_and(|n| n.trim() == "troop-start")
    };
    wait_until("the end of these threads", || {
        !std::fs::read_dir(&names).unwrap().flatten().any(is_starter)
    });
    troop.signal(Signal::TERM);
    assert_eq!(troop.end().0, Some(0));
}
