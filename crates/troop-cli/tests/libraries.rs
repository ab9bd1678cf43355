//! Libraries whose workers talk to a part of theirs in the primary: troop does what that part does, or says
//! that nobody does. `npm install` in `npm/test/packages` comes before.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use support::{Home, node};
use troop_testkit::{talk, wait_until};

const REQUEST: &str = "GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

fn packages() -> PathBuf {
    let packages =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../npm/test/packages/node_modules");
    assert!(packages.join("log4js").exists(), "run `npm install` in npm/test/packages first");
    packages
}

/// Starts two workers of a program; returns their port.
fn start(home: &Home, program: &str, env: &[(&str, &str)]) -> u16 {
    let program = node("libraries").join(program);
    let packages = packages();
    let mut args = vec!["start", program.to_str().unwrap(), "-n", "web", "-w", "2"];
    let mut variables = vec![format!("NODE_PATH={}", packages.display())];
    variables.extend(env.iter().map(|(name, value)| format!("{name}={value}")));
    variables.iter().for_each(|variable| args.extend(["--env", variable]));
    home.fine(&args);
    let address = home.show("web")["listeners"][0]["address"].as_str().unwrap().to_owned();
    address.rsplit_once(':').unwrap().1.parse().unwrap()
}

/// Asks the server; returns the status and the words of the answer.
fn ask(port: u16, request: &str) -> (String, Vec<String>) {
    let answer = talk(([127, 0, 0, 1], port), request).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let words = body.lines().find(|line| line.contains(|c: char| c.is_ascii_digit()));
    let body = body.lines().map(str::trim).filter(|line| line.len() > 2).collect::<Vec<_>>();
    let body = body.first().copied().or(words).unwrap_or_default();
    let status = head.split(' ').nth(1).unwrap().to_owned();
    (status, body.split(' ').map(str::to_owned).collect())
}

fn unclaimed(home: &Home) -> u64 {
    home.show("web")["counts"]["unclaimed"].as_u64().unwrap()
}

