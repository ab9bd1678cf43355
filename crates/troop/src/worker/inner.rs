//! State shared by the parts of a worker: the program's side sends requests, the link answers.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, Semaphore, oneshot, watch};
use troop_core::WorkerId;
use troop_sys::poll::EventFd;

use super::WorkerEvent;
use super::listen::{RequestedAddress, Wanted};
use super::movable::MovableConnections;
use super::queue::{ConnQueue, Taken};
use crate::channel::{MAX_QUEUED_HANDLES, Mailbox};
use crate::error::{Error, Result};
use crate::queue::{Queue, Reader};
use crate::trace::Span;

/// Time for the first bytes of a new connection to arrive.
const FIRST_BYTES_TIMEOUT: Duration = Duration::from_millis(100);

/// Maximum number of connections that move to other workers at the same time.
const MAX_MOVING: usize = 32;

/// Time that a worker without a primary has to finish.
const ORPHAN_GRACE: Duration = Duration::from_secs(5);

/// A request of the program to the link.
pub(crate) enum Ask {
    /// Opens a listener; answered by the reply of the primary.
    Listen(Box<Wanted>, oneshot::Sender<Reply>),
    /// Reports to the primary that the listener listens.
    Listening(Box<Wanted>),
    /// Reports that a listener was dropped.
    Close(String),
    /// Leaves the cluster.
    Leave(oneshot::Sender<()>),
}

/// The primary's answer to [`Ask::Listen`].
#[derive(Debug)]
pub(crate) struct Reply {
    /// Errno (positive); 0 for success.
    pub(crate) errno: i32,
    pub(crate) key: String,
    pub(crate) name: Option<(String, u16)>,
    pub(crate) grant: Option<Grant>,
}

/// The source of connections.
#[derive(Debug)]
pub(crate) enum Grant {
    /// The primary hands them over.
    Handed(Arc<ConnQueue>),
    /// This process accepts them on this socket; a primary that steers may hand over some, too.
    Shared(OwnedFd, Arc<ConnQueue>),
}

#[derive(Default)]
pub(super) struct Asks {
    pub(super) asks: Vec<Ask>,
    pub(super) taken: Vec<Taken>,
    /// Whether to close the channel when everything is written.
    pub(super) finish: bool,
}

pub(crate) struct Inner {
    pub(crate) id: Option<WorkerId>,
    /// This worker's span, for subscribers of `tracing`.
    pub(crate) span: Span,
    pub(crate) mailbox: Mailbox,
    asks: Mutex<Asks>,
    /// Wakes the link.
    pub(super) notify: Arc<Notify>,
    draining: watch::Sender<bool>,
    /// The time over which to close connections that stay open, and the moment when draining began.
    drain_spread: watch::Sender<(Duration, Option<Instant>)>,
    /// Whether the primary takes idle connections for other workers.
    moves: watch::Sender<bool>,
    /// The connections that can move.
    pub(crate) movable: MovableConnections,
    /// Limits the connections that move at the same time.
    pub(super) moving: Semaphore,
    /// Number of connections that have a moment to close.
    turns: AtomicU32,
    /// Signalled permanently when draining begins, for threads that wait in a system call.
    pub(crate) drain_bell: Option<EventFd>,
    /// Whether the link has ended.
    ended: watch::Sender<bool>,
    outlive: AtomicBool,
    /// Whether the worker was asked to leave, so that the end of the channel is expected.
    leaving: AtomicBool,
    /// It gets no more connections: its events end with its last listener.
    is_closed_to_connections: AtomicBool,
    pub(super) events: Arc<Queue<WorkerEvent>>,
    /// Number of open connections of the program.
    open: AtomicU32,
    /// Rung when there are none.
    idle: Notify,
    /// Time of the last accepted connection, in milliseconds since `born`; 0 for none.
    last_accept: AtomicU64,
    born: Instant,
    /// The load that the program reports.
    load: AtomicU32,
    /// Whether the link has been notified of a change of these numbers.
    load_changed: AtomicBool,
    /// Number of listeners and the next index for each address.
    indices: Mutex<HashMap<RequestedAddress, (usize, u32)>>,
    #[cfg(feature = "metrics")]
    pub(super) metrics: super::metrics::Metrics,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The moment to close a connection, as a fraction of the time for all, from 0 to 1.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turn(f64);

impl Turn {
    /// Returns the time from the beginning. A client that sends a request between the two moments
    /// gets an answer that announces the close.
    fn moment(self, over: Duration, early: bool) -> Duration {
        let between = Turn::between(over);
        let first = (over - between).mul_f64(self.0);
        if early { first } else { first + between }
    }

