//! PM2's files, as they are: what their fields do.

#![allow(clippy::unwrap_used)]

mod support;

use serde_json::{Value, json};
use support::Home;
use support::pm2::{SERVER, both, file, told};
use troop_testkit::{free_port, talk, wait_until};

#[test]
fn log_files_have_what_the_program_prints_and_nothing_else() {
    let fields = json!({ "out_file": "out.log", "err_log": "logs/err.log", "log_file": "./both.log", "cwd": "inner" });
    let home = Home::with(&[("ecosystem.json", &file(&fields))]);
    let inner = home.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    std::fs::write(inner.join("server.js"), SERVER).unwrap();
    home.fine(&["start", "ecosystem.json"]);
    let read = |name: &str| std::fs::read_to_string(inner.join(name)).unwrap_or_default();
    wait_until("both", || read("both.log").lines().count() == 2);
    home.fine(&["reload", "app"]);
    home.fine(&["stop", "app"]);
    let (out, err) = ("on standard output\n".repeat(2), "on standard error\n".repeat(2));
    assert_eq!((read("out.log"), read("logs/err.log")), (out, err));
    assert_eq!(read("both.log").lines().count(), 4);
    // What troop has to say is in a file of its own, with times.
    let own = home.log("app.log");
    assert!(own.contains(" - * ") && !own.contains("on standard"), "{own}");
    // Where only one file is named, standard error is not in it.
    let home = Home::with(&[
        ("server.js", SERVER),
        ("ecosystem.json", &file(&json!({ "out_file": "only.log" }))),
    ]);
    home.fine(&["start", "ecosystem.json"]);
    wait_until("the errors", || home.log("app-error.log") == "on standard error\n");
    let only = std::fs::read_to_string(home.path().join("only.log")).unwrap();
    assert_eq!(only, "on standard output\n");
    assert!(home.fine(&["logs", "app", "--nostream"]).contains("on standard error"));
}

#[test]
fn discarded_logs_are_written_nowhere() {
    for fields in
        [json!({ "disable_logs": true }), json!({ "out_file": "/dev/null", "error_file": "NULL" })]
    {
        let home = Home::with(&[("server.js", SERVER), ("ecosystem.json", &file(&fields))]);
        home.fine(&["start", "ecosystem.json"]);
        assert!(home.fine(&["logs", "all", "--nostream"]).contains("worker 1 started"));
        home.fine(&["stop", "app"]);
        assert!(home.fine(&["logs", "app", "--nostream"]).contains("worker 1 started"));
        let logs = std::fs::read_dir(home.path().join("logs")).unwrap();
        let text: String =
            logs.map(|log| std::fs::read_to_string(log.unwrap().path()).unwrap()).collect();
        assert!(!text.contains("on standard"), "{text}");
    }
}

#[test]
fn each_instance_has_the_log_and_pid_files_that_it_has_in_pm2() {
    let fields = json!({ "instances": 2, "out_file": "out.log", "error_file": "err.log", "pid_file": "run/app.pid" });
    let home = Home::with(&[("server.js", SERVER), ("ecosystem.json", &file(&fields))]);
    home.fine(&["start", "ecosystem.json"]);
    let read = |name: &str| std::fs::read_to_string(home.path().join(name)).unwrap_or_default();
    let says = "on standard output\n";
    wait_until("both", || read("out-0.log") == says && read("out-1.log") == says);
    let shown = home.fine(&["logs", "app", "--nostream", "--raw", "--slot", "1"]);
    assert_eq!(shown, "on standard output\non standard error\n");
    let list: Vec<Value> = serde_json::from_str(&home.fine(&["jlist"])).unwrap();
    let mut paths = list.iter().map(|entry| entry["pm2_env"]["pm_out_log_path"].as_str().unwrap());
    assert!(paths.any(|path| path.ends_with("/out-1.log")), "{list:?}");
    let pids = || {
        let of = |slot: &Value| read(&format!("run/app-{slot}.pid")).parse::<u64>().ok();
        let workers = home.show("app")["workers"].clone();
        let mut workers = workers.as_array().unwrap().iter();
        workers.all(|worker| of(&worker["slot"]) == worker["pid"].as_u64())
    };
    wait_until("the pid files", pids);
    home.fine(&["reload", "app"]);
    wait_until("those of the new workers", pids);
    // A third one has files, too.
    home.fine(&["scale", "app", "3"]);
    wait_until("its line", || read("out-2.log") == says);
    home.fine(&["flush", "app"]);
    assert_eq!((read("out-0.log"), read("err-2.log")), (String::new(), String::new()));
    home.fine(&["stop", "app"]);
    assert_eq!(
        std::fs::read_dir(home.path().join("run"))
            .unwrap()
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().ends_with(".pid"))
            .count(),
        0
    );
    // The one file of all.
    home.fine(&["start", "ecosystem.json", "--merge-logs"]);
    wait_until("both", || read("out.log") == says.repeat(2));
}

