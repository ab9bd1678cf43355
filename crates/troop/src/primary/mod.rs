//! The primary: starts workers, holds listeners, hands connections over, carries messages.
//!
//! [`Builder`] and [`Cluster`] are the API. [`driver`] owns the state, and carries out the
//! decisions of the pure [`troop_core::primary::Primary`].

mod adopt;
mod builder;
mod cgroup;
mod channel;
mod driver;
pub(crate) mod handle;
mod health;
mod listener;
mod operation;
mod output;
mod policies;
pub(crate) mod relay;
pub(crate) mod saved;
mod snapshot;
mod spawn;
mod wake;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
#[cfg(feature = "embed")]
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use tokio::sync::oneshot;
use troop_core::WorkerId;
use troop_core::event::Address;
use troop_core::policy::{Pattern, Scheduling};
use troop_core::supervise::{NotReady, Outcome, RecycleFailed, ReloadFailed, Reloaded};

pub use adopt::Adoption;
#[cfg(feature = "embed")]
pub use adopt::{Start, Starter, SupervisionStatus};
#[cfg(feature = "embed")]
pub(crate) use builder::random_seed;
pub use builder::{Builder, available_workers};
pub use cgroup::Cgroup;
pub(crate) use driver::Driver;
pub use driver::Upgrade;
pub use handle::WorkerHandle;
pub use operation::Operation;
pub(crate) use output::MAX_BYTES as MAX_TAIL;
pub use output::{Output, Source};
pub use policies::{
    HealthCheck, HealthTest, ReadyWhen, RecyclePolicy, Reload, ReplacePolicy, RestartPolicy,
    WhenFailed,
};
pub use saved::{Leaving, LeftDescriptor, RestoredState, Resumption, SavedState, refuse};
pub use snapshot::{
    ListenerSnapshot, LostListener, ModeSnapshot, Phase, Snapshot, Usage, VacantSlot,
    WorkerSnapshot,
};
pub(crate) use wake::{Command, DriverHandle};

use crate::error::{Error, Result};
use crate::event::{Bus, Events};
use crate::inherited::InheritedSocket;
use crate::nesting;
use crate::setup::Setup;

/// The most workers that a supervised cluster can be scaled to.
pub(crate) const MAX_WORKERS: usize = 4096;

/// Additions to the cluster's [`Setup`] for one worker. Node's `cluster.fork(env)`.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct Fork {
    pub(crate) env: BTreeMap<OsString, OsString>,
    pub(crate) weight: Option<u32>,
}

impl Fork {
    /// Returns a fork without additions.
    pub fn new() -> Fork {
        Fork::default()
    }

    /// Adds an environment variable for this worker. Its identity cannot be overridden.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Fork {
        self.env.insert(name.into(), value.into());
        self
    }

    /// Sets the worker's weight: its share of connections in relation to the others' 100, under
    /// schedulings that use weights: `weighted`, `steered`, `least-connections`, `p2c`, `sticky`.
    /// For a canary: `Fork::new().weight(5)`. With 0 it gets none while there are others.
    pub fn weight(mut self, weight: u32) -> Fork {
        self.weight = Some(weight);
        self
    }
}

/// The table of workers: Node's `cluster.workers`.
pub(crate) type Table = Arc<Mutex<BTreeMap<WorkerId, WorkerHandle>>>;

/// A running cluster: the handle of the primary's program.
///
/// ```no_run
/// # async fn primary() -> troop::Result<()> {
/// use troop::{Cluster, Event, Fork};
///
/// let cluster = Cluster::builder().start()?;
/// let mut events = cluster.events();
/// for number in 0..troop::available_workers() {
///     cluster.fork(Fork::new().env("NUMBER", number.to_string())).await?;
/// }
/// while let Some(event) = events.recv().await {
///     if let Event::Exit { worker, exit, .. } = event {
///         eprintln!("worker {} died: {exit}", worker.pid());
///         cluster.fork(Fork::new()).await?;
///     }
/// }
/// # Ok(())
/// # }
/// ```
///
/// Cheap to copy. When the last copy is dropped, the workers' channels are closed,
/// which ends them.
#[derive(Debug, Clone)]
pub struct Cluster {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    driver_handle: DriverHandle,
    bus: Arc<Bus>,
    table: Table,
    /// Whether workers get sockets instead of a channel (activation).
    has_activation: bool,
    /// A supervisor decides on the number of workers.
    is_supervised: AtomicBool,
}

