//! What a worker can make the primary keep: memory, descriptors, listeners.

use std::io::Read as _;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use troop::event::{ExitHow, Violation};
use troop::{Cluster, Event, Scheduling, Setup};
use troop_testkit::{TEST_TIMEOUT, open_descriptors, wait_until};

use crate::scene::{ONLINE, Scene, alone, resident};

const MIB: usize = 1 << 20;

// ---- memory ----

const DONE: &str = "line \"done\"";

/// The primary must not have grown by more than a few megabytes after a worker has done these
/// steps, and serves. Each `DONE` among them has to come in its time, and one more at the end.
async fn leaves_nothing(scene: &mut Scene, steps: &[&str], is_killed: bool) {
    let before = resident();
    let worker = scene.raw(&[&[ONLINE], steps, &[DONE]].concat()).await;
    if is_killed {
        assert_eq!(scene.troop.exit(&worker).await, ExitHow::Signal(9));
    } else {
        for _ in 0..=steps.iter().filter(|step| **step == DONE).count() {
            assert_eq!(scene.troop.message(&worker).await, "done");
        }
    }
    let growth = resident().saturating_sub(before);
    assert!(
        growth < 64 * MIB,
        "the primary grew by {} MiB: {}",
        growth / MIB,
        steps[0].chars().take(120).collect::<String>()
    );
    scene.honest_worker_serves().await;
    let _ = worker.kill(9).await;
}

