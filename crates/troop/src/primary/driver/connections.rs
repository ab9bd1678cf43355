//! Accepts connections and hands them over. This is the path that has to be fast.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use troop_core::event::Violation;
use troop_core::policy::Connection;
use troop_core::primary::Needs;
use troop_core::wire::{MAX_BATCH, outgoing};
use troop_core::{ConnId, ListenerId, WorkerId};
use troop_sys::poll::Interest;
use troop_sys::unblock::Unblocker;
use troop_sys::{fdpass, socket};

use super::{Driver, Token};
use crate::primary::channel::in_format;

/// A connection that the primary has a copy of.
pub(super) struct Conn {
    pub(super) fd: OwnedFd,
    /// Bytes that the primary has taken off it.
    pub(super) stripped: u32,
}

/// Connections accepted per listener before others have their turn.
pub(super) const ACCEPT_BURST: usize = 64;

impl Driver {
    /// Accepts what there is, as long as somebody wants it.
    ///
    /// An accept that finds nothing costs as much as one that finds something, so in a thread of
    /// its own the driver rather asks the poller whether there is more, after one connection at
    /// first, after more of them while they come in numbers. Inside a runtime, which reports a
    /// listener once, it has to accept until there is nothing more.
    pub(super) fn accept(&mut self) {
        let nested = self.poller.is_nested();
        // Those that may have more afterwards stay; the room of both lists is used again.
        let mut turn = std::mem::take(&mut self.accepting);
        std::mem::swap(&mut turn, &mut self.ready_sockets);
        turn.retain(|number| self.accept_from(*number, nested));
        for number in turn.drain(..) {
            if !self.ready_sockets.contains(&number) {
                self.ready_sockets.push(number);
            }
        }
        self.accepting = turn;
    }

    /// Accepts on one socket. Whether to try it again in the next turn.
    fn accept_from(&mut self, number: usize, nested: bool) -> bool {
        let Some(socket) = self.sockets.get_mut(number) else { return false };
        let full = std::mem::take(&mut socket.full);
        if !socket.ready || !socket.watched {
            if full {
                socket.burst = 1;
            }
            return false;
        }
        let id = socket.listener;
        let burst = if nested || socket.masked { ACCEPT_BURST } else { socket.burst };
        let watch = socket.never_wait(self.closing.is_some());
        let needs = self.cluster.primary.needs(id);
        let (mut accepted, mut lost, mut drained) = (0, 0, false);
        while accepted < burst
            && lost < ACCEPT_BURST
            && self.accepts()
            && self.cluster.primary.wants_connection(id)
        {
            match self.accept_one(number, id, needs, watch.as_ref()) {
                Some(true) => accepted += 1,
                Some(false) => lost += 1,
                None => {
                    drained = true;
                    break;
                }
            }
        }
        self.held_up(number, watch);
        let Some(socket) = self.sockets.get_mut(number) else { return false };
        let token = Token::Socket(number);
        if drained && socket.retired {
            self.close_retired(number);
            false
        } else if drained {
            socket.ready = false;
            socket.burst = accepted.max(1);
            if std::mem::take(&mut socket.masked) {
                self.poller.modify(&socket.fd, token, Interest::Read);
            }
            false
        } else if nested || socket.masked {
            // There may be more, which nobody will report.
            true
        } else if accepted == burst {
            socket.ready = false;
            socket.full = true;
            true
        } else {
            // Nobody wants them now. They wait in the kernel, and must not be reported all the
            // time.
            socket.masked = true;
            self.poller.modify(&socket.fd, token, Interest::Nothing);
            true
        }
    }

    /// Takes connections off a worker's own queue, for others.
    pub(super) fn take_queued(&mut self, id: ListenerId, shard: u16, count: u32) {
        let has_other_users = self.closing.is_some();
        let Some((number, socket)) = self.socket(id, shard) else { return };
        let watch = socket.never_wait(has_other_users);
        let needs = self.cluster.primary.needs(id);
        for _ in 0..count {
            if !self.accepts()
                || !self.cluster.primary.wants_connection(id)
                || self.accept_one(number, id, needs, watch.as_ref()).is_none()
            {
                break;
            }
        }
        self.held_up(number, watch);
    }

