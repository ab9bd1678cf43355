//! What people mistype or forget, and what troop answers: what was tried, and what to do.

#![allow(clippy::unwrap_used)]

mod support;

use std::os::unix::fs::PermissionsExt as _;

use support::{Home, run};
use troop_testkit::wait_until;

const SERVER: &str = "require('http').createServer((q, r) => r.end('x')).listen(0, '127.0.0.1')";

/// Checks that a command line fails with this exit code, and that standard error contains all of
/// these texts.
fn fails(home: &Home, args: &[&str], exit: i32, texts: &[&str]) {
    let (code, out, err) = home.troop(args);
    assert_eq!(code, exit, "troop {args:?}: {out}{err}");
    for text in texts {
        assert!(err.contains(text), "troop {args:?} does not say {text:?}: {err}");
    }
}

#[test]
fn a_program_that_does_not_exist_is_named_before_a_worker_starts() {
    let home = Home::with(&[("tool", "#!/bin/sh\nexit 1\n")]);
    let tool = home.path().join("tool");
    std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = |name: &str| home.path().canonicalize().unwrap().join(name).display().to_string();
    let script = format!("there is no script {}\n", path("nosuch.js"));
    for verb in ["start", "run"] {
        fails(&home, &[verb, "-w", "1", "nosuch.js"], 1, &[&script]);
        let missing = format!("cannot start {}: No such file", path("nosuch"));
        fails(&home, &[verb, "-w", "1", "./nosuch"], 1, &[&missing]);
        fails(&home, &[verb, "-w", "1", "nosuch-9"], 1, &["no program nosuch-9 on the PATH"]);
        let file = format!("there is no file {}\n", path("nosuch.toml"));
        fails(&home, &[verb, "-w", "1", "nosuch.toml"], 1, &[&file]);
        fails(&home, &[verb, "-w", "1", "tool"], 1, &["on the PATH; ./tool is the one in"]);
        fails(&home, &[verb, "-w", "1", "."], 1, &["is a directory"]);
        let directory = ["--cwd", "/nosuch-directory", "server.js"];
        let args: Vec<_> = [verb, "-w", "1"].into_iter().chain(directory).collect();
        fails(&home, &args, 1, &["there is no directory /nosuch-directory"]);
    }
    let mut troop = run(["-w", "1", "/nosuch-directory/nosuch.js"]);
    let (_, log) = troop.end();
    assert!(!log.contains("\"event\":\"fork\""), "{log}");
}

/// As `npm run` and `npx` find them.
#[test]
fn a_program_that_npm_has_installed_is_started_by_its_name_and_named_where_a_file_has_that() {
    let file = "[app.web]\nprogram = \"no-such-server\"\n";
    let home = Home::with(&[("troop.toml", file)]);
    let bin = home.path().join("node_modules/.bin");
    std::fs::create_dir_all(&bin).unwrap();
    let server = "#!/usr/bin/env node
const [, , at, port] = process.argv;
require('http').createServer((q, r) => r.end(at)).listen(Number(port), at);";
    std::fs::write(bin.join("no-such-server"), server).unwrap();
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(bin.join("no-such-server"), mode).unwrap();
    let typed = ["no-such-server 127.0.0.1 0", "no-such-server"];
    for (typed, args) in [(typed[0], &[][..]), (typed[1], &["127.0.0.1", "0"])] {
        let out = home.fine(&[&["start", typed, "-n", "web", "-w", "2", "--"], args].concat());
        assert!(out.starts_with("web: 2 workers ready on 127.0.0.1:"), "{out}");
        home.fine(&["delete", "web"]);
    }
    let installed = "no program no-such-server on the PATH; npm has installed node_modules/.bin/";
    fails(&home, &["check"], 2, &[installed]);
}