    /// Returns the time between the two moments.
    fn between(over: Duration) -> Duration {
        (over / 4).min(Duration::from_secs(1))
    }
}

/// Ends the link when the program has dropped everything that could use it.
#[derive(Debug)]
pub(crate) struct Alive(pub(crate) Arc<Inner>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.lock().finish = true;
        self.0.notify.notify_one();
    }
}

impl Inner {
    pub(super) fn new(id: Option<WorkerId>) -> (Arc<Inner>, Reader<WorkerEvent>) {
        let notify = Arc::new(Notify::new());
        let reader = Reader::default();
        let ring = notify.clone();
        let inner = Arc::new(Inner {
            id,
            span: Span::of_this_worker(id),
            mailbox: Mailbox::new(Box::new(move || ring.notify_one()), MAX_QUEUED_HANDLES),
            asks: Mutex::default(),
            notify,
            draining: watch::Sender::new(false),
            drain_spread: watch::Sender::default(),
            moves: watch::Sender::new(false),
            movable: MovableConnections::default(),
            moving: Semaphore::new(MAX_MOVING),
            turns: AtomicU32::new(0),
            drain_bell: EventFd::new().ok(),
            ended: watch::Sender::new(id.is_none()),
            outlive: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            is_closed_to_connections: AtomicBool::new(false),
            events: reader.queue().clone(),
            open: AtomicU32::new(0),
            idle: Notify::new(),
            last_accept: AtomicU64::new(0),
            born: Instant::now(),
            load: AtomicU32::new(0),
            load_changed: AtomicBool::new(false),
            indices: Mutex::default(),
            #[cfg(feature = "metrics")]
            metrics: super::metrics::Metrics::default(),
        });
        if id.is_none() {
            // Without a primary the mailbox is never emptied.
            inner.mailbox.close();
            inner.events.close();
        }
        (inner, reader)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Asks> {
        self.asks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn ask(&self, ask: Ask) -> Result<()> {
        if *self.ended.borrow() {
            return Err(Error::Closed);
        }
        self.lock().asks.push(ask);
        self.notify.notify_one();
        Ok(())
    }

    /// Records that the program took a connection. Acknowledgements are collected until the link
    /// runs.
    pub(crate) fn taken(&self, taken: Taken) {
        let mut asks = self.lock();
        asks.taken.push(taken);
        let first = asks.taken.len() == 1;
        drop(asks);
        if first {
            self.notify.notify_one();
        }
    }

    pub(crate) fn opened(&self) {
        self.last_accept.store(1 + self.now(), Ordering::Relaxed);
        self.open.fetch_add(1, Ordering::Relaxed);
        self.send_load();
    }

    fn now(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(crate) fn closed(&self) {
        if self.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.idle.notify_waiters();
        }
        self.send_load();
    }

    /// Waits until the program has no connection open.
    pub(crate) async fn idle(&self) {
        loop {
            let mut idle = std::pin::pin!(self.idle.notified());
            // From here on none is missed.
            idle.as_mut().enable();
            if self.open.load(Ordering::Acquire) == 0 {
                return;
            }
            idle.await;
        }
    }

    pub(crate) fn report_load(&self, load: u32) {
        self.load.store(load, Ordering::Relaxed);
        self.send_load();
    }

    /// Notifies the link, once until it has looked.
    fn send_load(&self) {
        if !self.load_changed.swap(true, Ordering::AcqRel) {
            self.notify.notify_one();
        }
    }

    /// Returns the number of open connections and the reported load.
    pub(super) fn load(&self) -> (u32, u32) {
        (self.open.load(Ordering::Relaxed), self.load.load(Ordering::Relaxed))
    }

    pub(super) fn has_load_changed(&self) -> bool {
        self.load_changed.load(Ordering::Acquire)
    }

    /// Enables notifications of changes again.
    pub(super) fn load_is_seen(&self) {
        // Not a plain store: later reads must not return older values.
        self.load_changed.swap(false, Ordering::AcqRel);
    }

    pub(crate) fn close_server(&self, key: String) {
        let _ = self.ask(Ask::Close(key));
    }

    pub(crate) fn draining(&self) -> watch::Receiver<bool> {
        self.draining.subscribe()
    }

    /// Begins draining when the first bytes of the last accepted connection have had time to
    /// arrive. Draining servers close connections from which they have not read, and a request may
    /// be in flight.
    pub(super) fn drain_soon(self: &Arc<Inner>) {
        self.leaving.store(true, Ordering::Relaxed);
        let last = self.last_accept.load(Ordering::Relaxed);
        let age = Duration::from_millis(self.now().saturating_sub(last.saturating_sub(1)));
        let wait = if last == 0 { Duration::ZERO } else { FIRST_BYTES_TIMEOUT.saturating_sub(age) };
        if wait.is_zero() {
            self.drain(true);
            return;
        }
        let inner = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            inner.drain(true);
        });
    }

