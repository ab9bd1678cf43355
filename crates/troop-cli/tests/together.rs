//! Several apps at once: `start` side by side and in order, `run` with the apps of a whole file.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::Home;
use troop_testkit::wait_until;

const SERVER: &str = "
require('http').createServer(() => {}).listen(0, '127.0.0.1');
console.log('listens');
";

/// Listens when the other one of `OTHER` has been started too, and says whether `BEFORE` listens.
const MEETS: &str = "
const fs = require('fs');
fs.writeFileSync(process.env.NAME + '.here', '');
const wait = () => fs.existsSync(process.env.OTHER + '.here')
  ? require('http').createServer(() => {}).listen(0, '127.0.0.1') : setTimeout(wait, 20);
wait();
";

fn app(name: &str, more: &str) -> String {
    format!("[app.{name}]\nprogram = \"server.js\"\nworkers = 1\n{more}")
}

/// The names of all apps with their states.
fn states(home: &Home) -> Vec<String> {
    let apps: Vec<Value> = serde_json::from_str(&home.fine(&["ls", "--json"])).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    apps.iter().map(|app| format!("{} {}", text(&app["name"]), text(&app["phase"]))).collect()
}

#[test]
fn apps_start_side_by_side() {
    let meets = |name: &str, other: &str| {
        format!(
            "[app.{name}]\nprogram = \"meets.js\"\nworkers = 1\nready = \"listening\"\nready_timeout = 20\nenv = {{ NAME = \"{name}\", OTHER = \"{other}\" }}\n"
        )
    };
    let file = meets("one", "two") + &meets("two", "one");
    let home = Home::with(&[("meets.js", MEETS), ("troop.toml", &file)]);
    // One after the other, the first one would never be ready.
    let out = home.fine(&["start"]);
    assert!(out.contains("one: 1 worker ready") && out.contains("two: 1 worker ready"), "{out}");
    home.fine(&["save"]);
    home.fine(&["stop", "all"]);
    for name in ["one", "two"] {
        std::fs::remove_file(home.path().join(format!("{name}.here"))).unwrap();
    }
    home.fine(&["resurrect"]);
    assert_eq!(states(&home), ["one running", "two running"]);
}

#[test]
fn an_app_starts_after_those_that_it_names() {
    let fails = "[app.bad]\nprogram = \"sh\"\nargs = [\"-c\", \"exit 3\"]\nworkers = 1\nrestart = { max = 1 }\n";
    let file = app("web", "after = [\"db\"]\n")
        + &app("db", "")
        + fails
        + &app("last", "after = [\"bad\"]\n");
    let home = Home::with(&[("server.js", SERVER), ("troop.toml", &file)]);
    let (code, out, err) = home.troop(&["start"]);
    assert!(code == 1 && err.contains("last: not started, because bad has failed"), "{err}");
    let at = |part: &str| out.find(part).unwrap_or_else(|| panic!("{part}: {out}{err}"));
    assert!(at("db: 1 worker ready") < at("web: 1 worker ready"));
    assert_eq!(states(&home), ["db running", "web running"], "in the order of their names");
    // Without it there is nothing to wait for.
    home.fine(&["delete", "all"]);
    home.fine(&["start", "web"]);
    for (after, part) in [("nodb", "there is no app \"nodb\" here"), ("web", "after itself")] {
        std::fs::write(
            home.path().join("troop.toml"),
            app("web", &format!("after = [\"{after}\"]\n")),
        )
        .unwrap();
        let (code, _, err) = home.troop(&["check"]);
        assert!(code == 2 && err.contains(part), "{err}");
    }
}

/// Says when it is told to end, and takes its time.
const SLOW: &str = "
require('http').createServer(() => {}).listen(0, '127.0.0.1');
const note = (word) => require('fs').appendFileSync('order', word + ' ' + process.env.NAME + '\\n');
note('starts');
process.on('SIGTERM', () => { note('is told'); setTimeout(() => { note('ends'); process.exit(); }, 300); });
";

