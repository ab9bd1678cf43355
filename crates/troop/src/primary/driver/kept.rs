//! What the driver hears from the keeper of this engine.

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};
use tokio::sync::oneshot;
use troop_core::Time;
use troop_sys::fault;
use troop_sys::poll::Interest;

use super::signals::SignalMeans;
use super::{Driver, Token};
use crate::error::Error;
use crate::event::Event;
use crate::keeper::{self, Kind, Link, Message};
use crate::primary::saved::kept::{Copies, STATE};
use crate::primary::saved::{FIRST_CONNECTION, Leaving};

/// Of the time, at most one part in this many is spent on writing the state down: that of thousands of
/// workers takes milliseconds.
const PAUSE_FACTOR: u32 = 4;

/// Interval between attempts while the program has nothing to write down yet.
const NOTE_INTERVAL: Duration = Duration::from_millis(100);

/// Interval between attempts while the keeper does not answer.
const SILENCE_INTERVAL: Duration = Duration::from_secs(1);

/// The same after it had no room for a descriptor.
const REFUSED_INTERVAL: Duration = Duration::from_secs(1);

/// Age of connections that wait from which on the keeper holds them, too.
const HOLD_DELAY: Duration = Duration::from_millis(10);

/// Interval between attempts to replace a worker with which it is not certain what was said.
const DOUBT_INTERVAL: Duration = Duration::from_secs(1);

/// Signals to stop that a keeper passes on.
const STOPPING: [i32; 2] = [SIGINT, SIGTERM];

/// Returns what is written down with the state for the program's own use, if it is to be written down
/// already.
pub(crate) type KeptNote = Box<dyn FnMut(&mut Leaving<'_, '_>) -> Option<Vec<u8>> + Send>;

/// Answers with the version of the keeper's former program, or why it stays.
pub(crate) type KeeperAnswer = oneshot::Sender<Result<String, Error>>;

/// Why a keeper cannot be asked that does not say its version.
const OLD_KEEPER: &str =
    "the keeper is of an older version, which cannot be replaced while it runs";

/// Sends an answer.
pub(super) type KeptAnswer = Box<dyn FnOnce() + Send>;

impl Driver {
    /// Has workers be children of the keeper, if this engine has one, and says that it catches signals.
    /// `note` is written down with the state if the keeper is to hold that all the time.
    pub(crate) fn be_kept(&mut self, note: Option<KeptNote>) -> io::Result<()> {
        let Some(link) = keeper::link() else { return Ok(()) };
        self.poller.add(link, Token::Keeper, Interest::Read)?;
        self.workers.keep(link);
        self.note = note;
        if let Some(set_aside) = link.set_aside() {
            (self.crashes, self.last_crash) = (set_aside.crashes, Some(set_aside.how.clone()));
        }
        if self.cluster.supervisor().is_some_and(|supervisor| supervisor.is_stopping()) {
            // What the former engine was told to do has begun: another such signal is one to hurry.
            STOPPING.into_iter().for_each(keeper::has_obeyed);
        }
        // If it has ended, that is heard of now.
        let _ = link.send(&Message::new(Kind::CatchesSignals));
        // What has come before waits elsewhere.
        self.hear_keeper();
        Ok(())
    }

    /// Has the keeper close its copies: nothing is to outlive what this engine closes. If this engine is
    /// killed from now on, the app ends.
    pub(super) fn close_copies(&mut self) {
        self.channels.drop_journal();
        self.connections.forget_held();
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
        // One that is stopping is stopped by the next one.
        self.note.is_some()
            && keeper::link().is_some_and(|link| !link.is_broken())
            && !self.ending.has_begun()
            && self.cluster.supervisor().is_some()
            && self.workers.can_be_kept()
    }

    /// Has the keeper hold the state, if something has changed. Returns whether it has said something
    /// meanwhile.
    pub(super) fn keep_state(&mut self) -> bool {
        self.hold_waiting();
        self.write_state();
        keeper::link().is_some_and(Link::has_put_aside)
    }

    /// When connections have waited so long that the keeper is to hold them, too.
    pub(super) fn hold_deadline(&self) -> Option<Time> {
        self.hold_at
    }

