//! A primary that executes itself again, and what is asked of it.
#![allow(dead_code, unreachable_pub, reason = "each test uses a part of it")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use troop_testkit::{TEST_TIMEOUT, children};

/// A primary that executes itself again on SIGUSR1. It ends with the test.
pub struct Primary {
    pub child: Child,
    pub lines: Receiver<String>,
}

impl Drop for Primary {
    fn drop(&mut self) {
        for worker in children(self.child.id()) {
            signal(worker, Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).unwrap();
    let _ = kill_process(pid, signal);
}

pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_troop-fixture"));
    command.arg("replaceable").args(args);
    command
}

impl Primary {
    pub fn start(args: &[&str]) -> Primary {
        Primary::with(&mut command(args))
    }

    pub fn with(command: &mut Command) -> Primary {
        let mut child = command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
        let (sender, lines) = channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Primary { child, lines }
    }

    pub fn signal(&self, number: Signal) {
        signal(self.child.id(), number);
    }

    /// Waits for the line that begins so, and returns the rest of it.
    pub fn until(&self, begin: &str) -> String {
        self.until_any(&[begin]).1
    }

    /// Waits for a line that begins in one of these ways, and returns which, and the rest of it.
    pub fn until_any<'a>(&self, begins: &[&'a str]) -> (&'a str, String) {
        let deadline = Instant::now() + TEST_TIMEOUT;
        let mut seen = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left);
            let line = line.unwrap_or_else(|e| panic!("no {begins:?} ({e}) after {seen:#?}"));
            let rest =
                |begin: &&'a str| Some((*begin, line.strip_prefix(*begin)?.trim().to_owned()));
            if let Some(found) = begins.iter().find_map(rest) {
                return found;
            }
            seen.push(line);
        }
    }

    /// Waits for a line with each of these beginnings, in any order, and returns the rests of them.
    pub fn until_all(&self, begins: &[&str]) -> Vec<String> {
        let mut found = vec![None; begins.len()];
        while let Some(left) = found.iter().position(Option::is_none) {
            let line = self.lines.recv_timeout(TEST_TIMEOUT);
            let line = line.unwrap_or_else(|e| panic!("no {:?} ({e})", begins[left]));
            for (begin, found) in begins.iter().zip(&mut found) {
                let rest = line.strip_prefix(begin).map(|rest| rest.trim().to_owned());
                *found = found.take().or(rest);
            }
        }
        found.into_iter().flatten().collect()
    }

    pub fn listening(&self) -> u16 {
        self.until("listening ").parse().unwrap()
    }

    /// Has another image go on.
    pub fn replace(&self) {
        self.signal(Signal::USR1);
        assert_eq!(self.until("restored "), "with what the program left");
        self.until("begun ");
    }

    pub fn stop(mut self) {
        self.signal(Signal::TERM);
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}");
    }
}
