//! The keeper executes another program, a newer version of itself, in its own place: the process stays, and
//! so do its children, its descriptors and the signals that wait.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::{FdFlags, fcntl_setfd};
use troop_sys::{fault, inherited, keeping, own_code};

use super::super::before::Before;
use super::super::left::Left;
use super::super::link::Link;
use super::super::message::{Kind, Message};
use super::super::{KEEPER, VARIABLE, VERSION};
use super::{Engine, Keeper, Next, Start, UPGRADE_TIMEOUT, run};

/// A program that is asked whether it could take the keeper's place.
pub(super) struct Candidate {
    image: OwnedFd,
    /// What it answers if it has understood.
    sum: u64,
}

/// Returns what a program says that is asked whether it could go on with this.
fn answer_to(left: io::Result<Left>) -> Message {
    match left {
        Ok(left) => {
            Message { key: left.sum(), ..Message::saying(Kind::CouldKeep, VERSION.as_bytes()) }
        }
        Err(e) => Message::saying(Kind::Refuses, e.to_string().as_bytes()),
    }
}

/// Hears what the keeper had said before this process was started. Returns whether it asks only whether its
/// program could take the keeper's place, which is answered then.
pub(in super::super) fn answer(link: &Link) -> bool {
    loop {
        match link.receive() {
            Ok(Some((Message { kind: Kind::CanYouKeep, .. }, Some(file)))) => {
                fault::point("asked to keep");
                // If the keeper has ended, nobody waits.
                let _ = link.send(&answer_to(Left::from_file(file)));
                return true;
            }
            Ok(Some((message, _))) => match message.kind {
                Kind::KeeperIs => link.note_version(message.text()),
                Kind::Rebuild => link.note_rebuilding(),
                _ => {
                    link.put_aside(vec![message]);
                    return false;
                }
            },
            _ => return false,
        }
    }
}

/// Goes on as the keeper that has executed this program. `None` if there was none: the variable was
/// inherited alone.
pub(in super::super) fn go_on(value: &OsStr) -> io::Result<Option<ExitCode>> {
    let number = value.to_str().and_then(|value| value.strip_prefix(KEEPER)?.parse().ok());
    let Some(file) = number.and_then(|number: RawFd| inherited::take(number).ok()) else {
        return Ok(None);
    };
    let left = Left::from_file(file)?;
    if left.pid != std::process::id() {
        return Ok(None);
    }
    let mut keeper = Keeper::after(&left)?;
    fault::point("renewed");
    let renewed = Message::saying(Kind::KeeperRenewed, left.version.as_bytes());
    // Whoever hears that it is done knows by then what it is.
    keeper.say_version();
    keeper.engine.send(&renewed, None);
    own_code::release();
    own_code::release_free_memory();
    run(&mut keeper).map(Some)
}

impl Keeper {
    /// What another program image needs to go on.
    fn left(&self) -> Left {
        let ready = self.ready.map(|since| since.elapsed().as_millis());
        let held = self.held.iter().map(|(key, fd)| (*key, fd.as_raw_fd()));
        Left {
            version: VERSION.into(),
            pid: std::process::id(),
            oom_score: self.before.oom_score(),
            descriptors: self.before.descriptors,
            engine: self.engine.pid,
            pidfd: self.engine.pidfd.as_raw_fd(),
            socket: self.engine.socket.as_ref().map(|socket| socket.as_raw_fd()),
            is_wanting: self.engine.is_wanting,
            ready_ms: ready.map(|ms| u64::try_from(ms).unwrap_or(u64::MAX)),
            image: self.image.as_ref().map(|image| image.as_raw_fd()),
            crashes: self.crashes,
            quick: self.quick,
            unready: self.unready,
            roomless: self.roomless,
            has_held: self.has_held,
            told: self.told,
            waiting: self.waiting.clone(),
            unobeyed: self.unobeyed.clone(),
            held: held.collect(),
        }
    }

    /// The keeper that has left this. Its descriptors are closed when a program is executed from now on.
    fn after(left: &Left) -> io::Result<Keeper> {
        super::be_keeper()?;
        let signals = keeping::Signals::hold(&super::SIGNALS)?;
        let ready = left.ready_ms.and_then(|ms| {
            let now = Instant::now();
            now.checked_sub(Duration::from_millis(ms)).or(Some(now))
        });
        let engine = Engine {
            pid: left.engine,
            pidfd: inherited::take(left.pidfd)?,
            socket: left.socket.map(inherited::take).transpose()?,
            // Otherwise nothing is executed.
            catches_signals: true,
            is_wanting: left.is_wanting,
            is_resuming: false,
            fetched: Default::default(),
        };
        let held = left.held.iter().map(|(key, fd)| Ok((*key, inherited::take(*fd)?)));
        Ok(Keeper {
            signals,
            engine,
            next: None,
            before: Before::of_former(left.oom_score, left.descriptors),
            waiting: left.waiting.clone(),
            unobeyed: left.unobeyed.clone(),
            held: held.collect::<io::Result<_>>()?,
            told: left.told,
            image: left.image.map(inherited::take).transpose()?.map(Into::into),
            crashes: left.crashes,
            quick: left.quick,
            crash: None,
            unready: left.unready,
            roomless: left.roomless,
            is_rebuilding: false,
            ready,
            has_held: left.has_held,
        })
    }

