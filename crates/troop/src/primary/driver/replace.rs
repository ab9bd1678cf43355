//! Leaves the state to another program image or another engine, as soon as nothing is under way that
//! cannot be written down.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::oneshot;
use troop_core::Time;

use super::Driver;
use crate::error::Error;
use crate::keeper::{self, Kind, Message};
use crate::primary::saved::kept::{Copies, wait_for};
use crate::primary::saved::{Leaving, SavedState};

/// Time that what is under way has to end.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Time until it is tried again.
const PAUSE: Duration = Duration::from_millis(200);
/// The same once another engine waits, of which the keeper has no more patience.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(4);

/// What executes the other image. Returns only on failure.
pub(crate) type Execute = Box<dyn FnOnce(&SavedState<'_>) -> io::Error + Send>;

/// What returns a note for the other engine.
type Note = Box<dyn FnMut(&mut Leaving<'_, '_>) -> Vec<u8> + Send>;

/// Another engine that is to go on: see [`Cluster::upgrade`](crate::Cluster::upgrade).
#[must_use]
pub struct Upgrade {
    program: PathBuf,
    note: Note,
    end: Box<dyn FnOnce() + Send>,
}

impl std::fmt::Debug for Upgrade {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upgrade").field("program", &self.program).finish_non_exhaustive()
    }
}

impl Upgrade {
    /// Has this program be the other engine, with the arguments and the environment of this one.
    pub fn to(program: impl Into<PathBuf>) -> Upgrade {
        let program = program.into();
        Upgrade { program, note: Box::new(|_| Vec::new()), end: Box::new(|| ()) }
    }

    /// Sets what returns a note for the other engine's own use. It is called twice: when that is started,
    /// and when this one leaves.
    pub fn note(
        mut self,
        note: impl FnMut(&mut Leaving<'_, '_>) -> Vec<u8> + Send + 'static,
    ) -> Upgrade {
        self.note = Box::new(note);
        self
    }

    /// Sets what is done before this process ends, when the other engine goes on.
    pub fn before_end(mut self, end: impl FnOnce() + Send + 'static) -> Upgrade {
        self.end = Box::new(end);
        self
    }
}

/// What comes in place of this image.
enum By {
    Image(Execute),
    /// An engine that is to be started.
    Engine(Upgrade),
    /// An engine that has been started, and may say that it could go on.
    Started(Upgrade),
    /// An engine that waits.
    Waiting(Upgrade),
}

/// The replacement of this program image that was asked for.
pub(super) struct Replacement {
    by: By,
    until: Time,
    /// It is not tried before this, unless something happens.
    retry_at: Time,
    failed: oneshot::Sender<Error>,
}

impl Driver {
    pub(super) fn replace(&mut self, execute: Execute, failed: oneshot::Sender<Error>) {
        self.begin_replacement(By::Image(execute), failed);
    }

    pub(super) fn upgrade(&mut self, upgrade: Upgrade, failed: oneshot::Sender<Error>) {
        match keeper::link().filter(|link| !link.is_broken()) {
            Some(_) => self.begin_replacement(By::Engine(upgrade), failed),
            None => drop(failed.send(Error::NotReplaced("it has no keeper".into()))),
        }
    }

    fn begin_replacement(&mut self, by: By, failed: oneshot::Sender<Error>) {
        if self.replacement.is_some() {
            let _ = failed.send(Error::NotReplaced("another replacement is under way".into()));
            return;
        }
        let (retry_at, until) = (self.now, self.now + TIMEOUT);
        self.replacement = Some(Replacement { by, until, retry_at, failed });
    }

    /// When a replacement is tried again, or is too late.
    pub(super) fn replacement_deadline(&self) -> Option<Time> {
        let replacement = self.replacement.as_ref()?;
        // The keeper has an eye on that.
        (!matches!(replacement.by, By::Started(_)))
            .then_some(replacement.retry_at.min(replacement.until))
    }

    /// The engine that was started could go on.
    pub(super) fn may_leave(&mut self) {
        let Some(Replacement { by: By::Started(upgrade), failed, .. }) =
            self.replacement.take_if(|replacement| matches!(replacement.by, By::Started(_)))
        else {
            return;
        };
        let by = By::Waiting(upgrade);
        let (retry_at, until) = (self.now, self.now + LEAVE_TIMEOUT);
        self.replacement = Some(Replacement { by, until, retry_at, failed });
    }

    /// The engine that was started does not go on.
    pub(super) fn not_upgraded(&mut self, why: &str) {
        let is_for_engine = |replacement: &mut Replacement| {
            matches!(replacement.by, By::Started(_) | By::Waiting(_))
        };
        if let Some(Replacement { failed, .. }) = self.replacement.take_if(is_for_engine) {
            self.upgrade_failed();
            let _ = failed.send(Error::NotReplaced(why.to_owned()));
        }
    }

    /// Whether this image is to be replaced and can be, after messages for workers were taken over
    /// from those who send them. Gives up when it is too late.
    pub(super) fn prepare_replacement(&mut self) -> bool {
        let Some(Replacement { by, .. }) = &self.replacement else { return false };
        if matches!(by, By::Started(_)) {
            return false;
        }
        if let Some(reason) = self.unsaved() {
            self.put_off(reason);
            return false;
        }
        for worker in self.workers.ids().collect::<Vec<_>>() {
            self.collect(worker);
        }
        self.write();
        true
    }

