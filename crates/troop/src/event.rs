//! Events: what happens in a cluster, as a stream.
//!
//! [`Cluster::events`](crate::Cluster::events) subscribes to them, and
//! [`Builder::on_event`](crate::Builder::on_event) calls an observer with each. An observer has every
//! event and must not block; a subscriber may take its time, and learns from [`Event::Lagged`] what
//! it has missed.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use troop::{Cluster, Event};
//!
//! # fn main() -> troop::Result<()> {
//! let cluster = Cluster::builder().workers(2).start_in_thread(|event| println!("{event}"))?;
//! let mut events = cluster.events();
//! while let Some(event) = events.blocking_recv(Duration::from_secs(60)) {
//!     match event {
//!         Event::Exit { worker, exit, .. } => println!("worker {} ended: {exit}", worker.id()),
//!         Event::Lagged { .. } => println!("some events were missed"),
//!         _ => {}
//!     }
//! }
//! # Ok(())
//! # }
//! ```

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
pub use troop_core::event::{Address, AddressType, ExitHow, Listening, Violation, signal_name};
pub use troop_core::steer::{Mode, ModeReason};
use troop_core::supervise::{Cause, GiveUp, Progress};
use troop_core::text::{Escaping, escaped};

use crate::error::Error;
use crate::message::{Message, Request};
use crate::primary::WorkerHandle;
use crate::queue::{Queue, Reader, Weigh};
use crate::setup::Setup;

/// Maximum number of characters of a health check's finding that are shown.
const MAX_SHOWN: usize = 1000;

/// An event of a cluster. The first eight are Node's, in Node's order.
///
/// `Display` writes an event as one line for people.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event {
    /// The settings of workers have changed, or a fork uses them (as in Node, each fork emits it).
    #[non_exhaustive]
    Setup {
        /// The settings of workers from now on.
        setup: Arc<Setup>,
    },
    /// A worker's process was started.
    #[non_exhaustive]
    Fork {
        /// The new worker.
        worker: WorkerHandle,
    },
    /// A worker runs and its channel works.
    #[non_exhaustive]
    Online {
        /// The worker.
        worker: WorkerHandle,
    },
    /// A server of a worker listens.
    #[non_exhaustive]
    Listening {
        /// The worker.
        worker: WorkerHandle,
        /// Where it listens.
        address: Listening,
    },
    /// A worker sent a message.
    #[non_exhaustive]
    Message {
        /// The sender.
        worker: WorkerHandle,
        /// What it sent.
        message: Message,
    },
    /// A worker's channel closed.
    #[non_exhaustive]
    Disconnect {
        /// The worker.
        worker: WorkerHandle,
    },
    /// A worker's process ended.
    #[non_exhaustive]
    Exit {
        /// The worker.
        worker: WorkerHandle,
        /// How its process ended.
        exit: ExitHow,
    },
    /// An operation failed whose outcome no caller awaits.
    #[non_exhaustive]
    Error {
        /// The worker that it concerns; `None` for the cluster.
        worker: Option<WorkerHandle>,
        /// What failed.
        error: Arc<Error>,
    },
    /// A worker sent a request and waits for the reply.
    #[non_exhaustive]
    Request {
        /// The sender.
        worker: WorkerHandle,
        /// The request, which also takes the reply.
        request: Request,
    },
    /// A worker broke a rule of the channel.
    #[non_exhaustive]
    Misbehaved {
        /// The worker.
        worker: WorkerHandle,
        /// The rule that it broke.
        violation: Violation,
        /// What follows for the worker.
        consequence: Consequence,
    },
    /// A worker does not take the connections that wait for it; others get them. Where the kernel
    /// chooses ([`Scheduling::Steered`](crate::Scheduling::Steered)) a queue that does not move
    /// shows it.
    #[non_exhaustive]
    Stalled {
        /// The worker.
        worker: WorkerHandle,
    },
    /// A worker that had [stalled](Event::Stalled) takes connections again.
    #[non_exhaustive]
    Resumed {
        /// The worker.
        worker: WorkerHandle,
    },
    /// A worker failed its [`HealthCheck`](crate::supervise::HealthCheck). After enough failures it is
    /// replaced.
    #[non_exhaustive]
    Unhealthy {
        /// The worker.
        worker: WorkerHandle,
        /// What the check found.
        reason: String,
    },
    /// A listener is not steered by the kernel as configured, or not with a socket for each worker.
    #[non_exhaustive]
    NotSteered {
        /// Where it listens.
        address: Address,
        /// The reason, and the consequence.
        reason: String,
    },
    /// A listener under [`Scheduling::Auto`](crate::Scheduling::Auto) has changed its mode.
    #[non_exhaustive]
    ModeChanged {
        /// Where it is bound.
        address: Address,
        /// The new mode.
        mode: Mode,
        /// The reason.
        reason: ModeReason,
    },
    /// A listener was closed because no worker has it any more and no starting worker may ask for
    /// it, or while connections waited for a worker.
    #[non_exhaustive]
    ListenerClosed {
        /// Where it was bound.
        address: Address,
        /// The number of waiting connections that were closed.
        dropped: usize,
    },
    /// A listener that clients could not reach, or were about to lose, can be reached again.
    #[non_exhaustive]
    ListenerRestored {
        /// Where it listens.
        address: Address,
        /// What had happened.
        reason: String,
    },
    /// Clients do not reach a listener.
    #[non_exhaustive]
    ListenerLost {
        /// Where it should listen.
        address: Address,
        /// The reason, and a remedy.
        reason: String,
    },
    /// Clients wait on a socket that workers were given by [activation](crate::activation), and no
    /// worker accepts them.
    #[non_exhaustive]
    NotAccepted {
        /// Where they wait.
        address: Address,
        /// How many wait.
        waiting: usize,
        /// This in words, with what the program does instead as far as that is seen.
        reason: String,
    },
    /// A worker listens by itself, and others listen nowhere or have ended quickly, perhaps because
    /// they would listen there.
    #[non_exhaustive]
    NotShared {
        /// The worker that listens.
        worker: WorkerHandle,
        /// The worker that listens nowhere, if there is one.
        other: Option<WorkerHandle>,
        /// Where the first one listens.
        address: String,
        /// This in words, and what to do.
        reason: String,
    },
    /// A step of the supervision of a [`Builder`](crate::Builder).
    Supervision(Progress),
    /// This subscriber read too slowly and lost events before the next one.
    #[non_exhaustive]
    Lagged {
        /// The number of events lost.
        missed: u64,
    },
}

