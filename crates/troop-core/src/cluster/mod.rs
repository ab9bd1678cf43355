//! All that a primary decides, as one machine: workers, listeners and connections ([`Primary`]), how
//! many workers there are ([`Supervisor`]), and what is decided about single workers besides:
//! recycling, hung workers, health checks, missed addresses, activated sockets, roll-back.
//!
//! Call the method that fits what happened, then carry out the [`Action`]s in order until
//! [`Cluster::next_action`] returns `None`. The shell measures (memory, queues, the outcome of a
//! health check) and reports it; nothing else is known here.

mod action;
pub mod activation;
mod drain;
pub mod hang;
pub mod health;
pub mod missed;
pub mod recycle;
mod reload;

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use action::Action;
use activation::{ActivationShares, Participant};
use hang::{HungWorkers, KILL};
use health::HealthChecks;
use missed::MissedAddresses;
use recycle::{Candidate, RecyclePolicy, Recycling};
use reload::Reload;

use crate::event::{Address, ExitHow, Notice};
use crate::id::{Time, WorkerId};
use crate::primary::{self, DEFAULT_WEIGHT, Primary, Successors};
use crate::supervise::{Slot, Supervisor};

/// `SIGTERM`.
const TERM: i32 = 15;

/// What the program has chosen for a cluster, besides what its primary and its supervisor know.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Options {
    /// The weights of supervised workers, by slot.
    pub weights: Vec<u32>,
    /// How long a worker that others replace should take to close connections that stay open.
    pub drain_spread: Duration,
    /// When workers are recycled.
    pub recycle: RecyclePolicy,
    /// Failed health checks in a row that have a worker replaced.
    pub health_failures: u32,
}

/// All that a primary decides. See the [module](self).
#[derive(Debug, Serialize, Deserialize)]
pub struct Cluster {
    /// Workers, listeners and connections.
    pub primary: Primary,
    supervisor: Option<Supervisor>,
    options: Options,
    recycling: Recycling,
    health: HealthChecks,
    hung: HungWorkers,
    missed: MissedAddresses,
    shares: ActivationShares,
    /// Slots that have sockets of their own by activation.
    activation_slots: usize,
    /// The signal that has a worker write a report.
    report_signal: Option<i32>,
    /// Workers whose programs do not speak the protocol, so that they hear signals only.
    without_ipc: Vec<WorkerId>,
    /// Without a supervisor: what the program has said about forks to come.
    forks_to_come: Successors,
    /// A worker is being started.
    is_starting: bool,
    reload: Reload,
    /// How the last unexpected end of a worker came about.
    last_end: Option<String>,
    /// What comes before the actions of the primary.
    pending: VecDeque<Action>,
}

impl Cluster {
    /// A cluster without workers, in which nobody decides how many there are.
    #[must_use]
    pub fn new(primary: Primary, options: Options) -> Cluster {
        Cluster {
            primary,
            supervisor: None,
            recycling: Recycling::new(options.recycle.clone()),
            health: HealthChecks::new(options.health_failures),
            options,
            hung: HungWorkers::default(),
            missed: MissedAddresses::default(),
            shares: ActivationShares::default(),
            activation_slots: 0,
            report_signal: None,
            without_ipc: Vec::new(),
            forks_to_come: Successors::Unknown,
            is_starting: false,
            reload: Reload::default(),
            last_end: None,
            pending: VecDeque::new(),
        }
    }

    /// Lets a supervisor decide about workers, and starts them.
    pub fn supervise(&mut self, now: Time, mut supervisor: Supervisor) {
        supervisor.start(now);
        self.primary.set_supervised(true);
        self.supervisor = Some(supervisor);
        self.recycling.start(now);
        if self.activation_slots > 0 {
            self.shares.start(now);
        }
    }

    /// Nobody decides how many workers there are from now on.
    pub fn end_supervision(&mut self) {
        self.supervisor = None;
    }

    /// Who decides how many workers there are.
    #[must_use]
    pub fn supervisor(&self) -> Option<&Supervisor> {
        self.supervisor.as_ref()
    }

    /// The same, to tell it something.
    pub fn supervisor_mut(&mut self) -> Option<&mut Supervisor> {
        self.supervisor.as_mut()
    }

    /// Sets the signal that has a worker write a report, if there is one.
    pub fn set_report_signal(&mut self, signal: Option<i32>) {
        self.report_signal = signal;
    }

    /// Sets how many slots have sockets of their own by activation.
    pub fn set_activation_slots(&mut self, slots: usize) {
        self.activation_slots = slots;
    }

    /// The kernel has to be told the shares of activated sockets again.
    pub fn forget_shares(&mut self) {
        self.shares.forget();
    }

