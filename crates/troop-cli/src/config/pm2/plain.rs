//! The values of single fields.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::config::values::{self, Time, Workers};

/// Inherited variables that workers keep when a file filters all.
const KEPT: [&str; 10] =
    ["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_*", "TZ", "TERM", "TMPDIR"];

/// Whether PM2 treats a value as absent.
pub(super) fn is_nothing(value: &Value) -> bool {
    value.is_null() || value.as_str() == Some("")
}

/// Returns a number that is none, or has no end, as JavaScript writes it.
pub(super) fn not_finite(value: &Value) -> Option<&str> {
    value.as_str().filter(|text| ["NaN", "Infinity", "-Infinity"].contains(text))
}

/// Converts a list, or a list that is written as a single text.
pub(super) fn list(value: &Value) -> Vec<String> {
    match value {
        Value::Array(all) => all.iter().filter(|one| !one.is_null()).map(plain).collect(),
        Value::Null | Value::Bool(_) => Vec::new(),
        one => vec![plain(one)],
    }
}

pub(super) fn words(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => shlex::split(text).unwrap_or_else(|| vec![text.clone()]),
        other => list(other),
    }
}

/// Converts a value to text without quotes.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Converts a time; PM2's numbers are milliseconds, fractions and `1e3` included.
pub(super) fn time(value: &Value) -> Result<Time, String> {
    let text = plain(value);
    let text = text.trim();
    if let Ok(millis) = text.parse() {
        return values::bounded(Duration::from_millis(millis));
    }
    let millis = text.parse::<f64>().ok();
    match millis.and_then(|millis| Duration::try_from_secs_f64(millis / 1000.0).ok()) {
        Some(time) => values::bounded(time),
        None => values::time(text),
    }
}

/// Converts a number, which may be written as `1.0` or `1e3`.
pub(super) fn number(value: &Value) -> Result<usize, String> {
    let text = plain(value);
    let text = text.trim();
    let whole = || text.parse().ok().and_then(whole).and_then(|number| number.try_into().ok());
    text.parse().ok().or_else(whole).ok_or_else(|| "it must be a number".into())
}

fn whole(number: f64) -> Option<i64> {
    let is_whole = number.fract() == 0.0 && number.abs() < 1e15;
    is_whole.then_some(number as i64)
}

/// Converts what is on or off.
pub(super) fn flag(value: &Value) -> Result<bool, String> {
    match value.as_bool().or_else(|| value.as_str()?.trim().parse().ok()) {
        Some(is_on) => Ok(is_on),
        None => Err("it must be true or false".into()),
    }
}

/// Converts exit codes: a list, or a single one.
pub(super) fn exit_codes(value: &Value) -> Result<Vec<i32>, String> {
    let code = |text: &String| text.trim().parse().ok();
    let codes: Option<_> = list(value).iter().map(code).collect();
    codes.filter(|_| !value.is_boolean()).ok_or_else(|| "it must be a list of exit codes".into())
}

/// Returns variables as PM2 passes them on: other values than text as JSON, also `null`.
pub(super) fn variables(all: &Map<String, Value>) -> BTreeMap<String, String> {
    all.iter().map(|(name, value)| (name.clone(), plain(value))).collect()
}

/// Returns patterns of the inherited variables that workers do not get: one by its name, those with
/// one of some texts in their names, or, with `true`, all that no program needs.
pub(super) fn filtered(value: &Value) -> Vec<String> {
    match value {
        Value::Bool(true) => {
            let kept = KEPT.iter().map(|name| format!("!{name}"));
            ["*".to_owned()].into_iter().chain(kept).collect()
        }
        Value::Array(parts) => parts.iter().map(|part| format!("*{}*", plain(part))).collect(),
        one => list(one),
    }
}

pub(super) fn instances(value: &Value) -> Result<Workers, String> {
    let number = value.as_f64().and_then(whole).map(|number| number.to_string());
    values::instances(number.unwrap_or_else(|| plain(value)).trim())
}
