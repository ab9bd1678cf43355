//! A worker that is to finish, and the signals that end it if it does not.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Config, Order, Progress};
use crate::id::{Time, WorkerId};

/// Time between a worker's disconnect and the stop signal, if its process does not end.
pub(super) const EXIT_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum time between the last signal that a program can handle and `SIGKILL`.
const LAST_SIGNAL: Duration = Duration::from_secs(2);

/// A worker that is to finish.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Leaving {
    pub(super) worker: WorkerId,
    /// The end of its grace period.
    pub(super) kill_at: Time,
    /// The time of the stop signal, if its process has not ended by then.
    stop_at: Option<Time>,
    /// The time of the last signal before `SIGKILL`: the stop signal if it had none, otherwise the
    /// kill signal.
    last_signal_at: Option<Time>,
    is_signalled: bool,
    killed: bool,
    /// Whether it has no successor.
    pub(super) is_surplus: bool,
}

impl Leaving {
    pub(super) fn new(now: Time, worker: WorkerId, config: &Config) -> Leaving {
        let kill_at = now + config.grace;
        let last = config.grace.saturating_sub(LAST_SIGNAL.min(config.grace / 4));
        Leaving {
            worker,
            kill_at,
            stop_at: None,
            // An embedding program signals its workers itself.
            last_signal_at: (!config.is_embedded).then_some(now + last),
            is_signalled: false,
            killed: false,
            is_surplus: false,
        }
    }

    /// It has closed its channel, so its process should end soon. An embedding program's worker
    /// ends when it has nothing to do any more.
    pub(super) fn disconnected(&mut self, now: Time) {
        if self.last_signal_at.is_some() {
            self.expect_end(now);
        }
    }

    /// It has hardly anything to finish: it gets the stop signal soon.
    pub(super) fn expect_end(&mut self, now: Time) {
        let left = self.kill_at.since(now);
        self.stop_at = self.stop_at.or(Some(now + EXIT_TIMEOUT.min(left / 2)));
    }

    /// It was sent the stop signal.
    pub(super) fn signalled(&mut self) {
        self.is_signalled = true;
    }

    pub(super) fn is_killed(&self) -> bool {
        self.killed
    }

    /// Whether it has had so much of its grace period that it may be killed for newer ones.
    pub(super) fn has_had_time(&self, now: Time, grace: Duration) -> bool {
        !self.killed && now + grace >= self.kill_at + EXIT_TIMEOUT
    }

    pub(super) fn next_deadline(&self) -> Option<Time> {
        let kill = (!self.killed).then_some(self.kill_at);
        let signals = self.stop_at.into_iter().chain(self.last_signal_at);
        signals.filter(|_| !self.killed).chain(kill).min()
    }

    pub(super) fn tick(&mut self, now: Time, orders: &mut VecDeque<Order>) {
        if self.killed {
            return;
        }
        if self.kill_at <= now {
            orders.push_back(Order::Report(Progress::GraceOver(self.worker)));
            self.kill(orders);
            return;
        }
        if self.stop_at.is_some_and(|at| at <= now) {
            self.stop_at = None;
            self.is_signalled = true;
            orders.push_back(Order::Terminate(self.worker));
        }
        if self.last_signal_at.is_some_and(|at| at <= now) {
            self.last_signal_at = None;
            orders.push_back(match std::mem::replace(&mut self.is_signalled, true) {
                false => Order::Terminate(self.worker),
                true => Order::Insist(self.worker),
            });
        }
    }

    /// Kills it, if it was not killed before.
    pub(super) fn kill(&mut self, orders: &mut VecDeque<Order>) {
        if !std::mem::replace(&mut self.killed, true) {
            orders.push_back(Order::Kill(self.worker));
        }
    }
}
