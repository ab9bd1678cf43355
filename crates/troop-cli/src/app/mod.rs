//! The app that a primary runs: its cluster, its configuration, and the operations on them, on a
//! thread of their own.
//!
//! | file | holds |
//! | --- | --- |
//! | `counts.rs` | how often things have happened |
//! | `inspect.rs` | snapshots, and where output goes |
//! | `operate.rs` | recycling, scheduling, signals, restart and stop |
//! | `schedule.rs` | runs and reloads at certain times |
//! | `reload.rs`, `scale.rs` | reloads, and changes of the number of workers |
//! | `send.rs` | messages to workers |
//! | `startup.rs` | what happened while the app started |
//! | `triggers.rs` | reloads by signals and changes of files |
//! | `upgrade.rs` | another engine that goes on with the app |
//! | `worker_metrics.rs` | metrics that workers keep themselves |

mod counts;
mod input;
mod inspect;
mod operate;
mod reload;
mod scale;
mod schedule;
mod send;
mod startup;
mod triggers;
mod upgrade;
mod worker_metrics;

pub(crate) use counts::{Counters, Counts};
#[cfg(test)]
pub(crate) use schedule::LastRun;
pub(crate) use schedule::ScheduleSnapshot;
pub(crate) use startup::Startup;
pub(crate) use upgrade::LeftApp;

use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio::time::{sleep, timeout};
use troop::Cluster;

use crate::config::LogFormat;
use crate::control::connection::Connection;
use crate::control::protocol::{Answer, Failure};
use crate::control::sockets::Claim;
use crate::libraries::Inbox;
use crate::log;
use crate::logs::writer::LogQueue;
use crate::records::keeper::{self, Keeper};
use crate::resolve::{ResolvedApp, Source};
use crate::restart::RestartRequest;
use crate::signals::Signals;
use crate::start::{StartupReporter, start_timeout};
use crate::watch::Watched;

/// Timeout of a start, after which memory that only the start needed is released in any case.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);

/// Time after a start or a request, after which code that only these needed is released, too.
const RELEASE_DELAY: Duration = Duration::from_secs(5);

/// The parts of a running app besides its cluster.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) name: String,
    pub(crate) resolved: ResolvedApp,
    pub(crate) source: Source,
    /// The queue of the workers' output, if it passes through this process.
    pub(crate) queue: Option<Arc<LogQueue>>,
    pub(crate) restarting: Arc<RestartRequest>,
    /// Reports the outcome of the start to `troop start`.
    pub(crate) reporter: Option<Arc<StartupReporter>>,
    /// The record of the app.
    pub(crate) keeper: Option<Arc<Keeper>>,
    /// The app's name, and its lock file.
    pub(crate) claim: Option<Arc<Mutex<Claim>>>,
    /// What another engine has left, if this one goes on with its app.
    pub(crate) left: Option<Left>,
    pub(crate) counters: Arc<Counters>,
    /// Messages of libraries.
    pub(crate) inbox: Arc<Inbox>,
}

/// What another engine has left to this one.
#[derive(Debug)]
pub(crate) struct Left {
    pub(crate) version: String,
    /// The app as of the last reload.
    pub(crate) resolved: ResolvedApp,
    pub(crate) uncounted_restarts: u64,
    /// The client that has asked for this engine.
    pub(crate) client: Option<UnixStream>,
    /// How the other engine has ended, if it was killed.
    pub(crate) killed_by: Option<String>,
}

/// A running app.
pub(crate) struct RunningApp {
    cluster: Cluster,
    name: String,
    source: Source,
    /// The app as it was started; a reload cannot change all of it.
    started: ResolvedApp,
    /// The app as of the last reload.
    resolved: Mutex<ResolvedApp>,
    /// The queue of the workers' output, if it passes through this process.
    queue: Option<Arc<LogQueue>>,
    restarting: Arc<RestartRequest>,
    /// Reports the outcome of the start to `troop start`.
    reporter: Option<Arc<StartupReporter>>,
    keeper: Option<Arc<Keeper>>,
    claim: Option<Arc<Mutex<Claim>>>,
    /// The number of restarts that are not counted any more.
    uncounted_restarts: AtomicU64,
    /// Held by the one reload that waits for the current one.
    waiting: Semaphore,
    /// Held during a reload.
    reloading: tokio::sync::Mutex<()>,
    /// Policies of the last reloads that some listeners do not have yet: of one, or of all others.
    pending: Mutex<Vec<reload::Policy>>,
    inputs: input::Inputs,
    startup: Startup,
    counters: Arc<Counters>,
    inbox: Arc<Inbox>,
    /// What happened at the app's times.
    schedule: Mutex<schedule::Schedule>,
    /// Wakes what releases memory, after a request.
    used: Notify,
}

