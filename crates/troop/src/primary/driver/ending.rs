//! The end of the cluster, and the callers that wait for it.

use std::time::Duration;

use tokio::sync::oneshot;
use troop_core::Time;
use troop_core::supervise::{NotReady, Outcome};

use super::Driver;
use crate::error::Error;
use crate::primary::ShutdownWaiters;

/// How long workers may take to end by themselves after the program has dropped the cluster.
const DROPPED_EXIT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for passing on what workers wrote last, where it is read slowly or not at all.
const OUTPUT_FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// How far the end of the cluster has come.
#[derive(Default)]
pub(super) struct Ending {
    /// How supervision has ended.
    outcome: Option<Outcome>,
    /// When the workers are killed of a cluster that the program has dropped.
    kill_at: Option<Time>,
    /// Callers that wait for all workers to be gone.
    waiters: ShutdownWaiters,
    /// Whether all workers are gone and their listeners are being closed.
    closes_listeners: bool,
    /// Callers that wait for the outcome.
    outcome_waiters: Vec<oneshot::Sender<Result<Outcome, Error>>>,
}

impl Ending {
    /// Whether no worker is wanted any more.
    pub(super) fn has_begun(&self) -> bool {
        self.outcome.is_some() || self.kill_at.is_some()
    }

    /// Supervision has ended so.
    pub(super) fn set_outcome(&mut self, outcome: Outcome) {
        self.outcome = Some(outcome);
    }

    /// The program waits until all workers are gone.
    pub(super) fn add_waiter(&mut self, done: oneshot::Sender<()>) {
        self.waiters.push(done);
    }

    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.kill_at
    }

    /// Takes the outcome, once there is one, and sends it to all callers that wait for it.
    pub(super) fn take_outcome(&mut self) -> Option<Outcome> {
        let outcome = self.outcome.take()?;
        for reply in self.outcome_waiters.drain(..) {
            let _ = reply.send(Ok(outcome.clone()));
        }
        Some(outcome)
    }
}

impl Driver {
    /// Ends the cluster; the reply is sent when it has ended.
    pub(super) fn stop(&mut self, at_once: bool, reply: oneshot::Sender<Result<Outcome, Error>>) {
        let Some(supervisor) = self.cluster.supervisor_mut() else {
            let _ = reply.send(Err(NotReady::Unsupervised.into()));
            return;
        };
        if at_once {
            supervisor.stop_now(self.now);
            self.workers.hurry_leftovers(self.now);
        } else {
            supervisor.stop(self.now);
        }
        self.ending.outcome_waiters.push(reply);
    }

    /// Has all workers disconnect; `done` is sent when they are gone.
    pub(super) fn disconnect_all(&mut self, done: oneshot::Sender<()>) {
        self.ending.add_waiter(done);
        self.workers.leave_starts(self.now);
        if let Some(supervisor) = self.cluster.supervisor_mut().filter(|s| !s.is_stopping()) {
            supervisor.stop(self.now);
        }
        let all: Vec<_> = self.workers.handles().cloned().collect();
        for worker in all {
            self.cluster.disconnect(self.now, worker.id(), false, None);
            self.refresh(&worker);
        }
    }

    /// Answers those that wait for the end of all workers, once listeners are closed. Returns
    /// whether there was anything to do.
    pub(super) fn notify_shutdown_waiters(&mut self) -> bool {
        if self.ending.waiters.is_empty()
            || !self.workers.is_empty()
            || !self.workers.starts_are_over(self.now)
        {
            return false;
        }
        if !std::mem::replace(&mut self.ending.closes_listeners, true) {
            self.cluster.primary.close_unused_listeners();
            return true;
        }
        self.ending.closes_listeners = false;
        // The events before the answer.
        self.events.publish_early();
        for done in self.ending.waiters.drain(..) {
            let _ = done.send(());
        }
        true
    }

    /// The program has dropped the cluster.
    pub(super) fn end_dropped(&mut self) {
        self.cluster.end_supervision();
        self.workers.cancel_starts(self.now);
        for worker in self.workers.ids().collect::<Vec<_>>() {
            let hears_signals_only = self.workers.hears_signals_only(worker);
            self.channel_closed(worker, false);
            if hears_signals_only {
                self.workers.kill(worker, 15);
            }
        }
        self.cluster.primary.close_unused_listeners();
        self.ending.kill_at = Some(self.now + DROPPED_EXIT_TIMEOUT);
    }

    /// Kills the workers of a dropped cluster that have not ended by themselves.
    pub(super) fn kill_late(&mut self) {
        if self.ending.kill_at.is_some_and(|due| due <= self.now) {
            for worker in self.workers.ids() {
                self.workers.signal(worker, 9);
            }
            self.ending.kill_at = Some(self.now + DROPPED_EXIT_TIMEOUT);
        }
    }

    /// Whether nothing is under way that the end of the cluster waits for.
    pub(super) fn is_settled(&self) -> bool {
        !self.workers.has_orphans()
            && self.operations.is_settled()
            && self.kept_answers.is_empty()
            && self.workers.starts_are_over(self.now)
    }

    pub(super) fn is_over(&self) -> bool {
        self.is_settled() && self.waits_for_leftovers()
    }

    /// Whether all workers have ended for good.
    pub(super) fn waits_for_leftovers(&self) -> bool {
        self.ending.outcome.is_some() || (self.ending.kill_at.is_some() && self.workers.is_empty())
    }

    /// Has clients refused that come when no worker is left, also where a process that a worker has
    /// left behind has a copy of a socket.
    pub(super) fn shut_listeners(&mut self) {
        self.listeners.shut_abandoned();
        for socket in self.workers.setup().activation() {
            socket.shut_down();
        }
    }

    /// Nothing more happens. The process may end right after this, so the last words of workers
    /// are passed on first.
    pub(super) fn finish(&mut self) {
        self.shut_listeners();
        self.events.close();
        self.workers.spawner_mut().finish_output(OUTPUT_FLUSH_TIMEOUT);
    }
}
