//! Paths that workers name: with whose rights they are used, and whose are waited for no more.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use troop_core::{ListenerId, WorkerId};
use troop_sys::identity::Identity;
use troop_sys::unix::Rights;

use super::Workers;
use crate::error::Error;
use crate::event::Event;
use crate::primary::driver::Driver;
use crate::primary::listener;

/// What a look at a path may take without being counted.
const FREE_PATH_TIME: Duration = Duration::from_millis(50);
/// The time, beyond the usual, for which the paths of one worker are waited for in all.
const MAX_PATH_TIME: Duration = Duration::from_secs(3);

impl Workers {
    /// Returns a worker's rights to files: those of its user now, if it was started as root and has
    /// changed its user, and never more than it was started with. An error for a worker that is
    /// gone, because its rights cannot be read any more.
    pub(in crate::primary::driver) fn rights_of(&self, worker: WorkerId) -> io::Result<Rights> {
        let process = self.processes.get(&worker).ok_or(rustix::io::Errno::SRCH)?;
        let mut of = process.user.clone();
        if of.is_none() && rustix::process::geteuid().is_root() {
            of = Some(Identity::of_process(process.handle.pid())?).filter(|user| user.uid != 0);
        }
        Ok(Rights { of, sandbox: process.sandbox.clone(), ..Rights::own() })
    }

    /// Whether a worker has named a path that is not answered; no other one is waited for.
    pub(in crate::primary::driver) fn names_dead_paths(&self, worker: WorkerId) -> bool {
        self.processes.get(&worker).is_some_and(|process| process.names_dead_paths)
    }

    /// Counts the time that a path named by a worker has taken. A worker whose paths have taken too
    /// long in total gets no path any more.
    pub(in crate::primary::driver) fn took_for_path(&mut self, worker: WorkerId, time: Duration) {
        if let Some(process) = self.processes.get_mut(&worker) {
            process.path_time += time.saturating_sub(FREE_PATH_TIME);
            process.names_dead_paths |= process.path_time >= MAX_PATH_TIME;
        }
    }

    /// A path that a worker has named could not be used.
    pub(in crate::primary::driver) fn note_path_error(
        &mut self,
        worker: WorkerId,
        error: &io::Error,
    ) {
        if let Some(process) = self.processes.get_mut(&worker) {
            process.names_dead_paths |= is_unanswered(error);
        }
    }
}

impl Driver {
    /// Reports why a worker did not get a path, if the operator can do something about it.
    pub(in crate::primary::driver) fn explain(
        &mut self,
        id: ListenerId,
        worker: WorkerId,
        error: &io::Error,
        rights: &Rights,
    ) {
        let Some(reason) = listener::explain(error, rights) else { return };
        let (Some(at), Some(process)) =
            (self.cluster.primary.listener_address(id), self.workers.processes.get_mut(&worker))
        else {
            return;
        };
        process.names_dead_paths |= is_unanswered(error);
        process.refused = process.refused.saturating_add(1);
        // The first, and then ever fewer of many.
        if !process.refused.is_power_of_two() {
            return;
        }
        let handle = Some(process.handle.clone());
        let error = Error::Listen { address: at.to_string(), source: io::Error::other(reason) };
        self.events.push(Event::Error { worker: handle, error: Arc::new(error) });
    }
}

fn is_unanswered(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::TIMEDOUT.raw_os_error())
}