/// What follows for a worker that broke a rule of the channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Consequence {
    /// The violation is reported, and the worker goes on.
    Reported,
    /// The worker is killed, because its messages cannot be trusted any more, or because it is
    /// hung.
    Killed,
}

/// Writes one line, in which text of workers can neither control a terminal nor forge another line:
/// see [`text`](crate::text).
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(&mut Escaping(f))
    }
}

impl Event {
    fn write(&self, f: &mut impl fmt::Write) -> fmt::Result {
        match self {
            Event::Setup { setup } => match setup.get_program() {
                Some(program) => write!(f, "workers are started from {}", program.display()),
                None => f.write_str("workers are started from this program"),
            },
            Event::Fork { worker: w } => write!(f, "worker {} started, pid {}", w.id(), w.pid()),
            Event::Online { worker: w } => write!(f, "worker {} online", w.id()),
            Event::Listening { worker: w, address: at } => {
                write!(f, "worker {} listening on {at}", w.id())
            }
            Event::Message { worker: w, message: m } => {
                write!(f, "worker {} sent a message of {} bytes", w.id(), m.as_json().len())
            }
            Event::Disconnect { worker: w } => write!(f, "worker {} disconnected", w.id()),
            Event::Exit { worker: w, exit: how @ ExitHow::Signal(signal) }
                if w.was_ended_by(*signal) =>
            {
                if w.was_asked_by(*signal) {
                    write!(f, "worker {} ended as asked: {how}", w.id())?;
                } else {
                    write!(f, "worker {} was ended by troop: {how}", w.id())?;
                }
                match w.open_at_last() {
                    None | Some(0) => Ok(()),
                    Some(1) => f.write_str(", with 1 connection open"),
                    Some(open) => write!(f, ", with {open} connections open"),
                }
            }
            Event::Exit { worker: w, exit: how }
                if w.exited_after_disconnect() == Some(true) || w.was_to_end() =>
            {
                write!(f, "worker {} finished: {how}", w.id())
            }
            Event::Exit { worker: w, exit: how } if how.is_success() => {
                write!(f, "worker {} ended: {how}", w.id())
            }
            Event::Exit { worker: w, exit: how } => write!(f, "worker {} died: {how}", w.id()),
            Event::Error { worker: Some(w), error: e } => {
                write!(f, "worker {}: {}", w.id(), e.chain())
            }
            Event::Error { worker: None, error: e } => f.write_str(&e.chain()),
            Event::Request { worker: w, request: r } => {
                write!(f, "worker {} asked something, {} bytes", w.id(), r.as_json().len())
            }
            Event::Misbehaved { worker: w, violation: what, consequence: Consequence::Killed } => {
                write!(f, "worker {} was killed because it sent {what}", w.id())
            }
            Event::Misbehaved {
                worker: w,
                violation: what,
                consequence: Consequence::Reported,
            } => write!(f, "worker {} sent {what}", w.id()),
            Event::Stalled { worker: w } => {
                write!(f, "worker {} does not take its connections; others get them", w.id())
            }
            Event::Resumed { worker: w } => write!(f, "worker {} takes connections again", w.id()),
            Event::Unhealthy { worker: w, reason: why } => {
                write!(f, "worker {}: {:.MAX_SHOWN$}", w.id(), escaped(why))
            }
            Event::ListenerRestored { address: at, reason: why } => {
                write!(f, "{at} is reached again: {why}")
            }
            Event::ListenerLost { address: at, reason: why } => {
                write!(f, "{at} is not reached: {why}")
            }
            Event::NotAccepted { reason: why, .. } | Event::NotShared { reason: why, .. } => {
                f.write_str(why)
            }
            Event::NotSteered { address: at, reason: why } => write!(f, "{at}: {why}"),
            Event::ModeChanged { address: at, mode: Mode::Steered, reason: why } => {
                write!(f, "{at}: the kernel spreads connections over the workers: {why}")
            }
            Event::ModeChanged { address: at, reason: why, .. } => {
                write!(f, "{at}: connections are handed over in turn: {why}")
            }
            Event::ListenerClosed { address: at, dropped: 0 } => {
                write!(f, "{at} is closed: no worker listens there any more")
            }
            Event::ListenerClosed { address: at, dropped } => {
                write!(
                    f,
                    "{at} is closed: no worker listens there any more; connections that waited there and were closed: {dropped}"
                )
            }
            Event::Supervision(progress) => write!(f, "{progress}"),
            Event::Lagged { missed: n } => write!(f, "{n} events missed"),
        }
    }
}

