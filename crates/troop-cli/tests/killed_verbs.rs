//! The engine is killed at any moment of a verb: nothing hangs, the verb's exit code is true, and nothing is
//! left behind.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::net::TcpStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::Home;
use troop_testkit::{TEST_TIMEOUT, engine, is_running, wait_until};

/// How often the engine is killed during each verb.
const ROUNDS: u64 = 16;
/// Within this time of the verb's start.
const SPAN: Duration = Duration::from_millis(120);

/// Takes its time to leave, so that an engine can be killed meanwhile.
const SERVER: &str = "
const server = require('http').createServer((request, response) => response.end('x')).listen(0);
process.on('disconnect', () => setTimeout(() => process.exit(0), 50));
process.on('SIGTERM', () => setTimeout(() => process.exit(0), 50));";

struct App {
    home: Home,
    keeper: u32,
    workers: BTreeSet<u32>,
    port: u16,
}

fn number(value: &Value) -> u32 {
    value.as_u64().and_then(|number| u32::try_from(number).ok()).unwrap()
}

impl App {
    fn new() -> App {
        let home = Home::with(&[("server.js", SERVER)]);
        home.fine(&["start", "server.js", "-n", "web", "-i", "2"]);
        let mut app = App { home, keeper: 0, workers: BTreeSet::new(), port: 0 };
        app.look();
        app
    }

    /// Takes note of what there is.
    fn look(&mut self) {
        let shown = self.home.show("web");
        self.keeper = number(&shown["pid"]);
        let workers = shown["workers"].as_array().unwrap();
        self.workers = workers.iter().map(|worker| number(&worker["pid"])).collect();
        let address = shown["listeners"][0]["address"].as_str().unwrap();
        self.port = address.rsplit_once(':').unwrap().1.parse().unwrap();
    }

    /// Runs a verb, and kills the engine meanwhile. Returns the exit code, and what was said.
    fn killed_during(&self, verb: &[&str], nth: u64) -> (Option<i32>, String) {
        let child =
            self.home.command(verb).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // Spread over the time that it takes, and different each time.
        let random = u64::from(std::time::UNIX_EPOCH.elapsed().unwrap().subsec_nanos()) % 997;
        std::thread::sleep(SPAN.mul_f64((nth as f64 + random as f64 / 997.0) / ROUNDS as f64));
        if let Some(engine) = engine(self.keeper) {
            let _ = kill_process(Pid::from_raw(engine.cast_signed()).unwrap(), Signal::KILL);
        }
        support::end_of(child, &format!("{verb:?}, round {nth},"))
    }

    /// The state that is listed; `None` if none is.
    fn state(&self) -> Option<String> {
        let all: Vec<Value> = serde_json::from_str(&self.home.fine(&["ls", "--json"])).unwrap();
        let web = all.iter().find(|app| app["name"] == "web")?;
        Some(web["phase"].as_str().unwrap().to_owned())
    }

    fn is_ready(&self, workers: usize) -> bool {
        let (code, out, _) = self.home.troop(&["ls"]);
        code == 0 && out.contains("running") && out.contains(&format!("{workers}/{workers}"))
    }

