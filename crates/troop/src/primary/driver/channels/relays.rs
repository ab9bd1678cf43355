//! Moves messages between workers and programs that have them passed through.

use std::io;
use std::os::fd::AsFd;

use troop_core::primary::Primary;
use troop_core::{Time, WorkerId};
use troop_sys::fdpass;
use troop_sys::poll::Interest;

use super::{Channels, RETRY_PAUSE};
use crate::channel::{Flushed, Outbox};
use crate::error::{Error, Result};
use crate::primary::driver::poller::EventPoller;
use crate::primary::driver::{Driver, Token};
use crate::primary::relay::Relay;

/// What came of reading what a program has written.
struct RelayRead {
    /// Something was read.
    some: bool,
    /// The program may say more.
    goes_on: bool,
}

impl Channels {
    pub(in crate::primary::driver) fn has_relays(&self) -> bool {
        !self.relays.is_empty()
    }

    pub(in crate::primary::driver) fn add_relay(
        &mut self,
        id: WorkerId,
        relay: Relay,
        poller: &EventPoller,
    ) -> Result<()> {
        let watched = poller.add(&relay.socket, Token::Relay(id), Interest::Read);
        watched.map_err(Error::io("watch the socket that messages are passed on to"))?;
        self.relays.insert(id, relay);
        Ok(())
    }

    fn read_relay(&mut self, id: WorkerId, core: &mut Primary) -> Option<RelayRead> {
        let relay = self.relays.get_mut(&id)?;
        let is_direct = relay.direct_io.is_some();
        let received = fdpass::recv(relay.socket.as_fd(), &mut self.buffer, &mut self.received);
        if is_direct {
            // What was said the short way came before what was read just now.
            self.take_mail(id, core);
        }
        let relay = self.relays.get_mut(&id)?;
        let mut some = false;
        let goes_on = match received {
            Ok(fdpass::Received { len: 0, .. }) => false,
            Ok(received) => {
                some = true;
                let bytes = &self.buffer[..received.len];
                self.pace.relayed(bytes.len());
                // What is written to a worker that has closed its channel is lost, as in Node.
                self.of_workers.get_mut(&id).is_none_or(|channel| {
                    relay.receive(
                        core,
                        (id, channel),
                        bytes,
                        &mut self.received,
                        &mut self.last_ticket,
                    )
                })
            }
            Err(e) => matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
        };
        self.received.clear();
        self.unflushed.push(id);
        self.unflushed_relays.push(id);
        Some(RelayRead { some, goes_on })
    }

    /// The worker's channel is closed: so is the program's, when it has read what came before.
    pub(super) fn end_relay(&mut self, id: WorkerId) {
        if let Some(relay) = self.relays.get_mut(&id) {
            relay.last = true;
            self.unflushed_relays.push(id);
        }
    }

    pub(in crate::primary::driver) fn flush_relays(&mut self, now: Time, poller: &mut EventPoller) {
        while let Some(id) = self.unflushed_relays.pop() {
            let Some(relay) = self.relays.get_mut(&id) else { continue };
            relay.is_behind |= !relay.outbox.is_empty();
            match relay.outbox.flush(relay.socket.as_fd()) {
                Ok(Flushed::All) if relay.last => {
                    self.relays.remove(&id);
                    continue;
                }
                Ok(Flushed::All | Flushed::Blocked) => {}
                Ok(Flushed::Later) => {
                    self.retry_relays.push(id);
                    self.retry_at.get_or_insert(now + RETRY_PAUSE);
                }
                // Gone; the reading side sees it too.
                Err(_) => relay.outbox = Outbox::default(),
            }
            self.update_relay(id, poller);
        }
    }

    /// Lets the poller report what can be used of a relay, and of its worker.
    pub(super) fn update_relay(&mut self, id: WorkerId, poller: &mut EventPoller) {
        let Some(relay) = self.relays.get_mut(&id) else { return };
        let is_full = self.of_workers.get(&id).is_some_and(|channel| channel.is_full());
        let interest = match (is_full, relay.outbox.is_empty()) {
            (false, true) => Interest::Read,
            (false, false) => Interest::ReadWrite,
            (true, true) => Interest::Nothing,
            (true, false) => Interest::Write,
        };
        if interest != relay.interest {
            relay.interest = interest;
            poller.modify(&relay.socket, Token::Relay(id), interest);
        }
        self.update(id, poller);
    }
}

impl Driver {
    /// The program has written something, or closed its end (then there is not much, and it will
    /// not wait). Returns whether something was read.
    pub(in crate::primary::driver) fn read_relay(&mut self, id: WorkerId, ended: bool) -> bool {
        if !ended && self.channels.get(id).is_some_and(|channel| channel.is_full()) {
            // The worker does not read what there is already.
            self.channels.update_relay(id, &mut self.poller);
            return false;
        }
        let Some(read) = self.channels.read_relay(id, &mut self.cluster.primary) else {
            return false;
        };
        self.unfinished |= read.some;
        if !read.goes_on {
            self.relay_closed(id);
        }
        read.some
    }

    /// The program has closed its end of a relay.
    fn relay_closed(&mut self, id: WorkerId) {
        self.channels.relays.remove(&id);
        match self.channels.get_mut(id) {
            // What was written before comes first.
            Some(channel) if !channel.outbox.is_empty() => channel.last = true,
            Some(_) => self.channel_closed(id, false),
            None => {}
        }
    }
}
