//! The words of `run` and of `start` mean the same.

#![allow(clippy::unwrap_used)]

mod support;

use serde_json::Value;
use support::Home;
use troop_testkit::wait_until;

/// Says what it was started with, and ends where it is told to, or serves.
const TELLS: &str = "
const fs = require('fs');
const name = require('path').basename(process.argv[1]);
fs.appendFileSync(process.env.SEEN ?? 'seen', JSON.stringify([name, ...process.argv.slice(2), process.env.MODE].filter(Boolean)) + '\\n');
process.env.ENDS ? setTimeout(() => process.exit(0), 50) : require('http').createServer(() => {}).listen(0);
";
const PACKAGE: &str = "{\"main\": \"a.js\", \"scripts\": {\"start\": \"node a.js from-npm\", \"dev\": \"node b.js dev\"}}";
const ECOSYSTEM: &str = "module.exports = { apps: [
  { name: 'x', script: 'a.js', args: 'one', autorestart: false, env: { MODE: 'usual' }, env_production: { MODE: 'production' } },
  { name: 'y', script: 'b.js', autorestart: false }] };";
const APPS: &str = "[app.web]\nprogram = \"a.js\"\nworkers = 1\nrestart.when = \"never\"\n[app.jobs]\nprogram = \"b.js\"\nworkers = 1\nrestart.when = \"never\"\n[app.other]\nprogram = \"b.js\"\n";

/// What the programs of a command line were started with, in any order.
fn seen(verb: &str, words: &[&str], expected: &[&str]) {
    let home = Home::with(&[
        ("a.js", TELLS),
        ("b.js", TELLS),
        ("package.json", PACKAGE),
        ("pm2.config.js", ECOSYSTEM),
        ("apps.toml", APPS),
    ]);
    let seen = home.path().join("seen");
    let mut command = home.command(&[verb]);
    command.args(words).env("SEEN", &seen);
    if verb == "run" {
        command.env("ENDS", "1");
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{verb} {words:?}: {output:?}");
    let mut lines = Vec::new();
    wait_until("the programs", || {
        let text = std::fs::read_to_string(&seen).unwrap_or_default();
        lines = text.lines().map(str::to_owned).collect();
        lines.len() >= expected.len()
    });
    lines.sort();
    assert_eq!(lines, expected, "{verb} {words:?}");
}

#[test]
fn run_and_start_read_the_same_words() {
    for verb in ["run", "start"] {
        for (words, expected) in [
            (&["--restart", "never", "npm", "--", "start"][..], &[r#"["a.js","from-npm"]"#][..]),
            (&["--restart", "never", "npm", "run", "dev"], &[r#"["b.js","dev"]"#]),
            (&["--restart", "never", "npm run dev"], &[r#"["b.js","dev"]"#]),
            (&["--restart", "never", "node a.js q"], &[r#"["a.js","q"]"#]),
            (&["--restart", "never", "node", "a.js", "q"], &[r#"["a.js","q"]"#]),
            (&["--restart", "never", "."], &[r#"["a.js"]"#]),
            (&["--restart", "never", "a.js", "b.js"], &[r#"["a.js"]"#, r#"["b.js"]"#]),
            (&["--restart", "never", "a.js", "--", "b.js", "-v"], &[r#"["a.js","b.js","-v"]"#]),
            (&["--restart", "never", "--", "a.js", "-v"], &[r#"["a.js","-v"]"#]),
            (&["pm2.config.js"], &[r#"["a.js","one","usual"]"#, r#"["b.js"]"#]),
            (&["pm2.config.js", "y", "x"], &[r#"["a.js","one","usual"]"#, r#"["b.js"]"#]),
            (
                &["pm2.config.js", "--only", "x", "--env", "production"],
                &[r#"["a.js","one","production"]"#],
            ),
            (&["-c", "apps.toml", "jobs", "web"], &[r#"["a.js"]"#, r#"["b.js"]"#]),
            (&["-c", "apps.toml", "--only", "web,jobs"], &[r#"["a.js"]"#, r#"["b.js"]"#]),
        ] {
            seen(verb, words, expected);
        }
    }
}

#[test]
fn several_apps_of_the_usual_file_are_named_by_both_verbs() {
    let file = APPS.replace("a.js", "server.js").replace("b.js", "server.js");
    let home = Home::with(&[("server.js", TELLS), ("troop.toml", &file)]);
    home.fine(&["start", "jobs", "web"]);
    let running = || {
        let apps: Vec<Value> = serde_json::from_str(&home.fine(&["ls", "--json"])).unwrap();
        apps.iter().map(|app| app["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(running(), ["jobs", "web"]);
    // Each is started again as itself.
    home.fine(&["restart", "jobs"]);
    home.fine(&["stop", "all"]);
    home.fine(&["start", "jobs", "web"]);
    assert_eq!(running(), ["jobs", "web"]);
    home.fine(&["stop", "all"]);
    let mut command = home.command(&["run", "jobs", "web"]);
    let output = command.env("ENDS", "1").output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && told.contains("jobs | ") && told.contains("web  | "),
        "{told}"
    );
}

#[test]
fn what_one_of_the_verbs_cannot_do_is_answered_in_one_line() {
    let home = Home::with(&[("a.js", TELLS), ("troop.toml", APPS)]);
    for (words, told) in [
        (&["run", "--no-wait", "a.js"][..], "--no-wait is for `troop start`"),
        (&["run", "--json", "a.js"], "`troop run --log json` prints events as JSON"),
        (&["run", "web", "nope"], "troop.toml has no app \"nope\""),
        (
            &["run", "web", "jobs", "--set", "x=1"],
            "--set stands behind names of apps: options come before web",
        ),
        (&["start", "sh", "-c", "exit 3"], "troop start sh -- -c"),
        (&["start", "a.js", "nope"], "`--`: troop start a.js -- nope"),
    ] {
        let (code, _, err) = home.troop(words);
        assert_eq!((code, err.trim().lines().count()), (2, 1), "{words:?}: {err}");
        assert!(err.contains(told), "{words:?}: {err}");
    }
    // Options behind a program of the `PATH` are its own for `run`; a signal has a code as in a shell.
    for (script, code) in [("exit 3", 3), ("kill -9 $$", 137), ("exit 0", 0)] {
        let (found, _, err) = home.troop(&["run", "--restart", "never", "sh", "-c", script]);
        assert_eq!(found, code, "{script}: {err}");
    }
    // These mean nothing here, and are no errors.
    for words in [
        &["run", "--no-daemon", "--attach", "--update-env", "--restart", "never", "true"][..],
        &["start", "--keep-going", "--restart", "never", "true"],
    ] {
        home.fine(words);
    }
}
