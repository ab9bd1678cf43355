//! Apps that are described in a file.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::os::unix::fs::{PermissionsExt as _, chown};
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

fn open(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
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
    talk(([127, 0, 0, 1], port), "GET / HTTP/1.0\r\n\r\n")
        .unwrap()
        .rsplit("\r\n")
        .next()
        .unwrap()
        .to_owned()
}

fn show(troop: &Running) -> Value {
    serde_json::from_str::<Vec<Value>>(&troop.troop(["show", "--json"]).1).unwrap().remove(0)
}

#[test]
fn the_only_app_of_the_default_file_runs_and_the_command_line_overrides_it() {
    let directory = written(
        "[app.web]\nprogram = \"hello.js\"\nworkers = 3\nlog = \"json\"\nenv = { GREETING = \"hi\" }\nlisteners = { \"0\" = \"sticky\" }\n",
    );
    let mut troop = start(command(directory.path(), &["run"]));
    let port = troop.listening(3);
    assert!(get(port).contains(" hi "));
    let shown = show(&troop);
    assert_eq!(
        (&shown["name"], &shown["listeners"][0]["scheduling"]),
        (&"web".into(), &"sticky".into())
    );
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
fn paths_of_a_named_file_are_relative_to_its_directory() {
    let directory = written(
        "[app.web]\nprogram = \"hello.js\"\nworkers = 1\n[app.other]\nprogram = \"./nothing\"\n",
    );
    let file = directory.path().join("troop.toml").display().to_string();
    let mut troop = start(command(Path::new("/"), &["run", "--log", "json", "-c", &file, "web"]));
    get(troop.listening(1));
}

#[test]
fn invalid_options_are_reported_before_anything_starts() {
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
    for part in
        ["app.web: there is no program", "helo.js", "app.jobs: there is no directory", "nowhere"]
    {
        assert!(err.contains(part), "{part} in {err}");
    }
    let (code, _, err) = answer(path, &["run"]);
    for part in ["app.web: there is no program", "app.jobs: there is no directory"] {
        assert!(code == 2 && err.contains(part), "{part} in {err}");
    }
    let (code, _, err) = answer(path, &["run", "-c", "troop.toml", "wbe"]);
    assert!(code == 2 && err.contains("has no app \"wbe\", but jobs, web"), "{err}");
    std::fs::write(
        path.join("troop.toml"),
        "[app.web]\nprogram = \"hello.js\"\nbind = [\"0\"]\npolicy = \"p2c\"\n",
    )
    .unwrap();
    for args in [&["check"][..], &["run"]] {
        let (code, _, err) = answer(path, args);
        assert!(
            code != 0 && err.contains("app.web") && err.contains("there is no policy"),
            "{code} {err}"
        );
    }
    std::fs::write(path.join("troop.toml"), "[app.web]\nprogram = \"hello.js\"\n").unwrap();
    assert_eq!(answer(path, &["check"]), (0, "troop.toml: web is fine\n".into(), String::new()));
    std::fs::remove_file(path.join("troop.toml")).unwrap();
    let (code, _, err) = answer(path, &["run"]);
    assert!(code == 2 && err.contains("nothing to run"), "{err}");
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
    let expected = "changed: workers 2 -> 3; env GREETING, OLD; policy p2c; grace only at the next start; log only at the next start";
    assert!(err.contains(expected), "{err}");
    let answers: BTreeSet<String> = (0..12).map(|_| get(port)).collect();
    assert!(answers.len() > 1 && answers.iter().all(|text| text.contains(" ho ")), "{answers:?}");
    assert_eq!(
        (&show(&troop)["wanted"], &show(&troop)["listeners"][0]["scheduling"]),
        (&3.into(), &"p2c".into())
    );

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
fn a_reload_leaves_no_process_of_the_previous_program() {
    let directory =
        written("[app.web]\nprogram = \"hello.js\"\nargs = [\"x\"]\nworkers = 1\nlog = \"json\"\n");
    let mut troop = start(command(directory.path(), &["run"]));
    troop.listening(1);
    let script = directory.path().join("shown");
    std::fs::write(&script, "#!/bin/sh\necho \"given: $*.\" >&2\nsleep 1\nexit 1\n").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::write(
        directory.path().join("troop.toml"),
        "[app.web]\nprogram = \"./shown\"\nargs = [\"y\"]\nworkers = 2\n",
    )
    .unwrap();
    // This one never listens, so it is no successor of a server; but then a worker is started
    // again.
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
        open(directory.path(), 0o755);
        let (code, _, err) = answer(directory.path(), &["check"]);
        assert_eq!(code, 0, "{err}");
        err
    };
    let said = about("user = \"nobody\"\n");
    assert!(
        said.contains("sudo, ping, sendmail") && said.contains("no_new_privileges = false"),
        "{said}"
    );
    for quiet in ["", "user = \"root\"\n", "user = \"nobody\"\nno_new_privileges = false\n"] {
        assert_eq!(about(quiet), "", "{quiet}");
    }
}

/// What `troop check` says of an app with these lines: its code and its standard error.
fn checked(directory: &Path, more: &str) -> (i32, String) {
    std::fs::write(
        directory.join("troop.toml"),
        format!("[app.web]\nprogram = \"app/hello.js\"\n{more}"),
    )
    .unwrap();
    let (code, _, err) = answer(directory, &["check"]);
    (code, err)
}

/// A directory that everybody may enter, with a directory `app` and a program in it.
fn with_app() -> TempDir {
    let directory = written("");
    open(directory.path(), 0o755);
    std::fs::create_dir(directory.path().join("app")).unwrap();
    std::fs::rename(directory.path().join("hello.js"), directory.path().join("app/hello.js"))
        .unwrap();
    directory
}

#[test]
fn check_says_that_the_user_cannot_reach_or_execute_what_the_app_names() {
    if !rustix::process::geteuid().is_root() {
        eprintln!(
            "skipped: check_says_that_the_user_cannot_reach_or_execute_what_the_app_names needs root"
        );
        return;
    }
    let directory = with_app();
    let (path, app) = (directory.path(), directory.path().join("app"));
    let of = |more: &str| {
        checked(path, &format!("user = \"nobody\"\nno_new_privileges = false\n{more}"))
    };
    assert_eq!(of(""), (0, String::new()));
    // A directory on the way.
    open(&app, 0o700);
    let (code, said) = of("");
    let closed = format!("{} is owned by user 0, group 0, mode 700", app.display());
    assert!(
        code == 2
            && said.contains("user nobody cannot read")
            && said.contains("app/hello.js")
            && said.contains(&closed),
        "{said}"
    );
    // By one of its groups it may.
    let nogroup = uzers::get_user_by_name("nobody").unwrap().primary_group_id();
    chown(&app, None, Some(nogroup)).unwrap();
    open(&app, 0o750);
    assert_eq!(of(""), (0, String::new()));
    // Where it runs, and a program that is no script.
    let private = path.join("private");
    std::fs::create_dir(&private).unwrap();
    std::fs::copy("/bin/true", private.join("program")).unwrap();
    open(&private, 0o700);
    let (code, said) = of("cwd = \"private\"\nargs = []\n");
    assert!(
        code == 2
            && said.contains("user nobody cannot enter")
            && said.contains("private, where workers run"),
        "{said}"
    );
    open(&private, 0o755);
    open(&private.join("program"), 0o744);
    std::fs::write(
        path.join("troop.toml"),
        "[app.web]\nprogram = \"private/program\"\nuser = \"nobody\"\n",
    )
    .unwrap();
    let (code, _, said) = answer(path, &["check"]);
    assert!(
        code == 2 && said.contains("user nobody cannot execute") && said.contains("mode 744"),
        "{said}"
    );
}

#[test]
fn check_says_who_else_can_change_the_program() {
    let directory = with_app();
    let (path, program) = (directory.path(), directory.path().join("app/hello.js"));
    open(&program, 0o666);
    let (code, said) = checked(path, "");
    assert!(
        code == 0
            && said.contains("app/hello.js can be changed by others")
            && said.contains("mode 666"),
        "{said}"
    );
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: the rest of check_says_who_else_can_change_the_program needs root");
        return;
    }
    open(&program, 0o644);
    chown(&program, Some(64_017), None).unwrap();
    let (code, said) = checked(path, "");
    assert!(code == 0 && said.contains("owned by user 64017"), "{said}");
    // The workers' own user may.
    assert_eq!(
        checked(path, "user = \"64017\"\ngroup = \"64017\"\nno_new_privileges = false\n"),
        (0, String::new())
    );
}

