//! `GET /metrics`: for Prometheus and others, in the OpenMetrics format for those that ask for it, and in
//! the text format that all of them read for others.
//!
//! Series are bounded: workers count by their slots, and only so many listeners have names.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use troop::snapshot::{Phase, Snapshot, Times, WorkerSnapshot};
use troop::text::escaped;

use super::Admin;
use super::apps::unavailable;
use crate::apps::App;
use crate::control::protocol::AppSnapshot;
use crate::verbs::show::serving;

/// The most listeners of an app that have series of their own.
const MAX_LISTENERS: usize = 50;
/// The longest name of a listener, in characters.
const MAX_NAME: usize = 120;

const OPEN_METRICS: &str = "application/openmetrics-text";
const OPEN_METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The last line.
const END: &str = "# EOF\n";
const TEXT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

const PHASES: [(&str, Phase); 6] = [
    ("starting", Phase::Starting),
    ("running", Phase::Running),
    ("degraded", Phase::Degraded),
    ("reloading", Phase::Reloading),
    ("paused", Phase::Paused),
    ("stopping", Phase::Stopping),
];

/// `GET /metrics`.
pub(super) async fn metrics(State(admin): State<Arc<Admin>>, headers: HeaderMap) -> Response {
    let apps = match admin.apps.all().await {
        Ok(apps) => apps,
        Err(e) => return unavailable(&e),
    };
    let mut accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let is_open = accepted.any(|types| types.contains(OPEN_METRICS));
    let of_workers = admin.worker_metrics.page(&apps).await;
    match page(&apps, &of_workers) {
        Ok(page) if is_open => ([(CONTENT_TYPE, OPEN_METRICS_TYPE)], page).into_response(),
        Ok(page) => ([(CONTENT_TYPE, TEXT_TYPE)], as_text(&page)).into_response(),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n")).into_response(),
    }
}

/// Returns the page, with the families that workers keep themselves.
fn page(apps: &Arc<Vec<App>>, of_workers: &str) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("troop");
    registry.register_collector(Box::new(Collected(apps.clone())));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    let end = text.rfind(END).unwrap_or(text.len());
    text.insert_str(end, of_workers);
    Ok(text)
}

