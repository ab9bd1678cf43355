//! What is shown of apps that do something at certain times.

use super::show::phase;
use super::table::time;
use crate::app::ScheduleSnapshot;
use crate::control::protocol::AppSnapshot;

/// Returns the state of an app: a job waits between its runs.
pub(super) fn state(app: &AppSnapshot) -> &'static str {
    let is_job = app.schedule.as_ref().is_some_and(|schedule| schedule.is_job);
    match phase(&app.snapshot) {
        "running" | "starting" if is_job && app.snapshot.workers.is_empty() => "waiting",
        phase => phase,
    }
}

/// Returns the times of an app in short, for a table.
pub(super) fn short(schedule: &ScheduleSnapshot) -> String {
    let next = schedule.next_ms.map(|ms| format!("next in {}", time(ms)));
    let last = schedule.last.as_ref().and_then(|last| last.result.as_ref());
    let last = last.map(|result| format!("last: {result}"));
    next.into_iter().chain(last).collect::<Vec<_>>().join(", ")
}

/// Returns lines about the times of an app.
pub(super) fn lines(schedule: &ScheduleSnapshot) -> Vec<String> {
    let does = if schedule.is_job { "runs" } else { "replaces its workers" };
    let next = schedule
        .next_ms
        .map_or_else(|| "never again".into(), |ms| format!("the next time in {}", time(ms)));
    let mut lines = vec![format!("{does} at {}, {next}", schedule.cron)];
    if let Some(last) = &schedule.last {
        let result = match (last.took_ms, &last.result) {
            (Some(ms), Some(result)) => format!("{result} after {}", time(ms)),
            _ => "not over yet".into(),
        };
        lines.push(format!("last run {} ago: {result}", time(last.age_ms)));
    }
    match schedule.skipped {
        0 => {}
        1 => lines.push("1 run was left out, as the one before was not over".into()),
        n => lines.push(format!("{n} runs were left out, as the ones before were not over")),
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::LastRun;

    #[test]
    fn runs_are_told_in_words() {
        let mut schedule = ScheduleSnapshot {
            cron: "0 4 * * *".into(),
            is_job: true,
            next_ms: Some(61_000),
            ..ScheduleSnapshot::default()
        };
        assert_eq!(short(&schedule), "next in 1m 1s");
        let last = LastRun { age_ms: 3000, took_ms: None, result: None, succeeded: None };
        schedule.last = Some(last.clone());
        assert_eq!(
            lines(&schedule),
            ["runs at 0 4 * * *, the next time in 1m 1s", "last run 3.0s ago: not over yet"]
        );
        let result = Some("exit code 3".to_owned());
        schedule.last = Some(LastRun { took_ms: Some(500), result, ..last });
        schedule.skipped = 1;
        assert_eq!(short(&schedule), "next in 1m 1s, last: exit code 3");
        assert_eq!(lines(&schedule)[1], "last run 3.0s ago: exit code 3 after 0.5s");
        assert!(lines(&schedule)[2].starts_with("1 run was left out"));
    }
}
