//! Values in configuration files: times, sizes, sets of CPUs.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use troop::setup::SystemCalls;

use super::tables::{Cgroup, Denied, Sandbox};

/// The longest time that can be configured: a leap year.
const MAX_SECONDS: u64 = 366 * 86_400;

/// A time: a number of seconds (`2.5`), or with units (`500ms`, `1h 30m`, `1d`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Time(pub(crate) Duration);

/// A size: a number of bytes, or with a unit (`300M`, `2G`: of 1024, as in PM2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Size(pub(crate) u64);

/// A number of workers, or one per CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Workers {
    Auto,
    Number(usize),
}

pub(crate) fn time(text: &str) -> Result<Time, String> {
    let wrong = || {
        "it must be a number of seconds, or a time such as 500ms, 30s, 5m, 1h 30m, 1d".to_owned()
    };
    let plain = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let time = plain.or_else(|| humantime::parse_duration(text).ok()).ok_or_else(wrong)?;
    bounded(time)
}

/// Checks that a time is not longer than the limit.
pub(crate) fn bounded(time: Duration) -> Result<Time, String> {
    if time > Duration::from_secs(MAX_SECONDS) {
        Err("it must be a year at most".into())
    } else {
        Ok(Time(time))
    }
}

pub(crate) fn size(text: &str) -> Result<Size, String> {
    let wrong = || "it must be a number of bytes, or a size such as 512K, 300M, 2G".to_owned();
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let factor = match text[end..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1u64 << 30,
        _ => return Err(wrong()),
    };
    let number: f64 = text[..end].parse().map_err(|_| wrong())?;
    let bytes = number * factor as f64;
    if bytes < 1e15 { Ok(Size(bytes as u64)) } else { Err(wrong()) }
}

pub(crate) fn workers(text: &str) -> Result<Workers, String> {
    match text {
        "auto" | "max" => Ok(Workers::Auto),
        _ => match text.parse() {
            Ok(n @ 0..=4096) => Ok(Workers::Number(n)),
            // As in PM2: all CPUs but this many.
            _ => match text.parse::<isize>() {
                Ok(less @ -4096..=-1) => Ok(Workers::Number(
                    troop::available_workers().saturating_add_signed(less).max(1),
                )),
                _ => Err("it must be `auto` or a number from 0 to 4096 (0 runs the program alone)"
                    .into()),
            },
        },
    }
}

/// Parses PM2's number of instances, of which 0 is one per CPU.
pub(crate) fn instances(text: &str) -> Result<Workers, String> {
    match workers(text) {
        Ok(Workers::Number(0)) => Ok(Workers::Auto),
        Err(_) => Err("it must be `max` or a number from 0 to 4096 (0 is one per CPU)".into()),
        other => other,
    }
}

impl Workers {
    pub(crate) fn count(self) -> usize {
        match self {
            Workers::Auto => troop::available_workers(),
            Workers::Number(n) => n,
        }
    }
}

impl Cgroup {
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.cpu.is_some_and(|cpu| !cpu.is_finite() || !(0.01..=10_000.0).contains(&cpu)) {
            return Err("cpu: it must be a number of CPUs, 0.01 or more".into());
        }
        if self.cpu_weight.is_some_and(|weight| !(1..=10_000).contains(&weight)) {
            return Err("cpu_weight: it must be from 1 to 10000".into());
        }
        if self.processes == Some(0)
            || self.memory == Some(Size(0))
            || self.memory_high == Some(Size(0))
        {
            return Err("memory, memory_high and processes must be more than 0".into());
        }
        // These files are written with the rights of the user who runs troop, so paths are
        // rejected.
        match self.other.keys().find(|name| {
            name.contains('/')
                || name
                    .split_once('.')
                    .is_none_or(|(controller, rest)| controller.is_empty() || rest.is_empty())
        }) {
            Some(name) => {
                Err(format!("other: {name:?} is no file of a control group, as io.weight is"))
            }
            None => Ok(()),
        }
    }

    pub(crate) fn limits(&self) -> troop::setup::Cgroup {
        let mut limits = troop::setup::Cgroup::default();
        limits.memory = self.memory.map(|size| size.0);
        limits.memory_high = self.memory_high.map(|size| size.0);
        limits.swap = self.swap.map(|size| size.0);
        (limits.cpu, limits.cpu_weight, limits.processes) =
            (self.cpu, self.cpu_weight, self.processes);
        limits.other.clone_from(&self.other);
        limits
    }
}

impl Sandbox {
    pub(crate) fn settings(&self) -> troop::setup::Sandbox {
        let mut settings = troop::setup::Sandbox::default();
        (settings.read, settings.write, settings.best_effort) =
            (self.read.clone(), self.write.clone(), self.best_effort);
        settings.deny_system_calls =
            self.deny_system_calls.iter().flat_map(|denied| denied.groups()).copied().collect();
        settings
    }

    /// Returns the restrictions that the kernel does not support, and the consequence.
    pub(crate) fn unsupported(&self) -> Option<String> {
        let what = self.settings().unsupported()?;
        let then = if self.best_effort {
            "workers run without it, as sandbox.best_effort says"
        } else {
            "sandbox.best_effort = true starts workers without it"
        };
        Some(format!("{what}; {then}"))
    }
}

