//! `troop run`: starts the primary of one app and runs until it ends.

use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use troop::event::ExitHow;
use troop::keeper::{self, Resumption};
use troop::supervise::Progress;
use troop::{Error, Event, text};

use crate::app::{self, Counters, Left, LeftApp, Parts, RunningApp};
use crate::args::Run;
use crate::config::{Form, LogFormat, To};
use crate::control::server;
use crate::control::sockets::{self, Claim, ClaimError};
use crate::error::RunError;
use crate::in_use::{Bound, Failures};
use crate::libraries::Inbox;
use crate::log::{self, Log};
use crate::logs::collect::Collector;
use crate::logs::file::{LogFile, Rotation};
use crate::logs::journal::Journal;
use crate::logs::paths::{LogPaths, files, record, safety};
use crate::logs::writer::{LogQueue, Sink};
use crate::names;
use crate::pid_files::PidFiles;
use crate::primary_part::Notice;
use crate::records::Ending;
use crate::records::keeper::Keeper;
use crate::resolve::{self, ResolvedApp, Source};
use crate::restart::{self, RestartRequest};
use crate::start::{self, StartupReport, StartupReporter};
use crate::{launcher, moves, notify, primary_part, signals, together, watch};

/// Runs an app in the foreground, or in the background if `troop start` has spawned this process.
pub(crate) fn run(args: Run) -> Result<(), RunError> {
    // What the standard library and the runtime cannot do, for example because no thread can be started.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        keeper::note_failure(&panic.to_string());
        hook(panic);
    }));
    let result = run_reported(args);
    if let Err(error) = &result {
        keeper::note_failure(&error.to_string());
    }
    result
}

/// The same, and reports the outcome of the start to `troop start`.
fn run_reported(args: Run) -> Result<(), RunError> {
    if std::env::var_os(together::VARIABLE).is_some() {
        together::stop_with_parent();
    }
    let started_as = std::env::var_os(start::VARIABLE).map(|_| start::chosen().app);
    let resumption = Resumption::find().map_err(RunError::Failed)?;
    // After `troop restart` no process waits for the report. When this engine goes on with what another
    // one has left, one may still do so.
    let is_due = |left: &Resumption| LeftApp::read(left.note()).is_ok_and(|app| app.is_report_due);
    let is_awaited = started_as.is_some()
        && std::env::var_os(restart::VARIABLE).is_none()
        && resumption.as_ref().is_none_or(is_due)
        && keeper::set_aside().is_none();
    let reporter = is_awaited.then(|| Arc::new(StartupReporter::new(!args.unawaited)));
    let result = run_as(args, started_as.as_deref(), reporter.clone(), resumption);
    if let Err(error) = &result
        && keeper::refuse(&error.to_string())
    {
        return Err(RunError::Refused);
    }
    match (&result, reporter) {
        (Err(error), Some(reporter)) => {
            reporter.send(&StartupReport::Failed {
                reason: error.to_string(),
                usage: matches!(error, RunError::Usage(_)),
            });
        }
        (Ok(()), Some(reporter)) => {
            reporter.send(&match reporter.last_end() {
                Some((how, true)) => StartupReport::Finished { how },
                last => {
                    let how = last.map(|(how, _)| format!(": {how}")).unwrap_or_default();
                    let reason = format!("all workers have ended, and none is restarted{how}");
                    StartupReport::Failed { reason, usage: false }
                }
            });
        }
        // In the background there is no terminal: the error goes to the logs.
        (Err(error), None) if started_as.is_some() => log::line(&format!("troop: {error}")),
        _ => {}
    }
    if started_as.is_some() {
        log::finish();
    }
    result
}

