//! Apps that are to be started and run already.

use std::path::Path;

use serde_json::json;

use super::{Planned, report};
use crate::control::client::Client;
use crate::control::protocol::Failure;
use crate::error::CliError;
use crate::records::listed;
use crate::resolve;

/// Returns the name of an app of a file that runs already, which leaves nothing to do.
///
/// # Errors
/// If `troop start` has started the same script in the same directory before, as in PM2: a second
/// consumer of a queue must not run without a word.
pub(super) fn already(app: &Planned) -> Result<Option<String>, CliError> {
    if !app.choice.app.is_empty() {
        let name = app.run.name.as_ref().unwrap_or(&app.choice.app);
        return Ok(Client::connect(name)?.map(|client| client.name().to_owned()));
    }
    let (resolved, source) =
        resolve::resolve(app.run.clone(), Some("")).map_err(CliError::Usage)?;
    if let (Some(_), Some(name)) = (source.file(), &resolved.name) {
        return Ok(Client::connect(name)?.map(|client| client.name().to_owned()));
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

/// Says that an app runs already.
pub(crate) fn say(name: &str, json: bool) {
    let state = json!({ "name": name, "state": "running", "started": false });
    report(json, &state, || {
        format!(
            "{name}: runs already; `troop reload {name}` replaces its workers, and reads its file again"
        )
    });
}
