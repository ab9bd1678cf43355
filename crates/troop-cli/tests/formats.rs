//! Files of others: PM2's and Procfiles, read as they are and converted; and systemd units.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;
use troop_testkit::{talk, wait_until};

const SERVER: &str = "
console.log('instance', process.env.NODE_APP_INSTANCE, process.env.MY_INSTANCE);
const told = { args: process.argv.slice(2), node: process.execArgv, env: process.env.GREETING, port: process.env.PORT, cwd: process.cwd() };
require('http').createServer((q, s) => s.end(JSON.stringify(told))).listen(0, '127.0.0.1', () => process.send('ready'));
";

fn with(files: &[(&str, &str)]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in [("server.js", SERVER)].iter().chain(files) {
        std::fs::write(directory.path().join(name), text).unwrap();
    }
    directory
}

fn troop(directory: &Path, args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_troop"));
    command.args(args).current_dir(directory).stdin(Stdio::null());
    command
        .env("TROOP_RUNTIME_DIR", directory.join("run"))
        .env("TROOP_LOG_DIR", directory.join("logs"));
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

/// Ends what was started, also when the test fails.
struct Ends<'a>(&'a Path);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        troop(self.0, &["stop", "all", "--quick"]);
    }
}

fn show(directory: &Path, name: &str) -> Value {
    let (code, out, err) = troop(directory, &["show", name, "--json"]);
    assert_eq!(code, 0, "{err}");
    serde_json::from_str::<Vec<Value>>(&out).unwrap().remove(0)
}

/// What its server tells of itself.
fn told(directory: &Path, name: &str) -> Value {
    let shown = show(directory, name);
    let port: u16 = shown["listeners"][0]["address"]
        .as_str()
        .unwrap()
        .rsplit(':')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let answer = talk(([127, 0, 0, 1], port), "GET / HTTP/1.0\r\n\r\n").unwrap();
    serde_json::from_str(answer.rsplit("\r\n").next().unwrap()).unwrap()
}

const ECOSYSTEM: &str = r#"{
  "apps": [{
    "name": "api", "script": "./server.js", "args": "--one 'a b'", "node_args": "--no-warnings", "instances": 2, "exec_mode": "cluster",
    "env": { "GREETING": "dev", "PORT": 1 }, "env_production": { "GREETING": "live" }, "port": 4242, "wait_ready": true,
    "listen_timeout": 10000, "kill_timeout": 2000, "max_memory_restart": "500M", "out_file": "api-out.log", "error_file": "api-err.log",
    "instance_var": "MY_INSTANCE", "merge_logs": true, "time": true, "pid_file": "api.pid", "color": "red"
  }]
}"#;

#[test]
fn an_ecosystem_file_is_started_as_it_is_in_every_format() {
    let yaml = "apps:\n  - name: api\n    script: ./server.js\n    args: [--one, a b]\n    node_args: --no-warnings\n    instances: 2\n    env:\n      GREETING: dev\n    env_production:\n      GREETING: live\n    port: 4242\n    out_file: api-out.log\n    instance_var: MY_INSTANCE\n    wait_ready: true\n    merge_logs: true\n    pid_file: api.pid\n    color: red\n";
    let js = format!("console.log('loading'); module.exports = {ECOSYSTEM}");
    let module = format!("export default {ECOSYSTEM}");
    for (name, text) in [
        ("ecosystem.config.js", js.as_str()),
        ("ecosystem.config.cjs", &js),
        ("pm2.config.mjs", &module),
        ("ecosystem.json", ECOSYSTEM),
        ("process.yml", yaml),
    ] {
        let directory = with(&[(name, text)]);
        let path = directory.path();
        let _ends = Ends(path);
        let (code, out, err) = troop(path, &["start", name, "--env", "production"]);
        assert!(code == 0 && out.starts_with("api: 2 workers ready"), "{name}: {out}{err}");
        assert!(err.contains("`color` means nothing here"), "{err}");
        wait_until("the pid files", || path.join("api-0.pid").exists());
        let told = told(path, "api");
        assert_eq!(
            (&told["args"], &told["node"]),
            (&serde_json::json!(["--one", "a b"]), &serde_json::json!(["--no-warnings"]))
        );
        assert_eq!((&told["env"], &told["port"]), (&"live".into(), &"4242".into()));
        let log = || std::fs::read_to_string(path.join("api-out.log")).unwrap_or_default();
        wait_until("the log", || log().contains("instance 0 0") && log().contains("instance 1 1"));
        assert_eq!(
            show(path, "api")["file"],
            path.canonicalize().unwrap().join(name).display().to_string()
        );
        // A changed file is rolled out.
        std::fs::write(path.join(name), text.replace("live", "changed")).unwrap();
        let (code, _, err) = troop(path, &["reload", "api"]);
        assert!(code == 0 && err.contains("env GREETING"), "{err}");
        assert_eq!(self::told(path, "api")["env"], "changed");
    }
}

