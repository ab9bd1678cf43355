//! What workers do to sockets that they have by activation, and how it is put right.

use std::io;
use std::os::fd::AsFd;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use troop_core::Time;
use troop_core::primary::{RepairReport, Repairs};
use troop_sys::options::{Restored, Use};
use troop_sys::socket;
use troop_sys::unix::unix;

use super::{ActivationSocket, BACKLOG};

/// How long it takes until a path is bound anew once more, at first and at most. A program may
/// remove it each time it starts.
const MIN_REBIND_DELAY: Duration = Duration::from_secs(1);
const MAX_REBIND_DELAY: Duration = Duration::from_secs(3600);

/// What has happened to a socket so far.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    /// It was found shut down.
    shut_downs: Repairs,
    /// Options were found changed.
    changes: Repairs,
    /// Some could not be restored, and that has been said.
    is_unfit: bool,
    /// Clients do not reach it, and that has been said.
    is_lost: bool,
    /// The kernel chooses among all slots alike, and that has been said.
    is_mixed: bool,
    /// When a path may be bound anew, and how long after that.
    again: Option<(Instant, Duration)>,
}

/// What was done for a socket that clients did not reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Revival {
    /// It listens again; these slots had shut it down, if each has its own.
    Again(Vec<usize>),
    /// The same, but the kernel chooses among all slots alike from now on.
    Mixed(Vec<usize>),
    /// Another socket is at its path; workers that are there have the old one. Why.
    Anew(&'static str),
}

/// The same, and what to say of it.
#[derive(Debug)]
pub(crate) struct Revived {
    pub(crate) what: Revival,
    pub(crate) report: RepairReport,
}

impl ActivationSocket {
    fn upkeep(&self) -> MutexGuard<'_, Upkeep> {
        self.upkeep.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the socket listen again if somebody has shut it down. Where that is not possible, or
    /// its path does not lead to it any more, puts another one at its path, if workers
    /// `may_change`. The error is why it cannot be done, which is said once.
    pub(crate) fn revive(
        &self,
        now: Instant,
        at: Time,
        may_change: bool,
    ) -> Option<io::Result<Revived>> {
        let result = match &self.slots {
            Some(slots) => match slots.revive(&self.socket) {
                Ok((shut, is_known)) if shut.is_empty() && (is_known || self.upkeep().is_mixed) => {
                    None
                }
                Ok((shut, true)) => Some(Ok(Revival::Again(shut))),
                Ok((shut, false)) => Some(Ok(Revival::Mixed(shut))),
                Err(e) => Some(Err(e)),
            },
            None => self.revive_one(now, may_change),
        };
        let mut upkeep = self.upkeep();
        upkeep.is_mixed |= matches!(result, Some(Ok(Revival::Mixed(_))));
        match result {
            None => {
                upkeep.is_lost = false;
                None
            }
            Some(Ok(what)) => {
                upkeep.is_lost = false;
                Some(Ok(Revived { what, report: upkeep.shut_downs.note(at) }))
            }
            Some(Err(e)) => (!std::mem::replace(&mut upkeep.is_lost, true)).then_some(Err(e)),
        }
    }

    /// Clients do not reach it.
    pub(crate) fn is_lost(&self) -> bool {
        let upkeep = self.upkeep();
        upkeep.is_lost || upkeep.is_unfit
    }

    fn revive_one(&self, now: Instant, may_change: bool) -> Option<io::Result<Revival>> {
        let is_unreached = {
            let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
            file.as_ref().is_some_and(|file| !file.was_reached())
        };
        let kind = socket::kind(&self.socket);
        let is_shut =
            !matches!(kind, Ok(socket::Kind::Udp { .. })) && socket::is_shut_down(&self.socket);
        if !is_shut && !is_unreached {
            return None;
        }
        if matches!(kind, Ok(socket::Kind::TcpListener)) {
            return Some(
                socket::listen_again(&self.socket, self.address.parse().ok(), BACKLOG)
                    .map(|()| Revival::Again(Vec::new())),
            );
        }
        let mut upkeep = self.upkeep();
        let pause = match upkeep.again {
            Some((due, _)) if now < due => {
                return Some(Err(io::Error::other(
                    "it has happened again and again; it is tried less and less often",
                )));
            }
            Some((due, pause)) if now < due + MAX_REBIND_DELAY => pause,
            _ => MIN_REBIND_DELAY,
        };
        if !may_change {
            return Some(Err(io::Error::other("its workers are being replaced at the moment")));
        }
        upkeep.again = Some((now + pause, (pause * 2).min(MAX_REBIND_DELAY)));
        drop(upkeep);
        let why = if is_shut { "its socket was shut down" } else { "its path was removed" };
        Some(self.bind_anew().map(|()| Revival::Anew(why)))
    }

    /// Puts a new socket at its path, in the place of the one that it has. Workers that have the
    /// old one go on with what waits in it.
    fn bind_anew(&self) -> io::Result<()> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(rights) = file.as_ref().map(|file| file.rights().clone()) else {
            return Err(io::Error::other("whoever has opened it has to open it anew"));
        };
        let (socket, new) = unix(&self.address, false, false, &rights)?;
        socket::listen(&socket, BACKLOG)?;
        socket::set_nonblocking(&socket, false)?;
        // The old file before the old socket is closed.
        *file = new;
        socket::replace(self.socket.as_fd(), &socket)
    }

    /// Puts back options by which workers turn clients away; says what they were, what to
    /// report of that, and whether something is new that cannot be put back.
    pub(crate) fn restore_options(&self, at: Time) -> Option<(Restored, RepairReport, bool)> {
        let used = |backlog| Use { backlog, nonblocking: false };
        let listens = matches!(socket::kind(&self.socket), Ok(socket::Kind::TcpListener));
        let mut all = self.options.restore(&self.socket, used(listens.then_some(BACKLOG)));
        for own in self.slots.iter().flat_map(|slots| slots.lock().restore(used(Some(BACKLOG)))) {
            all.what.extend(
                own.what.into_iter().filter(|name| !all.what.contains(name)).collect::<Vec<_>>(),
            );
            all.lost.extend(own.lost);
        }
        let mut upkeep = self.upkeep();
        let was_unfit = std::mem::replace(&mut upkeep.is_unfit, !all.lost.is_empty());
        let is_new = upkeep.is_unfit && !was_unfit;
        let report = match all.what.is_empty() {
            true => RepairReport::Nothing,
            false => upkeep.changes.note(at),
        };
        (!all.what.is_empty() || is_new).then_some((all, report, is_new))
    }
}