/// Three apps, each after the next one, by names that are sorted the other way round.
fn chain() -> Home {
    let one = |name: &str, more: &str| {
        format!(
            "[app.{name}]\nprogram = \"slow.js\"\nworkers = 1\nenv = {{ NAME = \"{name}\" }}\n{more}"
        )
    };
    let file = one("a_web", "after = [\"b_jobs\"]\n")
        + &one("b_jobs", "after = [\"c_db\"]\n")
        + &one("c_db", "");
    Home::with(&[("slow.js", SLOW), ("troop.toml", &file)])
}

const STARTS: [&str; 3] = ["starts c_db", "starts b_jobs", "starts a_web"];
const ENDS: [&str; 6] =
    ["is told a_web", "ends a_web", "is told b_jobs", "ends b_jobs", "is told c_db", "ends c_db"];

/// What they have noted since this was asked last.
fn noted(home: &Home) -> Vec<String> {
    let file = home.path().join("order");
    let text = std::fs::read_to_string(&file).unwrap_or_default();
    let _ = std::fs::remove_file(file);
    text.lines().map(str::to_owned).collect()
}

#[test]
fn apps_stop_before_those_that_they_start_after_and_start_in_order_however_they_are_started() {
    let home = chain();
    home.fine(&["start"]);
    assert_eq!(noted(&home), STARTS);
    home.fine(&["save"]);
    for stop in
        [&["stop", "all"][..], &["stop", "troop.toml"], &["stop", "c_db", "a_web", "b_jobs"]]
    {
        home.fine(stop);
        assert_eq!(noted(&home), ENDS, "{stop:?}");
        home.fine(&["start", "all"]);
        assert_eq!(noted(&home), STARTS, "after {stop:?}");
    }
    home.fine(&["stop", "all"]);
    noted(&home);
    home.fine(&["resurrect"]);
    assert_eq!(noted(&home), STARTS);
    home.fine(&["restart", "all"]);
    let starts: Vec<_> =
        noted(&home).into_iter().filter(|line| line.starts_with("starts")).collect();
    assert_eq!(starts, STARTS);
    home.fine(&["delete", "all"]);
    assert_eq!(noted(&home), ENDS);
}

#[test]
fn apps_of_one_run_stop_before_those_that_they_start_after() {
    let home = chain();
    let (mut child, _) = run(&home, &[]);
    wait_until("all run", || states(&home) == ["a_web running", "b_jobs running", "c_db running"]);
    noted(&home);
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    // As `timeout` and terminals send it.
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(noted(&home), ENDS);
}

/// How long it runs says nothing of whether it has done what the others need.
#[test]
fn apps_wait_for_the_end_of_one_that_runs_once() {
    let once = |code: u8| {
        let script = format!("sleep 2.5; echo ends once >> order; exit {code}");
        format!(
            "[app.once]\nprogram = \"sh\"\nargs = [\"-c\", \"{script}\"]\nworkers = 1\nrestart = {{ when = \"never\" }}\n\
             [app.web]\nprogram = \"slow.js\"\nworkers = 1\nafter = [\"once\"]\nenv = {{ NAME = \"web\" }}\n"
        )
    };
    let home = Home::with(&[("slow.js", SLOW), ("troop.toml", &once(0))]);
    home.fine(&["start"]);
    assert_eq!(noted(&home), ["ends once", "starts web"]);
    home.fine(&["delete", "all"]);
    noted(&home);
    let (mut child, _) = run(&home, &[]);
    wait_until("it runs", || states(&home) == ["web running"]);
    assert_eq!(noted(&home), ["ends once", "starts web"]);
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    child.wait().unwrap();
    // One that fails keeps them from starting.
    std::fs::write(home.path().join("troop.toml"), once(3)).unwrap();
    noted(&home);
    let (code, _, err) = home.troop(&["start"]);
    assert!(code == 1 && err.contains("web: not started, because once has failed"), "{err}");
    assert_eq!(noted(&home), ["ends once"]);
    home.troop(&["delete", "all"]);
    let (mut child, _) = run(&home, &["--keep-going"]);
    assert_eq!(child.wait().unwrap().code(), Some(3));
    assert_eq!(noted(&home), ["ends once"]);
}