#[test]
fn check_says_that_a_variable_is_longer_than_a_program_can_get() {
    let directory = with_app();
    let (code, err) =
        checked(directory.path(), &format!("env = {{ A = {:?} }}", "x".repeat(200_000)));
    assert!(code != 0 && err.contains("the variable A has 200002 bytes"), "{code} {err:.200}");
    let (code, err) =
        checked(directory.path(), &format!("env = {{ A = {:?} }}", "x".repeat(100_000)));
    assert_eq!(code, 0, "{err:.200}");
}

#[test]
fn check_says_that_a_health_command_is_missing() {
    let directory = with_app();
    let path = directory.path();
    std::fs::write(path.join("check.sh"), "").unwrap();
    for (command, reason) in [
        ("./nothing.sh --quick", "there is no program"),
        ("no-such-program-anywhere", "there is no program no-such-program-anywhere on the PATH"),
        ("./check.sh", "check.sh is not executable"),
        ("  ", "there is no command in it"),
    ] {
        let (code, said) = checked(path, &format!("[app.web.health]\ncommand = \"{command}\"\n"));
        assert!(
            code == 2 && said.contains("health.command: ") && said.contains(reason),
            "{command}: {said}"
        );
    }
    for command in
        ["test -e x", "sh ./nothing.sh", "[ -e x ]", "$CHECK", "A=b nothing", "! false", "(exit 3)"]
    {
        assert_eq!(
            checked(path, &format!("[app.web.health]\ncommand = \"{command}\"\n")),
            (0, String::new()),
            "{command}"
        );
    }
}

