//! The lower limits: loops of the necessary system calls and nothing else.
//!
//! They make no decisions, parse nothing, detect no violations and lose connections when a worker
//! ends. Every primary that passes connections has at least their cost.

use std::collections::VecDeque;
use std::ffi::CString;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::Value;
use troop_core::wire::outgoing;
use troop_sys::poll::{Interest, Poller};
use troop_sys::{fdpass, listen, socket, spawn};

use crate::peer::{Result, script};

/// Number of unacknowledged connections per Node worker.
const NODE_WINDOW: usize = 8;
/// Number of unacknowledged connections per bare worker, which gets them in batches.
const WINDOW: usize = 64;
/// Number of connections in a batch.
const BATCH: usize = 16;
/// Descriptor number of a worker's channel.
const CHANNEL: i32 = 3;
/// Number of lines by which a Node worker acknowledges a connection.
const NODE_LINES: usize = 2;

struct Worker {
    channel: OwnedFd,
    in_flight: VecDeque<OwnedFd>,
    /// Acknowledgement lines that do not complete a connection yet.
    answers: usize,
}

fn start(id: usize, program: &str, arguments: &[&str]) -> Result<OwnedFd> {
    let (ours, theirs) = fdpass::channel()?;
    let text = |s: String| CString::new(s);
    let mut env: Vec<_> = std::env::vars()
        .filter(|(name, _)| !name.starts_with("NODE_"))
        .map(|(n, v)| text(format!("{n}={v}")))
        .collect();
    env.push(text(format!("NODE_UNIQUE_ID={id}")));
    env.push(text(format!("NODE_CHANNEL_FD={CHANNEL}")));
    env.push(text("NODE_CHANNEL_SERIALIZATION_MODE=json".into()));
    let path = std::env::var_os("PATH");
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    spawn::spawn(&spawn::Command {
        candidates: spawn::search(&text(program.into())?, path.as_deref()),
        argv: std::iter::once(&program)
            .chain(arguments)
            .map(|s| text((*s).into()))
            .collect::<std::result::Result<_, _>>()?,
        env: env.into_iter().collect::<std::result::Result<_, _>>()?,
        pid_variable: None,
        death_signal: 0,
        cwd: None,
        fds: vec![
            (0, stdin.as_fd()),
            (1, stdout.as_fd()),
            (2, stderr.as_fd()),
            (CHANNEL, theirs.as_fd()),
        ],
        uid: None,
        gid: None,
        groups: None,
        own_group: false,
        own_session: false,
        no_new_privileges: false,
        sandbox: troop_sys::sandbox::Sandbox::default(),
        descriptor_limit: None,
        limits: Vec::new(),
        umask: None,
        nice: None,
        cpus: Vec::new(),
        cgroup: None,
        is_sibling: false,
    })?;
    Ok(ours)
}

/// Answers a worker's request for a server, and waits until the worker listens.
fn shake_hands(channel: &OwnedFd, port: u16, troop: Option<u32>) -> Result<()> {
    socket::set_nonblocking(channel, false)?;
    let mut stream = UnixStream::from(channel.try_clone()?);
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(stream.try_clone()?));
    loop {
        let line: Value = serde_json::from_str(&lines.next().ok_or("a worker ended")??)?;
        match line["act"].as_str() {
            Some("queryServer") => {
                let name = outgoing::SockName { address: "127.0.0.1".into(), family: "IPv4", port };
                let mut answer = Vec::new();
                let ack = line["seq"].as_u64().unwrap_or(0);
                let (errno, data, sockname, seq) = (None, None, Some(&name), 0);
                outgoing::reply(
                    &mut answer,
                    &outgoing::Reply { key: "bare", ack, errno, data, sockname, troop, seq },
                );
                stream.write_all(&answer)?;
            }
            Some("listening") => break,
            _ => {}
        }
    }
    Ok(socket::set_nonblocking(channel, true)?)
}

