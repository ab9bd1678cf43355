//! Reads the channels, and sees their ends.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use troop_core::event::Violation;
use troop_core::primary::Primary;
use troop_core::{Time, WorkerId};
use troop_sys::{fault, fdpass, socket};

use super::Channels;
use crate::error::Error;
use crate::event::Event;
use crate::primary::channel::{Channel, Outlets};
use crate::primary::driver::closing::CloseAside;
use crate::primary::driver::connections::Moves;
use crate::primary::driver::events::Events;
use crate::primary::driver::{Driver, Token};
use crate::primary::saved::journal::Journal;
use crate::primary::wake::Command;

/// Reads per channel before others have their turn.
pub(in crate::primary::driver) const READ_BURST: usize = 1;
/// Reads of a channel that has ended: more than fits into a socket buffer, and not without end,
/// because others may hold copies of it.
pub(in crate::primary::driver) const LAST_READS: usize = 1024;

/// Reads what a worker has sent. Of another user's at most two descriptors are taken, or none. If it
/// has sent others, the result is `truncated` and the bytes are still to be consumed, where it does
/// not matter how long the kernel takes to drop them.
fn receive(
    channel: &Channel,
    bytes: &mut [u8],
    handles: &mut Vec<OwnedFd>,
    takes_none: bool,
) -> io::Result<fdpass::Received> {
    if channel.closer.is_none() {
        return fdpass::recv_few(channel.socket.as_fd(), bytes, handles);
    }
    let seen = look(channel, bytes, handles, takes_none)?;
    if !seen.truncated && seen.len > 0 {
        fdpass::consume(channel.socket.as_fd(), &mut bytes[..seen.len])?;
    }
    Ok(seen)
}

fn look(
    channel: &Channel,
    bytes: &mut [u8],
    handles: &mut Vec<OwnedFd>,
    takes_none: bool,
) -> io::Result<fdpass::Received> {
    match takes_none {
        true => fdpass::peek_none(channel.socket.as_fd(), bytes),
        false => fdpass::peek_two(channel.socket.as_fd(), bytes, handles),
    }
}

/// Where the bytes of a read are.
enum Place {
    Buffer(usize),
    Journal(Range<usize>),
}

/// Reads as [`receive`] does, into the journal. `None` if there is no room until the state is written
/// down.
fn receive_kept(
    id: WorkerId,
    channel: &Channel,
    journal: &mut Journal,
    buffer: &mut [u8],
    handles: &mut Vec<OwnedFd>,
    takes_none: bool,
) -> Option<io::Result<(fdpass::Received, Place)>> {
    let room = journal.begin(id, buffer.len())?;
    let received = match channel.closer {
        None => fdpass::recv_few(channel.socket.as_fd(), room, handles),
        Some(_) => {
            let most = room.len();
            match look(channel, &mut buffer[..most], handles, takes_none) {
                Ok(seen) if !seen.truncated && seen.len > 0 => {
                    fdpass::consume(channel.socket.as_fd(), &mut room[..seen.len]).map(|_| seen)
                }
                seen => seen,
            }
        }
    };
    fault::point("read");
    let is_left = |received: &fdpass::Received| received.truncated && channel.closer.is_some();
    let len = match &received {
        // It is still there, and read again by another engine.
        Ok(received) if is_left(received) => 0,
        Ok(received) => received.len,
        Err(_) => 0,
    };
    let at = journal.finish(id, len, !handles.is_empty());
    fault::point("noted");
    Some(received.map(|received| {
        let place = match is_left(&received) {
            true => Place::Buffer(received.len),
            false => Place::Journal(at),
        };
        (received, place)
    }))
}

/// What came of a read.
enum Read {
    /// So many bytes, and perhaps there are more.
    Some {
        len: usize,
        more: bool,
        /// Whether they are still to be consumed, where it does not matter how long that takes.
        is_left: bool,
    },
    /// Nothing for now.
    Nothing,
    /// A signal came first.
    Interrupted,
    Ended,
}

impl Channels {
    /// Whether reading from a worker is paused: it does not read its replies, or sends faster than
    /// the program reads.
    fn is_held_back(&self, id: WorkerId) -> bool {
        self.get(id).is_some_and(Channel::is_backpressured)
            || self.relays.get(&id).is_some_and(|relay| relay.is_full())
    }

