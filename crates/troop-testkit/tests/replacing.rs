//! Another program image goes on with a running cluster: clients, workers and messages notice
//! nothing.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "helpers of tests fail as tests do")]

mod replaceable;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use troop_testkit::kept::Crowd;
use troop_testkit::{TEST_TIMEOUT, children, is_running, node_program, talk, wait_until};

use replaceable::{Primary, command, signal};

async fn check(scheduling: &str, program: &[&str]) {
    let mut args = vec![scheduling, "2"];
    args.extend(program);
    let primary = Primary::start(&args);
    let port = primary.listening();
    primary.until("begun ");
    let workers = children(primary.child.id());
    let crowd = Crowd::start(port, "");
    crowd.all_served().await;
    for round in 0..5 {
        tokio::task::block_in_place(|| primary.replace());
        crowd.all_served().await;
        assert_eq!(children(primary.child.id()), workers, "round {round}");
        let noticed = crowd.noticed();
        eprintln!("{scheduling}, round {round}: {} answers", noticed.answered);
        assert!(noticed.failed.is_empty() && noticed.closed.is_empty(), "{noticed:#?}");
        assert_eq!(noticed.announced, 0, "round {round}");
    }
    // It can do all that it could before.
    primary.signal(Signal::HUP);
    primary.until("supervision reload: done");
    crowd.all_served().await;
    let noticed = crowd.noticed();
    assert!(noticed.failed.is_empty() && noticed.closed.is_empty(), "{noticed:#?}");
    wait_until("the old workers have ended", || {
        children(primary.child.id()).iter().all(|pid| !workers.contains(pid))
    });
    crowd.stop().await;
    primary.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_node_workers_notice_nothing_of_a_replaced_primary() {
    let script = node_program("kept.js");
    for scheduling in ["round-robin", "auto", "steered", "sticky", "shared"] {
        check(scheduling, &[script.to_str().unwrap(), "http"]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_rust_workers_notice_nothing_of_a_replaced_primary() {
    let directory = tempfile::tempdir().unwrap();
    let ended = directory.path().join("ended");
    for scheduling in ["round-robin", "auto", "p2c", "steered", "shared"] {
        check(scheduling, &["self", "serve as", "router", "127.0.0.1:0", ended.to_str().unwrap()])
            .await;
    }
}

const REQUEST: &str = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

#[test]
fn messages_of_workers_come_once_and_in_their_order_though_the_primary_is_replaced() {
    let script = node_program("counting.js");
    let primary = Primary::start(&["round-robin", "1", script.to_str().unwrap()]);
    let (mut next, mut images) = (1_u64, 0);
    while images < 10 {
        let line = primary.lines.recv_timeout(TEST_TIMEOUT).unwrap();
        if line.starts_with("begun ") {
            images += 1;
            primary.signal(Signal::USR1);
        } else if let Some(number) = line.strip_prefix("message ") {
            assert_eq!(number.parse(), Ok(next), "image {images}");
            next += 1;
        }
    }
    primary.until("restored ");
    primary.until("begun ");
    primary.stop();
}

#[test]
fn a_connection_whose_first_bytes_are_waited_for_is_served_by_another_image() {
    let script = node_program("kept.js");
    let args = ["sticky:cookie=id,wait=20000", "2", script.to_str().unwrap(), "http"];
    let primary = Primary::start(&args);
    let port = primary.listening();
    primary.until("begun ");
    let mut silent: Vec<_> =
        (0..5).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    // One more, which is served when these have been accepted.
    assert!(talk(([127, 0, 0, 1], port), REQUEST).unwrap().starts_with("HTTP/1.1 200"));
    primary.replace();
    for stream in &mut silent {
        stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        stream.write_all(REQUEST.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
    }
    primary.stop();
}

#[test]
fn a_unix_socket_stays_and_is_removed_at_the_end_by_another_image() {
    let directory = tempfile::tempdir().unwrap();
    let (script, path) = (node_program("counting.js"), directory.path().join("socket"));
    let primary =
        Primary::start(&["round-robin", "2", script.to_str().unwrap(), path.to_str().unwrap()]);
    primary.until("begun ");
    for _ in 0..3 {
        primary.replace();
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        stream.write_all(REQUEST.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
    }
    primary.stop();
    assert!(!path.exists(), "the socket was removed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_goes_on_if_the_program_that_replaces_it_cannot_be_executed() {
    let script = node_program("kept.js");
    let mut command = command(&["auto", "2", script.to_str().unwrap(), "http"]);
    let primary = Primary::with(command.env("FIXTURE_INSTEAD", "/there is no such program"));
    let port = primary.listening();
    primary.until("begun ");
    let before = descriptors(primary.child.id());
    let crowd = Crowd::start(port, "");
    crowd.all_served().await;
    for _ in 0..5 {
        primary.signal(Signal::USR1);
        let why = tokio::task::block_in_place(|| primary.until("not replaced: "));
        assert_eq!(
            why,
            "cannot execute the program that replaces this one: No such file or directory (os error 2)"
        );
        crowd.all_served().await;
    }
    let noticed = crowd.noticed();
    assert!(noticed.failed.is_empty() && noticed.closed.is_empty(), "{noticed:#?}");
    crowd.stop().await;
    wait_until("nothing is left open", || descriptors(primary.child.id()) <= before);
    primary.stop();
}

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

#[test]
fn descriptors_and_memory_do_not_grow_with_replacements() {
    let script = node_program("kept.js");
    let primary = Primary::start(&["steered", "2", script.to_str().unwrap(), "http"]);
    primary.until("begun ");
    primary.replace();
    let before = descriptors(primary.child.id());
    for _ in 0..20 {
        primary.replace();
    }
    assert_eq!(descriptors(primary.child.id()), before);
    // A worker that dies is reaped and restarted by the image that did not start it.
    let victim = children(primary.child.id())[0];
    signal(victim, Signal::KILL);
    primary.until(&format!("exit {victim}: signal SIGKILL"));
    primary.until("listening ");
    primary.replace();
    assert_eq!(children(primary.child.id()).len(), 2);
    primary.stop();
}

#[test]
fn a_replacement_waits_for_a_reload_and_says_so_if_that_takes_too_long() {
    let script = node_program("kept.js");
    let primary = Primary::start(&["round-robin", "2", script.to_str().unwrap(), "http"]);
    primary.until("begun ");
    primary.signal(Signal::HUP);
    primary.until("supervision reload: replacing 2 workers");
    primary.signal(Signal::USR1);
    primary.until("supervision reload: done");
    assert_eq!(primary.until("restored "), "with what the program left");
    primary.until("begun ");
    primary.stop();
}

#[test]
fn signals_that_come_while_the_primary_is_replaced_are_obeyed() {
    let script = node_program("kept.js");
    let primary = Primary::start(&["round-robin", "1", script.to_str().unwrap(), "http"]);
    primary.until("begun ");
    for pause in (0..30).map(|step| Duration::from_micros(step * 300)) {
        primary.signal(Signal::USR1);
        std::thread::sleep(pause);
        primary.signal(Signal::HUP);
        primary.until_all(&["restored ", "begun ", "supervision reload: done"]);
    }
    let worker = children(primary.child.id());
    primary.signal(Signal::USR1);
    primary.stop();
    assert!(worker.iter().all(|pid| !is_running(*pid)));
}

#[test]
fn a_state_is_refused_where_nothing_would_go_on_with_it() {
    let script = node_program("kept.js");
    let mut command = command(&["auto", "1", script.to_str().unwrap(), "http"]);
    let mut primary = Primary::with(command.env("FIXTURE_THREAD", "1").stderr(Stdio::piped()));
    primary.until("begun ");
    primary.signal(Signal::USR1);
    let mut text = String::new();
    primary.child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(
        text.starts_with("Builder::restore has no effect with Builder::start_in_thread"),
        "{text}"
    );
    assert_eq!(primary.child.wait().unwrap().code(), Some(1));
}

#[test]
fn programs_that_are_started_meanwhile_inherit_nothing() {
    let script = node_program("kept.js");
    for instead in [Some("/there is no such program"), None] {
        let mut command = command(&["steered", "2", script.to_str().unwrap(), "http"]);
        command.env("FIXTURE_OTHERS", "1");
        if let Some(instead) = instead {
            command.env("FIXTURE_INSTEAD", instead);
        }
        let primary = Primary::with(&mut command);
        primary.until("begun ");
        for _ in 0..100 {
            primary.signal(Signal::USR1);
            let ends = ["not replaced: ", "begun ", "inherited "];
            let (end, what) = primary.until_any(&ends);
            assert_ne!(end, "inherited ", "{what}");
        }
        primary.stop();
    }
}

/// Returns the signals that a process ignores, as a set of bits.
fn ignored(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let bits = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    u64::from_str_radix(bits.trim(), 16).unwrap()
}

#[test]
fn signals_mean_what_they_did_before_a_replacement_that_has_failed() {
    let script = node_program("kept.js");
    let mut command = command(&["auto", "1", script.to_str().unwrap(), "http"]);
    let primary = Primary::with(command.env("FIXTURE_INSTEAD", "/there is no such program"));
    primary.until("begun ");
    let before = ignored(primary.child.id());
    primary.signal(Signal::USR1);
    primary.until("not replaced: ");
    assert_eq!(ignored(primary.child.id()), before);
    primary.stop();
}

#[test]
fn a_worker_that_is_the_primary_of_another_cluster_is_not_left_the_state_of_its_own() {
    let script = node_program("kept.js");
    let inner = ["self", "replaceable", "auto", "1", script.to_str().unwrap(), "http"];
    let mut command = command(&[&["auto", "1"][..], &inner].concat());
    let primary = Primary::with(command.env("FIXTURE_EAGER", "1"));
    primary.until("listening ");
    primary.signal(Signal::USR1);
    primary.until("restored ");
    // The next one has the environment of the image that was left the state.
    signal(children(primary.child.id())[0], Signal::KILL);
    primary.until("exit ");
    primary.until("listening ");
}

#[test]
fn requests_are_not_answered_by_what_was_asked_before_a_replacement() {
    let script = node_program("asked.js");
    let mut command = command(&["auto", "1", script.to_str().unwrap()]);
    let primary = Primary::with(command.env("FIXTURE_ASKS", "1"));
    assert_eq!(primary.until("message "), r#"{"id":1}"#);
    primary.replace();
    assert_eq!(primary.until("message "), r#"{"id":2}"#);
    primary.stop();
}

#[test]
fn a_program_that_sends_messages_all_the_time_is_replaced_too() {
    let script = node_program("kept.js");
    let mut command = command(&["auto", "2", script.to_str().unwrap(), "http"]);
    let primary = Primary::with(command.env("FIXTURE_TALKS", "1"));
    primary.until("begun ");
    for _ in 0..20 {
        primary.replace();
    }
    primary.stop();
}

#[test]
fn half_a_line_and_its_descriptor_are_completed_under_another_image() {
    let online = r#"line {"cmd":"NODE_CLUSTER","act":"online","seq":0}"#;
    // The worker waits at the first pipe when it has written the first half, and at the second one
    // until another image goes on.
    let directory = tempfile::tempdir().unwrap();
    let pipes = ["one", "two"].map(|name| directory.path().join(name));
    for pipe in &pipes {
        rustix::fs::mkfifoat(rustix::fs::CWD, pipe, 0o600.into()).unwrap();
    }
    let [first, second] = pipes.each_ref().map(|pipe| format!("open {}", pipe.display()));
    let steps = [online, r#"bytes {"half":"#, "unended 1", &first, &second, "line 1}"];
    let mut command = command(&[&["auto", "1", "self", "raw"][..], &steps[..]].concat());
    let primary = Primary::with(command.env("FIXTURE_EAGER", "1"));
    primary.until("begun ");
    let meet = |pipe| drop(std::fs::File::options().write(true).open(pipe).unwrap());
    meet(&pipes[0]);
    primary.replace();
    meet(&pipes[1]);
    assert_eq!(primary.until("message "), r#"{"half":11}"#);
}