/// Bytes of the handle of a worker, which an event keeps alive, beyond the event itself.
const WORKER_BYTES: usize = 1024;

impl Weigh for Event {
    /// Must not change while the event waits.
    fn weight(&self) -> usize {
        let address = |at: &Address| at.address.as_ref().map_or(0, String::len);
        match self {
            Event::Message { message: m, .. } => m.weight(),
            Event::Request { request: r, .. } => r.weight(),
            Event::Fork { .. } => WORKER_BYTES,
            // Including the end of its standard error.
            Event::Exit { .. } => crate::primary::MAX_TAIL,
            Event::Listening { address: at, .. }
            | Event::ListenerClosed { address: at, .. }
            | Event::ModeChanged { address: at, .. }
            | Event::Supervision(Progress::Awaiting { at, .. }) => address(at),
            Event::NotSteered { address: at, reason: why }
            | Event::NotAccepted { address: at, reason: why, .. } => address(at) + why.len(),
            Event::NotShared { address: at, reason: why, .. } => {
                WORKER_BYTES + at.len() + why.len()
            }
            Event::Unhealthy { reason: why, .. } => why.len(),
            Event::Misbehaved {
                violation: Violation::Malformed(what) | Violation::Forbidden(what),
                ..
            } => what.len(),
            Event::Error { error: e, .. } => e.weight(),
            Event::Supervision(
                Progress::Restarting { cause: Cause::NotStarted(reason), .. }
                | Progress::GivingUp(GiveUp::NeverReady { cause: Cause::NotStarted(reason), .. })
                | Progress::Recycling { reason, .. }
                | Progress::RecycleFailed { reason, .. }
                | Progress::ReloadFailed { reason, .. }
                | Progress::RollBackFailed { reason },
            ) => reason.len(),
            _ => 0,
        }
    }

    fn missed(n: u64) -> Event {
        Event::Lagged { missed: n }
    }
}

/// The events of a cluster from the moment of the call of
/// [`Cluster::events`](crate::Cluster::events).
///
/// Up to 16 MiB wait for a slow subscriber (each event counts 128 bytes and its message or text, a
/// socket 16 KiB). Then the oldest are dropped, and [`Event::Lagged`] says how many.
///
/// It is a [`Stream`] as well, for the combinators of `futures` and `tokio-stream`.
///
/// ```no_run
/// # async fn watch(cluster: troop::Cluster) {
/// use troop::Event;
///
/// let mut events = cluster.events();
/// while let Some(event) = events.recv().await {
///     if let Event::Exit { worker, exit, .. } = event {
///         eprintln!("worker {} ended: {exit}", worker.id());
///     }
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct Events {
    reader: Reader<Event>,
}