    /// It cannot be now: later, or not at all if it is too late.
    fn put_off(&mut self, reason: &str) {
        let now = self.now;
        let Some(replacement) = &mut self.replacement else { return };
        replacement.retry_at = now + PAUSE;
        let is_late = |replacement: &mut Replacement| replacement.until <= now;
        let Some(replacement) = self.replacement.take_if(is_late) else { return };
        if let (By::Waiting(_), Some(link)) = (&replacement.by, keeper::link()) {
            let _ = link.send(&Message::saying(Kind::Stays, reason.as_bytes()));
            self.upgrade_failed();
        }
        let _ = replacement.failed.send(Error::NotReplaced(reason.to_owned()));
    }

    /// Replaces this image, unless something has happened since it was prepared. Called between two
    /// turns, when all actions are carried out and all events are published.
    pub(super) fn leave(&mut self) {
        if let Some(reason) = self.unsaved() {
            return self.put_off(reason);
        }
        if !self.events.is_empty() {
            return self.put_off("events are still to be seen");
        }
        // Before the mailboxes are held: the program may send messages while it takes output.
        let paused = self.workers.spawner_mut().pause_output();
        let handles: Vec<_> = self.workers.handles().cloned().collect();
        // Nobody puts anything into a mailbox while these are held.
        let held: Vec<_> = handles.iter().map(|worker| worker.shared.mailbox.hold()).collect();
        if !held.iter().all(|mailbox| mailbox.is_empty()) {
            return self.put_off("messages for workers come all the time");
        }
        // Executing a program ends the threads that close, and then waits itself.
        if self.closing.is_busy() {
            return self.put_off("descriptors that workers had are being closed");
        }
        let Some(Replacement { by, until, retry_at, failed }) = self.replacement.take() else {
            return;
        };
        let writing = Error::io("write down the primary's state");
        let copies = match (&by, self.copies.take()) {
            (By::Image(_), copies) => Ok(copies),
            (_, Some(copies)) => Ok(Some(copies)),
            (_, None) => Copies::after(Vec::new()).map(Some),
        };
        let mut copies = match copies {
            Ok(copies) => copies,
            Err(e) => return drop(failed.send(writing(e))),
        };
        let result = match paused {
            Err(_) => Err(Error::NotReplaced("the output of workers is not taken".into())),
            Ok(_paused) => match (self.save(true), by, &mut copies) {
                (Ok(state), By::Image(execute), _) => {
                    let source = execute(&state);
                    let doing = "execute the program that replaces this one";
                    Err(Error::Io { doing, source })
                }
                (Ok(mut state), By::Engine(mut upgrade), Some(copies)) => {
                    let begun = begin(&mut upgrade, copies, &mut state);
                    begun.map(|()| By::Started(upgrade)).map_err(writing)
                }
                (Ok(mut state), By::Waiting(upgrade), Some(copies)) => {
                    let why = complete(upgrade, copies, &mut state).map_err(writing);
                    Err(why.map_or_else(|e| e, Error::NotReplaced))
                }
                (Ok(_), ..) => return,
                (Err(source), ..) => Err(writing(source)),
            },
        };
        self.copies = copies;
        match result {
            Ok(by) => self.replacement = Some(Replacement { by, until, retry_at, failed }),
            Err(error) => {
                self.upgrade_failed();
                let _ = failed.send(error);
            }
        }
    }

    /// This engine goes on: the keeper holds what it needs if this one is killed, or nothing.
    fn upgrade_failed(&mut self) {
        self.change();
        if !self.is_state_kept() {
            self.close_copies();
        }
    }
}

fn gone() -> io::Error {
    io::Error::from(io::ErrorKind::BrokenPipe)
}

/// Gives the keeper the state, and has it start the other engine, which looks at it.
fn begin(upgrade: &mut Upgrade, copies: &mut Copies, state: &mut SavedState<'_>) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt as _;
    let link = keeper::link().ok_or_else(gone)?;
    let note = (upgrade.note)(&mut Leaving::new(&mut state.writer));
    copies.hold(state, &note, link)?;
    link.send(&Message::saying(Kind::Upgrade, upgrade.program.as_os_str().as_bytes()))
}

/// Leaves the state to the other engine. Returns why that does not go on.
fn complete(
    mut upgrade: Upgrade,
    copies: &mut Copies,
    state: &mut SavedState<'_>,
) -> io::Result<String> {
    let link = keeper::link().ok_or_else(gone)?;
    let note = (upgrade.note)(&mut Leaving::new(&mut state.writer));
    copies.hold(state, &note, link)?;
    link.send(&Message::new(Kind::HasLeft))?;
    // However long it takes: two engines must not go on.
    let is_answer = |message: &Message| matches!(message.kind, Kind::Over | Kind::Failed);
    let (answer, _) = wait_for(link, None, is_answer)?;
    if answer.kind == Kind::Failed {
        return Ok(answer.text());
    }
    (upgrade.end)();
    // Nothing of this process is to happen any more, not even what is dropped.
    troop_sys::process::exit_at_once()
}
