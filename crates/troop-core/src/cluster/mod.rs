//! All decisions of a primary as one state machine: workers, listeners and connections
//! ([`Primary`]), the number of workers ([`Supervisor`]), recycling, hung workers, health checks,
//! missed addresses, activated sockets and roll-back.
//!
//! Report each event by its method, then carry out the [`Action`]s in order until
//! [`Cluster::next_action`] returns `None`. Measurements (memory, queues, results of health checks)
//! come from the shell.

pub mod accepted;
mod action;
pub mod activation;
mod drain;
pub mod hang;
pub mod health;
pub mod killed;
pub mod missed;
mod rebuilt;
mod recovered;
pub mod recycle;
mod reload;
pub mod serving;

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use accepted::AcceptedConnections;
pub use action::{Action, Unshared};
use activation::{ActivationShares, Participant};
use hang::{HungWorkers, KILL};
use health::HealthChecks;
use killed::KilledWorkers;
use missed::MissedAddresses;
pub use rebuilt::FormerState;
use recycle::{Candidate, RecyclePolicy, Recycling};
use reload::Reload;
use serving::{ServingChecks, Waits};

use crate::event::{Address, ExitHow, Notice};
use crate::id::{Time, WorkerId};
use crate::primary::{self, Primary, Successors, WorkerStatus};
use crate::supervise::{EndSignals, Progress, Restart, RestartPolicy, Slot, Supervisor};

/// Options of a cluster besides those of its primary and supervisor.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Options {
    /// The weights of supervised workers, by slot.
    pub weights: Vec<u32>,
    /// Time over which a draining worker should close idle connections.
    pub drain_spread: Duration,
    /// The recycling policy.
    pub recycle: RecyclePolicy,
    /// Number of consecutive failed health checks after which a worker is replaced.
    pub health_failures: u32,
    /// Whether workers get the smaller a share of activated sockets, the more connections they have.
    pub shares_by_connections: bool,
}

/// The state of a cluster, described in the [module](self).
#[derive(Debug, Serialize, Deserialize)]
pub struct Cluster {
    /// Workers, listeners and connections.
    pub primary: Primary,
    supervisor: Option<Supervisor>,
    options: Options,
    recycling: Recycling,
    health: HealthChecks,
    hung: HungWorkers,
    killed: KilledWorkers,
    serving: ServingChecks,
    missed: MissedAddresses,
    shares: ActivationShares,
    accepted: AcceptedConnections,
    /// A worker that has ended quickly, until it is known whether another one has its address.
    ended_quickly: Option<WorkerId>,
    /// An address that was reported because a worker listens there by itself.
    not_shared: Option<String>,
    /// Number of activated sockets.
    activation_sockets: usize,
    /// Number of slots with their own activated sockets.
    activation_slots: usize,
    /// The signal on which workers write a report.
    report_signal: Option<i32>,
    /// Workers without Node's protocol, which understand signals only.
    without_ipc: Vec<WorkerId>,
    /// Those of them that a message of the program asks to finish, so that the stop signal comes last.
    asked_by_message: Vec<WorkerId>,
    /// Without a supervisor: what the program has announced about further forks.
    forks_to_come: Successors,
    /// Whether a worker is being started.
    is_starting: bool,
    reload: Reload,
    /// Description of the last unexpected end of a worker.
    last_end: Option<String>,
    /// Actions that precede those of the primary.
    pending: VecDeque<Action>,
}

impl Cluster {
    /// Creates a cluster without workers and without a supervisor.
    #[must_use]
    pub fn new(primary: Primary, options: Options) -> Cluster {
        Cluster {
            primary,
            supervisor: None,
            recycling: Recycling::new(options.recycle.clone()),
            health: HealthChecks::new(options.health_failures),
            options,
            hung: HungWorkers::default(),
            killed: KilledWorkers::default(),
            serving: ServingChecks::default(),
            missed: MissedAddresses::default(),
            shares: ActivationShares::default(),
            accepted: AcceptedConnections::default(),
            ended_quickly: None,
            not_shared: None,
            activation_sockets: 0,
            activation_slots: 0,
            report_signal: None,
            without_ipc: Vec::new(),
            asked_by_message: Vec::new(),
            forks_to_come: Successors::Unknown,
            is_starting: false,
            reload: Reload::default(),
            last_end: None,
            pending: VecDeque::new(),
        }
    }

    /// Sets the supervisor and starts the workers.
    pub fn supervise(&mut self, now: Time, mut supervisor: Supervisor) {
        supervisor.start(now);
        // An embedding program's worker that leaves of its own accord has no successor.
        self.primary.set_supervised(!supervisor.is_embedded());
        self.supervisor = Some(supervisor);
        self.recycling.start(now);
        if self.activation_slots > 0 {
            self.shares.start(now);
        }
        self.accepted.start(now, self.activation_sockets);
    }

