//! Replaces workers: all of them by a reload, single ones by recycling.

use std::collections::VecDeque;
use std::time::Duration;

use super::expect::{Claim, Claims, Lacking};
use super::round::{Active, Round, Step, Why};
use super::{
    Afterwards, Answer, Order, Progress, RecycleFailed, ReloadFailed, Reloaded, ReplaceFailure,
    ReplacePolicy, RunState, Slot, SlotWorker, Supervisor, Ticket, Unchecked,
};
use crate::id::{Time, WorkerId};

/// Delay before another attempt of a failed roll-back.
const ROLL_BACK_DELAY: Duration = Duration::from_secs(10);

impl Supervisor {
    /// Replaces all workers. An old worker is drained only after its successor is ready, within
    /// `max_surge` and `max_unavailable`. After a pause, starts them again.
    pub fn reload(&mut self, now: Time) {
        self.reload_with(now, Vec::new());
    }

    /// Reloads as [`Supervisor::reload`] does; an old worker with a claimed address is drained only
    /// after a new worker listens there too.
    pub fn reload_with(&mut self, now: Time, claims: Vec<Claim>) {
        self.begin_reload(now, claims, None);
    }

    pub(super) fn begin_reload(&mut self, now: Time, claims: Vec<Claim>, ticket: Option<Ticket>) {
        self.due.set(None);
        let may_move = std::mem::take(&mut self.own.may_move);
        let policy = self.reload.take().unwrap_or_else(|| self.config.replace.clone());
        let revives = self.phase == RunState::Idle;
        let refused = if !(self.phase == RunState::Running || revives) || self.stop_at.is_some() {
            Some(ReloadFailed::Stopping)
        } else if self.round.as_ref().is_some_and(|round| !round.is_recycling()) {
            Some(ReloadFailed::UnderWay)
        } else {
            None
        };
        if let Some(refused) = refused {
            self.orders.push_back(Order::Report(Progress::ReloadRefused));
            if let Some(ticket) = ticket {
                self.answer(ticket, Answer::Reload(Err(refused)));
            }
            return;
        }
        if let Some(recycling) = self.abandon(now) {
            self.orders.extend(recycling.answer(Answer::Recycle(Err(RecycleFailed::Reloading))));
        }
        if revives {
            self.wake();
        }
        self.generation += 1;
        self.rejected = None;
        // Slots whose workers had ended for good get new ones.
        self.slots.iter_mut().for_each(|state| state.done = None);
        let slots: Vec<_> =
            (0..self.slots.len()).filter(|slot| !self.slots[*slot].is_retired).collect();
        self.orders.push_back(Order::Report(Progress::ReloadStarted { workers: slots.len() }));
        let round_claims = Claims::new(claims);
        // Workers that have an address to themselves come last, when another new worker may have
        // taken it over.
        let has_own = |slot: &usize| {
            self.slots[*slot].current.is_some_and(|member| round_claims.has_own(member.worker))
        };
        let (late, early): (Vec<_>, Vec<_>) = slots.into_iter().partition(has_own);
        let todo = early.into_iter().chain(late).collect();
        self.begin_round(Why::Reload, todo, round_claims, ticket);
        if let Some(round) = &mut self.round {
            (round.policy, round.proven, round.revives) = (policy, false, revives);
            round.may_move = may_move;
        }
        self.advance(now);
        self.update_health(now);
    }

    fn begin_round(
        &mut self,
        why: Why,
        todo: VecDeque<usize>,
        claims: Claims,
        ticket: Option<Ticket>,
    ) {
        self.round = Some(Round {
            why,
            policy: self.config.replace.clone(),
            ticket,
            replaced: 0,
            started: 0,
            successor: None,
            todo,
            active: Vec::new(),
            proven: true,
            revives: false,
            claims,
            put_off: Vec::new(),
            may_move: false,
            partings: Vec::new(),
            started_again: Vec::new(),
        });
    }

    /// Replaces one worker, if it is in service and no others are being replaced. Returns whether
    /// that has begun.
    pub fn recycle(&mut self, now: Time, worker: WorkerId, reason: String) -> bool {
        self.recycle_with(now, worker, reason, Vec::new())
    }

    /// Recycles as [`Supervisor::recycle`] does; the worker is drained only after its successor
    /// listens on its claimed addresses.
    pub fn recycle_with(
        &mut self,
        now: Time,
        worker: WorkerId,
        reason: String,
        claims: Vec<Claim>,
    ) -> bool {
        self.begin_recycle(now, worker, reason, claims, None).is_ok()
    }

