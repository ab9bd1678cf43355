//! Metrics that the workers of apps keep themselves: the sum of all workers, as prom-client's
//! `AggregatorRegistry` makes it, with the app as a label.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::apps::App;
use crate::control::client::Client;
use crate::control::protocol::Request;

/// Time that workers have to answer.
const WAIT: Duration = Duration::from_secs(1);
/// Time for which what they have answered is kept.
const KEPT_FOR: Duration = Duration::from_secs(1);
/// The most samples of an app.
const MAX_SAMPLES: usize = 10_000;

/// A metric, as `getMetricsAsJSON` of prom-client has it.
#[derive(Debug, Clone, Deserialize)]
struct Metric {
    name: String,
    #[serde(default)]
    help: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    aggregator: Option<String>,
    values: Vec<Sample>,
}

#[derive(Debug, Clone, Deserialize)]
struct Sample {
    /// Not a number if it is `null`.
    value: Option<f64>,
    #[serde(default, rename = "metricName")]
    name: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, Value>,
}

/// What the workers of an app have answered.
#[derive(Debug, Default)]
struct Answers {
    /// The metrics of each.
    metrics: Vec<Vec<Metric>>,
    missing: usize,
}

/// A family of an app: its samples by the rest of the name behind the family's, and by labels.
#[derive(Debug)]
struct Family {
    kind: &'static str,
    help: String,
    samples: Vec<(String, String, f64)>,
}

#[derive(Debug, Default)]
pub(super) struct WorkerMetrics {
    /// The apps whose workers are asked.
    of: Vec<String>,
    kept: Mutex<Option<(Instant, Arc<str>)>>,
}

impl WorkerMetrics {
    pub(super) fn new(of: Vec<String>) -> WorkerMetrics {
        WorkerMetrics { of, kept: Mutex::default() }
    }

    /// Returns the families of all apps in the OpenMetrics format, without an end. One question serves all
    /// who ask meanwhile.
    pub(super) async fn page(&self, apps: &[App]) -> Arc<str> {
        if self.of.is_empty() {
            return "".into();
        }
        let mut kept = self.kept.lock().await;
        if let Some((at, page)) = &*kept
            && at.elapsed() < KEPT_FOR
        {
            return page.clone();
        }
        let mut asking = JoinSet::new();
        for app in apps {
            let App::Running(app) = app else { continue };
            if self.of.contains(&app.name) {
                let name = app.name.clone();
                asking.spawn_blocking(move || (ask(&name).unwrap_or_default(), name));
            }
        }
        let answers = asking.join_all().await.into_iter().map(|(answers, name)| (name, answers));
        let page: Arc<str> = page(&answers.collect()).into();
        *kept = Some((Instant::now(), page.clone()));
        page
    }
}

/// Asks an app. `None` if it does not answer, or has no channels to its workers.
fn ask(app: &str) -> Option<Answers> {
    let mut client = Client::connect(app).ok()??;
    let wait_ms = u64::try_from(WAIT.as_millis()).ok()?;
    let mut answer = client.request(Request::WorkerMetrics { wait_ms }, |_| {}).ok()?;
    let mut answers =
        Answers { missing: answer["missing"].as_array()?.len(), ..Answers::default() };
    let Value::Object(of_workers) = answer["answers"].take() else { return None };
    for (_, registries) in of_workers {
        match serde_json::from_value::<Vec<Vec<Metric>>>(registries) {
            Ok(registries) => answers.metrics.push(registries.into_iter().flatten().collect()),
            Err(_) => answers.missing += 1,
        }
    }
    Some(answers)
}