fn run_as(
    args: Run,
    started_as: Option<&str>,
    reporter: Option<Arc<StartupReporter>>,
    resumption: Option<Resumption>,
) -> Result<(), RunError> {
    let mut left =
        resumption.as_ref().map(|resumption| LeftApp::read(resumption.note())).transpose()?;
    let is_resumed = left.is_some();
    let (resolved, source, current) = match &left {
        // What the app is, and not what its file says by now: a reload applies that.
        Some(LeftApp { started, resolved, file, .. }) => {
            let source = Source::resume(args, file.clone(), started_as.is_some());
            let (started, mut current) = (started.take(), resolved.take());
            current.keep_sockets_of(&started);
            (started, source, Some(current))
        }
        None => {
            let (resolved, source) = resolve::resolve(args, started_as).map_err(RunError::Usage)?;
            (resolved, source, None)
        }
    };
    primary_part::decide(&resolved, left.as_ref());
    if !resolved.background && !is_resumed {
        // `troop start` has printed them already.
        let warnings = source.warnings(&resolved).into_iter().chain(launcher::hint(&resolved));
        warnings.for_each(|warning| log::line(&format!("troop: {warning}")));
    }
    if resolved.background
        && (resolved.workers() == 0
            || (resolved.output().0 == To::Terminal && !resolved.app.silent))
    {
        return Err(RunError::Usage(
            "in the background there is no terminal: output.to can be files or journal, and workers must be 1 or more".into(),
        ));
    }
    if resolved.workers() == 0 {
        return alone(&resolved);
    }
    let signals = signals::Signals::catch()
        .map_err(|e| RunError::Failed(Error::Settings(format!("cannot catch signals: {e}"))))?;
    if let Some(set_aside) = keeper::set_aside() {
        log::line(&format!(
            "troop: one engine after the other has ended before it was ready, the last one by {}, so this one starts afresh, with new workers",
            set_aside.how
        ));
    }
    let is_later = is_resumed || keeper::set_aside().is_some();
    if is_later && reporter.is_none() && resolved.background {
        // Whoever started the app has gone.
        if let Ok(null) = std::fs::OpenOptions::new().write(true).open("/dev/null") {
            let _ = rustix::stdio::dup2_stdout(&null);
        }
    }
    let named_by = |variable| std::env::var(variable).ok().filter(|name| names::is_app(name));
    let wanted = named_by(restart::VARIABLE)
        .or_else(|| named_by(start::RESUMED_VARIABLE))
        .or_else(|| resolved.name.clone());
    let claimed = match is_resumed {
        true => Ok(None),
        false => claim(wanted.as_deref(), &resolved.default_name).map(Some),
    };
    let claim = match claimed {
        Ok(claim) => claim,
        Err(ClaimError::Taken) => return Err(RunError::Taken(wanted.unwrap_or_default())),
        Err(ClaimError::Io(e)) if resolved.background => {
            // No verb could find an app in the background without it.
            return Err(RunError::Failed(Error::Settings(format!(
                "cannot make a control socket: {e}"
            ))));
        }
        Err(ClaimError::Io(e)) => {
            // A read-only container, for example. The app serves without it.
            log::line(&format!(
                "troop: running without a control socket, so `troop ls` and other verbs do not find this app: {e}"
            ));
            None
        }
    };
    let format = resolved.app.log.unwrap_or(LogFormat::Human);
    let is_human = matches!(format, LogFormat::Human);
    let (mut claim, mut listener) = claim.unzip();
    let known_as = claim.as_ref().map(|claim| claim.name.clone());
    let known_as = known_as.or_else(|| left.as_ref().map(|left| left.name.clone()));
    if let Some(name) = &known_as {
        moves::begin(name);
    }
    // After the claim: if the app runs already, that is the error to report, rather than descriptors
    // which only the running one has inherited.
    let (builder, mut bound) = current.as_ref().unwrap_or(&resolved).builder(is_resumed)?;
    let mut builder = builder.leave_signals(signals::LEFT).reap_orphans(true);
    if let Some(reporter) = &reporter {
        reporter.note_bound(bound.clone());
    }
    let name = known_as.unwrap_or_else(|| resolved.default_name.clone());
    if !is_resumed && wanted.is_none() && name != resolved.default_name && !resolved.background {
        log::line(&format!("troop: {}", also_runs(&resolved.default_name, &name)));
    }
    if let Some(hint) =
        resolved.workers_hint().filter(|_| !resolved.background && is_human && !is_resumed)
    {
        log::line(&format!("troop: 1 worker; {hint}"));
    }
    // Everything that can fail comes before the first file is created.
    let is_restarted = named_by(restart::VARIABLE).is_some() || keeper::set_aside().is_some();
    let goes_on = is_resumed || is_restarted;
    if let Some(watch) = resolved.app.watch.as_ref().filter(|_| !goes_on) {
        watch::check(watch, resolved.cwd.as_deref()).map_err(RunError::Usage)?;
    }
    let (mut files, paths) = log_files(&resolved, &name, goes_on)?;
    let begun = files.iter_mut().try_for_each(|file| file.begin(goes_on)).and_then(|()| {
        match &resolved.app.watch {
            None => Ok(None),
            // The log files are created first; otherwise they would count as changes.
            Some(watch) => {
                let own = files.iter().map(|file| file.path().to_owned()).collect();
                let watched = watch::start(watch, resolved.cwd.as_deref(), own).map(Some);
                watched.or_else(|why| if goes_on { watch::unwatched(&why) } else { Err(why) })
            }
        }
    });
    // Another engine's files stay as they are until that has left.
    let begun = begun.and_then(|watched| {
        let pid_files = match is_resumed {
            true => None,
            false => PidFiles::begin(&resolved, is_restarted)?,
        };
        Ok((watched, pid_files))
    });
    let (watched, mut pid_files) = begun.map_err(|text| {
        files.iter_mut().for_each(LogFile::take_back);
        RunError::Usage(text)
    })?;
    let queue = queue(&resolved, &name, files, paths)?;
    if let Some(queue) = queue.clone().filter(|_| resolved.collects()) {
        builder = builder.output(Collector::new(queue));
    }
    // In the background troop's own lines go to the same place as the workers' output.
    if let Some(queue) = queue.clone().filter(|_| resolved.background) {
        log::send_lines_to(queue);
        moves::say_in_logs();
    }
    let mut log = match queue.clone().filter(|_| resolved.background) {
        Some(queue) => Log::to_logs(queue, format),
        None => Log::foreground(format),
    };
    let restarting = RestartRequest::new()
        .map_err(|e| RunError::Failed(Error::Settings(format!("cannot catch signals: {e}"))))?;
    let restarting = Arc::new(restarting);
    if notify::is_wanted() {
        builder = notify::attach(builder, restarting.clone());
    }
    let mut may_become_alone = resolved.may_become_alone();
    if let Some(why) = resolved.told_alone() {
        log::line(&format!("troop: {why}"));
        reporter.iter().for_each(|reporter| reporter.note_hint(why.into()));
    }
    let (mut client, mut killed_by) = (None, None);
    let observed = reporter.clone().filter(|reporter| reporter.is_awaited());
    let fds = resolved.app.fds.clone();
    // Everything that can fail comes before.
    if let Some(resumption) = resumption {
        let mut state = resumption.commit().map_err(RunError::Failed)?;
        let last = LeftApp::read(state.note())?;
        if let Some((lock, socket)) = last.claim {
            let (lock, socket) = (state.descriptor(lock), state.descriptor(socket));
            let (lock, socket) =
                (lock.map_err(RunError::Failed)?, socket.map_err(RunError::Failed)?);
            match Claim::resume(name.clone(), lock, socket) {
                Ok((resumed, socket)) => (claim, listener) = (Some(resumed), Some(socket)),
                Err(e) => log::line(&format!("troop: running on without a control socket: {e}")),
            }
        }
        client = last.client.and_then(|client| state.descriptor(client).ok());
        let missed = state.missed().map(|missed| format!("; {missed}")).unwrap_or_default();
        killed_by = state.killed_by().map(|how| format!("{how}{missed}"));
        left = Some(last);
        bound = Bound::new(state.activation_addresses());
        builder = builder.restore(state);
        pid_files = PidFiles::begin(&resolved, true).unwrap_or_else(|why| {
            log::line(&format!("troop: {why}"));
            None
        });
    }
    let pid_files = pid_files.map(Arc::new);
    pid_files.iter().for_each(|files| files.go_on());
    let keeper = match (&claim, is_resumed) {
        (None, _) => None,
        (Some(_), true) => Keeper::resume(&name).ok().map(Arc::new),
        (Some(_), false) => keep(&name, &resolved, &source).map(Arc::new),
    };
    reporter.iter().for_each(|reporter| reporter.tell_listed(&name));
    let counts = left.as_ref().map(|left| left.counts.clone());
    let counters = Arc::new(Counters::after(counts.unwrap_or_default()));
    left.iter().for_each(|left| left.ending.go_on(&restarting, keeper.as_deref()));
    let inbox =
        Arc::new(Inbox::after(format, left.as_ref().map(|left| (&left.counts, &left.limiters))));
    let letters = inbox.clone();
    let left = left.map(|left| Left {
        version: left.version,
        resolved: left.resolved.take(),
        uncounted_restarts: left.uncounted_restarts,
        client: client.map(UnixStream::from),
        killed_by,
    });
    let claim = claim.map(|claim| SharedClaim(Arc::new(Mutex::new(claim))));
    let served = claim.as_ref().map(|claim| claim.0.clone());
    let last_end = Arc::new(Mutex::new(None));
    let parts = Parts {
        name: name.clone(),
        resolved,
        source,
        queue: queue.clone(),
        restarting: restarting.clone(),
        reporter: reporter.clone(),
        keeper: keeper.clone(),
        claim: served.clone(),
        left,
        counters: counters.clone(),
        inbox,
    };
    let early = restarting.clone();
    let noting = pid_files.clone();
    let running = Arc::new(OnceLock::new());
    let started = running.clone();
    let app = Arc::new(OnceLock::<Arc<RunningApp>>::new());
    let kept = app.clone();
    builder = builder.keep_state(move |to| Some(kept.get()?.leave(None, to)));
    builder = builder.on_start(move |cluster| {
        let _ = started.set(cluster.clone());
        // Those that another engine has started.
        for files in noting.iter().filter(|_| is_resumed) {
            cluster.workers().iter().for_each(|worker| files.note_running(worker));
        }
        // Signals are caught by now.
        early.repeat_early_stop();
        let serve = |app| async {
            if let Some((listener, claim)) = listener.zip(served) {
                server::serve(app, listener, claim).await;
            }
        };
        match app::start(cluster, parts, signals, watched, serve) {
            Ok(running) => drop(app.set(running)),
            Err(e) => log::line(&format!("troop: cannot serve the control socket, so `troop ls` and other verbs do not find this app: {e}")),
        }
    });
    let mut last_failed = None;
    let noted_end = last_end.clone();
    let hinted = reporter.clone();
    let changing = restarting.clone();
    let mut has_told = false;
    let noting = pid_files.clone();
    let mut failures = Failures::new(bound);
    let code = Arc::new(Mutex::new(None));
    let noted_code = code.clone();
    let result = builder
        .on_event(move |event| {
            counters.note(event);
            // A program asks before it listens.
            may_become_alone &= !matches!(event, Event::Listening { .. });
            if let Event::Message { message, .. } = event
                && let Some(notice) = Notice::of(message.as_json())
            {
                if !std::mem::replace(&mut has_told, true) {
                    let cluster = running.get().filter(|_| may_become_alone);
                    notice.tell(cluster, &changing, hinted.as_deref());
                }
                return;
            }
            letters.note(event);
            noting.iter().for_each(|files| files.note(event));
            if let Some(why) = failures.note(event) {
                log::line(&format!("troop: {why}"));
            }
            if let Event::NotShared { reason, other, .. } = event {
                let note = |reporter: &Arc<StartupReporter>| {
                    reporter.note_clash(reason.clone(), other.clone());
                };
                hinted.iter().for_each(note);
            }
            if let Event::Supervision(Progress::NotRestarting { how, .. }) = event
                && let (false, Ok(mut noted)) = (how.is_success(), noted_code.lock())
            {
                // As shells and containers say it.
                let code = match *how {
                    ExitHow::Signal(signal) => 128 + signal,
                    ExitHow::Code(code) => code,
                    _ => 1,
                };
                *noted = noted.or(u8::try_from(code).ok());
            }
            if let Event::Supervision(Progress::NotRestarting { how, .. }) = event
                && let Ok(mut last) = noted_end.lock()
            {
                *last = Some(how.to_string());
            }
            match (&observed, event) {
                (Some(reporter), Event::Exit { worker, exit: how, .. }) => {
                    if !how.is_success() {
                        reporter.note_failed(worker);
                    }
                    last_failed = Some(worker.clone());
                }
                (Some(reporter), Event::Supervision(Progress::NotRestarting { worker, how })) => {
                    let words = last_failed
                        .take()
                        .and_then(|worker| worker.last_stderr(start::LAST_LINES_TIMEOUT))
                        .unwrap_or_default();
                    let words = if words.trim().is_empty() {
                        String::new()
                    } else {
                        format!("; its last lines:\n{}", text::lines(words.trim_end(), log::QUOTE))
                    };
                    reporter.note_end(format!("worker {worker}: {how}{words}"), how.is_success());
                }
                _ => {}
            }
            log.event(event);
        })
        .run();
    if let Some(queue) = queue.filter(|_| result.is_ok()) {
        queue.finish();
    }
    drop(pid_files);
    notify::ended(result.is_ok(), &restarting);
    // An app whose keeper was killed is listed as crashed.
    let has_crashed = keeper::has_ended();
    let keeper = keeper.filter(|_| !has_crashed);
    if let Some(keeper) = keeper.filter(|_| result.is_err() || !restarting.is_requested()) {
        let last_end = last_end.lock().ok().and_then(|mut last| last.take());
        let awaited = reporter.as_ref().filter(|reporter| reporter.is_awaited());
        let is_stopped = restarting.is_stop_requested();
        let has_finished = awaited
            .and_then(|reporter| reporter.last_end())
            .is_some_and(|(_, is_success)| is_success);
        match &result {
            Ok(()) if is_stopped => keeper.end(Ending::Stopped, None),
            Ok(()) if has_finished => keeper.end(Ending::Finished, last_end),
            // `troop start` says that it has failed.
            _ if awaited.is_some_and(|reporter| !reporter.has_started()) => {
                let reason = result.as_ref().err().map(Error::chain).or(last_end);
                keeper.take_back(reason.unwrap_or_else(|| "no worker became ready".into()));
            }
            Ok(()) => keeper.end(Ending::Finished, last_end),
            Err(e) => keeper.end(Ending::Failed, Some(e.chain())),
        }
    }
    let code = code.lock().ok().and_then(|code| *code);
    result.map_err(|e| match code {
        Some(code) => RunError::Ended(code, e),
        None => RunError::Failed(e),
    })?;
    if restarting.is_requested() {
        drop(claim);
        log::finish();
        let e = restart::exec_again(&name, &fds, &restarting);
        return Err(RunError::Failed(Error::Settings(format!("cannot restart: {e}"))));
    }
    Ok(())
}

