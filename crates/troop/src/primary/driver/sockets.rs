//! The listeners' sockets: opens and closes them, gives the kernel its orders, and sees what waits
//! in them.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use troop_core::primary::{Bind, BindSpec, Repairs};
use troop_core::steer::Instruction;
use troop_core::{ListenerId, Time, WorkerId};
use troop_sys::group;
use troop_sys::poll::Interest;
use troop_sys::{diag, socket};

use super::{Driver, Token};
use crate::error::Error;
use crate::event::Event;
use crate::primary::listener::{self, Listener, Socket};

/// How often it is looked whether others have joined a group.
const SCAN_INTERVAL: Duration = Duration::from_secs(5);

impl Driver {
    pub(super) fn bind(&mut self, id: ListenerId, worker: WorkerId, spec: BindSpec) {
        let rights = match self.rights_of(worker) {
            Ok(rights) => rights,
            Err(e) => {
                self.cluster.primary.bound(self.now, id, Err(listener::errno(&e)));
                return;
            }
        };
        let key = self.cluster.primary.listener_key(id).unwrap_or_default();
        let key = troop_core::wire::outgoing::quote(key);
        let has_room = self.sockets.len() < self.cluster.primary.budget().listeners();
        let opened = match () {
            () if !has_room => Err(rustix::io::Errno::MFILE.into()),
            () if matches!(spec.target, Bind::Unix { .. }) && self.names_dead_paths(worker) => {
                Err(rustix::io::Errno::TIMEDOUT.into())
            }
            () => {
                let begun = std::time::Instant::now();
                let opened = listener::open(&spec, &self.inherited, &rights);
                if matches!(spec.target, Bind::Unix { .. }) {
                    self.took_for_path(worker, begun.elapsed());
                }
                opened
            }
        };
        let opened = opened.and_then(|mut opened| {
            if !self.leaves_the_reserve(&opened.fd) {
                return Err(rustix::io::Errno::MFILE.into());
            }
            // A descriptor of the primary's by its number may be one that it listens on already.
            let inode = diag::inode(&opened.fd)?;
            if let Some((_, same)) = self.sockets.iter().find(|(_, socket)| socket.inode == inode) {
                if self.listeners.get(&same.listener).is_some_and(|listener| listener.grouped) {
                    return Err(rustix::io::Errno::INVAL.into());
                }
                if spec.group {
                    opened.alone.get_or_insert_with(|| {
                        "another listener has the same socket, so its connections are handed over in turn".into()
                    });
                }
            }
            Ok(opened)
        });
        let result = match opened {
            Ok(opened) => {
                let grouped = spec.group && opened.alone.is_none();
                if opened.given {
                    self.cluster.primary.keep_open(id);
                }
                if let Some(reason) = opened.alone {
                    self.cluster.primary.cannot_steer(id, reason);
                }
                let local = socket::local_address(&opened.fd);
                let is_shared = !grouped && spec.listen.is_none();
                if is_shared && !opened.given {
                    // Nobody attaches a filter (not possible for Unix sockets, which have none).
                    let _ = group::lock(opened.fd.as_fd());
                }
                let founder = self.sockets.insert(match is_shared {
                    true => Socket::shared(opened.fd, id, opened.options),
                    false => Socket::new(opened.fd, id),
                });
                let (sockets, backlog) = (vec![founder], spec.listen);
                let listener = Listener {
                    sockets,
                    grouped,
                    file: opened.file,
                    spec,
                    local,
                    has_listened: false,
                    shut_downs: Repairs::default(),
                    changes: Repairs::default(),
                    is_unfit: false,
                    is_lost: false,
                    key,
                    backlog,
                    intruders: Vec::new(),
                    program: Vec::new(),
                };
                self.listeners.insert(id, listener);
                if grouped && backlog.is_some() {
                    // What comes before there is a program, or a worker, may come here.
                    self.watch_socket(founder, true);
                }
                Ok(opened.name)
            }
            Err(e) => {
                self.explain(id, worker, &e, &rights);
                let errno = listener::errno(&e);
                if rustix::io::Errno::from_raw_os_error(errno) == rustix::io::Errno::MFILE {
                    self.short("open a listener", e);
                }
                Err(errno)
            }
        };
        self.cluster.primary.bound(self.now, id, result);
        self.plan_upkeep();
    }

