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

use troop_core::WorkerId;
use troop_core::event::Address;
use troop_core::primary::Successors;

use crate::error::{Error, Result};
pub use crate::primary::{Adoption, RelayIo};
use crate::primary::{Cluster, Command, WorkerHandle};

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
    /// program forks. With true, listeners that no worker has are kept open for them; with false,
    /// they close when the workers that are starting have had the time to ask for them. Until it is
    /// said, and after each end of a worker, they stay open until a worker is ready that was forked
    /// later.
    ///
    /// # Errors
    /// [`Error::ClusterOver`].
    pub fn expect_forks(&self, expected: bool) -> Result<()> {
        let forks = if expected { Successors::Awaited } else { Successors::Nobody };
        self.driver_handle().send(Command::ForksToCome(forks))
    }

    /// Where a worker listens under names that do not depend on the worker: no port 0, no path with
    /// the number of its process. What several workers have there, their successors should have
    /// too.
    ///
    /// # Errors
    /// [`Error::ClusterOver`].
    pub async fn fixed_addresses(&self, worker: WorkerId) -> Result<Vec<Address>> {
        self.driver_handle().ask(|done| Command::FixedAddresses(worker, done)).await
    }

    /// The same, blocking the thread; not for use inside a runtime.
    ///
    /// # Errors
    /// [`Error::ClusterOver`].
    pub fn fixed_addresses_blocking(&self, worker: WorkerId) -> Result<Vec<Address>> {
        self.driver_handle().ask_blocking(|done| Command::FixedAddresses(worker, done))
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
