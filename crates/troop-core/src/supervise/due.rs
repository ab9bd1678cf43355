//! When a round must be checked without an event.

use super::expect::Lacking;
use super::own::Parting;
use super::round::{Active, Round, Step};
use super::{Supervisor, Time};

/// When a slot must be checked.
struct Due {
    at: Time,
    /// Its new worker can take over then; otherwise it has failed if nothing happens before.
    is_ready: bool,
}

impl Supervisor {
    pub(super) fn round_deadlines(&self) -> impl Iterator<Item = Time> {
        let round = self.round.as_ref();
        let dues = |round: &Round| {
            let dues = round.active.iter().filter_map(|active| self.due_of(round, active));
            let (ready, late): (Vec<_>, Vec<_>) = dues.partition(|due| due.is_ready);
            let are_all_ready = ready.len() == round.active.len();
            let at = |dues: Vec<Due>| dues.into_iter().map(|due| due.at);
            // Those that wait for each other are all ready when the last one is.
            match round.policy.all_or_none {
                false => at(ready).chain(at(late)).min(),
                true if are_all_ready => at(ready).max(),
                true => at(late).min(),
            }
        };
        let partings = round.into_iter().flat_map(|round| &round.partings);
        round.and_then(dues).into_iter().chain(partings.filter_map(Parting::deadline))
    }

    /// When there is something to see at a slot, if nothing happens before.
    fn due_of(&self, round: &Round, active: &Active) -> Option<Due> {
        let late = Due { at: active.deadline, is_ready: false };
        let state = &self.slots[active.slot];
        let (old, new) = match active.step {
            Step::Beside => (state.current, state.successor),
            Step::Emptying(_) => return None,
            Step::Filling(_) => (None, state.current),
        };
        let Some(new) = new else {
            // The end of a fork is an event. Only an embedding program has to answer in time.
            let must_answer = self.config.is_embedded && active.step == Step::Beside;
            return must_answer.then_some(late);
        };
        if self.leaving.iter().any(|leaving| leaving.worker == new.worker) {
            return Some(late);
        }
        let must_listen = old.is_some_and(|old| old.listening.is_some());
        let ready = match new.ready_as(round.policy.ready_when, must_listen, &self.config) {
            Some(ready) if round.proven => ready,
            Some(ready) => ready + round.policy.min_ready_time,
            None => return Some(late),
        };
        let lacking = self.lacking(active.step, old.as_ref(), &new).filter(|_| active.is_awaited);
        Some(match lacking {
            Some(Lacking { may_come: true, .. }) => {
                let at = ready.max(
                    self.puts_off_at(active.slot, active.step, &new)
                        .map_or(active.deadline, |at| at.min(active.deadline)),
                );
                Due { at, is_ready: false }
            }
            Some(_) => Due { at: ready.max(active.deadline), is_ready: false },
            None => Due { at: ready, is_ready: true },
        })
    }
}
