//! What happens in a cluster, as a stream.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use troop_core::event::{Address, ExitHow, Listening, Violation};
use troop_core::supervise::{Afterwards, Cause, GiveUp, Progress};
use troop_core::text::{Escaping, escaped};

use crate::error::Error;
use crate::message::{Message, Request};
use crate::primary::WorkerHandle;
use crate::queue::{Queue, Reader, Weigh};
use crate::settings::Settings;

/// The most characters of what a health check has heard that are shown.
const MAX_SHOWN: usize = 1000;

/// Something that happened in the cluster. The first eight are Node's, in Node's order.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event {
    /// The settings were changed, or a fork used them (as in Node, every fork counts).
    Setup(Arc<Settings>),
    /// A worker's process was started.
    Fork(WorkerHandle),
    /// A worker runs and its channel works.
    Online(WorkerHandle),
    /// One of a worker's servers listens.
    Listening(WorkerHandle, Listening),
    /// A worker sent a message.
    Message(WorkerHandle, Message),
    /// A worker's channel is closed.
    Disconnect(WorkerHandle),
    /// A worker's process has ended.
    Exit(WorkerHandle, ExitHow),
    /// Something went wrong that nobody was waiting for the outcome of.
    Error(Option<WorkerHandle>, Arc<Error>),
    /// A worker asked something.
    Request(WorkerHandle, Request),
    /// A worker broke a rule of the channel. With `true` it was killed for it.
    Misbehaved(WorkerHandle, Violation, bool),
    /// A worker does not take the connections that wait for it, and they go to others (`true`); or
    /// it does again. Where the kernel chooses
    /// ([`Scheduling::Steered`](crate::Scheduling::Steered)) this is seen by a queue that does not
    /// move.
    Stalled(WorkerHandle, bool),
    /// A worker has failed its [`HealthCheck`](crate::HealthCheck): why. After enough of them it is
    /// replaced.
    Unhealthy(WorkerHandle, String),
    /// A listener is not steered by the kernel as was chosen, or not with a socket for each worker:
    /// why, and what is done instead.
    NotSteered(Address, String),
    /// A listener was closed because no worker has it any more and nobody who is starting may ask
    /// for it, or while connections waited for a worker: where it was bound, and how many
    /// connections waited. Those are closed.
    ListenerClosed(Address, usize),
    /// A listener that clients could not reach, or would not have been able to, can be reached
    /// again: what had happened.
    ListenerRestored(Address, String),
    /// Clients do not reach a listener: why, and what helps.
    ListenerLost(Address, String),
    /// What the supervision of a [`Builder`](crate::Builder) does.
    Supervision(Progress),
    /// This reader was too slow; this many events before the next one are lost to it.
    Missed(u64),
}

/// One line, in which nothing that a worker has said is obeyed by a terminal or forges another
/// line: see [`text`](crate::text).
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(&mut Escaping(f))
    }
}

