//! Which worker gets the next connection of a listener.
//!
//! [`Scheduling`] is what a person chooses, [`Policy`] is what decides: one object per listener.
//! The primary tells it about the workers and asks it once for each connection.

mod address;
mod callback;
mod client;
mod least;
mod listener;
mod p2c;
mod partition;
mod rank;
mod round_robin;
mod scheduling;
mod sticky;
mod weighted;

use std::fmt;
use std::net::SocketAddr;

pub use address::Pattern;
pub use callback::{Callback, CallbackPolicy, Question, Respond};
pub use client::{Finding, Identify, identify};
pub use least::LeastConnections;
pub(crate) use listener::ListenerPolicy;
pub use p2c::PowerOfTwo;
pub(crate) use partition::mixing;
pub use partition::{BUCKETS, Mixer, bucket_of, partition, prefix_masks};
pub use round_robin::RoundRobin;
pub use scheduling::{BadScheduling, Custom, Header, Http, Scheduling, Sticky};
pub use sticky::ByClient;
pub use weighted::Weighted;

use serde::{Deserialize, Serialize};

use crate::id::WorkerId;
use crate::worker_state::WorkerState;

/// A worker that is a member of a listener, as policies see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WorkerView {
    /// Its number.
    pub worker: WorkerId,
    /// The number of its shard on this listener, from 0. A worker's successor has the same one, for
    /// a while beside it.
    pub shard: u16,
    /// Its weight, 100 unless something else was chosen for it.
    pub weight: u32,
    /// Node's `worker.state`. Workers that drain, hang, or are gone are not shown to a policy at
    /// all.
    pub state: WorkerState,
    /// Whether it can be given a connection now: not while its channel is full, while it leaves
    /// connections unanswered, and for a moment after it refused one.
    pub ready: bool,
    /// Connections open at the worker: as it reports them, if it is a troop worker, else an
    /// estimate.
    pub open: u32,
    /// Connections that were handed to it and that it has not answered yet, and those that wait in
    /// a socket of its own.
    pub pending: u32,
    /// What it reported as its load, in a unit of its own; 0 if it never did.
    pub load: u32,
}

impl WorkerView {
    /// A ready worker without connections and load, for tests of a policy of a program's own.
    #[must_use]
    pub fn new(worker: WorkerId) -> WorkerView {
        WorkerView {
            worker,
            shard: 0,
            weight: 100,
            state: WorkerState::Listening,
            ready: true,
            open: 0,
            pending: 0,
            load: 0,
        }
    }

    /// Returns the sum of open and pending connections and the reported load.
    #[must_use]
    pub fn busy(&self) -> u32 {
        self.open.saturating_add(self.pending).saturating_add(self.load)
    }

    /// Returns [`WorkerView::busy`] with the connection to come in relation to the weight, to
    /// compare workers by. With weight 0 it is greater than any other.
    #[must_use]
    pub fn cost(&self) -> u64 {
        let busy = u64::from(self.busy()) + 1;
        (busy * 1_000_000).checked_div(u64::from(self.weight)).unwrap_or(u64::MAX / 2 + busy)
    }
}

/// A connection that is to be given to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Connection {
    /// The other end of the socket. Only looked up for policies that [need](Policy::needs_peer) it;
    /// `None` for Unix sockets.
    pub peer: Option<SocketAddr>,
    /// The client's mark, for a listener that is sticky: equal for all connections of one client.
    pub client: Option<u32>,
}

impl Connection {
    /// A connection from this peer, with the client's mark.
    #[must_use]
    pub fn new(peer: Option<SocketAddr>, client: Option<u32>) -> Connection {
        Connection { peer, client }
    }
}

/// Decides which worker gets a connection. One for each listener; called by one thread.
///
/// The primary keeps it informed and asks it. Workers that drain, hang or are gone are removed, and
/// nothing is ever given to a worker that is not among those that were shown last.
///
/// ```
/// use troop_core::WorkerId;
/// use troop_core::policy::{Connection, Policy, WorkerView};
///
/// /// Fills the first worker up to eight connections before it uses the next one.
/// #[derive(Debug, Default)]
/// struct Pack {
///     workers: Vec<WorkerView>,
/// }
///
/// impl Policy for Pack {
///     fn update(&mut self, worker: WorkerView) {
///         self.workers.retain(|w| w.worker != worker.worker);
///         self.workers.push(worker);
///         self.workers.sort_by_key(|w| w.shard);
///     }
///
///     fn remove(&mut self, worker: WorkerId) {
///         self.workers.retain(|w| w.worker != worker);
///     }
///
///     fn pick(&mut self, _: &Connection) -> Option<WorkerId> {
///         let mut ready = self.workers.iter().filter(|w| w.ready);
///         ready.clone().find(|w| w.busy() < 8).or(ready.next()).map(|w| w.worker)
///     }
/// }
/// ```
pub trait Policy: fmt::Debug + Send {
    /// Is told of a worker that became a member, or of a change of one.
    fn update(&mut self, worker: WorkerView);

    /// Is told of a worker that is no member any more.
    fn remove(&mut self, worker: WorkerId);

    /// Returns the worker for the next connection. The connection waits for a worker that is not
    /// [ready](WorkerView::ready), as long as that is a member, and with `None` until something
    /// changes.
    fn pick(&mut self, connection: &Connection) -> Option<WorkerId>;

    /// Returns true to have [`Connection::peer`] filled in, which costs a system call for each
    /// connection.
    fn needs_peer(&self) -> bool {
        true
    }

    /// Returns true to have [`Policy::update`] called for each change of a worker's open and
    /// pending connections and load, and not only when it becomes ready or ceases to be.
    fn needs_counts(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn view(worker: u32) -> WorkerView {
        WorkerView {
            worker: WorkerId(worker),
            shard: worker as u16,
            weight: 100,
            state: WorkerState::Listening,
            ready: true,
            open: 0,
            pending: 0,
            load: 0,
        }
    }
}
