//! Addresses on which workers listen by themselves, past the primary, as a program with
//! `exclusive: true` does, or one that a worker has started.
//!
//! Nothing tells when such a worker serves: it is ready by its age. So that one that has found its port
//! taken, and goes on without it, replaces no worker that serves, the shell inspects where workers listen.

mod address;
mod parting;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use address::{MAX_OWN_ADDRESSES, OwnAddress, OwnInspection, Seen, WorkerSeen};
use address::{lacking, most_telling, names};
pub(super) use parting::Parting;

use super::round::{Step, Why};
use super::{
    Order, Progress, ReadyWhen, ReplaceFailure, RunState, SlotState, SlotWorker, Supervisor,
};
use crate::id::{Time, WorkerId};
use crate::text::tells_of_used_address;
use crate::worker_map::WorkerMap;

/// Time after the age at which a worker is ready without an inspection, and where only others of its
/// generation listen.
const INSPECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// The latter time where it is known what the worker says, which was nothing of an address in use.
/// Longer than servers take to listen one after another.
const SILENT_TIMEOUT: Duration = Duration::from_secs(3);
/// Interval between inspections of a worker that does not listen where it must.
const INTERVAL: Duration = Duration::from_millis(250);
/// The same after [`INSPECTION_TIMEOUT`].
const LATE_INTERVAL: Duration = Duration::from_secs(2);
/// Inspections take one part of this many of the time at most.
const PAUSE_FACTOR: u32 = 20;
/// Time after its start in which an address counts as one that the worker always has. Others come and
/// go with its work: debuggers, browsers that it drives.
const SETTLING: Duration = Duration::from_secs(60);
/// Time after which it is reported that a worker is waited for.
const TELL_AFTER: Duration = Duration::from_secs(5);
/// Number of inspections in a row that do not show a worker, after which it counts as hidden.
const MAX_UNFINISHED: u32 = 8;

/// What the inspections say about whether a worker that is old enough is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Standing {
    /// It was not inspected, or others of its generation listen: it is ready some time later.
    Pending,
    /// It does not listen where it must.
    Lacking,
    /// It is ready since then.
    Fine(Time),
}

impl Standing {
    /// Returns when a worker is ready that is old enough at this time.
    pub(super) fn ready_at(self, aged: Time) -> Option<Time> {
        match self {
            Standing::Pending => Some(aged + INSPECTION_TIMEOUT),
            Standing::Lacking => None,
            Standing::Fine(at) => Some(at.max(aged)),
        }
    }
}

/// An address on which a worker does not listen although it must.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Lack {
    address: OwnAddress,
    /// The worker that listens there, or the one that has left.
    holder: Option<WorkerId>,
    rule: Rule,
    since: Time,
    is_told: bool,
    /// It has said that an address is in use.
    is_in_use: bool,
}

/// Where a new worker must listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Rule {
    /// Everywhere where its predecessor does.
    AsBefore,
    /// Somewhere, as its predecessor did.
    SomewhereAsBefore,
    /// Somewhere, as others of its generation do.
    SomewhereAsOthers,
}

/// What is known about a worker.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Watched {
    now: Vec<OwnAddress>,
    /// Where it was seen to listen while it settled.
    settled: Vec<OwnAddress>,
    is_hidden: bool,
    inspections: u32,
    unfinished: u32,
    next: Time,
    lacks: Option<Lack>,
}

impl Watched {
    /// Returns where it always listens, and still does.
    fn usual(&self) -> Vec<OwnAddress> {
        self.settled.iter().filter(|own| self.now.contains(own)).cloned().collect()
    }
}

/// What the inspections have found.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct OwnAddresses {
    workers: WorkerMap<Watched>,
    is_inspecting: bool,
    /// No inspection begins before this.
    rest_until: Time,
    /// The next reload may move addresses.
    pub(super) may_move: bool,
}

/// Which of a slot's workers is meant.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    Current,
    Successor,
}

