//! The script that `troop` loads into Node workers: idle connections outlive them, and programs see
//! nothing of it.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;
use support::{Running, node, start};
use troop_testkit::TEST_TIMEOUT;

/// `troop run` with these options and this program.
fn run(options: &[&str], program: &str) -> Running {
    start(command(options, program))
}

fn command(options: &[&str], program: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_troop"));
    command.args(["run", "--log", "json", "-w", "1", "-n", "web"]).args(options).arg(node(program));
    command
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    stream
}

/// The body of an answer; `None` if the connection was closed.
fn ask(stream: &mut TcpStream) -> Option<String> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").ok()?;
    let (mut text, mut buffer) = (String::new(), [0; 65536]);
    loop {
        let read = stream.read(&mut buffer).ok().filter(|read| *read > 0)?;
        text.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.split("Content-Length: ").nth(1).and_then(|rest| rest.lines().next());
        if body.len() == length.unwrap().parse::<usize>().unwrap() {
            return Some(body.to_owned());
        }
    }
}

/// The process that answers on this connection.
fn pid(stream: &mut TcpStream) -> Option<u64> {
    ask(stream)?.split(' ').next().unwrap().parse().ok()
}

/// Reloads while a connection is idle. Whether the new worker answers on it.
fn outlives(app: &mut Running, port: u16) -> bool {
    let mut stream = connect(port);
    let old = pid(&mut stream).unwrap();
    let (code, _, text) = app.troop(["reload", "web"]);
    assert_eq!(code, 0, "{text}");
    let ended = |event: &Value| event["pid"].as_u64() == Some(old);
    while !ended(&app.event("exit")) {}
    match pid(&mut stream) {
        Some(new) => new != old,
        None => false,
    }
}

#[test]
fn idle_connections_outlive_their_worker() {
    let mut app = run(&["--set", "min_ready_time=0"], "hello.js");
    let port = app.listening(1);
    assert!(outlives(&mut app, port));
    // Programs that root starts may give its privileges up by themselves.
    let is_root = rustix::process::geteuid().is_root();
    let directory = if is_root { "troop-node" } else { "troop" };
    let script = app.runtime.path().join(directory).join("web.cjs");
    assert_eq!(std::fs::metadata(&script).unwrap().permissions().mode() & 0o777, 0o444);
    app.signal(Signal::TERM);
    assert_eq!(app.end().0, Some(0));
    assert!(!script.exists(), "it is removed with the app");
}

#[test]
fn so_they_do_where_the_first_line_of_a_program_names_node() {
    let home = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = home.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    };
    let hello = std::fs::read_to_string(node("hello.js")).unwrap();
    let server = write("server", &format!("#!/usr/bin/env node\n{hello}"));
    std::os::unix::fs::symlink(&server, home.path().join("link")).unwrap();
    let start = |program: &std::path::Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_troop"));
        command.args(["run", "--log", "json", "-w", "1", "-n", "web", "--set", "min_ready_time=0"]);
        command.arg(program);
        start(command)
    };
    for program in [server, home.path().join("link")] {
        let mut app = start(&program);
        let port = app.listening(1);
        assert!(outlives(&mut app, port), "{program:?}: {:?}", app.seen);
    }
    let environment = home.path().join("environment");
    let other =
        format!("#!/bin/sh\nenv > {}.new\nmv {0}.new {0}\nexec sleep 60\n", environment.display());
    let _app = start(&write("other", &other));
    troop_testkit::wait_until("the program of another language", || environment.exists());
    let seen = std::fs::read_to_string(environment).unwrap();
    assert!(!seen.contains("TROOP_NODE_OPTIONS"), "{seen}");
}

#[test]
fn one_switch_leaves_them_to_node() {
    let mut app = run(&["--set", "min_ready_time=0", "--move-connections", "false"], "hello.js");
    let port = app.listening(1);
    assert!(!outlives(&mut app, port));
    for directory in ["troop", "troop-node"] {
        assert!(!app.runtime.path().join(directory).join("web.cjs").exists());
    }
}

