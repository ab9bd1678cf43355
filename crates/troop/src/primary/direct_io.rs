//! Help with relaying: what a program sees of it that wants its messages without delay.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use troop_core::{Time, WorkerId};

use super::driver::{Shared, direct_io};
use super::handle;
use super::relay::is_internal;

/// Lets the thread of a relay's program ([`Adoption::relay`](crate::embed::Adoption::relay)) do the
/// relaying, instead of the cluster's, so that no message waits for a second thread to wake up. For
/// a cluster that was started by [`Builder::start_in_thread`](crate::Builder::start_in_thread).
/// Made by [`WorkerHandle::relay_io`](crate::WorkerHandle::relay_io).
///
/// Connections that the primary hands over have answers, which are the cluster's own affair: as
/// long as a worker gets such connections, the cluster's thread reads its channel, and offers that
/// to the helper again when there have been none for a second.
///
/// Where it blocks, it does so for the rest of a turn of the cluster's thread, which is short.
pub struct RelayIo {
    shared: Arc<handle::Shared>,
    worker: WorkerId,
    advanced: bool,
}

impl std::fmt::Debug for RelayIo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Helper").field("worker", &self.worker).finish_non_exhaustive()
    }
}

/// The longest message that is written without the program's socket.
const MAX_MESSAGE: usize = 64 * 1024;

/// What the primary knows of a helper.
pub(crate) struct DirectIo {
    /// It reads the worker's channel.
    pub(crate) reads: bool,
    /// When the worker was last given a connection.
    pub(crate) given: Time,
    /// Says that it may read.
    pub(crate) offer: Box<dyn Fn() + Send>,
}

impl RelayIo {
    /// As [`WorkerHandle::relay_io`](crate::WorkerHandle::relay_io).
    pub(crate) fn new(
        shared: &Arc<handle::Shared>,
        offer: Box<dyn Fn() + Send>,
    ) -> io::Result<Option<(RelayIo, OwnedFd)>> {
        let Some(driver) = shared.driver_handle.wake.direct_io() else { return Ok(None) };
        let accepted = direct_io::lock(&driver).attach_direct_io(shared.id, offer)?;
        let direct_io = |advanced| RelayIo { shared: shared.clone(), worker: shared.id, advanced };
        Ok(accepted.map(|(channel, advanced)| (direct_io(advanced), channel)))
    }

    fn driver(&self) -> Option<Arc<Shared>> {
        self.shared.driver_handle.wake.direct_io()
    }

    /// Writes everything that was sent, whichever way, as far as the worker takes it: before the
    /// process ends.
    pub fn hurry(&self) {
        if let Some(driver) = self.driver() {
            direct_io::lock(&driver).flush_directly(self.worker);
        }
    }

    /// From now on the caller waits for the channel, and calls [`RelayIo::read`] when it is
    /// readable. False if that is not wanted now; it will be offered.
    pub fn begin(&self) -> bool {
        self.driver().is_some_and(|driver| direct_io::lock(&driver).begin_direct_io(self.worker))
    }

    /// Reads what the worker has written and appends the program's messages to `messages`, in its
    /// framing; they come before what the program reads from its socket afterwards. (What carries
    /// sockets, or what it has not read yet, goes to that socket.) False if the caller is not to
    /// wait for the channel any more; it will be offered, if the channel is still open.
    pub fn read(&self, messages: &mut Vec<u8>) -> bool {
        self.driver()
            .is_some_and(|driver| direct_io::lock(&driver).direct_read(self.worker, messages))
    }

    /// Sends a message of the program's, in its framing, to the worker. False if that cannot be
    /// done just now, or it is a long one (so that the program notices what waits for room), or one
    /// of Node's own; then the program must write it to its own socket. Before what comes after
    /// that is sent here again, everything must have left the program's hands, and the next call
    /// must have `behind` set, so that what is on that way comes first. Does not block.
    pub fn write(&self, message: &[u8], behind: bool) -> bool {
        let Some(driver) = self.driver() else { return false };
        if message.len() > MAX_MESSAGE || is_internal(self.advanced, message) {
            return false;
        }
        let mut held = direct_io::try_lock(&driver);
        if behind && !held.as_mut().is_some_and(|driver| driver.catch_up_relay(self.worker)) {
            return false;
        }
        let mailbox = &self.shared.mailbox;
        let mut goes_on = held.as_mut().filter(|_| mailbox.is_empty());
        if goes_on.as_mut().is_some_and(|driver| driver.direct_write(self.worker, message)) {
            return true;
        }
        let Ok(needs_notify) = mailbox.put_raw(message) else { return false };
        match held {
            Some(mut driver) => driver.flush_mailbox_directly(self.worker),
            None if needs_notify => mailbox.notify(),
            None => {}
        }
        true
    }
}

/// The cluster's thread reads the channel again.
impl Drop for RelayIo {
    fn drop(&mut self) {
        if let Some(driver) = self.driver() {
            direct_io::lock(&driver).detach_direct_io(self.worker);
        }
    }
}
