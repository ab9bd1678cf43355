//! What the primary does when descriptors or memory run out: clients wait, restarts and the control
//! socket go on, and it is said once in a while. How many there are for what is decided in
//! [`Budget`].

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use troop_core::Time;
use troop_core::primary::Budget;
use troop_core::supervise::Supervisor;
use troop_sys::process;

use super::Driver;
use crate::error::Error;
use crate::event::Event;
use crate::primary::available_workers;

/// Interval between looks at whether there are descriptors again.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// The shortest time between two reports of the same shortage.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// A shortage that has been reported.
struct Said {
    doing: &'static str,
    at: Time,
    /// How often it happened since.
    unsaid: u64,
}

/// What descriptors and memory the driver has run out of, when it tries again, and what was said of
/// it.
pub(super) struct Scarcity {
    /// The number of an accepted connection from which on something has to be done.
    mark: i32,
    /// The core has been told that descriptors are scarce.
    tight: bool,
    check_at: Option<Time>,
    /// When connections are accepted again.
    accept_again: Option<Time>,
    /// The descriptors of this process are what is short: they come back as connections leave.
    is_by_number: bool,
    said: Vec<Said>,
    /// Descriptors that were in use before there were workers.
    base: Option<usize>,
    /// The number of processors, once it was asked for: which reads some files.
    processors: Option<usize>,
}

impl Default for Scarcity {
    fn default() -> Scarcity {
        Scarcity {
            mark: i32::MAX,
            tight: false,
            check_at: None,
            accept_again: None,
            is_by_number: false,
            said: Vec::new(),
            base: None,
            processors: None,
        }
    }
}

impl Scarcity {
    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.check_at.into_iter().chain(self.accept_again).min()
    }

    /// Returns the number of descriptors that were in use before there were workers.
    pub(super) fn base(&self) -> Option<usize> {
        self.base
    }

    pub(super) fn set_base(&mut self, base: Option<usize>) {
        self.base = base;
    }

    /// Whether no connections are accepted for now.
    pub(super) fn pauses_accepting(&self) -> bool {
        self.accept_again.is_some()
    }
}

fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

impl Driver {
    /// Divides the descriptors that this process may have now among the workers that there are to
    /// be.
    pub(super) fn divide_descriptors(&mut self) {
        let supervisor = self.cluster.supervisor().filter(|supervisor| !supervisor.is_embedded());
        let slots = supervisor.map(Supervisor::wanted);
        let processors = &mut self.scarcity.processors;
        let slots = slots.unwrap_or_else(|| *processors.get_or_insert_with(available_workers));
        let base = match self.scarcity.base {
            Some(base) => base,
            None => {
                let lowest = process::lowest_free_descriptor(self.poller.as_fd());
                *self
                    .scarcity
                    .base
                    .insert(lowest.ok().and_then(|fd| usize::try_from(fd).ok()).unwrap_or(0))
            }
        };
        let budget = Budget { limit: process::descriptor_limit(), slots, base };
        self.cluster.primary.set_budget(budget);
        self.scarcity.mark =
            number(if self.scarcity.tight { budget.usable() } else { budget.tight() });
    }

    /// To be called with each accepted connection: what its number tells about how many descriptors
    /// are in use.
    #[inline]
    pub(super) fn check_descriptor_number(&mut self, fd: i32) {
        if fd >= self.scarcity.mark {
            self.become_tight(fd);
        }
    }

    #[cold]
    fn become_tight(&mut self, fd: i32) {
        let budget = self.cluster.primary.budget();
        if !std::mem::replace(&mut self.scarcity.tight, true) {
            self.scarcity.mark = number(budget.usable());
            self.cluster.primary.set_tight(self.now, true);
        }
        self.scarcity.check_at = Some(self.now + CHECK_INTERVAL);
        if fd >= number(budget.usable()) {
            // This one can be had; the next ones wait.
            self.pause_accepting(Errno::MFILE.into());
        }
    }

    /// The kernel keeps the connections meanwhile; nothing is lost.
    pub(super) fn pause_accepting(&mut self, source: io::Error) {
        self.scarcity.accept_again = Some(self.now + CHECK_INTERVAL);
        self.scarcity.is_by_number = source.raw_os_error() == Some(Errno::MFILE.raw_os_error());
        self.short("accept a connection", source);
    }

    /// Sees whether there are descriptors again: at once when it is this process that has too few, whose
    /// turns are rare while it does not accept.
    pub(super) fn check_descriptors(&mut self) {
        let is_due = |at: Option<Time>| at.is_some_and(|due| due <= self.now);
        let Scarcity { accept_again, is_by_number, .. } = self.scarcity;
        let pause_ends = is_due(accept_again) || (is_by_number && accept_again.is_some());
        if !pause_ends && !is_due(self.scarcity.check_at) {
            return;
        }
        let budget = self.cluster.primary.budget();
        let lowest = process::lowest_free_descriptor(self.poller.as_fd()).map_or(i32::MAX, |fd| fd);
        if pause_ends {
            // One at a time can always be had, if everything else has used up what is not reserved.
            let has_room = lowest < number(budget.usable()) || self.connections.is_empty();
            self.scarcity.accept_again = (!has_room).then_some(self.now + CHECK_INTERVAL);
        }
        if !self.scarcity.tight {
            return;
        }
        // Not as soon as it is below the mark, or it would go to and fro.
        if lowest < number(budget.tight() - (budget.tight() - budget.base.min(budget.tight())) / 4)
        {
            self.scarcity.tight = false;
            self.scarcity.mark = number(budget.tight());
            self.scarcity.check_at = None;
            self.cluster.primary.set_tight(self.now, false);
        } else {
            self.scarcity.check_at = Some(self.now + CHECK_INTERVAL);
        }
    }

    /// Whether a listener may have one more socket, as the number of its newest one tells.
    pub(super) fn leaves_the_reserve(&self, fd: &OwnedFd) -> bool {
        fd.as_raw_fd() < number(self.cluster.primary.budget().usable())
    }

    /// Says that this process, or the system, is short of something, unless that was said a moment
    /// ago.
    pub(super) fn short(&mut self, doing: &'static str, source: io::Error) {
        let now = self.now;
        let said = match self.scarcity.said.iter_mut().find(|said| said.doing == doing) {
            Some(said) if said.at + REPORT_INTERVAL > now => {
                said.unsaid += 1;
                return;
            }
            Some(said) => said,
            None => {
                self.scarcity.said.push(Said { doing, at: now, unsaid: 0 });
                let Some(last) = self.scarcity.said.last_mut() else { return };
                last
            }
        };
        said.at = now;
        let times = 1 + std::mem::take(&mut said.unsaid);
        let Budget { limit, .. } = self.cluster.primary.budget();
        let advice = match source.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::MFILE) => format!(
                "this process may have {limit} open files, of which {} are kept for restarts and the control socket; clients wait; raise the limit (ulimit -n, LimitNOFILE= of a unit)",
                self.cluster.primary.budget().reserve()
            ),
            Some(Errno::NFILE) => {
                "the system may have no more open files; clients wait; raise fs.file-max".into()
            }
            Some(Errno::NOSPC) => {
                "this user may watch no more descriptors; raise fs.epoll.max_user_watches".into()
            }
            _ => "the system is short of memory; clients wait".into(),
        };
        self.events.push(Event::Error {
            worker: None,
            error: Arc::new(Error::Short { doing, advice, times, source }),
        });
    }
}
