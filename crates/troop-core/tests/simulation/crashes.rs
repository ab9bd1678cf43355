//! What is written down of a primary, and how another one goes on with it after the first was killed.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use troop_core::event::ExitHow;
use troop_core::primary::{Action, Primary};
use troop_core::steer::Instruction;
use troop_core::wire::incoming;
use troop_core::{ConnId, ListenerId, WorkerId};

use super::{Simulation, Worker};

/// What a shell has others hold for the case that it is killed.
#[derive(Debug, Default)]
pub struct Kept {
    primary: Vec<u8>,
    /// Whether the shell accepts on the sockets of groups.
    groups: BTreeMap<ListenerId, Vec<bool>>,
    /// The program of each, which the next shell gives the kernel again.
    programs: BTreeMap<ListenerId, Vec<Instruction>>,
    /// What workers were told and did, as the primary knows it.
    workers: BTreeMap<WorkerId, (bool, bool, bool)>,
    /// What was read since.
    journal: Vec<(WorkerId, String)>,
    /// Something has changed since but connections.
    has_changed: bool,
    /// It must be written before anything is sent.
    is_urgent: bool,
}

/// How often the primary was killed, and what that has cost.
#[derive(Debug, Default)]
pub struct Crashes {
    pub count: u32,
    /// Connections that had not waited for long.
    pub lost: u32,
    /// Those that were served by the next one.
    pub held: u32,
}

impl Simulation {
    /// From now on the state is written down as a shell does it, and the primary can crash.
    pub fn keep(&mut self) {
        self.kept = Some(Kept::default());
        self.write_down();
    }

    pub(super) fn note_message(&mut self, worker: WorkerId, line: &str) {
        if let Some(kept) = &mut self.kept {
            kept.journal.push((worker, line.to_owned()));
            kept.has_changed |=
                incoming::parse(line.as_bytes()).is_ok_and(|message| !message.is_of_connections());
        }
    }

    pub(super) fn note_action(&mut self, action: &Action) {
        if let Some(kept) = &mut self.kept {
            kept.has_changed |= !action.is_of_connections();
            kept.is_urgent |=
                matches!(action, Action::Bind { .. } | Action::Unbind { .. } | Action::Open { .. });
        }
    }

    /// Something has happened that is no message: it was commanded, or the system told it.
    pub(super) fn note_change(&mut self) {
        if let Some(kept) = &mut self.kept {
            kept.has_changed = true;
        }
    }

    /// The kernel has changed something already.
    pub(super) fn note_urgent_change(&mut self) {
        if let Some(kept) = &mut self.kept {
            kept.is_urgent = true;
        }
    }

    /// At the end of all actions, before anything is sent.
    pub(super) fn write_urgently(&mut self) {
        if self.kept.as_ref().is_some_and(|kept| kept.is_urgent) {
            self.write_down();
            self.note_change();
        }
    }

    /// When everything is sent.
    pub(super) fn write_changes(&mut self) {
        let Some(kept) = &mut self.kept else { return };
        match kept.has_changed {
            true => self.write_down(),
            false => kept.journal.clear(),
        }
    }

    fn write_down(&mut self) {
        let known = |(id, w): (&WorkerId, &Worker)| (*id, (w.told_to_leave, w.cut_off, w.held));
        self.kept = Some(Kept {
            primary: serde_json::to_vec(&self.primary).unwrap(),
            groups: self.groups.clone(),
            programs: self.programs.clone(),
            workers: self.workers.iter().map(known).collect(),
            ..Kept::default()
        });
    }