    /// Begins draining. `wanted` is whether it was requested, and not caused by the end of the
    /// primary.
    pub(super) fn drain(&self, wanted: bool) {
        self.leaving.fetch_or(wanted, Ordering::Relaxed);
        self.drain_spread.send_if_modified(|(_, since)| {
            since.is_none() && since.replace(Instant::now()).is_none()
        });
        if self.draining.send_replace(true) {
            return;
        }
        self.span.draining(self.leaving.load(Ordering::Relaxed));
        if let Some(event_fd) = &self.drain_bell {
            event_fd.signal();
        }
    }

    /// Sets the time over which to close connections that stay open, as the primary has announced
    /// it.
    pub(super) fn drain_spread(&self, time: Duration) {
        self.drain_spread.send_modify(|closing| closing.0 = time);
    }

    /// Sets whether the primary takes idle connections for other workers, as it has announced.
    pub(super) fn set_moves(&self, moves: bool) {
        self.moves.send_replace(moves);
    }

    /// Whether idle connections can move to other workers now.
    pub(crate) fn moves(&self) -> bool {
        *self.moves.borrow() && self.is_connected()
    }

    /// Waits until draining has begun and idle connections can move to other workers.
    #[cfg(feature = "_serve")]
    pub(crate) async fn wait_for_moves(&self) {
        let (mut draining, mut moves) = (self.draining.subscribe(), self.moves.subscribe());
        // Errors mean that the worker is gone altogether.
        let _ = draining.wait_for(|draining| *draining).await;
        if moves.wait_for(|moves| *moves).await.is_err() {
            std::future::pending().await
        }
    }

    /// Waits until idle connections cannot move to other workers (any more).
    #[cfg(feature = "_serve")]
    pub(crate) async fn wait_for_no_moves(&self) {
        let (mut moves, mut ended) = (self.moves.subscribe(), self.ended.subscribe());
        tokio::select! {
            _ = moves.wait_for(|moves| !*moves) => {}
            _ = ended.wait_for(|ended| *ended) => {}
        }
    }

    /// Returns the turn of the next connection. Turns are spread evenly, whatever their number
    /// (multiples of the golden ratio).
    pub(crate) fn next_turn(&self) -> Turn {
        let turn = self.turns.fetch_add(1, Ordering::Relaxed).wrapping_mul(2_654_435_769);
        Turn(f64::from(turn) / f64::from(u32::MAX))
    }

    /// Waits until a connection with this turn is to be closed, or, `early`, until its next answer
    /// should be the last one.
    pub(crate) async fn wait_for_turn(&self, turn: Turn, early: bool) {
        self.wait_until(|over, since| since + turn.moment(over, early)).await;
    }

    /// Waits until a connection is to be closed whose next answer, from now on, is the last one. A
    /// process that got no processor meanwhile does not close it before it could have said so.
    #[cfg(feature = "_serve")]
    pub(crate) async fn wait_for_close(&self, turn: Turn) {
        let from = Instant::now();
        self.wait_until(|over, since| {
            (since + turn.moment(over, false)).max(from + Turn::between(over))
        })
        .await;
    }