#[test]
fn a_file_with_apps_that_does_not_exist_is_named() {
    let home = Home::with(&[]);
    let path = std::path::absolute(home.path()).unwrap();
    let usual = format!("there is no file {}; `troop init`", path.join("troop.toml").display());
    fails(&home, &["check"], 2, &[&usual]);
    let other = format!("there is no file {}", path.join("x.toml").display());
    fails(&home, &["start", "-c", "x.toml"], 2, &[&other]);
}

#[test]
fn an_address_that_cannot_be_bound_is_explained() {
    let home = Home::with(&[("server.js", SERVER)]);
    for (address, why) in [
        ("99999", "a port is a number from 0 to 65535"),
        ("127.0.0.1:99999", "a port is a number from 0 to 65535"),
        ("::1:80", "an IPv6 address stands in brackets"),
        ("@name", "abstract sockets cannot be bound"),
        ("localhost", "it has no port"),
        ("localhost:http", "what follows the last colon must be a port"),
    ] {
        let why = format!("cannot listen on \"{address}\": {why}; write 8000");
        fails(&home, &["start", "-b", address, "server.js"], 2, &[&why]);
    }
}

#[test]
fn a_second_start_of_the_same_program_prints_its_name() {
    let home = Home::with(&[("server.js", SERVER)]);
    home.fine(&["start", "server.js", "-i", "1"]);
    let (code, out, err) = home.troop(&["start", "server.js", "-i", "1", "-f"]);
    assert!(code == 0 && out.contains("server-2: 1 worker ready"), "{out}{err}");
    assert!(
        err.contains("so this one is server-2") && err.contains("troop reload server"),
        "{err}"
    );
}

#[test]
fn an_option_of_the_program_that_is_typed_without_dashes_before_it_is_explained() {
    let home = Home::with(&[("server.js", SERVER)]);
    let tip = "the program's own arguments stand behind `--`: troop start PROGRAM -- --port";
    fails(&home, &["start", "server.js", "--port", "80"], 2, &[tip]);
    // One that is an option of PM2's, too.
    let tip = tip.replace("--port", "-p");
    fails(&home, &["start", "server.js", "-p", "80"], 2, &["there is no option -p here", &tip]);
}

#[test]
fn an_address_in_use_comes_with_a_tip() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let server = SERVER.replace("listen(0", &format!("listen({port}"));
    let home = Home::with(&[("server.js", &server)]);
    for verb in ["start", "run"] {
        fails(&home, &[verb, "-w", "1", "server.js"], 1, &["EADDRINUSE", "tip: another process"]);
    }
}

#[test]
fn a_variable_that_is_too_long_is_named_and_not_shown() {
    let long = format!("FINE=1\nHUGE={}\n", "x".repeat(200_000));
    let home = Home::with(&[("server.js", SERVER), ("long.env", &long)]);
    let args = ["start", "-w", "1", "--env-file", "long.env", "server.js"];
    fails(&home, &args, 1, &["the variable HUGE has 200005 bytes", "131071"]);
    assert!(!home.troop(&args).2.contains("xxx"));
    let many: String = (0..100).map(|i| format!("V{i}={}\n", "x".repeat(9_000))).collect();
    let home = Home::with(&[
        ("server.js", SERVER),
        ("many.env", &format!("{many}BIG={}\n", "x".repeat(100_000))),
    ]);
    let mut command = std::process::Command::new("sh");
    let args = ["start", "-w", "1", "--env-file", "many.env", "server.js"];
    // A quarter of the stack is for arguments and environment.
    command.args(["-c", "ulimit -s 2048; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_troop")]);
    command.args(args).current_dir(home.path()).env("TROOP_RUNTIME_DIR", home.path().join("run"));
    let output = command.output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code() == Some(1) && err.contains("the largest variable is BIG"),
        "{err}"
    );
}