    /// Waits until so many workers are ready; otherwise what there is says why they are not.
    fn becomes_ready(&self, workers: usize, what: &str) {
        let until = Instant::now() + TEST_TIMEOUT;
        while !self.is_ready(workers) {
            if Instant::now() > until {
                let log = std::fs::read_to_string(self.home.path().join("logs/web.log"));
                panic!(
                    "{what}: not ready: {:#}\n{}",
                    self.home.show("web"),
                    log.unwrap_or_default()
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Nothing of it is there any more.
    fn is_gone(&self, what: &str) {
        wait_until(&format!("{what}: no process is left"), || {
            !is_running(self.keeper) && !self.workers.iter().any(|pid| is_running(*pid))
        });
        assert!(TcpStream::connect(("127.0.0.1", self.port)).is_err(), "{what}: the port is free");
        for file in ["run/web.sock", "run/web.lock"] {
            assert!(!self.home.path().join(file).exists(), "{what}: {file} is left");
        }
    }
}

/// The files and directories below one.
fn files(home: &Home) -> BTreeSet<String> {
    let (mut found, mut left) = (BTreeSet::new(), vec![home.path().to_owned()]);
    while let Some(directory) = left.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => left.push(path),
                false => drop(
                    found.insert(path.strip_prefix(home.path()).unwrap().display().to_string()),
                ),
            }
        }
    }
    found
}

fn end_while_the_engine_is_killed(verb: &str, state: Option<&str>) {
    let mut app = App::new();
    for nth in 0..ROUNDS {
        let what = format!("{verb}, round {nth}");
        let (code, said) = app.killed_during(&[verb, "web"], nth);
        assert_eq!(code, Some(0), "{what}: {said}");
        app.is_gone(&what);
        assert_eq!(app.state().as_deref(), state, "{what}: {said}");
        match state {
            Some(_) => drop(app.home.fine(&["start", "web"])),
            None => drop(app.home.fine(&["start", "server.js", "-n", "web", "-i", "2"])),
        }
        app.look();
    }
    app.home.fine(&["delete", "web"]);
    let left = files(&app.home);
    let known = |file: &&String| {
        !["server.js", "run/apps/.lock"].contains(&file.as_str())
            && !file.starts_with("logs/web.log")
    };
    assert_eq!(left.iter().filter(known).collect::<Vec<_>>(), Vec::<&String>::new());
}

#[test]
fn an_app_whose_engine_is_killed_while_it_stops_is_stopped() {
    end_while_the_engine_is_killed("stop", Some("stopped"));
}

#[test]
fn an_app_whose_engine_is_killed_while_it_is_deleted_is_deleted() {
    end_while_the_engine_is_killed("delete", None);
}

#[test]
fn an_app_whose_engine_is_killed_while_it_is_scaled_has_as_many_workers_as_the_verb_says() {
    let app = App::new();
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", app.keeper)).unwrap().count();
    // What the keeper holds for two workers, with the sockets of slots that had some, when nobody is killed.
    app.home.fine(&["scale", "web", "4"]);
    app.becomes_ready(4, "at first");
    let with_four = descriptors();
    app.home.fine(&["scale", "web", "2"]);
    app.becomes_ready(2, "at first");
    wait_until("what was held for the others is closed", || {
        troop_testkit::children(app.keeper).len() == 3 && descriptors() < with_four
    });
    let held = descriptors();
    for nth in 0..ROUNDS {
        let workers = if nth % 2 == 0 { 4 } else { 2 };
        let what = format!("to {workers}, round {nth}");
        let (code, said) = app.killed_during(&["scale", "web", &workers.to_string()], nth);
        assert_eq!(code, Some(0), "{what}: {said}");
        app.becomes_ready(workers, &what);
        wait_until(&format!("{what}: no other process is left"), || {
            troop_testkit::children(app.keeper).len() == workers + 1
        });
        TcpStream::connect(("127.0.0.1", app.port)).unwrap();
        if workers == 2 {
            wait_until(&format!("{what}: no descriptor is left"), || descriptors() <= held);
        }
    }
}

#[test]
fn an_app_whose_engine_is_killed_while_it_is_restarted_is_restarted_or_the_verb_says_that_it_is_not()
 {
    let mut app = App::new();
    for nth in 0..ROUNDS {
        let what = format!("round {nth}");
        let (code, said) = app.killed_during(&["restart", "web"], nth);
        if code == Some(0) {
            assert!(app.is_ready(2), "{what}: {said}");
        } else {
            assert!(code == Some(1) && said.contains("web"), "{what}: {code:?}: {said}");
            // Killed in the middle of it.
            wait_until(&format!("{what}: it has ended"), || !is_running(app.keeper));
            assert_eq!(app.state().as_deref(), Some("crashed"), "{what}: {said}");
            app.is_gone(&what);
            app.home.fine(&["start", "web"]);
        }
        let former = app.workers.clone();
        app.look();
        assert!(former.is_disjoint(&app.workers), "{what}: {said}");
        wait_until(&format!("{what}: no former worker is left"), || {
            !former.iter().any(|pid| is_running(*pid))
        });
    }
}