impl Which {
    fn of(self, state: &SlotState) -> Option<SlotWorker> {
        match self {
            Which::Current => state.current,
            Which::Successor => state.successor,
        }
    }
}

impl Supervisor {
    /// Sets whether the workers of the next reload may listen elsewhere than the old ones.
    pub fn allow_moved(&mut self, may_move: bool) {
        self.own.may_move = may_move;
    }

    /// Sets whether a worker listens only on paths that it has named after itself, at which it serves
    /// no clients, as programs do that start the server. Call before [`Supervisor::listening`].
    pub fn listens_privately(&mut self, worker: WorkerId, is_private: bool) {
        let mut members =
            self.slots.iter_mut().flat_map(|s| s.current.iter_mut().chain(&mut s.successor));
        if let Some(member) = members.find(|member| member.worker == worker) {
            member.listens_privately = is_private;
        }
    }

    /// Returns where workers listen by themselves, as far as it was seen.
    pub fn own_addresses(&self) -> impl Iterator<Item = &OwnAddress> {
        self.all_members()
            .filter_map(|(.., member)| self.own.workers.get(&member.worker))
            .flat_map(|watched| &watched.now)
    }

    // ---- when to inspect ----

    fn all_members(&self) -> impl Iterator<Item = (usize, Which, SlotWorker)> {
        self.slots.iter().enumerate().flat_map(|(slot, state)| {
            [Which::Current, Which::Successor]
                .into_iter()
                .filter_map(move |which| Some((slot, which, which.of(state)?)))
        })
    }

    /// Returns the time from which it counts where a worker listens by itself: it is old enough to be
    /// ready, if it can become so by its age, or it listens on paths of its own.
    fn aged_at(&self, slot: usize, which: Which, member: &SlotWorker) -> Option<Time> {
        let round = self.round.as_ref().filter(|round| round.is_at(slot));
        let ready_when =
            round.map_or(self.config.replace.ready_when, |round| round.policy.ready_when);
        let must_listen = which == Which::Successor
            && self.slots[slot].current.is_some_and(|old| old.listening.is_some());
        if ready_when != ReadyWhen::Auto
            || member.gone.is_some()
            || self.leaving.iter().any(|leaving| leaving.worker == member.worker)
        {
            return None;
        }
        match member.listening {
            Some(listening) => member.listens_privately.then_some(listening),
            None => member.aged_at(&self.config).filter(|_| !must_listen),
        }
    }

    fn inspection_due(&self, slot: usize, which: Which, member: &SlotWorker) -> Option<Time> {
        let aged = self.aged_at(slot, which, member)?;
        let next = self.own.workers.get(&member.worker).map(|watched| watched.next);
        match member.standing {
            Standing::Fine(_) => next.filter(|at| *at < member.since + SETTLING),
            _ => Some(next.map_or(aged, |next| next.max(aged))),
        }
    }

    /// Returns when the next inspection is due.
    pub(super) fn inspection_deadline(&self) -> Option<Time> {
        let may =
            self.config.sees_own && !self.own.is_inspecting && self.phase == RunState::Running;
        let dues = self
            .all_members()
            .filter(|_| may)
            .filter_map(|(slot, which, member)| self.inspection_due(slot, which, &member));
        let look = (may && self.wants_look()).then_some(self.own.rest_until);
        dues.chain(look).min().map(|at| at.max(self.own.rest_until))
    }

    /// Has the shell inspect where workers listen, if that is due.
    pub(super) fn inspect_if_due(&mut self, now: Time) {
        if self.inspection_deadline().is_none_or(|at| at > now) {
            return;
        }
        self.own.is_inspecting = true;
        self.begins_look();
        let listens =
            |worker| self.own.workers.get(&worker).is_some_and(|watched| !watched.now.is_empty());
        let words_of = self
            .all_members()
            .filter(|(slot, which, member)| self.inspection_due(*slot, *which, member).is_some())
            .map(|(_, _, member)| (member.worker, member.standing))
            .filter(|(worker, standing)| *standing == Standing::Lacking || !listens(*worker))
            .map(|(worker, _)| worker);
        let words_of = words_of.collect();
        self.orders.push_back(Order::InspectListeners { words_of });
    }

