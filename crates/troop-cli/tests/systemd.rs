//! What systemd is told.

#![allow(clippy::unwrap_used)]

mod support;

use std::ffi::{OsStr, OsString};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::Command;

use support::{Running, node, start};
use troop_testkit::TEST_TIMEOUT;

/// `troop run --log json` with these arguments, which notifies a service manager here.
fn notifying<S: AsRef<OsStr>>(socket: &OsStr, args: impl IntoIterator<Item = S>) -> Running {
    let mut command = Command::new(env!("CARGO_BIN_EXE_troop"));
    command.args(["run", "--log", "json", "-w", "1"]).args(args);
    command.env("NOTIFY_SOCKET", socket).env_remove("WATCHDOG_USEC");
    start(command)
}

/// Container runtimes, and service managers of users, listen on abstract addresses.
#[test]
fn a_service_manager_on_an_abstract_address_is_told_too() {
    let directory = tempfile::tempdir().unwrap();
    let mut name = OsString::from(directory.path());
    name.push("/abstract");
    let address = SocketAddr::from_abstract_name(name.as_encoded_bytes()).unwrap();
    let socket = UnixDatagram::bind_addr(&address).unwrap();
    socket.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    let heard = || {
        let mut buffer = [0; 512];
        let n = socket.recv(&mut buffer).expect("a notification");
        String::from_utf8_lossy(&buffer[..n]).into_owned()
    };
    let mut at = OsString::from("@");
    at.push(&name);
    let mut troop = notifying(&at, [node("hello.js")]);
    assert_eq!(heard(), "READY=1\n");
    assert_eq!(troop.troop(["stop"]).0, 0);
    assert_eq!(heard(), "STOPPING=1\n");
    assert_eq!(troop.end().0, Some(0));
}

/// `Type=notify` takes a process that ends without a word for one that has failed.
#[test]
fn a_program_that_runs_once_and_is_over_soon_is_reported_as_ready() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    for (code, heard) in [(0, true), (3, false)] {
        let command = format!("exit {code}");
        let words = ["--restart", "never", "--", "sh", "-c", &command];
        assert_eq!(notifying(path.as_os_str(), words).end().0, Some(code));
        socket.set_nonblocking(true).unwrap();
        let mut text = String::new();
        let mut buffer = [0; 512];
        while let Ok(n) = socket.recv(&mut buffer) {
            text += &String::from_utf8_lossy(&buffer[..n]);
        }
        assert_eq!(text.contains("READY=1"), heard, "{text}");
    }
}

#[test]
fn systemd_is_told_of_start_reload_and_end_and_that_it_is_alive() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    let heard = |wanted: &str| loop {
        let mut buffer = [0; 512];
        let n = socket.recv(&mut buffer).expect(wanted);
        let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
        if text.lines().any(|line| line == wanted) {
            return text;
        }
    };
    let mut command = Command::new(env!("CARGO_BIN_EXE_troop"));
    command.args(["run", "--log", "json", "-w", "2"]).arg(node("hello.js"));
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "400000").env_remove("WATCHDOG_PID");
    let mut troop = start(command);
    troop.listening(2);
    heard("READY=1");
    // They all listen by then.
    assert_eq!(troop.troop(["ls", "--json"]).1.matches("\"state\": \"listening\"").count(), 2);
    heard("WATCHDOG=1");
    // What is for the primary is not for its workers.
    let environment = std::fs::read(format!("/proc/{}/environ", troop.workers()[0])).unwrap();
    assert!(!String::from_utf8_lossy(&environment).contains("NOTIFY_SOCKET"));
    assert_eq!(troop.troop(["reload"]).0, 0);
    assert!(heard("RELOADING=1").contains("MONOTONIC_USEC="));
    heard("READY=1");
    heard("WATCHDOG=1");
    // Started again in its place it is no end, which systemd would follow up.
    let restart = troop.command(["restart"]).spawn().unwrap();
    let mut told = heard("RELOADING=1");
    while !told.lines().any(|line| line == "READY=1") {
        assert!(!told.contains("STOPPING"), "{told}");
        let mut buffer = [0; 512];
        let n = socket.recv(&mut buffer).expect("READY=1");
        told = String::from_utf8_lossy(&buffer[..n]).into_owned();
    }
    assert!(restart.wait_with_output().unwrap().status.success());
    assert_eq!(troop.troop(["stop"]).0, 0);
    heard("STOPPING=1");
    assert_eq!(troop.end().0, Some(0));
}

/// What a service manager gets, with the process that it comes from: only the main process may tell it
/// anything.
fn heard_from(socket: &UnixDatagram) -> (String, u32) {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let mut text = [0; 512];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [std::io::IoSliceMut::new(&mut text)];
    let received = recvmsg(socket, &mut parts, &mut control, RecvFlags::empty());
    let len = received.expect("a notification").bytes;
    let sender = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmCredentials(sender) => Some(sender.pid.as_raw_nonzero().get()),
        _ => None,
    });
    (String::from_utf8_lossy(&text[..len]).into_owned(), sender.unwrap().unsigned_abs())
}

#[test]
fn a_service_manager_hears_of_the_main_process_alone_whoever_is_killed_or_upgraded() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    rustix::net::sockopt::set_socket_passcred(&socket, true).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_troop"));
    command.args(["run", "--log", "json", "-w", "2"]).arg(node("hello.js"));
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "400000").env_remove("WATCHDOG_PID");
    let mut troop = start(command);
    troop.listening(2);
    let main = troop.child.id();
    let heard = |wanted: &str| loop {
        let (text, sender) = heard_from(&socket);
        assert_eq!(sender, main, "{text}");
        if text.lines().any(|line| line == wanted) {
            return;
        }
        assert!(!text.contains("STOPPING") && !text.contains("MAINPID"), "{text}");
    };
    heard("READY=1");
    let engine = || troop_testkit::engine(main);
    for round in 0..3 {
        let before = engine().unwrap();
        let pid = rustix::process::Pid::from_raw(before.cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        troop_testkit::wait_until("another engine", || {
            let (_, out, _) = troop.troop(["show", "--json"]);
            out.contains(&format!("\"crashes\": {}", round + 1)) && engine() != Some(before)
        });
        // What was told of before is read first.
        (0..5).for_each(|_| heard("WATCHDOG=1"));
        for args in [["upgrade", "--keeper"], ["upgrade", "--json"]] {
            let (code, out, err) = troop.troop(args);
            assert_eq!(code, 0, "{out}{err}");
            (0..5).for_each(|_| heard("WATCHDOG=1"));
        }
    }
    // One that does not answer is not said to be alive.
    let pid = rustix::process::Pid::from_raw(engine().unwrap().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    socket.set_read_timeout(Some(std::time::Duration::from_millis(1200))).unwrap();
    let mut text = [0; 512];
    while socket.recv(&mut text).is_ok() {}
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    socket.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    heard("WATCHDOG=1");
    assert_eq!(troop.troop(["reload"]).0, 0);
    assert_eq!(troop.troop(["stop"]).0, 0);
    heard("STOPPING=1");
    assert_eq!(troop.end().0, Some(0));
}
