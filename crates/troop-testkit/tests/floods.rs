//! Too much of everything: a worker that floods, never reads, or crashes disturbs only itself.
#![allow(clippy::unwrap_used)]

mod scene;

use std::time::Duration;
use troop::event::{ExitHow, Violation};
use troop::{Cluster, Error, Event, Scheduling, WorkerHandle};
use troop_testkit::{Troop, ask, is_running, open_descriptors};

use scene::*;

// ---- too much ----

#[tokio::test]
async fn a_line_without_end_is_cut_off_before_it_fills_the_memory() {
    if !alone("a_line_without_end_is_cut_off_before_it_fills_the_memory") {
        return;
    }
    let mut scene = Scene::new().await;
    let before = resident();
    let worker = scene.raw(&[ONLINE, "endless"]).await;
    let (violation, cut_off) = scene.offence(&worker).await;
    assert!(matches!(violation, Violation::TooLong(_)) && cut_off, "{violation:?}");
    assert_eq!(scene.troop.exit(&worker).await, ExitHow::Signal(9));
    let growth = resident().saturating_sub(before);
    assert!(growth < 64 << 20, "the primary grew by {} MiB", growth >> 20);
    scene.honest_worker_serves().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_messages_does_not_keep_others_from_being_served() {
    let scene = Scene::new().await;
    let flooder =
        scene.raw(&[ONLINE, r#"repeat 100000000 {"some":"message","of":"a kind"}"#]).await;
    for _ in 0..10 {
        scene.honest_worker_serves().await;
    }
    assert!(is_running(flooder.pid()), "a flood of valid messages is no offence");
    flooder.kill(9).await.unwrap();
}

/// The program's tasks share a thread with the primary's here.
#[test]
fn a_flood_of_messages_leaves_the_program_its_share_of_a_single_thread() {
    let (sender, done) = std::sync::mpsc::channel();
    let (pid_sender, pids) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let scene = Scene::new().await;
            let flooder =
                scene.raw(&[ONLINE, r#"repeat 100000000 {"some":"message","of":"a kind"}"#]).await;
            let _ = pid_sender.send(flooder.pid());
            for _ in 0..20 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let _ = sender.send(());
            flooder.kill(9).await.unwrap();
        });
    });
    let pid = pids.recv_timeout(Duration::from_secs(10)).unwrap();
    let result = done.recv_timeout(Duration::from_secs(15));
    if result.is_err() {
        // Not reaped as long as the primary hangs, so it is the right one.
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }
    assert!(result.is_ok(), "a task that sleeps a second in total got no turn for fifteen");
}

#[tokio::test]
async fn a_worker_that_never_reads_fills_only_its_own_queue() {
    if !alone("a_worker_that_never_reads_fills_only_its_own_queue") {
        return;
    }
    let mut scene = Scene::new().await;
    let worker = scene.raw(&[ONLINE, "sleep 600000"]).await;
    let before = resident();
    let text = "x".repeat(1000);
    let mut sent = 0;
    let full = loop {
        match worker.try_send(&text) {
            Ok(()) => sent += 1,
            Err(e) => break e,
        }
        if sent % 100 == 0 {
            tokio::task::yield_now().await;
        }
        assert!(sent < 20_000, "the queue has no bounds");
    };
    assert!(matches!(full, Error::Full), "{full}");
    assert!(worker.queued() < 2 << 20);
    assert!(resident().saturating_sub(before) < 32 << 20);
    scene.honest_worker_serves().await;
    worker.kill(9).await.unwrap();
    assert_eq!(scene.troop.exit(&worker).await, ExitHow::Signal(9));
}

#[tokio::test]
async fn sockets_for_a_worker_that_never_reads_wait_with_their_senders_and_come_back_when_it_dies()
{
    const SENT: usize = 1500;
    if !alone(
        "sockets_for_a_worker_that_never_reads_wait_with_their_senders_and_come_back_when_it_dies",
    ) {
        return;
    }
    let mut scene = Scene::new().await;
    let worker = scene.raw(&[ONLINE, "sleep 600000"]).await;
    let before = open_descriptors();
    let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
    let sending: Vec<_> = (0..SENT)
        .map(|n| {
            let (worker, one) = (worker.clone(), one.try_clone().unwrap());
            tokio::spawn(async move { worker.send_handle(&n, one).await })
        })
        .collect();
    drop(one);
    // Until all have been queued that will be.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(sending.iter().all(|s| !s.is_finished()), "nothing has arrived, and nothing is lost");
    scene.honest_worker_serves().await;
    let waiting = open_descriptors() - before;
    // One for each that its sender still has, and one more for each that is under way.
    assert!(waiting < SENT + 200, "{waiting} descriptors are held for {SENT} sockets");
    worker.kill(9).await.unwrap();
    for (n, sending) in sending.into_iter().enumerate() {
        let sent = tokio::time::timeout(Duration::from_secs(20), sending).await;
        let sent = sent
            .unwrap_or_else(|_| panic!("sender {n} still waits for a worker that is gone"))
            .unwrap();
        assert!(matches!(sent, Err(Error::Closed)), "{sent:?}");
    }
    assert_eq!(scene.troop.exit(&worker).await, ExitHow::Signal(9));
    // All copies are closed: the other end sees it.
    other.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert_eq!(std::io::Read::read(&mut &other, &mut [0]).unwrap(), 0);
    drop(other);
    troop_testkit::wait_until("every descriptor to be closed", || open_descriptors() <= before);
    scene.honest_worker_serves().await;
}

/// Takes every descriptor that this process may still have.
struct Exhausted {
    taken: Vec<std::os::fd::OwnedFd>,
    limit: rustix::process::Rlimit,
}

impl Exhausted {
    fn new() -> Exhausted {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        // Not as many as there may be by now.
        let few = rustix::process::Rlimit { current: Some(200), ..limit };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, few).unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let mut taken = Vec::new();
        let end = loop {
            match rustix::io::fcntl_dupfd_cloexec(&null, 0) {
                Ok(fd) => taken.push(fd),
                Err(e) => break e,
            }
        };
        assert_eq!(end, rustix::io::Errno::MFILE);
        taken.push(null.into());
        Exhausted { taken, limit }
    }
}

