//! Shared parts of the end-to-end tests: clusters, waiting for events with a deadline, leak checks.
#![allow(clippy::missing_panics_doc)]

pub mod http;
pub mod kept;
pub mod tamper;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use troop::supervise::ReplacePolicy;
use troop::{Builder, Cluster, Event, Events, Fork, Setup, WorkerHandle};

/// Deadline of each wait in a test.
pub const TEST_TIMEOUT: Duration = Duration::from_secs(20);

/// The Node program of this name in the `node` folder.
#[must_use]
pub fn node_program(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("node").join(name)
}

/// Replaces workers as soon as their successors are ready.
pub fn at_once() -> ReplacePolicy {
    ReplacePolicy::default().min_ready_time(Duration::ZERO)
}

/// A cluster whose processes end with it, and its events.
#[derive(Debug)]
pub struct Troop {
    /// The cluster.
    pub cluster: Cluster,
    /// All events from the start.
    pub events: Events,
    /// The events that were seen, and whether a call has returned them.
    seen: Vec<(Event, bool)>,
}

impl Troop {
    /// A cluster without workers, in the runtime that this is called in.
    #[must_use]
    pub fn start(builder: Builder) -> Troop {
        // Before the first fork: another thread of the runtime may be at it at once.
        let (sender, events) = std::sync::mpsc::channel();
        let builder = builder.on_start(move |cluster| drop(sender.send(cluster.events())));
        let cluster = builder.start().expect("the cluster starts");
        let events = events.recv().expect("on_start is called");
        Troop { cluster, events, seen: Vec::new() }
    }

    /// A cluster of workers made with `setup`; none is forked yet.
    #[must_use]
    pub fn with(setup: Setup) -> Troop {
        Troop::start(Cluster::builder().setup(setup))
    }

    /// Forks one more worker.
    pub async fn fork(&self) -> WorkerHandle {
        self.cluster.fork(Fork::new()).await.expect("the fork succeeds")
    }

    /// The first event that no earlier call has returned and for which `want` returns something;
    /// waits for it if need be.
    pub async fn until<T>(&mut self, what: &str, mut want: impl FnMut(&Event) -> Option<T>) -> T {
        for (event, asked) in self.seen.iter_mut().filter(|(_, asked)| !asked) {
            if let Some(result) = want(event) {
                *asked = true;
                return result;
            }
        }
        let deadline = tokio::time::Instant::now() + TEST_TIMEOUT;
        loop {
            let next = tokio::time::timeout_at(deadline, self.events.recv()).await;
            match next {
                Ok(Some(event)) => {
                    let result = want(&event);
                    self.seen.push((event, result.is_some()));
                    if let Some(result) = result {
                        return result;
                    }
                }
                Ok(None) => panic!("the cluster ended before {what}; seen: {}", self.story()),
                Err(_) => panic!("no {what} after {TEST_TIMEOUT:?}; seen: {}", self.story()),
            }
        }
    }

    /// Every event so far, for failure messages.
    #[must_use]
    pub fn story(&self) -> String {
        self.seen.iter().map(|(e, _)| format!("\n  {e}")).collect()
    }

    /// Waits until a worker listens, and returns its port.
    pub async fn listening(&mut self, worker: &WorkerHandle) -> u16 {
        let id = worker.id();
        self.until("listening", |event| match event {
            Event::Listening { worker: w, address: at, .. } if w.id() == id => {
                Some(u16::try_from(at.port.unwrap_or(0)).unwrap_or(0))
            }
            Event::Exit { worker: w, exit: how, .. } if w.id() == id => {
                panic!("worker {id} died instead of listening: {how}")
            }
            _ => None,
        })
        .await
    }

    /// Waits for the end of a worker.
    pub async fn exit(&mut self, worker: &WorkerHandle) -> troop::event::ExitHow {
        let id = worker.id();
        self.until("exit", |event| match event {
            Event::Exit { worker: w, exit: how, .. } if w.id() == id => Some(*how),
            _ => None,
        })
        .await
    }

    /// Waits for a message of a worker and returns it as JSON.
    pub async fn message(&mut self, worker: &WorkerHandle) -> serde_json::Value {
        let id = worker.id();
        self.until("message", |event| match event {
            Event::Message { worker: w, message, .. } if w.id() == id => {
                Some(message.decode().expect("any JSON decodes"))
            }
            _ => None,
        })
        .await
    }
}

/// Waits until the next worker listens, and returns it and its port.
pub async fn listening(troop: &mut Troop) -> (WorkerHandle, u16) {
    let listens = |e: &Event| match e {
        Event::Listening { worker, address, .. } => {
            Some((worker.clone(), u16::try_from(address.port.unwrap_or(0)).unwrap_or(0)))
        }
        _ => None,
    };
    troop.until("listening", listens).await
}

