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
use crate::primary::channel::Channel;
use crate::primary::driver::Token;
use crate::primary::driver::poller::EventPoller;
use crate::primary::handle::WorkerHandle;
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
    line_start: u64,
    received: u64,
    /// Descriptors that have come with an unfinished line.
    handles: Vec<(u64, Key)>,
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

    pub(in crate::primary::driver) fn save<'a>(&'a self, to: &mut Writer<'a>) -> SavedChannels {
        let of_workers = self.of_workers.iter();
        let of_workers = of_workers.map(|(id, channel)| save(*id, channel, to)).collect();
        SavedChannels { of_workers, last_ticket: self.last_ticket }
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

fn save<'a>(worker: WorkerId, channel: &'a Channel, to: &mut Writer<'a>) -> SavedChannel {
    let (Unfinished { bytes, line_start, received }, handles) = channel.reader.unfinished();
    let unfinished = to.bytes(bytes);
    let handles = handles.filter_map(|(at, handle)| Some((at, to.descriptor(handle.get()?))));
    let handles = handles.collect();
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
        line_start,
        received,
        handles,
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
    let socket = from.descriptor(saved.socket)?;
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
    let unfinished = Unfinished {
        bytes: from.bytes(saved.unfinished)?,
        line_start: saved.line_start,
        received: saved.received,
    };
    channel.reader = channel.reader.resume(unfinished, handles);
    channel.outbox.resume(from.bytes(saved.unwritten)?, unwritten_handles);
    channel.unsettled = unsettled.into_iter().collect();
    channel.blocked = saved.blocked;
    channel.last = saved.last;
    Ok(channel)
}
