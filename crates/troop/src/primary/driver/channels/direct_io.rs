//! What is done for one worker when a program's thread does its I/O: see
//! [`embed::direct_io`](crate::embed::direct_io), which has the lock that this is called under.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use troop_core::primary::Primary;
use troop_core::{Time, WorkerId};
use troop_sys::fdpass;

use super::{Channels, READ_BURST};
use crate::embed::direct_io::DirectIo;
use crate::primary::channel::Channel;
use crate::primary::driver::Driver;
use crate::primary::driver::poller::EventPoller;
use crate::primary::relay::Relay;

/// How long no connections must have come before a channel is offered again.
const QUIET_INTERVAL: Duration = Duration::from_secs(1);
/// How often what the program has written is read before its messages go that way on.
const MAX_CATCH_UP_READS: usize = 16;

/// Workers whose channels programs' threads are to have again, later.
#[derive(Debug, Default)]
pub(super) struct ReclaimedChannels {
    workers: Vec<WorkerId>,
    due: Option<Time>,
}

impl ReclaimedChannels {
    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.due
    }

    fn add(&mut self, worker: WorkerId, now: Time) {
        self.workers.push(worker);
        self.due.get_or_insert(now + QUIET_INTERVAL);
    }
}

impl Channels {
    fn is_full(&self, id: WorkerId) -> bool {
        self.get(id).is_some_and(Channel::is_full)
    }

    /// Whether the program's thread reads the channel.
    fn is_direct(&self, id: WorkerId) -> bool {
        self.relays.get(&id).is_some_and(Relay::is_direct)
    }

    /// The thread of the program that this worker is relayed to will help. Returns a copy of the
    /// channel, and whether its format is V8's.
    pub(crate) fn attach_direct_io(
        &mut self,
        id: WorkerId,
        now: Time,
        offer: Box<dyn Fn() + Send>,
    ) -> io::Result<Option<(OwnedFd, bool)>> {
        let Some(channel) = self.of_workers.get_mut(&id) else { return Ok(None) };
        let Some(relay) = self.relays.get_mut(&id) else { return Ok(None) };
        // Whoever closes the last copy closes the descriptors in it, which may take long.
        if channel.closer.is_some() {
            return Ok(None);
        }
        let copy = channel.socket.try_clone()?;
        channel.has_copy = true;
        relay.direct_io = Some(DirectIo { reads: false, given: now, offer });
        Ok(Some((copy, channel.advanced)))
    }

    /// The program's thread reads the channel from now on, if nothing is under way.
    fn begin_direct_io(
        &mut self,
        id: WorkerId,
        now: Time,
        is_quiet: bool,
        poller: &mut EventPoller,
    ) -> bool {
        let has_room = self.get(id).is_some_and(|channel| !channel.is_full());
        let is_open = self.get(id).is_some_and(|channel| !channel.last);
        let Some(relay) = self.relays.get_mut(&id) else { return false };
        let is_idle = has_room && relay.outbox.is_empty() && !relay.is_full();
        let Some(direct_io) = &mut relay.direct_io else { return false };
        if !is_open {
            return false;
        }
        direct_io.reads = is_idle && is_quiet;
        if direct_io.reads {
            self.update(id, poller);
        } else {
            self.reclaimed.add(id, now);
        }
        is_idle && is_quiet
    }

    /// The driver reads the channel itself again: a worker is given a connection, and its answer is
    /// nothing for the program's thread.
    #[inline]
    pub(in crate::primary::driver) fn reclaim(
        &mut self,
        id: WorkerId,
        now: Time,
        poller: &mut EventPoller,
    ) {
        let Some(direct_io) = self.relays.get_mut(&id).and_then(|relay| relay.direct_io.as_mut())
        else {
            return;
        };
        direct_io.given = now;
        if std::mem::replace(&mut direct_io.reads, false) {
            self.reclaimed.add(id, now);
            self.update(id, poller);
        }
    }

    /// Offers channels that have been taken back, when no connections come any more.
    pub(in crate::primary::driver) fn offer_reclaimed(&mut self, now: Time, core: &Primary) {
        if self.reclaimed.due.is_none_or(|due| due > now) {
            return;
        }
        let mut workers = std::mem::take(&mut self.reclaimed.workers);
        workers.retain(|id| {
            let Some(relay) = self.relays.get(id) else { return false };
            let Some(direct_io) = &relay.direct_io else { return false };
            let is_quiet =
                direct_io.given + QUIET_INTERVAL <= now && core.in_flight(*id).next().is_none();
            if is_quiet && !self.is_full(*id) && relay.outbox.is_empty() && !relay.is_full() {
                (direct_io.offer)();
                return false;
            }
            true
        });
        self.reclaimed.due = (!workers.is_empty()).then(|| now + QUIET_INTERVAL);
        self.reclaimed.workers = workers;
    }

    /// Moves what was read for the program to `messages`, if nothing comes before it.
    fn take_messages(&mut self, id: WorkerId, messages: &mut Vec<u8>) {
        if let Some(relay) = self.relays.get_mut(&id)
            && relay.is_clear()
        {
            relay.outbox.move_to(messages);
        }
    }

