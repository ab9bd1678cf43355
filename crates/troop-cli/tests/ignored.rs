//! Programs that ignore the sockets which they are given, or bind their ports by themselves.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::Write as _;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;
use support::{Home, Running, node, run};
use troop_testkit::{talk, wait_until};

fn has_python() -> bool {
    Command::new("python3").arg("--version").output().is_ok()
}

/// The addresses of its sockets.
fn addresses(troop: &Running) -> Vec<String> {
    let mut addresses = Vec::new();
    wait_until("the sockets", || {
        let app =
            serde_json::from_str::<Value>(&troop.troop(["show", "--json"]).1).unwrap_or_default();
        let listeners = app[0]["listeners"].as_array().cloned().unwrap_or_default();
        addresses = listeners
            .iter()
            .filter_map(|listener| listener["address"].as_str().map(str::to_owned))
            .collect();
        !addresses.is_empty()
    });
    addresses
}

#[test]
fn clients_of_a_program_that_ignores_its_sockets_are_told_about_once_until_it_serves_them() {
    if !has_python() {
        return;
    }
    let ignores = std::fs::read_to_string(node("ignores.py")).unwrap();
    let home = Home::with(&[("server.py", &ignores)]);
    let set = ["--set", "min_ready_time=0", "-n", "web"];
    let start = ["start", "python3", "-i", "2", "-b", "127.0.0.1:0"];
    home.fine(&[&start, &set[..], &["--", "server.py"]].concat());
    let listener = || home.show("web")["listeners"][0].clone();
    let address = listener()["address"].as_str().unwrap().to_owned();
    let state = || home.fine(&["ls", "web"]);
    assert!(state().contains("running") && listener()["ignored"].is_null());
    let clients: Vec<_> = (0..3)
        .map(|_| {
            let mut client = TcpStream::connect(&address).unwrap();
            client.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
            client
        })
        .collect();
    wait_until("a word about it", || !listener()["ignored"].is_null());
    let told = format!(
        "3 connections wait on {address} and no worker has accepted any: does the program take LISTEN_FDS? it was given fd 3; worker "
    );
    let shown = home.fine(&["show", "web"]);
    assert!(shown.contains(&told) && shown.contains(" by itself"), "{shown}");
    assert!(state().contains("degraded") && state().contains("2/2"), "{}", state());
    let log = || home.fine(&["logs", "web", "--nostream", "--lines", "1000"]);
    assert_eq!(log().matches(&told).count(), 1, "{}", log());
    // The next release serves them.
    let serves = ignores.replace("\"first\" in sys.argv", "True");
    std::fs::write(home.path().join("server.py"), serves).unwrap();
    home.fine(&["reload", "web"]);
    wait_until("the state", || listener()["ignored"].is_null() && state().contains("running"));
    let restored = format!("{address} is reached again: a worker accepts its connections");
    assert!(log().contains(&restored) && log().matches(&told).count() == 1, "{}", log());
    drop(clients);
    home.fine(&["stop", "web"]);
}

#[test]
fn clients_that_wait_for_an_app_do_not_count_for_another_one_whose_socket_has_the_same_name() {
    if !has_python() {
        return;
    }
    let ignores = std::fs::read_to_string(node("ignores.py")).unwrap();
    let home = Home::with(&[("server.py", &ignores)]);
    let start = |name: &str| {
        std::fs::create_dir(home.path().join(name)).unwrap();
        let path = home.path().join(name).join("web.sock");
        let at = path.display().to_string();
        let set = ["--set", "min_ready_time=0", "-n", name, "--", "server.py"];
        home.fine(&[&["start", "python3", "-b", &at], &set[..]].concat());
        path
    };
    start("idle");
    let mut clients = Vec::new();
    // When it is told of the second one, it would have been told of the idle one, too.
    for name in ["busy", "later"] {
        clients.push(UnixStream::connect(start(name)).unwrap());
        wait_until("a word about it", || !home.show(name)["listeners"][0]["ignored"].is_null());
    }
    let idle = home.show("idle");
    assert!(idle["listeners"][0]["ignored"].is_null(), "{idle}");
    assert_eq!(idle["phase"], "running");
    drop(clients);
}

#[test]
fn of_several_sockets_the_one_that_a_program_ignores_is_named_with_its_descriptor() {
    if !has_python() {
        return;
    }
    let program = node("ignores.py").display().to_string();
    let mut troop =
        run(["-w", "1", "-b", "127.0.0.1:0", "-b", "127.0.0.1:0", "python3", &program, "first"]);
    let addresses = addresses(&troop);
    let [served, ignored] = &addresses[..] else { panic!("{addresses:?}") };
    let answer = talk(served.parse::<std::net::SocketAddr>().unwrap(), "GET / HTTP/1.0\r\n\r\n");
    assert!(answer.unwrap().ends_with("fine"));
    let _client = TcpStream::connect(ignored).unwrap();
    let event = troop.event("not-accepted");
    let text = event["text"].as_str().unwrap();
    assert!(text.starts_with(&format!("1 connection waits on {ignored} and no worker")), "{text}");
    assert!(text.contains("it was given fd 4"), "{text}");
    assert_eq!((&event["waiting"], &event["addressType"]), (&1.into(), &"4".into()));
    troop.signal(Signal::TERM);
    assert_eq!(troop.end().0, Some(0));
}

