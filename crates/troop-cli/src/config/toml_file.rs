//! Parses `troop.toml`: expands variables, and reports all errors with their places.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::Deserialize as _;
use serde::de::Error as _;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::app::App;
use super::{Apps, File, foreign, variables};
use crate::{names, suggest};

/// The most errors that are told at once.
const MAX_MISTAKES: usize = 20;
/// Options that are tables. (serde takes lists for them, too.)
const TABLES: [&str; 7] = ["restart", "recycle", "cgroup", "sandbox", "health", "output", "watch"];

type Table<'a> = Spanned<DeTable<'a>>;
type Value<'a> = Spanned<DeValue<'a>>;

/// An error, and where it is in the text.
#[derive(Debug, PartialEq, Eq)]
struct Mistake {
    at: usize,
    text: String,
}

/// Parses the text of a file. `lookup` has the values of variables. Returns all apps, without those of
/// their options that are wrong, and what is wrong.
fn all(text: &str, lookup: &Lookup<'_>) -> Result<(Apps, Vec<Mistake>), String> {
    let mut file = DeTable::parse(text)
        .map_err(|e| foreign::file(text).unwrap_or_else(|| suggest::explained(&e.to_string())))?
        .into_inner();
    let mut mistakes = Vec::new();
    for (_, value) in &mut file {
        expand(value, text, lookup, &mut mistakes);
    }
    let mut apps = Apps::new();
    for (key, value) in &file {
        match value.get_ref() {
            DeValue::Table(all) if key.get_ref() == "app" => {
                for (name, value) in all {
                    app(name, value, &mut apps, &mut mistakes);
                }
            }
            _ => {
                // As serde puts it.
                let whole = DeTable::from_iter([(key.clone(), value.clone())]);
                let e =
                    File::deserialize(toml::Deserializer::from(Spanned::new(0..0, whole))).err();
                let e = e.unwrap_or_else(|| toml::de::Error::custom("it must be a table"));
                mistakes.push(Mistake { at: key.span().start, text: explained(&e) });
            }
        }
    }
    Ok((apps, mistakes))
}

/// Parses the text of a file.
///
/// # Errors
/// All of them, one per line, with line and column.
pub(super) fn parse(text: &str, lookup: &Lookup<'_>) -> Result<Apps, String> {
    let (apps, mut mistakes) = all(text, lookup)?;
    if mistakes.is_empty() {
        return Ok(apps);
    }
    mistakes.sort_by_key(|mistake| mistake.at);
    let more = mistakes.len().saturating_sub(MAX_MISTAKES);
    let shown = mistakes.iter().take(MAX_MISTAKES);
    let mut lines: Vec<_> =
        shown.map(|mistake| format!("{}: {}", place(text, mistake.at), mistake.text)).collect();
    if more > 0 {
        lines.push(format!("and {}", troop::text::counted(more, "more error")));
    }
    Err(lines.join(
        "
",
    ))
}

/// The values of variables.
pub(super) type Lookup<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// Describes a place in a text.
fn place(text: &str, at: usize) -> String {
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    format!("line {line}, column {column}")
}

/// Returns all apps, without those of their options that are wrong.
pub(super) fn repaired(text: &str, lookup: &Lookup<'_>) -> Apps {
    all(text, lookup).map(|(apps, _)| apps).unwrap_or_default()
}

/// Returns the places of the options of all apps: those of `("web", "cwd")`.
pub(super) fn places(text: &str) -> BTreeMap<(String, String), String> {
    let mut places = BTreeMap::new();
    let Ok(file) = DeTable::parse(text) else { return places };
    let Some(DeValue::Table(apps)) = file.get_ref().get("app").map(Spanned::get_ref) else {
        return places;
    };
    for (name, value) in apps {
        let DeValue::Table(options) = value.get_ref() else { continue };
        for key in options.keys() {
            let at = place(text, key.span().start);
            places.insert((name.get_ref().to_string(), key.get_ref().to_string()), at);
        }
    }
    places
}

fn explained(e: &toml::de::Error) -> String {
    suggest::explained(e.message())
}

