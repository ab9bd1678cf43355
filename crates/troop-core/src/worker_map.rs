//! A map with workers as keys, for maps of few workers with lookups for every connection.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::id::WorkerId;

/// A map from workers to values, in the order of worker ids.
///
/// The ids are stored apart from the values, in a few cache lines. Ids of a cluster are mostly
/// consecutive, so a lookup tries the expected index first, then a binary search. Inserting an id
/// that is not the highest, and removing one, moves those after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerMap<T> {
    ids: Vec<WorkerId>,
    values: Vec<T>,
}

impl<T> Default for WorkerMap<T> {
    fn default() -> WorkerMap<T> {
        WorkerMap { ids: Vec::new(), values: Vec::new() }
    }
}

impl<T> WorkerMap<T> {
    #[inline]
    fn find(&self, id: WorkerId) -> Result<usize, usize> {
        let first = self.ids.first().ok_or(0usize)?;
        let expected = id.0.wrapping_sub(first.0) as usize;
        if self.ids.get(expected) == Some(&id) { Ok(expected) } else { self.ids.binary_search(&id) }
    }

    /// Returns the value of a worker.
    #[must_use]
    #[inline]
    pub fn get(&self, id: &WorkerId) -> Option<&T> {
        self.find(*id).ok().and_then(|at| self.values.get(at))
    }

    /// Returns the value of a worker, mutably.
    #[inline]
    pub fn get_mut(&mut self, id: &WorkerId) -> Option<&mut T> {
        self.find(*id).ok().and_then(|at| self.values.get_mut(at))
    }

    /// Whether a worker has a value.
    #[must_use]
    pub fn contains_key(&self, id: &WorkerId) -> bool {
        self.find(*id).is_ok()
    }

    /// Sets the value of a worker and returns the previous one.
    pub fn insert(&mut self, id: WorkerId, value: T) -> Option<T> {
        match self.find(id) {
            Ok(at) => Some(std::mem::replace(&mut self.values[at], value)),
            Err(at) => {
                self.ids.insert(at, id);
                self.values.insert(at, value);
                None
            }
        }
    }

    /// Returns the value of a worker, inserting that of `value` if it has none.
    pub fn get_or_insert_with(&mut self, id: WorkerId, value: impl FnOnce() -> T) -> &mut T {
        let at = self.find(id).unwrap_or_else(|at| {
            self.ids.insert(at, id);
            self.values.insert(at, value());
            at
        });
        &mut self.values[at]
    }

    /// Removes the value of a worker and returns it.
    pub fn remove(&mut self, id: &WorkerId) -> Option<T> {
        let at = self.find(*id).ok()?;
        self.ids.remove(at);
        Some(self.values.remove(at))
    }

    /// Returns the number of workers.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether the map is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Returns the workers.
    pub fn keys(&self) -> impl Iterator<Item = &WorkerId> {
        self.ids.iter()
    }

    /// Returns the values, in the order of worker ids.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.values.iter()
    }

    /// Returns the values, mutably.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.values.iter_mut()
    }

    /// Returns the workers with their values.
    pub fn iter(&self) -> impl Iterator<Item = (&WorkerId, &T)> {
        self.ids.iter().zip(&self.values)
    }

    /// Returns the workers with their values, mutably.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&WorkerId, &mut T)> {
        self.ids.iter().zip(&mut self.values)
    }
}

impl<T> FromIterator<(WorkerId, T)> for WorkerMap<T> {
    fn from_iter<I: IntoIterator<Item = (WorkerId, T)>>(all: I) -> WorkerMap<T> {
        let mut map = WorkerMap::default();
        all.into_iter().for_each(|(id, value)| drop(map.insert(id, value)));
        map
    }
}

/// Serialized as a list of pairs, because JSON keys must be text.
impl<T: Serialize> Serialize for WorkerMap<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for WorkerMap<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<WorkerMap<T>, D::Error> {
        Vec::deserialize(deserializer).map(WorkerMap::from_iter)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Behaves as a `BTreeMap` for any sequence of insertions and removals.
        #[test]
        fn it_is_a_map(steps in proptest::collection::vec((any::<bool>(), 0u32..40), 0..200)) {
            let (mut worker_map, mut map) = (WorkerMap::default(), BTreeMap::new());
            for (value, (comes, id)) in steps.into_iter().enumerate() {
                let id = WorkerId(id);
                if comes {
                    prop_assert_eq!(worker_map.insert(id, value), map.insert(id, value));
                } else {
                    prop_assert_eq!(worker_map.remove(&id), map.remove(&id));
                }
                worker_map.values_mut().for_each(|value| *value += 1);
                map.values_mut().for_each(|value| *value += 1);
                prop_assert_eq!(worker_map.get_or_insert_with(WorkerId(40), || value), map.entry(WorkerId(40)).or_insert(value));
                prop_assert!(worker_map.iter().eq(map.iter()));
                prop_assert!(worker_map.keys().eq(map.keys()) && worker_map.values().eq(map.values()));
                prop_assert_eq!((worker_map.len(), worker_map.is_empty()), (map.len(), map.is_empty()));
                for id in (0..41).map(WorkerId) {
                    prop_assert_eq!(worker_map.get(&id), map.get(&id));
                    prop_assert_eq!(worker_map.get_mut(&id), map.get_mut(&id));
                    prop_assert_eq!(worker_map.contains_key(&id), map.contains_key(&id));
                }
            }
        }
    }
}
