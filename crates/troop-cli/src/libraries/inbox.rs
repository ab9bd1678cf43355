//! Messages of libraries that wait for their answers, between the engine's thread and the one that
//! answers; and what nobody takes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::json;
use tokio::sync::Notify;
use troop::text::escaped;
use troop::{Event, WorkerHandle, WorkerId};

use super::{Kind, LimiterOptions};
use crate::app::Counts;
use crate::config::LogFormat;
use crate::log;

/// The most bytes that wait: of all workers, and of one.
const MAX_BYTES: usize = 16 << 20;
const MAX_BYTES_OF_WORKER: usize = 4 << 20;
/// What a message counts beside its text.
const OVERHEAD: usize = 256;
/// The part of a message that is shown.
const MAX_SHOWN: usize = 120;

/// A message that waits.
pub(super) struct Letter {
    pub(super) kind: Kind,
    pub(super) worker: WorkerHandle,
    pub(super) text: String,
}

#[derive(Default)]
struct Queue {
    letters: VecDeque<Letter>,
    bytes: BTreeMap<WorkerId, usize>,
}

#[derive(Default)]
pub(crate) struct Inbox {
    /// The format of events in the log.
    format: LogFormat,
    queue: Mutex<Queue>,
    arrived: Notify,
    /// Clients that follow the events, and so the messages.
    followers: AtomicUsize,
    /// Messages that nobody took.
    unclaimed: AtomicU64,
    has_told_other: AtomicBool,
    has_told_log: AtomicBool,
    has_lost: AtomicBool,
    /// The limiters that the next engine must know.
    limiters: Mutex<Vec<LimiterOptions>>,
}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbox").field("unclaimed", &self.unclaimed).finish_non_exhaustive()
    }
}

/// A client that follows the events.
pub(crate) struct Follower<'a>(&'a Inbox);

impl Drop for Follower<'_> {
    fn drop(&mut self) {
        self.0.followers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Inbox {
    /// Goes on after another engine, with what it has counted and its limiters.
    pub(crate) fn after(format: LogFormat, left: Option<(&Counts, &Vec<LimiterOptions>)>) -> Inbox {
        let Some((counts, limiters)) = left else { return Inbox { format, ..Inbox::default() } };
        let has_told = counts.unclaimed > 0;
        Inbox {
            unclaimed: AtomicU64::new(counts.unclaimed),
            has_told_other: AtomicBool::new(has_told),
            has_told_log: AtomicBool::new(has_told),
            limiters: Mutex::new(limiters.clone()),
            format,
            ..Inbox::default()
        }
    }

    /// Returns the number of messages that nobody took.
    pub(crate) fn unclaimed(&self) -> u64 {
        self.unclaimed.load(Ordering::Relaxed)
    }

    /// Counts a client that follows the events.
    pub(crate) fn follow(&self) -> Follower<'_> {
        self.followers.fetch_add(1, Ordering::Relaxed);
        Follower(self)
    }

    pub(crate) fn limiters(&self) -> Vec<LimiterOptions> {
        self.limiters.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_limiters(&self, limiters: Vec<LimiterOptions>) {
        *self.limiters.lock().unwrap_or_else(PoisonError::into_inner) = limiters;
    }

    /// Takes note of an event, on the engine's thread.
    pub(crate) fn note(&self, event: &Event) {
        let Event::Message { worker, message, .. } = event else { return };
        match Kind::of(message.as_json()) {
            Kind::Known => {}
            Kind::Other => self.tell_unclaimed(Kind::Other, worker, message.as_json()),
            kind => self.put(kind, worker, message.as_json()),
        }
    }

    fn put(&self, kind: Kind, worker: &WorkerHandle, text: &str) {
        let mut queue = self.lock();
        let size = text.len() + OVERHEAD;
        let all: usize = queue.bytes.values().sum();
        let own = queue.bytes.get(&worker.id()).copied().unwrap_or_default();
        if all + size > MAX_BYTES || own + size > MAX_BYTES_OF_WORKER {
            drop(queue);
            self.tell_lost(worker, "sends messages for other workers faster than they can be passed on, and some are lost");
            return;
        }
        queue.bytes.insert(worker.id(), own + size);
        queue.letters.push_back(Letter { kind, worker: worker.clone(), text: text.into() });
        drop(queue);
        self.arrived.notify_one();
    }

    pub(super) async fn next(&self) -> Letter {
        loop {
            if let Some(letter) = self.take() {
                return letter;
            }
            self.arrived.notified().await;
        }
    }

    fn take(&self) -> Option<Letter> {
        let mut queue = self.lock();
        let letter = queue.letters.pop_front()?;
        let (id, size) = (letter.worker.id(), letter.text.len() + OVERHEAD);
        match queue.bytes.get_mut(&id) {
            Some(bytes) if *bytes > size => *bytes -= size,
            _ => drop(queue.bytes.remove(&id)),
        }
        Some(letter)
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells of the first message that is lost.
    pub(super) fn tell_lost(&self, worker: &WorkerHandle, how: &str) {
        if !self.has_lost.swap(true, Ordering::Relaxed) {
            self.tell("messages-lost", worker, format!("worker {} {how}", worker.id()));
        }
    }

    fn tell(&self, name: &str, worker: &WorkerHandle, text: String) {
        let event = log::own_event(name, json!({ "worker": worker.id(), "text": text }));
        log::own_line(self.format, &event);
    }

    /// Counts a message that nobody takes, and tells of the first one.
    pub(super) fn tell_unclaimed(&self, kind: Kind, worker: &WorkerHandle, text: &str) {
        if self.followers.load(Ordering::Relaxed) > 0 {
            return;
        }
        self.unclaimed.fetch_add(1, Ordering::Relaxed);
        let has_told = match kind {
            Kind::Log4js => &self.has_told_log,
            _ => &self.has_told_other,
        };
        if has_told.load(Ordering::Relaxed) || has_told.swap(true, Ordering::Relaxed) {
            return;
        }
        self.tell("unclaimed", worker, told(kind, worker.id(), text));
    }
}

/// Returns what to say of a message that nobody takes.
fn told(kind: Kind, worker: WorkerId, text: &str) -> String {
    if kind == Kind::Log4js {
        return format!(
            "worker {worker} sends its log to the primary, where nobody writes it (log4js). Set disableClustering: true in log4js.configure, so that \
             each worker writes by itself; or pm2: true and pm2InstanceVar: 'TROOP_SLOT', so that the worker in slot 0 writes for all; or let the \
             program be a primary, with --alone (`alone = true`) and the package @troop/cluster in place of node:cluster"
        );
    }
    let shown: String = text.chars().take(MAX_SHOWN).collect();
    let more = if shown.len() < text.len() { "..." } else { "" };
    format!(
        "worker {worker} has sent the primary a message that nobody takes: {}{more}. If a package of the program expects its own part in the primary, \
         use its setting for a single process; or let the program be a primary, with --alone (`alone = true`) and the package @troop/cluster in place \
         of node:cluster. `troop events` shows such messages, which are told about once",
        escaped(&shown)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_of_a_message_is_bounded_and_escaped() {
        let text = format!("\"\x1b[2J{}\"", "y".repeat(10_000));
        let told = told(Kind::Other, WorkerId(3), &text);
        assert!(told.starts_with("worker 3 has sent") && told.len() < 700, "{told}");
        assert!(!told.contains('\x1b') && told.contains("y..."), "{told}");
    }
}
