//! Clients of HTTP/1.1 that keep their connections open, each in its own manner, and what they
//! notice of what happens to the workers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;

use crate::TEST_TIMEOUT;

/// How a client uses its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Sends a request as soon as the last one is answered.
    Unpaced,
    /// Pauses for up to 20 ms between two requests.
    Paced,
    /// Pauses for 50 to 150 ms.
    Rare,
    /// Asks for answers that take up to 60 ms.
    SlowAnswers,
    /// Sends up to 8 requests at once.
    Pipelined,
    /// Sends bodies in pieces, with pauses between them.
    SlowBodies,
    /// Sends heads in two parts, with a pause between them.
    HalfHeads,
}

/// The clients of a crowd: their manners, and how many there are of each.
const CROWD: [(Manner, usize); 7] = [
    (Manner::Unpaced, 2),
    (Manner::Paced, 4),
    (Manner::Rare, 3),
    (Manner::SlowAnswers, 3),
    (Manner::Pipelined, 3),
    (Manner::SlowBodies, 3),
    (Manner::HalfHeads, 3),
];

/// What clients have noticed. Those whose worker was killed are not counted, except in `cut_off`.
#[derive(Debug, Default, Clone)]
pub struct Noticed {
    /// Requests that were answered.
    pub answered: u64,
    /// Requests that were sent, completely or in part, and not answered.
    pub failed: Vec<String>,
    /// Connections that were closed without an announcement.
    pub closed: Vec<String>,
    /// Connections that were closed after an answer with `Connection: close`.
    pub announced: u64,
    /// Connections whose worker was killed.
    pub cut_off: u64,
}

#[derive(Debug)]
struct Shared {
    address: SocketAddr,
    /// What stands before each path.
    prefix: &'static str,
    stop: AtomicBool,
    noticed: Mutex<Noticed>,
    /// How many requests each client had answered.
    answers: Vec<AtomicU64>,
    /// The process that answered each client last.
    workers: Vec<AtomicU32>,
    /// The clients' addresses of the connections that killed processes had.
    killed: Mutex<BTreeSet<SocketAddr>>,
}

/// Clients of all manners, each with one connection at a time and an address of its own.
#[derive(Debug)]
pub struct Crowd {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Crowd {
    /// Starts the clients. `prefix` stands before each path that they ask for.
    #[must_use]
    pub fn start(port: u16, prefix: &'static str) -> Crowd {
        let manners: Vec<Manner> =
            CROWD.iter().flat_map(|(manner, count)| std::iter::repeat_n(*manner, *count)).collect();
        let shared = Arc::new(Shared {
            address: ([127, 0, 0, 1], port).into(),
            prefix,
            stop: AtomicBool::new(false),
            noticed: Mutex::default(),
            answers: manners.iter().map(|_| AtomicU64::new(0)).collect(),
            workers: manners.iter().map(|_| AtomicU32::new(0)).collect(),
            killed: Mutex::default(),
        });
        let tasks = manners.iter().enumerate().map(|(number, manner)| {
            let random = Random(number as u64 + 1);
            tokio::spawn(Client { shared: shared.clone(), number, manner: *manner, random }.run())
        });
        let tasks = tasks.collect();
        Crowd { shared, tasks }
    }

    /// Stops the process that serves the fewest clients, but one, and returns it. It is to be
    /// killed: the connections that it has are not counted.
    #[must_use]
    pub fn victim(&self) -> u32 {
        let mut clients = BTreeMap::<u32, usize>::new();
        for pid in &self.shared.workers {
            *clients.entry(pid.load(Ordering::Relaxed)).or_default() += 1;
        }
        let (pid, _) = clients.into_iter().min_by_key(|(_, count)| *count).expect("clients");
        stop_process(pid);
        lock(&self.shared.killed).extend(peers(pid));
        pid
    }

