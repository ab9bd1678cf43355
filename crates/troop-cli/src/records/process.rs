//! Identifies a process beyond the reuse of its number.

use std::fs::File;
use std::io::Read as _;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

/// A process, as no other one has been or will be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) pid: u32,
    /// When it started, in clock ticks since the system did.
    start: u64,
    /// The system's start, from `/proc/sys/kernel/random/boot_id`.
    boot: String,
}

/// What has become of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Running,
    Gone,
    /// The system has been started since, at this time.
    RestartedSystem(SystemTime),
}

impl Identity {
    /// Returns the process of the app that this process runs.
    pub(crate) fn own() -> Identity {
        let pid = troop::keeper::app_pid();
        Identity { pid, start: start_time(pid).unwrap_or_default(), boot: boot() }
    }

    pub(crate) fn fate(&self) -> Fate {
        if self.boot != boot() {
            return Fate::RestartedSystem(booted().unwrap_or_else(SystemTime::now));
        }
        match start_time(self.pid) {
            Some(start) if start == self.start => Fate::Running,
            _ => Fate::Gone,
        }
    }
}

fn boot() -> String {
    let boot = proc_file("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    boot.trim().to_owned()
}

/// Reads a small file of `/proc`, whose size is not known before, in one piece.
fn proc_file(path: &str) -> Option<String> {
    let mut text = String::with_capacity(1024);
    File::open(path).ok()?.read_to_string(&mut text).ok()?;
    Some(text)
}

fn booted() -> Option<SystemTime> {
    let uptime = proc_file("/proc/uptime")?;
    let seconds: f64 = uptime.split_whitespace().next()?.parse().ok()?;
    SystemTime::now().checked_sub(Duration::try_from_secs_f64(seconds).ok()?)
}

/// Returns when a process started. `None` if it has ended, even if its parent has not been told.
fn start_time(pid: u32) -> Option<u64> {
    let stat = proc_file(&format!("/proc/{pid}/stat"))?;
    // The name of the program, which may contain anything, ends at the last parenthesis.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    let state = fields.next()?;
    let start = fields.nth(18)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(start)
}

/// Returns when a process started, by the clock of files. `None` if it has ended.
pub(crate) fn started(pid: u32) -> Option<SystemTime> {
    let ticks = start_time(pid)?;
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    let after_boot = Duration::from_millis(ticks.saturating_mul(1000) / per_second);
    let up = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let up = Duration::from_secs(up.tv_sec.try_into().ok()?);
    SystemTime::now().checked_sub(up.saturating_sub(after_boot))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_another_one_with_its_number() {
        let own = Identity::own();
        assert_eq!(own.fate(), Fate::Running);
        assert!(own.start > 0 && !own.boot.is_empty());
        assert_eq!(Identity { start: own.start + 1, ..own.clone() }.fate(), Fate::Gone);
        let earlier = Identity { boot: "earlier".into(), ..own };
        assert!(matches!(earlier.fate(), Fate::RestartedSystem(at) if at < SystemTime::now()));
    }

    #[test]
    fn a_process_that_has_ended_does_not_run_although_nobody_has_waited_for_it() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        while start_time(child.id()).is_some() {
            std::thread::yield_now();
        }
        child.wait().unwrap();
    }
}