    pub(super) fn unbind(&mut self, id: ListenerId) {
        let Some(mut listener) = self.listeners.remove(&id) else { return };
        // Before its socket is closed, and the number of the file may be another one's.
        drop(listener.file.take());
        for number in listener.sockets {
            let Some(socket) = self.sockets.try_remove(number) else { continue };
            if socket.watched {
                // Copies of the socket may live on in other processes, and would go on being
                // reported.
                self.poller.remove(&socket.fd);
            }
        }
    }

    pub(super) fn socket(&mut self, id: ListenerId, shard: u16) -> Option<(usize, &mut Socket)> {
        let number = *self.listeners.get(&id)?.shards().get(usize::from(shard))?;
        self.sockets.get_mut(number).map(|socket| (number, socket))
    }

    /// The first socket of a listener: a group's founder, or the only one.
    fn founder(&self, id: ListenerId) -> Option<&Socket> {
        self.listeners.get(&id).and_then(|listener| self.sockets.get(*listener.sockets.first()?))
    }

    pub(super) fn watch(&mut self, id: ListenerId, shard: u16, on: bool) {
        if let Some((number, _)) = self.socket(id, shard) {
            self.watch_socket(number, on);
        }
    }

    pub(super) fn watch_socket(&mut self, number: usize, on: bool) {
        let interest = if self.poller.is_nested() { Interest::ReadEdge } else { Interest::Read };
        let Some(socket) = self.sockets.get_mut(number) else { return };
        if std::mem::replace(&mut socket.watched, on) == on {
            return;
        }
        if std::mem::take(&mut socket.unreported) && !on {
            return;
        }
        (socket.ready, socket.masked, socket.full, socket.burst) = (false, false, false, 1);
        let Some(socket) = self.sockets.get(number) else { return };
        if !on {
            self.poller.remove(&socket.fd);
        } else if let Err(source) = self.poller.add(&socket.fd, Token::Socket(number), interest) {
            self.unwatched.push(number);
            self.pause_accepting(source);
        }
    }

    /// Tries once more to watch sockets that could not be watched, when the pause after that is
    /// over.
    pub(super) fn watch_again(&mut self) {
        if self.unwatched.is_empty() || self.accept_again.is_some() {
            return;
        }
        for number in std::mem::take(&mut self.unwatched) {
            if self
                .sockets
                .get_mut(number)
                .is_some_and(|socket| std::mem::take(&mut socket.watched))
            {
                self.watch_socket(number, true);
            }
        }
    }

    pub(super) fn fail(&mut self, doing: &'static str, source: io::Error) {
        self.events.push(Event::Error {
            worker: None,
            error: std::sync::Arc::new(Error::Io { doing, source }),
        });
    }

    /// One more socket for a group.
    pub(super) fn open_more(&mut self, id: ListenerId) {
        // Before the numbers are continued, they have to be known.
        self.see_queues(id);
        let result = self.try_open_more(id);
        if result.is_err()
            && let Some(listener) =
                self.listeners.get_mut(&id).filter(|listener| listener.shards().is_empty())
        {
            // The founder is the only one and does for all.
            listener.grouped = false;
        }
        self.cluster.primary.opened(self.now, id, result);
    }

