//! The primary's side of the control socket, on a thread of its own.
//!
//! What a client can cost is bounded: the number of clients, the time until their request, and the
//! time to read the answer. A silent client makes room for the next one ([`PendingClients`]).

mod reload;
mod scale;

use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use troop::snapshot::Phase;
use troop::supervise::RecycleFailed;
use troop::{Cluster, Events, WorkerId};

use super::pending::{self, PendingClients};
use super::{Answer, AppSnapshot, Envelope, Failure, Request, VERSION};
use crate::log;
use crate::logs::paths::files;
use crate::logs::writer::LogQueue;
use crate::preflight;
use crate::resolve::{ResolvedApp, Source};
use crate::restart::RestartRequest;
use crate::signals::Signals;
use crate::start::{StartupReporter, start_timeout};
use crate::watch::Watched;

/// The number of clients that are served at a time.
const MAX_CLIENTS: usize = 32;
/// The number of these that follow events, and that wait for replies of workers.
const MAX_FOLLOWERS: usize = 16;
const MAX_WAITING_FOR_REPLIES: usize = 8;
/// Bytes of queued events per client.
const MAX_FOLLOWER_BYTES: usize = 1024 * 1024;
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time after which memory that the start needed is released in any case.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);

/// The app that a primary runs, besides its cluster.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) name: String,
    pub(crate) resolved: ResolvedApp,
    pub(crate) source: Source,
    /// The queue of the workers' output, if it passes through this process.
    pub(crate) queue: Option<Arc<LogQueue>>,
    pub(crate) restarting: Arc<RestartRequest>,
    /// Reports the outcome of the start to `troop start`.
    pub(crate) reporter: Option<Arc<StartupReporter>>,
}

/// Serves clients (if there is a listener), handles signals and reloads after changes of files,
/// until the process ends.
pub(crate) fn start(
    listener: Option<StdListener>,
    cluster: Cluster,
    identity: Identity,
    signals: Signals,
    watched: Option<Watched>,
) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let Identity { name, resolved, source, queue, restarting, reporter } = identity;
    let start_timeout = start_timeout(&resolved);
    let server = Arc::new(Server {
        cluster,
        name,
        source,
        started: resolved.clone(),
        resolved: Mutex::new(resolved),
        queue,
        restarting,
        waiting: Semaphore::new(1),
        reloading: tokio::sync::Mutex::default(),
        pending: PendingClients::default(),
        active: Semaphore::new(MAX_CLIENTS),
        event_streams: Semaphore::new(MAX_FOLLOWERS),
        reply_waiters: Semaphore::new(MAX_WAITING_FOR_REPLIES),
    });
    let serve = move || {
        runtime.block_on(async {
            if let Some(reporter) = reporter {
                let server = server.clone();
                tokio::spawn(async move {
                    reporter.watch(&server.cluster, &server.name, start_timeout).await
                });
            }
            let cluster = server.cluster.clone();
            tokio::spawn(async move { report_start(&cluster).await });
            if let Some(mut watched) = watched {
                let server = server.clone();
                tokio::spawn(async move {
                    while let Some(what) = watched.changed().await {
                        log::line(&format!("troop: {what} has changed"));
                        server.reload_without_client().await;
                    }
                });
            }
            tokio::spawn(server.clone().handle_signals(signals));
            let Some(listener) = listener else { return std::future::pending().await };
            let ready =
                listener.set_nonblocking(true).and_then(|()| UnixListener::from_std(listener));
            let Ok(listener) = ready else { return std::future::pending().await };
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    // Most likely out of descriptors.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                };
                let stream = server.pending.admit(stream);
                let server = server.clone();
                tokio::spawn(async move { server.serve_client(stream).await });
                // Tasks of disconnected clients end before the next client is accepted.
                tokio::task::yield_now().await;
            }
        });
    };
    std::thread::Builder::new().name("troop-control".into()).spawn(serve)?;
    Ok(())
}

