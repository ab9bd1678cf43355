//! The primary's side of `troop start`: reports the outcome of the start to the process that waits
//! for it.

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use troop::snapshot::{Phase, Snapshot, VacantSlot};
use troop::supervise::{NotReady, Progress};
use troop::text::tells_of_used_address;
use troop::{Cluster, Event, WorkerHandle, text};

use crate::app::Startup;
use crate::in_use::Bound;
use crate::log;

/// Time to wait for the last lines of a worker.
pub(crate) const LAST_LINES_TIMEOUT: Duration = Duration::from_millis(200);
/// Interval between checks whether workers are in each other's way.
const CLASH_CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// Quick ends of a slot's workers after which their reason counts as lasting.
const MAX_QUICK_ENDS: u32 = 3;
/// Checks in a row at which a worker has said that it cannot have an address of troop's own, after
/// which a start has failed; and where it does not name the address, which may be another one that
/// becomes free.
const MAX_TIMES_SEEN: u32 = 3;
const MAX_TIMES_UNNAMED: u32 = 10;
/// Checks at which workers are in each other's way, but it is not known yet which one has the address.
const MAX_TIMES_UNKNOWN: u32 = 10;

/// A report of a background primary to `troop start`: a line of JSON on standard output.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum StartupReport {
    /// `troop ls` shows the app from now on. Another report follows where one is awaited.
    Listed { name: String, pid: u32 },
    /// All workers are ready.
    Ready {
        name: String,
        pid: u32,
        workers: usize,
        listeners: Vec<String>,
        /// Where workers listen by themselves.
        #[serde(default)]
        own: Vec<String>,
        #[serde(default)]
        hint: Option<String>,
    },
    /// Some workers are ready, and the app keeps running.
    Partly {
        ready: usize,
        wanted: usize,
        reason: String,
        last_lines: Option<String>,
        #[serde(default)]
        tip: Option<String>,
    },
    /// All workers have ended by themselves and without a failure, and the primary ends.
    Finished { how: String },
    /// The start has failed, and the primary ends.
    Failed { reason: String, usage: bool },
}

/// Tells the process that waits for this one why it does not become a primary.
pub(crate) fn tell_refused(reason: &str) {
    write(&StartupReport::Failed { reason: reason.to_owned(), usage: true });
}

/// Sends [`StartupReport`]s to the process that waits for this primary.
#[derive(Debug, Default)]
pub(crate) struct StartupReporter {
    /// A process waits for the report.
    awaited: bool,
    told: Mutex<bool>,
    /// The report was that workers are ready.
    has_started: AtomicBool,
    /// The primary executes itself again, and reports what comes of that.
    is_postponed: AtomicBool,
    /// How the last worker ended that is not restarted, and whether none of these failed.
    last_end: Mutex<Option<(String, bool)>>,
    /// The worker that has ended with a failure last.
    last_failed: Mutex<Option<WorkerHandle>>,
    /// What to tell of the program.
    hint: Mutex<Option<String>>,
    /// A worker that listens by itself, where others cannot therefore, in words; and one that listens
    /// nowhere.
    clash: Mutex<Option<(String, Option<WorkerHandle>)>>,
    /// The sockets of the app's `bind`.
    bound: OnceLock<Bound>,
}

impl StartupReporter {
    /// Detaches this process from its terminal.
    pub(crate) fn new(awaited: bool) -> StartupReporter {
        // Its keeper has done that. It fails only for the leader of a process group, which a spawned
        // process is not.
        if !troop::keeper::is_kept() {
            let _ = rustix::process::setsid();
        }
        StartupReporter { awaited, ..StartupReporter::default() }
    }

    pub(crate) fn is_awaited(&self) -> bool {
        self.awaited
    }

    /// Whether a process waits that has not been told what came of the start.
    pub(crate) fn is_due(&self) -> bool {
        self.awaited && self.told.lock().is_ok_and(|told| !*told)
    }