    // ---- what follows ----

    /// Handles the result of [`Order::InspectListeners`].
    pub fn listeners_inspected(&mut self, now: Time, inspection: &OwnInspection) {
        self.due.set(None);
        self.own.is_inspecting = false;
        self.own.rest_until = now + INTERVAL.max(inspection.took * PAUSE_FACTOR);
        let members: Vec<_> = self.all_members().collect();
        let gone: Vec<_> = self.own.workers.keys().copied().collect();
        for worker in gone {
            if !members.iter().any(|(_, _, member)| member.worker == worker) {
                self.own.workers.remove(&worker);
            }
        }
        for seen in &inspection.workers {
            if let Some((.., member)) = members.iter().find(|(.., m)| m.worker == seen.worker) {
                self.note_seen(now, member, &seen.seen);
            }
        }
        for (slot, which, member) in members {
            let Some(seen) = inspection.workers.iter().find(|seen| seen.worker == member.worker)
            else {
                continue;
            };
            if let Some(reason) = self.judge(now, slot, which, seen.words.as_deref()) {
                self.fail_round(now, reason);
                self.fill(now);
                break;
            }
        }
        self.looked(now);
        self.advance(now);
        self.update_health(now);
    }

    fn note_seen(&mut self, now: Time, member: &SlotWorker, seen: &Seen) {
        let watched = self.own.workers.get_or_insert_with(member.worker, Watched::default);
        let age = now.since(member.since);
        match seen {
            Seen::Listens(at) => {
                if age < SETTLING || watched.inspections == 0 {
                    let new = at.iter().filter(|own| !watched.settled.contains(own)).cloned();
                    let new: Vec<_> = new.collect();
                    watched.settled.extend(new);
                    watched.settled.truncate(MAX_OWN_ADDRESSES);
                }
                watched.now.clone_from(at);
                (watched.unfinished, watched.is_hidden) = (0, false);
            }
            Seen::Hidden => {
                watched.now.clear();
                (watched.unfinished, watched.is_hidden) = (0, true);
            }
            Seen::Unfinished => {
                watched.unfinished += 1;
                watched.is_hidden |= watched.unfinished >= MAX_UNFINISHED;
            }
        }
        watched.inspections = watched.inspections.saturating_add(1);
        let lacks_for = watched.lacks.as_ref().map_or(Duration::ZERO, |lack| now.since(lack.since));
        watched.next = match member.standing {
            // At twice its age.
            Standing::Fine(_) => now + age.max(INTERVAL),
            _ if lacks_for >= INSPECTION_TIMEOUT => now + LATE_INTERVAL,
            _ => now + INTERVAL,
        };
    }