/// Returns an OpenMetrics page in the text format, version 0.0.4: there a counter is described under
/// the name of its samples, and a page has neither units nor an end.
fn as_text(page: &str) -> String {
    let mut text = String::with_capacity(page.len());
    let mut lines = page.lines().peekable();
    while let Some(line) = lines.next() {
        let described = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' '));
        if let Some((name, help)) = described {
            let kind = lines.next_if(|line| line.starts_with("# TYPE "));
            let kind = kind.and_then(|line| line.rsplit(' ').next()).unwrap_or("untyped");
            let kind = if kind == "unknown" { "untyped" } else { kind };
            let suffix = if kind == "counter" { "_total" } else { "" };
            text.push_str(&format!("# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}\n"));
        } else if !line.starts_with('#') {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[derive(Debug)]
struct Collected(Arc<Vec<App>>);

/// Labels of a series, besides that of the app.
type Labels<'a> = Vec<(&'static str, &'a str)>;
/// Adds a value to a family.
type Add<'a> = &'a mut dyn FnMut(&Labels<'_>, f64) -> std::fmt::Result;

impl Collector for Collected {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let mut page = Page { encoder, apps: &self.0 };
        page.apps()?;
        page.workers()?;
        page.connections()?;
        page.resources()
    }
}

struct Page<'a, 'e> {
    encoder: DescriptorEncoder<'e>,
    apps: &'a [App],
}

impl Page<'_, '_> {
    /// Whether apps run, how they are, and what has happened to them.
    fn apps(&mut self) -> std::fmt::Result {
        let up = |app: &App| match app {
            App::Running(_) => 1.0,
            App::Silent(_) | App::Ended(..) => 0.0,
        };
        let mut metric = self.encoder.encode_descriptor(
            "app_up",
            "Whether the primary of the app answers",
            None,
            MetricType::Gauge,
        )?;
        for app in self.apps {
            let labels = [("app", app.name())];
            ConstGauge::new(up(app)).encode(metric.encode_family(&labels)?)?;
        }
        self.gauge("app_phase", "Whether the app is in this phase", None, |app, add| {
            for (name, phase) in PHASES {
                add(&vec![("phase", name)], f64::from(u8::from(app.snapshot.phase == phase)))?;
            }
            Ok(())
        })?;
        self.counter("restarts", "Workers that ended unexpectedly", None, |app, add| {
            add(&Labels::new(), app.snapshot.restarts as f64)
        })?;
        self.counter("events", "Events of the app, by their names", None, |app, add| {
            let counts = &app.counts;
            let of_workers = [("message", counts.messages), ("request", counts.requests)];
            let others = counts.events.iter().map(|(name, count)| (name.as_str(), *count));
            for (name, count) in of_workers.into_iter().chain(others) {
                add(&vec![("event", name)], count as f64)?;
            }
            Ok(())
        })?;
        self.counter(
            "messages_unclaimed",
            "Messages of workers to the primary that nobody took",
            None,
            |app, add| add(&Labels::new(), app.counts.unclaimed as f64),
        )?;
        self.counter("worker_ends", "Ends of workers, by how they came", None, |app, add| {
            for (how, count) in &app.counts.ends {
                add(&vec![("how", how)], *count as f64)?;
            }
            Ok(())
        })?;
        self.counter(
            "log_lines_lost",
            "Lines of output that could not be written",
            None,
            |app, add| add(&Labels::new(), app.lost_lines as f64),
        )
    }

    fn workers(&mut self) -> std::fmt::Result {
        self.gauge("workers_wanted", "Workers that the app should have", None, |app, add| {
            app.snapshot.wanted.map_or(Ok(()), |wanted| add(&Labels::new(), wanted as f64))
        })?;
        self.gauge("workers_ready", "Workers that serve and do not drain", None, |app, add| {
            add(&Labels::new(), serving(&app.snapshot) as f64)
        })?;
        self.gauge("workers_draining", "Workers that finish what they serve", None, |app, add| {
            let leaving = app.snapshot.workers.iter().filter(|w| w.leaving_ms.is_some());
            add(&Labels::new(), leaving.count() as f64)
        })?;
        self.gauge(
            "slots_vacant",
            "Slots without a worker that should have one",
            None,
            |app, add| {
                let vacant = app.snapshot.vacant.iter().filter(|slot| slot.finished.is_none());
                add(&Labels::new(), vacant.count() as f64)
            },
        )?;
        self.per_slot(
            "worker_generation",
            "1 for the first workers, one more with each reload",
            None,
            |worker| worker.generation.map(f64::from),
        )?;
        self.per_slot(
            "worker_age",
            "Time since the start of the worker",
            Some(Unit::Seconds),
            |worker| Some(seconds(worker.age_ms)),
        )
    }

    fn connections(&mut self) -> std::fmt::Result {
        let totals = |app: &AppSnapshot| app.snapshot.totals.clone();
        self.counter(
            "connections_handed",
            "Connections handed over to workers",
            None,
            |app, add| add(&Labels::new(), totals(app).handed as f64),
        )?;
        self.counter(
            "connections_taken",
            "Connections that workers have taken",
            None,
            |app, add| add(&Labels::new(), totals(app).taken as f64),
        )?;
        self.counter(
            "connections_returned",
            "Connections that workers did not take, and others got",
            None,
            |app, add| add(&Labels::new(), totals(app).returned as f64),
        )?;
        self.counter(
            "connections_moved",
            "Open connections that went on to another worker",
            None,
            |app, add| add(&Labels::new(), totals(app).moved as f64),
        )?;
        self.handover()?;
        self.per_slot(
            "worker_connections_open",
            "Connections that the worker has open, as far as it is known",
            None,
            |worker| Some(f64::from(worker.stats.open)),
        )?;
        self.per_slot(
            "worker_connections_in_flight",
            "Connections that the worker has not taken yet",
            None,
            |worker| Some(worker.stats.in_flight as f64),
        )?;
        self.per_slot(
            "worker_load",
            "The load that the worker reports, in its own unit",
            None,
            |worker| Some(f64::from(worker.stats.load)),
        )?;
        self.gauge(
            "listener_connections_waiting",
            "Connections that wait for a worker",
            None,
            |app, add| {
                for (address, (waiting, _)) in listeners(&app.snapshot) {
                    add(&vec![("listener", &address)], waiting as f64)?;
                }
                Ok(())
            },
        )?;
        self.gauge("listener_workers", "Workers that listen there", None, |app, add| {
            for (address, (_, workers)) in listeners(&app.snapshot) {
                add(&vec![("listener", &address)], workers as f64)?;
            }
            Ok(())
        })?;
        self.gauge(
            "listeners_lost",
            "Addresses that clients cannot reach any more",
            None,
            |app, add| add(&Labels::new(), app.snapshot.lost.len() as f64),
        )
    }

    /// The times of hand-overs.
    fn handover(&mut self) -> std::fmt::Result {
        let mut metric = self.encoder.encode_descriptor(
            "handover",
            "Time from handing a connection over to its acknowledgement",
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        for app in running(self.apps) {
            let Times { counts, sum_ms, .. } = &app.snapshot.totals.handover;
            let bounds = Times::BOUNDS.iter().map(|ms| seconds(*ms)).chain([f64::INFINITY]);
            let buckets: Vec<_> = bounds.zip(counts.iter().copied()).collect();
            metric.encode_family(&[("app", app.name.as_str())])?.encode_histogram::<NoLabels>(
                seconds(*sum_ms),
                counts.iter().sum(),
                &buckets,
                None,
            )?;
        }
        Ok(())
    }

    fn resources(&mut self) -> std::fmt::Result {
        let cpu = Some(Unit::Seconds);
        self.counter("primary_cpu", "CPU time of the primary", cpu, |app, add| {
            app.snapshot.usage.map_or(Ok(()), |usage| add(&Labels::new(), seconds(usage.cpu_ms)))
        })?;
        self.gauge(
            "primary_resident_memory",
            "Resident memory of the primary",
            Some(Unit::Bytes),
            |app, add| {
                app.snapshot.usage.map_or(Ok(()), |usage| add(&Labels::new(), usage.rss as f64))
            },
        )?;
        self.gauge(
            "primary_age",
            "Time since the start of the primary",
            Some(Unit::Seconds),
            |app, add| add(&Labels::new(), seconds(app.snapshot.uptime_ms)),
        )?;
        self.per_slot_counter(
            "worker_cpu",
            "CPU time of the worker",
            Some(Unit::Seconds),
            |worker| worker.usage.map(|usage| seconds(usage.cpu_ms)),
        )?;
        self.per_slot(
            "worker_resident_memory",
            "Resident memory of the worker",
            Some(Unit::Bytes),
            |worker| worker.usage.map(|usage| usage.rss as f64),
        )
    }

    // ---- kinds of families ----

    fn gauge(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        each: impl Fn(&AppSnapshot, Add<'_>) -> std::fmt::Result,
    ) -> std::fmt::Result {
        self.family(name, help, unit, MetricType::Gauge, each)
    }

    fn counter(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        each: impl Fn(&AppSnapshot, Add<'_>) -> std::fmt::Result,
    ) -> std::fmt::Result {
        self.family(name, help, unit, MetricType::Counter, each)
    }

    fn per_slot(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        of: impl Fn(&WorkerSnapshot) -> Option<f64>,
    ) -> std::fmt::Result {
        self.family(name, help, unit, MetricType::Gauge, |app, add| each_slot(app, &of, add))
    }

    fn per_slot_counter(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        of: impl Fn(&WorkerSnapshot) -> Option<f64>,
    ) -> std::fmt::Result {
        self.family(name, help, unit, MetricType::Counter, |app, add| each_slot(app, &of, add))
    }

    fn family(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        kind: MetricType,
        each: impl Fn(&AppSnapshot, Add<'_>) -> std::fmt::Result,
    ) -> std::fmt::Result {
        let mut metric = self.encoder.encode_descriptor(name, help, unit.as_ref(), kind)?;
        for app in running(self.apps) {
            each(app, &mut |labels, value| {
                let mut all = vec![("app", app.name.as_str())];
                all.extend(labels);
                let metric = metric.encode_family(&all)?;
                match kind {
                    MetricType::Counter => ConstCounter::new(value).encode(metric),
                    _ => ConstGauge::new(value).encode(metric),
                }
            })?;
        }
        Ok(())
    }
}

type NoLabels = [(&'static str, &'static str); 0];

fn running(apps: &[App]) -> impl Iterator<Item = &AppSnapshot> {
    apps.iter().filter_map(|app| match app {
        App::Running(app) => Some(&**app),
        _ => None,
    })
}

/// Adds a value for each slot: that of its newest worker.
fn each_slot(
    app: &AppSnapshot,
    of: impl Fn(&WorkerSnapshot) -> Option<f64>,
    add: Add<'_>,
) -> std::fmt::Result {
    let mut newest: BTreeMap<u32, &WorkerSnapshot> = BTreeMap::new();
    for worker in &app.snapshot.workers {
        let known = newest.entry(worker.slot).or_insert(worker);
        if worker.id > known.id {
            *known = worker;
        }
    }
    for (slot, worker) in newest {
        if let Some(value) = of(worker) {
            add(&vec![("slot", &slot.to_string())], value)?;
        }
    }
    Ok(())
}

/// Returns the connections that wait for a worker and the workers, by the listener's name. Those
/// beyond the first ones are together: workers may open many.
fn listeners(snapshot: &Snapshot) -> BTreeMap<String, (usize, usize)> {
    let mut all: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for listener in &snapshot.listeners {
        let name = format!("{:.1$}", escaped(&listener.address), MAX_NAME);
        let name = match all.len() < MAX_LISTENERS || all.contains_key(&name) {
            true => name,
            false => "others".to_owned(),
        };
        let sum = all.entry(name).or_default();
        *sum = (sum.0 + listener.waiting, sum.1 + listener.workers);
    }
    all
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_format_describes_counters_by_the_names_of_their_samples() {
        let open = "# HELP a_seconds A time.\n# TYPE a_seconds counter\n# UNIT a_seconds seconds\n\
            a_seconds_total{x=\"# HELP b c\"} 1.5\n# HELP b B.\n# TYPE b gauge\nb 2\n# EOF\n";
        assert_eq!(
            as_text(open),
            "# HELP a_seconds_total A time.\n# TYPE a_seconds_total counter\n\
             a_seconds_total{x=\"# HELP b c\"} 1.5\n# HELP b B.\n# TYPE b gauge\nb 2\n"
        );
    }
}
