//! The engine is killed when a client has an answer: the next one does what the answer says. And between two
//! steps of writing its state down: the keeper holds nothing that is in no state.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::{Home, Running, node};
use troop_testkit::{children, engine, wait_until};

/// Sends a request to an app, and kills its engine as soon as the answer is there.
fn killed_at_the_answer(troop: &Running, request: &str) -> Value {
    let path = troop.runtime.path().join("troop/hello.sock");
    let mut client = UnixStream::connect(path).unwrap();
    let engine = engine(troop.child.id()).expect("an engine");
    writeln!(client, "{request}").unwrap();
    let mut answer = String::new();
    BufReader::new(client).read_line(&mut answer).unwrap();
    kill_process(Pid::from_raw(engine.cast_signed()).unwrap(), Signal::KILL).unwrap();
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert!(answer["done"].is_object(), "{request}: {answer}");
    answer
}

/// What the engine after this one shows.
fn shown_by_the_next(troop: &Running, crashes: u64) -> Value {
    let mut shown = Value::Null;
    wait_until("another engine", || {
        let (code, out, _) = troop.troop(["show", "--json"]);
        let mut all: Vec<Value> = serde_json::from_str(&out).unwrap_or_default();
        shown = all.pop().unwrap_or_default();
        code == 0 && shown["crashes"].as_u64() == Some(crashes)
    });
    shown
}

fn app() -> Running {
    let mut troop = support::run(["-w".into(), "1".into(), node("hello.js").display().to_string()]);
    troop.listening(1);
    troop
}