#[test]
fn a_program_that_binds_the_port_of_its_socket_is_told_that_it_is_troops_own() {
    if !has_python() {
        return;
    }
    let binds = std::fs::read_to_string(node("binds.py")).unwrap();
    let home = Home::with(&[("server.py", &binds)]);
    let start = ["start", "python3", "-i", "1", "-b", "127.0.0.1:0", "--", "server.py"];
    let (code, out, err) = home.troop(&start);
    assert!(
        code == 1 && err.contains(" is troop's own (-b)") && err.contains("fd 3"),
        "{out}{err}"
    );
    assert!(!err.contains("another process"), "{err}");
    // In the foreground too, where troop does not see what it says.
    let program = home.path().join("server.py").display().to_string();
    let mut troop = run(["-b", "127.0.0.1:0", "python3", &program]);
    while !troop.event_line().unwrap().contains(" is troop's own (-b)") {}
    troop.signal(Signal::TERM);
    troop.end();
}

#[test]
fn workers_that_bind_one_port_by_themselves_are_told_at_the_start_which_of_them_has_it() {
    if !has_python() {
        return;
    }
    let binds = std::fs::read_to_string(node("binds.py")).unwrap();
    let home = Home::with(&[("server.py", &binds)]);
    let (code, out, err) =
        home.troop(&["start", "python3", "-i", "2", "-n", "web", "--", "server.py"]);
    let port = std::fs::read_to_string(home.path().join("port")).unwrap();
    let told =
        format!(" listens on 127.0.0.1:{port} by itself, and others that do the same cannot");
    assert!(code == 1 && err.contains(&told) && err.contains("-b 127.0.0.1:"), "{out}{err}");
    let log = home.fine(&["logs", "web", "--nostream"]);
    assert_eq!(log.matches(&told).count(), 1, "{log}");
    home.fine(&["stop", "web"]);
    // In the foreground.
    std::fs::remove_file(home.path().join("first")).unwrap();
    std::fs::remove_file(home.path().join("port")).unwrap();
    let cwd = format!("cwd={:?}", home.path().display().to_string());
    let mut troop = run(["-w", "2", "--set", &cwd, "python3", "server.py"]);
    let event = troop.event("not-shared");
    assert!(event["address"].as_str().unwrap().starts_with("127.0.0.1:"), "{event}");
    assert!(event["text"].as_str().unwrap().contains("start one worker, or"), "{event}");
    troop.signal(Signal::TERM);
    troop.end();
}

/// It throws unless `LISTEN_PID` is its own process.
fn activated() -> String {
    format!("exec-activated -- node {}", node("activated.js").display())
}

fn is_served(troop: &Running) {
    let at: std::net::SocketAddr = addresses(troop)[0].parse().unwrap();
    let answer = talk(at, "GET / HTTP/1.0\r\n\r\n").unwrap();
    assert!(answer.contains(r#""LISTEN_FDS":"1""#), "{answer}");
}

#[test]
fn a_program_behind_a_shell_gets_its_sockets_by_exec_activated() {
    let line = format!("{} {}; :", env!("CARGO_BIN_EXE_troop"), activated());
    let mut troop = run(["-b", "127.0.0.1:0", "--", "sh", "-c", &line]);
    is_served(&troop);
    troop.signal(Signal::TERM);
    troop.end();
}

/// Node keeps descriptors from the programs that it starts, and npm is one of Node's.
#[test]
fn sockets_that_a_launcher_keeps_are_fetched_from_it_by_exec_activated() {
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    if !rustix::process::geteuid().is_root() && !matches!(scope.trim(), "" | "0") {
        eprintln!("skipped: the system forbids it");
        return;
    }
    let script = format!(
        "require('child_process').spawn('{} {}', {{ shell: true, stdio: 'inherit' }})",
        env!("CARGO_BIN_EXE_troop"),
        activated()
    );
    let mut troop = run(["-b", "127.0.0.1:0", "--", "node", "-e", &script]);
    is_served(&troop);
    troop.signal(Signal::TERM);
    troop.end();
}

#[test]
fn exec_activated_says_what_is_missing() {
    let output = |listen_fds: Option<&str>, program: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_troop"));
        command.args(["exec-activated", "--", program]).env_remove("LISTEN_PID");
        match listen_fds {
            Some(count) => command.env("LISTEN_FDS", count),
            None => command.env_remove("LISTEN_FDS"),
        };
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, err) = output(None, "true");
    assert!(
        code == Some(2) && err.contains("LISTEN_FDS is not set") && err.contains("-b"),
        "{err}"
    );
    let (code, err) = output(Some("two"), "true");
    assert!(code == Some(2) && err.contains("\"two\""), "{err}");
    let (code, err) = output(Some("1000"), "true");
    assert!(code == Some(1) && err.contains("should be a socket (LISTEN_FDS is 1000)"), "{err}");
    // What it executes gets the rest of the line as it is.
    let line = format!("{} exec-activated sh -c 'exit 7' --help", env!("CARGO_BIN_EXE_troop"));
    let (code, log) =
        run(["-b", "127.0.0.1:0", "--restart", "never", "--", "sh", "-c", &line]).end();
    assert_eq!(code, Some(7), "{log}");
    let line = format!("{} exec-activated no-such-program", env!("CARGO_BIN_EXE_troop"));
    let (code, log) =
        run(["-b", "127.0.0.1:0", "--restart", "never", "--", "sh", "-c", &line]).end();
    assert!(code == Some(1) && log.contains("cannot execute no-such-program"), "{log}");
}