#[test]
fn check_says_what_times_do_not_go_together_and_what_a_sandbox_leaves_out() {
    let directory = with_app();
    let path = directory.path();
    let (code, said) = checked(path, "[app.web.restart]\nmin_uptime = \"5m\"\n");
    assert!(
        code == 0
            && said.contains("restart.min_uptime (300s) is longer than restart.window (120s)"),
        "{said}"
    );
    assert_eq!(
        checked(path, "[app.web.restart]\nmin_uptime = \"5m\"\nwindow = \"10m\"\n"),
        (0, String::new())
    );
    let sandbox = |read: &str| {
        checked(path, &format!("[app.web.sandbox]\nread = [{read}]\nbest_effort = true\n"))
    };
    let (code, said) = sandbox("\"app\"");
    assert!(
        code == 2 && said.contains("sandbox.read: workers cannot execute") && said.contains("node"),
        "{said}"
    );
    let (code, said) = sandbox("\"/\"");
    assert!(code == 0 && !said.contains("sandbox.read"), "{said}");
    let (code, said) = sandbox("\"missing\"");
    assert!(code == 2 && said.contains("sandbox.read: there is no"), "{said}");
    let both = "[app.web.sandbox]\nread = [\"/\", \"app\"]\nwrite = [\".\"]\nbest_effort = true\n";
    let (code, said) = checked(path, both);
    assert!(
        code == 2
            && said.contains("sandbox.read: ")
            && said.contains("is below")
            && said.contains("of sandbox.write"),
        "{said}"
    );
}

#[test]
fn check_names_files_of_troop_in_directories_that_sandboxed_workers_may_exchange() {
    let directory = with_app();
    std::fs::create_dir_all(directory.path().join("data/logs")).unwrap();
    let of = |more: &str| {
        let sandbox = "[app.web.sandbox]\nwrite = [\"data\"]\nbest_effort = true\n";
        checked(directory.path(), &format!("{more}\n{sandbox}"))
    };
    let (code, said) =
        of("pid_file = \"data/logs/web.pid\"\noutput = { file = \"./data/logs/web.log\" }");
    assert_eq!(code, 0, "{said}");
    for option in ["pid_file", "output.file"] {
        assert!(said.contains(&format!("{option}: ")) && said.contains("put a link"), "{said}");
    }
    let (code, said) = of("pid_file = \"data/web.pid\"\noutput = { file = \"web.log\" }");
    assert!(code == 0 && !said.contains("put a link"), "{said}");
}