    fn try_open_more(&mut self, id: ListenerId) -> Result<(), String> {
        let share = "so some workers share a socket, which is uneven";
        let Some(backlog) = self.listeners.get(&id).map(|l| l.backlog) else {
            return Err("it is closed".into());
        };
        if self.sockets.len() >= self.cluster.primary.budget().tight() {
            return Err(format!(
                "its listeners have half of the {} open files that it may have, {share}",
                self.cluster.primary.budget().limit
            ));
        }
        let Some(first) = self.founder(id) else { return Err("it is closed".into()) };
        let open = || {
            let fd = group::sibling(first.fd.as_fd())?;
            backlog.map_or(Ok(()), |backlog| socket::listen(&fd, backlog))?;
            group::lock(fd.as_fd())?;
            Ok(fd)
        };
        let fd = open().map_err(|e: io::Error| {
            format!("no more sockets can be opened for it ({e}), {share}")
        })?;
        let socket = Socket::shared(fd, id, None);
        // Whoever else is in the group may be before this one, which then has not the number that
        // it should have.
        let port = socket::local_address(&socket.fd).map(|at| at.port());
        // Where the kernel does not tell, nobody can be told.
        let bound = diag::bound(port, self.is_udp(id)).unwrap_or_default();
        if let Some(who) = self.strangers(id, bound, Some(socket.inode)).into_iter().next() {
            return Err(format!("{}, {share}", self.describe(id, &who)));
        }
        let number = self.sockets.insert(socket);
        if let Some(listener) = self.listeners.get_mut(&id) {
            listener.sockets.push(number);
        }
        Ok(())
    }

    /// Sockets on the address of a listener that are not the cluster's, among these.
    fn strangers(
        &self,
        id: ListenerId,
        bound: Vec<diag::Bound>,
        newest: Option<u64>,
    ) -> Vec<diag::Bound> {
        let Some(at) = self.founder(id).and_then(|first| socket::local_address(&first.fd)) else {
            return Vec::new();
        };
        let here = bound.into_iter().filter(|b| b.port == at.port() && b.address == at.ip());
        let ours = |inode: u64| {
            newest == Some(inode) || self.sockets.iter().any(|(_, socket)| socket.inode == inode)
        };
        here.filter(|b| !ours(b.inode)).collect()
    }

    fn is_udp(&self, id: ListenerId) -> bool {
        self.founder(id)
            .is_some_and(|first| matches!(socket::kind(&first.fd), Ok(socket::Kind::Udp { .. })))
    }

