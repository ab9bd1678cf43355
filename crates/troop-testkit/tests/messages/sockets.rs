//! Sockets that are passed on.

use super::*;

pub(crate) fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    (client, listener.accept().unwrap().0)
}

pub(crate) fn read_all(mut from: impl Read) -> String {
    let mut text = String::new();
    from.read_to_string(&mut text).unwrap();
    text
}

#[tokio::test]
async fn a_tcp_connection_can_be_passed_on() {
    let (mut troop, worker) = echo().await;
    let (client, server) = tcp_pair();
    worker.send_handle("tcp", server).await.unwrap();
    assert_eq!(troop.message(&worker).await, json!({"used": "tcp"}));
    assert_eq!(read_all(client), "tcp from the worker");
}

#[tokio::test]
async fn a_unix_connection_can_be_passed_on() {
    let (mut troop, worker) = echo().await;
    let (client, server) = UnixStream::pair().unwrap();
    client.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    worker.send_handle("unix", server).await.unwrap();
    assert_eq!(troop.message(&worker).await, json!({"used": "unix"}));
    assert_eq!(read_all(client), "unix from the worker");
}

#[tokio::test]
async fn a_tcp_listener_can_be_passed_on() {
    let (mut troop, worker) = echo().await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    worker.send_handle("listener", listener).await.unwrap();
    let client =
        tokio::task::spawn_blocking(move || read_all(TcpStream::connect(address).unwrap()));
    assert_eq!(client.await.unwrap(), "accepted by the worker");
    assert_eq!(troop.message(&worker).await, json!({"used": "listener"}));
}

#[tokio::test]
async fn a_unix_listener_can_be_passed_on() {
    let (mut troop, worker) = echo().await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    worker.send_handle("listener", UnixListener::bind(&path).unwrap()).await.unwrap();
    let client = tokio::task::spawn_blocking(move || read_all(UnixStream::connect(path).unwrap()));
    assert_eq!(client.await.unwrap(), "accepted by the worker");
    assert_eq!(troop.message(&worker).await, json!({"used": "listener"}));
}

#[tokio::test]
async fn a_udp_socket_can_be_passed_on() {
    let (mut troop, worker) = echo().await;
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    client.send_to(b"hello", socket.local_addr().unwrap()).unwrap();
    worker.send_handle("udp", socket).await.unwrap();
    assert_eq!(troop.message(&worker).await, json!({"used": "udp"}));
    let mut buffer = [0; 100];
    let n = client.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..n], b"udp from the worker");
}

#[tokio::test]
async fn sockets_of_every_kind_come_back() {
    let (mut troop, worker) = echo().await;
    let directory = tempfile::tempdir().unwrap();
    let (_client, server) = tcp_pair();
    let (_other, unix) = UnixStream::pair().unwrap();
    let handles: Vec<Handle> = vec![
        server.into(),
        TcpListener::bind("127.0.0.1:0").unwrap().into(),
        UdpSocket::bind("127.0.0.1:0").unwrap().into(),
        unix.into(),
        UnixListener::bind(directory.path().join("s")).unwrap().into(),
    ];
    for handle in handles {
        let kind = std::mem::discriminant(&handle);
        worker.send_handle("back", handle).await.unwrap();
        let id = worker.id();
        let back = troop
            .until("the socket", |e| match e {
                Event::Message { worker: w, message: m, .. } if w.id() == id && m.has_handle() => {
                    Some(m.take_handle().unwrap())
                }
                _ => None,
            })
            .await;
        assert_eq!(std::mem::discriminant(&back), kind, "{back:?}");
    }
}

#[tokio::test]
async fn a_connection_that_comes_back_still_works() {
    let (mut troop, worker) = echo().await;
    let (client, server) = tcp_pair();
    worker.send_handle("back", server).await.unwrap();
    let id = worker.id();
    let back = troop.until("the socket", |e| match e {
        Event::Message { worker: w, message: m, .. } if w.id() == id => m.take_handle(),
        _ => None,
    });
    let Handle::TcpStream(mut stream) = back.await else { panic!() };
    stream.write_all(b"there and back").unwrap();
    drop(stream);
    assert_eq!(read_all(client), "there and back");
}