    pub(super) fn begin_recycle(
        &mut self,
        now: Time,
        worker: WorkerId,
        reason: String,
        claims: Vec<Claim>,
        ticket: Option<Ticket>,
    ) -> Result<(), RecycleFailed> {
        self.due.set(None);
        match self.phase {
            RunState::Running if self.stop_at.is_some() => return Err(RecycleFailed::Stopping),
            RunState::Running => {}
            RunState::Idle => return Err(RecycleFailed::Paused),
            RunState::Stopping(_) | RunState::Finished => return Err(RecycleFailed::Stopping),
        }
        if self.round.is_some() {
            return Err(RecycleFailed::UnderWay);
        }
        if self.leaving.iter().any(|l| l.worker == worker) {
            return Err(RecycleFailed::NotInService);
        }
        let is_it = |member: &SlotWorker| member.worker == worker;
        let Some(slot) =
            self.slots.iter().position(|state| state.current.as_ref().is_some_and(is_it))
        else {
            return Err(RecycleFailed::NotInService);
        };
        self.orders.push_back(Order::Report(Progress::Recycling { worker, reason }));
        self.begin_round(Why::Recycle(worker), [slot].into(), Claims::new(claims), ticket);
        self.advance(now);
        Ok(())
    }

    /// Replaces the remaining workers of a failed reload, after its settings were rolled back. If
    /// that fails, it is tried again later.
    pub fn roll_back(&mut self, now: Time) {
        if self.phase == RunState::Running && self.round.is_none() {
            self.rejected = Some((self.generation, Some(now)));
            self.roll_back_again(now);
        }
    }

    pub(super) fn roll_back_again(&mut self, now: Time) {
        self.due.set(None);
        let Some((rejected, Some(at))) = self.rejected else { return };
        if at > now {
            return;
        }
        if self.phase != RunState::Running || self.round.is_some() {
            self.rejected = Some((rejected, Some(now + ROLL_BACK_DELAY)));
            return;
        }
        self.rejected = Some((rejected, None));
        let is_new = |member: &SlotWorker| member.generation == rejected;
        let todo: VecDeque<_> = (0..self.slots.len())
            .filter(|slot| self.slots[*slot].current.as_ref().is_some_and(is_new))
            .collect();
        self.generation += 1;
        if todo.is_empty() {
            self.rejected = None;
        } else {
            self.orders.push_back(Order::Report(Progress::RollingBack { workers: todo.len() }));
            self.begin_round(Why::RollBack, todo, Claims::default(), None);
            self.advance(now);
        }
    }

    pub(super) fn advance(&mut self, now: Time) {
        self.expire_partings(now);
        // They wait for each other, so all of them start before one of them is checked.
        while self.round.as_ref().is_some_and(|round| round.policy.all_or_none)
            && self.begin_next(now)
        {}
        let mut at = 0;
        while let Some(active) = self.round.as_ref().and_then(|round| round.active.get(at)) {
            let Active { slot, step, deadline, .. } = *active;
            match self.check_slot(now, slot, step, deadline) {
                Found::Waits => at += 1,
                Found::Ready if self.waits_for_others(now, slot) => at += 1,
                found @ (Found::Ready | Found::Gone) => {
                    if matches!(found, Found::Ready) {
                        self.take_over(now, slot);
                    }
                    if let Some(round) = &mut self.round {
                        round.active.remove(at);
                        round.put_off.clear();
                    }
                }
                Found::PutOff => self.put_off(now, at),
                Found::Lacks(reason) => {
                    self.fail_round(now, reason);
                    self.fill(now);
                    return;
                }
                Found::Late => {
                    self.fail_round(now, self.late(slot, step));
                    self.fill(now);
                    return;
                }
            }
        }
        while self.begin_next(now) {}
        if let Some(round) = self.round.take_if(|round| round.is_over()) {
            self.finish_round(round);
        }
    }

    /// Ends a round whose workers have all been replaced or have ended.
    fn finish_round(&mut self, round: Round) {
        match round.why {
            Why::Reload => {
                let Round { ticket, replaced, started, started_again, .. } = round;
                let done = Reloaded { replaced, started, started_again, ..Reloaded::default() };
                self.unchecked = Some(Unchecked { ticket, done });
                self.orders.push_back(Order::CheckListeners);
            }
            Why::RollBack => self.rejected = None,
            Why::Recycle(_) => {
                let result = round.successor.ok_or(RecycleFailed::Ended);
                self.orders.extend(round.answer(Answer::Recycle(result)));
            }
        }
    }

