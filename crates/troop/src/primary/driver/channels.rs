//! Reads and writes the workers' channels, and sees their ends.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use troop_core::WorkerId;
use troop_core::event::{ExitHow, Violation};
use troop_sys::poll::Interest;
use troop_sys::process::{self, Exit};
use troop_sys::{diag, fdpass, socket};

use super::{Driver, Token};
use crate::channel::{Flushed, Outbox};
use crate::closer::{self, Closer, Closing};
use crate::error::Error;
use crate::event::Event;
use crate::primary::cgroup::WorkerCgroup;
use crate::primary::channel::{Channel, Outlets};

/// Reads per channel before others have their turn.
pub(super) const READ_BURST: usize = 1;
/// Reads of a channel that has ended: more than fits into a socket buffer, and not without end,
/// because others may hold copies of it.
pub(super) const LAST_READS: usize = 1024;
/// The pause before a channel is tried again that could not be written to for want of something but
/// room.
pub(super) const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// `SIGKILL`.
const KILL: i32 = 9;

/// Reads what a worker has sent. Of another user's at most two descriptors are taken, or none; the
/// kernel drops the others at once, however long that takes, so it is interrupted.
fn receive(
    channel: &Channel,
    bytes: &mut [u8],
    handles: &mut Vec<OwnedFd>,
    takes_none: bool,
) -> io::Result<fdpass::Received> {
    let socket = channel.socket.as_fd();
    match &channel.closer {
        None => fdpass::recv_few(socket, bytes, handles),
        Some(closer) if takes_none => closer.guard(|| fdpass::recv_none(socket, bytes)),
        Some(closer) => closer.guard(|| fdpass::recv_two(socket, bytes, handles)),
    }
}

impl Driver {
    /// What closes the descriptors of a worker, if it needs care.
    pub(super) fn closer_for(&mut self, is_other_user: bool) -> Option<Closer> {
        is_other_user.then(|| self.closing.get_or_insert_default().closer().clone())
    }

    /// Closes what a worker of another user may have, without waiting.
    pub(super) fn close_aside(&mut self, fd: OwnedFd) {
        if let Some(closing) = &self.closing {
            closing.closer().close(fd);
            self.closing_at.get_or_insert(self.now + closer::CLOSE_TIMEOUT);
        }
    }

    pub(super) fn look_at_closing(&mut self) {
        if self.closing_at.is_some_and(|due| due <= self.now) {
            let goes_on = self.closing.as_ref().is_some_and(|closing| closing.closer().look());
            self.closing_at = goes_on.then(|| self.now + closer::CLOSE_TIMEOUT);
        }
    }

    pub(super) fn channel(&mut self, worker: WorkerId) -> Option<&mut Channel> {
        self.processes.get_mut(&worker)?.channel.as_mut()
    }