#[test]
fn a_directory_is_served_as_a_file_of_pm2_says() {
    let env = json!({
        "PM2_SERVE_PATH": "site", "PM2_SERVE_PORT": 0, "PM2_SERVE_HOST": "127.0.0.1", "PM2_SERVE_SPA": "true",
        "PM2_SERVE_HOMEPAGE": "/start.html", "PM2_SERVE_BASIC_AUTH": "true",
        "PM2_SERVE_BASIC_AUTH_USERNAME": "me", "PM2_SERVE_BASIC_AUTH_PASSWORD": "a:secret",
    });
    let apps = json!({
        "apps": [{ "name": "site", "script": "serve", "env": env }],
        "static": [{ "name": "docs", "path": "site/docs", "port": 0, "host": "127.0.0.1" }],
    });
    let home = Home::with(&[("ecosystem.json", &apps.to_string())]);
    std::fs::create_dir_all(home.path().join("site/docs")).unwrap();
    for (name, text) in [("start.html", "start"), ("docs/index.html", "docs")] {
        std::fs::write(home.path().join("site").join(name), text).unwrap();
    }
    home.fine(&["start", "ecosystem.json"]);
    let ask = |app: &str, path: &str, login: &str| {
        let port = port(&home.show(app));
        let request = format!("GET {path} HTTP/1.0\r\n{login}\r\n");
        talk(([127, 0, 0, 1], port), &request).unwrap()
    };
    let login = "Authorization: Basic bWU6YTpzZWNyZXQ=\r\n";
    for path in ["/", "/no/such/page"] {
        assert!(ask("site", path, login).ends_with("\r\n\r\nstart"), "{path}");
    }
    for login in ["", "Authorization: Basic bWU6YTpzZWNyZXU=\r\n", "Authorization: Basic !\r\n"] {
        let answer = ask("site", "/", login);
        assert!(answer.starts_with("HTTP/1.0 401") && answer.contains("Basic realm="), "{answer}");
        assert!(!answer.contains("start"), "{answer}");
    }
    assert!(ask("docs", "/", "").ends_with("docs"));
    // Lists of processes show no password.
    for pid in [&home.show("site")["pid"], &home.show("site")["workers"][0]["pid"]] {
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
        assert!(!line.contains("secret"), "{line}");
    }
    let (code, _, err) = home.troop(&["serve", "site", "0", "--basic-auth"]);
    assert!(code == 2 && err.contains("PM2_SERVE_BASIC_AUTH_USERNAME is not set"), "{code} {err}");
    let (code, _, err) = home.troop(&["serve", "site", "0", "--basic-auth-password", "x"]);
    assert!(code == 2 && err.contains("in the environment"), "{code} {err}");
}

fn port(shown: &Value) -> u16 {
    let address = shown["listeners"][0]["address"].as_str().unwrap();
    address.rsplit(':').next().unwrap().parse().unwrap()
}

#[test]
fn a_stream_as_a_log_file_is_a_file_in_the_background() {
    let fields = json!({ "out_file": "/dev/stdout", "error_file": "/dev/stderr" });
    let home = Home::with(&[("server.js", SERVER), ("ecosystem.json", &file(&fields))]);
    let (code, _, err) = home.troop(&["start", "ecosystem.json"]);
    assert!(code == 0 && err.contains("troop run"), "{code} {err}");
    wait_until("both", || {
        let log = home.log("app.log");
        log.contains("on standard output") && log.contains("on standard error")
    });
}

#[test]
fn a_script_with_spaces_is_a_command_line() {
    let file = "{ /* one app */ apps: [{ name: 'app', script: \"node server.js --one 'a b'\", env: { GREETING: 'dear', }, }], }";
    let home = Home::with(&[("server.js", SERVER), ("ecosystem.json", file)]);
    home.fine(&["start", "ecosystem.json"]);
    let told = told(&home);
    assert_eq!((&told["args"], &told["env"]), (&json!(["--one", "a b"]), &json!("dear")));
}

