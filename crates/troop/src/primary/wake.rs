//! The messages to the driver, which owns the primary's state, and the ways to wake it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, oneshot};
use troop_core::WorkerId;
use troop_core::cluster::accepted::Inspection;
use troop_core::cluster::serving::Waits;
use troop_core::event::Address;
use troop_core::policy::{Pattern, Scheduling};
use troop_core::primary::{Successors, WorkerStatus};
use troop_core::supervise::{self, NotReady, OwnInspection, RecycleFailed, ReloadFailed, Reloaded};
use troop_sys::poll::EventFd;
use troop_sys::tree::Found;

use super::adopt::{Starter, SupervisionStatus};
use super::driver::{ConnectionEnds, Execute, Injected, KeeperAnswer, Upgrade};
use super::spawn::Spawned;
use super::{Adoption, Fork, Reload, RestartPolicy, Snapshot, WorkerHandle};
use crate::embed::direct_io::DirectIoAccess;
use crate::error::{Error, Result as Outcome};
use crate::inherited::InheritedSocket;
use crate::setup::Setup;

/// A request to the driver.
pub(crate) enum Command {
    Setup(Box<Setup>),
    Fork(Fork, oneshot::Sender<Outcome<WorkerHandle>>),
    /// A process was started, or could not be.
    Spawned(WorkerId, Box<Outcome<Spawned>>),
    Adopt(Box<Adoption>, oneshot::Sender<Outcome<WorkerHandle>>),
    Disconnect(WorkerId),
    /// Sends a signal to a worker's process.
    Signal(WorkerId, i32, oneshot::Sender<Outcome<()>>),
    /// Returns the counters of a worker.
    Status(WorkerId, oneshot::Sender<Option<WorkerStatus>>),
    /// Changes the scheduling; the answer is the listeners that change only when they are opened
    /// the next time.
    SetScheduling(Option<Pattern>, Scheduling, oneshot::Sender<Vec<Address>>),
    /// Offers a socket to workers.
    Offer(InheritedSocket),
    KeepListeners(bool),
    /// Adds a supervisor that asks the program to start successors of its workers. With the seed of
    /// the back-off.
    Embed(Box<dyn Starter>, u64),
    /// Sets which workers of the program have successors.
    RestartAs(Option<RestartPolicy>, bool),
    /// Asks whether a requested start is still wanted.
    IsStartWanted(u32, oneshot::Sender<bool>),
    /// The program could not start a requested worker, for this reason.
    StartFailed(u32, String),
    /// Asks for the state of supervision; the program has seen the end of this worker.
    Supervision(Option<WorkerId>, oneshot::Sender<SupervisionStatus>),
    /// Announces whether ended workers will be replaced.
    ForksToCome(Successors),
    /// A worker has reported to the program that it is ready.
    ReportedReady(WorkerId),
    /// The program has ended a worker, so that it has no successor.
    Release(WorkerId),
    /// The program has ended all workers, so that none has a successor.
    ReleaseAll,
    Snapshot(oneshot::Sender<Snapshot>),
    /// Asks for the settings of workers.
    CurrentSetup(oneshot::Sender<Arc<Setup>>),
    /// Changes the number of workers; answered when that many are ready and surplus ones have
    /// ended.
    Scale(usize, oneshot::Sender<Outcome<()>>),
    /// Waits for readiness; answered when every slot has a ready worker.
    Ready(oneshot::Sender<Result<usize, NotReady>>),
    /// The answer to a question about a connection.
    Answer(u64, Option<WorkerId>),
    SetWeight(WorkerId, u32, oneshot::Sender<Outcome<()>>),
    /// A thread has consumed a message of this worker's with too many descriptors.
    Consumed(WorkerId),
    /// A thread has consumed a notification of this worker's with descriptors.
    NotificationConsumed(WorkerId),
    /// Closes the primary's end of a worker's channel.
    CloseChannel(WorkerId),
    DisconnectAll(oneshot::Sender<()>),
    /// Replaces the workers.
    Reload(Box<Reload>, oneshot::Sender<Result<Reloaded, ReloadFailed>>),
    /// Ends the workers, and keeps the listeners.
    Pause(oneshot::Sender<Outcome<()>>),
    /// Replaces one worker, for this reason; the answer is its successor.
    Recycle(WorkerId, String, oneshot::Sender<Result<WorkerId, RecycleFailed>>),
    /// A worker has passed a health check, or failed it for this reason.
    HealthChecked(WorkerId, Result<(), String>),
    ServingChecked(WorkerId, Waits),
    /// A thread has inspected the connections of activated sockets.
    ConnectionsInspected(Box<Inspection>),
    /// A thread has inspected where workers listen by themselves, for which the last words of these are
    /// of interest.
    ListenersInspected(Box<(OwnInspection, Vec<WorkerId>)>),
    /// A thread has searched for processes that workers have left behind.
    StraysFound(std::io::Result<Found>),
    /// Hands a worker a connection as if from this listener, or from its first one.
    Inject(WorkerId, Option<Pattern>, ConnectionEnds, oneshot::Sender<Result<Injected, String>>),
    /// Ends the cluster, gracefully or at once; the answer is how it ended.
    Stop {
        at_once: bool,
        reply: oneshot::Sender<Outcome<supervise::Outcome>>,
    },
    /// Leaves the state to the program image that this executes; the answer is why it could not.
    Replace(Execute, oneshot::Sender<Error>),
    /// What the program leaves to another engine has changed.
    NoteChanged,
    /// Answered when everything so far is written down.
    Keep(oneshot::Sender<()>),
    /// Has another engine go on. The answer is why it does not.
    Upgrade(Upgrade, oneshot::Sender<Error>),
    /// Has the keeper execute this program in its own place.
    UpgradeKeeper(PathBuf, KeeperAnswer),
    /// The last handle of the cluster was dropped.
    Over,
}

