//! `troop start`: spawns a primary in the background and waits until its workers are ready.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use signal_hook::consts::SIGINT;
use troop::snapshot::{Phase, Snapshot};
use troop::supervise::{NotReady, Progress};
use troop::{Cluster, Event, WorkerHandle, text};

use crate::args::{Env, Run, Start};
use crate::config;
use crate::control::protocol::Failure;
use crate::error::CliError;
use crate::resolve::{self, ResolvedApp};
use crate::{log, print};

/// The variable by which `troop start` makes the process that it spawns a background primary. Its
/// value is the name of the app in the file.
pub(crate) const VARIABLE: &str = "TROOP_STARTED_AS";
/// Interval between checks whether Ctrl-C was pressed.
const INTERRUPT_CHECK_INTERVAL: Duration = Duration::from_millis(50);
/// Time to wait beyond a worker's `ready_timeout`.
pub(crate) const READY_MARGIN: Duration = Duration::from_secs(5);
/// Time that a primary whose start has failed has to end.
const EXIT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time that a primary has to start a session of its own.
const SESSION_TIMEOUT: Duration = Duration::from_secs(2);
/// Time to wait for the last lines of a worker.
pub(crate) const LAST_LINES_TIMEOUT: Duration = Duration::from_millis(200);

/// The report of a background primary to `troop start`: one line of JSON on standard output.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum StartupReport {
    /// All workers are ready.
    Ready { name: String, pid: u32, workers: usize, listeners: Vec<String> },
    /// Some workers are ready, and the app keeps running.
    Partly { ready: usize, wanted: usize, reason: String },
    /// The start has failed, and the primary ends.
    Failed { reason: String, usage: bool },
}

/// Sends one [`StartupReport`] to the process that waits for this primary.
#[derive(Debug, Default)]
pub(crate) struct StartupReporter {
    /// A process waits for the report.
    awaited: bool,
    told: Mutex<bool>,
    /// How the last worker ended that is not restarted.
    last_end: Mutex<Option<String>>,
    /// The worker that has ended with a failure last.
    last_failed: Mutex<Option<WorkerHandle>>,
}

impl StartupReporter {
    /// Detaches this process from its terminal.
    pub(crate) fn new(awaited: bool) -> StartupReporter {
        // `setsid` fails only for the leader of a process group, which a spawned process is not.
        let _ = rustix::process::setsid();
        StartupReporter { awaited, ..StartupReporter::default() }
    }

    pub(crate) fn is_awaited(&self) -> bool {
        self.awaited
    }

    pub(crate) fn note_end(&self, how: String) {
        if let Ok(mut last) = self.last_end.lock() {
            *last = Some(how);
        }
    }

    pub(crate) fn note_failed(&self, worker: &WorkerHandle) {
        if let Ok(mut last_failed) = self.last_failed.lock() {
            *last_failed = Some(worker.clone());
        }
    }

    pub(crate) fn last_end(&self) -> Option<String> {
        self.last_end.lock().ok()?.clone()
    }

    /// Sends the report, unless one was sent before.
    pub(crate) fn send(&self, startup: &StartupReport) {
        let Ok(mut told) = self.told.lock() else { return };
        if std::mem::replace(&mut *told, true) {
            return;
        }
        let line = serde_json::to_string(startup).unwrap_or_default();
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
        // The waiting process reads until the end of the stream.
        if let Ok(null) = std::fs::OpenOptions::new().write(true).open("/dev/null") {
            let _ = rustix::stdio::dup2_stdout(&null);
        }
    }

    /// Waits until the start of a cluster has succeeded, failed or timed out, and reports that.
    /// Stops the cluster if it has failed.
    pub(crate) async fn watch(&self, cluster: &Cluster, name: &str, start_timeout: Duration) {
        if !self.awaited {
            return;
        }
        match tokio::time::timeout(start_timeout, cluster.ready()).await {
            Ok(Ok(workers)) => {
                let Ok(snapshot) = cluster.snapshot().await else { return };
                self.report_ready(snapshot, name, workers);
            }
            // Slots whose worker has ended for good do not become ready.
            Ok(Err(NotReady::Ended { slot, how, ready, wanted, .. })) => {
                let reason = format!("because the worker of slot {slot} has ended for good: {how}");
                self.send(&StartupReport::Partly { ready, wanted, reason });
            }
            Ok(Err(NotReady::GaveUp { why, last_lines })) => {
                let reason = Event::Supervision(Progress::GivingUp(why)).to_string();
                let reason = reason + &quoted(last_lines.as_deref());
                self.send(&StartupReport::Failed { reason, usage: false });
                drop(cluster.stop());
            }
            // It ends, and says so itself.
            Ok(Err(_)) => {}
            Err(_) => self.report_timeout(cluster, start_timeout).await,
        }
    }

