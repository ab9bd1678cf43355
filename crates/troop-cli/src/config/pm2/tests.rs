use std::time::Duration;

use serde_json::json;

use super::place::Place;
use super::value::{json, yaml};
use super::*;
use crate::config::tables::{Form, KillMode, Ready, When};
use crate::config::values::{Time, Workers};

fn convert_in(text: &str, bases: &Bases) -> Converted {
    let Value::Object(fields) = json(text).unwrap() else { panic!("an object") };
    Fields::new(fields, None, &Map::new()).convert(bases).unwrap()
}

fn convert(text: &str) -> Converted {
    convert_in(text, &Bases::new(Path::new(""), Path::new("")))
}

fn apps(text: &str) -> (Apps, Vec<String>) {
    from_value(json(text).unwrap(), Path::new("ecosystem.json")).unwrap()
}

fn millis(time: Option<Time>) -> Option<u128> {
    time.map(|time| time.0.as_millis())
}

#[test]
fn each_field_that_means_something_here_is_taken() {
    let Converted { name, app, warnings, namespace } = convert(
        r#"{
            "name": "api", "script": "server.js", "cwd": "/srv", "args": "--port 80 'a b'", "node_args": ["--inspect"],
            "instances": "max", "exec_mode": "cluster", "env": {"A": 1, "B": "x", "C": null, "D": {"a": [true]}}, "max_memory_restart": "300M",
            "min_uptime": "5s", "max_restarts": 7, "restart_delay": 250, "stop_exit_codes": [0, 3],
            "kill_timeout": 1600, "shutdown_with_message": true, "listen_timeout": 8000, "wait_ready": true, "out_file": "o.log", "error_file": "e/e.log",
            "log_file": "all.log", "log_type": "json", "uid": "www", "gid": 33, "instance_var": "N", "increment_var": "PORT", "port": 3000, "watch": ["."],
            "ignore_watch": ["tmp"], "watch_delay": 500, "merge_logs": true, "treekill": true, "autostart": false, "namespace": "blue", "filter_env": ["AWS"]
        }"#,
    );
    assert_eq!(
        (name.as_str(), &warnings[..], namespace.as_deref()),
        ("api", &[][..], Some("blue"))
    );
    assert_eq!(
        (app.program.as_str(), &app.args.join("|")[..], &app.node_args[..]),
        ("server.js", "--port|80|a b", &["--inspect".to_owned()][..])
    );
    assert_eq!(
        (app.workers, app.recycle.memory.map(|m| m.0)),
        (Some(Workers::Auto), Some(300 << 20))
    );
    let env: Vec<_> = app.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(env, ["A=1", "B=x", "C=null", "D={\"a\":[true]}", "PORT=3000"]);
    assert_eq!(
        (millis(app.restart.min_uptime), millis(app.restart.delay), millis(app.restart.max_delay)),
        (Some(5000), Some(250), Some(250))
    );
    assert_eq!((app.restart.max, &app.restart.final_codes[..]), (Some(7), &[0, 3][..]));
    assert_eq!(
        (millis(app.grace), app.shutdown_with_message, millis(app.ready_timeout)),
        (Some(1600), true, None)
    );
    assert_eq!((app.ready, millis(app.assume_ready)), (Some(Ready::Message), Some(8000)));
    let output = &app.output;
    assert_eq!(
        (output.file.as_deref(), output.error_file.as_deref(), output.all_file.as_deref()),
        (Some(Path::new("./o.log")), Some(Path::new("e/e.log")), Some(Path::new("./all.log")))
    );
    assert_eq!((output.format, output.events_apart), (Some(Form::Json), true));
    assert_eq!(
        (app.user.as_deref(), app.group.as_deref(), app.slot_variable.as_deref()),
        (Some("www"), Some("33"), Some("N"))
    );
    assert_eq!(
        (app.increment_variable.as_deref(), app.autostart, &app.env_remove[..], app.kill_mode),
        (Some("PORT"), Some(false), &["*AWS*".to_owned()][..], None)
    );
    let watch = app.watch.unwrap();
    assert_eq!(
        (watch.paths, watch.ignore, millis(watch.delay)),
        (vec![".".into()], vec!["tmp".into()], Some(500))
    );
}