    /// Connections that have waited for a moment become part of the state.
    fn hold_waiting(&mut self) {
        if self.copies.is_none() {
            // Or there would be a deadline that is over, for ever.
            self.hold_at = None;
            return;
        }
        if self.hold_at.is_some_and(|at| at > self.now) {
            return;
        }
        let Driver { cluster, connections, inspected, .. } = self;
        // Thousands may wait.
        if connections.count_held() == cluster.primary.count_waiting() + inspected.count() {
            self.hold_at = None;
            return;
        }
        let waiting = cluster.primary.waiting().chain(inspected.ids());
        let mut new = waiting.filter(|conn| !connections.is_held(*conn)).peekable();
        if new.peek().is_none() {
            self.hold_at = None;
            return;
        }
        match self.hold_at {
            None => self.hold_at = Some(self.now + HOLD_DELAY),
            Some(at) if at <= self.now => {
                let new: Vec<_> = new.collect();
                self.connections.hold(new);
                self.hold_at = None;
                self.change();
            }
            Some(_) => {}
        }
    }

    /// Whether the state must be written down before anything is sent: workers get to know what is not part
    /// of it, or a socket was closed, which nobody is to find open any more.
    pub(super) fn has_urgent_change(&self) -> bool {
        self.is_urgent || self.copies.as_ref().is_some_and(Copies::has_closed)
    }

    /// Writes the state down at once.
    pub(super) fn keep_urgent_change(&mut self) {
        self.is_urgent = false;
        if self.copies.is_none() {
            return;
        }
        fault::point("closed");
        self.keep_at = self.now;
        self.change();
        self.write_state();
        // If it could not be written.
        self.release_closed();
        // What is sent now is not in it.
        self.change();
    }

    /// The keeper has no copies of sockets that this engine has closed from now on.
    pub(super) fn release_closed(&mut self) {
        if let (Some(copies), Some(link)) = (&mut self.copies, keeper::link()) {
            copies.release_closed(link);
        }
    }

    /// Sends an answer when what it is about is written down: whoever gets it finds it true, also if this
    /// engine is killed then.
    pub(super) fn answer_when_kept(&mut self, answer: impl FnOnce() + Send + 'static) {
        self.kept_answers.push(Box::new(answer));
        self.change();
        self.is_urgent = true;
    }

    /// Sends these answers. Returns whether there were any.
    pub(super) fn send_kept_answers(&mut self) -> bool {
        if self.kept_answers.is_empty() {
            return false;
        }
        // The events before the answer, as a program expects that has both.
        self.events.publish_early();
        fault::point("answering");
        std::mem::take(&mut self.kept_answers).into_iter().for_each(|answer| answer());
        true
    }

    fn write_state(&mut self) {
        if self.channels.take_changed() {
            self.change();
        }
        if !self.is_changed {
            return self.channels.clear_journal();
        }
        if self.keep_at > self.now && !self.channels.needs_room() {
            return;
        }
        self.is_changed = false;
        let begun = Instant::now();
        let Some(link) = keeper::link() else { return };
        if !self.is_state_kept() {
            return self.close_copies();
        }
        if link.is_silent() {
            return self.keep_nothing(link);
        }
        let (Some(mut note), copies) = (self.note.take(), self.copies.take()) else { return };
        self.channels.keep_journal();
        self.channels.save_long_lines();
        let afresh = || {
            link.send(&Message::new(Kind::DropAll))?;
            Copies::after(Vec::new())
        };
        let held = copies.map_or_else(afresh, Ok).and_then(|mut copies| {
            // Output is not paused for this: its reader may take nothing.
            let mut state = self.save(false)?;
            let text = note(&mut Leaving::new(&mut state.writer));
            let is_held = match text {
                Some(text) => copies.hold(&state, &text, link).map(|()| true)?,
                None => false,
            };
            Ok((copies, is_held))
        });
        self.note = Some(note);
        self.keep_at = self.now + begun.elapsed() * PAUSE_FACTOR;
        match held {
            Ok((copies, false)) => {
                if self.channels.needs_room() {
                    // Otherwise nothing could be read any more.
                    self.channels.clear_journal();
                }
                self.copies = Some(copies);
                self.keep_at = self.now + NOTE_INTERVAL;
                self.change();
            }
            Ok((copies, true)) => {
                self.copies = Some(copies);
                self.connections.send_held(link);
                self.workers.note_forks_written();
                fault::point("held");
                self.channels.clear_journal();
                fault::point("cleared");
                self.say_obeyed();
            }
            Err(_) => self.keep_nothing(link),
        }
    }