    /// Removes the supervisor.
    pub fn end_supervision(&mut self) {
        self.supervisor = None;
    }

    /// Returns the supervisor.
    #[must_use]
    pub fn supervisor(&self) -> Option<&Supervisor> {
        self.supervisor.as_ref()
    }

    /// Returns the supervisor, mutably.
    pub fn supervisor_mut(&mut self) -> Option<&mut Supervisor> {
        self.supervisor.as_mut()
    }

    /// Sets the signal on which workers write a report, if there is one.
    pub fn set_report_signal(&mut self, signal: Option<i32>) {
        self.report_signal = signal;
    }

    /// Sets the number of slots with their own activated sockets.
    pub fn set_activation_slots(&mut self, slots: usize) {
        self.activation_slots = slots;
    }

    /// Sets the number of activated sockets.
    pub fn set_activation_sockets(&mut self, sockets: usize) {
        self.activation_sockets = sockets;
    }

    /// Whether workers get the smaller a share of activated sockets, the more connections they have.
    #[must_use]
    pub fn shares_by_connections(&self) -> bool {
        self.options.shares_by_connections
    }

    /// Has the shares of activated sockets installed again.
    pub fn forget_shares(&mut self) {
        self.shares.forget();
    }

    /// Sets what the program announces about further forks. Has no effect with a supervisor.
    pub fn set_forks_to_come(&mut self, forks: Successors) {
        self.forks_to_come = forks;
    }

    /// Sets whether workers are being started, which may ask for unused listeners. Has no effect
    /// with a supervisor.
    pub fn set_starting(&mut self, is_starting: bool) {
        self.is_starting = is_starting;
    }

    /// Returns a description of the last unexpected end of a worker, for people.
    #[must_use]
    pub fn last_end(&self) -> Option<&str> {
        self.last_end.as_deref()
    }

    /// Returns the addresses that clients could reach before and cannot any more.
    pub fn missed_addresses(&self) -> impl Iterator<Item = &Address> {
        self.missed.iter()
    }

    /// Another shell goes on with the state: what the former one had asked others, and had no answer
    /// to yet, is asked again.
    pub fn resumed(&mut self, now: Time) {
        self.serving.resumed();
        self.accepted.resumed(now);
    }

    // ---- actions ----

