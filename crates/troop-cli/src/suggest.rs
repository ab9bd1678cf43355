//! Suggests the name that was meant where an unknown one was typed.

use crate::config::foreign;

/// The most bytes of a name that is compared.
const MAX_COMPARED: usize = 64;

/// Returns the known name that is nearest to an unknown one, if it is near enough for a mistake in
/// typing.
pub(crate) fn nearest<'a>(
    unknown: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    if unknown.len() > MAX_COMPARED {
        return None;
    }
    // One mistake in up to six characters, two in up to nine, and so on.
    let most = unknown.chars().count().div_ceil(3).saturating_sub(usize::from(unknown.len() > 3));
    let distance = |name: &&str| strsim::damerau_levenshtein(unknown, name);
    let known = known.into_iter().filter(|name| name.len() <= MAX_COMPARED);
    known.map(|name| (distance(&name), name)).min().filter(|near| near.0 <= most).map(|near| near.1)
}

/// Rewrites the last line of an error of serde about an unknown field or variant, so that it names
/// the option or value that was meant.
pub(crate) fn explained(error: &str) -> String {
    let error = error.trim_end();
    let (before, last) = error
        .rsplit_once('\n')
        .map_or(("", error), |(_, last)| error.split_at(error.len() - last.len()));
    let found = [("unknown field `", "option"), ("unknown variant `", "value")];
    let rest = found.iter().find_map(|(start, kind)| Some((last.strip_prefix(start)?, kind)));
    let Some((rest, kind)) = rest else { return error.to_owned() };
    let Some((unknown, expected)) = rest.rsplit_once("`, expected ") else {
        return error.to_owned();
    };
    if let Some(instead) = foreign::instead(unknown).filter(|_| kind == &"option") {
        return format!("{before}unknown option `{unknown}`: {instead}");
    }
    // Every second part is between backticks.
    let known = expected.split('`').skip(1).step_by(2);
    match nearest(unknown, known) {
        Some(meant) => format!("{before}unknown {kind} `{unknown}`; did you mean `{meant}`?"),
        None => format!("{before}unknown {kind} `{unknown}`, expected {expected}"),
    }
}

/// Returns a question for the app that was meant by an unknown name, to append to an error.
pub(crate) fn app<'a>(unknown: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let meant = nearest(unknown, known);
    meant.map(|name| format!("; did you mean the app {name}?")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_suggested_and_others_are_not() {
        let known = ["web", "jobs", "policy", "ready_timeout", "max", "min_uptime"];
        for (unknown, meant) in [
            ("wbe", Some("web")),
            ("jbos", Some("jobs")),
            ("polcy", Some("policy")),
            ("ready_timout", Some("ready_timeout")),
            ("readytimeout", Some("ready_timeout")),
            ("maxx", Some("max")),
            ("cat", None),
            ("hosts", None),
            ("when", None),
            ("", None),
        ] {
            assert_eq!(nearest(unknown, known), meant, "{unknown}");
        }
        assert_eq!(nearest(&"w".repeat(1 << 20), known), None);
    }

    #[test]
    fn errors_about_other_things_are_unchanged() {
        for error in
            ["", "no `script`", "first\nexpected `,`", "unknown field `x`, there are no fields"]
        {
            assert_eq!(explained(error), error);
        }
        assert_eq!(
            explained("line 3\nunknown field `a`, expected `b`, expected `c` or `abc`\n"),
            "line 3\nunknown option `a`, expected `b`, expected `c` or `abc`"
        );
    }
}