#[test]
fn what_socket_io_emits_reaches_the_clients_of_all_workers() {
    let home = Home::with(&[]);
    let port = start(&home, "socket_io.js", &[]);
    let mut command = Command::new("node");
    command.arg(node("libraries/socket_io.js")).arg(port.to_string());
    let output = command.env("NODE_PATH", packages()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let seen: Value = serde_json::from_str(&text)
        .unwrap_or_else(|_| panic!("{text} {}", String::from_utf8_lossy(&output.stderr)));
    let pids: Vec<u64> = serde_json::from_value(seen["pids"].clone()).unwrap();
    let workers: BTreeSet<_> = pids.iter().copied().collect();
    assert_eq!(workers.len(), 2, "clients of both: {seen}");
    assert_eq!(seen["heard"], Value::from(vec!["everybody"; 6]), "{seen}");
    // Answers that go to who has asked.
    assert_eq!(seen["count"], 6, "{seen}");
    let others: Vec<_> = workers.into_iter().filter(|pid| *pid != pids[0]).collect();
    assert_eq!(seen["others"], Value::from(others), "{seen}");
    assert_eq!((unclaimed(&home), home.log("web.log").contains("nobody takes")), (0, false));
}

#[test]
fn a_rate_limit_counts_the_requests_to_all_workers() {
    let home = Home::with(&[]);
    let port = start(&home, "limits.js", &[]);
    let answers: Vec<_> = (0..8).map(|_| ask(port, REQUEST)).collect();
    let statuses: Vec<_> = answers.iter().map(|(status, _)| status.as_str()).collect();
    assert_eq!(statuses, [vec!["200"; 5], vec!["429"; 3]].concat(), "{answers:?}");
    let by: BTreeSet<_> = answers.iter().map(|(_, words)| &words[0]).collect();
    assert_eq!(by.len(), 2, "both have counted: {answers:?}");
    let consumed: Vec<_> = answers.iter().map(|(_, words)| words[1].as_str()).collect();
    assert_eq!(consumed, ["1", "2", "3", "4", "5", "6", "7", "8"]);
    // The next engine counts for workers that have made their limiters before.
    home.fine(&["upgrade", "web"]);
    assert_eq!(ask(port, REQUEST).0, "200");
    assert_eq!(unclaimed(&home), 0);
}

#[test]
fn the_worker_in_slot_0_writes_the_log_of_all_in_the_mode_for_pm2() {
    let home = Home::with(&[]);
    let file = home.path().join("lines");
    let mode = r#"{"pm2":true,"pm2InstanceVar":"TROOP_SLOT"}"#;
    let env = [("LOG_FILE", file.to_str().unwrap()), ("LOGS", mode)];
    let port = start(&home, "logs.js", &env);
    let pids: Vec<_> = (0..4).map(|_| ask(port, REQUEST).1.remove(0)).collect();
    assert_eq!(pids.iter().collect::<BTreeSet<_>>().len(), 2);
    wait_until("all lines", || {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let of =
            |pid: &str| text.lines().filter(|line| line.contains(&format!(" of {pid} "))).count();
        pids.iter().map(|pid| of(pid)).sum::<usize>() == 4 * 20
    });
    assert_eq!((unclaimed(&home), home.log("web.log").contains("log4js")), (0, false));
}

#[test]
fn a_log_that_nobody_writes_is_told_about_once_with_what_to_do() {
    let home = Home::with(&[]);
    let file = home.path().join("lines");
    let env = [("LOG_FILE", file.to_str().unwrap()), ("LOGS", "{}")];
    let port = start(&home, "logs.js", &env);
    (0..4).for_each(|_| drop(ask(port, REQUEST)));
    wait_until("messages that are counted", || unclaimed(&home) == 40);
    let told = |home: &Home| home.log("web.log").matches("nobody writes it (log4js)").count();
    wait_until("a line in the log", || told(&home) > 0);
    assert!(home.log("web.log").contains("disableClustering: true"));
    // The next engine does not tell of it again.
    home.fine(&["upgrade", "web"]);
    (0..4).for_each(|_| drop(ask(port, REQUEST)));
    wait_until("messages that are counted", || unclaimed(&home) == 80);
    assert_eq!(told(&home), 1);
}

#[test]
fn a_message_that_nobody_takes_is_told_about_once_and_not_to_who_follows_events() {
    const TALKS: &str = "require('http').createServer((request, response) => { \
        process.send({ hello: '\\x1b[31m' }, () => response.end('1')); }).listen(0, '127.0.0.1'); \
        process.send('ready');";
    let home = Home::with(&[("talks.js", TALKS)]);
    home.fine(&["start", "talks.js", "-n", "web", "-w", "2"]);
    let address = home.show("web")["listeners"][0]["address"].as_str().unwrap().to_owned();
    let port = address.rsplit_once(':').unwrap().1.parse().unwrap();
    assert_eq!(unclaimed(&home), 0, "`ready` is for whoever starts the program");
    let mut command = home.command(&["events", "web", "--json"]);
    let mut following = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(following.stdout.take().unwrap()).lines().map_while(Result::ok);
    // The first one may come before the client follows.
    let mut before = 0;
    wait_until("an event", || {
        ask(port, REQUEST);
        let is_followed = unclaimed(&home) == before;
        before = unclaimed(&home);
        is_followed
    });
    assert!(lines.any(|line| line.contains(r#""event":"message""#)));
    let _ = following.kill();
    let _ = following.wait();
    wait_until("messages that are counted", || {
        ask(port, REQUEST);
        unclaimed(&home) > before + 2
    });
    wait_until("a line in the log", || home.log("web.log").contains("nobody takes"));
    let log = home.log("web.log");
    assert_eq!(log.matches("nobody takes").count(), 1, "{log}");
    assert!(log.contains(r#"{"hello":"\\u001b[31m"}"#) || log.contains("hello"), "{log}");
    assert!(log.contains("--alone") && !log.contains('\x1b'), "{log}");
}

#[test]
fn a_flood_for_a_worker_that_reads_nothing_costs_bounded_memory_and_is_told_once() {
    // 128 MiB for a worker that is busy.
    const FLOODS: &str = "
        const fs = require('fs');
        require('http').createServer((q, s) => s.end()).listen(0, '127.0.0.1');
        const data = 'x'.repeat(65536);
        const send = (left) => {
          if (left === 0) return fs.writeFileSync('done', '');
          const message = { type: 3, uid: 'a', nsp: '/', data, source: '_sio_adapter' };
          process.send(message, () => send(left - 1));
        };
        if (process.env.TROOP_SLOT === '1') setInterval(() => { while (fs.existsSync('busy')); }, 10);
        else if (fs.existsSync('busy')) setTimeout(send, 100, 2000);";
    let home = Home::with(&[("floods.js", FLOODS), ("busy", "")]);
    home.fine(&["start", "floods.js", "-n", "web", "-w", "2"]);
    wait_until("the end of the flood", || home.path().join("done").exists());
    let app = home.show("web");
    let memory = app["usage"]["rss"].as_u64().unwrap();
    assert!(memory < 90 << 20, "{memory} bytes");
    let told = |home: &Home| {
        let log = home.log("web.log");
        log.matches("misses some of those").count() + log.matches("some are lost").count()
    };
    wait_until("a line in the log", || told(&home) > 0);
    assert_eq!((told(&home), unclaimed(&home)), (1, 0), "{}", home.log("web.log"));
    std::fs::remove_file(home.path().join("busy")).unwrap();
}