impl Drop for Inner {
    fn drop(&mut self) {
        let _ = self.driver_handle.send(Command::Over);
    }
}

/// The outcome of a broadcast.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Broadcast {
    /// Number of workers that the message is queued for.
    pub sent: usize,
    /// Workers that it could not be queued for, and why.
    pub failed: Vec<(WorkerHandle, Error)>,
}

impl Cluster {
    pub(crate) fn new(
        driver_handle: DriverHandle,
        bus: Arc<Bus>,
        table: Table,
        has_activation: bool,
        is_supervised: bool,
    ) -> Cluster {
        let is_supervised = AtomicBool::new(is_supervised);
        let inner = Inner { driver_handle, bus, table, has_activation, is_supervised };
        Cluster { inner: Arc::new(inner) }
    }

    /// Returns an error for operations that have no effect on workers without a channel.
    fn refuse_with_activation(&self, operation: &str, reason: &str) -> Result<()> {
        if !self.inner.has_activation {
            return Ok(());
        }
        Err(Error::Settings(format!(
            "Cluster::{operation} has no effect with Builder::activation: {reason}"
        )))
    }

    /// A supervisor decides on the number of workers from now on.
    #[cfg(feature = "embed")]
    pub(crate) fn note_supervision(&self) {
        self.inner.is_supervised.store(true, Ordering::Relaxed);
    }

    /// Whether a supervisor decides on the number of workers.
    #[cfg(feature = "embed")]
    pub(crate) fn is_supervised(&self) -> bool {
        self.inner.is_supervised.load(Ordering::Relaxed)
    }

    /// The way to the driver.
    pub(crate) fn driver_handle(&self) -> &DriverHandle {
        &self.inner.driver_handle
    }

    /// Starts to configure a cluster.
    pub fn builder() -> Builder {
        Builder::new()
    }

    /// Changes the settings of later forks, cumulatively, as Node's `cluster.setupPrimary`.
    ///
    /// # Errors
    /// [`Error::ClusterOver`].
    pub fn setup(&self, changes: Setup) -> Result<()> {
        self.inner.driver_handle.send(Command::Setup(Box::new(changes)))
    }

    /// Starts a worker. Resolves when its process runs. Dropping the future does not take the fork
    /// back.
    ///
    /// # Errors
    /// [`Error::Spawn`] with the real cause; [`Error::Settings`], also for a [`Fork::weight`] where
    /// no listener's scheduling goes by weights, or with [`Builder::activation`];
    /// [`Error::ClusterOver`].
    pub async fn fork(&self, fork: Fork) -> Result<WorkerHandle> {
        nesting::may_be_embedded()?;
        self.inner.driver_handle.ask(|done| Command::Fork(fork, done)).await?
    }

    /// Subscribes to the events from now on.
    #[must_use]
    pub fn events(&self) -> Events {
        self.inner.bus.subscribe(crate::queue::MAX_BYTES)
    }

    /// Subscribes to the events from now on. At most `max_bytes` of them wait when they are not
    /// read.
    #[must_use]
    pub fn events_within(&self, max_bytes: usize) -> Events {
        self.inner.bus.subscribe(max_bytes)
    }

