//! What PM2's users say, in a file or by flags, does to a running program what it did there.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::Home;
use support::pm2::{SERVER, both, file, told};
use troop_testkit::wait_until;

/// Notes when it starts, and ends.
const SHORT: &str = "require('fs').appendFileSync('starts', Date.now() + '\\n'); process.exit(Number(process.env.CODE ?? 1))";

fn starts(home: &Home) -> Vec<u64> {
    let text = std::fs::read_to_string(home.path().join("starts")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

#[test]
fn kill_timeout_ends_a_worker_that_does_not_end_by_itself() {
    let stays = format!(
        "{SERVER} process.on('SIGTERM', () => {{}}); process.on('disconnect', () => {{}}); setInterval(() => {{}}, 1000);"
    );
    both(&stays, &json!({ "kill_timeout": 300 }), &["--kill-timeout", "300"], |home, start| {
        home.fine(start);
        let before = Instant::now();
        home.fine(&["stop", "app"]);
        // The usual 30 s are not needed.
        assert!(before.elapsed() < Duration::from_secs(15), "it took {:?}", before.elapsed());
    });
}

#[test]
fn wait_ready_waits_for_the_ready_message_up_to_listen_timeout_and_then_says_that_it_is_missing() {
    both(
        SERVER,
        &json!({ "wait_ready": true, "listen_timeout": 700 }),
        &["--wait-ready", "--listen-timeout", "700"],
        |home, start| {
            let is_told = |args: &[&str]| {
                let (code, out, err) = home.troop(args);
                assert!(code == 0 && out.contains("1 worker ready"), "{args:?}: {out}{err}");
                let missing = "app: worker 1 has not called process.send('ready') within ";
                assert!(err.contains(missing), "{args:?}: {err}");
            };
            is_told(start);
            wait_until("the event in the log", || {
                home.log("app.log").contains("has not called process.send('ready')")
            });
            is_told(&["restart", "app"]);
        },
    );
    let says = format!("{SERVER} process.send('ready')");
    both(&says, &json!({ "wait_ready": true }), &["--wait-ready"], |home, start| {
        assert!(home.fine(start).contains("1 worker ready"));
        let (_, _, err) = home.troop(&["restart", "app"]);
        assert!(!err.contains("process.send"), "{err}");
        assert!(!home.log("app.log").contains("process.send"));
    });
}

#[test]
fn workers_with_a_final_exit_code_are_not_restarted() {
    for (fields, flags) in [
        (json!({ "autorestart": false }), &["--no-autorestart"][..]),
        (json!({ "stop_exit_codes": [2, 1] }), &["--stop-exit-codes", "2,1"]),
        (json!({ "stop_exit_codes": "1" }), &["--stop-exit-codes", "1"]),
    ] {
        both(SHORT, &fields, flags, |home, start| {
            let (code, _, err) = home.troop(start);
            assert!(code == 1 && err.contains("exit code 1"), "{start:?}: {code} {err}");
            assert_eq!(starts(home).len(), 1, "{start:?}");
        });
    }
}

#[test]
fn max_restarts_are_the_most() {
    let flags = ["--max-restarts", "2", "--min-uptime", "60000", "--restart-delay", "1"];
    let fields = json!({ "max_restarts": 2, "min_uptime": 60_000, "restart_delay": 1 });
    both(SHORT, &fields, &flags, |home, start| {
        let (code, _, err) = home.troop(start);
        assert!(code == 1 && err.contains("exit code 1"), "{code} {err}");
        // The second end is the second that does not count as a start.
        assert_eq!(starts(home).len(), 2, "{start:?}");
    });
}

#[test]
fn restarts_follow_the_configured_delay() {
    let pauses =
        |home: &Home| starts(home).windows(2).map(|pair| pair[1] - pair[0]).collect::<Vec<_>>();
    let flags = ["--max-restarts", "3", "--restart-delay", "600"];
    both(SHORT, &json!({ "max_restarts": 3, "restart_delay": 600 }), &flags, |home, start| {
        home.troop(start);
        let pauses = pauses(home);
        assert!(
            pauses.len() == 2 && pauses.iter().all(|pause| *pause >= 600),
            "{start:?}: {pauses:?}"
        );
    });
    let flags = ["--max-restarts", "4", "--exp-backoff-restart-delay", "300"];
    both(
        SHORT,
        &json!({ "max_restarts": 4, "exp_backoff_restart_delay": 300 }),
        &flags,
        |home, start| {
            home.troop(start);
            let pauses = pauses(home);
            // Four times the first, less a random quarter at most; a slow start can only make it
            // more.
            assert!(
                pauses.len() == 3 && pauses[0] >= 300 && pauses[2] >= 900,
                "{start:?}: {pauses:?}"
            );
        },
    );
}

#[test]
fn max_memory_restart_replaces_a_worker_that_has_become_too_big() {
    let grows = format!(
        "{SERVER} if (!require('fs').existsSync('grown')) {{ require('fs').writeFileSync('grown', ''); globalThis.all = Buffer.alloc(300e6, 1); }}"
    );
    both(
        &grows,
        &json!({ "max_memory_restart": "200M" }),
        &["--max-memory-restart", "200M"],
        |home, start| {
            home.fine(start);
            wait_until("a second worker", || {
                home.show("app")["workers"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .all(|worker| worker["id"] != 1)
            });
            assert!(told(home)["args"].is_array());
            std::fs::remove_file(home.path().join("grown")).unwrap();
        },
    );
}

#[test]
fn output_goes_to_the_configured_destination() {
    let home = Home::with(&[("server.js", SERVER)]);
    home.fine(&["start", "server.js", "-n", "app", "-i", "1", "-o", "out.log", "-e", "err.log"]);
    // As in PM2 and in a shell: beside the program, with what it prints and nothing else.
    let read = |name: &str| std::fs::read_to_string(home.path().join(name)).unwrap_or_default();
    wait_until("the output", || read("out.log") == "on standard output\n");
    wait_until("the errors", || read("err.log") == "on standard error\n");
    let all = ["-o", "out.log", "--error=err.log", "-l", "all.log", "-n", "both"];
    home.fine(&[&["start", "server.js"][..], &all].concat());
    wait_until("both", || read("all.log").lines().count() == 2);
    assert_eq!(read("out.log"), "on standard output\n".repeat(2));
    home.fine(&["start", "server.js", "-o", "NULL", "-n", "none"]);
    assert!(!home.fine(&["logs", "none", "--nostream"]).contains("on standard"));
    for (format, field) in [("--log-type=json", "log_type"), ("--time", "time")] {
        let value = if field == "time" { json!(true) } else { json!("json") };
        let fields = json!({ "out_file": "out.log", "error_file": "err.log", field: value });
        let home = Home::with(&[("server.js", SERVER), ("ecosystem.json", &file(&fields))]);
        home.fine(&["start", "ecosystem.json"]);
        let by_file = formatted(&home.path().join("out.log"));
        let home = Home::with(&[("server.js", SERVER)]);
        home.fine(&["start", "server.js", "-i", "1", "-o", "out.log", format]);
        let by_flags = formatted(&home.path().join("out.log"));
        for line in [by_file, by_flags] {
            if field == "time" {
                assert!(line.starts_with("20"), "{line}");
            } else {
                assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["slot"], 0);
            }
        }
    }
}

/// The line that the program has printed.
fn formatted(log: &Path) -> String {
    let mut found = None;
    wait_until("the output", || {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        found = text.lines().find(|line| line.contains("on standard output")).map(str::to_owned);
        found.is_some()
    });
    found.unwrap()
}

#[test]
fn programs_run_under_the_chosen_interpreter_with_their_arguments() {
    let fields = json!({ "args": "--one 'a b'", "node_args": ["--no-warnings", "--stack-size=900"], "interpreter": "node" });
    let flags = [
        "--interpreter",
        "node",
        "--node-args",
        "--no-warnings --stack-size=900",
        "--",
        "--one",
        "a b",
    ];
    both(SERVER, &fields, &flags, |home, start| {
        home.fine(start);
        let told = told(home);
        assert_eq!(
            (&told["args"], &told["node"]),
            (&json!(["--one", "a b"]), &json!(["--no-warnings", "--stack-size=900"]))
        );
    });
    // Something else than node; what it prints is all that it does.
    let script = "import os, sys, time\nopen('seen', 'w').write(repr((sys.argv[1:], sys.flags.optimize)))\ntime.sleep(1000)\n";
    let fields = json!({ "interpreter": "python3", "interpreter_args": "-O -u", "args": ["x"] });
    let flags = ["--interpreter", "python3", "--interpreter-args", "-O -u", "--", "x"];
    both(script, &fields, &flags, |home, start| {
        home.fine(start);
        wait_until("it", || {
            std::fs::read_to_string(home.path().join("seen")).is_ok_and(|seen| seen == "(['x'], 1)")
        });
    });
    // The program itself.
    let script = "#!/bin/sh\necho \"$0 $1\" > seen\nexec sleep 1000\n";
    let (fields, flags) =
        (json!({ "interpreter": "none", "args": "x" }), ["--interpreter", "none", "--", "x"]);
    let home = Home::with(&[
        ("server", script),
        ("ecosystem.json", &file(&fields).replace("./server.js", "./server")),
    ]);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(home.path().join("server"), mode).unwrap();
    let seen = || {
        std::fs::read_to_string(home.path().join("seen"))
            .is_ok_and(|seen| seen.ends_with("server x\n"))
    };
    home.fine(&["start", "ecosystem.json"]);
    wait_until("it", seen);
    home.fine(&["stop", "all", "--quick"]);
    std::fs::remove_file(home.path().join("seen")).unwrap();
    home.fine(&[&["start", "./server", "--name", "app", "-i", "1"], &flags[..]].concat());
    wait_until("it", seen);
}

#[test]
fn workers_have_the_configured_directory_and_user() {
    let home = Home::with(&[]);
    std::fs::create_dir(home.path().join("inner")).unwrap();
    std::fs::write(home.path().join("inner/server.js"), SERVER).unwrap();
    std::fs::write(home.path().join("inner/vars"), "GREETING=dear\n").unwrap();
    let root = rustix::process::geteuid().is_root();
    let mut fields = json!({ "cwd": "inner", "instance_var": "MY_INSTANCE", "env_file": "vars", "port": 4242, "exec_mode": "fork" });
    if root {
        // Numbers, as not every system has the same names.
        fields
            .as_object_mut()
            .unwrap()
            .extend([("uid".to_owned(), json!(65534)), ("gid".to_owned(), json!("65533"))]);
        std::process::Command::new("chmod").args(["-R", "a+rX"]).arg(home.path()).status().unwrap();
    }
    std::fs::write(home.path().join("ecosystem.json"), file(&fields)).unwrap();
    home.fine(&["start", "ecosystem.json"]);
    let by_file = told(&home);
    home.fine(&["stop", "app"]);
    let mut flags = vec![
        "start",
        "./server.js",
        "--name",
        "app",
        "-i",
        "1",
        "--cwd",
        "inner",
        "--env",
        "GREETING=dear",
        "--env",
        "PORT=4242",
    ];
    flags.extend(["--set", "slot_variable=MY_INSTANCE"]);
    if root {
        flags.extend(["--uid", "65534", "--gid", "65533"]);
    }
    home.fine(&flags);
    for told in [by_file, told(&home)] {
        assert_eq!(
            told["cwd"],
            home.path().canonicalize().unwrap().join("inner").display().to_string()
        );
        assert_eq!(
            (&told["instance"], &told["env"], &told["port"]),
            (&"0".into(), &"dear".into(), &"4242".into())
        );
        if root {
            assert_eq!((&told["uid"], &told["gid"]), (&65534.into(), &65533.into()));
        }
    }
}

#[test]
fn the_number_of_instances_is_as_configured() {
    let cpus = std::thread::available_parallelism().unwrap().get();
    for (number, count) in [(json!(3), 3), (json!("2"), 2), (json!("max"), cpus), (json!(0), cpus)]
    {
        let home = Home::with(&[
            ("server.js", SERVER),
            ("ecosystem.json", &file(&json!({ "instances": number }))),
        ]);
        home.fine(&["start", "ecosystem.json"]);
        assert_eq!(home.show("app")["workers"].as_array().unwrap().len(), count, "{number}");
    }
}

#[test]
fn watched_files_cause_a_reload_after_the_configured_delay() {
    let fields = json!({ "watch": true, "ignore_watch": ["notes"], "watch_delay": 400 });
    both(
        SERVER,
        &fields,
        &["--watch", "--ignore-watch", "notes", "--watch-delay", "400"],
        |home, start| {
            home.fine(start);
            std::fs::write(home.path().join("notes"), "nothing").unwrap();
            let changed = SERVER.replace("told())", "({ changed: true }))");
            std::fs::write(home.path().join("server.js"), changed).unwrap();
            wait_until("the new version", || told(home)["changed"] == true);
            // The one change that counts has brought one reload.
            let shown = home.show("app");
            assert_eq!(
                shown["workers"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|w| w["id"].as_u64().unwrap())
                    .max(),
                Some(2),
                "{shown}"
            );
        },
    );
}

#[test]
fn invalid_flags_are_reported() {
    let home = Home::with(&[("server.js", SERVER), ("ecosystem.json", &file(&json!({})))]);
    for (flags, part) in [
        (&["server.js", "--kill-timeout", "soon"][..], "milliseconds"),
        (&["server.js", "--kill-timeout", "5", "--grace", "5"], "cannot be used with"),
        (&["server.js", "--node-args", "'open"], "quotation"),
        (&["ecosystem.json", "--interpreter", "python3"], "command line"),
    ] {
        let (code, _, err) = home.troop(&[&["start"], flags].concat());
        assert!(code == 2 && err.contains(part), "{flags:?}: {code} {err}");
    }
}

#[test]
fn an_unknown_environment_is_an_error_and_a_known_one_gives_no_warning() {
    let fields = json!({ "env": { "GREETING": "dev" }, "env_production": { "GREETING": "live" } });
    let home = Home::with(&[("server.js", SERVER), ("ecosystem.json", &file(&fields))]);
    let (code, _, err) = home.troop(&["start", "ecosystem.json", "--env", "prodction"]);
    assert!(
        code == 2 && err.contains("env_prodction") && err.contains("production"),
        "{code} {err}"
    );
    let (code, _, err) = home.troop(&["start", "ecosystem.json", "--env", "production"]);
    assert_eq!((code, support::without_progress(&err).as_str()), (0, ""));
    assert_eq!(told(&home)["env"], "live");
    let unit =
        home.fine(&["startup", "--config", "ecosystem.json", "--env", "production", "--print"]);
    assert!(unit.contains(" run --env production --config ") && !unit.contains(".."), "{unit}");
    assert_eq!(
        home.troop(&["startup", "--config", "ecosystem.json", "--env", "none", "--print"]).0,
        2
    );
}

#[test]
fn numbers_in_quotes_are_numbers_in_pm2s_units() {
    let fields = json!({ "kill_timeout": "3000", "min_uptime": "5000", "max_restarts": "2", "listen_timeout": "1500" });
    let home = Home::with(&[("server.js", SERVER), ("ecosystem.json", &file(&fields))]);
    let text = home.fine(&["init", "--from", "ecosystem.json", "-o", "-"]);
    for part in ["grace = \"3s\"", "min_uptime = \"5s\"", "max = 2"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let wrong = file(&json!({ "max_restarts": "many" }));
    let home = Home::with(&[("server.js", SERVER), ("ecosystem.json", &wrong)]);
    let (code, _, err) = home.troop(&["check", "ecosystem.json"]);
    assert!(code == 2 && err.contains("max_restarts"), "{code} {err}");
}

#[test]
fn scripts_are_seen_from_where_the_app_runs() {
    let home = Home::with(&[]);
    std::fs::create_dir_all(home.path().join("sub/bin")).unwrap();
    std::fs::write(home.path().join("sub/bin/www"), SERVER).unwrap();
    for (name, fields) in [
        ("a.json", json!({ "script": "./bin/www" })),
        ("b.json", json!({ "script": "www", "cwd": "bin" })),
    ] {
        let mut app = json!({ "name": "app" });
        app.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        std::fs::write(home.path().join("sub").join(name), json!({ "apps": [app] }).to_string())
            .unwrap();
        home.fine(&["start", &format!("sub/{name}")]);
        assert!(told(&home)["script"].as_str().unwrap().ends_with("/www"));
        home.fine(&["stop", "app"]);
    }
}

#[test]
fn a_file_without_the_executable_bit_runs_under_the_interpreter_of_its_extension() {
    let python = "import time\nopen('seen', 'a').write('x')\ntime.sleep(1000)\n";
    let home = Home::with(&[("job.py", python)]);
    home.fine(&["start", "job.py", "-i", "1"]);
    wait_until("it", || home.path().join("seen").exists());
    home.fine(&["stop", "job"]);
    home.fine(&["init", "job.py"]);
    std::fs::remove_file(home.path().join("seen")).unwrap();
    home.fine(&["check"]);
    home.fine(&["start"]);
    wait_until("it again", || home.path().join("seen").exists());
}

#[test]
fn paths_that_a_watcher_ignores_may_be_written_as_in_pm2() {
    let fields =
        json!({ "watch": true, "ignore_watch": ["./logs", "data/*.db"], "watch_delay": 100 });
    let home = Home::with(&[("server.js", SERVER), ("ecosystem.json", &file(&fields))]);
    for directory in ["logs", "data"] {
        std::fs::create_dir(home.path().join(directory)).unwrap();
    }
    home.fine(&["start", "ecosystem.json"]);
    std::fs::write(home.path().join("logs/access.txt"), "x").unwrap();
    std::fs::write(home.path().join("data/x.db"), "x").unwrap();
    std::fs::write(
        home.path().join("server.js"),
        SERVER.replace("told())", "({ changed: true }))"),
    )
    .unwrap();
    wait_until("the new version", || told(&home)["changed"] == true);
    // The old one may still be leaving.
    let shown = home.show("app");
    assert_eq!(
        shown["workers"].as_array().unwrap().iter().map(|w| w["id"].as_u64().unwrap()).max(),
        Some(2),
        "one reload: {shown}"
    );
}

#[test]
fn an_app_started_with_no_wait_ends_too_if_it_cannot_start() {
    let home = Home::with(&[("short.js", "console.error('no database'); process.exit(3)")]);
    home.fine(&["start", "short.js", "-i", "1", "--no-wait", "--max-restarts", "2"]);
    wait_until("its failure", || {
        home.log("short.log").contains("giving up: no worker became ready")
    });
    // Nobody was told, so it is listed.
    wait_until("its end", || home.fine(&["ls", "--json"]).contains("\"phase\": \"failed\""));
    let (code, out, _) = home.troop(&["show", "short"]);
    assert!(code == 3 && out.contains("no worker became ready"), "{out}");
    let (code, _, err) =
        home.troop(&["start", "short.js", "-i", "1", "-n", "other", "--stop-exit-codes", "3"]);
    assert!(
        code == 1 && err.contains("exit code 3") && err.contains("no database"),
        "{code} {err}"
    );
}

#[test]
fn check_rejects_what_start_would_reject() {
    let home = Home::with(&[("server.js", SERVER)]);
    for (line, part) in [
        ("bind = [\"80000\"]", "80000"),
        ("bind = [\"x:y:z\"]", "x:y:z"),
        ("group = \"no-such-group\"", "no-such-group"),
        ("cpus = [\"999\"]", "CPU 999"),
        ("watch = { paths = [\"nowhere\"] }", "nowhere"),
        ("ready_timeout = 0", "ready_timeout"),
        ("restart = { final_codes = [300] }", "300"),
        ("drain_spread = 60", "drain_spread"),
        ("may_listen = [\"everywhere\"]", "may_listen"),
        ("cgroup = { other = { \"..\" = \"1\" } }", "cgroup"),
        ("cgroup = { memory_high = 0 }", "memory_high"),
    ] {
        std::fs::write(
            home.path().join("troop.toml"),
            format!("[app.web]\nprogram = \"server.js\"\n{line}\n"),
        )
        .unwrap();
        for verb in ["check", "start"] {
            let (code, _, err) = home.troop(&[verb]);
            assert!(code == 2 && err.contains(part), "{verb} with {line}: {code} {err}");
        }
    }
    std::fs::write(
        home.path().join("troop.toml"),
        "[app.web]\nprogram = \"python3\"\nnode_args = [\"--x\"]\n",
    )
    .unwrap();
    let (code, _, err) = home.troop(&["check"]);
    assert!(code == 2 && err.contains("node_args"), "{code} {err}");
    let (code, _, err) = home.troop(&["start", "server.js", "app:app"]);
    assert!(code == 2 && err.contains("behind `--`"), "{code} {err}");
    let (code, _, err) = home.troop(&["run", "-w", "0", "--set", "cgroup.memory=10M", "server.js"]);
    assert!(code == 2 && err.contains("cgroup"), "{code} {err}");
}

/// It ends as one that a terminal interrupts.
#[test]
fn a_program_that_is_not_nodes_is_interrupted_by_a_stop_and_a_reload() {
    if std::process::Command::new("python3").arg("--version").output().is_err() {
        return;
    }
    let program = "import time
try:
    while True: time.sleep(1)
except KeyboardInterrupt:
    open('ends', 'a').write('interrupted\\n')
";
    let file = "module.exports = { apps: [{ name: 'app', script: 'worker.py' }] }";
    let home = Home::with(&[("worker.py", program), ("ecosystem.config.js", file)]);
    let ends = || std::fs::read_to_string(home.path().join("ends")).unwrap_or_default();
    home.fine(&["start"]);
    home.fine(&["reload", "app"]);
    assert_eq!(ends(), "interrupted\n");
    home.fine(&["stop", "app"]);
    assert_eq!(ends(), "interrupted\n".repeat(2));
    // PM2's own variable says otherwise.
    let mut command = home.command(&["start", "ecosystem.config.js"]);
    assert!(command.env("PM2_KILL_SIGNAL", "SIGTERM").output().unwrap().status.success());
    home.fine(&["stop", "app"]);
    assert_eq!(ends(), "interrupted\n".repeat(2));
}

/// What JSON does not have is on no way lost.
#[test]
fn what_a_program_exports_that_is_no_data_is_named() {
    let file = "module.exports = { apps: [{
      name: 'app', script: 'server.js', max_restarts: Infinity, instances: parseInt(process.env.NO_SUCH_VARIABLE),
      ignore_watch: [/node_modules/, 'logs'], watch: true, env: { A: 1n, B: undefined }, post_update: () => {},
    }] }";
    let home = Home::with(&[("server.js", SERVER), ("ecosystem.config.js", file)]);
    let (code, out, err) = home.troop(&["start"]);
    for told in [
        "`apps[0].ignore_watch[0]` has no effect: it is a RegExp",
        "`apps[0].post_update` has no effect: it is a function",
        "`instances` has no effect: it is NaN",
    ] {
        assert!(code == 0 && err.matches(told).count() == 1, "{told}: {out}{err}");
    }
    let written: toml::Table =
        home.fine(&["init", "--from", "ecosystem.config.js", "-o", "-"]).parse().unwrap();
    let app = &written["app"]["app"];
    assert_eq!(app["env"].to_string(), r#"{ A = "1" }"#);
    assert_eq!(app["restart"]["max"].as_integer(), Some(i64::from(u32::MAX)));
    assert_eq!(app["watch"]["ignore"].to_string(), r#"["logs"]"#);
    for (exported, told) in [("() => ({ apps: [] })", "exports a function"), ("new Map()", "a Map")]
    {
        let text = format!("module.exports = {exported}");
        std::fs::write(home.path().join("ecosystem.config.js"), text).unwrap();
        let (code, _, err) = home.troop(&["check", "ecosystem.config.js"]);
        assert!(code != 0 && err.contains(told), "{err}");
    }
}