#[test]
fn a_procfile_is_started_as_it_is() {
    let directory = with(&[
        (
            "Procfile",
            "# two of them\nweb: node server.js --port 1\nother: GREETING=$NAME exec node server.js \"$NAME\"\n",
        ),
        (".env", "NAME=from-env\n"),
    ]);
    let path = directory.path();
    let _ends = Ends(path);
    let (code, out, err) = troop(path, &["start", "Procfile"]);
    assert!(
        code == 0 && out.contains("web: 1 worker ready") && out.contains("other: 1 worker ready"),
        "{out}{err}"
    );
    assert_eq!(told(path, "web")["args"], serde_json::json!(["--port", "1"]));
    let other = told(path, "other");
    assert_eq!((&other["env"], &other["args"][0]), (&"from-env".into(), &"from-env".into()));
    // One of them.
    troop(path, &["stop", "all"]);
    let (code, out, err) = troop(path, &["start", "Procfile", "--", "web"]);
    assert!(code == 0 && out.starts_with("web:"), "{out}{err}");
    assert_eq!(troop(path, &["show", "other"]).0, 3);
}

#[test]
fn files_of_others_are_converted_and_then_mean_the_same() {
    let directory = with(&[("ecosystem.json", ECOSYSTEM), ("Procfile", "jobs: node server.js\n")]);
    let path = directory.path();
    let (code, out, err) = troop(path, &["init", "--from", "ecosystem.json"]);
    assert!(code == 0 && out.contains("api") && err.contains("`color`"), "{out}{err}");
    let text = std::fs::read_to_string(path.join("troop.toml")).unwrap();
    for part in [
        "[app.api]",
        "workers = \"2\"",
        "memory = \"500M\"",
        "ready = \"message\"",
        "grace = \"2s\"",
        "slot_variable = \"MY_INSTANCE\"",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert_eq!(troop(path, &["check"]), (0, "troop.toml: api is fine\n".into(), String::new()));
    let (code, _, err) = troop(path, &["init", "--from", "Procfile"]);
    assert!(code == 2 && err.contains("--force"), "{err}");
    let (code, out, _) = troop(path, &["init", "--from", "Procfile", "-o", "-"]);
    assert!(code == 0 && out.contains("[app.jobs]") && out.contains("program = \"node\""), "{out}");
    let _ends = Ends(path);
    let (code, out, err) = troop(path, &["start"]);
    assert!(code == 0 && out.starts_with("api: 2 workers ready"), "{out}{err}");
    assert_eq!(told(path, "api")["env"], "dev");
}

#[test]
fn invalid_files_are_reported_with_the_reason() {
    for (name, text, part) in [
        ("ecosystem.config.js", "module.exports = { apps: [{ name: 'x' }] }", "no `script`"),
        ("ecosystem.config.js", "throw new TypeError('broken')", "TypeError: broken"),
        ("ecosystem.config.js", "module.exports = 5", "no list `apps`"),
        ("ecosystem.json", "{", "EOF"),
        (
            "ecosystem.json",
            r#"{"apps": [{"script": "server.js", "max_memory_restart": "much"}]}"#,
            "max_memory_restart",
        ),
        ("ecosystem.json", r#"{"apps": [{"script": "gone.js"}]}"#, "there is no program"),
        ("process.yml", "apps: [", "process.yml"),
        ("Procfile", "web", "line 1"),
    ] {
        let directory = with(&[(name, text)]);
        let (code, _, err) = troop(directory.path(), &["check", name]);
        assert!(code == 2 && err.contains(part), "{name}: {part} in {err}");
    }
    let directory = with(&[("ecosystem.json", ECOSYSTEM)]);
    let (code, out, _) = troop(directory.path(), &["check", "ecosystem.json", "--json"]);
    let checked: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &checked["apps"]), (0, &serde_json::json!(["api"])));
    assert!(checked["warnings"].to_string().contains("`color`"));
    // Where there is no other file, and by the option that other verbs have.
    for args in [&["check"][..], &["check", "-c", "ecosystem.json"]] {
        let (code, out, err) = troop(directory.path(), args);
        assert!(code == 0 && out.contains("ecosystem.json: api is fine"), "{out}{err}");
    }
}

