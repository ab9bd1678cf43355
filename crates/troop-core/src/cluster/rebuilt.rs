//! Rebuilds a cluster from the workers and listeners of a state with which no shell was ready.

use serde::Deserialize;

use super::{Action, Cluster};
use crate::id::{Time, WorkerId};
use crate::primary::{self, FormerPrimary};
use crate::snapshot::{SnapshotError, VERSION};
use crate::supervise::{Order, Slot, Supervisor};

#[derive(Debug, Deserialize)]
struct Former {
    version: u32,
    cluster: FormerCluster,
}

#[derive(Debug, Deserialize)]
struct FormerCluster {
    primary: FormerPrimary,
    supervisor: FormerSupervisor,
    activation_sockets: usize,
    without_ipc: Vec<WorkerId>,
    asked_by_message: Vec<WorkerId>,
}

#[derive(Debug, Deserialize)]
struct FormerSupervisor {
    config: FormerConfig,
}

#[derive(Debug, Deserialize)]
struct FormerConfig {
    workers: usize,
}

/// A state of which little more is read than which workers there are and where they listen.
#[derive(Debug)]
pub struct FormerState(FormerCluster);

impl FormerState {
    /// # Errors
    /// [`SnapshotError::Version`] for another major version; [`SnapshotError::Format`] if even that cannot be
    /// read, or if its workers have no channel by which they could be asked for more.
    pub fn read(snapshot: &[u8]) -> Result<FormerState, SnapshotError> {
        let Former { version, cluster } = serde_json::from_slice(snapshot)?;
        if version != VERSION {
            return Err(SnapshotError::Version(version));
        }
        if cluster.activation_sockets > 0 {
            let why = "its workers take sockets by activation";
            return Err(SnapshotError::Format(serde::de::Error::custom(why)));
        }
        Ok(FormerState(cluster))
    }

    /// Returns the number of workers to keep running.
    #[must_use]
    pub fn wanted(&self) -> usize {
        self.0.supervisor.config.workers
    }
}

impl Cluster {
    /// Takes on the workers of another shell, in a cluster that has none: as if they had just been started,
    /// and had said at once what they said then. What has happened with them, connections for example, is
    /// not known any more. [`Cluster::recovered`] is to follow.
    ///
    /// # Errors
    /// [`SnapshotError::Format`] if that is contradictory.
    pub fn rebuild(
        &mut self,
        now: Time,
        former: FormerState,
        supervisor: Supervisor,
    ) -> Result<(), SnapshotError> {
        let FormerState(FormerCluster { primary: former, without_ipc, asked_by_message, .. }) =
            former;
        self.without_ipc = without_ipc;
        self.asked_by_message = asked_by_message;
        self.supervise(now, supervisor);
        let mut later = Vec::new();
        // Those that are to leave find others in their slots.
        for stays in [true, false] {
            for (id, worker) in former.workers.iter().filter(|(_, w)| w.stays() == stays) {
                self.primary.take_on(*id, worker);
                self.forked(now, Slot(worker.slot as usize), *id, false);
                self.primary.repeat(now, *id, worker, &former, &mut later);
                later.retain(|action| match action {
                    primary::Action::Notify(notice) => {
                        self.noticed(now, notice);
                        false
                    }
                    _ => true,
                });
            }
        }
        let finished = self.primary.finish_rebuilding(now, &former, &mut later);
        finished.map_err(|why| SnapshotError::Format(serde::de::Error::custom(why)))?;
        later.retain(|action| !matches!(action, primary::Action::Notify(_)));
        self.pending.clear();
        self.pending.extend(later.into_iter().map(Action::Primary));
        let has_worker = |slot: Slot| {
            former
                .workers
                .iter()
                .any(|(_, worker)| worker.stays() && worker.slot as usize == slot.0)
        };
        if let Some(supervisor) = &mut self.supervisor {
            supervisor.retain_orders(|order| match order {
                Order::Fork(slot) => !has_worker(*slot),
                _ => true,
            });
        }
        Ok(())
    }
}