    /// Waits until a moment that follows from the time over which connections are closed and the
    /// beginning of draining.
    async fn wait_until(&self, moment: impl Fn(Duration, Instant) -> Instant) {
        let (mut closing, mut ended) = (self.drain_spread.subscribe(), self.ended.subscribe());
        loop {
            let (over, since) = *closing.borrow_and_update();
            let left =
                since.map(|since| moment(over, since).saturating_duration_since(Instant::now()));
            let reached = async {
                match left {
                    Some(left) => tokio::time::sleep(left).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = reached => return,
                // Draining begins, or the time changes. An error means that the worker has ended.
                changed = closing.changed() => if changed.is_err() { return },
                // Without a primary the time is short.
                _ = ended.wait_for(|ended| *ended), if since.is_some() => return,
            }
        }
    }

    /// Whether this worker was asked to finish.
    #[cfg(feature = "_serve")]
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    pub(crate) fn is_connected(&self) -> bool {
        !*self.ended.borrow()
    }

    pub(crate) fn outlive(&self) {
        self.outlive.store(true, Ordering::Relaxed);
    }

    pub(crate) async fn leave(&self) -> Result<()> {
        let (done, left) = oneshot::channel();
        self.ask(Ask::Leave(done))?;
        left.await.map_err(|_| Error::Closed)
    }

    /// Writes the remaining messages and closes the channel.
    pub(crate) async fn finish(&self, patience: Duration) {
        self.lock().finish = true;
        self.notify.notify_one();
        let mut ended = self.ended.subscribe();
        let _ = tokio::time::timeout(patience, ended.wait_for(|ended| *ended)).await;
    }

    /// Handles the end of the link. `wanted` is whether the program had finished.
    pub(super) fn link_ended(&self, wanted: bool) {
        self.ended.send_replace(true);
        self.mailbox.close();
        self.events.close();
        // Waiting callers get an error.
        self.lock().asks.clear();
        self.drain(wanted);
    }

    /// Ends this process when its primary ends without a message. Runs in a separate thread,
    /// because a program may block its runtime.
    pub(super) fn watch(self: &Arc<Inner>, channel: OwnedFd) -> std::io::Result<()> {
        let inner = self.clone();
        let watch = move || {
            // Hang-up is always reported.
            let nothing = rustix::event::PollFlags::empty();
            while rustix::event::poll(&mut [rustix::event::PollFd::new(&channel, nothing)], None)
                == Err(rustix::io::Errno::INTR)
            {}
            drop(channel);
            if !inner.leaving.load(Ordering::Relaxed) {
                std::thread::sleep(ORPHAN_GRACE);
                if !inner.leaving.load(Ordering::Relaxed) && !inner.outlive.load(Ordering::Relaxed)
                {
                    exit_orphan();
                }
            }
        };
        std::thread::Builder::new()
            .name("troop-orphan".into())
            .stack_size(32 * 1024)
            .spawn(watch)
            .map(drop)
    }

    /// Returns the number of the next server for an address: from 0, and from 0 again once all of
    /// them are closed, as in Node.
    pub(super) fn next_index(&self, requested: &RequestedAddress) -> u32 {
        let mut indices = self.indices.lock().unwrap_or_else(PoisonError::into_inner);
        let (open, next) = indices.entry(requested.clone()).or_default();
        *open += 1;
        *next += 1;
        *next - 1
    }

    /// No more connections come: the events end, at once or with the last listener. A worker that
    /// only answers messages has no other end to its work; a server may want messages until it has
    /// closed its listeners.
    pub(super) fn close_to_connections(&self) {
        self.is_closed_to_connections.store(true, Ordering::SeqCst);
        self.end_events_without_listeners();
    }

    pub(super) fn end_events_without_listeners(&self) {
        if self.is_closed_to_connections.load(Ordering::SeqCst)
            && self.indices.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
        {
            self.events.close();
        }
    }

    pub(super) fn release_index(&self, requested: &RequestedAddress) {
        let mut indices = self.indices.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((open, _)) = indices.get_mut(requested) {
            *open -= 1;
            if *open == 0 {
                indices.remove(requested);
            }
        }
    }
}

#[expect(clippy::exit, reason = "a worker must not outlive its primary; Node's does the same")]
fn exit_orphan() {
    std::process::exit(0)
}

#[cfg(all(test, feature = "_serve"))]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    #[tokio::test]
    async fn a_connection_that_was_to_be_closed_long_ago_is_not_closed_before_it_could_be_said() {
        let (inner, _events) = Inner::new(Some(WorkerId(1)));
        let begun = Instant::now().checked_sub(Duration::from_secs(60));
        inner.drain_spread.send_replace((Duration::from_secs(40), begun));
        let turn = inner.next_turn();
        for early in [true, false] {
            inner.wait_for_turn(turn, early).await;
        }
        let mut close = pin!(inner.wait_for_close(turn));
        assert!(close.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        // Without a primary the time is short.
        inner.ended.send_replace(true);
        close.await;
    }
}
