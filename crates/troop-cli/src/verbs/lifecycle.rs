//! `reload`, `restart`, `stop` and `delete`, for one app or several, and the start of apps that are
//! known.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use signal_hook::consts::SIGINT;
use troop::snapshot::Phase;
use troop::text::{counted, escaped};

use super::each::{Outcome, each, each_found};
use super::operate::{named, report, unchanged};
use super::probe::why_not_ready;
use super::progress::Progress;
use super::wait::keeps_ending;
use crate::args::{Delete, OfFile, Reload, Restart, Serve, Start, Stop, Upgrade};
use crate::control::client::{self, Client};
use crate::control::protocol::{AppSnapshot, Failure, Request};
use crate::control::targets::{self, Target};
use crate::error::CliError;
use crate::in_use::with_tip;
use crate::records::listed::{self, Listed};
use crate::records::{Ending, Record, Text, own_env};
use crate::{config, files, log, resolve, restart, start};

/// Time that a process has to end whose control socket is gone.
const ENDING_TIMEOUT: Duration = Duration::from_secs(5);

/// Time that an app has to be ready after a restart, if it has not answered with its own.
const RESTART_TIMEOUT: Duration = Duration::from_secs(60);

/// Time until a process is gone that has closed its connections.
const KILLED_TIMEOUT: Duration = Duration::from_secs(1);

/// How often an app is told to restart whose process is killed before it does.
const MAX_RESTARTS: u32 = 5;

fn catch_interrupt() -> Result<Arc<AtomicBool>, CliError> {
    let interrupted = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGINT, interrupted.clone())
        .map_err(|e| CliError::Io("catch signals".into(), e))?;
    Ok(interrupted)
}

/// Does something to each of the selected apps, and to those of configuration files, of which those are
/// started that do not run.
fn each_started(
    words: &[String],
    chosen: &OfFile,
    json: bool,
    mut act: impl FnMut(Target) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let is_file = |word: &&String| {
        let path = Path::new(word);
        config::format_of(path).is_some() && path.is_file()
    };
    let (files, names): (Vec<&String>, Vec<&String>) = words.iter().partition(is_file);
    if files.is_empty() && !(chosen.only.is_empty() && chosen.env.is_none()) {
        return Err(CliError::Usage("--only and --env are for a file with apps: name it".into()));
    }
    let mut outcome = Outcome::default();
    if files.is_empty() || !names.is_empty() {
        let names: Vec<_> = names.into_iter().cloned().collect();
        match each_found(&names, &mut act) {
            Ok(of_names) => outcome = of_names,
            Err(e) => outcome.failed(e),
        }
    }
    if let Some(environment) = &chosen.env {
        config::choose_environment(environment);
    }
    for file in files {
        let apps = config::read(Path::new(file)).map_err(CliError::Usage)?;
        let after: Vec<_> =
            apps.iter().map(|(name, app)| (name.clone(), app.after.clone())).collect();
        let ranks = start::ranks(&after);
        let mut names: Vec<_> = apps.into_keys().collect();
        names.sort_by_key(|name| ranks.get(name).copied());
        let names = start::only(names.clone(), &chosen.only)
            .map_err(|name| CliError::Usage(resolve::no_app(Path::new(file), &name, &names)))?;
        let mut missing = Vec::new();
        for name in names {
            match start::connected(&name, Some(Path::new(file))) {
                Err(e) => outcome.failed(e),
                Ok(None) => missing.push(name),
                Ok(Some((client, _))) => {
                    if let Err(e) = act(Target::Running(client)) {
                        outcome.failed(e.of_app(&name));
                    }
                }
            }
        }
        if missing.is_empty() {
            continue;
        }
        let args = Start::of_file(file, &missing, chosen, json)
            .map_err(|e| CliError::Usage(e.to_string()))?;
        if let Err(e) = start::start(&args) {
            outcome.failed(e);
        }
    }
    outcome.end()
}

/// Starts an app again, with the environment of this process if that is wanted.
fn resume(
    record: &Record,
    update_env: bool,
    no_wait: bool,
    json: bool,
    interrupted: &AtomicBool,
) -> Result<(), CliError> {
    let mut record = record.clone();
    if let Some(call) = record.start.as_mut().filter(|_| update_env) {
        call.env = own_env();
    }
    start::spawn_again(&record)?.finish(no_wait, json, interrupted).map(|_| ())
}