#[test]
fn an_answer_to_scale_holds_for_the_next_engine_too() {
    let mut troop = app();
    for round in 1..=6 {
        let workers = 2 + round % 3;
        let request =
            format!(r#"{{"troop": 1, "do": "scale", "workers": {workers}, "wait": false}}"#);
        killed_at_the_answer(&troop, &request);
        let shown = shown_by_the_next(&troop, round);
        assert_eq!(shown["wanted"].as_u64(), Some(workers), "round {round}");
        assert_eq!(
            shown["scaled"]["workers"].as_u64(),
            Some(workers),
            "round {round}: {}",
            shown["scaled"]
        );
        wait_until("that many workers", || children(troop.child.id()).len() as u64 == workers + 1);
    }
    assert_eq!(troop.troop(["stop"]).0, 0);
    troop.end();
}

#[test]
fn an_answer_to_policy_holds_for_the_next_engine_too() {
    let mut troop = app();
    for round in 1..=4 {
        let policy = if round % 2 == 0 { "round-robin" } else { "least-connections" };
        let request =
            format!(r#"{{"troop": 1, "do": "schedule", "listener": null, "policy": "{policy}"}}"#);
        killed_at_the_answer(&troop, &request);
        let shown = shown_by_the_next(&troop, round);
        assert_eq!(
            shown["listeners"][0]["scheduling"], policy,
            "round {round}: {}",
            shown["listeners"]
        );
    }
    assert_eq!(troop.troop(["stop"]).0, 0);
    troop.end();
}

/// Starts an app, scales it up and down, and returns how many descriptors its keeper has then.
fn descriptors_after_scaling(fault: Option<(&str, u32, &Path)>) -> usize {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_troop"));
    command.args(["run", "--log", "json", "-w", "2"]).arg(node("hello.js"));
    if let Some((point, nth, once)) = fault {
        command.env("TROOP_FAULT", format!("{point}:{nth}:{}", once.display()));
    }
    let mut troop = support::start(command);
    let keeper = troop.child.id();
    let descriptors = || std::fs::read_dir(format!("/proc/{keeper}/fd")).unwrap().count();
    let is_ready = |workers: u64| {
        let (_, out, _) = troop.troop(["show", "--json"]);
        let shown: Vec<Value> = serde_json::from_str(&out).unwrap_or_default();
        let Some(shown) = shown.first() else { return false };
        let all = shown["workers"].as_array().map(Vec::as_slice).unwrap_or_default();
        let ready = all.iter().filter(|worker| worker["ready"] == true).count() as u64;
        ready == workers
            && all.len() as u64 == workers
            && children(keeper).len() as u64 == workers + 1
    };
    wait_until("ready", || is_ready(2));
    for workers in [4, 2] {
        assert_eq!(troop.troop(["scale", &workers.to_string()]).0, 0, "{fault:?}");
        wait_until("scaled", || is_ready(workers));
    }
    // It closes them after the state is written that does without.
    let (mut fewest, mut same) = (descriptors(), 0);
    while same < 20 {
        std::thread::sleep(Duration::from_millis(20));
        same = if descriptors() < fewest { 0 } else { same + 1 };
        fewest = fewest.min(descriptors());
    }
    assert_eq!(troop.troop(["stop"]).0, 0);
    troop.end();
    fewest
}

#[test]
fn what_an_engine_had_held_for_a_state_that_it_did_not_write_is_closed() {
    let directory = tempfile::tempdir().unwrap();
    let undisturbed = descriptors_after_scaling(None);
    let mut deaths = 0;
    // Without a first state there is no next engine. The last ones are those of workers that leave, which
    // a busy machine, that writes the state less often, may not come to.
    let points = [2, 12].map(|nth| ("holding", nth));
    for (point, nth) in points
        .into_iter()
        .chain([4, 8, 12, 16].into_iter().chain(20..28).map(|nth| ("letting go", nth)))
    {
        let once = directory.path().join(format!("{point}{nth}"));
        let left = descriptors_after_scaling(Some((point, nth, &once)));
        deaths += u32::from(once.exists());
        assert!(left <= undisturbed, "{point} {nth}: {left} descriptors instead of {undisturbed}");
    }
    assert!(deaths > 5, "it died only {deaths} times");
}

#[test]
fn a_verb_whose_engine_is_killed_just_before_its_answer_is_answered_by_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let once = directory.path().join("once");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_troop"));
    command.args(["run", "--log", "json", "-w", "1"]).arg(node("hello.js"));
    // The first answer is that the app is ready.
    command.env("TROOP_FAULT", format!("answering:2:{}", once.display()));
    let mut troop = support::start(command);
    troop.listening(1);
    let (code, out, err) = troop.troop(["scale", "3"]);
    assert!(once.exists(), "the engine was not killed: {out}{err}");
    assert_eq!(code, 0, "{out}{err}");
    let shown = shown_by_the_next(&troop, 1);
    let workers = shown["workers"].as_array().map_or(0, Vec::len);
    assert!(shown["wanted"] == 3 && workers == 3, "{shown}");
    assert_eq!(troop.troop(["stop"]).0, 0);
    troop.end();
}

/// Starts an app whose engine is killed before its workers are ready. Returns what `troop start` says.
fn start_with_a_killed_engine(home: &Home) -> (Option<i32>, String) {
    let start = home
        .command(&["start", "server.js", "-n", "web", "-i", "2"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut shown = Value::Null;
    wait_until("it starts workers", || {
        let (_, out, _) = home.troop(&["show", "web", "--json"]);
        let mut all: Vec<Value> = serde_json::from_str(&out).unwrap_or_default();
        shown = all.pop().unwrap_or_default();
        shown["workers"].as_array().is_some_and(|workers| workers.len() == 2)
    });
    let engine = i32::try_from(shown["engine"].as_u64().unwrap()).unwrap();
    kill_process(Pid::from_raw(engine).unwrap(), Signal::KILL).unwrap();
    support::end_of(start, "start")
}

#[test]
fn a_start_whose_engine_is_killed_is_reported_by_the_next_one() {
    let serves = "setTimeout(() => require('http').createServer((request, response) => response.end('x')).listen(0), 1500);";
    let home = Home::with(&[("server.js", serves)]);
    let (code, said) = start_with_a_killed_engine(&home);
    assert!(code == Some(0) && said.contains("2 workers ready"), "{code:?}: {said}");
    assert_eq!(home.show("web")["crashes"], 1);
    home.fine(&["delete", "web"]);

    let ends = "setTimeout(() => { console.error('no database'); process.exit(3); }, 1000);";
    let home = Home::with(&[("server.js", ends)]);
    let (code, said) = start_with_a_killed_engine(&home);
    assert!(code == Some(1) && said.contains("no database"), "{code:?}: {said}");
    assert_eq!(home.fine(&["ls", "--json"]).trim(), "[]");
}

#[test]
fn a_start_whose_engine_is_killed_before_it_has_a_state_leaves_nothing_behind() {
    let home = Home::with(&[("server.js", "require('http').createServer(() => {}).listen(0);")]);
    home.fine(&["start", "server.js", "-n", "other"]);
    home.fine(&["delete", "other"]);
    let files = || {
        let mut names: Vec<String> = ["run/apps", "run"]
            .iter()
            .flat_map(|of| std::fs::read_dir(home.path().join(of)).into_iter().flatten().flatten())
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    };
    let before = files();
    // What others have left that were killed while they wrote.
    std::fs::write(home.path().join("run/apps/.web.json.4000123"), "{").unwrap();
    let once = home.path().join("once");
    let fault = format!("holding:1:{}", once.display());
    let mut start = home.command(&["start", "server.js", "-n", "web"]);
    let start = start.env("TROOP_FAULT", fault).stderr(Stdio::piped()).spawn().unwrap();
    let (code, said) = support::end_of(start, "start");
    assert!(once.exists() && code == Some(1), "{code:?}: {said}");
    assert!(said.contains("web: the primary ended"), "{said}");
    assert_eq!(home.fine(&["ls", "--json"]).trim(), "[]");
    assert_eq!(files(), before);
    home.fine(&["start", "server.js", "-n", "web"]);
    home.fine(&["delete", "web"]);
    assert_eq!(files(), before);
}

/// Other programs do not ask again, as the tool does.
#[test]
fn an_answer_to_restart_and_to_delete_holds_for_the_next_engine_too() {
    for round in 0..4 {
        let mut troop = app();
        let former = troop.workers()[0];
        killed_at_the_answer(&troop, r#"{"troop": 1, "do": "restart"}"#);
        wait_until("it is restarted, or has ended", || {
            let (_, out, _) = troop.troop(["show", "--json"]);
            let mut all: Vec<Value> = serde_json::from_str(&out).unwrap_or_default();
            let Some(shown) = all.pop() else { return true };
            let workers = shown["workers"].as_array().cloned().unwrap_or_default();
            workers
                .iter()
                .any(|of| of["ready"] == true && of["pid"].as_u64() != Some(former.into()))
        });
        troop.troop(["stop"]);
        troop.end();
        let home =
            Home::with(&[("server.js", "require('http').createServer(() => {}).listen(0);")]);
        home.fine(&["start", "server.js", "-n", "web"]);
        let engine = home.show("web")["engine"].as_u64().unwrap();
        let mut client = UnixStream::connect(home.path().join("run/web.sock")).unwrap();
        writeln!(client, r#"{{"troop": 1, "do": "stop", "forget": true}}"#).unwrap();
        let mut answer = String::new();
        BufReader::new(client).read_line(&mut answer).unwrap();
        let engine = Pid::from_raw(i32::try_from(engine).unwrap()).unwrap();
        let _ = kill_process(engine, Signal::KILL);
        assert!(answer.contains("stopping"), "{answer}");
        wait_until("it is forgotten", || home.fine(&["ls", "--json"]).trim() == "[]");
        assert!(!home.path().join("run/apps/web.json").exists(), "in round {round}");
    }
}

#[test]
fn an_upgrade_while_the_keeper_is_stopped_starts_no_other_app() {
    let mut troop = app();
    let worker = troop.workers().to_vec();
    let keeper = Pid::from_raw(troop.child.id().cast_signed()).unwrap();
    kill_process(keeper, Signal::STOP).unwrap();
    let upgrade = troop.command(["upgrade", "hello"]).stderr(Stdio::piped()).spawn().unwrap();
    // Longer than an engine waits for an answer of its keeper.
    std::thread::sleep(Duration::from_millis(2500));
    kill_process(keeper, Signal::CONT).unwrap();
    let (code, said) = support::end_of(upgrade, "the upgrade");
    let (_, out, _) = troop.troop(["ls", "--json"]);
    let all: Vec<Value> = serde_json::from_str(&out).unwrap();
    assert_eq!(all.len(), 1, "{said}{out}");
    assert_eq!(troop.workers(), worker);
    if code != Some(0) {
        assert!(said.contains("keeper"), "{said}");
        wait_until("it can be upgraded", || troop.troop(["upgrade", "hello"]).0 == 0);
    }
    wait_until("no other process is left", || children(troop.child.id()).len() == 2);
    assert_eq!(troop.troop(["stop"]).0, 0);
    troop.end();
}

/// What is not written down may be lost with the engine.
#[test]
fn an_answer_says_when_it_is_not_written_down_because_the_keeper_does_not_answer() {
    let troop = app();
    let scaled = |workers: &str| {
        let (code, out, err) = troop.troop(["scale", workers, "--json"]);
        assert_eq!(code, 0, "{out}{err}");
        let answer: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(err.contains("it is done, but not written down"), answer["unkept"].is_string());
        assert_eq!(answer["workers"].to_string(), workers);
        answer["unkept"].as_str().map(str::to_owned)
    };
    assert_eq!(scaled("2"), None);
    troop.signal(Signal::STOP);
    let mut why = None;
    // What it is told first it reads when it goes on. That it closes something is waited for.
    wait_until("an answer that is not written down", || {
        why = scaled("1").or_else(|| scaled("3"));
        why.is_some()
    });
    let why = why.unwrap();
    assert!(why.contains(&format!("the keeper, process {}", troop.child.id())), "{why}");
    // What changes nothing has nothing to lose.
    assert!(!troop.troop(["show", "--json"]).1.contains("unkept"));
    troop.signal(Signal::CONT);
    wait_until("the keeper answers again", || scaled("2").is_none());
    // A moment later it is told everything again.
    let keeper = format!("/proc/{}/fd", troop.child.id());
    wait_until("the state is written down again", || {
        let all = std::fs::read_dir(&keeper).unwrap().flatten();
        let mut links = all.filter_map(|fd| std::fs::read_link(fd.path()).ok());
        links.any(|to| to.display().to_string().contains("memfd:troop-state"))
    });
    let before = engine(troop.child.id()).unwrap();
    kill_process(Pid::from_raw(before.cast_signed()).unwrap(), Signal::KILL).unwrap();
    assert_eq!(shown_by_the_next(&troop, 1)["wanted"], 2);
}
