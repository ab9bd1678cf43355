//! Lets the threads of programs help with relaying: see [`RelayIo`](crate::embed::RelayIo).
//!
//! The driver is behind a lock then, which its own thread holds while it does something, and not
//! while it waits. A helper does what the driver's turn would have done about one relay, and wakes
//! the driver's thread only if more has come of it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use troop_core::{Time, WorkerId};
use troop_sys::fdpass;

use super::Driver;
use super::channels::READ_BURST;
use crate::primary::direct_io::DirectIo;
use crate::primary::relay::Relay;

/// How long no connections must have come before a helper is asked again.
const QUIET_INTERVAL: Duration = Duration::from_secs(1);
/// How often what the program has written is read before its messages go that way on.
const MAX_CATCH_UP_READS: usize = 16;

/// A driver that others help.
pub(crate) type Shared = Mutex<Driver>;

pub(crate) fn lock(driver: &Shared) -> MutexGuard<'_, Driver> {
    driver.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn try_lock(driver: &Shared) -> Option<MutexGuard<'_, Driver>> {
    match driver.try_lock() {
        Ok(driver) => Some(driver),
        Err(TryLockError::Poisoned(driver)) => Some(driver.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// Workers whose channels helpers are to have again, later.
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

impl Driver {
    /// The thread of the program that this worker is relayed to will help. Returns a copy of the
    /// channel, and whether its format is V8's.
    pub(crate) fn attach_direct_io(
        &mut self,
        id: WorkerId,
        offer: Box<dyn Fn() + Send>,
    ) -> io::Result<Option<(OwnedFd, bool)>> {
        let Some(channel) =
            self.processes.get_mut(&id).and_then(|process| process.channel.as_mut())
        else {
            return Ok(None);
        };
        let Some(relay) = self.relays.get_mut(&id) else { return Ok(None) };
        let copy = channel.socket.try_clone()?;
        channel.has_copy = true;
        relay.direct_io = Some(DirectIo { reads: false, given: self.now, offer });
        Ok(Some((copy, channel.advanced)))
    }

    pub(crate) fn begin_direct_io(&mut self, id: WorkerId) -> bool {
        self.now = self.clock();
        let is_open = self.channel(id).is_some_and(|channel| !channel.last);
        let has_room = self.channel(id).is_some_and(|channel| !channel.is_full());
        let is_quiet = self.cluster.primary.in_flight(id).next().is_none();
        let Some(relay) = self.relays.get_mut(&id) else { return false };
        let (is_idle, now) = (has_room && relay.outbox.is_empty() && !relay.is_full(), self.now);
        let Some(direct_io) = &mut relay.direct_io else { return false };
        if !is_open {
            return false;
        }
        direct_io.reads = is_idle && is_quiet;
        if direct_io.reads {
            self.update_channel(id);
        } else {
            self.reclaimed_channels.add(id, now);
            self.wake_if_due_earlier();
        }
        is_idle && is_quiet
    }

    /// A worker is given a connection, and its answer is nothing for the program's thread.
    #[inline]
    pub(super) fn reclaim_channel(&mut self, id: WorkerId) {
        let now = self.now;
        let Some(direct_io) = self.relays.get_mut(&id).and_then(|relay| relay.direct_io.as_mut())
        else {
            return;
        };
        direct_io.given = now;
        if std::mem::replace(&mut direct_io.reads, false) {
            self.reclaimed_channels.add(id, now);
            self.update_channel(id);
        }
    }

    /// Offers channels that have been taken back, when no connections come any more.
    pub(super) fn offer_channels(&mut self) {
        if self.reclaimed_channels.due.is_none_or(|due| due > self.now) {
            return;
        }
        let mut workers = std::mem::take(&mut self.reclaimed_channels.workers);
        workers.retain(|id| {
            let Some(relay) = self.relays.get(id) else { return false };
            let Some(direct_io) = &relay.direct_io else { return false };
            let is_quiet = direct_io.given + QUIET_INTERVAL <= self.now
                && self.cluster.primary.in_flight(*id).next().is_none();
            let channel = self.processes.get(id).and_then(|process| process.channel.as_ref());
            let has_room = channel.is_none_or(|channel| !channel.is_full());
            if is_quiet && has_room && relay.outbox.is_empty() && !relay.is_full() {
                (direct_io.offer)();
                return false;
            }
            true
        });
        self.reclaimed_channels.due = (!workers.is_empty()).then(|| self.now + QUIET_INTERVAL);
        self.reclaimed_channels.workers = workers;
    }

    /// Gives the helper what the worker has written. False if it is not to wait for more.
    pub(crate) fn direct_read(&mut self, id: WorkerId, messages: &mut Vec<u8>) -> bool {
        if !self.relays.get(&id).is_some_and(Relay::is_direct) {
            return false;
        }
        self.now = self.clock();
        let pace = self.pace;
        self.read(id, READ_BURST, usize::MAX);
        self.pace = pace;
        if let Some(relay) = self.relays.get_mut(&id)
            && relay.is_clear()
        {
            relay.outbox.move_to(messages);
        }
        self.write();
        let is_backpressured = self.channel(id).is_some_and(|channel| channel.is_backpressured());
        if self
            .relays
            .get(&id)
            .is_some_and(|relay| is_backpressured || relay.is_full() || !relay.outbox.is_empty())
        {
            // The program or the worker does not keep up, so there is something to wait for that
            // only the driver does.
            self.reclaim_channel(id);
        }
        self.wake_if_due_earlier();
        self.relays.get(&id).is_some_and(Relay::is_direct)
    }

    /// Writes a message of the program's at once. False if others come first.
    pub(crate) fn direct_write(&mut self, id: WorkerId, message: &[u8]) -> bool {
        let Some(channel) = self.channel(id) else { return false };
        if channel.last || channel.blocked || !channel.outbox.is_empty() {
            return false;
        }
        let written = fdpass::send(channel.socket.as_fd(), message, &[]).unwrap_or(0);
        if written < message.len() {
            channel.outbox.push(&message[written..]);
            self.unflushed.push(id);
            self.now = self.clock();
            self.write();
            self.wake_if_due_earlier();
        }
        true
    }

    /// Writes what the program's thread has put into the mailbox, as far as there is room.
    pub(crate) fn flush_mailbox_directly(&mut self, id: WorkerId) {
        self.take_mail(id);
        // Otherwise it is written with the rest.
        if self.channel(id).is_some_and(|channel| !channel.blocked) {
            self.now = self.clock();
            self.unflushed.push(id);
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
        if let Some(relay) = self.relays.get_mut(&id) {
            relay.direct_io = None;
            self.update_channel(id);
        }
    }

    /// Reads everything that the program has written to its socket. False if that is too much.
    pub(crate) fn catch_up_relay(&mut self, id: WorkerId) -> bool {
        self.now = self.clock();
        let pace = self.pace;
        let is_at_end = (0..MAX_CATCH_UP_READS).any(|_| !self.read_relay(id, false));
        // Otherwise nothing was read because the worker does not keep up.
        let has_caught_up = is_at_end && self.channel(id).is_some_and(|channel| !channel.is_full());
        self.pace = pace;
        self.write();
        self.wake_if_due_earlier();
        has_caught_up
    }

    /// Wakes the driver's thread if it has to do something earlier than it thinks.
    fn wake_if_due_earlier(&mut self) {
        let due = self.time_left().map(|left| self.now + left);
        let is_earlier = due.is_some_and(|due| self.looks_at.is_none_or(|planned| due < planned));
        if is_earlier || !self.events.is_empty() {
            self.driver_handle.wake.wake();
        }
    }
}
