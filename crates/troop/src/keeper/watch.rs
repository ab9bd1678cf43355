//! The keeper's process: one loop that waits for signals, for messages of the engine, and for its end.

mod follow;
mod renew;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use troop_sys::process::{self, Exit};
use troop_sys::{fdpass, keeping, own_code};

use super::before::Before;
use super::link::{SetAside, receive, value};
use super::message::{Kind, Message};
use super::{Place, UNTIL_END, VARIABLE, VERSION};
pub(super) use renew::{answer, go_on};

const SIGHUP: i32 = 1;
const SIGINT: i32 = 2;
const SIGQUIT: i32 = 3;
const SIGUSR1: i32 = 10;
const SIGUSR2: i32 = 12;
const SIGTERM: i32 = 15;
const SIGCHLD: i32 = 17;
const SIGTTIN: i32 = 21;
const SIGTTOU: i32 = 22;
const SIGWINCH: i32 = 28;

/// Signals that are passed on, and that a child has ended.
const SIGNALS: [i32; 10] =
    [SIGHUP, SIGINT, SIGQUIT, SIGUSR1, SIGUSR2, SIGTERM, SIGCHLD, SIGTTIN, SIGTTOU, SIGWINCH];
/// Those that end an engine which does not catch signals yet, as they are to.
const ENDING: [i32; 3] = [SIGINT, SIGQUIT, SIGTERM];

/// Where the engine's end of a connection is, so that lower numbers are as they would be without.
const APART: i32 = 100;
/// Time that an engine to come has until it says that it could go on, and the other one to leave.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(5);
/// The key of the state that another engine could go on with.
const STATE: u64 = 0;
/// The variable that names the service manager's socket.
const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";
/// Time that it has to take a notification.
const NOTIFY_TIMEOUT: Duration = Duration::from_millis(100);
/// Variables that name the process that others are for; they are for its engine.
const FOR_THIS_PROCESS: [&str; 2] = ["LISTEN_PID", "WATCHDOG_PID"];

/// Why there is no upgrade when the engine's state has been dropped.
pub(super) const NO_STATE: &str =
    "the keeper did not answer for a while, so it holds no state of the engine yet: try again";

/// An engine's process.
struct Engine {
    pid: u32,
    pidfd: OwnedFd,
    /// `None` once it has closed its end.
    socket: Option<OwnedFd>,
    catches_signals: bool,
    /// It has said that it ends because it lacks something that may be available later.
    is_wanting: bool,
    /// It goes on with what another one has left, and so will catch signals soon.
    is_resuming: bool,
    /// Keys of what it was sent.
    fetched: BTreeSet<u64>,
}

/// An engine that is to take the place of the other one, or a program that of the keeper.
struct Next {
    engine: Engine,
    until: Instant,
    /// The program, if it is only asked whether it could take the place of this one.
    keeper: Option<renew::Candidate>,
}

/// What a process is started for.
enum Start<'a> {
    /// To go on with the state that is held, if there is one.
    Usual,
    /// To go on with as little of it as possible.
    Rebuilding,
    /// To do without.
    Afresh(&'a SetAside),
    /// To answer whether its program could go on in place of this one, with this. One of a version that does
    /// not know the question takes itself for an engine, and waits.
    Asked(OwnedFd),
}

struct Keeper {
    signals: keeping::Signals,
    engine: Engine,
    next: Option<Next>,
    before: Before,
    /// Signals for an engine that does not catch them yet.
    waiting: Vec<i32>,
    /// Those that the engine was sent and has not obeyed yet.
    unobeyed: Vec<i32>,
    held: BTreeMap<u64, OwnedFd>,
    /// The child whose end the engine was told of last, until it has dealt with that.
    told: Option<u32>,
    /// The program of the engine that was ready last; before one was, this one.
    image: Option<File>,
    /// How many engines were killed, how many of these in a row that ran shortly, and how the last one was,
    /// until another one goes on.
    crashes: u32,
    quick: u32,
    crash: Option<Exit>,
    /// How many in a row have ended before they were ready: those that the state may have ended, and those
    /// that were killed or had no room.
    unready: u32,
    roomless: u32,
    /// The state has ended engines, and the one that is there is to take little of it.
    is_rebuilding: bool,
    /// Since when this one is ready.
    ready: Option<Instant>,
    /// Whether there ever was a state to go on with.
    has_held: bool,
}