/// Returns the record of an app that has ended, once its process has, too.
fn ended(name: &str) -> Option<Record> {
    let until = Instant::now() + ENDING_TIMEOUT;
    loop {
        let app = listed::of(name)?;
        if app.end.is_some() || Instant::now() >= until {
            return Some(app.record).filter(|_| app.end.is_some());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Starts apps again that are known, as they were started before.
pub(crate) fn start_known(words: &[String], args: &Start) -> Result<(), CliError> {
    let interrupted = catch_interrupt()?;
    each(words, |target| match target {
        Target::Ended(record, _) => {
            resume(&record, args.update_env, args.no_wait, args.json, &interrupted)
        }
        Target::Running(client) => {
            let name = client.name().to_owned();
            match start::unless_stopping(client)? {
                Some(client) => start::say_running(client.name(), None, args.json),
                None => {
                    let record = ended(&name).ok_or_else(|| {
                        let why = format!("{name} has ended, and is not known any more");
                        CliError::Failed(Failure::new("failed", why))
                    })?;
                    resume(&record, args.update_env, args.no_wait, args.json, &interrupted)?;
                }
            }
            Ok(())
        }
    })
}

/// Runs `troop reload`: reloads the selected apps in turn. An app that does not run is started
/// again if it was named.
pub(crate) fn reload(args: &Reload) -> Result<(), CliError> {
    let (app, worker) = match &args.apps[..] {
        [app] => client::target(Some(app))?,
        _ => (None, None),
    };
    if worker.is_some() && args.update_env {
        let app = app.unwrap_or_default();
        return Err(CliError::Usage(format!(
            "--update-env is for all workers, which have one environment: troop reload {app} --update-env"
        )));
    }
    if worker.is_some() && args.allow_moved {
        let app = app.unwrap_or_default();
        return Err(CliError::Usage(format!(
            "--allow-moved is for all workers at once, because one alone is held to where the others listen: troop reload {app} --allow-moved"
        )));
    }
    let words: Vec<String> = match app {
        Some(app) => vec![app.to_owned()],
        None => args.apps.clone(),
    };
    let is_all = words.iter().any(|word| word == "all");
    let interrupted = catch_interrupt()?;
    each_started(&words, &args.of_file, args.json, |target| match target {
        Target::Running(client) => reload_one(args, worker, client),
        Target::Ended(record, end) if worker.is_some() => Err(targets::not_running(&record, &end)),
        Target::Ended(..) if is_all => Ok(()),
        Target::Ended(record, _) => {
            resume(&record, args.update_env, false, args.json, &interrupted)
        }
    })
}

fn reload_one(args: &Reload, worker: Option<u32>, mut client: Client) -> Result<(), CliError> {
    let name = client.name().to_owned();
    let progress = Progress::begin(&name, args.json, true);
    let show = |event: &Value| {
        if let (false, Some(text)) = (args.json, event["text"].as_str()) {
            progress.line(&format!("{name}: {}", escaped(text)));
        }
    };
    let answer = client.request(
        Request::Reload {
            worker,
            allow_moved: args.allow_moved,
            env: args.update_env.then(own_env),
        },
        show,
    );
    drop(progress);
    let answer = named(&name, answer?);
    report(args.json, &answer, || {
        let (replaced, started) =
            (answer["replaced"].as_u64().unwrap_or(0), answer["started"].as_u64().unwrap_or(0));
        let done = match (replaced, started) {
            (0, 0) => format!("{name}: there was no worker to replace"),
            (replaced, 0) => format!("{name}: {} replaced", counted(replaced, "worker")),
            (0, started) => {
                format!("{name}: {} started, none was there to replace", counted(started, "worker"))
            }
            (replaced, started) => format!(
                "{name}: {} replaced, {started} started where there was none",
                counted(replaced, "worker")
            ),
        } + &started_again(&answer);
        match unchanged(&answer) {
            None => done,
            Some(unchanged) => format!(
                "{done}; the policy is changed, {unchanged}; `troop restart {name}` opens it"
            ),
        }
    });
    Ok(())
}

/// What a reload says of paths that old workers have removed.
fn started_again(answer: &Value) -> String {
    let paths = answer["started_again"].as_array().into_iter().flatten();
    let paths: Vec<_> =
        paths.filter_map(Value::as_str).map(|path| escaped(path).to_string()).collect();
    if paths.is_empty() {
        return String::new();
    }
    format!(
        "; clients were refused for a moment at {}, which the old worker removed at its end although its successor listened there: that one was started once more. With `alone = true` the old one leaves first",
        paths.join(" and ")
    )
}

/// Runs `troop serve`: starts an app of this program that serves a directory.
pub(crate) fn serve(args: &Serve) -> Result<(), CliError> {
    let directory = std::path::absolute(&args.directory)
        .map_err(|e| CliError::Usage(format!("{}: {e}", args.directory.display())))?;
    if !directory.is_dir() {
        return Err(CliError::Usage(format!("there is no directory {}", directory.display())));
    }
    if args.pages.basic_auth {
        files::authorization().map_err(|e| CliError::Usage(e.to_string()))?;
    }
    let start = Start::parsed(args.as_start(restart::program(), directory));
    start::start(&start.map_err(|e| CliError::Usage(e.to_string()))?)
}

/// Runs `troop restart`: restarts the selected apps in turn, and starts those again that do not run.
pub(crate) fn restart_apps(args: &Restart) -> Result<(), CliError> {
    let env = args.update_env.then(own_env);
    let interrupted = catch_interrupt()?;
    each_started(&args.apps, &args.of_file, args.json, |target| match target {
        Target::Running(client) => restart_one(client, env.clone(), args.json),
        Target::Ended(record, _) => {
            resume(&record, args.update_env, false, args.json, &interrupted)
        }
    })
}

/// Runs `troop upgrade`: has another engine go on with each of the selected apps, or has their keepers
/// execute themselves again.
pub(crate) fn upgrade(args: &Upgrade) -> Result<(), CliError> {
    // The app's process has another working directory.
    let path = args.path.as_ref().map(std::path::absolute).transpose();
    let path = path.map_err(|e| CliError::Io("find the program".into(), e))?;
    each(&args.apps, |target| match target {
        Target::Running(mut client) => {
            let path = path.clone();
            let request = match args.keeper {
                true => Request::UpgradeKeeper { path },
                false => Request::Upgrade { path },
            };
            let answer = client.request(request, |_| {})?;
            let answer = named(client.name(), answer);
            report(args.json, &answer, || upgraded(client.name(), &answer));
            Ok(())
        }
        Target::Ended(record, _) => Err(CliError::NoApp(format!(
            "{} does not run: `troop start {0}` starts it",
            record.name
        ))),
    })
}

/// What an upgrade has done, for people.
fn upgraded(name: &str, answer: &Value) -> String {
    let version = |field: &str| answer[field].as_str().unwrap_or("?");
    let (from, to) = (version("from"), version("version"));
    if answer["engine"].is_null() {
        return format!("{name}: keeper upgraded from {from} to {to}, process {}", answer["pid"]);
    }
    let done = format!("{name}: upgraded from {from} to {to}, process {}", answer["engine"]);
    match answer["keeper_version"].as_str() {
        Some(keeper) if keeper != to => format!(
            "{done}; its keeper is of version {keeper}: `troop upgrade {name} --keeper` upgrades that, too"
        ),
        _ => done,
    }
}

fn restart_one(
    mut client: Client,
    env: Option<Vec<(Text, Text)>>,
    json: bool,
) -> Result<(), CliError> {
    let name = client.name().to_owned();
    let before = client.last_snapshot()?.snapshot;
    let former: BTreeSet<u32> = before.workers.iter().map(|worker| worker.pid).collect();
    for _ in 0..MAX_RESTARTS {
        let mut client =
            Client::connect(&name)?.ok_or_else(|| CliError::NoApp(format!("{name} has ended")))?;
        // None if the app ended before it could answer.
        let answer = client.request_until_answered(&Request::Restart { env: env.clone() })?;
        let timeout = answer.and_then(|answer| answer["start_timeout_ms"].as_u64());
        client.wait_for_end();
        let timeout = timeout.map_or(RESTART_TIMEOUT, Duration::from_millis);
        // The process stays the same through a restart.
        if is_back(&name, before.pid, &former, timeout, json)? {
            return Ok(());
        }
    }
    not_back(format!(
        "{name} was not restarted: the process that was to do it was killed each time, and another one goes on with the same workers"
    ))
}

/// Waits until an app is ready that was restarted. False if it runs on with the former workers: the process
/// that was to restart it was killed before.
fn is_back(
    name: &str,
    pid: u32,
    former: &BTreeSet<u32>,
    timeout: Duration,
    json: bool,
) -> Result<bool, CliError> {
    let start = Instant::now();
    let progress = Progress::begin(name, json, false);
    loop {
        // The primary that follows has a socket of its own.
        let fresh = Client::connect(name).ok().flatten();
        let app = fresh.and_then(|mut client| client.snapshot().ok());
        if let Some(found @ AppSnapshot { snapshot, .. }) = &app {
            let ready: Vec<_> =
                snapshot.workers.iter().filter(|worker| worker.ready == Some(true)).collect();
            let are_former = ready.iter().any(|worker| former.contains(&worker.pid));
            let ready = ready.len();
            let ended = snapshot.vacant.iter().filter(|slot| slot.finished.is_some()).count();
            if snapshot.phase == Phase::Running && are_former {
                return Ok(false);
            }
            if snapshot.phase == Phase::Running && ready + ended >= snapshot.wanted.unwrap_or(1) {
                drop(progress);
                if let Some(hint) = &found.hint {
                    log::line(&format!("troop: {name}: {hint}"));
                }
                report(
                    json,
                    &json!({ "name": name, "state": "running", "workers": ready }),
                    || match &found.schedule {
                        Some(schedule) if schedule.is_job && ready == 0 => {
                            start::waits_for_its_time(name)
                        }
                        _ => format!("{name}: {} ready", counted(ready, "worker")),
                    },
                );
                return Ok(true);
            }
            if keeps_ending(found) {
                let why = snapshot.last_end.as_deref().unwrap_or("they keep ending");
                return not_back(format!(
                    "{name} was restarted, and no worker gets ready; it is degraded, and troop goes on trying until one does, or until `troop stop {name}`; the last one: {why}{}",
                    start::quoted(found.last_lines.as_deref())
                ));
            }
        }
        let is_gone = rustix::process::Pid::from_raw(pid.cast_signed())
            .is_none_or(|pid| rustix::process::test_kill_process(pid).is_err());
        if is_gone || start.elapsed() >= timeout {
            drop(progress);
            if is_gone {
                return ended_since(name, json).map(|()| true);
            }
            let within = start.elapsed();
            return not_back(match &app {
                Some(app) => format!(
                    "{name} was restarted, and is not ready after {within:.0?}: {}; troop goes on trying, and `troop logs {name}` may say more{}",
                    why_not_ready(app).unwrap_or_else(|| "it is late".into()),
                    start::quoted(app.last_lines.as_deref())
                ),
                None => format!(
                    "{name} has not come back within {within:.0?}: process {pid} runs and does not answer; `troop logs {name}` may say why"
                ),
            });
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The error for an app that was restarted and is not ready.
fn not_back<T>(text: String) -> Result<T, CliError> {
    Err(CliError::Failed(Failure::new("failed", with_tip(text))))
}

/// Reports the end of an app that was restarted. One that has done what it was to do has not failed.
fn ended_since(name: &str, json: bool) -> Result<(), CliError> {
    let Some(Listed { record, end: Some(end) }) = listed::of(name) else {
        return not_back(format!(
            "{name} was restarted, and has ended; `troop logs {name}` may say why"
        ));
    };
    let state = end.how.state();
    let reason = end.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
    if end.how == Ending::Finished {
        let answer = json!({ "name": name, "state": state, "how": end.reason });
        report(json, &answer, || format!("{name}: {state}{reason}"));
        return Ok(());
    }
    let again = match &record.start {
        Some(_) => format!("; `troop start {name}` tries again"),
        None => String::new(),
    };
    not_back(format!("{name} was restarted, and has ended; it is listed as {state}{again}{reason}"))
}

/// Runs `troop stop`. Apps that were started in the background stay listed.
pub(crate) fn stop(args: &Stop) -> Result<(), CliError> {
    end(args, false)
}

/// Runs `troop delete`: stops the selected apps and forgets them.
pub(crate) fn delete(Delete { stop }: &Delete) -> Result<(), CliError> {
    end(stop, true)
}

/// Runs `troop kill`: stops all apps that run.
pub(crate) fn kill() -> Result<(), CliError> {
    let names: Vec<_> = targets::everything()?
        .iter()
        .filter(|target| matches!(target, Target::Running(_)))
        .map(|target| target.name().to_owned())
        .collect();
    if names.is_empty() {
        return Ok(());
    }
    end(&Stop { apps: names, only: Vec::new(), quick: false, no_wait: false, json: false }, false)
}

fn end(args: &Stop, forget: bool) -> Result<(), CliError> {
    let mut running = Vec::new();
    let done = if forget { "deleted" } else { "stopped" };
    let say = |name: &str, state: &str, text: &str| {
        report(args.json, &json!({ "name": name, "state": state }), || format!("{name}: {text}"));
    };
    let mut outcome = each_found(&args.apps, |target| {
        if !args.only.is_empty() && !args.only.iter().any(|name| name == target.name()) {
            return Ok(());
        }
        match target {
            Target::Running(client) => running.push(client),
            Target::Ended(record, _) if forget => {
                forget_record(&record.name)?;
                say(&record.name, done, done);
            }
            Target::Ended(record, end) => {
                say(&record.name, end.how.state(), &format!("{} already", end.how.state()));
            }
        }
        Ok(())
    })?;
    let are_several = running.len() > 1;
    for (at, group) in last_started_first(running).into_iter().enumerate() {
        let mut stopping = Vec::new();
        for client in group {
            let name = client.name().to_owned();
            match request_stop(client, args.quick, forget, at > 0) {
                Ok(client) => stopping.push(client),
                Err(e) => outcome.failed(if are_several { e.of_app(&name) } else { e }),
            }
        }
        for mut client in stopping {
            if args.no_wait {
                say(client.name(), "stopping", "stopping");
                continue;
            }
            client.wait_for_end();
            // One that was killed at its end does not do that itself, nor one of an earlier version.
            let finish = listed::finish(client.name(), forget, Instant::now() + KILLED_TIMEOUT);
            if let (Err(e), true) = (finish, forget) {
                outcome.failed(not_forgotten(client.name(), e).of_app(client.name()));
                continue;
            }
            say(client.name(), done, done);
        }
    }
    outcome.end()
}

/// Returns apps in groups that stop one after another: none before those that start after it.
fn last_started_first(mut clients: Vec<Client>) -> Vec<Vec<Client>> {
    if clients.len() < 2 {
        return vec![clients];
    }
    let ranks = targets::ranks();
    let rank = |client: &Client| ranks.get(client.name()).copied();
    clients.sort_by_key(|client| Reverse(rank(client)));
    let mut groups: Vec<(Option<usize>, Vec<Client>)> = Vec::new();
    for client in clients {
        match groups.last_mut() {
            Some((of, group)) if *of == rank(&client) => group.push(client),
            _ => groups.push((rank(&client), vec![client])),
        }
    }
    groups.into_iter().map(|(_, group)| group).collect()
}

/// Has an app stop. A connection that has been silent may have been closed.
fn request_stop(
    mut client: Client,
    quick: bool,
    forget: bool,
    was_silent: bool,
) -> Result<Client, CliError> {
    if was_silent && let Some(fresh) = Client::connect(client.name())? {
        client = fresh;
    }
    // None if the app ended before it could answer.
    client.request_until_answered(&Request::Stop { quick, forget })?;
    Ok(client)
}

fn forget_record(name: &str) -> Result<(), CliError> {
    listed::forget(name).map_err(|e| not_forgotten(name, e))
}

fn not_forgotten(name: &str, e: std::io::Error) -> CliError {
    CliError::Io(format!("forget {name}"), e)
}
