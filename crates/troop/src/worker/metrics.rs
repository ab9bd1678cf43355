//! Metrics that a program keeps by `prometheus-client`, told to the primary as prom-client's workers tell
//! theirs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Inner;

const REQUEST: &str = "prom-client:getMetricsReq";
const RESPONSE: &str = "prom-client:getMetricsRes";
/// The longest request.
const MAX_REQUEST: usize = 512;

/// The registries of a worker.
#[derive(Default)]
pub(crate) struct Metrics {
    registries: Mutex<Vec<Arc<Registry>>>,
    /// Whether a request is being answered. Further ones are not meanwhile.
    is_busy: AtomicBool,
}

#[derive(Deserialize)]
struct Request {
    #[serde(rename = "type")]
    kind: String,
    #[serde(rename = "requestId")]
    id: Value,
}

impl Metrics {
    pub(super) fn add(&self, registry: Arc<Registry>) {
        self.registries.lock().unwrap_or_else(PoisonError::into_inner).push(registry);
    }

    fn registries(&self) -> Vec<Arc<Registry>> {
        self.registries.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Answers a message of the primary, if it asks for metrics and there are registries. Returns whether it is
/// answered, in a thread of its own: what collects metrics may take long.
pub(super) fn answer(inner: &Arc<Inner>, body: &str) -> bool {
    if body.len() > MAX_REQUEST || !body.contains(REQUEST) {
        return false;
    }
    let Ok(Request { kind, id }) = serde_json::from_str(body) else { return false };
    let registries = inner.metrics.registries();
    if kind != REQUEST || registries.is_empty() {
        return false;
    }
    if inner.metrics.is_busy.swap(true, Ordering::Acquire) {
        return true;
    }
    let inner = inner.clone();
    let busy = inner.clone();
    let answer = move || {
        let metrics: Vec<_> = registries.iter().map(|registry| metrics(registry)).collect();
        let message = json!({ "type": RESPONSE, "requestId": id, "metrics": metrics });
        // Without room for it, or a primary, it is left out.
        let _ = inner.mailbox.try_send(&message);
        inner.metrics.is_busy.store(false, Ordering::Release);
    };
    if std::thread::Builder::new().name("troop-metrics".into()).spawn(answer).is_err() {
        busy.metrics.is_busy.store(false, Ordering::Release);
    }
    true
}

/// Returns the metrics of a registry as `getMetricsAsJSON` of prom-client has them.
fn metrics(registry: &Registry) -> Vec<Value> {
    let mut text = String::new();
    match encode(&mut text, registry) {
        Ok(()) => as_json(&text),
        Err(_) => Vec::new(),
    }
}

/// A family, while its lines are read.
#[derive(Default)]
struct Family {
    name: String,
    help: String,
    kind: String,
    values: Vec<Value>,
}

impl Family {
    fn into_json(self) -> Option<Value> {
        if self.values.is_empty() {
            return None;
        }
        let (end, kind, aggregator) = match self.kind.as_str() {
            "counter" => ("_total", "counter", "sum"),
            "histogram" => ("", "histogram", "sum"),
            "summary" => ("", "summary", "sum"),
            // Information about the program, which all workers have.
            "info" => ("_info", "gauge", "first"),
            _ => ("", "gauge", "sum"),
        };
        Some(json!({
            "name": self.name + end, "help": self.help, "type": kind, "aggregator": aggregator,
            "values": self.values,
        }))
    }
}

/// Reads the text format of `prometheus-client`.
fn as_json(text: &str) -> Vec<Value> {
    let (mut families, mut family) = (Vec::new(), Family::default());
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            let (what, name, rest) = (words.next(), words.next(), words.next());
            let name = name.unwrap_or_default();
            if what == Some("HELP") || family.name != name {
                families.extend(std::mem::take(&mut family).into_json());
                name.clone_into(&mut family.name);
            }
            match what {
                Some("HELP") => rest.unwrap_or_default().clone_into(&mut family.help),
                Some("TYPE") => rest.unwrap_or_default().clone_into(&mut family.kind),
                _ => {}
            }
        } else if let Some((name, labels, value)) = sample(line) {
            family.values.push(json!({ "value": value, "metricName": name, "labels": labels }));
        }
    }
    families.extend(family.into_json());
    families
}

/// Reads a sample: its name, labels and value. What follows, as an exemplar, is left out.
fn sample(line: &str) -> Option<(&str, Map<String, Value>, Option<f64>)> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Map::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            rest = rest.trim_start_matches(',');
            if let Some(after) = rest.strip_prefix('}') {
                rest = after;
                break;
            }
            let (label, value) = rest.split_once("=\"")?;
            let (value, after) = quoted(value)?;
            labels.insert(label.to_owned(), value.into());
            rest = after;
        }
    }
    let value = rest.trim_start().split(' ').next()?;
    let value = match value {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        value => value.parse().ok()?,
    };
    // JSON has no other numbers.
    Some((name, labels, Some(value).filter(|value| value.is_finite())))
}

/// Returns a quoted value, and what is behind its end.
fn quoted(text: &str) -> Option<(String, &str)> {
    let (mut value, mut chars) = (String::new(), text.char_indices());
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match chars.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::family::Family;
    use prometheus_client::metrics::gauge::Gauge;
    use prometheus_client::metrics::histogram::Histogram;
    use prometheus_client::metrics::info::Info;
    use prometheus_client::registry::Unit;

    use super::*;

    #[test]
    fn the_metrics_of_a_registry_are_as_prom_client_has_them() {
        let mut registry = Registry::default();
        let served = Family::<Vec<(String, String)>, Counter>::default();
        let labels = vec![("path".to_owned(), "/\"a\\\n,}".to_owned()), ("of".into(), "b".into())];
        served.get_or_create(&labels).inc_by(3);
        registry.register("served", "What was served", served);
        let open: Gauge = Gauge::default();
        open.set(-2);
        registry.register("open", "Open", open);
        let took = Histogram::new([0.5, 1.0]);
        took.observe(0.75);
        registry.register_with_unit("took", "Time", Unit::Seconds, took);
        registry.register("build", "Build", Info::new([("version", "1.2")]));
        let empty = Family::<Vec<(String, String)>, Counter>::default();
        registry.register("nothing", "Has no samples", empty);

        let found = metrics(&registry);
        let sample = |name: &str, labels: Value, value: f64| json!({ "value": value, "metricName": name, "labels": labels });
        let family = |name: &str, help: &str, kind: &str, aggregator: &str, values: &[Value]| {
            json!({
                "name": name, "help": help, "type": kind, "aggregator": aggregator,
                "values": values,
            })
        };
        let labels = json!({ "path": "/\"a\\\n,}", "of": "b" });
        let bucket =
            |le: &str, count: f64| sample("took_seconds_bucket", json!({ "le": le }), count);
        let of_time = [
            sample("took_seconds_sum", json!({}), 0.75),
            sample("took_seconds_count", json!({}), 1.0),
            bucket("0.5", 0.0),
            bucket("1.0", 1.0),
            bucket("+Inf", 1.0),
        ];
        let version = sample("build_info", json!({ "version": "1.2" }), 1.0);
        let served = sample("served_total", labels, 3.0);
        assert_eq!(
            found,
            [
                family("served_total", "What was served.", "counter", "sum", &[served]),
                family("open", "Open.", "gauge", "sum", &[sample("open", json!({}), -2.0)]),
                family("took_seconds", "Time.", "histogram", "sum", &of_time),
                family("build_info", "Build.", "gauge", "first", &[version]),
            ]
        );
    }
}