    /// Decides about one worker. Returns the failure of its round, if that is certain.
    fn judge(
        &mut self,
        now: Time,
        slot: usize,
        which: Which,
        words: Option<&str>,
    ) -> Option<ReplaceFailure> {
        let member = which.of(&self.slots[slot])?;
        let aged = self.aged_at(slot, which, &member).filter(|aged| *aged <= now)?;
        let watched = self.own.workers.get(&member.worker)?;
        if watched.unfinished > 0 && !watched.is_hidden {
            return None;
        }
        let is_in_use = words.is_some_and(tells_of_used_address);
        let lack = self.lack_of(slot, which, &member, words);
        let standing = match (member.standing, &lack) {
            // A sibling was slower to listen, and this one has said why it does not.
            (Standing::Fine(_), Some((.., Rule::SomewhereAsOthers)))
                if is_in_use && now.since(member.since) < SETTLING =>
            {
                Standing::Lacking
            }
            (Standing::Fine(at), _) => Standing::Fine(at),
            (_, None) => Standing::Fine(now),
            // It may be meant to listen nowhere.
            (_, Some((.., Rule::SomewhereAsOthers))) if !is_in_use => {
                let timeout = if words.is_some() { SILENT_TIMEOUT } else { INSPECTION_TIMEOUT };
                if now >= aged + timeout {
                    Standing::Fine(aged + timeout)
                } else {
                    Standing::Pending
                }
            }
            (_, Some(_)) => Standing::Lacking,
        };
        let was_fine = matches!(member.standing, Standing::Fine(_));
        let is_fine = matches!(standing, Standing::Fine(_));
        if (!was_fine || !is_fine)
            && let Some((address, holder, rule)) = lack
        {
            let is_named = words.is_some_and(|words| names(words, &address.at));
            // It is told at the latest when the worker counts as ready all the same.
            let is_clear = is_fine || (is_in_use && rule != Rule::AsBefore);
            let lack = Lack { address, holder, rule, since: now, is_told: is_clear, is_in_use };
            self.note_lack(now, member.worker, lack);
            if rule == Rule::AsBefore && is_in_use && is_named {
                return self.not_listening(slot, which);
            }
        }
        self.set_standing(now, slot, which, standing);
        None
    }

    fn set_standing(&mut self, now: Time, slot: usize, which: Which, standing: Standing) {
        let state = &mut self.slots[slot];
        let member = match which {
            Which::Current => &mut state.current,
            Which::Successor => &mut state.successor,
        };
        let Some(member) = member else { return };
        let was_fine = matches!(member.standing, Standing::Fine(_));
        member.standing = standing;
        let Some(watched) = self.own.workers.get_mut(&member.worker) else { return };
        if !matches!(standing, Standing::Fine(_)) {
            return;
        }
        if !was_fine {
            watched.next = now + now.since(member.since).max(INTERVAL);
        }
        let waited_in_vain =
            watched.lacks.take().is_some_and(|lack| lack.rule == Rule::SomewhereAsOthers);
        if which == Which::Current && !watched.is_hidden {
            state.listened = watched.usual();
            let has_settled = watched.next.since(member.since) >= SETTLING;
            state.listens_nowhere = state.listened.is_empty()
                && (has_settled || waited_in_vain || state.listens_nowhere);
        }
    }

    /// Returns an address on which a worker does not listen although it must, who has it, and by
    /// which rule.
    fn lack_of(
        &self,
        slot: usize,
        which: Which,
        member: &SlotWorker,
        words: Option<&str>,
    ) -> Option<(OwnAddress, Option<WorkerId>, Rule)> {
        let watched = self.own.workers.get(&member.worker).filter(|watched| !watched.is_hidden)?;
        let state = &self.slots[slot];
        let round = self.round.as_ref();
        let active = round.and_then(|round| {
            let active = round.active.iter().find(|active| active.slot == slot)?;
            let is_new = (active.step == Step::Beside) == (which == Which::Successor);
            is_new.then_some((round, active.step))
        });
        let (required, holder, rule) = match active {
            Some((round, _)) if round.may_move => return None,
            Some((round, step)) => {
                let (required, holder) = match (step, state.current) {
                    (Step::Beside, Some(old)) => {
                        (self.own.workers.get(&old.worker)?.usual(), Some(old.worker))
                    }
                    (Step::Filling(old), _) => (state.listened.clone(), old),
                    _ => return None,
                };
                // Under PM2 a reload is a restart there, which may change everything.
                let is_restart = step != Step::Beside && round.policy.make_way_unless_listening;
                let is_strict = holder.is_some() && round.why != Why::RollBack && !is_restart;
                (required, holder, if is_strict { Rule::AsBefore } else { Rule::SomewhereAsBefore })
            }
            None if !state.listened.is_empty() => {
                (state.listened.clone(), None, Rule::SomewhereAsBefore)
            }
            None if state.listens_nowhere => return None,
            None => {
                let others = self.slots.iter().enumerate().filter(|(other, _)| *other != slot);
                let others = others.filter_map(|(_, state)| state.current);
                let (required, other) = others
                    .filter_map(|other| {
                        let usual = self.own.workers.get(&other.worker)?.usual();
                        (!usual.is_empty()).then_some((usual, other.worker))
                    })
                    .next()?;
                (required, Some(other), Rule::SomewhereAsOthers)
            }
        };
        let lacking = match rule {
            Rule::AsBefore => lacking(&required, &watched.now),
            _ if watched.now.is_empty() => required,
            _ => Vec::new(),
        };
        Some((most_telling(&lacking, words)?, holder, rule))
    }