#[test]
fn check_compares_the_paths_of_a_sandbox_by_where_they_lead() {
    use std::os::unix::fs::symlink;
    let directory = with_app();
    let path = directory.path();
    let check = |read: &str, write: &str| {
        let sandbox = format!(
            "[app.web.sandbox]\nread = [\"/\", {read}]\nwrite = [{write}]\nbest_effort = true\n"
        );
        checked(path, &sandbox)
    };
    std::fs::create_dir_all(path.join("data/lib")).unwrap();
    std::fs::create_dir(path.join("lib")).unwrap();
    symlink("data/lib", path.join("current")).unwrap();
    symlink("data", path.join("alias")).unwrap();
    for (read, write) in [
        ("\"current\"", "\"data\""),
        ("\"data/lib\"", "\"alias\""),
        ("\"lib/../data/lib\"", "\"data\""),
        ("\"data/lib/../../lib\"", "\"data\""),
    ] {
        let (code, said) = check(read, write);
        assert!(
            code == 2 && said.contains("sandbox.read: ") && said.contains("of sandbox.write"),
            "{read} {write}: {code} {said}"
        );
    }
    // No name is looked up in what can be written.
    for (read, write) in [("\"data/../lib\"", "\"data\""), ("\"alias\"", "\"data\"")] {
        let (code, said) = check(read, write);
        assert!(code == 0 && !said.contains("sandbox."), "{read} {write}: {code} {said}");
    }
    let (code, said) = check("", "\"data/lib/..\"");
    assert!(code == 2 && said.contains("sandbox.write: "), "{said}");
    let (code, said) = check("", "\"data\", \"current\"");
    assert!(code == 0 && said.contains("sandbox.write: ") && said.contains("data"), "{said}");
    // The program is executed by a link, and found by what it is.
    symlink("app", path.join("link")).unwrap();
    let of = |read: &str, write: &str| {
        let sandbox =
            format!("[app.web.sandbox]\nread = [{read}]\nwrite = [{write}]\nbest_effort = true\n");
        checked(path, &sandbox).1
    };
    assert!(!of("\"link\"", "").contains("cannot read"));
    assert!(of("\"lib\"", "").contains("app/hello.js"));
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: the rest of check_compares_the_paths_of_a_sandbox_by_where_they_lead");
        return;
    }
    // Where somebody else could put another link, root follows none.
    std::fs::create_dir(path.join("open")).unwrap();
    open(&path.join("open"), 0o777);
    symlink(path.join("lib"), path.join("open/lib")).unwrap();
    let (code, said) = check("\"open/lib\"", "");
    assert!(
        code == 2 && said.contains("sandbox.read: ") && said.contains("symbolic link"),
        "{said}"
    );
}

#[test]
fn variables_that_are_set_on_the_command_line_are_passed_as_they_were_typed() {
    let directory = written("[app.web]\nprogram = \"hello.js\"\nenv = { GREETING = 1.5 }\n");
    let greeting = |args: &[&str]| {
        let args: Vec<_> =
            ["run", "-w", "1", "--log", "json"].iter().chain(args).copied().collect();
        get(start(command(directory.path(), &args)).listening(1))
    };
    assert!(greeting(&[]).contains(" 1.5 "));
    for typed in ["1.10", "0x1f", "true", "2026-01-01"] {
        let text = greeting(&["--set", &format!("env.GREETING={typed}")]);
        assert!(text.contains(&format!(" {typed} ")), "{typed} in {text}");
    }
    assert!(greeting(&["--set", "env.GREETING='a b'"]).contains(" a b "));
}

#[test]
fn a_reload_names_the_listeners_that_keep_their_policy() {
    let file = |policy: &str| {
        format!(
            "[app.web]\nprogram = \"hello.js\"\nworkers = 1\nlog = \"json\"\npolicy = \"{policy}\"\n"
        )
    };
    let directory = written(&file("p2c"));
    let mut troop = start(command(directory.path(), &["run"]));
    troop.listening(1);
    std::fs::write(directory.path().join("troop.toml"), file("shared")).unwrap();
    let (code, out, err) = troop.troop(["reload"]);
    let expected = "web: 1 worker replaced; the policy is changed, but not yet on 127.0.0.1:0";
    assert!(code == 0 && out.starts_with(expected), "{out}{err}");
    std::fs::write(directory.path().join("troop.toml"), file("sticky")).unwrap();
    assert_eq!(troop.troop(["reload"]).1, "web: 1 worker replaced\n");
}
