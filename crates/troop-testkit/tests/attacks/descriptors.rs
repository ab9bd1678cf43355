//! Descriptors of the primary's that are asked for by their numbers.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use rustix::net;
use serde_json::{Value, json};
use troop::activation::InheritedSocket;
use troop::event::{Consequence, Violation};
use troop::{Cluster, Event, Setup};
use troop_testkit::node_program;

use super::scene::{ONLINE, Scene, alone};
use super::support::troop;

/// All descriptors of this process, which is the primary.
fn descriptors() -> Vec<i32> {
    let all = std::fs::read_dir("/proc/self/fd").unwrap();
    all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

#[tokio::test]
async fn workers_cannot_listen_on_descriptors_that_were_not_offered() {
    if !alone("descriptors::workers_cannot_listen_on_descriptors_that_were_not_offered") {
        return;
    }
    let mut scene = Scene::new().await;
    // Other descriptors of the program, listeners among them.
    let directory = tempfile::tempdir().unwrap();
    let _own = (
        TcpListener::bind("127.0.0.1:0").unwrap(),
        UnixListener::bind(directory.path().join("control")).unwrap(),
    );
    for fd in descriptors() {
        for address_type in ["null", "4", "-1", "\"udp4\""] {
            let errno = scene
                .errno_of_query(&format!(
                    r#""fd":{fd},"port":0,"address":"127.0.0.1","addressType":{address_type}"#
                ))
                .await;
            assert_eq!(errno, -22, "descriptor {fd} as {address_type}");
        }
    }
    scene.honest_worker_serves().await;
}

#[tokio::test]
async fn an_offered_descriptor_is_served_but_not_another_file_under_its_number() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (fd, port) = (listener.as_raw_fd(), listener.local_addr().unwrap().port());
    let mut scene =
        Scene::with(Cluster::builder().inherited([InheritedSocket::of(&listener).unwrap()])).await;
    assert_eq!(scene.errno_of_query(&format!(r#""fd":{fd},"addressType":null"#)).await, 0);
    assert_eq!(
        scene.errno_of_query(&format!(r#""fd":{fd},"addressType":"udp4""#)).await,
        -22,
        "it is not UDP"
    );
    // The number is used for something else; what was offered is meant all the same.
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    rustix::io::dup2(&other, &mut unsafe_owned(&listener)).unwrap();
    let worker = scene
        .raw(&[ONLINE, &format!(r#"answer {{"cmd":"NODE_CLUSTER","act":"queryServer","seq":1,"fd":{fd},"addressType":null}}"#)])
        .await;
    assert_eq!(scene.troop.message(&worker).await["errno"].as_i64().unwrap_or(0), 0);
    let _client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    let deadline = tokio::time::Instant::now() + troop_testkit::TEST_TIMEOUT;
    while worker.stats().await.handed == 0 {
        assert!(tokio::time::Instant::now() < deadline, "the client is handed over");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    scene.honest_worker_serves().await;
}

/// The same number, to be replaced by something else.
fn unsafe_owned(listener: &TcpListener) -> std::mem::ManuallyDrop<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd as _;
    #[expect(unsafe_code, reason = "a test of what happens when a number gets another meaning")]
    // SAFETY: the listener outlives this, which is never dropped.
    std::mem::ManuallyDrop::new(unsafe { std::os::fd::OwnedFd::from_raw_fd(listener.as_raw_fd()) })
}

#[test]
fn standard_streams_connections_and_pipes_cannot_even_be_offered() {
    let (a, _b) = std::os::unix::net::UnixStream::pair().unwrap();
    let (reader, _writer) = std::io::pipe().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let connection = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let unbound = rustix::net::socket(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::STREAM,
        None,
    )
    .unwrap();
    for fd in [0, 1, 2, -1, 99_999, a.as_raw_fd(), reader.as_raw_fd()] {
        assert!(InheritedSocket::at(fd).is_err(), "{fd}");
    }
    for fd in [a.as_fd(), reader.as_fd(), connection.as_fd(), unbound.as_fd()] {
        assert!(InheritedSocket::of(fd).is_err(), "{fd:?}");
    }
    assert!(InheritedSocket::of(std::io::stdin()).is_err());
    assert!(InheritedSocket::of(&listener).is_ok());
}

#[tokio::test]
async fn may_listen_cannot_be_circumvented_by_a_descriptor() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (fd, port) = (listener.as_raw_fd(), listener.local_addr().unwrap().port());
    let offered = || InheritedSocket::of(&listener).unwrap();
    // (the entry listed beside the honest worker's, the answer for each way of asking)
    for (listed, expected) in [
        ("8", -13),
        (&*port.to_string(), 0),
        (&*format!("fd:{fd}"), 0),
        (&*format!("fd:{}", fd + 1), -13),
    ] {
        let builder = Cluster::builder()
            .may_listen("0".parse().unwrap())
            .may_listen(listed.parse().unwrap())
            .inherited([offered()]);
        let mut scene = Scene::with(builder).await;
        for fields in [
            format!(r#""fd":{fd},"addressType":null"#),
            // As if it were port 0, which is listed.
            format!(r#""fd":{fd},"addressType":4,"port":0"#),
            format!(r#""fd":{fd},"addressType":-1,"port":0,"address":"/run/s""#),
        ] {
            let errno = scene.errno_of_query(&fields).await;
            assert_eq!(errno, expected, "{listed} and {fields}");
        }
        scene.honest_worker_serves().await;
    }
}

/// A Unix socket whose path fills its address, so that no NUL fits behind it.
fn of_the_longest_path(directory: &std::path::Path, letter: &str) -> (OwnedFd, std::path::PathBuf) {
    let path = directory.join(letter.repeat(108 - 1 - directory.as_os_str().len()));
    let socket = net::socket(net::AddressFamily::UNIX, net::SocketType::STREAM, None).unwrap();
    net::bind(&socket, &net::SocketAddrUnix::new(&path).unwrap()).unwrap();
    (socket, path)
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_a_listener_nor_a_client_at_the_longest_path_ends_the_primary() {
    let directory = tempfile::tempdir().unwrap();
    let (listener, path) = of_the_longest_path(directory.path(), "s");
    net::listen(&listener, 8).unwrap();
    let fd = listener.as_raw_fd();
    let offered = InheritedSocket::of(&listener).unwrap();
    assert_eq!(offered.address(), path.display().to_string());
    // With a policy that identifies clients.
    let builder = Cluster::builder().scheduling("sticky".parse().unwrap()).inherited([offered]);
    let mut scene = Scene::with(builder).await;
    let setup = Setup::new().program("node").script(node_program("run.js"));
    scene
        .troop
        .cluster
        .setup(setup.args([format!(
            "require('net').createServer((s) => s.end('served')).listen({{ fd: {fd} }})"
        )]))
        .unwrap();
    let worker = scene.troop.fork().await;
    let listens = |e: &Event| {
        matches!(e, Event::Listening { worker: w, .. } if w.id() == worker.id()).then_some(())
    };
    scene.troop.until("listening", listens).await;
    let (client, _) = of_the_longest_path(directory.path(), "c");
    net::connect(&client, &net::SocketAddrUnix::new(&path).unwrap()).unwrap();
    let served = tokio::task::spawn_blocking(move || {
        let mut client = std::os::unix::net::UnixStream::from(client);
        client.set_read_timeout(Some(troop_testkit::TEST_TIMEOUT)).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).map(|_| answer)
    });
    assert_eq!(served.await.unwrap().unwrap(), "served");
    scene.honest_worker_serves().await;
}

#[tokio::test]
async fn every_other_spelling_of_a_listener_is_refused_or_means_what_is_listed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s").display().to_string();
    let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (listed, port, ipv4) = (free(), free(), free());
    let builder = Cluster::builder()
        .may_listen("127.0.0.1:0".parse().unwrap())
        .may_listen(path.parse().unwrap());
    let builder = builder.may_listen(format!("127.0.0.1:{listed}").parse().unwrap());
    let builder = builder.may_listen(format!("0.0.0.0:{ipv4}").parse().unwrap());
    let mut scene = Scene::with(builder).await;
    let below = directory.path().display();
    for (fields, expected) in [
        (format!(r#""addressType":6,"port":{listed},"address":"::ffff:127.0.0.1""#), 0),
        (format!(r#""addressType":6,"port":{listed},"address":"::ffff:127.0.0.2""#), -13),
        (format!(r#""addressType":4,"port":{port},"address":"127.0.0.1""#), -13),
        (
            format!(
                r#""addressType":4,"port":{},"address":"127.0.0.1""#,
                u32::from(listed) + 65_536
            ),
            -13,
        ),
        (format!(r#""addressType":4,"port":{listed},"address":"localhost""#), -13),
        (format!(r#""addressType":4,"port":{listed},"address":"127.1""#), -13),
        (format!(r#""addressType":4,"port":{listed}"#), -13),
        // No address is that of both families.
        (format!(r#""addressType":4,"port":{ipv4},"address":null"#), -13),
        (format!(r#""addressType":6,"port":{ipv4},"address":"::""#), -13),
        (format!(r#""addressType":4,"port":{ipv4},"address":"0.0.0.0""#), 0),
        (format!(r#""addressType":-1,"port":-1,"address":"/{below}//./s""#), 0),
        (format!(r#""addressType":-1,"port":-1,"address":"{below}/x/../s""#), -13),
        (format!(r#""addressType":-1,"port":-1,"address":"{below}/t""#), -13),
        (format!(r#""addressType":-1,"port":-1,"address":"{path}\u0000""#), -13),
        (format!(r#""addressType":-1,"port":-1,"address":"{path}\u0000name""#), -13),
        (r#""addressType":-1,"port":-1,"address":"\u0000name""#.to_owned(), -13),
        (format!(r#""addressType":"udp4","port":{listed},"address":"127.0.0.1""#), -13),
        (r#""addressType":"udp4","address":"127.0.0.1""#.to_owned(), -13),
    ] {
        assert_eq!(scene.errno_of_query(&fields).await, expected, "{fields}");
    }
    let forbidden = |e: &Event| {
        matches!(
            e,
            Event::Misbehaved {
                violation: Violation::Forbidden(_),
                consequence: Consequence::Reported,
                ..
            }
        )
        .then_some(())
    };
    scene.troop.until("a report", forbidden).await;
    scene.honest_worker_serves().await;
}

/// What a Node worker under `troop run` gets for each number.
fn tried(arguments: &[&str], numbers: &str, parent: &str) -> Value {
    let home = tempfile::tempdir().unwrap();
    let script = format!(
        "
        const numbers = {numbers};
        const told = {{}};
        (async () => {{
            for (const fd of numbers) {{
                told[fd] = await new Promise((done) => {{
                    const server = require('net').createServer((s) => s.end('served'));
                    server.on('error', (e) => done(e.code)).listen({{ fd }}, () => done('listens'));
                }});
            }}
            console.log('TOLD ' + JSON.stringify(told));
            setInterval(() => {{}}, 1000);
        }})();"
    );
    std::fs::write(home.path().join("app.js"), script).unwrap();
    std::fs::write(home.path().join("parent.js"), parent).unwrap();
    let command = troop(home.path(), arguments);
    // By way of a parent, which may leave it a socket.
    let mut node = std::process::Command::new("node");
    node.arg("parent.js")
        .arg(command.get_program())
        .args(command.get_args())
        .current_dir(home.path());
    node.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut child =
        node.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let told = lines
        .map_while(Result::ok)
        .find_map(|line| serde_json::from_str(line.split_once("TOLD ")?.1).ok());
    // Its end is that of `troop`.
    drop(child.stdin.take());
    let output = child.wait_with_output().unwrap();
    told.unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&output.stderr)))
}

/// Starts `troop` with a listening socket as descriptor 3, and ends it when standard input ends.
const PARENT: &str = "
    const server = require('net').createServer().listen(0, '127.0.0.1', () => {
        const [program, ...args] = process.argv.slice(2);
        const child = require('child_process').spawn(program, args, { stdio: ['ignore', 'inherit', 'inherit', server._handle.fd] });
        child.on('exit', (code) => process.exit(code));
        process.stdin.resume().on('end', () => child.kill());
    });";

#[test]
fn workers_under_the_tool_get_the_descriptors_that_the_user_has_named_and_no_others() {
    // 3 to 63: whatever troop has open, with its control listener.
    let all = "Array.from({ length: 61 }, (_, n) => n + 3)";
    for policy in ["round-robin", "shared"] {
        let told = tried(&["run", "-w", "1", "--policy", policy, "app.js"], all, PARENT);
        assert_eq!(told.as_object().unwrap().len(), 61);
        assert!(told.as_object().unwrap().values().all(|told| *told == json!("EINVAL")), "{told}");
        let told = tried(
            &["run", "-w", "1", "--policy", policy, "--offer-fd", "3", "app.js"],
            all,
            PARENT,
        );
        let had: Vec<_> = told
            .as_object()
            .unwrap()
            .iter()
            .filter(|(_, told)| **told == json!("listens"))
            .collect();
        assert_eq!(had.len(), 1, "{told}");
        assert_eq!(told["3"], json!("listens"), "{told}");
    }
}
