//! `troop run` whose standard error nobody reads: a pager that waits, a `tee` that was stopped.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead as _, BufReader, PipeReader, PipeWriter};
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use serde_json::Value;
use support::{Running, run, start_with};
use troop_testkit::{TEST_TIMEOUT, talk, wait_until};

/// Slot 0 serves, and says as much as its first client likes; each of these messages is a line.
/// Workers in slot 1 end at once.
const APP: &str = "
    if (process.env.NODE_APP_INSTANCE === '1') process.exit(1);
    require('http').createServer((request, answer) => {
        for (let n = 0; n < +request.url.slice(1); n += 1) process.send('x'.repeat(1000));
        answer.end('served');
    }).listen(+process.env.PORT, '127.0.0.1');";

struct Unread {
    troop: Running,
    _home: tempfile::TempDir,
    port: u16,
    reader: PipeReader,
    writer: PipeWriter,
}

impl Unread {
    fn start() -> Unread {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("app.js"), APP).unwrap();
        let port = troop_testkit::free_port();
        let (reader, writer) = std::io::pipe().unwrap();
        // The smallest that there is.
        rustix::pipe::fcntl_setpipe_size(&writer, 4096).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_troop"));
        command.args(["run", "--name", "web", "--log", "json", "-w", "2"]);
        command.args(["--set", "restart.delay=10ms", "--set", "restart.max_delay=10ms"]);
        command.arg(home.path().join("app.js")).env("PORT", port.to_string());
        let runtime = Arc::new(tempfile::tempdir().unwrap());
        let troop = start_with(runtime, command, writer.try_clone().unwrap().into());
        let unread = Unread { troop, _home: home, port, reader, writer };
        wait_until("a worker that serves", || unread.is_served("/0"));
        unread
    }

    fn is_served(&self, path: &str) -> bool {
        talk(([127, 0, 0, 1], self.port), &format!("GET {path} HTTP/1.0\r\n\r\n"))
            .is_ok_and(|answer| answer.contains("served"))
    }

    /// Has more said than the pipe and the queue take.
    fn overflow(&self) {
        assert!(self.is_served("/6000"));
        wait_until("a full pipe", || {
            let mut fds = [PollFd::new(&self.writer, PollFlags::OUT)];
            poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 0
        });
    }

    fn restarts(&self) -> u64 {
        let (code, out, err) = self.troop.troop(["show", "web", "--json"]);
        assert_eq!(code, 0, "{err}");
        serde_json::from_str::<Vec<Value>>(&out).unwrap()[0]["restarts"].as_u64().unwrap()
    }
}

#[test]
fn an_unread_standard_error_delays_nothing_and_dropped_lines_are_counted() {
    let unread = Unread::start();
    unread.overflow();
    let before = unread.restarts();
    wait_until("more restarts", || unread.restarts() > before + 2);
    for _ in 0..20 {
        assert!(unread.is_served("/0"));
    }
    let (code, list, err) = unread.troop.troop(["ls"]);
    assert!(code == 0 && list.contains("web"), "{list}{err}");
    // Somebody reads again.
    let Unread { troop, reader, .. } = &unread;
    let (sender, lines) = std::sync::mpsc::channel();
    let reader = reader.try_clone().unwrap();
    std::thread::spawn(move || {
        let mut lines = BufReader::new(reader).lines().map_while(Result::ok);
        lines.all(|line| sender.send(line).is_ok())
    });
    let deadline = Instant::now() + TEST_TIMEOUT;
    let (mut messages, mut dropped) = (0, 0);
    while dropped == 0 {
        let line = lines
            .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            .expect("a line that says how many");
        let event: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line:?}: {e}"));
        messages += u64::from(event["event"] == "message");
        dropped = event["dropped"].as_u64().unwrap_or(0);
    }
    assert!(messages > 100, "{messages} messages of 6,000 were kept");
    assert!(messages + dropped >= 6000 && dropped > 1000, "{messages} kept, {dropped} dropped");
    troop.signal(Signal::TERM);
}

#[test]
fn an_unread_standard_error_delays_the_end_for_a_bounded_time() {
    let mut unread = Unread::start();
    unread.overflow();
    unread.troop.signal(Signal::TERM);
    let mut status = None;
    wait_until("the end of troop", || {
        status = unread.troop.child.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.and_then(|status| status.code()), Some(0));
}

#[test]
fn a_reader_of_the_output_that_goes_away_ends_nothing() {
    let script = "let n = 0; setInterval(() => { console.log('line', n); require('fs').writeFileSync(process.argv[2], String(++n)); }, 5)";
    let directory = tempfile::tempdir().unwrap();
    let (path, count) = (directory.path().join("app.js"), directory.path().join("count"));
    std::fs::write(&path, script).unwrap();
    let (path, told) = (path.display().to_string(), count.display().to_string());
    let mut app = run(["-w", "1", &path, &told]);
    let mut out = BufReader::new(app.child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert!(line.starts_with("line "), "{line}");
    drop(out);
    let counted = || std::fs::read_to_string(&count).unwrap_or_default().parse().unwrap_or(0);
    let before: u32 = counted();
    wait_until("many lines that nobody reads", || counted() > before + 50);
    app.signal(Signal::TERM);
    let (code, log) = app.end();
    assert!(code == Some(0) && !log.contains("worker 2"), "{log}");
}
