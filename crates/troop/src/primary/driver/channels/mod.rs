//! The channels of workers, and the relays of programs that have messages passed on: what waits to
//! be written, and what is tried again.
//!
//! A worker's channel is written in [`write`], read in [`read`], and filled from its mailbox in
//! [`mail`]. [`relays`] has the same for relays, [`direct_io`] what a program's thread does itself.

mod direct_io;
mod journal;
mod mail;
pub(super) mod pace;
mod read;
mod relays;
mod save;
mod write;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::Duration;

use troop_core::worker_map::WorkerMap;
use troop_core::{Time, WorkerId};

use crate::channel::{Mail, READ_SIZE};
use crate::event::Event;
use crate::primary::channel::Channel;
use crate::primary::relay::Relay;
use crate::primary::saved::journal::Journal;
use direct_io::ReclaimedChannels;
pub(super) use journal::SavedJournal;
use pace::Pace;
pub(super) use read::{LAST_READS, READ_BURST};
pub(super) use save::SavedChannels;

/// The delay before the next write to a channel where the last one failed for another reason than a
/// full socket.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// All channels and relays.
pub(super) struct Channels {
    of_workers: WorkerMap<Channel>,
    /// They may outlive their workers' processes.
    relays: BTreeMap<WorkerId, Relay>,
    /// Workers with an unfinished batch of connections.
    batched: Vec<WorkerId>,
    /// Channels with something to write.
    unflushed: Vec<WorkerId>,
    retry: Vec<WorkerId>,
    /// The same for relays.
    unflushed_relays: Vec<WorkerId>,
    retry_relays: Vec<WorkerId>,
    retry_at: Option<Time>,
    pace: Pace,
    /// Channels that programs' threads had, until connections came.
    reclaimed: ReclaimedChannels,
    /// The number of the last handle that was sent.
    last_ticket: u64,
    /// Messages and requests of workers' programs that are not reported yet.
    messages: Vec<Event>,
    /// Room for what is taken from mailboxes.
    mail: Mail,
    /// Room for what is read.
    buffer: Vec<u8>,
    /// The same in memory that outlives this engine, if another one could go on.
    journal: Option<Journal>,
    /// Something has changed in the channels that another engine would have to know.
    has_changed: bool,
    received: Vec<OwnedFd>,
    /// Room for a line.
    line: Vec<u8>,
    /// Room for a line in V8's format.
    frame: Vec<u8>,
}

impl Default for Channels {
    fn default() -> Channels {
        Channels {
            of_workers: WorkerMap::default(),
            relays: BTreeMap::new(),
            batched: Vec::new(),
            unflushed: Vec::new(),
            retry: Vec::new(),
            unflushed_relays: Vec::new(),
            retry_relays: Vec::new(),
            retry_at: None,
            pace: Pace::default(),
            reclaimed: ReclaimedChannels::default(),
            last_ticket: 0,
            messages: Vec::new(),
            mail: Mail::default(),
            buffer: vec![0; READ_SIZE],
            journal: None,
            has_changed: false,
            received: Vec::new(),
            line: Vec::new(),
            frame: Vec::new(),
        }
    }
}

impl Channels {
    #[inline]
    pub(super) fn get(&self, worker: WorkerId) -> Option<&Channel> {
        self.of_workers.get(&worker)
    }

    #[inline]
    fn get_mut(&mut self, worker: WorkerId) -> Option<&mut Channel> {
        self.of_workers.get_mut(&worker)
    }

    /// A worker's channel is open, and watched by the poller.
    pub(super) fn add(&mut self, worker: WorkerId, channel: Channel) {
        self.of_workers.insert(worker, channel);
    }

    /// Messages and requests that are not reported yet, the oldest first.
    pub(super) fn messages_mut(&mut self) -> &mut Vec<Event> {
        &mut self.messages
    }

    /// When something is to be done at the latest.
    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.retry_at.into_iter().chain(self.reclaimed.next_deadline()).min()
    }

    /// What could not be written a moment ago is tried again.
    pub(super) fn retry(&mut self, now: Time) {
        if self.retry_at.is_some_and(|due| due <= now) {
            self.retry_at = None;
            self.unflushed.append(&mut self.retry);
            self.unflushed_relays.append(&mut self.retry_relays);
        }
    }

    /// A turn is over, at this time since the start. Whether messages are to gather before the next
    /// one.
    pub(super) fn gathers(&mut self, now: Duration) -> bool {
        !self.relays.is_empty() && self.pace.gathers(now)
    }

    /// Something has come that must not wait.
    #[inline]
    pub(super) fn is_urgent(&mut self) {
        self.pace.urgent();
    }
}