impl Drop for Exhausted {
    fn drop(&mut self) {
        self.taken.clear();
        let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, self.limit);
    }
}

/// The first worker's question needs a socket, the second one's a copy of it.
#[tokio::test]
async fn listening_on_a_shared_socket_fails_while_the_primary_is_out_of_descriptors_and_works_afterwards()
 {
    if !alone(
        "listening_on_a_shared_socket_fails_while_the_primary_is_out_of_descriptors_and_works_afterwards",
    ) {
        return;
    }
    let builder =
        Cluster::builder().scheduling(Scheduling::Shared).setup(fixture(["tries", "127.0.0.1:0"]));
    let mut troop = Troop::start(builder);
    let workers = [troop.fork().await, troop.fork().await];
    for worker in &workers {
        let id = worker.id();
        troop
            .until("online", |e| {
                matches!(e, Event::Online { worker: w, .. } if w.id() == id).then_some(())
            })
            .await;
    }
    let mut port = None;
    for worker in &workers {
        let exhausted = Exhausted::new();
        for _ in 0..3 {
            worker.send(&"listen").await.unwrap();
            let answer = troop.message(worker).await;
            let error = answer["error"].as_str().unwrap_or_default().to_owned();
            assert!(error.contains("os error 24"), "{answer}");
        }
        drop(exhausted);
        worker.send(&"listen").await.unwrap();
        let answer = troop.message(worker).await;
        let new = answer["port"].as_u64().unwrap_or_else(|| panic!("{answer}"));
        assert_eq!(*port.get_or_insert(new), new, "both listen on one socket");
    }
    let port = u16::try_from(port.unwrap()).unwrap();
    workers[0].kill(9).await.unwrap();
    troop.exit(&workers[0]).await;
    let answer = ask(port, "").await.unwrap();
    assert!(answer.starts_with("2 "), "the second worker has its own copy: {answer:?}");
}

/// What the primary owes a worker as answers must be bounded as well.
async fn answers_stay_bounded(question: &str) {
    let mut scene = Scene::new().await;
    let before = resident();
    let worker = scene.raw(&[ONLINE, question, "sleep 600000"]).await;
    let id = worker.id();
    let mut largest = 0;
    for _ in 0..30 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        largest = largest.max(resident().saturating_sub(before));
        if largest > 128 << 20 {
            break;
        }
    }
    let _ = worker.kill(9).await;
    scene
        .troop
        .until("its end", |e| {
            matches!(e, Event::Exit { worker: w, .. } if w.id() == id).then_some(())
        })
        .await;
    assert!(
        largest < 64 << 20,
        "the primary keeps {} MiB of answers for a worker that does not read them",
        largest >> 20
    );
    scene.honest_worker_serves().await;
}

