//! `GET /history`: the last hour of an app, kept in memory.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior};

use super::Admin;
use super::apps::json_answer;
use crate::apps::App;
use crate::control::protocol::AppSnapshot;
use crate::records::millis;
use crate::verbs::show::serving;

/// Interval at which the apps are asked.
const INTERVAL: Duration = Duration::from_secs(5);
/// Time until the first one.
const START_DELAY: Duration = Duration::from_secs(1);
/// The most samples of an app: those of an hour.
const MAX_SAMPLES: usize = 720;
/// The most apps.
const MAX_APPS: usize = 500;

/// What is kept of each sample, in the order of [`Sample::values`].
const NAMES: [&str; 9] =
    ["cpu", "memory", "rate", "open", "waiting", "handover", "ready", "moved", "restarts"];

/// Counters that only grow, since the start of a primary.
#[derive(Debug, Clone, Copy, Default)]
struct Counters {
    cpu_ms: u64,
    taken: u64,
    handover_ms: u64,
    handed: u64,
    moved: u64,
    restarts: u64,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    at_ms: u64,
    /// Not a number where it is not known.
    values: [f32; NAMES.len()],
}

#[derive(Debug, Default)]
struct Kept {
    /// The last counters, with their time and the primary's process.
    before: Option<(u64, u32, Counters)>,
    samples: VecDeque<Sample>,
}

#[derive(Debug, Default)]
pub(super) struct History {
    apps: Mutex<BTreeMap<String, Kept>>,
}

/// Keeps samples until the runtime ends.
pub(super) async fn keep(admin: Arc<Admin>) {
    // Not before this app is ready: the answer would be kept for a moment, and given to others.
    let mut interval = tokio::time::interval_at(Instant::now() + START_DELAY, INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let Ok(apps) = admin.apps.all().await else { continue };
        admin.history.note(millis(SystemTime::now()), &apps);
    }
}

impl History {
    /// Notes how the apps are. Apps that are no longer listed are forgotten.
    fn note(&self, at_ms: u64, apps: &[App]) {
        let mut all = self.apps.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|name, _| apps.iter().any(|app| app.name() == name));
        for app in apps {
            if all.len() >= MAX_APPS && !all.contains_key(app.name()) {
                continue;
            }
            let kept = all.entry(app.name().to_owned()).or_default();
            let values = match app {
                App::Running(app) => kept.values(at_ms, app),
                App::Silent(_) | App::Ended(..) => {
                    kept.before = None;
                    [f32::NAN; NAMES.len()]
                }
            };
            if kept.samples.len() >= MAX_SAMPLES {
                kept.samples.pop_front();
            }
            kept.samples.push_back(Sample { at_ms, values });
        }
    }

    /// Returns the samples of an app after a time as columns: `at` in milliseconds, and one for each of the names, with
    /// `null` where it is not known.
    fn of(&self, app: &str, since_ms: u64) -> Option<Value> {
        let all = self.apps.lock().unwrap_or_else(PoisonError::into_inner);
        let samples = &all.get(app)?.samples;
        let samples = || samples.iter().filter(|sample| sample.at_ms > since_ms);
        let mut columns = json!({ "at": samples().map(|s| s.at_ms).collect::<Vec<_>>() });
        for (at, name) in NAMES.iter().enumerate() {
            columns[*name] = samples().map(|sample| rounded(sample.values[at])).collect();
        }
        Some(columns)
    }
}

/// Three digits after the point are enough for a plot, and shorter.
fn rounded(value: f32) -> Value {
    let rounded = (f64::from(value) * 1000.0).round() / 1000.0;
    serde_json::Number::from_f64(rounded).map_or(Value::Null, Value::Number)
}

