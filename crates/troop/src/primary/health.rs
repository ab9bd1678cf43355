//! Checks workers periodically, in a separate thread.

use std::collections::BTreeMap;
use std::ffi::{CStr, OsString};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::unix::pipe;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout, timeout_at};
use troop_core::WorkerId;
use troop_sys::spawn;

use super::Phase;
use super::driver::{ConnectionEnds, Injected};
use super::policies::{HealthCheck, HealthTest};
use super::snapshot::WorkerSnapshot;
use super::spawn::step;
use super::wake::{Command as Ask, DriverHandle};
use crate::error::Error;
use crate::setup::{Setup, texts};

type Variables = BTreeMap<OsString, OsString>;

/// Maximum number of concurrent checks.
const MAX_CONCURRENT: usize = 16;
/// Maximum number of bytes, from the end of the output, that are shown when a command fails.
const MAX_OUTPUT_SHOWN: usize = 600;
/// Time to wait for the rest of the output.
const OUTPUT_TIMEOUT: Duration = Duration::from_millis(200);
/// Maximum number of bytes of an answer that are read.
const MAX_ANSWER: usize = 16 * 1024;

/// Starts the thread; it ends with the cluster.
pub(super) fn start(cluster: DriverHandle, check: HealthCheck) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new()
        .name("troop-health".into())
        .spawn(move || runtime.block_on(watch(cluster, check)))?;
    Ok(())
}

async fn watch(cluster: DriverHandle, check: HealthCheck) {
    let mut beat = interval(check.every.max(Duration::from_millis(10)));
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        beat.tick().await;
        let Ok(snapshot) = cluster.ask(Ask::Snapshot).await else { return };
        if snapshot.phase == Phase::Stopping {
            return;
        }
        // Workers that start or drain are not expected to answer.
        let mut due = snapshot.workers.into_iter().filter(|worker| worker.ready == Some(true));
        let mut running = JoinSet::new();
        loop {
            while running.len() < MAX_CONCURRENT
                && let Some(worker) = due.next()
            {
                let (cluster, check) = (cluster.clone(), check.clone());
                running.spawn(async move { (worker.id, test(&cluster, &check, &worker).await) });
            }
            let Some(outcome) = running.join_next().await else { break };
            let Ok((worker, outcome)) = outcome else { continue };
            let result = match outcome {
                Ok(()) => Ok(()),
                // The result says nothing about the worker.
                Err(Failed::Untested) => continue,
                Err(Failed::Sick(reason)) => Err(format!("its health check failed: {reason}")),
            };
            if cluster.send(Ask::HealthChecked(worker, result)).is_err() {
                return;
            }
        }
    }
}

/// The reason for a failed check.
enum Failed {
    Sick(String),
    /// This process has no descriptors or memory for it.
    Untested,
}

impl From<String> for Failed {
    fn from(reason: String) -> Failed {
        Failed::Sick(reason)
    }
}

impl From<&str> for Failed {
    fn from(reason: &str) -> Failed {
        Failed::Sick(reason.into())
    }
}

fn cannot(doing: &'static str) -> impl Fn(std::io::Error) -> Failed {
    move |e| if is_shortage(&e) { Failed::Untested } else { Failed::Sick(format!("{doing}: {e}")) }
}

fn is_shortage(e: &std::io::Error) -> bool {
    use rustix::io::Errno;
    const SHORTAGES: [Errno; 5] =
        [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS, Errno::AGAIN];
    e.raw_os_error().is_some_and(|errno| SHORTAGES.contains(&Errno::from_raw_os_error(errno)))
}

async fn test(
    cluster: &DriverHandle,
    check: &HealthCheck,
    worker: &WorkerSnapshot,
) -> Result<(), Failed> {
    let until = Instant::now() + check.timeout;
    let late = || format!("no answer within {:?}", check.timeout);
    let outcome = match &check.test {
        HealthTest::Command(command) => return run(cluster, command, worker, check.timeout).await,
        HealthTest::Tcp => timeout_at(until, connect(cluster, check, worker.id, None)).await,
        HealthTest::Http(path) => {
            timeout_at(until, connect(cluster, check, worker.id, Some(path))).await
        }
    };
    outcome.unwrap_or_else(|_| Err(late().into()))
}

async fn connect(
    cluster: &DriverHandle,
    check: &HealthCheck,
    worker: WorkerId,
    path: Option<&str>,
) -> Result<(), Failed> {
    let listener = check.listener.clone();
    let cannot = cannot("no connection for it can be made");
    let (tcp, unix) = (
        tcp_pair().await.map_err(&cannot)?,
        std::os::unix::net::UnixStream::pair().map_err(&cannot)?,
    );
    let ends = ConnectionEnds { tcp: tcp.1, unix: unix.1.into() };
    let injected = cluster.ask(|done| Ask::Inject(worker, listener, ends, done)).await;
    let Injected { unix: is_unix, taken } = injected.map_err(|e| e.to_string())??;
    let end = if is_unix { unix.0.into() } else { tcp.0 };
    if !taken.await.unwrap_or(false) {
        return Err("it did not take the connection".into());
    }
    let Some(path) = path else { return Ok(()) };
    let status = status(end, path).await?;
    if (200..400).contains(&status) {
        Ok(())
    } else {
        Err(format!("{path} answered {status}").into())
    }
}