    /// Whether the process that waits was told that workers are ready.
    pub(crate) fn has_started(&self) -> bool {
        self.has_started.load(Ordering::Acquire)
    }

    pub(crate) fn note_end(&self, how: String, is_success: bool) {
        if let Ok(mut last) = self.last_end.lock() {
            let had_success = last.as_ref().is_none_or(|(_, is_success)| *is_success);
            *last = Some((how, is_success && had_success));
        }
    }

    pub(crate) fn note_hint(&self, text: String) {
        if let Ok(mut hint) = self.hint.lock() {
            *hint = Some(text);
        }
    }

    /// Leaves the report to this program once it has executed itself again. Returns whether it was
    /// not sent yet.
    pub(crate) fn postpone(&self) -> bool {
        self.is_postponed.store(true, Ordering::Release);
        self.is_due()
    }

    pub(crate) fn note_clash(&self, text: String, other: Option<WorkerHandle>) {
        if let Ok(mut clash) = self.clash.lock() {
            *clash = Some((text, other));
        }
    }

    fn noted_clash(&self) -> Option<(String, Option<WorkerHandle>)> {
        self.clash.lock().ok()?.clone()
    }

    pub(crate) fn note_bound(&self, bound: Bound) {
        let _ = self.bound.set(bound);
    }

    /// Says whose an address is that a program cannot have, if that is known.
    fn tip(&self, words: &str) -> Option<String> {
        let clash = || self.noted_clash().map(|(text, _)| text);
        let own = self.bound.get().and_then(|bound| bound.explain(words));
        own.or_else(|| clash().filter(|_| tells_of_used_address(words)))
    }

    pub(crate) fn note_failed(&self, worker: &WorkerHandle) {
        if let Ok(mut last_failed) = self.last_failed.lock() {
            *last_failed = Some(worker.clone());
        }
    }

    pub(crate) fn last_end(&self) -> Option<(String, bool)> {
        self.last_end.lock().ok()?.clone()
    }

    /// Reports that the app is listed, which is all that `troop start --no-wait` waits for.
    pub(crate) fn tell_listed(&self, name: &str) {
        let listed = StartupReport::Listed { name: name.to_owned(), pid: troop::keeper::app_pid() };
        match self.awaited {
            true => write(&listed),
            false => self.send(&listed),
        }
    }

    /// Sends the last report, unless that was sent before.
    pub(crate) fn send(&self, startup: &StartupReport) {
        let Ok(mut told) = self.told.lock() else { return };
        if self.is_postponed.load(Ordering::Acquire) {
            return;
        }
        if std::mem::replace(&mut *told, true) {
            return;
        }
        let is_failure = matches!(startup, StartupReport::Failed { .. });
        self.has_started.store(!is_failure, Ordering::Release);
        write(startup);
        // The waiting process reads until the end of the stream.
        if let Ok(null) = std::fs::OpenOptions::new().write(true).open("/dev/null") {
            let _ = rustix::stdio::dup2_stdout(&null);
        }
    }

