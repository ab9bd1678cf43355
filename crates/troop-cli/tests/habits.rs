//! What people do a second time: start what runs, reload what was reloaded.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::Home;
use troop_testkit::{is_running, wait_until};

const SERVER: &str = "require('http').createServer((q, r) => r.end()).listen(0, '127.0.0.1');";

fn names(home: &Home) -> Vec<String> {
    let apps: Vec<Value> = serde_json::from_str(&home.fine(&["ls", "--json"])).unwrap();
    apps.iter().map(|app| app["name"].as_str().unwrap().to_owned()).collect()
}

/// PM2 does it only with -f, too.
#[test]
fn a_script_that_runs_already_is_started_a_second_time_only_by_force_or_under_another_name() {
    let home = Home::with(&[("server.js", SERVER)]);
    home.fine(&["start", "server.js"]);
    let (code, out, err) = home.troop(&["start", "server.js"]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("server.js runs already, as server: `troop reload server`"), "{err}");
    assert_eq!(names(&home), ["server"]);
    home.fine(&["start", "server.js", "-f"]);
    home.fine(&["start", "server.js", "--name", "other"]);
    assert_eq!(names(&home), ["server", "server-2", "other"]);
    home.fine(&["stop", "all"]);
    // It is not known which of the stopped ones is meant.
    home.fine(&["start", "server.js"]);
    // Commands of one program are different apps.
    home.fine(&["start", "node server.js"]);
    home.fine(&["start", "node server.js"]);
}

#[test]
fn apps_of_a_file_that_run_already_are_left_alone_and_the_others_started() {
    let app = |name: &str| format!("[app.{name}]\nprogram = \"server.js\"\nworkers = 1\n");
    let home = Home::with(&[("server.js", SERVER), ("troop.toml", &(app("api") + &app("web")))]);
    home.fine(&["start", "web"]);
    let pid = home.show("web")["pid"].clone();
    let out = home.fine(&["start"]);
    assert!(out.contains("web: runs already") && out.contains("api: 1 worker ready"), "{out}");
    assert_eq!(home.show("web")["pid"], pid);
    assert_eq!(
        home.fine(&["start", "web", "--json"]),
        "{\"name\":\"web\",\"started\":false,\"state\":\"running\"}\n"
    );
}

/// Names are those of the whole machine, and two projects may both have `jobs`.
#[test]
fn an_app_whose_name_another_project_has_is_not_said_to_run_already() {
    let home = Home::with(&[("server.js", SERVER)]);
    let file = |name: &str| format!("[app.{name}]\nprogram = \"server.js\"\nworkers = 1\n");
    for (project, apps) in [("a", file("jobs")), ("b", file("jobs") + &file("web"))] {
        std::fs::create_dir(home.path().join(project)).unwrap();
        std::fs::write(home.path().join(project).join("server.js"), SERVER).unwrap();
        std::fs::write(home.path().join(project).join("troop.toml"), apps).unwrap();
    }
    let start = |project: &str, args: &[&str]| {
        let mut command = home.command(args);
        let output = command.current_dir(home.path().join(project)).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    assert_eq!(start("a", &["start"]).0, Some(0));
    let pid = home.show("jobs")["pid"].clone();
    for args in [&["start"][..], &["start", "jobs"]] {
        let (code, out, err) = start("b", args);
        assert_eq!(code, Some(1), "{out}{err}");
        let told = ["b/troop.toml does not run: another app", "from ", "a/troop.toml in "];
        assert!(told.iter().all(|part| err.contains(part)), "{err}");
        assert!(!out.contains("jobs: runs already"), "{out}");
    }
    // Nor is it reloaded or restarted for this file.
    for verb in ["reload", "restart"] {
        let (code, out, err) = start("b", &[verb, "troop.toml", "--only", "jobs"]);
        assert!(code == Some(1) && err.contains("does not run: another app"), "{out}{err}");
    }
    // The others of its file are started.
    assert_eq!(names(&home), ["jobs", "web"]);
    assert_eq!(home.show("jobs")["pid"], pid);
    assert_eq!(start("a", &["start"]).0, Some(0), "its own file");
    // From where the other one was started, only the file tells.
    let (code, out, _) = start("a", &["start", "-c", "../b/troop.toml", "jobs"]);
    assert!(code == Some(0) && out.contains("jobs: runs already, from "), "{out}");
}

#[test]
fn an_app_of_another_release_of_a_project_runs_already() {
    let home = Home::with(&[]);
    for release in ["1", "2"] {
        std::fs::create_dir(home.path().join(release)).unwrap();
        let at = |name: &str| home.path().join(release).join(name);
        std::fs::write(at("server.js"), SERVER).unwrap();
        std::fs::write(at("troop.toml"), "[app.web]\nprogram = \"server.js\"\nworkers = 1\n")
            .unwrap();
    }
    let current = home.path().join("current");
    for (release, said) in [("1", "web: 1 worker ready"), ("2", "web: runs already, from ")] {
        let _ = std::fs::remove_file(&current);
        std::os::unix::fs::symlink(home.path().join(release), &current).unwrap();
        let mut command = home.command(&["start"]);
        let output = command.current_dir(&current).env("PWD", &current).output().unwrap();
        let out = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && out.starts_with(said), "{out}");
    }
}