    /// Returns the next action.
    #[inline]
    pub fn next_action(&mut self, now: Time) -> Option<Action> {
        loop {
            if let Some(action) = self.pending.pop_front() {
                if let Action::Signal { worker, signal: KILL } = action {
                    self.killed.killed(now, worker);
                }
                return Some(action);
            }
            match self.primary.next_action() {
                Some(primary::Action::Notify(notice)) => {
                    self.noticed(now, &notice);
                    // Consequences of a notice follow it.
                    return Some(Action::Primary(primary::Action::Notify(notice)));
                }
                Some(primary::Action::Kill { worker, hung }) => {
                    let signal =
                        if hung { self.hung.hangs(now, worker, self.report_signal) } else { KILL };
                    self.pending.push_back(Action::Signal { worker, signal });
                    continue;
                }
                Some(primary::Action::Raises { worker }) => {
                    if let Some(supervisor) = &mut self.supervisor {
                        supervisor.signalled(worker);
                    }
                    continue;
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

    /// Returns which workers may still ask for unused listeners.
    fn successors(&self) -> Successors {
        match &self.supervisor {
            // The slot of one that was cut off becomes empty when its process has ended.
            Some(supervisor) if supervisor.expects_workers() || self.primary.has_cut_off() => {
                Successors::Awaited
            }
            Some(_) => Successors::Nobody,
            None if self.is_starting => Successors::Awaited,
            None => self.forks_to_come,
        }
    }

    fn noticed(&mut self, now: Time, notice: &Notice) {
        self.renew_claims();
        match notice {
            Notice::ListenerMissed { at, asked } => {
                self.missed.lost(asked.clone(), at.clone());
            }
            Notice::Listening { worker, .. } if !self.missed.is_empty() => {
                let found = self.missed.found(&self.primary.asked_by(*worker));
                let found = found.into_iter().map(|at| Action::Found { worker: *worker, at });
                self.pending.extend(found);
            }
            _ => {}
        }
        let Some(supervisor) = &mut self.supervisor else {
            if matches!(notice, Notice::Disconnected { .. } | Notice::Exited { .. }) {
                // The announcement was made before this end was known.
                self.forks_to_come = Successors::Unknown;
            }
            return;
        };
        match notice {
            Notice::Online { worker } => {
                supervisor.online(now, *worker, !self.without_ipc.contains(worker));
            }
            Notice::Listening { worker, .. } => {
                let asked = self.primary.asked_by(*worker);
                let is_private = asked.iter().all(|asked| asked.named_after.is_some());
                supervisor.listens_privately(*worker, is_private && !asked.is_empty());
                supervisor.listens_at(*worker, asked);
                supervisor.listening(now, *worker);
            }
            Notice::Disconnected { worker, voluntary } => {
                if *voluntary {
                    supervisor.release(now, *worker);
                }
                supervisor.disconnected(now, *worker);
            }
            Notice::Exited { worker, how, .. } => {
                supervisor.exited(now, *worker, *how);
                self.close_if_all_have_ended();
                self.search_for_clash(*worker);
            }
            _ => {}
        }
    }

    // ---- time ----

    /// Returns the time at which [`Cluster::tick`] must be called.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        [
            self.primary.next_deadline(),
            self.supervisor.as_ref().and_then(Supervisor::next_deadline),
            self.recycling.next_deadline(),
            self.hung.next_deadline(),
            self.killed.next_deadline(),
            self.serving.next_deadline(),
            self.shares.next_deadline(),
            self.accepted.next_deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Advances the time. Call at [`Cluster::next_deadline`] or more often.
    pub fn tick(&mut self, now: Time) {
        if self.primary.next_deadline().is_some_and(|due| due <= now) {
            self.primary.tick(now);
        }
        self.renew_claims();
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
        for worker in self.serving.due(now) {
            self.pending.push_back(Action::CheckServing { worker });
        }
        while let Some(worker) = self.killed.next_unkillable(now) {
            self.pending.push_back(Action::Abandon { worker });
        }
        if self.shares.is_due(now) {
            self.update_shares(now, None);
        }
        if let Some(needs_hindrances) = self.accepted.due(now) {
            self.pending.push_back(Action::InspectConnections { needs_hindrances });
        }
        let leaving = self.shares.due_to_leave(now);
        self.pending.extend(leaving.map(|worker| Action::MeasureQueues { worker }));
    }

    // ---- workers ----

    /// Handles a successful fork, after [`Primary::spawned`]. `expects_ipc` is whether its program
    /// is known to speak Node's protocol.
    pub fn forked(&mut self, now: Time, slot: Slot, worker: WorkerId, expects_ipc: bool) {
        if let Some(supervisor) = &mut self.supervisor {
            supervisor.forked(now, slot, worker);
            if expects_ipc {
                supervisor.expect_ipc(now, worker);
            }
            if supervisor.sees_activated_workers() {
                self.serving.started(now, worker);
            }
            self.accepted.forked();
        }
    }

    /// Sets the signals that end a supervised worker. Call after [`Cluster::forked`].
    pub fn ends_by(&mut self, worker: WorkerId, signals: EndSignals) {
        if let Some(supervisor) = &mut self.supervisor {
            supervisor.ends_by(worker, signals);
        }
    }

    /// Records that a worker's program does not speak Node's protocol. `asked_by_message` is whether
    /// it gets a message when it is to finish ([`Action::Announce`]), and time to act on that before
    /// its stop signal.
    pub fn has_no_ipc(&mut self, worker: WorkerId, asked_by_message: bool) {
        self.without_ipc.push(worker);
        if asked_by_message {
            self.asked_by_message.push(worker);
        }
    }

    /// Handles the end of a worker's process, after it was reaped.
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
        self.killed.exited(worker);
        self.serving.exited(worker);
        self.shares.exited(worker);
        self.without_ipc.retain(|other| *other != worker);
        self.asked_by_message.retain(|other| *other != worker);
    }

    /// Handles a `SIGKILL` that the program has sent to a worker.
    pub fn was_killed(&mut self, now: Time, worker: WorkerId) {
        self.killed.killed(now, worker);
    }

    /// Handles the end of a process that had been [abandoned](Action::Abandon).
    pub fn ended_at_last(&mut self) {
        self.killed.ended_at_last();
    }

    // ---- workers that an embedding program starts ----

    /// The program has started a worker, and [`Primary::spawned`] was called with the slot that
    /// [`Supervisor::free_slot`] says.
    pub fn adopted(&mut self, now: Time, worker: WorkerId) {
        if let Some(supervisor) = &mut self.supervisor {
            supervisor.adopt(now, worker);
        }
    }

    /// The program says which workers that end are followed by others: see
    /// [`Supervisor::restart_as`]. With `None` no worker is, and listeners close with the last one
    /// that has them.
    pub fn restart_as(&mut self, policy: Option<RestartPolicy>, scales_ends: bool) {
        let keeps = policy.is_some();
        let never = || RestartPolicy::new(0).restart(Restart::Never);
        if let Some(supervisor) = &mut self.supervisor {
            let kept = supervisor.restarts_workers();
            supervisor.restart_as(policy.unwrap_or_else(never), scales_ends);
            // What a reload keeps for new workers is not closed where nothing changes.
            if keeps || kept {
                self.primary.set_keep_listeners(keeps);
            }
        }
    }

    /// Handles the disconnection of all workers by the program: they get no successors.
    pub fn release_all(&mut self, now: Time) {
        if let Some(supervisor) = &mut self.supervisor {
            supervisor.release_all(now);
            self.primary.set_keep_listeners(false);
        }
    }

    /// Closes what no worker has and none is to come for, when the last one of an embedding program
    /// has ended.
    fn close_if_all_have_ended(&mut self) {
        let is_over =
            self.supervisor.as_ref().is_some_and(|s| s.is_embedded() && !s.expects_workers());
        if is_over && !self.primary.workers().any(|(_, status)| status.connected) {
            self.primary.close_unused_listeners();
        }
    }

    // ---- recycling and health ----

    /// Measures workers in service, if necessary, and recycles one that is due.
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

    /// Handles the result of [`Action::Measure`]: the resident memory of workers in bytes; `None`
    /// if unknown.
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
            let status = self.primary.status(worker)?;
            Some(Candidate {
                worker,
                slot: status.slot,
                age: now.since(supervisor.started_at(worker)?),
                taken: status.stats.taken,
                memory,
            })
        });
        let candidates: Vec<_> = candidates.collect();
        for (worker, reason) in self.recycling.measured(&candidates) {
            self.pending.push_back(Action::Report(Progress::RecyclePostponed { worker, reason }));
        }
        if let Some((worker, reason)) = self.recycling.first_due(now, &candidates)
            && self.recycle(now, worker, reason)
            && let Some(due) = candidates.iter().find(|candidate| candidate.worker == worker)
        {
            self.recycling.began(worker, due.slot);
        }
    }