/// Connects, optionally writes, and reads until the end.
pub fn talk(address: impl Into<SocketAddr>, say: &str) -> std::io::Result<String> {
    let address = address.into();
    let mut stream = TcpStream::connect_timeout(&address, TEST_TIMEOUT)?;
    stream.set_read_timeout(Some(TEST_TIMEOUT))?;
    stream.write_all(say.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// A connection from this loopback address.
///
/// # Errors
/// Those of the connection.
pub fn connect_from(source: [u8; 4], address: impl Into<SocketAddr>) -> std::io::Result<TcpStream> {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
    let fd = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    bind(&fd, &SocketAddr::from((source, 0)))?;
    connect(&fd, &address.into())?;
    let stream = TcpStream::from(fd);
    stream.set_read_timeout(Some(TEST_TIMEOUT))?;
    Ok(stream)
}

/// As [`talk`], from this loopback address.
///
/// # Errors
/// Those of the connection.
pub fn talk_from(
    source: [u8; 4],
    address: impl Into<SocketAddr>,
    say: &[u8],
) -> std::io::Result<Vec<u8>> {
    let mut stream = connect_from(source, address)?;
    stream.write_all(say)?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// As [`talk`] with a local port, in a thread that may block.
pub async fn ask(port: u16, say: &'static str) -> std::io::Result<String> {
    tokio::task::spawn_blocking(move || talk(([127, 0, 0, 1], port), say))
        .await
        .expect("the client does not panic")
}

/// The number of the worker in an answer that begins with it.
#[must_use]
pub fn number(answer: &str) -> u32 {
    answer
        .split(' ')
        .next()
        .unwrap_or_default()
        .parse()
        .unwrap_or_else(|_| panic!("{answer:?} is no answer"))
}

/// How many of this many connections each worker serves, by its number.
pub async fn shares(port: u16, count: usize) -> BTreeMap<u32, usize> {
    let ask = move || {
        let mut shares = BTreeMap::new();
        for _ in 0..count {
            *shares
                .entry(number(&talk(([127, 0, 0, 1], port), "").expect("an answer")))
                .or_default() += 1;
        }
        shares
    };
    tokio::task::spawn_blocking(ask).await.expect("the client does not panic")
}

/// The body of a simple HTTP request.
pub async fn get(port: u16, path: &str) -> std::io::Result<String> {
    let path = path.to_owned();
    let request = move || {
        let answer = talk(
            ([127, 0, 0, 1], port),
            &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
        )?;
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        // Node sends short bodies in one chunk.
        let body = body
            .split_once("\r\n")
            .map_or(body, |(_, rest)| rest.split_once("\r\n").map_or(rest, |(text, _)| text));
        Ok(body.to_owned())
    };
    tokio::task::spawn_blocking(request).await.expect("the client does not panic")
}

/// Joins the reuseport group of a port, as a process does that has nothing to do with the cluster.
///
/// # Panics
/// If the kernel does not let it.
pub fn join_group(port: u16) -> std::net::TcpListener {
    use rustix::net::{AddressFamily, SocketType, bind, listen, socket, sockopt};
    let intruder = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
    sockopt::set_socket_reuseport(&intruder, true).expect("SO_REUSEPORT");
    bind(&intruder, &SocketAddr::from(([127, 0, 0, 1], port))).expect("the group lets it in");
    listen(&intruder, 16).expect("it listens");
    let intruder = std::net::TcpListener::from(intruder);
    intruder.set_nonblocking(true).expect("SO_REUSEPORT");
    intruder
}

/// Returns a port that no socket has, outside the range from which the kernel gives ports to clients
/// and to listeners on port 0. Each call returns another one.
pub fn free_port() -> u16 {
    static TRIED: AtomicU16 = AtomicU16::new(0);
    let first = 12_000 + u16::try_from(std::process::id() * 127 % 18_000).unwrap_or(0);
    let next = || first + TRIED.fetch_add(1, Ordering::Relaxed);
    let is_free = |port: &u16| TcpListener::bind((Ipv6Addr::UNSPECIFIED, *port)).is_ok();
    std::iter::repeat_with(next).find(is_free).expect("a port")
}

/// Waits until `condition` holds.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + TEST_TIMEOUT;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come true within {TEST_TIMEOUT:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Writes a line together with descriptors, and waits for room.
///
/// # Errors
/// Those of the channel.
pub fn send_whole(
    channel: &std::os::unix::net::UnixStream,
    line: &[u8],
    fds: &[std::os::fd::BorrowedFd<'_>],
) -> std::io::Result<()> {
    use std::os::fd::AsFd;
    let sent = loop {
        match troop_sys::fdpass::send(channel.as_fd(), line, fds) {
            Err(e) if troop_sys::fdpass::is_temporary(&e) => {
                std::thread::sleep(Duration::from_millis(1))
            }
            sent => break sent?,
        }
    };
    (&*channel).write_all(&line[sent..])
}

/// How many descriptors this process has open.
#[must_use]
pub fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

/// The children of a process, whichever of its threads has started them.
#[must_use]
pub fn children(pid: u32) -> Vec<u32> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let texts: String = threads
        .filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok())
        .collect();
    texts.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// The process that does the work of a program that another one keeps: its child with the same program.
#[must_use]
pub fn engine(keeper: u32) -> Option<u32> {
    let program = |pid: u32| std::fs::read_link(format!("/proc/{pid}/exe")).ok();
    let own = program(keeper)?;
    children(keeper).into_iter().find(|child| program(*child).as_ref() == Some(&own))
}

/// How many children this process has that ended and were not reaped.
#[must_use]
pub fn zombies() -> usize {
    let own = std::process::id();
    let Ok(processes) = std::fs::read_dir("/proc") else { return 0 };
    processes
        .filter_map(|entry| std::fs::read_to_string(entry.ok()?.path().join("stat")).ok())
        .filter(|stat| {
            let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
            fields.next() == Some("Z") && fields.next().and_then(|p| p.parse().ok()) == Some(own)
        })
        .count()
}

/// Whether a process exists and is no zombie.
#[must_use]
pub fn is_running(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z')
    })
}