    /// Reads once, and takes in what has come. The last words of a worker are for nobody else.
    #[expect(clippy::too_many_arguments, reason = "the parts of the driver that a read needs")]
    fn read(
        &mut self,
        id: WorkerId,
        are_last: bool,
        now: Time,
        core: &mut Primary,
        moves: Moves<'_>,
        closing: &mut CloseAside,
        events: &mut Events,
    ) -> Read {
        let Some(channel) = self.of_workers.get_mut(&id) else { return Read::Nothing };
        if channel.is_consumed_aside {
            return Read::Nothing;
        }
        let relay = self.relays.get_mut(&id);
        // Whose end is decided sends nothing more that is wanted. A file that cannot be closed
        // stays, so there must not be many of them.
        let takes_none =
            channel.closer.as_ref().is_some_and(|closer| !closer.accepts() || core.is_cut_off(id));
        let result = match self.journal.as_mut().filter(|_| !are_last) {
            None => receive(channel, &mut self.buffer, &mut self.received, takes_none)
                .map(|received| (received, Place::Buffer(received.len))),
            Some(journal) => {
                let (buffer, handles) = (&mut self.buffer, &mut self.received);
                let read = receive_kept(id, channel, journal, buffer, handles, takes_none);
                let Some(read) = read else { return Read::Nothing };
                read
            }
        };
        let (received, place) = match result {
            Ok((fdpass::Received { len: 0, .. }, _)) => return Read::Ended,
            Ok(received) => received,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Read::Nothing,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Read::Interrupted,
            Err(_) => return Read::Ended,
        };
        // A read stops at descriptors, also at those that were lost.
        let more =
            received.len == self.buffer.len() || received.truncated || !self.received.is_empty();
        let bytes = match (place, &self.journal) {
            (Place::Journal(at), Some(journal)) => journal.read(at),
            (Place::Journal(_), None) => &[],
            (Place::Buffer(len), _) => &self.buffer[..len],
        };
        let is_left = received.truncated && channel.closer.is_some();
        if let Some(closer) = &channel.closer {
            if !self.received.iter().all(socket::is_socket) {
                for fd in self.received.drain(..) {
                    match socket::is_socket(&fd) {
                        true => closer.close_foreign(fd),
                        false => closer.close_file(fd),
                    }
                }
                core.violated(id, Violation::ForeignFile);
                if closing.has_become_full() {
                    events
                        .push(Event::Error { worker: None, error: Arc::new(Error::UnclosedFiles) });
                }
            }
            closing.check_soon(now);
        }
        if !core.is_cut_off(id) {
            let is_relayed = relay.is_some();
            let outlets = Outlets { relay, messages: &mut self.messages, moves };
            channel.receive(now, core, id, bytes, &mut self.received, outlets);
            self.has_changed |= std::mem::take(&mut channel.has_changed);
            if is_relayed {
                self.pace.relayed(bytes.len());
                self.unflushed_relays.push(id);
            }
        }
        self.received.clear();
        if !channel.outbox.is_empty() {
            self.unflushed.push(id);
        }
        Read::Some { len: received.len, more, is_left }
    }
}

impl Driver {
    /// Reads so many times at most, and not after so many bytes.
    pub(in crate::primary::driver) fn read(
        &mut self,
        id: WorkerId,
        burst: usize,
        mut bytes_left: usize,
    ) {
        for _ in 0..burst {
            if bytes_left == 0 {
                break;
            }
            if burst == READ_BURST && self.channels.is_held_back(id) {
                self.channels.update(id, &mut self.poller);
                break;
            }
            let (has_room, may_ask) =
                (!self.scarcity.pauses_accepting(), self.questions.has_room_for_moved());
            let Driver { channels, cluster, listeners, connections, closing, events, .. } = self;
            let moves = connections.moves(listeners, has_room, may_ask);
            let (core, are_last) = (&mut cluster.primary, burst == LAST_READS);
            match channels.read(id, are_last, self.now, core, moves, closing, events) {
                Read::Some { len, more, is_left } => {
                    if is_left {
                        self.consume_aside(id, len);
                    }
                    bytes_left = bytes_left.saturating_sub(len);
                    self.take_moved(id);
                    if !more && burst != LAST_READS {
                        break;
                    }
                    self.unfinished = true;
                }
                Read::Nothing => break,
                Read::Interrupted => {}
                Read::Ended => {
                    self.channel_closed(id, true);
                    break;
                }
            }
        }
    }

    /// Has a thread consume a message with too many descriptors.
    fn consume_aside(&mut self, id: WorkerId, len: usize) {
        let Some(channel) = self.channels.of_workers.get_mut(&id) else { return };
        // Otherwise a channel that has ended would be reported all the time.
        self.poller.remove(&channel.socket);
        channel.is_consumed_aside = true;
        let driver_handle = self.inbox.handle().clone();
        self.closing.closer().consume(channel.socket.clone(), len, move || {
            let _ = driver_handle.send(Command::Consumed(id));
        });
    }

    /// A message with too many descriptors has been consumed: the channel is read again.
    pub(in crate::primary::driver) fn consumed(&mut self, id: WorkerId) {
        let Some(channel) = self.channels.of_workers.get_mut(&id) else { return };
        channel.is_consumed_aside = false;
        if self.poller.add(&channel.socket, Token::Channel(id), channel.interest).is_err() {
            self.channel_closed(id, false);
            return;
        }
        self.channels.update(id, &mut self.poller);
    }

    /// The end of a channel. If it was the worker that closed it, everything that was in it has
    /// been read.
    pub(in crate::primary::driver) fn channel_closed(&mut self, id: WorkerId, by_worker: bool) {
        let Some(channel) = self.channels.of_workers.remove(&id) else { return };
        let Channel { socket, has_copy, closer, worker, .. } = channel;
        // What lies in it, and takes long to close, is closed here, and not by the keeper.
        self.release_copy(socket.as_fd());
        let lost = worker.shared.mailbox.close();
        if lost > 0 {
            self.events.push(Event::Error {
                worker: Some(worker),
                error: Arc::new(Error::Undelivered(lost)),
            });
        }
        // One that is being started has copies of all descriptors until it executes its program.
        if has_copy || closer.is_some() || self.workers.is_starting() {
            // Which closes nothing yet, and keeps the poller watching.
            self.poller.remove(&socket);
            socket::shut_down(&socket);
        }
        // If it is being consumed, the thread that does it closes it.
        if closer.is_some()
            && let Some(socket) = Arc::into_inner(socket)
        {
            self.closing.close(self.now, socket);
        }
        self.channels.end_relay(id);
        self.keep_consumed(id);
        self.cluster.primary.channel_closed(self.now, id, by_worker);
    }

    /// A connection that was read from belongs to the worker that did it, answered or not.
    pub(in crate::primary::driver) fn keep_consumed(&mut self, id: WorkerId) {
        let in_flight: Vec<_> = self.cluster.primary.in_flight(id).collect();
        for (seq, conn) in in_flight {
            if self.connections.is_touched(conn) {
                self.cluster.primary.consumed(id, seq);
            }
        }
    }
}
