//! A running `troop`, its events, and the certainty that nothing of it is left behind.
#![allow(dead_code, unreachable_pub, clippy::missing_panics_doc)]

pub mod kept_client;
pub mod pm2;
pub mod screen;

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use troop_testkit::TEST_TIMEOUT;

pub struct Running {
    pub child: Child,
    lines: Receiver<String>,
    /// Every line of standard error so far.
    pub seen: Vec<String>,
    pids: Vec<u32>,
    /// Where its control socket is.
    pub runtime: Arc<TempDir>,
}

/// `troop run --log json` with these arguments.
pub fn run<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Running {
    let mut command = Command::new(env!("CARGO_BIN_EXE_troop"));
    command.args(["run", "--log", "json"]).args(args);
    start(command)
}

pub fn start(command: Command) -> Running {
    start_in(Arc::new(tempfile::tempdir().expect("a directory")), command)
}

/// The same beside others.
pub fn start_in(runtime: Arc<TempDir>, command: Command) -> Running {
    start_with(runtime, command, Stdio::piped())
}

/// The same with a standard error that nobody reads, if that is no pipe of its own.
pub fn start_with(runtime: Arc<TempDir>, mut command: Command, stderr: Stdio) -> Running {
    command.env("TROOP_RUNTIME_DIR", runtime.path().join("troop"));
    let mut child = command
        .stderr(stderr)
        .stdout(Stdio::piped())
        .stdin(Stdio::null())
        .spawn()
        .expect("troop starts");
    let stderr = child.stderr.take();
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        let Some(stderr) = stderr else { return };
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    Running { child, lines, seen: Vec::new(), pids: Vec::new(), runtime }
}