#[test]
fn an_abstract_socket_is_not_shown_as_a_path() {
    let name = format!("troop-test-{}", std::process::id());
    let server = format!("require('net').createServer(() => {{}}).listen('\\0{name}')");
    let home = Home::with(&[("server.js", &server)]);
    let out = home.fine(&["start", "-w", "1", "server.js"]);
    assert_eq!(out, format!("server: 1 worker ready on abstract @{name}\n"));
}

#[test]
fn a_misspelt_option_comes_with_the_one_that_was_meant() {
    let file = |line: &str| format!("[app.web]\nprogram = \"server.js\"\n{line}\n");
    for (line, meant) in [
        ("polcy = \"p2c\"", "unknown option `polcy`; did you mean `policy`?"),
        ("restart = { maxx = 3 }", "unknown option `maxx`; did you mean `max`?"),
        ("[app.web.recycle]\nmemroy = \"1G\"", "unknown option `memroy`; did you mean `memory`?"),
        ("ready = \"listning\"", "unknown value `listning`; did you mean `listening`?"),
        ("[ap.jobs]", "unknown option `ap`; did you mean `app`?"),
        // Nothing is near.
        ("xyzzy = 1", "unknown option `xyzzy`, expected one of `program`"),
    ] {
        let home = Home::with(&[("server.js", SERVER), ("troop.toml", &file(line))]);
        fails(&home, &["check"], 2, &[meant, "line "]);
        fails(&home, &["start"], 2, &[meant]);
    }
    let home = Home::with(&[("server.js", SERVER)]);
    for (set, meant) in [
        ("restrat.max=3", "--set restrat.max=3: unknown option `restrat`; did you mean `restart`?"),
        ("restart.maxx=3", "--set restart.maxx=3: unknown option `maxx`; did you mean `max`?"),
        ("when=1", "--set when=1: unknown option `when`, expected one of"),
    ] {
        for verb in ["start", "run"] {
            fails(&home, &[verb, "server.js", "--set", set], 2, &[meant]);
        }
    }
}

#[test]
fn a_misspelt_app_comes_with_the_one_that_was_meant() {
    let file =
        "[app.web]\nprogram = \"server.js\"\nworkers = 1\n[app.jobs]\nprogram = \"server.js\"\n";
    let home = Home::with(&[("server.js", SERVER), ("troop.toml", file)]);
    let meant = "did you mean the app web";
    for verb in ["start", "run"] {
        fails(&home, &[verb, "wbe"], 1, &["no program wbe on the PATH", meant, "troop.toml"]);
        fails(&home, &[verb, "-c", "troop.toml", "wbe"], 2, &["has no app \"wbe\"", meant]);
        fails(&home, &[verb, "nosuch-9"], 1, &["troop.toml has the apps jobs, web"]);
    }
    fails(&home, &["startup", "wbe"], 2, &["has no app \"wbe\"", meant]);
    home.fine(&["start", "web"]);
    fails(&home, &["show", "wbe"], 3, &["there is no app \"wbe\"", "did you mean web?"]);
}

#[test]
fn a_verb_that_needs_one_app_of_several_asks_which() {
    let file = "[app.web]\nprogram = \"server.js\"\nworkers = 1\n[app.jobs]\nprogram = \"server.js\"\nworkers = 1\n";
    let home = Home::with(&[("server.js", SERVER), ("troop.toml", file)]);
    assert_eq!(home.fine(&["check"]), "troop.toml: jobs, web are fine\n");
    home.fine(&["start"]);
    for verb in ["show", "reload", "restart", "stop", "events"] {
        fails(&home, &[verb], 2, &["which app, or `all`? running: jobs, web"]);
    }
    fails(&home, &["events", "all"], 2, &["one app at a time"]);
}