    /// Notes an address that a worker lacks, and tells of it, once, if that is clear or lasts.
    fn note_lack(&mut self, now: Time, worker: WorkerId, lack: Lack) {
        let Some(watched) = self.own.workers.get_mut(&worker) else { return };
        let before = watched.lacks.take();
        let since = before.as_ref().map_or(now, |lack| lack.since);
        let was_told = before.is_some_and(|lack| lack.is_told);
        // Where the round fails for it, that is said instead.
        let is_told = was_told || lack.is_told || now.since(since) >= TELL_AFTER;
        let (at, holder, rule) = (lack.address.at.clone(), lack.holder, lack.rule);
        watched.lacks = Some(Lack { since, is_told, ..lack });
        if is_told && !was_told {
            self.orders.push_back(match (rule, holder) {
                (Rule::SomewhereAsOthers, Some(holder)) => Order::NotShared { worker, holder, at },
                _ => Order::Report(Progress::Awaiting { worker, at }),
            });
        }
    }

    /// Returns the failure of a round whose new worker does not listen by itself where its
    /// predecessor does, if that is so.
    fn not_listening(&self, slot: usize, which: Which) -> Option<ReplaceFailure> {
        let member = which.of(&self.slots[slot])?;
        let watched = self.own.workers.get(&member.worker)?;
        let lack = watched.lacks.as_ref()?;
        let (worker, at) = (member.worker, &lack.address.at);
        let elsewhere = match watched.now.as_slice() {
            [] => String::new(),
            [other, ..] => format!(", but on {}", other.at),
        };
        let has_left = which == Which::Current && lack.rule != Rule::SomewhereAsOthers;
        let does = match lack.holder {
            Some(old) if has_left => format!("as worker {old} did by itself"),
            Some(old) => format!("as worker {old} does by itself"),
            None => "as the one before it did by itself".into(),
        };
        let says = if lack.is_in_use { ": it says that an address is in use" } else { "" };
        let advice = if which == Which::Successor {
            "; a program that binds its port past troop cannot share it with its successor: let the old worker leave first (max_surge = 0 and max_unavailable = 1), use `troop restart`, or let the program listen through troop"
        } else {
            ""
        };
        // It would serve nobody if it was permitted where it is not meant.
        let may_permit =
            !lack.is_in_use && self.round.as_ref().is_some_and(|round| round.is_reload());
        let permits = if may_permit { "; `--allow-moved` permits it" } else { "" };
        Some(ReplaceFailure::NotListening {
            worker,
            address: at.clone(),
            reason: format!(
                "worker {worker} does not listen on {at}{elsewhere}, {does}{says}{advice}{permits}"
            ),
        })
    }

    /// Returns the failure of a round whose new worker is not ready in time.
    pub(super) fn late(&self, slot: usize, step: Step) -> ReplaceFailure {
        let which = if step == Step::Beside { Which::Successor } else { Which::Current };
        self.not_listening(slot, which).unwrap_or_else(|| {
            let new = which.of(&self.slots[slot]);
            let within = self.round_policy().ready_timeout;
            let seen = new.and_then(|member| member.not_serving);
            ReplaceFailure::NotReady { worker: new.map(|member| member.worker), within, seen }
        })
    }
}
