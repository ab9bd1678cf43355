//! `reload`, `restart`, `scale`, `stop`, `policy` and `signal`: change running apps and wait for
//! the outcome.

use std::io::Write as _;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use troop::snapshot::Phase;
use troop::text::{counted, escaped};

use crate::args::{Policy, Reload, Restart, Scale, Signal, Stop, To};
use crate::control::client::{self, Client};
use crate::control::protocol::{AppSnapshot, Failure, Request};
use crate::error::CliError;
use crate::print;

/// Time that an app has to be ready after a restart, if it has not answered with its own.
const RESTART_TIMEOUT: Duration = Duration::from_secs(60);

/// Prints the outcome: a sentence for people, or the answer as JSON.
fn report(json: bool, answer: &Value, text: impl FnOnce() -> String) {
    let _ = if json { print::json(answer) } else { print::line(&text()) };
}

/// Adds the app's name to an answer.
pub(super) fn named(name: &str, mut answer: Value) -> Value {
    if let Some(fields) = answer.as_object_mut() {
        fields.insert("name".into(), name.into());
    }
    answer
}

/// Returns the one app that was selected.
pub(super) fn one(target: Option<&str>) -> Result<Client, CliError> {
    let mut clients = client::find(target)?;
    match clients.len() {
        1 => Ok(clients.remove(0)),
        _ => Err(CliError::Usage("this is done to one app at a time; name it".into())),
    }
}

/// Does something to each of the selected apps. One that fails does not keep the others from it;
/// its error is printed, or returned if it is the last one.
fn each(
    clients: Vec<Client>,
    mut act: impl FnMut(Client) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let are_several = clients.len() > 1;
    let mut last = None;
    for client in clients {
        let name = client.name().to_owned();
        if let Err(e) = act(client) {
            let e = if are_several { e.of_app(&name) } else { e };
            if let Some(before) = last.replace(e) {
                crate::log::line(&format!("troop: {before}"));
            }
        }
    }
    last.map_or(Ok(()), Err)
}

/// Runs `troop reload`: reloads the selected apps in turn.
pub(crate) fn reload(args: &Reload) -> Result<(), CliError> {
    let (app, worker) = client::target(args.app.as_deref())?;
    if worker.is_some() && args.allow_moved {
        let app = app.unwrap_or_default();
        return Err(CliError::Usage(format!(
            "--allow-moved is for all workers at once, because one alone is held to where the others listen: troop reload {app} --allow-moved"
        )));
    }
    each(client::find(app)?, |mut client| {
        let name = client.name().to_owned();
        let show = |event: &Value| {
            if let (false, Some(text)) = (args.json, event["text"].as_str()) {
                let _ = writeln!(std::io::stderr().lock(), "{name}: {}", escaped(text));
            }
        };
        let answer = named(
            &name,
            client.request(Request::Reload { worker, allow_moved: args.allow_moved }, show)?,
        );
        report(args.json, &answer, || {
            let (replaced, started) =
                (answer["replaced"].as_u64().unwrap_or(0), answer["started"].as_u64().unwrap_or(0));
            let done = match (replaced, started) {
                (0, 0) => format!("{name}: there was no worker to replace"),
                (replaced, 0) => format!("{name}: {} replaced", counted(replaced, "worker")),
                (0, started) => format!(
                    "{name}: {} started, none was there to replace",
                    counted(started, "worker")
                ),
                (replaced, started) => format!(
                    "{name}: {} replaced, {started} started where there was none",
                    counted(replaced, "worker")
                ),
            };
            match unchanged(&answer) {
                None => done,
                Some(unchanged) => format!(
                    "{done}; the policy is changed, {unchanged}; `troop restart {name}` opens it"
                ),
            }
        });
        Ok(())
    })
}