/// Expands variables in the texts of a value. Literal strings (`'...'`) stay as they are, and so does
/// what a shell expands.
fn expand(value: &mut Value<'_>, text: &str, lookup: &Lookup<'_>, mistakes: &mut Vec<Mistake>) {
    let Range { start: at, .. } = value.span();
    match value.get_mut() {
        DeValue::String(content) if !text[at..].starts_with('\'') => {
            match variables::expanded(content, lookup) {
                Ok(None) => {}
                Ok(Some(expanded)) => *content = expanded.into(),
                Err(e) => mistakes.push(Mistake { at, text: e }),
            }
        }
        DeValue::Array(all) => {
            all.iter_mut().for_each(|value| expand(value, text, lookup, mistakes));
        }
        DeValue::Table(all) => {
            for (key, value) in all {
                let is_text = matches!(value.get_ref(), DeValue::String(_));
                if !is_text || key.get_ref() != variables::FOR_SHELL {
                    expand(value, text, lookup, mistakes);
                }
            }
        }
        _ => {}
    }
}

/// Parses one app, and finds all that is wrong with it.
fn app(
    name: &Spanned<std::borrow::Cow<'_, str>>,
    value: &Value<'_>,
    apps: &mut Apps,
    mistakes: &mut Vec<Mistake>,
) {
    let (at, name) = (name.span().start, name.get_ref().to_string());
    let mut wrong = |at: usize, path: &str, text: &str| {
        mistakes.push(Mistake { at, text: format!("app.{name}{path}{text}") });
    };
    if !names::is_app(&name) {
        wrong(at, "", &format!(": {name:?} cannot be an app's name: {}", names::APP_RULE));
        return;
    }
    let DeValue::Table(options) = value.get_ref() else {
        return wrong(at, "", ": it must be a table");
    };
    let mut found = false;
    let mut good = DeTable::new();
    for (key, value) in options {
        let errors = errors_of(key, value);
        if errors.is_empty() {
            good.insert(key.clone(), value.clone());
        }
        for (at, path, text) in errors {
            found = true;
            wrong(at, &path, &text);
        }
    }
    let has_program = options.contains_key("program");
    if !has_program {
        found = true;
        wrong(at, "", ": missing field `program`");
        good.insert(Spanned::new(at..at, "program".into()), program(at..at));
    }
    // What is wrong by its meaning: each error begins with its option, which is left out then.
    loop {
        let app = match deserialized(Spanned::new(value.span(), good.clone())) {
            Ok(app) => app,
            Err(e) => {
                if !found {
                    wrong(e.span().map_or(at, |span| span.start), ": ", &explained(&e));
                }
                return;
            }
        };
        let Err(e) = app.check() else {
            // One without a program would be looked for in vain.
            if has_program {
                apps.insert(name.clone(), app);
            }
            return;
        };
        found = true;
        let path = e.split(':').next().unwrap_or_default().trim_start_matches('.');
        let key = path.split('.').next().unwrap_or_default().to_owned();
        let place = good.keys().find(|known| *known.get_ref() == key).map(|known| known.span());
        wrong(place.as_ref().map_or(at, |span| span.start), "", &e);
        if place.is_none() || key == "program" {
            return;
        }
        good.remove(key.as_str());
    }
}

fn program<'a>(span: Range<usize>) -> Value<'a> {
    Spanned::new(span, DeValue::String("program".into()))
}

fn deserialized(table: Table<'_>) -> Result<App, toml::de::Error> {
    App::deserialize(toml::Deserializer::from(table))
}