#[test]
fn programs_that_end_by_themselves_have_finished() {
    // Node keeps the channel of a worker open, whether or not its program has anything left to do.
    let short = "setTimeout(() => { console.log('done'); process.exitCode = Number(process.env.CODE); }, 10)";
    for (code, says) in [("0", "finished"), ("3", "exit code 3")] {
        let fields = json!({ "autorestart": false, "env": { "CODE": code } });
        let flags = ["--no-autorestart", "--env", &format!("CODE={code}")];
        both(short, &fields, &flags, |home, start| {
            let (status, out, err) = home.troop(start);
            assert_eq!(status, i32::from(code != "0"), "{start:?}: {out}{err}");
            assert!(format!("{out}{err}").contains(says), "{start:?}: {out}{err}");
            // One that has failed at its start is not kept.
            let phase = if code == "0" { Some("finished") } else { None };
            wait_until("its end", || {
                let apps: Vec<Value> = serde_json::from_str(&home.fine(&["ls", "--json"])).unwrap();
                apps.first().map(|app| app["phase"].clone()) == phase.map(Value::from)
            });
            assert!(home.log("app.log").contains("done"));
        });
    }
    // A server does not end, nor one that waits for messages.
    for stays in [SERVER, "process.on('message', () => {}); console.log('waits')"] {
        let home = Home::with(&[
            ("server.js", stays),
            ("ecosystem.json", &file(&json!({ "autorestart": false }))),
        ]);
        assert!(home.fine(&["start", "ecosystem.json"]).contains("1 worker ready"));
    }
}

#[test]
fn instances_may_have_numbers_and_variables_of_their_own() {
    let script = "require('fs').writeFileSync('seen-' + process.env.TROOP_SLOT, [process.env.PORT, process.env.AWS_KEY, process.env.GREETING].join());setInterval(() => {}, 1000)";
    let fields = json!({ "instances": 2, "increment_var": "PORT", "port": 3000, "filter_env": ["AWS"], "env": { "GREETING": "dear" } });
    let home = Home::with(&[("server.js", script), ("ecosystem.json", &file(&fields))]);
    let mut command = home.command(&["start", "ecosystem.json"]);
    let status = command.env("AWS_KEY", "secret").env("GREETING", "other").status().unwrap();
    assert!(status.success());
    for (slot, seen) in [(0, "3000,,dear"), (1, "3001,,dear")] {
        let path = home.path().join(format!("seen-{slot}"));
        assert_eq!(std::fs::read_to_string(path).unwrap(), seen);
    }
    let fields = json!({ "increment_var": "GREETING", "env": { "GREETING": "x" } });
    let home = Home::with(&[("server.js", script), ("ecosystem.json", &file(&fields))]);
    let (code, _, err) = home.troop(&["start", "ecosystem.json"]);
    assert!(code != 0 && err.contains("must be a number"), "{code} {err}");
}

#[test]
fn apps_that_do_not_start_by_themselves_are_started_by_name() {
    let apps = json!([
        { "name": "app", "script": "./server.js" },
        { "name": "later", "script": "./server.js", "autostart": false },
    ]);
    let home = Home::with(&[("server.js", SERVER), ("ecosystem.json", &apps.to_string())]);
    let (code, out, err) = home.troop(&["start", "ecosystem.json"]);
    assert!(code == 0 && !out.contains("later:"), "{out}{err}");
    assert!(format!("{out}{err}").contains("autostart"), "{out}{err}");
    assert!(home.fine(&["start", "ecosystem.json", "--", "later"]).starts_with("later: 1 worker"));
}

#[test]
fn apps_of_one_name_are_told_apart_and_selected_by_their_namespaces() {
    let apps = json!([
        { "name": "api", "script": "./server.js", "namespace": "blue" },
        { "name": "api", "script": "./server.js", "namespace": "green" },
        { "name": "почта", "script": "./server.js", "namespace": "green" },
    ]);
    let home = Home::with(&[("server.js", SERVER), ("ecosystem.json", &apps.to_string())]);
    let out = home.fine(&["start", "ecosystem.json"]);
    for name in ["blue-api", "green-api", "почта"] {
        assert!(out.contains(&format!("{name}: 1 worker ready")), "{out}");
    }
    home.fine(&["delete", "green"]);
    let listed = home.fine(&["ls", "--json"]);
    assert!(listed.contains("blue-api") && !listed.contains("green-api"), "{listed}");
    assert!(!listed.contains("почта"), "{listed}");
}

