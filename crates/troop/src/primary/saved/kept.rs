//! A state that the keeper holds: its bytes in [`Slots`], its descriptors under keys.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{OFlags, fcntl_getfl, fstat};
use troop_sys::{fault, keeping};

use super::file::{LeftDescriptor, RestoredState, SavedState};
use super::slots::{self, Slots};
use super::{FIRST_CONNECTION, Held, Writer, invalid};
use crate::error::{Error, Result};
use crate::keeper::{Kind, Link, Message, link};
use crate::primary::driver::how;

/// This engine has found a state, and the other one has not left it to this one yet.
static IS_COMING: AtomicBool = AtomicBool::new(false);

/// The key of the file with the bytes.
pub(crate) const STATE: u64 = 0;
/// Time that the keeper has to close what it is not to hold any more.
const DROP_TIMEOUT: Duration = Duration::from_secs(1);
/// Time that the keeper has to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// What a program leaves to the next engine for its own use: descriptors, beside its note.
#[derive(Debug)]
pub struct Leaving<'w, 'a>(&'w mut Writer<'a>);

impl<'w, 'a> Leaving<'w, 'a> {
    pub(crate) fn new(writer: &'w mut Writer<'a>) -> Leaving<'w, 'a> {
        Leaving(writer)
    }

    /// Leaves a descriptor.
    pub fn descriptor(&mut self, fd: OwnedFd) -> LeftDescriptor {
        LeftDescriptor(self.0.owned(fd))
    }
}

/// A descriptor, as far as another one can be told from it: device, inode and access. Several of one
/// socket or pipe are as good as one.
pub(crate) type Identity = (u64, u64, u32);

fn identity(fd: BorrowedFd<'_>) -> io::Result<Identity> {
    let stat = fstat(fd)?;
    let access = fcntl_getfl(fd)? & OFlags::ACCMODE;
    Ok((stat.st_dev, stat.st_ino, access.bits()))
}

/// What the keeper holds for this engine.
#[derive(Debug)]
pub(crate) struct Copies {
    slots: Slots,
    held: BTreeMap<Identity, u64>,
    /// Keys of what is held no longer than until the next time.
    passing: Vec<u64>,
    /// Keys of what is closed here, and still part of the state.
    closed: Vec<u64>,
    next: u64,
    /// The inode that the kernel's own files have together.
    anonymous: (u64, u64),
}

impl Copies {
    /// Begins with what another engine had the keeper hold: keys, and what was found under them.
    ///
    /// # Errors
    /// When out of descriptors or memory.
    pub(crate) fn after(former: Vec<(u64, Option<Identity>)>) -> io::Result<Copies> {
        let stat = fstat(eventfd(0, EventfdFlags::CLOEXEC)?)?;
        let anonymous = (stat.st_dev, stat.st_ino);
        let (mut held, mut passing, mut next) = (BTreeMap::new(), Vec::new(), STATE + 1);
        for (key, identity) in former.into_iter().filter(|(key, _)| *key < FIRST_CONNECTION) {
            next = next.max(key + 1);
            let identity = identity.filter(|(device, inode, _)| (*device, *inode) != anonymous);
            // Several descriptors of a state may be held under one key.
            let is_held = identity.is_some_and(|is| *held.entry(is).or_insert(key) == key);
            if !is_held {
                passing.push(key);
            }
        }
        Ok(Copies { slots: Slots::new()?, held, passing, closed: Vec::new(), next, anonymous })
    }

    /// Has the keeper hold this state: what it does not hold yet of it, and nothing else. Waits until it
    /// has closed what it is not to hold any more, for a second at most.
    ///
    /// # Errors
    /// If the keeper has ended or is stopped, or when out of memory. The state before may be the last
    /// one then.
    pub(crate) fn hold(
        &mut self,
        state: &SavedState<'_>,
        note: &[u8],
        link: &Link,
    ) -> io::Result<()> {
        let before = std::mem::take(&mut self.held);
        let mut gone = std::mem::take(&mut self.passing);
        gone.append(&mut self.closed);
        let mut keys = Vec::new();
        for held in &state.writer.descriptors {
            keys.push(match held {
                Held::Kept(_, key) => *key,
                held => self.hold_one(held.as_fd(), &before, link)?,
            });
        }
        gone.extend(
            before.iter().filter(|(is, _)| !self.held.contains_key(*is)).map(|(_, key)| key),
        );
        self.slots.write(&state.encode(keys, note)?)?;
        fault::point("holding");
        link.send_with(&Message::of_key(Kind::Hold, STATE), Some(self.slots.as_fd()))?;
        fault::point("letting go");
        close(&gone, link)
    }

