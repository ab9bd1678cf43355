//! The poller, in the form that suits who waits for it.

use std::io;
use std::os::fd::AsFd;

use troop_sys::poll::{AsyncPoller, Interest, Poller};

use super::Token;

pub(super) enum Waiting {
    InThread(Poller),
    InRuntime(AsyncPoller),
}

impl Waiting {
    /// Whether a runtime's epoll set reports this one, once for each thing that happens.
    pub(super) fn is_nested(&self) -> bool {
        matches!(self, Waiting::InRuntime(_))
    }

    pub(super) fn add(&self, fd: impl AsFd, token: Token, interest: Interest) -> io::Result<()> {
        match self {
            Waiting::InThread(poller) => poller.add(fd, token.pack(), interest),
            Waiting::InRuntime(poller) => poller.add(fd, token.pack(), interest),
        }
    }

    /// Who does this inside a runtime gets another look at everything.
    pub(super) fn modify(&mut self, fd: impl AsFd, token: Token, interest: Interest) {
        // Fails for want of memory at most, and then what was waited for before is what is waited for.
        let _ = match self {
            Waiting::InThread(poller) => poller.modify(fd, token.pack(), interest),
            Waiting::InRuntime(poller) => poller.modify(fd, token.pack(), interest),
        };
    }

    pub(super) fn remove(&self, fd: impl AsFd) {
        // It fails if it is not there, and then there is nothing to do.
        let _ = match self {
            Waiting::InThread(poller) => poller.remove(fd),
            Waiting::InRuntime(poller) => poller.remove(fd),
        };
    }

    /// The poller, to look at.
    pub(super) fn poller(&mut self) -> &mut Poller {
        match self {
            Waiting::InThread(poller) => poller,
            Waiting::InRuntime(poller) => poller.get_mut(),
        }
    }
}