    /// Waits until the start of a cluster has succeeded, failed or timed out, and reports that.
    /// Stops the cluster if it has failed.
    pub(crate) async fn watch(
        &self,
        cluster: &Cluster,
        name: &str,
        start_timeout: Duration,
        startup: &Startup,
    ) {
        if !self.awaited {
            return;
        }
        let ready = tokio::select! {
            ready = tokio::time::timeout(start_timeout, cluster.ready()) => ready,
            clash = self.clash(cluster) => return self.send(&clash),
            blocked = self.blocked(cluster) => {
                self.send(&blocked);
                drop(cluster.stop());
                return;
            }
        };
        match ready {
            Ok(Ok(workers)) => {
                let Ok(snapshot) = cluster.snapshot().await else { return };
                self.report_ready(cluster, snapshot, name, workers, startup);
            }
            // What has finished is complete.
            Ok(Err(NotReady::Ended { how, ready, .. })) if how.is_success() => {
                let Ok(snapshot) = cluster.snapshot().await else { return };
                self.report_ready(cluster, snapshot, name, ready, startup);
            }
            // Slots whose worker has ended for good do not become ready.
            Ok(Err(NotReady::Ended { slot, how, ready, wanted, .. })) => {
                let reason = format!("because the worker of slot {slot} has ended for good: {how}");
                let (last_lines, tip) = (None, None);
                self.send(&StartupReport::Partly { ready, wanted, reason, last_lines, tip });
            }
            Ok(Err(NotReady::GaveUp { why, last_lines })) => {
                let reason = Event::Supervision(Progress::GivingUp(why)).to_string();
                let hint = || self.hint.lock().ok().and_then(|mut hint| hint.take());
                let tip = self.tip(last_lines.as_deref().unwrap_or_default()).or_else(hint);
                let reason = reason + &quoted(last_lines.as_deref()) + &tip_line(tip);
                self.send(&StartupReport::Failed { reason, usage: false });
                drop(cluster.stop());
            }
            // It ends, and says so itself.
            Ok(Err(_)) => {}
            Err(_) => self.report_timeout(cluster, start_timeout).await,
        }
    }

    /// Waits until workers cannot start because another one has their address, as programs that bind
    /// it past troop do, and returns the report of that.
    async fn clash(&self, cluster: &Cluster) -> StartupReport {
        let mut times_unknown = 0;
        loop {
            tokio::time::sleep(CLASH_CHECK_INTERVAL).await;
            let Ok(snapshot) = cluster.snapshot().await else { continue };
            let keeps_ending = |slot: &VacantSlot| slot.quick_ends >= MAX_QUICK_ENDS;
            let clash = self.noted_clash();
            // One that goes on without the address, and says so.
            let other = clash.as_ref().and_then(|(_, other)| other.as_ref());
            let its_words = other.and_then(|other| other.last_stderr(Duration::ZERO));
            let its_words = its_words.filter(|words| tells_of_used_address(words));
            let is_clear = its_words.is_some() || snapshot.vacant.iter().any(keeps_ending);
            if snapshot.ready == 0 || !is_clear {
                continue;
            }
            let words = || self.last_lines().filter(|words| tells_of_used_address(words));
            let words = its_words.or_else(words);
            if words.is_some() && clash.is_none() && times_unknown < MAX_TIMES_UNKNOWN {
                times_unknown += 1;
                continue;
            }
            let (words, tip) = match (words, clash) {
                (Some(words), _) => (Some(words.clone()), self.tip(&words)),
                (None, Some((clash, _))) => (None, Some(clash)),
                (None, None) => continue,
            };
            return StartupReport::Partly {
                ready: snapshot.ready,
                wanted: snapshot.wanted.unwrap_or(1),
                reason: "because the others cannot listen where the first one does".into(),
                tip,
                last_lines: words,
            };
        }
    }

    /// Waits until a worker says that it cannot have an address which troop has itself (`bind`), while
    /// none is ready, and returns the report of that. None can be then, however long it tries.
    async fn blocked(&self, cluster: &Cluster) -> StartupReport {
        let Some(bound) = self.bound.get().filter(|bound| !bound.is_empty()) else {
            return std::future::pending().await;
        };
        let mut times_seen = 0;
        loop {
            tokio::time::sleep(CLASH_CHECK_INTERVAL).await;
            let workers = cluster.workers();
            let mut said = workers.iter().filter_map(|worker| worker.last_stderr(Duration::ZERO));
            let words = said.find(|words| bound.is_waited_for(words));
            // Without patience, as others wait for this thread.
            let of_ended = || self.failed()?.last_stderr(Duration::ZERO);
            let words = words.or_else(|| of_ended().filter(|words| bound.is_meant(words)));
            let (Some(words), Ok(snapshot)) = (words, cluster.snapshot().await) else {
                times_seen = 0;
                continue;
            };
            times_seen += 1;
            let max = if bound.is_named(&words) { MAX_TIMES_SEEN } else { MAX_TIMES_UNNAMED };
            if snapshot.ready > 0 || times_seen < max {
                continue;
            }
            let reason = format!(
                "no worker is ready: an address is in use; its last lines:\n{}{}",
                text::lines(words.trim_end(), log::QUOTE),
                tip_line(self.tip(&words))
            );
            return StartupReport::Failed { reason, usage: false };
        }
    }

