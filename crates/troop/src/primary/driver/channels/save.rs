//! Writes down the channels, and goes on with those that another primary has written down.

use std::io;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};
use troop_core::WorkerId;
use troop_core::wire::frame::Unfinished;
use troop_sys::poll::Interest;

use super::Channels;
use crate::channel::Unsettled;
use crate::closer::{Closer, Foreign};
use crate::primary::channel::{Channel, LostHandles};
use crate::primary::driver::Token;
use crate::primary::driver::poller::EventPoller;
use crate::primary::handle::WorkerHandle;
use crate::primary::saved::long_line::{self, LongLine};
use crate::primary::saved::{Bytes, Key, Reader, Writer};

/// All channels.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::primary::driver) struct SavedChannels {
    of_workers: Vec<SavedChannel>,
    last_ticket: u64,
}

/// A channel. What is read and not handled yet, and what is to be written, goes with it.
#[derive(Debug, Serialize, Deserialize)]
struct SavedChannel {
    worker: WorkerId,
    socket: Key,
    unfinished: Bytes,
    /// A file with the unfinished line, if that is long, and how much of it.
    long_line: Option<(Key, usize)>,
    line_start: u64,
    received: u64,
    /// Descriptors that have come with an unfinished line, and whether there are others: they are not
    /// held by the keeper, because workers may have had them.
    handles: Vec<(u64, Key)>,
    has_other_handles: bool,
    unwritten: Bytes,
    /// Descriptors that go with unwritten lines, and where these begin and end.
    unwritten_handles: Vec<(usize, usize, Key)>,
    unsettled: Vec<SavedHandle>,
    blocked: bool,
    last: bool,
    most_handles: usize,
}

/// A socket of the program that the worker has not acknowledged.
#[derive(Debug, Serialize, Deserialize)]
struct SavedHandle {
    ticket: u64,
    line: Bytes,
    handle: Key,
    tries_left: u8,
}

impl Channels {
    /// Why the channels cannot be written down at the moment.
    pub(in crate::primary::driver) fn unsaved(&self) -> Option<&'static str> {
        if self.has_relays() {
            return Some("its program relays messages by itself");
        }
        let is_aside = self.of_workers.values().any(|channel| channel.is_consumed_aside);
        is_aside.then_some("a thread reads a worker's channel")
    }

    pub(in crate::primary::driver) fn save<'a>(
        &'a self,
        is_complete: bool,
        to: &mut Writer<'a>,
    ) -> SavedChannels {
        let of_workers = self.of_workers.iter();
        let of_workers =
            of_workers.map(|(id, channel)| save(*id, channel, is_complete, to)).collect();
        SavedChannels { of_workers, last_ticket: self.last_ticket }
    }

    /// Writes down what has come of long lines, apart from the rest: the state is written down many times
    /// until such a line is there.
    pub(in crate::primary::driver) fn save_long_lines(&mut self) {
        for (_, channel) in self.of_workers.iter_mut() {
            let (Unfinished { bytes, line_start, .. }, _) = channel.reader.unfinished();
            let line = channel.long_line.take().filter(|line| line.is_of(line_start));
            channel.long_line = LongLine::append(line, line_start, bytes);
        }
    }

    /// Goes on with these channels. `worker` returns a worker's handle, and what closes its
    /// descriptors.
    pub(in crate::primary::driver) fn restore(
        &mut self,
        saved: SavedChannels,
        from: &mut Reader,
        poller: &EventPoller,
        mut worker: impl FnMut(WorkerId) -> io::Result<(WorkerHandle, Option<Closer>)>,
    ) -> io::Result<()> {
        self.last_ticket = saved.last_ticket;
        for channel in saved.of_workers {
            let id = channel.worker;
            let (handle, closer) = worker(id)?;
            let channel = restore(channel, from, handle, closer)?;
            poller.add(&channel.socket, Token::Channel(id), Interest::Read)?;
            channel.show_unwritten();
            self.of_workers.insert(id, channel);
            // Which also lets the poller report room again.
            self.unflushed.push(id);
        }
        Ok(())
    }
}

fn save<'a>(
    worker: WorkerId,
    channel: &'a Channel,
    is_complete: bool,
    to: &mut Writer<'a>,
) -> SavedChannel {
    let (Unfinished { bytes, line_start, received }, handles) = channel.reader.unfinished();
    let long_line = channel.long_line.as_ref().filter(|line| line.has_all(line_start, bytes));
    let unfinished = to.bytes(if long_line.is_some() { &[] } else { bytes });
    let long_line = long_line.map(|line| (to.descriptor(line), bytes.len()));
    let mut handles = handles.filter_map(|(at, handle)| Some((at, handle.get()?))).peekable();
    let has_other_handles = !is_complete && handles.peek().is_some();
    let handles = handles.filter(|_| is_complete);
    let handles = handles.map(|(at, handle)| (at, to.descriptor(handle))).collect();
    let (unwritten, unwritten_handles) = channel.outbox.unwritten();
    let unwritten_handles =
        unwritten_handles.map(|(start, end, fd)| (start, end, to.descriptor(fd))).collect();
    let unsettled = channel.unsettled.iter().map(|(ticket, unsettled)| SavedHandle {
        ticket: *ticket,
        line: to.bytes(&unsettled.line),
        handle: to.descriptor(&unsettled.handle),
        tries_left: unsettled.tries_left(),
    });
    SavedChannel {
        worker,
        unsettled: unsettled.collect(),
        socket: to.shared(&channel.socket),
        unfinished,
        long_line,
        line_start,
        received,
        handles,
        has_other_handles,
        unwritten: to.bytes(unwritten),
        unwritten_handles,
        blocked: channel.blocked,
        last: channel.last,
        most_handles: channel.most_handles,
    }
}

fn restore(
    saved: SavedChannel,
    from: &mut Reader,
    worker: WorkerHandle,
    closer: Option<Closer>,
) -> io::Result<Channel> {
    let socket = from.socket(saved.socket)?;
    let foreign =
        |(at, key)| from.descriptor(key).map(|fd: OwnedFd| (at, Foreign::new(fd, closer.as_ref())));
    let handles = saved.handles.into_iter().map(foreign).collect::<io::Result<Vec<_>>>()?;
    let own = |(start, end, key)| from.descriptor(key).map(|fd| (start, end, fd));
    let unwritten_handles =
        saved.unwritten_handles.into_iter().map(own).collect::<io::Result<Vec<_>>>()?;
    let mut unsettled = Vec::new();
    for SavedHandle { ticket, line, handle, tries_left } in saved.unsettled {
        let handle = from.descriptor(handle)?;
        let line = from.bytes(line)?.to_vec();
        unsettled.push((ticket, Unsettled::new(line, handle, None, tries_left)));
    }
    let mut channel = Channel::new(worker, socket, false, saved.most_handles, closer);
    let long_line = match saved.long_line {
        Some((file, len)) => Some(long_line::read(from.descriptor(file)?, len)?),
        None => None,
    };
    let unfinished = Unfinished {
        bytes: match &long_line {
            Some(bytes) => bytes,
            None => from.bytes(saved.unfinished)?,
        },
        line_start: saved.line_start,
        received: saved.received,
    };
    channel.reader = channel.reader.resume(unfinished, handles);
    channel.outbox.resume(from.bytes(saved.unwritten)?, unwritten_handles);
    channel.unsettled = unsettled.into_iter().collect();
    channel.lost = saved.has_other_handles.then_some(LostHandles::Unused);
    channel.blocked = saved.blocked;
    channel.last = saved.last;
    Ok(channel)
}