/// Keeps an engine until it ends. Returns the exit code of the app.
pub(super) fn keep(place: Place) -> io::Result<ExitCode> {
    run(&mut start(place)?)
}

fn run(keeper: &mut Keeper) -> io::Result<ExitCode> {
    loop {
        if let Some(exit) = keeper.turn() {
            return Ok(as_ours(exit));
        }
    }
}

fn be_keeper() -> io::Result<()> {
    process::set_name("troop-keeper");
    keeping::adopt_orphans()
}

fn start(place: Place) -> io::Result<Keeper> {
    be_keeper()?;
    if place == Place::Background {
        // It fails only for the leader of a process group, which a process in the background is not.
        let _ = rustix::process::setsid();
    }
    let signals = keeping::Signals::hold(&SIGNALS)?;
    let before = Before::of_this_process();
    let engine = Engine::start(Path::new("/proc/self/exe"), &Start::Usual, &before)?;
    let (held, waiting, unobeyed) = (BTreeMap::new(), Vec::new(), Vec::new());
    Ok(Keeper {
        signals,
        engine,
        next: None,
        before,
        waiting,
        unobeyed,
        held,
        told: None,
        image: File::open("/proc/self/exe").ok(),
        crashes: 0,
        quick: 0,
        crash: None,
        unready: 0,
        roomless: 0,
        is_rebuilding: false,
        ready: None,
        has_held: false,
    })
}

impl Engine {
    /// Starts an engine, outside the terminal's foreground group.
    fn start(program: &Path, what: &Start<'_>, before: &Before) -> io::Result<Engine> {
        let (ours, theirs) = keeping::message_pair()?;
        let theirs = fcntl_dupfd_cloexec(&theirs, APART).unwrap_or(theirs);
        fcntl_setfd(&theirs, FdFlags::empty())?;
        let mut args = std::env::args_os();
        let mut command = Command::new(program);
        command.arg0(args.next().unwrap_or_else(|| "troop".into())).args(args).process_group(0);
        let set_aside = if let Start::Afresh(set_aside) = what { Some(*set_aside) } else { None };
        command.env(VARIABLE, value(&theirs, set_aside));
        // What it hears before anything else.
        let say = |kind, fd: Option<&OwnedFd>| {
            let text = Message::saying(kind, VERSION.as_bytes()).encode();
            fdpass::send(ours.as_fd(), &text, fd.map(AsFd::as_fd).as_slice())
        };
        match what {
            Start::Asked(state) => {
                say(Kind::CanYouKeep, Some(state))?;
                command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            }
            Start::Rebuilding => {
                say(Kind::KeeperIs, None)?;
                say(Kind::Rebuild, None)?;
            }
            Start::Usual | Start::Afresh(_) => drop(say(Kind::KeeperIs, None)?),
        }
        let own = OsString::from(std::process::id().to_string());
        for name in FOR_THIS_PROCESS {
            if std::env::var_os(name).is_some_and(|pid| pid == own) {
                command.env_remove(name);
            }
        }
        let pid = before.start(|| command.spawn())?.id();
        // It is a child and not reaped, so this is the one.
        let pidfd = process::pidfd(pid)?;
        let (catches_signals, is_wanting, is_resuming) = (false, false, false);
        Ok(Engine {
            pid,
            pidfd,
            socket: Some(ours),
            catches_signals,
            is_wanting,
            is_resuming,
            fetched: BTreeSet::new(),
        })
    }

    /// Sends a message. Returns whether there was room: an engine that reads nothing gets no more.
    fn send(&self, message: &Message, fd: Option<&OwnedFd>) -> bool {
        let fd = fd.map(AsFd::as_fd);
        self.socket.as_ref().is_some_and(|socket| {
            fdpass::send(socket.as_fd(), &message.encode(), fd.as_slice()).is_ok()
        })
    }

