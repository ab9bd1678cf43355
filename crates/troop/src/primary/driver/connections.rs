//! Accepts connections and hands them over. This is the path that has to be fast.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use troop_core::wire::{MAX_BATCH, outgoing};
use troop_core::{ConnId, ListenerId, WorkerId};
use troop_sys::poll::Interest;
use troop_sys::{fdpass, socket};

use super::{Driver, Token};
use crate::error::Error;
use crate::events::Event;

/// Connections accepted per listener before others have their turn.
pub(super) const ACCEPT_BURST: usize = 64;
/// The pause after an accept failed for want of descriptors or memory. The connections wait in the kernel meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

impl Driver {
    /// Accepts what there is, as long as somebody wants it.
    ///
    /// An accept that finds nothing costs as much as one that finds something, so in a thread of its own the driver rather asks the
    /// poller whether there is more, after one connection at first, after more of them while they come in numbers. Inside a runtime,
    /// which reports a listener once, it has to accept until there is nothing more.
    pub(super) fn accept(&mut self) {
        let nested = self.waiting.is_nested();
        for at in 0..self.accepting.len() {
            let Some(&id) = self.accepting.get(at) else { return };
            let Some(listener) = self.listeners.get_mut(&id) else { continue };
            let full = std::mem::take(&mut listener.full);
            if !listener.ready {
                if full {
                    listener.burst = 1;
                }
                continue;
            }
            let burst = if nested || listener.masked { ACCEPT_BURST } else { listener.burst };
            let (mut accepted, mut drained) = (0, false);
            while accepted < burst && self.accept_again.is_none() && self.core.wants_connection(id) {
                match self.accept_one(id) {
                    Some(true) => accepted += 1,
                    Some(false) => {}
                    None => {
                        drained = true;
                        break;
                    }
                }
            }
            let Some(listener) = self.listeners.get_mut(&id) else { continue };
            if drained {
                listener.ready = false;
                listener.burst = accepted.max(1);
                if std::mem::take(&mut listener.masked) {
                    let _ = self.waiting.poller().modify(&listener.fd, Token::Listener(id).pack(), Interest::Read);
                }
            } else if nested || listener.masked {
                // There may be more, which nobody will report.
            } else if accepted == burst {
                listener.ready = false;
                listener.full = true;
            } else {
                // Nobody wants them now. They wait in the kernel, and must not be reported all the time.
                listener.masked = true;
                let _ = self.waiting.poller().modify(&listener.fd, Token::Listener(id).pack(), Interest::Nothing);
            }
        }
    }

    /// True: one was accepted. False: one was lost before it could be, or there is an obstacle. `None`: there is none.
    fn accept_one(&mut self, id: ListenerId) -> Option<bool> {
        let listener = self.listeners.get(&id)?;
        match socket::accept(listener.fd.as_fd()) {
            Ok(fd) => {
                let conn = ConnId(u32::try_from(self.conns.insert(fd)).unwrap_or(u32::MAX));
                self.core.accepted(self.now, id, conn);
                self.act();
                Some(true)
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => None,
            Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => Some(false),
            Err(e) => {
                // Out of descriptors or memory: nothing is lost, the kernel keeps the connections.
                self.accept_again = Some(self.now + ACCEPT_PAUSE);
                self.events.push(Event::Error(None, Arc::new(Error::Io { doing: "accept a connection", source: e })));
                Some(false)
            }
        }
    }

    #[inline]
    pub(super) fn deliver(&mut self, worker: WorkerId, listener: ListenerId, conn: ConnId, seq: u64, batched: bool) {
        if batched {
            let Some(channel) = self.processes.get_mut(&worker).and_then(|p| p.channel.as_mut()) else {
                self.core.undelivered(self.now, worker, seq);
                return;
            };
            if channel.batch.seqs.len() == MAX_BATCH || channel.batch.listener.is_some_and(|l| l != listener) {
                self.send_batch(worker);
            }
            let Some(channel) = self.channel(worker) else { return };
            channel.batch.listener = Some(listener);
            channel.batch.seqs.push(seq);
            channel.batch.conns.push(conn);
            if channel.batch.seqs.len() == 1 {
                self.batched.push(worker);
            }
            return;
        }
        let mut line = std::mem::take(&mut self.line);
        line.clear();
        if let Some(listener) = self.listeners.get(&listener) {
            outgoing::newconn(&mut line, &listener.key, seq);
        }
        if !self.send_conns(worker, &line, &[conn]) {
            self.core.undelivered(self.now, worker, seq);
        }
        self.line = line;
    }

    pub(super) fn flush_batches(&mut self) {
        while let Some(worker) = self.batched.pop() {
            self.send_batch(worker);
        }
        // What could not be sent went back, perhaps to other workers.
        self.act();
        if !self.batched.is_empty() {
            self.flush_batches();
        }
    }

    pub(super) fn send_batch(&mut self, worker: WorkerId) {
        let Some(channel) = self.channel(worker) else { return };
        let mut batch = std::mem::take(&mut channel.batch);
        let Some(listener) = batch.listener.take() else { return };
        let mut line = std::mem::take(&mut self.line);
        line.clear();
        if let Some(listener) = self.listeners.get(&listener) {
            outgoing::conns(&mut line, &listener.key, &batch.seqs);
        }
        if !self.send_conns(worker, &line, &batch.conns) {
            for seq in &batch.seqs {
                self.core.undelivered(self.now, worker, *seq);
            }
        }
        self.line = line;
        batch.seqs.clear();
        batch.conns.clear();
        if let Some(channel) = self.channel(worker) {
            channel.batch = batch;
        }
    }

    /// Writes a line with connections to a worker's channel, all or nothing.
    pub(super) fn send_conns(&mut self, worker: WorkerId, line: &[u8], conns: &[ConnId]) -> bool {
        let has_room = match self.channel(worker) {
            None => return false,
            Some(channel) => channel.outbox.is_empty() || self.flush_channel(worker),
        };
        let (Some(process), true) = (self.processes.get_mut(&worker), has_room && !line.is_empty()) else { return false };
        let Some(channel) = &mut process.channel else { return false };
        let fd = |conn: &ConnId| self.conns.get(conn.0 as usize).map(AsFd::as_fd);
        let sent = if let [conn] = conns {
            let Some(fd) = fd(conn) else { return false };
            fdpass::send(channel.socket.as_fd(), line, &[fd])
        } else {
            let fds: Vec<_> = conns.iter().filter_map(fd).collect();
            fdpass::send(channel.socket.as_fd(), line, &fds)
        };
        match sent {
            Ok(n) if n == line.len() => true,
            Ok(n) => {
                channel.outbox.push(&line[n..]);
                self.unflushed.push(worker);
                true
            }
            Err(e) => {
                if e.kind() == io::ErrorKind::WouldBlock && channel.interest == Interest::Read {
                    channel.interest = Interest::ReadWrite;
                    let token = Token::Channel(worker).pack();
                    let _ = self.waiting.poller().modify(&channel.socket, token, Interest::ReadWrite);
                    self.core.set_blocked(self.now, worker, true);
                }
                false
            }
        }
    }
}