/// Runs `troop restart`.
pub(crate) fn restart(args: &Restart) -> Result<(), CliError> {
    each(client::find(args.app.as_deref())?, |mut client| {
        let name = client.name().to_owned();
        // The process stays the same through a restart.
        let pid = client.snapshot()?.snapshot.pid;
        let mut client = client::find(Some(&name))?
            .pop()
            .ok_or_else(|| CliError::NoApp(format!("{name} has ended")))?;
        let timeout = match client.request(Request::Restart, |_| {}) {
            // The app ended before it could answer.
            Err(CliError::Failed(failure)) if failure.kind == "over" => None,
            result => result?["start_timeout_ms"].as_u64().map(Duration::from_millis),
        };
        client.wait_for_end();
        let timeout = timeout.unwrap_or(RESTART_TIMEOUT);
        let start = Instant::now();
        loop {
            // The primary that follows has a socket of its own.
            let fresh = client::find(Some(&name)).ok().and_then(|mut found| found.pop());
            let app = fresh.and_then(|mut client| client.snapshot().ok());
            if let Some(AppSnapshot { snapshot, .. }) = &app {
                let ready =
                    snapshot.workers.iter().filter(|worker| worker.ready == Some(true)).count();
                let ended = snapshot.vacant.iter().filter(|slot| slot.finished.is_some()).count();
                if snapshot.phase == Phase::Running && ready + ended >= snapshot.wanted.unwrap_or(1)
                {
                    report(
                        args.json,
                        &json!({ "name": name, "state": "running", "workers": ready }),
                        || format!("{name}: {} ready", counted(ready, "worker")),
                    );
                    return Ok(());
                }
                // On average, every slot has been restarted twice.
                let keeps_dying = snapshot.restarts >= 2 * snapshot.wanted.unwrap_or(1) as u64;
                if snapshot.phase == Phase::Degraded && snapshot.ready == 0 && keeps_dying {
                    let why = snapshot.last_end.clone().unwrap_or_default();
                    return Err(CliError::Failed(Failure::new(
                        "failed",
                        format!(
                            "{name} is back and keeps trying, but no worker is ready; the last: {why}"
                        ),
                    )));
                }
            }
            let is_gone = rustix::process::Pid::from_raw(pid.cast_signed())
                .is_none_or(|pid| rustix::process::test_kill_process(pid).is_err());
            if is_gone || start.elapsed() >= timeout {
                let state = match (is_gone, app.is_some()) {
                    (true, _) => "it has ended",
                    (_, true) => "its workers are not ready",
                    _ => "it has not come back",
                };
                return Err(CliError::Failed(Failure::new(
                    "failed",
                    format!("{name}: {state}; `troop logs {name}` may say why"),
                )));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    })
}

/// Runs `troop scale`.
pub(crate) fn scale(args: &Scale) -> Result<(), CliError> {
    let mut client = one(args.app.as_deref())?;
    let request = match args.to {
        To::Workers(workers) => {
            Request::Scale { workers: Some(workers), by: 0, wait: !args.no_wait }
        }
        To::By(by) => Request::Scale { workers: None, by, wait: !args.no_wait },
    };
    let answer = client.request(request, |_| {})?;
    let answer = named(client.name(), answer);
    report(args.json, &answer, || {
        let workers = counted(answer["workers"].as_u64().unwrap_or(0), "worker");
        let scaling = if args.no_wait { "scaling to " } else { "" };
        format!("{}: {scaling}{workers}, {} before", client.name(), answer["before"])
    });
    Ok(())
}

/// Runs `troop stop`.
pub(crate) fn stop(args: &Stop) -> Result<(), CliError> {
    let mut stopping = Vec::new();
    let result = each(client::find(args.app.as_deref())?, |mut client| {
        match client.request(Request::Stop { quick: args.quick }, |_| {}) {
            Ok(_) => {}
            // The app ended before it could answer.
            Err(CliError::Failed(failure)) if failure.kind == "over" => {}
            Err(e) => return Err(e),
        }
        stopping.push(client);
        Ok(())
    });
    for mut client in stopping {
        if !args.no_wait {
            client.wait_for_end();
        }
        let done = if args.no_wait { "stopping" } else { "stopped" };
        report(args.json, &json!({ "name": client.name(), "state": done }), || {
            format!("{}: {done}", client.name())
        });
    }
    result
}

/// Names the listeners to which an accepted change of policy does not apply yet.
fn unchanged(answer: &Value) -> Option<String> {
    let later: Vec<_> =
        answer["later"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let listeners = later.join(", ");
    let reason = "an open listener cannot change to or from `shared` and `steered`";
    (!later.is_empty()).then(|| {
        format!(
            "but not yet on {listeners}, which changes when it is opened the next time: {reason}"
        )
    })
}

/// Runs `troop policy`.
pub(crate) fn policy(args: &Policy) -> Result<(), CliError> {
    let mut client = one(args.app.as_deref())?;
    let listener = args.policy.listeners.as_ref().map(ToString::to_string);
    let answer = client.request(
        Request::Schedule { listener, policy: args.policy.scheduling.to_string() },
        |_| {},
    )?;
    let answer = named(client.name(), answer);
    report(args.json, &answer, || {
        let (name, policy) = (client.name(), &args.policy.scheduling);
        match unchanged(&answer) {
            None => format!("{name}: {policy}"),
            Some(unchanged) => format!(
                "{name}: {policy}, {unchanged}; `troop restart {name}` opens it with the policy of its configuration or --policy"
            ),
        }
    });
    Ok(())
}

/// Runs `troop signal`.
pub(crate) fn signal(args: &Signal) -> Result<(), CliError> {
    let (app, worker) = client::target(args.app.as_deref())?;
    let mut client = one(app)?;
    let answer = client
        .request(Request::Signal { signal: args.signal, worker: args.worker.or(worker) }, |_| {})?;
    let answer = named(client.name(), answer);
    report(args.json, &answer, || {
        let workers = answer["workers"].as_array().map_or(0, Vec::len);
        format!("{}: sent to {}", client.name(), counted(workers, "worker"))
    });
    Ok(())
}
