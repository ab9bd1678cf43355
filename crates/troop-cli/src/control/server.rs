//! The primary's side of the control socket.
//!
//! What a client can cost is bounded: the number of clients, the time until their request, and the
//! time to read the answer. A silent client makes room for the next one ([`PendingClients`]).

use std::os::unix::net::UnixListener as StdListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, SemaphorePermit};
use troop::{Events, keeper};

use super::audit::Audit;
use super::connection::{Connection, Disconnected};
use super::pending::PendingClients;
use super::protocol::{Answer, Envelope, Failure, Request, UNKEPT, VERSION};
use super::sockets::Claim;
use crate::app::RunningApp;
use crate::log;

/// Maximum number of clients that are served at a time.
const MAX_CLIENTS: usize = 32;
/// Maximum number of these that follow events.
const MAX_FOLLOWERS: usize = 16;
/// Maximum number of these that wait for replies of workers.
const MAX_WAITING_FOR_REPLIES: usize = 8;
/// Maximum size of queued events per client, in bytes.
const MAX_FOLLOWER_BYTES: usize = 1024 * 1024;
/// Delay after a failed accept, most likely because no descriptor is left.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

struct Server {
    app: Arc<RunningApp>,
    audit: Audit,
    pending: PendingClients,
    active: Semaphore,
    event_streams: Semaphore,
    reply_waiters: Semaphore,
}

/// Interval between checks whether clients still find the socket.
const SOCKET_CHECK_INTERVAL: Duration = Duration::from_secs(3);

/// Serves the clients of an app. Returns only if the listener cannot be used.
pub(crate) async fn serve(app: Arc<RunningApp>, listener: StdListener, claim: Arc<Mutex<Claim>>) {
    let server = Arc::new(Server {
        audit: Audit::new(app.log_format()),
        app,
        pending: PendingClients::default(),
        active: Semaphore::new(MAX_CLIENTS),
        event_streams: Semaphore::new(MAX_FOLLOWERS),
        reply_waiters: Semaphore::new(MAX_WAITING_FOR_REPLIES),
    });
    let ready = |listener: StdListener| {
        listener.set_nonblocking(true).and_then(|()| UnixListener::from_std(listener))
    };
    let Ok(mut listener) = ready(listener) else { return };
    let mut check = tokio::time::interval(SOCKET_CHECK_INTERVAL);
    check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut has_failed = false;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = check.tick() => {
                let renewed = claim.lock().unwrap_or_else(PoisonError::into_inner).renew();
                match renewed.and_then(|renewed| renewed.map(&ready).transpose()) {
                    Ok(None) => {}
                    Ok(Some(renewed)) => {
                        (listener, has_failed) = (renewed, false);
                        // The keeper would go on holding the lock of the one before.
                        let _ = server.app.cluster().note_changed();
                        log::line("troop: the control socket had been removed, and was created again");
                    }
                    Err(e) if !std::mem::replace(&mut has_failed, true) => {
                        log::line(&format!("troop: the control socket was removed, so `troop ls` and other verbs do not find this app: {e}"));
                    }
                    Err(_) => {}
                }
                continue;
            }
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
            continue;
        };
        let stream = server.pending.admit(stream);
        let server = server.clone();
        tokio::spawn(async move { server.serve_client(stream).await });
        // Tasks of disconnected clients end before the next client is accepted.
        tokio::task::yield_now().await;
    }
}

impl Server {
    async fn serve_client(&self, stream: Arc<UnixStream>) {
        // A second check: the directory already keeps other users out.
        let own = rustix::process::geteuid().as_raw();
        let peer = stream.peer_cred().ok();
        if !peer.is_some_and(|peer| peer.uid() == own || peer.uid() == 0) {
            return;
        }
        let Some((line, mut client)) = self.pending.read_request(stream).await else { return };
        let _place = self.active.try_acquire();
        let answer = match envelope(&line) {
            Ok(_) if _place.is_err() => Err(Failure::new(
                "busy",
                format!("{MAX_CLIENTS} clients are being served; try again"),
            )),
            Ok(Envelope { request, on_behalf_of, .. }) => {
                let changes = self.audit.note(&request, peer, on_behalf_of.as_deref());
                let Ok(mut result) = self.handle_request(request, &mut client).await else {
                    return;
                };
                if changes {
                    // The engine may be killed when the client has its answer. If the cluster is over,
                    // nobody goes on with it.
                    let _ = self.app.cluster().keep_now().await;
                    if let Ok(Value::Object(answer)) = &mut result {
                        answer.extend(unkept().map(|why| (UNKEPT.to_owned(), why.into())));
                    }
                }
                result
            }
            Err(failure) => Err(failure),
        };
        let _ = client.send(&answer.map_or_else(Answer::Failed, Answer::Done)).await;
        self.app.note_use();
    }