#[tokio::test]
async fn replies_to_disconnects_of_a_worker_that_never_reads_are_bounded() {
    if !alone("replies_to_disconnects_of_a_worker_that_never_reads_are_bounded") {
        return;
    }
    answers_stay_bounded(
        r#"repeat 5000000 {"cmd":"NODE_CLUSTER","act":"exitedAfterDisconnect","seq":1}"#,
    )
    .await;
}

#[tokio::test]
async fn replies_to_socket_counts_of_a_worker_that_never_reads_are_bounded() {
    if !alone("replies_to_socket_counts_of_a_worker_that_never_reads_are_bounded") {
        return;
    }
    let key = "k".repeat(60_000);
    answers_stay_bounded(&format!(
        r#"repeat 10000 {{"cmd":"NODE_SOCKET_GET_COUNT","key":"{key}"}}"#
    ))
    .await;
}

#[tokio::test]
async fn replies_to_invalid_queries_of_a_worker_that_never_reads_are_bounded() {
    if !alone("replies_to_invalid_queries_of_a_worker_that_never_reads_are_bounded") {
        return;
    }
    let data = "d".repeat(60_000);
    answers_stay_bounded(&format!(
        r#"repeat 10000 {{"cmd":"NODE_CLUSTER","act":"queryServer","addressType":4,"port":-7,"seq":1,"data":"{data}"}}"#
    ))
    .await;
}

// ---- the end ----

#[tokio::test]
async fn a_process_that_a_dead_worker_left_behind_cannot_keep_the_primary_busy() {
    let mut scene = Scene::new().await;
    let behind = r#"behind for n in 1 2 3; do yes '"a message"' >&3 2>/dev/null & done; wait"#;
    let worker = scene.raw(&[ONLINE, behind, "sleep 200", "exit 0"]).await;
    assert_eq!(scene.troop.exit(&worker).await, ExitHow::Code(0));
    scene.honest_worker_serves().await;
}

#[tokio::test]
async fn a_worker_that_closes_its_channel_and_stays_is_disconnected_but_not_gone() {
    let mut scene = Scene::new().await;
    let worker = scene.raw(&[ONLINE, "hang up", "sleep 600000"]).await;
    let id = worker.id();
    scene
        .troop
        .until("its disconnect", |e| {
            matches!(e, Event::Disconnect { worker: w, .. } if w.id() == id).then_some(())
        })
        .await;
    assert!(is_running(worker.pid()));
    assert!(!worker.is_connected() && !worker.is_dead());
    assert!(matches!(worker.try_send(&1), Err(Error::Closed)));
    worker.kill(9).await.unwrap();
    assert_eq!(scene.troop.exit(&worker).await, ExitHow::Signal(9));
    scene.honest_worker_serves().await;
}

/// A message that the primary cannot get rid of.
fn far_too_much(worker: &WorkerHandle) {
    worker.try_send(&"x".repeat(8 << 20)).unwrap();
}

#[tokio::test]
async fn the_end_of_a_channel_is_seen_however_much_waits_to_be_written() {
    let mut scene = Scene::new().await;
    let worker = scene.raw(&[ONLINE, "sleep 300", "hang up", "sleep 600000"]).await;
    far_too_much(&worker);
    let id = worker.id();
    scene
        .troop
        .until("its disconnect", |e| {
            matches!(e, Event::Disconnect { worker: w, .. } if w.id() == id).then_some(())
        })
        .await;
    worker.kill(9).await.unwrap();
    assert_eq!(scene.troop.exit(&worker).await, ExitHow::Signal(9));
    scene.honest_worker_serves().await;
}

#[tokio::test]
async fn the_last_messages_of_a_worker_arrive_however_much_is_queued_for_it() {
    let mut scene = Scene::new().await;
    let worker = scene.raw(&[ONLINE, "sleep 300", "line \"last words\"", "exit 0"]).await;
    far_too_much(&worker);
    assert_eq!(scene.troop.exit(&worker).await, ExitHow::Code(0));
    assert_eq!(scene.troop.message(&worker).await, "last words");
}

#[tokio::test]
async fn reading_from_a_worker_resumes_when_it_reads_its_own_channel() {
    let mut scene = Scene::new().await;
    // Reads what the primary had for it after a while, and says something then.
    let worker = scene.raw(&[ONLINE, "sleep 300", "answer 1", "line \"thank you\""]).await;
    far_too_much(&worker);
    assert_eq!(scene.troop.message(&worker).await, 1);
    scene.troop.message(&worker).await;
    assert_eq!(scene.troop.message(&worker).await, "thank you");
}