#[test]
fn without_treekill_what_a_worker_has_started_goes_on() {
    let script = format!(
        "{SERVER} const child = require('child_process').spawn('sleep', ['1000'], {{ stdio: 'ignore' }}); require('fs').writeFileSync('child', String(child.pid));"
    );
    let fields = json!({ "treekill": false });
    let home = Home::with(&[("server.js", &script), ("ecosystem.json", &file(&fields))]);
    home.fine(&["start", "ecosystem.json"]);
    let pid: u32 = std::fs::read_to_string(home.path().join("child")).unwrap().parse().unwrap();
    home.fine(&["stop", "app", "--quick"]);
    let is_running = troop_testkit::is_running(pid);
    if let Some(pid) = rustix::process::Pid::from_raw(pid.cast_signed()) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    assert!(is_running, "its child has ended with it");
}

#[test]
fn a_release_that_a_link_leads_to_is_resolved_again_at_each_reload() {
    let home = Home::with(&[]);
    let at = |name: &str| home.path().join(name);
    for (release, greeting) in [("1", "one"), ("2", "two")] {
        std::fs::create_dir_all(at(release)).unwrap();
        std::fs::write(at(release).join("server.js"), SERVER).unwrap();
        let fields = json!({ "env": { "GREETING": greeting } });
        std::fs::write(at(release).join("ecosystem.json"), file(&fields)).unwrap();
    }
    let link = |release: &str| {
        let _ = std::fs::remove_file(at("current"));
        std::os::unix::fs::symlink(release, at("current")).unwrap();
    };
    let runs_in = |release: &str| {
        let told = told(&home);
        assert!(told["cwd"].as_str().unwrap().ends_with(&format!("/{release}")), "{told}");
        told["env"].as_str().map(str::to_owned)
    };
    for args in [&["start", "ecosystem.json"][..], &["start", "server.js", "--name", "app"]] {
        link("1");
        let mut command = home.command(args);
        command.current_dir(at("current")).env("PWD", at("current"));
        assert!(command.status().unwrap().success());
        runs_in("1");
        link("2");
        home.fine(&["reload", "app"]);
        let greeting = runs_in("2");
        assert!(greeting.is_none_or(|greeting| greeting == "two"));
        link("1");
        home.fine(&["restart", "app"]);
        runs_in("1");
        home.fine(&["stop", "app"]);
    }
}

#[test]
fn a_program_that_clusters_itself_is_told_that_its_primary_part_does_not_run() {
    let cluster = "const cluster = require('node:cluster'); if (cluster.isPrimary) { cluster.fork(); } else {";
    let forks = "require('cluster').fork?.();";
    let package = "module.exports = require('cluster').isPrimary;";
    let cluster_mode = file(&json!({ "exec_mode": "cluster" }));
    for (before, after, is_told) in [
        (cluster, "}", true),
        (forks, "", true),
        ("require('some');", "", false),
        ("if (require('cluster').isWorker) {}", "", true),
        // Node reads all properties, to make a module of it.
        ("import('node:cluster').then(({ default: { worker } }) => worker?.id);", "", false),
        ("", "import('node:cluster').then(({ default: { isPrimary } }) => isPrimary);", false),
        ("", "", false),
        ("", "setTimeout(() => require('cluster').isPrimary, 500);", false),
    ] {
        let script = format!("{before} {SERVER} {after}");
        let home = Home::with(&[("server.js", &script), ("ecosystem.json", &cluster_mode)]);
        std::fs::create_dir_all(home.path().join("node_modules/some")).unwrap();
        std::fs::write(home.path().join("node_modules/some/index.js"), package).unwrap();
        let (code, out, err) = home.troop(&["start", "ecosystem.json"]);
        assert!(code == 0 && out.contains("1 worker ready"), "{out}{err}");
        assert_eq!(err.contains("clusters itself"), is_told, "{before}: {err}");
        assert_eq!(home.log("app.log").contains("server.js:"), is_told);
    }
}

