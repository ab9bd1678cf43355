//! The apps, as verbs that show all of them see them.

use crate::control::protocol::AppSnapshot;
use crate::control::targets::{self, Target};
use crate::error::CliError;
use crate::records::{End, Record};
use crate::verbs::show::answers;

/// An app.
#[derive(Debug)]
pub(crate) enum App {
    Running(Box<AppSnapshot>),
    /// It runs, and does not answer.
    Silent(String),
    Ended(Box<Record>, End),
}

impl App {
    /// Returns an app with what it has answered within the time, if anything.
    pub(crate) fn answered((name, app): (String, Option<AppSnapshot>)) -> App {
        app.map_or(App::Silent(name), |app| App::Running(Box::new(app)))
    }

    pub(crate) fn name(&self) -> &str {
        match self {
            App::Running(app) => &app.name,
            App::Silent(name) => name,
            App::Ended(record, _) => &record.name,
        }
    }
}

/// Returns all apps, by their names. Waits a second for one that does not answer.
pub(crate) fn all() -> Result<Vec<App>, CliError> {
    let all = targets::all_asking(answers)?;
    let (mut clients, mut apps) = (Vec::new(), Vec::new());
    for target in all.rest {
        match target {
            Target::Running(client) => clients.push(client),
            Target::Ended(record, end) => apps.push(App::Ended(record, end)),
        }
    }
    apps.extend(all.answers.into_iter().chain(answers(&mut clients)).map(App::answered));
    apps.sort_by(|one, other| one.name().cmp(other.name()));
    Ok(apps)
}