#[test]
fn programs_see_nothing_of_it() {
    for options in [None, Some(""), Some("--no-warnings --require \"./nothing.js\"")] {
        let sees = |moves: &str| -> Value {
            let mut command = command(&["--move-connections", moves], "sees.js");
            let directory = tempfile::tempdir().unwrap();
            std::fs::write(directory.path().join("nothing.js"), "").unwrap();
            command.current_dir(directory.path());
            match options {
                None => command.env_remove("NODE_OPTIONS"),
                Some(options) => command.env("NODE_OPTIONS", options),
            };
            let mut app = start(command);
            let port = app.listening(1);
            serde_json::from_str(&ask(&mut connect(port)).unwrap()).unwrap()
        };
        assert_eq!(sees("true"), sees("false"), "{options:?}");
    }
}

#[test]
fn workers_start_without_it_where_node_may_not_read_it_which_is_said_once() {
    let major = Command::new("node").args(["-p", "process.versions.node.split('.')[0]"]).output();
    let major = String::from_utf8(major.unwrap().stdout).unwrap();
    let flag = if major.trim() == "20" { "--experimental-permission" } else { "--permission" };
    let args = format!("node_args=[\"{flag}\", \"--allow-fs-read=*\", \"--no-warnings\"]");
    let mut app = run(&["--set", "min_ready_time=0", "--set", &args], "hello.js");
    let port = app.listening(1);
    assert!(!outlives(&mut app, port));
    app.signal(Signal::TERM);
    let (code, lines) = app.end();
    assert_eq!(
        (code, lines.matches("do not move to other workers").count()),
        (Some(0), 1),
        "{lines}"
    );
    assert!(lines.contains(flag), "{lines}");
}

#[test]
fn workers_start_without_it_where_another_user_could_exchange_it_which_is_said_once() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let runtime = std::sync::Arc::new(tempfile::tempdir().unwrap());
    std::os::unix::fs::chown(runtime.path(), Some(65_534), Some(65_534)).unwrap();
    let command = command(&["--set", "min_ready_time=0"], "hello.js");
    let mut app = support::start_in(runtime.clone(), command);
    let port = app.listening(1);
    assert!(!outlives(&mut app, port));
    assert!(!runtime.path().join("troop-node/web.cjs").exists());
    app.signal(Signal::TERM);
    let (code, lines) = app.end();
    let said = lines.matches("do not move to other workers").count();
    assert_eq!((code, said), (Some(0), 1), "{lines}");
    assert!(lines.contains("it belongs to user 65534"), "{lines}");
}

#[test]
fn workers_of_another_user_or_in_a_sandbox_load_it() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let runtime = std::sync::Arc::new(tempfile::tempdir().unwrap());
    std::fs::set_permissions(runtime.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = runtime.path().join("hello.js");
    std::fs::copy(node("hello.js"), &program).unwrap();
    for options in [
        ["--user", "nobody"],
        ["--set", "sandbox.read=[\"/usr\", \"/lib\", \"/lib64\", \"/etc\", \"/proc\", \".\"]"],
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_troop"));
        command.args(["run", "--log", "json", "-w", "1", "-n", "web", "--set", "min_ready_time=0"]);
        command.args(options).arg(&program).current_dir(runtime.path());
        let mut app = support::start_in(runtime.clone(), command);
        let port = app.listening(1);
        assert!(outlives(&mut app, port), "{options:?}: {:?}", app.seen);
        app.signal(Signal::TERM);
        app.end();
        for directory in ["troop", "troop-node"] {
            assert!(!runtime.path().join(directory).join("web.cjs").exists());
        }
    }
}

#[test]
fn what_is_in_the_way_is_in_the_logs_of_an_app_in_the_background() {
    let server = std::fs::read_to_string(node("hello.js")).unwrap();
    let home = support::Home::with(&[("hello.js", &server), ("empty.env", "")]);
    let args = "node_args=[\"--env-file=empty.env\"]";
    home.fine(&["start", "hello.js", "-i", "1", "-n", "web", "--set", args]);
    let log = home.log("web.log");
    assert!(log.contains("do not move to other workers") && log.contains("--env-file"), "{log}");
    home.fine(&["stop", "web"]);
}
