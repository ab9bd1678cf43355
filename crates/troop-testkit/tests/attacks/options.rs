//! Workers that make a socket turn clients away, or that have it by activation and end it.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use troop::activation::ActivationSocket;
use troop::supervise::Progress;
use troop::{Cluster, Event, Scheduling, Setup, WorkerHandle};
use troop_testkit::{TEST_TIMEOUT, Troop, at_once, node_program, wait_until};

use super::support::{Harm, STRANGER, is_root, listeners_of, set_option};

/// Sends its name to every client, and continues whatever happens to its socket.
const SERVES: &str = "require('net').createServer((s) => { s.on('error', () => {}); s.resume().end(`${process.pid}`); })
    .on('error', () => {})";

fn node(text: &str) -> Setup {
    Setup::new().script(node_program("run.js")).args([text])
}

/// A program that knows nothing of troop.
fn activated(directory: &Path) -> Setup {
    let program = directory.join("server.js");
    std::fs::write(&program, format!("{SERVES}.listen({{ fd: 3 }})")).unwrap();
    Setup::new().script(program)
}

/// Returns the worker that serves a port, or the error of the last attempt.
fn server_at(port: u16) -> std::io::Result<String> {
    let mut client = std::net::TcpStream::connect_timeout(
        &([127, 0, 0, 1], port).into(),
        Duration::from_secs(2),
    )?;
    answer(&mut client, |client| client.set_read_timeout(Some(Duration::from_secs(2))))
}

fn server_of(path: &Path) -> std::io::Result<String> {
    answer(&mut UnixStream::connect(path)?, |client| client.set_read_timeout(Some(TEST_TIMEOUT)))
}

fn answer<S: Read + Write>(
    client: &mut S,
    limit: impl FnOnce(&S) -> std::io::Result<()>,
) -> std::io::Result<String> {
    limit(client)?;
    client.write_all(b"x")?;
    let mut answer = String::new();
    client.read_to_string(&mut answer)?;
    if answer.is_empty() { Err(std::io::ErrorKind::UnexpectedEof.into()) } else { Ok(answer) }
}

/// Waits until clients are served. Clients of the listener itself, not the event: that may have
/// come for something earlier.
async fn until_served(port: u16, when: &str) {
    let deadline = Instant::now() + TEST_TIMEOUT;
    while let Err(e) = tokio::task::spawn_blocking(move || server_at(port)).await.unwrap() {
        assert!(Instant::now() < deadline, "nobody serves port {port} {when}: {e}");
    }
}

async fn restored(troop: &mut Troop) -> String {
    let restored = |e: &Event| match e {
        Event::ListenerRestored { reason: why, .. } => Some(why.clone()),
        _ => None,
    };
    troop.until("the report", restored).await
}

async fn reloaded(troop: &mut Troop) {
    let ended = |e: &Event| match e {
        Event::Supervision(Progress::ReloadFinished) => Some(()),
        Event::Supervision(Progress::ReloadFailed { reason, .. }) => panic!("{reason}"),
        _ => None,
    };
    troop.until("the end of the reload", ended).await;
}

/// One of two workers that have the socket and came after this one.
fn both_since(troop: &Troop, before: u32) -> WorkerHandle {
    wait_until("both have the socket", || {
        let workers = troop.cluster.workers();
        workers.len() == 2
            && workers
                .iter()
                .all(|worker| worker.id().0 > before && listeners_of(worker.pid()).len() == 1)
    });
    troop.cluster.workers().remove(0)
}

fn min_ttl(socket: &OwnedFd) {
    set_option(socket, libc::IPPROTO_IP, 21, &255i32.to_ne_bytes());
}

/// Clients of this machine itself have to sign their packets (`struct tcp_md5sig`).
fn require_key(socket: &OwnedFd) {
    let mut key = [0u8; 216];
    (key[0], key[4], key[7], key[128], key[129], key[130]) = (2, 127, 1, 1, 32, 1);
    set_option(socket, libc::IPPROTO_TCP, 32, &key);
}