impl Denied {
    fn groups(self) -> &'static [SystemCalls] {
        match self {
            Denied::All => &SystemCalls::ALL,
            Denied::Debug => &[SystemCalls::Debug],
            Denied::IoUring => &[SystemCalls::IoUring],
            Denied::Kernel => &[SystemCalls::Kernel],
            Denied::Keyring => &[SystemCalls::Keyring],
            Denied::Mount => &[SystemCalls::Mount],
            Denied::Namespaces => &[SystemCalls::Namespaces],
        }
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            n if n > 0 && n % (1 << 30) == 0 => write!(f, "{}G", n >> 30),
            n if n > 0 && n % (1 << 20) == 0 => write!(f, "{}M", n >> 20),
            n if n > 0 && n % (1 << 10) == 0 => write!(f, "{}K", n >> 10),
            n => write!(f, "{n}"),
        }
    }
}

impl fmt::Display for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Workers::Auto => f.write_str("auto"),
            Workers::Number(n) => n.fmt(f),
        }
    }
}

/// Reads a number or text as text.
fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(match toml::Value::deserialize(deserializer)? {
        toml::Value::String(text) => text,
        toml::Value::Integer(number) => number.to_string(),
        toml::Value::Float(number) => number.to_string(),
        _ => String::new(),
    })
}

/// Reads a table of texts. Numbers and booleans become text: the shortest for a number, so `1.10`
/// becomes `1.1`.
pub(super) fn texts<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, String>, D::Error> {
    let text = |(name, value)| match value {
        toml::Value::String(text) => Ok((name, text)),
        toml::Value::Integer(number) => Ok((name, number.to_string())),
        toml::Value::Float(number) => Ok((name, number.to_string())),
        toml::Value::Boolean(is_on) => Ok((name, is_on.to_string())),
        other => Err(D::Error::custom(format!(
            "{name}: it must be text, a number or a boolean, not a value of type {}",
            other.type_str()
        ))),
    };
    BTreeMap::deserialize(deserializer)?.into_iter().map(text).collect()
}

/// Returns the schema of what [`texts`] reads.
pub(super) fn texts_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "object", "additionalProperties": { "type": ["string", "number", "boolean"] } })
}

/// Parses the number of workers in a file, where those that are to be left out of the CPUs are a
/// mistake more likely than PM2's way to say it.
fn workers_in_file(text: &str) -> Result<Workers, String> {
    if text.trim_start().starts_with('-') {
        return Err("it must be `auto` or a number from 0 to 4096".into());
    }
    workers(text)
}

macro_rules! written_as_text {
    ($type:ident, $parse:ident, $examples:tt) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$type, D::Error> {
                $parse(&text(deserializer)?).map_err(D::Error::custom)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": ["string", "number"], "examples": serde_json::json!($examples) })
            }
        }
    };
}

written_as_text!(Time, time, [30, "500ms", "1d"]);
written_as_text!(Size, size, [1048576, "300M"]);
written_as_text!(Workers, workers_in_file, ["auto", 4]);

/// The most CPUs in a set, repetitions included.
const MAX_CPUS: usize = 4096;

/// Parses CPUs in the form of `taskset`: `8`, `0-3`, `0,2,4-6`.
pub(crate) fn cpus(text: &str) -> Result<Vec<usize>, String> {
    let wrong = || format!("{text:?} must be CPUs, such as `3`, `0-3` or `0,2,4-6`");
    let mut all = Vec::new();
    for part in text.split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to): (usize, usize) =
            (from.trim().parse().map_err(|_| wrong())?, to.trim().parse().map_err(|_| wrong())?);
        if from > to || to >= 1024 {
            return Err(wrong());
        }
        all.extend(from..=to);
        if all.len() > MAX_CPUS {
            return Err(format!("there can be {MAX_CPUS} CPUs at most"));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_are_read_as_people_write_them() {
        for (written, millis) in
            [("2.5", 2_500), ("0", 0), ("500ms", 500), ("1h 30m", 5_400_000), ("1d", 86_400_000)]
        {
            assert_eq!(time(written), Ok(Time(Duration::from_millis(millis))), "{written}");
        }
        for (written, bytes) in
            [("1024", 1024), ("300M", 300 << 20), ("1.5G", 3 << 29), ("10 KiB", 10 << 10)]
        {
            assert_eq!(size(written), Ok(Size(bytes)), "{written}");
        }
        for bad in ["", "-1", "long", "1x", "1e300", "99999d"] {
            assert!(time(bad).is_err() && size(bad).is_err(), "{bad}");
        }
        assert_eq!(
            (Size(300 << 20).to_string(), Time(Duration::from_secs(90)).to_string()),
            ("300M".into(), "1m 30s".into())
        );
    }

    #[test]
    fn workers_may_be_counted_from_the_cpus() {
        assert_eq!(
            (workers("max"), workers("0"), workers("8")),
            (Ok(Workers::Auto), Ok(Workers::Number(0)), Ok(Workers::Number(8)))
        );
        assert_eq!(workers("-4096"), Ok(Workers::Number(1)));
        assert_eq!(
            (instances("0"), instances("max"), instances("2")),
            (Ok(Workers::Auto), Ok(Workers::Auto), Ok(Workers::Number(2)))
        );
        assert!(workers("4097").is_err() && workers("some").is_err());
    }

    #[test]
    fn cpus_are_read_as_taskset_reads_them() {
        assert_eq!(cpus("0,2,4-6"), Ok(vec![0, 2, 4, 5, 6]));
        for bad in ["", "a", "3-1", "0,,1", "5000"] {
            assert!(cpus(bad).is_err(), "{bad}");
        }
    }
}
