//! Reads records together with the state of their apps, and completes those whose primary ended
//! without a word.

use std::io;
use std::time::{Duration, Instant, SystemTime};

use troop::program::within::Begun;

use super::process::Fate;
use super::store::{self, Store, bounded};
use super::{End, Ending, Life, Record, free_id, millis};
use crate::control::sockets;

/// An app that has a record.
#[derive(Debug, Clone)]
pub(crate) struct Listed {
    pub(crate) record: Record,
    /// How it ended; `None` if its primary runs.
    pub(crate) end: Option<End>,
}

/// Returns all apps that have a record, in the order of their numbers.
pub(crate) fn all() -> io::Result<Vec<Listed>> {
    Ok(all_and_unusable()?.0)
}

/// The same, and why the records of some apps are not used, for people.
pub(crate) fn all_and_unusable() -> io::Result<(Vec<Listed>, Vec<String>)> {
    begin_all()?.wait()
}

/// Begins to read all records, while the caller does something else.
pub(crate) fn begin_all() -> io::Result<Reading> {
    let read = store::begin(|| {
        let Some(store) = Store::find()? else { return Ok((Vec::new(), Vec::new())) };
        let (records, unusable) = store.all_and_unusable()?;
        Ok((records.into_iter().filter_map(|record| settle(&store, record)).collect(), unusable))
    })?;
    Ok(Reading(read))
}

/// All records are being read.
pub(crate) struct Reading(Begun<(Vec<Listed>, Vec<String>)>);

impl Reading {
    /// Returns the apps, and why the records of some are not used.
    pub(crate) fn wait(self) -> io::Result<(Vec<Listed>, Vec<String>)> {
        self.0.wait().map_err(store::explained)
    }
}

/// Returns numbers for this many apps that are started now.
pub(crate) fn free_ids(count: usize) -> Vec<u32> {
    let known = bounded(|| Store::find()?.map_or_else(|| Ok(Vec::new()), |store| store.all()));
    let known = known.unwrap_or_default();
    let mut taken: Vec<_> = known.iter().map(|record| record.id).collect();
    let mut free = Vec::new();
    for _ in 0..count {
        let id = free_id(taken.iter().copied());
        taken.push(id);
        free.push(id);
    }
    free
}

/// Returns the app of a name, if it has a record.
pub(crate) fn of(name: &str) -> Option<Listed> {
    let name = name.to_owned();
    let found = bounded(move || {
        let Some(store) = Store::find()? else { return Ok(None) };
        Ok(store.read(&name).and_then(|record| settle(&store, record)))
    });
    found.ok()?
}

/// Removes the record of an app that does not run.
///
/// # Errors
/// Those of `unlink(2)`.
pub(crate) fn forget(name: &str) -> io::Result<()> {
    let name = name.to_owned();
    bounded(move || {
        let Some(store) = Store::find()? else { return Ok(()) };
        let _lock = store.lock()?;
        match store.read(&name) {
            Some(record) if record.primary.fate() == Fate::Running => Ok(()),
            _ => store.remove(&name),
        }
    })
}

/// Finishes what an app does not do whose process was killed while it stopped: notes that it was stopped,
/// or removes its record, and what it has left behind. Waits for the end of its process until then.
///
/// # Errors
/// Those of `unlink(2)`.
pub(crate) fn finish(name: &str, forget: bool, until: Instant) -> io::Result<()> {
    let name = name.to_owned();
    bounded(move || {
        let Some(store) = Store::find()? else { return Ok(()) };
        while store.read(&name).is_some_and(|record| record.primary.fate() == Fate::Running)
            && Instant::now() < until
        {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _lock = store.lock()?;
        let record = store.read(&name);
        if record.as_ref().is_some_and(|of| of.primary.fate() != Fate::Running) {
            store.remove_unfinished(&name);
        }
        match record {
            // It was started again.
            Some(record) if record.primary.fate() == Fate::Running => return Ok(()),
            Some(record) if record.end.is_none() && record.start.is_some() && !forget => {
                let end =
                    End { how: Ending::Stopped, at_ms: millis(SystemTime::now()), reason: None };
                store.write(&Record { end: Some(end), ..record })?;
            }
            Some(record) if forget || record.end.is_none() => store.remove(&record.name)?,
            _ => {}
        }
        // Only where there is something: another process may be about to take the name.
        if sockets::has_left(&name)? {
            sockets::clear(&name)?;
        }
        Ok(())
    })
}

/// Removes what a process has left behind that was to start an app and was killed before it could say
/// anything.
///
/// # Errors
/// Those of `unlink(2)`.
pub(crate) fn take_back(name: &str, pid: u32) -> io::Result<()> {
    let name = name.to_owned();
    bounded(move || {
        let Some(store) = Store::find()? else { return Ok(()) };
        let _lock = store.lock()?;
        match store.read(&name) {
            Some(record) if record.primary.pid != pid || record.primary.fate() == Fate::Running => {
                return Ok(());
            }
            Some(_) => store.remove(&name)?,
            None => {}
        }
        store.remove_unfinished(&name);
        if sockets::has_left(&name)? {
            sockets::clear(&name)?;
        }
        Ok(())
    })
}

/// Determines the state of an app. Notes a crash, removes what it has left behind, and removes a
/// record that has nothing to tell.
fn settle(store: &Store, record: Record) -> Option<Listed> {
    let fate = record.primary.fate();
    // Only a crash is dated by it.
    let is_crash = fate == Fate::Gone && record.end.is_none();
    let seen = || sockets::last_seen(&record.runtime, &record.name);
    let life = record.life(fate, is_crash.then(seen).flatten(), SystemTime::now());
    if life == Life::Running || (record.end.is_some() && life != Life::Forgotten) {
        let end = if let Life::Ended(end) = life { Some(end) } else { None };
        return Some(Listed { record, end });
    }
    let Ok(_lock) = store.lock() else { return None };
    let current = store.read(&record.name)?;
    if current != record {
        // Another primary has written it meanwhile.
        return Some(Listed { end: current.end.clone(), record: current });
    }
    store.remove_unfinished(&record.name);
    let Life::Ended(end) = life else {
        let _ = store.remove(&record.name);
        return None;
    };
    let record = Record { end: Some(end.clone()), ..record };
    let _ = store.write(&record);
    if sockets::path().canonicalize().is_ok_and(|path| path == record.runtime) {
        let _ = sockets::clear(&record.name);
    }
    Some(Listed { record, end: Some(end) })
}
