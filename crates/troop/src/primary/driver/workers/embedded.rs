//! Workers that the embedding program starts: asks it for those that supervision wants, and says
//! which slot each one is for.

use std::collections::BTreeMap;
use std::time::Duration;

use troop_core::supervise::{Slot, Supervisor};
use troop_core::{Time, WorkerId};

use crate::error::{Error, Result};
use crate::primary::adopt::{Start, Starter, SupervisionStatus};
use crate::primary::driver::Driver;

/// The most time that the program may take to start a worker that it was asked for.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// A program that starts the workers itself.
pub(super) struct EmbeddingProgram {
    starter: Box<dyn Starter>,
    last_start: u32,
    /// Workers that it was asked for and has not started.
    wanted: BTreeMap<u32, WantedWorker>,
    /// The last worker of each slot.
    newest: BTreeMap<Slot, WorkerId>,
}

struct WantedWorker {
    slot: Slot,
    until: Time,
}

impl EmbeddingProgram {
    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.wanted.values().map(|wanted| wanted.until).min()
    }
}

impl Driver {
    /// The program starts the workers from now on, and a supervisor decides which follow others.
    pub(in crate::primary::driver) fn embed(&mut self, starter: Box<dyn Starter>, seed: u64) {
        self.workers.embedding = Some(EmbeddingProgram {
            starter,
            last_start: 0,
            wanted: BTreeMap::new(),
            newest: BTreeMap::new(),
        });
        self.supervise(Supervisor::embedded(seed));
    }

    /// Asks the program for a worker, if it does not start one for this slot already.
    pub(in crate::primary::driver) fn ask_for_worker(&mut self, slot: Slot) {
        let Some(supervisor) = self.cluster.supervisor().filter(|s| s.awaits_fork(slot)) else {
            return;
        };
        let is_vacant = supervisor.vacancies().any(|vacancy| vacancy.slot == slot);
        let Some(program) = &mut self.workers.embedding else { return };
        if program.wanted.values().any(|wanted| wanted.slot == slot) {
            return;
        }
        program.last_start = program.last_start.wrapping_add(1);
        let number = program.last_start;
        program.wanted.insert(number, WantedWorker { slot, until: self.now + START_TIMEOUT });
        let follows = program.newest.get(&slot).copied().filter(|_| is_vacant);
        let slot = u32::try_from(slot.0).unwrap_or(u32::MAX);
        program.starter.start(Start { number, slot, follows });
    }

    /// Whether the supervisor still wants a worker that the program was asked for.
    pub(in crate::primary::driver) fn is_start_wanted(&mut self, number: u32) -> bool {
        self.slot_of_start(number).is_ok()
    }

    fn slot_of_start(&mut self, number: u32) -> Result<Slot> {
        let unwanted =
            || Error::Settings("a worker is not wanted any more that was to be started".into());
        let program = self.workers.embedding.as_mut().ok_or_else(unwanted)?;
        let slot = program.wanted.get(&number).ok_or_else(unwanted)?.slot;
        if self.cluster.supervisor().is_some_and(|s| s.awaits_fork(slot)) {
            return Ok(slot);
        }
        program.wanted.remove(&number);
        Err(unwanted())
    }

    /// The slot of a worker that the program has started, asked for or not. `None` without
    /// supervision.
    pub(super) fn slot_of_adopted(&mut self, start: Option<u32>) -> Result<Option<Slot>> {
        match start {
            Some(number) => self.slot_of_start(number).map(Some),
            None => {
                Ok(self.cluster.supervisor().filter(|s| s.is_embedded()).map(|s| s.free_slot()))
            }
        }
    }

    /// A worker that the program has started is in the cluster now.
    pub(super) fn was_adopted(&mut self, worker: WorkerId, slot: Slot, start: Option<u32>) {
        match start {
            Some(_) => self.cluster.forked(self.now, slot, worker, true),
            None => self.cluster.adopted(self.now, worker),
        }
        if let Some(program) = &mut self.workers.embedding {
            program.newest.insert(slot, worker);
            start.and_then(|number| program.wanted.remove(&number));
        }
    }

    /// The program could not start a worker that it was asked for.
    pub(in crate::primary::driver) fn start_failed(&mut self, number: u32, reason: String) {
        let wanted =
            self.workers.embedding.as_mut().and_then(|program| program.wanted.remove(&number));
        if let (Some(WantedWorker { slot, .. }), Some(supervisor)) =
            (wanted, self.cluster.supervisor_mut())
        {
            supervisor.fork_failed(self.now, slot, reason, false);
        }
    }

    /// Those that the program was asked for too long ago have failed.
    pub(in crate::primary::driver) fn tick_starts(&mut self) {
        let Some(program) = &self.workers.embedding else { return };
        let late = program.wanted.iter().filter(|(_, wanted)| wanted.until <= self.now);
        let late: Vec<_> = late.map(|(number, _)| *number).collect();
        for number in late {
            let within = START_TIMEOUT.as_secs();
            self.start_failed(number, format!("the program has not started it within {within} s"));
        }
    }

    /// The program ends a worker, so that it has no successor, even if its process has ended before.
    pub(in crate::primary::driver) fn release(&mut self, worker: WorkerId) {
        let Some(supervisor) = self.cluster.supervisor_mut() else { return };
        supervisor.release(self.now, worker);
        let newest = self.workers.embedding.iter().flat_map(|program| &program.newest);
        for (slot, _) in newest.filter(|(_, last)| **last == worker) {
            supervisor.release_vacant(self.now, *slot);
        }
    }

    /// Returns what supervision still expects of the program.
    pub(in crate::primary::driver) fn supervision(&self) -> SupervisionStatus {
        let supervisor = self.cluster.supervisor();
        SupervisionStatus {
            expects_workers: supervisor.is_some_and(Supervisor::expects_workers),
            has_given_up: supervisor.is_some_and(Supervisor::has_given_up),
        }
    }

    pub(in crate::primary::driver) fn tell_draining(&mut self, worker: WorkerId) {
        if let Some(handle) = self.workers.handle(worker).cloned() {
            self.refresh(&handle);
        }
        if let Some(program) = &mut self.workers.embedding {
            program.starter.draining(worker);
        }
    }
}