    fn describe(&mut self, id: ListenerId, who: &diag::Bound) -> String {
        if let Some(listener) = self.listeners.get_mut(&id)
            && !listener.intruders.contains(&who.inode)
        {
            listener.intruders.push(who.inode);
        }
        let process = diag::process_with(who.inode).map_or("another process".into(), |pid| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            format!("process {pid} ({})", name.trim())
        });
        format!("{process} of user {} listens on the same port with SO_REUSEPORT", who.uid)
    }

    /// Says so, once, when others have joined groups. Describes one of them at a time, which takes
    /// a while.
    fn census(&mut self) {
        let grouped: Vec<ListenerId> =
            self.listeners.iter().filter(|(_, l)| l.grouped).map(|(id, _)| *id).collect();
        let Ok(tcp) = diag::bound(None, false) else { return };
        let has_udp = grouped.iter().any(|id| self.is_udp(*id));
        let udp = if has_udp { diag::bound(None, true).unwrap_or_default() } else { Vec::new() };
        let mut described = false;
        for id in grouped {
            self.steer_again(id);
            let strangers =
                self.strangers(id, if self.is_udp(id) { udp.clone() } else { tcp.clone() }, None);
            let Some(listener) = self.listeners.get_mut(&id) else { continue };
            listener.intruders.retain(|inode| strangers.iter().any(|who| who.inode == *inode));
            let Some(new) = strangers
                .iter()
                .find(|who| !listener.intruders.contains(&who.inode))
                .filter(|_| !described)
            else {
                continue;
            };
            described = true;
            let reason = format!(
                "{}; it gets no connections, and no more sockets are opened while it is there",
                self.describe(id, new)
            );
            if let Some(at) = self.cluster.primary.listener_address(id) {
                self.events.push(Event::NotSteered { address: at, reason });
            }
        }
    }

    pub(super) fn steer(&mut self, id: ListenerId, program: &[Instruction]) {
        let program: Vec<group::Instruction> = program
            .iter()
            .map(|i| group::Instruction {
                code: i.code,
                jump_true: i.jump_true,
                jump_false: i.jump_false,
                operand: i.operand,
            })
            .collect();
        if let Some(listener) = self.listeners.get_mut(&id) {
            listener.program = program;
        }
        self.steer_again(id);
    }

    /// Also now and then without any change: a worker could have taken the program away.
    fn steer_again(&mut self, id: ListenerId) {
        let (Some(founder), Some(listener)) = (self.founder(id), self.listeners.get(&id)) else {
            return;
        };
        if !listener.program.is_empty()
            && let Err(source) = group::steer(founder.fd.as_fd(), &listener.program)
        {
            self.fail(
                "give the kernel the program that chooses among a listener's sockets",
                source,
            );
        }
    }

    pub(super) fn sample(&mut self, id: ListenerId) {
        self.see_queues(id);
        self.cluster.primary.sampled(self.now, id, &self.waiting);
        if self.census_at <= self.now {
            self.census_at = self.now + SCAN_INTERVAL;
            self.census();
        }
    }

    /// Finds out what waits in the sockets of a group, in `waiting`. Puts right what workers have
    /// done to them.
    fn see_queues(&mut self, id: ListenerId) {
        self.waiting.clear();
        let Some(listener) = self.listeners.get(&id).filter(|listener| listener.grouped) else {
            return;
        };
        let sockets = listener.shards().iter().filter_map(|number| self.sockets.get(*number));
        self.waiting.extend(sockets.map(|socket| group::waiting(socket.fd.as_fd())));
        let waiting = &self.waiting;
        let is_shut = |shard: &usize| {
            let socket = listener.shards().get(*shard).and_then(|number| self.sockets.get(*number));
            // `None` alone may only mean that the kernel does not tell.
            listener.backlog.is_some()
                && waiting[*shard].is_none()
                && socket.is_some_and(|s| !socket::listens(&s.fd))
        };
        let shut: Vec<usize> = (0..waiting.len()).filter(is_shut).collect();
        let revived = shut.iter().filter(|shard| self.revive(id, **shard)).count();
        match (shut.as_slice(), revived) {
            ([], _) => {}
            ([shard], 1) => {
                let last = self.waiting.len() - 1;
                self.waiting.swap(*shard, last);
                if let Some(listener) = self.listeners.get_mut(&id) {
                    listener.sockets.swap(shard + 1, last + 1);
                }
                self.cluster.primary.renumbered(self.now, id, *shard as u16, last as u16);
            }
            // Which of several was the first is not known, nor whether the last one has moved.
            _ => self.cluster.primary.numbers_lost(self.now, id),
        }
    }

    /// A worker has shut its socket down, which took it out of the group: the kernel gave its
    /// number to the last one. When it listens again, it is the last one.
    fn revive(&mut self, id: ListenerId, shard: usize) -> bool {
        let Some(listener) = self.listeners.get(&id) else { return false };
        let (Some(&number), Some(backlog)) = (listener.shards().get(shard), listener.backlog)
        else {
            return false;
        };
        let Some(socket) = self.sockets.get_mut(number) else { return false };
        if socket::listen(&socket.fd, backlog).is_err() {
            return false;
        }
        if std::mem::take(&mut socket.unreported) && socket.watched {
            socket.watched = false;
            self.watch_socket(number, true);
        }
        true
    }

    pub(super) fn count(&mut self, worker: WorkerId) {
        let Some(process) = self.processes.get(&worker) else { return };
        if let Some(open) = diag::open_descriptors(process.handle.pid()) {
            self.cluster.primary.counted(self.now, worker, open);
        }
    }
}

/// A time in the past, so that the first look is at once.
pub(super) const EPOCH: Time = Time(0);
