//! A worker that is to finish, and the signals that end it if it does not.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Config, Order, Progress, SlotWorker};
use crate::event::ExitHow;
use crate::id::{Time, WorkerId};

/// Time between a worker's disconnect and the stop signal, if its process does not end.
pub(super) const EXIT_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum time between the last signal that a program can handle and `SIGKILL`; a quarter of the
/// grace period, if that is less.
const LAST_SIGNAL: Duration = Duration::from_secs(2);
/// Minimum of that time; half of the grace period, if that is less.
const MIN_LAST_SIGNAL: Duration = Duration::from_secs(1);

/// The signals that ask a worker to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndSignals {
    /// The stop signal.
    pub stop: i32,
    /// The kill signal: the last one before `SIGKILL`, if there is one.
    pub kill: Option<i32>,
}

impl Default for EndSignals {
    /// `SIGTERM` only.
    fn default() -> EndSignals {
        EndSignals { stop: 15, kill: None }
    }
}

/// The last signal that a draining worker was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Signalled {
    No,
    /// The stop signal, before its grace period ended.
    Stop,
    /// A signal because its grace period was ending.
    Late(Option<i32>),
}

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
    signalled: Signalled,
    ends_by: EndSignals,
    killed: bool,
    /// Whether it has no successor.
    pub(super) is_surplus: bool,
}

impl Leaving {
    pub(super) fn new(now: Time, member: &SlotWorker, config: &Config) -> Leaving {
        let grace = config.grace;
        let kill_at = now + grace;
        let before_kill = LAST_SIGNAL.min(grace / 4).max(MIN_LAST_SIGNAL.min(grace / 2));
        let last = grace.saturating_sub(before_kill);
        Leaving {
            worker: member.worker,
            kill_at,
            stop_at: None,
            // An embedding program signals its workers itself.
            last_signal_at: (!config.is_embedded).then_some(now + last),
            signalled: Signalled::No,
            ends_by: member.ends_by,
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
        let left = self.last_signal_at.unwrap_or(self.kill_at).since(now);
        self.stop_at = self.stop_at.or(Some(now + EXIT_TIMEOUT.min(left / 2)));
    }

    /// It was sent the stop signal.
    pub(super) fn signalled(&mut self) {
        if self.signalled == Signalled::No {
            self.signalled = Signalled::Stop;
        }
    }

    pub(super) fn set_signals(&mut self, signals: EndSignals) {
        self.ends_by = signals;
    }

    /// Its stop signal, and the time until it should have that.
    pub(super) fn stop_signal(&self, now: Time) -> Option<(i32, Duration)> {
        let last = self.last_signal_at?;
        Some((self.ends_by.stop, EXIT_TIMEOUT.min(last.since(now) / 2)))
    }

    /// Whether it was ended by the signal that it was sent because its grace period was ending.
    pub(super) fn was_ended_late(&self, how: ExitHow) -> bool {
        match (self.signalled, how) {
            (Signalled::Late(Some(sent)), ExitHow::Signal(signal)) => {
                sent == signal && !self.killed
            }
            _ => false,
        }
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
            // A second one would end a program that handles it once.
            if self.signalled == Signalled::No {
                self.signalled = Signalled::Stop;
                orders.push_back(Order::Terminate(self.worker));
            }
        }
        if self.last_signal_at.is_some_and(|at| at <= now) {
            self.last_signal_at = None;
            let (signal, order) = match self.signalled {
                Signalled::No => (Some(self.ends_by.stop), Order::Terminate(self.worker)),
                _ => (self.ends_by.kill, Order::Insist(self.worker)),
            };
            self.signalled = Signalled::Late(signal);
            orders.push_back(order);
        }
    }

    /// Kills it, if it was not killed before.
    pub(super) fn kill(&mut self, orders: &mut VecDeque<Order>) {
        if !std::mem::replace(&mut self.killed, true) {
            orders.push_back(Order::Kill(self.worker));
        }
    }
}