    /// Asks this program whether it could go on in place of this one. That it does then is what was asked,
    /// whatever is at the path by then.
    pub(super) fn begin_renewal(&mut self, program: &Path) {
        if self.next.is_some() {
            return self.stay("another upgrade is under way");
        }
        if !self.engine.catches_signals {
            return self.stay("the engine is not ready yet: try again");
        }
        let until = Instant::now() + UPGRADE_TIMEOUT;
        // A path alone: opening a pipe would wait.
        let asked = open(program, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(io::Error::from)
            .and_then(|image| {
                let (left, at) = (self.left(), at(&image));
                let question = Start::Asked(left.to_file()?);
                let engine = Engine::start(Path::new(&at), &question, &self.before)?;
                Ok(Next { engine, until, keeper: Some(Candidate { image, sum: left.sum() }) })
            });
        match asked {
            Ok(next) => self.next = Some(next),
            Err(e) => self.stay(&format!("cannot execute {}: {e}", program.display())),
        }
    }

    /// A program that is to take this one's place has answered.
    pub(super) fn hear_keeper_to_come(&mut self, message: &Message) {
        let Some(Next { engine, keeper: Some(asked), .. }) = self.next.take() else { return };
        engine.kill();
        match message.kind {
            Kind::CouldKeep if message.key == asked.sum => {
                let e = self.execute(&asked.image);
                self.stay(&format!("cannot execute it: {e}"));
            }
            Kind::CouldKeep => self.stay("it has not understood the state of the keeper"),
            Kind::Refuses => self.stay(&message.text()),
            // It takes itself for an engine.
            _ => self.stay("it is of a version that cannot take the place of a keeper that runs"),
        }
    }

    /// Returns only if that is not possible; nothing has changed then.
    fn execute(&self, image: &OwnedFd) -> io::Error {
        let state = match self.left().to_file() {
            Ok(state) => state,
            Err(e) => return e,
        };
        let engine = &self.engine;
        let own = [Some(state.as_fd()), Some(engine.pidfd.as_fd())];
        let more = [engine.socket.as_ref().map(|one| one.as_fd()), self.image_fd()];
        let left =
            own.into_iter().chain(more).flatten().chain(self.held.values().map(|fd| fd.as_fd()));
        let left: Vec<BorrowedFd<'_>> = left.collect();
        // They are open, so this cannot fail.
        let set = |flags: FdFlags| {
            left.iter().for_each(|fd| {
                let _ = fcntl_setfd(fd, flags);
            });
        };
        let mut args = std::env::args_os();
        let mut command = Command::new(at(image));
        command.arg0(args.next().unwrap_or_default()).args(args);
        command.env(VARIABLE, format!("{KEEPER}{}", state.as_raw_fd()));
        set(FdFlags::empty());
        fault::point("renewing");
        let error = keeping::execute(&mut command);
        set(FdFlags::CLOEXEC);
        error
    }

    fn image_fd(&self) -> Option<BorrowedFd<'_>> {
        self.image.as_ref().map(|image| image.as_fd())
    }

    /// The keeper stays what it is.
    fn stay(&mut self, why: &str) {
        self.next = None;
        self.engine.send(&Message::saying(Kind::KeeperStays, why.as_bytes()), None);
    }

    pub(super) fn say_version(&self) {
        self.engine.send(&Message::saying(Kind::KeeperIs, VERSION.as_bytes()), None);
    }
}

/// The path by which an open file is executed.
fn at(image: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", image.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_asked_answers_what_it_has_understood_or_why_it_cannot() {
        let left = Left { pid: 1, engine: 2, held: vec![(0, 7)], ..Left::default() };
        let answer = answer_to(Left::from_file(left.to_file().unwrap()));
        assert_eq!((answer.kind, answer.key), (Kind::CouldKeep, left.sum()));
        let other = left.encode().replacen(" 1 ", " 2 ", 1);
        let answer = answer_to(Left::decode(&other));
        assert_eq!(answer.kind, Kind::Refuses);
        assert!(answer.text().contains("is of version 2"), "{}", answer.text());
    }
}
