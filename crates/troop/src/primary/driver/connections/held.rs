//! Connections that wait are held by the keeper, too, so that another engine finds them if this one is
//! killed. From when they are sent to a worker, or closed, the keeper has none: otherwise clients would
//! not see the worker's close.

use std::collections::BTreeSet;
use std::os::fd::AsFd as _;

use troop_core::ConnId;

use super::Connections;
use crate::keeper::{Kind, Link, Message, link};
use crate::primary::saved::FIRST_CONNECTION;
use crate::primary::saved::kept::release;

/// The keys of connections that the keeper holds.
#[derive(Debug)]
pub(super) struct Held {
    sent: BTreeSet<u64>,
    /// Connections that are part of the state, and are to be sent when it is written down.
    unsent: Vec<ConnId>,
    next: u64,
}

impl Default for Held {
    fn default() -> Held {
        Held { sent: BTreeSet::new(), unsent: Vec::new(), next: FIRST_CONNECTION }
    }
}

impl Held {
    pub(super) fn has(&self, key: u64) -> bool {
        self.sent.contains(&key)
    }

    /// The keeper has this for a former engine.
    pub(super) fn resume(&mut self, key: u64) {
        self.sent.insert(key);
        self.next = self.next.max(key + 1);
    }

    /// Has the keeper close its copy. It does so before it starts another engine.
    pub(super) fn let_go(&mut self, key: u64) {
        if let (true, Some(link)) = (self.sent.remove(&key), link()) {
            // A keeper that has ended holds nothing.
            let _ = link.send(&Message::of_key(Kind::Drop, key));
        }
    }

    /// The same, and waits until it is closed, so that the last close is here: for one with which others
    /// are closed, which may take long.
    pub(super) fn let_go_before(&mut self, key: u64) {
        if let (true, Some(link)) = (self.sent.remove(&key), link()) {
            release(link, key);
        }
    }
}

impl Connections {
    pub(in crate::primary::driver) fn is_held(&self, conn: ConnId) -> bool {
        self.all.get(conn.0 as usize).is_some_and(|conn| conn.held.is_some())
    }

    /// The number of those that the keeper holds.
    pub(in crate::primary::driver) fn count_held(&self) -> usize {
        self.held.sent.len()
    }

    /// These are to be part of the state.
    pub(in crate::primary::driver) fn hold(&mut self, waiting: impl IntoIterator<Item = ConnId>) {
        for id in waiting {
            let Some(conn) = self.all.get_mut(id.0 as usize).filter(|conn| conn.held.is_none())
            else {
                continue;
            };
            conn.held = Some(self.held.next);
            self.held.next += 1;
            self.held.unsent.push(id);
        }
    }

    /// The state is written down: the keeper gets what is new in it. If this engine is killed before, the
    /// next one finds that they are missing.
    pub(in crate::primary::driver) fn send_held(&mut self, link: &Link) {
        for id in self.held.unsent.drain(..) {
            let Some(conn) = self.all.get_mut(id.0 as usize) else { continue };
            let Some(key) = conn.held else { continue };
            match link.send_with(&Message::of_key(Kind::Hold, key), Some(conn.fd.as_fd())) {
                Ok(()) => drop(self.held.sent.insert(key)),
                Err(_) => conn.held = None,
            }
        }
    }

    /// The keeper had no room for this one.
    pub(in crate::primary::driver) fn was_refused(&mut self, key: u64) {
        if self.held.sent.remove(&key)
            && let Some((_, conn)) = self.all.iter_mut().find(|(_, conn)| conn.held == Some(key))
        {
            conn.held = None;
        }
    }

    /// The keeper holds nothing any more.
    pub(in crate::primary::driver) fn forget_held(&mut self) {
        self.held.sent.clear();
        self.held.unsent.clear();
        self.all.iter_mut().for_each(|(_, conn)| conn.held = None);
    }
}