impl Kept {
    fn values(&mut self, at_ms: u64, app: &AppSnapshot) -> [f32; NAMES.len()] {
        let snapshot = &app.snapshot;
        let totals = &snapshot.totals;
        let now = Counters {
            cpu_ms: app.total.cpu_ms,
            taken: totals.taken,
            handover_ms: totals.handover.sum_ms,
            handed: totals.handover.counts.iter().sum(),
            moved: totals.moved,
            restarts: snapshot.restarts,
        };
        let before = self.before.replace((at_ms, snapshot.pid, now));
        let before = before.filter(|(at, pid, _)| *pid == snapshot.pid && *at < at_ms);
        let more = |of: fn(&Counters) -> u64| {
            before.map_or(f32::NAN, |(_, _, before)| of(&now).saturating_sub(of(&before)) as f32)
        };
        let seconds = before.map_or(f32::NAN, |(at, ..)| (at_ms - at) as f32 / 1000.0);
        let open: u32 = snapshot.workers.iter().map(|worker| worker.stats.open).sum();
        let waiting: usize = snapshot.listeners.iter().map(|listener| listener.waiting).sum();
        [
            // Of workers that have ended meanwhile nothing is known any more.
            more(|counters| counters.cpu_ms) / seconds / 10.0,
            app.total.rss as f32,
            more(|counters| counters.taken) / seconds,
            open as f32,
            waiting as f32,
            more(|counters| counters.handover_ms) / more(|counters| counters.handed),
            serving(snapshot) as f32,
            more(|counters| counters.moved),
            more(|counters| counters.restarts),
        ]
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Wanted {
    app: String,
    /// The time of the last sample that the client has.
    #[serde(default)]
    since: u64,
}

/// `GET /history?app=web`.
pub(super) async fn history(
    State(admin): State<Arc<Admin>>,
    Query(wanted): Query<Wanted>,
) -> Response {
    match admin.history.of(&wanted.app, wanted.since) {
        Some(columns) => json_answer(StatusCode::OK, &columns),
        None => (StatusCode::NOT_FOUND, "nothing is known of such an app yet\n").into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app(pid: u32, cpu_ms: u64, taken: u64) -> App {
        let value = json!({
            "name": "web", "program": "server.js", "version": "0", "total": { "cpu_ms": cpu_ms, "rss": 1000 },
            "pid": pid, "uptime_ms": 0, "phase": "running", "wanted": 0, "restarts": 0, "usage": null,
            "totals": { "handed": taken, "taken": taken, "returned": 0, "moved": 0,
                "handover": { "counts": [taken, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], "sum_ms": taken * 2 } },
            "workers": [], "listeners": [],
        });
        App::Running(Box::new(serde_json::from_value(value).unwrap()))
    }

    #[test]
    fn rates_are_of_the_time_between_samples_of_one_primary() {
        let history = History::default();
        history.note(1_000, &[app(1, 500, 10)]);
        history.note(6_000, &[app(1, 3_000, 30)]);
        history.note(11_000, &[app(2, 10, 5)]);
        history.note(16_000, &[App::Silent("web".into())]);
        let columns = history.of("web", 0).unwrap();
        assert_eq!(columns["at"], json!([1_000, 6_000, 11_000, 16_000]));
        assert_eq!(columns["cpu"], json!([null, 50.0, null, null]));
        assert_eq!(columns["rate"], json!([null, 4.0, null, null]));
        assert_eq!(columns["handover"], json!([null, 2.0, null, null]));
        assert_eq!(columns["memory"], json!([1000.0, 1000.0, 1000.0, null]));
        let newer = history.of("web", 6_000).unwrap();
        assert_eq!(newer["at"], json!([11_000, 16_000]));
        assert_eq!(newer["memory"], json!([1000.0, null]));
        history.note(21_000, &[]);
        assert!(history.of("web", 0).is_none(), "it is no longer listed");
    }

    #[test]
    fn an_hour_is_kept_and_no_more() {
        let history = History::default();
        for at in 0..2 * MAX_SAMPLES as u64 {
            history.note(at * 5_000, &[app(1, at, at)]);
        }
        let columns = history.of("web", 0).unwrap();
        assert_eq!(columns["at"].as_array().unwrap().len(), MAX_SAMPLES);
        assert_eq!(columns["at"][MAX_SAMPLES - 1], json!((2 * MAX_SAMPLES as u64 - 1) * 5_000));
        let size = MAX_SAMPLES * size_of::<Sample>();
        assert!(size < 1 << 20, "{size}");
    }
}