fn page(apps: &BTreeMap<String, Answers>) -> String {
    let mut page = String::from(
        "# HELP troop_worker_metrics_missing Workers that have not told their own metrics in time.\n\
         # TYPE troop_worker_metrics_missing gauge\n",
    );
    let mut families: BTreeMap<String, Vec<(&str, Family)>> = BTreeMap::new();
    for (app, answers) in apps {
        let _ = writeln!(page, "troop_worker_metrics_missing{{app=\"{app}\"}} {}", answers.missing);
        for (name, family) in together(app, &answers.metrics) {
            families.entry(name).or_default().push((app, family));
        }
    }
    for (name, of_apps) in families {
        // What another app calls by the same name is left out if it is of another kind.
        let Some((_, Family { kind, help, .. })) = of_apps.first() else { continue };
        let kind = *kind;
        let _ = write!(page, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for (_, family) in of_apps.iter().filter(|(_, family)| family.kind == kind) {
            for (rest, labels, value) in &family.samples {
                let _ = writeln!(page, "{name}{rest}{{{labels}}} {}", number(*value));
            }
        }
    }
    page
}

/// What workers have told of each sample, by the rest of its name and its labels.
type Values = BTreeMap<(String, String), Vec<f64>>;

/// Returns the families of an app by their names, each sample over all workers. What has no valid name, or
/// one of troop's own, is left out.
fn together(app: &str, of_workers: &[Vec<Metric>]) -> BTreeMap<String, Family> {
    let mut found: BTreeMap<String, (&Metric, Values)> = BTreeMap::new();
    let mut left = MAX_SAMPLES;
    for metric in of_workers.iter().flatten() {
        let (family, kind) = described(metric);
        if !is_name(family, true) || family.starts_with("troop_") {
            continue;
        }
        let (first, samples) =
            found.entry(family.to_owned()).or_insert_with(|| (metric, BTreeMap::new()));
        if first.kind != metric.kind {
            continue;
        }
        for sample in &metric.values {
            let name = sample.name.as_deref().unwrap_or(&metric.name);
            let rest = match kind {
                "counter" => Some("_total"),
                _ => name.strip_prefix(family).filter(|rest| is_end(kind, rest)),
            };
            let (Some(rest), Some(labels)) = (rest, labels(app, &sample.labels)) else { continue };
            let key = (rest.to_owned(), labels);
            if !samples.contains_key(&key) {
                if left == 0 {
                    continue;
                }
                left -= 1;
            }
            samples.entry(key).or_default().push(sample.value.unwrap_or(f64::NAN));
        }
    }
    let made = found.into_iter().filter_map(|(name, (metric, samples))| {
        let sum = |values: &[f64]| values.iter().sum::<f64>();
        let of_all: fn(&[f64]) -> f64 = match metric.aggregator.as_deref().unwrap_or("sum") {
            "omit" => return None,
            "first" => |values| values[0],
            "min" => |values| values.iter().copied().fold(f64::NAN, f64::min),
            "max" => |values| values.iter().copied().fold(f64::NAN, f64::max),
            "average" => |values| values.iter().sum::<f64>() / values.len() as f64,
            _ => sum,
        };
        let samples = samples.into_iter().map(|((rest, labels), v)| (rest, labels, of_all(&v)));
        let help = metric.help.replace('\\', "\\\\").replace('\n', "\\n").replace('"', "'");
        let help = if help.is_empty() { "-".into() } else { help };
        let mut samples: Vec<_> = samples.collect();
        samples.sort_by(|one, other| in_order(one).cmp(&in_order(other)));
        Some((name, Family { kind: described(metric).1, help, samples }))
    });
    made.collect()
}

/// Buckets of a histogram come one after the other, by their bounds: `le` is the first label.
fn in_order((rest, labels, _): &(String, String, f64)) -> (String, &str, u64) {
    let bound = labels.strip_prefix("le=\"").and_then(|labels| labels.split_once('"'));
    match bound {
        Some((bound, others)) => {
            let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().unwrap_or(0.0) };
            // The order of bits is that of numbers, of negative ones after a flip.
            let bits = bound.to_bits();
            let ordered = if bits >> 63 == 0 { bits | 1 << 63 } else { !bits };
            (rest.clone(), others, ordered)
        }
        None => (rest.clone(), labels, 0),
    }
}

/// Returns the name of a metric's family and its kind, as OpenMetrics has them.
fn described(metric: &Metric) -> (&str, &'static str) {
    match metric.kind.as_str() {
        "counter" => (metric.name.strip_suffix("_total").unwrap_or(&metric.name), "counter"),
        "gauge" => (&metric.name, "gauge"),
        "histogram" => (&metric.name, "histogram"),
        "summary" => (&metric.name, "summary"),
        _ => (&metric.name, "unknown"),
    }
}

/// Whether the names of samples of a kind end so.
fn is_end(kind: &str, rest: &str) -> bool {
    match kind {
        "histogram" => ["_bucket", "_sum", "_count"].contains(&rest),
        "summary" => ["", "_sum", "_count"].contains(&rest),
        _ => rest.is_empty(),
    }
}

/// Returns labels as they are written, `le` first and then the app's. A label of theirs that is called `app`
/// becomes `exported_app`, as Prometheus does it. `None` if one has no valid name.
fn labels(app: &str, all: &BTreeMap<String, Value>) -> Option<String> {
    let mut written = BTreeMap::from([("app", app.to_owned())]);
    for (name, value) in all {
        if !is_name(name, false) {
            return None;
        }
        let value = match value {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            other => other.to_string(),
        };
        let is_bound = name == "le" || name == "quantile";
        let value = match value.parse::<f64>() {
            Ok(bound) if is_bound && bound.is_finite() => format!("{bound:?}"),
            _ => value,
        };
        written.insert(if name == "app" { "exported_app" } else { name }, value);
    }
    let mut text = String::new();
    let bound = written.remove("le").map(|bound| ("le", bound));
    for (name, value) in bound.into_iter().chain(written) {
        let sign = if text.is_empty() { "" } else { "," };
        let value = value.replace('\\', "\\\\").replace('\n', "\\n").replace('"', "\\\"");
        let _ = write!(text, "{sign}{name}=\"{value}\"");
    }
    Some(text)
}

