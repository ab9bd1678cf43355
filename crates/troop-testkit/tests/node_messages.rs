//! Messages and open sockets between our primary and unchanged Node workers.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use serde_json::{Value, json};
use troop::{Error, Event, Handle, Request, Setup, WorkerHandle};
use troop_testkit::{TEST_TIMEOUT, Troop, node_program, open_descriptors, talk, wait_until};

/// A worker that runs this text and has said that it is ready for messages.
async fn ready(text: &str) -> (Troop, WorkerHandle) {
    let text = format!("{text}; tell('ready')");
    let mut troop = Troop::with(Setup::new().script(node_program("run.js")).args([text]));
    let worker = troop.fork().await;
    assert_eq!(troop.message(&worker).await, "ready");
    (troop, worker)
}

const MIRROR: &str = "process.on('message', (m) => tell({ got: m, type: typeof m }))";

async fn mirrored(troop: &mut Troop, worker: &WorkerHandle, value: &Value) {
    worker.send(value).await.unwrap();
    let answer = troop.message(worker).await;
    assert_eq!(&answer["got"], value);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_json_value_goes_both_ways() {
    let (mut troop, worker) = ready(MIRROR).await;
    for value in [
        json!(null),
        json!(true),
        json!(42),
        json!(-0.5),
        json!(9_007_199_254_740_991_i64),
        json!(""),
        json!("text"),
        json!([1, "two", [3], {"four": null}]),
        json!({"a": {"b": [true, false, null]}}),
        json!({"cmd": "NODE_", "act": "disconnect"}),
        json!({"cmd": "other"}),
    ] {
        mirrored(&mut troop, &worker, &value).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bare_values_of_a_worker_arrive_as_they_are() {
    let text = "for (const m of [null, true, 42, 'text', [], {}]) tell(m)";
    let mut troop = Troop::with(Setup::new().script(node_program("run.js")).args([text]));
    let worker = troop.fork().await;
    for value in [json!(null), json!(true), json!(42), json!("text"), json!([]), json!({})] {
        assert_eq!(troop.message(&worker).await, value);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn text_of_every_script_goes_both_ways() {
    let (mut troop, worker) = ready(MIRROR).await;
    for text in [
        "äöü",
        "русский",
        "日本語",
        "🦀🐘",
        "\u{2028}\u{2029}",
        "\0\u{1}\n\r\t\"\\",
        "\u{feff}x",
        "\u{10ffff}",
    ] {
        mirrored(&mut troop, &worker, &json!(text)).await;
        mirrored(&mut troop, &worker, &json!({ text: text })).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_megabyte_goes_both_ways() {
    let (mut troop, worker) = ready(MIRROR).await;
    mirrored(&mut troop, &worker, &json!("0123456789abcdef".repeat(1 << 16))).await;
    mirrored(&mut troop, &worker, &json!("日本語の文字".repeat(1 << 15))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_keep_their_order() {
    let (mut troop, worker) = ready("process.on('message', (m) => tell(m))").await;
    for n in 0..2000 {
        worker.send(&n).await.unwrap();
    }
    for n in 0..2000 {
        assert_eq!(troop.message(&worker).await, n);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_message_before_an_exit_arrives() {
    let text = "process.send('farewell', () => process.exit(0))";
    let mut troop = Troop::with(Setup::new().script(node_program("run.js")).args([text]));
    let worker = troop.fork().await;
    assert_eq!(troop.message(&worker).await, "farewell");
    troop.exit(&worker).await;
}

// ---- questions ----

const ANSWERS: &str = "
    process.on('message', ({ troop, id, body }) => {
      if (body === 'refuse') tell({ troop: 'reply', id, error: 'I will not' });
      else if (body !== 'silence') tell({ troop: 'reply', id, body: { 'you asked': body } });
    })";

#[tokio::test(flavor = "multi_thread")]
async fn a_node_worker_answers_questions_by_the_convention() {
    let (_troop, worker) = ready(ANSWERS).await;
    let answer: Value = worker.request(&json!({"deep": [1]}), TEST_TIMEOUT).await.unwrap();
    assert_eq!(answer, json!({"you asked": {"deep": [1]}}));
    let refused = worker.request::<_, Value>("refuse", TEST_TIMEOUT).await;
    assert!(
        matches!(&refused, Err(Error::Refused(reason)) if reason == "I will not"),
        "{refused:?}"
    );
    let silence = worker.request::<_, Value>("silence", Duration::from_millis(100)).await;
    assert!(matches!(silence, Err(Error::TimedOut { .. })), "{silence:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_questions_at_once_get_their_own_answers() {
    let (_troop, worker) = ready(ANSWERS).await;
    let asked = (0..50).map(|n| {
        let worker = worker.clone();
        tokio::spawn(
            async move { (n, worker.request::<_, Value>(&n, TEST_TIMEOUT).await.unwrap()) },
        )
    });
    for question in asked.collect::<Vec<_>>() {
        let (n, answer) = question.await.unwrap();
        assert_eq!(answer, json!({"you asked": n}));
    }
}

async fn request(troop: &mut Troop) -> Request {
    let what = |event: &Event| match event {
        Event::Request { request, .. } => Some(request.clone()),
        _ => None,
    };
    troop.until("request", what).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_worker_asks_questions_by_the_convention() {
    let ask = "tell({ troop: 'request', id: 7, body: 'what now?' }); tell({ troop: 'request', id: 8, body: null })";
    let (mut troop, worker) =
        ready(&format!("process.on('message', (m) => tell({{ got: m }})); {ask}")).await;
    let first = request(&mut troop).await;
    assert_eq!(first.decode::<String>().unwrap(), "what now?");
    first.reply(&json!(["this"])).unwrap();
    assert_eq!(
        troop.message(&worker).await,
        json!({"got": {"troop": "reply", "id": 7, "body": ["this"]}})
    );
    let second = request(&mut troop).await;
    second.refuse("not you");
    assert_eq!(
        troop.message(&worker).await,
        json!({"got": {"troop": "reply", "id": 8, "error": "not you"}})
    );
}

// ---- sockets to the worker ----

fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    ours.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    (ours, listener.accept().unwrap().0)
}

fn whole(mut stream: impl Read) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// Tells what it is, and says something into it.
const STREAM: &str = "process.on('message', (how, s) => {
    tell({ how, socket: s instanceof net.Socket, from: s.remoteAddress ?? null });
    s.end('from the worker');
  })";

#[tokio::test(flavor = "multi_thread")]
async fn a_tcp_connection_can_be_given_to_a_worker() {
    let (mut troop, worker) = ready(STREAM).await;
    let (client, server) = tcp_pair();
    worker.send_handle(&json!({"n": 1}), server).await.unwrap();
    assert_eq!(
        troop.message(&worker).await,
        json!({"how": {"n": 1}, "socket": true, "from": "127.0.0.1"})
    );
    assert_eq!(whole(client), "from the worker");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unix_connection_can_be_given_to_a_worker() {
    let (mut troop, worker) = ready(STREAM).await;
    let (client, server) = UnixStream::pair().unwrap();
    worker.send_handle("unix", server).await.unwrap();
    assert_eq!(troop.message(&worker).await, json!({"how": "unix", "socket": true, "from": null}));
    assert_eq!(whole(client), "from the worker");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_connections_in_a_row_arrive_in_order() {
    let (mut troop, worker) =
        ready("process.on('message', (n, s) => { tell(n); s.end(String(n)); })").await;
    let mut clients = Vec::new();
    for n in 0..100 {
        let (client, server) = tcp_pair();
        worker.send_handle(&n, server).await.unwrap();
        clients.push(client);
    }
    for (n, client) in clients.into_iter().enumerate() {
        assert_eq!(troop.message(&worker).await, n);
        assert_eq!(whole(client), n.to_string());
    }
}

/// Serves with the server that it is given.
const SERVER: &str = "process.on('message', (how, s) => {
    s.on('connection', (c) => c.end('from the worker'));
    tell({ how, server: s instanceof net.Server });
  })";

#[tokio::test(flavor = "multi_thread")]
async fn a_tcp_server_can_be_given_to_a_worker() {
    let (mut troop, worker) = ready(SERVER).await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    worker.send_handle("tcp", listener).await.unwrap();
    assert_eq!(troop.message(&worker).await, json!({"how": "tcp", "server": true}));
    assert_eq!(talk(address, "").unwrap(), "from the worker");
}

/// Node mistakes its descriptor for one of the primary's, and asks for that. Under Node's own
/// primary it dies, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_unix_server_is_more_than_a_node_worker_can_take_and_harms_only_that() {
    let (mut troop, worker) =
        ready("process.once('uncaughtException', (e) => tell(e.syscall))").await;
    let directory = tempfile::tempdir().unwrap();
    worker
        .send_handle("unix", UnixListener::bind(directory.path().join("s")).unwrap())
        .await
        .unwrap();
    assert_eq!(troop.message(&worker).await, "bind");
    worker.disconnect().unwrap();
    assert_eq!(troop.exit(&worker).await, troop::event::ExitHow::Code(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_udp_socket_can_be_given_to_a_worker() {
    let text = "process.on('message', (how, s) => {
        s.on('message', (text, from) => s.send(`${text} from the worker`, from.port, from.address));
        tell({ how, udp: s instanceof dgram.Socket, type: s.type });
      })";
    let (mut troop, worker) = ready(text).await;
    for (host, family) in [("127.0.0.1", "udp4"), ("::1", "udp6")] {
        let socket = UdpSocket::bind((host, 0)).unwrap();
        let address = socket.local_addr().unwrap();
        worker.send_handle("udp", socket).await.unwrap();
        assert_eq!(
            troop.message(&worker).await,
            json!({"how": "udp", "udp": true, "type": family})
        );
        assert_eq!(datagram(address), "hello from the worker");
    }
}

fn datagram(to: SocketAddr) -> String {
    let client = UdpSocket::bind((to.ip(), 0)).unwrap();
    client.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    client.send_to(b"hello", to).unwrap();
    let mut buffer = [0; 100];
    let n = client.recv(&mut buffer).unwrap();
    String::from_utf8_lossy(&buffer[..n]).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_open_of_sockets_that_went_through() {
    let (mut troop, worker) = ready("process.on('message', (m, s) => tell(m, s))").await;
    let before = open_descriptors();
    for n in 0..50 {
        let (client, server) = tcp_pair();
        worker.send_handle(&n, server).await.unwrap();
        let (_, handle) = handed(&mut troop).await;
        drop(handle);
        assert_eq!(whole(client), "");
    }
    wait_until("the number of before", || open_descriptors() <= before);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_around_a_socket_keep_their_order() {
    let (mut troop, worker) = ready("process.on('message', (m, s) => tell([m, Boolean(s)]))").await;
    let (_client, server) = tcp_pair();
    worker.send(&1).await.unwrap();
    worker.send_handle(&2, server).await.unwrap();
    worker.send(&3).await.unwrap();
    for expected in [json!([1, false]), json!([2, true]), json!([3, false])] {
        assert_eq!(troop.message(&worker).await, expected);
    }
}

// ---- sockets from the worker ----

/// What the worker sent, and with it.
async fn handed(troop: &mut Troop) -> (Value, Handle) {
    let what = |event: &Event| match event {
        Event::Message { message, .. } => {
            message.take_handle().map(|handle| (message.decode().unwrap(), handle))
        }
        _ => None,
    };
    troop.until("a socket", what).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_can_give_away_its_tcp_connection() {
    let mut troop =
        Troop::with(Setup::new().script(node_program("run.js")).args([
            "net.createServer((s) => tell({ port: s.remotePort }, s)).listen(0, '127.0.0.1')",
        ]));
    let worker = troop.fork().await;
    let port = troop.listening(&worker).await;
    for _ in 0..3 {
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        client.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        let (message, handle) = handed(&mut troop).await;
        assert_eq!(message, json!({"port": client.local_addr().unwrap().port()}));
        let Handle::TcpStream(mut stream) = handle else { panic!("{handle:?}") };
        stream.write_all(b"from the primary").unwrap();
        drop(stream);
        assert_eq!(whole(client), "from the primary");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_connections_were_given_away_still_ends() {
    let mut troop = Troop::with(
        Setup::new()
            .script(node_program("run.js"))
            .args(["net.createServer((s) => tell('yours', s)).listen(0, '127.0.0.1')"]),
    );
    let worker = troop.fork().await;
    let port = troop.listening(&worker).await;
    let _client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let (_, handle) = handed(&mut troop).await;
    worker.disconnect().unwrap();
    // Node counts it as a connection of its server until its holder reports that it is closed.
    drop(handle);
    assert_eq!(troop.exit(&worker).await, troop::event::ExitHow::Code(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_can_give_away_its_unix_connection() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let text = format!("net.createServer((s) => tell('unix', s)).listen('{}')", path.display());
    let mut troop = Troop::with(Setup::new().script(node_program("run.js")).args([text]));
    let worker = troop.fork().await;
    troop.listening(&worker).await;
    let client = UnixStream::connect(&path).unwrap();
    let (_, Handle::UnixStream(mut stream)) = handed(&mut troop).await else {
        panic!("of another kind")
    };
    stream.write_all(b"from the primary").unwrap();
    drop(stream);
    assert_eq!(whole(client), "from the primary");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_can_give_away_its_tcp_server() {
    let text = "const s = net.createServer().listen({ port: 0, host: '127.0.0.1', exclusive: true }, () => tell('tcp', s))";
    let mut troop = Troop::with(Setup::new().script(node_program("run.js")).args([text]));
    let _worker = troop.fork().await;
    let (_, Handle::TcpListener(listener)) = handed(&mut troop).await else {
        panic!("of another kind")
    };
    let worker = troop.cluster.workers().remove(0);
    // So that only we are left to accept.
    worker.kill(libc::SIGKILL).await.unwrap();
    troop.exit(&worker).await;
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    listener.accept().unwrap().0.write_all(b"from the primary").unwrap();
    assert_eq!(whole(client), "from the primary");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_can_give_away_its_unix_server() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let listen =
        format!("listen({{ path: '{}', exclusive: true }}, () => tell('unix', s))", path.display());
    let text = format!("const s = net.createServer().{listen}");
    let mut troop = Troop::with(Setup::new().script(node_program("run.js")).args([text]));
    let worker = troop.fork().await;
    let (_, Handle::UnixListener(listener)) = handed(&mut troop).await else {
        panic!("of another kind")
    };
    worker.kill(libc::SIGKILL).await.unwrap();
    troop.exit(&worker).await;
    let client = UnixStream::connect(&path).unwrap();
    listener.accept().unwrap().0.write_all(b"from the primary").unwrap();
    assert_eq!(whole(client), "from the primary");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_can_give_away_its_udp_socket() {
    for (family, host) in [("udp4", "127.0.0.1"), ("udp6", "::1")] {
        let text = format!(
            "const s = dgram.createSocket('{family}').bind(0, '{host}', () => tell('udp', s))"
        );
        let mut troop = Troop::with(Setup::new().script(node_program("run.js")).args([text]));
        let worker = troop.fork().await;
        let (_, Handle::UdpSocket(socket)) = handed(&mut troop).await else {
            panic!("of another kind")
        };
        worker.kill(libc::SIGKILL).await.unwrap();
        troop.exit(&worker).await;
        socket.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        let client = UdpSocket::bind((host, 0)).unwrap();
        client.send_to(b"hello", socket.local_addr().unwrap()).unwrap();
        let mut buffer = [0; 10];
        assert_eq!(socket.recv(&mut buffer).unwrap(), 5);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_makes_the_round_trip() {
    let (mut troop, worker) = ready("process.on('message', (m, s) => tell(m, s))").await;
    let (client, server) = tcp_pair();
    worker.send_handle("there", server).await.unwrap();
    let (message, handle) = handed(&mut troop).await;
    assert_eq!(message, "there");
    let Handle::TcpStream(mut stream) = handle else { panic!("{handle:?}") };
    stream.write_all(b"and back").unwrap();
    drop(stream);
    assert_eq!(whole(client), "and back");
}