/// A program that clusters itself: its primary tells each worker's number, and its workers serve.
const CLUSTERED: &str = "
const cluster = require('node:cluster');
if (cluster.isPrimary) {
  for (let number = 0; number < 2; number++) cluster.fork({ NUMBER: number });
  process.on('SIGTERM', () => { console.log('primary ends'); for (const id in cluster.workers) cluster.workers[id].kill(); process.exit(); });
} else {
  require('http').createServer((q, s) => s.end(`served by ${process.env.NUMBER}`)).listen(process.env.PORT, '127.0.0.1');
}
";

/// Waits until the program serves and returns its answer.
fn answer_of(port: u16) -> String {
    let mut answer = String::new();
    wait_until("the program serves", || {
        answer = troop_testkit::talk(([127, 0, 0, 1], port), "GET / HTTP/1.0\r\n\r\n")
            .unwrap_or_default();
        answer.contains("served by")
    });
    answer
}

#[test]
fn the_primary_of_a_program_in_fork_mode_runs_as_in_pm2() {
    for mut fields in [json!({}), json!({ "exec_mode": "fork" })] {
        let home = Home::with(&[]);
        let port = free_port();
        fields["env"] = json!({ "PORT": port });
        for (name, text) in [("server.js", CLUSTERED), ("ecosystem.json", &file(&fields))] {
            std::fs::write(home.path().join(name), text).unwrap();
        }
        let (code, out, err) = home.troop(&["start", "ecosystem.json"]);
        assert!(code == 0 && out.contains("1 worker ready"), "{out}{err}");
        assert!(err.contains("runs alone") && err.contains("server.js:3"), "{out}{err}");
        answer_of(port);
        assert!(
            home.fine(&["jlist"]).contains("fork_mode")
                && home.fine(&["show"]).contains("runs alone")
        );
        // It is no worker that its successor could run beside.
        let (code, out, err) = home.troop(&["reload", "app"]);
        assert_eq!(code, 0, "{out}{err}");
        assert!(home.log("app.log").contains("primary ends"));
        answer_of(port);
        home.fine(&["restart", "app"]);
        answer_of(port);
        home.fine(&["stop", "app"]);
        assert!(troop_testkit::talk(([127, 0, 0, 1], port), "").is_err());
        // It is found out anew.
        home.fine(&["start", "app"]);
        answer_of(port);
        home.fine(&["delete", "app"]);
    }
}

#[test]
fn programs_find_the_variables_of_pm2_that_they_ask_for() {
    const NAMES: &str = "['pm_id', 'name', 'namespace', 'exec_mode', 'NODE_APP_INSTANCE', 'MINE', 'pm_cwd', 'pm_exec_path']";
    let says = format!(
        "require('fs').appendFileSync('said', JSON.stringify({NAMES}.map(name => process.env[name])) + '\\n');{SERVER}"
    );
    let apps = json!([
        { "name": "a", "script": "server.js", "instances": 2, "instance_var": "MINE", "namespace": "group" },
        { "name": "b", "script": "server.js" },
        { "name": "c", "script": "server.js", "env": { "name": "its own", "pm_id": "x" } },
    ]);
    let home = Home::with(&[("server.js", &says), ("ecosystem.json", &apps.to_string())]);
    let here = home.path().canonicalize().unwrap();
    let script = here.join("server.js");
    let said = || {
        let text = std::fs::read_to_string(home.path().join("said")).unwrap_or_default();
        let mut lines: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        lines.sort_by_key(ToString::to_string);
        std::fs::remove_file(home.path().join("said")).unwrap();
        lines
    };
    let of = |id, name, group, mode, slot, mine: Option<&str>| {
        json!([id, name, group, mode, slot, mine, here, script])
    };
    home.fine(&["start", "ecosystem.json"]);
    assert_eq!(
        said(),
        [
            of("0", "a", "group", "cluster_mode", "0", Some("0")),
            of("1", "a", "group", "cluster_mode", "1", Some("1")),
            of("1", "b", "default", "fork_mode", "0", None),
            of("x", "its own", "default", "fork_mode", "0", None),
        ]
    );
    // They are the same later on.
    let b = [of("1", "b", "default", "fork_mode", "0", None)];
    for verb in [&["reload", "b"][..], &["restart", "b"], &["restart", "b", "--update-env"]] {
        home.fine(verb);
        assert_eq!(said(), b, "{verb:?}");
    }
    // Others have none of them.
    home.fine(&["delete", "all"]);
    home.fine(&["start", "server.js", "--name", "typed"]);
    assert_eq!(said()[0], json!([null, null, null, null, "0", null, null, null]));
}

