//! What was read is kept in memory that outlives this engine, until it is part of the state that the
//! keeper holds or has changed nothing; and another engine goes on with it.

use serde::{Deserialize, Serialize};
use troop_core::primary::Primary;
use troop_core::{Time, WorkerId};

use super::Channels;
use crate::channel::Outbox;
use crate::primary::channel::{LostHandles, Outlets};
use crate::primary::driver::Driver;
use crate::primary::driver::connections::Moves;
use crate::primary::saved::journal::{Entry, Journal, Position};
use crate::primary::saved::{Key, Reader, Writer};

/// A journal, and up to where it is part of the state.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::primary::driver) struct SavedJournal {
    memory: Key,
    position: Position,
}

impl Channels {
    /// What is read from now on can be read by another engine, too. Without memory for that it cannot.
    pub(in crate::primary::driver) fn keep_journal(&mut self) {
        if self.journal.is_none() {
            self.journal = Journal::new().ok();
        }
    }

    /// There is no state that another engine could go on with.
    pub(in crate::primary::driver) fn drop_journal(&mut self) {
        self.journal = None;
    }

    /// All that was read is part of the state that is held, or has changed nothing.
    pub(in crate::primary::driver) fn clear_journal(&mut self) {
        self.journal.iter_mut().for_each(Journal::clear);
    }

    /// Something may be done from now on for what was read.
    #[inline]
    pub(in crate::primary::driver) fn note_acting(&mut self) {
        self.journal.iter_mut().for_each(Journal::note_acting);
    }

    /// Whether the state must be written down, so that there is room for what is read.
    pub(in crate::primary::driver) fn needs_room(&self) -> bool {
        self.journal.as_ref().is_some_and(Journal::is_nearly_full)
    }

    /// Whether something has changed since the last call.
    pub(in crate::primary::driver) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.has_changed)
    }

    pub(in crate::primary::driver) fn save_journal<'a>(
        &'a self,
        to: &mut Writer<'a>,
    ) -> Option<SavedJournal> {
        let journal = self.journal.as_ref()?;
        Some(SavedJournal { memory: to.descriptor(journal), position: journal.position() })
    }

    /// Goes on with the journal of another engine. Returns what it has read and the state does not have.
    pub(in crate::primary::driver) fn resume_journal(
        &mut self,
        saved: &SavedJournal,
        from: &mut Reader,
    ) -> std::io::Result<Vec<Entry>> {
        let (journal, entries) = Journal::resume(from.descriptor(saved.memory)?, saved.position)?;
        self.journal = Some(journal);
        Ok(entries)
    }

    /// Takes in what another engine has read.
    fn read_again(
        &mut self,
        id: WorkerId,
        bytes: &[u8],
        lost: Option<LostHandles>,
        now: Time,
        core: &mut Primary,
        moves: Moves<'_>,
    ) {
        let Some(channel) = self.of_workers.get_mut(&id) else { return };
        if core.is_cut_off(id) {
            return;
        }
        channel.lost = lost.or(channel.lost);
        let outlets = Outlets { relay: None, messages: &mut self.messages, moves };
        channel.receive(now, core, id, bytes, &mut Vec::new(), outlets);
        self.unflushed.push(id);
    }
}

impl Driver {
    /// Goes on with what another engine has read, and may have answered. Returns workers with which it
    /// is not certain what was said.
    pub(in crate::primary::driver) fn repeat(&mut self, entries: Vec<Entry>) -> Vec<WorkerId> {
        let mut doubted = Vec::new();
        for entry in entries {
            match entry {
                Entry::Read { worker, bytes, had_handles, is_acted_on } => {
                    let lost = match is_acted_on {
                        true => LostHandles::PerhapsAcknowledged,
                        false => LostHandles::Unused,
                    };
                    let lost = had_handles.then_some(lost);
                    let Driver { channels, cluster, listeners, connections, .. } = self;
                    let moves = connections.moves(listeners, false, false);
                    let core = &mut cluster.primary;
                    channels.read_again(worker, &bytes, lost, self.now, core, moves);
                }
                Entry::Writing(worker) => {
                    let Some(channel) = self.channels.get_mut(worker) else { continue };
                    // A part of it may have been written since.
                    channel.outbox = Outbox::default();
                    channel.is_doubtful = true;
                }
            }
        }
        for (id, channel) in self.channels.of_workers.iter_mut() {
            if std::mem::take(&mut channel.is_doubtful) {
                doubted.push(*id);
            }
        }
        doubted
    }
}
