//! The connections of this worker that can move to another one, between two requests.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use slab::Slab;

/// A connection that can move.
pub(crate) trait Movable: Send + Sync {
    /// Whether it is between two requests.
    fn is_idle(&self) -> bool;

    /// Has it move when it is next idle.
    fn request_move(&self);
}

struct Registered {
    /// The primary's key of its listener.
    listener: Arc<str>,
    connection: Arc<dyn Movable>,
}

/// All of them.
#[derive(Default)]
pub(crate) struct MovableConnections(Mutex<Slab<Registered>>);

impl MovableConnections {
    fn lock(&self) -> MutexGuard<'_, Slab<Registered>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a connection, until [`MovableConnections::remove`] is called with the returned number.
    #[cfg(feature = "_serve")]
    pub(crate) fn add(&self, listener: Arc<str>, connection: Arc<dyn Movable>) -> usize {
        self.lock().insert(Registered { listener, connection })
    }

    #[cfg(feature = "_serve")]
    pub(crate) fn remove(&self, number: usize) {
        self.lock().try_remove(number);
    }

    /// Counts the connections of a listener.
    pub(crate) fn count(&self, listener: &str) -> u32 {
        let all = self.lock();
        let count = all.iter().filter(|(_, other)| &*other.listener == listener).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// Has so many connections of a listener move, idle ones first.
    pub(crate) fn request_moves(&self, listener: &str, count: u32) {
        let all = self.lock();
        let own = all.iter().map(|(_, one)| one).filter(|one| &*one.listener == listener);
        let (idle, busy): (Vec<_>, Vec<_>) = own.partition(|one| one.connection.is_idle());
        for one in idle.into_iter().chain(busy).take(count as usize) {
            one.connection.request_move();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    use super::*;

    struct Connection {
        is_idle: bool,
        is_requested: AtomicBool,
    }

    impl Movable for Connection {
        fn is_idle(&self) -> bool {
            self.is_idle
        }

        fn request_move(&self) {
            self.is_requested.store(true, Relaxed);
        }
    }

    #[cfg(feature = "_serve")]
    #[test]
    fn idle_connections_of_the_listener_move_first() {
        let all = MovableConnections::default();
        let add = |listener: &str, is_idle| {
            let one = Arc::new(Connection { is_idle, is_requested: AtomicBool::new(false) });
            all.add(listener.into(), one.clone());
            one
        };
        let (busy, other, idle) = (add("a", false), add("b", true), add("a", true));
        let requested = || [&busy, &other, &idle].map(|one| one.is_requested.load(Relaxed));
        assert_eq!((all.count("a"), all.count("b"), all.count("c")), (2, 1, 0));
        all.request_moves("a", 1);
        assert_eq!(requested(), [false, false, true]);
        all.request_moves("a", 5);
        assert_eq!(requested(), [true, false, true]);
        all.remove(2);
        assert_eq!(all.count("a"), 1);
    }
}
