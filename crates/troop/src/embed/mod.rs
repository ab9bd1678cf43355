//! For programs that embed the primary, as Node does with the npm package: they start workers
//! themselves, [adopt](Cluster::adopt) them, and exchange messages with them [directly](RelayIo).
//!
//! ```no_run
//! # async fn embed(cluster: troop::Cluster) -> troop::Result<()> {
//! use troop::embed::Adoption;
//!
//! let (ours, theirs) = Adoption::channel()?;
//! # let pid_of_the_new_process = 0;
//! // Starts the process with `theirs` as its NODE_CHANNEL_FD.
//! let worker = cluster.adopt(Adoption::new(pid_of_the_new_process, ours)?).await?;
//! # drop((theirs, worker));
//! # Ok(())
//! # }
//! ```

pub(crate) mod direct_io;

use std::os::fd::OwnedFd;
use std::time::Duration;

use troop_core::WorkerId;
use troop_core::primary::Successors;

use crate::error::{Error, Result};
pub use crate::primary::{Adoption, Start, Starter, SupervisionStatus};
use crate::primary::{Cluster, Command, WorkerHandle, random_seed};
use crate::supervise::{Reload, ReplacePolicy, RestartPolicy};
pub use direct_io::RelayIo;

/// With the feature `embed`.
impl Cluster {
    /// Takes over a worker that another part of the program has started. After a failure its
    /// channel is closed.
    ///
    /// # Errors
    /// [`Error::Io`] if its process or its channel cannot be watched, [`Error::Settings`] if there
    /// has been a worker with its number or its [weight](Adoption::weight) has no effect,
    /// [`Error::ClusterOver`].
    pub async fn adopt(&self, adoption: Adoption) -> Result<WorkerHandle> {
        self.driver_handle().ask(|done| Command::Adopt(Box::new(adoption), done)).await?
    }

    /// As [`Cluster::adopt`], for code that is not async. Waits for the primary's turn, which is
    /// short.
    ///
    /// # Errors
    /// As [`Cluster::adopt`].
    ///
    /// # Panics
    /// In a task of a tokio runtime.
    pub fn adopt_blocking(&self, adoption: Adoption) -> Result<WorkerHandle> {
        self.driver_handle().ask_blocking(|done| Command::Adopt(Box::new(adoption), done))?
    }

    /// Announces whether the program will fork workers in place of ended ones, in a cluster without
    /// supervision. With true, listeners without workers stay open for them; with false, they close
    /// when the starting workers have had time to ask for them. Without a call, and after each end
    /// of a worker, they stay open until a worker that was forked later is ready.
    ///
    /// # Errors
    /// [`Error::Settings`] if the cluster is supervised: its supervisor knows which workers follow;
    /// [`Error::ClusterOver`].
    pub fn expect_forks(&self, expected: bool) -> Result<()> {
        if self.is_supervised() {
            let why = "Cluster::expect_forks has no effect in a supervised cluster: its supervisor knows which workers follow";
            return Err(Error::Settings(why.into()));
        }
        let forks = if expected { Successors::Awaited } else { Successors::Nobody };
        self.driver_handle().send(Command::ForksToCome(forks))
    }

    /// Makes a supervisor decide which ended workers are restarted, and replace workers in
    /// [reloads](Cluster::reload_with), where the program starts all workers itself. Each worker
    /// that is adopted from now on has a slot. Only a reload ends workers. A disconnected worker
    /// has no successor; before [`Cluster::restart_as`] no worker has one.
    ///
    /// # Errors
    /// [`Error::ClusterOver`].
    pub fn supervise_adopted(&self, starter: impl Starter + 'static) -> Result<()> {
        self.note_supervision();
        self.driver_handle().send(Command::Embed(Box::new(starter), random_seed()))
    }

