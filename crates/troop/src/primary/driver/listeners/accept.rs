//! Which sockets the primary accepts on, and how many connections at a time.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use troop_core::ListenerId;
use troop_core::primary::{Needs, Primary};
use troop_sys::poll::Interest;
use troop_sys::socket;
use troop_sys::unblock::Unblocker;

use super::Listeners;
use crate::primary::driver::Token;
use crate::primary::driver::poller::EventPoller;
use crate::primary::saved::kept::Copies;

/// Connections accepted per listener before others have their turn.
pub(in crate::primary::driver) const ACCEPT_BURST: usize = 64;

/// Sockets on which the primary accepts.
#[derive(Default)]
pub(super) struct AcceptQueue {
    /// Sockets that may have connections for us.
    ready: Vec<usize>,
    /// Room for such a list.
    room: Vec<usize>,
}

/// A socket's turn to accept.
pub(in crate::primary::driver) struct Turn {
    pub(in crate::primary::driver) listener: ListenerId,
    /// How many connections to accept at most.
    pub(in crate::primary::driver) burst: usize,
    pub(in crate::primary::driver) watch: Option<Unblocker>,
}

/// How such a turn has ended.
pub(in crate::primary::driver) struct Accepted {
    pub(in crate::primary::driver) count: usize,
    /// There is nothing more.
    pub(in crate::primary::driver) drained: bool,
}

impl Listeners {
    /// Sockets that may have connections for us. They are taken out.
    pub(in crate::primary::driver) fn take_ready(&mut self) -> Vec<usize> {
        let room = std::mem::take(&mut self.accepting.room);
        std::mem::replace(&mut self.accepting.ready, room)
    }

    /// Puts back those that may have more; the room of both lists is used again.
    pub(in crate::primary::driver) fn return_ready(&mut self, mut sockets: Vec<usize>) {
        for number in sockets.drain(..) {
            if !self.accepting.ready.contains(&number) {
                self.accepting.ready.push(number);
            }
        }
        self.accepting.room = sockets;
    }

    /// Begins a socket's turn, unless it has nothing to accept.
    pub(in crate::primary::driver) fn begin_turn(
        &mut self,
        number: usize,
        nested: bool,
        has_other_users: bool,
    ) -> Option<Turn> {
        let socket = self.sockets.get_mut(number)?;
        let full = std::mem::take(&mut socket.full);
        if !socket.ready || !socket.watched {
            if full {
                socket.burst = 1;
            }
            return None;
        }
        let burst = if nested || socket.masked { ACCEPT_BURST } else { socket.burst };
        let watch = socket.never_wait(has_other_users);
        Some(Turn { listener: socket.listener, burst, watch })
    }

    /// A socket's turn is over. Whether to try it again in the next turn of the driver.
    pub(in crate::primary::driver) fn end_turn(
        &mut self,
        number: usize,
        burst: usize,
        accepted: Accepted,
        (poller, copies): (&mut EventPoller, &mut Option<Copies>),
    ) -> bool {
        let Accepted { count, drained } = accepted;
        let nested = poller.is_nested();
        let Some(socket) = self.sockets.get_mut(number) else { return false };
        let token = Token::Socket(number);
        if drained && socket.retired {
            self.close_retired(number, poller, copies);
            false
        } else if drained {
            socket.ready = false;
            socket.burst = count.max(1);
            if std::mem::take(&mut socket.masked) {
                poller.modify(&socket.fd, token, Interest::Read);
            }
            false
        } else if nested || socket.masked {
            // There may be more, which the poller will not report.
            true
        } else if count == burst {
            socket.ready = false;
            socket.full = true;
            true
        } else {
            // No worker takes connections now. They wait in the kernel, and the poller must not
            // report them all the time.
            socket.masked = true;
            poller.modify(&socket.fd, token, Interest::Nothing);
            true
        }
    }

    /// The poller reports a socket.
    pub(in crate::primary::driver) fn is_ready(&mut self, number: usize) {
        let Some(socket) = self.sockets.get_mut(number).filter(|socket| socket.watched) else {
            return;
        };
        if socket.full {
            socket.burst = (socket.burst * 2).min(ACCEPT_BURST);
        } else if !socket.ready {
            self.accepting.ready.push(number);
        }
        socket.ready = true;
    }

    /// Whether there is something to accept that somebody wants.
    pub(in crate::primary::driver) fn can_accept(&self, core: &Primary) -> bool {
        let wanted = |number: &usize| {
            self.sockets
                .get(*number)
                .is_some_and(|socket| socket.ready && core.wants_connection(socket.listener))
        };
        self.accepting.ready.iter().any(wanted)
    }

    /// A socket cannot be accepted on, and would be reported without end.
    pub(in crate::primary::driver) fn report_no_more(
        &mut self,
        number: usize,
        poller: &EventPoller,
    ) {
        if let Some(socket) = self.sockets.get_mut(number)
            && socket.watched
            && !std::mem::replace(&mut socket.unreported, true)
        {
            socket.masked = false;
            poller.remove(&socket.fd);
        }
    }

    pub(in crate::primary::driver) fn accept_on(
        &self,
        number: usize,
        needs: Needs,
        watch: Option<&Unblocker>,
    ) -> Option<io::Result<(OwnedFd, Option<std::net::SocketAddr>)>> {
        let socket = self.sockets.get(number)?;
        let accept = || {
            if needs.peer {
                socket::accept_from(socket.fd.as_fd())
            } else {
                socket::accept(socket.fd.as_fd()).map(|fd| (fd, None))
            }
        };
        Some(match watch {
            Some(watch) => watch.call(accept),
            None => accept(),
        })
    }
}