    /// The keeper had no room for what it is to hold under this key. Returns whether there is such a thing.
    pub(crate) fn was_refused(&mut self, key: u64) -> bool {
        let known = self.passing.len() + self.held.len();
        self.passing.retain(|passing| *passing != key);
        self.held.retain(|_, held| *held != key);
        key == STATE || self.passing.len() + self.held.len() < known
    }

    /// A descriptor is closed here next that others notice: what would go on listening, for example. The
    /// keeper closes its copy [as soon as](Copies::has_closed) the state does not have it any more: whoever
    /// goes on with the state must find everything that is in it.
    pub(crate) fn note_closed(&mut self, fd: BorrowedFd<'_>) {
        let key = identity(fd).ok().and_then(|identity| self.held.remove(&identity));
        self.closed.extend(key);
    }

    /// Whether the state is to be written at once, because of [`note_closed`](Copies::note_closed).
    pub(crate) fn has_closed(&self) -> bool {
        !self.closed.is_empty()
    }

    /// Has the keeper close them although they are part of the state: another socket is bound to the
    /// address next, or there is no state any more. Waits for that, for a second at most.
    pub(crate) fn release_closed(&mut self, link: &Link) {
        // If the keeper has ended, it has closed everything.
        let _ = close(&std::mem::take(&mut self.closed), link);
    }

    fn hold_one(
        &mut self,
        fd: BorrowedFd<'_>,
        before: &BTreeMap<Identity, u64>,
        link: &Link,
    ) -> io::Result<u64> {
        let identity = identity(fd)?;
        // One that is anonymous is never there.
        if let Some(key) = self.held.get(&identity).or_else(|| before.get(&identity)) {
            let key = *key;
            self.held.insert(identity, key);
            return Ok(key);
        }
        let key = self.next;
        self.next += 1;
        link.send_with(&Message::of_key(Kind::Hold, key), Some(fd))?;
        if (identity.0, identity.1) == self.anonymous {
            self.passing.push(key);
        } else {
            self.held.insert(identity, key);
        }
        Ok(key)
    }
}

/// Has the keeper close what it holds under these keys. Waits for that, for a second at most.
fn close(keys: &[u64], link: &Link) -> io::Result<()> {
    for key in keys {
        link.send(&Message::of_key(Kind::Drop, *key))?;
    }
    let Some(last) = keys.last() else { return Ok(()) };
    let is_closed = |message: &Message| message.kind == Kind::Dropped && message.key == *last;
    wait_for(link, Some(DROP_TIMEOUT), is_closed).map(drop)
}

/// The same for one.
pub(crate) fn release(link: &Link, key: u64) {
    // If it has ended, it has closed everything.
    let _ = close(&[key], link);
}

/// A state that another engine has left to this one, or is about to: see
/// [`Cluster::upgrade`](crate::Cluster::upgrade). If it is dropped, the other one goes on.
#[derive(Debug)]
pub struct Resumption {
    link: &'static Link,
    shown: RestoredState,
}

impl Resumption {
    /// Returns the state that there is for this engine. `None` if it is to start afresh, or is not
    /// [kept](crate::keeper).
    ///
    /// # Errors
    /// [`Error::Io`] if this version cannot read it. The other engine is told why.
    pub fn find() -> Result<Option<Resumption>> {
        let Some(link) = link() else { return Ok(None) };
        let reading = Error::io("read the state of the other engine");
        let held = match fetch(link, STATE) {
            Ok(Some(held)) => held,
            Ok(None) => return Ok(None),
            Err(e) => return Err(reading(e)),
        };
        let shown = slots::read(held).and_then(|bytes| {
            let mut state = RestoredState::decode(&bytes, |_| None)?;
            state.is_rebuilt = link.is_rebuilding();
            Ok(state)
        });
        match shown.and_then(|shown| crate::primary::Driver::check(&shown).map(|()| shown)) {
            Ok(shown) => {
                IS_COMING.store(true, Ordering::Release);
                Ok(Some(Resumption { link, shown }))
            }
            Err(e) => {
                let _ = link.send(&Message::saying(Kind::Refuses, e.to_string().as_bytes()));
                Err(reading(e))
            }
        }
    }