impl Event {
    fn write(&self, f: &mut impl fmt::Write) -> fmt::Result {
        match self {
            Event::Setup(_) => f.write_str("settings changed"),
            Event::Fork(w) => write!(f, "worker {} started, pid {}", w.id(), w.pid()),
            Event::Online(w) => write!(f, "worker {} online", w.id()),
            Event::Listening(w, at) => write!(f, "worker {} listening on {at}", w.id()),
            Event::Message(w, m) => {
                write!(f, "worker {} sent a message of {} bytes", w.id(), m.as_json().len())
            }
            Event::Disconnect(w) => write!(f, "worker {} disconnected", w.id()),
            Event::Exit(w, how @ ExitHow::Signal(signal)) if w.was_ended_by(*signal) => {
                write!(f, "worker {} was ended by troop: {how}", w.id())
            }
            Event::Exit(w, how) if w.exited_after_disconnect() == Some(true) || w.was_to_end() => {
                write!(f, "worker {} finished: {how}", w.id())
            }
            Event::Exit(w, how) => write!(f, "worker {} died: {how}", w.id()),
            Event::Error(Some(w), e) => write!(f, "worker {}: {}", w.id(), e.chain()),
            Event::Error(None, e) => f.write_str(&e.chain()),
            Event::Request(w, r) => {
                write!(f, "worker {} asked something, {} bytes", w.id(), r.as_json().len())
            }
            Event::Misbehaved(w, what, true) => {
                write!(f, "worker {} was killed because it sent {what}", w.id())
            }
            Event::Misbehaved(w, what, false) => write!(f, "worker {} sent {what}", w.id()),
            Event::Stalled(w, true) => {
                write!(f, "worker {} does not take its connections; others get them", w.id())
            }
            Event::Stalled(w, false) => write!(f, "worker {} takes connections again", w.id()),
            Event::Unhealthy(w, why) => {
                write!(f, "worker {}: {:.MAX_SHOWN$}", w.id(), escaped(why))
            }
            Event::ListenerRestored(at, why) => write!(f, "{at} is reached again: {why}"),
            Event::ListenerLost(at, why) => write!(f, "{at} is not reached: {why}"),
            Event::NotSteered(at, why) => write!(f, "{at}: {why}"),
            Event::ListenerClosed(at, 0) => {
                write!(f, "{at} is closed: no worker listens there any more")
            }
            Event::ListenerClosed(at, dropped) => {
                write!(
                    f,
                    "{at} is closed: no worker listens there any more; connections that waited there and were closed: {dropped}"
                )
            }
            Event::Supervision(progress) => fmt_progress(progress, f),
            Event::Missed(n) => write!(f, "{n} events missed"),
        }
    }
}

fn fmt_progress(progress: &Progress, f: &mut impl fmt::Write) -> fmt::Result {
    match progress {
        // The end of a worker has been told; why one could not be started has not.
        Progress::Restarting { delay, cause: Cause::NotStarted(reason) } => {
            write!(f, "{reason}; trying again in {delay:.1?}")
        }
        Progress::NotRestarting { worker, how } => {
            write!(f, "worker {worker} ended for good: {how}")
        }
        Progress::Recycling { worker, reason } => write!(f, "replacing worker {worker}: {reason}"),
        Progress::RecycleFailed { worker, reason } => {
            write!(f, "worker {worker} goes on: {reason}")
        }
        Progress::RollingBack { workers } => write!(f, "reload: going back with {workers} workers"),
        Progress::RollBackFailed { reason } => {
            write!(f, "reload: going back did not work, it is tried again: {reason}")
        }
        Progress::Pausing => f.write_str("pausing: the workers finish, the listeners stay"),
        Progress::Degraded { ready: 0, .. } => f.write_str("degraded: no worker is ready"),
        Progress::Degraded { ready, wanted } => {
            write!(f, "degraded: {ready} of {wanted} workers are ready")
        }
        Progress::Recovering { ready, wanted } => {
            write!(f, "recovering: {ready} of {wanted} workers are ready again")
        }
        Progress::NotReady { worker, within } => {
            write!(f, "worker {worker} was not ready within {within:.0?} and is ended")
        }
        Progress::Recovered { workers } => write!(f, "all {workers} workers are ready again"),
        Progress::Restarting { delay, .. } if delay.is_zero() => {
            f.write_str("starting a new worker")
        }
        Progress::Restarting { delay, .. } => write!(f, "starting a new worker in {delay:.1?}"),
        Progress::ReloadStarted { workers } => write!(f, "reload: replacing {workers} workers"),
        Progress::Awaiting { worker, at } => {
            write!(
                f,
                "waiting for worker {worker} to listen on {at}, as the one that it replaces does"
            )
        }
        Progress::PutOff { worker } => {
            write!(
                f,
                "worker {worker} does not listen where only the one that it was to replace does; the others are replaced first"
            )
        }
        Progress::Replaced { old, new } => {
            write!(f, "reload: worker {new} takes over from worker {old}")
        }
        Progress::ReloadFinished => f.write_str("reload: done"),
        Progress::ReloadFailed { reason, then } => {
            let then = match then {
                Afterwards::GoesOn => "; the old workers go on",
                Afterwards::Replaced => "; the workers have been replaced",
                Afterwards::Retries => "; no worker is ready, and more are started as before",
                Afterwards::Paused => "; still paused, until the next reload",
                Afterwards::Ends => "",
            };
            write!(f, "reload failed: {reason}{then}")
        }
        Progress::ReloadRefused => {
            f.write_str("reload refused: one is under way, or the cluster is stopping")
        }
        Progress::Stopping => f.write_str("stopping"),
        Progress::GraceOver(worker) => {
            write!(f, "worker {worker} did not finish in time and is killed")
        }
        Progress::GivingUp(why) => write!(f, "giving up: {why}"),
    }
}

