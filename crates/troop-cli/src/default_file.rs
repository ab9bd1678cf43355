//! What the `troop.toml` of this directory has for a word of a command line.

use std::ffi::OsStr;
use std::path::Path;

use crate::config::{self, App};

/// Whether `troop.toml` has an app of this name. An invalid file is an error, because the name
/// could be in it.
pub(crate) fn is_app(program: &OsStr) -> Result<bool, String> {
    let file = Path::new(config::DEFAULT_FILE);
    let Some(name) = program.to_str().filter(|name| file.exists() && !name.contains(['/', '.']))
    else {
        return Ok(false);
    };
    config::read(file).map(|apps| apps.contains_key(name))
}

/// Returns the apps of `troop.toml` that are in a namespace.
pub(crate) fn namespace(word: &OsStr) -> Result<Vec<String>, String> {
    let file = Path::new(config::DEFAULT_FILE);
    let Some(name) = word.to_str().filter(|word| file.exists() && !word.contains(['/', '.']))
    else {
        return Ok(Vec::new());
    };
    let is_in_it = |app: &App| app.namespace.as_deref() == Some(name);
    let apps = config::read(file)?.into_iter();
    Ok(apps.filter(|(_, app)| is_in_it(app)).map(|(name, _)| name).collect())
}