/// Releases memory that only the start needed, when all workers are ready.
async fn report_start(cluster: &Cluster) {
    let _ = timeout(RELEASE_TIMEOUT, cluster.ready()).await;
    troop::program::own_code::release();
}

struct Server {
    cluster: Cluster,
    name: String,
    source: Source,
    /// The app as it was started; a reload cannot change all of it.
    started: ResolvedApp,
    /// The app as of the last reload.
    resolved: Mutex<ResolvedApp>,
    queue: Option<Arc<LogQueue>>,
    restarting: Arc<RestartRequest>,
    /// Held by the one reload that waits for the current one.
    waiting: Semaphore,
    /// Held during a reload.
    reloading: tokio::sync::Mutex<()>,
    pending: PendingClients,
    active: Semaphore,
    event_streams: Semaphore,
    reply_waiters: Semaphore,
}

/// The client has left, or does not read its answer.
struct Disconnected;

async fn send_answer(stream: &mut UnixStream, answer: &Answer) -> Result<(), Disconnected> {
    let mut line = serde_json::to_vec(answer).map_err(|_| Disconnected)?;
    line.push(b'\n');
    match timeout(WRITE_TIMEOUT, stream.write_all(&line)).await {
        Ok(Ok(())) => Ok(()),
        _ => Err(Disconnected),
    }
}

impl Server {
    async fn serve_client(&self, stream: Arc<UnixStream>) {
        // A second check: the directory already keeps other users out.
        let own = rustix::process::geteuid().as_raw();
        if !stream.peer_cred().is_ok_and(|peer| peer.uid() == own || peer.uid() == 0) {
            return;
        }
        let Some((line, mut stream)) = self.pending.read_request(stream).await else { return };
        let _place = self.active.try_acquire();
        let answer = match parse(&line) {
            Ok(_) if _place.is_err() => Err(Failure::new(
                "busy",
                format!("{MAX_CLIENTS} clients are being served; try again"),
            )),
            Ok(request) => match self.handle_request(request, &mut stream).await {
                Ok(result) => result,
                Err(Disconnected) => return,
            },
            Err(failure) => Err(failure),
        };
        let _ = send_answer(&mut stream, &answer.map_or_else(Answer::Failed, Answer::Done)).await;
    }

    async fn handle_request(
        &self,
        request: Request,
        stream: &mut UnixStream,
    ) -> Result<Result<Value, Failure>, Disconnected> {
        Ok(match request {
            Request::Snapshot => self.snapshot().await,
            Request::Reload { worker: None, allow_moved } => {
                self.reload(Some(stream), allow_moved).await
            }
            Request::Reload { worker: Some(worker), .. } => self.recycle(worker).await,
            Request::Logs => Ok(self.logs()),
            Request::Scale { workers, by, wait } => tokio::select! {
                scaled = self.scale(workers, by, wait) => scaled,
                // It goes on without the client.
                () = pending::until_closed(stream) => return Err(Disconnected),
            },
            Request::Schedule { listener, policy } => self.schedule(listener, &policy).await,
            Request::Signal { signal, worker } => self.signal(signal, worker).await,
            Request::Send { message, worker, wait_ms } => {
                if !self.resolved().app.bind.is_empty() {
                    let text =
                        "its workers take sockets by activation, and have no channel for messages";
                    return Ok(Err(Failure::new("failed", text)));
                }
                let Ok(_place) = self.reply_waiters.try_acquire() else {
                    return Ok(Err(Failure::new(
                        "busy",
                        format!(
                            "{MAX_WAITING_FOR_REPLIES} clients wait for answers of workers already"
                        ),
                    )));
                };
                let send = super::send::send(
                    &self.cluster,
                    message,
                    worker,
                    wait_ms.map(Duration::from_millis),
                );
                tokio::select! {
                    sent = send => sent,
                    () = pending::until_closed(stream) => return Err(Disconnected),
                }
            }
            Request::Restart => {
                if let Err(failure) = self.can_restart().await {
                    return Ok(Err(failure));
                }
                self.restarting.request();
                drop(self.cluster.stop());
                send_answer(stream, &Answer::Done(json!({ "restarting": true }))).await?;
                std::future::pending().await
            }
            Request::Stop { quick } => {
                self.restarting.cancel();
                drop(if quick { self.cluster.stop_now() } else { self.cluster.stop() });
                send_answer(stream, &Answer::Done(json!({ "stopping": true }))).await?;
                // The client waits for the end of the process, which comes before this completes.
                std::future::pending().await
            }
            Request::Events => return self.events(stream).await,
        })
    }

