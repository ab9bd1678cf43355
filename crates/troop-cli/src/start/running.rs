//! Apps that are to be started and run already.

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use troop::snapshot::Phase;

use super::{Planned, report};
use crate::control::client::Client;
use crate::control::protocol::Failure;
use crate::error::CliError;
use crate::records::listed;
use crate::{log, resolve};

/// Time that an app has to say whether it stops.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Interval in which one that stops is looked after.
const STOPPING_INTERVAL: Duration = Duration::from_millis(50);

/// An app that runs already.
pub(super) struct Running {
    pub(super) name: String,
    /// Where it comes from, if that is not the file that was named now.
    other: Option<String>,
}

/// Returns the app of a file that runs already, which leaves nothing to do.
///
/// # Errors
/// If `troop start` has started the same script in the same directory before, as in PM2: a second
/// consumer of a queue must not run without a word. If another project's app has that name.
pub(super) fn already(app: &Planned) -> Result<Option<Running>, CliError> {
    if !app.choice.app.is_empty() {
        let name = app.run.name.as_ref().unwrap_or(&app.choice.app);
        let file = resolve::file_of(&app.run).ok().flatten().map(|(file, _)| file);
        return of_name(name, file.as_deref());
    }
    let (resolved, source) =
        resolve::resolve(app.run.clone(), Some("")).map_err(CliError::Usage)?;
    if let (Some(file), Some(name)) = (source.file(), &resolved.name) {
        return of_name(name, Some(file));
    }
    if app.run.name.is_some() || app.run.pm2.force {
        return Ok(None);
    }
    let program = Path::new(&resolved.program);
    let Ok(directory) = crate::directory::current() else { return Ok(None) };
    if !directory.join(program).is_file() {
        return Ok(None);
    }
    // Several commands of one program, such as npm, are different apps.
    let same = listed::all().unwrap_or_default().into_iter().find(|known| {
        let is_same = |call: &crate::records::StartCall| {
            call.app.is_empty()
                && call.cwd == directory
                && known.record.program == program.display().to_string()
        };
        known.end.is_none() && known.record.start.as_ref().is_some_and(is_same)
    });
    match same {
        None => Ok(None),
        Some(known) => {
            let (name, program) = (known.record.name, program.display());
            Err(CliError::Failed(Failure::new(
                "failed",
                format!(
                    "{program} runs already, as {name}: `troop reload {name}` replaces its workers, `troop restart {name}` starts it again; -f, or --name with another name, starts a second one"
                ),
            )))
        }
    }
}

/// Returns the app of a name that runs, for one of this name in a file.
fn of_name(name: &str, file: Option<&Path>) -> Result<Option<Running>, CliError> {
    let Some((client, other)) = connected(name, file)? else { return Ok(None) };
    let running = unless_stopping(client)?;
    Ok(running.map(|client| Running { name: client.name().to_owned(), other }))
}

/// Waits for the end of an app that is stopping: because somebody wants that, or its first process was
/// killed. Returns the client of one that is not.
pub(crate) fn unless_stopping(mut client: Client) -> Result<Option<Client>, CliError> {
    let is_stopping = |client: &mut Client| {
        client.snapshot_within(ANSWER_TIMEOUT).map(|app| app.snapshot.phase == Phase::Stopping)
    };
    // One that does not answer is not known to stop.
    if !is_stopping(&mut client).unwrap_or(false) {
        return Ok(Some(client));
    }
    let name = client.name().to_owned();
    log::line(&format!("troop: {name} is stopping, and is started when it has ended"));
    drop(client);
    loop {
        std::thread::sleep(STOPPING_INTERVAL);
        let Some(mut client) = Client::connect(&name)? else { return Ok(None) };
        if let Ok(false) = is_stopping(&mut client) {
            return Ok(Some(client));
        }
    }
}

/// Connects to the app of a name that runs, for one of this name in a file. The text is where it comes
/// from, if that is another file.
///
/// # Errors
/// If that one was started elsewhere from another file: two projects have an app of this name. Another
/// file alone says nothing, as links to releases lead to other files of the same project.
pub(crate) fn connected(
    name: &str,
    file: Option<&Path>,
) -> Result<Option<(Client, Option<String>)>, CliError> {
    let Some(client) = Client::connect(name)? else { return Ok(None) };
    let name = client.name();
    let record = listed::of(name).filter(|app| app.end.is_none()).map(|app| app.record);
    let file = file.and_then(|file| file.canonicalize().ok());
    let Some((record, file)) =
        record.zip(file).filter(|(record, file)| record.file.as_ref() != Some(file))
    else {
        return Ok(Some((client, None)));
    };
    let other = match &record.file {
        Some(file) => format!("from {}", file.display()),
        None => format!("as {}", record.program),
    };
    let here = crate::directory::current().ok();
    match record.start {
        Some(start) if here.is_some_and(|here| here != start.cwd) => {
            Err(CliError::Failed(Failure::new(
                "failed",
                format!(
                    "{name} of {} does not run: another app of this name does, {other} in {}; `troop delete {name}` ends that one, or this one gets another name",
                    file.display(),
                    start.cwd.display()
                ),
            )))
        }
        _ => Ok(Some((client, Some(other)))),
    }
}

impl Running {
    /// Says that it runs already.
    pub(super) fn say(&self, json: bool) {
        say(&self.name, self.other.as_deref(), json);
    }
}

/// Says that an app runs already.
pub(crate) fn say(name: &str, other: Option<&str>, json: bool) {
    let state = json!({ "name": name, "state": "running", "started": false });
    report(json, &state, || {
        let other = other.map(|other| format!(", {other}")).unwrap_or_default();
        format!(
            "{name}: runs already{other}; `troop reload {name}` replaces its workers, and reads its file again"
        )
    });
}