    /// What the keeper holds may be out of date, so it is to hold nothing until it can be told more.
    fn keep_nothing(&mut self, link: &Link) {
        self.copies = None;
        self.connections.forget_held();
        self.channels.drop_journal();
        // The second one is answered, so that it is known when the keeper goes on.
        let is_told = link.send(&Message::new(Kind::DropAll));
        let _ = is_told.and_then(|()| link.send(&Message::of_key(Kind::Drop, STATE)));
        self.keep_at = self.now + SILENCE_INTERVAL;
        self.change();
    }

    pub(super) fn doubted_deadline(&self) -> Option<Time> {
        (!self.doubted.is_empty()).then_some(self.now + DOUBT_INTERVAL)
    }

    /// Replaces workers with which it is not certain what a killed engine has said, one after the other.
    pub(super) fn replace_doubted(&mut self) {
        const WHY: &str =
            "the engine was killed while they exchanged messages, so it is not certain which";
        let primary = &self.cluster.primary;
        self.doubted.retain(|worker| primary.status(*worker).is_some());
        let Some(worker) = self.doubted.first().copied() else { return };
        if self.cluster.recycle(self.now, worker, WHY.into()) {
            self.doubted.remove(0);
            self.change();
        }
    }

    /// The keeper has no copy of this any more, although it is part of the state: the last close is here.
    pub(super) fn release_copy(&mut self, fd: BorrowedFd<'_>) {
        if let Some(copies) = &mut self.copies {
            copies.note_closed(fd);
        }
        self.release_closed();
        fault::point("released");
    }

    /// The keeper holds nothing under this key. If it is to, it had no room for it, and is told again later.
    fn is_not_held(&mut self, key: u64) {
        if key >= FIRST_CONNECTION {
            self.connections.was_refused(key);
        } else if self.copies.as_mut().is_some_and(|copies| copies.was_refused(key)) {
            self.keep_at = self.now + REFUSED_INTERVAL;
            self.change();
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
            Kind::Dropped => self.is_not_held(message.key),
            Kind::KeeperIs => {
                keeper::link().iter().for_each(|link| link.note_version(message.text()));
            }
            Kind::KeeperRenewed => self.keeper_answered(Ok(message.text())),
            Kind::KeeperStays => {
                self.keeper_answered(Err(Error::NotReplaced(message.text())));
            }
            _ => {}
        }
    }

    /// Has the keeper execute another program in its own place.
    pub(super) fn upgrade_keeper(&mut self, program: &Path, answer: KeeperAnswer) {
        let refuse = |answer: KeeperAnswer, why: &str| {
            // Nobody may be waiting any more.
            let _ = answer.send(Err(Error::NotReplaced(why.into())));
        };
        let Some(link) = keeper::link().filter(|link| !link.is_broken()) else {
            return refuse(answer, "it has no keeper");
        };
        if link.version().is_none() && !link.is_silent() {
            return refuse(answer, OLD_KEEPER);
        }
        let message = Message::saying(Kind::Renew, program.as_os_str().as_bytes());
        if link.is_silent() || link.send(&message).is_err() {
            return refuse(answer, "the keeper does not answer: it is stopped, for example");
        }
        if let Some(former) = self.keeper_answer.replace(answer) {
            refuse(former, "it was asked for once more");
        }
    }

    fn keeper_answered(&mut self, result: Result<String, Error>) {
        if let Some(answer) = self.keeper_answer.take() {
            // Nobody may be waiting any more.
            let _ = answer.send(result);
        }
    }
}
