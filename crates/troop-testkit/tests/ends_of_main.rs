//! A program whose `main` returns `troop::Result<()>` ends with one line that says what failed, on
//! what, and why.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Command;

fn program(kind: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_troop-ends"));
    command.arg(kind);
    command
}

/// What the program prints when it has failed.
fn printed(mut program: Command) -> String {
    let output = program.output().unwrap();
    let printed = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{program:?} printed {printed:?}");
    printed
}

/// The program's last words, of the kind that this argument names.
fn last_words(kind: &str) -> String {
    printed(program(kind))
}

#[test]
fn errors_that_main_returns_are_one_line_for_people() {
    let expected = [
        (
            "spawn",
            "cannot start /no/such/program: execute the program: No such file or directory (os error 2)",
        ),
        (
            "never starts",
            "cannot start /no/such/program: execute the program: No such file or directory (os error 2)",
        ),
        (
            "never ready",
            "no worker became ready, and 1 ended within 120s; worker 1 ended with exit code 3: no database",
        ),
        ("settings", "a cluster needs at least one worker"),
        ("own I/O", "cannot run the program: No such file or directory (os error 2)"),
        ("JSON", "cannot convert a message: expected value at line 1 column 1"),
        (
            "out of memory",
            "killed by SIGKILL while the kernel killed processes because memory had run out",
        ),
        (
            "over memory",
            "killed because it needed more memory than the 64 MiB of its control group",
        ),
        ("closed", "the channel to the other process is closed"),
        ("full", "the channel is full: the other process does not read fast enough"),
        ("timed out", "no answer came within 5s"),
        ("refused", "the other process refused: not\\nnow"),
        ("handle refused", "the other process cannot take the socket"),
        ("undelivered", "the other process ended before 17 bytes of messages were delivered"),
        ("no worker", "there is no worker 7, or its process has ended"),
        ("over", "the cluster has ended"),
        (
            "privileged port",
            "cannot listen on 0.0.0.0:80: permission denied (ports below 1024 need CAP_NET_BIND_SERVICE)",
        ),
        (
            "short",
            "cannot accept connections: they wait; raise the limit on descriptors (3 times since this was last said): Too many open files (os error 24)",
        ),
    ];
    for (kind, words) in expected {
        assert_eq!(last_words(kind), format!("Error: {words}\n"), "{kind}");
    }
}

#[test]
fn an_address_in_use_is_named_by_the_error_that_main_returns() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut program = program("listen");
    program.arg(&address);
    let words = format!("cannot listen on {address}: Address already in use (os error 98)");
    assert_eq!(printed(program), format!("Error: {words}\n"));
    let mut program = self::program("listen");
    program.arg("nowhere:at:all");
    let words = printed(program);
    assert!(words.starts_with("Error: \"nowhere:at:all\" is no address to use: "), "{words}");
    assert_eq!(words.lines().count(), 1, "{words}");
}

#[test]
fn roles_that_cannot_be_taken_are_one_line_that_says_what_to_do() {
    let worker = |kind: &str, channel: &str| {
        let mut program = program(kind);
        program.env("NODE_UNIQUE_ID", "1").env("NODE_CHANNEL_FD", channel);
        program
    };
    assert_eq!(
        printed(worker("role", "99")),
        "Error: cannot use the channel in NODE_CHANNEL_FD=99: Bad file descriptor (os error 9)\n"
    );
    assert_eq!(
        printed(worker("role with threads", "0")),
        "Error: cannot take this worker's identity from the environment: other threads run already; call troop::role() first in main\n"
    );
    let (channel, _primary) = UnixStream::pair().unwrap();
    let mut twice = worker("role twice", "0");
    twice.stdin(OwnedFd::from(channel));
    assert_eq!(
        printed(twice),
        "Error: cannot take this worker's identity: it was taken before, by an earlier call of troop::role or troop::worker\n"
    );
    let words = printed(worker("primary without role", "0"));
    assert!(
        words.starts_with("Error: cannot start workers: this process is a worker itself: "),
        "{words}"
    );
    assert!(words.contains("call troop::role() first thing in main"), "{words}");
    assert_eq!(words.lines().count(), 1, "{words}");
}
