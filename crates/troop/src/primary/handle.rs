//! Handles of workers for the primary's program.

use std::fmt;
use std::io::PipeReader;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use troop_core::WorkerId;
use troop_core::primary::{WorkerState, WorkerStats, WorkerStatus};

use super::output::Tail;
use super::wake::{Command, DriverHandle, Wake};
use crate::channel::Mailbox;
use crate::error::Result;
use crate::message::Handle;
use crate::trace::Span;

pub(crate) struct Shared {
    pub(crate) id: WorkerId,
    pub(crate) pid: u32,
    pub(crate) mailbox: Mailbox,
    /// Number of its sockets in messages that the program has neither taken nor dropped.
    pub(crate) held: Arc<AtomicUsize>,
    pub(crate) status: Mutex<WorkerStatus>,
    pub(crate) pipes: Mutex<[Option<OwnedFd>; 3]>,
    pub(crate) tail: Option<Arc<Tail>>,
    /// The signals that the cluster has sent it to end it, one bit each.
    pub(crate) signals: AtomicU64,
    /// Those of them by which it was asked to finish.
    pub(crate) asked: AtomicU64,
    pub(crate) driver_handle: DriverHandle,
    /// Its span, for subscribers of `tracing`.
    #[cfg_attr(not(feature = "tracing"), expect(dead_code, reason = "it is empty"))]
    pub(crate) span: Span,
}

/// A worker, seen from its primary: Node's `Worker` object. Cheap to clone; can be read after the
/// worker's end.
///
/// ```no_run
/// # async fn example(cluster: troop::Cluster) -> troop::Result<()> {
/// use std::time::Duration;
///
/// use troop::Fork;
///
/// let worker = cluster.fork(Fork::new().env("ROLE", "indexer")).await?;
/// worker.send("start").await?;
/// let progress: f64 = worker.request("how far are you?", Duration::from_secs(5)).await?;
/// println!("worker {}, process {}: {progress}", worker.id(), worker.pid());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct WorkerHandle {
    pub(crate) shared: Arc<Shared>,
}

impl fmt::Debug for WorkerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerHandle")
            .field("id", &self.id())
            .field("pid", &self.pid())
            .field("state", &self.state())
            .finish()
    }
}

fn bit(signal: i32) -> u64 {
    u32::try_from(signal).ok().and_then(|signal| 1_u64.checked_shl(signal)).unwrap_or(0)
}

impl PartialEq for WorkerHandle {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }
}

impl Eq for WorkerHandle {}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl WorkerHandle {
    /// Returns the worker's number: 1 for the first fork, never used again.
    #[must_use]
    pub fn id(&self) -> WorkerId {
        self.shared.id
    }