    async fn snapshot(&self) -> Result<Value, Failure> {
        let snapshot = self.cluster.snapshot().await.map_err(|e| failed(&e))?;
        let (name, program) =
            (self.name.clone(), Path::new(&self.resolved().program).display().to_string());
        let app = AppSnapshot {
            name,
            program,
            version: env!("CARGO_PKG_VERSION").into(),
            file: self.source.file().map(|file| {
                std::path::absolute(file).unwrap_or_else(|_| file.into()).display().to_string()
            }),
            log: self
                .queue
                .as_ref()
                .and_then(|queue| queue.path())
                .map(|path| path.display().to_string()),
            lost_lines: self.queue.as_ref().map_or(0, |queue| queue.dropped()),
            snapshot,
        };
        serde_json::to_value(app).map_err(|e| Failure::new("failed", e.to_string()))
    }

    /// Checks whether the app could be started again with its current configuration.
    async fn can_restart(&self) -> Result<(), Failure> {
        if self.cluster.snapshot().await.map_err(|e| failed(&e))?.phase == Phase::Stopping {
            return Err(Failure::new("busy", "the app is stopping"));
        }
        let (resolved, _) =
            self.source.next().await.map_err(|text| Failure::new("bad-request", text))?;
        let checked = resolved.setup().and_then(|_| preflight::check_files(&resolved));
        checked.map_err(|e| Failure::new("bad-request", e.chain()))
    }

    fn logs(&self) -> Value {
        let resolved = self.resolved();
        let (to, _) = resolved.output();
        let file = self.queue.as_ref().and_then(|queue| queue.path());
        let cwd = resolved.cwd.clone().unwrap_or_else(|| ".".into());
        let errors =
            files(&self.name, &resolved.app.output, &std::path::absolute(&cwd).unwrap_or(cwd))
                .1
                .filter(|_| file.is_some());
        json!({ "to": to, "file": file, "error_file": errors })
    }

    /// Handles SIGHUP and SIGUSR1.
    async fn handle_signals(self: Arc<Server>, signals: Signals) {
        let Signals { reload, reopen } = signals;
        let (Ok(mut reload), Ok(mut reopen)) =
            (UnixStream::from_std(reload), UnixStream::from_std(reopen))
        else {
            return;
        };
        loop {
            let (mut bytes, mut others) = ([0; 16], [0; 16]);
            tokio::select! {
                read = reload.read(&mut bytes) => match read {
                    Ok(1..) => {
                        let server = self.clone();
                        tokio::spawn(async move { server.reload_without_client().await });
                    }
                    _ => return,
                },
                read = reopen.read(&mut others) => match read {
                    Ok(1..) => self.queue.iter().for_each(|queue| queue.reopen()),
                    _ => return,
                },
            }
        }
    }

    /// Reloads after a signal or a change of files. Failures are logged, because no client waits.
    async fn reload_without_client(&self) {
        // One waiting reload covers all further requests.
        let Ok(waiting) = self.waiting.try_acquire() else { return };
        drop(self.reloading.lock().await);
        drop(waiting);
        if let Err(failure) = self.reload(None, false).await
            && failure.kind != "failed"
        {
            log::line(&format!("troop: not reloaded: {}", failure.message));
        }
    }