/// Such a file may take ten seconds, and all files of an app have twelve.
#[test]
fn a_primary_executes_the_file_of_its_app_once() {
    let home = Home::with(&[("server.js", SERVER)]);
    let text = "require('fs').appendFileSync(`${__dirname}/reads`, `${process.ppid}\\n`);
        module.exports = { apps: [{ name: 'web', script: 'server.js' }] };";
    std::fs::write(home.path().join("ecosystem.config.js"), text).unwrap();
    home.fine(&["start"]);
    let reads = std::fs::read_to_string(home.path().join("reads")).unwrap();
    let mut readers: Vec<&str> = reads.lines().collect();
    readers.reverse();
    // Those of the command that has started it come before.
    let primary = readers[0];
    assert_eq!(readers.iter().filter(|reader| **reader == primary).count(), 1, "{reads}");
}

/// PM2 changes an app by `restart api --watch`, and has more options for its logs.
#[test]
fn options_of_start_that_another_verb_is_given_are_answered_by_where_they_belong() {
    let home = Home::with(&[]);
    for line in [
        &["restart", "web", "--watch"][..],
        &["restart", "web", "--name", "api"],
        &["reload", "web", "-i", "4"],
        &["stop", "web", "--watch"],
        &["logs", "web", "--format"],
    ] {
        let (code, _, err) = home.troop(line);
        assert_eq!(code, 2);
        assert!(err.contains("here; it is an option of `troop start`"), "{line:?}: {err}");
    }
    for (option, told) in [("--timestamp", "have times"), ("--highlight", "grep")] {
        let (code, _, err) = home.troop(&["logs", "web", option]);
        assert!(code == 2 && err.contains(option) && err.contains(told), "{err}");
    }
    // One that no verb has is what it was.
    let (_, _, err) = home.troop(&["restart", "web", "--nonsense"]);
    assert!(err.contains("unexpected argument '--nonsense'"), "{err}");
}

#[test]
fn a_worker_that_only_runs_is_shown_as_running() {
    let home = Home::with(&[]);
    home.fine(&["start", "sleep", "-n", "web", "--", "1000"]);
    let shown = home.fine(&["show", "web"]);
    let row = shown.lines().skip_while(|line| !line.starts_with("SLOT")).nth(1).unwrap();
    assert_eq!(row.split_whitespace().nth(3), Some("running"), "{shown}");
}

#[test]
fn a_directory_that_others_can_enter_is_refused_with_what_to_do() {
    let home = Home::with(&[]);
    let open = home.path().join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, Permissions::from_mode(0o755)).unwrap();
    let output = home.command(&["ls"]).env("TROOP_RUNTIME_DIR", &open).output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && err.contains("`chmod 700`"), "{err}");
}