/// Wakes the driver, once until it has looked.
#[derive(Debug)]
pub(crate) struct Wake {
    pending: AtomicBool,
    /// Workers whose mailboxes are not empty.
    posted: Mutex<Vec<WorkerId>>,
    pub(crate) notify: Notify,
    /// For a driver that waits in a plain thread.
    pub(crate) event_fd: Option<EventFd>,
    /// The way to such a driver.
    pub(crate) direct_io: DirectIoAccess,
}

impl Wake {
    pub(crate) fn new(event_fd: Option<EventFd>) -> Wake {
        Wake {
            pending: AtomicBool::new(false),
            posted: Mutex::default(),
            notify: Notify::new(),
            event_fd,
            direct_io: DirectIoAccess::default(),
        }
    }

    pub(crate) fn wake(&self) {
        if !self.pending.swap(true, Ordering::AcqRel) {
            match &self.event_fd {
                Some(event_fd) => event_fd.signal(),
                None => self.notify.notify_one(),
            }
        }
    }

    pub(crate) fn posted(&self, worker: WorkerId) {
        self.posted.lock().unwrap_or_else(PoisonError::into_inner).push(worker);
        self.wake();
    }

    /// Whether it was woken since the last call; workers with non-empty mailboxes are appended to
    /// `posted`.
    pub(crate) fn answer(&self, posted: &mut Vec<WorkerId>) -> bool {
        if !self.pending.load(Ordering::Acquire) {
            return false;
        }
        // The descriptor is cleared before `pending` is reset: a caller in between does not signal,
        // but is seen below. In the other order the signal of a new caller could be lost.
        if let Some(event_fd) = &self.event_fd {
            event_fd.clear();
        }
        self.pending.swap(false, Ordering::AcqRel);
        posted.append(&mut self.posted.lock().unwrap_or_else(PoisonError::into_inner));
        true
    }
}

/// Sends commands to the driver.
#[derive(Clone)]
pub(crate) struct DriverHandle {
    pub(crate) sender: Sender<Command>,
    pub(crate) wake: Arc<Wake>,
}

impl std::fmt::Debug for DriverHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DriverHandle").finish_non_exhaustive()
    }
}

impl DriverHandle {
    pub(crate) fn send(&self, command: Command) -> Outcome<()> {
        self.sender.send(command).map_err(|_| Error::ClusterOver)?;
        self.wake.wake();
        Ok(())
    }

    /// Sends a command and waits for its outcome. Dropping the future does not take the command
    /// back.
    pub(crate) async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Outcome<T> {
        let (sender, answer) = oneshot::channel();
        self.send(command(sender))?;
        answer.await.map_err(|_| Error::ClusterOver)
    }

    /// Sends a command and blocks until its outcome.
    pub(crate) fn ask_blocking<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Outcome<T> {
        let (sender, answer) = oneshot::channel();
        self.send(command(sender))?;
        answer.blocking_recv().map_err(|_| Error::ClusterOver)
    }
}
