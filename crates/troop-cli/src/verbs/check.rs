//! `troop check`.

use std::io::Write as _;

use crate::args::Check;
use crate::config;

/// Reads a file as `troop run` would, and looks whether what it names is there.
pub(crate) fn check(args: &Check) -> Result<(), String> {
    let file = &args.file;
    let apps = config::read(file)?;
    let problems: Vec<String> = apps
        .iter()
        .flat_map(|(name, app)| {
            app.problems(file).into_iter().map(move |problem| format!("{}: app.{name}: {problem}", file.display()))
        })
        .collect();
    if !problems.is_empty() {
        return Err(problems.join("\n"));
    }
    let names: Vec<_> = apps.keys().map(String::as_str).collect();
    let _ = writeln!(std::io::stdout().lock(), "{}: {} is fine", file.display(), names.join(", "));
    Ok(())
}
