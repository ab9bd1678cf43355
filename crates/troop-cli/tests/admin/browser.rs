//! The web page, in a real browser. `page/test/browser.js` does what a person would do.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::Command;

use super::{Server, ask};
use crate::support::Home;

/// Answers, writes a line now and then, and keeps a connection for a moment when it is to leave.
const SERVER: &str = "
    console.log(`served by ${process.pid}`);
    process.on('message', (text) => console.log(text));
    const server = require('http').createServer((q, s) => s.end('served'));
    server.keepAliveTimeout = 120000;
    server.listen(0, '127.0.0.1');
    process.on('disconnect', () => setTimeout(() => {}, 700));";

fn servers(workers: &str) -> [&str; 6] {
    ["start", "server.js", "-n", "web", "-i", workers]
}

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/page");

/// Runs a scenario against `troop admin` with these options, beside an app.
fn browse(scenario: &str, app: &[&str], options: &[&str]) {
    let chromium =
        Path::new(PAGE).join("../../../target/chromium/usr/lib/chromium/chromium-headless-shell");
    let is_built = Path::new(PAGE).join("built/app.js.gz").is_file();
    if !chromium.is_file() || !is_built || !Path::new(PAGE).join("node_modules").is_dir() {
        eprintln!("skipped: Chromium, or the page, is not there; test.sh gets both");
        return;
    }
    let home = Home::with(&[("server.js", SERVER)]);
    home.fine(app);
    let server = Server::beside(home, options);
    let output = Command::new("node")
        .arg(Path::new(PAGE).join("test/browser.js"))
        .args([chromium.to_str().unwrap(), &server.address, &server.token, scenario])
        .current_dir(server.home.path())
        .env("TROOP", env!("CARGO_BIN_EXE_troop"))
        .env("TROOP_RUNTIME_DIR", server.home.path().join("run"))
        .env("TROOP_LOG_DIR", server.home.path().join("logs"))
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}

#[test]
fn a_browser_shows_apps_workers_plots_and_live_logs_until_it_leaves() {
    browse("load", &servers("2"), &[]);
}

#[test]
fn a_browser_shows_a_reload_while_it_goes_on() {
    browse("reload", &servers("2"), &[]);
}

#[test]
fn a_browser_scales_and_reloads_by_its_buttons_and_offers_no_other_verbs() {
    browse("scale", &servers("2"), &["--verbs", "scale,reload"]);
}

#[test]
fn a_browser_without_the_token_sees_nothing_and_its_cookie_alone_is_of_no_use() {
    browse("wrong", &servers("2"), &[]);
}

#[test]
fn a_browser_shows_fifty_workers_on_one_page() {
    // Workers that start quickly.
    let app = ["serve", ".", "127.0.0.1:0", "-n", "web", "-w", "50"];
    browse("many", &app, &["--verbs", "reload"]);
}

#[test]
fn the_page_is_accessible_in_light_and_dark_and_on_a_phone() {
    browse("accessible", &servers("3"), &["--verbs", "scale,reload,restart,stop"]);
}