    /// Handles the result of [`Order::CheckListeners`]: the addresses on which clients do not reach
    /// the new workers. Emits the result of the reload.
    pub fn listeners_checked(&mut self, unreachable: Vec<String>) {
        let Some(Unchecked { ticket, done }) = self.unchecked.take() else { return };
        let (progress, result) = if unreachable.is_empty() {
            (Progress::ReloadFinished, Ok(done))
        } else {
            let reason = ReplaceFailure::Unreachable { addresses: unreachable };
            let then = Afterwards::Replaced;
            let progress = Progress::ReloadFailed { reason: reason.to_string(), then };
            (progress, Err(ReloadFailed::Failed { reason, replaced: done.replaced, then }))
        };
        // Before orders that were emitted since.
        if let Some(ticket) = ticket {
            self.orders.push_front(Order::Answer(ticket, Answer::Reload(result)));
        }
        self.orders.push_front(Order::Report(progress));
    }

    fn check_slot(&mut self, now: Time, slot: usize, step: Step, deadline: Time) -> Found {
        let state = &self.slots[slot];
        let (old, new) = match step {
            Step::Emptying(_) => return Found::Waits,
            Step::Beside => match (state.current, state.successor) {
                (Some(old), Some(new)) => (Some(old), new),
                // An embedding program has not answered in time.
                (Some(_), None) if self.config.is_embedded && now >= deadline => {
                    return Found::Late;
                }
                // The fork is not complete yet.
                (Some(_), None) => return Found::Waits,
                (None, _) => return Found::Gone,
            },
            Step::Filling(_) => match state.current {
                Some(new) => (None, new),
                None => return Found::Waits,
            },
        };
        let policy = self.round_policy();
        let min_ready_time = policy.min_ready_time;
        let must_listen = old.is_some_and(|old| old.listening.is_some());
        let ready =
            new.ready_as(policy.ready_when, must_listen, &self.config).filter(|at| *at <= now);
        // A worker that has closed its channel will end, which decides.
        let ready = ready.filter(|_| !self.leaving.iter().any(|l| l.worker == new.worker));
        let Some(ready) = ready else {
            return if now >= deadline { Found::Late } else { Found::Waits };
        };
        let settled = now >= ready + min_ready_time;
        if !settled && !self.round.as_ref().is_some_and(|round| round.proven) {
            return Found::Waits;
        }
        if let Some(lacking) = self.lacking(step, old.as_ref(), &new) {
            let (claim, may_come) = (lacking.claim.clone(), lacking.may_come);
            if may_come && self.puts_off_at(slot, step, &new).is_some_and(|at| at <= now) {
                return Found::PutOff;
            }
            return self.awaits_listening(now, slot, new.worker, &claim, deadline);
        }
        Found::Ready
    }

    /// How this round replaces workers.
    pub(super) fn round_policy(&self) -> &ReplacePolicy {
        self.round.as_ref().map_or(&self.config.replace, |round| &round.policy)
    }

    /// Whether a new worker that could take over has to wait until all others can.
    fn waits_for_others(&mut self, now: Time, slot: usize) -> bool {
        let Some(round) = self.round.as_ref().filter(|round| round.policy.all_or_none) else {
            return false;
        };
        let others = round.active.iter().filter(|active| active.slot != slot);
        let others: Vec<_> = others.map(|one| (one.slot, one.step, one.deadline)).collect();
        let is_missing = |(slot, step, deadline)| {
            !matches!(self.check_slot(now, slot, step, deadline), Found::Ready | Found::Gone)
        };
        others.into_iter().any(is_missing)
    }

    /// The new worker of a slot serves from now on, and its predecessor leaves.
    fn take_over(&mut self, now: Time, slot: usize) {
        let Some(round) = &mut self.round else { return };
        round.proven = true;
        let Some(step) = round.active.iter().find(|active| active.slot == slot).map(|a| a.step)
        else {
            return;
        };
        let state = &mut self.slots[slot];
        let old = if step == Step::Beside { state.current } else { None };
        let new = if step == Step::Beside { state.successor } else { state.current };
        let Some(new) = new else { return };
        state.quick_ends = 0;
        if let Some(old) = old {
            state.current = state.successor.take();
            self.orders.push_back(Order::Admit(new.worker));
            self.orders
                .push_back(Order::Report(Progress::Replaced { old: old.worker, new: new.worker }));
            self.part(now, slot, &old, &new);
            self.make_way(now, old);
        } else if let Step::Filling(Some(old)) = step {
            self.orders.push_back(Order::Report(Progress::Replaced { old, new: new.worker }));
        }
        if let Some(round) = &mut self.round {
            let is_first = old.is_none() && step == Step::Filling(None);
            *(if is_first { &mut round.started } else { &mut round.replaced }) += 1;
            round.successor = Some(new.worker);
        }
    }

