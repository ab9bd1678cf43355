//! Names of apps and signals, on the command line and in files.

use std::path::Path;

/// The rule for names of apps, as errors state it.
pub(crate) const APP_RULE: &str = "it must consist of up to 64 letters, digits, `.`, `_` and `-`, begin with none of `.-`, and not be `all`";

/// Whether a text is a valid name of an app.
pub(crate) fn is_app(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    (1..=64).contains(&name.len())
        && name.chars().all(fits)
        && !name.starts_with(['.', '-'])
        && name != "all"
}

/// Returns the default name of a program's app.
pub(crate) fn of_program(program: &Path) -> String {
    let stem =
        program.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let name: String =
        stem.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(48).collect();
    let name = name.trim_matches('-').to_owned();
    if is_app(&name) { name } else { "app".into() }
}

/// Parses the name of an app.
pub(crate) fn app(text: &str) -> Result<String, String> {
    if is_app(text) {
        return Ok(text.into());
    }
    Err(APP_RULE.into())
}

/// Parses a signal: its number, or its name with or without `SIG`, in capitals or not.
pub(crate) fn signal(text: &str) -> Result<i32, String> {
    let text = text.to_ascii_uppercase();
    let plain = text.trim_start_matches("SIG");
    let known = |number: &i32| {
        troop::event::signal_name(*number)
            .is_some_and(|name| name.trim_start_matches("SIG") == plain)
    };
    let number = text
        .parse()
        .ok()
        // The C library keeps 32 and 33 for itself, and they cannot be sent.
        .filter(|number| (1..32).contains(number) || (34..=64).contains(number))
        .or_else(|| (1..=64).find(known));
    number.ok_or_else(|| {
        "there is no such signal; it must be a name such as SIGTERM or USR2, or a number".into()
    })
}
