//! `troop wait`: waits until apps are ready, or do not run.

use std::time::{Duration, Instant};

use serde_json::json;
use troop::snapshot::Phase;

use super::each::each;
use super::operate::report;
use super::probe::why_not_ready;
use super::show::answers;
use crate::args::{Wait, WaitFor};
use crate::control::missing;
use crate::control::protocol::{AppSnapshot, Failure};
use crate::control::targets::{self, Target};
use crate::error::CliError;
use crate::log;
use crate::records::{End, Ending, Record};
use crate::start::quoted;

/// Interval between looks at the apps.
const INTERVAL: Duration = Duration::from_millis(100);

/// Runs `troop wait`. The failure of one app does not end the wait for the others.
pub(crate) fn wait(args: &Wait) -> Result<(), CliError> {
    let deadline = args.timeout.and_then(|time| Instant::now().checked_add(time.0));
    let (mut names, missing) = names(args)?;
    let (mut last, mut is_first) = (None, true);
    loop {
        let (mut left, mut clients) = (Vec::new(), Vec::new());
        let mut failed = |e: CliError| {
            if let (Some(before), false) = (last.replace(e), args.quiet) {
                log::line(&format!("troop: {before}"));
            }
        };
        if is_first {
            missing.iter().for_each(|text| failed(CliError::NoApp(text.clone())));
        }
        for name in names {
            match (targets::selected(&name)?.pop(), args.state) {
                (Some(Target::Running(client)), _) => clients.push(client),
                (_, WaitFor::Stopped) => say(args, &name, "stopped"),
                (Some(Target::Ended(record, end)), _) => failed(ended(&record, &end, is_first)),
                // Its start has failed, and it was not known before.
                (None, _) if !is_first => {
                    let text = format!("{name} has ended before it was ready");
                    failed(CliError::Failed(Failure::new("failed", text)));
                }
                (None, _) => failed(CliError::NoApp(format!("{name} has ended"))),
            }
        }
        is_first = false;
        let asked = match args.state {
            WaitFor::Ready => answers(&mut clients),
            WaitFor::Stopped => {
                clients.iter().map(|client| (client.name().to_owned(), None)).collect()
            }
        };
        // One that has ended meanwhile has not answered, and is looked up again.
        for client in &clients {
            let name = client.name().to_owned();
            let app =
                asked.iter().find(|(other, _)| *other == name).and_then(|(_, app)| app.as_ref());
            match app.map(|app| (why_not_ready(app), app)) {
                Some((None, _)) => say(args, &name, "ready"),
                Some((Some(why), app)) if keeps_ending(app) => {
                    failed(CliError::Failed(Failure::new(
                        "failed",
                        format!(
                            "{name}: its workers keep ending: {why}{}",
                            quoted(app.last_lines.as_deref())
                        ),
                    )))
                }
                Some((Some(why), _)) => left.push((name, why)),
                None => left.push((name, running(args.state).to_owned())),
            }
        }
        if left.is_empty() {
            return last.map_or(Ok(()), Err);
        }
        if let Some(deadline) = deadline
            && Instant::now() >= deadline
        {
            for (name, why) in left {
                let state = if args.state == WaitFor::Ready { "ready" } else { "stopped" };
                failed(CliError::NotReady(format!("{name} is not {state} in time: {why}")));
            }
            return last.map_or(Ok(()), Err);
        }
        names = left.into_iter().map(|(name, _)| name).collect();
        std::thread::sleep(INTERVAL);
    }
}

/// Returns the error for an app that has ended and is not ready therefore. One that was known not to
/// run when the wait began, because it was stopped or has finished, is no failure.
fn ended(record: &Record, end: &End, was_so: bool) -> CliError {
    let not_running = targets::not_running(record, end);
    if was_so && matches!(end.how, Ending::Stopped | Ending::Finished) {
        return not_running;
    }
    let reason = end.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    CliError::Failed(Failure::new("failed", format!("{not_running}{reason}")))
}

/// Returns the names of the apps to wait for, and what to say of those of files that are not known.
fn names(args: &Wait) -> Result<(Vec<String>, Vec<String>), CliError> {
    let mut found = Vec::new();
    each(&args.apps, |target| {
        found.push(target);
        Ok(())
    })?;
    let missing = args.apps.iter().flat_map(|word| missing::of_file(word, &found));
    let missing = missing.filter(|_| args.state == WaitFor::Ready);
    let missing: Vec<_> = missing.map(|e| e.to_string()).collect();
    let are_all = args.apps.iter().any(|word| word == "all");
    let is_meant = |target: &&Target| !are_all || matches!(target, Target::Running(_));
    let names: Vec<_> =
        found.iter().filter(is_meant).map(|target| target.name().to_owned()).collect();
    match names.is_empty() && args.state == WaitFor::Ready {
        true => Err(CliError::NoApp("no app is running".into())),
        false => Ok((names, missing)),
    }
}

fn running(state: WaitFor) -> &'static str {
    match state {
        WaitFor::Ready => "it does not answer",
        WaitFor::Stopped => "it runs",
    }
}

/// Whether no worker is ready, and on average every slot has been restarted twice.
pub(super) fn keeps_ending(AppSnapshot { snapshot, .. }: &AppSnapshot) -> bool {
    let wanted = snapshot.wanted.unwrap_or(1) as u64;
    snapshot.phase == Phase::Degraded && snapshot.ready == 0 && snapshot.restarts >= 2 * wanted
}

fn say(args: &Wait, name: &str, state: &str) {
    if !args.quiet {
        report(args.json, &json!({ "name": name, "state": state }), || format!("{name}: {state}"));
    }
}
