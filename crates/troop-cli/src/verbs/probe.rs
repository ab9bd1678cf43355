//! `ls --quiet` and `show --quiet`: tell by the exit code how apps are.

use troop::snapshot::Phase;

use super::show::{answers, phase, serving};
use crate::args::Show;
use crate::control::client;
use crate::control::missing;
use crate::control::protocol::{AppSnapshot, Failure};
use crate::control::targets::{self, Target};
use crate::error::CliError;
use crate::records::Ending;

/// Runs `troop ls --quiet` and `troop show --quiet`. The worst of several apps is the error.
pub(crate) fn probe(args: &Show) -> Result<(), CliError> {
    let (app, worker) = client::target(args.app.as_deref())?;
    let found = match (app, worker) {
        (None | Some("all"), None) => targets::everything()?,
        (app, _) => targets::some(app)?,
    };
    let (mut clients, mut worst) = (Vec::new(), Vec::new());
    let mut meant = None;
    worst.extend(app.into_iter().flat_map(|word| missing::of_file(word, &found)));
    for target in found {
        match target {
            Target::Running(client) => clients.push(client),
            Target::Ended(record, end) => {
                let error = targets::not_running(&record, &end);
                match end.how {
                    Ending::Stopped | Ending::Finished => meant = Some(error),
                    Ending::Failed | Ending::Crashed => worst.push(error),
                }
            }
        }
    }
    if clients.is_empty() && worst.is_empty() {
        return Err(meant.unwrap_or_else(|| CliError::NoApp("no app is running".into())));
    }
    for (name, app) in answers(&mut clients) {
        match (app, worker) {
            (None, _) => worst
                .push(CliError::Failed(Failure::new("failed", format!("{name} does not answer")))),
            (Some(app), Some(number)) => worst.extend(why_worker_is_not_ready(&app, number)),
            (Some(app), None) => worst.extend(why_not_ready(&app).map(CliError::NotReady)),
        }
    }
    // In this order: it does not answer (1), does not run (3), is not ready (4).
    worst.sort_by_key(CliError::code);
    worst.into_iter().next().map_or(Ok(()), Err)
}

/// Returns why an app has not as many ready workers as it should have, if it has not. Workers that
/// have ended for good are complete.
pub(crate) fn why_not_ready(app: &AppSnapshot) -> Option<String> {
    let snapshot = &app.snapshot;
    let wanted = snapshot.wanted.unwrap_or(snapshot.workers.len());
    let finished = snapshot.vacant.iter().filter(|slot| slot.finished.is_some()).count();
    let ready = serving(snapshot);
    if matches!(snapshot.phase, Phase::Running | Phase::Reloading) && ready + finished >= wanted {
        return None;
    }
    let mut why = format!("it is {}, {ready} of {wanted} workers ready", phase(snapshot));
    if let Some(lost) = snapshot.lost.first() {
        why.push_str(&format!("; lost {}: {}", lost.address, lost.reason));
    } else if let Some(end) = &snapshot.last_end {
        why.push_str(&format!("; the last unexpected end: {end}"));
    }
    Some(why)
}

fn why_worker_is_not_ready(app: &AppSnapshot, number: u32) -> Option<CliError> {
    let Some(worker) = app.snapshot.workers.iter().find(|worker| worker.id.0 == number) else {
        return Some(CliError::Failed(Failure::new(
            "no-worker",
            format!("{} has no worker {number}", app.name),
        )));
    };
    let is_ready = worker.ready != Some(false) && worker.leaving_ms.is_none();
    (!is_ready).then(|| CliError::NotReady(format!("worker {number} of {} is not ready", app.name)))
}
