//! Reads PM2's `ecosystem.config.js` and its other formats.
//!
//! | file | holds |
//! | --- | --- |
//! | `value.rs` | what a file says, as JSON |
//! | `fields.rs` | what each field of an app means here |
//! | `plain.rs` | the values of fields |
//! | `stops.rs` | the signal that asks an app to finish |
//! | `place.rs` | where an app's script is and runs, and what executes it |
//! | `logs.rs` | its log files |
//! | `serve.rs` | apps that serve a directory |

pub(crate) mod fields;
pub(crate) mod logs;
mod place;
mod plain;
mod serve;
mod stops;
#[cfg(test)]
mod tests;
mod value;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::{Map, Value};

use super::Apps;
use super::app::App;
use crate::names;
use fields::Fields;
use place::Bases;
pub(crate) use value::execute_once;

/// What a file can have beside its apps that has no effect on a start in PM2 either.
const NO_APPS: [&str; 1] = ["deploy"];

/// Reads a file; returns its apps and warnings about fields without effect.
pub(super) fn read(file: &Path) -> Result<(Apps, Vec<String>), String> {
    let (value, mut warnings) = value::of(file)?;
    let (apps, about) = from_value(value, file)?;
    warnings.extend(about);
    Ok((apps, warnings))
}

/// Reads a text as the content of a file of that name, which is no program.
pub(super) fn parse(text: &str, file: &Path) -> Result<Apps, String> {
    let value = match file.extension().is_some_and(|extension| extension == "json") {
        true => value::json(text)?,
        false => value::yaml(text)?,
    };
    Ok(from_value(value, file)?.0)
}

/// Converts the value of a file to apps.
fn from_value(value: Value, file: &Path) -> Result<(Apps, Vec<String>), String> {
    let shown = file.display();
    let (mut list, mut rest) =
        apps_of(value).ok_or_else(|| format!("{shown} has no list `apps`"))?;
    list.extend(serve::apps(rest.remove("static")));
    let unknown = rest.keys().filter(|key| !NO_APPS.contains(&key.as_str()));
    let mut warnings: Vec<_> = unknown.map(|key| format!("`{key}` means nothing here")).collect();
    if let Some(chosen) = CHOSEN.get() {
        check_environment(chosen, &list, &rest).map_err(|e| format!("{shown}: {e}"))?;
    }
    let bases = Bases::of(file);
    let mut converted = Vec::new();
    for value in list {
        let Value::Object(fields) = value else {
            return Err(format!("{shown}: an app must be an object, not {value}"));
        };
        let fields = Fields::new(fields, CHOSEN.get().map(String::as_str), &rest);
        converted.push(fields.convert(&bases).map_err(|e| format!("{shown}: {e}"))?);
    }
    let mut apps = Apps::new();
    for (name, Converted { app, warnings: about, .. }) in distinct(converted, &mut warnings) {
        warnings.extend(about.into_iter().map(|text| format!("{name}: {text}")));
        apps.insert(name, app);
    }
    Ok((apps, warnings))
}

/// An app of a file.
#[derive(Debug)]
struct Converted {
    name: String,
    /// Its namespace, if that is not PM2's default one.
    namespace: Option<String>,
    app: App,
    warnings: Vec<String>,
}

/// Returns the apps of a file and everything else in it. As in PM2, `apps` and `pm2` can be a list
/// or a single app, and so can the whole file.
fn apps_of(value: Value) -> Option<(Vec<Value>, Map<String, Value>)> {
    let all = match value {
        Value::Array(list) => return Some((list, Map::new())),
        Value::Object(all) => all,
        _ => return None,
    };
    let mut all = all;
    match all.remove("apps").or_else(|| all.remove("pm2")) {
        Some(Value::Array(list)) => Some((list, all)),
        Some(one @ Value::Object(_)) => Some((vec![one], all)),
        None if fields::SCRIPT.iter().any(|key| all.contains_key(*key)) => {
            Some((vec![Value::Object(all)], Map::new()))
        }
        _ => None,
    }
}

/// Checks that a chosen environment is one of the file's.
fn check_environment(
    chosen: &str,
    list: &[Value],
    rest: &Map<String, Value>,
) -> Result<(), String> {
    let wanted = format!("env_{chosen}");
    if list.iter().any(|app| app.get(&wanted).is_some())
        || deployed_variables(rest, chosen).is_some()
    {
        return Ok(());
    }
    let keys = list.iter().filter_map(Value::as_object).flat_map(Map::keys);
    let others: BTreeSet<_> =
        keys.filter_map(|key| key.strip_prefix("env_")).filter(|name| *name != "file").collect();
    let others = if others.is_empty() {
        "there are no others".into()
    } else {
        others.into_iter().collect::<Vec<_>>().join(", ")
    };
    Err(format!("no app has an environment `{wanted}`: {others}"))
}

/// Returns the variables of a deployment, which are the least of those of the environment of the
/// same name.
fn deployed_variables<'a>(
    rest: &'a Map<String, Value>,
    chosen: &str,
) -> Option<&'a Map<String, Value>> {
    rest.get("deploy")?.get(chosen)?.get("env")?.as_object()
}

/// Gives each app a name of its own. PM2 lets several have the same one, in namespaces or not.
fn distinct(converted: Vec<Converted>, warnings: &mut Vec<String>) -> Vec<(String, Converted)> {
    let is_shared = |name: &str| converted.iter().filter(|app| app.name == name).count() > 1;
    let wanted: Vec<String> = converted
        .iter()
        .map(|app| match &app.namespace {
            Some(namespace) if is_shared(&app.name) => {
                names::fitting(&format!("{namespace}-{}", app.name))
            }
            _ => app.name.clone(),
        })
        .collect();
    let mut taken = BTreeSet::new();
    let mut named = Vec::new();
    for (app, wanted) in converted.into_iter().zip(wanted) {
        let mut name = wanted.clone();
        let mut number = 2;
        while !taken.insert(name.clone()) {
            name = names::numbered(&wanted, number);
            number += 1;
        }
        if name != app.name {
            let of = app.namespace.as_deref().map(|of| format!(" of namespace {of}"));
            let of = of.unwrap_or_default();
            warnings.push(format!("several apps are called {}: the one{of} is {name}", app.name));
        }
        named.push((name, app));
    }
    named
}

/// The chosen environment: `--env production` selects `env_production`.
static CHOSEN: OnceLock<String> = OnceLock::new();

/// Chooses the environment, once per process.
pub(crate) fn choose(environment: &str) {
    let _ = CHOSEN.set(environment.to_owned());
}

/// Returns the directory of a file, as an absolute path.
fn directory_of(file: &Path) -> PathBuf {
    let file = std::path::absolute(crate::directory::resolved(file)).ok();
    file.and_then(|file| file.parent().map(Path::to_owned)).unwrap_or_default()
}