    /// Waits until every client has had another two answers, so that none is on its first one.
    pub async fn all_served(&self) {
        let before: Vec<u64> =
            self.shared.answers.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let deadline = tokio::time::Instant::now() + TEST_TIMEOUT;
        let served =
            |(count, before): (&AtomicU64, &u64)| count.load(Ordering::Relaxed) > before + 1;
        while !self.shared.answers.iter().zip(&before).all(served) {
            assert!(tokio::time::Instant::now() < deadline, "clients are served: {self:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Returns what the clients have noticed since this was called the last time.
    #[must_use]
    pub fn noticed(&self) -> Noticed {
        std::mem::take(&mut lock(&self.shared.noticed))
    }

    /// Stops the clients, each after its current request.
    pub async fn stop(self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("a client does not panic");
        }
    }
}

/// Stops a process. Returns when none of it runs.
fn stop_process(pid: u32) {
    let number = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    rustix::process::kill_process(number.expect("a pid"), rustix::process::Signal::STOP)
        .expect("a process of this test");
    let is_stopped = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" T"))
    };
    let deadline = std::time::Instant::now() + TEST_TIMEOUT;
    while !is_stopped() {
        assert!(std::time::Instant::now() < deadline, "process {pid} does not stop");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Returns whom a process is connected to over IPv4.
fn peers(pid: u32) -> Vec<SocketAddr> {
    let inodes: BTreeSet<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("a process of this test")
        .filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok())
        .filter_map(|to| Some(to.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let table = std::fs::read_to_string("/proc/net/tcp").expect("the connections of this machine");
    let peer = |line: &str| {
        let mut fields = line.split_whitespace();
        let (address, port) = fields.nth(2)?.split_once(':')?;
        let address = u32::from_str_radix(address, 16).ok()?.to_ne_bytes();
        let port = u16::from_str_radix(port, 16).ok()?;
        inodes.contains(fields.nth(6)?).then(|| (address, port).into())
    };
    table.lines().filter_map(peer).collect()
}

/// A sequence that is the same in each run (xorshift).
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        for shift in [13, -7, 17] {
            self.0 ^= if shift > 0 { self.0 << shift } else { self.0 >> -shift };
        }
        (self.0 >> 8) % limit
    }

    fn milliseconds(&mut self, limit: u64) -> Duration {
        Duration::from_micros(self.below(limit * 1000))
    }
}

/// How a connection ended.
enum End {
    /// A request was under way.
    Failed(String),
    /// Between two requests, without an announcement.
    Closed(String),
    /// After an answer that announced it.
    Announced,
}

struct Client {
    shared: Arc<Shared>,
    number: usize,
    manner: Manner,
    random: Random,
}

impl Client {
    async fn run(mut self) {
        while !self.has_to_stop() {
            let mut connection = match Connection::open(self.shared.address, self.number).await {
                Ok(connection) => connection,
                Err(error) => {
                    let text = format!("{}: cannot connect: {error}", self.name());
                    lock(&self.shared.noticed).failed.push(text);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let Err(end) = self.use_up(&mut connection).await else { return };
            let killed = lock(&self.shared.killed);
            let is_cut_off = killed.contains(&connection.address);
            let mut noticed = lock(&self.shared.noticed);
            match end {
                End::Announced => noticed.announced += 1,
                End::Failed(_) | End::Closed(_) if is_cut_off => noticed.cut_off += 1,
                End::Failed(how) => noticed.failed.push(format!("{}: {how}", self.name())),
                End::Closed(how) => noticed.closed.push(format!("{}: {how}", self.name())),
            }
        }
    }

    fn has_to_stop(&self) -> bool {
        self.shared.stop.load(Ordering::Relaxed)
    }

    fn name(&self) -> String {
        format!("client {} ({:?})", self.number, self.manner)
    }

    /// Sends requests over a connection until it ends, or the clients are to stop.
    async fn use_up(&mut self, connection: &mut Connection) -> Result<(), End> {
        while !self.has_to_stop() {
            self.ask(connection).await?;
            let pause = match self.manner {
                Manner::Unpaced => Duration::ZERO,
                Manner::Rare => Duration::from_millis(50) + self.random.milliseconds(100),
                _ => self.random.milliseconds(20),
            };
            connection.rest(pause).await?;
        }
        Ok(())
    }

    async fn ask(&mut self, connection: &mut Connection) -> Result<(), End> {
        let prefix = self.shared.prefix;
        let get = |path: &str| format!("GET {prefix}{path} HTTP/1.1\r\nHost: x\r\n\r\n");
        let mut expected = 1;
        match self.manner {
            Manner::Unpaced | Manner::Paced | Manner::Rare => connection.write(&get("/")).await?,
            Manner::SlowAnswers => {
                let path = format!("/slow/{}", self.random.below(60));
                connection.write(&get(&path)).await?;
            }
            Manner::Pipelined => {
                expected = self.random.below(8) + 1;
                let requests = get("/").repeat(usize::try_from(expected).unwrap_or(1));
                connection.write(&requests).await?;
            }
            Manner::SlowBodies => {
                let head =
                    format!("POST {prefix}/ HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\n");
                let pieces = if self.random.below(2) == 0 {
                    [format!("{head}Content-Length: 9\r\n\r\n"), "abc".into(), "defghi".into()]
                } else {
                    let chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n");
                    [chunked, "3\r\nabc\r\n6\r\ndef".into(), "ghi\r\n0\r\n\r\n".into()]
                };
                self.write_slowly(connection, &pieces).await?;
            }
            Manner::HalfHeads => {
                let request = get("/");
                let at = usize::try_from(self.random.below(request.len() as u64 - 1)).unwrap_or(0);
                let (half, rest) = request.split_at(at + 1);
                self.write_slowly(connection, &[half.to_owned(), rest.to_owned()]).await?;
            }
        }
        for _ in 0..expected {
            let is_last = connection.read_answer().await?;
            self.shared.answers[self.number].fetch_add(1, Ordering::Relaxed);
            let worker = connection.worker.unwrap_or_default();
            self.shared.workers[self.number].store(worker, Ordering::Relaxed);
            lock(&self.shared.noticed).answered += 1;
            if is_last {
                // Requests behind it are not processed, which the client knows.
                return Err(End::Announced);
            }
        }
        Ok(())
    }

    async fn write_slowly(&mut self, to: &mut Connection, pieces: &[String]) -> Result<(), End> {
        for (number, piece) in pieces.iter().enumerate() {
            if number > 0 {
                tokio::time::sleep(self.random.milliseconds(40)).await;
            }
            to.write(piece).await?;
        }
        Ok(())
    }
}

/// A connection, and what has been read of the answers on it.
struct Connection {
    /// The client's own.
    address: SocketAddr,
    stream: TcpStream,
    unread: Vec<u8>,
    /// The process that has answered last.
    worker: Option<u32>,
}

impl Connection {
    /// Connects from an address that belongs to this client, by which sticky policies know it.
    async fn open(address: SocketAddr, client: usize) -> std::io::Result<Connection> {
        let socket = TcpSocket::new_v4()?;
        let host = u8::try_from(client % 250 + 1).unwrap_or(1);
        socket.bind(([127, 0, 1, host], 0).into())?;
        let stream = socket.connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Connection { address: stream.local_addr()?, stream, unread: Vec::new(), worker: None })
    }

    fn failed(&self, how: impl std::fmt::Display) -> End {
        let unread = String::from_utf8_lossy(&self.unread);
        End::Failed(format!("{how}; worker {:?}, unread {unread:?}", self.worker))
    }

    async fn write(&mut self, text: &str) -> Result<(), End> {
        let written = self.stream.write_all(text.as_bytes()).await;
        written.map_err(|error| self.failed(format_args!("cannot send a request: {error}")))
    }

    /// Waits for so long; the connection may end meanwhile.
    async fn rest(&mut self, pause: Duration) -> Result<(), End> {
        let read = tokio::time::timeout(pause, self.stream.read_buf(&mut self.unread)).await;
        match read {
            Err(_) => Ok(()),
            Ok(Ok(count)) if count > 0 => Err(self.failed("an answer that nobody asked for")),
            Ok(_) => Err(End::Closed(format!("closed while idle by worker {:?}", self.worker))),
        }
    }

    async fn fill(&mut self) -> Result<(), End> {
        let read = self.stream.read_buf(&mut self.unread);
        match tokio::time::timeout(TEST_TIMEOUT, read).await {
            Ok(Ok(count)) if count > 0 => Ok(()),
            Ok(Ok(_)) => Err(self.failed("closed instead of an answer")),
            Ok(Err(error)) => Err(self.failed(error)),
            Err(_) => Err(self.failed("no answer")),
        }
    }

    async fn line(&mut self) -> Result<String, End> {
        loop {
            if let Some(end) = self.unread.windows(2).position(|two| two == b"\r\n") {
                let line = String::from_utf8_lossy(&self.unread[..end]).into_owned();
                self.unread.drain(..end + 2);
                return Ok(line);
            }
            self.fill().await?;
        }
    }

    async fn take(&mut self, count: usize) -> Result<String, End> {
        while self.unread.len() < count {
            self.fill().await?;
        }
        Ok(String::from_utf8_lossy(&self.unread.drain(..count).collect::<Vec<u8>>()).into_owned())
    }

    /// Reads an answer that says which process it is from. Returns whether it is the last one.
    async fn read_answer(&mut self) -> Result<bool, End> {
        let status = self.line().await?;
        let (mut length, mut is_last) = (None, false);
        loop {
            let line = self.line().await?.to_ascii_lowercase();
            match line.split_once(": ") {
                None => break,
                Some(("connection", "close")) => is_last = true,
                Some(("content-length", text)) => length = text.parse::<usize>().ok(),
                _ => {}
            }
        }
        let mut body = String::new();
        if let Some(length) = length {
            body = self.take(length).await?;
        } else {
            loop {
                let size = self.line().await?;
                let size = usize::from_str_radix(&size, 16).map_err(|_| self.failed("no chunk"))?;
                body += &self.take(size).await?;
                self.line().await?;
                if size == 0 {
                    break;
                }
            }
        }
        if status != "HTTP/1.1 200 OK" {
            return Err(self.failed(format_args!("answered {status}, {body:?}")));
        }
        let pid = body.split_whitespace().nth(1).and_then(|pid| pid.parse().ok());
        self.worker = Some(pid.ok_or_else(|| self.failed(format_args!("answered {body:?}")))?);
        Ok(is_last)
    }
}
