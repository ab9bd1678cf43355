//! The poller, in the form that suits who waits for it.

use std::io;
use std::os::fd::AsFd;

use troop_sys::poll::{AsyncPoller, Interest, Poller};

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

    /// Who does this inside a runtime gets another look at everything.
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

    /// The poller, to look at.
    pub(super) fn poller(&mut self) -> &mut Poller {
        match self {
            EventPoller::InThread(poller) => poller,
            EventPoller::InRuntime(poller) => poller.get_mut(),
        }
    }
}
