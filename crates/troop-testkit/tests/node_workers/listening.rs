//! What Node workers listen on.

use super::*;

/// What the event `listening` says of a worker that runs this.
async fn reported(text: String) -> Address {
    reported_with(None, text).await
}

/// The same, with this socket of the primary's offered to the worker.
async fn reported_with(offered: Option<InheritedSocket>, text: String) -> Address {
    let mut troop = Troop::start(Cluster::builder().inherited(offered).setup(js(text)));
    let worker = troop.fork().await;
    listening_at(&mut troop, &worker).await
}

fn address(
    address_type: AddressType,
    address: Option<&str>,
    port: u16,
    fd: Option<i64>,
) -> Address {
    Address { address: address.map(Into::into), port: Some(port.into()), address_type, fd }
}

#[tokio::test(flavor = "multi_thread")]
async fn listening_on_a_port_tells_no_address() {
    let port = free_port();
    assert_eq!(
        reported(format!("serve({port})")).await,
        address(AddressType::Tcp4, None, port, None)
    );
    assert_eq!(
        reported(format!("serve({{ port: {port} }})")).await,
        address(AddressType::Tcp4, None, port, None)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn listening_on_a_host_tells_its_address_and_family() {
    let port = free_port();
    let v4 = reported(format!("serve({port}, '127.0.0.1')")).await;
    assert_eq!(v4, address(AddressType::Tcp4, Some("127.0.0.1"), port, None));
    let v6 = reported(format!("serve({port}, '::1')")).await;
    assert_eq!(v6, address(AddressType::Tcp6, Some("::1"), port, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn listening_on_any_port_tells_the_real_one() {
    for text in ["serve(0)", "serve()"] {
        let at = reported(text.into()).await;
        assert!(at.port.is_some_and(|port| port > 0), "{at:?}");
        assert_eq!((at.address, at.address_type, at.fd), (None, AddressType::Tcp4, None));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_form_of_listen_that_node_takes_is_taken() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s").display().to_string();
    for text in [
        // Node turns a callback in the backlog's place into `false`.
        "serve(0, '127.0.0.1', () => {})".to_owned(),
        "serve({ port: 0, host: '127.0.0.1' }, () => {})".to_owned(),
        "serve(0, '127.0.0.1', 17, () => {})".to_owned(),
        "serve(0, 17, () => {})".to_owned(),
        "serve(0, () => {})".to_owned(),
        "serve('0')".to_owned(),
        "serve({ port: '0' })".to_owned(),
        "serve({ port: 0, backlog: '17' })".to_owned(),
        "serve({ port: 0, backlog: 1.5 })".to_owned(),
        "serve({ port: 0, backlog: true })".to_owned(),
        "serve({ port: 0, backlog: -1 })".to_owned(),
        format!("serve('{path}', () => {{}})"),
        format!("serve('{path}', 17)"),
        format!("serve({{ path: '{path}', readableAll: 1, writableAll: 'yes' }})"),
        "echo('udp4', '0')".to_owned(),
        "echo({ type: 'udp4', reuseAddr: true }, 0)".to_owned(),
        "echo({ type: 'udp6', ipv6Only: true }, 0)".to_owned(),
    ] {
        let mut troop = Troop::with(js(&*text));
        let worker = troop.fork().await;
        let outcome = |event: &Event| match event {
            Event::Listening { .. } => Some("listening".to_owned()),
            Event::Misbehaved { .. } | Event::Message { .. } | Event::Exit { .. } => {
                Some(event.to_string())
            }
            _ => None,
        };
        assert_eq!(troop.until("outcome", outcome).await, "listening", "{text}");
        worker.disconnect().unwrap();
        troop.exit(&worker).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn listening_on_a_path_tells_it_absolutely() {
    let directory = tempfile::tempdir().unwrap();
    let mut troop = Troop::with(js("serve('s')").cwd(directory.path()));
    let worker = troop.fork().await;
    let path = directory.path().join("s");
    let at = Address {
        address: path.to_str().map(Into::into),
        port: Some(-1),
        address_type: AddressType::Unix,
        fd: None,
    };
    assert_eq!(listening_at(&mut troop, &worker).await, at);
}

#[tokio::test(flavor = "multi_thread")]
async fn listening_on_a_descriptor_tells_its_number_and_port() {
    let listener = TcpListener::bind(local(0)).unwrap();
    let (fd, port) = (listener.as_raw_fd(), listener.local_addr().unwrap().port());
    let offered = InheritedSocket::of(&listener).unwrap();
    let at = reported_with(Some(offered), format!("serve({{ fd: {fd} }})")).await;
    assert_eq!(at, address(AddressType::Fd, None, port, Some(fd.into())));
}

#[tokio::test(flavor = "multi_thread")]
async fn binding_udp_tells_the_address_the_real_port_and_no_descriptor() {
    for (text, family, any) in [
        ("echo('udp4', 0, '127.0.0.1')", AddressType::Udp4, "127.0.0.1"),
        ("echo('udp4')", AddressType::Udp4, "0.0.0.0"),
        ("echo('udp6', 0, '::1')", AddressType::Udp6, "::1"),
        ("echo('udp6')", AddressType::Udp6, "::"),
    ] {
        let at = reported(text.into()).await;
        assert!(at.port.is_some_and(|port| port > 0), "{at:?}");
        assert_eq!((at.address.as_deref(), at.address_type, at.fd), (Some(any), family, Some(-1)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn binding_a_udp_descriptor_tells_its_number_and_port() {
    let socket = UdpSocket::bind(local(0)).unwrap();
    let (fd, port) = (socket.as_raw_fd(), socket.local_addr().unwrap().port());
    let offered = InheritedSocket::of(&socket).unwrap();
    let at = reported_with(Some(offered), format!("echo('udp4', {{ fd: {fd} }})")).await;
    assert_eq!(at, address(AddressType::Udp4, None, port, Some(fd.into())));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_servers_of_all_workers_share_one_port_and_the_second_ones_another() {
    for scheduling in every_scheduling() {
        let mut troop =
            under(scheduling.clone(), js("serve(0, '127.0.0.1'); serve(0, '127.0.0.1')"));
        let (one, two) = (troop.fork().await, troop.fork().await);
        let of_one = BTreeSet::from([troop.listening(&one).await, troop.listening(&one).await]);
        let of_two = BTreeSet::from([troop.listening(&two).await, troop.listening(&two).await]);
        assert_eq!((of_one.len(), &of_one), (2, &of_two));
        for port in of_one {
            assert!(!served(port).is_empty());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_closed_all_its_servers_counts_from_the_first_again() {
    for scheduling in every_scheduling() {
        let again = "process.on('message', () => s.close(() => s.listen(0, '127.0.0.1')))";
        let mut troop =
            under(scheduling.clone(), js(format!("const s = serve(0, '127.0.0.1'); {again}")));
        let ([one, _two], port) = forks(&mut troop).await;
        one.send("again").await.unwrap();
        assert_eq!(troop.listening(&one).await, port, "{scheduling}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_of_another_program_is_an_error_in_the_worker() {
    let other = TcpListener::bind(local(0)).unwrap();
    let port = other.local_addr().unwrap().port();
    for scheduling in every_scheduling() {
        let mut troop = under(scheduling.clone(), js(format!("serve({port}, '127.0.0.1')")));
        let worker = troop.fork().await;
        assert_eq!(troop.message(&worker).await, json!({"error": "EADDRINUSE"}), "{scheduling}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_has_become_free_is_bound_at_the_next_attempt() {
    let other = TcpListener::bind(local(free_port())).unwrap();
    let port = other.local_addr().unwrap().port();
    let text = format!(
        "const again = () => serve({port}, '127.0.0.1'); again(); process.on('message', again)"
    );
    let mut troops = every_scheduling().map(|scheduling| under(scheduling, js(text.clone())));
    let mut workers = Vec::new();
    for troop in &mut troops {
        let worker = troop.fork().await;
        assert_eq!(troop.message(&worker).await, json!({"error": "EADDRINUSE"}));
        workers.push(worker);
    }
    drop(other);
    for (mut troop, worker) in troops.into_iter().zip(workers) {
        worker.send("again").await.unwrap();
        assert_eq!(troop.listening(&worker).await, port);
        assert_eq!(served(port), name(&worker));
        troop.cluster.disconnect().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_server_on_the_same_port_fails_and_the_first_one_keeps_working() {
    for scheduling in every_scheduling() {
        let port = free_port();
        let mut troop = under(
            scheduling.clone(),
            js(format!("serve({port}, '127.0.0.1'); serve({port}, '127.0.0.1')")),
        );
        let worker = troop.fork().await;
        assert_eq!(troop.message(&worker).await, json!({"error": "EADDRINUSE"}), "{scheduling}");
        assert_eq!(troop.listening(&worker).await, port);
        assert_eq!((served(port), served(port)), (name(&worker), name(&worker)));
        troop.cluster.disconnect().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_any_addresses_of_both_families_conflict() {
    let port = free_port();
    let mut troop = Troop::with(js(format!("serve({port})")));
    let one = troop.fork().await;
    troop.listening(&one).await;
    troop.cluster.setup(js(format!("serve({port}, '0.0.0.0')"))).unwrap();
    let two = troop.fork().await;
    assert_eq!(troop.message(&two).await, json!({"error": "EADDRINUSE"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_server_can_listen_again() {
    for scheduling in every_scheduling() {
        let port = free_port();
        let again = format!("s.listen({port}, '127.0.0.1')");
        let text = format!(
            "const s = serve({port}, '127.0.0.1'); process.on('message', () => s.close(() => {again}))"
        );
        let mut troop = under(scheduling.clone(), js(text));
        let worker = troop.fork().await;
        assert_eq!(troop.listening(&worker).await, port);
        worker.send("again").await.unwrap();
        assert_eq!(troop.listening(&worker).await, port);
        assert_eq!(served(port), name(&worker));
        troop.cluster.disconnect().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_server_gets_nothing_while_the_other_worker_serves_on() {
    let close = "process.on('message', () => s.close(() => tell('closed')))";
    let mut troop = Troop::with(js(format!("const s = serve(0, '127.0.0.1'); {close}")));
    let ([one, two], port) = forks(&mut troop).await;
    one.send("close").await.unwrap();
    assert_eq!(troop.message(&one).await, "closed");
    for _ in 0..4 {
        assert_eq!(served(port), name(&two));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unix_socket_is_served_and_removed_in_the_end() {
    for scheduling in every_scheduling() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let mut troop = under(scheduling.clone(), js(format!("serve('{}')", path.display())));
        let (one, two) = (troop.fork().await, troop.fork().await);
        troop.listening(&one).await;
        troop.listening(&two).await;
        let answers: Vec<String> =
            (0..4).map(|_| whole(UnixStream::connect(&path).unwrap())).collect();
        assert!(answers.iter().all(|a| *a == name(&one) || *a == name(&two)), "{answers:?}");
        if scheduling == Scheduling::RoundRobin {
            assert_ne!(answers[0], answers[1]);
        }
        troop.cluster.disconnect().await.unwrap();
        assert!(!path.exists());
    }
}

fn whole(mut stream: impl Read) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_in_a_missing_directory_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("missing/s");
    for scheduling in every_scheduling() {
        let mut troop = under(scheduling.clone(), js(format!("serve('{}')", path.display())));
        let worker = troop.fork().await;
        assert_eq!(troop.message(&worker).await, json!({"error": "EACCES"}), "{scheduling}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_taken_by_a_server_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let _other = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let mut troop = Troop::with(js(format!("serve('{}')", path.display())));
    let worker = troop.fork().await;
    assert_eq!(troop.message(&worker).await, json!({"error": "EADDRINUSE"}));
}

/// The permissions of a socket made with these options.
async fn mode(path: &Path, options: &str) -> u32 {
    let mut troop = Troop::with(js(format!("serve({{ path: '{}', {options} }})", path.display())));
    let worker = troop.fork().await;
    troop.listening(&worker).await;
    let mode = path.metadata().unwrap().permissions().mode();
    troop.cluster.disconnect().await.unwrap();
    mode
}

#[tokio::test(flavor = "multi_thread")]
async fn readable_all_and_writable_all_open_a_unix_socket_to_everybody() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let plain = mode(&path, "").await;
    assert_eq!(mode(&path, "readableAll: true").await & 0o777, plain & 0o777 | 0o444);
    assert_eq!(mode(&path, "writableAll: true").await & 0o777, plain & 0o777 | 0o222);
    assert_eq!(mode(&path, "readableAll: true, writableAll: true").await & 0o666, 0o666);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exclusive_server_is_bound_by_the_worker_itself() {
    let text = "const s = serve({ port: 0, host: '127.0.0.1', exclusive: true }, () => tell(s.address().port))";
    let mut troop = Troop::with(js(text));
    let (one, two) = (troop.fork().await, troop.fork().await);
    for worker in [&one, &two] {
        let port = u16::try_from(troop.message(worker).await.as_u64().unwrap()).unwrap();
        assert_eq!((served(port), served(port)), (name(worker), name(worker)));
        assert_eq!(worker.state(), troop::snapshot::WorkerState::Online);
    }
    assert!(!troop.story().contains("listening"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_of_the_primary_serves_through_its_descriptor() {
    for scheduling in every_scheduling() {
        let listener = TcpListener::bind(local(0)).unwrap();
        let setup = js(format!("serve({{ fd: {} }})", listener.as_raw_fd()));
        let offered = InheritedSocket::of(&listener).unwrap();
        let mut troop = Troop::start(
            Cluster::builder().scheduling(scheduling.clone()).inherited([offered]).setup(setup),
        );
        let (workers, port) = forks::<2>(&mut troop).await;
        for _ in 0..4 {
            let answer = served(port);
            assert!(workers.iter().any(|w| name(w) == answer), "{answer}");
        }
        troop.cluster.disconnect().await.unwrap();
        assert_eq!(
            listener.local_addr().unwrap().port(),
            port,
            "the program's own copy stays open"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_descriptor_that_is_not_a_socket_is_rejected() {
    let file = std::fs::File::open("/dev/null").unwrap();
    for scheduling in every_scheduling() {
        for number in [file.as_raw_fd(), 999] {
            let mut troop = under(scheduling.clone(), js(format!("serve({{ fd: {number} }})")));
            let worker = troop.fork().await;
            assert_eq!(
                troop.message(&worker).await,
                json!({"error": "EINVAL"}),
                "{scheduling} {number}"
            );
        }
    }
}

/// The accept queue's length of the listening socket with this port in this process.
fn backlog(port: u16) -> u32 {
    use std::mem::{size_of, zeroed};
    let fds = std::fs::read_dir("/proc/self/fd").unwrap();
    let fds = fds.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    for fd in fds.collect::<Vec<_>>() {
        #[expect(unsafe_code, reason = "only the kernel knows what is asked here")]
        // SAFETY: both calls write plain data, no more than the given sizes; any number may be
        // given as a descriptor.
        unsafe {
            let (mut address, mut info): (libc::sockaddr_in, libc::tcp_info) = (zeroed(), zeroed());
            let mut size = u32::try_from(size_of::<libc::sockaddr_in>()).unwrap();
            let named = libc::getsockname(fd, (&raw mut address).cast(), &mut size) == 0;
            let mut size = u32::try_from(size_of::<libc::tcp_info>()).unwrap();
            let known = libc::getsockopt(
                fd,
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                (&raw mut info).cast(),
                &mut size,
            ) == 0;
            const LISTEN: u8 = 10;
            if named && known && u16::from_be(address.sin_port) == port && info.tcpi_state == LISTEN
            {
                // For a listening socket the kernel puts it there.
                return info.tcpi_sacked;
            }
        }
    }
    panic!("nothing listens on port {port}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_backlog_is_the_workers() {
    for scheduling in every_scheduling() {
        let mut troop =
            under(scheduling.clone(), js("serve({ port: 0, host: '127.0.0.1', backlog: 17 })"));
        let worker = troop.fork().await;
        assert_eq!(backlog(troop.listening(&worker).await), 17, "{scheduling}");
        troop.cluster.setup(js("serve(0, '127.0.0.1')")).unwrap();
        troop.cluster.disconnect().await.unwrap();
        let worker = troop.fork().await;
        assert_eq!(backlog(troop.listening(&worker).await), 511, "{scheduling}");
    }
}

fn reaches(host: &str, port: u16) -> bool {
    TcpStream::connect_timeout(&SocketAddr::new(host.parse().unwrap(), port), TEST_TIMEOUT).is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_a_host_is_reached_by_both_families() {
    for scheduling in every_scheduling() {
        let mut troop = under(scheduling.clone(), js("serve(0)"));
        let worker = troop.fork().await;
        let port = troop.listening(&worker).await;
        for host in ["127.0.0.1", "::1"] {
            let address = SocketAddr::new(host.parse().unwrap(), port);
            assert_eq!(talk(address, "").unwrap(), name(&worker), "{scheduling} {host}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ipv6_only_keeps_ipv4_out() {
    for scheduling in every_scheduling() {
        let mut troop =
            under(scheduling.clone(), js("serve({ port: 0, host: '::', ipv6Only: true })"));
        let worker = troop.fork().await;
        let port = troop.listening(&worker).await;
        assert!(reaches("::1", port) && !reaches("127.0.0.1", port), "{scheduling}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ipv6_host_is_served() {
    for scheduling in every_scheduling() {
        let mut troop = under(
            scheduling.clone(),
            js("const s = serve(0, '::1').on('listening', () => tell(s.address()))"),
        );
        let worker = troop.fork().await;
        let port = troop.listening(&worker).await;
        assert_eq!(talk((Ipv6Addr::LOCALHOST, port), "").unwrap(), name(&worker));
        assert_eq!(
            troop.message(&worker).await,
            json!({"address": "::1", "family": "IPv6", "port": port}),
            "{scheduling}"
        );
    }
}

/// TLS without certificates: both sides know a key. The client is a worker, too.
const TLS: &str = "
    const psk = Buffer.alloc(16, 7);
    const common = { ciphers: 'PSK', maxVersion: 'TLSv1.2' };
    const server = tls.createServer({ ...common, pskCallback: () => psk }, (s) => s.end(me)).listen(0, '127.0.0.1');
    const connect = (session, then) => {
      const client = { pskCallback: () => ({ psk, identity: 'x' }), checkServerIdentity() {}, session };
      const socket = tls.connect({ ...common, ...client, port: server.address().port, host: '127.0.0.1' });
      let text = '';
      socket.on('data', (data) => text += data);
      socket.on('end', () => then({ text, reused: socket.isSessionReused() }, socket.getSession()));
    };
    process.on('message', () => connect(null, (first, session) => connect(session, (second) => tell({ first, second }))));
";

#[tokio::test(flavor = "multi_thread")]
async fn a_tls_session_of_one_worker_is_resumed_by_another() {
    for scheduling in every_scheduling() {
        let mut troop = under(scheduling.clone(), js(TLS));
        let ([one, two], _) = forks(&mut troop).await;
        one.send("go").await.unwrap();
        let answer = troop.message(&one).await;
        assert_eq!(
            (&answer["first"]["reused"], &answer["second"]["reused"]),
            (&json!(false), &json!(true)),
            "{scheduling}"
        );
        if scheduling == Scheduling::RoundRobin {
            let names = [&answer["first"]["text"], &answer["second"]["text"]]
                .map(|n| n.as_str().unwrap().to_owned() + "\n");
            assert_eq!(BTreeSet::from(names), BTreeSet::from([name(&one), name(&two)]));
        }
    }
}
