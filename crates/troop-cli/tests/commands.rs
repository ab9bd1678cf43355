//! Commands as people write them: whole commands in quotation marks, several programs, directories,
//! files, and verbs for the apps of a file.

#![allow(clippy::unwrap_used)]

mod support;

use serde_json::Value;
use support::Home;
use troop_testkit::wait_until;

const SERVER: &str = "
require('http').createServer(() => {}).listen(0, '127.0.0.1');
console.log('args ' + process.argv.slice(2));
";

/// The names of all apps with their states.
fn states(home: &Home) -> Vec<String> {
    let apps: Vec<Value> = serde_json::from_str(&home.fine(&["ls", "--json"])).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    apps.iter().map(|app| format!("{} {}", text(&app["name"]), text(&app["phase"]))).collect()
}

#[test]
fn a_whole_command_is_started_as_a_shell_would() {
    let package =
        r#"{ "name": "shop", "scripts": { "dev": "node server.js", "start": "node server.js" } }"#;
    let python = "import sys, time\nprint('python', sys.argv[1:], flush=True)\ntime.sleep(600)\n";
    let home = Home::with(&[("server.js", SERVER), ("package.json", package), ("app.py", python)]);
    let out = home.fine(&["start", "npm run dev"]);
    assert!(out.starts_with("npm-run-dev: 1 worker ready"), "{out}");
    home.fine(&["start", "python3 app.py", "-n", "snake", "--", "x y"]);
    assert!(home.log("snake.log").contains("python ['x y']"), "{}", home.log("snake.log"));
    home.fine(&["start", "NAME=z && python3 app.py $NAME", "-n", "shell"]);
    assert!(home.log("shell.log").contains("python ['z']"), "{}", home.log("shell.log"));
    // The directory's package.
    let out = home.fine(&["start", "."]);
    assert!(out.starts_with("shop: 1 worker ready"), "{out}");
}

#[test]
fn several_programs_are_started_at_once_and_each_is_known_by_itself() {
    let home = Home::with(&[
        ("a.js", SERVER),
        ("b.js", SERVER),
        ("c.json", r#"{"apps":[{"name":"c","script":"a.js"}]}"#),
    ]);
    let out = home.fine(&["start", "a.js", "b.js", "c.json"]);
    for name in ["a: 1 worker", "b: 1 worker", "c: 1 worker"] {
        assert!(out.contains(name), "{name}: {out}");
    }
    home.fine(&["stop", "all"]);
    home.fine(&["start", "b"]);
    home.fine(&["start", "c"]);
    assert_eq!(states(&home), ["a stopped", "b running", "c running"]);
    assert_eq!(home.show("b")["program"], "b.js");
    home.fine(&["restart", "b"]);
    assert_eq!(home.show("b")["program"], "b.js");
    home.fine(&["delete", "all"]);
    home.fine(&["start", "a.js", "b.js", "--", "x"]);
    assert!(home.log("b.log").contains("args x"), "{}", home.log("b.log"));
    let (code, _, err) = home.troop(&["start", "a.js", "b.js", "-n", "x"]);
    assert!(code == 2 && err.contains("--name is for one program"), "{err}");
    let (code, _, err) = home.troop(&["start", "a.js", "serve"]);
    assert!(code == 2 && err.contains("troop start a.js -- serve"), "{err}");
}

#[test]
fn a_file_of_pm2s_is_found_and_its_apps_are_selected() {
    let file = r#"{ "apps": [
        { "name": "api", "script": "server.js", "env_production": { "A": "1" } },
        { "name": "jobs", "script": "server.js" }, { "name": "mail", "script": "server.js" } ] }"#;
    let home = Home::with(&[("server.js", SERVER), ("ecosystem.config.json", file)]);
    home.fine(&["start", "ecosystem.config.json", "--only", "api", "--env", "production"]);
    assert_eq!(states(&home), ["api running"]);
    let (code, _, err) = home.troop(&["start", "ecosystem.config.json", "--only", "apj"]);
    assert!(code == 2 && err.contains("did you mean the app api?"), "{err}");
    // Without its name, and with the rest of it.
    home.fine(&["start", "--only", "jobs,mail"]);
    assert_eq!(states(&home), ["api running", "jobs running", "mail running"]);
    home.fine(&["stop", "ecosystem.config.json", "--only", "jobs"]);
    home.fine(&["delete", "mail"]);
    assert_eq!(states(&home), ["api running", "jobs stopped"]);
    let (code, out, err) =
        home.troop(&["startOrReload", "ecosystem.config.json", "--env", "production"]);
    for part in ["api: 1 worker replaced", "jobs: 1 worker ready", "mail: 1 worker ready"] {
        assert!(out.contains(part), "{code} {part}: {out}{err}");
    }
    let out = home.fine(&["restart", "ecosystem.config.json", "--only", "api,jobs"]);
    assert!(out.contains("api: 1 worker ready") && !out.contains("mail"), "{out}");
    home.fine(&["delete", "ecosystem.config.json"]);
    assert!(states(&home).is_empty());
    // A file and names of its apps.
    home.fine(&["start", "ecosystem.config.json", "api", "mail"]);
    assert_eq!(states(&home), ["api running", "mail running"]);
    assert_eq!(home.troop(&["restart", "api", "--only", "api"]).0, 2);
}

#[test]
fn logs_of_all_apps_are_shown_with_their_names_and_followed() {
    use std::io::{BufRead as _, BufReader};
    let home =
        Home::with(&[("a.js", SERVER), ("b.js", "setInterval(() => console.log('tick'), 50)")]);
    home.fine(&["start", "a.js", "b.js"]);
    let mut child = home.command(&["logs"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    // More than there were at the beginning.
    let ticks =
        lines.filter(|line| line.starts_with("b: ") && line.contains("tick")).take(60).count();
    assert_eq!(ticks, 60);
    child.kill().unwrap();
    child.wait().unwrap();
    let out = home.fine(&["logs", "--nostream"]);
    assert!(out.contains("a: ") && out.contains("b: "), "{out}");
    let out = home.fine(&["logs", "--nostream", "--raw"]);
    assert!(!out.contains("a: "), "{out}");
    home.fine(&["stop", "a"]);
    assert!(home.fine(&["logs", "a"]).contains("args"), "what has ended is not followed");
}

#[test]
fn raw_logs_are_what_the_program_wrote() {
    const SAYS: &str = "
        console.log('\\x1b[1mone\\x07 | two');
        console.log(JSON.stringify({ time: 'now', stream: 'out', text: 'own' }));
        require('http').createServer(() => {}).listen(0, '127.0.0.1');
    ";
    for format in ["prefixed", "json", "plain"] {
        let home = Home::with(&[("says.js", SAYS)]);
        let set = format!("output.format={format}");
        home.fine(&["start", "says.js", "-n", "web", "--set", &set]);
        wait_until("its output", || home.log("web.log").contains("own"));
        let out = home.fine(&["logs", "web", "--nostream", "--raw"]);
        let expected =
            "\u{1b}[1mone\u{7} | two\n{\"time\":\"now\",\"stream\":\"out\",\"text\":\"own\"}\n";
        match format {
            // Events are among the lines there, and cannot be told from them.
            "plain" => assert!(out.contains(expected), "{out}"),
            _ => assert_eq!(out, expected, "{format}"),
        }
        if format != "plain" {
            assert!(home.log("web.log").contains("started"), "events are in the file");
        }
    }
}
