//! Writes the channels, and has the poller report what can be used of them.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use troop_core::primary::Primary;
use troop_core::wire::MAX_BATCH;
use troop_core::{ConnId, ListenerId, Time, WorkerId};
use troop_sys::fdpass;
use troop_sys::poll::Interest;

use super::{Channels, RETRY_PAUSE};
use crate::channel::{Flushed, Outbox};
use crate::primary::channel::{Batch, in_format};
use crate::primary::driver::connections::Connections;
use crate::primary::driver::poller::EventPoller;
use crate::primary::driver::{Driver, Token};

/// What the kernel writes as a whole or not at all, in bytes; it takes more in several pieces.
const MAX_WHOLE: usize = 16 * 1024;

/// What became of what waits in a channel.
enum Written {
    /// There is room for more, or not.
    HasRoom(bool),
    /// Everything that was to come before the channel's end has been written.
    Ended,
}

/// What became of connections for a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::primary::driver) enum Sent {
    Yes,
    No,
    /// There is no room in the channel, since now.
    Blocked,
}

impl Channels {
    /// Sends a line, whatever the format of the channel is.
    pub(in crate::primary::driver) fn send(&mut self, worker: WorkerId, line: &[u8]) {
        if let Some(channel) = self.get_mut(worker) {
            channel.send_line(line);
            self.unflushed.push(worker);
        }
    }

    /// The same with a descriptor.
    pub(in crate::primary::driver) fn send_with(
        &mut self,
        worker: WorkerId,
        line: &[u8],
        handle: OwnedFd,
    ) {
        if let Some(channel) = self.get_mut(worker) {
            channel.send_line_with(line, handle);
            self.unflushed.push(worker);
        }
    }

    /// Has a channel written with the others.
    pub(in crate::primary::driver) fn flush_soon(&mut self, worker: WorkerId) {
        self.unflushed.push(worker);
    }

    /// Has the relay of a worker written with the others.
    pub(in crate::primary::driver) fn flush_relay_soon(&mut self, worker: WorkerId) {
        self.unflushed_relays.push(worker);
    }

    /// Whether something is to be written that may not have been tried yet.
    pub(in crate::primary::driver) fn has_unflushed(&self) -> bool {
        !self.unflushed.is_empty() || !self.unflushed_relays.is_empty()
    }

    /// Whether connections wait for others that go in the same message.
    pub(in crate::primary::driver) fn has_batches(&self) -> bool {
        !self.batched.is_empty()
    }

    fn flush(
        &mut self,
        id: WorkerId,
        now: Time,
        core: &mut Primary,
        poller: &mut EventPoller,
    ) -> Written {
        let Some(channel) = self.of_workers.get_mut(&id) else { return Written::HasRoom(false) };
        // A part of that may be written, and this engine be killed before it knows of which.
        let is_uncertain = channel.blocked || channel.outbox.len() > MAX_WHOLE;
        if let Some(journal) = self.journal.as_mut().filter(|_| is_uncertain) {
            journal.note_writing(id);
            self.has_changed = true;
        }
        let outcome = channel.outbox.flush(channel.socket.as_fd());
        self.has_changed |= matches!(outcome, Ok(Flushed::Blocked));
        channel.show_unwritten();
        let blocked = match outcome {
            Ok(Flushed::All) if channel.last => return Written::Ended,
            Ok(Flushed::All) => false,
            Ok(Flushed::Blocked) => true,
            Ok(Flushed::Later) => {
                if !self.retry.contains(&id) {
                    self.retry.push(id);
                }
                self.retry_at.get_or_insert(now + RETRY_PAUSE);
                return Written::HasRoom(false);
            }
            // Gone; the reading side will see it too, after what the worker wrote before.
            Err(_) => {
                channel.outbox = Outbox::default();
                return Written::HasRoom(false);
            }
        };
        if blocked != std::mem::replace(&mut channel.blocked, blocked) {
            core.set_blocked(now, id, blocked);
        }
        if self.relays.contains_key(&id) {
            self.update_relay(id, poller)
        } else {
            self.update(id, poller)
        }
        Written::HasRoom(!blocked)
    }

    /// Lets the poller report what can be used of a channel.
    pub(super) fn update(&mut self, id: WorkerId, poller: &mut EventPoller) {
        let full = self.relays.get(&id).is_some_and(|relay| relay.is_full() || relay.is_direct());
        let Some(channel) = self.of_workers.get_mut(&id) else { return };
        let interest = match (channel.is_backpressured() || full, channel.blocked) {
            (true, true) => Interest::Write,
            (true, false) => Interest::Nothing,
            (false, true) => Interest::ReadWrite,
            (false, false) => Interest::Read,
        };
        if interest != channel.interest {
            channel.interest = interest;
            poller.modify(&channel.socket, Token::Channel(id), interest);
        }
    }