    /// What the program says about forks to come. Without effect where workers are supervised.
    pub fn set_forks_to_come(&mut self, forks: Successors) {
        self.forks_to_come = forks;
    }

    /// Sets whether workers are being started, which may ask for the listeners of others. Without
    /// effect where workers are supervised.
    pub fn set_starting(&mut self, is_starting: bool) {
        self.is_starting = is_starting;
    }

    /// How the last unexpected end of a worker came about, for people.
    #[must_use]
    pub fn last_end(&self) -> Option<&str> {
        self.last_end.as_deref()
    }

    /// Addresses that clients could reach and cannot any more.
    pub fn missed_addresses(&self) -> impl Iterator<Item = &Address> {
        self.missed.iter()
    }

    // ---- what there is to do ----

    /// The next thing to do.
    #[inline]
    pub fn next_action(&mut self, now: Time) -> Option<Action> {
        loop {
            if let Some(action) = self.pending.pop_front() {
                return Some(action);
            }
            match self.primary.next_action() {
                Some(primary::Action::Notify(notice)) => {
                    self.noticed(now, &notice);
                    // What follows from a fact comes after it.
                    return Some(Action::Primary(primary::Action::Notify(notice)));
                }
                Some(primary::Action::Kill { worker, hung }) => {
                    let signal =
                        if hung { self.hung.hangs(now, worker, self.report_signal) } else { KILL };
                    return Some(Action::Signal { worker, signal });
                }
                Some(action) => return Some(Action::Primary(action)),
                None => {}
            }
            if let Some(order) = self.supervisor.as_mut().and_then(Supervisor::next_order) {
                self.carry_out(now, order);
            } else if !self.primary.has_unused()
                || !self.primary.close_abandoned(now, self.successors())
            {
                return None;
            }
        }
    }

    /// Who may ask for the listeners that no worker has.
    fn successors(&self) -> Successors {
        match &self.supervisor {
            Some(supervisor) if supervisor.expects_workers() => Successors::Awaited,
            Some(_) => Successors::Nobody,
            None if self.is_starting => Successors::Awaited,
            None => self.forks_to_come,
        }
    }

    fn noticed(&mut self, now: Time, notice: &Notice) {
        match notice {
            Notice::ListenerClosed { at, missed: Some(asked), .. } => {
                self.missed.lost(asked.clone(), at.clone());
            }
            Notice::Listening { worker, .. } if !self.missed.is_empty() => {
                let found = self.missed.found(&self.primary.addresses_of(*worker));
                let found = found.into_iter().map(|at| Action::Found { worker: *worker, at });
                self.pending.extend(found);
            }
            _ => {}
        }
        let Some(supervisor) = &mut self.supervisor else {
            if matches!(notice, Notice::Disconnected { .. } | Notice::Exited { .. }) {
                // What was said of forks was said before this end was known.
                self.forks_to_come = Successors::Unknown;
            }
            return;
        };
        match notice {
            Notice::Online { worker } => {
                supervisor.online(now, *worker, !self.without_ipc.contains(worker));
            }
            Notice::Listening { worker, .. } => {
                supervisor.listens_at(*worker, self.primary.addresses_of(*worker));
                supervisor.listening(now, *worker);
            }
            Notice::Disconnected { worker, .. } => supervisor.disconnected(now, *worker),
            Notice::Exited { worker, how, .. } => supervisor.exited(now, *worker, *how),
            _ => {}
        }
    }

    // ---- time ----

    /// When [`Cluster::tick`] wants to be called.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        [
            self.primary.next_deadline(),
            self.supervisor.as_ref().and_then(Supervisor::next_deadline),
            self.recycling.next_deadline(),
            self.hung.next_deadline(),
            self.shares.next_deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Time passes. Call at [`Cluster::next_deadline`], or more often.
    pub fn tick(&mut self, now: Time) {
        if self.primary.next_deadline().is_some_and(|due| due <= now) {
            self.primary.tick(now);
        }
        if let Some(supervisor) = &mut self.supervisor
            && supervisor.next_deadline().is_some_and(|due| due <= now)
        {
            supervisor.tick(now);
        }
        if self.recycling.is_due(now) {
            self.check_workers(now);
        }
        while let Some((worker, signal)) = self.hung.next_signal(now) {
            self.pending.push_back(Action::Signal { worker, signal });
        }
        if self.shares.is_due(now) {
            self.update_shares(now, None);
        }
        let leaving = self.shares.due_to_leave(now);
        self.pending.extend(leaving.map(|worker| Action::MeasureQueues { worker }));
    }

    // ---- workers ----

    /// A fork for a slot succeeded, and [`Primary::spawned`] was called. `expects_ipc` means that
    /// its program is known to speak the protocol.
    pub fn forked(&mut self, now: Time, slot: Slot, worker: WorkerId, expects_ipc: bool) {
        if let Some(supervisor) = &mut self.supervisor {
            supervisor.forked(now, slot, worker);
            if expects_ipc {
                supervisor.expect_ipc(now, worker);
            }
        }
    }

