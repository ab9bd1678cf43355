//! Connections that wait for their clients, in the order in which they began to: which one is closed
//! when there are too many.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The connections of a server that wait for a request, or for a client that takes an answer.
#[derive(Debug, Default)]
pub(super) struct Waiting(Mutex<List>);

#[derive(Debug, Default)]
struct List {
    /// By the order in which they began to wait.
    connections: BTreeMap<u64, Arc<Notify>>,
    next: u64,
}

/// A connection of such a server.
#[derive(Debug)]
pub(super) struct Place {
    of: Arc<Waiting>,
    /// Where it is in the list, while it waits.
    at: Mutex<Option<u64>>,
    replaced: Arc<Notify>,
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, List> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a connection, which waits for a request.
    pub(super) fn add(self: &Arc<Waiting>) -> Arc<Place> {
        let place = Place { of: self.clone(), at: Mutex::default(), replaced: Arc::default() };
        place.set_waiting(true);
        Arc::new(place)
    }

    /// Has the connection closed that has waited for longest. Returns whether there is one.
    pub(super) fn replace_first(&self) -> bool {
        let first = self.lock().connections.pop_first();
        first.map(|(_, replaced)| replaced.notify_one()).is_some()
    }
}

impl Place {
    /// Records whether the connection waits for its client.
    pub(super) fn set_waiting(&self, waits: bool) {
        let mut at = self.at.lock().unwrap_or_else(PoisonError::into_inner);
        if at.is_some() == waits {
            return;
        }
        let mut list = self.of.lock();
        *at = match *at {
            Some(at) => {
                list.connections.remove(&at);
                None
            }
            None => {
                let at = list.next;
                list.next += 1;
                list.connections.insert(at, self.replaced.clone());
                Some(at)
            }
        };
    }

    /// Waits until another connection is to have its place.
    pub(super) async fn replaced(&self) {
        self.replaced.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.set_waiting(false);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn is_replaced(place: &Place) -> bool {
        let poll = pin!(place.replaced()).poll(&mut Context::from_waker(Waker::noop()));
        matches!(poll, Poll::Ready(()))
    }

    #[test]
    fn the_connection_that_has_waited_for_longest_is_replaced_and_none_that_is_answered() {
        let waiting = Arc::new(Waiting::default());
        let [first, second, third] = [waiting.add(), waiting.add(), waiting.add()];
        first.set_waiting(false);
        first.set_waiting(true);
        second.set_waiting(false);
        assert!(waiting.replace_first());
        assert_eq!([&first, &second, &third].map(|place| is_replaced(place)), [false, false, true]);
        assert!(waiting.replace_first());
        assert!(is_replaced(&first));
        assert!(!waiting.replace_first(), "the second one is being answered");
        second.set_waiting(true);
        drop(second);
        assert!(!waiting.replace_first(), "it has gone");
    }
}
