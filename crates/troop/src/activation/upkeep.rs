//! Repairs sockets by activation that workers have changed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use troop_core::Time;
use troop_core::primary::{RepairReport, Repairs};
use troop_sys::options::{Restored, Use};
use troop_sys::socket;
use troop_sys::unix::unix;

use super::{ActivationSocket, BACKLOG};

/// Interval of binding a path again, at first and at most. A program may remove the path at each of
/// its starts.
const MIN_REBIND_DELAY: Duration = Duration::from_secs(1);
const MAX_REBIND_DELAY: Duration = Duration::from_secs(3600);

/// The history of a socket.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Upkeep {
    /// Whether it was found shut down.
    shut_downs: Repairs,
    /// Whether options were found changed.
    changes: Repairs,
    /// Whether it has been reported that options could not be restored.
    is_unfit: bool,
    /// Whether it has been reported that clients do not reach it.
    is_lost: bool,
    /// Whether it has been reported that the kernel chooses evenly among all slots.
    is_mixed: bool,
    /// The time at which a path may be bound again, and the interval after that.
    again: Option<(Time, Duration)>,
}

/// The repair of a socket that clients did not reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Revival {
    /// It listens again; these slots had shut their sockets down, if each has one.
    Again(Vec<usize>),
    /// It listens again, but the kernel chooses evenly among all slots from now on.
    Mixed(Vec<usize>),
    /// A new socket is at its path, and present workers have the old one; with the reason.
    Anew(&'static str),
}

/// A repair, with its report.
#[derive(Debug)]
pub(crate) struct Revived {
    pub(crate) what: Revival,
    pub(crate) report: RepairReport,
    /// The socket that it was before, and is not any more.
    pub(crate) old: Option<OwnedFd>,
}

impl ActivationSocket {
    pub(super) fn upkeep(&self) -> MutexGuard<'_, Upkeep> {
        self.upkeep.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the socket listen again if it was shut down. If that is impossible, or its path does
    /// not lead to it any more, binds a new one at its path, if workers `may_change`. The error is
    /// the reason why that fails, which is reported once.
    pub(crate) fn revive(&self, now: Time, may_change: bool) -> Option<io::Result<Revived>> {
        let mut old = None;
        let result = match &self.slots {
            Some(slots) => match slots.revive(&self.socket) {
                Ok((shut, is_known)) if shut.is_empty() && (is_known || self.upkeep().is_mixed) => {
                    None
                }
                Ok((shut, true)) => Some(Ok(Revival::Again(shut))),
                Ok((shut, false)) => Some(Ok(Revival::Mixed(shut))),
                Err(e) => Some(Err(e)),
            },
            None => self.revive_one(now, may_change, &mut old),
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
                Some(Ok(Revived { what, report: upkeep.shut_downs.note(now), old }))
            }
            Some(Err(e)) => (!std::mem::replace(&mut upkeep.is_lost, true)).then_some(Err(e)),
        }
    }

    /// Does something with each of its sockets.
    pub(crate) fn each(&self, act: impl Fn(BorrowedFd<'_>)) {
        act(self.socket.as_fd());
        if let Some(slots) = &self.slots {
            slots.each(act);
        }
    }

    /// Records that clients do not reach it.
    pub(crate) fn is_lost(&self) -> bool {
        let upkeep = self.upkeep();
        upkeep.is_lost || upkeep.is_unfit
    }

    fn revive_one(
        &self,
        now: Time,
        may_change: bool,
        old: &mut Option<OwnedFd>,
    ) -> Option<io::Result<Revival>> {
        let is_unreached = {
            let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
            file.as_ref().is_some_and(|file| !file.was_reached())
        };
        let is_shut = socket::is_shut_down(&self.socket);
        if !is_shut && !is_unreached {
            return None;
        }
        // Also one that somebody has connected to another socket meanwhile.
        if socket::is_ip(&self.socket) {
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
        Some(self.bind_anew().map(|closed| {
            *old = Some(closed);
            Revival::Anew(why)
        }))
    }

    /// Replaces it by a new socket at its path, and returns the old one. Workers that have the old one still serve the
    /// connections that wait in it.
    fn bind_anew(&self) -> io::Result<OwnedFd> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(rights) = file.as_ref().map(|file| file.rights().clone()) else {
            return Err(io::Error::other("whoever has opened it has to open it anew"));
        };
        let (socket, new) = unix(&self.address, false, false, &rights)?;
        socket::listen(&socket, BACKLOG)?;
        socket::set_nonblocking(&socket, false)?;
        let old = self.socket.try_clone()?;
        // The old file before the old socket is closed.
        *file = new;
        socket::replace(self.socket.as_fd(), &socket)?;
        Ok(old)
    }

    /// Restores options with which workers turn clients away. Returns their values, the report, and
    /// whether there are new ones that cannot be restored.
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
