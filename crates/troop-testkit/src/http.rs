//! A client of HTTP/1.1 that keeps its connections open and sees how they end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::TEST_TIMEOUT;

/// Sends a GET request, and returns the body of the answer. `None` if the connection was closed
/// instead.
pub async fn ask(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), path: &str) -> Option<String> {
    answer(stream, path).await.map(|(body, _)| body)
}

/// The same, and whether the connection is said to be closed after it.
pub async fn answer(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    path: &str,
) -> Option<(String, bool)> {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.ok()?;
    read_answer(stream).await
}

/// Reads one answer that has a length, and nothing follows it.
pub async fn read_answer(stream: &mut (impl AsyncRead + Unpin)) -> Option<(String, bool)> {
    let mut bytes = Vec::new();
    let answer = next_answer(stream, &mut bytes).await;
    assert!(bytes.is_empty(), "more than one answer: {}", bytes.escape_ascii());
    answer
}

/// Reads one answer that has a length. What follows it stays in `bytes`.
async fn next_answer(
    stream: &mut (impl AsyncRead + Unpin),
    bytes: &mut Vec<u8>,
) -> Option<(String, bool)> {
    const END: &[u8] = b"\r\n\r\n";
    loop {
        if let Some(end) = bytes.windows(END.len()).position(|window| window == END) {
            let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
            let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
            let length: usize = length.and_then(|text| text.parse().ok()).expect("a length");
            let begin = end + END.len();
            if bytes.len() >= begin + length {
                let body = String::from_utf8_lossy(&bytes[begin..begin + length]).into_owned();
                bytes.drain(..begin + length);
                return Some((body, head.contains("connection: close")));
            }
        }
        let read = tokio::time::timeout(TEST_TIMEOUT, stream.read_buf(bytes))
            .await
            .expect("an answer or the end");
        if !read.is_ok_and(|n| n > 0) {
            return None;
        }
    }
}

/// Connects to a port of this machine.
pub async fn open(port: u16) -> TcpStream {
    TcpStream::connect(("127.0.0.1", port)).await.expect("the port is open")
}

/// Sends so many requests at once.
///
/// # Panics
/// If the connection is closed.
pub async fn send_together(stream: &mut (impl AsyncWrite + Unpin), count: usize) {
    let requests = "GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(count);
    stream.write_all(requests.as_bytes()).await.expect("the connection is open");
}

/// Reads the answers to so many requests that were sent together, and nothing follows them.
///
/// # Panics
/// If the connection is closed before the last answer, or an answer says that it will be.
pub async fn read_answers(stream: &mut (impl AsyncRead + Unpin), count: usize) {
    let mut bytes = Vec::new();
    for number in 0..count {
        let answer = next_answer(stream, &mut bytes).await;
        assert!(matches!(answer, Some((_, false))), "answer {number} of {count}: {answer:?}");
    }
    assert!(bytes.is_empty(), "more answers than requests: {}", bytes.escape_ascii());
}

/// Connections that have been used once, and stay open.
pub async fn kept(port: u16, count: usize) -> Vec<TcpStream> {
    let mut streams = Vec::new();
    for _ in 0..count {
        let mut stream = open(port).await;
        ask(&mut stream, "/").await.expect("an answer");
        streams.push(stream);
    }
    streams
}

/// Asks on all connections until so many workers answer on so many of them each, at least.
///
/// # Panics
/// If a connection is closed or its end announced, or nothing changes in time.
pub async fn are_shared_out(streams: &mut [TcpStream], workers: usize, least: usize) {
    let deadline = tokio::time::Instant::now() + TEST_TIMEOUT;
    loop {
        let mut shares = BTreeMap::<String, usize>::new();
        for stream in &mut *streams {
            let (worker, is_last) = answer(stream, "/").await.expect("it is still open");
            assert!(!is_last);
            *shares.entry(worker).or_default() += 1;
        }
        if shares.len() == workers && shares.values().all(|share| *share >= least) {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "they are not shared out: {shares:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Clients that go on asking on one connection each, until they are told to stop.
#[derive(Debug)]
pub struct Clients {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<Result<(), String>>>,
}

impl Clients {
    /// So many clients, of which one in four never pauses.
    #[must_use]
    pub fn start(port: u16, count: usize) -> Clients {
        let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let tasks = (0..count).map(|number| {
            let (stop, asked) = (stop.clone(), asked.clone());
            tokio::spawn(async move {
                let mut stream = open(port).await;
                while !stop.load(Ordering::Relaxed) {
                    match answer(&mut stream, "/").await {
                        Some((_, false)) => asked.fetch_add(1, Ordering::Relaxed),
                        Some((_, true)) => return Err(format!("{number} is told of the end")),
                        None => return Err(format!("{number} was closed")),
                    };
                    // Some never pause, others are idle for most of the time.
                    if number % 4 > 0 {
                        tokio::time::sleep(Duration::from_millis(number as u64 % 4 * 5)).await;
                    }
                }
                Ok(())
            })
        });
        let tasks = tasks.collect();
        Clients { stop, asked, tasks }
    }

    /// Waits until they have had 200 more answers, or one has noticed something.
    pub async fn more(&self) {
        let before = self.asked.load(Ordering::Relaxed);
        while self.asked.load(Ordering::Relaxed) < before + 200
            && !self.tasks.iter().any(|task| task.is_finished())
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Stops them; none has seen its connection closed, or heard that it will be.
    pub async fn none_has_noticed(self, what: &str) {
        self.stop.store(true, Ordering::Relaxed);
        let mut noticed = Vec::new();
        for task in self.tasks {
            noticed.extend(task.await.expect("a client does not panic").err());
        }
        assert!(noticed.is_empty(), "{what}: {noticed:?}");
    }
}
