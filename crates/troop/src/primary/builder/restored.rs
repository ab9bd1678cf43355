//! Clusters that another program image has left.

use troop_core::cluster as core;
use troop_core::snapshot;
use troop_core::supervise::Supervisor;
use troop_sys::fault;

use super::Builder;
#[cfg(doc)]
use crate::Cluster;
use crate::error::{Error, Result};
use crate::primary::saved::{Leaving, RestoredState, Resumption};

impl Builder {
    /// Goes on with what another engine of this program has left, if there is something: see
    /// [`keeper`](crate::keeper). What can fail must come before. For [`Builder::run`].
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if this version cannot read it, and
    /// [`Error::NotReplaced`](crate::Error::NotReplaced) if the other engine goes on.
    pub fn resume(self) -> Result<Builder> {
        match Resumption::find()? {
            Some(resumption) => Ok(self.restore(resumption.commit()?)),
            None => Ok(self),
        }
    }

    /// Has the keeper hold the cluster's state all the time, so that another engine goes on with it if this
    /// one is killed ([`keeper`](crate::keeper)): with workers and listeners; connections that this one has at
    /// that time are lost. `note` is what the program leaves to the other engine for its own use, each time
    /// that the state is written down; `None` while it is not to be written down. For [`Builder::run`].
    pub fn keep_state(
        mut self,
        note: impl FnMut(&mut Leaving<'_, '_>) -> Option<Vec<u8>> + Send + 'static,
    ) -> Builder {
        self.note = Some(Box::new(note));
        self
    }

    /// Goes on with a cluster that another program image has left ([`Cluster::replace`]), instead of
    /// starting one: with its workers, listeners and connections. What was set of policies and numbers
    /// is part of the state; what workers are started with, handlers of events and the like are those of
    /// this builder, which is otherwise to be like the former one. Sockets of [`Builder::activation`] are
    /// those of the state, and need not be bound again, which fails. For [`Builder::run`].
    pub fn restore(mut self, state: RestoredState) -> Builder {
        self.restored = Some(state);
        self
    }

    /// Returns the core of a state. `empty` is one without workers.
    pub(super) fn core_of(
        &self,
        state: &RestoredState,
        mut empty: core::Cluster,
    ) -> Result<core::Cluster> {
        let read = match state.is_rebuilt {
            true => core::FormerState::read(&state.core).and_then(|former| {
                let supervisor = Supervisor::new(self.supervision(former.wanted()));
                empty.rebuild(state.now(), former, supervisor)?;
                Ok(empty)
            }),
            false => {
                fault::point("recovering");
                snapshot::read(&state.core)
            }
        };
        let restoring = Error::io("go on with the state of another primary");
        read.map_err(|e| restoring(std::io::Error::other(e)))
    }

    /// Goes on with the sockets by activation that the other one had, if there is another one. Returns
    /// whether there is.
    pub(super) fn take_activation(&mut self) -> Result<bool> {
        let Some(state) = &mut self.restored else { return Ok(false) };
        let sockets = state.take_activation();
        let sockets = sockets.map_err(Error::io("go on with the sockets of another primary"))?;
        self.activation = sockets.map(Into::into);
        Ok(true)
    }
}