#[tokio::test]
async fn many_sockets_and_messages_keep_their_order() {
    let (mut troop, worker) = echo().await;
    let mut sending = Vec::new();
    let mut clients = Vec::new();
    for n in 0..50 {
        let (client, server) = tcp_pair();
        clients.push(client);
        worker.try_send(&n).unwrap();
        let (worker, what) = (worker.clone(), format!("socket {n}"));
        sending.push(tokio::spawn(async move { worker.send_handle(&what, server).await }));
        // Lets it be queued before the next message.
        tokio::task::yield_now().await;
    }
    for n in 0..50 {
        assert_eq!(troop.message(&worker).await, json!({"echo": n}));
        assert_eq!(troop.message(&worker).await, json!({"used": format!("socket {n}")}));
    }
    for sending in sending {
        sending.await.unwrap().unwrap();
    }
    for client in clients {
        assert_eq!(read_all(client), "tcp from the worker");
    }
}

#[tokio::test]
async fn sockets_crossing_in_both_directions_do_not_block_each_other() {
    let (mut troop, worker) = echo().await;
    let mut clients = Vec::new();
    let mut sending = Vec::new();
    for _ in 0..50 {
        let (client, server) = tcp_pair();
        clients.push(client);
        let worker = worker.clone();
        sending.push(tokio::spawn(async move { worker.send_handle("back", server).await }));
    }
    let id = worker.id();
    for _ in 0..50 {
        let back = troop.until("a socket", |e| match e {
            Event::Message { worker: w, message: m, .. } if w.id() == id => m.take_handle(),
            _ => None,
        });
        drop(back.await);
    }
    for sending in sending {
        sending.await.unwrap().unwrap();
    }
}

/// More sockets than may wait at once.
#[tokio::test]
async fn hundreds_of_sockets_sent_at_once_all_arrive() {
    let (_troop, worker) = echo().await;
    let (one, _other) = UnixStream::pair().unwrap();
    let sending: Vec<_> = (0..200)
        .map(|_| {
            let (worker, socket) = (worker.clone(), one.try_clone().unwrap());
            tokio::spawn(async move { worker.send_handle("unix", socket).await })
        })
        .collect();
    for (n, sending) in sending.into_iter().enumerate() {
        let sent = tokio::time::timeout(TEST_TIMEOUT, sending).await;
        sent.unwrap_or_else(|_| panic!("socket {n} was never sent")).unwrap().unwrap();
    }
}

/// And the other way.
#[tokio::test]
async fn hundreds_of_sockets_sent_at_once_by_a_worker_all_arrive() {
    let (mut troop, worker) = echo().await;
    worker.send(&json!({"sockets": 200})).await.unwrap();
    let id = worker.id();
    for n in 0..200 {
        let what = format!("socket {n}");
        let back = troop.until(&what, |e| match e {
            Event::Message { worker: w, message: m, .. } if w.id() == id => m.take_handle(),
            _ => None,
        });
        drop(back.await);
    }
}

#[tokio::test]
async fn sending_a_socket_to_a_worker_that_dies_ends() {
    let (mut troop, worker) = echo().await;
    worker.request::<_, Value>(&1, TEST_TIMEOUT).await.unwrap();
    let process = rustix::process::Pid::from_raw(i32::try_from(worker.pid()).unwrap()).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::STOP).unwrap();
    let (client, server) = tcp_pair();
    let sender = worker.clone();
    let sending = tokio::spawn(async move { sender.send_handle("tcp", server).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!sending.is_finished(), "a stopped worker has not received it");
    worker.kill(9).await.unwrap();
    assert!(matches!(sending.await.unwrap(), Err(Error::Closed)));
    assert_eq!(troop.exit(&worker).await, ExitHow::Signal(9));
    assert_eq!(read_all(client), "", "all copies are closed");
}