    /// Returns the number of the worker's process. After the exit the system may give the number to
    /// another process; [`WorkerHandle::kill`] never hits that.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.shared.pid
    }

    fn status(&self) -> WorkerStatus {
        *lock(&self.shared.status)
    }

    /// Returns the number of open connections that the worker reported last, without asking the
    /// primary. `None` if it reports none.
    pub(crate) fn open_at_last(&self) -> Option<u32> {
        let status = self.status();
        status.reports_open.then_some(status.stats.open)
    }

    /// Returns the worker's state: Node's `worker.state`.
    #[must_use]
    pub fn state(&self) -> WorkerState {
        self.status().state
    }

    /// Returns Node's `worker.exitedAfterDisconnect`: `None` until something is known; true if the
    /// worker left because somebody asked it to (not by [`WorkerHandle::kill`]).
    #[must_use]
    pub fn exited_after_disconnect(&self) -> Option<bool> {
        self.status().exited_after_disconnect
    }

    /// Whether the worker's channel is open.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.status().connected
    }

    /// Whether the worker's process has ended.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.status().state == WorkerState::Dead
    }

    /// Returns the worker's counters; after its end, those of its disconnect.
    pub async fn stats(&self) -> WorkerStats {
        let now = self.shared.driver_handle.ask(|done| Command::Status(self.id(), done)).await;
        now.ok().flatten().unwrap_or_else(|| self.status()).stats
    }

    /// As [`WorkerHandle::stats`], for code that is not async. Waits for the primary's turn, which
    /// is short.
    ///
    /// # Panics
    /// In a task of a tokio runtime.
    #[must_use]
    pub fn stats_blocking(&self) -> WorkerStats {
        let now = self.shared.driver_handle.ask_blocking(|done| Command::Status(self.id(), done));
        now.ok().flatten().unwrap_or_else(|| self.status()).stats
    }

    /// Returns the number of bytes of messages that wait to be written to the worker.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.shared.mailbox.queued()
    }

    /// Sends a message, waiting for room in the queue (1 MiB) if the worker does not read fast
    /// enough. `Ok` means queued in order; if the worker ends before everything has been written,
    /// an [`Event::Error`](crate::Event::Error) says so. Cancel safe: a dropped call has sent all
    /// or nothing.
    ///
    /// # Errors
    /// [`Error::Closed`](crate::Error::Closed), [`Error::Json`](crate::Error::Json).
    pub async fn send<T: Serialize + ?Sized>(&self, message: &T) -> Result<()> {
        self.shared.mailbox.send(message).await
    }

    /// Sends a message if there is room for it in the queue.
    ///
    /// # Errors
    /// As [`WorkerHandle::send`], and [`Error::Full`](crate::Error::Full).
    pub fn try_send<T: Serialize + ?Sized>(&self, message: &T) -> Result<()> {
        self.shared.mailbox.try_send(message)
    }

    /// Sends a message with an open socket, and waits until the worker has received it. The
    /// primary's copy is closed then.
    ///
    /// # Errors
    /// [`Error::HandleRefused`](crate::Error::HandleRefused) if the worker could not receive it in
    /// three attempts, and as [`WorkerHandle::send`].
    pub async fn send_handle<T: Serialize + ?Sized>(
        &self,
        message: &T,
        handle: impl Into<Handle>,
    ) -> Result<()> {
        self.shared.mailbox.send_handle(message, handle.into()).await
    }

    /// Sends a request and waits up to `timeout` for the reply. Must be called in a tokio runtime.
    /// See [`Request`](crate::Request) for what goes over the wire.
    ///
    /// # Errors
    /// [`Error::TimedOut`](crate::Error::TimedOut), [`Error::Refused`](crate::Error::Refused), and
    /// as [`WorkerHandle::send`].
    pub async fn request<Q: Serialize + ?Sized, A: DeserializeOwned>(
        &self,
        question: &Q,
        timeout: Duration,
    ) -> Result<A> {
        self.shared.mailbox.request(question, timeout).await?.decode()
    }

    /// Asks the worker to finish: it gets no more connections, closes its servers, ends when their
    /// connections have ended.
    ///
    /// # Errors
    /// [`Error::ClusterOver`](crate::Error::ClusterOver).
    pub fn disconnect(&self) -> Result<()> {
        self.shared.driver_handle.send(Command::Disconnect(self.id()))
    }

    /// Closes the primary's end of the channel, at which Node workers and troop workers end by
    /// themselves. Node's `worker.process.disconnect()`.
    ///
    /// # Errors
    /// [`Error::ClusterOver`](crate::Error::ClusterOver).
    pub fn close_channel(&self) -> Result<()> {
        self.shared.driver_handle.send(Command::CloseChannel(self.id()))
    }

    /// Sends a signal (a number of `signal(7)`, such as 15 for `SIGTERM`) to the worker's process,
    /// and only to that.
    ///
    /// # Errors
    /// [`Error::NoWorker`](crate::Error::NoWorker) if it has ended, or the system's refusal.
    pub async fn kill(&self, signal: i32) -> Result<()> {
        self.shared.driver_handle.ask(|done| Command::Signal(self.id(), signal, done)).await?
    }

    pub(crate) fn note_signal(&self, signal: i32) {
        self.shared.signals.fetch_or(bit(signal), Ordering::Relaxed);
    }

    /// Returns true if the cluster itself sent the worker this signal to end it: after a violation,
    /// when it was hung or not ready in time, or did not finish. [`WorkerHandle::kill`] does not
    /// count.
    #[must_use]
    pub fn was_ended_by(&self, signal: i32) -> bool {
        self.shared.signals.load(Ordering::Relaxed) & bit(signal) != 0
    }

    pub(crate) fn note_asked(&self, signal: i32) {
        self.shared.asked.fetch_or(bit(signal), Ordering::Relaxed);
    }

    /// Returns true if the cluster asked the worker to finish by this signal, because it is one that
    /// messages do not reach. If the signal then ends it, it has done as it was asked.
    #[must_use]
    pub fn was_asked_by(&self, signal: i32) -> bool {
        self.shared.asked.load(Ordering::Relaxed) & bit(signal) != 0
    }

    /// Returns true if the cluster has sent the worker any signal to end it.
    #[must_use]
    pub fn was_to_end(&self) -> bool {
        self.shared.signals.load(Ordering::Relaxed) != 0
    }

    /// Changes the worker's weight; see [`Fork::weight`](crate::Fork::weight). A supervised worker's
    /// successor has the weight of its slot again ([`Builder::weights`](crate::Builder::weights)).
    ///
    /// # Errors
    /// [`Error::NoWorker`](crate::Error::NoWorker) if it has ended;
    /// [`Error::Settings`](crate::Error::Settings) where nothing goes by its weight: no listener's
    /// scheduling does ([`Scheduling::is_weighted`](crate::Scheduling::is_weighted)), or, with
    /// [`Builder::activation`](crate::Builder::activation), no socket is
    /// [steered](crate::activation::ActivationSocket::bind_steered) or the worker is not supervised.
    pub async fn set_weight(&self, weight: u32) -> Result<()> {
        self.shared.driver_handle.ask(|done| Command::SetWeight(self.id(), weight, done)).await?
    }

    /// Returns the worker's slot: a small number that no other worker has, but for a successor that
    /// replaces it.
    #[must_use]
    pub fn slot(&self) -> u32 {
        self.status().slot
    }

    fn take_pipe(&self, number: usize) -> Option<OwnedFd> {
        lock(&self.shared.pipes).get_mut(number).and_then(Option::take)
    }

    /// Takes the writing end of the worker's standard input, if that is
    /// [`Stdio::Pipe`](crate::setup::Stdio::Pipe) and was not taken yet.
    #[must_use]
    pub fn take_stdin(&self) -> Option<std::io::PipeWriter> {
        self.take_pipe(0).map(Into::into)
    }

    /// Takes the reading end of the worker's standard output, if that is
    /// [`Stdio::Pipe`](crate::setup::Stdio::Pipe) and was not taken yet. A worker blocks when the
    /// pipe is full.
    #[must_use]
    pub fn take_stdout(&self) -> Option<PipeReader> {
        self.take_pipe(1).map(Into::into)
    }

    /// Takes the reading end of the worker's standard error, if that is
    /// [`Stdio::Pipe`](crate::setup::Stdio::Pipe) and was not taken yet.
    #[must_use]
    pub fn take_stderr(&self) -> Option<PipeReader> {
        self.take_pipe(2).map(Into::into)
    }

    /// Returns the last lines that the worker wrote to standard error, if that is
    /// [`Stdio::Forward`](crate::setup::Stdio::Forward). Waits up to `patience` for the end of the
    /// stream, so that what a dying worker wrote is complete.
    #[must_use]
    pub fn last_stderr(&self, patience: Duration) -> Option<String> {
        self.shared.tail.as_ref().map(|tail| tail.text(patience))
    }

    /// Returns what is kept of its standard error, for longer than the handle.
    pub(super) fn kept_stderr(&self) -> Option<Arc<Tail>> {
        self.shared.tail.clone()
    }

    /// Requests a wake-up of the driver when standard error ends. Returns false if standard error
    /// is not kept.
    pub(super) fn wakes_when_stderr_ends(&self, wake: Weak<Wake>) -> bool {
        self.shared.tail.as_ref().map(|tail| tail.wake_at_end(wake)).is_some()
    }

    /// Whether its last lines are complete, or not kept.
    pub(super) fn stderr_ended(&self) -> bool {
        self.shared.tail.as_ref().is_none_or(|tail| tail.has_ended())
    }
}
