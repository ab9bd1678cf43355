//! Programs that run at certain times, and workers that are replaced then.

#![allow(clippy::unwrap_used)]

mod support;

use serde_json::{Value, json};
use support::Home;
use support::pm2::{SERVER, file};
use troop_testkit::wait_until;

const EACH_SECOND: &str = "* * * * * *";

fn job(options: &str) -> String {
    format!("[app.job]\nprogram = \"sh\"\ncron = \"{EACH_SECOND}\"\n{options}\n")
}

fn runs(home: &Home) -> usize {
    std::fs::read_to_string(home.path().join("runs")).unwrap_or_default().lines().count()
}

fn schedule(home: &Home) -> Value {
    home.show("job")["schedule"].clone()
}

#[test]
fn a_job_runs_at_its_times_and_waits_between_them() {
    let text = job("args = [\"-c\", \"echo run >> runs; echo said; exit 3\"]");
    let home = Home::with(&[("troop.toml", &text)]);
    assert!(home.fine(&["start"]).starts_with("job: waits for its time"));
    wait_until("two runs", || runs(&home) >= 2);
    wait_until("its result", || schedule(&home)["last"]["result"].is_string());
    let told = schedule(&home);
    assert_eq!((&told["cron"], &told["is_job"]), (&json!(EACH_SECOND), &json!(true)));
    assert_eq!(told["last"]["result"], "exit code 3", "{told}");
    assert!(told["next_ms"].as_u64().unwrap() <= 1000, "{told}");
    wait_until("the list", || {
        let listed = home.fine(&["ls"]);
        listed.contains("waiting") && listed.contains("next in") && listed.contains("exit code 3")
    });
    assert!(home.fine(&["show", "job"]).contains("last run"));
    wait_until("its output", || home.log("job.log").contains("said"));
    // A job that fails keeps the app neither from running nor from stopping.
    home.fine(&["stop", "job"]);
    let stopped = runs(&home);
    assert!(home.fine(&["ls"]).contains("stopped") && runs(&home) == stopped);
}

#[test]
fn a_node_job_ends_when_it_has_nothing_left_to_do() {
    let script = "require('fs').appendFileSync('runs', 'run\\n'); setTimeout(() => {}, 10)";
    let text = format!("[app.job]\nprogram = \"job.js\"\ncron = \"{EACH_SECOND}\"\n");
    let home = Home::with(&[("job.js", script), ("troop.toml", &text)]);
    home.fine(&["start"]);
    wait_until("two runs", || runs(&home) >= 2);
    wait_until("its result", || schedule(&home)["last"]["succeeded"] == true);
}

#[test]
fn a_run_whose_predecessor_is_not_over_is_left_out_or_takes_its_place() {
    let endless = "args = [\"-c\", \"echo run >> runs; exec sleep 1000\"]";
    let home = Home::with(&[("troop.toml", &job(endless))]);
    home.fine(&["start"]);
    wait_until("a run that is left out", || schedule(&home)["skipped"].as_u64() >= Some(1));
    assert_eq!(runs(&home), 1);
    let text = job(&format!("{endless}\noverlap = \"replace\""));
    let home = Home::with(&[("troop.toml", &text)]);
    home.fine(&["start"]);
    wait_until("three runs", || runs(&home) >= 3);
    assert_eq!(schedule(&home)["skipped"], 0);
}

#[test]
fn workers_are_replaced_at_the_times_of_a_pattern() {
    let text = format!(
        "[app.job]\nprogram = \"server.js\"\nworkers = 1\nmin_ready_time = 0\nrecycle = {{ cron = \"{EACH_SECOND}\" }}\n"
    );
    let home = Home::with(&[("server.js", SERVER), ("troop.toml", &text)]);
    home.fine(&["start"]);
    wait_until("another worker", || {
        let workers = home.show("job")["workers"].clone();
        workers.as_array().unwrap().iter().any(|worker| worker["id"].as_u64() > Some(1))
    });
    assert_eq!(schedule(&home)["is_job"], false);
    assert!(home.fine(&["show", "job"]).contains("replaces its workers at"));
}

#[test]
fn a_restart_of_pm2s_at_certain_times_is_a_job_for_what_ends_by_itself() {
    let fields = json!({ "name": "job", "script": "job.sh", "autorestart": false, "cron_restart": "0 4 1 1 *" });
    let home = Home::with(&[("job.sh", "echo run >> runs"), ("ecosystem.json", &file(&fields))]);
    home.fine(&["start", "ecosystem.json"]);
    // As in PM2, it runs at the start too.
    wait_until("its run", || schedule(&home)["last"]["succeeded"] == true);
    assert_eq!(runs(&home), 1);
}

#[test]
fn times_that_cannot_be_are_reported() {
    for (options, part) in [
        ("cron = \"soon\"", "cron: \"soon\""),
        ("cron = \"0 0 30 2 *\"", "no such time"),
        ("recycle = { cron = \"99 * * * *\" }", "recycle.cron"),
        ("cron = \"0 4 * * *\"\nrestart = { when = \"always\" }", "restart.when"),
        ("overlap = \"skip\"", "without cron"),
    ] {
        let text = format!("[app.job]\nprogram = \"sh\"\n{options}\n");
        let home = Home::with(&[("troop.toml", &text)]);
        let (code, _, err) = home.troop(&["check"]);
        assert!(code == 2 && err.contains(part), "{options}: {code} {err}");
    }
}

#[test]
fn a_job_waits_for_its_time_after_a_restart_too() {
    let text = "[app.job]\nprogram = \"sh\"\nargs = [\"-c\", \"exit 0\"]\ncron = \"0 0 1 1 *\"\n";
    let home = Home::with(&[("troop.toml", text)]);
    let started = home.fine(&["start"]);
    assert!(started.starts_with("job: waits for its time"), "{started}");
    assert_eq!(home.fine(&["restart", "job"]), started);
}