    /// Adds a connection to those that go to a worker in one message. False if that worker's message
    /// has to be sent before; `None` if it has no channel.
    pub(in crate::primary::driver) fn batch(
        &mut self,
        worker: WorkerId,
        listener: ListenerId,
        seq: u64,
        conn: ConnId,
    ) -> Option<bool> {
        let batch = &mut self.of_workers.get_mut(&worker)?.batch;
        if batch.seqs.len() == MAX_BATCH || batch.listener.is_some_and(|other| other != listener) {
            return Some(false);
        }
        batch.listener = Some(listener);
        batch.seqs.push(seq);
        batch.conns.push(conn);
        if batch.seqs.len() == 1 {
            self.batched.push(worker);
        }
        Some(true)
    }

    /// The next worker with an unfinished batch.
    pub(in crate::primary::driver) fn next_batched(&mut self) -> Option<WorkerId> {
        self.batched.pop()
    }

    pub(in crate::primary::driver) fn take_batch(&mut self, worker: WorkerId) -> Option<Batch> {
        Some(std::mem::take(&mut self.of_workers.get_mut(&worker)?.batch))
    }

    /// Gives back the room of a batch that was sent.
    pub(in crate::primary::driver) fn return_batch(&mut self, worker: WorkerId, mut batch: Batch) {
        batch.listener = None;
        batch.seqs.clear();
        batch.conns.clear();
        if let Some(channel) = self.of_workers.get_mut(&worker) {
            channel.batch = batch;
        }
    }

    /// Whether something else has to be written before connections.
    #[inline]
    pub(in crate::primary::driver) fn has_unwritten(&self, worker: WorkerId) -> bool {
        self.of_workers.get(&worker).is_some_and(|channel| !channel.outbox.is_empty())
    }

    /// Writes a line with connections to a worker's channel, all or nothing.
    #[inline]
    pub(in crate::primary::driver) fn send_conns(
        &mut self,
        worker: WorkerId,
        conns: &[ConnId],
        all: &mut Connections,
        write_line: impl FnOnce(&mut Vec<u8>),
    ) -> Sent {
        self.line.clear();
        write_line(&mut self.line);
        let (Some(channel), false) = (self.of_workers.get_mut(&worker), self.line.is_empty())
        else {
            return Sent::No;
        };
        let line = in_format(channel.advanced, &self.line, &mut self.frame);
        for conn in conns {
            all.prepare(*conn, worker);
        }
        let sent = if let [conn] = conns {
            let Some(fd) = all.fd(*conn) else { return Sent::No };
            fdpass::send(channel.socket.as_fd(), line, &[fd])
        } else {
            // At most a batch of them, so there is room for all, and none has to be made.
            let mut fds = [channel.socket.as_fd(); MAX_BATCH];
            let mut count = 0;
            for (place, fd) in fds.iter_mut().zip(conns.iter().filter_map(|conn| all.fd(*conn))) {
                *place = fd;
                count += 1;
            }
            fdpass::send(channel.socket.as_fd(), line, &fds[..count])
        };
        match sent {
            Ok(n) if n == line.len() => Sent::Yes,
            Ok(n) => {
                channel.outbox.push(&line[n..]);
                self.unflushed.push(worker);
                Sent::Yes
            }
            Err(e)
                if e.kind() == io::ErrorKind::WouldBlock
                    && !std::mem::replace(&mut channel.blocked, true) =>
            {
                Sent::Blocked
            }
            Err(_) => Sent::No,
        }
    }
}

impl Driver {
    pub(in crate::primary::driver) fn flush(&mut self) {
        while let Some(id) = self.channels.unflushed.pop() {
            self.flush_channel(id);
        }
    }

    /// Writes what waits in a channel. Whether there is room for more.
    pub(in crate::primary::driver) fn flush_channel(&mut self, id: WorkerId) -> bool {
        let core = &mut self.cluster.primary;
        match self.channels.flush(id, self.now, core, &mut self.poller) {
            Written::HasRoom(has_room) => has_room,
            Written::Ended => {
                self.channel_closed(id, false);
                false
            }
        }
    }

    /// Writes a line with connections to a worker's channel, all or nothing.
    #[inline]
    pub(in crate::primary::driver) fn send_conns(
        &mut self,
        worker: WorkerId,
        conns: &[ConnId],
        write_line: impl FnOnce(&mut Vec<u8>, &super::super::listeners::Listeners),
    ) -> bool {
        if self.channels.has_unwritten(worker) && !self.flush_channel(worker) {
            return false;
        }
        let Driver { channels, connections, listeners, .. } = self;
        let sent =
            channels.send_conns(worker, conns, connections, |line| write_line(line, listeners));
        if sent == Sent::Blocked {
            self.channels.update(worker, &mut self.poller);
            self.cluster.primary.set_blocked(self.now, worker, true);
        }
        sent == Sent::Yes
    }
}
