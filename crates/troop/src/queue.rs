//! A bounded queue for one reader, which reports the number of dropped items.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// Default limit of queued bytes for one reader.
pub(crate) const MAX_BYTES: usize = 16 * 1024 * 1024;
/// Bytes that an item counts beyond its own.
pub(crate) const ITEM_BYTES: usize = 128;

/// An item of a queue.
pub(crate) trait Weigh {
    /// Bytes that count against the limit.
    fn weight(&self) -> usize;
    /// Returns the item that reports the number of dropped ones.
    fn missed(n: u64) -> Self;
}

struct Waiting<T> {
    items: VecDeque<T>,
    bytes: usize,
    missed: u64,
    closed: bool,
    /// Number of threads that wait in a system call, and need one to be woken.
    blocked: usize,
    /// The task that waits.
    task: Option<Waker>,
}

/// The shared queue.
pub(crate) struct Queue<T> {
    waiting: Mutex<Waiting<T>>,
    arrived_blocking: Condvar,
    max_bytes: usize,
}

impl<T: Weigh> Queue<T> {
    fn new(max_bytes: usize) -> Queue<T> {
        let waiting = Waiting {
            items: VecDeque::new(),
            bytes: 0,
            missed: 0,
            closed: false,
            blocked: 0,
            task: None,
        };
        Queue { waiting: Mutex::new(waiting), arrived_blocking: Condvar::new(), max_bytes }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting<T>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the reader, without the lock that it needs first.
    fn wake(&self, mut waiting: MutexGuard<'_, Waiting<T>>) {
        let (task, blocked) = (waiting.task.take(), waiting.blocked);
        drop(waiting);
        if let Some(task) = task {
            task.wake();
        }
        if blocked > 0 {
            self.arrived_blocking.notify_all();
        }
    }

    /// Whether so much is queued that an adding task should yield to the reader.
    pub(crate) fn is_busy(&self) -> bool {
        self.lock().items.len() > 64
    }

    /// Adds items; the oldest are dropped when there are too many.
    pub(crate) fn push(&self, items: impl Iterator<Item = T>) {
        let mut waiting = self.lock();
        for item in items {
            waiting.bytes += item.weight() + ITEM_BYTES;
            waiting.items.push_back(item);
            while waiting.bytes > self.max_bytes && waiting.items.len() > 1 {
                if let Some(dropped) = waiting.items.pop_front() {
                    waiting.bytes -= dropped.weight() + ITEM_BYTES;
                    waiting.missed += 1;
                }
            }
        }
        self.wake(waiting);
    }

    /// Closes the queue.
    pub(crate) fn close(&self) {
        let mut waiting = self.lock();
        waiting.closed = true;
        self.wake(waiting);
    }
}

/// Takes items out, many at a time, so that the lock is taken once for many.
pub(crate) struct Reader<T> {
    queue: Arc<Queue<T>>,
    batch: VecDeque<T>,
}

impl<T> fmt::Debug for Reader<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

impl<T: Weigh> Default for Reader<T> {
    fn default() -> Reader<T> {
        Reader::within(MAX_BYTES)
    }
}

impl<T: Weigh> Reader<T> {
    /// Returns a reader with a queue of this many bytes.
    pub(crate) fn within(max_bytes: usize) -> Reader<T> {
        Reader { queue: Arc::new(Queue::new(max_bytes)), batch: VecDeque::new() }
    }

    pub(crate) fn queue(&self) -> &Arc<Queue<T>> {
        &self.queue
    }

    /// Takes all queued items.
    fn refill(batch: &mut VecDeque<T>, waiting: &mut Waiting<T>) {
        let missed = std::mem::take(&mut waiting.missed);
        if missed > 0 {
            batch.push_back(T::missed(missed));
        }
        waiting.bytes = 0;
        if batch.is_empty() {
            std::mem::swap(batch, &mut waiting.items);
        } else {
            batch.append(&mut waiting.items);
        }
    }

    pub(crate) fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Option<T>> {
        if let Some(item) = self.batch.pop_front() {
            return Poll::Ready(Some(item));
        }
        let mut waiting = self.queue.lock();
        Self::refill(&mut self.batch, &mut waiting);
        match self.batch.pop_front() {
            Some(item) => Poll::Ready(Some(item)),
            None if waiting.closed => Poll::Ready(None),
            None => {
                waiting.task = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    pub(crate) async fn recv(&mut self) -> Option<T> {
        poll_fn(|context| self.poll_recv(context)).await
    }

    pub(crate) fn try_recv(&mut self) -> Option<T> {
        if self.batch.is_empty() {
            Self::refill(&mut self.batch, &mut self.queue.lock());
        }
        self.batch.pop_front()
    }

    pub(crate) fn blocking_recv(&mut self, timeout: Duration) -> Option<T> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(item) = self.try_recv() {
                return Some(item);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            let mut waiting = self.queue.lock();
            if !waiting.items.is_empty() {
                continue;
            }
            if waiting.closed {
                return None;
            }
            waiting.blocked += 1;
            let (mut waiting, _) = self
                .queue
                .arrived_blocking
                .wait_timeout(waiting, left)
                .unwrap_or_else(PoisonError::into_inner);
            waiting.blocked -= 1;
        }
    }
}