impl Running {
    /// `troop` with these arguments, for this app.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_troop"));
        command
            .args(args)
            .env("TROOP_RUNTIME_DIR", self.runtime.path().join("troop"))
            .stdin(Stdio::null());
        command
    }

    /// Runs that; returns the exit code, standard output and standard error.
    pub fn troop<S: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
    ) -> (i32, String, String) {
        let output = self.command(args).output().expect("troop starts");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
    }

    fn line(&mut self, deadline: Instant) -> Option<String> {
        let line =
            self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()?;
        if let Ok(event) = serde_json::from_str::<Value>(&line)
            && event["event"] == "fork"
        {
            self.pids.extend(event["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()));
        }
        self.seen.push(line.clone());
        Some(line)
    }

    /// The next event of this name. Some come only after twenty seconds.
    pub fn event(&mut self, name: &str) -> Value {
        let deadline = Instant::now() + 3 * TEST_TIMEOUT;
        loop {
            let Some(line) = self.line(deadline) else {
                panic!("no event {name}; seen:\n{}", self.seen.join("\n"))
            };
            if let Ok(event) = serde_json::from_str::<Value>(&line)
                && event["event"] == name
            {
                return event;
            }
        }
    }

    /// The next line, whatever it is.
    pub fn event_line(&mut self) -> Option<String> {
        self.line(Instant::now() + TEST_TIMEOUT)
    }

    /// Waits for this many workers to listen; returns the port.
    pub fn listening(&mut self, workers: usize) -> u16 {
        let ports: Vec<u64> =
            (0..workers).map(|_| self.event("listening")["port"].as_u64().unwrap_or(0)).collect();
        u16::try_from(ports[0]).expect("a port")
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid")).expect("a pid");
        kill_process(pid, signal).expect("troop runs");
    }

    /// Waits for the end; returns the exit code and all of standard error.
    pub fn end(&mut self) -> (Option<i32>, String) {
        let deadline = Instant::now() + TEST_TIMEOUT;
        while self.line(deadline).is_some() {}
        let mut status = None;
        troop_testkit::wait_until("the end of troop", || {
            status = self.child.try_wait().expect("a child");
            status.is_some()
        });
        (status.and_then(|s| s.code()), self.seen.join("\n"))
    }

    /// The processes of all workers so far.
    pub fn workers(&self) -> &[u32] {
        &self.pids
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Also those that nobody has asked about.
        while self.line(Instant::now() + Duration::from_secs(1)).is_some() {}
        for pid in &self.pids {
            if let Some(pid) = i32::try_from(*pid).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}

/// Returns standard error of a verb without what it tells of its progress, which depends on how long it takes.
pub fn without_progress(err: &str) -> String {
    let tells = [" is starting", " is ready after ", " is draining, ", " has drained in "];
    let is_progress =
        |line: &&str| line.contains(": worker ") && tells.iter().any(|tells| line.contains(tells));
    err.lines().filter(|line| !is_progress(line)).map(|line| format!("{line}\n")).collect()
}

/// Waits for the end of a process. Returns its code, and what it said as far as that is piped.
pub fn end_of(mut child: Child, what: &str) -> (Option<i32>, String) {
    let mut status = None;
    troop_testkit::wait_until(&format!("{what} ends"), || {
        status = child.try_wait().expect("a child");
        status.is_some()
    });
    let mut said = String::new();
    for text in [
        child.stdout.take().map(std::io::read_to_string),
        child.stderr.take().map(std::io::read_to_string),
    ] {
        said += &text.transpose().expect("text").unwrap_or_default();
    }
    (status.and_then(|status| status.code()), said)
}

/// A Node program of these tests.
pub fn node(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/node").join(name)
}

/// An example of the project's.
pub fn example(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples/node").join(name)
}

/// Shows that the two workers of an app that another process goes on with are still looked after, and
/// that it ends as it would have before.
pub fn works_and_ends(mut troop: Running, worker: u32, port: u16) {
    kill_process(Pid::from_raw(worker.cast_signed()).unwrap(), Signal::KILL).unwrap();
    assert_eq!(troop.event("exit")["signal"], "SIGKILL");
    troop.event("listening");
    assert_eq!(troop_testkit::children(troop.child.id()).len(), 3, "the engine and two workers");
    let (_, out, _) = troop.troop(["reload"]);
    assert!(out.contains("2 workers replaced"), "{out}");
    assert_eq!(troop.troop(["stop"]).0, 0);
    assert_eq!(troop.end().0, Some(0));
    let refused = std::net::TcpStream::connect(("127.0.0.1", port));
    assert!(refused.is_err(), "the port is free");
}

/// What a server at this port answers; an error if that is nothing.
pub fn get(port: u16) -> std::io::Result<String> {
    let answer = troop_testkit::talk(([127, 0, 0, 1], port), "GET / HTTP/1.0\r\n\r\n")?;
    match answer.split_once("\r\n\r\n") {
        Some((_, body)) if !body.is_empty() => Ok(body.to_owned()),
        _ => Err(std::io::Error::other(format!("no answer, but {answer:?}"))),
    }
}

/// A place for apps, which all end with it.
pub struct Home {
    directory: TempDir,
}

impl Home {
    /// With these files in it.
    pub fn with(files: &[(&str, &str)]) -> Home {
        let home = Home { directory: tempfile::tempdir().unwrap() };
        for (name, text) in files {
            std::fs::write(home.path().join(name), text).unwrap();
        }
        home
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_troop"));
        command.args(args).current_dir(self.path()).stdin(Stdio::null());
        command
            .env("TROOP_RUNTIME_DIR", self.path().join("run"))
            .env("TROOP_LOG_DIR", self.path().join("logs"));
        command
    }

    /// The exit code, standard output and standard error.
    pub fn troop(&self, args: &[&str]) -> (i32, String, String) {
        let output = self.command(args).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
    }

    /// What is fine.
    pub fn fine(&self, args: &[&str]) -> String {
        let (code, out, err) = self.troop(args);
        assert_eq!(code, 0, "troop {args:?}: {out}{err}");
        out
    }

    pub fn show(&self, name: &str) -> Value {
        serde_json::from_str::<Vec<Value>>(&self.fine(&["show", name, "--json"])).unwrap().remove(0)
    }

    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.path().join("logs").join(name)).unwrap_or_default()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = self.command(&["stop", "all", "--quick"]).output();
    }
}
