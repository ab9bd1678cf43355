//! The list that `troop save` writes and `troop resurrect` reads. It is a copy, so that later stops
//! do not change it.

use std::ffi::OsStr;
use std::io;

use super::Record;
use super::store::Store;

/// Not the name of an app's record, which begins with no dot.
const FILE: &str = ".saved";

/// Replaces the list.
pub(crate) fn write(store: &Store, records: &[Record]) -> io::Result<()> {
    store.save(OsStr::new(FILE), &records)
}

/// Returns the list; `None` if nothing was saved.
pub(crate) fn read(store: &Store) -> io::Result<Option<Vec<Record>>> {
    store.load(OsStr::new(FILE))
}