    /// Sets whether ended workers have successors, for which their listeners wait: all but
    /// disconnected ones, as the policy says, or none. With `scales_ends`,
    /// [`RestartPolicy::max_ends`] grows with the number of workers. After giving up no worker is
    /// started until the program adopts one on its own initiative.
    ///
    /// # Errors
    /// [`Error::ClusterOver`].
    pub fn restart_as(&self, policy: Option<RestartPolicy>, scales_ends: bool) -> Result<()> {
        self.driver_handle().send(Command::RestartAs(policy, scales_ends))
    }

    /// Whether the start of a worker that the program was [asked for](Starter::start) is still
    /// wanted. Waits for the primary's turn, which is short.
    ///
    /// # Errors
    /// [`Error::ClusterOver`].
    ///
    /// # Panics
    /// In a task of a tokio runtime.
    pub fn is_start_wanted_blocking(&self, number: u32) -> Result<bool> {
        self.driver_handle().ask_blocking(|done| Command::IsStartWanted(number, done))
    }

    /// Reports that a requested worker could not be started, with the reason.
    ///
    /// # Errors
    /// [`Error::ClusterOver`].
    pub fn start_failed(&self, number: u32, reason: impl Into<String>) -> Result<()> {
        self.driver_handle().send(Command::StartFailed(number, reason.into()))
    }

    /// Returns the state of supervision. The program may have seen the end of a worker before the
    /// cluster has, so it names the worker that it has seen end. Waits for the primary's turn,
    /// which is short.
    ///
    /// # Errors
    /// [`Error::ClusterOver`].
    ///
    /// # Panics
    /// In a task of a tokio runtime.
    pub fn supervision_blocking(&self, ended: Option<WorkerId>) -> Result<SupervisionStatus> {
        self.driver_handle().ask_blocking(|done| Command::Supervision(ended, done))
    }

    /// Reports that a worker has sent the program its message of readiness: for
    /// [`ReadyWhen::Message`](crate::supervise::ReadyWhen::Message) where its messages are relayed.
    ///
    /// # Errors
    /// [`Error::ClusterOver`].
    pub fn report_ready(&self, worker: WorkerId) -> Result<()> {
        self.driver_handle().send(Command::ReportedReady(worker))
    }

    /// Reports that the program ends a worker, so that it has no successor. A worker that it has
    /// [disconnected](WorkerHandle::disconnect) needs no such call.
    ///
    /// # Errors
    /// [`Error::ClusterOver`].
    pub fn release(&self, worker: WorkerId) -> Result<()> {
        self.driver_handle().send(Command::Release(worker))
    }

    /// Reports that the program disconnects all workers, so that they have no successors, and
    /// cancels a reload in progress.
    ///
    /// # Errors
    /// [`Error::ClusterOver`].
    pub fn release_all(&self) -> Result<()> {
        self.driver_handle().send(Command::ReleaseAll)
    }
}

/// With the feature `embed`.
impl Reload {
    /// Replaces workers as this policy says, and gives them this time to finish.
    #[must_use]
    pub fn replace(mut self, policy: ReplacePolicy, grace: Duration) -> Reload {
        self.replace = Some((policy, grace));
        self
    }
}

/// With the feature `embed`.
impl WorkerHandle {
    /// Lets the embedding program's thread read and write a relayed worker's channel directly.
    /// Returns the I/O handle, and a copy of the channel, which is only to be polled for
    /// readability (level-triggered). `offer` is called in the cluster's thread, and must not
    /// block, when [`RelayIo::begin`] may be called. Returns `None` if the worker is not relayed or
    /// runs as another user, its channel is closed, or the cluster does not run in a thread.
    ///
    /// # Errors
    /// When out of descriptors.
    pub fn relay_io(
        &self,
        offer: impl Fn() + Send + 'static,
    ) -> Result<Option<(RelayIo, OwnedFd)>> {
        RelayIo::new(&self.shared, Box::new(offer))
            .map_err(Error::io("copy the channel of a worker"))
    }
}