/// Starts the thread of an app: it handles signals and changes of files and runs `serve`, until the
/// process ends.
///
/// # Errors
/// If no runtime or no thread can be started.
pub(crate) fn start<F: Future<Output = ()>>(
    cluster: Cluster,
    parts: Parts,
    signals: Signals,
    watched: Option<Watched>,
    serve: impl FnOnce(Arc<RunningApp>) -> F + Send + 'static,
) -> std::io::Result<Arc<RunningApp>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let Parts {
        name,
        resolved,
        source,
        queue,
        restarting,
        reporter,
        keeper,
        claim,
        left,
        counters,
        inbox,
    } = parts;
    let (uncounted, current) = match &left {
        Some(left) => (left.uncounted_restarts, left.resolved.clone()),
        None => (0, resolved.clone()),
    };
    let app = Arc::new(RunningApp {
        startup: Startup::new(&cluster),
        counters,
        inbox,
        cluster,
        name,
        source,
        started: resolved,
        resolved: Mutex::new(current),
        queue,
        pending: Mutex::default(),
        inputs: input::Inputs::default(),
        restarting,
        reporter: reporter.clone(),
        keeper,
        claim: claim.clone(),
        uncounted_restarts: AtomicU64::new(uncounted),
        waiting: Semaphore::new(1),
        reloading: tokio::sync::Mutex::default(),
        schedule: Mutex::default(),
        used: Notify::new(),
    });
    let started = app.clone();
    let run = move || {
        runtime.block_on(async {
            let starting = app.clone();
            tokio::spawn(async move { starting.startup.follow(&starting.cluster).await });
            if let Some(reporter) = reporter {
                tokio::spawn(app.clone().report_startup(reporter));
            }
            if let Some(claim) = claim {
                tokio::spawn(keeper::show_life(claim));
            }
            tokio::spawn(app.clone().release_unused_memory());
            if let Some(watched) = watched {
                tokio::spawn(app.clone().watch_files(watched));
            }
            tokio::spawn(app.clone().handle_signals(signals));
            tokio::spawn(app.clone().follow_schedule());
            tokio::spawn(app.clone().answer_libraries());
            if let Some(left) = left {
                tokio::spawn(app.clone().tell_of_upgrade(left));
            }
            serve(app).await;
            std::future::pending::<()>().await;
        });
    };
    std::thread::Builder::new().name("troop-control".into()).spawn(run)?;
    Ok(started)
}

impl RunningApp {
    /// Returns a handle of the app's cluster.
    pub(crate) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Returns the messages of libraries that wait.
    pub(crate) fn inbox(&self) -> &Arc<Inbox> {
        &self.inbox
    }

    /// Returns how often things have happened.
    fn counts(&self) -> Counts {
        Counts { unclaimed: self.inbox.unclaimed(), ..self.counters.values() }
    }

    /// Returns the format of events.
    pub(crate) fn log_format(&self) -> LogFormat {
        self.started.app.log.unwrap_or(LogFormat::Human)
    }

    async fn report_startup(self: Arc<RunningApp>, reporter: Arc<StartupReporter>) {
        let timeout = start_timeout(&self.started);
        reporter.watch(&self.cluster, &self.name, timeout, &self.startup).await;
        // If the cluster is over, nobody goes on with it.
        let _ = self.cluster.note_changed();
    }

    /// Says that this engine goes on, in the log and to the client that has asked for it.
    async fn tell_of_upgrade(self: Arc<RunningApp>, left: Left) {
        if let Some(how) = &left.killed_by {
            let process = std::process::id();
            log::line(&format!(
                "troop: the engine has ended: {how}; process {process} goes on with the app"
            ));
            return;
        }
        log::line(&format!(
            "troop: upgraded from version {} to {}: process {} goes on with the app",
            left.version,
            env!("CARGO_PKG_VERSION"),
            std::process::id()
        ));
        let client = left.client.map(tokio::net::UnixStream::from_std);
        if let Some(Ok(client)) = client {
            let answer = Answer::Done(self.upgraded(&left.version));
            // One that has left does not need it.
            let _ = Connection::new(client).send(&answer).await;
        }
    }

    /// A request has been handled.
    pub(crate) fn note_use(&self) {
        self.used.notify_one();
    }

    /// Releases memory with code that only the start needed, once all workers are ready, and later
    /// that with code which only requests need.
    async fn release_unused_memory(self: Arc<RunningApp>) {
        let _ = timeout(RELEASE_TIMEOUT, self.cluster.ready()).await;
        release_memory();
        loop {
            sleep(RELEASE_DELAY).await;
            release_memory();
            self.used.notified().await;
        }
    }

    fn resolved(&self) -> ResolvedApp {
        self.resolved.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_resolved(&self, resolved: ResolvedApp) {
        *self.resolved.lock().unwrap_or_else(PoisonError::into_inner) = resolved;
        // If the cluster is over, nobody goes on with it.
        let _ = self.cluster.note_changed();
    }
}

/// Releases memory that is used only now and then.
fn release_memory() {
    troop::program::own_code::release();
    troop::program::own_code::release_free_memory();
}

fn failed(e: &troop::Error) -> Failure {
    let kind = if matches!(e, troop::Error::ClusterOver) { "over" } else { "failed" };
    Failure::new(kind, e.chain())
}