#[test]
fn namespaces_select_their_apps() {
    let file = app("web", "namespace = \"shop\"\n")
        + &app("jobs", "namespace = \"shop\"\n")
        + &app("other", "");
    let home = Home::with(&[("server.js", SERVER), ("troop.toml", &file)]);
    home.fine(&["start"]);
    home.fine(&["start", "server.js", "--namespace", "shop", "-n", "typed"]);
    let out = home.fine(&["stop", "shop"]);
    for name in ["web", "jobs", "typed"] {
        assert!(out.contains(&format!("{name}: stopped")), "{out}");
    }
    assert!(states(&home).contains(&"other running".into()));
    home.fine(&["start", "shop"]);
    assert!(states(&home).iter().all(|state| state.ends_with("running")));
    assert!(home.fine(&["jlist"]).contains(r#""namespace":"shop""#));
}

/// Runs all apps of a file; the lines of standard output come one by one.
fn run(home: &Home, args: &[&str]) -> (std::process::Child, impl Iterator<Item = String> + use<>) {
    let verb: &[&str] = if args.contains(&"--no-daemon") { &["start"] } else { &["run"] };
    let mut command = home.command(&[verb, args].concat());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    (child, lines)
}

#[test]
fn a_whole_file_is_run_with_the_names_before_the_lines() {
    let file = app("web", "after = [\"jobs-2\"]\n") + &app("jobs-2", "");
    let home = Home::with(&[("server.js", SERVER), ("troop.toml", &file)]);
    let (mut child, mut lines) = run(&home, &[]);
    let line = |name: &str, line: String| {
        assert!(line.starts_with(name) && line.ends_with("| listens"), "{line}")
    };
    line("jobs-2 | ", lines.next().unwrap());
    line("web    | ", lines.next().unwrap());
    wait_until("both run", || states(&home) == ["jobs-2 running", "web running"]);
    // A restart stays in its place.
    home.fine(&["restart", "web"]);
    line("web    | ", lines.next().unwrap());
    // One that is stopped does not end the others.
    home.fine(&["stop", "jobs-2"]);
    assert_eq!(states(&home), ["web running"]);
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(states(&home).is_empty());
    // One of them is run as before.
    for one in [&["--only", "web"][..], &["troop.toml", "web"], &["web"]] {
        let (mut child, mut lines) = run(&home, one);
        assert_eq!(lines.next().unwrap(), "listens", "{one:?}");
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn one_that_fails_ends_the_others_unless_they_are_to_go_on() {
    let fails = "[app.bad]\nprogram = \"sh\"\nargs = [\"-c\", \"echo no >&2; exit 3\"]\nworkers = 1\nrestart = { max = 1 }\n";
    let home = Home::with(&[("server.js", SERVER), ("troop.toml", &(app("web", "") + fails))]);
    let (child, _lines) = run(&home, &[]);
    let output = child.wait_with_output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(err.contains("bad | no"), "{err}");
    assert!(err.contains("troop: bad has failed with exit code 1; the others end too"), "{err}");
    assert!(states(&home).is_empty());
    let (child, _lines) = run(&home, &["--no-daemon"]);
    let err = String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap();
    assert!(err.contains("bad | no") && err.contains("the others end too"), "{err}");
    let (mut child, _lines) = run(&home, &["--keep-going"]);
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("the others go on")));
    wait_until("it runs", || states(&home) == ["web running"]);
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let _rest = lines.count();
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

#[test]
fn apps_that_are_run_together_stop_when_what_runs_them_is_killed() {
    let file = app("web", "") + &app("jobs", "");
    let home = Home::with(&[("server.js", SERVER), ("troop.toml", &file)]);
    let (mut child, mut lines) = run(&home, &[]);
    assert_eq!(lines.by_ref().take(2).count(), 2);
    wait_until("both run", || states(&home) == ["jobs running", "web running"]);
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until("none runs", || !states(&home).iter().any(|state| state.contains("running")));
}