/// Runs a primary with workers of Node (one message per connection), of troop (batches), or bare
/// ones (batches).
pub(crate) fn primary(kind: &str, count: usize) -> Result<()> {
    let (of_node, of_troop) = (kind == "node", kind == "rust-troop");
    let listener = listen::tcp(Some(IpAddr::V4(Ipv4Addr::LOCALHOST)), 0, false)?;
    socket::listen(&listener, 511)?;
    let port = socket::local_address(&listener).ok_or("no address")?.port();
    let mut poller = Poller::new()?;
    poller.add(&listener, 0, Interest::ReadEdge)?;
    let mut workers = Vec::new();
    for id in 1..=count {
        let channel = if of_node {
            start(id, "node", &[&script("server.js")])?
        } else if of_troop {
            start(id, "/proc/self/exe", &["peer", "server"])?
        } else {
            start(id, "/proc/self/exe", &["peer", "bare-worker"])?
        };
        poller.add(&channel, id as u64, Interest::Read)?;
        workers.push(Worker { channel, in_flight: VecDeque::new(), answers: 0 });
    }
    if of_node || of_troop {
        for worker in &workers {
            shake_hands(&worker.channel, port, of_troop.then_some(1))?;
        }
    }
    println!("ready {port}");
    let mut line = Vec::new();
    outgoing::newconn(&mut line, "\"bare\"", 1, false);
    let (mut ready, mut buffer, mut none) = (Vec::new(), vec![0; 65536], Vec::new());
    let (mut waiting, mut turn) = (false, 0);
    loop {
        ready.clear();
        poller.wait(None, &mut ready)?;
        for event in &ready {
            if event.token == 0 {
                waiting = true;
                continue;
            }
            let worker = &mut workers[usize::try_from(event.token - 1)?];
            let got = fdpass::recv(worker.channel.as_fd(), &mut buffer, &mut none)?.len;
            if got == 0 {
                return Ok(());
            }
            let answered = if of_node {
                worker.answers += buffer[..got].iter().filter(|byte| **byte == b'\n').count();
                let whole = worker.answers / NODE_LINES;
                worker.answers %= NODE_LINES;
                whole
            } else if of_troop {
                // `{"cmd":"NODE_TROOP","act":"taken","taken":[7,8,9]}`: one comma more than numbers
                // in each line.
                let text = &buffer[..got];
                let count = |wanted: u8| text.iter().filter(|byte| **byte == wanted).count();
                let (commas, lines) = (count(b','), count(b'\n'));
                worker.answers += commas;
                worker.answers -= lines.min(worker.answers);
                // Of a line that is cut, the comma that is too many is counted until its end has
                // come.
                std::mem::take(&mut worker.answers)
            } else {
                buffer[..got].iter().map(|count| usize::from(*count)).sum()
            };
            worker.in_flight.drain(..answered.min(worker.in_flight.len()));
        }
        if of_node {
            one_by_one(&listener, &mut workers, &mut waiting, &mut turn, &line)?;
        } else {
            let write = if of_troop { troop_batch } else { bare_batch };
            in_batches(&listener, &mut workers, &mut waiting, &mut turn, write)?;
        }
    }
}

/// Accepts the next connection, if there is one; `waiting` returns whether there may be more.
fn accept(listener: &OwnedFd, waiting: &mut bool) -> Result<Option<OwnedFd>> {
    match socket::accept(listener.as_fd()) {
        Ok(connection) => Ok(Some(connection)),
        Err(e) if e.kind() == ErrorKind::WouldBlock => {
            *waiting = false;
            Ok(None)
        }
        Err(e) => Err(e.into()),
    }
}

/// Returns the next worker in turn that has room.
fn next(workers: &[Worker], turn: &mut usize, window: usize) -> Option<usize> {
    let found = (0..workers.len())
        .map(|n| (*turn + n) % workers.len())
        .find(|at| workers[*at].in_flight.len() < window)?;
    *turn = found + 1;
    Some(found)
}

fn one_by_one(
    listener: &OwnedFd,
    workers: &mut [Worker],
    waiting: &mut bool,
    turn: &mut usize,
    line: &[u8],
) -> Result<()> {
    while *waiting && let Some(at) = next(workers, turn, NODE_WINDOW) {
        let Some(connection) = accept(listener, waiting)? else { break };
        fdpass::send(workers[at].channel.as_fd(), line, &[connection.as_fd()])?;
        workers[at].in_flight.push_back(connection);
    }
    Ok(())
}

fn bare_batch(line: &mut Vec<u8>, _: usize) {
    line.push(b'+');
}

fn troop_batch(line: &mut Vec<u8>, count: usize) {
    // The numbers are arbitrary: they are not used again.
    const NUMBERS: [u64; BATCH] = [1; BATCH];
    outgoing::conns(line, "\"bare\"", &NUMBERS[..count]);
}

fn in_batches(
    listener: &OwnedFd,
    workers: &mut [Worker],
    waiting: &mut bool,
    turn: &mut usize,
    write: fn(&mut Vec<u8>, usize),
) -> Result<()> {
    // Dealt out one by one, sent together.
    let mut dealt: Vec<Vec<OwnedFd>> = workers.iter().map(|_| Vec::new()).collect();
    while *waiting {
        let Some(at) = next(workers, turn, WINDOW) else { break };
        if dealt[at].len() == BATCH {
            break;
        }
        let Some(connection) = accept(listener, waiting)? else { break };
        dealt[at].push(connection);
    }
    let mut line = Vec::new();
    for (worker, connections) in workers.iter_mut().zip(dealt) {
        if !connections.is_empty() {
            let fds: Vec<_> = connections.iter().map(AsFd::as_fd).collect();
            line.clear();
            write(&mut line, fds.len());
            fdpass::send(worker.channel.as_fd(), &line, &fds)?;
            worker.in_flight.extend(connections);
        }
    }
    if *waiting && workers.iter().any(|worker| worker.in_flight.len() < WINDOW) {
        return in_batches(listener, workers, waiting, turn, write);
    }
    Ok(())
}