    /// Whether the program or the worker does not keep up, so that there is something to wait for
    /// that only the driver does.
    fn needs_driver(&self, id: WorkerId) -> bool {
        let is_backpressured = self.get(id).is_some_and(|channel| channel.is_backpressured());
        self.relays
            .get(&id)
            .is_some_and(|relay| is_backpressured || relay.is_full() || !relay.outbox.is_empty())
    }

    /// Writes a message at once. Whether something is left of it; `None` if others come first.
    fn write_directly(&mut self, id: WorkerId, message: &[u8]) -> Option<bool> {
        let channel = self.of_workers.get_mut(&id)?;
        if channel.last || channel.blocked || !channel.outbox.is_empty() {
            return None;
        }
        let written = fdpass::send(channel.socket.as_fd(), message, &[]).unwrap_or(0);
        let rest = &message[written..];
        if !rest.is_empty() {
            channel.outbox.push(rest);
            self.unflushed.push(id);
        }
        Some(!rest.is_empty())
    }

    /// The driver is on its own again.
    fn detach_direct_io(&mut self, id: WorkerId, poller: &mut EventPoller) {
        if let Some(relay) = self.relays.get_mut(&id) {
            relay.direct_io = None;
            self.update(id, poller);
        }
    }
}

impl Driver {
    /// See [`Channels::attach_direct_io`].
    pub(crate) fn attach_direct_io(
        &mut self,
        id: WorkerId,
        offer: Box<dyn Fn() + Send>,
    ) -> io::Result<Option<(OwnedFd, bool)>> {
        self.channels.attach_direct_io(id, self.now, offer)
    }

    pub(crate) fn begin_direct_io(&mut self, id: WorkerId) -> bool {
        self.now = self.clock();
        let is_quiet = self.cluster.primary.in_flight(id).next().is_none();
        let begins = self.channels.begin_direct_io(id, self.now, is_quiet, &mut self.poller);
        if !begins {
            self.wake_if_due_earlier();
        }
        begins
    }

    /// Gives the program's thread what the worker has written. False if it is not to wait for more.
    pub(crate) fn direct_read(&mut self, id: WorkerId, messages: &mut Vec<u8>) -> bool {
        if !self.channels.is_direct(id) {
            return false;
        }
        self.now = self.clock();
        let pace = self.channels.pace;
        self.read(id, READ_BURST, usize::MAX);
        self.channels.pace = pace;
        self.channels.take_messages(id, messages);
        self.write();
        if self.channels.needs_driver(id) {
            self.channels.reclaim(id, self.now, &mut self.poller);
        }
        self.wake_if_due_earlier();
        self.channels.is_direct(id)
    }

    /// Writes a message of the program's at once. False if others come first.
    pub(crate) fn direct_write(&mut self, id: WorkerId, message: &[u8]) -> bool {
        let Some(is_left) = self.channels.write_directly(id, message) else { return false };
        if is_left {
            self.now = self.clock();
            self.write();
            self.wake_if_due_earlier();
        }
        true
    }

    /// Writes what the program's thread has put into the mailbox, as far as there is room.
    pub(crate) fn flush_mailbox_directly(&mut self, id: WorkerId) {
        self.channels.take_mail(id, &mut self.cluster.primary);
        // Otherwise it is written with the rest.
        if self.channels.get(id).is_some_and(|channel| !channel.blocked) {
            self.now = self.clock();
            self.channels.flush_soon(id);
            self.write();
            self.wake_if_due_earlier();
        }
    }

    /// Writes everything that the program has sent, whichever way, as far as there is room.
    pub(crate) fn flush_directly(&mut self, id: WorkerId) {
        self.catch_up_relay(id);
        self.collect(id);
        self.write();
        self.wake_if_due_earlier();
    }

    /// The driver is on its own again.
    pub(crate) fn detach_direct_io(&mut self, id: WorkerId) {
        self.channels.detach_direct_io(id, &mut self.poller);
    }

    /// Reads everything that the program has written to its socket. False if that is too much.
    pub(crate) fn catch_up_relay(&mut self, id: WorkerId) -> bool {
        self.now = self.clock();
        let pace = self.channels.pace;
        let is_at_end = (0..MAX_CATCH_UP_READS).any(|_| !self.read_relay(id, false));
        // Otherwise nothing was read because the worker does not keep up.
        let has_caught_up =
            is_at_end && self.channels.get(id).is_some_and(|channel| !channel.is_full());
        self.channels.pace = pace;
        self.write();
        self.wake_if_due_earlier();
        has_caught_up
    }

    /// Wakes the driver's thread if it has to do something earlier than it thinks.
    fn wake_if_due_earlier(&mut self) {
        let due = self.time_left().map(|left| self.now + left);
        let is_earlier = due.is_some_and(|due| self.wakes_at.is_none_or(|planned| due < planned));
        if is_earlier || !self.events.is_empty() {
            self.inbox.handle().wake.wake();
        }
    }
}
