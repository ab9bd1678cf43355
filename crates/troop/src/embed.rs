//! For programs that are the primary themselves, as Node is under the npm package: they start
//! workers in their own way, [adopt](Cluster::adopt) them, and exchange messages with them
//! [directly](RelayIo).
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

use std::os::fd::OwnedFd;
use std::time::Duration;

use troop_core::WorkerId;
use troop_core::primary::Successors;

use crate::error::{Error, Result};
pub use crate::primary::{Adoption, RelayIo, Start, Starter, SupervisionStatus};
use crate::primary::{Cluster, Command, WorkerHandle, random_seed};
use crate::supervise::{Reload, ReplacePolicy, RestartPolicy};

/// With the feature `embed`.
impl Cluster {
    /// Takes on a worker that somebody else has started. After a failure its channel is closed.
    ///
    /// # Errors
    /// [`Error::Io`] if its process or its channel cannot be watched, [`Error::Settings`] if there
    /// has been a worker with its number, [`Error::ClusterOver`].
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

    /// Says whether workers are to be forked in the place of those that have ended, where the
    /// program forks and nothing is supervised. With true, listeners that no worker has are kept
    /// open for them; with false, they close when the workers that are starting have had the time
    /// to ask for them. Until it is said, and after each end of a worker, they stay open until a
    /// worker is ready that was forked later.
    ///
    /// # Errors
    /// [`Error::ClusterOver`].
    pub fn expect_forks(&self, expected: bool) -> Result<()> {
        let forks = if expected { Successors::Awaited } else { Successors::Nobody };
        self.driver_handle().send(Command::ForksToCome(forks))
    }

    /// Lets a supervisor decide which workers follow those that end, and replace them in
    /// [reloads](Cluster::reload_with), where the program starts all workers itself. Each worker
    /// that is adopted from now on has a slot. No worker is ended but by a reload, and none follows
    /// one that was told to leave; before [`Cluster::restart_as`] none follows anyone.
    ///
    /// # Errors
    /// [`Error::ClusterOver`].
    pub fn supervise_adopted(&self, starter: impl Starter + 'static) -> Result<()> {
        self.driver_handle().send(Command::Embed(Box::new(starter), random_seed()))
    }

    /// Sets which workers that end are followed by others, with listeners that wait for them: all
    /// but those that were told to leave, as the policy says, or none. With `scales_ends`,
    /// [`RestartPolicy::max_ends`] goes by the number of workers. When it gives up, nothing is
    /// started until the program adopts a worker of its own accord.
    ///
    /// # Errors
    /// [`Error::ClusterOver`].
    pub fn restart_as(&self, policy: Option<RestartPolicy>, scales_ends: bool) -> Result<()> {
        self.driver_handle().send(Command::RestartAs(policy, scales_ends))
    }

    /// Whether a worker is still wanted that the program was [asked for](Starter::start). Waits for
    /// the primary's turn, which is short.
    ///
    /// # Errors
    /// [`Error::ClusterOver`].
    ///
    /// # Panics
    /// In a task of a tokio runtime.
    pub fn is_start_wanted_blocking(&self, number: u32) -> Result<bool> {
        self.driver_handle().ask_blocking(|done| Command::IsStartWanted(number, done))
    }

    /// A worker that the program was asked for could not be started, for this reason.
    ///
    /// # Errors
    /// [`Error::ClusterOver`].
    pub fn start_failed(&self, number: u32, reason: impl Into<String>) -> Result<()> {
        self.driver_handle().send(Command::StartFailed(number, reason.into()))
    }

    /// Returns what supervision is about. The program may have seen the end of a worker before the
    /// cluster has, so it names the one that it has seen end. Waits for the primary's turn, which
    /// is short.
    ///
    /// # Errors
    /// [`Error::ClusterOver`].
    ///
    /// # Panics
    /// In a task of a tokio runtime.
    pub fn supervision_blocking(&self, ended: Option<WorkerId>) -> Result<SupervisionStatus> {
        self.driver_handle().ask_blocking(|done| Command::Supervision(ended, done))
    }

    /// A worker has told the program that it is ready: for
    /// [`ReadyWhen::Message`](crate::supervise::ReadyWhen::Message) where its
    /// messages are relayed.
    ///
    /// # Errors
    /// [`Error::ClusterOver`].
    pub fn report_ready(&self, worker: WorkerId) -> Result<()> {
        self.driver_handle().send(Command::ReportedReady(worker))
    }

    /// The program ends a worker, so that none follows it. A worker that it has
    /// [told to finish](WorkerHandle::disconnect) needs no such call.
    ///
    /// # Errors
    /// [`Error::ClusterOver`].
    pub fn release(&self, worker: WorkerId) -> Result<()> {
        self.driver_handle().send(Command::Release(worker))
    }

    /// The program tells all workers to finish, so that none follows them, and a reload that is
    /// under way is over.
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
    /// Lets the thread of the program that the worker's messages are passed through to do that
    /// itself. Returns what it does it with, and a copy of the worker's channel, to be waited for
    /// until it is readable (level-triggered), and for nothing else. `offer` is called in the
    /// cluster's thread, and must not block, when [`RelayIo::begin`] is welcome. `None` if the
    /// worker is not relayed, or its channel is closed, or the cluster has no thread of its own.
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