#[test]
fn fields_have_the_names_that_pm2_knows() {
    let Converted { app, warnings, .. } = convert(
        r#"{ "exec": "x.js", "interpreterArgs": "--a", "maxMemoryRestart": "1M", "out_log": "o", "err_log": "e", "waitReady": true,
             "log-date-format": "YYYY", "treekill": false, "disable_logs": true, "autorestart": "false" }"#,
    );
    assert_eq!((&app.program[..], &app.node_args[..]), ("x.js", &["--a".to_owned()][..]));
    assert_eq!(app.recycle.memory.map(|size| size.0), Some(1 << 20));
    assert_eq!(
        (app.output.file, app.output.error_file, app.output.format),
        (Some("./o".into()), Some("./e".into()), Some(Form::Prefixed))
    );
    assert_eq!((app.kill_mode, app.silent), (Some(KillMode::Process), true));
    assert_eq!((app.ready, app.restart.when), (Some(Ready::Message), Some(When::Never)));
    assert_eq!(millis(app.assume_ready), Some(3000));
    assert_eq!(warnings.len(), 1, "{warnings:?}");
}

#[test]
fn an_app_without_a_script_is_named_with_the_field_that_was_meant() {
    for (text, error) in [
        (r#"{"scripts": "./start", "name": "web"}"#, "app web has no `script`; is it `scripts`?"),
        (r#"{"name": "web", "args": "a"}"#, "app web has no `script`"),
        (r#"[{"args": "a"}]"#, "an app has no `script`"),
    ] {
        let value = json(&format!(r#"{{"apps": {text}}}"#)).unwrap();
        let found = from_value(value, Path::new("pm2.yml")).unwrap_err();
        assert_eq!(found, format!("pm2.yml: {error}"));
    }
}

#[test]
fn json_is_read_as_javascript_reads_it() {
    let (apps, warnings) = apps(
        "/* of one */ { apps: [ // the first\n { name: 'a', \"script\": 'a.js', env: { A: .5, }, }, ], \"deploy\": {} }",
    );
    assert_eq!((apps["a"].program.as_str(), apps["a"].env["A"].as_str()), ("a.js", "0.5"));
    assert_eq!(warnings, Vec::<String>::new());
    for (bad, part) in [("{ apps: [ { script: 'a' ", "EOF"), ("{\n apps: [ + ] }", "2")] {
        let e = json(bad).unwrap_err();
        assert!(e.contains(part), "{e}");
    }
    assert!(json(&"[".repeat(100_000)).unwrap_err().contains("deeper than"));
    assert!(json(&format!("{}'", "[".repeat(100))).is_err());
}

#[test]
fn a_file_may_hold_one_app_and_apps_may_be_under_pm2() {
    for text in [
        "{ name: 'a', script: 'a.js' }",
        "{ apps: { name: 'a', script: 'a.js' } }",
        "{ pm2: [{ name: 'a', script: 'a.js' }] }",
        "[{ name: 'a', script: 'a.js' }]",
    ] {
        assert!(apps(text).0.contains_key("a"), "{text}");
    }
}

#[test]
fn apps_of_the_same_name_get_names_of_their_own() {
    let (apps, warnings) = apps(
        r#"[
            { "name": "api", "script": "a.js", "namespace": "blue" }, { "name": "api", "script": "b.js", "namespace": "green" },
            { "name": "job", "script": "c.js" }, { "name": "job", "script": "d.js" }, { "name": "почта", "script": "e.js" }, { "name": "a b", "script": "f.js" }
        ]"#,
    );
    let names: Vec<_> = apps.keys().map(String::as_str).collect();
    assert_eq!(names, ["a-b", "blue-api", "green-api", "job", "job-2", "почта"]);
    assert_eq!(
        (apps["green-api"].program.as_str(), apps["job-2"].program.as_str()),
        ("b.js", "d.js")
    );
    assert!(warnings.iter().any(|w| w.contains("of namespace green is green-api")), "{warnings:?}");
}

#[test]
fn what_means_nothing_here_is_said() {
    let Converted { name, app, warnings, .. } = convert(
        r#"{"name": "my app", "script": "x.py", "interpreter": "python3", "pid_files": "0 0 * * *", "max_restart": 3, "instance": 1}"#,
    );
    assert_eq!(
        (name.as_str(), app.program.as_str(), &app.args[..]),
        ("my-app", "python3", &["x.py".to_owned()][..])
    );
    for part in [
        "did you mean `pid_file`",
        "my-app",
        "did you mean `max_restarts`",
        "did you mean `instances`",
    ] {
        assert!(warnings.iter().any(|w| w.contains(part)), "{part}: {warnings:?}");
    }
    assert_eq!((app.workers, app.restart.max), (Some(Workers::Number(1)), None));
}

#[test]
fn scripts_run_with_what_their_ending_says() {
    for (script, program, args) in [
        ("a.py", "python3", "a.py"),
        ("b.sh", "bash", "b.sh"),
        ("c.js", "c.js", ""),
        ("sleep", "sleep", ""),
        ("python3.11", "python3.11", ""),
        ("npm run start", place::shell(), "-c npm run start"),
    ] {
        for interpreter in ["", r#", "interpreter": """#, r#", "interpreter": null"#] {
            let Converted { app, .. } =
                convert(&format!(r#"{{"script": "{script}"{interpreter}}}"#));
            assert_eq!((app.program.as_str(), app.args.join(" ").as_str()), (program, args));
        }
    }
    let names = ["npm run start", "dist/main.js", "node dist/main.js --port 1", "./x.y.js"]
        .map(|script| convert(&json!({ "script": script }).to_string()).name);
    assert_eq!(names, ["npm-run-start", "main", "main", "x-y"]);
    let python = convert(r#"{"script": "a.py", "env": {"PYTHONUNBUFFERED": "0"}}"#);
    assert_eq!(python.app.env["PYTHONUNBUFFERED"], "0");
}

#[test]
fn log_files_hold_what_the_program_prints_and_nothing_else() {
    let output = |fields: &str| {
        let text = format!(r#"{{"name": "web", "script": "a.js", {fields}}}"#);
        let Converted { app, warnings, .. } = convert(&text);
        let path = |path: Option<PathBuf>| path.map(|path| path.display().to_string());
        let output = app.output;
        assert_eq!(output.events_apart, output.file.is_some());
        (
            [path(output.file), path(output.error_file), path(output.all_file)]
                .map(Option::unwrap_or_default)
                .join(" "),
            output.format,
            warnings.len(),
        )
    };
    let plain = Some(Form::Plain);
    for (fields, files, format, warned) in [
        (r#""out_file": "a.log""#, "./a.log web-error.log ", plain, 0),
        (r#""error_file": "a.log""#, "web-out.log ./a.log ", plain, 0),
        (r#""out_file": "a.log", "error_file": "a.log""#, "./a.log  ", plain, 0),
        (r#""log_file": "l/a.log""#, "l/a.log  ", plain, 0),
        (r#""out_file": "/o", "error_file": "~/e", "log_file": "/all""#, "/o ~/e /all", plain, 0),
        (r#""out_file": "/o", "error_file": "/o", "log_file": "/o""#, "/o  ", plain, 0),
        (r#""out_file": "/dev/null", "error_file": "NULL""#, "/dev/null  ", plain, 0),
        (r#""out_file": "/dev/stdout", "error_file": "/dev/stderr""#, "  ", None, 1),
        (r#""out_file": null, "log_file": true"#, "  ", None, 0),
        (r#""out_file": "a", "error_file": "a", "time": true"#, "./a  ", Some(Form::Prefixed), 0),
        (r#""time": false"#, "  ", None, 0),
    ] {
        assert_eq!(output(fields), (files.to_owned(), format, warned), "{fields}");
    }
}

#[test]
fn instances_have_log_files_of_their_own_where_they_have_them_in_pm2() {
    for (fields, are_apart) in [
        ("", false),
        (r#", "instances": 1"#, true),
        (r#", "instances": "2""#, true),
        (r#", "instances": "max""#, false),
        (r#", "instances": "max", "exec_mode": "cluster""#, true),
        (r#", "exec_mode": "cluster_mode""#, true),
        (r#", "exec_mode": "fork", "merge_logs": false"#, true),
        (r#", "instances": 2, "combine_logs": true"#, false),
    ] {
        let text = format!(r#"{{"script": "a.js", "out_file": "a.log", "pid": "a.pid"{fields}}}"#);
        let app = convert(&text).app;
        assert_eq!(app.output.per_worker, are_apart, "{fields}");
        assert_eq!(app.worker_pid_file.as_deref(), Some(Path::new("./a.pid")));
    }
    assert_eq!(convert(r#"{"script": "a.js", "pid_file": "/dev/null"}"#).app.worker_pid_file, None);
}

#[test]
fn a_script_called_serve_is_a_server_of_files() {
    let run = |fields: &str| {
        let Converted { app, warnings, .. } =
            convert(&format!(r#"{{"script": "serve", {fields}}}"#));
        (app.args.join(" "), app.alone, warnings.len())
    };
    let served = |text: &str| (text.to_owned(), None, 0);
    assert_eq!(run(r#""name": "a""#), served("serve-files . 8080"));
    assert_eq!(
        run(
            r#""env": {"PM2_SERVE_PATH": "dist", "PM2_SERVE_PORT": 80, "PM2_SERVE_SPA": true, "PM2_SERVE_HOMEPAGE": "/a.html"}"#
        ),
        served("serve-files --spa --homepage=/a.html dist 80")
    );
    assert_eq!(
        run(r#""args": "dist 3000 ::1", "env": {"PM2_SERVE_BASIC_AUTH": "true"}"#),
        served("serve-files --basic-auth dist [::1]:3000")
    );
    assert_eq!(run(r#""env": {"PM2_SERVE_FTP": "true"}"#).2, 1);
    // Without a password, which is not meant.
    assert_eq!(run(r#""env": {"PM2_SERVE_BASIC_AUTH": "yes"}"#).2, 1);
    // Options for npm's program beside it.
    assert_eq!(
        run(r#""args": "-s dist -l 3000", "env": {"PM2_SERVE_PATH": "./dist"}"#),
        served("serve-files ./dist 8080")
    );
    // The program of npm.
    let npm = convert(r#"{"script": "serve", "args": "-s dist"}"#).app;
    assert_eq!((&*npm.program, npm.args.join(" ")), ("serve", "-s dist".into()));
    let (apps, warnings) = apps(
        r#"{ apps: [{ name: 'a', script: 'a.js' }], static: [{ port: 81, path: 'p', basic_auth: { username: 'u', password: 'p' } }] }"#,
    );
    let served = &apps["static-page-server-81"];
    assert_eq!(served.args.join(" "), "serve-files --basic-auth p 81");
    assert_eq!(served.env["PM2_SERVE_BASIC_AUTH_PASSWORD"], "p");
    assert_eq!(warnings, Vec::<String>::new());
}

#[test]
fn a_back_off_overrides_a_fixed_delay() {
    for (fields, delay, longest) in [
        (r#""exp_backoff_restart_delay": 100, "restart_delay": 4000"#, Some(100), Some(15_000)),
        (r#""exp_backoff_restart_delay": 20000"#, Some(20_000), Some(20_000)),
        (r#""exp_backoff_restart_delay": 0, "restart_delay": 4000"#, Some(4000), Some(4000)),
        (r#""name": "a""#, None, None),
    ] {
        let Converted { app, .. } = convert(&format!(r#"{{"script": "a.js", {fields}}}"#));
        let delays = (millis(app.restart.delay), millis(app.restart.max_delay));
        assert_eq!(delays, (delay, longest), "{fields}");
    }
}

#[test]
fn what_ends_by_itself_is_a_job_at_the_times_of_a_restart() {
    for (fields, job, reload) in [
        (r#""autorestart": false"#, Some("0 4 * * *"), None),
        (r#""autorestart": true"#, None, Some("0 4 * * *")),
    ] {
        let text = format!(r#"{{"script": "a.js", "cron_restart": "0 4 * * *", {fields}}}"#);
        let Converted { app, .. } = convert(&text);
        let times = (app.cron.as_deref(), app.recycle.cron.as_deref(), app.run_at_start);
        assert_eq!(times, (job, reload, job.is_some()));
    }
    assert_eq!(convert(r#"{"script": "a.js", "cron": 0}"#).app.recycle.cron, None);
}

#[test]
fn a_listen_timeout_shortens_no_start() {
    let timeout = |fields: &str| {
        let Converted { app, .. } = convert(&format!(r#"{{"script": "a.js", {fields}}}"#));
        (millis(app.ready_timeout), millis(app.assume_ready))
    };
    assert_eq!(timeout(r#""listen_timeout": 1000"#), (None, None));
    assert_eq!(timeout(r#""listen_timeout": 60000"#), (Some(60_000), None));
    assert_eq!(timeout(r#""listen_timeout": 1000, "wait_ready": "true""#), (None, Some(1000)));
}

#[test]
fn what_is_watched_may_be_a_text_and_may_be_missing() {
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(home.path().join("src/deep")).unwrap();
    let bases = Bases::new(home.path(), home.path());
    let watched = |value: &str| {
        let text = format!(r#"{{"script": "a.js", "watch": {value}}}"#);
        let Converted { app, warnings, .. } = convert_in(&text, &bases);
        let paths = app.watch.map(|watch| watch.paths);
        (
            paths.map(|paths| {
                paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(" ")
            }),
            warnings.len(),
        )
    };
    let some = |text: &str| Some(text.to_owned());
    for (value, paths, warned) in [
        (r#""true""#, some(""), 0),
        ("true", some(""), 0),
        (r#""false""#, None, 0),
        ("false", None, 0),
        (r#""src""#, some("src"), 0),
        (r#"["src", "gone"]"#, some("src"), 1),
        (r#"["gone"]"#, None, 1),
        (r#"["src/**/*.js", "*.json"]"#, some("src/**/*.js *.json"), 0),
    ] {
        assert_eq!(watched(value), (paths, warned), "{value}");
    }
}

#[test]
fn paths_are_relative_to_the_caller_or_else_to_the_file() {
    let home = tempfile::tempdir().unwrap();
    let (caller, beside) = (home.path().join("caller"), home.path().join("beside"));
    for path in ["caller/a.js", "beside/a.js", "beside/b.js", "beside/sub/c.js", "caller/own/c.js"]
    {
        let path = home.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "").unwrap();
    }
    let bases = Bases::new(&caller, &beside);
    let find = |script: &str, cwd: Option<&str>| {
        let Place { directory, cwd, warning } = bases.find(script, cwd);
        let directory = directory.strip_prefix(home.path()).unwrap().display().to_string();
        (directory, cwd.is_some(), warning.is_some())
    };
    let at = |directory: &str, has_cwd, warned| (directory.to_owned(), has_cwd, warned);
    assert_eq!(find("a.js", None), at("caller", true, false));
    assert_eq!(find("b.js", None), at("beside", false, true));
    assert_eq!(find("c.js", Some("sub")), at("beside/sub", true, true));
    assert_eq!(find("c.js", Some("own")), at("caller/own", true, false));
    assert_eq!(find("npm", None), at("caller", true, false));
    assert_eq!(find("npm", Some("sub")), at("beside/sub", true, true));
    // Where both are the same, options are those of the file.
    let bases = Bases::new(&beside, &beside);
    assert_eq!(
        (bases.find("b.js", None).cwd, bases.find("c.js", Some("sub")).cwd),
        (None, Some("sub".into()))
    );
}

#[test]
fn variables_of_a_deployment_are_the_least() {
    let rest =
        json(r#"{"deploy": {"production": {"env": {"A": "deployed", "B": "deployed"}}}}"#).unwrap();
    let fields = json!({ "script": "a.js", "env": { "B": "own", "C": "own" }, "env_production": { "C": "live" } });
    let (Value::Object(rest), Value::Object(fields)) = (rest, fields) else { panic!("objects") };
    let converted = Fields::new(fields, Some("production"), &rest);
    let app = converted.convert(&Bases::new(Path::new(""), Path::new(""))).unwrap().app;
    let env: Vec<_> = app.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(env, ["A=deployed", "B=own", "C=live"]);
    assert_eq!(check_environment("production", &[], &rest), Ok(()));
    let e = check_environment("prod", &[json!({ "env_file": ".env", "env_dev": {} })], &rest);
    assert!(e.unwrap_err().ends_with(": dev"));
}

#[test]
fn filters_of_variables_leave_what_programs_need() {
    let filter = |value: Value| {
        convert(&json!({ "script": "a.js", "filter_env": value }).to_string()).app.env_remove
    };
    assert_eq!(filter(json!("A")), ["A"]);
    assert_eq!(filter(json!(["A", "B"])), ["*A*", "*B*"]);
    let all = filter(json!(true));
    assert!(all[0] == "*" && all.contains(&"!PATH".to_owned()));
    assert_eq!(filter(json!(false)), Vec::<String>::new());
}

#[test]
fn times_have_pm2s_units() {
    let Converted { app, .. } = convert(
        r#"{"script": "a.js", "kill_timeout": "3000", "min_uptime": "5000", "max_restarts": " 2 "}"#,
    );
    assert_eq!(app.grace, Some(Time(Duration::from_secs(3))));
    assert_eq!((millis(app.restart.min_uptime), app.restart.max), (Some(5000), Some(2)));
}

#[test]
fn numbers_are_read_as_javascript_reads_them() {
    let app = |fields: &str| convert(&format!(r#"{{script: "a.js", {fields}}}"#)).app;
    let written = app("max_restarts: 1e1, min_uptime: 5e3, instances: 2.0, kill_timeout: 0.5");
    assert_eq!((written.restart.max, written.workers), (Some(10), Some(Workers::Number(2))));
    assert_eq!(millis(written.restart.min_uptime), Some(5000));
    assert_eq!(written.grace, Some(Time(Duration::from_micros(500))));
    // As many as there are.
    let endless = app("max_restarts: Infinity, max_memory_restart: +Infinity");
    assert_eq!((endless.restart.max, endless.recycle.memory), (Some(u32::MAX as usize), None));
    assert_eq!(
        yaml("a: .inf\nb: [-.inf, .nan, 1.5, ~]").unwrap(),
        json!({ "a": "Infinity", "b": ["-Infinity", "NaN", 1.5, null] })
    );
    let text = r#"{"script": "a.js", "max_restarts": 1.5}"#;
    let Value::Object(fields) = json(text).unwrap() else { panic!("an object") };
    let e = Fields::new(fields, None, &Map::new()).convert(&Bases::new("".as_ref(), "".as_ref()));
    assert!(e.unwrap_err().contains("max_restarts: it must be a number"));
}

#[test]
fn nothing_is_dropped_without_a_word() {
    for (fields, about) in [
        ("instances: NaN", "`instances` has no effect: it is NaN"),
        ("killTimeout: Infinity", "`killTimeout` has no effect: it is Infinity"),
        ("max_restarts: NaN", "`max_restarts` has no effect"),
        ("out: 'a', output: 'b'", "`output` has no effect beside `out_file`"),
        ("exec: 'b.js'", "`exec` has no effect beside `script`"),
        ("env: 'A=1'", "`env` has no effect"),
        ("env_production: ['A=1']", "`env_production` has no effect"),
        ("out_file: 1", "`out_file` has no effect"),
        ("pid_file: false", "`pid_file` has no effect"),
        ("log_type: 'xml'", "`log_type` has no effect"),
        ("watch_options: { usePolling: true }", "`watch_options` has no effect"),
        ("script: 'npm start', node_args: '--inspect'", "`node_args` have no effect"),
    ] {
        let script = if fields.starts_with("script") { "" } else { "script: 'a.js', " };
        let Converted { warnings, .. } = convert(&format!("{{{script}{fields}}}"));
        assert!(warnings.iter().any(|warning| warning.contains(about)), "{fields}: {warnings:?}");
    }
    // What PM2 refuses is refused.
    for (fields, why) in [
        ("autorestart: 'no'", "autorestart: it must be true or false"),
        ("treekill: 0", "treekill: it must be true or false"),
        ("merge_logs: 'yes'", "merge_logs: it must be true or false"),
        ("exec_mode: 'clustered'", "exec_mode: it must be fork or cluster"),
        ("stop_exit_codes: [0, 'x']", "stop_exit_codes: it must be a list of exit codes"),
        ("kill_signal: 'SIGKILL'", "kill_signal: SIGKILL: no program can handle it"),
        ("kill_signal: 'BYE'", "kill_signal: there is no such signal"),
        ("env: { PM2_KILL_SIGNAL: 'BYE' }", "PM2_KILL_SIGNAL: there is no such signal"),
    ] {
        let Value::Object(all) = json(&format!("{{script: 'a.js', {fields}}}")).unwrap() else {
            panic!("an object")
        };
        let e = Fields::new(all, None, &Map::new()).convert(&Bases::new("".as_ref(), "".as_ref()));
        assert!(e.as_ref().is_err_and(|e| e.contains(why)), "{fields}: {e:?}");
    }
    // The same twice is none the worse for it.
    assert_eq!(convert("{script: 'a.js', exec: 'a.js', log_type: 'raw'}").warnings, [""; 0]);
}

#[test]
fn programs_are_asked_to_finish_by_the_signal_that_pm2_sends() {
    use std::os::unix::fs::PermissionsExt as _;
    let home = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("snake", "#!/usr/bin/env -S python3 -u\n"),
        ("shell", "#!/bin/sh\n"),
        ("node", "#!/usr/bin/env node\n"),
        ("binary", "\x7fELF"),
    ] {
        std::fs::write(home.path().join(name), text).unwrap();
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(home.path().join(name), mode).unwrap();
    }
    let bases = Bases::new(home.path(), home.path());
    let signal = |fields: &str| convert_in(&format!("{{{fields}}}"), &bases).app.stop_signal;
    for (fields, expected) in [
        ("script: 'a.py'", Some("SIGINT")),
        ("script: 'a.rb'", Some("SIGINT")),
        ("script: './snake'", Some("SIGINT")),
        ("script: './binary'", Some("SIGINT")),
        ("script: 'index.ts', interpreter: 'bun'", Some("SIGINT")),
        // Node programs get the one that they handle.
        ("script: 'a.js'", None),
        ("script: './node'", None),
        ("script: 'a.js', interpreter: '/opt/node/bin/node'", None),
        // They would not pass it on.
        ("script: 'a.sh'", None),
        ("script: './shell'", None),
        ("script: 'python3 a.py --x'", None),
        ("script: 'npm', args: 'start'", None),
        // It would cut off requests.
        ("script: '/usr/bin/gunicorn', args: 'app:app'", None),
        ("script: 'venv/bin/gunicorn', interpreter: 'python3'", None),
        ("script: 'serve'", None),
        // What is said is done.
        ("script: 'a.py', kill_signal: 'SIGTERM'", Some("SIGTERM")),
        ("script: 'a.js', stopSignal: 'SIGUSR2'", Some("SIGUSR2")),
        ("script: 'a.js', env: { PM2_KILL_SIGNAL: 'SIGQUIT' }", Some("SIGQUIT")),
    ] {
        assert_eq!(signal(fields).as_deref(), expected, "{fields}");
    }
    let variables = "env: { PM2_KILL_TIMEOUT: 3000, PM2_KILL_USE_MESSAGE: true }";
    let app = convert(&format!("{{script: 'a.js', {variables}}}")).app;
    assert_eq!((millis(app.grace), app.shutdown_with_message), (Some(3000), true));
    let app = convert(&format!("{{script: 'a.js', kill_timeout: 1, {variables}}}")).app;
    assert_eq!(millis(app.grace), Some(1));
}