    /// Replaces one worker.
    async fn recycle(&self, worker: u32) -> Result<Value, Failure> {
        let worker = WorkerId(worker);
        if self.cluster.worker(worker).is_none() {
            return Err(Failure::new("no-worker", format!("there is no worker {worker}")));
        }
        let failed = match self.cluster.recycle(worker, "it was asked for").await {
            Ok(new) => return Ok(json!({ "replaced": 1, "new": new })),
            Err(failed) => failed,
        };
        Err(match failed {
            RecycleFailed::Reloading => Failure::new("busy", "all are being replaced now"),
            RecycleFailed::NotInService | RecycleFailed::UnderWay | RecycleFailed::Paused => {
                Failure::new("busy", "others are being replaced, or it is leaving")
            }
            RecycleFailed::Ended => Failure::new("failed", "it ended by itself meanwhile"),
            RecycleFailed::Stopping | RecycleFailed::Over => {
                Failure::new("over", "the app is stopping")
            }
            failed => Failure::new("failed", failed.to_string()),
        })
    }

    async fn schedule(&self, listener: Option<String>, policy: &str) -> Result<Value, Failure> {
        let bad = |e: troop::policy::BadScheduling| Failure::new("bad-request", e.to_string());
        let listener = listener.map(|listener| listener.parse()).transpose().map_err(bad)?;
        let later = self
            .cluster
            .set_scheduling(listener, policy.parse().map_err(bad)?)
            .await
            .map_err(|e| match e {
                troop::Error::Settings(_) => {
                    let text = "its workers take sockets by activation (bind), and the kernel chooses among them; \
                        a policy is for an app without bind, or set at its start";
                    Failure::new("bad-request", text)
                }
                e => failed(&e),
            })?;
        Ok(json!({ "later": later.iter().map(ToString::to_string).collect::<Vec<_>>() }))
    }

    async fn signal(&self, signal: i32, worker: Option<u32>) -> Result<Value, Failure> {
        let workers = match worker {
            None => self.cluster.workers(),
            Some(id) => match self.cluster.worker(WorkerId(id)) {
                Some(worker) => vec![worker],
                None => return Err(Failure::new("no-worker", format!("there is no worker {id}"))),
            },
        };
        let mut reached = Vec::new();
        for worker in workers {
            match worker.kill(signal).await {
                Ok(()) => reached.push(worker.id()),
                // The worker has ended meanwhile.
                Err(troop::Error::NoWorker(_)) => {}
                Err(e) => return Err(failed(&e)),
            }
        }
        Ok(json!({ "workers": reached }))
    }

    fn resolved(&self) -> ResolvedApp {
        self.resolved.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_resolved(&self, resolved: ResolvedApp) {
        *self.resolved.lock().unwrap_or_else(PoisonError::into_inner) = resolved;
    }

    async fn events(
        &self,
        stream: &mut UnixStream,
    ) -> Result<Result<Value, Failure>, Disconnected> {
        let Ok(_place) = self.event_streams.try_acquire() else {
            return Ok(Err(Failure::new(
                "busy",
                format!("{MAX_FOLLOWERS} follow the events already"),
            )));
        };
        let mut events: Events = self.cluster.events_within(MAX_FOLLOWER_BYTES);
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => send_answer(stream, &Answer::Event(log::as_json(&event))).await?,
                    None => return Ok(Ok(json!({}))),
                },
                () = pending::until_closed(stream) => return Err(Disconnected),
            }
        }
    }
}

pub(crate) fn parse(line: &[u8]) -> Result<Request, Failure> {
    let bad = |text: String| Failure::new("bad-request", text);
    let request: Envelope =
        serde_json::from_slice(line).map_err(|e| bad(format!("this is no request: {e}")))?;
    if request.troop == VERSION {
        Ok(request.request)
    } else {
        Err(bad(format!("version {} is not spoken here, only {VERSION}", request.troop)))
    }
}

fn failed(e: &troop::Error) -> Failure {
    let kind = if matches!(e, troop::Error::ClusterOver) { "over" } else { "failed" };
    Failure::new(kind, e.chain())
}