#[test]
fn all_mistakes_of_a_file_are_told_at_once_with_their_places() {
    let text = "[app.a]\nprogram = \"sh\"\ncwd = \"nowhere\"\nuser = \"no-such-user\"\nbind = [\"8000\", \"127.0.0.1:8000\"]\n\
                stop_signal = \"NONE\"\nworker = 1\n[app.b]\nprogram = \"sh\"\nbind = [\"8000\"]\nhealth = [\"/x\"]\n";
    let home = Home::with(&[("troop.toml", text)]);
    let (code, _, err) = home.troop(&["check"]);
    assert_eq!(code, 2);
    for part in [
        "line 3, column 1: app.a: there is no directory",
        "line 4, column 1: app.a: there is no user \"no-such-user\"",
        "line 5, column 1: app.a: \"127.0.0.1:8000\" cannot be bound beside \"8000\"",
        "line 6, column 1: app.a.stop_signal: \"NONE\"",
        "line 7, column 1: app.a: unknown option `worker`; did you mean `workers`?",
        "line 10, column 1: app.b: \"8000\" cannot be bound beside \"8000\" of app.a",
        "line 11, column 10: app.b.health: it must be a table",
    ] {
        assert!(err.contains(part), "{part} in {err}");
    }
    let text = "[app.a]\nprogram = \"sh\"\nenv = { PORT = 8000 }\n[app.b]\nprogram = \"sh\"\nenv = { PORT = 8000 }\n";
    let home = Home::with(&[("troop.toml", text)]);
    let (code, _, err) = home.troop(&["check"]);
    assert!(code == 0 && err.contains("line 6, column 1: app.b: PORT is 8000"), "{code} {err}");
    let text = "[app.a]\nprogram = \"sh\"\nweights = [1]\n[app.b]\nprogram = \"sh\"\nrecycle = { jitter = 0.2 }\n";
    let home = Home::with(&[("troop.toml", text)]);
    let (code, _, err) = home.troop(&["check"]);
    assert!(code == 2 && err.contains("line 3, column 1: app.a: weights"), "{code} {err}");
    assert!(err.contains("line 6, column 1: app.b: recycle.jitter"), "{err}");
}

#[test]
fn values_may_have_variables_and_a_converted_file_means_the_same() {
    let script =
        "console.log(process.argv[2], process.argv[3], process.env.A); setInterval(() => {}, 1000)";
    let text = "[app.web]\nprogram = \"server.js\"\nargs = [\"${TROOP_TEST_PLACE}\", '${PLAIN}']\nenv = { A = \"${TROOP_TEST_NONE:-usual}\" }\n";
    let home = Home::with(&[("server.js", script), ("troop.toml", text)]);
    let (code, _, err) = home.troop(&["check"]);
    assert!(
        code == 2 && err.contains("line 3") && err.contains("TROOP_TEST_PLACE is not set"),
        "{err}"
    );
    let mut command = home.command(&["start"]);
    assert!(command.env("TROOP_TEST_PLACE", "here").status().unwrap().success());
    wait_until("its output", || home.log("web.log").contains("here ${PLAIN} usual"));
    let pm2 = r#"{ "name": "job", "script": "sh", "args": ["-c", "echo ${HOME} '$${X}'"] }"#;
    let home = Home::with(&[("ecosystem.json", pm2)]);
    home.fine(&["init", "--from", "ecosystem.json"]);
    home.fine(&["check"]);
    let again = home.fine(&["init", "--from", "troop.toml", "-o", "-"]);
    let first = std::fs::read_to_string(home.path().join("troop.toml")).unwrap();
    let rest = |text: &str| text.split_once("\n\n").unwrap().1.to_owned();
    assert_eq!(rest(&again), rest(&first));
}

#[test]
fn an_app_that_is_not_restarted_exits_with_the_code_of_its_program() {
    let home = Home::with(&[]);
    for (code, exit) in [(7, 7), (0, 0), (1, 1)] {
        let program = format!("exit {code}");
        let (ended, _, err) =
            home.troop(&["run", "-w", "1", "--restart", "never", "--", "sh", "-c", &program]);
        assert_eq!(ended, exit, "{err}");
        assert!(err.contains(&format!("exit code {code}")), "{err}");
    }
}
