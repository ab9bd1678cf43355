//! Closes that take long: sockets with `SO_LINGER`, for ten minutes, with bytes that no peer reads;
//! files whose file system does not answer.

use std::collections::VecDeque;
use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketType};
use troop::event::Violation;
use troop::supervise::{ReadyWhen, ReplacePolicy};
use troop::{Cluster, Event, Setup};
use troop_testkit::{TEST_TIMEOUT, open_descriptors, wait_until};

use crate::fuse::Mount;
use crate::running::open_directory;
use crate::scene::{ONLINE, Scene, alone};
use crate::support::{STRANGER, is_root};

/// A primary that is root, whose workers from now on are the stranger's.
async fn scene() -> Scene {
    of_strangers(Scene::new().await)
}

fn of_strangers(scene: Scene) -> Scene {
    scene.troop.cluster.setup(Setup::new().uid(STRANGER).gid(STRANGER)).unwrap();
    scene
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn descriptors_that_are_not_taken_delay_no_worker() {
    if !is_root("closing::descriptors_that_are_not_taken_delay_no_worker") {
        return;
    }
    let mut scene = scene().await;
    // More than are taken from a message, and as many as there can be; as one that no line claims;
    // as one that the program does not take.
    for count in [17, 253, 1] {
        let worker = scene
            .raw(&[ONLINE, &format!("lingering {count}"), "line \"still here\"", "sleep 600000"])
            .await;
        let (violation, _) = scene.offence(&worker).await;
        assert!(matches!(violation, Violation::SurplusHandles(_)), "{violation:?}");
        scene.honest_worker_serves().await;
        worker.kill(9).await.unwrap();
        scene.troop.exit(&worker).await;
        scene.honest_worker_serves().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_descriptors_than_the_closer_can_queue_delay_no_worker() {
    let name = "closing::more_descriptors_than_the_closer_can_queue_delay_no_worker";
    if !is_root(name) || !alone(name) {
        return;
    }
    let mut scene = scene().await;
    // 1,440 sockets, each of which takes ten minutes to close.
    let steps = [ONLINE, "all-lingering 16", "line \"still here\"", "sleep 600000"];
    let worker = scene.raw(&steps).await;
    let id = worker.id();
    let over = |event: &Event| match event {
        Event::Message { worker: w, message, .. } => {
            (w.id() == id && message.as_json().contains("here")).then_some(())
        }
        Event::Exit { worker: w, .. } => (w.id() == id).then_some(()),
        _ => None,
    };
    scene.troop.until("the end of its messages", over).await;
    scene.honest_worker_serves().await;
    let _ = worker.kill(9).await;
    scene.honest_worker_serves().await;
    wait_until("nothing is left of them", || open_descriptors() < 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn descriptors_of_notifications_delay_no_worker() {
    if !is_root("closing::descriptors_of_notifications_delay_no_worker") {
        return;
    }
    let policy = ReplacePolicy::default().ready_when(ReadyWhen::Notified);
    let mut scene = Scene::with(Cluster::builder().replace(policy)).await;
    scene.troop.cluster.setup(Setup::new().uid(STRANGER).gid(STRANGER)).unwrap();
    for count in [1, 9, 253] {
        let notify = format!("notify-lingering {count}");
        let worker = scene.raw(&[ONLINE, &notify, "line \"still here\"", "sleep 600000"]).await;
        while scene.troop.message(&worker).await != "still here" {}
        scene.honest_worker_serves().await;
        worker.kill(9).await.unwrap();
        scene.troop.exit(&worker).await;
        scene.honest_worker_serves().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn descriptors_beyond_the_limit_delay_no_worker() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    if !is_root("closing::descriptors_beyond_the_limit_delay_no_worker")
        || !alone("closing::descriptors_beyond_the_limit_delay_no_worker")
    {
        return;
    }
    // Fewer than a message can have, from the start.
    setrlimit(Resource::Nofile, Rlimit { current: Some(100), ..getrlimit(Resource::Nofile) })
        .unwrap();
    let mut scene = scene().await;
    let worker = scene
        .raw(&[ONLINE, "lingering 253", "sleep 200", "line \"still here\"", "sleep 600000"])
        .await;
    scene.offence(&worker).await;
    while scene.troop.message(&worker).await != "still here" {}
    // The clients are of this process, too.
    wait_until("room for clients", || open_descriptors() < 60);
    scene.honest_worker_serves().await;
    worker.kill(9).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_whose_connections_linger_delays_no_other() {
    if !is_root("closing::a_worker_whose_connections_linger_delays_no_other") {
        return;
    }
    let mut scene = of_strangers(Scene::in_turns().await);
    let query = r#"line {"cmd":"NODE_CLUSTER","act":"queryServer","seq":1,"index":0,"address":"127.0.0.1","port":%,"addressType":4}"#;
    let listening = r#"line {"cmd":"NODE_CLUSTER","act":"listening","seq":2,"address":"127.0.0.1","port":%,"addressType":4}"#;
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let [query, listening] = [query, listening].map(|line| line.replace('%', &port.to_string()));
    let worker = scene.raw(&[ONLINE, &query, &listening, "race"]).await;
    let id = worker.id();
    scene
        .troop
        .until("its listener", |e| {
            matches!(e, Event::Listening { worker: w, .. } if w.id() == id).then_some(())
        })
        .await;
    let over = Arc::new(AtomicBool::new(false));
    let clients = std::thread::spawn({
        let over = over.clone();
        move || {
            // They read one byte and stay for a while.
            let mut open = VecDeque::new();
            let mut served = 0;
            while !over.load(Ordering::Relaxed) {
                let client =
                    rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
                rustix::net::sockopt::set_socket_recv_buffer_size(&client, 2048).unwrap();
                rustix::net::connect(&client, &SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
                let mut client = TcpStream::from(client);
                client.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
                client.read_exact(&mut [0]).unwrap();
                served += 1;
                open.push_back(client);
                if open.len() > 20 {
                    open.pop_front();
                }
            }
            served
        }
    });
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline {
        scene.honest_worker_serves().await;
    }
    over.store(true, Ordering::Relaxed);
    assert!(clients.join().unwrap() > 20, "its clients are served too");
    worker.kill(9).await.unwrap();
    scene.troop.exit(&worker).await;
    scene.honest_worker_serves().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn descriptors_that_the_kernel_never_drops_delay_no_worker() {
    const TEST: &str = "closing::descriptors_that_the_kernel_never_drops_delay_no_worker";
    if !is_root(TEST) {
        return;
    }
    let home = open_directory();
    // In messages with more than are taken, and alone.
    for (name, count) in [("1", 3), ("2", 253), ("3", 1)] {
        let Some(file) = Mount::undroppable(TEST, &home.path().join(name)) else { return };
        let mut scene = scene().await;
        let send = format!("undropped {count} {}", file.at.display());
        let worker = scene.raw(&[ONLINE, &send, "sleep 600000"]).await;
        let (violation, _) = scene.offence(&worker).await;
        assert!(matches!(violation, Violation::SurplusHandles(_)), "{violation:?}");
        scene.honest_worker_serves().await;
        worker.kill(9).await.unwrap();
        scene.troop.exit(&worker).await;
        scene.honest_worker_serves().await;
        wait_until("it is being dropped", || file.closes() > 0);
        drop(file);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_whose_close_is_never_answered_end_their_senders_and_are_few() {
    const TEST: &str = "closing::files_whose_close_is_never_answered_end_their_senders_and_are_few";
    if !is_root(TEST) {
        return;
    }
    let home = open_directory();
    let Some(file) = Mount::unclosable(TEST, &home.path().join("file")) else { return };
    let path = file.at.clone();
    let mut scene = scene().await;
    let socket = r#"socket {"cmd":"NODE_HANDLE","type":"net.Socket","msg":"with a socket"}"#;
    let send = format!("open {}", path.display());
    let steps = [ONLINE, &send, "file 2", "sleep 600000"];
    for life in 0..8 {
        let worker = scene.raw(&steps).await;
        let offence = scene.offence(&worker).await;
        if life < 2 {
            assert_eq!(offence, (Violation::ForeignFile, true));
        } else {
            // What they send is not taken any more at all.
            assert_eq!(offence, (Violation::MissingHandle, false));
            worker.kill(9).await.unwrap();
        }
        scene.troop.exit(&worker).await;
        scene.honest_worker_serves().await;
    }
    let worker = scene.raw(&[ONLINE, socket, "sleep 600000"]).await;
    assert_eq!(scene.offence(&worker).await, (Violation::MissingHandle, false));
    worker.kill(9).await.unwrap();

    drop(file);
    let is_open = |fd: &std::fs::DirEntry| std::fs::read_link(fd.path()).is_ok_and(|at| at == path);
    wait_until("all of them are closed", || {
        !std::fs::read_dir("/proc/self/fd").unwrap().flatten().any(|fd| is_open(&fd))
    });
    // Sockets arrive again. What a file was the last of them to be closed is known a moment later.
    loop {
        let worker = scene.raw(&[ONLINE, socket, "line \"over\"", "sleep 600000"]).await;
        let id = worker.id();
        let said = |event: &Event| match event {
            Event::Message { worker: w, message, .. } if w.id() == id => Some(message.has_handle()),
            _ => None,
        };
        let has_handle = scene.troop.until("its message", said).await;
        worker.kill(9).await.unwrap();
        if has_handle {
            break;
        }
    }
    scene.honest_worker_serves().await;
}
