//! How everybody else talks to the one who owns the primary's state.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use tokio::sync::{Notify, oneshot};
use troop_core::WorkerId;
use troop_core::event::Address;
use troop_core::policy::{Pattern, Scheduling};
use troop_core::primary::{Successors, WorkerStatus};
use troop_core::supervise::{self, NotReady, RecycleFailed, ReloadFailed, Reloaded};
use troop_sys::poll::EventFd;

use super::adopt::{Starter, SupervisionStatus};
use super::driver::{ConnectionEnds, Injected, Shared};
use super::spawn::Spawned;
use super::{Adoption, Fork, Reload, RestartPolicy, Snapshot, WorkerHandle};
use crate::error::{Error, Result as Outcome};
use crate::inherited::InheritedSocket;
use crate::setup::Setup;

/// What the driver is asked to do.
pub(crate) enum Command {
    Setup(Box<Setup>),
    Fork(Fork, oneshot::Sender<Outcome<WorkerHandle>>),
    /// A process has been started, or not.
    Spawned(WorkerId, Box<Outcome<Spawned>>),
    Adopt(Box<Adoption>, oneshot::Sender<Outcome<WorkerHandle>>),
    Disconnect(WorkerId),
    /// Sends a signal to a worker's process.
    Signal(WorkerId, i32, oneshot::Sender<Outcome<()>>),
    /// What the core knows about a worker now.
    Status(WorkerId, oneshot::Sender<Option<WorkerStatus>>),
    /// Changes how connections are spread; the answer is the listeners that it will only be true of
    /// later.
    SetScheduling(Option<Pattern>, Scheduling, oneshot::Sender<Vec<Address>>),
    /// Lets workers have this socket.
    Offer(InheritedSocket),
    KeepListeners(bool),
    /// The program starts the workers itself, and a supervisor asks it for those that follow
    /// others. With the seed of its back-off.
    Embed(Box<dyn Starter>, u64),
    /// Which workers that the program has started are followed by others.
    RestartAs(Option<RestartPolicy>, bool),
    /// Whether a worker is still wanted that the program was asked for.
    IsStartWanted(u32, oneshot::Sender<bool>),
    /// The program could not start a worker that it was asked for, for this reason.
    StartFailed(u32, String),
    /// What supervision is about; the program has seen the end of this worker.
    Supervision(Option<WorkerId>, oneshot::Sender<SupervisionStatus>),
    /// Whether workers are to be forked in the place of those that have ended.
    ForksToCome(Successors),
    /// A worker has told the program that it is ready.
    ReportedReady(WorkerId),
    /// The program has told a worker to leave, so that nobody follows it.
    Release(WorkerId),
    /// The same of all workers.
    ReleaseAll,
    Snapshot(oneshot::Sender<Snapshot>),
    /// What workers are started with now.
    CurrentSetup(oneshot::Sender<Arc<Setup>>),
    /// The answer is sent when as many are ready and the others gone.
    Scale(usize, oneshot::Sender<Outcome<()>>),
    /// The answer is sent when every slot has a ready worker.
    Ready(oneshot::Sender<Result<usize, NotReady>>),
    /// The answer to a question about a connection.
    Answer(u64, Option<WorkerId>),
    SetWeight(WorkerId, u32, oneshot::Sender<Outcome<()>>),
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
    /// Gives a worker a connection as if from this listener, or from its first.
    Inject(WorkerId, Option<Pattern>, ConnectionEnds, oneshot::Sender<Result<Injected, String>>),
    /// Ends the cluster, gracefully or at once; the answer is how it ended.
    Stop {
        at_once: bool,
        reply: oneshot::Sender<Outcome<supervise::Outcome>>,
    },
    /// Nobody has a handle to the cluster any more.
    Over,
}

/// Wakes the driver, once until it looks.
#[derive(Debug)]
pub(crate) struct Wake {
    pending: AtomicBool,
    /// Workers whose mailboxes have something.
    posted: Mutex<Vec<WorkerId>>,
    pub(crate) notify: Notify,
    /// For a driver that waits in a plain thread.
    pub(crate) event_fd: Option<EventFd>,
    /// Such a driver.
    direct_io: OnceLock<Weak<Shared>>,
}

impl Wake {
    pub(crate) fn new(event_fd: Option<EventFd>) -> Wake {
        Wake {
            pending: AtomicBool::new(false),
            posted: Mutex::default(),
            notify: Notify::new(),
            event_fd,
            direct_io: OnceLock::new(),
        }
    }

    /// The driver can be helped.
    pub(crate) fn allow_direct_io(&self, driver: &Arc<Shared>) {
        let _ = self.direct_io.set(Arc::downgrade(driver));
    }

    /// The driver, if it can be helped and is not over.
    pub(crate) fn direct_io(&self) -> Option<Arc<Shared>> {
        self.direct_io.get()?.upgrade()
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

    /// Whether somebody has called since this was last asked; the mailboxes with something are
    /// appended to `posted`.
    pub(crate) fn answer(&self, posted: &mut Vec<WorkerId>) -> bool {
        if !self.pending.load(Ordering::Acquire) {
            return false;
        }
        // Hushed before `pending` is taken back: who calls in between does not ring, but is heard
        // below; the other way round the ring of a new caller could be swallowed.
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
        f.debug_struct("Commander").finish_non_exhaustive()
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

    /// The same, blocking the thread.
    pub(crate) fn ask_blocking<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Outcome<T> {
        let (sender, answer) = oneshot::channel();
        self.send(command(sender))?;
        answer.blocking_recv().map_err(|_| Error::ClusterOver)
    }
}
