//! Carries out what the core decides about hung workers: probes and signals.

use std::os::unix::net::UnixStream;

use troop_core::WorkerId;

use super::Driver;

impl Driver {
    pub(super) fn tick_hung(&mut self) {
        while let Some((worker, signal)) = self.hung.next_signal(self.now) {
            self.kill(worker, signal);
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

    /// Ends a hung worker in a way that may tell where it hangs.
    pub(super) fn end_hung(&mut self, worker: WorkerId) {
        if self.processes.contains_key(&worker) {
            let signal = self.hung.hangs(self.now, worker, self.settings.report_signal);
            self.kill(worker, signal);
        }
    }
}
