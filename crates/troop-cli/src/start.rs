//! `troop start`: spawns a primary in the background and waits until its workers are ready.

mod choice;
mod order;
mod plan;
mod reporter;
mod running;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use signal_hook::consts::SIGINT;
use troop::setup::KillMode;
use troop::text;

use crate::args::{Run, Start};
use crate::control::protocol::Failure;
use crate::control::targets;
use crate::error::CliError;
use crate::in_use::with_tip;
use crate::records::keeper::ID_VARIABLE;
use crate::records::{Record, Text, listed, scaled};
use crate::resolve::{self, ResolvedApp};
use crate::verbs::progress::Progress;
use crate::{default_file, launcher, log, print};
pub(crate) use choice::{Choice, only};
pub(crate) use order::{groups, numbers, ranks};
pub(crate) use plan::{Planned, Verb, choose, is_command, plan, words_of_run, words_of_start};
pub(crate) use reporter::{
    LAST_LINES_TIMEOUT, StartupReport, StartupReporter, quoted, tell_refused,
};
pub(crate) use running::{connected, say as say_running, unless_stopping};

/// The variable by which `troop start` makes the process that it spawns a background primary. Its
/// value is the name of the app in the file.
pub(crate) const VARIABLE: &str = "TROOP_STARTED_AS";
/// The variable by which a primary gets the name of an app that is started again.
pub(crate) const RESUMED_VARIABLE: &str = "TROOP_RESUMED_AS";
/// Interval between checks whether Ctrl-C was pressed.
const INTERRUPT_CHECK_INTERVAL: Duration = Duration::from_millis(50);
/// The number of lines of a start that `--attach` shows.
const ATTACHED_LINES: usize = 15;
/// Time to wait beyond a worker's `ready_timeout`.
pub(crate) const READY_MARGIN: Duration = Duration::from_secs(5);
/// Time that a primary whose start has failed has to end.
const EXIT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time that a primary has to start a session of its own.
const SESSION_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs `troop start`: starts apps side by side, except those that are to start after others.
pub(crate) fn start(args: &Start) -> Result<(), CliError> {
    let planned = plan(&args.run, &args.more, Verb::Start).map_err(CliError::Usage)?;
    let groups = groups(&numbers(&planned));
    let interrupted = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGINT, interrupted.clone())
        .map_err(|e| CliError::Io("catch signals".into(), e))?;
    let ids = listed::free_ids(planned.len());
    let (mut last, mut failed, mut started) = (None, BTreeSet::new(), None);
    // The failure of one app does not keep the others from starting.
    let mut fail = |app: &Planned, error: CliError, failed: &mut BTreeSet<String>| {
        failed.insert(app.choice.app.clone());
        if let Some(before) = last.replace(error) {
            log::line(&format!("troop: {before}"));
        }
    };
    for group in groups {
        let apps: Vec<_> = group.into_iter().map(|at| (at, &planned[at])).collect();
        if interrupted.load(Ordering::Acquire) {
            let names: Vec<_> = apps.iter().map(|(_, app)| app.shown()).collect();
            log::line(&format!("troop: not started: {}", names.join(", ")));
            continue;
        }
        let mut starting = Vec::new();
        for (at, app) in apps {
            let running = running::already(app);
            if let Ok(Some(running)) = running {
                running.say(args.json);
                started = Some(running.name);
                continue;
            }
            let spawned = match app.after.iter().find(|name| failed.contains(*name)) {
                _ if running.is_err() => running.map(drop).and_then(|()| spawn(args, app, ids[at])),
                Some(name) => Err(CliError::Failed(Failure::new(
                    "failed",
                    format!("{}: not started, because {name} has failed", app.shown()),
                ))),
                None => spawn(args, app, ids[at]),
            };
            match spawned {
                Ok(primary) => starting.push((app, primary)),
                Err(error) => fail(app, error, &mut failed),
            }
        }
        for (app, primary) in starting {
            match primary.finish(args.no_wait, args.json, &interrupted) {
                Ok(name) => started = Some(name),
                Err(error) => fail(app, error, &mut failed),
            }
        }
    }
    match last {
        Some(error) => Err(error),
        None if args.attach => {
            let app = if planned.len() == 1 { started } else { Some("all".into()) };
            crate::verbs::attach::attach_started(app, ATTACHED_LINES)
        }
        None => Ok(()),
    }
}

