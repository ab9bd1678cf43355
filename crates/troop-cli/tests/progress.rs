//! What verbs tell while they work, and lists that go on.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use serde_json::Value;
use support::Home;
use support::screen::Screen;
use troop_testkit::wait_until;

/// Starts and ends slowly, if it is to.
const SERVER: &str = "
    const server = require('http').createServer((q, s) => s.end('served'));
    setTimeout(() => server.listen(0, '127.0.0.1'), Number(process.env.SLOW ?? 0));
    process.on('disconnect', () => setTimeout(() => {}, Number(process.env.SLOW ?? 0)));";

const SLOW: &str = "env.SLOW=1600";

fn home() -> Home {
    Home::with(&[("server.js", SERVER)])
}

fn start(home: &Home, more: &[&str]) -> (i32, String, String) {
    home.troop(&[&["start", "server.js", "-n", "web", "-w", "1"], more].concat())
}

#[test]
fn a_start_that_takes_long_tells_which_workers_start_and_when_they_are_ready() {
    let home = home();
    let (code, _, err) = start(&home, &["--set", SLOW]);
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("web: worker 1 is starting\n"), "{err}");
}

#[test]
fn scaling_and_restarting_tell_which_workers_start_and_drain() {
    let home = home();
    assert_eq!(start(&home, &["--set", SLOW]).0, 0);
    let (code, _, err) = home.troop(&["scale", "web", "2"]);
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("web: worker 2 is starting\n"), "{err}");
    let (code, _, err) = home.troop(&["scale", "web", "1"]);
    assert_eq!(code, 0, "{err}");
    assert!(err.contains(" is draining, "), "{err}");
    let (code, _, err) = home.troop(&["restart", "web"]);
    assert_eq!(code, 0, "{err}");
    assert!(err.contains(" is starting\n"), "{err}");
}

#[test]
fn verbs_that_print_json_or_do_not_wait_tell_nothing_else() {
    let home = home();
    let (code, _, err) = start(&home, &["--set", SLOW, "--json"]);
    assert_eq!((code, err.as_str()), (0, ""));
    for verb in [
        &["scale", "web", "2", "--json"][..],
        &["scale", "web", "1", "--no-wait"],
        &["restart", "web", "--json"],
    ] {
        let (code, _, err) = home.troop(verb);
        assert_eq!((code, err.as_str()), (0, ""), "{verb:?}");
    }
}

#[test]
fn a_terminal_gets_one_line_that_is_rewritten_and_goes() {
    let home = home();
    assert_eq!(start(&home, &["--set", SLOW]).0, 0);
    for (verb, line) in [
        (&["scale", "web", "2"][..], "web: 1/2 ready; starting: worker 2 "),
        (&["reload", "web"], "/2 ready; starting: worker 3 "),
        (&["scale", "web", "1"], "web: 1/1 ready; draining: worker "),
    ] {
        let mut screen = Screen::of(&home, verb);
        screen.wait_for(&format!("\r{line}").replace("\r/", "/"));
        screen.ends();
        // What is said at the end stands where the line was, which is gone.
        wait_until("the answer", || {
            let seen = screen.seen();
            let last = seen.trim_end().rsplit_once("\r\x1b[K").map(|(_, last)| last.to_owned());
            last.is_some_and(|last| last.starts_with("web: ") && !last.contains(';'))
        });
    }
}

#[test]
fn a_list_that_is_watched_follows_what_happens() {
    let home = home();
    assert_eq!(start(&home, &[]).0, 0);
    let mut command = home.command(&["ls", "--watch=100ms", "--json"]);
    let mut watching = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut ready = || -> u64 {
        let apps: Value = serde_json::from_str(&lines.next().unwrap()).unwrap();
        apps[0]["ready"].as_u64().unwrap()
    };
    assert_eq!(ready(), 1);
    let screen = Screen::of(&home, &["ls", "--watch=100ms"]);
    screen.wait_for("  1/1 ");
    home.fine(&["scale", "web", "2"]);
    assert!((0..600).any(|_| ready() == 2));
    screen.wait_for("  2/2 ");
    assert!(screen.seen().contains("\x1b[H"), "it is written in its place: {:?}", screen.seen());
    // An app that ends stays on a terminal, where others can follow.
    home.fine(&["delete", "web"]);
    home.fine(&["start", "server.js", "-n", "other"]);
    screen.wait_for(" other ");
    let _ = watching.kill();
    let _ = watching.wait();
}

#[test]
fn the_use_of_cpu_is_shown_of_an_app_and_of_each_worker() {
    let busy = "setInterval(() => { while (Date.now() % 100 < 60); }, 100); \
                require('http').createServer().listen(0);";
    let home = Home::with(&[("busy.js", busy)]);
    home.fine(&["start", "busy.js", "-n", "web"]);
    let json = |args: &[&str]| -> Value { serde_json::from_str(&home.fine(args)).unwrap() };
    for verb in ["ls", "show"] {
        // On a busy machine a sample may find a worker that has not run.
        wait_until("a worker that uses a CPU", || {
            let app = &json(&[verb, "web", "--cpu=300ms", "--json"])[0];
            let total = app["total"]["cpu_percent"].as_f64().unwrap();
            let worker = app["workers"][0]["usage"]["cpu_percent"].as_f64().unwrap();
            let primary = app["usage"]["cpu_percent"].as_f64().unwrap();
            assert!((total - worker - primary).abs() < 0.2, "{app}");
            worker > 5.0
        });
        assert!(json(&[verb, "web", "--json"])[0]["total"].get("cpu_percent").is_none());
        let text = home.fine(&[verb, "web", "--cpu"]);
        let headings = text.lines().find(|line| line.contains("MEMORY")).unwrap();
        assert!(headings.contains("CPU%"), "{text}");
        assert!(!home.fine(&[verb, "web"]).contains("CPU%"));
    }
    // The first list of several cannot know it yet.
    let mut command = home.command(&["ls", "--watch=100ms", "--json"]);
    let mut watching = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut total = || -> Value {
        let apps: Value = serde_json::from_str(&lines.next().unwrap()).unwrap();
        apps[0]["total"]["cpu_percent"].clone()
    };
    assert!(total().is_null());
    assert!(total().is_number());
    let _ = watching.kill();
    let _ = watching.wait();
}