    fn receive(&mut self) -> Option<(Message, Option<OwnedFd>)> {
        match receive(self.socket.as_ref()?.as_fd()) {
            Ok(message) => message,
            Err(_) => {
                self.socket = None;
                None
            }
        }
    }

    fn signal(&self, signal: i32) {
        let _ = process::signal(self.pidfd.as_fd(), signal);
    }

    /// How it has ended, if it has; it is reaped then.
    fn end(&self) -> Option<Exit> {
        process::try_reap(self.pidfd.as_fd()).unwrap_or(Some(Exit::Unknown))
    }

    /// Ends it.
    fn kill(&self) {
        self.signal(9);
        let _ = process::reap(self.pidfd.as_fd());
    }
}

impl Keeper {
    /// Waits for something, and deals with it. Returns how the app has ended, if it has.
    fn turn(&mut self) -> Option<Exit> {
        let left = self.next.as_ref().map(|next| {
            let left = next.until.saturating_duration_since(Instant::now());
            u64::try_from(left.as_millis()).unwrap_or(u64::MAX).saturating_add(1)
        });
        let engines =
            std::iter::once(&self.engine).chain(self.next.as_ref().map(|next| &next.engine));
        let fds = engines.flat_map(|engine| {
            [Some(engine.pidfd.as_fd()), engine.socket.as_ref().map(AsFd::as_fd)]
        });
        let fds: Vec<_> = std::iter::once(self.signals.as_fd()).chain(fds.flatten()).collect();
        // Whatever can be read is found below.
        if keeping::wait(&fds, left).is_err() {
            return Some(Exit::Code(1));
        }
        while let Some(signal) = self.signals.next() {
            self.pass_on(signal);
        }
        while let Some((message, fd)) = self.engine.receive() {
            self.hear(&message, fd);
        }
        while let Some(message) = self.next.as_mut().and_then(|next| next.engine.receive()) {
            self.hear_next(&message.0);
        }
        self.tell_of_ends();
        if let Some(next) = &self.next {
            let what = if next.keeper.is_none() { "the new engine" } else { "the new program" };
            if let Some(exit) = next.engine.end() {
                self.give_up(&format!("{what} has ended: {exit}"));
            } else if next.until <= Instant::now() {
                next.engine.kill();
                self.give_up(&format!("{what} was not ready within 5 s"));
            }
        }
        let exit = self.engine.end()?;
        // What it has said before.
        while let Some((message, fd)) = self.engine.receive() {
            self.hear(&message, fd);
        }
        if let Some(next) = self.next.take() {
            next.engine.kill();
        }
        if self.restart(exit) {
            return None;
        }
        self.end_children(exit);
        Some(exit)
    }

    fn await_catching(&mut self, signal: i32) {
        if !self.waiting.contains(&signal) {
            self.waiting.push(signal);
        }
    }

    /// Tells the engine that it goes on.
    fn send_commit(&mut self) {
        let ended = self.crash.take().map(|exit| Message::ended(0, exit).key);
        let commit = Message::about(Kind::Commit, self.crashes);
        let rest = self.missed().into_bytes();
        self.engine.send(&Message { key: ended.unwrap_or(0), rest, ..commit }, None);
    }

    /// Passes a signal on to the engine, as soon as that catches it.
    fn pass_on(&mut self, signal: i32) {
        if signal == SIGCHLD {
            // What that means is looked for in each turn.
            return;
        }
        let is_there = !process::has_ended(self.engine.pidfd.as_fd());
        let is_ending = ENDING.contains(&signal) && !self.engine.is_resuming;
        if is_there && (self.engine.catches_signals || is_ending) {
            self.send_signal(signal);
        } else {
            self.await_catching(signal);
        }
    }

    fn send_signal(&mut self, signal: i32) {
        self.engine.signal(signal);
        if !self.unobeyed.contains(&signal) {
            self.unobeyed.push(signal);
        }
    }

