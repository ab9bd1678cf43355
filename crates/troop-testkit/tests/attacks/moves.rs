//! Sockets that a worker passes off as connections which it gives back.

use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use rustix::process::{Resource, Rlimit, setrlimit};
use tokio::net::TcpStream;
use troop::event::{Consequence, Violation};
use troop::policy::Question;
use troop::{Cluster, Event, Scheduling, Setup, WorkerHandle, WorkerId};
use troop_testkit::{TEST_TIMEOUT, Troop, ask, node_program, wait_until};

use super::scene::{ONLINE, Scene, alone};
use super::support;

/// The listener of the scene's honest worker.
const KEY: &str = "127.0.0.1:0:4:undefined:0";

fn gives_back(key: &str) -> String {
    format!(
        r#"{{"cmd":"NODE_HANDLE","type":"net.Native","msg":{{"cmd":"NODE_TROOP","act":"move","key":"{key}"}}}}"#
    )
}

/// The steps of a worker that listens where the honest one does and then waits until it is asked to
/// leave.
fn leaving() -> Vec<String> {
    let listener = r#""address":"127.0.0.1","port":0,"addressType":4,"index":0"#;
    vec![
        ONLINE.into(),
        format!(r#"answer {{"cmd":"NODE_CLUSTER","act":"queryServer","seq":1,{listener}}}"#),
        // The next line from the primary.
        r#"answer "listens""#.into(),
    ]
}

/// A worker that does these steps when it is asked to drain. The primary has nothing of what it
/// sends, says so, and gives nothing to the honest worker.
async fn nothing_is_passed_on(scene: &mut Scene, steps: Vec<String>) {
    let before = honest_has_been_handed(scene).await;
    let mut all = leaving();
    all.extend(steps);
    all.push(r#"line "still here""#.into());
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let worker = scene.raw(&all).await;
    while scene.troop.message(&worker).await != "listens" {}
    worker.disconnect().unwrap();
    while scene.troop.message(&worker).await != "still here" {}
    assert_eq!(honest_has_been_handed(scene).await, before);
    worker.kill(9).await.unwrap();
    scene.troop.exit(&worker).await;
    scene.honest_worker_serves().await;
}

async fn honest_has_been_handed(scene: &Scene) -> u64 {
    let honest = scene.troop.cluster.workers().into_iter().find(|w| w.id().0 == 1);
    honest.unwrap().stats().await.handed
}

#[tokio::test]
async fn sockets_of_another_kind_or_address_are_not_passed_on() {
    let mut scene = Scene::new().await;
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = elsewhere.local_addr().unwrap().port();
    let line = gives_back(KEY);
    nothing_is_passed_on(&mut scene, vec![format!("sockets 50 {line}")]).await;
    // The near end of a connection to somewhere else.
    nothing_is_passed_on(&mut scene, vec![format!("connection {port} {line}")]).await;
}

#[tokio::test]
async fn a_connection_of_another_network_namespace_is_not_passed_on() {
    if !support::is_root("moves::a_connection_of_another_network_namespace_is_not_passed_on") {
        return;
    }
    let mut scene = Scene::new().await;
    let step = format!("foreign {} {}", scene.port, gives_back(KEY));
    nothing_is_passed_on(&mut scene, vec![step]).await;
}

#[tokio::test]
async fn returned_descriptors_that_are_no_connections_are_reported() {
    let mut scene = Scene::new().await;
    let mut steps = leaving();
    steps.push(format!("udp {}", gives_back(KEY)));
    let steps: Vec<&str> = steps.iter().map(String::as_str).collect();
    let worker = scene.raw(&steps).await;
    while scene.troop.message(&worker).await != "listens" {}
    worker.disconnect().unwrap();
    assert_eq!(scene.offence(&worker).await, (Violation::NotAConnection, false));
    worker.kill(9).await.unwrap();
    scene.honest_worker_serves().await;
}

#[tokio::test]
async fn a_connection_that_a_worker_rejects_does_not_block_the_next_worker() {
    let mut scene = Scene::in_turns().await;
    let query = r#"line {"cmd":"NODE_CLUSTER","act":"queryServer","seq":1,"index":0,"address":"127.0.0.1","port":0,"addressType":4}"#;
    let worker = scene.raw(&[ONLINE, query, "reject-blocking"]).await;
    let id = worker.id();
    let is_online =
        |e: &Event| matches!(e, Event::Online { worker: w, .. } if w.id() == id).then_some(());
    scene.troop.until("online", is_online).await;
    let deadline = Instant::now() + TEST_TIMEOUT;
    while worker.stats().await.returned < 3 {
        // A blocking connection makes the honest worker, which uses tokio, panic or wait.
        assert!(ask(scene.port, "").await.unwrap().starts_with("1 "));
        assert!(Instant::now() < deadline, "{:?}", worker.stats().await);
    }
}

#[tokio::test]
async fn a_worker_that_stays_gives_nothing_back() {
    let line = format!("socket {}", gives_back(KEY));
    let is_malformed = |violation: &Violation| matches!(violation, Violation::Malformed(_));
    Scene::is_killed_for(&[ONLINE, &line], is_malformed).await;
}

#[tokio::test]
async fn a_worker_that_leaves_names_only_listeners_that_it_had() {
    let mut scene = Scene::new().await;
    let mut steps = leaving();
    steps.push(format!("socket {}", gives_back("127.0.0.1:1:4:undefined:0")));
    let steps: Vec<&str> = steps.iter().map(String::as_str).collect();
    let worker = scene.raw(&steps).await;
    while scene.troop.message(&worker).await != "listens" {}
    worker.disconnect().unwrap();
    let (violation, killed) = scene.offence(&worker).await;
    assert!(matches!(violation, Violation::Malformed(_)) && killed, "{violation:?}");
    scene.honest_worker_serves().await;
}

#[tokio::test]
async fn a_worker_that_speaks_of_moves_that_nobody_asked_for_changes_nothing() {
    let says = |act: &str| format!(r#"repeat 1000 {{"cmd":"NODE_TROOP","act":"{act}"}}"#);
    Scene::is_ignored(&[&says("moves"), &says("moved"), &says("moves")]).await;
}

/// A worker can keep a copy of what it gives back. Each that was passed on would be a connection of
/// the honest worker, which has descriptors for so many.
#[tokio::test]
async fn a_connection_that_is_given_back_over_and_over_is_passed_on_once() {
    let setup = Setup::new().script(node_program("returns_twice.js"));
    let mut troop = Troop::start(Cluster::builder().setup(setup));
    let one = troop.fork().await;
    let port = troop.listening(&one).await;
    let mut client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    client.readable().await.unwrap();
    let other = troop.fork().await;
    troop.listening(&other).await;
    one.disconnect().unwrap();
    let id = one.id();
    let (violation, consequence) = troop
        .until("misbehaviour", |event| match event {
            Event::Misbehaved { worker, violation, consequence, .. } if worker.id() == id => {
                Some((violation.clone(), *consequence))
            }
            _ => None,
        })
        .await;
    assert!(
        matches!(&violation, Violation::Malformed(what) if what.contains("before")),
        "{violation:?}"
    );
    assert_eq!(consequence, Consequence::Killed);
    troop.exit(&one).await;
    let stats = other.stats().await;
    assert_eq!(stats.handed, 1);
    // It is the honest worker's now.
    let mut text = String::new();
    let mut lines = tokio::io::BufReader::new(&mut client);
    for _ in 0..2 {
        tokio::io::AsyncBufReadExt::read_line(&mut lines, &mut text).await.unwrap();
    }
    assert_eq!(text, "connected\nconnected\n");
}

/// A program that chooses the worker of each connection: the first one, until it is to keep the
/// questions.
#[derive(Clone, Default)]
struct Chooser(Arc<Mutex<Option<Vec<Question>>>>);

impl Chooser {
    fn scheduling(&self) -> Scheduling {
        let chooser = self.clone();
        Scheduling::callback(10 * TEST_TIMEOUT, move |question| {
            match &mut *chooser.0.lock().unwrap() {
                Some(kept) => kept.push(question),
                None => question.assign(WorkerId(1)),
            }
        })
    }

    fn keep(&self) {
        *self.0.lock().unwrap() = Some(Vec::new());
    }

    fn kept(&self) -> usize {
        self.0.lock().unwrap().as_ref().map_or(0, Vec::len)
    }

    fn answer(&self) {
        drop(self.0.lock().unwrap().take());
    }
}

/// A cluster whose program keeps all questions from now on, with a second worker and a first one
/// that has so many connections and gives all of them back when it is to leave.
async fn with_connections(
    chooser: &Chooser,
    count: usize,
) -> (Troop, WorkerHandle, u16, Vec<TcpStream>) {
    let setup = Setup::new().script(node_program("returns_all.js"));
    let builder = Cluster::builder().setup(setup).scheduling(chooser.scheduling());
    let mut troop = Troop::start(builder);
    let one = troop.fork().await;
    let port = troop.listening(&one).await;
    let mut clients = Vec::new();
    for _ in 0..count {
        let client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        client.readable().await.unwrap();
        clients.push(client);
    }
    let other = troop.fork().await;
    troop.listening(&other).await;
    chooser.keep();
    (troop, one, port, clients)
}

/// Each connection that is taken back is one more question to the program, of which there are 1024
/// at most. New clients would wait for those of the worker.
#[tokio::test(flavor = "multi_thread")]
async fn returned_connections_leave_half_of_the_questions_to_new_clients() {
    let chooser = Chooser::default();
    let (mut troop, one, port, _clients) = with_connections(&chooser, 1100).await;
    one.disconnect().unwrap();
    assert_eq!(troop.message(&one).await, "done");
    assert_eq!(chooser.kept(), 512);
    let client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    wait_until("the question about a new client", || chooser.kept() == 513);
    // The second worker gets all of them, in turn.
    chooser.answer();
    client.readable().await.unwrap();
    one.kill(9).await.unwrap();
}

/// The last descriptors are those that restarts need.
#[tokio::test(flavor = "multi_thread")]
async fn no_returned_connections_are_taken_while_descriptors_are_scarce() {
    const LIMIT: u64 = 1000;
    const LEFT: usize = 24;
    if !alone("moves::no_returned_connections_are_taken_while_descriptors_are_scarce") {
        return;
    }
    let limit = Rlimit { current: Some(LIMIT), maximum: Some(LIMIT) };
    setrlimit(Resource::Nofile, limit).unwrap();
    let chooser = Chooser::default();
    let (mut troop, one, _, _clients) = with_connections(&chooser, 4 * LEFT).await;
    let mut others: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
    others.truncate(others.len() - LEFT);
    one.disconnect().unwrap();
    assert_eq!(troop.message(&one).await, "done");
    // The first one shows that there are few.
    assert_eq!(chooser.kept(), 1);
    troop.fork().await.kill(9).await.unwrap();
    one.kill(9).await.unwrap();
}
