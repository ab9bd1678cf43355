//! `troop admin`: what machines and operators see and do over HTTP, and who may.

#![allow(clippy::unwrap_used)]

mod alerts;
mod audit;
mod browser;
mod metrics;
mod page;
#[path = "../support/mod.rs"]
mod support;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::Value;
use support::Home;
use troop_testkit::{TEST_TIMEOUT, wait_until};

const SERVER: &str =
    "require('http').createServer((q, s) => s.end('served')).listen(0, '127.0.0.1')";

struct Server {
    home: Home,
    address: String,
    token: String,
}

impl Server {
    /// With an app of two workers.
    fn start(options: &[&str]) -> Server {
        let home = Home::with(&[("server.js", SERVER)]);
        home.fine(&["start", "server.js", "-n", "web", "-i", "2"]);
        Server::beside(home, options)
    }

    /// Beside the apps that there are.
    fn beside(home: Home, options: &[&str]) -> Server {
        home.fine(&[&["admin", "127.0.0.1:0"], options].concat());
        let address = address(&home, "admin");
        let token = home.fine(&["admin", "--show-token"]).trim().to_owned();
        Server { home, address, token }
    }

    /// Returns the status and the body.
    fn ask(&self, request: &str) -> (u16, String) {
        ask(&self.address, request, "")
    }

    fn get(&self, path: &str) -> (u16, String) {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: {}", self.address))
    }

    fn with_token(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\nContent-Length: {}",
            self.address,
            self.token,
            body.len()
        );
        ask(&self.address, &head, body)
    }
}

fn address(home: &Home, app: &str) -> String {
    home.show(app)["listeners"][0]["address"].as_str().unwrap().to_owned()
}

fn ask(address: &str, head: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    write!(stream, "{head}\r\nConnection: close\r\n\r\n{body}").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    (status.unwrap_or_default(), body.unwrap_or_default())
}

#[test]
fn probes_tell_how_all_apps_are_and_how_one_is() {
    let server = Server::start(&[]);
    for path in ["/ready", "/ready?app=web", "/live", "/live?app=web", "/ready?app=admin"] {
        assert_eq!(server.get(path).0, 200, "{path}: {:?}", server.get(path));
    }
    assert_eq!(server.get("/ready?app=none").0, 404);
    server.home.fine(&["scale", "web", "0"]);
    for path in ["/ready", "/ready?app=web"] {
        wait_until("an answer that is no older than this", || server.get(path).0 == 503);
        let (_, why) = server.get(path);
        assert!(why.starts_with("web: ") && why.lines().count() == 1, "{why:?}");
    }
    assert_eq!(server.get("/live?app=web").0, 200, "its primary answers");
    server.home.fine(&["stop", "web"]);
    // It was stopped by somebody, so all that should run does. But it serves nobody.
    wait_until("the app to be known as stopped", || server.get("/ready").0 == 200);
    assert_eq!(server.get("/ready?app=web"), (503, "web: it does not run\n".into()));
}

#[test]
fn what_tells_more_and_what_changes_something_needs_the_token() {
    let server = Server::start(&["--verbs", "reload,scale"]);
    assert_eq!(server.get("/metrics").0, 200);
    for path in ["/snapshot", "/events"] {
        assert_eq!(server.get(path).0, 401, "{path}");
        let wrong = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}x",
            server.address, server.token
        );
        assert_eq!(server.ask(&wrong).0, 401, "{path}");
    }
    let post = format!("POST /apps/web/reload HTTP/1.1\r\nHost: {}", server.address);
    assert_eq!(server.ask(&post).0, 401);
    let (status, body) = server.with_token("GET", "/snapshot?app=web", "");
    let apps: Vec<Value> = serde_json::from_str(&body).unwrap();
    assert_eq!((status, apps.len()), (200, 1));
    assert_eq!(apps[0]["name"], "web");
    assert_eq!(server.with_token("GET", "/snapshot?app=none", "").0, 404);
}