/// An app in fork mode whose server troop has no part in, started from a file with these fields.
fn by_itself(mut fields: Value) -> (Home, u16) {
    let exclusive = "require('http').createServer((q, s) => s.end(`served by ${process.pid}`)).listen({ port: process.env.PORT, host: '127.0.0.1', exclusive: true });";
    let package = r#"{ "scripts": { "start": "node server.js" } }"#;
    let port = free_port();
    fields["env"] = json!({ "PORT": port });
    let home = Home::with(&[
        ("server.js", exclusive),
        ("package.json", package),
        ("ecosystem.json", &file(&fields)),
    ]);
    home.fine(&["start", "ecosystem.json"]);
    (home, port)
}

/// What a reload says of a worker that listens by itself.
const MAKES_WAY: &str =
    "app: worker 1 ends before its successor starts: it listens by itself, if at all\n";

#[test]
fn a_reload_in_fork_mode_ends_what_listens_by_itself_before_its_successor_starts_as_in_pm2() {
    let (home, port) = by_itself(json!({}));
    let first = answer_of(port);
    let (code, out, err) = home.troop(&["reload", "ecosystem.json"]);
    assert!(code == 0 && err.contains(MAKES_WAY), "{out}{err}");
    let second = answer_of(port);
    assert_ne!(first, second);
    // So does one alone, as when it has become too big.
    home.fine(&["reload", "app:2"]);
    assert_ne!(answer_of(port), second);
}

#[test]
fn a_reload_in_fork_mode_of_what_npm_starts_is_a_restart_as_in_pm2() {
    let (home, port) = by_itself(json!({ "script": "npm", "args": "start" }));
    let first = answer_of(port);
    let (code, out, err) = home.troop(&["reload", "app"]);
    assert!(code == 0 && err.contains(MAKES_WAY), "{out}{err}");
    assert_ne!(first, answer_of(port));
}

#[test]
fn a_failed_reload_of_what_was_typed_and_listens_by_itself_names_the_way() {
    let server = "require('http').createServer().listen({ port: process.env.PORT, host: '127.0.0.1', exclusive: true });";
    let home = Home::with(&[("server.js", server)]);
    let port = format!("PORT={}", free_port());
    home.fine(&["start", "server.js", "--name", "typed", "--env", &port]);
    let (code, _, err) = home.troop(&["reload", "typed"]);
    assert!(code == 1 && err.contains("EADDRINUSE"), "{err}");
    assert!(err.contains("`troop restart typed`") && err.contains("max_surge = 0"), "{err}");
}

#[test]
fn a_reload_in_fork_mode_of_a_program_that_listens_with_troop_starts_the_successor_first() {
    let home = Home::with(&[("server.js", SERVER), ("ecosystem.json", &file(&json!({})))]);
    home.fine(&["start", "ecosystem.json"]);
    let (code, out, err) = home.troop(&["reload", "ecosystem.json"]);
    assert!(code == 0 && !err.contains("ends before"), "{out}{err}");
}

#[test]
fn a_program_that_is_started_alone_is_a_primary_and_can_talk_to_troop() {
    let home = Home::with(&[]);
    let port = free_port();
    let talks = "process.send('ready'); process.on('message', m => { console.log('got', m); if (m === 'shutdown') { console.log('asked'); process.exit(); } });";
    let script = format!("if (require('cluster').isPrimary) {{ {talks} }}{CLUSTERED}")
        .replace("process.on('SIGTERM'", "process.on('SIGUSR1'");
    std::fs::write(home.path().join("server.js"), script).unwrap();
    let port_text = format!("PORT={port}");
    let options = [
        "--alone",
        "--name",
        "app",
        "--env",
        &port_text,
        "--wait-ready",
        "--set",
        "shutdown_with_message=true",
    ];
    let (code, out, err) = home.troop(&[&["start", "server.js"], &options[..]].concat());
    assert!(code == 0 && !err.contains("clusters itself"), "{out}{err}");
    answer_of(port);
    home.fine(&["send", "app", "\"hello\""]);
    home.fine(&["stop", "app"]);
    let log = home.log("app.log");
    assert!(log.contains("got hello") && log.contains("asked"), "{log}");
    // Nothing of its own that troop would have to do with what it listens on.
    let (code, _, err) = home.troop(&["start", "server.js", "--alone", "--policy", "p2c"]);
    assert!(code == 2 && err.contains("policy has no effect with alone"), "{err}");
}