#[tokio::test(flavor = "multi_thread")]
async fn options_of_a_shared_port_that_turn_clients_away_are_restored_soon_and_by_a_reload() {
    if !is_root("a_shared_port_on_which_a_worker_sets_what_turns_clients_away") {
        return;
    }
    let builder = Cluster::builder().scheduling(Scheduling::Shared).workers(2).replace(at_once());
    let mut troop = Troop::start(builder.setup(node(&format!("{SERVES}.listen(0, '127.0.0.1')"))));
    let listening = |e: &Event| match e {
        Event::Listening { address: at, .. } => Some(u16::try_from(at.port.unwrap()).unwrap()),
        _ => None,
    };
    let port = troop.until("listening", listening).await;
    troop.until("listening", listening).await;
    until_served(port, "at first").await;
    let worker = troop.cluster.workers().remove(0);
    min_ttl(&listeners_of(worker.pid())[0]);
    let why = restored(&mut troop).await;
    assert!(why.contains("IP_MINTTL") && why.contains("by worker 1 or 2"), "{why}");
    until_served(port, "afterwards").await;
    // What cannot be read off the socket itself, and a reload at once.
    require_key(&listeners_of(worker.pid())[0]);
    let reload = troop.cluster.reload();
    reloaded(&mut troop).await;
    reload.await.unwrap();
    server_at(port).expect("a reload is no success while clients are turned away");
    assert!(troop.story().contains("TCP_MD5SIG"), "{}", troop.story());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shard_of_a_worker_serves_its_successor_whatever_options_it_has_set() {
    if !is_root("the_shard_of_a_worker_serves_its_successor") {
        return;
    }
    let builder =
        Cluster::builder().scheduling("steered".parse().unwrap()).workers(2).replace(at_once());
    let mut troop = Troop::start(builder.setup(node(&format!("{SERVES}.listen(0, '127.0.0.1')"))));
    let listening = |e: &Event| match e {
        Event::Listening { address: at, .. } => Some(u16::try_from(at.port.unwrap()).unwrap()),
        _ => None,
    };
    let port = troop.until("listening", listening).await;
    troop.until("listening", listening).await;
    let worker = troop.cluster.workers().remove(0);
    let own = listeners_of(worker.pid());
    assert_eq!(own.len(), 1, "a shard of its own");
    min_ttl(&own[0]);
    // An accept on it waits, and the primary accepts on behalf of hung workers.
    troop_sys::socket::set_nonblocking(&own[0], false).unwrap();
    let why = restored(&mut troop).await;
    assert!(why.contains("IP_MINTTL") && why.contains("O_NONBLOCK"), "{why}");
    troop_sys::socket::set_nonblocking(&own[0], false).unwrap();
    min_ttl(&own[0]);
    // Clients connect all the time, so that the primary accepts there while no worker does.
    let over = Arc::new(AtomicBool::new(false));
    let clients = std::thread::spawn({
        let over = over.clone();
        move || {
            while !over.load(Ordering::Relaxed) {
                let _ = server_at(port);
            }
        }
    });
    worker.kill(9).await.unwrap();
    troop.exit(&worker).await;
    troop.until("its successor", listening).await;
    over.store(true, Ordering::Relaxed);
    clients.join().unwrap();
    wait_until("everybody is served by both", || {
        let served: BTreeSet<_> = (0..20).map_while(|_| server_at(port).ok()).collect();
        served.len() == 2 && !served.contains(&worker.pid().to_string())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_keeps_turning_clients_away_is_reported() {
    if !is_root("a_worker_that_keeps_turning_clients_away_is_reported") {
        return;
    }
    for scheduling in ["shared", "round-robin"] {
        let builder = Cluster::builder().scheduling(scheduling.parse().unwrap()).workers(2);
        let setup = node(&format!("{SERVES}.listen(0, '127.0.0.1')"));
        let mut troop = Troop::start(builder.setup(setup.uid(STRANGER).gid(STRANGER)));
        let listening = |e: &Event| match e {
            Event::Listening { worker, address, .. } => Some((worker.clone(), address.port)),
            _ => None,
        };
        let (worker, port) = troop.until("listening", listening).await;
        troop.until("listening", listening).await;
        let port = u16::try_from(port.unwrap()).unwrap();
        until_served(port, "at first").await;
        let own = listeners_of(worker.pid());
        if scheduling == "round-robin" {
            assert!(own.is_empty(), "{own:?}");
            continue;
        }
        let over = Arc::new(AtomicBool::new(false));
        let changes = std::thread::spawn({
            let over = over.clone();
            move || {
                while !over.load(Ordering::Relaxed) {
                    min_ttl(&own[0]);
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        let lost = |e: &Event| match e {
            Event::ListenerLost { reason, .. } => Some(reason.clone()),
            _ => None,
        };
        let why = troop.until("the report", lost).await;
        assert!(why.contains("over and over, by worker 1 or 2"), "{why}");
        over.store(true, Ordering::Relaxed);
        changes.join().unwrap();
        until_served(port, "afterwards").await;
    }
}

/// A worker stops accepting, so that the primary does on its socket, and makes every process that
/// accepts there wait: once, or over and over.
async fn the_primary_does_not_wait(setup: impl FnOnce(Setup) -> Setup, over_and_over: bool) {
    let text = format!(
        "const server = {SERVES}.listen(0, '127.0.0.1'); process.on('message', () => {{ for (;;); }})"
    );
    let builder =
        Cluster::builder().scheduling("steered".parse().unwrap()).workers(1).replace(at_once());
    let mut troop = Troop::start(builder.setup(setup(node(&text))));
    let listening = |e: &Event| match e {
        Event::Listening { worker: w, address: at, .. } => {
            Some((w.clone(), u16::try_from(at.port.unwrap()).unwrap()))
        }
        _ => None,
    };
    let (worker, port) = troop.until("listening", listening).await;
    until_served(port, "at first").await;
    let own = listeners_of(worker.pid()).remove(0);
    let wait = move || troop_sys::socket::set_nonblocking(&own, false).unwrap();
    worker.send(&true).await.unwrap();
    let clients: Vec<_> =
        (0..20).map(|_| std::net::TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    let over = Arc::new(AtomicBool::new(!over_and_over));
    let waits = std::thread::spawn({
        let over = over.clone();
        move || loop {
            wait();
            if over.load(Ordering::Relaxed) {
                break;
            }
        }
    });
    // Both ways to empty its queue: while it is there, and when it is gone.
    for _ in 0..2 {
        tokio::time::timeout(TEST_TIMEOUT, troop.cluster.snapshot())
            .await
            .expect("the primary answers")
            .unwrap();
        let _ = worker.kill(9).await;
    }
    troop.until("its successor", listening).await;
    tokio::time::timeout(TEST_TIMEOUT, troop.cluster.snapshot())
        .await
        .expect("the primary answers")
        .unwrap();
    over.store(true, Ordering::Relaxed);
    waits.join().unwrap();
    until_served(port, "afterwards").await;
    drop(clients);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_primary_never_blocks_in_accept_on_a_shard_that_a_worker_made_blocking() {
    if is_root("the_primary_never_blocks_in_accept_on_a_shard_that_a_worker_made_blocking") {
        the_primary_does_not_wait(|setup| setup, false).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_primary_does_not_stay_blocked_on_a_shard_whose_worker_keeps_making_it_block() {
    if is_root("the_primary_does_not_stay_blocked_on_a_shard_whose_worker_keeps_making_it_block") {
        the_primary_does_not_wait(|setup| setup.uid(STRANGER).gid(STRANGER), true).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_workers_have_by_activation_is_as_it_was_within_a_while() {
    if !is_root("a_port_that_workers_have_by_activation_is_as_it_was_within_a_while") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    for steered in [false, true] {
        let socket = match steered {
            true => ActivationSocket::bind_steered("127.0.0.1:0", 2).unwrap(),
            false => ActivationSocket::bind("127.0.0.1:0").unwrap(),
        };
        let port = socket.address().rsplit(':').next().unwrap().parse().unwrap();
        let builder =
            Cluster::builder().workers(2).replace(at_once()).setup(activated(directory.path()));
        let mut troop = Troop::start(builder.activation([socket]));
        until_served(port, "at first").await;
        let worker = both_since(&troop, 0);
        min_ttl(&listeners_of(worker.pid())[0]);
        let why = restored(&mut troop).await;
        assert!(why.contains("IP_MINTTL"), "{why}");
        until_served(port, "afterwards").await;
        // The worker's own event loop may have given up the socket, so its successor shows it.
        let socket = listeners_of(worker.pid()).remove(0);
        for (harm, is_reported) in Harm::ALL.into_iter().zip([true, true, false, true]) {
            harm.be_done_to(&socket);
            if is_reported {
                let why = restored(&mut troop).await;
                // Or by a successor: it ends when its event loop has given the socket up.
                assert!(why.contains("shut down") && why.contains("by worker"), "{why}");
                assert_eq!(steered, !why.contains(" or "), "a shard is one worker's: {why}");
            }
            wait_until("it listens", || {
                rustix::net::sockopt::socket_acceptconn(&socket).unwrap_or(false)
            });
        }
        drop(socket);
        let reload = troop.cluster.reload();
        reloaded(&mut troop).await;
        reload.await.unwrap();
        let mut served = BTreeSet::new();
        wait_until("both serve", || {
            served.extend(server_at(port).ok());
            served.len() >= 2
        });
        for _ in 0..20 {
            server_at(port).expect("nobody is lost any more");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_workers_have_by_activation_is_bound_anew_and_they_are_replaced() {
    if !is_root("a_path_that_workers_have_by_activation_is_bound_anew_and_they_are_replaced") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let socket = ActivationSocket::bind(path.to_str().unwrap()).unwrap();
    let builder =
        Cluster::builder().workers(2).replace(at_once()).setup(activated(directory.path()));
    let mut troop = Troop::start(builder.activation([socket]));
    wait_until("somebody serves", || server_of(&path).is_ok());
    both_since(&troop, 0);
    let first = server_of(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let why = restored(&mut troop).await;
    assert!(why.contains("its path was removed"), "{why}");
    reloaded(&mut troop).await;
    let second = server_of(&path).unwrap();
    assert_ne!(first, second);
    let worker = both_since(&troop, 2);
    rustix::net::shutdown(&listeners_of(worker.pid())[0], rustix::net::Shutdown::Both).unwrap();
    let why = restored(&mut troop).await;
    assert!(why.contains("its socket was shut down"), "{why}");
    reloaded(&mut troop).await;
    assert_ne!(server_of(&path).unwrap(), second);
    // It is the program's own that is there by now, which is left alone.
    let other = directory.path().join("other");
    let theirs = std::os::unix::net::UnixListener::bind(&other).unwrap();
    std::fs::rename(&other, &path).unwrap();
    let lost = |e: &Event| matches!(e, Event::ListenerLost { .. }).then_some(());
    troop.until("the report", lost).await;
    troop.cluster.disconnect().await.unwrap();
    assert!(path.exists());
    drop(theirs);
}
