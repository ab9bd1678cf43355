//! The CPU that an app uses: what its processes have used between two looks.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use troop::WorkerId;
use troop::snapshot::Usage;

use crate::control::protocol::AppSnapshot;

/// The longest time between two looks.
const MAX_INTERVAL: Duration = Duration::from_secs(60);
/// The shortest one: the kernel counts CPU time in hundredths of a second.
const MIN_INTERVAL: Duration = Duration::from_millis(50);

/// Returns the time between two looks for the one that was asked for.
pub(super) fn interval(asked: Duration) -> Duration {
    asked.clamp(MIN_INTERVAL, MAX_INTERVAL)
}

/// The use of CPU, in percent of one CPU.
#[derive(Debug, PartialEq)]
pub(super) struct Cpu {
    /// The primary and the workers that run, together.
    pub(super) total: f64,
    pub(super) primary: Option<f64>,
    pub(super) workers: BTreeMap<WorkerId, f64>,
}

impl Cpu {
    /// Returns what an app has used between two looks. `None` if it was started again in between.
    pub(super) fn between(before: &AppSnapshot, now: &AppSnapshot) -> Option<Cpu> {
        let (before, now) = (&before.snapshot, &now.snapshot);
        let ms = now.uptime_ms.checked_sub(before.uptime_ms).filter(|ms| *ms > 0)?;
        if before.pid != now.pid {
            return None;
        }
        let percent =
            |before: u64, now: Usage| now.cpu_ms.saturating_sub(before) as f64 * 100.0 / ms as f64;
        let primary = now.usage.zip(before.usage);
        let primary = primary.map(|(now, before)| percent(before.cpu_ms, now));
        let earlier: BTreeMap<_, _> =
            before.workers.iter().map(|worker| (worker.id, worker.usage)).collect();
        let workers = now.workers.iter().filter_map(|worker| {
            // A worker that was not there has used all of its time since.
            let before = match earlier.get(&worker.id) {
                Some(usage) => usage.as_ref()?.cpu_ms,
                None => 0,
            };
            Some((worker.id, percent(before, worker.usage?)))
        });
        let workers: BTreeMap<_, _> = workers.collect();
        let total = workers.values().chain(&primary).sum();
        Some(Cpu { total, primary, workers })
    }

    /// Adds the use of CPU to an app in JSON.
    pub(super) fn write_into(&self, app: &mut Value) {
        let set = |of: &mut Value, percent: f64| {
            if of.is_object() {
                of["cpu_percent"] = json!((percent * 10.0).round() / 10.0);
            }
        };
        set(&mut app["total"], self.total);
        if let Some(primary) = self.primary {
            set(&mut app["usage"], primary);
        }
        for worker in app["workers"].as_array_mut().into_iter().flatten() {
            let id = worker["id"].as_u64();
            let of = self.workers.iter().find(|(worker, _)| Some(u64::from(worker.0)) == id);
            if let Some((_, percent)) = of {
                set(&mut worker["usage"], *percent);
            }
        }
    }
}

/// Returns a use of CPU for a table.
pub(super) fn shown(percent: Option<f64>) -> String {
    percent.map_or_else(|| "?".into(), |percent| format!("{percent:.0}%"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app(pid: u32, uptime_ms: u64, primary: u64, workers: &[(u32, Option<u64>)]) -> AppSnapshot {
        let worker = |(id, cpu_ms): &(u32, Option<u64>)| {
            json!({
                "id": id, "pid": 4000 + id, "slot": id, "state": "listening", "age_ms": 61_000,
                "leaving_ms": null, "weight": 100,
                "stats": {
                    "handed": 0, "taken": 0, "returned": 0, "violations": 0,
                    "in_flight": 0, "open": 0, "load": 0, "moved": 0
                },
                "usage": cpu_ms.map(|cpu_ms| json!({ "cpu_ms": cpu_ms, "rss": 1 })),
            })
        };
        let workers: Vec<_> = workers.iter().map(worker).collect();
        let app = json!({
            "name": "web", "program": "x", "version": "1", "pid": pid, "uptime_ms": uptime_ms,
            "phase": "running", "wanted": 2, "restarts": 0, "listeners": [],
            "usage": { "cpu_ms": primary, "rss": 1 }, "workers": workers,
        });
        serde_json::from_value(app).unwrap()
    }

    #[test]
    fn the_use_of_cpu_is_that_of_each_process_between_two_looks() {
        let before = app(1, 10_000, 50, &[(1, Some(1000)), (2, Some(9000)), (3, None)]);
        // Worker 2 has ended, and worker 4 follows it.
        let now = app(1, 10_500, 75, &[(1, Some(1500)), (3, Some(70)), (4, Some(100))]);
        let cpu = Cpu::between(&before, &now).unwrap();
        let workers = BTreeMap::from([(WorkerId(1), 100.0), (WorkerId(4), 20.0)]);
        assert_eq!(cpu, Cpu { total: 125.0, primary: Some(5.0), workers });
        let mut value = serde_json::to_value(&now).unwrap();
        cpu.write_into(&mut value);
        assert_eq!(value["total"]["cpu_percent"], 125.0);
        assert_eq!(value["usage"]["cpu_percent"], 5.0);
        assert_eq!(value["workers"][0]["usage"]["cpu_percent"], 100.0);
        assert_eq!(value["workers"][1]["usage"].get("cpu_percent"), None);
    }

    #[test]
    fn an_app_that_was_started_again_has_no_use_of_cpu_yet() {
        let before = app(1, 10_000, 50, &[]);
        for now in [app(1, 10_000, 75, &[]), app(1, 9_000, 75, &[]), app(2, 10_500, 75, &[])] {
            assert_eq!(Cpu::between(&before, &now), None);
        }
    }
}
