//! The primary's end of one worker's channel.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use troop_core::event::Violation;
use troop_core::primary::Primary;
use troop_core::wire::frame::FrameReader;
use troop_core::wire::incoming::{self, Incoming};
use troop_core::wire::outgoing::{HANDLE_ACK, HANDLE_NACK, socket_all_closed, socket_count};
use troop_core::{ConnId, ListenerId, Time};
use troop_sys::poll::Interest;

use super::handle::WorkerHandle;
use crate::channel::{MAX_LINE, MAX_QUEUED, Outbox, Unsettled};
use crate::events::Event;
use crate::message::{Handle, Message, Parcel, Request, parcel};

pub(crate) struct Channel {
    pub(crate) socket: OwnedFd,
    pub(crate) reader: FrameReader<OwnedFd>,
    pub(crate) outbox: Outbox,
    /// What the poller reports.
    pub(crate) interest: Interest,
    /// Connections that will go in one message.
    pub(crate) batch: Batch,
    pub(crate) unsettled: HashMap<u64, Unsettled>,
}

#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) listener: Option<ListenerId>,
    pub(crate) seqs: Vec<u64>,
    pub(crate) conns: Vec<ConnId>,
}

impl Channel {
    pub(crate) fn new(socket: OwnedFd) -> Channel {
        Channel {
            socket,
            reader: FrameReader::new(MAX_LINE),
            outbox: Outbox::default(),
            interest: Interest::Read,
            batch: Batch::default(),
            unsettled: HashMap::new(),
        }
    }

    /// Whether so much waits to be written that nothing more is read until the worker has taken some of it.
    pub(crate) fn is_deaf(&self) -> bool {
        self.outbox.len() > 2 * MAX_QUEUED
    }

    /// Takes in what was read, line by line.
    pub(crate) fn receive(
        &mut self,
        now: Time,
        core: &mut Primary,
        worker: &WorkerHandle,
        bytes: &[u8],
        handles: &mut Vec<OwnedFd>,
        events: &mut Vec<Event>,
    ) {
        let id = worker.id();
        let mut chunk = self.reader.feed(bytes, handles.drain(..));
        loop {
            let mut line = match chunk.next_line() {
                Ok(Some(line)) => line,
                Ok(None) => break,
                Err(e) => {
                    core.violated(id, e.into());
                    return;
                }
            };
            match incoming::parse(line.bytes) {
                Ok(Incoming::User(body)) => user_message(worker, body, None, events),
                Ok(Incoming::Handle(wrapped)) => match line.take_handle() {
                    Some(fd) => {
                        self.outbox.push(HANDLE_ACK);
                        let handle = Handle::from_fd(fd).map_err(|_| core.violated(id, Violation::BadHandle)).ok();
                        match incoming::parse(wrapped.body) {
                            Ok(Incoming::User(body)) => user_message(worker, body, handle, events),
                            Ok(inner) => core.message(now, id, inner),
                            Err(violation) => core.violated(id, violation),
                        }
                    }
                    None => {
                        self.outbox.push(HANDLE_NACK);
                        core.violated(id, Violation::MissingHandle);
                    }
                },
                // A socket that was passed on is none of this process's affairs any more, so none is open here.
                Ok(Incoming::SocketGetCount(key)) => socket_count(self.outbox.buffer(), &key, 0),
                Ok(Incoming::SocketNotifyClose(key)) => socket_all_closed(self.outbox.buffer(), &key),
                Ok(message) => core.message(now, id, message),
                Err(violation) => core.violated(id, violation),
            }
            if core.is_cut_off(id) {
                return;
            }
        }
        let surplus = self.reader.take_surplus();
        if surplus > 0 {
            core.violated(id, Violation::SurplusHandles(surplus));
        }
    }
}

fn user_message(worker: &WorkerHandle, body: &str, handle: Option<Handle>, events: &mut Vec<Event>) {
    match parcel(body) {
        Parcel::Message => events.push(Event::Message(worker.clone(), Message::new(body, handle))),
        Parcel::Request { id, body } => {
            let answer_to = worker.clone();
            let send = move |line: String| answer_to.shared.mailbox.send_owed(&line);
            events.push(Event::Request(worker.clone(), Request::new(id, body, Box::new(send))));
        }
        Parcel::Reply { id, result } => {
            worker.shared.mailbox.replied(id, result);
        }
    }
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channel").field("unwritten", &self.outbox.len()).finish_non_exhaustive()
    }
}