    /// Returns what the other engine's program has left for its own use, as it was when this one was
    /// started.
    #[must_use]
    pub fn note(&self) -> &[u8] {
        self.shown.note()
    }

    /// Says that this engine could go on, and waits until the other one has left. Returns the state, for
    /// [`Builder::restore`](crate::Builder::restore). What can fail must come before.
    ///
    /// # Errors
    /// [`Error::NotReplaced`] if the other one goes on.
    pub fn commit(self) -> Result<RestoredState> {
        let going_on = Error::io("go on with the state of the other engine");
        if let Err(e) = self.link.send(&Message::new(Kind::CouldGoOn)) {
            return Err(going_on(e));
        }
        // The keeper ends this process if the other one goes on. If the keeper ends, it does.
        let Ok((commit, _)) = wait_for(self.link, None, |message| message.kind == Kind::Commit)
        else {
            return Err(Error::NotReplaced("the former engine has not left".into()));
        };
        IS_COMING.store(false, Ordering::Release);
        // The other one had raised it.
        let _ = troop_sys::process::raise_descriptor_limit();
        let read = || {
            let held = fetch(self.link, STATE)?;
            let bytes = slots::read(held.ok_or_else(|| invalid("it is missing".into()))?)?;
            let mut held = Vec::new();
            let mut state = RestoredState::decode(&bytes, |key| {
                let found = fetch(self.link, key).ok().flatten();
                held.push((key, found.as_ref().and_then(|fd| identity(fd.as_fd()).ok())));
                found
            })?;
            (state.held, state.is_rebuilt) = (held, self.link.is_rebuilding());
            // The former engine may have been killed between what it had held and the state with it.
            self.link.send(&Message::new(Kind::DropUnfetched))?;
            Ok(state)
        };
        let mut state = read().map_err(going_on)?;
        // How often an engine was killed, and how the last one was.
        state.crashes = commit.number;
        state.last_crash = (commit.key > 0).then(|| how(commit.exit()).to_string());
        state.missed = Some(commit.text()).filter(|text| !text.is_empty());
        Ok(state)
    }
}

/// Says that this engine cannot go on with the state of another one, for this reason, so that the other
/// one does. Returns whether there is one.
pub fn refuse(why: &str) -> bool {
    let is_coming = IS_COMING.swap(false, Ordering::AcqRel);
    if let Some(link) = link().filter(|_| is_coming) {
        // If the keeper has ended, nobody waits.
        let _ = link.send(&Message::saying(Kind::Refuses, why.as_bytes()));
    }
    is_coming
}

fn fetch(link: &Link, key: u64) -> io::Result<Option<OwnedFd>> {
    link.send(&Message::of_key(Kind::Fetch, key))?;
    let is_wanted = |message: &Message| message.kind == Kind::Held && message.key == key;
    wait_for(link, Some(ANSWER_TIMEOUT), is_wanted).map(|(_, fd)| fd)
}

/// Waits for a message, unless the keeper has failed to answer before. Others are put aside.
///
/// # Errors
/// `TimedOut`, or if the keeper has ended.
pub(crate) fn wait_for(
    link: &Link,
    time: Option<Duration>,
    mut is_wanted: impl FnMut(&Message) -> bool,
) -> io::Result<(Message, Option<OwnedFd>)> {
    let until = time.map(|time| Instant::now() + time);
    let mut others = Vec::new();
    let found = loop {
        match link.receive() {
            Ok(Some((message, fd))) if is_wanted(&message) => break Ok((message, fd)),
            Ok(Some((message, _))) => others.push(message),
            Ok(None) => {
                let left = until.map(|until| until.saturating_duration_since(Instant::now()));
                if left.is_some_and(|left| left.is_zero() || link.is_silent()) {
                    link.note_silent();
                    break Err(io::ErrorKind::TimedOut.into());
                }
                let left = left.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
                if let Err(e) = keeping::wait(&[link.as_fd()], left.map(|left| left.max(1))) {
                    break Err(e);
                }
            }
            Err(e) => break Err(e),
        }
    };
    link.put_aside(others);
    found
}
