//! What a worker can do to a primary whose program is replaced.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use crate::fuse::Mount;
use crate::replaceable::{Primary, command};
use crate::running::{Running, open_directory};
use crate::scene::ONLINE;
use crate::support::{STRANGER, is_root, troop};

/// A primary whose first worker is the stranger's and does these steps, and whose second one serves.
fn attacked(steps: &[&str]) -> Command {
    let args = ["round-robin", "2", "self", "divided", "127.0.0.1:0"];
    let mut command = command(&[&args, steps].concat());
    command.env("FIXTURE_USER", STRANGER.to_string()).env("FIXTURE_EAGER", "1");
    command
}

/// Has the program replaced, or hears why it is not; the other worker serves in either case.
fn replaced_or_not(primary: &Primary, port: u16) -> Option<String> {
    primary.signal(Signal::USR1);
    let (begin, rest) = primary.until_any(&["restored ", "not replaced: "]);
    let answer = troop_testkit::talk(([127, 0, 0, 1], port), "").unwrap();
    assert!(!answer.is_empty());
    (begin == "not replaced: ").then_some(rest)
}

fn query(path: &Path) -> String {
    format!(
        r#"answer {{"cmd":"NODE_CLUSTER","act":"queryServer","seq":1,"index":0,"port":-1,"addressType":-1,"address":"{}"}}"#,
        path.display()
    )
}

#[test]
fn a_replacement_does_not_wait_for_a_file_system_that_a_worker_has_named() {
    const TEST: &str = "replacing::a_replacement_does_not_wait_for_a_file_system";
    if !is_root(TEST) {
        return;
    }
    let home = open_directory();
    let Some(dead) = Mount::dead(TEST, &home.path().join("dead")) else { return };
    let primary = Primary::with(&mut attacked(&[ONLINE, &query(&dead.at.join("s"))]));
    let seen = primary.until_all(&["listening ", "message "]);
    let port = seen[0].parse().unwrap();
    assert!(seen[1].contains(&(-libc::ETIMEDOUT).to_string()), "{seen:?}");
    let why = replaced_or_not(&primary, port).unwrap();
    assert!(why.contains("a file system does not answer"), "{why}");
    drop(dead);
    while replaced_or_not(&primary, port).is_some() {}
    primary.until("begun ");
}

#[test]
fn a_replacement_does_not_wait_for_descriptors_that_a_worker_has_sent() {
    if !is_root("replacing::a_replacement_does_not_wait_for_descriptors_that_a_worker_has_sent") {
        return;
    }
    // Each sends 90 messages with a socket that takes ten minutes to close.
    let steps = [&[ONLINE][..], &["all-lingering 1"; 200]].concat();
    let primary = Primary::with(&mut attacked(&steps));
    let port = primary.listening();
    for _ in 0..10 {
        primary.until("message ");
        let _ = replaced_or_not(&primary, port);
    }
}

#[test]
fn a_replacement_does_not_wait_for_a_thread_that_drops_descriptors_of_a_worker_that_has_ended() {
    const TEST: &str = "replacing::a_replacement_does_not_wait_for_a_thread";
    if !is_root(TEST) {
        return;
    }
    let home = open_directory();
    let Some(mount) = Mount::undroppable(TEST, &home.path().join("file")) else { return };
    let step = format!("undropped 3 {}", mount.at.display());
    let primary = Primary::with(&mut attacked(&[ONLINE, &step, "exit 1"]));
    let port = primary.listening();
    troop_testkit::wait_until("the drop", || mount.closes() > 0);
    // Not if a thread of the primary is in it, and not one of the worker.
    for _ in 0..2 {
        let _ = replaced_or_not(&primary, port);
    }
    drop(mount);
    while replaced_or_not(&primary, port).is_some() {}
    primary.until("begun ");
}

/// Takes connections, and reads nothing from them.
fn silent_peer() -> TcpListener {
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::STREAM,
        None,
    )
    .unwrap();
    rustix::net::sockopt::set_socket_recv_buffer_size(&socket, 2048).unwrap();
    rustix::net::bind(&socket, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    rustix::net::listen(&socket, 1024).unwrap();
    socket.into()
}

fn taken(peer: &TcpListener, count: usize) -> Vec<TcpStream> {
    peer.incoming().take(count).map(Result::unwrap).collect()
}

#[test]
fn a_replacement_does_not_wait_for_lingering_sockets_that_the_program_has() {
    if !is_root("replacing::a_replacement_does_not_wait_for_lingering_sockets") {
        return;
    }
    let peer = silent_peer();
    let step = format!("left 1 {}", peer.local_addr().unwrap());
    let primary = Primary::with(attacked(&[ONLINE, &step]).env("FIXTURE_KEEPS", "1"));
    let _connections = taken(&peer, 1);
    let port = primary.until_all(&["listening ", "message "])[0].parse().unwrap();
    while replaced_or_not(&primary, port).is_some() {}
    primary.until("begun ");
}

#[test]
fn a_restart_does_not_wait_for_lingering_sockets_that_workers_have_sent() {
    if !is_root("replacing::a_restart_does_not_wait_for_lingering_sockets") {
        return;
    }
    let (home, peer, user) = (open_directory(), silent_peer(), STRANGER.to_string());
    let step = format!("left 100000 {}", peer.local_addr().unwrap());
    // Its successors are to be ready, and would be killed for a flood before that.
    let is_over = home.path().join("over");
    let unless = format!("unless {}", is_over.display());
    let fixture = env!("CARGO_BIN_EXE_troop-fixture");
    let options = ["run", "--log", "json", "-n", "web", "-w", "2", "--set", "grace=100ms"];
    let stranger = ["--user", &user, "--group", &user];
    let program = ["--", fixture, "raw", ONLINE, &unless, &step];
    let args = [&options[..], &stranger, &program].concat();
    let _primary = Running::start(&mut troop(home.path(), &args));
    let mut connections = taken(&peer, 200);
    std::thread::spawn(move || connections.extend(taken(&peer, usize::MAX)));
    std::fs::write(&is_over, "").unwrap();
    let mut restart = troop(home.path(), &["restart", "web"]).spawn().unwrap();
    let mut status = None;
    troop_testkit::wait_until("the restart", || {
        status = restart.try_wait().unwrap();
        status.is_some()
    });
    assert!(status.unwrap().success());
}
