//! The clients: one thread, with a fixed number of connections at a time and in all.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};
use troop_sys::poll::{Interest, Poller};

use crate::peer::Result;

/// Deadline of a run.
const LOAD_TIMEOUT: Duration = Duration::from_secs(120);

/// The measurements of the clients.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Time from the first connect to the last close.
    pub(crate) took: Duration,
    /// Number of connections by the byte that the worker sent.
    pub(crate) shares: BTreeMap<u8, usize>,
    /// Number of connections that closed without a byte.
    pub(crate) failed: usize,
    /// Duration of each connection, from connect to close.
    pub(crate) latencies: Vec<Duration>,
}

impl Outcome {
    /// Returns the quantile of the durations at this fraction.
    pub(crate) fn percentile(&mut self, part: f64) -> Duration {
        self.latencies.sort_unstable();
        let at = (self.latencies.len() as f64 * part) as usize;
        self.latencies
            .get(at.min(self.latencies.len().saturating_sub(1)))
            .copied()
            .unwrap_or_default()
    }
}

fn open(address: SocketAddr, source: Option<u8>) -> Result<OwnedFd> {
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
        None,
    )?;
    if let Some(source) = source {
        rustix::net::bind(&socket, &SocketAddr::from(([127, 0, 1, source], 0)))?;
    }
    match connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(e) => Err(e.into()),
    }
}

/// Opens `count` connections from many addresses, reads a byte from each, and leaves them open.
pub(crate) fn hold(address: SocketAddr, count: usize) -> Result<Vec<OwnedFd>> {
    let mut held = Vec::with_capacity(count);
    while held.len() < count {
        // Few at a time, so that the accept queue has room for all.
        let some: Vec<OwnedFd> = (held.len()..count.min(held.len() + 64))
            .map(|n| open(address, Some((n % 250 + 1) as u8)))
            .collect::<Result<_>>()?;
        for socket in &some {
            use rustix::event::{PollFd, PollFlags, Timespec, poll};
            let patience = Timespec { tv_sec: 30, tv_nsec: 0 };
            poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&patience))?;
            if rustix::io::read(socket, &mut [0; 1])? == 0 {
                return Err("a connection that was to stay open was closed".into());
            }
        }
        held.extend(some);
    }
    Ok(held)
}

/// A load: connect, read to the end (or the first byte, if the client closes), close.
struct Load {
    address: SocketAddr,
    /// Number of connections at a time.
    clients: usize,
    count: usize,
    /// Whether to connect from many addresses.
    apart: bool,
    /// Whether the clients close their connections.
    ours: bool,
    /// Smallest interval between connections.
    every: Duration,
}

/// Makes `count` connections, `clients` at a time, and reads each to its end.
pub(crate) fn run(address: SocketAddr, clients: usize, count: usize) -> Result<Outcome> {
    run_with(Load { address, clients, count, apart: false, ours: false, every: Duration::ZERO })
}

/// Makes connections at this interval, and not faster.
pub(crate) fn run_paced(
    address: SocketAddr,
    clients: usize,
    count: usize,
    every: Duration,
) -> Result<Outcome> {
    run_with(Load { address, clients, count, apart: false, ours: false, every })
}

/// Makes connections from many addresses.
pub(crate) fn run_from(address: SocketAddr, clients: usize, count: usize) -> Result<Outcome> {
    run_with(Load { address, clients, count, apart: true, ours: false, every: Duration::ZERO })
}

/// Makes connections from many addresses, which the clients close.
pub(crate) fn run_and_leave(address: SocketAddr, clients: usize, count: usize) -> Result<Outcome> {
    run_with(Load { address, clients, count, apart: true, ours: true, every: Duration::ZERO })
}