#[test]
fn verbs_that_are_named_are_carried_out_and_others_are_not() {
    let server = Server::start(&["--verbs", "reload,scale"]);
    let pids = || -> Vec<u64> {
        let shown = server.home.show("web");
        let workers = shown["workers"].as_array().unwrap();
        let serves = |worker: &&Value| !worker["leaving_ms"].is_number();
        workers.iter().filter(serves).map(|worker| worker["pid"].as_u64().unwrap()).collect()
    };
    let before = pids();
    let (status, body) = server.with_token("POST", "/apps/web/reload", "");
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &answer["done"]["replaced"]), (200, &Value::from(2)), "{body}");
    assert!(pids().iter().all(|pid| !before.contains(pid)));
    assert_eq!(server.with_token("POST", "/apps/web/scale", r#"{"by": 1}"#).0, 200);
    assert_eq!(pids().len(), 3);
    for (path, body, status) in [
        ("/apps/web/scale", r#"{"workers": "x"}"#, 400),
        ("/apps/web/scale", "", 400),
        ("/apps/web/reload", r#"{"worker": 999}"#, 409),
        ("/apps/none/reload", "", 404),
        ("/apps/--help/reload", "", 404),
        ("/apps/web/delete", "", 404),
        ("/apps/web/stop", "", 403),
    ] {
        let answer = server.with_token("POST", path, body);
        assert_eq!(answer.0, status, "{path} {body}: {answer:?}");
        assert!(serde_json::from_str::<Value>(&answer.1).unwrap()["failed"].is_string());
    }
    assert_eq!(pids().len(), 3);
}

#[test]
fn an_app_that_was_started_over_http_outlives_the_server() {
    let server = Server::start(&["--verbs", "start,stop"]);
    assert_eq!(server.with_token("POST", "/apps/web/stop", "").0, 200);
    let (status, body) = server.with_token("POST", "/apps/web/start", "");
    assert_eq!(status, 200, "{body}");
    server.home.fine(&["stop", "admin"]);
    server.home.fine(&["wait", "web"]);
}

#[test]
fn idle_clients_keep_no_probe_from_its_answer() {
    let server = Server::start(&[]);
    // More than the server has places for, and fewer than a process may usually have descriptors.
    let idle: Vec<_> =
        (0..700).map(|_| TcpStream::connect(server.address.as_str()).unwrap()).collect();
    for path in ["/ready", "/live", "/metrics"] {
        assert_eq!(server.get(path).0, 200, "{path}");
    }
    drop(idle);
}

#[test]
fn logins_that_do_not_arrive_keep_nobody_from_an_answer() {
    let server = Server::start(&[]);
    let head =
        format!("POST /login HTTP/1.1\r\nHost: {}\r\nContent-Length: 9\r\n\r\n", server.address);
    let slow = || {
        let mut client = TcpStream::connect(server.address.as_str()).unwrap();
        client.write_all(head.as_bytes()).unwrap();
        client
    };
    // More than requests are answered at a time.
    let clients: Vec<_> = (0..90).map(|_| slow()).collect();
    for _ in 0..10 {
        for path in ["/ready", "/live", "/metrics"] {
            assert_eq!(server.get(path).0, 200, "{path}");
        }
    }
    drop(clients);
}

#[test]
fn verbs_are_for_apps_by_their_names_alone() {
    let server = Server::start(&["--verbs", "reload"]);
    let number = server.home.show("web")["id"].to_string();
    for other in [&number[..], "all", "default", "nobody"] {
        let (status, body) = server.with_token("POST", &format!("/apps/{other}/reload"), "");
        assert_eq!(status, 404, "{other}: {body}");
    }
    assert_eq!(server.with_token("POST", "/apps/web/reload", "").0, 200);
}

#[test]
fn a_body_that_is_too_long_is_refused() {
    let server = Server::start(&["--verbs", "reload"]);
    let long = format!("{{}}{}", " ".repeat(100_000));
    assert_eq!(server.with_token("POST", "/apps/web/reload", &long).0, 413);
}

#[test]
fn pages_of_other_sites_get_no_answer() {
    let server = Server::start(&["--host", "ops.example.com"]);
    let own = server.address.clone();
    for (headers, status) in [
        (format!("Host: {own}"), 200),
        ("Host: ops.example.com".into(), 200),
        ("Host: evil.example.com".into(), 421),
        (format!("Host: {own}\r\nOrigin: http://evil.example.com"), 403),
        (format!("Host: {own}\r\nOrigin: null"), 403),
        (format!("Host: {own}\r\nOrigin: http://{own}"), 200),
        (format!("Host: {own}\r\nSec-Fetch-Site: cross-site"), 403),
        // What is no text, or there twice, is nobody's own.
        ("Host: evil\u{e9}.example.com".into(), 421),
        (format!("Host: {own}\r\nOrigin: http://evil\u{e9}.example.com"), 403),
        (format!("Host: {own}\r\nHost: evil.example.com"), 421),
        (format!("Host: {own}\r\nOrigin: http://{own}\r\nOrigin: http://evil.example.com"), 403),
    ] {
        let answer = server.ask(&format!("GET /metrics HTTP/1.1\r\n{headers}"));
        assert_eq!(answer.0, status, "{headers}: {answer:?}");
    }
}

#[test]
fn events_follow_as_they_happen_of_one_app_or_of_all() {
    let server = Server::start(&[]);
    let follow = |path: &str| {
        let mut stream = TcpStream::connect(&server.address).unwrap();
        stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\n\r\n",
            server.address, server.token
        )
        .unwrap();
        let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
        assert!(lines.next().unwrap().contains(" 200 "));
        assert!(lines.any(|line| line == ":"), "the first comment");
        lines
    };
    let all = follow("/events");
    let (one, other) = (follow("/events?app=web"), follow("/events?app=web"));
    // The app is followed once its first client was told of it.
    let reload = || server.home.fine(&["reload", "web"]);
    let reloads = std::thread::scope(|scope| {
        let reading: Vec<_> = [all, one, other]
            .into_iter()
            .map(|mut lines| {
                scope.spawn(move || {
                    let data = lines.find_map(|line| {
                        let event: Value =
                            serde_json::from_str(line.strip_prefix("data: ")?).ok()?;
                        (event["event"] == "reload-finished").then_some(event)
                    });
                    data.unwrap()["app"].clone()
                })
            })
            .collect();
        let mut reloads = 0;
        while reading.iter().any(|thread| !thread.is_finished()) && reloads < 20 {
            reload();
            reloads += 1;
        }
        for thread in reading {
            assert_eq!(thread.join().unwrap(), "web");
        }
        reloads
    });
    assert!(reloads > 0);
    assert_eq!(server.with_token("GET", "/events?app=none", "").0, 404);
}

#[test]
fn clients_that_follow_something_do_not_keep_the_server_from_ending() {
    let server = Server::start(&[]);
    let follow = |path: &str| {
        let mut stream = TcpStream::connect(&server.address).unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nHost: {}", server.address);
        write!(stream, "{head}\r\nAuthorization: Bearer {}\r\n\r\n", server.token).unwrap();
        let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
        assert!(lines.any(|line| line == ":"), "the first comment");
        lines
    };
    let _following = [follow("/events"), follow("/logs?app=web")];
    server.home.fine(&["stop", "admin"]);
    let log = server.home.log("admin.log");
    let end = log.lines().rfind(|line| line.contains("worker 1 ")).unwrap();
    assert!(end.contains("exit code 0"), "{log}");
}

#[test]
fn a_token_that_others_could_read_or_guess_is_refused() {
    let home = Home::with(&[]);
    let token = home.fine(&["admin", "--show-token"]);
    assert_eq!(home.fine(&["admin", "--show-token"]), token, "it stays");
    assert!(token.trim().len() >= 40, "{token:?}");
    let file = home.path().join("token");
    let typed = file.to_str().unwrap();
    for (text, mode, why) in [
        ("a-token-of-my-own\n", 0o600, None),
        ("a-token-of-my-own\n", 0o640, Some("chmod 600")),
        ("short\n", 0o600, Some("at least 16")),
        ("with some spaces in it\n", 0o600, Some("without spaces")),
    ] {
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        let (code, out, err) = home.troop(&["admin", "--show-token", "--token-file", typed]);
        match why {
            None => assert_eq!((code, out.as_str()), (0, text)),
            Some(why) => {
                assert_eq!((code, out.as_str()), (2, ""));
                assert!(err.contains(why) && err.contains(typed), "{err}");
            }
        }
    }
}

#[test]
fn a_port_alone_is_one_of_this_machine_alone_and_a_path_is_a_unix_socket() {
    let home = Home::with(&[]);
    let path = home.path().join("admin.sock");
    home.fine(&["admin", path.to_str().unwrap(), "-n", "by-path"]);
    let mut stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
    stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    write!(stream, "GET /live HTTP/1.1\r\nHost: any\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    home.fine(&["admin", "0", "-n", "by-port"]);
    assert!(address(&home, "by-port").starts_with("127.0.0.1:"));
}
