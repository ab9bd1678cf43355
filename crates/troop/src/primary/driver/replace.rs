//! Leaves the state to another program image, as soon as nothing is under way that cannot be written
//! down.

use std::io;
use std::time::Duration;

use tokio::sync::oneshot;
use troop_core::Time;

use super::Driver;
use crate::error::Error;
use crate::primary::saved::SavedState;

/// Time that what is under way has to end.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Time until it is tried again.
const PAUSE: Duration = Duration::from_millis(200);

/// What executes the other image. Returns only on failure.
pub(crate) type Execute = Box<dyn FnOnce(&SavedState<'_>) -> io::Error + Send>;

/// The replacement of this program image that was asked for.
pub(super) struct Replacement {
    execute: Execute,
    until: Time,
    /// It is not tried before this, unless something happens.
    retry_at: Time,
    failed: oneshot::Sender<Error>,
}

impl Driver {
    pub(super) fn replace(&mut self, execute: Execute, failed: oneshot::Sender<Error>) {
        if self.replacement.is_some() {
            let _ = failed.send(Error::NotReplaced("another replacement is under way".into()));
            return;
        }
        let (now, until) = (self.now, self.now + TIMEOUT);
        self.replacement = Some(Replacement { execute, until, retry_at: now, failed });
    }

    /// When a replacement is tried again, or is too late.
    pub(super) fn replacement_deadline(&self) -> Option<Time> {
        self.replacement.as_ref().map(|replacement| replacement.retry_at.min(replacement.until))
    }

    /// Whether this image is to be replaced and can be, after messages for workers were taken over
    /// from those who send them. Gives up when it is too late.
    pub(super) fn prepare_replacement(&mut self) -> bool {
        if self.replacement.is_none() {
            return false;
        }
        if let Some(reason) = self.unsaved() {
            self.put_off(reason);
            return false;
        }
        for worker in self.workers.ids().collect::<Vec<_>>() {
            self.collect(worker);
        }
        self.write();
        true
    }

    fn put_off(&mut self, reason: &str) {
        let now = self.now;
        let Some(replacement) = &mut self.replacement else { return };
        replacement.retry_at = now + PAUSE;
        if replacement.until <= now
            && let Some(Replacement { failed, .. }) = self.replacement.take()
        {
            let _ = failed.send(Error::NotReplaced(reason.into()));
        }
    }

    /// Replaces this image, unless something has happened since it was prepared. Called between two
    /// turns, when all actions are carried out and all events are published.
    pub(super) fn leave(&mut self) {
        if let Some(reason) = self.unsaved() {
            return self.put_off(reason);
        }
        if !self.events.is_empty() {
            return self.put_off("events are still to be seen");
        }
        // Before the mailboxes are held: the program may send messages while it takes output.
        let paused = self.workers.spawner_mut().pause_output();
        let handles: Vec<_> = self.workers.handles().cloned().collect();
        // Nobody puts anything into a mailbox while these are held.
        let held: Vec<_> = handles.iter().map(|worker| worker.shared.mailbox.hold()).collect();
        if !held.iter().all(|mailbox| mailbox.is_empty()) {
            return self.put_off("messages for workers come all the time");
        }
        // Executing a program ends the threads that close, and then waits itself.
        if self.closing.is_busy() {
            return self.put_off("descriptors that workers had are being closed");
        }
        let Some(Replacement { execute, failed, .. }) = self.replacement.take() else { return };
        let error = match paused {
            Err(_) => Error::NotReplaced("the output of workers is not taken".into()),
            Ok(_paused) => match self.save() {
                Ok(state) => {
                    let source = execute(&state);
                    Error::Io { doing: "execute the program that replaces this one", source }
                }
                Err(source) => Error::Io { doing: "write down the primary's state", source },
            },
        };
        let _ = failed.send(error);
    }
}