#[test]
fn a_second_reload_tells_again_what_waits_for_a_listener_to_be_opened() {
    let file = |policy: &str| {
        format!(
            "[app.web]\nprogram = \"server.js\"\nworkers = 1\npolicy = \"{policy}\"\nmin_ready_time = 0\n"
        )
    };
    let home = Home::with(&[("server.js", SERVER), ("troop.toml", &file("round-robin"))]);
    home.fine(&["start"]);
    let change =
        |policy: &str| std::fs::write(home.path().join("troop.toml"), file(policy)).unwrap();
    let told = || home.fine(&["reload", "web"]);
    change("steered");
    assert!(told().contains("the policy is changed, but not yet on 127.0.0.1:"));
    assert!(told().contains("the policy is changed, but not yet on 127.0.0.1:"), "again");
    // Nothing waits any more.
    home.fine(&["policy", "web", "round-robin"]);
    assert!(!told().contains("not yet"));
    change("shared");
    assert!(told().contains("not yet"));
    change("auto");
    let auto = told();
    assert!(auto.contains("nor to `steered` and `auto` if it was opened without"), "{auto}");
    change("round-robin");
    assert!(!told().contains("not yet"));
    assert!(!told().contains("not yet"));
}

/// As at a logout, which removes `XDG_RUNTIME_DIR`.
#[test]
fn an_app_whose_control_socket_is_gone_is_still_listed_and_not_started_a_second_time() {
    let home = Home::with(&[("server.js", SERVER)]);
    let state = home.path().join("state");
    let troop = |args: &[&str]| {
        let output = home.command(args).env("TROOP_STATE_DIR", &state).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        (output.status.code(), text + &String::from_utf8(output.stderr).unwrap())
    };
    let (code, out) = troop(&["start", "server.js", "-n", "web"]);
    assert_eq!(code, Some(0), "{out}");
    let pid = home.show("web")["pid"].as_i64().unwrap();
    let engine = troop_testkit::engine(u32::try_from(pid).unwrap()).unwrap();
    let primary = Pid::from_raw(engine.cast_signed()).unwrap();
    // It does not make it again before that was seen.
    kill_process(primary, Signal::STOP).unwrap();
    std::fs::remove_dir_all(home.path().join("run")).unwrap();
    let (_, listed) = troop(&["ls"]);
    assert!(listed.contains("web") && listed.contains("not answering"), "{listed}");
    for verb in ["start", "show", "stop"] {
        let (code, out) = troop(&[verb, "web"]);
        let told = format!("web runs, with the primary {pid}, but its control socket");
        assert!(code == Some(1) && out.contains(&told), "{verb}: {code:?} {out}");
    }
    kill_process(primary, Signal::CONT).unwrap();
    wait_until("its control socket", || troop(&["show", "web"]).0 == Some(0));
    assert_eq!(home.show("web")["pid"], pid);
}

#[test]
fn paths_are_shown_without_parts_that_mean_nothing() {
    let file = "{ \"apps\": [{ \"name\": \"web\", \"script\": \"././server.js\" }] }";
    let home = Home::with(&[("server.js", SERVER), ("ecosystem.json", file)]);
    home.fine(&["start", "ecosystem.json"]);
    let program = home.show("web")["program"].as_str().unwrap().to_owned();
    assert!(program.ends_with("/server.js") && !program.contains("/./"), "{program}");
}

#[test]
fn a_signal_that_replaces_other_programs_replaces_the_engine_or_says_why_not() {
    let home = Home::with(&[("server.js", SERVER)]);
    home.fine(&["start", "server.js", "-n", "app"]);
    home.fine(&["start", "server.js", "-n", "alone", "--no-keeper"]);
    let pid = |name: &str| {
        let pid = home.show(name)["pid"].as_i64().unwrap();
        Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
    };
    kill_process(pid("alone"), Signal::USR2).unwrap();
    wait_until("a word about it", || home.log("alone.log").contains("it has no keeper"));
    let engine = home.show("app")["engine"].clone();
    kill_process(pid("app"), Signal::USR2).unwrap();
    wait_until("a word about it", || home.log("app.log").contains("goes on with the app"));
    assert_ne!(home.show("app")["engine"], engine);
    for name in ["app", "alone"] {
        assert!(home.fine(&["ls", name]).contains("running"));
    }
}

