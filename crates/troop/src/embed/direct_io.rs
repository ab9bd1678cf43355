//! Direct I/O: the thread of an embedding program reads and writes a worker's channel itself, so that
//! no message waits for a second thread to wake up.
//!
//! The driver of a cluster with a thread of its own is behind a lock, which only this module and the
//! driver's loop take. The driver's thread holds it except while it waits. A thread that does direct
//! I/O holds it for one call, does for one relay what a turn of the driver would do, and wakes the
//! driver's thread only if more is to be done.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError, Weak};

use troop_core::{Time, WorkerId};

use crate::primary::relay::is_internal;
use crate::primary::{Driver, handle};

/// A driver behind its lock.
pub(crate) struct SharedDriver(Arc<Mutex<Driver>>);

impl SharedDriver {
    pub(crate) fn new(driver: Driver) -> SharedDriver {
        SharedDriver(Arc::new(Mutex::new(driver)))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Driver> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the lock, or returns `None` if another thread holds it.
    fn try_lock(&self) -> Option<MutexGuard<'_, Driver>> {
        match self.0.try_lock() {
            Ok(driver) => Some(driver),
            Err(TryLockError::Poisoned(driver)) => Some(driver.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

/// Leads to a driver while it runs in a thread of its own, for direct I/O.
#[derive(Default)]
pub(crate) struct DirectIoAccess(OnceLock<Weak<Mutex<Driver>>>);

impl DirectIoAccess {
    /// Allows direct I/O from now on.
    pub(crate) fn allow(&self, driver: &SharedDriver) {
        let _ = self.0.set(Arc::downgrade(&driver.0));
    }

    fn driver(&self) -> Option<SharedDriver> {
        self.0.get()?.upgrade().map(SharedDriver)
    }
}

impl std::fmt::Debug for DirectIoAccess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("DirectIoAccess").finish()
    }
}

/// Lets the thread of a relay's program ([`Adoption::relay`](crate::embed::Adoption::relay)) do the
/// relaying, instead of the cluster's, so that no message waits for a second thread to wake up. For
/// a cluster that was started by [`Builder::start_in_thread`](crate::Builder::start_in_thread).
/// Made by [`WorkerHandle::relay_io`](crate::WorkerHandle::relay_io).
///
/// Acknowledgements of connections are for the cluster: as long as a worker is handed connections,
/// the cluster's thread reads its channel. It offers direct I/O again when there have been none for
/// a second.
///
/// Where it blocks, it does so for the rest of a turn of the cluster's thread, which is short.
pub struct RelayIo {
    shared: Arc<handle::Shared>,
    worker: WorkerId,
    advanced: bool,
}

impl std::fmt::Debug for RelayIo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RelayIo").field("worker", &self.worker).finish_non_exhaustive()
    }
}

/// The longest message that is written without the program's socket.
const MAX_MESSAGE: usize = 64 * 1024;

/// The state of direct I/O of one worker.
pub(crate) struct DirectIo {
    /// Whether the program's thread reads the worker's channel.
    pub(crate) reads: bool,
    /// Time of the last hand-over to the worker.
    pub(crate) given: Time,
    /// Offers the channel to the program's thread.
    pub(crate) offer: Box<dyn Fn() + Send>,
}

impl RelayIo {
    /// As [`WorkerHandle::relay_io`](crate::WorkerHandle::relay_io).
    pub(crate) fn new(
        shared: &Arc<handle::Shared>,
        offer: Box<dyn Fn() + Send>,
    ) -> io::Result<Option<(RelayIo, OwnedFd)>> {
        let Some(driver) = shared.driver_handle.wake.direct_io.driver() else { return Ok(None) };
        let accepted = driver.lock().attach_direct_io(shared.id, offer)?;
        let direct_io = |advanced| RelayIo { shared: shared.clone(), worker: shared.id, advanced };
        Ok(accepted.map(|(channel, advanced)| (direct_io(advanced), channel)))
    }

    fn driver(&self) -> Option<SharedDriver> {
        self.shared.driver_handle.wake.direct_io.driver()
    }

    /// Writes all unsent messages, as far as there is room; to be called before the process ends.
    pub fn hurry(&self) {
        if let Some(driver) = self.driver() {
            driver.lock().flush_directly(self.worker);
        }
    }

    /// Begins direct I/O: the caller polls the channel, and calls [`RelayIo::read`] when it is
    /// readable. Returns false if that is not possible now; it will be offered later.
    pub fn begin(&self) -> bool {
        self.driver().is_some_and(|driver| driver.lock().begin_direct_io(self.worker))
    }

    /// Reads what the worker has written and appends the program's messages to `messages`, in its
    /// framing; they come before what the program reads from its socket afterwards. (Messages with
    /// sockets, and those after them, go to that socket.) Returns false if the caller must stop
    /// polling the channel; direct I/O will be offered again if the channel is still open.
    pub fn read(&self, messages: &mut Vec<u8>) -> bool {
        self.driver().is_some_and(|driver| driver.lock().direct_read(self.worker, messages))
    }

    /// Sends a message of the program's, in its framing, to the worker. Returns false if that is
    /// not possible now, or the message is long (so that the program sees backpressure), or
    /// internal to Node; then the program must write it to its own socket. Before it uses this
    /// method again, all such messages must be written, and the next call must set `behind`, so
    /// that they come first. Does not block.
    pub fn write(&self, message: &[u8], behind: bool) -> bool {
        let Some(driver) = self.driver() else { return false };
        if message.len() > MAX_MESSAGE || is_internal(self.advanced, message) {
            return false;
        }
        let mut held = driver.try_lock();
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

/// Ends direct I/O: the cluster's thread reads the channel again.
impl Drop for RelayIo {
    fn drop(&mut self) {
        if let Some(driver) = self.driver() {
            driver.lock().detach_direct_io(self.worker);
        }
    }
}
