//! Whatever a worker writes to its channel, the primary goes on, the other workers serve, and the
//! offender is named.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod scene;

use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::time::Duration;
use troop::event::{Consequence, ExitHow, Violation};
use troop::{Event, Setup};
use troop_testkit::{Troop, ask, open_descriptors};

use scene::*;

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
    let deep = format!(
        r#"socket {{"cmd":"NODE_HANDLE","type":"net.Native","msg":{}{}}}"#,
        "[".repeat(1000),
        "]".repeat(1000)
    );
    Scene::is_killed_for(&[&deep], |v| matches!(v, Violation::TooDeep(_))).await;
}

#[tokio::test]
async fn a_truncated_line_is_never_taken_for_a_message() {
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
        tokio::time::timeout(Duration::from_secs(30), Scene::is_killed_for(&[&line], expected))
            .await
            .expect(fields);
    }
}

#[tokio::test]
async fn an_invalid_query_is_answered_with_an_error() {
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
async fn a_query_without_fields_is_answered_with_an_error() {
    let mut scene = Scene::new().await;
    let worker =
        scene.raw(&[ONLINE, r#"answer {"cmd":"NODE_CLUSTER","act":"queryServer","seq":1}"#]).await;
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
            let errno =
                scene.errno_of_query(&format!(r#""fd":{fd},"addressType":{address_type}"#)).await;
            assert!(errno < 0, "descriptor {fd} as {address_type}: {errno}");
        }
    }
    // And every other one, but listeners.
    let all: Vec<i32> = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for fd in all {
        let link = std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap_or_default();
        if link.to_string_lossy().starts_with("socket:") {
            continue;
        }
        assert!(
            scene.errno_of_query(&format!(r#""fd":{fd},"addressType":null"#)).await < 0,
            "{fd}: {link:?}"
        );
    }
    scene.honest_worker_serves().await;
}

#[tokio::test]
async fn the_channel_of_another_worker_cannot_be_asked_for() {
    if !alone("the_channel_of_another_worker_cannot_be_asked_for") {
        return;
    }
    let mut scene = Scene::new().await;
    let sockets: Vec<i32> = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    let mut asked = 0;
    for fd in sockets {
        let Ok(link) = std::fs::read_link(format!("/proc/self/fd/{fd}")) else { continue };
        let link = link.to_string_lossy().into_owned();
        let Some(inode) = link.strip_prefix("socket:[").and_then(|l| l.strip_suffix(']')) else {
            continue;
        };
        let unix = std::fs::read_to_string("/proc/net/unix").unwrap();
        // Connected stream sockets have state 03.
        let connected = unix.lines().any(|l| {
            let fields: Vec<&str> = l.split_whitespace().collect();
            fields.get(6) == Some(&inode) && fields.get(5) == Some(&"03")
        });
        if connected {
            asked += 1;
            assert!(
                scene.errno_of_query(&format!(r#""fd":{fd},"addressType":null"#)).await < 0,
                "{fd}: {link}"
            );
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
    let mut scene = Scene::in_turns().await;
    let worker = scene.raw(&steps).await;
    let (violation, cut_off) = scene.offence(&worker).await;
    assert!(matches!(violation, Violation::TooManyListeners(_)) && cut_off, "{violation:?}");
    scene.troop.exit(&worker).await;
    scene.honest_worker_serves().await;
    // What it opened is of no use to anybody else.
    let after = open_descriptors();
    assert!(
        after < before + 200,
        "{before} descriptors before, {after} after its listeners should be closed"
    );
}

#[tokio::test]
async fn a_unix_path_with_a_nul_byte_leaves_no_file_behind() {
    let directory = tempfile::tempdir().unwrap();
    let mut scene = Scene::new().await;
    let path = directory.path().join("evil").display().to_string();
    let errno = scene
        .errno_of_query(&format!(r#""port":-1,"addressType":-1,"address":"{path}\u0000name""#))
        .await;
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
    // In a separate runtime, because a primary that hangs would otherwise hang this test.
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
async fn an_unexpected_acknowledgement_is_reported() {
    Scene::is_reported_for(&[r#"line {"cmd":"NODE_HANDLE_ACK"}"#], |v| *v == Violation::UnaskedAck)
        .await;
    Scene::is_reported_for(&[r#"line {"cmd":"NODE_HANDLE_NACK"}"#], |v| {
        *v == Violation::UnaskedAck
    })
    .await;
    Scene::is_reported_for(
        &[r#"line {"cmd":"NODE_CLUSTER","ack":99,"accepted":true,"seq":1}"#],
        |v| *v == Violation::UnaskedAck,
    )
    .await;
    Scene::is_reported_for(
        &[r#"line {"cmd":"NODE_CLUSTER","ack":99,"accepted":false,"seq":1}"#],
        |v| *v == Violation::UnaskedAck,
    )
    .await;
    Scene::is_reported_for(
        &[r#"line {"cmd":"NODE_CLUSTER","ack":-99,"accepted":true,"seq":1}"#],
        |v| *v == Violation::UnaskedAck,
    )
    .await;
}

#[tokio::test]
async fn taken_connections_that_were_never_given_are_reported() {
    for lists in [r#""taken":[1,2,3]"#, r#""taken":[],"returned":[18446744073709551615]"#] {
        let line = format!(r#"line {{"cmd":"NODE_TROOP","act":"taken",{lists}}}"#);
        Scene::is_reported_for(&[&line], |v| *v == Violation::UnaskedAck).await;
    }
    Scene::is_killed_for(&[r#"line {"cmd":"NODE_TROOP","act":"taken","taken":[-1]}"#], |v| {
        matches!(v, Violation::Malformed(_))
    })
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
    troop
        .until("its offence", |e| {
            matches!(e, Event::Misbehaved { worker: w, .. } if w.id() == id).then_some(())
        })
        .await;
    troop.cluster.setup(fixture(["line", "127.0.0.1:0"])).unwrap();
    let honest = troop.fork().await;
    troop.listening(&honest).await;
    idle.kill(9).await.unwrap();
    assert!(
        client.await.unwrap().unwrap().starts_with("3 "),
        "the connection is served by the honest worker"
    );
}

#[tokio::test]
async fn a_hundred_minor_violations_end_a_worker() {
    let mut scene = Scene::new().await;
    let worker = scene.raw(&[ONLINE, r#"repeat 1000 {"cmd":"NODE_HANDLE_ACK"}"#]).await;
    let id = worker.id();
    let killed = |e: &Event| {
        matches!(e, Event::Misbehaved { worker: w, consequence: Consequence::Killed, .. } if w.id() == id).then_some(())
    };
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
    Scene::is_ignored(&[
        r#"line {"cmd":"NODE_SOMETHING","port":"http","ack":"x","seq":-1,"fd":"text","type":7}"#,
    ])
    .await;
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
    let key =
        r#"line {"cmd":"NODE_CLUSTER","act":"close","key":"127.0.0.1:0:4:undefined:0","seq":1}"#;
    let worker = scene.raw(&[ONLINE, key, "line 1"]).await;
    scene.troop.message(&worker).await;
    scene.honest_worker_serves().await;
}

#[tokio::test]
async fn a_false_listening_message_brings_no_connections() {
    let mut scene = Scene::new().await;
    let lie = format!(
        r#"line {{"cmd":"NODE_CLUSTER","act":"listening","address":"127.0.0.1","port":{},"addressType":4,"seq":1}}"#,
        scene.port
    );
    let nonsense = r#"line {"cmd":"NODE_CLUSTER","act":"listening","address":"\u0000","port":-77,"addressType":"udp6","fd":-9,"seq":2}"#;
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
    Scene::is_killed_for(&[r#"line {"cmd":"NODE_HANDLE"}"#], |v| {
        matches!(v, Violation::Malformed(_))
    })
    .await;
    Scene::is_killed_for(&[r#"line {"cmd":"NODE_HANDLE","type":"net.Socket"}"#], |v| {
        matches!(v, Violation::Malformed(_))
    })
    .await;
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
async fn unexpected_descriptors_are_closed() {
    if !alone("unexpected_descriptors_are_closed") {
        return;
    }
    let mut scene = Scene::new().await;
    // The pair's copies are counted by the kernel: once all are closed here, only the worker's are
    // left.
    let worker = scene.raw(&[ONLINE, "sleep 200", "surplus", "line 2"]).await;
    let online = worker.id();
    scene
        .troop
        .until("online", |e| {
            matches!(e, Event::Online { worker: w, .. } if w.id() == online).then_some(())
        })
        .await;
    let passed = |fd: &str| std::fs::read_link(format!("/proc/{}/fd/{fd}", worker.pid())).ok();
    // 3 is the channel; the pair is among the next ones.
    let pair: Vec<_> = (4..8)
        .filter_map(|fd| passed(&fd.to_string()))
        .filter(|l| l.to_string_lossy().starts_with("socket:"))
        .collect();
    let (violation, cut_off) = scene.offence(&worker).await;
    assert!(
        matches!(violation, Violation::SurplusHandles(n) if n > 0) && !cut_off,
        "{violation:?}"
    );
    let two = |e: &Event| {
        matches!(e, Event::Message { worker: w, message: m, .. } if w.id() == online && m.as_json() == "2").then_some(())
    };
    scene.troop.until("the message behind them", two).await;
    assert!(!pair.is_empty());
    let own: Vec<_> = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|e| std::fs::read_link(e.ok()?.path()).ok())
        .collect();
    assert!(pair.iter().all(|socket| !own.contains(socket)), "none of {pair:?} is left open here");
    scene.honest_worker_serves().await;
}

#[tokio::test]
async fn a_surplus_descriptor_is_not_taken_for_that_of_the_next_message() {
    let mut scene = Scene::new().await;
    let worker = scene
        .raw(&[
            ONLINE,
            "socket 1",
            "sleep 200",
            r#"line {"cmd":"NODE_HANDLE","type":"net.Socket","msg":"mine?"}"#,
        ])
        .await;
    let first = scene.offence(&worker).await;
    assert_eq!(first, (Violation::SurplusHandles(1), false));
    let id = worker.id();
    assert_eq!(scene.troop.message(&worker).await, 1);
    worker.kill(9).await.unwrap();
    let mine = scene.troop.until("its end", |e| match e {
        Event::Message { worker: w, message: m, .. } if w.id() == id => Some(Some(m.has_handle())),
        Event::Exit { worker: w, .. } if w.id() == id => Some(None),
        _ => None,
    });
    assert_eq!(mine.await, None, "the wrapped message has no descriptor, so it is no message");
}