    fn hear(&mut self, message: &Message, fd: Option<OwnedFd>) {
        match message.kind {
            Kind::CatchesSignals => {
                self.engine.catches_signals = true;
                self.ready = Some(Instant::now());
                (self.roomless, self.is_rebuilding) = (0, false);
                // What only the start needed is not needed until there is another engine.
                own_code::release();
                own_code::release_free_memory();
                // If it was killed meanwhile, the program of the one before goes on.
                if let Ok(image) = File::open(format!("/proc/{}/exe", self.engine.pid)) {
                    self.image = Some(image);
                }
                for signal in std::mem::take(&mut self.waiting) {
                    self.send_signal(signal);
                }
                // It may be another program than the one that was started.
                self.say_version();
            }
            Kind::Reap if self.told == Some(message.number) => {
                self.told = None;
                process::reap_child(message.number);
            }
            Kind::HasObeyed => {
                let is_other = |signal: &i32| signal.unsigned_abs() != message.number;
                self.unobeyed.retain(is_other);
                if !self.engine.catches_signals {
                    // It has found it where the former engine had left it.
                    self.waiting.retain(is_other);
                }
            }
            Kind::IsWanting => self.engine.is_wanting = true,
            Kind::Notify => notify(&message.rest),
            Kind::Hold => match fd {
                Some(fd) => {
                    self.has_held |= message.key == STATE;
                    keeping::close(self.held.insert(message.key, fd));
                }
                // There was no room for it.
                None => self.say_dropped(message.key),
            },
            Kind::Drop => self.let_go(message.key),
            Kind::DropAll => self.let_all_go(),
            Kind::CouldGoOn => self.send_commit(),
            Kind::DropUnfetched => self.let_unfetched_go(),
            Kind::Fetch => {
                self.engine.fetched.insert(message.key);
                let held = self.held.get(&message.key);
                self.engine.send(&Message::of_key(Kind::Held, message.key), held);
            }
            Kind::Upgrade => {
                self.begin_upgrade(Path::new(std::ffi::OsStr::from_bytes(&message.rest)))
            }
            Kind::Renew => {
                self.begin_renewal(Path::new(std::ffi::OsStr::from_bytes(&message.rest)))
            }
            Kind::HasLeft => self.commit(),
            Kind::Stays => {
                if let Some(next) = &self.next {
                    next.engine.kill();
                    self.give_up(&message.text());
                }
            }
            // What only the keeper says, or only an engine to come.
            _ => {}
        }
    }

    /// Holds nothing under this key any more, and says so.
    fn let_go(&mut self, key: u64) {
        keeping::close(self.held.remove(&key));
        self.say_dropped(key);
    }

    fn say_dropped(&mut self, key: u64) {
        self.engine.send(&Message::of_key(Kind::Dropped, key), None);
    }

    /// Holds no state any more. What is held until the end is no part of that. Without a state an engine to
    /// come would begin afresh, beside the one that is there.
    fn let_all_go(&mut self) {
        if let Some(next) = self.next.as_ref().filter(|next| next.keeper.is_none()) {
            next.engine.kill();
            self.give_up(NO_STATE);
        }
        let until_end = self.held.split_off(&UNTIL_END);
        keeping::close(std::mem::replace(&mut self.held, until_end));
    }

    /// Holds nothing of the state that its engine does not know.
    fn let_unfetched_go(&mut self) {
        let fetched = std::mem::take(&mut self.engine.fetched);
        let is_known = |key: &u64| *key == STATE || *key >= UNTIL_END || fetched.contains(key);
        let held = std::mem::take(&mut self.held);
        let (known, unknown): (BTreeMap<_, _>, BTreeMap<_, _>) =
            held.into_iter().partition(|(key, _)| is_known(key));
        self.held = known;
        keeping::close(unknown);
    }