#[test]
fn the_page_tells_nothing_by_itself_and_lets_nobody_else_in() {
    let server = Server::start(&[]);
    let own = &server.address;
    let head = |path: &str, more: &str| {
        format!("GET {path} HTTP/1.1\r\nHost: {own}\r\nAccept-Encoding: gzip{more}")
    };
    // A link may lead to the page, but no page of others may load it, or a part of it.
    let cross = "\r\nSec-Fetch-Site: cross-site\r\nSec-Fetch-Dest:";
    for (path, more, status) in [
        ("/", String::new(), 200),
        ("/", format!("{cross} document"), 200),
        ("/", format!("{cross} iframe"), 403),
        ("/metrics", format!("{cross} document"), 403),
        ("/page/none.js", String::new(), 404),
        ("/session", String::new(), 401),
        ("/history?app=web", String::new(), 401),
        ("/logs?app=web", String::new(), 401),
    ] {
        assert_eq!(raw(own, &head(path, &more)).0, status, "{path} {more}");
    }
    // The licences of what is a part of the page, if it was built.
    if Path::new(PAGE).join("built/app.js.gz").is_file() {
        for path in ["/page/app.js", "/page/app.css", "/page/licences.txt"] {
            assert_eq!(raw(own, &head(path, "")).0, 200, "{path}");
        }
    }
    let answer = raw(own, &head("/", "")).1.to_ascii_lowercase();
    for header in [
        "content-security-policy: default-src 'none'",
        "frame-ancestors 'none'",
        "x-content-type-options: nosniff",
        "x-frame-options: deny",
    ] {
        assert!(answer.contains(header), "{header}: {answer}");
    }
    assert!(!answer.contains("unsafe-inline") && !answer.contains("set-cookie"), "{answer}");
    let login = |body: &str| {
        let head = format!("POST /login HTTP/1.1\r\nHost: {own}\r\nContent-Length: {}", body.len());
        ask(own, &head, body)
    };
    assert_eq!(login(r#"{"token": "wrong"}"#).0, 401);
    assert_eq!(login("token=wrong").0, 400);
    assert_eq!(login(&"x".repeat(5000)).0, 400);
    assert!(server.home.log("admin.log").contains("gave a wrong token"));
    assert_eq!(server.with_token("GET", "/logs?app=none", "").0, 404);
    assert_eq!(server.with_token("GET", "/history?app=none", "").0, 404);
    // Of an app that does not run there are lines, but none that follow: the answer ends.
    server.home.fine(&["stop", "web"]);
    let (status, lines) = server.with_token("GET", "/logs?app=web&lines=1000", "");
    assert_eq!(status, 200);
    assert!(lines.contains("worker 1 listening") && lines.contains("event: end"), "{lines}");
}

/// Returns the status and the head of an answer whose body is no text.
fn raw(address: &str, head: &str) -> (u16, String) {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(troop_testkit::TEST_TIMEOUT)).unwrap();
    write!(stream, "{head}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let head = answer.split("\r\n\r\n").next().unwrap_or_default();
    (status.unwrap_or_default(), head.to_owned())
}

/// Servers on other ports of the host see the cookie.
#[test]
fn a_cookie_alone_ends_no_session_and_slow_clients_keep_nobody_from_logging_in() {
    let server = Server::start(&["--verbs", "reload"]);
    let own = &server.address;
    // More than are answered at a time, whose body does not arrive.
    let slow: Vec<_> = (0..90)
        .map(|_| {
            let mut stream = std::net::TcpStream::connect(own).unwrap();
            write!(stream, "POST /login HTTP/1.1\r\nHost: {own}\r\nContent-Length: 100\r\n\r\n{{")
                .unwrap();
            stream
        })
        .collect();
    let post = |path: &str, more: &str, body: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: {own}\r\nContent-Length: {}{more}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
    };
    let login = format!(r#"{{"token": "{}"}}"#, server.token);
    let mut stream = std::net::TcpStream::connect(own).unwrap();
    stream.set_read_timeout(Some(troop_testkit::TEST_TIMEOUT)).unwrap();
    stream.write_all(post("/login", "", &login).as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let cookie = head.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap();
    let cookie = cookie.split(';').next().unwrap();
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    let key = body["key"].as_str().unwrap();
    drop(slow);
    let status = |method: &str, path: &str, more: &str| {
        let head = format!("{method} {path} HTTP/1.1\r\nHost: {own}\r\nContent-Length: 0{more}");
        ask(own, &head, "").0
    };
    let whole = format!("\r\nCookie: {cookie}\r\ntroop-key: {key}");
    assert_eq!(status("GET", "/session", &whole), 200);
    status("POST", "/logout", &format!("\r\nCookie: {cookie}"));
    assert_eq!(status("GET", "/session", &whole), 200);
    for origin in ["file", "chrome-extension"] {
        let foreign = format!("{whole}\r\nOrigin: {origin}://{own}");
        assert_eq!(status("POST", "/apps/web/reload", &foreign), 403, "{origin}");
    }
    status("POST", "/logout", &whole);
    assert_eq!(status("GET", "/session", &whole), 401);
}
