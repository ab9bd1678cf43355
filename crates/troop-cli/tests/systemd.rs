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
