//! The poller, as a thread or as a tokio runtime waits for it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use troop_sys::poll::{AsyncPoller, Interest, Poller, Ready};

use super::Token;

pub(super) enum EventPoller {
    InThread(Poller),
    InRuntime(AsyncPoller),
}

impl EventPoller {
    /// Whether a runtime's epoll set reports this one, once for each thing that happens.
    pub(super) fn is_nested(&self) -> bool {
        matches!(self, EventPoller::InRuntime(_))
    }

    pub(super) fn add(&self, fd: impl AsFd, token: Token, interest: Interest) -> io::Result<()> {
        match self {
            EventPoller::InThread(poller) => poller.add(fd, token.pack(), interest),
            EventPoller::InRuntime(poller) => poller.add(fd, token.pack(), interest),
        }
    }

    /// Changes what is waited for. In a runtime, a descriptor that is ready already is reported
    /// again.
    pub(super) fn modify(&mut self, fd: impl AsFd, token: Token, interest: Interest) {
        // Fails only when memory has run out, and then what was waited for before is what is waited
        // for.
        let _ = match self {
            EventPoller::InThread(poller) => poller.modify(fd, token.pack(), interest),
            EventPoller::InRuntime(poller) => poller.modify(fd, token.pack(), interest),
        };
    }

    pub(super) fn remove(&self, fd: impl AsFd) {
        // It fails if it is not there, and then there is nothing to do.
        let _ = match self {
            EventPoller::InThread(poller) => poller.remove(fd),
            EventPoller::InRuntime(poller) => poller.remove(fd),
        };
    }

    /// Appends what is ready to `out`, without waiting.
    pub(super) fn poll(&mut self, out: &mut Vec<Ready>) -> io::Result<()> {
        match self {
            EventPoller::InThread(poller) => poller.wait(Some(Duration::ZERO), out),
            EventPoller::InRuntime(poller) => poller.poll(out),
        }
    }

    /// The most events that one poll yields.
    pub(super) fn capacity(&self) -> usize {
        match self {
            EventPoller::InThread(poller) => poller.capacity(),
            EventPoller::InRuntime(poller) => poller.capacity(),
        }
    }

    /// Returns a second handle for the same set, to wait without holding the driver's lock.
    pub(super) fn try_clone(&self) -> io::Result<Poller> {
        match self {
            EventPoller::InThread(poller) => poller.try_clone(),
            EventPoller::InRuntime(poller) => poller.try_clone(),
        }
    }
}

impl AsFd for EventPoller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            EventPoller::InThread(poller) => poller.as_fd(),
            EventPoller::InRuntime(poller) => poller.as_fd(),
        }
    }
}
