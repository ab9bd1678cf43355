//! Hung workers: a probe shows whether a silent one is alive, and those that are not are ended in a
//! way that may tell where they hang.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use troop_core::{Time, WorkerId};

use super::Driver;

/// Time between the signal that asks a hung worker for a report and `SIGABRT`.
const REPORT_PATIENCE: Duration = Duration::from_secs(1);
/// Time between `SIGABRT` and `SIGKILL`.
const ABORT_PATIENCE: Duration = Duration::from_secs(2);

const ABORT: i32 = 6;
const KILL: i32 = 9;

/// Hung workers, the next signal for each, and when it is due.
#[derive(Default)]
pub(super) struct Hung(Vec<(WorkerId, i32, Time)>);

impl Hung {
    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.0.iter().map(|(_, _, at)| *at).min()
    }
}

impl Driver {
    pub(super) fn tick_hung(&mut self) {
        while let Some(at) = self.hung.0.iter().position(|(_, _, due)| *due <= self.now) {
            let (worker, signal, _) = self.hung.0.swap_remove(at);
            self.escalate(worker, signal);
        }
    }

    /// Hands a worker a connection to nothing. It is a socket of its own, so that no two workers
    /// have one in common.
    pub(super) fn send_probe(&mut self, worker: WorkerId, line: &[u8]) {
        // The answer must not have to wait for the program.
        self.reclaim_channel(worker);
        match (UnixStream::pair(), self.channel(worker)) {
            (Ok((socket, _)), Some(channel)) => {
                channel.send_line_with(line, socket.into());
                self.unflushed.push(worker);
            }
            (Err(_), Some(_)) => self.core.probe_unsent(self.now, worker),
            (_, None) => {}
        }
    }

    /// Ends a hung worker in a way that may tell where it hangs: by a report if it makes one, by a
    /// core dump if there are such, by force.
    pub(super) fn end_hung(&mut self, worker: WorkerId) {
        let first = self.settings.report_signal.unwrap_or(ABORT);
        self.escalate(worker, first);
    }

    fn escalate(&mut self, worker: WorkerId, signal: i32) {
        if !self.processes.contains_key(&worker) {
            return;
        }
        self.kill(worker, signal);
        match signal {
            KILL => {}
            ABORT => self.hung.0.push((worker, KILL, self.now + ABORT_PATIENCE)),
            _ => self.hung.0.push((worker, ABORT, self.now + REPORT_PATIENCE)),
        }
    }
}
