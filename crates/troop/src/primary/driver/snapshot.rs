//! Takes snapshots of the cluster's whole state.

use troop_core::event::AddressType;
use troop_core::policy::Scheduling;
use troop_core::supervise::{MAX_OWN_ADDRESSES, OwnAddress, SupervisorState};

use super::Driver;
use crate::activation::ActivationSocket;
use crate::keeper;
use crate::primary::snapshot::{
    ListenerSnapshot, LostListener, ModeSnapshot, Phase, Snapshot, VacantSlot, WorkerSnapshot,
    millis,
};

impl Driver {
    pub(super) fn snapshot(&mut self) -> Snapshot {
        let all: Vec<_> = self.workers.ids().collect();
        all.into_iter().for_each(|worker| self.count(worker));
        let supervisor = self.cluster.supervisor();
        let leaving = |worker| {
            supervisor.and_then(|s| s.leaves_by(worker)).map(|at| millis(at.since(self.now)))
        };
        let mut workers: Vec<_> = self
            .workers
            .since()
            .filter_map(|(id, since)| {
                let status = self.cluster.primary.status(id)?;
                Some(WorkerSnapshot {
                    id,
                    pid: status.pid,
                    slot: status.slot,
                    state: status.state,
                    age_ms: millis(self.now.since(since)),
                    leaving_ms: leaving(id),
                    ready: supervisor
                        .map(|s| s.standing(self.now, id))
                        .map(|standing| standing.is_some_and(|(ready, _)| ready)),
                    generation: supervisor
                        .and_then(|s| s.standing(self.now, id))
                        .map(|(_, generation)| generation),
                    weight: status.weight,
                    stats: status.stats,
                    usage: None,
                })
            })
            .collect();
        workers.sort_by_key(|worker| (worker.slot, worker.id));
        let sockets = self.workers.setup().activation().iter().enumerate();
        let sockets = sockets.map(|(number, socket)| ListenerSnapshot {
            address: socket.address().to_owned(),
            scheduling: match socket.is_steered() {
                // The kernel chooses, and shares follow the connections.
                true if self.cluster.shares_by_connections() && !socket.is_udp() => {
                    Scheduling::LeastConnections.to_string()
                }
                true => "steered".into(),
                false => "shared".into(),
            },
            mode: None,
            workers: self.workers.len(),
            waiting: self.waiting_in(number, socket),
            ignored: self.why_ignored(number),
        });
        let listeners = self.cluster.primary.listeners().filter_map(|id| {
            let (workers, waiting) = self.cluster.primary.listener_load(id);
            let scheduling = self.cluster.primary.scheduling(id)?.to_string();
            Some(ListenerSnapshot {
                address: self.cluster.primary.bound_address(id)?.to_string(),
                scheduling,
                mode: self.cluster.primary.mode(id).map(|current| ModeSnapshot {
                    mode: current.mode,
                    age_ms: millis(self.now.since(current.since)),
                    reason: current.reason.to_string(),
                }),
                workers,
                waiting,
                ignored: None,
            })
        });
        let vacant = supervisor.into_iter().flat_map(|s| s.vacancies()).map(|vacancy| VacantSlot {
            slot: u32::try_from(vacancy.slot.0).unwrap_or(u32::MAX),
            quick_ends: vacancy.quick_ends,
            retry_ms: vacancy.retry_at.map(|at| millis(at.since(self.now))),
            finished: vacancy.done.map(|how| how.to_string()),
        });
        let lost = self.lost_listeners();
        Snapshot {
            pid: keeper::app_pid(),
            engine: keeper::is_kept().then(std::process::id),
            keeper_version: keeper::version(),
            crashes: self.crashes,
            last_crash: self.last_crash.clone(),
            uptime_ms: millis(self.origin.elapsed()),
            phase: match supervisor {
                Some(s) => match s.state() {
                    SupervisorState::Starting => Phase::Starting,
                    SupervisorState::Running
                        if lost.is_empty() && self.cluster.ignored_sockets().next().is_none() =>
                    {
                        Phase::Running
                    }
                    SupervisorState::Running | SupervisorState::Degraded => Phase::Degraded,
                    SupervisorState::Reloading => Phase::Reloading,
                    SupervisorState::Paused => Phase::Paused,
                    SupervisorState::Stopping => Phase::Stopping,
                },
                None => Phase::Running,
            },
            wanted: supervisor.map(|s| s.wanted()),
            ready: workers
                .iter()
                .filter(|worker| worker.ready == Some(true) && worker.leaving_ms.is_none())
                .count(),
            vacant: vacant.collect(),
            restarts: supervisor.map_or(0, |s| s.unexpected_ends()),
            last_end: self.cluster.last_end().map(str::to_owned),
            totals: self.cluster.primary.totals(),
            usage: None,
            listeners: listeners.chain(sockets).collect(),
            own: supervisor.map_or_else(Vec::new, |s| shown(s.own_addresses())),
            lost,
            workers,
        }
    }

    /// How many connections wait in an activated socket. Those of a path are known from the last
    /// inspection.
    fn waiting_in(&self, number: usize, socket: &ActivationSocket) -> usize {
        match socket.is_unix() {
            true => self.cluster.waited(number) as usize,
            false => socket.waiting(),
        }
    }

    /// What clients cannot reach.
    pub(super) fn lost_listeners(&self) -> Vec<LostListener> {
        let missed = self.cluster.missed_addresses().map(|at| LostListener {
            address: at.to_string(),
            reason: "no worker listens there since the one that did has ended".into(),
        });
        let unreached =
            self.listeners.lost().filter_map(|id| self.cluster.primary.bound_address(id)).map(
                |at| LostListener {
                    address: at.to_string(),
                    reason: "clients do not reach its socket".into(),
                },
            );
        missed.chain(unreached).collect()
    }
}

/// Returns addresses as people read them, each one once: paths only where there is nothing else, because
/// many programs have some for processes of their own.
fn shown<'a>(all: impl Iterator<Item = &'a OwnAddress>) -> Vec<String> {
    let is_path = |own: &&OwnAddress| own.at.address_type == AddressType::Unix;
    let (paths, others): (Vec<_>, Vec<_>) = all.partition(is_path);
    let mut shown: Vec<String> = Vec::new();
    for own in if others.is_empty() { paths } else { others } {
        let text = own.at.to_string();
        if shown.len() < MAX_OWN_ADDRESSES && !shown.contains(&text) {
            shown.push(text);
        }
    }
    shown
}
