//! Policies, which choose the worker for each connection of a listener.
//!
//! [`Scheduling`] is the configuration, [`Policy`] the implementation: one object per listener,
//! which the primary keeps informed of the workers and calls once per connection.

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
    /// Its id.
    pub worker: WorkerId,
    /// The index of its shard on this listener, from 0. Its successor has the same one, for a while
    /// at the same time.
    pub shard: u16,
    /// Its weight; 100 by default.
    pub weight: u32,
    /// Node's `worker.state`. Policies never see workers that drain, hang or are gone.
    pub state: WorkerState,
    /// Whether it can take a connection now. False while its channel is full, while too many
    /// connections are unacknowledged, and for a short time after it rejected one.
    pub ready: bool,
    /// Open connections of the worker: reported by troop workers, estimated for others.
    pub open: u32,
    /// Connections in flight to the worker, plus those in the queue of its own shard.
    pub pending: u32,
    /// The load that it reported, in a unit of its own; 0 if it never did.
    pub load: u32,
}

impl WorkerView {
    /// Returns the view of a ready worker without connections and load, for tests of custom
    /// policies.
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

    /// Returns [`WorkerView::busy`] plus one, for the next connection, divided by the weight, as an
    /// integer to compare workers by. With weight 0 it exceeds all others.
    #[must_use]
    pub fn cost(&self) -> u64 {
        let busy = u64::from(self.busy()) + 1;
        (busy * 1_000_000).checked_div(u64::from(self.weight)).unwrap_or(u64::MAX / 2 + busy)
    }
}

/// A connection to assign to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Connection {
    /// The client's address, if the policy [needs](Policy::needs_peer) it; `None` for Unix sockets.
    pub peer: Option<SocketAddr>,
    /// The client's number, for sticky listeners: equal for all connections of one client.
    pub client: Option<u32>,
}

impl Connection {
    /// Returns a connection from this peer, with the client's number.
    #[must_use]
    pub fn new(peer: Option<SocketAddr>, client: Option<u32>) -> Connection {
        Connection { peer, client }
    }
}

/// Chooses the worker for each connection of one listener. Called from one thread at a time.
///
/// The primary calls [`update`](Policy::update) and [`remove`](Policy::remove) for every change. It
/// removes workers that drain, hang or are gone, and never hands a connection to a worker that the
/// policy does not have.
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
    /// Called when a worker joins the listener, or when its view has changed.
    fn update(&mut self, worker: WorkerView);

    /// Called when a worker has left the listener.
    fn remove(&mut self, worker: WorkerId);

    /// Returns the worker for the next connection. If the worker is not [ready](WorkerView::ready),
    /// the connection waits for it while it is a member. With `None`, the connection waits until a
    /// worker changes.
    fn pick(&mut self, connection: &Connection) -> Option<WorkerId>;

    /// Whether [`Connection::peer`] is required, which costs a system call per connection.
    fn needs_peer(&self) -> bool {
        true
    }

    /// Whether [`Policy::update`] is called for every change of a worker's open and pending
    /// connections and load. Otherwise it is called only when other fields change.
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
