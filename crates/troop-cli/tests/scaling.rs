//! `troop scale`, and a reload that changes the number of workers, report what is, not what is to
//! be.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use serde_json::Value;
use support::Home;
use support::pm2::SERVER;
use troop_testkit::wait_until;

/// Listens after a while, and finishes after a while.
const SLOW: &str = "const server = require('http').createServer((q, r) => r.end('x'));
    setTimeout(() => server.listen(0, '127.0.0.1'), process.env.TROOP_SLOT === '0' ? 0 : 700);
    process.on('disconnect', () => setTimeout(() => process.exit(), 700));
    setInterval(() => {}, 1000);";

/// Cannot do with more than one worker.
const ALONE: &str = "if (process.env.TROOP_SLOT !== '0') throw new Error('there is one license');
    require('http').createServer((q, r) => r.end('x')).listen(0, '127.0.0.1')";

fn workers(home: &Home, name: &str) -> (usize, usize) {
    let shown = home.show(name);
    let all = shown["workers"].as_array().unwrap();
    (all.len(), all.iter().filter(|worker| worker["ready"] == true).count())
}

#[test]
fn scaling_is_done_when_the_workers_are_ready_or_gone() {
    let home = Home::with(&[("slow.js", SLOW)]);
    home.fine(&["start", "slow.js", "-w", "1"]);
    assert_eq!(home.fine(&["scale", "slow", "3"]), "slow: 3 workers, 1 before\n");
    assert_eq!(workers(&home, "slow"), (3, 3));
    let answer: Value = serde_json::from_str(&home.fine(&["scale", "-2", "--json"])).unwrap();
    assert_eq!((&answer["workers"], &answer["before"]), (&1.into(), &3.into()));
    assert_eq!(workers(&home, "slow"), (1, 1));
}

#[test]
fn scaling_need_not_be_waited_for() {
    let home = Home::with(&[("slow.js", SLOW)]);
    home.fine(&["start", "slow.js", "-w", "1"]);
    let begun = Instant::now();
    let out = home.fine(&["scale", "slow", "2", "--no-wait"]);
    assert_eq!(out, "slow: scaling to 2 workers, 1 before\n");
    assert!(begun.elapsed() < Duration::from_millis(600), "{:?}", begun.elapsed());
    wait_until("both are ready", || workers(&home, "slow") == (2, 2));
}

#[test]
fn a_scale_whose_new_workers_keep_ending_fails_with_the_reason_and_the_others_keep_running() {
    let home = Home::with(&[("alone.js", ALONE)]);
    home.fine(&["start", "alone.js", "-w", "1"]);
    let (code, out, err) = home.troop(&["scale", "2"]);
    assert_eq!((code, out.as_str()), (1, ""), "{err}");
    for part in ["alone: not all workers are ready, 1 of 2", "exit code 1", "there is one license"]
    {
        assert!(err.contains(part), "{part}: {err}");
    }
    assert_eq!(workers(&home, "alone").1, 1);
}

#[test]
fn a_scale_whose_new_workers_are_not_ready_in_time_fails() {
    let home = Home::with(&[("late.js", &SLOW.replace("700)", "60_000)"))]);
    let ready = ["--ready", "listening", "--set", "ready_timeout=1"];
    home.fine(&[&["start", "late.js", "-w", "1"], &ready[..]].concat());
    let (code, _, err) = home.troop(&["scale", "2"]);
    assert!(code == 1 && err.contains("not all workers are ready, 1 of 2"), "{err}");
}

#[test]
fn a_reload_is_done_when_further_workers_are_ready_too() {
    let file = |workers: usize| {
        format!("[app.slow]\nprogram = \"slow.js\"\nworkers = {workers}\nmin_ready_time = 0\n")
    };
    let home = Home::with(&[("slow.js", SLOW), ("troop.toml", &file(1))]);
    home.fine(&["start"]);
    std::fs::write(home.path().join("troop.toml"), file(3)).unwrap();
    assert_eq!(home.fine(&["reload", "slow"]), "slow: 1 worker replaced\n");
    assert_eq!(workers(&home, "slow").1, 3);
    std::fs::write(home.path().join("slow.js"), ALONE).unwrap();
    std::fs::write(home.path().join("troop.toml"), file(1)).unwrap();
    home.fine(&["scale", "1"]);
    home.fine(&["reload", "slow"]);
    std::fs::write(home.path().join("troop.toml"), file(2)).unwrap();
    let (code, _, err) = home.troop(&["reload", "slow"]);
    let text = "1 worker replaced, but slow: not all workers are ready, 1 of 2";
    assert!(code == 1 && err.contains(text), "{err}");
}

#[test]
fn a_reload_of_all_apps_goes_on_past_one_that_fails_and_names_it() {
    let server = "require('http').createServer((q, s) => s.end('x')).listen(0, '127.0.0.1')";
    let home = Home::with(&[("a.js", server), ("b.js", server), ("c.js", server)]);
    for name in ["a", "b", "c"] {
        home.fine(&["start", &format!("{name}.js"), "-n", name, "-i", "1"]);
    }
    for name in ["a", "b"] {
        std::fs::write(home.path().join(format!("{name}.js")), "process.exit(7)").unwrap();
    }
    let (code, out, err) = home.troop(&["reload", "all"]);
    assert_eq!(code, 1, "{out}{err}");
    assert_eq!(out, "c: 1 worker replaced\n");
    for name in ["a", "b"] {
        let failed = |line: &str| line.contains(&format!("{name}: ")) && line.contains("code 7");
        assert!(err.lines().any(failed), "{name} in {err}");
    }
    home.fine(&["stop", "all"]);
}

#[test]
fn a_scaled_app_has_as_many_workers_after_a_restart_and_when_it_is_resurrected() {
    let home = Home::with(&[("server.js", SERVER)]);
    home.fine(&["start", "server.js", "-n", "web"]);
    home.fine(&["scale", "web", "3"]);
    let is_three = |told: String| {
        assert!(told.contains("3 workers ready"), "{told}");
        assert_eq!(workers(&home, "web"), (3, 3));
    };
    is_three(home.fine(&["restart", "web"]));
    is_three(home.fine(&["restart", "web", "--update-env"]));
    // The configuration is what it was.
    home.fine(&["reload", "web"]);
    assert_eq!(home.show("web")["wanted"], 3);
    home.fine(&["save"]);
    home.fine(&["stop", "web"]);
    is_three(home.fine(&["resurrect"]));
    is_three(home.fine(&["restart", "web"]));
    // As it was started.
    home.fine(&["stop", "web"]);
    assert!(home.fine(&["start", "web"]).contains("1 worker ready"));
    assert!(home.fine(&["restart", "web"]).contains("1 worker ready"));
}

#[test]
fn a_file_with_another_number_of_workers_overrides_a_scale() {
    let text = |workers| format!("[app.web]\nprogram = \"server.js\"\nworkers = {workers}\n");
    let home = Home::with(&[("server.js", SERVER), ("troop.toml", &text(1))]);
    home.fine(&["start"]);
    home.fine(&["scale", "web", "3"]);
    std::fs::write(home.path().join("troop.toml"), text(2)).unwrap();
    assert!(home.fine(&["restart", "web"]).contains("2 workers ready"));
    assert!(home.fine(&["restart", "web"]).contains("2 workers ready"));
}
