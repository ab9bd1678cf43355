//! Accepts connections, and sends them to the workers that the core chooses. This is the path that
//! has to be fast.

use std::io;
use std::os::fd::AsRawFd;

use troop_core::event::Violation;
use troop_core::policy::Connection;
use troop_core::primary::Needs;
use troop_core::wire::outgoing;
use troop_core::{ConnId, ListenerId, WorkerId};
use troop_sys::unblock::Unblocker;

use crate::primary::driver::Driver;
use crate::primary::driver::listeners::{ACCEPT_BURST, Accepted, Turn};

impl Driver {
    /// Accepts what there is, as long as somebody wants it.
    ///
    /// An accept that finds nothing costs as much as one that finds something, so in a thread of
    /// its own the driver rather asks the poller whether there is more, after one connection at
    /// first, after more of them while they come in numbers. Inside a runtime, which reports a
    /// listener once, it has to accept until there is nothing more.
    pub(in crate::primary::driver) fn accept(&mut self) {
        let mut sockets = self.listeners.take_ready();
        sockets.retain(|number| self.accept_from(*number));
        self.listeners.return_ready(sockets);
    }

    /// Accepts on one socket. Whether to try it again in the next turn.
    fn accept_from(&mut self, number: usize) -> bool {
        let nested = self.poller.is_nested();
        let turn = self.listeners.begin_turn(number, nested, self.closing.is_needed());
        let Some(Turn { listener, burst, watch }) = turn else { return false };
        let needs = self.cluster.primary.needs(listener);
        let (mut accepted, mut lost) = (Accepted { count: 0, drained: false }, 0);
        while accepted.count < burst
            && lost < ACCEPT_BURST
            && self.accepts()
            && self.cluster.primary.wants_connection(listener)
        {
            match self.accept_one(number, listener, needs, watch.as_ref()) {
                Some(true) => accepted.count += 1,
                Some(false) => lost += 1,
                None => {
                    accepted.drained = true;
                    break;
                }
            }
        }
        self.held_up(number, watch);
        if accepted.count > 0 && self.listeners.is_first(listener, number) {
            let count = u32::try_from(accepted.count).unwrap_or(u32::MAX);
            self.cluster.primary.arrived(self.now, listener, count);
        }
        let Driver { listeners, poller, copies, .. } = self;
        listeners.end_turn(number, burst, accepted, (poller, copies))
    }

    /// Takes connections off a worker's own queue, for others.
    pub(in crate::primary::driver) fn take_queued(
        &mut self,
        id: ListenerId,
        shard: u16,
        count: u32,
    ) {
        let has_other_users = self.closing.is_needed();
        let Some((number, socket)) = self.listeners.socket(id, shard) else { return };
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
        // A socket of several workers does not tell which one held it up.
        if let Some((id, shard)) = self.listeners.shard_of(number)
            && let [worker] = self.cluster.primary.holders(id, shard)
        {
            let worker = *worker;
            self.cluster.primary.violated(worker, Violation::HeldUp);
        }
    }

    fn accepts(&self) -> bool {
        !self.scarcity.pauses_accepting() && !self.questions.is_full()
    }

    /// Whether there is something to accept that somebody wants.
    pub(in crate::primary::driver) fn can_accept(&self) -> bool {
        self.accepts() && self.listeners.can_accept(&self.cluster.primary)
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
        match self.listeners.accept_on(number, needs, watch)? {
            Ok((fd, peer)) => {
                self.channels.is_urgent();
                self.check_descriptor_number(fd.as_raw_fd());
                let conn = self.connections.add(fd, self.listeners.is_unix(number));
                if needs.answer {
                    self.ask(id, conn, peer);
                } else if needs.bytes {
                    self.inspect_new(id, conn, peer);
                } else {
                    self.cluster.primary.accepted(self.now, id, conn, Connection::new(peer, None));
                }
                Some(true)
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => None,
            Err(e) if is_lost(&e) => Some(false),
            Err(e) if !is_shortage(&e) => {
                // A worker that has a copy has shut it down, or whatever else makes a socket unfit.
                self.listeners.check_soon(self.now);
                self.listeners.report_no_more(number, &self.poller);
                None
            }
            Err(e) => {
                self.pause_accepting(e);
                Some(false)
            }
        }
    }

    #[inline]
    pub(in crate::primary::driver) fn deliver(
        &mut self,
        worker: WorkerId,
        listener: ListenerId,
        conn: ConnId,
        seq: u64,
        batched: bool,
    ) {
        if self.channels.has_relays() {
            self.channels.reclaim(worker, self.now, &mut self.poller);
        }
        if batched {
            match self.channels.batch(worker, listener, seq, conn) {
                Some(true) => {}
                Some(false) => {
                    self.send_batch(worker);
                    self.channels.batch(worker, listener, seq, conn);
                }
                None => self.cluster.primary.undelivered(self.now, worker, seq),
            }
            return;
        }
        let kept = self.connections.is_kept(conn);
        let is_sent = self.send_conns(worker, &[conn], |line, listeners| {
            if let Some(key) = listeners.key(listener) {
                outgoing::newconn(line, key, seq, kept);
            }
        });
        if !is_sent {
            self.cluster.primary.undelivered(self.now, worker, seq);
        }
    }

    pub(in crate::primary::driver) fn flush_batches(&mut self) {
        while let Some(worker) = self.channels.next_batched() {
            self.send_batch(worker);
        }
    }

    fn send_batch(&mut self, worker: WorkerId) {
        let Some(batch) = self.channels.take_batch(worker) else { return };
        let is_sent = self.send_conns(worker, &batch.conns, |line, listeners| {
            if let Some(key) = batch.listener.and_then(|listener| listeners.key(listener)) {
                outgoing::conns(line, key, &batch.seqs);
            }
        });
        if !is_sent {
            for seq in &batch.seqs {
                self.cluster.primary.undelivered(self.now, worker, *seq);
            }
        }
        self.channels.return_batch(worker, batch);
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