    /// Reads so many times at most, and not after so many bytes.
    pub(super) fn read(&mut self, id: WorkerId, burst: usize, mut bytes_left: usize) {
        let mut ended = false;
        for _ in 0..burst {
            if bytes_left == 0 {
                break;
            }
            let Some(process) = self.processes.get_mut(&id) else { return };
            let Some(channel) = &mut process.channel else { return };
            let relay = self.relays.get_mut(&id);
            if (channel.is_backpressured() || relay.as_ref().is_some_and(|relay| relay.is_full()))
                && burst == READ_BURST
            {
                // Who does not read our answers can wait with his questions, and so can who says
                // more than the program reads.
                self.update_channel(id);
                break;
            }
            // Whose end is decided sends nothing more that is wanted. A file that cannot be closed
            // stays, so there must not be many of them.
            let takes_none = channel
                .closer
                .as_ref()
                .is_some_and(|closer| closer.is_full() || self.cluster.primary.is_cut_off(id));
            match receive(channel, &mut self.buffer, &mut self.received, takes_none) {
                Ok(fdpass::Received { len: 0, .. }) => ended = true,
                Ok(received) => {
                    bytes_left = bytes_left.saturating_sub(received.len);
                    // A read stops at descriptors, also at those that were lost.
                    let more = received.len == self.buffer.len()
                        || received.truncated
                        || !self.received.is_empty();
                    let bytes = &self.buffer[..received.len];
                    if let Some(closer) = &channel.closer
                        && !self.received.iter().all(socket::is_socket)
                    {
                        for fd in self.received.drain(..) {
                            match socket::is_socket(&fd) {
                                true => closer.close(fd),
                                false => closer.close_file(fd),
                            }
                        }
                        self.cluster.primary.violated(id, Violation::ForeignFile);
                        if self.closing.as_mut().is_some_and(Closing::has_become_full) {
                            self.events.push(Event::Error {
                                worker: None,
                                error: Arc::new(Error::UnclosedFiles),
                            });
                        }
                    }
                    if channel.closer.is_some() {
                        self.closing_at.get_or_insert(self.now + closer::CLOSE_TIMEOUT);
                    }
                    let before = self.events.len();
                    if !self.cluster.primary.is_cut_off(id) {
                        let (received, relayed) = (&mut self.received, relay.is_some());
                        let outlets = Outlets { relay, events: &mut self.events };
                        channel.receive(
                            self.now,
                            &mut self.cluster.primary,
                            (id, &process.handle),
                            bytes,
                            received,
                            outlets,
                        );
                        if relayed {
                            self.pace.relayed(bytes.len());
                            self.unflushed_relays.push(id);
                        }
                    }
                    self.received.clear();
                    if !channel.outbox.is_empty() {
                        self.unflushed.push(id);
                    }
                    self.apply_ready_messages(before);
                    self.act();
                    if more || burst == LAST_READS {
                        self.unfinished = true;
                        continue;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => ended = true,
            }
            break;
        }
        if ended {
            self.channel_closed(id, true);
        }
    }

    /// The end of a channel. If it was the worker that closed it, everything that was in it has
    /// been read.
    pub(super) fn channel_closed(&mut self, id: WorkerId, by_worker: bool) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        let Some(channel) = process.channel.take() else { return };
        let lost = process.handle.shared.mailbox.close();
        if lost > 0 {
            self.events.push(Event::Error {
                worker: Some(process.handle.clone()),
                error: Arc::new(Error::Undelivered(lost)),
            });
        }
        let Channel { socket, has_copy, closer, .. } = channel;
        // One that is being started has copies of all descriptors until it executes its program.
        if has_copy || closer.is_some() || !self.forks.is_empty() {
            // Which closes nothing yet, and keeps the poller watching.
            self.poller.remove(&socket);
            socket::shut_down(&socket);
        }
        if closer.is_some() {
            self.close_aside(socket);
        }
        self.end_relay(id);
        self.keep_consumed(id);
        self.cluster.primary.channel_closed(self.now, id, by_worker);
        self.act();
    }

    /// A connection that was read from belongs to the worker that did it, answered or not.
    fn keep_consumed(&mut self, id: WorkerId) {
        let in_flight: Vec<_> = self.cluster.primary.in_flight(id).collect();
        for (seq, conn) in in_flight {
            if self
                .conns
                .get(conn.0 as usize)
                .is_some_and(|conn| !socket::is_untouched(conn.fd.as_fd(), conn.stripped))
            {
                self.cluster.primary.consumed(id, seq);
            }
        }
    }

    pub(super) fn reap(&mut self, id: WorkerId) {
        let Some(process) = self.processes.get(&id) else { return };
        let ended = if process.adopted {
            process::try_peek(process.pidfd.as_fd())
        } else {
            process::try_reap(process.pidfd.as_fd())
        };
        let how = match ended {
            Ok(Some(Exit::Code(code))) => ExitHow::Code(code),
            Ok(Some(Exit::Signal(signal))) => ExitHow::Signal(signal),
            Ok(Some(Exit::Unknown)) => ExitHow::Unknown,
            Ok(None) => return,
            Err(_) => ExitHow::Unknown,
        };
        if how == ExitHow::Signal(KILL) {
            let (handle, killed) = (process.handle.clone(), diag::killed_for_memory());
            let more = std::mem::replace(&mut self.killed_for_memory, killed) < killed;
            if let Some(limit) = process.cgroup.as_ref().and_then(WorkerCgroup::broken_limit) {
                self.events.push(Event::Error {
                    worker: Some(handle),
                    error: Arc::new(Error::OverMemory(limit >> 20)),
                });
            } else if more {
                self.events.push(Event::Error {
                    worker: Some(handle),
                    error: Arc::new(Error::OutOfMemory),
                });
            }
        }
        let Some(process) = self.processes.get_mut(&id) else { return };
        let cgroup = process.cgroup.take();
        if process.leads_group || cgroup.is_some() {
            // At once: its number is free from now on.
            let leader = process.leads_group.then(|| process.handle.pid());
            self.end_orphans(leader, cgroup);
        }
        // Its last words: what it wrote before it died is in the channel. Others may hold its end
        // open, and write into it without end, so no more is read than there is now.
        let there = self.channel(id).map_or(0, |channel| socket::unread(&channel.socket));
        self.read(id, LAST_READS, there);
        self.channel_closed(id, true);
        self.keep_consumed(id);
        self.cluster.exited(self.now, id, how);
        self.act();
        self.spawner.ended(id);
        self.processes.remove(&id);
        self.notify_shutdown_waiters();
        if self.reaps_orphans {
            // The kernel shows one ended child at a time; this one may have hidden others.
            self.reap_orphans();
        }
    }

    pub(super) fn flush(&mut self) {
        while let Some(id) = self.unflushed.pop() {
            self.flush_channel(id);
        }
    }

    pub(super) fn flush_channel(&mut self, id: WorkerId) -> bool {
        let Some(process) = self.processes.get_mut(&id) else { return false };
        let Some(channel) = &mut process.channel else { return false };
        let outcome = channel.outbox.flush(channel.socket.as_fd());
        process
            .handle
            .shared
            .mailbox
            .set_unwritten(channel.outbox.len(), channel.handles_under_way());
        let blocked = match outcome {
            Ok(Flushed::All) if channel.last => {
                self.channel_closed(id, false);
                return false;
            }
            Ok(Flushed::All) => false,
            Ok(Flushed::Blocked) => true,
            Ok(Flushed::Later) => {
                if !self.retry.contains(&id) {
                    self.retry.push(id);
                }
                self.retry_at.get_or_insert(self.now + RETRY_PAUSE);
                return false;
            }
            // Gone; the reading side will see it too, after what the worker wrote before.
            Err(_) => {
                channel.outbox = Outbox::default();
                return false;
            }
        };
        if blocked != std::mem::replace(&mut channel.blocked, blocked) {
            // What that allows is done by the caller's caller: connections must not overtake the
            // one that is being delivered.
            self.cluster.primary.set_blocked(self.now, id, blocked);
        }
        if self.relays.contains_key(&id) {
            self.update_relay(id)
        } else {
            self.update_channel(id)
        }
        !blocked
    }

    /// Lets the poller report what can be used of a channel.
    pub(super) fn update_channel(&mut self, id: WorkerId) {
        let full = self.relays.get(&id).is_some_and(|relay| relay.is_full() || relay.is_direct());
        let Some(channel) =
            self.processes.get_mut(&id).and_then(|process| process.channel.as_mut())
        else {
            return;
        };
        let interest = match (channel.is_backpressured() || full, channel.blocked) {
            (true, true) => Interest::Write,
            (true, false) => Interest::Nothing,
            (false, true) => Interest::ReadWrite,
            (false, false) => Interest::Read,
        };
        if interest != channel.interest {
            channel.interest = interest;
            self.poller.modify(&channel.socket, Token::Channel(id), interest);
        }
    }
}
