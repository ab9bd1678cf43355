//! Clusters that another program image has left.

use super::Builder;
#[cfg(doc)]
use crate::Cluster;
use crate::primary::saved::RestoredState;

impl Builder {
    /// Goes on with a cluster that another program image has left ([`Cluster::replace`]), instead of
    /// starting one: with its workers, listeners and connections. What was set of policies and numbers
    /// is part of the state; what workers are started with, handlers of events and the like are those of
    /// this builder, which is otherwise to be like the former one. For [`Builder::run`].
    pub fn restore(mut self, state: RestoredState) -> Builder {
        self.restored = Some(state);
        self
    }
}