    /// Returns that a worker is ready by its age alone, and says that an address is in use.
    fn in_use(&self, cluster: &Cluster, snapshot: &Snapshot) -> Option<String> {
        if !snapshot.listeners.is_empty() {
            return None;
        }
        let workers = cluster.workers();
        let says = |worker: &&WorkerHandle| {
            let words = worker.last_stderr(Duration::ZERO);
            words.is_some_and(|words| tells_of_used_address(&words))
        };
        let worker = workers.iter().find(says)?;
        Some(format!(
            "worker {} counts as ready, as it runs and listens nowhere through troop, but says that an address is in use; `ss -ltnp` shows which process has it, `troop logs` what it says",
            worker.id()
        ))
    }

    /// Returns the last lines of the worker that has failed last.
    fn last_lines(&self) -> Option<String> {
        self.failed()?.last_stderr(LAST_LINES_TIMEOUT)
    }

    fn failed(&self) -> Option<WorkerHandle> {
        self.last_failed.lock().ok()?.clone()
    }

    fn report_ready(
        &self,
        cluster: &Cluster,
        snapshot: Snapshot,
        name: &str,
        workers: usize,
        startup: &Startup,
    ) {
        let hint = self.hint.lock().ok().and_then(|mut hint| hint.take());
        let hint = hint
            .or_else(|| self.noted_clash().map(|(text, _)| text))
            .or_else(|| self.in_use(cluster, &snapshot));
        let listeners = snapshot.listeners.into_iter().map(|listener| listener.address).collect();
        self.send(&StartupReport::Ready {
            name: name.to_owned(),
            pid: snapshot.pid,
            workers,
            listeners,
            own: snapshot.own,
            hint: hint.or_else(|| startup.hint()),
        });
    }

    /// Reports a start that has timed out. It has failed if no worker is ready.
    async fn report_timeout(&self, cluster: &Cluster, start_timeout: Duration) {
        let Ok(snapshot) = cluster.snapshot().await else { return };
        if snapshot.ready > 0 || !matches!(snapshot.phase, Phase::Starting | Phase::Degraded) {
            let last_lines = self.last_lines();
            self.send(&StartupReport::Partly {
                ready: snapshot.ready,
                wanted: snapshot.wanted.unwrap_or(1),
                reason: format!("after {start_timeout:.0?}"),
                tip: self.tip(last_lines.as_deref().unwrap_or_default()),
                last_lines,
            });
            return;
        }
        let mut reason = format!("no worker is ready after {start_timeout:.0?}");
        if let Some(end) = snapshot.last_end {
            reason.push_str(&format!("; the last unexpected end: {end}"));
        }
        let last_lines = self.last_lines();
        reason.push_str(&quoted(last_lines.as_deref()));
        reason.push_str(&tip_line(self.tip(last_lines.as_deref().unwrap_or_default())));
        self.send(&StartupReport::Failed { reason, usage: false });
        drop(cluster.stop());
    }
}

fn write(startup: &StartupReport) {
    let line = serde_json::to_string(startup).unwrap_or_default();
    let mut out = std::io::stdout().lock();
    // The process that waits may have been interrupted.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Returns a tip, to append to a reason.
pub(super) fn tip_line(tip: Option<String>) -> String {
    tip.map(|tip| format!("\ntip: {tip}")).unwrap_or_default()
}

/// Returns the last lines of a worker that has ended, to append to a reason.
pub(crate) fn quoted(last_lines: Option<&str>) -> String {
    let words = last_lines.filter(|words| !words.trim().is_empty());
    words
        .map(|words| format!("; its last lines:\n{}", text::lines(words.trim_end(), log::QUOTE)))
        .unwrap_or_default()
}
