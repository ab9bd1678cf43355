//! Waits for many descriptors at once (`epoll(7)`), in a plain thread or inside a tokio runtime.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec};

/// The readiness to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Nothing.
    Nothing,
    /// Data, a connection or the end; reported while it is there.
    Read,
    /// As `Read`, and room to write.
    ReadWrite,
    /// Room to write and the end.
    Write,
    /// A new connection or data, reported once: the caller must read until `WouldBlock`.
    ReadEdge,
}

impl Interest {
    fn flags(self) -> EventFlags {
        match self {
            Interest::Nothing => EventFlags::empty(),
            Interest::Read => EventFlags::IN | EventFlags::RDHUP,
            Interest::ReadWrite => EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP,
            Interest::Write => EventFlags::OUT | EventFlags::RDHUP,
            Interest::ReadEdge => EventFlags::IN | EventFlags::ET,
        }
    }
}

/// The readiness of the descriptor that was added under `token`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// The token of the descriptor.
    pub token: u64,
    /// Whether there is data or the end.
    pub readable: bool,
    /// Whether there is room to write.
    pub writable: bool,
    /// Whether the peer has closed or shut down its side; data from before may remain.
    pub ended: bool,
}

/// A set of descriptors to wait for.
pub struct Poller {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
}

// SAFETY: the buffer of `epoll_event` is not `Send` only because its data field is a union with a
// pointer. This module stores integers there and never reads the pointer, so no thread-bound data
// moves.
unsafe impl Send for Poller {}
// SAFETY: `&Poller` gives access to the epoll descriptor only, whose system calls are thread-safe;
// the buffer of events is accessed through `&mut self` alone.
unsafe impl Sync for Poller {}

impl std::fmt::Debug for Poller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Poller").field("epoll", &self.epoll).finish_non_exhaustive()
    }
}

impl Poller {
    /// Returns an empty set.
    ///
    /// # Errors
    /// If no descriptor is left.
    pub fn new() -> io::Result<Poller> {
        Ok(Poller { epoll: epoll::create(CreateFlags::CLOEXEC)?, events: Vec::with_capacity(256) })
    }

    /// Returns another handle of the same set, for another thread.
    ///
    /// # Errors
    /// If no descriptor is left.
    pub fn try_clone(&self) -> io::Result<Poller> {
        Ok(Poller { epoll: self.epoll.try_clone()?, events: Vec::with_capacity(64) })
    }

    /// The largest number of events that one wait returns.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.events.capacity()
    }

    /// Adds a descriptor. It leaves the set when its last copy is closed, or by [`Poller::remove`].
    ///
    /// # Errors
    /// If it is in the set already, does not support polling, or memory is short.
    pub fn add(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, EventData::new_u64(token), interest.flags())?)
    }

    /// Changes the readiness to wait for.
    ///
    /// # Errors
    /// If the descriptor is not in the set.
    pub fn modify(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, fd, EventData::new_u64(token), interest.flags())?)
    }

    /// Removes a descriptor.
    ///
    /// # Errors
    /// If the descriptor is not in the set.
    pub fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, fd)?)
    }

    /// Waits for events and appends them to `out`. A timeout of `None` waits without limit, zero
    /// does not wait. A signal ends the wait early.
    ///
    /// # Errors
    /// None are expected.
    pub fn wait(&mut self, timeout: Option<Duration>, out: &mut Vec<Ready>) -> io::Result<()> {
        self.events.clear();
        let timeout = timeout.map(|t| Timespec {
            tv_sec: i64::try_from(t.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(t.subsec_nanos()),
        });
        match epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut self.events),
            timeout.as_ref(),
        ) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        out.extend(self.events.iter().map(|event| {
            let (flags, data) = (event.flags, event.data);
            Ready {
                token: data.u64(),
                readable: flags.intersects(
                    EventFlags::IN | EventFlags::HUP | EventFlags::ERR | EventFlags::RDHUP,
                ),
                ended: flags.intersects(EventFlags::HUP | EventFlags::ERR | EventFlags::RDHUP),
                writable: flags.intersects(EventFlags::OUT | EventFlags::HUP | EventFlags::ERR),
            }
        }));
        Ok(())
    }
}