/// gunicorn's `--pid`: `kill -HUP $(cat web.pid)`.
#[test]
fn the_primary_is_found_by_its_pid_file_until_it_ends() {
    let home = Home::with(&[
        ("server.js", SERVER),
        (
            "troop.toml",
            "[app.web]\nprogram = \"server.js\"\nworkers = 1\npid_file = \"sub/web.pid\"\n",
        ),
    ]);
    home.fine(&["start"]);
    let read = || std::fs::read_to_string(home.path().join("sub/web.pid")).unwrap_or_default();
    assert_eq!(read(), home.show("web")["pid"].to_string());
    home.fine(&["restart", "web"]);
    assert_eq!(read(), home.show("web")["pid"].to_string());
    home.fine(&["stop", "web"]);
    assert!(!home.path().join("sub/web.pid").exists());
    let (code, _, err) = home.troop(&["start", "web", "--set", "pid_file=/proc/none/web.pid"]);
    assert!(code == 2 && err.contains("cannot write /proc/none/web.pid"), "{code} {err}");
}

#[test]
fn a_pid_file_that_is_another_file_or_that_of_another_app_is_left_alone() {
    let file = "[app.web]\nprogram = \"server.js\"\nworkers = 1\npid_file = \"web.pid\"\n";
    let home = Home::with(&[("server.js", SERVER), ("troop.toml", file)]);
    std::os::unix::fs::symlink("/dev/null", home.path().join("link")).unwrap();
    for (path, why) in [
        ("server.js", "something else than a process number"),
        (".", "it is a directory"),
        ("link", "it is a symbolic link"),
    ] {
        let set = format!("pid_file={path}");
        let (code, out, err) = home.troop(&["start", "web", "--set", &set]);
        assert!(code == 2 && err.contains(why), "{path}: {code} {out}{err}");
    }
    assert_eq!(std::fs::read_to_string(home.path().join("server.js")).unwrap(), SERVER);
    assert!(!home.path().join("logs/web.log").exists());
    let other = home.path().join("other.toml");
    std::fs::write(&other, file.replace("web.pid", "server.js")).unwrap();
    let (code, _, err) = home.troop(&["check", "other.toml"]);
    assert!(code != 0 && err.contains("app.web: pid_file: cannot write"), "{err}");
    home.fine(&["start", "web"]);
    let (code, _, err) = home.troop(&["start", "web", "-n", "other"]);
    let pid = home.show("web")["pid"].to_string();
    assert!(code == 2 && err.contains(&format!("process {pid}, which is running")), "{code} {err}");
    let read = || std::fs::read_to_string(home.path().join("web.pid")).unwrap_or_default();
    assert_eq!(read(), pid);
    let engine = u32::try_from(home.show("web")["engine"].as_u64().unwrap()).unwrap();
    let primary = Pid::from_raw(pid.parse().unwrap()).unwrap();
    kill_process(primary, Signal::KILL).unwrap();
    wait_until("its end", || home.troop(&["ls", "web", "--quiet"]).0 != 0 && !is_running(engine));
    // As if its engine had left the file behind.
    std::fs::write(home.path().join("web.pid"), &pid).unwrap();
    home.fine(&["start", "web"]);
    assert_eq!(read(), home.show("web")["pid"].to_string());
}

#[test]
fn a_restart_goes_on_without_a_pid_file_that_cannot_be_written_until_it_can() {
    let file = "[app.web]\nprogram = \"server.js\"\nworkers = 1\npid_file = \"sub/web.pid\"\n";
    let home = Home::with(&[("server.js", SERVER), ("troop.toml", file)]);
    home.fine(&["start"]);
    let sub = home.path().join("sub");
    let in_the_way = sub.join(format!(".troop.{}.pid", home.show("web")["pid"]));
    std::fs::create_dir(&in_the_way).unwrap();
    home.fine(&["restart", "web"]);
    wait_until("the reason", || home.log("web.log").contains("cannot write the pid file "));
    assert!(!sub.join("web.pid").exists());
    std::fs::remove_dir(&in_the_way).unwrap();
    let pid = home.show("web")["pid"].to_string();
    wait_until("the file", || {
        std::fs::read_to_string(sub.join("web.pid")).unwrap_or_default() == pid
    });
    home.fine(&["stop", "web"]);
    assert!(!sub.join("web.pid").exists());
}

