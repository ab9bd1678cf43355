//! What the driver hears from the keeper of this engine.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use troop_core::Time;
use troop_sys::poll::Interest;

use super::signals::SignalMeans;
use super::{Driver, Token};
use crate::error::Error;
use crate::event::Event;
use crate::keeper::{self, Kind, Link, Message};
use crate::primary::saved::Leaving;
use crate::primary::saved::kept::Copies;

/// Of the time, at most one part in this many is spent on writing the state down: that of thousands of
/// workers takes milliseconds.
const PAUSE_FACTOR: u32 = 4;

/// Returns what is written down with the state for the program's own use, if it is to be written down
/// already.
pub(crate) type KeptNote = Box<dyn FnMut(&mut Leaving<'_, '_>) -> Option<Vec<u8>> + Send>;

impl Driver {
    /// Has workers be children of the keeper, if this engine has one, and says that it catches signals.
    /// `note` is written down with the state if the keeper is to hold that all the time.
    pub(crate) fn be_kept(&mut self, note: Option<KeptNote>) -> io::Result<()> {
        let Some(link) = keeper::link() else { return Ok(()) };
        self.poller.add(link, Token::Keeper, Interest::Read)?;
        self.workers.keep(link);
        self.note = note;
        // If it has ended, that is heard of now.
        let _ = link.send(&Message::new(Kind::CatchesSignals));
        // What has come before waits elsewhere.
        self.hear_keeper();
        Ok(())
    }

    /// Has the keeper close its copies: nothing is to outlive what this engine closes. If this engine is
    /// killed from now on, the app ends.
    pub(super) fn close_copies(&mut self) {
        if let (Some(link), Some(_)) = (keeper::link(), self.copies.take()) {
            // A keeper that has ended holds nothing.
            let _ = link.send(&Message::new(Kind::DropAll));
        }
    }

    /// When the state is written down, if something has changed that waits for that.
    pub(super) fn keep_deadline(&self) -> Option<Time> {
        (self.is_changed && self.keep_at > self.now).then_some(self.keep_at)
    }

    /// Something has changed that another engine would have to know.
    #[inline]
    pub(super) fn change(&mut self) {
        self.is_changed = true;
    }

    /// Whether the keeper holds the state all the time.
    pub(super) fn is_state_kept(&self) -> bool {
        let is_ending = self.ending.has_begun()
            || self.cluster.supervisor().is_none_or(|supervisor| supervisor.is_stopping());
        self.note.is_some()
            && keeper::link().is_some_and(|link| !link.is_broken())
            && !is_ending
            && self.workers.can_be_kept()
    }

    /// Has the keeper hold the state, if something has changed. Returns whether it has said something
    /// meanwhile.
    pub(super) fn keep_state(&mut self) -> bool {
        self.write_state();
        keeper::link().is_some_and(Link::has_put_aside)
    }

    fn write_state(&mut self) {
        if self.keep_at > self.now || !std::mem::take(&mut self.is_changed) {
            return;
        }
        let begun = Instant::now();
        let Some(link) = keeper::link() else { return };
        if !self.is_state_kept() {
            return self.close_copies();
        }
        let (Some(mut note), copies) = (self.note.take(), self.copies.take()) else { return };
        let held = copies.map_or_else(|| Copies::after(Vec::new()), Ok).and_then(|mut copies| {
            // Output is not paused for this: its reader may take nothing.
            let mut state = self.save(false)?;
            let text = note(&mut Leaving::new(&mut state.writer));
            let held = match text {
                Some(text) => copies.hold(&state, &text, link),
                None => Ok(()),
            };
            held.map(|()| copies)
        });
        self.note = Some(note);
        self.keep_at = self.now + begun.elapsed() * PAUSE_FACTOR;
        match held {
            Ok(copies) => self.copies = Some(copies),
            // What is held may be out of date, so nothing is.
            Err(_) => {
                let _ = link.send(&Message::new(Kind::DropAll));
                self.change();
            }
        }
    }

    /// A descriptor is closed next that others would notice if it stayed open.
    pub(super) fn release_copy(copies: &mut Option<Copies>, fd: BorrowedFd<'_>) {
        if let (Some(copies), Some(link)) = (copies, keeper::link()) {
            copies.release(fd, link);
        }
    }

    pub(super) fn hear_keeper(&mut self) {
        let Some(link) = keeper::link() else { return };
        loop {
            match link.receive() {
                Ok(Some((message, _))) => self.told_by_keeper(&message),
                Ok(None) => return,
                Err(_) => break,
            }
        }
        if link.is_broken() {
            return;
        }
        link.note_broken();
        self.poller.remove(link);
        self.await_no_ends();
        let error = Error::KeeperEnded(link.keeper());
        self.events.push(Event::Error { worker: None, error: Arc::new(error) });
        // Nobody would know of it any more.
        self.obey(SignalMeans::Stop);
    }

    fn told_by_keeper(&mut self, message: &Message) {
        match message.kind {
            Kind::Ended => self.workers.told(message.number, message.exit()),
            Kind::Leave => self.may_leave(),
            Kind::Failed => self.not_upgraded(&message.text()),
            _ => {}
        }
    }
}