    /// Returns a claimed address on which a new worker must listen before its predecessor is
    /// drained, and on which none does.
    pub(super) fn lacking(
        &self,
        step: Step,
        old: Option<&SlotWorker>,
        new: &SlotWorker,
    ) -> Option<Lacking<'_>> {
        let round = self.round.as_ref()?;
        let holder = match step {
            Step::Filling(left) => left,
            _ => old.map(|old| old.worker),
        };
        // In a reload one worker suffices for a shared address, unless it would be ended if the
        // reload fails.
        let has_come = |(slot, state): (usize, &super::SlotState), worker| {
            let is_new = |member: SlotWorker| {
                member.worker == worker && member.generation == self.generation
            };
            let waits_too = round.policy.all_or_none && state.successor.is_some_and(is_new);
            state.current.is_some_and(is_new) && (round.policy.all_or_none || !round.is_at(slot))
                || waits_too
        };
        let is_new = |worker: WorkerId| {
            worker == new.worker
                || (round.is_reload()
                    && self.slots.iter().enumerate().any(|state| has_come(state, worker)))
        };
        let lacking = round.claims.lacking(holder, round.is_last(), is_new)?;
        // The old worker has left already, and the other slots must not wait for its address.
        (!(lacking.may_come && matches!(step, Step::Filling(_)))).then_some(lacking)
    }

    /// Returns the time at which a slot is put off, if other slots may take over the address that
    /// its new worker lacks: by then it had time to ask for all listeners.
    pub(super) fn puts_off_at(&self, slot: usize, step: Step, new: &SlotWorker) -> Option<Time> {
        let may = step == Step::Beside
            && self.round.as_ref().is_some_and(|round| round.may_put_off(slot));
        may.then(|| new.listening.or(new.online).unwrap_or(new.since) + self.config.listen_patience)
    }

    /// Puts a slot off until the others are done. Its new worker is ended, because of the limits on
    /// the number of workers.
    fn put_off(&mut self, now: Time, at: usize) {
        let Some(round) = &mut self.round else { return };
        let slot = round.active.remove(at).slot;
        round.todo.push_back(slot);
        round.put_off.push(slot);
        if let Some(successor) = self.slots[slot].successor.take() {
            self.orders.push_back(Order::Report(Progress::PutOff { worker: successor.worker }));
            self.leave(now, successor);
        }
    }

    fn awaits_listening(
        &mut self,
        now: Time,
        slot: usize,
        worker: WorkerId,
        claim: &Claim,
        deadline: Time,
    ) -> Found {
        let Some(round) = &mut self.round else { return Found::Waits };
        let at = &claim.at;
        if now >= deadline {
            let where_to = round.claims.listed(worker);
            let hint = if round.is_reload() { "; `--allow-moved` permits it" } else { "" };
            let reason = match claim.holders.as_slice() {
                _ if claim.is_shared => {
                    format!(
                        "the new worker does not listen on {at}, where the old ones do, but {where_to}{hint}"
                    )
                }
                [] => format!("no new worker listens on {at}, where one did before{hint}"),
                [holder, ..] => {
                    format!(
                        "no new worker listens on {at}, where worker {holder} did; the newest one listens {where_to}{hint}"
                    )
                }
            };
            let address = at.clone();
            return Found::Lacks(ReplaceFailure::NotListening { worker, address, reason });
        }
        let awaited = round.active.iter_mut().find(|active| active.slot == slot);
        if awaited.is_some_and(|active| !std::mem::replace(&mut active.is_awaited, true)) {
            self.orders.push_back(Order::Report(Progress::Awaiting { worker, at: at.clone() }));
        }
        Found::Waits
    }

    /// Begins the next slot, if the limits allow it.
    fn begin_next(&mut self, now: Time) -> bool {
        let Some(round) = &mut self.round else { return false };
        let policy = &round.policy;
        if !round.proven && !round.active.is_empty() && !policy.all_or_none {
            return false;
        }
        let Some(slot) = round.todo.front().copied() else { return false };
        let beside = round.active.iter().filter(|active| active.step == Step::Beside).count();
        let without = round.active.len() - beside;
        // An embedding program is told how many processes there are at most, and old ones may take
        // long to end.
        let leaving = if self.config.is_embedded { self.leaving.len() } else { 0 };
        let most = policy.max_surge.max(usize::from(policy.max_unavailable == 0));
        let can_go_beside = policy.all_or_none || beside + leaving < most;
        let state = &mut self.slots[slot];
        let makes_way = policy.make_way_unless_listening
            && !policy.all_or_none
            && state.current.is_some_and(|old| old.listening.is_none() || old.listens_privately);
        let max_unavailable = policy.max_unavailable.max(usize::from(makes_way));
        let deadline = now + policy.ready_timeout;
        match state.current {
            // It is of the new generation already (its slot was empty and its back-off over), and
            // must become ready like the others.
            Some(member) if round.is_reload() && member.generation == self.generation => {
                round.begin(slot, Step::Filling(None), deadline);
            }
            Some(_) if can_go_beside && !makes_way => {
                round.begin(slot, Step::Beside, deadline);
                self.orders.push_back(Order::Fork(Slot(slot)));
            }
            Some(old) if without < max_unavailable => {
                round.begin(slot, Step::Emptying(old.worker), deadline);
                state.current = None;
                state.note_end(&old, true);
                if makes_way {
                    let worker = old.worker;
                    self.orders.push_back(Order::Report(Progress::MakingWay { worker }));
                }
                self.make_way(now, old);
            }
            Some(_) => return false,
            // Also a slot that waits for its restart: the new version may succeed.
            None if round.is_reload() => {
                (state.retry_at, state.hurry_at) = (None, None);
                round.begin(slot, Step::Filling(None), deadline);
                // Its back-off may have ended in the same step.
                if !self.orders.contains(&Order::Fork(Slot(slot))) {
                    self.orders.push_back(Order::Fork(Slot(slot)));
                }
            }
            // An empty slot gets a new worker anyway.
            None => {
                round.todo.pop_front();
            }
        }
        true
    }

    /// Whether a worker must leave before its successor can start.
    #[must_use]
    pub fn is_in_the_way(&self, worker: WorkerId) -> bool {
        self.round.as_ref().is_some_and(|round| {
            round.active.iter().any(|active| active.step == Step::Emptying(worker))
        })
    }

    /// Handles the end of a worker that had to leave before its successor starts.
    pub(super) fn emptied(&mut self, now: Time, worker: WorkerId) {
        let deadline = now + self.round_policy().ready_timeout;
        let Some(round) = &mut self.round else { return };
        if let Some(active) =
            round.active.iter_mut().find(|active| active.step == Step::Emptying(worker))
        {
            (active.step, active.deadline) = (Step::Filling(Some(worker)), deadline);
            self.orders.push_back(Order::Fork(Slot(active.slot)));
        }
    }

    /// Abandons the round: new workers that are not ready are ended.
    fn abandon(&mut self, now: Time) -> Option<Round> {
        let mut round = self.round.take()?;
        for Active { slot, step, .. } in std::mem::take(&mut round.active) {
            let state = &mut self.slots[slot];
            let unready =
                if step == Step::Beside { state.successor.take() } else { state.current.take() };
            if step != Step::Beside {
                self.retry(now, slot);
            }
            self.orders.retain(|order| *order != Order::Fork(Slot(slot)));
            if let Some(unready) = unready {
                self.leave_unready(now, unready);
            }
        }
        Some(round)
    }

    pub(super) fn fail_round(&mut self, now: Time, reason: ReplaceFailure) {
        let Some(round) = self.abandon(now) else { return };
        let revives = round.revives;
        if round.why == Why::RollBack {
            self.rejected =
                self.rejected.map(|(generation, _)| (generation, Some(now + ROLL_BACK_DELAY)));
        }
        // Reported before further workers are started, so that the shell can restore the previous
        // settings.
        let then = match (self.is_down(now), revives) {
            (false, _) => Afterwards::KeepsRunning,
            (true, false) => Afterwards::Retries,
            (true, true) => Afterwards::Paused,
        };
        self.orders.extend(round.failure(reason, then));
        if then == Afterwards::Paused {
            self.rest(now);
        } else if revives {
            // Ready workers keep serving, and no old worker is drained any more.
            for slot in 0..self.slots.len() {
                let state = &self.slots[slot];
                if state.current.is_none() && state.retry_at.is_none() && state.done.is_none() {
                    self.retry(now, slot);
                }
            }
        }
    }
}

/// The progress of a slot.
enum Found {
    Waits,
    /// The new worker can take over.
    Ready,
    /// The old worker has ended, so the slot is filled anyway.
    Gone,
    Late,
    /// The new worker does not listen on an address that only its predecessor has; another one may
    /// take it over.
    PutOff,
    /// The new worker does not listen on an address that it must take over.
    Lacks(ReplaceFailure),
}
