//! How often things have happened to an app since its start.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use troop::event::ExitHow;
use troop::{Event, WorkerHandle};

use crate::log;

/// Counters that events increase.
#[derive(Debug)]
pub(crate) struct Counters {
    messages: AtomicU64,
    requests: AtomicU64,
    others: Mutex<Counts>,
}

/// Their values.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Counts {
    /// Messages of workers to the primary.
    pub(crate) messages: u64,
    /// Requests of workers to the primary.
    pub(crate) requests: u64,
    /// Messages that nobody took; those that the followers of events got do not count.
    pub(crate) unclaimed: u64,
    /// Other events, by the names that `troop events --json` has.
    pub(crate) events: BTreeMap<String, u64>,
    /// Ends of workers: `asked` of those that were asked to leave, `ended` of those that troop killed,
    /// `finished` of those that ended by themselves with code 0, `failed` with another one, `killed`
    /// by a signal of somebody else.
    pub(crate) ends: BTreeMap<String, u64>,
}

impl Counters {
    /// Goes on with what another engine has counted.
    pub(crate) fn after(counts: Counts) -> Counters {
        Counters {
            messages: AtomicU64::new(counts.messages),
            requests: AtomicU64::new(counts.requests),
            others: Mutex::new(counts),
        }
    }

    pub(crate) fn note(&self, event: &Event) {
        match event {
            Event::Message { .. } => drop(self.messages.fetch_add(1, Ordering::Relaxed)),
            Event::Request { .. } => drop(self.requests.fetch_add(1, Ordering::Relaxed)),
            _ => {
                let mut counts = self.others.lock().unwrap_or_else(PoisonError::into_inner);
                increase(&mut counts.events, log::name(event));
                if let Event::Exit { worker, exit, .. } = event {
                    increase(&mut counts.ends, how_ended(worker, *exit));
                }
            }
        }
    }

    pub(crate) fn values(&self) -> Counts {
        let counts = self.others.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (messages, requests) =
            (self.messages.load(Ordering::Relaxed), self.requests.load(Ordering::Relaxed));
        Counts { messages, requests, ..counts }
    }
}

fn how_ended(worker: &WorkerHandle, how: ExitHow) -> &'static str {
    match how {
        ExitHow::Signal(signal) if worker.was_ended_by(signal) && !worker.was_asked_by(signal) => {
            "ended"
        }
        _ if worker.exited_after_disconnect() == Some(true) || worker.was_to_end() => "asked",
        ExitHow::Signal(signal) if worker.was_asked_by(signal) => "asked",
        ExitHow::Code(0) => "finished",
        ExitHow::Code(_) => "failed",
        _ => "killed",
    }
}

fn increase(counts: &mut BTreeMap<String, u64>, name: &str) {
    match counts.get_mut(name) {
        Some(count) => *count += 1,
        None => drop(counts.insert(name.to_owned(), 1)),
    }
}