    /// Returns the live workers by number. As in Node, a worker leaves this table when the primary
    /// tells it to disconnect, or else with the later of its disconnect and its exit.
    #[must_use]
    pub fn workers(&self) -> Vec<WorkerHandle> {
        self.inner.table.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Returns a live worker by its number.
    #[must_use]
    pub fn worker(&self, id: WorkerId) -> Option<WorkerHandle> {
        self.inner.table.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// Sends a message to all connected workers. A worker whose queue is full, or that is leaving,
    /// is reported, not waited for.
    pub fn broadcast<T: Serialize + ?Sized>(&self, message: &T) -> Broadcast {
        let mut result = Broadcast::default();
        for worker in self.workers() {
            match worker.try_send(message) {
                Ok(()) => result.sent += 1,
                Err(e) => result.failed.push((worker, e)),
            }
        }
        result
    }

    /// Tells all workers to finish, and waits until every process has ended and the listeners are
    /// closed. There is no deadline; a worker that does not leave can be
    /// [killed](WorkerHandle::kill). (Node calls back when the *first* worker is gone.)
    ///
    /// # Errors
    /// [`Error::ClusterOver`].
    pub async fn disconnect(&self) -> Result<()> {
        self.inner.driver_handle.ask(Command::DisconnectAll).await
    }

    /// Replaces supervised workers, each only after its successor is ready, as far as the
    /// [`ReplacePolicy`](crate::supervise::ReplacePolicy) says so, and answers when the last one has taken
    /// over. Old workers may still be finishing then.
    ///
    /// If the reload fails, the old workers that are left go on, and so do the new ones that have
    /// proven good: there is nothing to go back to. With [`Cluster::reload_as`] there is.
    ///
    /// ```no_run
    /// # async fn example(cluster: troop::Cluster) -> troop::Result<()> {
    /// use troop::supervise::ReloadFailed;
    ///
    /// match cluster.reload().await {
    ///     Ok(done) => println!("{} workers replaced", done.replaced),
    ///     Err(ReloadFailed::Failed { reason, then, .. }) => {
    ///         eprintln!("{reason}, so {then:?}: {}", reason.last_lines().unwrap_or_default());
    ///     }
    ///     Err(refused) => return Err(refused.into()),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ReloadFailed`]: which worker ended, how, and its last lines; or why it did not begin.
    pub fn reload(&self) -> Operation<Reloaded, ReloadFailed> {
        self.reload_with(Reload::new())
    }

    /// Replaces supervised workers as [`Cluster::reload`] does, with these changes to what they are
    /// started with. If the reload fails, the changes are undone, and workers that it started are
    /// replaced again.
    ///
    /// # Errors
    /// As [`Cluster::reload`].
    pub fn reload_as(&self, changes: Setup) -> Operation<Reloaded, ReloadFailed> {
        self.reload_with(Reload::new().setup(changes))
    }

    /// Replaces supervised workers as [`Cluster::reload`] does, with options. A reload fails if no
    /// new worker listens on an address of the old ones, unless that is
    /// [allowed](Reload::allow_moved).
    ///
    /// # Errors
    /// As [`Cluster::reload`].
    pub fn reload_with(&self, reload: Reload) -> Operation<Reloaded, ReloadFailed> {
        let command = |reply| Command::Reload(Box::new(reload), reply);
        Operation::ask(self, || ReloadFailed::Over, command)
    }

    /// Replaces one supervised worker, its successor first. Resolves to the successor's number when
    /// that has taken over. The event of the replacement quotes `reason`.
    ///
    /// # Errors
    /// [`RecycleFailed`].
    pub fn recycle(
        &self,
        worker: WorkerId,
        reason: impl Into<String>,
    ) -> Operation<WorkerId, RecycleFailed> {
        let command = |reply| Command::Recycle(worker, reason.into(), reply);
        Operation::ask(self, || RecycleFailed::Over, command)
    }

    /// Resolves to the number of ready workers when every slot has one; at once if that is so
    /// already. Workers that have ended successfully, and are not restarted, are not waited for. There is no deadline but what the
    /// [`RestartPolicy`](crate::supervise::RestartPolicy) says: once a worker has been ready, restarts go on.
    ///
    /// ```no_run
    /// # async fn example() -> troop::Result<()> {
    /// let cluster = troop::Cluster::builder().workers(4).start()?;
    /// cluster.ready().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`NotReady`]: why supervision has given up, or why there is nothing to wait for.
    pub fn ready(&self) -> Operation<usize, NotReady> {
        Operation::ask(self, || NotReady::Over, Command::Ready)
    }

    /// Ends all supervised workers gracefully and keeps their listeners, so that clients wait,
    /// until [`Cluster::reload`] starts new ones. Resolves when the workers have ended, after the
    /// [grace period](Builder::grace) at the latest.
    ///
    /// # Errors
    /// [`Error::NotReady`] if the cluster is stopping, or has no supervisor;
    /// [`Error::ClusterOver`].
    pub fn pause(&self) -> Operation<()> {
        Operation::ask(self, || Error::ClusterOver, Command::Pause)
    }

    /// Returns the state of the cluster and its workers now. Costs a few system calls per worker.
    ///
    /// # Errors
    /// [`Error::ClusterOver`].
    pub async fn snapshot(&self) -> Result<Snapshot> {
        let mut snapshot = self.inner.driver_handle.ask(Command::Snapshot).await?;
        snapshot.complete();
        Ok(snapshot)
    }

    /// Changes the number of supervised workers. Resolves when as many are ready and the surplus
    /// ones have ended; there is no deadline for new workers, which are restarted as the
    /// [`RestartPolicy`](crate::supervise::RestartPolicy) says. New workers start at once. Surplus
    /// workers drain, those with the highest slots first, and listeners that no other worker has are
    /// closed. With 0 workers the listeners stay open, and clients wait.
    ///
    /// # Errors
    /// [`Error::Settings`] for more than 4096 workers; [`Error::NotReady`] if another number was
    /// asked for meanwhile, or the cluster is paused, stopping, has given up, or has no supervisor;
    /// [`Error::ClusterOver`]. A paused cluster has that many workers when a reload has started
    /// them.
    pub fn scale(&self, workers: usize) -> Operation<()> {
        let over = || Error::ClusterOver;
        if workers > MAX_WORKERS {
            let why = format!("a cluster has 0 to {MAX_WORKERS} workers, not {workers}");
            return Operation::refused(self, over, Error::Settings(why));
        }
        Operation::ask(self, over, |reply| Command::Scale(workers, reply))
    }

    /// Changes how connections are spread: of one listener (`"127.0.0.1:8000"`, `"8000"`,
    /// `"udp:53"`, `"/run/app.sock"`: see [`Pattern`](crate::policy::Pattern)), or, with `None`, of
    /// all listeners without a scheduling of their own. Where the primary hands connections over
    /// before and after, open listeners change at once. To and from [`Scheduling::Shared`] and
    /// [`Scheduling::Steered`] they change when they are opened the next time; those are returned.
    ///
    /// # Errors
    /// [`Error::Settings`] with [`Builder::activation`], where the primary hands nothing over;
    /// [`Error::ClusterOver`].
    pub async fn set_scheduling(
        &self,
        listener: Option<Pattern>,
        scheduling: Scheduling,
    ) -> Result<Vec<Address>> {
        self.refuse_with_activation(
            "set_scheduling",
            "workers accept by themselves, and the kernel chooses among them",
        )?;
        self.inner
            .driver_handle
            .ask(|done| Command::SetScheduling(listener, scheduling, done))
            .await
    }

    /// Offers one more socket of this process to workers; see [`Builder::inherited`].
    ///
    /// # Errors
    /// [`Error::Settings`] with [`Builder::activation`], where workers ask for no sockets;
    /// [`Error::ClusterOver`].
    pub fn offer(&self, socket: InheritedSocket) -> Result<()> {
        self.refuse_with_activation("offer", "its sockets are all that workers get")?;
        self.inner.driver_handle.send(Command::Offer(socket))
    }

    /// Changes [`Builder::keep_listeners`]. With false, listeners without workers close
    /// immediately.
    ///
    /// # Errors
    /// [`Error::ClusterOver`].
    pub fn keep_listeners(&self, keep: bool) -> Result<()> {
        self.inner.driver_handle.send(Command::KeepListeners(keep))
    }

    /// Stops a supervised cluster gracefully: its workers drain, and are killed after the
    /// [grace period](Builder::grace). Resolves when all have ended. Another call changes nothing;
    /// [`Cluster::stop_now`] does not wait.
    ///
    /// # Errors
    /// [`Error::NotReady`] if the cluster has no supervisor; [`Error::ClusterOver`] if it has ended
    /// already.
    pub fn stop(&self) -> Operation<Outcome> {
        Operation::ask(self, || Error::ClusterOver, |reply| Command::Stop { at_once: false, reply })
    }

    /// Has this process execute another program, a newer version of this one for example, that
    /// goes on with the cluster: see [`replace`](crate::replace). As soon as nothing is under way that
    /// cannot be written down, such as a reload or the start of a worker, `execute` is called in the
    /// primary's thread, to [execute](SavedState::execute) the program; it must neither send messages nor
    /// ask this cluster for anything. If that fails, the cluster goes on as before.
    ///
    /// Returns only if this program was not replaced.
    ///
    /// # Errors
    /// [`Error::NotReplaced`] says what is still under way after 5 s, or why this cluster cannot be
    /// written down: with [`Builder::activation`] and no keeper, where the program chooses workers, or where
    /// [`Builder::run`] does not run it. [`Error::Io`] if the program could not be executed.
    /// [`Error::ClusterOver`].
    pub async fn replace(
        &self,
        execute: impl FnOnce(&SavedState<'_>) -> std::io::Error + Send + 'static,
    ) -> Error {
        let command = |failed| Command::Replace(Box::new(execute), failed);
        self.inner.driver_handle.ask(command).await.unwrap_or_else(|over| over)
    }

    /// As [`Cluster::replace`], for code that is not async.
    ///
    /// # Panics
    /// In a task of a tokio runtime.
    pub fn replace_blocking(
        &self,
        execute: impl FnOnce(&SavedState<'_>) -> std::io::Error + Send + 'static,
    ) -> Error {
        let command = |failed| Command::Replace(Box::new(execute), failed);
        self.inner.driver_handle.ask_blocking(command).unwrap_or_else(|over| over)
    }

    /// Has the note of [`Builder::keep_state`] written down again: it has changed.
    ///
    /// # Errors
    /// [`Error::ClusterOver`].
    pub fn note_changed(&self) -> Result<()> {
        self.inner.driver_handle.send(Command::NoteChanged)
    }

    /// Has the state and the note of [`Builder::keep_state`] written down at once, and returns when that is
    /// done: if this engine is killed from then on, the next one knows of everything that has happened
    /// until now. Returns at once where no state is kept.
    ///
    /// # Errors
    /// [`Error::ClusterOver`].
    pub async fn keep_now(&self) -> Result<()> {
        self.inner.driver_handle.ask(Command::Keep).await
    }

    /// Has another engine go on with the cluster, that of a newer version for example: see
    /// [`keeper`](crate::keeper). It is started beside this one, and says that it could go on; then this
    /// one leaves everything to it. Until then nothing has changed, and if it does not say so within 5 s,
    /// nothing does.
    ///
    /// Returns only if this engine goes on.
    ///
    /// # Errors
    /// [`Error::NotReplaced`] says why; also where this program is not [kept](crate::keeper), and in the
    /// cases of [`Cluster::replace`]. [`Error::ClusterOver`].
    pub async fn upgrade(&self, upgrade: Upgrade) -> Error {
        let command = |failed| Command::Upgrade(upgrade, failed);
        self.inner.driver_handle.ask(command).await.unwrap_or_else(|over| over)
    }

    /// Has the [keeper](crate::keeper) execute another program in its own place, a newer version of it: its
    /// process stays, and so do this engine and all workers. First it asks the program whether that could go
    /// on; if it cannot, or has not said so within 5 s, nothing changes. Returns the version of the former
    /// program.
    ///
    /// # Errors
    /// [`Error::NotReplaced`] says why the keeper stays what it is; also where this program is not
    /// [kept](crate::keeper). [`Error::ClusterOver`].
    pub async fn upgrade_keeper(&self, program: impl Into<PathBuf>) -> Result<String> {
        let program = program.into();
        let command = |answer| Command::UpgradeKeeper(program, answer);
        self.inner.driver_handle.ask(command).await?
    }

    /// Stops a supervised cluster at once: kills its workers, draining ones included.
    ///
    /// # Errors
    /// As [`Cluster::stop`].
    pub fn stop_now(&self) -> Operation<Outcome> {
        Operation::ask(self, || Error::ClusterOver, |reply| Command::Stop { at_once: true, reply })
    }
}

/// Callers that wait for the end of all workers.
pub(crate) type ShutdownWaiters = Vec<oneshot::Sender<()>>;
