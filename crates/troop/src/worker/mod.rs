//! The worker's side: listeners, messages, draining.

pub mod blocking;
mod counted;
mod incoming;
mod inner;
mod link;
mod listen;
#[cfg(feature = "metrics")]
mod metrics;
mod movable;
mod moves;
pub mod net;
mod queue;

use std::fmt;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use troop_core::WorkerId;

#[cfg(feature = "_serve")]
pub(crate) use inner::Turn;
pub(crate) use inner::{Alive, Inner};
pub use listen::Listen;
pub(crate) use listen::{Opened, Registration, Source};
#[cfg(feature = "_serve")]
pub(crate) use movable::Movable;
pub(crate) use queue::ConnQueue;

use crate::error::{Error, Result};
use crate::message::{Handle, Message, Request};
use crate::queue::{Reader, Weigh};
use net::{TcpListener, UnixListener};

/// Time that the end of a worker waits until its last messages are written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// The identity of a worker, before anything runs; [`WorkerRole::block_on`] starts the worker.
#[derive(Debug)]
#[must_use]
pub struct WorkerRole {
    id: Option<WorkerId>,
    channel: Option<OwnedFd>,
    advanced: bool,
}

impl WorkerRole {
    pub(crate) fn attached(id: WorkerId, channel: OwnedFd, advanced: bool) -> WorkerRole {
        WorkerRole { id: Some(id), channel: Some(channel), advanced }
    }

    pub(crate) fn alone() -> WorkerRole {
        WorkerRole { id: None, channel: None, advanced: false }
    }

    /// Returns the worker's number; `None` if it runs alone.
    #[must_use]
    pub fn id(&self) -> Option<WorkerId> {
        self.id
    }

    /// Runs an async program on a single-threaded tokio runtime, and blocks until it is done. Then
    /// the last messages are written (for up to 5 s) and the channel is closed.
    ///
    /// A closure (`async |worker| …`) can be used if the type of its errors can be inferred from
    /// the use of the result. Outside a cluster ([`crate::worker`] gives such a role too) the
    /// program runs alone:
    ///
    /// ```
    /// async fn program(worker: troop::Worker) -> troop::Result<u16> {
    ///     let listener = worker.listen("127.0.0.1:0").await?;
    ///     Ok(listener.local_addr()?.port())
    /// }
    /// assert_ne!(troop::worker()?.block_on(program)?, 0);
    /// # Ok::<(), troop::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of the program, or that no runtime could be made.
    pub fn block_on<T, E: From<Error>>(
        self,
        program: impl AsyncFnOnce(Worker) -> Result<T, E>,
    ) -> Result<T, E> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime =
            runtime.map_err(|e| E::from(Error::Io { doing: "start a runtime", source: e }))?;
        runtime.block_on(async {
            let worker = self.start().map_err(E::from)?;
            let inner = worker.inner.clone();
            let result = inner.span.wrap(program(worker)).await;
            inner.finish(FLUSH_TIMEOUT).await;
            result
        })
    }

    /// Starts the worker in the current tokio runtime. When the last copy of the [`Worker`] and the
    /// last listener are dropped, the channel is closed.
    ///
    /// # Errors
    /// If the runtime cannot take the channel.
    ///
    /// # Panics
    /// Outside a tokio runtime that has I/O and time enabled.
    pub fn start(self) -> Result<Worker> {
        let (inner, messages) = Inner::new(self.id);
        let span = inner.span.clone();
        if let Some(channel) = self.channel {
            let link = link::Link::new(channel, self.advanced, inner.clone())
                .map_err(Error::io("watch the channel"))?;
            tokio::spawn(span.wrap(link.run()));
        }
        Ok(Worker::new(inner, messages))
    }

    /// Runs the worker's channel in a separate thread, for programs that block.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn blocking(self) -> Result<crate::blocking::Worker> {
        crate::blocking::Worker::start(self)
    }
}

/// A running worker: the handle of its own program. Cheap to copy.
///
/// ```no_run
/// # fn main() -> troop::Result<()> {
/// troop::worker()?.block_on(async |worker| {
///     let listener = worker.listen("0.0.0.0:8000").await?;
///     while let Ok((stream, client)) = listener.accept().await {
///         // The connection counts as open at this worker until it is dropped.
///         println!("{client}");
///         drop(stream);
///     }
///     Ok(())
/// })
/// # }
/// ```
#[derive(Clone)]
pub struct Worker {
    inner: Arc<Inner>,
    _alive: Arc<Alive>,
    messages: Arc<tokio::sync::Mutex<Reader<WorkerEvent>>>,
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("id", &self.inner.id).finish_non_exhaustive()
    }
}

/// What a worker receives from its primary.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum WorkerEvent {
    /// A message of the primary.
    Message(Message),
    /// A request of the primary, which waits for the reply.
    Request(Request),
    /// This worker lost events before the next one: it did not read for too long, or a primary with
    /// `serialization: 'advanced'` sent a value that has no form in JSON, such as an object that
    /// contains itself.
    #[non_exhaustive]
    Lagged {
        /// The number of events lost.
        missed: u64,
    },
}

