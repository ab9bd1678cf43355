//! `troop check`: checks a configuration file.

use std::io::Write as _;
use std::path::Path;

use serde_json::json;

use crate::args::Check;
use crate::config;
use crate::log;

/// The findings about a file.
struct Findings {
    names: Vec<String>,
    warnings: Vec<String>,
    notes: Vec<String>,
    problems: Vec<String>,
}

fn inspect(file: &Path) -> Result<Findings, String> {
    let places = config::places(file);
    let at = |name: &str, option: &str| {
        let place = places.get(&(name.to_owned(), option.to_owned()));
        place.map(|place| format!("{place}: ")).unwrap_or_default()
    };
    let found = |apps: &config::Apps| -> Vec<String> {
        let own = apps.iter().flat_map(|(name, app)| {
            app.problems(file).into_iter().map(|p| (name.clone(), p.option, p.text))
        });
        own.chain(config::clashes::among(apps))
            .map(|(name, option, text)| {
                format!("{}: {}app.{name}: {text}", file.display(), at(&name, option))
            })
            .collect()
    };
    let (apps, mut warnings) = config::read_with_warnings(file).map_err(|e| {
        // What is right is checked too, so that all errors are told at once.
        [e].into_iter().chain(found(&config::repaired(file))).collect::<Vec<_>>().join("\n")
    })?;
    warnings.extend(config::warnings(file, &apps));
    let (mut problems, mut notes) = (found(&apps), Vec::new());
    warnings.extend(
        config::clashes::suspicious(&apps)
            .into_iter()
            .map(|(name, option, text)| format!("{}app.{name}: {text}", at(&name, option))),
    );
    for (name, app) in &apps {
        let about = |what: String| format!("{}: app.{name}: {what}", file.display());
        let seen = app.inspect(file);
        problems.extend(seen.problems.into_iter().map(about));
        warnings.extend(seen.warnings.into_iter().map(|warning| format!("app.{name}: {warning}")));
        notes.extend(app.notes().into_iter().map(about));
    }
    Ok(Findings { names: apps.into_keys().collect(), warnings, notes, problems })
}

/// Reads a file as `troop run` would, and checks whether the files that it names exist.
pub(crate) fn check(args: &Check) -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    if args.schema {
        let _ = writeln!(out, "{}", config::schema());
        return Ok(());
    }
    let named = args.file.clone().or_else(|| args.config.clone());
    let file = &named.or_else(config::usual_file).unwrap_or_else(|| config::DEFAULT_FILE.into());
    let shown = file.clone();
    let Findings { names, warnings, notes, problems } =
        config::source::answered(move || inspect(&shown))?;
    if args.json {
        let _ = writeln!(
            out,
            "{}",
            json!({ "file": file, "apps": names, "warnings": warnings, "notes": notes, "problems": problems })
        );
    } else {
        warnings
            .iter()
            .for_each(|warning| log::line(&format!("troop: {}: {warning}", file.display())));
    }
    if !problems.is_empty() {
        return Err(problems.join("\n"));
    }
    if !args.json {
        notes.iter().for_each(|note| log::line(&format!("troop: {note}")));
        let are = if names.len() == 1 { "is" } else { "are" };
        let _ = writeln!(out, "{}: {} {are} fine", file.display(), names.join(", "));
    }
    Ok(())
}