/// Runs a worker for batches: writes one byte to each connection, closes it, and acknowledges the
/// batch by its size.
pub(crate) fn worker() -> Result<()> {
    let mark = [b'0' + (std::env::var("NODE_UNIQUE_ID")?.parse::<u32>()? % 10) as u8];
    let channel = troop_sys::inherited::claim(CHANNEL)?;
    let mut poller = Poller::new()?;
    poller.add(&channel, 0, Interest::Read)?;
    let (mut ready, mut connections) = (Vec::new(), Vec::new());
    loop {
        ready.clear();
        poller.wait(None, &mut ready)?;
        match fdpass::recv(channel.as_fd(), &mut [0; 64], &mut connections) {
            Ok(got) if got.len == 0 => return Ok(()),
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => continue,
            Err(e) => return Err(e.into()),
        }
        fdpass::send(channel.as_fd(), &[u8::try_from(connections.len())?], &[])?;
        for connection in connections.drain(..) {
            let _ = rustix::io::write(&connection, &mark);
        }
    }
}

/// Size of a message between the two ends of [`socketpair`].
const MESSAGE: [u8; 104] = {
    let mut message = [b'x'; 104];
    message[103] = b'\n';
    message
};

fn count_lines(stream: &mut UnixStream, mut lines: usize) -> Result<()> {
    let mut buffer = [0; 65536];
    while lines > 0 {
        let got = stream.read(&mut buffer)?;
        if got == 0 {
            return Err("the other end is closed".into());
        }
        lines = lines.saturating_sub(buffer[..got].iter().filter(|byte| **byte == b'\n').count());
    }
    Ok(())
}

fn side(stream: &mut UnixStream, test: &str, count: usize, first: bool) -> Result<()> {
    match (test, first) {
        ("trip", _) => {
            for _ in 0..count {
                if first {
                    stream.write_all(&MESSAGE)?;
                }
                count_lines(stream, 1)?;
                if !first {
                    stream.write_all(&MESSAGE)?;
                }
            }
        }
        ("up", true) => {
            stream.write_all(&MESSAGE)?;
            count_lines(stream, count)?;
        }
        ("up", false) => {
            count_lines(stream, 1)?;
            (0..count).try_for_each(|_| stream.write_all(&MESSAGE))?;
        }
        (_, true) => {
            (0..count).try_for_each(|_| stream.write_all(&MESSAGE))?;
            count_lines(stream, 1)?;
        }
        (_, false) => {
            count_lines(stream, count)?;
            stream.write_all(&MESSAGE)?;
        }
    }
    Ok(())
}

/// Makes the same round trips in a tokio program.
#[tokio::main(flavor = "current_thread")]
async fn trips_in_runtime(stream: UnixStream, count: usize, first: bool) -> Result<()> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    stream.set_nonblocking(true)?;
    let mut stream = tokio::net::UnixStream::from_std(stream)?;
    let mut buffer = vec![0; 65536];
    for _ in 0..count {
        if first {
            stream.write_all(&MESSAGE).await?;
        }
        // Whole messages: each is written at once, and there is never more than one.
        if stream.read(&mut buffer).await? == 0 {
            return Err("the other end is closed".into());
        }
        if !first {
            stream.write_all(&MESSAGE).await?;
        }
    }
    Ok(stream.into_std()?.set_nonblocking(false)?)
}

fn round(stream: &mut UnixStream, test: &str, count: usize, first: bool) -> Result<()> {
    if test == "trip-in-runtime" {
        trips_in_runtime(stream.try_clone()?, count, first)
    } else {
        side(stream, test, count, first)
    }
}

/// Exchanges messages over a socket between two processes: one write per message, no JSON.
pub(crate) fn socketpair(test: &str, count: usize) -> Result<()> {
    let (mut ours, theirs) = UnixStream::pair()?;
    let arguments = ["peer", "socketpair-worker", test, &count.to_string()];
    let mut child = Command::new("/proc/self/exe")
        .args(arguments)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()?;
    round(&mut ours, test, count.div_ceil(10), true)?;
    println!("ready");
    std::io::stdin().read_line(&mut String::new())?;
    let begin = Instant::now();
    round(&mut ours, test, count, true)?;
    println!("done {} 0", begin.elapsed().as_nanos());
    std::io::stdin().read_line(&mut String::new())?;
    child.kill()?;
    Ok(())
}

/// Runs the other end.
pub(crate) fn socketpair_worker(test: &str, count: usize) -> Result<()> {
    let mut stream = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    round(&mut stream, test, count.div_ceil(10), false)?;
    round(&mut stream, test, count, false)?;
    // Stays until its CPU time has been read.
    count_lines(&mut stream, usize::MAX)
}
