//! The keeper of an app: see [`troop::keeper`].

use std::os::unix::process::CommandExt as _;

use troop::keeper::{self, Place};

use crate::args::Run;
use crate::start::Choice;
use crate::{log, resolve};

/// The variable by which the process that runs an app gets the app of the command line that was chosen
/// before.
pub(crate) const CHOSEN_VARIABLE: &str = "TROOP_RUN_CHOSEN";

/// Makes this process the keeper of another one that runs the app, unless it is kept already or is
/// not to be. Returns in the process that runs the app.
pub(crate) fn be_kept(run: &Run, choice: &Choice, place: Place) {
    if run.no_keeper || keeper::is_kept() || runs_alone(run) {
        return;
    }
    let e = keeper::command(place).env(CHOSEN_VARIABLE, choice.encode()).exec();
    log::line(&format!("troop: running without a keeper: {e}"));
}

/// Whether the program takes the place of this process: then there is nothing to keep. Files that are
/// programs are not executed for this; none of PM2's runs its program alone.
fn runs_alone(run: &Run) -> bool {
    let is_program = |file: &std::path::Path| {
        file.extension().is_some_and(|ending| ["js", "cjs", "mjs"].iter().any(|one| ending == *one))
    };
    match resolve::file_of(run) {
        Ok(Some((file, _))) if is_program(&file) => false,
        Ok(_) => resolve::resolve(run.clone(), None).is_ok_and(|(app, _)| app.workers() == 0),
        // Which is said soon.
        Err(_) => false,
    }
}