    /// A worker that had the primary wait for connections on its socket is ended: it must have
    /// changed the socket just before.
    fn held_up(&mut self, number: usize, watch: Option<Unblocker>) {
        if !watch.is_some_and(|watch| watch.has_interrupted()) {
            return;
        }
        let Some(id) = self.sockets.get(number).map(|socket| socket.listener) else { return };
        let shard = self
            .listeners
            .get(&id)
            .and_then(|listener| listener.shards().iter().position(|own| *own == number));
        // Where several have it, nobody knows who it was.
        if let Some(shard) = shard
            && let [worker] = self.cluster.primary.holders(id, shard)
        {
            let worker = *worker;
            self.cluster.primary.violated(worker, Violation::HeldUp);
        }
    }

    /// The poller reports a socket.
    pub(super) fn is_ready(&mut self, number: usize) {
        let Some(socket) = self.sockets.get_mut(number).filter(|socket| socket.watched) else {
            return;
        };
        if socket.full {
            socket.burst = (socket.burst * 2).min(ACCEPT_BURST);
        } else if !socket.ready {
            self.ready_sockets.push(number);
        }
        socket.ready = true;
    }

    fn accepts(&self) -> bool {
        self.accept_again.is_none() && !self.questions.is_full()
    }

    /// Whether there is something to accept that somebody wants.
    pub(super) fn can_accept(&self) -> bool {
        let wanted = |number: &usize| {
            self.sockets.get(*number).is_some_and(|socket| {
                socket.ready && self.cluster.primary.wants_connection(socket.listener)
            })
        };
        self.accepts() && self.ready_sockets.iter().any(wanted)
    }