/// A claimed name, which the thread that serves its socket has too. It is released on drop.
struct SharedClaim(Arc<Mutex<Claim>>);

impl Drop for SharedClaim {
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).release();
    }
}

/// Explains the name of an app whose usual name another one has.
pub(crate) fn also_runs(usual: &str, name: &str) -> String {
    format!(
        "an app {usual} runs already, so this one is {name}; `troop reload {usual}` replaces the workers of the first instead"
    )
}

fn claim(name: Option<&str>, usual: &str) -> Result<(Claim, UnixListener), ClaimError> {
    match name {
        Some(name) => sockets::claim(name, true),
        None => sockets::claim(usual, false),
    }
}

/// Writes the record of an app. Without one it runs all the same.
fn keep(name: &str, resolved: &ResolvedApp, source: &Source) -> Option<Keeper> {
    match Keeper::begin(name, resolved, source) {
        Ok(keeper) => Some(keeper),
        Err(e) if resolved.background => {
            log::line(&format!("troop: this app is not listed after its end: {e}"));
            None
        }
        Err(_) => None,
    }
}

/// Returns the log files of an app that logs to files. No file is created yet. An app that goes on does so
/// without those that cannot be opened now.
fn log_files(
    resolved: &ResolvedApp,
    name: &str,
    goes_on: bool,
) -> Result<(Vec<LogFile>, LogPaths), RunError> {
    let (to, _) = resolved.output();
    if to != To::Files || (!resolved.collects() && !resolved.background) {
        return Ok((Vec::new(), LogPaths::default()));
    }
    let output = &resolved.app.output;
    let cwd = resolved.cwd.clone().unwrap_or_else(|| ".".into());
    let paths = files(name, output, &std::path::absolute(&cwd).unwrap_or(cwd));
    let rotation = Rotation {
        size: output.rotate_size.map_or(10 << 20, |size| size.0),
        age: output.rotate_age.map(|age| age.0),
        keep: output.keep.unwrap_or(5),
        total: output.total.map(|total| total.0),
    };
    let new = |path: PathBuf| {
        let safety = safety(&path, resolved.app.user.is_some());
        LogFile::new(path, rotation, safety)
    };
    let files: Vec<_> = paths.files.iter().cloned().map(new).collect();
    if !goes_on {
        files.iter().try_for_each(LogFile::check).map_err(RunError::Usage)?;
    }
    Ok((files, paths))
}

