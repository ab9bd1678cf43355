//! The value of a file: what JavaScript, JSON as JavaScript reads it, or YAML says. Numbers that JSON
//! does not have are texts: `Infinity`, `NaN`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::config::source;

/// Prints what a file exports, and the places of what is not data, as one line.
const EXPORTED: &str = r"import(require('url').pathToFileURL(process.argv[1])).then((file) => {
  const lost = [], paths = new Map();
  const all = JSON.stringify(file.default ?? file, function (key, value) {
    const path = !paths.has(this) ? '' : Array.isArray(this) ? `${paths.get(this)}[${key}]` : `${paths.get(this)}.${key}`;
    const kind = typeof value === 'function' || typeof value === 'symbol' ? typeof value
      : [RegExp, Map, Set, Promise].find((kind) => value instanceof kind)?.name;
    if (kind) return void (lost.length < 9 && lost.push([path.replace(/^\./, ''), kind]));
    if (typeof value === 'bigint' || (typeof value === 'number' && !Number.isFinite(value))) return String(value);
    if (value !== null && typeof value === 'object') paths.set(value, path);
    return value;
  });
  console.log(`[${all ?? null}, ${JSON.stringify(lost)}]`);
})";

/// What a file that is a program exports, and warnings about what of it is not data.
type Exported = (Value, Vec<String>);

/// What was exported, by file, if files are executed once only.
static KNOWN: Mutex<Option<BTreeMap<PathBuf, Exported>>> = Mutex::new(None);

/// Executes each file that is a program once only from now on: for a process that reads files for one verb
/// and ends then.
pub(crate) fn execute_once() {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default();
}

/// Reads a file; returns its value, and warnings about what in it is not data.
pub(super) fn of(file: &Path) -> Result<Exported, String> {
    let text = || source::text(file);
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("json") => Ok((source::parsed(file, text()?, json)?, Vec::new())),
        Some("yml" | "yaml") => Ok((source::parsed(file, text()?, yaml)?, Vec::new())),
        // The file is a program, which only node can evaluate.
        _ => {
            text()?;
            exported(file)
        }
    }
}

/// Has node evaluate a file that is a program, unless it has done so and does so once only.
fn exported(file: &Path) -> Result<Exported, String> {
    let path = std::path::absolute(file).map_err(|e| format!("{}: {e}", file.display()))?;
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(exported) = known().as_ref().and_then(|known| known.get(&path)) {
        return Ok(exported.clone());
    }
    let exported = evaluated(file, &path)?;
    if let Some(known) = known().as_mut() {
        known.insert(path, exported.clone());
    }
    Ok(exported)
}

/// Has node evaluate a file that is a program.
fn evaluated(file: &Path, path: &Path) -> Result<Exported, String> {
    let shown = file.display();
    source::may_run(file)?;
    let printed = source::run(Command::new("node").args(["-e", EXPORTED, "--"]).arg(path))
        .map_err(|e| format!("cannot run node to read {shown}: {e}"))?;
    if !printed.is_success {
        let last = printed.err.lines().map(str::trim).rfind(|line| line.contains("Error"));
        return Err(format!(
            "{shown} fails: {}",
            source::concise(last.unwrap_or("node could not run it"))
        ));
    }
    // Such files may print text of their own.
    let last = printed.out.lines().next_back().unwrap_or_default().to_owned();
    let (value, lost) = source::parsed(file, last, |text| {
        serde_json::from_str::<(Value, Vec<(String, String)>)>(text)
            .map_err(|e| format!("it does not export what it should: {e}"))
    })?;
    if let Some((_, kind)) = lost.iter().find(|(path, _)| path.is_empty()) {
        return Err(format!(
            "{shown} exports a {kind}, and not an object with the list `apps`, which PM2 reads"
        ));
    }
    let warning = |(path, kind)| format!("`{path}` has no effect: it is a {kind}, and no data");
    Ok((value, lost.into_iter().map(warning).collect()))
}

/// Parses JSON. PM2 evaluates such files as JavaScript, so that many have comments, trailing commas
/// and keys without quotes.
pub(super) fn json(text: &str) -> Result<Value, String> {
    if let Ok(value) = serde_json::from_str(text) {
        return Ok(value);
    }
    source::check_depth(text)?;
    json5::from_str::<Data>(text).map(|Data(value)| value).map_err(|e| e.to_string())
}

pub(super) fn yaml(text: &str) -> Result<Value, String> {
    source::yaml::<Data>(text).map(|Data(value)| value)
}

/// A value, in which numbers that JSON does not have are texts, and not null as for `serde_json`.
struct Data(Value);

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Data, D::Error> {
        deserializer.deserialize_any(DataVisitor).map(Data)
    }
}

struct DataVisitor;

impl<'de> Visitor<'de> for DataVisitor {
    type Value = Value;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or_else(|| name(value).into(), Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut all: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Data(value)) = all.next_element()? {
            list.push(value);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut all: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some((key, Data(value))) = all.next_entry()? {
            map.insert(key, value);
        }
        Ok(map.into())
    }
}

/// JavaScript's name of a number that is not finite.
fn name(number: f64) -> &'static str {
    match number {
        number if number.is_nan() => "NaN",
        number if number > 0.0 => "Infinity",
        _ => "-Infinity",
    }
}
