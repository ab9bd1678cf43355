//! Addresses whose listeners closed with their last worker, and that its successor is to open again.

use serde::{Deserialize, Serialize};

use super::Primary;
use super::listener::Listened;
use super::unused::Unused;
use crate::asked::Asked;
use crate::event::{Address, Notice};
use crate::id::{ListenerId, WorkerId};

/// The most that are remembered; of more, the oldest are forgotten.
const MAX_LAPSED: usize = 64;

/// A listener that did not wait for a successor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lapsed {
    /// How it was left.
    pub(super) unused: Unused,
    pub(super) asked: Asked,
    /// Where it was bound.
    pub(super) at: Address,
    /// Workers of several slots had listened on it at a time.
    pub(super) is_shared: bool,
}

impl Primary {
    /// Closes a listener that its last worker has left, and that is not to wait for another one.
    pub(super) fn close_at_once(&mut self, id: ListenerId, last: WorkerId, closed: bool) {
        self.note_lapsed(id, self.unused_since_now(last, closed));
        self.close_unused(id);
    }

    /// A listener is about to close, and a successor is to open it again.
    pub(super) fn note_lapsed(&mut self, id: ListenerId, unused: Unused) {
        let Some(listener) = self.listeners.get(&id) else { return };
        let has_served = listener.is_fixed && listener.listened != Listened::Nobody;
        let Some(at) = self.bound_address(id).filter(|_| has_served) else { return };
        if !self.supervised || self.is_ending || !unused.is_due {
            return;
        }
        let (asked, is_shared) = (listener.asked_for(), listener.is_shared);
        self.lapsed.retain(|_, known| known.asked.at != asked.at);
        if self.lapsed.len() >= MAX_LAPSED {
            self.lapsed.pop_first();
        }
        self.lapsed.insert(id, Lapsed { unused, asked, at, is_shared });
    }

    /// A listener has closed that a successor of its last worker should have taken over. It is
    /// missed if none has, under the same name or its own.
    pub(super) fn miss(&mut self, at: Address, asked: Asked, last: WorkerId) {
        let is_taken_over = self
            .workers
            .iter()
            .filter(|(id, state)| **id > last && state.is_there())
            .any(|(id, _)| self.asked_by(*id).iter().any(|new| new.takes_over(&asked)));
        if self.supervised && !self.is_ending && !is_taken_over {
            self.notify(Notice::ListenerMissed { at, asked });
        }
    }
}
