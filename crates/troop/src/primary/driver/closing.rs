//! Closes what workers of other users may have without waiting for it: see
//! [`closer`](crate::closer).

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use troop_core::Time;

use crate::closer::{self, Closer, Closing};

/// Time in which closes usually end.
const BUSY_TIMEOUT: Duration = Duration::from_millis(20);

/// Closes descriptors aside, as soon as there was a worker of another user.
#[derive(Default)]
pub(super) struct CloseAside {
    closing: Option<Closing>,
    check_at: Option<Time>,
}

impl CloseAside {
    /// Whether there was a worker of another user.
    pub(super) fn is_needed(&self) -> bool {
        self.closing.is_some()
    }

    /// The closer for descriptors that others may have.
    pub(super) fn closer(&mut self) -> &Closer {
        self.closing.get_or_insert_default().closer()
    }

    /// What closes the descriptors of a worker, if it needs care.
    pub(super) fn closer_for(&mut self, is_other_user: bool) -> Option<Closer> {
        is_other_user.then(|| self.closer().clone())
    }

    /// Closes what a worker of another user may have; if there is none, at once.
    pub(super) fn close(&mut self, now: Time, fd: OwnedFd) {
        if let Some(closing) = &self.closing {
            closing.closer().close(fd);
            self.check_soon(now);
        }
    }

    /// Something is being closed, or may be.
    pub(super) fn check_soon(&mut self, now: Time) {
        self.check_at.get_or_insert(now + closer::CLOSE_TIMEOUT);
    }

    /// Whether no more files are taken since this was last asked.
    pub(super) fn has_become_full(&mut self) -> bool {
        self.closing.as_mut().is_some_and(Closing::has_become_full)
    }

    /// Whether something is not closed yet, after a while.
    pub(super) fn is_busy(&self) -> bool {
        let Some(closing) = &self.closing else { return false };
        let closer = closing.closer();
        let until = Instant::now() + BUSY_TIMEOUT;
        while closer.is_busy() {
            if Instant::now() >= until {
                return true;
            }
            closer.check();
            std::thread::sleep(Duration::from_millis(1));
        }
        false
    }

    /// Interrupts what takes too long.
    pub(super) fn tick(&mut self, now: Time) {
        if self.check_at.is_some_and(|due| due <= now) {
            let goes_on = self.closing.as_ref().is_some_and(|closing| closing.closer().check());
            self.check_at = goes_on.then(|| now + closer::CLOSE_TIMEOUT);
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.check_at
    }
}
