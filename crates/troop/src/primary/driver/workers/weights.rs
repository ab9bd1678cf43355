//! Weights of workers, which are refused where nothing goes by them.

use troop_core::WorkerId;

use crate::activation::ActivationSocket;
use crate::error::{Error, Result};
use crate::primary::driver::Driver;

const BY_POLICY: &str = "under round robin, auto and shared scheduling: set Builder::scheduling, or Cluster::set_scheduling, to one that goes by weights, such as Scheduling::Weighted";
const BY_KERNEL: &str = "with Builder::activation: workers accept by themselves, and the kernel chooses among them; ActivationSocket::bind_steered has it choose by weight";
const BY_SLOT: &str = "with Builder::activation on a worker that the program starts: connections are shared out among supervised workers, whose weights Builder::weights and WorkerHandle::set_weight set";

fn refused(setting: &str, reason: &str) -> Error {
    Error::Settings(format!("{setting} has no effect {reason}"))
}

impl Driver {
    /// Changes the weight of a worker.
    ///
    /// # Errors
    /// [`Error::NoWorker`]; [`Error::Settings`] if nothing goes by the worker's weight.
    pub(in crate::primary::driver) fn set_weight(
        &mut self,
        worker: WorkerId,
        weight: u32,
    ) -> Result<()> {
        const SETTING: &str = "WorkerHandle::set_weight";
        if self.cluster.primary.status(worker).is_none() {
            return Err(Error::NoWorker(worker));
        }
        self.weights_count(SETTING)?;
        let has_share = |worker| {
            self.cluster.supervisor().is_some_and(|supervisor| {
                supervisor.started_at(worker).is_some() || supervisor.leaves_by(worker).is_some()
            })
        };
        if self.workers.setup.cluster.activation.is_some() && !has_share(worker) {
            return Err(refused(SETTING, BY_SLOT));
        }
        self.cluster.set_weight(self.now, worker, weight);
        Ok(())
    }

    /// Checks that something goes by the weight of a worker that the program starts.
    ///
    /// # Errors
    /// [`Error::Settings`] names the setting, and says what to do.
    pub(super) fn may_fork_with_weight(&self, setting: &str) -> Result<()> {
        self.weights_count(setting)?;
        match self.workers.setup.cluster.activation {
            Some(_) => Err(refused(setting, BY_SLOT)),
            None => Ok(()),
        }
    }

    /// Checks that workers' weights have an effect.
    fn weights_count(&self, setting: &str) -> Result<()> {
        match &self.workers.setup.cluster.activation {
            Some(sockets) if !sockets.iter().any(ActivationSocket::is_steered) => {
                Err(refused(setting, BY_KERNEL))
            }
            None if !self.cluster.primary.has_weights() => Err(refused(setting, BY_POLICY)),
            _ => Ok(()),
        }
    }
}
