//! Moves messages between workers and programs that have them passed through.

use std::io;
use std::os::fd::AsFd;

use troop_core::WorkerId;
use troop_sys::fdpass;
use troop_sys::poll::Interest;

use super::channels::RETRY_PAUSE;
use super::{Driver, Token};
use crate::channel::{Flushed, Outbox};
use crate::error::{Error, Result};
use crate::primary::relay::Relay;

impl Driver {
    pub(super) fn add_relay(&mut self, id: WorkerId, relay: Relay) -> Result<()> {
        let watched = self.poller.add(&relay.socket, Token::Relay(id), Interest::Read);
        watched.map_err(Error::io("watch the socket that messages are passed on to"))?;
        self.relays.insert(id, relay);
        Ok(())
    }

    /// The program has written something, or closed its end (then there is not much, and it will
    /// not wait). Returns whether something was read.
    pub(super) fn read_relay(&mut self, id: WorkerId, ended: bool) -> bool {
        if !ended && self.channel(id).is_some_and(|channel| channel.is_full()) {
            // The worker does not read what there is already.
            self.update_relay(id);
            return false;
        }
        let Some(relay) = self.relays.get_mut(&id) else { return false };
        let is_direct = relay.direct_io.is_some();
        let received = fdpass::recv(relay.socket.as_fd(), &mut self.buffer, &mut self.received);
        if is_direct {
            // What was said the short way came before what was read just now.
            self.take_mail(id);
        }
        let Driver { relays, processes, cluster, .. } = self;
        let core = &mut cluster.primary;
        let Some(relay) = relays.get_mut(&id) else { return false };
        let channel = processes.get_mut(&id).and_then(|process| process.channel.as_mut());
        let mut read = false;
        let goes_on = match received {
            Ok(fdpass::Received { len: 0, .. }) => false,
            Ok(received) => {
                (self.unfinished, read) = (true, true);
                let bytes = &self.buffer[..received.len];
                self.pace.relayed(bytes.len());
                // What is written to a worker that has closed its channel is lost, as in Node.
                channel.is_none_or(|channel| {
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
        self.was_told(id, goes_on);
        read
    }

    /// The program has said something, or for the last time.
    fn was_told(&mut self, id: WorkerId, goes_on: bool) {
        self.unflushed.push(id);
        self.unflushed_relays.push(id);
        if !goes_on {
            self.relays.remove(&id);
            match self.channel(id) {
                // What was written before comes first.
                Some(channel) if !channel.outbox.is_empty() => channel.last = true,
                Some(_) => self.channel_closed(id, false),
                None => {}
            }
        }
        self.act();
    }

    /// The worker's channel is closed: so is the program's, when it has read what came before.
    pub(super) fn end_relay(&mut self, id: WorkerId) {
        if let Some(relay) = self.relays.get_mut(&id) {
            relay.last = true;
            self.unflushed_relays.push(id);
        }
    }

    pub(super) fn flush_relays(&mut self) {
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
                    self.retry_at.get_or_insert(self.now + RETRY_PAUSE);
                }
                // Gone; the reading side sees it too.
                Err(_) => relay.outbox = Outbox::default(),
            }
            self.update_relay(id);
        }
    }

    /// Lets the poller report what can be used of a relay, and of its worker.
    pub(super) fn update_relay(&mut self, id: WorkerId) {
        let Some(relay) = self.relays.get_mut(&id) else { return };
        let channel = self.processes.get(&id).and_then(|process| process.channel.as_ref());
        let interest =
            match (channel.is_some_and(|channel| channel.is_full()), relay.outbox.is_empty()) {
                (false, true) => Interest::Read,
                (false, false) => Interest::ReadWrite,
                (true, true) => Interest::Nothing,
                (true, false) => Interest::Write,
            };
        if interest != relay.interest {
            relay.interest = interest;
            self.poller.modify(&relay.socket, Token::Relay(id), interest);
        }
        self.update_channel(id);
    }
}