impl Events {
    /// Waits for the next event. Returns `None` after the last one, when the cluster is over.
    /// Cancel safe.
    pub async fn recv(&mut self) -> Option<Event> {
        self.reader.recv().await
    }

    /// Returns the next event if one waits.
    pub fn try_recv(&mut self) -> Option<Event> {
        self.reader.try_recv()
    }

    /// Blocks until the next event. Returns `None` after the last one, when the cluster is over,
    /// and when `timeout` has passed.
    pub fn blocking_recv(&mut self, timeout: Duration) -> Option<Event> {
        self.reader.blocking_recv(timeout)
    }
}

impl Stream for Events {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        self.reader.poll_recv(context)
    }
}

/// The source of events. Each reader has a queue.
#[derive(Default)]
pub(crate) struct Bus {
    readers: Mutex<Vec<Weak<Queue<Event>>>>,
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bus").finish_non_exhaustive()
    }
}

impl Bus {
    fn readers(&self) -> MutexGuard<'_, Vec<Weak<Queue<Event>>>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn subscribe(&self, max_bytes: usize) -> Events {
        let reader = Reader::within(max_bytes);
        self.readers().push(Arc::downgrade(reader.queue()));
        Events { reader }
    }

    /// Whether there are readers.
    pub(crate) fn has_readers(&self) -> bool {
        !self.readers().is_empty()
    }

    /// Publishes the events to all readers, and empties `events`.
    pub(crate) fn publish(&self, events: &mut Vec<Event>) {
        if events.is_empty() {
            return;
        }
        let mut readers = self.readers();
        let mut left = readers.len();
        readers.retain(|reader| {
            left -= 1;
            let Some(queue) = reader.upgrade() else { return false };
            // The last reader gets the events themselves, the others copies.
            if left == 0 {
                queue.push(events.drain(..))
            } else {
                queue.push(events.iter().cloned())
            }
            true
        });
        events.clear();
    }

    /// Ends the streams of all readers.
    pub(crate) fn close(&self) {
        for queue in self.readers().drain(..).filter_map(|reader| reader.upgrade()) {
            queue.close();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::ITEM_BYTES;

    #[test]
    fn a_reader_that_lags_gets_the_number_of_lost_events() {
        let kept = 16 * 1024 * 1024 / ITEM_BYTES;
        let bus = Bus::default();
        let mut events = bus.subscribe(crate::queue::MAX_BYTES);
        let mut batch: Vec<_> =
            (0..kept + 10).map(|n| Event::Lagged { missed: n as u64 }).collect();
        bus.publish(&mut batch);
        assert!(matches!(events.try_recv(), Some(Event::Lagged { missed: 10 })));
        assert!(
            matches!(events.try_recv(), Some(Event::Lagged { missed: 10 })),
            "the first that was kept is number 10"
        );
        bus.close();
        assert_eq!(std::iter::from_fn(|| events.blocking_recv(Duration::ZERO)).count(), kept - 1);
    }

    #[tokio::test]
    async fn a_subscriber_that_waits_is_woken_by_events_and_by_the_end() {
        let bus = Arc::new(Bus::default());
        let mut events = bus.subscribe(crate::queue::MAX_BYTES);
        let (waits, waiting) = std::sync::mpsc::channel();
        let publisher = std::thread::spawn(move || {
            // Each step only when the subscriber waits.
            for missed in 1..=2 {
                waiting.recv().expect("the subscriber waits");
                bus.publish(&mut vec![Event::Lagged { missed }]);
            }
            waiting.recv().expect("the subscriber waits");
            bus.close();
        });
        for expected in [Some(1), Some(2), None] {
            let next = std::future::poll_fn(|context| {
                let polled = Pin::new(&mut events).poll_next(context);
                if polled.is_pending() {
                    waits.send(()).expect("the publisher lives");
                }
                polled
            });
            let next = tokio::time::timeout(Duration::from_secs(20), next).await;
            let missed = match next.expect("the subscriber is woken") {
                Some(Event::Lagged { missed }) => Some(missed),
                _ => None,
            };
            assert_eq!(missed, expected);
        }
        publisher.join().expect("the publisher does not panic");
    }
}
