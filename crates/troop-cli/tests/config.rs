//! Apps that are described in a file.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use support::{Running, node, start};
use tempfile::TempDir;
use troop_testkit::talk;

fn written(text: &str) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::copy(node("hello.js"), directory.path().join("hello.js")).unwrap();
    std::fs::write(directory.path().join("troop.toml"), text).unwrap();
    directory
}

fn command(directory: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_troop"));
    command.args(args).current_dir(directory);
    command
}

fn answer(directory: &Path, args: &[&str]) -> (i32, String, String) {
    let output = command(directory, args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn get(port: u16) -> String {
    talk(([127, 0, 0, 1], port), "GET / HTTP/1.0\r\n\r\n").unwrap().rsplit("\r\n").next().unwrap().to_owned()
}

fn show(troop: &Running) -> Value {
    serde_json::from_str::<Vec<Value>>(&troop.troop(["show", "--json"]).1).unwrap().remove(0)
}

#[test]
fn the_only_app_of_the_file_that_is_here_runs_and_what_is_typed_goes_before_it() {
    let directory = written(
        "[app.web]\nprogram = \"hello.js\"\nworkers = 3\nlog = \"json\"\nenv = { GREETING = \"hi\" }\nlisteners = { \"0\" = \"sticky\" }\n",
    );
    let mut troop = start(command(directory.path(), &["run"]));
    let port = troop.listening(3);
    assert!(get(port).contains(" hi "));
    let shown = show(&troop);
    assert_eq!((&shown["name"], &shown["listeners"][0]["scheduling"]), (&"web".into(), &"sticky".into()));
    drop(troop);
    let mut troop = start(command(
        directory.path(),
        &["run", "-w", "1", "--env", "GREETING=ho", "--policy", "0=p2c", "--name", "other", "web"],
    ));
    assert!(get(troop.listening(1)).contains(" ho "));
    let shown = show(&troop);
    assert_eq!((&shown["name"], &shown["wanted"]), (&"other".into(), &1.into()));
    assert_eq!(shown["listeners"][0]["scheduling"], "p2c");
}

#[test]
fn from_elsewhere_the_file_is_named_and_paths_are_seen_from_where_it_is() {
    let directory = written("[app.web]\nprogram = \"hello.js\"\nworkers = 1\n[app.other]\nprogram = \"./nothing\"\n");
    let file = directory.path().join("troop.toml").display().to_string();
    let mut troop = start(command(Path::new("/"), &["run", "--log", "json", "-c", &file, "web"]));
    get(troop.listening(1));
}

#[test]
fn what_is_wrong_is_said_before_anything_starts() {
    let directory = written("[app.web]\nprogram = \"hello.js\"\npolcy = \"p2c\"\n");
    let path = directory.path();
    for args in [&["check"][..], &["run"]] {
        let (code, _, err) = answer(path, args);
        assert!(code != 0 && err.contains("line 3") && err.contains("polcy"), "{code} {err}");
    }
    std::fs::write(
        path.join("troop.toml"),
        "[app.web]\nprogram = \"helo.js\"\n[app.jobs]\nprogram = \"node\"\ncwd = \"nowhere\"\n",
    )
    .unwrap();
    let (code, _, err) = answer(path, &["check"]);
    assert_eq!(code, 2);
    for part in ["app.web: there is no program", "helo.js", "app.jobs: there is no directory", "nowhere"] {
        assert!(err.contains(part), "{part} in {err}");
    }
    let (code, _, err) = answer(path, &["run"]);
    assert!(code == 2 && err.contains("which app?") && err.contains("jobs, web"), "{err}");
    let (code, _, err) = answer(path, &["run", "-c", "troop.toml", "wbe"]);
    assert!(code == 2 && err.contains("has no app \"wbe\", but jobs, web"), "{err}");
    std::fs::write(path.join("troop.toml"), "[app.web]\nprogram = \"hello.js\"\nbind = [\"0\"]\npolicy = \"p2c\"\n").unwrap();
    for args in [&["check"][..], &["run"]] {
        let (code, _, err) = answer(path, args);
        assert!(code != 0 && err.contains("app.web") && err.contains("there is no policy"), "{code} {err}");
    }
    std::fs::write(path.join("troop.toml"), "[app.web]\nprogram = \"hello.js\"\n").unwrap();
    assert_eq!(answer(path, &["check"]), (0, "troop.toml: web is fine\n".into(), String::new()));
    std::fs::remove_file(path.join("troop.toml")).unwrap();
    let (code, _, err) = answer(path, &["run"]);
    assert!(code == 2 && err.contains("run what?"), "{err}");
}

#[test]
fn a_reload_uses_what_has_changed_in_the_file() {
    let first = "[app.web]\nprogram = \"hello.js\"\nworkers = 2\nlog = \"json\"\nenv = { GREETING = \"hi\", OLD = \"1\" }\n";
    let directory = written(first);
    let file = directory.path().join("troop.toml");
    let mut troop = start(command(directory.path(), &["run"]));
    let port = troop.listening(2);
    assert!(get(port).contains(" hi "));
    std::fs::write(
        &file,
        "[app.web]\nprogram = \"hello.js\"\nworkers = 3\npolicy = \"p2c\"\nenv = { GREETING = \"ho\" }\ngrace = 5\n",
    )
    .unwrap();
    let (code, _, err) = troop.troop(["reload"]);
    assert_eq!(code, 0, "{err}");
    let expected =
        "changed: workers 2 -> 3; env GREETING, OLD; policy p2c; grace only at the next start; log only at the next start";
    assert!(err.contains(expected), "{err}");
    let answers: BTreeSet<String> = (0..12).map(|_| get(port)).collect();
    assert!(answers.len() > 1 && answers.iter().all(|text| text.contains(" ho ")), "{answers:?}");
    assert_eq!((&show(&troop)["wanted"], &show(&troop)["listeners"][0]["scheduling"]), (&3.into(), &"p2c".into()));

    // A file that makes no sense, and one whose program does not start, change nothing.
    std::fs::write(&file, "[app.web]\nprogram = 5\n").unwrap();
    let (code, _, err) = troop.troop(["reload"]);
    assert!(code == 2 && err.contains("line 2"), "{err}");
    std::fs::write(directory.path().join("bad.js"), "throw new Error('a bad version')").unwrap();
    std::fs::write(&file, "[app.web]\nprogram = \"bad.js\"\nworkers = 3\n").unwrap();
    let (code, _, err) = troop.troop(["reload"]);
    assert!(code == 1 && err.contains("a bad version"), "{err}");
    // One that cannot even be executed, and would have more workers.
    std::fs::write(directory.path().join("hello"), "").unwrap();
    std::fs::write(&file, "[app.web]\nprogram = \"./hello\"\nworkers = 5\n").unwrap();
    let (code, _, err) = troop.troop(["reload"]);
    assert!(code == 1 && err.contains("Permission denied"), "{err}");
    assert_eq!(show(&troop)["wanted"], 3);
    assert!(get(port).contains(" ho "));
    // Who is started again is like those that serve.
    assert_eq!(troop.troop(["signal", "KILL"]).0, 0);
    troop.event("restarting");
    troop.listening(3);
    assert!(get(port).contains(" ho "));
}

#[test]
fn of_the_program_before_nothing_is_left_after_a_reload() {
    let directory = written("[app.web]\nprogram = \"hello.js\"\nargs = [\"x\"]\nworkers = 1\nlog = \"json\"\n");
    let mut troop = start(command(directory.path(), &["run"]));
    troop.listening(1);
    let script = directory.path().join("shown");
    std::fs::write(&script, "#!/bin/sh\necho \"given: $*.\" >&2\nsleep 1\nexit 1\n").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::write(directory.path().join("troop.toml"), "[app.web]\nprogram = \"./shown\"\nargs = [\"y\"]\nworkers = 2\n")
        .unwrap();
    // This one never listens, so it is no successor of a server; but then a worker is started again.
    let mut reload = troop.command(["reload"]).spawn().unwrap();
    while !troop.event_line().unwrap().contains("given: y.") {}
    reload.kill().unwrap();
    reload.wait().unwrap();
    // Nobody waits for the reload any more, and it fails all the same, and is taken back.
    troop.event("reload-failed");
    troop_testkit::wait_until("the plan of before", || {
        troop.troop(["signal", "KILL"]).0 == 0 && {
            troop.event("fork");
            troop.event("listening");
            true
        }
    });
    assert_eq!(show(&troop)["wanted"], 1);
}

#[test]
fn check_says_what_does_not_work_for_another_user() {
    let about = |more: &str| {
        let directory = written(&format!("[app.web]\nprogram = \"hello.js\"\n{more}"));
        let (code, _, err) = answer(directory.path(), &["check"]);
        assert_eq!(code, 0, "{err}");
        err
    };
    let said = about("user = \"nobody\"\n");
    assert!(said.contains("sudo, ping, sendmail") && said.contains("no_new_privileges = false"), "{said}");
    for quiet in ["", "user = \"root\"\n", "user = \"nobody\"\nno_new_privileges = false\n"] {
        assert_eq!(about(quiet), "", "{quiet}");
    }
}
