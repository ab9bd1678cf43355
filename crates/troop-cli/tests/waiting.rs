//! `troop wait`, and the exit codes of `ls --quiet` and `show --quiet`, by which scripts and probes
//! know how an app is.

#![allow(clippy::unwrap_used)]

mod support;

use std::process::Stdio;

use support::Home;
use troop_testkit::wait_until;

/// Listens once the file `go` exists.
const WHEN_TOLD: &str = "
const fs = require('fs');
const look = () => fs.existsSync('go')
  ? require('http').createServer((q, r) => r.end()).listen(0, '127.0.0.1')
  : setTimeout(look, 20);
look();
";

/// Keeps ending after it has listened once.
const ENDING: &str = "
const fs = require('fs');
require('http').createServer((q, r) => r.end()).listen(0, '127.0.0.1', () => {
  if (fs.existsSync('end')) process.exit(1);
  setInterval(() => fs.existsSync('end') && process.exit(1), 20);
});
";

#[test]
fn wait_waits_until_apps_are_ready_or_the_time_is_over() {
    let home = Home::with(&[("slow.js", WHEN_TOLD)]);
    // The app is known as soon as the start returns.
    home.fine(&["start", "slow.js", "-n", "web", "--no-wait"]);
    let (code, out, err) = home.troop(&["wait", "web", "--timeout", "1ms"]);
    assert_eq!((code, out.as_str()), (4, ""), "{err}");
    assert!(
        err.contains("web is not ready in time: it is starting, 0 of 1 workers ready"),
        "{err}"
    );
    for verb in ["ls", "show"] {
        assert_eq!(home.troop(&[verb, "web", "--quiet"]), (4, String::new(), String::new()));
        assert_eq!(home.troop(&[verb, "web"]).0, 0, "it runs");
    }
    let mut waiting = home.command(&["wait", "web"]).stdout(Stdio::piped()).spawn().unwrap();
    assert!(waiting.try_wait().unwrap().is_none(), "it waits");
    std::fs::write(home.path().join("go"), "").unwrap();
    let output = waiting.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(output.stdout, b"web: ready\n");
    for args in [&["ls", "web", "-q"][..], &["show", "web", "-q"], &["ls", "-q"], &["wait", "-q"]] {
        assert_eq!(home.troop(args), (0, String::new(), String::new()), "{args:?}");
    }
    let told = home.fine(&["wait", "all", "--json"]);
    assert_eq!(told, "{\"name\":\"web\",\"state\":\"ready\"}\n");
}

#[test]
fn wait_for_stopped_ends_with_the_app() {
    let home = Home::with(&[("server.js", WHEN_TOLD), ("go", "")]);
    home.fine(&["start", "server.js", "-n", "web"]);
    let (code, _, err) = home.troop(&["wait", "web", "--for", "stopped", "--timeout", "10ms"]);
    assert!(code == 4 && err.contains("web is not stopped in time: it runs"), "{err}");
    let waiting = home.command(&["wait", "web", "--for", "stopped"]).stdout(Stdio::piped()).spawn();
    home.fine(&["stop", "web"]);
    assert_eq!(waiting.unwrap().wait_with_output().unwrap().stdout, b"web: stopped\n");
    // It is stopped already, and does not become ready.
    home.fine(&["wait", "web", "--for", "stopped"]);
    let (code, _, err) = home.troop(&["wait", "web"]);
    assert!(code == 3 && err.contains("web does not run, it was stopped"), "{code} {err}");
    for args in [&["ls", "web", "-q"][..], &["show", "web", "-q"], &["ls", "-q"], &["wait", "all"]]
    {
        assert_eq!(home.troop(args).0, 3, "{args:?}");
    }
    for verb in ["wait", "ls", "show"] {
        assert_eq!(home.troop(&[verb, "nobody"]).0, 3, "{verb}");
    }
}

#[test]
fn wait_does_not_wait_for_an_app_whose_workers_keep_ending() {
    let home = Home::with(&[("server.js", ENDING)]);
    home.fine(&["start", "server.js", "-n", "web", "--set", "restart.delay=10ms"]);
    std::fs::write(home.path().join("end"), "").unwrap();
    wait_until("a restart", || home.show("web")["restarts"].as_u64() >= Some(1));
    let (code, _, err) = home.troop(&["wait", "web", "--timeout", "1m"]);
    assert!(
        code == 1 && err.contains("web: its workers keep ending: it is degraded"),
        "{code} {err}"
    );
}

#[test]
fn wait_fails_with_the_reason_if_the_app_ends_before_it_is_ready() {
    let home = Home::with(&[("c.js", "console.error('no database'); process.exit(1)")]);
    let is_failure = |(code, _, err): (i32, String, String)| {
        assert!(code == 1 && err.contains("c does not run, it has failed"), "{code} {err}");
        assert!(err.contains("exit code 1"), "{err}");
    };
    home.fine(&["start", "c.js", "--no-wait", "--set", "restart.delay=10ms"]);
    is_failure(home.troop(&["wait", "c", "--timeout", "60s"]));
    // The same if it has ended before the wait begins.
    is_failure(home.troop(&["wait", "c", "--timeout", "60s"]));
}

#[test]
fn the_worst_of_several_apps_is_the_exit_code() {
    let home = Home::with(&[("slow.js", WHEN_TOLD), ("go", "")]);
    home.fine(&["start", "slow.js", "-n", "a"]);
    home.fine(&["start", "slow.js", "-n", "b"]);
    home.fine(&["stop", "b"]);
    // It was meant to stop.
    assert_eq!(home.troop(&["ls", "-q"]).0, 0);
    std::fs::remove_file(home.path().join("go")).unwrap();
    home.fine(&["start", "slow.js", "-n", "c", "--no-wait"]);
    assert_eq!(home.troop(&["ls", "-q"]).0, 4);
    assert_eq!(home.troop(&["ls", "/[ab]/", "-q"]).0, 0);
    let worker = home.show("a")["workers"][0]["id"].as_u64().unwrap();
    assert_eq!(home.troop(&["show", &format!("a:{worker}"), "-q"]).0, 0);
    assert_eq!(home.troop(&["show", "a:77", "-q"]).0, 1);
}
