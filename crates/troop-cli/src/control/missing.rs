//! Apps that a configuration file has, and that neither run nor are listed.

use std::path::Path;

use super::targets::Target;
use crate::config::{self, Format};
use crate::error::CliError;
use crate::logs::paths;

/// Returns errors for the apps of the file that a word names, if it does, which are not among those that
/// it selects: they were never started, or in vain. Those that only start by their names are not missed.
pub(crate) fn of_file(word: &str, found: &[Target]) -> Vec<CliError> {
    let file = Path::new(word);
    let is_listed = |name: &str| found.iter().any(|target| target.name() == name);
    if is_listed(word) || config::format_of(file).is_none() || !file.is_file() {
        return Vec::new();
    }
    // What is wrong with the file is said by `check`, and when it is used.
    let apps = config::read(file).unwrap_or_default().into_iter();
    let missed = apps.filter(|(name, app)| app.autostart != Some(false) && !is_listed(name));
    missed
        .map(|(name, _)| CliError::NoApp(text(&name, word, &format!("troop start {word} {name}"))))
        .collect()
}

/// Returns what to say of a word that selects no app, if the file of this directory explains it.
pub(super) fn beside(word: &str) -> Option<String> {
    let file = config::usual_file()?;
    let shown = file.display().to_string();
    if word == "all" {
        return Some(format!("no app is running; `troop start` starts those of {shown}"));
    }
    // Others are programs.
    let format = config::format_of(&file);
    if !matches!(format, Some(Format::Toml | Format::Procfile)) {
        return None;
    }
    let apps = config::read(&file).ok()?;
    apps.contains_key(word).then(|| text(word, &shown, &format!("troop start {word}")))
}

fn text(name: &str, file: &str, start: &str) -> String {
    let has_log = paths::directory().join(format!("{name}.log")).exists();
    let log = if has_log {
        format!(", and `troop logs {name}` shows what it has printed")
    } else {
        String::new()
    };
    format!(
        "{name} of {file} does not run: it was not started, or its start has failed; `{start}` starts it, and says why if it fails{log}"
    )
}
