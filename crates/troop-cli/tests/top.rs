//! `troop top`, in a terminal and without one.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use support::Home;
use support::screen::Screen;
use troop_testkit::wait_until;

const SERVER: &str =
    "require('http').createServer((q, s) => s.end('served')).listen(0, '127.0.0.1')";

#[test]
fn keys_of_a_terminal_reach_apps_after_a_yes_and_the_terminal_is_left_as_it_was() {
    let home = Home::with(&[("server.js", SERVER)]);
    home.fine(&["start", "server.js", "-n", "web", "-w", "1"]);
    let mut screen = Screen::of(&home, &["top", "-i", "100ms"]);
    screen.wait_for("web");
    screen.press("+");
    screen.wait_for("troop scale web +1?");
    screen.press("n+");
    screen.press("y");
    wait_until("the second worker", || home.show("web")["wanted"] == 2);
    // Its workers.
    screen.press("\r");
    screen.wait_for("IN FLIGHT");
    screen.press("q");
    screen.ends_as_it_was();
    let mut screen = Screen::of(&home, &["top", "-i", "100ms"]);
    screen.wait_for("web");
    let pid = rustix::process::Pid::from_child(&screen.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    screen.ends_as_it_was();
}

#[test]
fn one_page_is_printed_where_there_is_no_terminal() {
    let home = Home::with(&[("server.js", SERVER)]);
    home.fine(&["start", "server.js", "-n", "web", "-w", "2"]);
    home.fine(&["start", "server.js", "-n", "other"]);
    home.fine(&["stop", "other"]);
    let page = home.fine(&["top", "--once", "-i", "100ms"]);
    let row = |name: &str| page.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    let words = |name: &str| -> Vec<String> {
        row(name).split_whitespace().take(3).map(str::to_owned).collect()
    };
    assert_eq!(words("web"), ["web", "running", "2/2"], "{page}");
    assert_eq!(words("other"), ["other", "stopped", "0/1"], "{page}");
    let workers = home.fine(&["top", "web", "--once", "-i", "100ms"]);
    assert_eq!(workers.matches(" ready ").count(), 2, "{workers}");
    let (code, out, err) = home.troop(&["top"]);
    assert!(code == 2 && out.is_empty() && err.contains("--once"), "{code} {out}{err}");
    assert_eq!(home.troop(&["top", "nobody", "--once", "-i", "100ms"]).0, 3);
}
