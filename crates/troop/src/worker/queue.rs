//! Connections that the primary handed over and the program has not taken yet.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::inner::Inner;

/// A connection, its number, and how its primary wants to be answered.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) fd: OwnedFd,
    pub(crate) answer: Taken,
}

/// The answer to a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taken {
    pub(crate) seq: u64,
    /// A troop primary takes many answers in one message.
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
}

impl ConnQueue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the connection back if the listener is closed.
    pub(crate) fn push(&self, conn: Conn) -> Result<(), Conn> {
        let mut state = self.lock();
        if state.closed {
            return Err(conn);
        }
        state.conns.push_back(conn);
        drop(state);
        self.arrived.notify_one();
        self.arrived_blocking.notify_one();
        Ok(())
    }

    /// Takes back a connection that the program has not taken.
    pub(crate) fn recall(&self, seq: u64) -> Option<Conn> {
        let mut state = self.lock();
        let at = state.conns.iter().position(|c| c.answer.seq == seq)?;
        state.conns.remove(at)
    }

    /// No more connections; returns those that nobody took.
    pub(crate) fn close(&self) -> VecDeque<Conn> {
        let mut state = self.lock();
        state.closed = true;
        let left = std::mem::take(&mut state.conns);
        drop(state);
        // Everybody who waits must see it; `notify_one` also reaches one who is about to wait.
        self.arrived.notify_waiters();
        self.arrived.notify_one();
        self.arrived_blocking.notify_all();
        left
    }

    /// The next connection, taken for good; `None` once closed.
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