/// Returns what is wrong with one option: its place, its path and the reason.
fn errors_of(
    key: &Spanned<std::borrow::Cow<'_, str>>,
    value: &Value<'_>,
) -> Vec<(usize, String, String)> {
    let name = key.get_ref();
    if TABLES.contains(&&**name) && matches!(value.get_ref(), DeValue::Array(_)) {
        let text = ": it must be a table, not a list";
        return vec![(value.span().start, format!(".{name}"), text.into())];
    }
    let alone = |value: Value<'_>| {
        let mut table = DeTable::new();
        if &**name != "program" {
            let program_key = Spanned::new(0..0, "program".into());
            table.insert(program_key, program(0..0));
        }
        table.insert(key.clone(), value.clone());
        deserialized(Spanned::new(value.span(), table)).err()
    };
    let Some(e) = alone(value.clone()) else { return Vec::new() };
    let told = |e: &toml::de::Error, path: String| {
        let at = e.span().filter(|span| span.start > 0).map_or(key.span().start, |span| span.start);
        let is_unknown = e.message().starts_with("unknown field");
        let path =
            if is_unknown { path.rsplit_once('.').map_or("", |(before, _)| before) } else { &path };
        (at, path.to_owned(), format!(": {}", explained(e)))
    };
    let mut errors = Vec::new();
    if let DeValue::Table(inner) = value.get_ref() {
        for (inner_key, inner_value) in inner {
            let one = DeTable::from_iter([(inner_key.clone(), inner_value.clone())]);
            let e = alone(Spanned::new(value.span(), DeValue::Table(one)));
            errors.extend(e.map(|e| told(&e, format!(".{name}.{}", inner_key.get_ref()))));
        }
    }
    if errors.is_empty() {
        errors.push(told(&e, format!(".{name}")));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(text: &str) -> Vec<String> {
        let lookup = |name: &str| (name == "PORT").then(|| "8000".to_owned());
        parse(text, &lookup).unwrap_err().lines().map(str::to_owned).collect()
    }

    #[test]
    fn what_a_shell_expands_stays_as_it_is() {
        let text = "[app.command]\nprogram = \"${PORT}\"\n[app.command.health]\ncommand = \"echo ${TROOP_SLOT-none}\"\n";
        let apps = parse(text, &|name| (name == "PORT").then(|| "8000".into())).unwrap();
        let app = &apps["command"];
        assert_eq!(app.program, "8000");
        let health = format!("{:?}", app.health);
        assert!(health.contains("echo ${TROOP_SLOT-none}"), "{health}");
    }

    #[test]
    fn all_errors_are_told_at_once_with_their_places() {
        let text = "[app.web]\nprogram = \"x\"\npolcy = \"p2c\"\nworkers = -1\nhealth = [\"/x\"]\nrestart = { when = \"maybe\", max = \"x\", dely = 1 }\n\
                    stop_signal = \"KILL\"\n  bind = [\"80000\"]\n\n[app.jobs]\nworkers = 1\numask = \"9\"\n[other]\nx = 1\n";
        let errors = errors(text);
        let expected = [
            ("line 3, column 1", "app.web: unknown option `polcy`; did you mean `policy`?"),
            ("line 4, column 11", "app.web.workers: it must be"),
            ("line 5, column 10", "app.web.health: it must be a table"),
            ("line 6, column 20", "app.web.restart.when"),
            ("line 6, column 35", "app.web.restart.max"),
            ("line 6, column 40", "app.web.restart: unknown option `dely`; did you mean `delay`?"),
            ("line 7, column 1", "app.web.stop_signal"),
            ("line 8, column 3", "app.web.bind"),
            ("line 10, column 6", "app.jobs: missing field `program`"),
            ("line 12, column 1", "app.jobs.umask"),
            ("line 13, column 2", "unknown option `other`"),
        ];
        for (error, (place, text)) in errors.iter().zip(expected) {
            assert!(error.starts_with(place) && error.contains(text), "{place} {text}: {error}");
        }
        assert_eq!(errors.len(), expected.len(), "{errors:#?}");
    }

    #[test]
    fn variables_are_expanded_but_in_literals() {
        let lookup = |name: &str| (name == "PORT").then(|| "8000".to_owned());
        let text = "[app.web]\nprogram = \"x\"\nbind = [\"${PORT}\"]\nargs = ['${PORT}', \"$${PORT}\", \"$PORT\"]\nenv = { A = \"${HOST:-local}:${PORT}\" }\n";
        let apps = parse(text, &lookup).unwrap();
        let web = &apps["web"];
        assert_eq!(
            (&web.bind[..], web.env["A"].as_str()),
            (&["8000".to_owned()][..], "local:8000")
        );
        assert_eq!(web.args, ["${PORT}", "${PORT}", "$PORT"]);
        let errors = errors("[app.web]\nprogram = \"x\"\nuser = \"${USER_NAME}\"\numask = \"9\"\n");
        assert!(
            errors[0].starts_with("line 3, column 8") && errors[0].contains("USER_NAME"),
            "{errors:?}"
        );
        assert_eq!(errors.len(), 2);
    }

    #[test]
    fn places_of_options_are_known() {
        let places = places("[app.web]\nprogram = \"x\"\n  cwd = \"y\"\n");
        assert_eq!(places[&("web".to_owned(), "cwd".to_owned())], "line 3, column 3");
    }
}