#[tokio::test]
async fn addresses_of_any_length_leave_nothing_in_the_primary() {
    if !alone("limits::addresses_of_any_length_leave_nothing_in_the_primary") {
        return;
    }
    let mut scene = Scene::new().await;
    let query =
        |fields: &str| format!(r#"{{"cmd":"NODE_CLUSTER","act":"queryServer","seq":1,{fields}}}"#);
    let listening =
        |fields: &str| format!(r#"{{"cmd":"NODE_CLUSTER","act":"listening","seq":1,{fields}}}"#);
    // Ten megabytes, which no message of the protocol may have.
    for line in [
        query(r#""index":0,"port":-1,"addressType":-1,"address":"/%""#),
        query(r#""index":0,"port":null,"addressType":null,"fd":999,"address":"%""#),
        listening(r#""port":80,"addressType":4,"address":"%""#),
        query(r#""index":0,"port":80,"addressType":4,"address":null,"data":"%""#),
        query(r#""index":0,"port":"%","addressType":4,"address":null"#),
    ] {
        let step = format!("long 10000000 {line}");
        leaves_nothing(&mut scene, &[step.as_str(); 30], true).await;
    }
    // As long as it may be, a thousand times.
    let long = "x".repeat(100_000);
    for fields in [
        format!(r#""index":0,"port":-1,"addressType":-1,"address":"/{long}#""#),
        format!(r##""index":#,"port":0,"addressType":4,"address":"{long}#""##),
        format!(r##""index":0,"port":80,"addressType":4,"address":null,"data":"{long}#""##),
    ] {
        let steps = |part: u32| {
            [
                format!("each 100 {}", query(&fields.replace('#', &format!("{part}#")))),
                DONE.to_owned(),
            ]
        };
        let steps: Vec<String> = (1..=10).flat_map(steps).collect();
        leaves_nothing(&mut scene, &steps.iter().map(String::as_str).collect::<Vec<_>>(), false)
            .await;
    }
    let step = format!(
        "each 1000 {}",
        listening(&format!(r##""port":80,"addressType":4,"address":"{long}#""##))
    );
    leaves_nothing(&mut scene, &[&step], true).await;
}

#[tokio::test]
async fn unread_events_are_bounded_in_bytes() {
    if !alone("limits::unread_events_are_bounded_in_bytes") {
        return;
    }
    let scene = Scene::new().await;
    let path = "p".repeat(4000);
    let listening = format!(
        r#"repeat 30000 {{"cmd":"NODE_CLUSTER","act":"listening","seq":1,"port":-1,"addressType":-1,"address":"/{path}"}}"#
    );
    let unread = scene.troop.cluster.events();
    let before = resident();
    let worker = scene.raw(&[ONLINE, &listening, "exit 0"]).await;
    // Not read meanwhile, so it is polled.
    while !worker.is_dead() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let growth = resident().saturating_sub(before);
    assert!(growth < 96 * MIB, "two readers that do not read keep {} MiB", growth / MIB);
    drop(unread);
    scene.honest_worker_serves().await;
}

#[tokio::test]
async fn replies_that_a_worker_does_not_read_are_bounded() {
    if !alone("limits::replies_that_a_worker_does_not_read_are_bounded") {
        return;
    }
    let mut scene = Scene::new().await;
    let before = resident();
    let worker = scene
        .raw(&[ONLINE, r#"repeat 20000 {"troop":"request","id":7,"body":1}"#, "sleep 600000"])
        .await;
    let answer = "a".repeat(40_000);
    let mut requests = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(3);
    while Instant::now() < deadline {
        if let Ok(Some(Event::Request { request, .. })) =
            tokio::time::timeout(Duration::from_millis(200), scene.troop.events.recv()).await
        {
            requests.push(request);
        }
    }
    let open = requests.len();
    requests.iter().for_each(|request| request.reply(&answer).unwrap());
    tokio::time::sleep(Duration::from_millis(300)).await;
    let growth = resident().saturating_sub(before);
    assert!(open <= 1024, "{open} requests of one worker are without an answer");
    assert!(growth < 64 * MIB, "the primary keeps {} MiB of answers", growth / MIB);
    scene.honest_worker_serves().await;
    worker.kill(9).await.unwrap();
}

// ---- descriptors ----

#[tokio::test]
async fn sockets_that_the_program_does_not_take_are_bounded_by_worker() {
    if !alone("limits::sockets_that_the_program_does_not_take_are_bounded_by_worker") {
        return;
    }
    let scene = Scene::new().await;
    let before = open_descriptors();
    let wrapped = r#"sockets 500 {"cmd":"NODE_HANDLE","type":"net.Socket","msg":"take it"}"#;
    let worker = scene.raw(&[ONLINE, wrapped, "exit 0"]).await;
    let mut most = 0;
    while !worker.is_dead() {
        most = most.max(open_descriptors().saturating_sub(before));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(most < 64 + 32, "{most} descriptors are held for one worker");
    scene.honest_worker_serves().await;
}

#[tokio::test]
async fn copies_of_a_shared_listener_that_a_worker_does_not_read_are_bounded() {
    if !alone("limits::copies_of_a_shared_listener_that_a_worker_does_not_read_are_bounded") {
        return;
    }
    let mut scene = Scene::with(Cluster::builder().scheduling(Scheduling::Shared)).await;
    let before = open_descriptors();
    let pair = r#"{"cmd":"NODE_CLUSTER","act":"queryServer","seq":1,"index":0,"address":"127.0.0.1","port":0,"addressType":4}
{"cmd":"NODE_CLUSTER","act":"close","key":"127.0.0.1:0:4:undefined:0","seq":2}"#;
    let worker = scene.raw(&[ONLINE, &format!("repeat 20000 {pair}"), "sleep 600000"]).await;
    let id = worker.id();
    let (mut most, deadline) = (0, Instant::now() + Duration::from_secs(3));
    while Instant::now() < deadline {
        most = most.max(open_descriptors().saturating_sub(before));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(most < 64 + 32, "{most} descriptors are held for one worker");
    let _ = worker.kill(9).await;
    scene
        .troop
        .until("its end", |e| {
            matches!(e, Event::Exit { worker: w, .. } if w.id() == id).then_some(())
        })
        .await;
    scene.honest_worker_serves().await;
    wait_until("every copy to be closed", || open_descriptors() <= before);
}

#[tokio::test]
async fn a_line_that_never_ends_keeps_few_descriptors() {
    if !alone("limits::a_line_that_never_ends_keeps_few_descriptors") {
        return;
    }
    let mut scene = Scene::new().await;
    let before = open_descriptors();
    let worker = scene.raw(&[ONLINE, "unended 100", "sleep 600000"]).await;
    let (violation, _) = scene.offence(&worker).await;
    assert!(matches!(violation, Violation::SurplusHandles(_)), "{violation:?}");
    let held = open_descriptors().saturating_sub(before);
    assert!(held < 48, "{held} descriptors wait for the end of a line");
    worker.kill(9).await.unwrap();
    scene.honest_worker_serves().await;
}

/// The most descriptors that this process has open beyond `before`, until that is over.
async fn most_open(before: usize, mut is_over: impl FnMut() -> bool) -> usize {
    let mut most = 0;
    while !is_over() {
        most = most.max(open_descriptors().saturating_sub(before));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    most
}

#[tokio::test]
async fn pipes_that_are_left_behind_by_ever_new_workers_are_bounded() {
    if !alone("limits::pipes_that_are_left_behind_by_ever_new_workers_are_bounded") {
        return;
    }
    let mut scene = Scene::new().await;
    let setup = Setup::new().stderr(troop::setup::Stdio::Capture);
    scene.troop.cluster.setup(setup).unwrap();
    let before = open_descriptors();
    for _ in 0..60 {
        // It leaves the group, so that it is not ended with its worker.
        let worker = scene
            .raw(&[ONLINE, "behind setsid sleep 20 >/dev/null </dev/null &", "sleep 20", "exit 0"])
            .await;
        scene.troop.exit(&worker).await;
    }
    // Those that are too many are closed by a thread, which has its own time.
    let few = most_open(before, || open_descriptors().saturating_sub(before) < 32 + 8);
    let closed = tokio::time::timeout(TEST_TIMEOUT, few).await;
    let open = open_descriptors().saturating_sub(before);
    assert!(closed.is_ok(), "{open} descriptors are held for workers that have ended");
    scene.honest_worker_serves().await;
}

#[tokio::test]
async fn processes_that_a_worker_leaves_behind_are_ended_without_a_descriptor_for_each() {
    if !alone(
        "limits::processes_that_a_worker_leaves_behind_are_ended_without_a_descriptor_for_each",
    ) {
        return;
    }
    let mut scene = Scene::new().await;
    scene.troop.cluster.setup(Setup::new().own_process_group(true)).unwrap();
    let before = open_descriptors();
    let crowd = "behind trap '' TERM; for n in $(seq 100); do sleep 30 >/dev/null 2>&1 </dev/null & done; sleep 30 >/dev/null 2>&1";
    let worker = scene.raw(&[ONLINE, crowd, "sleep 500", "exit 0"]).await;
    let group = i32::try_from(worker.pid()).unwrap();
    scene.troop.exit(&worker).await;
    let is_gone = || {
        rustix::process::test_kill_process_group(rustix::process::Pid::from_raw(group).unwrap())
            .is_err()
    };
    assert!(!is_gone(), "they ignore that they are to end");
    let most = tokio::time::timeout(TEST_TIMEOUT, most_open(before, is_gone))
        .await
        .expect("they are killed");
    assert!(most < 16 + 16, "{most} descriptors are held for what a worker has left behind");
    scene.honest_worker_serves().await;
}

/// The program's tasks have threads of their own, so that the test may block.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shortage_of_descriptors_is_reported_once_with_advice_and_clients_are_served_later() {
    use rustix::net::{AddressFamily, SocketType, connect, socket};
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    if !alone(
        "limits::a_shortage_of_descriptors_is_reported_once_with_advice_and_clients_are_served_later",
    ) {
        return;
    }
    let mut scene = Scene::new().await;
    let clients: Vec<_> =
        (0..5).map(|_| socket(AddressFamily::INET, SocketType::STREAM, None).unwrap()).collect();
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(100), ..limit }).unwrap();
    let taken: Vec<_> =
        std::iter::from_fn(|| rustix::io::fcntl_dupfd_cloexec(&clients[0], 0).ok()).collect();
    assert!(!taken.is_empty());
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], scene.port));
    clients.iter().for_each(|client| connect(client, &address).unwrap());
    let mut said = Vec::new();
    let mut deadline = tokio::time::Instant::now() + TEST_TIMEOUT;
    while let Ok(Some(event)) = tokio::time::timeout_at(deadline, scene.troop.events.recv()).await {
        if let Event::Error { worker: None, error: e, .. } = event {
            if said.is_empty() {
                // Long enough for several more attempts.
                deadline = tokio::time::Instant::now() + Duration::from_millis(1500);
            }
            said.push(e.chain());
        }
    }
    drop(taken);
    setrlimit(Resource::Nofile, limit).unwrap();
    assert!(
        said.len() == 1
            && said[0].contains("raise the limit")
            && said[0].contains("accept a connection"),
        "{said:?}"
    );
    for client in clients {
        let mut client = TcpStream::from(client);
        client.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("it has waited and is served");
        assert!(answer.starts_with("1 "), "{answer:?}");
    }
    scene.honest_worker_serves().await;
}