    async fn handle_request(
        &self,
        request: Request,
        client: &mut Connection,
    ) -> Result<Result<Value, Failure>, Disconnected> {
        Ok(match request {
            Request::Snapshot => self.app.snapshot().await,
            Request::Reload { worker: None, allow_moved, env } => {
                self.app.reload(Some(client), allow_moved, env).await
            }
            Request::Reload { worker: Some(worker), .. } => self.app.recycle(worker).await,
            Request::Logs => Ok(self.app.logs()),
            Request::Scale { workers, by, wait } => tokio::select! {
                scaled = self.app.scale(workers, by, wait) => scaled,
                // It goes on without the client.
                () = client.closed() => return Err(Disconnected),
            },
            Request::Schedule { listener, policy } => self.app.schedule(listener, &policy).await,
            Request::Signal { signal, worker } => self.app.signal(signal, worker).await,
            Request::Send { message, worker, wait_ms } => {
                let _place = match self.waits_for_workers() {
                    Ok(place) => place,
                    Err(failure) => return Ok(Err(failure)),
                };
                let send = self.app.send(message, worker, wait_ms.map(Duration::from_millis));
                tokio::select! {
                    sent = send => sent,
                    () = client.closed() => return Err(Disconnected),
                }
            }
            Request::WorkerMetrics { wait_ms } => {
                let _place = match self.waits_for_workers() {
                    Ok(place) => place,
                    Err(failure) => return Ok(Err(failure)),
                };
                tokio::select! {
                    metrics = self.app.worker_metrics(Duration::from_millis(wait_ms)) => Ok(metrics),
                    () = client.closed() => return Err(Disconnected),
                }
            }
            Request::Restart { env } => {
                let timeout = match self.app.restart(env).await {
                    Ok(timeout) => timeout,
                    Err(failure) => return Ok(Err(failure)),
                };
                let timeout = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
                let answer = json!({ "restarting": true, "start_timeout_ms": timeout });
                let _ = self.app.cluster().keep_now().await;
                client.send(&Answer::Done(answer)).await?;
                std::future::pending().await
            }
            Request::Upgrade { path } => Err(self.app.upgrade(path, client.to_leave()).await),
            Request::UpgradeKeeper { path } => self.app.upgrade_keeper(path).await,
            Request::Stop { quick, forget } => {
                // Who waits for the end of this process waits for that of the app's.
                client.hold_until_end();
                self.app.stop(quick, forget);
                let _ = self.app.cluster().keep_now().await;
                client.send(&Answer::Done(json!({ "stopping": true }))).await?;
                // The client waits for the end of the process, which comes before this completes.
                std::future::pending().await
            }
            Request::Input { text, worker } => self.app.input(worker, &text).await,
            Request::Reset => self.app.reset().await,
            Request::Events => return self.events(client).await,
        })
    }

    /// Takes a place among the clients that wait for answers of workers.
    fn waits_for_workers(&self) -> Result<SemaphorePermit<'_>, Failure> {
        if !self.app.has_channels() {
            let text = "its workers take sockets by activation, and have no channel for messages";
            return Err(Failure::new("failed", text));
        }
        self.reply_waiters.try_acquire().map_err(|_| {
            let most = MAX_WAITING_FOR_REPLIES;
            Failure::new("busy", format!("{most} clients wait for answers of workers already"))
        })
    }

    /// Streams events until the client leaves.
    async fn events(
        &self,
        client: &mut Connection,
    ) -> Result<Result<Value, Failure>, Disconnected> {
        let Ok(_place) = self.event_streams.try_acquire() else {
            return Ok(Err(Failure::new(
                "busy",
                format!("{MAX_FOLLOWERS} follow the events already"),
            )));
        };
        let _follower = self.app.inbox().follow();
        let mut events: Events = self.app.cluster().events_within(MAX_FOLLOWER_BYTES);
        let mut asked = self.audit.follow();
        loop {
            tokio::select! {
                Ok(event) = asked.recv() => client.send(&Answer::Event((*event).clone())).await?,
                event = events.recv() => match event {
                    Some(event) => client.send(&Answer::Event(log::as_json(&event))).await?,
                    None => return Ok(Ok(json!({}))),
                },
                () = client.closed() => return Err(Disconnected),
            }
        }
    }
}

/// Why what was done is not written down, if it is not.
fn unkept() -> Option<String> {
    keeper::is_silent().then(|| {
        let pid = keeper::app_pid();
        format!(
            "it is done, but not written down: the keeper, process {pid}, does not answer; if the engine is killed before it does, the app ends"
        )
    })
}

/// Parses a request.
///
/// # Errors
/// `bad-request` if it is invalid or of another version.
pub(crate) fn parse(line: &[u8]) -> Result<Request, Failure> {
    envelope(line).map(|envelope| envelope.request)
}

fn envelope(line: &[u8]) -> Result<Envelope, Failure> {
    let bad = |text: String| Failure::new("bad-request", text);
    let request: Envelope =
        serde_json::from_slice(line).map_err(|e| bad(format!("this is no request: {e}")))?;
    if request.troop == VERSION {
        Ok(request)
    } else {
        Err(bad(format!("version {} is not spoken here, only {VERSION}", request.troop)))
    }
}
