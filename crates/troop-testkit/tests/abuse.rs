//! Whatever a worker writes to its channel, the primary goes on, the other workers serve, and the offender is named.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use troop::{Builder, Cluster, Error, Event, ExitHow, Fork, Policy, Setup, Violation, WorkerHandle};
use troop_testkit::{Troop, ask, is_running, open_descriptors};

const ONLINE: &str = r#"line {"cmd":"NODE_CLUSTER","act":"online","seq":0}"#;

fn fixture<const N: usize>(args: [&str; N]) -> Setup {
    Setup::new().program(env!("CARGO_BIN_EXE_troop-fixture")).args(args)
}

/// A cluster with one honest worker, which serves one line per connection.
struct Scene {
    troop: Troop,
    port: u16,
}

impl Scene {
    async fn new() -> Scene {
        Scene::with(Cluster::builder()).await
    }

    async fn with(builder: Builder) -> Scene {
        let mut troop = Troop::start(builder.setup(fixture(["line", "127.0.0.1:0"])));
        let honest = troop.fork().await;
        let port = troop.listening(&honest).await;
        Scene { troop, port }
    }

    /// Forks a worker that does these steps.
    async fn raw(&self, steps: &[&str]) -> WorkerHandle {
        self.troop.cluster.setup(Setup::new().args(["raw"].iter().chain(steps).copied())).unwrap();
        self.troop.cluster.fork(Fork::new()).await.unwrap()
    }

    async fn honest_worker_serves(&self) {
        for _ in 0..3 {
            let answer =
                tokio::time::timeout(Duration::from_secs(5), ask(self.port, "")).await.expect("an answer within five seconds");
            assert!(answer.unwrap().starts_with("1 "), "the honest worker answers");
        }
    }

    /// The first offence of this worker, and whether it was killed for it.
    async fn offence(&mut self, worker: &WorkerHandle) -> (Violation, bool) {
        let id = worker.id();
        self.troop
            .until("misbehaviour", |event| match event {
                Event::Misbehaved(w, violation, cut_off) if w.id() == id => Some((violation.clone(), *cut_off)),
                Event::Exit(w, how) if w.id() == id => panic!("worker {id} ended unreported: {how}"),
                _ => None,
            })
            .await
    }

    /// The steps are reported as what `expected` accepts, and their worker is killed and reaped.
    async fn is_killed_for(steps: &[&str], expected: impl Fn(&Violation) -> bool) {
        let mut scene = Scene::new().await;
        let worker = scene.raw(steps).await;
        let (violation, cut_off) = scene.offence(&worker).await;
        assert!(expected(&violation), "{violation:?}");
        assert!(cut_off, "{violation:?} is the end of a worker");
        assert_eq!(scene.troop.exit(&worker).await, ExitHow::Signal(9));
        assert!(!is_running(worker.pid()));
        scene.honest_worker_serves().await;
    }

    /// The steps are reported as what `expected` accepts, and that is all.
    async fn is_reported_for(steps: &[&str], expected: impl Fn(&Violation) -> bool) {
        let mut scene = Scene::new().await;
        let worker = scene.raw(&[&[ONLINE], steps, &["line \"still here\""]].concat()).await;
        let (violation, cut_off) = scene.offence(&worker).await;
        assert!(expected(&violation), "{violation:?}");
        assert!(!cut_off, "{violation:?} alone is no reason to kill");
        assert_eq!(scene.troop.message(&worker).await, "still here");
        scene.honest_worker_serves().await;
    }

    /// The steps have no effect at all.
    async fn is_ignored(steps: &[&str]) {
        let mut scene = Scene::new().await;
        let worker = scene.raw(&[&[ONLINE], steps, &["line \"still here\""]].concat()).await;
        let id = worker.id();
        let said = scene
            .troop
            .until("its message", |event| match event {
                Event::Misbehaved(w, violation, _) if w.id() == id => panic!("{violation:?}"),
                Event::Exit(w, how) if w.id() == id => panic!("it ended: {how}"),
                Event::Message(w, message) if w.id() == id => Some(message.as_json().to_owned()),
                _ => None,
            })
            .await;
        assert_eq!(said, "\"still here\"");
        scene.honest_worker_serves().await;
    }

