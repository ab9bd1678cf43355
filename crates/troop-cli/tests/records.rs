//! Apps that do not run stay known: stopped ones, those whose primary died, and saved ones.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead as _, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::Home;
use troop_testkit::wait_until;

const SERVER: &str = "
require('http').createServer((q, r) => r.end(process.argv.slice(2) + process.env.GREETING + process.cwd()))
  .listen(0, '127.0.0.1');
";

fn list(home: &Home) -> Vec<Value> {
    serde_json::from_str(&home.fine(&["ls", "--json"])).unwrap()
}

/// The names of all apps with their states.
fn states(home: &Home) -> Vec<String> {
    list(home)
        .iter()
        .map(|app| format!("{} {}", app["name"].as_str().unwrap(), app["phase"].as_str().unwrap()))
        .collect()
}

fn text(home: &Home, name: &str) -> String {
    let address = home.show(name)["listeners"][0]["address"].as_str().unwrap().to_owned();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.rsplit("\r\n").next().unwrap().to_owned()
}

fn kill(home: &Home, name: &str) {
    let shown = home.show(name);
    let pids = ["pid", "engine"].map(|field| shown[field].as_u64().unwrap());
    let pid = Pid::from_raw(i32::try_from(pids[0]).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    let is_there = |pid: &u64| Path::new(&format!("/proc/{pid}")).exists();
    // The engine ends its workers, and then itself.
    wait_until("the end of the primary", || !pids.iter().any(is_there));
}

#[test]
fn a_stopped_app_stays_listed_and_is_started_again_as_it_was_until_it_is_deleted() {
    let home = Home::with(&[("server.js", SERVER)]);
    std::fs::create_dir(home.path().join("elsewhere")).unwrap();
    let mut command = home.command(&["start", "server.js", "-n", "web", "-i", "2", "--", "typed"]);
    assert!(command.env("GREETING", "hello").status().unwrap().success());
    let said = text(&home, "web");
    assert!(said.starts_with("typedhello/"), "{said}");
    home.fine(&["stop", "web"]);
    assert_eq!(states(&home), ["web stopped"]);
    let listed = home.fine(&["ls"]);
    assert!(
        listed.contains("ID  NAME") && listed.contains("stopped") && listed.contains("0/2"),
        "{listed}"
    );
    let (code, out, err) = home.troop(&["show", "web"]);
    assert!(code == 3 && err.contains("`troop start web` starts it again"), "{err}");
    assert!(out.contains("started by: troop start server.js -n web -i 2 -- typed (in /"), "{out}");
    assert_eq!(home.troop(&["reload", "wbe"]).0, 3);
    // From another directory, and without the variable.
    let again = |verb: &str| {
        let mut command = home.command(&[verb, "web"]);
        let output = command.current_dir(home.path().join("elsewhere")).output().unwrap();
        let out = String::from_utf8(output.stdout.clone()).unwrap();
        assert!(out.starts_with("web: 2 workers ready on 127.0.0.1:"), "{verb}: {out} {output:?}");
        assert_eq!(text(&home, "web"), said, "{verb}");
    };
    for verb in ["start", "restart", "reload"] {
        again(verb);
        home.fine(&["stop", "web"]);
    }
    assert!(home.fine(&["stop", "web"]).contains("web: stopped already"));
    again("start");
    let pid = home.show("web")["pid"].clone();
    assert!(home.fine(&["start", "web"]).starts_with("web: runs already; `troop reload web`"));
    assert_eq!(home.show("web")["pid"], pid);
    home.fine(&["delete", "web"]);
    assert!(states(&home).is_empty());
    assert_eq!(home.troop(&["start", "web"]).0, 1, "there is no program of this name");
    home.fine(&["start", "server.js", "-n", "web"]);
    home.fine(&["stop", "web"]);
    assert!(home.fine(&["delete", "web"]).contains("web: deleted"));
    assert!(states(&home).is_empty());
}

#[test]
fn an_app_is_listed_all_through_a_restart_and_a_stop() {
    let home = Home::with(&[("server.js", SERVER)]);
    home.fine(&["start", "server.js", "-n", "web"]);
    for verb in ["restart", "stop", "start", "restart"] {
        std::thread::scope(|scope| {
            let done = scope.spawn(|| home.fine(&[verb, "web"]));
            while !done.is_finished() {
                let apps = list(&home);
                assert!(apps.len() == 1 && apps[0]["name"] == "web", "{verb}: {apps:?}");
            }
        });
    }
}

#[test]
fn an_app_of_a_file_that_was_stopped_is_started_alone() {
    let app = "program = \"server.js\"\nworkers = 1\n";
    let home = Home::with(&[
        ("server.js", SERVER),
        ("apps.toml", &format!("[app.one]\n{app}[app.two]\n{app}")),
    ]);
    home.fine(&["start", "-c", "apps.toml"]);
    home.fine(&["stop", "all"]);
    assert_eq!(states(&home), ["one stopped", "two stopped"]);
    home.fine(&["start", "two"]);
    assert_eq!(states(&home), ["one stopped", "two running"]);
    home.fine(&["start", "/^o/"]);
    assert_eq!(states(&home), ["one running", "two running"]);
    let file = home.path().join("apps.toml").display().to_string();
    assert!(home.fine(&["stop", &file]).contains("two: stopped"));
    assert_eq!(states(&home), ["one stopped", "two stopped"]);
}

#[test]
fn several_apps_are_named_by_name_number_and_pattern() {
    let home = Home::with(&[("server.js", SERVER)]);
    for name in ["web", "jobs", "web-2"] {
        home.fine(&["start", "server.js", "-n", name]);
    }
    let ids: Vec<_> =
        list(&home).iter().map(|app| (app["id"].as_u64().unwrap(), app["name"].clone())).collect();
    assert_eq!(ids, [(0, "web".into()), (1, "jobs".into()), (2, "web-2".into())]);
    let (code, out, err) = home.troop(&["stop", "1", "none", "/^web-/"]);
    assert!(code == 3 && err.contains("no app \"none\""), "{err}");
    assert!(
        out.contains("jobs: stopped") && out.contains("web-2: stopped") && !out.contains("web: "),
        "{out}"
    );
    // The number of a deleted app is free.
    home.fine(&["delete", "jobs"]);
    home.fine(&["start", "server.js", "-n", "other"]);
    assert_eq!(list(&home)[1]["name"], "other");
    home.fine(&["restart", "web-2", "0"]);
    assert_eq!(states(&home), ["web running", "other running", "web-2 running"]);
    assert_eq!(home.show("2")["name"], "web-2");
    assert_eq!(home.troop(&["stop", "/(/"]).0, 2);
}

#[test]
fn an_app_whose_primary_died_is_listed_as_crashed_and_can_be_started_again() {
    let home = Home::with(&[("server.js", SERVER)]);
    home.fine(&["start", "server.js", "-n", "web"]);
    kill(&home, "web");
    let listed = home.fine(&["ls"]);
    assert!(listed.contains("crashed, last seen ") && listed.contains(" s ago"), "{listed}");
    let (_, shown, _) = home.troop(&["show", "web"]);
    assert!(shown.contains("crashed, last seen "), "{shown}");
    assert_eq!(states(&home), ["web crashed"]);
    let left: Vec<_> = ["web.sock", "web.lock"]
        .into_iter()
        .filter(|name| home.path().join("run").join(name).exists())
        .collect();
    assert!(left.is_empty(), "{left:?}");
    home.fine(&["start", "web"]);
    assert_eq!(states(&home), ["web running"]);
    kill(&home, "web");
    home.fine(&["delete", "web"]);
    assert!(states(&home).is_empty());
}

/// Its keeper was killed, or it is told to stop, and a client keeps it from ending.
#[test]
fn an_app_that_is_stopping_is_started_when_it_has_ended() {
    let home = Home::with(&[(
        "server.js",
        "const http = require('http');
         http.createServer((q, r) => { r.write('begun'); process.once('SIGUSR2', () => r.end('over')); }).listen(0);",
    )]);
    home.fine(&["start", "server.js", "-n", "web"]);
    for is_killed in [true, false] {
        let before = home.show("web");
        let address = before["listeners"][0]["address"].as_str().unwrap();
        let port: u16 = address.rsplit_once(':').unwrap().1.parse().unwrap();
        let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        client.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        client.read_exact(&mut [0; 8]).unwrap();
        let stop = home.command(&["stop", "web"]);
        let stop = (!is_killed).then_some(stop).map(|mut stop| stop.spawn().unwrap());
        if is_killed {
            let pid = i32::try_from(before["pid"].as_i64().unwrap()).unwrap();
            kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
        }
        wait_until("it stops", || {
            let (_, out, _) = home.troop(&["ls"]);
            out.contains("stopping")
        });
        let mut start = home.command(&["start", "web"]);
        let mut start = start.stderr(std::process::Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        let mut lines = std::io::BufReader::new(start.stderr.take().unwrap());
        lines.read_line(&mut said).unwrap();
        assert!(said.contains("web is stopping, and is started when it has ended"), "{said}");
        let worker = i32::try_from(before["workers"][0]["pid"].as_i64().unwrap()).unwrap();
        kill_process(Pid::from_raw(worker).unwrap(), Signal::USR2).unwrap();
        assert!(start.wait().unwrap().success());
        stop.into_iter().for_each(|mut stop| assert!(stop.wait().unwrap().success()));
        let after = home.show("web");
        assert_ne!(after["pid"], before["pid"]);
        assert_eq!(states(&home), ["web running"]);
    }
    home.fine(&["delete", "web"]);
}

#[test]
fn an_app_in_the_foreground_is_listed_only_after_a_crash() {
    let home = Home::with(&[("server.js", SERVER)]);
    let run = |name: &str| {
        let mut child = home.command(&["run", "-n", name, "server.js"]).spawn().unwrap();
        wait_until("the app runs", || home.troop(&["show", name]).0 == 0);
        move |signal| {
            let engine = troop_testkit::engine(child.id()).unwrap();
            kill_process(Pid::from_child(&child), signal).unwrap();
            child.wait().unwrap();
            wait_until("the end of its engine", || !troop_testkit::is_running(engine));
        }
    };
    let mut end = run("web");
    assert_eq!(list(&home)[0]["id"], 0);
    end(Signal::TERM);
    assert!(states(&home).is_empty());
    let mut end = run("web");
    end(Signal::KILL);
    assert_eq!(states(&home), ["web crashed"]);
    let (code, _, err) = home.troop(&["start", "web"]);
    assert!(code == 1 && err.contains("ran in the foreground"), "{err}");
    home.fine(&["delete", "web"]);
}

#[test]
fn a_start_that_fails_changes_nothing_of_what_is_known() {
    let home = Home::with(&[("server.js", SERVER)]);
    home.fine(&["start", "server.js", "-n", "web"]);
    home.fine(&["stop", "web"]);
    std::fs::write(home.path().join("server.js"), "process.exit(3)").unwrap();
    let (code, _, err) = home.troop(&["start", "web"]);
    assert!(code == 1 && err.contains("exit code 3"), "{err}");
    assert_eq!(states(&home), ["web failed"]);
    std::fs::write(home.path().join("server.js"), SERVER).unwrap();
    home.fine(&["start", "web"]);
    home.fine(&["delete", "web"]);
}

#[test]
fn saved_apps_are_started_again_whatever_was_stopped_since() {
    let home = Home::with(&[("server.js", SERVER)]);
    let (code, _, err) = home.troop(&["save"]);
    assert!(code == 1 && err.contains("--force"), "{err}");
    assert_eq!(home.troop(&["resurrect"]).0, 1);
    for name in ["web", "jobs", "other"] {
        home.fine(&["start", "server.js", "-n", name]);
    }
    home.fine(&["stop", "other"]);
    assert!(home.fine(&["save"]).contains("saved 2 apps: web, jobs"));
    home.fine(&["delete", "web", "other"]);
    let out = home.fine(&["resurrect"]);
    assert!(out.contains("jobs: runs already") && out.contains("web: 1 worker ready"), "{out}");
    assert_eq!(states(&home), ["web running", "jobs running"]);
}

#[test]
fn without_a_file_startup_writes_a_unit_for_what_was_saved() {
    let home = Home::with(&[]);
    let unit = home.fine(&["startup", "systemd", "--print"]);
    for part in ["resurrect\n", "ExecStop=-", "Environment=TROOP_RUNTIME_DIR="] {
        assert!(unit.contains(part), "{part}: {unit}");
    }
    let out = home.fine(&["startup", "--directory", "units"]);
    assert!(out.contains("units/troop.service") && out.contains("enable troop"), "{out}");
    assert!(home.path().join("units/troop.service").exists());
    assert_eq!(home.troop(&["startup", "web"]).0, 2);
}

/// They have secrets in them, and are executed again.
#[test]
fn records_are_private_and_those_that_are_not_are_not_used() {
    let home = Home::with(&[("server.js", SERVER)]);
    home.fine(&["start", "server.js", "-n", "web", "--env", "SECRET=x"]);
    home.fine(&["stop", "web"]);
    let directory = home.path().join("run/apps");
    let mode = |path: &Path| path.metadata().unwrap().mode() & 0o777;
    assert_eq!(mode(&directory), 0o700);
    let file = directory.join("web.json");
    assert_eq!(mode(&file), 0o600);
    let set = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap()
    };
    let told = || home.troop(&["ls"]).2;
    assert_eq!(told(), "");
    set(&file, 0o620);
    assert!(states(&home).is_empty());
    let said = told();
    assert!(
        said.starts_with("troop: records that are not used: web: ") && said.lines().count() == 1
    );
    let (path, mode) = (file.canonicalize().unwrap(), "mode 620; what is in it would be executed");
    assert!(said.contains(&*path.to_string_lossy()) && said.contains(mode), "{said}");
    set(&file, 0o600);
    // The record of another name is none of this one.
    std::fs::copy(&file, directory.join("other.json")).unwrap();
    assert_eq!(states(&home), ["web stopped"]);
    assert!(told().contains("other: its record is one of web"), "{}", told());
    std::fs::write(directory.join("other.json"), "{").unwrap();
    assert!(told().contains("other.json is damaged"), "{}", told());
    // Nor is a link followed, wherever it leads.
    std::fs::rename(&file, home.path().join("web.json")).unwrap();
    std::os::unix::fs::symlink(home.path().join("web.json"), &file).unwrap();
    assert!(states(&home).is_empty());
    set(&directory, 0o750);
    let (code, out, err) = home.troop(&["ls", "--json"]);
    assert!(code == 0 && out.trim() == "[]" && err.contains("mode 700"), "{out}{err}");
    // An app runs without a record, and says so in its logs.
    home.fine(&["start", "server.js", "-n", "web"]);
    assert!(home.log("web.log").contains("not listed after its end"), "{}", home.log("web.log"));
    home.fine(&["stop", "web"]);
}

#[test]
fn show_has_the_lines_of_a_failed_app_as_lines() {
    let home = Home::with(&[("server.js", SERVER)]);
    home.fine(&["start", "server.js", "-n", "web", "--set", "restart.delay=10ms"]);
    home.fine(&["stop", "web"]);
    let broken = "console.error('one\\ntwo\\x1b[2J'); process.exit(1)";
    std::fs::write(home.path().join("server.js"), broken).unwrap();
    assert_eq!(home.troop(&["start", "web"]).0, 1);
    let (code, shown, err) = home.troop(&["show", "web"]);
    assert_eq!(code, 3, "{err}");
    assert!(shown.contains("\n    | one\n    | two\\x1b[2J\n"), "{shown}");
}