    fn report_ready(&self, snapshot: Snapshot, name: &str, workers: usize) {
        let listeners = snapshot.listeners.into_iter().map(|listener| listener.address).collect();
        self.send(&StartupReport::Ready {
            name: name.to_owned(),
            pid: snapshot.pid,
            workers,
            listeners,
        });
    }

    /// Reports a start that has timed out. It has failed if no worker is ready.
    async fn report_timeout(&self, cluster: &Cluster, start_timeout: Duration) {
        let Ok(snapshot) = cluster.snapshot().await else { return };
        if snapshot.ready > 0 || !matches!(snapshot.phase, Phase::Starting | Phase::Degraded) {
            self.send(&StartupReport::Partly {
                ready: snapshot.ready,
                wanted: snapshot.wanted.unwrap_or(1),
                reason: format!("after {start_timeout:.0?}"),
            });
            return;
        }
        let mut reason = format!("no worker is ready after {start_timeout:.0?}");
        if let Some(end) = snapshot.last_end {
            reason.push_str(&format!("; the last unexpected end: {end}"));
        }
        let last_failed =
            self.last_failed.lock().ok().and_then(|mut last_failed| last_failed.take());
        let words = last_failed.and_then(|worker| worker.last_stderr(LAST_LINES_TIMEOUT));
        reason.push_str(&quoted(words.as_deref()));
        self.send(&StartupReport::Failed { reason, usage: false });
        drop(cluster.stop());
    }
}

/// Returns the last lines of a worker that has ended, to append to a reason.
pub(crate) fn quoted(last_lines: Option<&str>) -> String {
    let words = last_lines.filter(|words| !words.trim().is_empty());
    words
        .map(|words| format!("; its last lines:\n{}", text::lines(words.trim_end(), log::QUOTE)))
        .unwrap_or_default()
}

/// Runs `troop start`.
pub(crate) fn start(args: &Start) -> Result<(), CliError> {
    let names = names(&args.run).map_err(CliError::Usage)?;
    let interrupted = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGINT, interrupted.clone())
        .map_err(|e| CliError::Io("catch signals".into(), e))?;
    let mut failed = None;
    for (at, name) in names.iter().enumerate() {
        if interrupted.load(Ordering::Acquire) {
            log::line(&format!("troop: not started: {}", names[at..].join(", ")));
            break;
        }
        // The failure of one app does not keep the others from starting.
        if let Err(error) = start_one(args, name, &interrupted)
            && let Some(before) = failed.replace(error)
        {
            log::line(&format!("troop: {before}"));
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Returns the names of the apps to start; an empty name stands for a program without a file.
fn names(run: &Run) -> Result<Vec<String>, String> {
    // A PM2 file is read with the chosen environment.
    for env in &run.env {
        if let Env::Chosen(name) = env {
            config::choose_environment(name);
        }
    }
    Ok(match resolve::file_of(run)? {
        Some((_, None)) if run.pm2.names_interpreter() => {
            return Err("--interpreter is for a program that is named on the command line".into());
        }
        Some((file, None)) => {
            let (apps, warnings) = config::read_with_warnings(&file)?;
            warnings
                .iter()
                .for_each(|warning| log::line(&format!("troop: {}: {warning}", file.display())));
            apps.into_keys().collect()
        }
        _ => vec![String::new()],
    })
}

fn start_one(args: &Start, name: &str, interrupted: &AtomicBool) -> Result<(), CliError> {
    // Resolved here too, so that errors and warnings reach the terminal.
    let (resolved, source) =
        resolve::resolve(args.run.clone(), Some(name)).map_err(CliError::Usage)?;
    source.warnings(&resolved).iter().for_each(|warning| log::line(&format!("troop: {warning}")));
    let doing = |e| CliError::Io("start the primary".into(), e);
    let mut child = Command::new("/proc/self/exe")
        .arg0("troop")
        .args(std::env::args_os().skip(1))
        .env(VARIABLE, name)
        // A worker that starts another app does not take it along when it ends.
        .env_remove(troop::setup::KillMode::VARIABLE)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(doing)?;
    let shown = resolved.name.clone().unwrap_or_else(|| resolved.default_name.clone());
    if args.no_wait {
        report(
            args.json,
            &serde_json::json!({ "name": shown, "pid": child.id(), "state": "starting" }),
            || format!("{shown}: starting"),
        );
        return Ok(());
    }
    let (sender, startup) = std::sync::mpsc::channel();
    let pipe = child.stdout.take().ok_or_else(|| doing(std::io::ErrorKind::BrokenPipe.into()))?;
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = BufReader::new(pipe).read_line(&mut line);
        let _ = sender.send(read.map(|_| line));
    });
    let fail = |text: String| Err(CliError::Failed(Failure::new("failed", text)));
    let answer = match wait_for(&startup, start_timeout(&resolved) + EXIT_TIMEOUT, interrupted) {
        Some(answer) => answer,
        None if has_own_session(&mut child) => {
            return fail(format!(
                "{shown}: interrupted, but the app keeps starting in the background: `troop show {shown}` shows it, `troop stop {shown}` stops it"
            ));
        }
        None => {
            return fail(format!(
                "{shown}: interrupted before the primary had started; nothing runs"
            ));
        }
    };
    match answer {
        Ok(Ok(line)) => match serde_json::from_str(&line) {
            Ok(StartupReport::Ready { name, pid, workers, listeners }) => {
                if name != shown {
                    log::line(&format!("troop: {}", crate::run::also_runs(&shown, &name)));
                }
                let state = serde_json::json!({ "name": name, "pid": pid, "state": "running", "workers": workers, "listeners": listeners });
                let on = if listeners.is_empty() {
                    String::new()
                } else {
                    format!(" on {}", listeners.join(", "))
                };
                report(args.json, &state, || {
                    format!("{name}: {} ready{on}", text::counted(workers, "worker"))
                });
                Ok(())
            }
            Ok(StartupReport::Partly { ready, wanted, reason }) => fail(format!(
                "{shown}: not all workers are ready, {ready} of {wanted}, {reason}; it keeps running: see `troop show` and `troop logs`"
            )),
            Ok(StartupReport::Failed { reason, usage }) => {
                // `troop ls` must not show the app after this command has failed.
                let deadline = Instant::now() + EXIT_TIMEOUT;
                while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
                    std::thread::sleep(Duration::from_millis(5));
                }
                let reason = with_tip(reason);
                if usage {
                    Err(CliError::Usage(reason))
                } else {
                    fail(format!("{shown}: {reason}"))
                }
            }
            Err(_) => {
                fail(format!("{shown}: the primary ended without a word: {}", ended(&mut child)))
            }
        },
        Ok(Err(_)) | Err(RecvTimeoutError::Disconnected) => {
            fail(format!("{shown}: the primary ended: {}", ended(&mut child)))
        }
        Err(RecvTimeoutError::Timeout) => fail(format!(
            "{shown}: not all workers are ready after {:.0?}; it keeps running: see `troop show` and `troop logs`",
            start_timeout(&resolved)
        )),
    }
}

