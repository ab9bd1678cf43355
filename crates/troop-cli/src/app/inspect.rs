//! What is shown of an app: snapshots, and where output goes.

use std::path::Path;
use std::sync::atomic::Ordering;

use serde_json::{Value, json};
use troop::snapshot::Phase;

use super::{RunningApp, failed};
use crate::control::protocol::{AppSnapshot, Failure, Total};
use crate::logs::paths::files;

impl RunningApp {
    /// Returns an [`AppSnapshot`].
    pub(crate) async fn snapshot(&self) -> Result<Value, Failure> {
        let mut snapshot = self.cluster.snapshot().await.map_err(|e| failed(&e))?;
        let uncounted = self.uncounted_restarts.load(Ordering::Relaxed);
        snapshot.restarts = snapshot.restarts.saturating_sub(uncounted);
        let resolved = self.resolved();
        let app = AppSnapshot {
            name: self.name.clone(),
            program: Path::new(&resolved.program).display().to_string(),
            alone: self.started.runs_alone(),
            version: env!("CARGO_PKG_VERSION").into(),
            file: self.source.file().map(|file| {
                std::path::absolute(file).unwrap_or_else(|_| file.into()).display().to_string()
            }),
            log: self
                .queue
                .as_ref()
                .and_then(|queue| queue.path())
                .map(|path| path.display().to_string()),
            scaled: self.scaled(snapshot.wanted),
            hint: self.startup.hint(),
            last_lines: match snapshot.phase {
                Phase::Running => None,
                _ => self.startup.last_lines().await,
            },
            schedule: self.schedule_snapshot(),
            lost_lines: self.queue.as_ref().map_or(0, |queue| queue.dropped()),
            total: Total::of(&snapshot),
            counts: self.counts(),
            snapshot,
        };
        serde_json::to_value(app).map_err(|e| Failure::new("failed", e.to_string()))
    }

    /// Counts restarts from 0 again.
    pub(crate) async fn reset(&self) -> Result<Value, Failure> {
        let snapshot = self.cluster.snapshot().await.map_err(|e| failed(&e))?;
        self.uncounted_restarts.store(snapshot.restarts, Ordering::Relaxed);
        Ok(json!({ "restarts": 0 }))
    }

    /// Returns where the output of the workers goes.
    pub(crate) fn logs(&self) -> Value {
        let resolved = self.resolved();
        let (to, format) = resolved.output();
        let file = self.queue.as_ref().and_then(|queue| queue.path());
        let cwd = resolved.cwd.clone().unwrap_or_else(|| ".".into());
        let cwd = std::path::absolute(&cwd).unwrap_or(cwd);
        let paths = files(&self.name, &resolved.app.output, &cwd);
        let of = |numbers: &[usize]| {
            let path = numbers.first().and_then(|number| paths.files.get(*number));
            path.filter(|path| file.is_some() && file != Some(*path))
        };
        let (errors, events) = (of(&paths.routes.err), of(&paths.routes.events));
        let events = events.filter(|events| Some(*events) != errors);
        json!({ "to": to, "format": format, "file": file, "error_file": errors, "events_file": events, "slots": resolved.workers() })
    }
}