/// Returns the app that this process is the primary of.
pub(crate) fn chosen() -> Choice {
    Choice::decode(&std::env::var(VARIABLE).unwrap_or_default())
}

/// Returns words of a command line that name apps which are known: `troop start web 3`. A
/// program, a file, or an app of `troop.toml` overrides them.
pub(crate) fn known(args: &Start) -> Result<Option<Vec<String>>, CliError> {
    let run = &args.run;
    let words = run.program.iter().chain(&args.more);
    let words: Vec<_> = words.map(|word| word.to_string_lossy().into_owned()).collect();
    if words.is_empty() || run.config.is_some() || !run.args.is_empty() {
        return Ok(None);
    }
    for word in &words {
        if is_known_namespace(word)? {
            continue;
        }
        let one = Run { program: Some(word.into()), ..run.clone() };
        if Path::new(word).exists() || resolve::file_of(&one).map_err(CliError::Usage)?.is_some() {
            return Ok(None);
        }
        if word != "all" && targets::selected(word)?.is_empty() {
            return match listed::of(word).filter(|app| app.end.is_none()) {
                Some(app) => {
                    Err(CliError::Failed(Failure::new("failed", targets::hidden(&app.record))))
                }
                None => Ok(None),
            };
        }
    }
    let typed = std::env::args().skip(2);
    let mut options = typed.filter(|arg| {
        arg.starts_with('-') && !["--json", "--no-wait", "--update-env"].contains(&arg.as_str())
    });
    match options.next() {
        Some(option) => {
            let name = words.join(" ");
            Err(CliError::Usage(format!(
                "{name} is started as it was before, so {option} has no effect; to change how, use `troop delete {name}`, and start its program with {option}"
            )))
        }
        None => Ok(Some(words)),
    }
}

/// Whether all apps that `troop.toml` has in this namespace are known: with them are those that were
/// started otherwise.
fn is_known_namespace(word: &str) -> Result<bool, CliError> {
    let of_file = default_file::namespace(word.as_ref()).map_err(CliError::Usage)?;
    if of_file.is_empty() || default_file::is_app(word.as_ref()).map_err(CliError::Usage)? {
        return Ok(false);
    }
    let known = targets::selected(word)?;
    Ok(of_file.iter().all(|name| known.iter().any(|target| target.name() == name)))
}

/// Starts the primary of an app.
fn spawn(args: &Start, app: &Planned, id: u32) -> Result<StartingPrimary, CliError> {
    // Resolved here too, so that errors and warnings reach the terminal.
    let (resolved, source) =
        resolve::resolve(app.run.clone(), Some(&app.choice.app)).map_err(CliError::Usage)?;
    let warnings = source.warnings(&resolved).into_iter().chain(launcher::hint(&resolved));
    warnings.for_each(|warning| log::line(&format!("troop: {warning}")));
    let mut command = Command::new("/proc/self/exe");
    let typed = args.typed.clone().unwrap_or_else(|| std::env::args_os().skip(1).collect());
    command.arg0("troop").args(typed).env(VARIABLE, app.choice.encode());
    command.env(ID_VARIABLE, id.to_string()).env_remove(scaled::VARIABLE);
    StartingPrimary::spawn(
        command,
        resolved.name.clone().unwrap_or_else(|| resolved.default_name.clone()),
        start_timeout(&resolved),
        resolved.workers_hint(),
    )
}