fn is_name(name: &str, has_colons: bool) -> bool {
    let is_letter = |c: char| c.is_ascii_alphabetic() || c == '_' || (has_colons && c == ':');
    name.starts_with(is_letter) && name.chars().all(|c| is_letter(c) || c.is_ascii_digit())
}

fn number(value: f64) -> String {
    match value {
        f64::INFINITY => "+Inf".into(),
        f64::NEG_INFINITY => "-Inf".into(),
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn worker(number: u32) -> Vec<Metric> {
        let metrics = json!([
            { "name": "served_total", "help": "All \"served\"\n", "type": "counter", "aggregator": "sum",
              "values": [{ "value": number, "labels": { "app": "own", "path": "/\"" } }] },
            { "name": "lag", "help": "", "type": "gauge", "aggregator": "max",
              "values": [{ "value": number, "labels": {} }, { "value": null, "labels": { "of": "none" } }] },
            { "name": "took", "help": "Time", "type": "histogram", "aggregator": "sum", "values": [
                { "value": 1, "metricName": "took_bucket", "exemplar": null, "labels": { "le": 2 } },
                { "value": 1, "metricName": "took_bucket", "labels": { "le": 10 } },
                { "value": 2, "metricName": "took_bucket", "labels": { "le": "+Inf" } },
                { "value": 0.5, "metricName": "took_sum", "labels": {} },
                { "value": 2, "metricName": "took_count", "labels": {} }] },
            { "name": "version", "help": "v", "type": "gauge", "aggregator": "first",
              "values": [{ "value": 1, "labels": {} }] },
            { "name": "left_out", "help": "v", "type": "gauge", "aggregator": "omit",
              "values": [{ "value": 1, "labels": {} }] },
            { "name": "troop_app_up", "help": "v", "type": "gauge", "values": [{ "value": 1 }] },
            { "name": "no name", "help": "v", "type": "gauge", "values": [{ "value": 1 }] },
        ]);
        serde_json::from_value(metrics).unwrap()
    }

    #[test]
    fn metrics_of_workers_are_one_sum_with_the_app_as_a_label() {
        let answers = Answers { metrics: vec![worker(2), worker(3)], missing: 1 };
        let page = page(&BTreeMap::from([("web".to_owned(), answers)]));
        assert_eq!(
            page,
            "# HELP troop_worker_metrics_missing Workers that have not told their own metrics in time.\n\
             # TYPE troop_worker_metrics_missing gauge\n\
             troop_worker_metrics_missing{app=\"web\"} 1\n\
             # HELP lag -\n# TYPE lag gauge\nlag{app=\"web\"} 3\nlag{app=\"web\",of=\"none\"} NaN\n\
             # HELP served All 'served'\\n\n# TYPE served counter\n\
             served_total{app=\"web\",exported_app=\"own\",path=\"/\\\"\"} 5\n\
             # HELP took Time\n# TYPE took histogram\n\
             took_bucket{le=\"2.0\",app=\"web\"} 2\ntook_bucket{le=\"10.0\",app=\"web\"} 2\n\
             took_bucket{le=\"+Inf\",app=\"web\"} 4\ntook_count{app=\"web\"} 4\ntook_sum{app=\"web\"} 1\n\
             # HELP version v\n# TYPE version gauge\nversion{app=\"web\"} 1\n"
        );
    }

    #[test]
    fn what_apps_call_by_one_name_is_one_family_of_one_kind() {
        let of = |kind: &str| -> Answers {
            let metric =
                json!([{ "name": "x", "help": "X", "type": kind, "values": [{ "value": 1 }] }]);
            Answers { metrics: vec![serde_json::from_value(metric).unwrap()], missing: 0 }
        };
        let apps = [("a", of("gauge")), ("b", of("gauge")), ("c", of("counter"))];
        let page = page(&apps.map(|(name, answers)| (name.to_owned(), answers)).into());
        assert!(page.contains("# TYPE x gauge\nx{app=\"a\"} 1\nx{app=\"b\"} 1\n"), "{page}");
        assert!(!page.contains("x_total"), "{page}");
    }

    #[test]
    fn the_number_of_samples_is_bounded() {
        let values: Vec<_> =
            (0..2 * MAX_SAMPLES).map(|at| json!({ "value": 1, "labels": { "at": at } })).collect();
        let metric = json!([{ "name": "x", "help": "X", "type": "gauge", "values": values }]);
        let metrics = vec![serde_json::from_value(metric).unwrap()];
        assert_eq!(together("web", &metrics)["x"].samples.len(), MAX_SAMPLES);
    }
}