    /// True: one was accepted. False: one was lost before it could be, or there is an obstacle.
    /// `None`: there is none.
    fn accept_one(
        &mut self,
        number: usize,
        id: ListenerId,
        needs: Needs,
        watch: Option<&Unblocker>,
    ) -> Option<bool> {
        let socket = self.sockets.get(number)?;
        let accept = || {
            if needs.peer {
                socket::accept_from(socket.fd.as_fd())
            } else {
                socket::accept(socket.fd.as_fd()).map(|fd| (fd, None))
            }
        };
        let accepted = match watch {
            Some(watch) => watch.call(accept),
            None => accept(),
        };
        match accepted {
            Ok((fd, peer)) => {
                self.pace.urgent();
                self.check_descriptor_number(fd.as_raw_fd());
                let conn = ConnId(
                    u32::try_from(self.conns.insert(Conn { fd, stripped: 0 })).unwrap_or(u32::MAX),
                );
                if needs.answer {
                    self.ask(id, conn, peer);
                } else if needs.bytes {
                    self.inspect_new(id, conn, peer);
                } else {
                    self.cluster.primary.accepted(self.now, id, conn, Connection::new(peer, None));
                }
                self.act();
                Some(true)
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => None,
            Err(e) if is_lost(&e) => Some(false),
            Err(e) if !is_shortage(&e) => {
                // A worker that has a copy has shut it down, or whatever else makes a socket unfit;
                // it would be reported without end.
                self.check_soon();
                if let Some(socket) = self.sockets.get_mut(number)
                    && socket.watched
                    && !std::mem::replace(&mut socket.unreported, true)
                {
                    socket.masked = false;
                    self.poller.remove(&socket.fd);
                }
                None
            }
            Err(e) => {
                self.pause_accepting(e);
                Some(false)
            }
        }
    }

    #[inline]
    pub(super) fn deliver(
        &mut self,
        worker: WorkerId,
        listener: ListenerId,
        conn: ConnId,
        seq: u64,
        batched: bool,
    ) {
        if !self.relays.is_empty() {
            self.reclaim_channel(worker);
        }
        if batched {
            let Some(channel) = self.processes.get_mut(&worker).and_then(|p| p.channel.as_mut())
            else {
                self.cluster.primary.undelivered(self.now, worker, seq);
                return;
            };
            if channel.batch.seqs.len() == MAX_BATCH
                || channel.batch.listener.is_some_and(|l| l != listener)
            {
                self.send_batch(worker);
            }
            let Some(channel) = self.channel(worker) else { return };
            channel.batch.listener = Some(listener);
            channel.batch.seqs.push(seq);
            channel.batch.conns.push(conn);
            if channel.batch.seqs.len() == 1 {
                self.batched.push(worker);
            }
            return;
        }
        let mut line = std::mem::take(&mut self.line);
        line.clear();
        if let Some(listener) = self.listeners.get(&listener) {
            outgoing::newconn(&mut line, &listener.key, seq);
        }
        if !self.send_conns(worker, &line, &[conn]) {
            self.cluster.primary.undelivered(self.now, worker, seq);
        }
        self.line = line;
    }

    pub(super) fn flush_batches(&mut self) {
        while let Some(worker) = self.batched.pop() {
            self.send_batch(worker);
        }
        // What could not be sent went back, perhaps to other workers.
        self.act();
        if !self.batched.is_empty() {
            self.flush_batches();
        }
    }

    pub(super) fn send_batch(&mut self, worker: WorkerId) {
        let Some(channel) = self.channel(worker) else { return };
        let mut batch = std::mem::take(&mut channel.batch);
        let Some(listener) = batch.listener.take() else { return };
        let mut line = std::mem::take(&mut self.line);
        line.clear();
        if let Some(listener) = self.listeners.get(&listener) {
            outgoing::conns(&mut line, &listener.key, &batch.seqs);
        }
        if !self.send_conns(worker, &line, &batch.conns) {
            for seq in &batch.seqs {
                self.cluster.primary.undelivered(self.now, worker, *seq);
            }
        }
        self.line = line;
        batch.seqs.clear();
        batch.conns.clear();
        if let Some(channel) = self.channel(worker) {
            channel.batch = batch;
        }
    }

    /// Writes a line with connections to a worker's channel, all or nothing.
    pub(super) fn send_conns(&mut self, worker: WorkerId, line: &[u8], conns: &[ConnId]) -> bool {
        let Some(process) = self.processes.get_mut(&worker) else { return false };
        let mut channel = process.channel.as_mut();
        if channel.as_ref().is_some_and(|channel| !channel.outbox.is_empty()) {
            if !self.flush_channel(worker) {
                return false;
            }
            channel = self.processes.get_mut(&worker).and_then(|process| process.channel.as_mut());
        }
        let (Some(channel), false) = (channel, line.is_empty()) else { return false };
        let line = in_format(channel.advanced, line, &mut self.frame);
        let fd = |conn: &ConnId| self.conns.get(conn.0 as usize).map(|conn| conn.fd.as_fd());
        let sent = if let [conn] = conns {
            let Some(fd) = fd(conn) else { return false };
            fdpass::send(channel.socket.as_fd(), line, &[fd])
        } else {
            // At most a batch of them, so there is room for all, and none has to be made.
            let mut fds = [channel.socket.as_fd(); MAX_BATCH];
            let mut count = 0;
            for (place, fd) in fds.iter_mut().zip(conns.iter().filter_map(fd)) {
                *place = fd;
                count += 1;
            }
            fdpass::send(channel.socket.as_fd(), line, &fds[..count])
        };
        match sent {
            Ok(n) if n == line.len() => true,
            Ok(n) => {
                channel.outbox.push(&line[n..]);
                self.unflushed.push(worker);
                true
            }
            Err(e) => {
                if e.kind() == io::ErrorKind::WouldBlock
                    && !std::mem::replace(&mut channel.blocked, true)
                {
                    self.update_channel(worker);
                    self.cluster.primary.set_blocked(self.now, worker, true);
                }
                false
            }
        }
    }
}

/// Whether this is the end of one connection only: it was gone before it could be accepted, or the
/// network has reported an error about it (`accept(2)`), or a firewall forbids it.
fn is_lost(e: &io::Error) -> bool {
    use rustix::io::Errno;
    const LOST: [Errno; 11] = [
        Errno::CONNABORTED,
        Errno::INTR,
        Errno::NETDOWN,
        Errno::PROTO,
        Errno::NOPROTOOPT,
        Errno::HOSTDOWN,
        Errno::NONET,
        Errno::HOSTUNREACH,
        Errno::NETUNREACH,
        Errno::PERM,
        Errno::TIMEDOUT,
    ];
    e.raw_os_error().is_some_and(|number| LOST.contains(&Errno::from_raw_os_error(number)))
}

/// Whether this process, or the system, is out of descriptors or memory. The connections wait in
/// the kernel meanwhile.
fn is_shortage(e: &io::Error) -> bool {
    use rustix::io::Errno;
    const SHORTAGES: [Errno; 4] = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS];
    e.raw_os_error().is_some_and(|number| SHORTAGES.contains(&Errno::from_raw_os_error(number)))
}
