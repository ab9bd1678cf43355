//! Names of apps and signals, on the command line and in files.

use std::path::Path;

/// The rule for names of apps, as errors state it.
pub(crate) const APP_RULE: &str = "it must consist of letters, digits, `.`, `_` and `-`, up to 64 bytes, begin with none of `.-`, and not be `all`";

/// The longest name of an app, in bytes.
const MAX_BYTES: usize = 64;
/// The longest name that is made from another one, in bytes.
const MAX_FITTED_BYTES: usize = 48;

/// Whether a text is a valid name of an app.
pub(crate) fn is_app(name: &str) -> bool {
    (1..=MAX_BYTES).contains(&name.len())
        && name.chars().all(fits)
        && !name.starts_with(['.', '-'])
        && name != "all"
}

/// Letters of any script: names are those of files and sockets, and are shown in tables.
fn fits(c: char) -> bool {
    c.is_alphanumeric() || "._-".contains(c)
}

/// Returns the default name of a program's app.
pub(crate) fn of_program(program: &Path) -> String {
    let stem =
        program.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    fitting(&stem.replace(['.', '_'], "-"))
}

/// Returns the valid name that is nearest to a text.
pub(crate) fn fitting(text: &str) -> String {
    let mut name = String::new();
    for c in text.chars().map(|c| if fits(c) { c } else { '-' }) {
        if name.len() + c.len_utf8() > MAX_FITTED_BYTES {
            break;
        }
        name.push(c);
    }
    let name = name.trim_start_matches('.').trim_matches('-').to_owned();
    if is_app(&name) { name } else { "app".into() }
}

/// Returns a name with a number, for a further app of that name.
pub(crate) fn numbered(name: &str, number: usize) -> String {
    let number = format!("-{number}");
    let mut end = name.len().min(MAX_BYTES - number.len());
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{number}", &name[..end])
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_letters_of_any_script_and_no_more() {
        for name in ["web", "приложение", "服务器-2", "api.v2", "_x"] {
            assert!(is_app(name), "{name}");
            assert_eq!(fitting(name), name);
        }
        for (text, name) in [
            ("my app", "my-app"),
            ("-x-", "x"),
            ("a/b", "a-b"),
            ("a\u{202e}b", "a-b"),
            ("a\u{1b}[1m", "a--1m"),
            ("..", "app"),
            ("all", "app"),
            ("", "app"),
        ] {
            assert!(!is_app(text), "{text}");
            assert_eq!(fitting(text), name, "{text}");
        }
        let long = "ж".repeat(40);
        assert!(!is_app(&long) && is_app(&fitting(&long)));
        assert!(is_app(&numbered(&"ж".repeat(32), 12)) && numbered("a", 2) == "a-2");
    }
}