/// What the handle of a worker, which an event keeps alive, takes beyond the event itself.
const WORKER_BYTES: usize = 1024;

impl Weigh for Event {
    /// Must not change while the event waits.
    fn weight(&self) -> usize {
        let address = |at: &Address| at.address.as_ref().map_or(0, String::len);
        match self {
            Event::Message(_, m) => m.weight(),
            Event::Request(_, r) => r.weight(),
            Event::Fork(_) => WORKER_BYTES,
            // With what it wrote last to standard error.
            Event::Exit(..) => crate::primary::MAX_TAIL,
            Event::Listening(_, at)
            | Event::ListenerClosed(at, _)
            | Event::Supervision(Progress::Awaiting { at, .. }) => address(at),
            Event::NotSteered(at, why) => address(at) + why.len(),
            Event::Unhealthy(_, why) => why.len(),
            Event::Misbehaved(_, Violation::Malformed(what) | Violation::Forbidden(what), _) => {
                what.len()
            }
            Event::Error(_, e) => e.weight(),
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
        Event::Missed(n)
    }
}

/// The events of a cluster, from the moment this was made. For a slow reader up to 16 MiB are kept
/// (each event counts 128 bytes and its message or text, a socket 16 KiB), then the oldest are
/// dropped and the reader is told how many by [`Event::Missed`].
#[derive(Debug)]
pub struct Events {
    reader: Reader<Event>,
}

impl Events {
    /// The next event; `None` after the last one, when the cluster is over. Cancel safe.
    pub async fn next(&mut self) -> Option<Event> {
        self.reader.next().await
    }

    /// The next event if there is one.
    pub fn try_next(&mut self) -> Option<Event> {
        self.reader.try_next()
    }

    /// Blocks until the next event, the end of the cluster (`None`), or the end of the time
    /// (`None`).
    pub fn next_blocking(&mut self, timeout: Duration) -> Option<Event> {
        self.reader.next_blocking(timeout)
    }
}

/// Where events come from. Every reader has a queue of its own.
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

    /// Whether anybody reads.
    pub(crate) fn has_readers(&self) -> bool {
        !self.readers().is_empty()
    }

    /// Gives every reader the events, which are taken out of `events`.
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

    /// No more events will come.
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
    fn a_reader_that_lags_is_told_how_much_it_missed() {
        let kept = 16 * 1024 * 1024 / ITEM_BYTES;
        let bus = Bus::default();
        let mut events = bus.subscribe(crate::queue::MAX_BYTES);
        let mut batch: Vec<_> = (0..kept + 10).map(|n| Event::Missed(n as u64)).collect();
        bus.publish(&mut batch);
        assert!(matches!(events.try_next(), Some(Event::Missed(10))));
        assert!(
            matches!(events.try_next(), Some(Event::Missed(10))),
            "the first that was kept is number 10"
        );
        bus.close();
        assert_eq!(std::iter::from_fn(|| events.next_blocking(Duration::ZERO)).count(), kept - 1);
    }
}