impl Weigh for WorkerEvent {
    fn weight(&self) -> usize {
        match self {
            WorkerEvent::Message(m) => m.weight(),
            WorkerEvent::Request(r) => r.weight(),
            WorkerEvent::Lagged { .. } => 0,
        }
    }

    fn missed(n: u64) -> WorkerEvent {
        WorkerEvent::Lagged { missed: n }
    }
}

impl Worker {
    fn new(inner: Arc<Inner>, messages: Reader<WorkerEvent>) -> Worker {
        let alive = Arc::new(Alive(inner.clone()));
        Worker { inner, _alive: alive, messages: Arc::new(tokio::sync::Mutex::new(messages)) }
    }

    /// Returns the worker's number in the primary; `None` if it runs alone.
    #[must_use]
    pub fn id(&self) -> Option<WorkerId> {
        self.inner.id
    }

    /// Returns true if a primary forked this process.
    #[must_use]
    pub fn is_clustered(&self) -> bool {
        self.inner.id.is_some()
    }

    /// Returns true while the channel to the primary is open.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.inner.is_connected()
    }

    pub(crate) async fn open(&self, listen: &Listen) -> Result<Opened> {
        listen::open(&self.inner, listen).await
    }

    /// Listens for TCP connections, together with all workers that ask for the same address. Takes
    /// what `std` takes for an address (`"0.0.0.0:8000"`, `("::1", 80)`, a `SocketAddr`), or just a
    /// port, which means any address of both families, as in Node's `listen(8000)`. Port 0 gives
    /// all workers the same free port. Alone, without a primary, the process listens by itself.
    ///
    /// # Errors
    /// [`Error::Listen`] with the system's reason, also when it was the primary that tried.
    pub async fn listen(&self, address: impl Into<Listen>) -> Result<TcpListener> {
        TcpListener::new(self.open(&address.into()).await?, self)
    }

    /// Listens on a Unix socket path, together with all workers that ask for the same.
    ///
    /// # Errors
    /// As [`Worker::listen`].
    pub async fn listen_unix(&self, path: impl AsRef<std::path::Path>) -> Result<UnixListener> {
        UnixListener::new(self.open(&Listen::unix(path)).await?, self)
    }

    /// Binds a UDP socket that all workers share; the kernel gives each datagram to one of them.
    ///
    /// # Errors
    /// As [`Worker::listen`].
    pub async fn bind_udp(&self, address: impl Into<Listen>) -> Result<tokio::net::UdpSocket> {
        let opened = self.open(&address.into().udp()).await?;
        let socket = std::net::UdpSocket::from(opened.into_socket()?);
        tokio::net::UdpSocket::from_std(socket).map_err(Error::io("give the socket to the runtime"))
    }

    /// Returns a future that resolves when this worker is to finish: its primary asked it to, or
    /// the channel closed, or [`Worker::disconnect`] was called. Made for `with_graceful_shutdown`:
    /// listeners give no more connections before it resolves, and the last one that they gave has
    /// had 100 ms for its first request, because servers close what they have not read from yet.
    #[must_use]
    pub fn draining(&self) -> Draining {
        Draining::new(self.inner.draining())
    }

    /// Returns a future for one connection that its client keeps open. It resolves when the
    /// connection is to be closed because this worker is to finish. That is after
    /// [`Worker::draining`]: each call has a different moment, spread evenly over the time that the
    /// primary grants ([`Builder::drain_spread`](crate::Builder::drain_spread)), so that the
    /// clients do not all come back at once. Under a Node primary, when the whole cluster ends, and
    /// without a primary it is the same as [`Worker::draining`]. `troop::serve` (feature `axum`)
    /// uses it. In a custom loop around hyper:
    ///
    /// ```text
    /// tokio::select! {
    ///     _ = connection.as_mut() => return,
    ///     () = worker.closing() => connection.as_mut().graceful_shutdown(),
    /// }
    /// connection.await
    /// ```
    #[must_use]
    pub fn closing(&self) -> Draining {
        let (inner, turn) = (self.inner.clone(), self.inner.next_turn());
        Draining(Box::pin(async move { inner.wait_for_turn(turn, false).await }))
    }

    /// The span of this worker, with its number (`worker`) and slot (`slot`), for tasks and threads
    /// that the program starts itself. Programs under [`WorkerRole::block_on`] run in it, and so do
    /// the connections of `troop::serve`.
    #[cfg(feature = "tracing")]
    #[must_use]
    pub fn span(&self) -> &tracing::Span {
        self.inner.span.get()
    }

    /// Returns true if this worker is to finish.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        *self.inner.draining().borrow()
    }

    /// Lets this process go on when its primary dies. By default [`Worker::draining`] resolves
    /// then, and the process exits with code 0 after five seconds at the latest.
    pub fn outlive_primary(&self) {
        self.inner.outlive();
    }

    /// Reports this worker's load to the primary, in a unit that the program chooses:
    /// `least-connections`, `p2c` and `steered` add it to the number of open connections. Sent at
    /// most ten times a second. A Node worker does the same by `process.send({cmd: 'NODE_TROOP',
    /// act: 'load', load: 12})`.
    pub fn report_load(&self, load: u32) {
        self.inner.report_load(load);
    }

    /// Tells the primary the metrics of a registry when it asks, so that `/metrics` of `troop admin
    /// --worker-metrics APP` has the sum over all workers, which a scrape of one worker does not have. The
    /// primary asks as prom-client's `AggregatorRegistry` does, so one of Node's understands it, too. Each
    /// further registry is added. Without a primary nothing asks.
    ///
    /// Metrics are collected in a thread of their own. A worker whose answer takes longer than a second
    /// is left out of the sum, and counted as missing.
    ///
    /// ```no_run
    /// use std::sync::Arc;
    ///
    /// use prometheus_client::metrics::counter::Counter;
    /// use prometheus_client::registry::Registry;
    ///
    /// # async fn serve(worker: troop::Worker) -> troop::Result<()> {
    /// let served: Counter = Counter::default();
    /// let mut registry = Registry::default();
    /// registry.register("served", "Requests that were answered", served.clone());
    /// worker.metrics(Arc::new(registry));
    ///
    /// let listener = worker.listen("0.0.0.0:8000").await?;
    /// while let Ok((_stream, _)) = listener.accept().await {
    ///     served.inc();
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "metrics")]
    pub fn metrics(&self, registry: Arc<prometheus_client::registry::Registry>) {
        self.inner.metrics.add(registry);
    }

    /// Waits until this worker has no [counted] connection open, to end a program that serves
    /// connections in separate tasks after its listeners have ended. Cancel safe.
    ///
    /// ```no_run
    /// # async fn program(worker: troop::Worker) -> troop::Result<()> {
    /// let listener = worker.listen("0.0.0.0:8000").await?;
    /// while let Ok((stream, _)) = listener.accept().await {
    ///     tokio::spawn(async move { drop(stream) });
    /// }
    /// worker.idle().await;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// [counted]: crate::net::Counted
    pub async fn idle(&self) {
        self.inner.idle().await;
    }

    /// Leaves the cluster on the worker's initiative, as Node's `cluster.worker.disconnect()`:
    /// listeners close, and the primary is notified and confirms, so that it sees
    /// `exited_after_disconnect`. Requests in progress go on.
    ///
    /// # Errors
    /// [`Error::Closed`] if there is no primary (any more).
    pub async fn disconnect(&self) -> Result<()> {
        self.inner.leave().await
    }

    /// Waits for the next message or request from the primary. Returns `None` when all have been
    /// read and the channel is closed, or when this worker is to finish and has closed its listeners.
    /// Messages wait here from the start, up to 16 MiB (see [`Events`](crate::Events)). Several
    /// callers share them. Cancel safe.
    pub async fn next_event(&self) -> Option<WorkerEvent> {
        // A free lock is taken directly: the async lock would use up a part of the task's budget
        // for each message.
        if let Ok(mut messages) = self.messages.try_lock() {
            return messages.recv().await;
        }
        self.messages.lock().await.recv().await
    }

    /// Sends a message to the primary, waiting for room in the queue (1 MiB) if it does not read
    /// fast enough.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Json`].
    pub async fn send<T: Serialize + ?Sized>(&self, message: &T) -> Result<()> {
        self.inner.mailbox.send(message).await
    }

    /// Sends a message to the primary if there is room for it.
    ///
    /// # Errors
    /// As [`Worker::send`], and [`Error::Full`].
    pub fn try_send<T: Serialize + ?Sized>(&self, message: &T) -> Result<()> {
        self.inner.mailbox.try_send(message)
    }

    /// Sends a message with an open socket to the primary, and waits until it has received it.
    ///
    /// # Errors
    /// [`Error::HandleRefused`], and as [`Worker::send`].
    pub async fn send_handle<T: Serialize + ?Sized>(
        &self,
        message: &T,
        handle: impl Into<Handle>,
    ) -> Result<()> {
        self.inner.mailbox.send_handle(message, handle.into()).await
    }

    /// Sends a request to the primary and waits up to `timeout` for the reply.
    ///
    /// # Errors
    /// [`Error::TimedOut`], [`Error::Refused`], and as [`Worker::send`].
    pub async fn request<Q: Serialize + ?Sized, A: DeserializeOwned>(
        &self,
        question: &Q,
        timeout: Duration,
    ) -> Result<A> {
        self.inner.mailbox.request(question, timeout).await?.decode()
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }
}

/// The future of [`Worker::draining`] and [`Worker::closing`].
pub struct Draining(Pin<Box<dyn Future<Output = ()> + Send>>);

impl Draining {
    fn new(mut draining: watch::Receiver<bool>) -> Draining {
        Draining(Box::pin(async move {
            // An error means that the worker has ended.
            let _ = draining.wait_for(|draining| *draining).await;
        }))
    }
}

impl fmt::Debug for Draining {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Draining").finish_non_exhaustive()
    }
}

impl Future for Draining {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(context)
    }
}
