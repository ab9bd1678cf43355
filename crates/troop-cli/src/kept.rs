//! The keeper of an app: see [`troop::keeper`].

use std::os::unix::process::CommandExt as _;

use troop::keeper::{self, Place};

use crate::args::Run;
use crate::error::RunError;
use crate::start::Choice;
use crate::{log, resolve};

/// The variable by which the process that runs an app gets the app of the command line that was chosen
/// before.
pub(crate) const CHOSEN_VARIABLE: &str = "TROOP_RUN_CHOSEN";

/// Set for a worker, which must not run an app.
const WORKER_VARIABLE: &str = "NODE_UNIQUE_ID";

/// Makes this process the keeper of another one that runs the app, unless it is kept already or is
/// not to be. Returns in the process that runs the app.
///
/// # Errors
/// If the app cannot be read, which need not be tried a second time.
pub(crate) fn be_kept(run: &Run, choice: &Choice, place: Place) -> Result<(), RunError> {
    let is_refused = std::env::var_os(WORKER_VARIABLE).is_some();
    if run.no_keeper || is_refused || keeper::is_kept() || runs_alone(run)? {
        return Ok(());
    }
    let e = keeper::command(place).env(CHOSEN_VARIABLE, choice.encode()).exec();
    log::line(&format!("troop: running without a keeper: {e}"));
    Ok(())
}

/// Whether the program takes the place of this process: then there is nothing to keep. Files that are
/// programs are not executed for this; none of PM2's runs its program alone.
fn runs_alone(run: &Run) -> Result<bool, RunError> {
    let is_program = |file: &std::path::Path| {
        file.extension().is_some_and(|ending| ["js", "cjs", "mjs"].iter().any(|one| ending == *one))
    };
    let file = resolve::file_of(run).map_err(RunError::Usage)?;
    if file.is_some_and(|(file, _)| is_program(&file)) {
        return Ok(false);
    }
    let (app, _) = resolve::resolve(run.clone(), None).map_err(RunError::Usage)?;
    Ok(app.workers() == 0)
}
