//! `troop admin --alert`: who is told when something is wrong, and of what.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::process::{Command, Stdio};

use serde_json::Value;
use troop_testkit::{TEST_TIMEOUT, wait_until};

use crate::support::Home;

/// Serves until it finds a reason to end.
const FRAIL: &str = "
const fs = require('fs');
require('http').createServer((q, s) => s.end()).listen(0, '127.0.0.1');
setInterval(() => fs.existsSync('end') && process.exit(7), 20);
if (fs.existsSync('end')) process.exit(7);
";

const TELL: &str = "cat >> told";

fn told(home: &Home) -> Vec<Value> {
    let text = std::fs::read_to_string(home.path().join("told")).unwrap_or_default();
    // The last line may not be written yet.
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn wait_for(home: &Home, kind: &str, state: &str) -> Value {
    let mut found = None;
    wait_until(&format!("{kind} {state}"), || {
        found = told(home).into_iter().find(|a| a["kind"] == kind && a["state"] == state);
        found.is_some()
    });
    found.unwrap()
}

fn watched(options: &[&str]) -> Home {
    let home = Home::with(&[("frail.js", FRAIL)]);
    home.fine(&["start", "frail.js", "-n", "web", "-w", "2"]);
    home.fine(
        &[&["admin", "127.0.0.1:0", "--alert", TELL, "--alert-after", "0"], options].concat(),
    );
    home
}

#[test]
fn an_app_whose_workers_keep_ending_is_told_and_so_is_that_it_is_well_again() {
    let home = watched(&[]);
    std::fs::write(home.path().join("end"), "").unwrap();
    let alert = wait_for(&home, "degraded", "firing");
    assert_eq!(alert["app"], "web");
    let text = alert["text"].as_str().unwrap();
    assert!(text.starts_with("web: it is degraded, ") && text.contains("code 7"), "{text}");
    let alert = wait_for(&home, "crash-loop", "firing");
    assert!(alert["text"].as_str().unwrap().contains("workers ended unexpectedly"), "{alert}");
    std::fs::remove_file(home.path().join("end")).unwrap();
    wait_for(&home, "degraded", "resolved");
    assert!(home.log("admin.log").contains("alert: web: it is degraded"));
}

#[test]
fn an_app_whose_processes_were_killed_is_told_to_be_down_and_one_that_was_stopped_is_not() {
    let home = watched(&["--alert-on", "down"]);
    home.fine(&["start", "frail.js", "-n", "other"]);
    home.fine(&["stop", "other"]);
    let shown = home.show("web");
    let pids = [&shown["pid"], &shown["engine"]].into_iter().filter_map(Value::as_i64);
    for pid in pids {
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        // The keeper goes first: otherwise it would go on with another engine.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    let alert = wait_for(&home, "down", "firing");
    assert!(alert["text"].as_str().unwrap().contains("it has crashed"), "{alert}");
    home.fine(&["delete", "web"]);
    wait_for(&home, "down", "resolved");
    assert!(told(&home).iter().all(|alert| alert["app"] == "web"), "{:?}", told(&home));
}

#[test]
fn a_reload_that_fails_is_told_with_how_often() {
    let home = watched(&[]);
    // It must have been seen before.
    wait_until("the first look", || home.troop(&["show", "admin", "--quiet"]).0 == 0);
    std::fs::write(home.path().join("frail.js"), "process.exit(3)").unwrap();
    let mut last = None;
    wait_until("reload-failed", || {
        assert_eq!(home.troop(&["reload", "web"]).0, 1);
        last = told(&home).into_iter().find(|alert| alert["kind"] == "reload-failed");
        last.is_some()
    });
    let alert = last.unwrap();
    assert_eq!(alert["state"], "happened");
    assert!(alert["text"].as_str().unwrap().starts_with("web: a reload failed"), "{alert}");
}

#[test]
fn a_command_that_fails_is_reported_with_the_alert_and_a_test_shows_it_before() {
    let home = Home::with(&[]);
    let (code, _, err) = home.troop(&["admin", "--alert", "exit 9", "--test-alert"]);
    assert_eq!(code, 1);
    assert!(err.contains("--alert: the command ended with exit status: 9"), "{err}");
    home.fine(&["admin", "--alert", TELL, "--test-alert"]);
    assert_eq!(told(&home)[0]["text"], "web: this is a test of troop's alerts, nothing is wrong");
    let (code, _, err) = home.troop(&["admin", "--test-alert"]);
    assert!(code == 2 && err.contains("--alert"), "{err}");
    assert_eq!(home.troop(&["ls", "-q"]).0, 3, "nothing was started");
}

/// Takes a request, and answers it. Returns its body.
fn received(listener: &TcpListener, status: &str) -> Value {
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let (mut length, mut line) = (0, String::new());
    while reader.read_line(&mut line).unwrap() > 2 {
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        line.clear();
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
    serde_json::from_slice(&body).unwrap()
}

#[test]
fn the_webhook_of_the_examples_posts_an_alert_in_both_forms_and_tells_when_it_is_refused() {
    let home = Home::with(&[]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let webhook = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/monitoring/webhook.sh");
    let post = |form: &str, status: &str| {
        let mut command = home.command(&["admin", "--alert", webhook, "--test-alert"]);
        command.env("WEBHOOK_URL", &url).env("WEBHOOK_FORM", form);
        let child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let body = received(&listener, status);
        let output = child.wait_with_output().unwrap();
        (body, output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    let (body, is_fine, err) = post("", "200 OK");
    assert!(is_fine, "{err}");
    assert_eq!((&body["app"], &body["kind"]), (&"web".into(), &"down".into()), "{body}");
    let (body, is_fine, err) = post("slack", "200 OK");
    assert!(is_fine, "{err}");
    assert_eq!(body.as_object().unwrap().len(), 1, "{body}");
    assert!(body["text"].as_str().unwrap().starts_with("web: this is a test"), "{body}");
    let (_, is_fine, err) = post("slack", "403 Forbidden");
    assert!(!is_fine && err.contains("403"), "{err}");
}

#[test]
fn an_alert_is_posted_to_a_webhook_in_both_forms_and_a_refusal_is_told() {
    let home = Home::with(&[]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/secret", listener.local_addr().unwrap());
    std::fs::write(home.path().join("url"), format!("{url}\n")).unwrap();
    let post = |options: &[&str], status: &str| {
        let mut command = home.command(&[&["admin", "--test-alert"], options].concat());
        let child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let body = received(&listener, status);
        let output = child.wait_with_output().unwrap();
        (body, output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    let (body, is_fine, err) = post(&["--alert-webhook", &url], "200 OK");
    assert!(is_fine, "{err}");
    assert_eq!((&body["app"], &body["kind"]), (&"web".into(), &"down".into()), "{body}");
    let slack = ["--alert-webhook", "@url", "--alert-form", "slack"];
    let (body, is_fine, err) = post(&slack, "200 OK");
    assert!(is_fine, "{err}");
    assert_eq!(body.as_object().unwrap().len(), 1, "{body}");
    assert!(body["text"].as_str().unwrap().starts_with("web: this is a test"), "{body}");
    let (_, is_fine, err) = post(&slack, "403 Forbidden");
    assert!(!is_fine && err.contains("--alert-webhook: curl ended with"), "{err}");
    assert!(err.contains("403") && !err.contains("secret"), "{err}");
    let (code, _, err) = home.troop(&["admin", "--alert-webhook", "file:///etc/passwd"]);
    assert!(code == 2 && err.contains("http://"), "{err}");
}

#[test]
fn a_webhook_is_told_of_an_app_whose_workers_keep_ending() {
    let home = Home::with(&[("frail.js", FRAIL)]);
    home.fine(&["start", "frail.js", "-n", "web", "-w", "2"]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    std::fs::write(home.path().join("url"), format!("http://{}/", listener.local_addr().unwrap()))
        .unwrap();
    let told = ["--alert-webhook", "@url", "--alert-after", "0"];
    home.fine(&[&["admin", "127.0.0.1:0"], &told[..]].concat());
    std::fs::write(home.path().join("end"), "").unwrap();
    assert_eq!(received(&listener, "200 OK")["app"], "web");
}

#[test]
fn the_webhook_of_the_examples_quotes_what_workers_say() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let webhook = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/monitoring/webhook.sh");
    let text = r#"web: "quoted" \x1b[2J $(id) %s `id`"#;
    let mut child = Command::new(webhook)
        .env("WEBHOOK_URL", format!("http://{}/", listener.local_addr().unwrap()))
        .envs([("WEBHOOK_FORM", "slack"), ("TROOP_ALERT_TEXT", text)])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    assert_eq!(received(&listener, "200 OK")["text"], text);
    assert!(child.wait().unwrap().success());
}