    /// A worker's program does not speak the protocol.
    pub fn has_no_ipc(&mut self, worker: WorkerId) {
        self.without_ipc.push(worker);
    }

    /// A worker's process has been reaped.
    pub fn exited(&mut self, now: Time, worker: WorkerId, how: ExitHow) {
        if let Some(supervisor) = &mut self.supervisor
            && self.primary.status(worker).is_some_and(|status| status.stats.taken > 0)
        {
            supervisor.served(worker);
        }
        self.primary.exited(now, worker, how);
        self.recycling.exited(worker);
        self.health.exited(worker);
        self.hung.exited(worker);
        self.shares.exited(worker);
        self.without_ipc.retain(|other| *other != worker);
    }

    // ---- recycling and health ----

    /// Has the workers measured that are in service, if that is needed, and replaces one that is
    /// due.
    fn check_workers(&mut self, now: Time) {
        let Some(supervisor) = &self.supervisor else { return };
        let is_ready = |worker: &WorkerId| {
            !self.recycling.is_postponed(now, *worker)
                && supervisor.standing(now, *worker).is_some_and(|(ready, _)| ready)
        };
        let workers: Vec<_> = self.primary.workers().map(|(id, _)| id).filter(is_ready).collect();
        if self.recycling.needs_memory() {
            self.pending.push_back(Action::Measure { workers });
        } else {
            self.recycle_due(now, workers.into_iter().map(|worker| (worker, None)));
        }
    }

    /// The resident memory of workers, in bytes, as far as it is known: the answer to
    /// [`Action::Measure`].
    pub fn measured(&mut self, now: Time, memory: &[(WorkerId, Option<u64>)]) {
        self.recycle_due(now, memory.iter().copied());
    }

    fn recycle_due(
        &mut self,
        now: Time,
        memory: impl IntoIterator<Item = (WorkerId, Option<u64>)>,
    ) {
        let Some(supervisor) = &self.supervisor else { return };
        let candidates = memory.into_iter().filter_map(|(worker, memory)| {
            Some(Candidate {
                worker,
                age: now.since(supervisor.started_at(worker)?),
                taken: self.primary.status(worker)?.stats.taken,
                memory,
            })
        });
        if let Some((worker, reason)) = self.recycling.first_due(now, candidates) {
            self.recycle(now, worker, reason);
        }
    }

    /// Replaces one worker by one like it, if no others are being replaced. Returns whether that
    /// has begun.
    pub fn recycle(&mut self, now: Time, worker: WorkerId, reason: String) -> bool {
        let claims = self.claims();
        let Some(supervisor) = &mut self.supervisor else { return false };
        supervisor.recycle_with(now, worker, reason, claims)
    }

    /// A worker has passed a health check, or failed it for this reason.
    pub fn health_checked(&mut self, now: Time, worker: WorkerId, result: Result<(), String>) {
        let Err(reason) = result else { return self.health.passed(worker) };
        if self.primary.status(worker).is_none() {
            return;
        }
        let replace = self.health.failed(worker) && !self.recycling.is_postponed(now, worker);
        self.pending.push_back(Action::Unhealthy { worker, reason: reason.clone() });
        if replace
            && self.recycle(now, worker, reason)
            && let Some(signal) = self.report_signal
        {
            self.pending.push_back(Action::Signal { worker, signal });
        }
    }

    // ---- activated sockets ----

    /// Has the kernel told who takes part now, if that has changed. `without` is about to leave.
    fn update_shares(&mut self, now: Time, without: Option<WorkerId>) {
        let Some(supervisor) = &self.supervisor else { return };
        let weights = &self.options.weights;
        let participants = self.primary.workers().filter_map(|(worker, status)| {
            let (ready, _) = supervisor.standing(now, worker)?;
            let takes_part = Some(worker) != without && supervisor.leaves_by(worker).is_none();
            let weight = weights.get(status.slot as usize).copied().unwrap_or(DEFAULT_WEIGHT);
            takes_part.then_some(Participant { slot: status.slot, weight, ready })
        });
        if let Some(shares) = self.shares.update(self.activation_slots, participants) {
            self.pending.push_back(Action::SetShares { shares: shares.to_vec() });
        }
    }

    /// Whether connections wait in the activated sockets of a worker: the answer to
    /// [`Action::MeasureQueues`].
    pub fn queues_measured(&mut self, now: Time, worker: WorkerId, waits: bool) {
        if self.shares.measured(now, worker, waits) {
            self.pending.push_back(Action::Signal { worker, signal: TERM });
        }
    }
}