/// Starts the queue that writes the workers' output, if it passes through this process.
fn queue(
    resolved: &ResolvedApp,
    name: &str,
    files: Vec<LogFile>,
    paths: LogPaths,
) -> Result<Option<Arc<LogQueue>>, RunError> {
    let (to, form) = resolved.output();
    if !resolved.collects() && !resolved.background {
        return Ok(None);
    }
    let sink = match to {
        To::Terminal => Sink::Terminal,
        To::Journal => Sink::Journal(
            Journal::new(name)
                .map_err(|e| RunError::Usage(format!("cannot reach the journal: {e}")))?,
        ),
        To::Files => {
            record(name, &paths.shown().into_iter().cloned().collect::<Vec<_>>());
            Sink::Files(files, paths.routes)
        }
    };
    let form = if to == To::Journal { Form::Plain } else { form };
    LogQueue::start(sink, form)
        .map(Some)
        .map_err(|e| RunError::Usage(format!("cannot start the thread for logs: {e}")))
}

/// `-w 0`: replaces this process by the program.
fn alone(resolved: &ResolvedApp) -> Result<(), RunError> {
    if !resolved.app.bind.is_empty() {
        return Err(RunError::Usage(
            "with -w 0 the program runs alone, so there is no primary to listen for it: remove --bind or set -w 1".into(),
        ));
    }
    let app = &resolved.app;
    let cannot = [
        (app.user.is_some() || app.group.is_some(), "user and group"),
        (app.no_new_privileges == Some(true), "no_new_privileges"),
        (app.umask.is_some(), "umask"),
        (app.nice.is_some(), "nice"),
        (!app.cpus.is_empty(), "cpus"),
        (!app.limits.is_empty(), "limits"),
        (!app.cgroup.is_default(), "cgroup"),
    ];
    if let Some((_, what)) = cannot.into_iter().find(|(is_set, _)| *is_set) {
        return Err(RunError::Usage(format!(
            "with -w 0 the program runs alone, without a primary that could set {what}: remove that or set -w 1"
        )));
    }
    crate::preflight::check_files(resolved)?;
    crate::preflight::check_length(resolved).map_err(Error::Settings)?;
    let (program, args) =
        crate::program::alone(&resolved.program, &resolved.app.node_args, &resolved.args);
    let mut command = Command::new(&program);
    command.args(args);
    for name in crate::build::OWN_VARIABLES {
        command.env_remove(name);
    }
    command.envs(&resolved.env);
    if let Some(cwd) = &resolved.cwd {
        command.current_dir(cwd);
    }
    let e = command.exec();
    Err(RunError::Failed(Error::Settings(format!(
        "cannot run {}: {e}",
        Path::new(&program).display()
    ))))
}