/// Starts the primary of an app again, as it was started before.
pub(crate) fn spawn_again(record: &Record) -> Result<StartingPrimary, CliError> {
    let Some(call) = &record.start else {
        return Err(CliError::Failed(Failure::new(
            "failed",
            format!("{} ran in the foreground: `troop run` starts it again", record.name),
        )));
    };
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("troop")
        .args(call.args.iter().map(Text::to_os))
        .env_clear()
        .envs(call.env.iter().map(|(name, value)| (name.to_os(), value.to_os())))
        .current_dir(&call.cwd)
        .env(VARIABLE, &call.app)
        .env(RESUMED_VARIABLE, &record.name)
        .env(ID_VARIABLE, record.id.to_string());
    if let Some(scaled) = record.scaled {
        command.env(scaled::VARIABLE, scaled.encode());
    }
    // The verbs that are typed here must find it.
    for name in ["TROOP_RUNTIME_DIR", "XDG_RUNTIME_DIR", "TROOP_STATE_DIR"] {
        match std::env::var_os(name) {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    if !call.cwd.is_dir() {
        return Err(CliError::Failed(Failure::new(
            "failed",
            format!("{}: there is no directory {} any more", record.name, call.cwd.display()),
        )));
    }
    let timeout = Duration::from_millis(call.timeout_ms);
    let primary = StartingPrimary::spawn(command, record.name.clone(), timeout, None)?;
    Ok(StartingPrimary { is_new: false, ..primary })
}

/// A primary in the background whose report is awaited.
pub(crate) struct StartingPrimary {
    child: Child,
    report: Receiver<std::io::Result<String>>,
    name: String,
    timeout: Duration,
    hint: Option<&'static str>,
    /// Whether the app has not been known before.
    is_new: bool,
}

impl StartingPrimary {
    /// Removes what a primary has left behind that was killed before it could say anything.
    fn take_back(&mut self, name: &str) {
        self.wait_for_end();
        if self.is_new && matches!(self.child.try_wait(), Ok(Some(_))) {
            // It is listed as crashed otherwise.
            let _ = listed::take_back(name, self.child.id());
        }
    }

    /// Waits for the end of a primary that says it ends: `troop ls` must not show the app after this
    /// command.
    fn wait_for_end(&mut self) {
        let deadline = Instant::now() + EXIT_TIMEOUT;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn spawn(
        mut command: Command,
        name: String,
        timeout: Duration,
        hint: Option<&'static str>,
    ) -> Result<StartingPrimary, CliError> {
        let doing = |e| CliError::Io("start the primary".into(), e);
        // A worker that starts another app does not take it along when it ends.
        for (variable, _) in std::env::vars_os().filter(|(name, _)| KillMode::is_variable(name)) {
            command.env_remove(variable);
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(doing)?;
        let (sender, report) = std::sync::mpsc::channel();
        let pipe =
            child.stdout.take().ok_or_else(|| doing(std::io::ErrorKind::BrokenPipe.into()))?;
        std::thread::spawn(move || {
            // Dropped at the end of the pipe, which is then seen by the receiver.
            BufReader::new(pipe).lines().try_for_each(|line| sender.send(line))
        });
        Ok(StartingPrimary { child, report, name, timeout, hint, is_new: true })
    }

    /// Waits for the report and prints it. Returns the app's name.
    pub(crate) fn finish(
        mut self,
        no_wait: bool,
        json: bool,
        interrupted: &AtomicBool,
    ) -> Result<String, CliError> {
        let shown = &self.name.clone();
        let fail = |text: String| Err(CliError::Failed(Failure::new("failed", text)));
        let claimed = RefCell::new(shown.clone());
        // The name is known once the app is listed: another app may have the one that was meant.
        let progress = RefCell::new(None);
        let is_wanted = |line: &String| match serde_json::from_str(line) {
            Ok(StartupReport::Listed { name, .. }) if !no_wait => {
                progress.replace(Some(Progress::begin(&name, json, false)));
                claimed.replace(name);
                false
            }
            _ => true,
        };
        let timeout = self.timeout + EXIT_TIMEOUT;
        let answer = wait_for(&self.report, is_wanted, timeout, interrupted);
        drop(progress);
        let answer = match answer {
            Some(answer) => answer,
            None if has_own_session(&mut self.child) => {
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
                Ok(startup) => self.print(startup, json),
                Err(_) => {
                    self.take_back(&claimed.into_inner());
                    let how = ended(&mut self.child);
                    fail(format!("{shown}: the primary ended without a word: {how}"))
                }
            },
            Ok(Err(_)) | Err(RecvTimeoutError::Disconnected) => {
                self.take_back(&claimed.into_inner());
                fail(format!("{shown}: the primary ended: {}", ended(&mut self.child)))
            }
            Err(RecvTimeoutError::Timeout) => fail(format!(
                "{shown}: not all workers are ready after {:.0?}; it keeps running: see `troop show` and `troop logs`",
                self.timeout
            )),
        }
    }

    fn print(&mut self, startup: StartupReport, json: bool) -> Result<String, CliError> {
        let shown = &self.name.clone();
        let fail = |text: String| Err(CliError::Failed(Failure::new("failed", text)));
        match startup {
            StartupReport::Listed { name, pid } => {
                if name != *shown {
                    log::line(&format!("troop: {}", crate::run::also_runs(shown, &name)));
                }
                let state = serde_json::json!({ "name": name, "pid": pid, "state": "starting" });
                report(json, &state, || format!("{name}: starting"));
                Ok(name)
            }
            StartupReport::Ready { name, pid, workers, listeners, own, hint: told } => {
                told.iter().for_each(|told| log::line(&format!("troop: {name}: {told}")));
                if name != *shown {
                    log::line(&format!("troop: {}", crate::run::also_runs(shown, &name)));
                }
                let state = serde_json::json!({ "name": name, "pid": pid, "state": "running", "workers": workers, "listeners": listeners, "own": own });
                let on = match (&listeners[..], &own[..]) {
                    ([], []) => String::new(),
                    ([], own) => format!(" on {}, past troop", own.join(", ")),
                    (listeners, _) => format!(" on {}", listeners.join(", ")),
                };
                let hint = self.hint.filter(|_| !listeners.is_empty());
                let hint = hint.map(|hint| format!("; {hint}")).unwrap_or_default();
                report(json, &state, || match workers {
                    0 => waits_for_its_time(&name),
                    _ => format!("{name}: {} ready{on}{hint}", text::counted(workers, "worker")),
                });
                Ok(name)
            }
            StartupReport::Partly { ready, wanted, reason, last_lines, tip } => {
                let lines = quoted(last_lines.as_deref()) + &reporter::tip_line(tip);
                fail(with_tip(format!(
                    "{shown}: not all workers are ready, {ready} of {wanted}, {reason}; it keeps running: see `troop show` and `troop logs`{lines}"
                )))
            }
            StartupReport::Finished { how } => {
                self.wait_for_end();
                let state = serde_json::json!({ "name": shown, "state": "finished", "how": how });
                report(json, &state, || format!("{shown}: finished: {how}"));
                Ok(shown.clone())
            }
            StartupReport::Failed { reason, usage } => {
                self.wait_for_end();
                let reason = with_tip(reason);
                if usage {
                    Err(CliError::Usage(reason))
                } else {
                    fail(format!("{shown}: {reason}"))
                }
            }
        }
    }
}

/// Says that a job is started, of which no worker runs now.
pub(crate) fn waits_for_its_time(name: &str) -> String {
    format!("{name}: waits for its time, which `troop show {name}` tells")
}

/// Waits for a report of the primary that is wanted. Returns `None` if Ctrl-C was pressed first.
fn wait_for<T>(
    startup: &Receiver<std::io::Result<T>>,
    is_wanted: impl Fn(&T) -> bool,
    start_timeout: Duration,
    interrupted: &AtomicBool,
) -> Option<Result<std::io::Result<T>, RecvTimeoutError>> {
    let deadline = Instant::now() + start_timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match startup.recv_timeout(left.min(INTERRUPT_CHECK_INTERVAL)) {
            Ok(Ok(line)) if !is_wanted(&line) => {}
            Ok(report) => return Some(Ok(report)),
            Err(_) if interrupted.load(Ordering::Acquire) => return None,
            Err(RecvTimeoutError::Timeout) if left > INTERRUPT_CHECK_INTERVAL => {}
            Err(e) => return Some(Err(e)),
        }
    }
}

/// Whether a primary has a session of its own, so that Ctrl-C does not reach it. Kills one that does
/// not get one in time.
fn has_own_session(child: &mut Child) -> bool {
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

fn ended(child: &mut Child) -> String {
    child.wait().map_or_else(|e| e.to_string(), |status| status.to_string())
}

fn report(json: bool, value: &serde_json::Value, text: impl FnOnce() -> String) {
    let _ = if json { print::json(value) } else { print::line(&text()) };
}
