//! Carries out the supervisor's orders on the rest of the cluster; reloads and their roll-back.

use serde::{Deserialize, Serialize};

use super::{Action, Cluster, Unshared};
use crate::cluster::hang::KILL;
use crate::id::{ListenerId, Time};
use crate::primary::DEFAULT_WEIGHT;
use crate::supervise::{
    Afterwards, Cause, Claim, GiveUp, Order, Progress, Request, Supervisor, SupervisorState, Ticket,
};

/// The state before the current reload.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Reload {
    /// Whether it changes the settings of workers.
    changes_settings: bool,
    /// The open listeners before the reload.
    listeners: Vec<ListenerId>,
    /// Whether another reload follows this one.
    is_repeated: bool,
}

impl Cluster {
    /// A new worker that has closed a listener again does not take it over.
    pub(super) fn renew_claims(&mut self) {
        let Some(supervisor) = &mut self.supervisor else { return };
        for worker in supervisor.listening_anew() {
            supervisor.listens_at(worker, self.primary.asked_by(worker));
        }
    }

    /// Whether a reload may begin: no other one is under way, and the cluster is not stopping.
    #[must_use]
    pub fn may_reload(&self) -> bool {
        self.supervisor.as_ref().is_some_and(|supervisor| {
            !matches!(supervisor.state(), SupervisorState::Reloading | SupervisorState::Stopping)
        })
    }

    /// Begins a reload, if it [may begin](Cluster::may_reload), or reports why not. With
    /// `allow_moved`, new workers may listen on other addresses than the old ones.
    /// `changes_settings` is whether workers get new settings, which are rolled back if the reload
    /// fails. With a ticket, its end is answered by [`Action::Answer`].
    pub fn reload(
        &mut self,
        now: Time,
        allow_moved: bool,
        changes_settings: bool,
        ticket: Option<Ticket>,
    ) {
        let claims = if allow_moved { Vec::new() } else { self.claims() };
        if self.may_reload() {
            self.reload.changes_settings |= changes_settings;
            self.missed.reload_started(allow_moved);
        }
        let Some(supervisor) = &mut self.supervisor else { return };
        supervisor.allow_moved(allow_moved);
        match ticket {
            Some(ticket) => supervisor.request(now, ticket, Request::Reload(claims)),
            None => supervisor.reload_with(now, claims),
        }
    }

    /// Has another reload begin after the one that is under way; [`Action::Reload`] follows it. For
    /// requests whose sender gets no answer, such as signals. Returns false if none is under way.
    pub fn reload_afterwards(&mut self) -> bool {
        let is_reloading = |s: &Supervisor| s.state() == SupervisorState::Reloading;
        let is_under_way = self.supervisor.as_ref().is_some_and(is_reloading);
        self.reload.is_repeated |= is_under_way;
        is_under_way
    }

    /// Returns the addresses that new workers must take over.
    #[must_use]
    pub fn claims(&self) -> Vec<Claim> {
        let is_only = self.supervisor.as_ref().is_some_and(|supervisor| supervisor.wanted() == 1);
        self.primary.claims(is_only)
    }

    pub(super) fn carry_out(&mut self, now: Time, order: Order) {
        match order {
            Order::Fork(slot) => {
                let weight = self.options.weights.get(slot.0).copied().unwrap_or(DEFAULT_WEIGHT);
                self.pending.push_back(Action::Fork { slot, weight });
            }
            Order::Hold(worker) => self.primary.hold(now, worker, true),
            Order::Admit(worker) => self.primary.hold(now, worker, false),
            Order::Disconnect(worker) => self.drain(now, worker),
            Order::Terminate(worker) => {
                self.primary.asked_to_leave(worker);
                self.pending.push_back(Action::Terminate { worker });
            }
            Order::Insist(worker) => self.pending.push_back(Action::Insist { worker }),
            Order::Kill(worker) => {
                self.pending.push_back(Action::Signal { worker, signal: KILL });
            }
            Order::CheckListeners => self.pending.push_back(Action::CheckListeners),
            Order::InspectListeners { words_of } => {
                self.pending.push_back(Action::InspectListeners { words_of });
            }
            Order::NotShared { worker, holder, at } => {
                self.tell_not_shared(Unshared::Runs(worker), holder, at.to_string(), false);
            }
            Order::Answer(ticket, answer) => {
                self.pending.push_back(Action::Answer(ticket, answer));
            }
            Order::Report(progress) => self.progress(now, progress),
            Order::Finish(outcome) => {
                self.primary.close_unused_listeners();
                self.pending.push_back(Action::Finish(outcome));
            }
        }
    }

    fn progress(&mut self, now: Time, progress: Progress) {
        self.note_end(&progress);
        let mut rolls_back = false;
        let is_over = matches!(progress, Progress::ReloadFinished | Progress::ReloadFailed { .. });
        let is_repeated = is_over && std::mem::take(&mut self.reload.is_repeated);
        match &progress {
            Progress::GivingUp(_) | Progress::Stopping => {
                self.primary.hurry();
                self.primary.close_unused_listeners();
            }
            Progress::RecycleFailed { worker, .. } => self.recycling.failed(now, *worker),
            Progress::NotRestarting { worker, .. } => self.primary.excuse(*worker),
            Progress::ReloadStarted { .. } => {
                self.reload.listeners = self.primary.listeners_to_keep();
            }
            // In the second case all workers are new, but clients do not reach them.
            Progress::ReloadFinished
            | Progress::ReloadFailed { then: Afterwards::Replaced, .. } => {
                self.reload = Reload::default();
                self.primary.forget_shared();
                self.missed.reload_finished();
                self.pending.push_back(Action::KeepSettings);
            }
            Progress::ReloadFailed { .. } => {
                let before = std::mem::take(&mut self.reload.listeners);
                self.primary.close_unused_but(&before);
                rolls_back = std::mem::take(&mut self.reload.changes_settings);
            }
            _ => {}
        }
        if rolls_back {
            // Workers that are started from now on must have the settings of those that serve.
            self.pending.push_back(Action::RestoreSettings);
        }
        self.pending.push_back(Action::Report(progress));
        if rolls_back && let Some(supervisor) = &mut self.supervisor {
            supervisor.roll_back(now);
        }
        if is_repeated {
            self.pending.push_back(Action::Reload);
        }
    }

    /// Records a description of the last unexpected end of a worker.
    fn note_end(&mut self, progress: &Progress) {
        self.last_end = Some(match progress {
            Progress::Restarting { cause, .. }
            | Progress::GivingUp(GiveUp::NeverReady { cause, .. }) => match cause {
                Cause::Ended(worker, how) => format!("worker {worker}: {how}"),
                Cause::NotStarted(reason) => reason.clone(),
            },
            Progress::NotRestarting { worker, how } => format!("worker {worker}: {how}, for good"),
            _ => return,
        });
    }
}
