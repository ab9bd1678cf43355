//! A queue for one slow reader: bounded, and honest about what did not fit.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// The most bytes that wait for one reader, unless another number was chosen.
pub(crate) const MAX_BYTES: usize = 16 * 1024 * 1024;
/// What an item costs beyond its own bytes.
pub(crate) const ITEM_BYTES: usize = 128;

/// An item of a queue.
pub(crate) trait Weigh {
    /// Bytes that count against the limit.
    fn weight(&self) -> usize;
    /// The item that tells how many were dropped.
    fn missed(n: u64) -> Self;
}

struct Waiting<T> {
    items: VecDeque<T>,
    bytes: usize,
    missed: u64,
    closed: bool,
    /// Threads that wait in a system call; only they need one to be woken.
    blocked: usize,
}

/// Where items wait.
pub(crate) struct Queue<T> {
    waiting: Mutex<Waiting<T>>,
    arrived: Notify,
    arrived_blocking: Condvar,
    max_bytes: usize,
}

impl<T: Weigh> Queue<T> {
    fn new(max_bytes: usize) -> Queue<T> {
        let waiting =
            Waiting { items: VecDeque::new(), bytes: 0, missed: 0, closed: false, blocked: 0 };
        Queue {
            waiting: Mutex::new(waiting),
            arrived: Notify::new(),
            arrived_blocking: Condvar::new(),
            max_bytes,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting<T>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self, blocked: usize) {
        self.arrived.notify_one();
        if blocked > 0 {
            self.arrived_blocking.notify_all();
        }
    }

    /// Whether so much waits that a task which goes on adding should let the reader have its turn.
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
        let blocked = waiting.blocked;
        drop(waiting);
        self.ring(blocked);
    }

    /// No more will come.
    pub(crate) fn close(&self) {
        let mut waiting = self.lock();
        waiting.closed = true;
        let blocked = waiting.blocked;
        drop(waiting);
        self.ring(blocked);
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
    /// With a queue of so many bytes.
    pub(crate) fn within(max_bytes: usize) -> Reader<T> {
        Reader { queue: Arc::new(Queue::new(max_bytes)), batch: VecDeque::new() }
    }

    pub(crate) fn queue(&self) -> &Arc<Queue<T>> {
        &self.queue
    }

    /// `Some(true)`: there are items now. `Some(false)`: there never will be. `None`: not yet.
    fn refill(&mut self) -> Option<bool> {
        let mut waiting = self.queue.lock();
        let missed = std::mem::take(&mut waiting.missed);
        if missed > 0 {
            self.batch.push_back(T::missed(missed));
        }
        waiting.bytes = 0;
        if self.batch.is_empty() {
            std::mem::swap(&mut self.batch, &mut waiting.items);
        } else {
            self.batch.append(&mut waiting.items);
        }
        if self.batch.is_empty() { waiting.closed.then_some(false) } else { Some(true) }
    }

    pub(crate) async fn next(&mut self) -> Option<T> {
        let queue = self.queue.clone();
        loop {
            if let Some(item) = self.batch.pop_front() {
                return Some(item);
            }
            let arrived = queue.arrived.notified();
            match self.refill() {
                Some(true) => {}
                Some(false) => return None,
                None => arrived.await,
            }
        }
    }

    pub(crate) fn try_next(&mut self) -> Option<T> {
        if self.batch.is_empty() {
            self.refill();
        }
        self.batch.pop_front()
    }

    pub(crate) fn next_blocking(&mut self, timeout: Duration) -> Option<T> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(item) = self.try_next() {
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
