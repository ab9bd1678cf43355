//! Connections that the primary handed over and the program has not taken yet.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::Notify;
use troop_sys::poll::EventFd;

use super::inner::Inner;

/// A connection, its number, and the form of its acknowledgement.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) fd: OwnedFd,
    pub(crate) answer: Taken,
}

/// The acknowledgement of a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taken {
    pub(crate) seq: u64,
    /// A troop primary accepts many acknowledgements in one message.
    pub(crate) batched: bool,
}

#[derive(Debug, Default)]
struct State {
    conns: VecDeque<Conn>,
    closed: bool,
}

/// The waiting connections of one listener.
#[derive(Debug, Default)]
pub(crate) struct ConnQueue {
    state: Mutex<State>,
    arrived: Notify,
    arrived_blocking: Condvar,
    /// For threads that also wait for a socket.
    event_fd: OnceLock<EventFd>,
}

impl ConnQueue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signal(&self) {
        if let Some(event_fd) = self.event_fd.get() {
            event_fd.signal();
        }
    }

    /// Returns a descriptor that is readable when there may be a connection, or the listener is
    /// closed. Call [`ConnQueue::try_take`] then.
    pub(crate) fn event_fd(&self) -> std::io::Result<&EventFd> {
        if self.event_fd.get().is_none() {
            let event_fd = EventFd::new()?;
            // Signals for connections that are queued already.
            event_fd.signal();
            let _ = self.event_fd.set(event_fd);
        }
        self.event_fd.get().ok_or_else(|| std::io::ErrorKind::Other.into())
    }

    /// Returns a connection: `Ok(None)` if there is none, `Err` once closed.
    pub(crate) fn try_take(&self, inner: &Arc<Inner>) -> Result<Option<OwnedFd>, ()> {
        if let Some(event_fd) = self.event_fd.get() {
            event_fd.clear();
        }
        let mut state = self.lock();
        let conn = state.conns.pop_front();
        let (more, closed) = (!state.conns.is_empty(), state.closed);
        drop(state);
        if more || closed {
            // Signals again for the next connection.
            self.signal();
        }
        match conn {
            Some(conn) => {
                inner.taken(conn.answer);
                Ok(Some(conn.fd))
            }
            None if closed => Err(()),
            None => Ok(None),
        }
    }

    /// Queues a connection. Returns it if the listener is closed.
    pub(crate) fn push(&self, conn: Conn) -> Result<(), Conn> {
        let mut state = self.lock();
        if state.closed {
            return Err(conn);
        }
        state.conns.push_back(conn);
        drop(state);
        self.arrived.notify_one();
        self.arrived_blocking.notify_one();
        self.signal();
        Ok(())
    }

    /// Removes a connection that the program has not taken, for the primary.
    pub(crate) fn recall(&self, seq: u64) -> Option<Conn> {
        let mut state = self.lock();
        let at = state.conns.iter().position(|c| c.answer.seq == seq)?;
        state.conns.remove(at)
    }

    /// Closes the queue, and returns the connections that were not taken.
    pub(crate) fn close(&self) -> VecDeque<Conn> {
        let mut state = self.lock();
        state.closed = true;
        let left = std::mem::take(&mut state.conns);
        drop(state);
        // All waiting tasks must see it; `notify_one` also reaches a task that is about to wait.
        self.arrived.notify_waiters();
        self.arrived.notify_one();
        self.arrived_blocking.notify_all();
        self.signal();
        left
    }

    /// Waits for the next connection, which is taken for good; `None` once closed.
    pub(crate) async fn take(&self, inner: &Arc<Inner>) -> Option<OwnedFd> {
        loop {
            let arrived = self.arrived.notified();
            {
                let mut state = self.lock();
                if let Some(conn) = state.conns.pop_front() {
                    let more = !state.conns.is_empty();
                    drop(state);
                    if more {
                        // For another task that waits on the same listener.
                        self.arrived.notify_one();
                    }
                    inner.taken(conn.answer);
                    return Some(conn.fd);
                }
                if state.closed {
                    drop(state);
                    self.arrived.notify_one();
                    return None;
                }
            }
            arrived.await;
        }
    }

    /// As [`ConnQueue::take`], blocking.
    pub(crate) fn take_blocking(&self, inner: &Arc<Inner>) -> Option<OwnedFd> {
        let mut state = self.lock();
        loop {
            if let Some(conn) = state.conns.pop_front() {
                drop(state);
                inner.taken(conn.answer);
                return Some(conn.fd);
            }
            if state.closed {
                return None;
            }
            state = self.arrived_blocking.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
