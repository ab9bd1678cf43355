//! Verbs for several apps: one that fails, or a word that names none, does not keep the others from it.

use crate::control::targets::{self, Target};
use crate::error::CliError;
use crate::log;

/// What has come of them.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// The last error, which is not printed yet.
    last: Option<CliError>,
    /// Words that name no app.
    unknown: Vec<String>,
}

impl Outcome {
    /// Notes an error, and prints the one before it.
    pub(super) fn failed(&mut self, e: CliError) {
        if let Some(before) = self.last.replace(e) {
            print(&before);
        }
    }

    /// Says which words name no app, now that it is known what runs. Prints all errors but the last
    /// one, which it returns.
    pub(super) fn end(self) -> Result<(), CliError> {
        let Outcome { last, unknown } = self;
        let errors = unknown.iter().map(|word| targets::none(word));
        let mut errors: Vec<CliError> = errors.collect::<Result<_, _>>()?;
        errors.extend(last);
        let last = errors.pop();
        errors.iter().for_each(print);
        last.map_or(Ok(()), Err)
    }
}

fn print(e: &CliError) {
    log::line(&format!("troop: {e}"));
}

/// Does something to each of the selected apps.
pub(super) fn each(
    words: &[String],
    act: impl FnMut(Target) -> Result<(), CliError>,
) -> Result<(), CliError> {
    each_found(words, act)?.end()
}

/// The same, after which there is more to do before the outcome is known.
pub(super) fn each_found(
    words: &[String],
    mut act: impl FnMut(Target) -> Result<(), CliError>,
) -> Result<Outcome, CliError> {
    let (found, unknown) = targets::targets(words)?;
    let are_several = found.len() > 1;
    let mut outcome = Outcome { last: None, unknown };
    for target in found {
        let name = target.name().to_owned();
        if let Err(e) = act(target) {
            outcome.failed(if are_several { e.of_app(&name) } else { e });
        }
    }
    Ok(outcome)
}