    /// Recycles one worker, if no others are being replaced. Returns whether that has begun.
    pub fn recycle(&mut self, now: Time, worker: WorkerId, reason: String) -> bool {
        let claims = self.claims();
        let Some(supervisor) = &mut self.supervisor else { return false };
        supervisor.recycle_with(now, worker, reason, claims)
    }

    /// Handles the result of a health check; the error is the reason of the failure.
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

    /// Handles the result of [`Action::CheckServing`].
    pub fn serving_checked(&mut self, now: Time, worker: WorkerId, waits: Waits) {
        self.renew_claims();
        let Some(supervisor) = &mut self.supervisor else { return };
        let is_old_enough = supervisor.is_past_min_uptime(now, worker);
        if self.serving.checked(worker, waits, is_old_enough) {
            supervisor.listening(now, worker);
        } else if let Some(seen) = self.serving.not_serving(worker, waits) {
            supervisor.does_not_serve(worker, seen);
        }
    }

    /// Changes a worker's weight. Returns false if there is no such worker.
    pub fn set_weight(&mut self, now: Time, worker: WorkerId, weight: u32) -> bool {
        let is_known = self.primary.set_weight(now, worker, weight);
        if self.shares.is_active() {
            self.update_shares(now, None);
        }
        is_known
    }

    /// Updates the shares of activated sockets, if they have changed. `without` is a worker that is
    /// leaving.
    fn update_shares(&mut self, now: Time, without: Option<WorkerId>) {
        let Some(supervisor) = &self.supervisor else { return };
        let participants = self.primary.workers().filter_map(|(worker, status)| {
            let (ready, _) = supervisor.standing(now, worker)?;
            let takes_part = Some(worker) != without && supervisor.leaves_by(worker).is_none();
            let WorkerStatus { slot, mut weight, .. } = status;
            if self.options.shares_by_connections {
                weight = activation::by_connections(weight, status.stats.open);
            }
            takes_part.then_some(Participant { slot, weight, ready })
        });
        if let Some(shares) = self.shares.update(self.activation_slots, participants) {
            self.pending.push_back(Action::SetShares { shares: shares.to_vec() });
        }
    }

    /// Handles the result of [`Action::MeasureQueues`]: whether connections wait in a worker's
    /// activated sockets.
    pub fn queues_measured(&mut self, now: Time, worker: WorkerId, waits: bool) {
        if self.shares.measured(now, worker, waits) {
            self.terminate(worker);
        }
    }
}