/// Two ends of a TCP connection. (There is no `socketpair` for it.)
async fn tcp_pair() -> std::io::Result<(OwnedFd, OwnedFd)> {
    let any = |ip: IpAddr| TcpListener::bind(SocketAddr::new(ip, 0));
    let listener = match any(Ipv4Addr::LOCALHOST.into()).await {
        Ok(listener) => listener,
        Err(_) => any(Ipv6Addr::LOCALHOST.into()).await?,
    };
    let ours = TcpStream::connect(listener.local_addr()?).await?;
    loop {
        let (theirs, peer) = listener.accept().await?;
        // Another process could have connected in between.
        if peer == ours.local_addr()? {
            return Ok((ours.into_std()?.into(), theirs.into_std()?.into()));
        }
    }
}

/// Returns the HTTP status of a request for a path.
async fn status(end: OwnedFd, path: &str) -> Result<u16, String> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: troop\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    let stream = Stream::new(end).map_err(|e| e.to_string())?;
    stream.write(request.as_bytes()).await.map_err(|e| format!("it cannot be written to: {e}"))?;
    let mut answer = Vec::new();
    loop {
        let mut part = [0; 1024];
        let len =
            stream.read(&mut part).await.map_err(|e| format!("it cannot be read from: {e}"))?;
        answer.extend_from_slice(&part[..len]);
        if let Some(end) = answer.iter().position(|byte| *byte == b'\n') {
            let line = String::from_utf8_lossy(&answer[..end]);
            let status = line
                .strip_prefix("HTTP/")
                .and_then(|rest| rest.split(' ').nth(1))
                .and_then(|status| status.trim().parse().ok());
            return status.ok_or_else(|| {
                format!(
                    "this is no HTTP answer: {:?}",
                    line.trim().chars().take(80).collect::<String>()
                )
            });
        }
        if len == 0 || answer.len() > MAX_ANSWER {
            return Err("it closed the connection without an answer".into());
        }
    }
}

/// A connection of either kind.
struct Stream(tokio::net::UnixStream);

impl Stream {
    fn new(end: OwnedFd) -> std::io::Result<Stream> {
        // Only read, written and waited for, which is the same for all sockets.
        let stream = std::os::unix::net::UnixStream::from(end);
        stream.set_nonblocking(true)?;
        Ok(Stream(tokio::net::UnixStream::from_std(stream)?))
    }