#[test]
fn init_writes_a_configuration_for_the_program_that_it_finds() {
    let directory = with(&[("package.json", r#"{ "main": "server.js" }"#)]);
    let (code, out, _) = troop(directory.path(), &["init"]);
    assert!(code == 0 && out.contains("server"), "{out}");
    assert_eq!(troop(directory.path(), &["check"]).0, 0);
    // What it only mentions is right too.
    let text = std::fs::read_to_string(directory.path().join("troop.toml")).unwrap();
    let said: Vec<_> = text
        .lines()
        .map(|line| if line.contains(" = ") { line.trim_start_matches("# ") } else { line })
        .collect();
    std::fs::write(directory.path().join("troop.toml"), said.join("\n")).unwrap();
    assert_eq!(
        troop(directory.path(), &["check"]),
        (0, "troop.toml: server is fine\n".into(), String::new())
    );
    let directory = tempfile::tempdir().unwrap();
    let (code, _, err) = troop(directory.path(), &["init"]);
    assert!(code == 2 && err.contains("which program?"), "{err}");
}

#[test]
fn units_for_systemd_are_written() {
    let directory = with(&[(
        "troop.toml",
        "[app.web]\nprogram = \"server.js\"\ngrace = 60\n[app.\"jobs\"]\nprogram = \"./server.js\"\n",
    )]);
    let path = directory.path();
    let (code, out, err) = troop(path, &["startup", "--directory", "units"]);
    assert!(code == 0 && out.contains("daemon-reload") && out.contains("troop-web"), "{out}{err}");
    let unit = std::fs::read_to_string(path.join("units/troop-web.service")).unwrap();
    let file = path.canonicalize().unwrap().join("troop.toml");
    for part in [
        "Type=notify".to_owned(),
        format!(" run --config {} web", file.display()),
        " reload web".into(),
        "KillMode=mixed".into(),
        "TimeoutStopSec=70".into(),
        "WatchdogSec=30".into(),
        format!("WorkingDirectory={}", path.canonicalize().unwrap().display()),
    ] {
        assert!(unit.contains(&part), "{part} in {unit}");
    }
    assert!(path.join("units/troop-jobs.service").exists());
    let (code, out, _) = troop(path, &["startup", "web", "--print"]);
    assert!(code == 0 && out.contains("[Service]") && !out.contains("jobs"), "{out}");
    let (code, _, err) = troop(path, &["startup", "none"]);
    assert!(code == 2 && err.contains("jobs, web"), "{err}");
    // systemd's own opinion, where it can be had.
    if let Ok(verified) = Command::new("systemd-analyze")
        .arg("verify")
        .arg(path.join("units/troop-web.service"))
        .output()
    {
        let said = String::from_utf8_lossy(&verified.stderr);
        assert!(
            said.contains("initialize manager")
                || (verified.status.success() && !said.contains("troop-web")),
            "{said}"
        );
    }
}