/// Waits for the primary's report. Returns `None` if Ctrl-C was pressed first.
fn wait_for<T>(
    startup: &Receiver<T>,
    start_timeout: Duration,
    interrupted: &AtomicBool,
) -> Option<Result<T, RecvTimeoutError>> {
    let deadline = Instant::now() + start_timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match startup.recv_timeout(left.min(INTERRUPT_CHECK_INTERVAL)) {
            Ok(report) => return Some(Ok(report)),
            Err(_) if interrupted.load(Ordering::Acquire) => return None,
            Err(RecvTimeoutError::Timeout) if left > INTERRUPT_CHECK_INTERVAL => {}
            Err(e) => return Some(Err(e)),
        }
    }
}

/// Whether a primary has a session of its own, so that Ctrl-C does not reach it. Kills one that does
/// not get one in time.
fn has_own_session(child: &mut std::process::Child) -> bool {
    let pid = rustix::process::Pid::from_raw(child.id().cast_signed());
    let deadline = Instant::now() + SESSION_TIMEOUT;
    while Instant::now() < deadline {
        if !matches!(child.try_wait(), Ok(None)) {
            return false;
        }
        if pid.is_some() && rustix::process::getsid(pid).ok() == pid {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = child.kill().and_then(|()| child.wait());
    false
}

pub(crate) fn start_timeout(resolved: &ResolvedApp) -> Duration {
    resolved.app.ready_timeout.map_or(Duration::from_secs(30), |time| time.0) + READY_MARGIN
}

/// Adds what to do about an address that is in use, where a reason is about that.
pub(crate) fn with_tip(mut reason: String) -> String {
    if ["EADDRINUSE", "ddress already in use"].iter().any(|sign| reason.contains(sign)) {
        reason.push_str(
            "\ntip: another process has this address (`ss -ltnp` shows it, `troop ls` shows apps); \
             workers of a program that binds its port past troop are in each other's way: see --bind",
        );
    }
    reason
}

fn ended(child: &mut std::process::Child) -> String {
    child.wait().map_or_else(|e| e.to_string(), |status| status.to_string())
}

fn report(json: bool, value: &serde_json::Value, text: impl FnOnce() -> String) {
    let _ = if json { print::json(value) } else { print::line(&text()) };
}
