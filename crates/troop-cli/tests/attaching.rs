//! `troop attach`: the output of an app, and input for its workers.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::Write as _;
use std::process::{Child, Stdio};

use support::Home;
use troop_testkit::wait_until;

/// Says what it reads, and when its input ends.
const READS: &str = "
require('http').createServer(() => {}).listen(0, '127.0.0.1');
process.stdin.setEncoding('utf8');
process.stdin.on('data', text => console.log('read', JSON.stringify(text)));
process.stdin.on('end', () => console.log('input ended'));
";

fn attached(home: &Home, args: &[&str]) -> Child {
    let mut command = home.command(&["attach"]);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

fn write(child: &mut Child, text: &str) {
    child.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
}

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn lines_are_passed_on_to_the_worker_and_its_successor() {
    let home = Home::with(&[("reads.js", READS)]);
    home.fine(&["start", "reads.js", "-n", "web", "--set", "min_ready_time=0"]);
    let seen = |text: &str| {
        wait_until(text, || home.log("web.log").contains(text));
    };
    let mut child = attached(&home, &["web"]);
    write(&mut child, "hello\n");
    seen("read \"hello\\n\"");
    home.fine(&["reload", "web"]);
    write(&mut child, "ü\n");
    seen("read \"ü\\n\"");
    end(child);
    // The worker's input stays open, and another client goes on.
    let mut child = attached(&home, &["web", ";"]);
    write(&mut child, "again\n");
    seen("read \"again;\"");
    end(child);
    home.fine(&["reload", "web"]);
    assert!(!home.log("web.log").contains("input ended"), "a worker is not ended by its input");
}

#[test]
fn of_several_workers_the_one_that_is_named_gets_the_lines() {
    let home = Home::with(&[("reads.js", READS)]);
    home.fine(&["start", "reads.js", "-n", "web", "-i", "2"]);
    let mut command = home.command(&["attach", "web"]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Its end may come first.
    let _ = child.stdin.as_mut().unwrap().write_all(b"whose\n");
    let told = child.wait_with_output().unwrap();
    let text = String::from_utf8(told.stderr).unwrap();
    assert_eq!(told.status.code(), Some(2), "{text}");
    assert!(text.contains("input is for one of the 2 workers of web"), "{text}");
    assert!(text.contains("`troop attach web:1`"), "{text}");
    let mut child = attached(&home, &["web:2"]);
    write(&mut child, "yours\n");
    wait_until("the line", || home.log("web.log").contains("yours"));
    let log = home.log("web.log");
    assert_eq!(log.matches("read \"yours").count(), 1, "{log}");
    assert!(!log.contains("whose"), "{log}");
    end(child);
}

#[test]
fn a_worker_that_does_not_read_keeps_nobody_waiting() {
    let home = Home::with(&[("server.js", "require('http').createServer(() => {}).listen(0);")]);
    home.fine(&["start", "server.js", "-n", "web"]);
    let mut command = home.command(&["attach", "web"]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let line = "x".repeat(10_000) + "\n";
    std::thread::spawn(move || (0..20).try_for_each(|_| input.write_all(line.as_bytes())));
    let told = std::io::BufReader::new(child.stderr.take().unwrap());
    let told = std::io::BufRead::lines(told).map_while(Result::ok).nth(1).unwrap();
    assert!(told.contains("does not read its input, which is full"), "{told}");
    home.fine(&["show", "web"]);
    end(child);
}

#[test]
fn attach_ends_with_its_input_if_that_is_a_pipe() {
    let home = Home::with(&[("reads.js", READS)]);
    home.fine(&["start", "reads.js", "-n", "web"]);
    let mut command = home.command(&["attach", "web"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    write(&mut child, "reload-rules\n");
    drop(child.stdin.take());
    let told = child.wait_with_output().unwrap();
    let text = String::from_utf8(told.stdout).unwrap();
    assert_eq!(told.status.code(), Some(0), "{text}");
    assert!(text.contains("read \"reload-rules\\n\""), "{text}");
    // What a worker that does not run was to get is lost, which is a failure.
    home.fine(&["stop", "web"]);
    let mut child = home.command(&["attach", "web"]).stdin(Stdio::piped()).spawn().unwrap();
    drop(child.stdin.take());
    assert_eq!(child.wait().unwrap().code(), Some(3));
}
