//! `troop check`.

use std::io::Write as _;

use serde_json::json;

use crate::args::Check;
use crate::config;
use crate::log;

/// Reads a file as `troop run` would, and looks whether what it names is there.
pub(crate) fn check(args: &Check) -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    if args.schema {
        let _ = writeln!(out, "{}", config::schema());
        return Ok(());
    }
    let file = &args.file;
    let (apps, mut warnings) = config::read_with_warnings(file)?;
    warnings.extend(config::doubts(file, &apps));
    let mut problems = Vec::new();
    for (name, app) in &apps {
        let seen = app.inspect(file);
        let all = app.problems(file).into_iter().chain(seen.problems);
        problems.extend(all.map(|problem| format!("{}: app.{name}: {problem}", file.display())));
        warnings.extend(seen.warnings.into_iter().map(|warning| format!("app.{name}: {warning}")));
    }
    let notes: Vec<String> = apps
        .iter()
        .flat_map(|(name, app)| app.notes().into_iter().map(move |note| format!("{}: app.{name}: {note}", file.display())))
        .collect();
    let names: Vec<_> = apps.keys().map(String::as_str).collect();
    if args.json {
        let _ = writeln!(
            out,
            "{}",
            json!({ "file": file, "apps": names, "warnings": warnings, "notes": notes, "problems": problems })
        );
    } else {
        warnings.iter().for_each(|warning| log::say(&format!("troop: {}: {warning}", file.display())));
    }
    if !problems.is_empty() {
        return Err(problems.join("\n"));
    }
    if !args.json {
        notes.iter().for_each(|note| log::say(&format!("troop: {note}")));
        let _ = writeln!(out, "{}: {} is fine", file.display(), names.join(", "));
    }
    Ok(())
}