fn run_with(load: Load) -> Result<Outcome> {
    let Load { address, clients, count, apart, ours, every } = load;
    let mut poller = Poller::new()?;
    let mut slots: Vec<Option<(OwnedFd, Option<u8>, Instant)>> =
        (0..clients).map(|_| None).collect();
    let mut free: Vec<usize> = (0..clients).rev().collect();
    let mut outcome = Outcome {
        took: Duration::ZERO,
        shares: BTreeMap::new(),
        failed: 0,
        latencies: Vec::with_capacity(count),
    };
    let (mut ready, mut opened, mut ended) = (Vec::new(), 0, 0);
    let begin = Instant::now();
    while ended < count {
        // When the next one is due, if somebody is there to make it.
        let mut due = Duration::from_secs(1);
        while opened < count && !free.is_empty() {
            due = (every * u32::try_from(opened)?).saturating_sub(begin.elapsed());
            if !due.is_zero() {
                break;
            }
            let Some(slot) = free.pop() else { break };
            opened += 1;
            let since = Instant::now();
            let socket = open(address, apart.then_some((opened % 250 + 1) as u8))?;
            poller.add(&socket, slot as u64, Interest::Read)?;
            slots[slot] = Some((socket, None, since));
        }
        ready.clear();
        poller.wait(Some(due), &mut ready)?;
        if begin.elapsed() > LOAD_TIMEOUT {
            return Err(format!(
                "only {ended} of {count} connections were served within {LOAD_TIMEOUT:?}"
            )
            .into());
        }
        for event in &ready {
            let slot = usize::try_from(event.token)?;
            let Some((socket, mark, since)) = &mut slots[slot] else { continue };
            let mut buffer = [0; 16];
            let over = loop {
                match rustix::io::read(&*socket, &mut buffer) {
                    Ok(0) => break true,
                    Ok(_) => *mark = Some(buffer[0]),
                    Err(Errno::AGAIN) => break ours && mark.is_some(),
                    Err(_) => break true,
                }
            };
            if over {
                ended += 1;
                outcome.latencies.push(since.elapsed());
                match mark {
                    Some(mark) => *outcome.shares.entry(*mark).or_default() += 1,
                    None => outcome.failed += 1,
                }
                slots[slot] = None;
                free.push(slot);
            }
        }
    }
    outcome.took = begin.elapsed();
    Ok(outcome)
}

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// Returns the length of a response with its head.
pub(crate) fn length(answer: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(answer).ok()?;
    let head = text.find("\r\n\r\n")? + 4;
    let mut lines = text[..head].lines().map(str::to_ascii_lowercase);
    lines
        .find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok())
        .map(|body| head + body)
}

/// Makes `count` requests over `clients` kept connections, one after the other on each.
pub(crate) fn keep_alive(address: SocketAddr, clients: usize, count: usize) -> Result<Outcome> {
    keep_alive_with(address, clients, count, |_| REQUEST, |_, _| Ok(()))
}

/// As [`keep_alive`], with the request of each number, and a function that is called after each answer,
/// with the number of answers and the last byte, by which the shares are counted.
pub(crate) fn keep_alive_with(
    address: SocketAddr,
    clients: usize,
    count: usize,
    request: impl Fn(usize) -> &'static [u8],
    mut answers: impl FnMut(usize, u8) -> Result<()>,
) -> Result<Outcome> {
    let mut poller = Poller::new()?;
    let mut outcome = Outcome {
        took: Duration::ZERO,
        shares: BTreeMap::new(),
        failed: 0,
        latencies: Vec::with_capacity(count),
    };
    let mut connections = Vec::new();
    for slot in 0..clients {
        let stream = std::net::TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        poller.add(&stream, slot as u64, Interest::Read)?;
        connections.push((stream, Instant::now(), 0usize));
    }
    let begin = Instant::now();
    let (mut asked, mut answered, mut whole) = (0, 0, None);
    for (stream, since, _) in &mut connections {
        *since = Instant::now();
        rustix::io::write(&*stream, request(asked))?;
        asked += 1;
    }
    let (mut ready, mut buffer) = (Vec::new(), [0; 4096]);
    while answered < count {
        ready.clear();
        poller.wait(Some(Duration::from_secs(1)), &mut ready)?;
        if begin.elapsed() > LOAD_TIMEOUT {
            return Err(format!(
                "only {answered} of {count} requests were answered within {LOAD_TIMEOUT:?}"
            )
            .into());
        }
        for event in &ready {
            let (stream, since, got) = &mut connections[usize::try_from(event.token)?];
            let read = match rustix::io::read(&*stream, &mut buffer) {
                Ok(0) => return Err("a connection was closed".into()),
                Ok(n) => n,
                Err(Errno::AGAIN) => continue,
                Err(e) => return Err(e.into()),
            };
            *got += read;
            // All answers have the same length.
            let whole = *whole
                .get_or_insert(length(&buffer[..*got]).ok_or("the first answer is not whole")?);
            if *got < whole {
                continue;
            }
            answered += 1;
            let mark = buffer[read - 1];
            *outcome.shares.entry(mark).or_default() += 1;
            outcome.latencies.push(since.elapsed());
            *got = 0;
            if asked < count {
                *since = Instant::now();
                rustix::io::write(&*stream, request(asked))?;
                asked += 1;
            }
            answers(answered, mark)?;
        }
    }
    outcome.took = begin.elapsed();
    Ok(outcome)
}