    /// Asks for a listener with these fields, and returns the answer's errno, as the worker passes it on.
    async fn errno_of_query(&mut self, fields: &str) -> i64 {
        let query = format!(r#"answer {{"cmd":"NODE_CLUSTER","act":"queryServer","seq":1,{fields}}}"#);
        let worker = self.raw(&[ONLINE, &query]).await;
        let answer = self.troop.message(&worker).await;
        worker.kill(9).await.unwrap();
        answer["errno"].as_i64().unwrap_or(0)
    }
}

/// Resident memory of this process, which is the primary, in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

/// True in a process of this test's own, where memory and descriptors are its own too. Otherwise runs it in one, and returns false.
fn alone(test: &str) -> bool {
    if std::env::var_os("TEST_RUNS_ALONE").is_some() {
        return true;
    }
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--exact", test, "--nocapture"]).env("TEST_RUNS_ALONE", "1").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&[output.stdout, output.stderr].concat()));
    false
}

// ---- lines that are no messages ----

#[tokio::test]
async fn a_line_that_is_not_json_ends_its_worker() {
    Scene::is_killed_for(&["line hello"], |v| *v == Violation::NotJson).await;
}

#[tokio::test]
async fn an_empty_line_ends_its_worker() {
    Scene::is_killed_for(&["hex 0a"], |v| *v == Violation::NotJson).await;
}

#[tokio::test]
async fn invalid_utf8_ends_its_worker() {
    Scene::is_killed_for(&["hex 22fffe220a"], |v| *v == Violation::NotJson).await;
}

#[tokio::test]
async fn two_hundred_thousand_brackets_end_their_worker() {
    Scene::is_killed_for(&["deep"], |v| matches!(v, Violation::TooDeep(_))).await;
}

#[tokio::test]
async fn brackets_inside_a_wrapped_message_end_their_worker_too() {
    let deep = format!(r#"socket {{"cmd":"NODE_HANDLE","type":"net.Native","msg":{}{}}}"#, "[".repeat(1000), "]".repeat(1000));
    Scene::is_killed_for(&[&deep], |v| matches!(v, Violation::TooDeep(_))).await;
}

#[tokio::test]
async fn a_line_that_stops_in_the_middle_is_never_taken_for_a_message() {
    let mut scene = Scene::new().await;
    let worker = scene.raw(&[ONLINE, "line \"whole\"", "bytes {\"half\":", "exit 3"]).await;
    assert_eq!(scene.troop.exit(&worker).await, ExitHow::Code(3));
    assert_eq!(scene.troop.message(&worker).await, "whole");
    assert!(!scene.troop.story().contains("message of 8"), "{}", scene.troop.story());
    scene.honest_worker_serves().await;
}

// ---- fields ----

#[tokio::test]
async fn protocol_messages_with_fields_of_the_wrong_type_end_their_worker() {
    for fields in [
        r#""act":"queryServer","seq":1,"addressType":5,"port":1"#,
        r#""act":"queryServer","seq":1,"addressType":{"a":1},"port":1"#,
        r#""act":"queryServer","seq":1,"addressType":4,"port":1,"address":7"#,
        r#""act":"queryServer","seq":-1,"addressType":4,"port":1"#,
        r#""act":"queryServer","addressType":4,"port":1"#,
        r#""act":"queryServer","seq":1e400,"addressType":4,"port":1"#,
        r#""act":"queryServer","seq":1,"addressType":4,"port":1,"index":-1"#,
        r#""act":7"#,
        r#""act":"listening""#,
        r#""act":"exitedAfterDisconnect""#,
        r#""act":"listening","addressType":4,"port":1,"seq":1,"seq":2"#,
        r#""ack":1e3,"accepted":true"#,
    ] {
        let line = format!(r#"line {{"cmd":"NODE_CLUSTER",{fields}}}"#);
        let expected = |v: &Violation| matches!(v, Violation::Malformed(_) | Violation::NotJson);
        tokio::time::timeout(Duration::from_secs(30), Scene::is_killed_for(&[&line], expected)).await.expect(fields);
    }
}

#[tokio::test]
async fn a_question_that_makes_no_sense_is_answered_with_an_error() {
    let mut scene = Scene::new().await;
    const EINVAL: i64 = -22;
    for fields in [
        r#""port":99999999,"addressType":4"#,
        r#""port":"http","addressType":4"#,
        r#""port":[80],"addressType":4"#,
        r#""port":123456789012345678901234567890,"addressType":4"#,
        r#""port":-5,"addressType":4"#,
        r#""port":null,"addressType":4"#,
        r#""addressType":4"#,
        r#""addressType":null"#,
        r#""port":-1,"addressType":-1,"address":"""#,
        r#""port":-1,"addressType":-1"#,
        r#""port":0,"addressType":4,"address":"not an address""#,
        r#""port":0,"addressType":"udp4","address":"::1 ""#,
        r#""fd":99999999999,"addressType":null"#,
    ] {
        assert_eq!(scene.errno_of_query(fields).await, EINVAL, "{fields}");
    }
    scene.honest_worker_serves().await;
}

#[tokio::test]
async fn a_question_without_any_field_is_answered_with_an_error() {
    let mut scene = Scene::new().await;
    let worker = scene.raw(&[ONLINE, r#"answer {"cmd":"NODE_CLUSTER","act":"queryServer","seq":1}"#]).await;
    assert_eq!(scene.troop.message(&worker).await["errno"], -22);
    scene.honest_worker_serves().await;
}

#[tokio::test]
async fn descriptors_of_the_primary_that_do_not_listen_cannot_be_asked_for() {
    if !alone("descriptors_of_the_primary_that_do_not_listen_cannot_be_asked_for") {
        return;
    }
    let mut scene = Scene::new().await;
    // A channel, a connection, a pipe, the poller: whatever this process has open.
    let (a, _b) = std::os::unix::net::UnixStream::pair().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let connection = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    use std::os::fd::AsRawFd;
    for fd in [0, a.as_raw_fd(), connection.as_raw_fd(), 9_999] {
        for address_type in ["null", "4", "-1", "\"udp4\""] {
            let errno = scene.errno_of_query(&format!(r#""fd":{fd},"addressType":{address_type}"#)).await;
            assert!(errno < 0, "descriptor {fd} as {address_type}: {errno}");
        }
    }
    // And every other one, but listeners.
    let all: Vec<i32> =
        std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()).collect();
    for fd in all {
        let link = std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap_or_default();
        if link.to_string_lossy().starts_with("socket:") {
            continue;
        }
        assert!(scene.errno_of_query(&format!(r#""fd":{fd},"addressType":null"#)).await < 0, "{fd}: {link:?}");
    }
    scene.honest_worker_serves().await;
}

#[tokio::test]
async fn the_channel_of_another_worker_cannot_be_asked_for() {
    if !alone("the_channel_of_another_worker_cannot_be_asked_for") {
        return;
    }
    let mut scene = Scene::new().await;
    let sockets: Vec<i32> =
        std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()).collect();
    let mut asked = 0;
    for fd in sockets {
        let Ok(link) = std::fs::read_link(format!("/proc/self/fd/{fd}")) else { continue };
        let link = link.to_string_lossy().into_owned();
        let Some(inode) = link.strip_prefix("socket:[").and_then(|l| l.strip_suffix(']')) else { continue };
        let unix = std::fs::read_to_string("/proc/net/unix").unwrap();
        // Connected stream sockets have state 03.
        let connected = unix.lines().any(|l| {
            let fields: Vec<&str> = l.split_whitespace().collect();
            fields.get(6) == Some(&inode) && fields.get(5) == Some(&"03")
        });
        if connected {
            asked += 1;
            assert!(scene.errno_of_query(&format!(r#""fd":{fd},"addressType":null"#)).await < 0, "{fd}: {link}");
        }
    }
    assert!(asked > 0, "there is at least the honest worker's channel");
    scene.honest_worker_serves().await;
}

#[tokio::test]
async fn the_same_server_three_times_is_answered_three_times() {
    let mut scene = Scene::new().await;
    let query = |seq| {
        format!(
            r#"{{"cmd":"NODE_CLUSTER","act":"queryServer","seq":{seq},"index":0,"address":"127.0.0.1","port":1,"addressType":4}}"#
        )
    };
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let query = |seq| query(seq).replace(r#""port":1,"#, &format!(r#""port":{port},"#));
    let steps: Vec<String> = (1..=3).map(|seq| format!("answer {}", query(seq))).collect();
    let worker = scene.raw(&[ONLINE, &steps[0], &steps[1], &steps[2]]).await;
    assert_eq!(scene.troop.message(&worker).await["errno"], serde_json::Value::Null);
    for _ in 0..2 {
        assert_eq!(scene.troop.message(&worker).await["errno"], -98, "the address is in use");
    }
    scene.honest_worker_serves().await;
}

#[tokio::test]
async fn two_thousand_listeners_are_too_many_for_one_worker() {
    if !alone("two_thousand_listeners_are_too_many_for_one_worker") {
        return;
    }
    let before = open_descriptors();
    let steps: Vec<String> = (0..2000)
        .map(|n| {
            format!(
                r#"line {{"cmd":"NODE_CLUSTER","act":"queryServer","seq":{n},"index":{n},"address":"127.0.0.1","port":0,"addressType":4}}"#
            )
        })
        .collect();
    let steps: Vec<&str> = steps.iter().map(String::as_str).collect();
    let mut scene = Scene::new().await;
    let worker = scene.raw(&steps).await;
    let (violation, cut_off) = scene.offence(&worker).await;
    assert!(matches!(violation, Violation::TooManyListeners(_)) && cut_off, "{violation:?}");
    scene.troop.exit(&worker).await;
    scene.honest_worker_serves().await;
    // What it opened is of no use to anybody else.
    let after = open_descriptors();
    assert!(after < before + 200, "{before} descriptors before, {after} after its listeners should be closed");
}

#[tokio::test]
async fn a_unix_path_with_a_nul_byte_leaves_no_file_behind() {
    let directory = tempfile::tempdir().unwrap();
    let mut scene = Scene::new().await;
    let path = directory.path().join("evil").display().to_string();
    let errno = scene.errno_of_query(&format!(r#""port":-1,"addressType":-1,"address":"{path}\u0000name""#)).await;
    // An abstract name (as Node makes of it), or an error; never the path before the NUL.
    assert!(errno <= 0);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    scene.honest_worker_serves().await;
}

#[tokio::test]
async fn a_foreign_unix_socket_whose_queue_is_full_does_not_stop_the_primary() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("full");
    let foreign = UnixListener::bind(&path).unwrap();
    rustix::net::listen(&foreign, 0).unwrap();
    // Fills the queue without waiting for it.
    let address = rustix::net::SocketAddrUnix::new(&path).unwrap();
    let clients: Vec<_> = (0..4)
        .map(|_| {
            use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let client = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
            let _ = connect(client.as_fd(), &address);
            client
        })
        .collect();
    // In a runtime of its own, because a primary that hangs would hang this test too.
    let text = path.display().to_string();
    let (sender, done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let errno = runtime.block_on(async {
            let mut scene = Scene::new().await;
            scene.errno_of_query(&format!(r#""port":-1,"addressType":-1,"address":"{text}""#)).await
        });
        let _ = sender.send(errno);
    });
    let errno = done.recv_timeout(Duration::from_secs(15));
    // Lets a primary that hangs go on, so that it ends with this test.
    drop((clients, foreign));
    assert_eq!(errno.ok(), Some(-98), "the primary answers that the address is in use");
}

// ---- acknowledgements ----

#[tokio::test]
async fn an_acknowledgement_that_nobody_asked_for_is_reported() {
    Scene::is_reported_for(&[r#"line {"cmd":"NODE_HANDLE_ACK"}"#], |v| *v == Violation::UnaskedAck).await;
    Scene::is_reported_for(&[r#"line {"cmd":"NODE_HANDLE_NACK"}"#], |v| *v == Violation::UnaskedAck).await;
    Scene::is_reported_for(&[r#"line {"cmd":"NODE_CLUSTER","ack":99,"accepted":true,"seq":1}"#], |v| *v == Violation::UnaskedAck)
        .await;
    Scene::is_reported_for(&[r#"line {"cmd":"NODE_CLUSTER","ack":99,"accepted":false,"seq":1}"#], |v| {
        *v == Violation::UnaskedAck
    })
    .await;
    Scene::is_reported_for(&[r#"line {"cmd":"NODE_CLUSTER","ack":-99,"accepted":true,"seq":1}"#], |v| {
        *v == Violation::UnaskedAck
    })
    .await;
}

#[tokio::test]
async fn taken_connections_that_were_never_given_are_reported() {
    for lists in [r#""taken":[1,2,3]"#, r#""taken":[],"returned":[18446744073709551615]"#] {
        let line = format!(r#"line {{"cmd":"NODE_TROOP","act":"taken",{lists}}}"#);
        Scene::is_reported_for(&[&line], |v| *v == Violation::UnaskedAck).await;
    }
    Scene::is_killed_for(&[r#"line {"cmd":"NODE_TROOP","act":"taken","taken":[-1]}"#], |v| matches!(v, Violation::Malformed(_)))
        .await;
}

#[tokio::test]
async fn a_worker_cannot_take_the_connections_of_another() {
    // An idle worker holds a connection; a liar says it took all the numbers there can be.
    let mut troop = Troop::with(fixture(["idle", "127.0.0.1:0"]));
    let idle = troop.fork().await;
    let port = troop.listening(&idle).await;
    let client = tokio::spawn(ask(port, ""));
    let all: Vec<String> = (0..500).map(|n: u32| n.to_string()).collect();
    let lie = format!(r#"line {{"cmd":"NODE_TROOP","act":"taken","taken":[{}]}}"#, all.join(","));
    troop.cluster.setup(Setup::new().args(["raw", ONLINE, &lie])).unwrap();
    let liar = troop.fork().await;
    let id = liar.id();
    troop.until("its offence", |e| matches!(e, Event::Misbehaved(w, ..) if w.id() == id).then_some(())).await;
    troop.cluster.setup(fixture(["line", "127.0.0.1:0"])).unwrap();
    let honest = troop.fork().await;
    troop.listening(&honest).await;
    idle.kill(9).await.unwrap();
    assert!(client.await.unwrap().unwrap().starts_with("3 "), "the connection is served by the honest worker");
}

#[tokio::test]
async fn a_hundred_small_offences_are_enough() {
    let mut scene = Scene::new().await;
    let worker = scene.raw(&[ONLINE, r#"repeat 1000 {"cmd":"NODE_HANDLE_ACK"}"#]).await;
    let id = worker.id();
    let killed = |e: &Event| matches!(e, Event::Misbehaved(w, _, true) if w.id() == id).then_some(());
    scene.troop.until("the last straw", killed).await;
    assert_eq!(scene.troop.exit(&worker).await, ExitHow::Signal(9));
    scene.honest_worker_serves().await;
}

#[tokio::test]
async fn unknown_acks_and_acts_are_ignored_as_node_does() {
    Scene::is_ignored(&[
        r#"line {"cmd":"NODE_CLUSTER","ack":99,"seq":1}"#,
        r#"line {"cmd":"NODE_CLUSTER","act":"dance","seq":2}"#,
        r#"line {"cmd":"NODE_CLUSTER"}"#,
        r#"line {"cmd":"NODE_TROOP"}"#,
        r#"line {"cmd":"NODE_TROOP","act":"conns","key":"k","seqs":[1]}"#,
        r#"line {"cmd":"NODE_TROOP","act":"recall","seqs":[1]}"#,
        r#"line {"cmd":"NODE_SOMETHING","new":{"and":"deep"}}"#,
        r#"line {"cmd":"NODE_CLUSTER","act":"newconn","key":"k","seq":3}"#,
        r#"line {"cmd":"NODE_CLUSTER","act":"disconnect","seq":4}"#,
    ])
    .await;
}

#[tokio::test]
async fn internal_messages_of_an_unknown_kind_are_ignored_whatever_their_fields() {
    Scene::is_ignored(&[r#"line {"cmd":"NODE_SOMETHING","port":"http","ack":"x","seq":-1,"fd":"text","type":7}"#]).await;
}

#[tokio::test]
async fn names_of_prototypes_are_names_like_others() {
    Scene::is_ignored(&[
        r#"line {"cmd":"NODE_CLUSTER","act":"__proto__","seq":1}"#,
        r#"line {"cmd":"NODE_CLUSTER","act":"constructor","key":"toString","seq":2}"#,
        r#"line {"cmd":"NODE_CLUSTER","act":"close","key":"__proto__","seq":3}"#,
        r#"line {"cmd":"NODE_CLUSTER","act":"close","key":"hasOwnProperty","seq":4}"#,
        r#"line {"__proto__":{"cmd":"NODE_CLUSTER"},"cmd":"NODE_CLUSTER","act":"close","key":"no such key","seq":5}"#,
    ])
    .await;
}

#[tokio::test]
async fn closing_what_was_never_opened_does_not_close_it_for_others() {
    let mut scene = Scene::new().await;
    // The honest worker's key, in the words of the protocol.
    let key = r#"line {"cmd":"NODE_CLUSTER","act":"close","key":"127.0.0.1:0:4:undefined:0","seq":1}"#;
    let worker = scene.raw(&[ONLINE, key, "line 1"]).await;
    scene.troop.message(&worker).await;
    scene.honest_worker_serves().await;
}

#[tokio::test]
async fn saying_that_one_listens_does_not_bring_connections() {
    let mut scene = Scene::new().await;
    let lie = format!(
        r#"line {{"cmd":"NODE_CLUSTER","act":"listening","address":"127.0.0.1","port":{},"addressType":4,"seq":1}}"#,
        scene.port
    );
    let nonsense =
        r#"line {"cmd":"NODE_CLUSTER","act":"listening","address":"\u0000","port":-77,"addressType":"udp6","fd":-9,"seq":2}"#;
    let worker = scene.raw(&[ONLINE, &lie, nonsense, "line 1"]).await;
    scene.troop.message(&worker).await;
    scene.honest_worker_serves().await;
    assert_eq!(worker.stats().await.handed, 0);
}

// ---- descriptors ----

#[tokio::test]
async fn a_message_whose_descriptor_is_missing_is_reported() {
    let line = r#"line {"cmd":"NODE_HANDLE","type":"net.Socket","msg":{"a":1}}"#;
    Scene::is_reported_for(&[line], |v| *v == Violation::MissingHandle).await;
}

#[tokio::test]
async fn a_wrapped_message_without_type_or_body_ends_its_worker() {
    Scene::is_killed_for(&[r#"line {"cmd":"NODE_HANDLE"}"#], |v| matches!(v, Violation::Malformed(_))).await;
    Scene::is_killed_for(&[r#"line {"cmd":"NODE_HANDLE","type":"net.Socket"}"#], |v| matches!(v, Violation::Malformed(_))).await;
}

#[tokio::test]
async fn a_descriptor_that_is_a_file_is_reported_and_closed() {
    let mut scene = Scene::new().await;
    let worker = scene.raw(&[ONLINE, "file", "line 2"]).await;
    assert_eq!(scene.offence(&worker).await, (Violation::BadHandle, false));
    assert_eq!(scene.troop.message(&worker).await, serde_json::json!({"a": 1}));
    assert_eq!(scene.troop.message(&worker).await, 2);
    scene.honest_worker_serves().await;
}

#[tokio::test]
async fn descriptors_that_nobody_asked_for_are_closed() {
    if !alone("descriptors_that_nobody_asked_for_are_closed") {
        return;
    }
    let mut scene = Scene::new().await;
    // The pair's copies are counted by the kernel: once all are closed here, only the worker's are left.
    let worker = scene.raw(&[ONLINE, "sleep 200", "surplus", "line 2"]).await;
    let online = worker.id();
    scene.troop.until("online", |e| matches!(e, Event::Online(w) if w.id() == online).then_some(())).await;
    let passed = |fd: &str| std::fs::read_link(format!("/proc/{}/fd/{fd}", worker.pid())).ok();
    // 3 is the channel; the pair is among the next ones.
    let pair: Vec<_> =
        (4..8).filter_map(|fd| passed(&fd.to_string())).filter(|l| l.to_string_lossy().starts_with("socket:")).collect();
    let (violation, cut_off) = scene.offence(&worker).await;
    assert!(matches!(violation, Violation::SurplusHandles(n) if n > 0) && !cut_off, "{violation:?}");
    let two = |e: &Event| matches!(e, Event::Message(w, m) if w.id() == online && m.as_json() == "2").then_some(());
    scene.troop.until("the message behind them", two).await;
    assert!(!pair.is_empty());
    let own: Vec<_> =
        std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|e| std::fs::read_link(e.ok()?.path()).ok()).collect();
    assert!(pair.iter().all(|socket| !own.contains(socket)), "none of {pair:?} is left open here");
    scene.honest_worker_serves().await;
}

#[tokio::test]
async fn a_surplus_descriptor_is_not_taken_for_that_of_the_next_message() {
    let mut scene = Scene::new().await;
    let worker =
        scene.raw(&[ONLINE, "socket 1", "sleep 200", r#"line {"cmd":"NODE_HANDLE","type":"net.Socket","msg":"mine?"}"#]).await;
    let first = scene.offence(&worker).await;
    assert_eq!(first, (Violation::SurplusHandles(1), false));
    let id = worker.id();
    assert_eq!(scene.troop.message(&worker).await, 1);
    worker.kill(9).await.unwrap();
    let mine = scene.troop.until("its end", |e| match e {
        Event::Message(w, m) if w.id() == id => Some(Some(m.has_handle())),
        Event::Exit(w, _) if w.id() == id => Some(None),
        _ => None,
    });
    assert_eq!(mine.await, None, "the wrapped message has no descriptor, so it is no message");
}

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
    let flooder = scene.raw(&[ONLINE, r#"repeat 100000000 {"some":"message","of":"a kind"}"#]).await;
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
            let flooder = scene.raw(&[ONLINE, r#"repeat 100000000 {"some":"message","of":"a kind"}"#]).await;
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
async fn a_worker_that_never_reads_fills_its_queue_and_nothing_else() {
    if !alone("a_worker_that_never_reads_fills_its_queue_and_nothing_else") {
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
async fn sockets_for_a_worker_that_never_reads_wait_with_their_senders_and_come_back_when_it_dies() {
    const SENT: usize = 1500;
    if !alone("sockets_for_a_worker_that_never_reads_wait_with_their_senders_and_come_back_when_it_dies") {
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
        let sent = sent.unwrap_or_else(|_| panic!("sender {n} still waits for a worker that is gone")).unwrap();
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
async fn listening_on_a_shared_socket_fails_while_the_primary_is_out_of_descriptors_and_works_afterwards() {
    if !alone("listening_on_a_shared_socket_fails_while_the_primary_is_out_of_descriptors_and_works_afterwards") {
        return;
    }
    let builder = Cluster::builder().policy(Policy::Shared).setup(fixture(["tries", "127.0.0.1:0"]));
    let mut troop = Troop::start(builder);
    let workers = [troop.fork().await, troop.fork().await];
    for worker in &workers {
        let id = worker.id();
        troop.until("online", |e| matches!(e, Event::Online(w) if w.id() == id).then_some(())).await;
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
    scene.troop.until("its end", |e| matches!(e, Event::Exit(w, _) if w.id() == id).then_some(())).await;
    assert!(largest < 64 << 20, "the primary keeps {} MiB of answers for a worker that does not read them", largest >> 20);
    scene.honest_worker_serves().await;
}

#[tokio::test]
async fn a_worker_that_says_goodbye_for_ever_and_never_reads_the_answer_does_not_fill_the_memory() {
    if !alone("a_worker_that_says_goodbye_for_ever_and_never_reads_the_answer_does_not_fill_the_memory") {
        return;
    }
    answers_stay_bounded(r#"repeat 5000000 {"cmd":"NODE_CLUSTER","act":"exitedAfterDisconnect","seq":1}"#).await;
}

#[tokio::test]
async fn a_worker_that_counts_sockets_for_ever_and_never_reads_the_answer_does_not_fill_the_memory() {
    if !alone("a_worker_that_counts_sockets_for_ever_and_never_reads_the_answer_does_not_fill_the_memory") {
        return;
    }
    let key = "k".repeat(60_000);
    answers_stay_bounded(&format!(r#"repeat 10000 {{"cmd":"NODE_SOCKET_GET_COUNT","key":"{key}"}}"#)).await;
}

#[tokio::test]
async fn a_worker_that_asks_nonsense_for_ever_and_never_reads_the_answer_does_not_fill_the_memory() {
    if !alone("a_worker_that_asks_nonsense_for_ever_and_never_reads_the_answer_does_not_fill_the_memory") {
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
    scene.troop.until("its disconnect", |e| matches!(e, Event::Disconnect(w) if w.id() == id).then_some(())).await;
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
    scene.troop.until("its disconnect", |e| matches!(e, Event::Disconnect(w) if w.id() == id).then_some(())).await;
    worker.kill(9).await.unwrap();
    assert_eq!(scene.troop.exit(&worker).await, ExitHow::Signal(9));
    scene.honest_worker_serves().await;
}

#[tokio::test]
async fn the_last_words_of_a_worker_are_heard_however_much_waits_to_be_written() {
    let mut scene = Scene::new().await;
    let worker = scene.raw(&[ONLINE, "sleep 300", "line \"last words\"", "exit 0"]).await;
    far_too_much(&worker);
    assert_eq!(scene.troop.exit(&worker).await, ExitHow::Code(0));
    assert_eq!(scene.troop.message(&worker).await, "last words");
}

#[tokio::test]
async fn a_worker_that_was_not_listened_to_is_listened_to_again_when_it_reads() {
    let mut scene = Scene::new().await;
    // Reads what the primary had for it after a while, and says something then.
    let worker = scene.raw(&[ONLINE, "sleep 300", "answer 1", "line \"thank you\""]).await;
    far_too_much(&worker);
    assert_eq!(scene.troop.message(&worker).await, 1);
    scene.troop.message(&worker).await;
    assert_eq!(scene.troop.message(&worker).await, "thank you");
}
