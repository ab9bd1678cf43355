//! Paths at which an old worker and its successor listen by themselves. Many servers remove their path
//! when they end, though it leads to the successor by then, which nobody can reach any more. It is
//! started once more when that has happened.

use serde::{Deserialize, Serialize};

use super::{INSPECTION_TIMEOUT, OwnAddress, Watched};
use crate::event::{Address, AddressType};
use crate::id::{Time, WorkerId};
use crate::supervise::round::{Active, Step};
use crate::supervise::{Order, Progress, RunState, SlotWorker, Supervisor};

/// An inspection that shows what has become of the paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Look {
    /// None is needed yet.
    No,
    /// The next one that begins.
    Wanted,
    UnderWay,
}

/// A slot whose new worker serves while the old one leaves.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::supervise) struct Parting {
    pub(in crate::supervise) slot: usize,
    old: WorkerId,
    /// Where both listen; empty as long as that was not seen.
    paths: Vec<OwnAddress>,
    has_ended: bool,
    look: Look,
    /// When an inspection that is needed is not awaited any more.
    deadline: Time,
}

impl Parting {
    /// Returns the time until which something is awaited that is no event.
    pub(in crate::supervise) fn deadline(&self) -> Option<Time> {
        (self.look != Look::No).then_some(self.deadline)
    }
}

fn paths(watched: &Watched) -> Vec<OwnAddress> {
    let is_path = |own: &&OwnAddress| own.at.address_type == AddressType::Unix;
    watched.now.iter().filter(is_path).cloned().collect()
}

impl Supervisor {
    /// A new worker has taken over: the round is not over before the old one has ended, if that may
    /// remove a path of the new one.
    pub(in crate::supervise) fn part(
        &mut self,
        now: Time,
        slot: usize,
        old: &SlotWorker,
        new: &SlotWorker,
    ) {
        let is_by_itself = new.listening.is_none() || new.listens_privately;
        let seen = |worker| self.own.workers.get(&worker).filter(|watched| !watched.is_hidden);
        let (of_old, of_new) = (seen(old.worker).map(paths), seen(new.worker).map(paths));
        let Some(round) = self
            .round
            .as_mut()
            .filter(|round| is_by_itself && self.config.sees_own && !round.policy.all_or_none)
        else {
            return;
        };
        let common = of_new.map(|new| {
            let has = |own: &OwnAddress| of_old.as_ref().is_none_or(|old| old.contains(own));
            new.into_iter().filter(has).collect::<Vec<_>>()
        });
        let look = match &common {
            Some(common) if common.is_empty() => return,
            Some(_) => Look::No,
            // Where workers say when they are ready, it was not looked yet.
            None => Look::Wanted,
        };
        round.partings.push(Parting {
            slot,
            old: old.worker,
            paths: common.unwrap_or_default(),
            has_ended: false,
            look,
            deadline: now + INSPECTION_TIMEOUT,
        });
    }

    /// Handles the end of an old worker.
    pub(in crate::supervise) fn parted(&mut self, now: Time, worker: WorkerId) {
        let partings = self.round.iter_mut().flat_map(|round| &mut round.partings);
        for parting in partings.filter(|parting| parting.old == worker) {
            (parting.has_ended, parting.look) = (true, Look::Wanted);
            parting.deadline = now + INSPECTION_TIMEOUT;
        }
    }

    /// Whether an inspection is due for this.
    pub(super) fn wants_look(&self) -> bool {
        let mut partings = self.round.iter().flat_map(|round| &round.partings);
        partings.any(|parting| parting.look == Look::Wanted)
    }

    /// An inspection begins.
    pub(super) fn begins_look(&mut self) {
        let partings = self.round.iter_mut().flat_map(|round| &mut round.partings);
        for parting in partings.filter(|parting| parting.look == Look::Wanted) {
            parting.look = Look::UnderWay;
        }
    }

    /// Handles what the inspection has shown.
    pub(super) fn looked(&mut self, now: Time) {
        let Some(round) = &mut self.round else { return };
        let mut removed = Vec::new();
        for mut parting in std::mem::take(&mut round.partings) {
            if parting.look != Look::UnderWay {
                round.partings.push(parting);
                continue;
            }
            let current = self.slots.get(parting.slot).and_then(|state| state.current);
            let watched = current.and_then(|member| self.own.workers.get(&member.worker));
            // What cannot be seen is taken for fine.
            let Some(watched) = watched.filter(|watched| !watched.is_hidden) else { continue };
            if watched.unfinished > 0 {
                parting.look = Look::Wanted;
                round.partings.push(parting);
            } else if parting.has_ended {
                let gone = parting.paths.iter().find(|path| !watched.now.contains(path));
                removed.extend(gone.cloned().map(|gone| (parting, gone.at)));
            } else {
                (parting.look, parting.paths) = (Look::No, paths(watched));
                round.partings.extend(Some(parting).filter(|parting| !parting.paths.is_empty()));
            }
        }
        for (parting, at) in removed {
            self.start_once_more(now, parting, at);
        }
    }

    /// Replaces a worker that clients do not reach. It leaves first: at its end it would remove the
    /// path of another one, too.
    fn start_once_more(&mut self, now: Time, parting: Parting, at: Address) {
        let Parting { slot, old, paths, .. } = parting;
        if self.phase != RunState::Running {
            return;
        }
        let deadline = now + self.round_policy().ready_timeout;
        let (Some(round), Some(state)) = (&mut self.round, self.slots.get_mut(slot)) else {
            return;
        };
        let Some(member) = state.current.take() else { return };
        state.note_end(&member, true);
        (state.listened, state.listens_nowhere) = (paths, false);
        let worker = member.worker;
        let step = Step::Emptying(worker);
        round.active.push(Active { slot, step, deadline, is_awaited: false });
        round.replaced = round.replaced.saturating_sub(1);
        round.started_again.push(at.clone());
        self.orders.push_back(Order::Report(Progress::PathRemoved { old, worker, at }));
        self.make_way(now, member);
    }

    /// Does not wait any more for inspections that take too long.
    pub(in crate::supervise) fn expire_partings(&mut self, now: Time) {
        if let Some(round) = &mut self.round {
            round.partings.retain(|parting| parting.deadline().is_none_or(|at| at > now));
        }
    }
}