    async fn read(&self, bytes: &mut [u8]) -> std::io::Result<usize> {
        loop {
            self.0.readable().await?;
            match self.0.try_read(bytes) {
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
    }

    async fn write(&self, mut bytes: &[u8]) -> std::io::Result<()> {
        while !bytes.is_empty() {
            self.0.writable().await?;
            match self.0.try_write(bytes) {
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                result => bytes = &bytes[result?..],
            }
        }
        Ok(())
    }
}

/// Runs a command as workers run: their user, directory, environment and limits. Its status is sent
/// over a pipe, because a primary that is process 1 may reap the command first.
async fn run(
    cluster: &DriverHandle,
    command: &str,
    worker: &WorkerSnapshot,
    limit: Duration,
) -> Result<(), Failed> {
    let until = Instant::now() + limit;
    let late = || format!("its command did not end within {limit:?}");
    let setup = cluster.ask(Ask::CurrentSetup).await.map_err(|e| e.to_string())?;
    let variables: [(&str, OsString); 4] = [
        ("TROOP_HEALTH_COMMAND", command.into()),
        ("TROOP_WORKER", worker.id.to_string().into()),
        ("TROOP_WORKER_PID", worker.pid.to_string().into()),
        ("TROOP_SLOT", worker.slot.to_string().into()),
    ];
    let env = variables.into_iter().map(|(name, value)| (name.into(), value)).collect();
    let slot = Some(worker.slot);
    // A process that stops the new one while it starts must not block other checks.
    let mut starting = tokio::task::spawn_blocking(move || start_shell(&setup, slot, &env));
    let Ok(started) = timeout_at(until, &mut starting).await else {
        tokio::spawn(async {
            if let Ok(Ok(shell)) = starting.await {
                end(shell.child);
            }
        });
        return Err(late().into());
    };
    let started = started.unwrap_or_else(|e| Err(Error::Settings(e.to_string())));
    let Shell { child, pipe, output, lifeline } = started.map_err(|e| match e {
        Error::Io { source, .. } | Error::Spawn { source, .. } if is_shortage(&source) => {
            Failed::Untested
        }
        e => Failed::Sick(format!("its command cannot be run: {}", e.chain())),
    })?;
    let printed = Arc::<Mutex<Vec<u8>>>::default();
    let status = match (pipe::Receiver::from_owned_fd(pipe), pipe::Receiver::from_owned_fd(output))
    {
        (Ok(pipe), Ok(output)) => {
            let reading = tokio::spawn(keep_last(output, printed.clone()));
            Ok((timeout_at(until, exit_code(pipe)).await, reading))
        }
        (Err(e), _) | (_, Err(e)) => Err(cannot("its command cannot be watched")(e)),
    };
    end(child);
    drop(lifeline);
    let (status, mut reading) = status?;
    // Other processes that hold the pipe are not waited for.
    if !matches!(status, Ok(Some(0))) {
        let _ = timeout(OUTPUT_TIMEOUT, &mut reading).await;
    }
    reading.abort();
    let reason = match status {
        Ok(Some(0)) => return Ok(()),
        Ok(Some(code)) => format!("its command ended with {code}"),
        Ok(None) => "its command was ended by a signal".into(),
        Err(_) => late(),
    };
    let printed = printed.lock().unwrap_or_else(PoisonError::into_inner);
    let words = String::from_utf8_lossy(&printed);
    let words = words.trim();
    Err(if words.is_empty() { reason } else { format!("{reason}; it printed: {words}") }.into())
}

/// Reads the output of a command, and keeps the end of it.
async fn keep_last(output: pipe::Receiver, kept: Arc<Mutex<Vec<u8>>>) {
    let mut part = [0; 4096];
    loop {
        if output.readable().await.is_err() {
            return;
        }
        match output.try_read(&mut part) {
            Ok(0) => return,
            Ok(len) => {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend_from_slice(&part[..len]);
                let surplus = kept.len().saturating_sub(MAX_OUTPUT_SHOWN);
                kept.drain(..surplus);
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

/// Ends a command and its descendants, and reaps it.
fn end(child: spawn::Child) {
    if !troop_sys::process::has_ended(child.pidfd.as_fd()) {
        // So the number of its group is not reused yet.
        let _ = troop_sys::process::signal_group(child.pid, 9);
    }
    tokio::task::spawn_blocking(move || troop_sys::process::reap(child.pidfd.as_fd()));
}

/// The shell that runs a command.
struct Shell {
    child: spawn::Child,
    /// The pipe with its exit status.
    pipe: OwnedFd,
    /// The pipe with its output.
    output: OwnedFd,
    /// The pipe whose close, also by the end of this process, ends the command's process group.
    lifeline: OwnedFd,
}

/// Starts the shell that runs a command.
fn start_shell(setup: &Setup, slot: Option<u32>, env: &Variables) -> Result<Shell, Error> {
    // The process that reads the lifeline kills the group, with everything that the command has
    // left in it, when the status is known or the primary has ended.
    const SCRIPT: &CStr = c"(read line <&3; kill -9 0) >/dev/null 2>&1 4>&- &\n\
        (eval \"$TROOP_HEALTH_COMMAND\") </dev/null >&4 2>&4 3<&- 4>&-\n\
        echo $?";
    let (reader, writer) = std::io::pipe().map_err(Error::io("make a pipe"))?;
    let (life, lifeline) = std::io::pipe().map_err(Error::io("make a pipe"))?;
    let (output, printer) = std::io::pipe().map_err(Error::io("make a pipe"))?;
    if let Some(uid) = setup.get_uid() {
        // Lets the command open it by name (`/dev/stderr`). Where that fails, such commands fail.
        let _ = rustix::fs::fchown(&printer, Some(rustix::process::Uid::from_raw(uid)), None);
    }
    let null = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(Error::io("open /dev/null"))?;
    let mut command = setup.command(slot, texts(setup.environment(env))?)?;
    command.candidates = vec![c"/bin/sh".into()];
    command.argv = vec![c"sh".into(), c"-c".into(), SCRIPT.into()];
    command.fds = vec![
        (0, null.as_fd()),
        (1, writer.as_fd()),
        (2, null.as_fd()),
        (3, life.as_fd()),
        (4, printer.as_fd()),
    ];
    command.own_group = true;
    let child = spawn::spawn(&command).map_err(|e| Error::Spawn {
        program: "/bin/sh".into(),
        step: step(&e, setup),
        source: e.source,
    })?;
    Ok(Shell { child, pipe: reader.into(), output: output.into(), lifeline: lifeline.into() })
}

/// Returns the number that is sent over a pipe, if any. The time and the bytes are limited,
/// whatever processes hold the pipe.
async fn exit_code(pipe: pipe::Receiver) -> Option<u8> {
    let mut text = Vec::new();
    while !text.contains(&b'\n') && text.len() <= 8 {
        let mut part = [0; 8];
        pipe.readable().await.ok()?;
        match pipe.try_read(&mut part) {
            Ok(0) => break,
            Ok(len) => text.extend_from_slice(&part[..len]),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
    }
    std::str::from_utf8(&text).ok()?.trim().parse().ok()
}
