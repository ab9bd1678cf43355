//! Clusters that another program image has left.

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