impl AsFd for Poller {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

/// A counter that wakes a [`Poller`] from any thread (`eventfd(2)`).
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    /// Returns a counter that is not set.
    ///
    /// # Errors
    /// If no descriptor is left.
    pub fn new() -> io::Result<EventFd> {
        Ok(EventFd(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Sets the counter, which wakes the poller.
    pub fn signal(&self) {
        // Fails only if the counter is full, which wakes the poller as well.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Resets the counter.
    pub fn clear(&self) {
        let _ = rustix::io::read(&self.0, &mut [0u8; 8]);
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits for a [`Poller`] inside a tokio runtime.
#[cfg(feature = "tokio")]
#[derive(Debug)]
pub struct AsyncPoller {
    poller: tokio::io::unix::AsyncFd<Poller>,
    /// Whether the set has changed since the last wait.
    changed: bool,
}

#[cfg(feature = "tokio")]
impl AsyncPoller {
    /// Registers the poller with the current tokio runtime.
    ///
    /// # Errors
    /// If the runtime cannot register it.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O enabled.
    pub fn new(poller: Poller) -> io::Result<AsyncPoller> {
        // SAFETY: `Poller::as_raw_fd` returns the same open descriptor for as long as the `Poller`
        // lives. `AsyncFd` owns the `Poller`, and this type never exposes `&mut Poller`, with which
        // a caller could swap it for another one.
        let poller = unsafe {
            tokio::io::unix::AsyncFd::register_with_interest(poller, tokio::io::Interest::READABLE)
        }?;
        Ok(AsyncPoller { poller, changed: false })
    }

    /// Adds a descriptor, as [`Poller::add`] does.
    ///
    /// # Errors
    /// If it is in the set already, does not support polling, or memory is short.
    pub fn add(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        self.poller.get_ref().add(fd, token, interest)
    }

    /// Changes the readiness to wait for, as [`Poller::modify`] does. The next
    /// [`AsyncPoller::ready`] completes at once.
    ///
    /// # Errors
    /// If it is not in the set.
    pub fn modify(&mut self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        // The epoll set is itself in tokio's epoll set, edge-triggered. A descriptor that the last
        // wait reported is still on the kernel's ready list, so readiness that this change causes
        // raises no new edge.
        self.changed = true;
        self.poller.get_ref().modify(fd, token, interest)
    }

    /// Removes a descriptor.
    ///
    /// # Errors
    /// If it is not in the set.
    pub fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        self.poller.get_ref().remove(fd)
    }

    /// Appends pending events to `out`, without waiting.
    ///
    /// # Errors
    /// None are expected.
    pub fn poll(&mut self, out: &mut Vec<Ready>) -> io::Result<()> {
        // `get_mut` must not be exposed: swapping the `Poller` would leave tokio with a closed
        // descriptor, whose number may be reused (see `new`).
        self.poller.get_mut().wait(Some(Duration::ZERO), out)
    }

    /// The largest number of events that one poll returns.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.poller.get_ref().capacity()
    }

    /// Returns another handle of the same set, for another thread.
    ///
    /// # Errors
    /// If no descriptor is left.
    pub fn try_clone(&self) -> io::Result<Poller> {
        self.poller.get_ref().try_clone()
    }

    /// Completes when the set may have events. The caller must call [`AsyncPoller::poll`] until it
    /// returns none before it waits again. Cancel-safe.
    ///
    /// # Errors
    /// If the runtime is shutting down.
    pub async fn ready(&mut self) -> io::Result<()> {
        if self.changed {
            // A caller that modifies the set after every poll must not starve other tasks.
            tokio::task::yield_now().await;
            self.changed = false;
            return Ok(());
        }
        let mut guard = self.poller.readable_mut().await?;
        // Cleared before the caller polls, so that a later event is a new edge.
        guard.clear_ready();
        Ok(())
    }
}

#[cfg(feature = "tokio")]
impl AsFd for AsyncPoller {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.poller.get_ref().as_fd()
    }
}

#[cfg(feature = "tokio")]
impl std::os::fd::AsRawFd for Poller {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        std::os::fd::AsRawFd::as_raw_fd(&self.epoll)
    }
}

#[cfg(all(test, feature = "tokio"))]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    /// A change makes a descriptor ready that is on the kernel's ready list already.
    #[tokio::test]
    async fn readiness_caused_by_a_modification_is_reported() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let mut poller = AsyncPoller::new(Poller::new().unwrap()).unwrap();
        poller.add(&ours, 7, Interest::Read).unwrap();
        theirs.write_all(b"x").unwrap();
        let mut ready = Vec::new();
        poller.ready().await.unwrap();
        poller.poll(&mut ready).unwrap();
        assert!(matches!(ready[..], [Ready { token: 7, readable: true, writable: false, .. }]));
        ours.read_exact(&mut [0]).unwrap();
        poller.modify(&ours, 7, Interest::ReadWrite).unwrap();
        tokio::time::timeout(Duration::from_secs(20), poller.ready()).await.unwrap().unwrap();
        ready.clear();
        poller.poll(&mut ready).unwrap();
        assert!(matches!(ready[..], [Ready { token: 7, readable: false, writable: true, .. }]));
    }
}