#[test]
fn whether_a_program_runs_alone_is_decided_at_its_start() {
    let home = Home::with(&[]);
    let port = free_port();
    let file = |alone: bool| {
        let app = format!(
            "[app.app]\nprogram = \"server.js\"\nworkers = 1\nalone = {alone}\nenv = {{ PORT = {port} }}\n"
        );
        std::fs::write(home.path().join("troop.toml"), app).unwrap();
    };
    let serves = "require('http').createServer((q, s) => s.end(`served by ${require('cluster').isPrimary}`)).listen(process.env.PORT, '127.0.0.1');";
    std::fs::write(home.path().join("server.js"), serves).unwrap();
    file(false);
    home.fine(&["start"]);
    assert!(answer_of(port).ends_with("false"));
    file(true);
    let (code, out, err) = home.troop(&["reload", "app"]);
    assert!(
        code == 0 && format!("{out}{err}").contains("alone only at the next start"),
        "{out}{err}"
    );
    assert!(answer_of(port).ends_with("false"));
    home.fine(&["restart", "app"]);
    assert!(answer_of(port).ends_with("true"));
}

#[test]
fn packages_that_are_known_to_cluster_programs_are_primaries_in_fork_mode_and_told_of_elsewhere() {
    let package = "const cluster = require('cluster'); module.exports = start => { if (!cluster.isPrimary) return start(); console.log('the primary'); cluster.fork(); cluster.fork(); };";
    let port = free_port();
    let script = "require('throng')(() => require('http').createServer((q, s) => s.end('served by it')).listen(process.env.PORT, '127.0.0.1'));";
    let app = file(&json!({ "env": { "PORT": port } }));
    let home = Home::with(&[("server.js", script), ("ecosystem.json", &app)]);
    std::fs::create_dir_all(home.path().join("node_modules/throng")).unwrap();
    std::fs::write(home.path().join("node_modules/throng/index.js"), package).unwrap();
    let (code, out, err) = home.troop(&["start", "ecosystem.json"]);
    assert!(code == 0 && err.contains("It runs alone, as in PM2's fork mode"), "{out}{err}");
    assert!(home.fine(&["show", "app"]).contains("alone"));
    wait_until("its part for a primary", || home.log("app.log").contains("the primary"));
    answer_of(port);
    home.fine(&["delete", "app"]);
    let port = format!("PORT={}", free_port());
    let start = ["start", "server.js", "-n", "app", "-w", "2", "--env", &port];
    let (code, out, err) = home.troop(&start);
    assert!(code == 0 && err.contains("the program clusters itself"), "{out}{err}");
    assert!(err.contains("throng") && err.contains("--alone"), "{err}");
    home.fine(&["delete", "app"]);
    // One that fails for it, too.
    let script = "if (require('throng')(() => 1)) throw new Error('no primary');";
    std::fs::write(home.path().join("server.js"), script).unwrap();
    let (code, out, err) = home.troop(&start);
    assert!(code == 1 && err.contains("tip: the program clusters itself"), "{out}{err}");
}

#[test]
fn a_package_that_clusters_a_program_is_named_if_nothing_listens() {
    let package =
        "if (require('cluster').isPrimary) require('cluster').fork(); setInterval(() => {}, 1e6);";
    let (idle, serving) = ("require('some');", format!("require('some');{SERVER}"));
    for (script, is_told) in [(idle, true), (&serving, false)] {
        let home = Home::with(&[("server.js", script), ("ecosystem.json", &file(&json!({})))]);
        std::fs::create_dir_all(home.path().join("node_modules/some")).unwrap();
        std::fs::write(home.path().join("node_modules/some/index.js"), package).unwrap();
        let (code, out, err) = home.troop(&["start", "ecosystem.json"]);
        assert!(code == 0 && out.contains("1 worker ready"), "{out}{err}");
        assert_eq!(
            err.contains("a package of the program asks for cluster.isPrimary"),
            is_told,
            "{err}"
        );
        assert!(!home.fine(&["show", "app"]).contains("alone"));
    }
}