    fn hear_next(&mut self, message: &Message) {
        let Some(next) = &mut self.next else { return };
        if next.keeper.is_some() {
            return self.hear_keeper_to_come(message);
        }
        match message.kind {
            Kind::Fetch => {
                let held = self.held.get(&message.key);
                next.engine.send(&Message::of_key(Kind::Held, message.key), held);
            }
            Kind::CouldGoOn => {
                // From now on the time is the other one's.
                next.until = Instant::now() + UPGRADE_TIMEOUT;
                self.engine.send(&Message::new(Kind::Leave), None);
            }
            Kind::Refuses => {
                next.engine.kill();
                self.give_up(&message.text());
            }
            _ => {}
        }
    }

    fn begin_upgrade(&mut self, program: &Path) {
        if self.next.is_some() {
            self.engine.send(&Message::saying(Kind::Failed, b"another upgrade is under way"), None);
            return;
        }
        if !self.held.contains_key(&STATE) {
            return self.give_up(NO_STATE);
        }
        let until = Instant::now() + UPGRADE_TIMEOUT;
        match Engine::start(program, &Start::Usual, &self.before) {
            Ok(engine) => self.next = Some(Next { engine, until, keeper: None }),
            Err(e) => self.give_up(&format!("cannot execute {}: {e}", program.display())),
        }
    }

    /// The engine or keeper to come, if there is one, does not come.
    fn give_up(&mut self, why: &str) {
        let is_keeper = self.next.take().is_some_and(|next| next.keeper.is_some());
        let kind = if is_keeper { Kind::KeeperStays } else { Kind::Failed };
        self.engine.send(&Message::saying(kind, why.as_bytes()), None);
    }

    /// The engine has left: the other one goes on. The former one ends by itself.
    fn commit(&mut self) {
        let next = self.next.take().filter(|next| !process::has_ended(next.engine.pidfd.as_fd()));
        let Some(next) = next else {
            // It has ended since, and is reaped as every child.
            let why = b"the new engine has ended";
            self.engine.send(&Message::saying(Kind::Failed, why), None);
            return;
        };
        let former = std::mem::replace(&mut self.engine, next.engine);
        self.engine.is_resuming = true;
        self.told = None;
        // In this order: if this process is killed in between, there is none rather than two.
        former.send(&Message::new(Kind::Over), None);
        self.ready = None;
        // Those that the former one has caught are part of what it has left.
        self.unobeyed.clear();
        self.send_commit();
    }

    /// Tells the engine of a child that has ended. The kernel tells of the same one until that is
    /// reaped.
    fn tell_of_ends(&mut self) {
        while let Some((pid, exit)) = keeping::ended_child() {
            let is_next = self.next.as_ref().is_some_and(|next| next.engine.pid == pid);
            if pid == self.engine.pid || is_next || self.told == Some(pid) {
                return;
            }
            if self.engine.socket.is_none() {
                // Nobody asks any more.
                process::reap_child(pid);
                continue;
            }
            if !self.engine.catches_signals {
                // It may be a worker that it is about to go on with.
                return;
            }
            self.told = self.engine.send(&Message::ended(pid, exit), None).then_some(pid);
            return;
        }
    }
}

/// Sends a notification to the service manager, which takes it from its service's main process only.
fn notify(text: &[u8]) {
    let Some(at) = std::env::var_os(NOTIFY_SOCKET).filter(|at| !at.is_empty()) else { return };
    let address = match at.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&at),
    };
    // A failure is ignored: the service manager does not listen any more.
    let _ = address.and_then(|address| {
        let socket = UnixDatagram::unbound()?;
        // One that takes nothing delays nothing else.
        socket.set_write_timeout(Some(NOTIFY_TIMEOUT))?;
        socket.send_to_addr(text, &address)
    });
}

/// Ends as the engine has ended.
fn as_ours(exit: Exit) -> ExitCode {
    match exit {
        Exit::Code(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Exit::Signal(signal) => {
            keeping::end_by(signal);
            ExitCode::from(u8::try_from(128 + signal).unwrap_or(1))
        }
        Exit::Unknown => ExitCode::FAILURE,
    }
}
