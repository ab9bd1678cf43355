//! What an app does at certain times: jobs are run, workers are replaced.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use troop::Event;
use troop::event::ExitHow;
use troop::supervise::Progress;

use super::RunningApp;
use crate::config::{NextTime, Overlap, Times};
use crate::log;

/// Interval between checks of the clock, which may be set, and which a suspended system does not
/// advance timers by.
const CLOCK_CHECK_INTERVAL: Duration = Duration::from_secs(20);

/// What is shown of an app's times.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ScheduleSnapshot {
    /// The pattern.
    pub(crate) cron: String,
    /// Whether the app is a job, which runs at these times alone; else its workers are replaced then.
    pub(crate) is_job: bool,
    /// Milliseconds until the next time.
    pub(crate) next_ms: Option<u64>,
    /// The last run of a job.
    #[serde(default)]
    pub(crate) last: Option<LastRun>,
    /// Runs that were left out because the one before was not over.
    #[serde(default)]
    pub(crate) skipped: u64,
}

/// The last run of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LastRun {
    /// Milliseconds since its beginning.
    pub(crate) age_ms: u64,
    /// How long it took, if it is over.
    pub(crate) took_ms: Option<u64>,
    /// How its worker ended; with several, the first failure.
    pub(crate) result: Option<String>,
    /// Whether it is over without a failure.
    pub(crate) succeeded: Option<bool>,
}

/// The state of an app's schedule.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    next: Option<SystemTime>,
    began: Option<SystemTime>,
    ended: Option<SystemTime>,
    result: Option<ExitHow>,
    skipped: u64,
}

impl Schedule {
    fn begin(&mut self, now: SystemTime) {
        (self.began, self.ended, self.result) = (Some(now), None, None);
    }

    /// Takes the end of a worker. Of several the first failure counts.
    fn end(&mut self, how: ExitHow) {
        if self.result.is_none_or(|before| before.is_success()) {
            self.result = Some(how);
        }
    }

    fn last(&self, now: SystemTime) -> Option<LastRun> {
        let millis = |from: SystemTime, to: SystemTime| {
            let time = to.duration_since(from).unwrap_or_default();
            u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
        };
        let began = self.began?;
        Some(LastRun {
            age_ms: millis(began, now),
            took_ms: self.ended.map(|ended| millis(began, ended)),
            result: self.result.map(|how| how.to_string()),
            succeeded: self.ended.and(self.result).map(ExitHow::is_success),
        })
    }
}

fn locked(schedule: &Mutex<Schedule>) -> std::sync::MutexGuard<'_, Schedule> {
    schedule.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RunningApp {
    /// Returns what is shown of the app's times, if it has any.
    pub(super) fn schedule_snapshot(&self) -> Option<ScheduleSnapshot> {
        let app = &self.started.app;
        let cron = app.cron.as_ref().or(app.recycle.cron.as_ref())?.clone();
        let schedule = locked(&self.schedule);
        let now = SystemTime::now();
        let left = |next: SystemTime| next.duration_since(now).unwrap_or_default();
        Some(ScheduleSnapshot {
            cron,
            is_job: app.cron.is_some(),
            next_ms: schedule.next.map(|next| u64::try_from(left(next).as_millis()).unwrap_or(0)),
            last: schedule.last(now),
            skipped: schedule.skipped,
        })
    }

    /// Acts at the app's times, for as long as it runs.
    pub(super) async fn follow_schedule(self: Arc<RunningApp>) {
        let app = &self.started.app;
        let is_job = app.cron.is_some();
        let Some(pattern) = app.cron.as_ref().or(app.recycle.cron.as_ref()) else { return };
        // It was checked when the file was read.
        let Ok(times) = Times::parse(pattern) else { return };
        if is_job {
            tokio::spawn(self.clone().note_ends());
        }
        if is_job && app.run_at_start {
            self.run_job().await;
        }
        let Some(mut next) = NextTime::after(times, SystemTime::now()) else { return };
        loop {
            while let Some(left) = next.left(SystemTime::now()) {
                locked(&self.schedule).next = Some(next.at());
                // A millisecond more, because timers are rounded.
                sleep(left.min(CLOCK_CHECK_INTERVAL) + Duration::from_millis(1)).await;
            }
            if is_job {
                self.run_job().await;
            } else {
                log::line("troop: it is time to replace the workers (recycle.cron)");
                self.reload_without_client().await;
            }
            if !next.advance(SystemTime::now()) {
                locked(&self.schedule).next = None;
                return;
            }
        }
    }

    /// Begins a run, unless the last one is not over.
    async fn run_job(&self) {
        let is_running = !self.cluster.workers().is_empty();
        let overlap = self.started.app.overlap.unwrap_or_default();
        if is_running && overlap == Overlap::Skip {
            locked(&self.schedule).skipped += 1;
            log::line(
                "troop: the last run is not over, so this one is left out (overlap = \"skip\")",
            );
            return;
        }
        if is_running {
            log::line("troop: the last run is not over, and ends (overlap = \"replace\")");
        }
        if self.cluster.scale(0).await.is_err() {
            return;
        }
        locked(&self.schedule).begin(SystemTime::now());
        // Its end is noted, not its readiness.
        drop(self.cluster.scale(self.resolved().workers()));
    }

    /// Notes how runs end.
    async fn note_ends(self: Arc<RunningApp>) {
        let mut events = self.cluster.events();
        while let Some(event) = events.recv().await {
            let Event::Supervision(Progress::NotRestarting { how, .. }) = event else { continue };
            let is_over = {
                let mut schedule = locked(&self.schedule);
                schedule.end(how);
                let is_over = self.cluster.workers().is_empty();
                if is_over {
                    schedule.ended = Some(SystemTime::now());
                }
                is_over
            };
            if is_over {
                let _ = self.cluster.scale(0).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_of_several_workers_is_the_result() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let mut schedule = Schedule::default();
        assert_eq!(schedule.last(at(9)), None);
        schedule.begin(at(10));
        let last = schedule.last(at(12)).unwrap();
        assert_eq!((last.age_ms, last.took_ms, last.succeeded), (2000, None, None));
        for code in [0, 3, 0, 4] {
            schedule.end(ExitHow::Code(code));
        }
        schedule.ended = Some(at(11));
        let last = schedule.last(at(20)).unwrap();
        assert_eq!((last.took_ms, last.succeeded), (Some(1000), Some(false)));
        assert!(last.result.unwrap().contains('3'));
        schedule.begin(at(30));
        assert_eq!(schedule.last(at(30)).unwrap().result, None);
    }
}