#[test]
fn restarts_leave_no_process_of_troop_behind() {
    let file = "[app.web]\nprogram = \"server.js\"\nworkers = 2\n";
    let home = Home::with(&[("server.js", SERVER), ("troop.toml", file)]);
    home.fine(&["start"]);
    let primary = u32::try_from(home.show("web")["pid"].as_u64().unwrap()).unwrap();
    for _ in 0..3 {
        home.fine(&["restart", "web"]);
    }
    let children = troop_testkit::children;
    // The engine and the workers are those of the keeper.
    wait_until("only these are left", || {
        let all = children(primary);
        all.len() == 3 && all.into_iter().all(|child| children(child).is_empty())
    });
}

#[test]
fn a_worker_whose_log_file_cannot_be_opened_says_why() {
    let file = "[app.web]\nprogram = \"server.js\"\nworkers = 2\noutput = { file = \"./out.log\", per_worker = true }\n";
    let server = format!("console.log('hello');\n{SERVER}");
    let home = Home::with(&[("server.js", &server), ("troop.toml", file)]);
    std::fs::create_dir(home.path().join("out-1.log")).unwrap();
    home.fine(&["start"]);
    let read = |name: &str| std::fs::read_to_string(home.path().join(name)).unwrap_or_default();
    wait_until("the other's", || read("out-0.log").starts_with("20"));
    wait_until("the reason", || home.log("web.log").contains("out-1.log\": "));
    let log = home.log("web.log");
    assert!(log.contains("it is a directory, not a regular file; its lines are lost"), "{log}");
}

/// As when a file system is mounted over it, and unmounted again.
#[test]
fn a_control_directory_that_was_replaced_and_comes_back_is_used_again() {
    let home = Home::with(&[("server.js", SERVER)]);
    home.fine(&["start", "server.js", "-n", "web"]);
    let pid = home.show("web")["pid"].clone();
    let (own, aside) = (home.path().join("run"), home.path().join("aside"));
    // Records are below it.
    std::fs::rename(&own, &aside).unwrap();
    wait_until("another socket", || own.join("web.sock").exists());
    assert_eq!(home.show("web")["pid"], pid);
    std::fs::remove_dir_all(&own).unwrap();
    std::fs::rename(&aside, &own).unwrap();
    wait_until("an answer", || home.troop(&["show", "web", "--quiet"]).0 == 0);
    assert_eq!(home.show("web")["pid"], pid);
}

#[test]
fn what_runs_is_told_as_it_is_when_a_verb_for_several_apps_has_done_its_work() {
    let home = Home::with(&[("server.js", SERVER)]);
    let all = |verb: &str, apps: &[&str], code: i32, told: &[&str]| {
        let (ended, out, err) = home.troop(&[&[verb], apps].concat());
        // A reload tells of its steps, too.
        let errors: Vec<_> = err.lines().filter(|line| line.starts_with("troop: ")).collect();
        assert_eq!((ended, &errors[..]), (code, told), "{verb}: {out}");
    };
    let none = |word: &str, running: &str| format!("troop: there is no app {word:?}; {running}");
    for name in ["a", "b"] {
        home.fine(&["start", "server.js", "-f", "-n", name]);
    }
    for verb in ["reset", "flush", "reload", "wait"] {
        let told = ["no1", "no2"].map(|word| none(word, "running: a, b"));
        all(verb, &["no1", "a", "no2"], 3, &told.each_ref().map(String::as_str));
    }
    all("stop", &["a", "nosuch"], 3, &[&none("nosuch", "running: b")]);
    all("start", &["a"], 0, &[]);
    all("restart", &["b", "nosuch", "a"], 3, &[&none("nosuch", "running: a, b")]);
    all("delete", &["a", "nosuch"], 3, &[&none("nosuch", "running: b")]);
    let told = ["no1", "no2"].map(|word| none(word, "no app is running"));
    all("delete", &["no1", "b", "no2"], 3, &told.each_ref().map(String::as_str));
    all("stop", &["no1", "no2"], 3, &told.each_ref().map(String::as_str));
}
