//! Listeners that workers put out of order: paths that are removed, sockets that are shut down.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use troop::supervise::Progress;
use troop::{Cluster, Event, Scheduling, Setup};
use troop_testkit::{TEST_TIMEOUT, Troop, at_once, node_program};

use super::support::Harm;

fn node(text: &str) -> Setup {
    Setup::new().script(node_program("run.js")).args([text])
}

/// Returns the answer of the listener at a path, or the error.
fn asked(path: &Path) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(TEST_TIMEOUT))?;
    stream.write_all(b"x")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

async fn served(path: &Path) -> std::io::Result<String> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || asked(&path)).await.unwrap()
}

/// Waits for somebody to be served there.
async fn until_served(path: &Path) -> String {
    let deadline = Instant::now() + TEST_TIMEOUT;
    loop {
        match served(path).await {
            Ok(answer) if !answer.is_empty() => return answer,
            other => {
                assert!(Instant::now() < deadline, "nobody serves {}: {other:?}", path.display())
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What nearly every program with a Unix socket does.
fn removes_before_it_listens(path: &Path) -> Setup {
    let path = path.display();
    node(&format!(
        "
        const fs = require('fs');
        if (fs.existsSync('{path}')) fs.unlinkSync('{path}');
        require('net').createServer((socket) => {{ socket.on('error', () => {{}}); socket.resume().end(`${{process.pid}}`); }}).listen('{path}');"
    ))
}

async fn all_listen(troop: &mut Troop, count: usize) {
    for _ in 0..count {
        troop.until("listening", |e| matches!(e, Event::Listening { .. }).then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_remove_the_path_before_they_listen_are_reached_from_the_start_after_a_reload_and_after_a_crash()
 {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let builder =
        Cluster::builder().workers(4).replace(at_once()).setup(removes_before_it_listens(&path));
    let mut troop = Troop::start(builder);
    all_listen(&mut troop, 4).await;
    let mut served_by = std::collections::BTreeSet::new();
    for _ in 0..16 {
        served_by.insert(served(&path).await.unwrap());
    }
    assert_eq!(served_by.len(), 4, "all take part: {served_by:?}");
    let reload = troop.cluster.reload();
    troop
        .until("the reload", |e| {
            matches!(e, Event::Supervision(Progress::ReloadFinished)).then_some(())
        })
        .await;
    reload.await.unwrap();
    all_listen(&mut troop, 4).await;
    for _ in 0..8 {
        assert!(!served_by.contains(&served(&path).await.unwrap()), "the new ones serve");
    }
    let worker = troop.cluster.workers().pop().unwrap();
    worker.kill(9).await.unwrap();
    troop.exit(&worker).await;
    all_listen(&mut troop, 1).await;
    for _ in 0..8 {
        served(&path).await.unwrap();
    }
    // Removed by a worker that does not listen.
    std::fs::remove_file(&path).unwrap();
    until_served(&path).await;
    troop.until("the report", |e| matches!(e, Event::ListenerRestored { .. }).then_some(())).await;
    troop.cluster.disconnect().await.unwrap();
    assert!(!path.exists(), "it is removed at the end");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_client_that_waits_is_lost_when_a_path_is_bound_anew() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let mut troop = Troop::start(Cluster::builder().setup(removes_before_it_listens(&path)));
    let first = troop.fork().await;
    all_listen(&mut troop, 1).await;
    // Clients that come all the time, over eight new sockets.
    let over = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let clients = std::thread::spawn({
        let (path, over) = (path.clone(), over.clone());
        move || {
            let mut served = 0;
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                match asked(&path) {
                    Ok(answer) => {
                        assert!(!answer.is_empty(), "a connection that was made is served");
                        served += 1;
                    }
                    // Between the removal and the new socket there is none.
                    Err(e)
                        if e.kind() == std::io::ErrorKind::NotFound
                            || e.kind() == std::io::ErrorKind::ConnectionRefused => {}
                    Err(e) => panic!("{e}"),
                }
            }
            served
        }
    });
    for _ in 0..8 {
        troop.fork().await;
        all_listen(&mut troop, 1).await;
    }
    over.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(clients.join().unwrap() > 8);
    drop(first);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_another_program_has_taken_is_left_to_it_and_reported() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let mut troop = Troop::start(Cluster::builder().setup(removes_before_it_listens(&path)));
    troop.fork().await;
    all_listen(&mut troop, 1).await;
    std::fs::remove_file(&path).unwrap();
    let theirs = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let lost = |e: &Event| match e {
        Event::ListenerLost { reason: why, .. } => Some(why.clone()),
        _ => None,
    };
    assert!(troop.until("the report", lost).await.contains("something else"));
    troop.cluster.disconnect().await.unwrap();
    assert!(path.exists(), "the other program's file stays");
    drop(theirs);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worker_that_asked_last_is_reached_on_a_shared_path() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let builder =
        Cluster::builder().scheduling(Scheduling::Shared).setup(removes_before_it_listens(&path));
    let mut troop = Troop::start(builder);
    for _ in 0..3 {
        let worker = troop.fork().await;
        all_listen(&mut troop, 1).await;
        assert_eq!(served(&path).await.unwrap(), worker.pid().to_string());
    }
}

/// The port on which a worker listens.
fn listening(event: &Event) -> Option<u16> {
    match event {
        Event::Listening { address: at, .. } => Some(u16::try_from(at.port.unwrap()).unwrap()),
        _ => None,
    }
}

/// A client of a TCP port is served, within a while.
async fn until_port_serves(port: u16, when: &str) {
    let deadline = Instant::now() + TEST_TIMEOUT;
    while !troop_testkit::ask(port, "").await.is_ok_and(|answer| !answer.is_empty()) {
        assert!(Instant::now() < deadline, "nobody serves port {port} {when}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What is done to the listening sockets of a process, as the process itself could do it.
fn harm_listeners(pid: u32, harm: Harm) -> usize {
    let all = super::support::listeners_of(pid);
    all.iter().for_each(|socket| harm.be_done_to(socket));
    all.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_port_that_a_worker_shuts_down_listens_again_and_is_reported() {
    if !super::support::is_root(
        "a_shared_port_that_a_worker_shuts_down_listens_again_and_is_reported",
    ) {
        return;
    }
    let builder = Cluster::builder().scheduling(Scheduling::Shared).workers(2).replace(at_once());
    // Workers that do not end for an accept that fails.
    let serves = "require('net').createServer((s) => s.resume().end('served')).on('error', () => {}).listen(0, '127.0.0.1')";
    let mut troop = Troop::start(builder.setup(node(serves)));
    let port = troop.until("listening", listening).await;
    troop.until("listening", listening).await;
    until_port_serves(port, "at first").await;
    let restored = |e: &Event| match e {
        Event::ListenerRestored { reason: why, .. } => Some(why.clone()),
        _ => None,
    };
    // Each further report is for twice as many.
    let socket = super::support::listeners_of(troop.cluster.workers()[0].pid()).remove(0);
    for (harm, is_reported) in Harm::ALL.into_iter().zip([true, true, false, true]) {
        harm.be_done_to(&socket);
        if is_reported {
            let why = troop.until("the report", restored).await;
            // Or successors: a worker ends when its event loop has given the socket up.
            assert!(why.contains("by worker") && why.contains(" or "), "either of them: {why}");
        }
        until_port_serves(port, &format!("afterwards: {harm:?}")).await;
    }
    // A reload is no success while the port is dead.
    Harm::Twice.be_done_to(&socket);
    drop(socket);
    let reload = troop.cluster.reload();
    troop
        .until("the reload", |e| {
            matches!(e, Event::Supervision(Progress::ReloadFinished)).then_some(())
        })
        .await;
    reload.await.unwrap();
    assert!(
        troop_testkit::ask(port, "").await.is_ok_and(|answer| !answer.is_empty()),
        "the new ones serve"
    );
}

/// Its successor has the same socket.
#[tokio::test(flavor = "multi_thread")]
async fn clients_of_a_worker_that_ends_its_own_socket_of_a_steered_port_are_served_by_its_successor()
 {
    if !super::support::is_root(
        "clients_of_a_worker_that_ends_its_own_socket_of_a_steered_port_are_served_by_its_successor",
    ) {
        return;
    }
    let builder =
        Cluster::builder().scheduling(Scheduling::Steered(None)).workers(2).replace(at_once());
    let serves = "require('net').createServer((s) => s.resume().end('served')).on('error', () => {}).listen(0, '127.0.0.1')";
    let mut troop = Troop::start(builder.setup(node(serves)));
    let port = troop.until("listening", listening).await;
    troop.until("listening", listening).await;
    for (harm, ends) in
        [(Harm::Twice, false), (Harm::Twice, true), (Harm::Elsewhere, true), (Harm::Unseen, true)]
    {
        // Not the one whose event loop has given its socket up.
        let own = |worker: &troop::WorkerHandle| {
            let socket = super::support::listeners_of(worker.pid()).into_iter().next()?;
            Some((worker.pid(), socket))
        };
        let (pid, socket) = troop.cluster.workers().iter().find_map(own).unwrap();
        harm.be_done_to(&socket);
        drop(socket);
        if ends {
            let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            troop.until("its successor", listening).await;
        }
        let (deadline, mut served) = (Instant::now() + TEST_TIMEOUT, 0);
        while served < 40 {
            let is_served = troop_testkit::ask(port, "").await.is_ok_and(|a| !a.is_empty());
            served = if is_served { served + 1 } else { 0 };
            assert!(Instant::now() < deadline, "clients are turned away: {harm:?} {ends}");
        }
    }
    let reload = troop.cluster.reload();
    reload.await.unwrap();
}

/// What it says itself does not make others the only suspects.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_does_not_say_that_it_listens_is_named_when_it_shuts_a_shared_port_down() {
    if !super::support::is_root(
        "a_worker_that_does_not_say_that_it_listens_is_named_when_it_shuts_a_shared_port_down",
    ) {
        return;
    }
    let serves = "
        const send = process.send, isSilent = require('cluster').worker.id === 1;
        process.send = function (message, ...rest) {
            if (isSilent && message.act === 'listening') return true;
            return send.call(this, message, ...rest);
        };
        require('net').createServer((s) => s.resume().end('served')).on('error', () => {}).listen(0, '127.0.0.1', () => process.send('listens'))";
    let builder = Cluster::builder().scheduling(Scheduling::Shared).workers(2);
    let mut troop = Troop::start(builder.setup(node(serves)));
    let port = troop.until("listening", listening).await;
    until_port_serves(port, "at first").await;
    let workers = troop.cluster.workers();
    let silent = workers.iter().find(|worker| worker.id().0 == 1).unwrap();
    troop.message(silent).await;
    assert_eq!(harm_listeners(silent.pid(), Harm::Once), 1);
    let restored = |e: &Event| match e {
        Event::ListenerRestored { reason: why, .. } => Some(why.clone()),
        _ => None,
    };
    let why = troop.until("the report", restored).await;
    assert!(why.contains("worker 1 or 2"), "{why}");
    until_port_serves(port, "afterwards").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_that_the_primary_accepts_on_listens_again_too() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (fd, port) =
        (std::os::fd::AsRawFd::as_raw_fd(&listener), listener.local_addr().unwrap().port());
    let offered = troop::activation::InheritedSocket::of(&listener).unwrap();
    let setup = super::scene::fixture(["options", &fd.to_string(), &fd.to_string()]);
    let mut troop = Troop::start(Cluster::builder().inherited([offered]).setup(setup));
    let worker = troop.fork().await;
    troop.message(&worker).await;
    until_port_serves(port, "at first").await;
    rustix::net::shutdown(&listener, rustix::net::Shutdown::Both).unwrap();
    troop.until("the report", |e| matches!(e, Event::ListenerRestored { .. }).then_some(())).await;
    until_port_serves(port, "afterwards").await;
}