    /// The shell is killed before it has written down what has changed since the last time, and another
    /// one goes on. Connections that have waited for long are there, which are a part of those that wait.
    pub fn crash(&mut self, are_old: impl Fn(ConnId) -> bool) -> Result<(), TestCaseError> {
        let Some(kept) = self.kept.take() else { return Ok(()) };
        self.crashes.count += 1;
        let used: BTreeSet<WorkerId> = self.workers.keys().copied().collect();
        self.primary = serde_json::from_slice::<Primary>(&kept.primary).unwrap();
        (self.groups, self.programs) = (kept.groups, kept.programs);
        let known: BTreeSet<ConnId> = self.primary.waiting().collect();
        prop_assert_eq!(known.len(), self.primary.count_waiting());
        let held: BTreeSet<ConnId> = self
            .waiting
            .iter()
            .copied()
            .filter(|conn| known.contains(conn) && are_old(*conn))
            .collect();
        self.crashes.held += u32::try_from(held.len()).unwrap();
        self.crashes.lost += u32::try_from(self.waiting.len() - held.len()).unwrap();
        self.open = held.clone();
        self.waiting = held.clone();
        self.came_from.clear();
        // Those of which the state knows nothing see the end of their channel.
        let primary = &self.primary;
        self.workers.retain(|id, _| primary.status(*id).is_some());
        let mut answers = Vec::new();
        for (id, worker) in &mut self.workers {
            let seqs = std::mem::take(&mut worker.holds).into_keys();
            answers.push((*id, worker.troop, seqs.collect::<Vec<_>>()));
            worker.blocked = false;
            // What was sent in the last turn may be sent again.
            worker.disconnected = false;
            worker.asked = 0;
            worker.tickets.clear();
            if let Some((told_to_leave, cut_off, held)) = kept.workers.get(id).copied() {
                (worker.told_to_leave, worker.cut_off, worker.held) =
                    (told_to_leave, cut_off, held);
            }
        }
        self.sent.clear();
        self.primary.recovered(self.now, |conn| held.contains(&conn), |_| false);
        for (id, line) in &kept.journal {
            if self.workers.contains_key(id) && !self.primary.is_cut_off(*id) {
                let parsed = incoming::parse(line.as_bytes()).unwrap();
                self.primary.message(self.now, *id, parsed);
            }
        }
        // What happened to processes is found again.
        let there: Vec<WorkerId> = self.primary.workers().map(|(id, _)| id).collect();
        for id in there {
            match self.workers.get(&id) {
                None => self.primary.exited(self.now, id, ExitHow::Code(0)),
                Some(worker) if !worker.connected => {
                    self.primary.channel_closed(self.now, id, true);
                }
                Some(_) => {}
            }
        }
        self.keep();
        self.note_change();
        self.act()?;
        self.answer_the_former(answers)?;
        let again = self.primary.fork();
        prop_assert!(!used.contains(&again), "{again} is used again");
        Ok(())
    }

    /// Workers answer what the shell that was killed had sent, and the probes.
    fn answer_the_former(
        &mut self,
        answers: Vec<(WorkerId, bool, Vec<u64>)>,
    ) -> Result<(), TestCaseError> {
        for (id, troop, seqs) in answers {
            let speaks = |w: &Worker| w.connected && !w.cut_off;
            if !self.workers.get(&id).is_some_and(speaks) {
                continue;
            }
            let before = self.violations(id);
            if troop {
                let (taken, returned) = seqs.split_at(seqs.len() / 2);
                let mut line = Vec::new();
                troop_core::wire::outgoing::taken(&mut line, taken, returned, None);
                line.pop();
                self.says(id, std::str::from_utf8(&line).unwrap());
                prop_assert_eq!(self.violations(id), before);
                continue;
            }
            for seq in seqs {
                self.says(id, r#"{"cmd":"NODE_HANDLE_ACK"}"#);
                let accepted = seq.is_multiple_of(2);
                self.says(id, &answer(seq, accepted));
            }
            let probes: Vec<u64> = self
                .sent
                .iter()
                .filter(|(to, line)| *to == id && line.contains("troop:probe"))
                .filter_map(|(_, line)| {
                    let line: serde_json::Value = serde_json::from_str(line).ok()?;
                    line["msg"]["seq"].as_u64()
                })
                .collect();
            for probe in probes {
                self.says(id, r#"{"cmd":"NODE_HANDLE_NACK"}"#);
                self.says(id, &answer(probe, false));
            }
            if self.workers.contains_key(&id) {
                prop_assert_eq!(self.violations(id), before);
            }
        }
        Ok(())
    }
}

fn answer(seq: u64, accepted: bool) -> String {
    format!(r#"{{"cmd":"NODE_CLUSTER","ack":{seq},"accepted":{accepted},"seq":1}}"#)
}
