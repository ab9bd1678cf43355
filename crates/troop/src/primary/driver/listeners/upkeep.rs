//! Keeps listeners reachable: sockets that were shut down, and Unix sockets whose paths lead
//! elsewhere by now.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Duration;

use troop_core::event::Address;
use troop_core::primary::RepairReport;
use troop_core::supervise::SupervisorState;
use troop_core::{ListenerId, Time, WorkerId};
use troop_sys::options::{Restored, Use};
use troop_sys::unix::Rights;
use troop_sys::{diag, socket};

use super::Listeners;
use crate::activation::{ActivationSocket, Revival, Revived};
use crate::event::Event;
use crate::primary::Reload;
use crate::primary::driver::Driver;
use crate::primary::listener::{self, Listener, Socket};

/// How often listeners are looked after.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// The same when one is known to be out of order.
const REPAIR_CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// The most old sockets of a listener that are kept for the connections in their queues; further
/// ones are closed, the oldest first.
const MAX_RETIRED: usize = 8;
/// How often it is found out whether connections of listeners have ended when they are accepted.
const ENDED_CHECK_INTERVAL: Duration = Duration::from_secs(3);
/// The pause after that, in times that it took: every user can make very many sockets.
const ENDED_CHECK_PAUSE: u32 = 200;

impl Listeners {
    /// Looks after the listeners at the next opportunity.
    pub(in crate::primary::driver) fn check_soon(&mut self, now: Time) {
        let soon = now + REPAIR_CHECK_INTERVAL;
        self.upkeep_at = Some(self.upkeep_at.map_or(soon, |at| at.min(soon)));
    }
}

impl Driver {
    pub(in crate::primary::driver) fn tick_listener_checks(&mut self) {
        if self.listeners.upkeep_at.is_some_and(|due| due <= self.now) {
            self.listeners.upkeep_at = None;
            self.maintain_listeners();
        }
    }

    /// Puts right what has happened to listeners from outside. Returns those that clients do not
    /// reach all the same.
    pub(in crate::primary::driver) fn check_listeners(&mut self) -> Vec<String> {
        // Also those that new workers have made listen that were shut down twice before.
        self.listeners.ended_check_at = self.now;
        // Where they lead now, not a second ago.
        let files = self.listeners.open.values().filter_map(|listener| listener.file.as_ref());
        files.for_each(|file| {
            let _ = file.is_reached();
        });
        self.maintain_listeners()
    }

    fn maintain_listeners(&mut self) -> Vec<String> {
        if self.listeners.ended_check_at <= self.now {
            self.end_useless_listeners();
        }
        for id in self.listeners.open.keys().copied().collect::<Vec<_>>() {
            self.revive_shut(id);
            self.restore_options(id);
            self.reach(id, None);
        }
        let mut lost = self.revive_activated();
        self.plan_upkeep();
        for (id, listener) in &self.listeners.open {
            if (listener.is_lost || listener.is_unfit)
                && let Some(at) = self.cluster.primary.bound_address(*id)
            {
                lost.push(at.to_string());
            }
        }
        lost
    }

    /// Shuts listeners down all of whose connections have ended when they are accepted, because somebody
    /// has shut them down twice and made them listen again: they are put right as such that do not
    /// listen.
    fn end_useless_listeners(&mut self) {
        let begun = std::time::Instant::now();
        let found = diag::listeners_of_ended_connections().unwrap_or_default();
        let pause = ENDED_CHECK_INTERVAL.max(begun.elapsed() * ENDED_CHECK_PAUSE);
        self.listeners.ended_check_at = self.now + pause;
        if found.is_empty() {
            return;
        }
        let end = |socket: BorrowedFd<'_>| {
            if diag::inode(socket).is_ok_and(|inode| found.contains(&inode)) {
                socket::shut_down(socket);
            }
        };
        let numbers = self.listeners.open.values().flat_map(|listener| &listener.sockets);
        for socket in numbers.filter_map(|number| self.listeners.sockets.get(*number)) {
            end(socket.fd.as_fd());
        }
        for socket in self.workers.setup().activation() {
            socket.each(end);
        }
    }

    /// Listeners are looked after from now on, if there are such as need it: those whose workers
    /// have copies of the socket, and those that have a path.
    pub(in crate::primary::driver) fn plan_upkeep(&mut self) {
        let needs = |listener: &Listener| {
            listener.file.is_some() || listener.grouped || listener.spec.listen.is_none()
        };
        if self.listeners.upkeep_at.is_none()
            && (self.workers.setup().has_activation() || self.listeners.open.values().any(needs))
        {
            self.listeners.upkeep_at = Some(self.now + CHECK_INTERVAL);
        }
    }

    /// Lets a listener listen again that was shut down (`shutdown(2)`) by a worker or another
    /// process with a copy of its socket. Groups are looked after with their queues.
    fn revive_shut(&mut self, id: ListenerId) {
        let Some(listener) = self.listeners.open.get_mut(&id).filter(|listener| !listener.grouped)
        else {
            return;
        };
        let Some(&number) = listener.sockets.first() else { return };
        let Some(socket) = self.listeners.sockets.get_mut(number) else { return };
        if !socket::is_shut_down(&socket.fd) {
            listener.has_listened |= socket::listens(&socket.fd);
            return;
        }
        let who = self.cluster.primary.who_listens(id);
        // On a shared socket it is the workers who begin to listen.
        if listener.spec.listen.is_none() && !listener.has_listened && who.is_empty() {
            return;
        }
        let report = listener.shut_downs.note(self.now);
        let has_sockets = self.cluster.primary.who_has_sockets(id);
        let who = suspects(listener.spec.listen.is_none(), &has_sockets);
        let result = match &listener.file {
            // One that has a path stays shut for good.
            Some(file) => {
                let rights = file.rights().clone();
                let is_shared = listener.spec.listen.is_none();
                let result = self.bind_anew(id, &rights);
                if result.is_ok() && is_shared {
                    // Its workers have the old socket; their successors ask for the new one.
                    self.reload(Reload::new(), None);
                }
                result
            }
            None => {
                let result =
                    socket::listen_again(&socket.fd, listener.local, listener.spec.backlog);
                if result.is_ok() && self.listeners.was_forgotten(number) {
                    self.watch_socket(number, true);
                }
                result
            }
        };
        match result {
            Ok(()) => {
                if let Some(listener) = self.listeners.open.get_mut(&id) {
                    listener.is_lost = false;
                }
                let address = self.cluster.primary.bound_address(id);
                let reason = format!("its socket was shut down, {who}; it listens again");
                self.events.extend(address.and_then(|at| repaired(at, report, reason, &who)));
            }
            Err(e) => self.lost(
                id,
                &format!("its socket was shut down, {who}, and cannot listen again: {e}"),
            ),
        }
    }

    /// Puts back socket options by which a worker, or another process with a copy of the socket,
    /// turns clients away.
    fn restore_options(&mut self, id: ListenerId) {
        let Some(listener) = self.listeners.open.get(&id) else { return };
        // Before its workers listen there is nothing to hold them to.
        let backlog = if listener.spec.listen.is_some() || listener.has_listened {
            Some(listener.spec.backlog)
        } else {
            None
        };
        let used = Use { backlog, nonblocking: true };
        let mut all = Restored::default();
        for socket in
            listener.sockets.iter().filter_map(|number| self.listeners.sockets.get(*number))
        {
            let Some(options) = &socket.options else { continue };
            let one = options.restore(&socket.fd, used);
            all.what.extend(
                one.what.into_iter().filter(|name| !all.what.contains(name)).collect::<Vec<_>>(),
            );
            all.lost.extend(one.lost);
        }
        if all.what.is_empty() && all.lost.is_empty() && !listener.is_unfit {
            return;
        }
        let who = suspects(true, &self.cluster.primary.who_has_sockets(id));
        let (Some(listener), Some(at)) =
            (self.listeners.open.get_mut(&id), self.cluster.primary.bound_address(id))
        else {
            return;
        };
        if !all.what.is_empty() {
            let report = listener.changes.note(self.now);
            self.events.extend(repaired(at.clone(), report, changed(&all, &who), &who));
        }
        let was_unfit = std::mem::replace(&mut listener.is_unfit, !all.lost.is_empty());
        if listener.is_unfit && !was_unfit {
            self.events.push(Event::ListenerLost { address: at, reason: unfit(&all, &who) });
        }
    }

    /// The same for sockets that workers take by activation. Returns those that cannot be helped.
    fn revive_activated(&mut self) -> Vec<String> {
        let mut lost = Vec::new();
        let Some(sockets) = self.workers.setup().cluster.activation.clone() else { return lost };
        if self.listeners.refusing.is_done() {
            return lost;
        }
        let busy = |doing| {
            matches!(
                doing,
                SupervisorState::Reloading | SupervisorState::Paused | SupervisorState::Stopping
            )
        };
        let may_change =
            self.cluster.supervisor().is_some_and(|supervisor| !busy(supervisor.state()));
        let mut replaces = false;
        for socket in sockets.iter() {
            if let Some(mut revived) = socket.revive(self.now, may_change) {
                self.change();
                if let Ok(Revived { old, .. }) = &mut revived {
                    // What the next engine knows of them must be true.
                    self.is_urgent = true;
                    if let (Some(old), Some(copies)) = (old.take(), &mut self.copies) {
                        copies.note_closed(old.as_fd());
                    }
                }
                replaces |= matches!(&revived, Ok(Revived { what: Revival::Anew(_), .. }));
                // What the kernel was told is about numbers that have changed.
                self.cluster.forget_shares();
                self.events.extend(self.revival(socket, revived));
            }
            if let Some((restored, report, is_unfit)) = socket.restore_options(self.now) {
                self.change();
                let who = self.suspects_of(None);
                let reason = changed(&restored, &who);
                self.events.extend(repaired(socket.place(), report, reason, &who));
                if is_unfit {
                    self.events.push(Event::ListenerLost {
                        address: socket.place(),
                        reason: unfit(&restored, &who),
                    });
                }
            }
            if socket.is_lost() {
                lost.push(socket.address().to_owned());
            }
        }
        if replaces {
            self.reload(Reload::new(), None);
        }
        lost
    }

    fn revival(
        &self,
        socket: &ActivationSocket,
        revived: std::io::Result<Revived>,
    ) -> Option<Event> {
        let at = socket.place();
        Some(match revived {
            Ok(Revived { what: Revival::Again(slots), report, .. }) => {
                let who = self.suspects_of(Some(&slots));
                let reason = format!("its socket was shut down, {who}; it listens again");
                return repaired(at, report, reason, &who);
            }
            Ok(Revived { what: Revival::Mixed(slots), report, .. }) => {
                let who = self.suspects_of(Some(&slots));
                let how = "it listens again, and the kernel spreads connections evenly over all slots until troop is restarted";
                let reason = format!("its sockets were shut down, {who}; {how}");
                return repaired(at, report, reason, &who);
            }
            Ok(Revived { report: RepairReport::Nothing, .. }) => return None,
            Ok(Revived { what: Revival::Anew(why), .. }) => Event::ListenerRestored {
                address: at,
                reason: format!(
                    "{why}, so it was bound anew; its workers are replaced by others that have it"
                ),
            },
            Err(e) => Event::ListenerLost {
                address: at,
                reason: format!(
                    "its socket was shut down, or its path leads elsewhere, and that cannot be helped ({e})"
                ),
            },
        })
    }

    /// Describes which workers may have changed a socket: those of these slots, or any.
    fn suspects_of(&self, slots: Option<&[usize]>) -> String {
        let is_one = |id: &WorkerId| match (slots, self.cluster.primary.status(*id)) {
            (Some([_, ..]), Some(status)) => {
                slots.unwrap_or_default().contains(&(status.slot as usize))
            }
            _ => true,
        };
        suspects(true, &self.workers.ids().filter(is_one).collect::<Vec<_>>())
    }

    /// Binds a Unix listener anew if its path does not lead to it any more, for this worker if it
    /// has just asked for it. Many programs remove the file before they listen, even another's.
    pub(in crate::primary::driver) fn reach(&mut self, id: ListenerId, worker: Option<WorkerId>) {
        let Some(listener) = self.listeners.open.get_mut(&id) else { return };
        let Some(file) = &listener.file else { return };
        // A worker that has just asked waits for the answer; the periodic check holds up none.
        let begun = std::time::Instant::now();
        let is_reached = worker.map_or_else(|| file.was_reached(), |_| file.is_reached());
        if is_reached {
            listener.is_lost = false;
            worker
                .into_iter()
                .for_each(|worker| self.workers.took_for_path(worker, begun.elapsed()));
            return;
        }
        // Workers that accept by themselves have the old socket, and would never see a new one.
        if worker.is_none() && listener.spec.listen.is_none() {
            self.lost(id, "its path was removed, and workers that share one socket cannot be given another one; with any other policy it is bound anew");
            return;
        }
        let rights = file.rights().clone();
        let rights = match worker {
            Some(worker) if self.workers.names_dead_paths(worker) => {
                Err(rustix::io::Errno::TIMEDOUT.into())
            }
            Some(worker) => self.workers.rights_of(worker),
            None => Ok(rights),
        };
        let result = rights.and_then(|rights| self.bind_anew(id, &rights));
        worker.into_iter().for_each(|worker| self.workers.took_for_path(worker, begun.elapsed()));
        match result {
            Ok(()) if worker.is_none() => {
                self.restored(id, "its path was removed, so it was bound anew")
            }
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
                self.lost(id, "something else is at its path by now")
            }
            Err(e) => {
                if let Some(worker) = worker {
                    self.workers.note_path_error(worker, &e);
                }
                self.lost(id, &format!("its path was removed, and it cannot be bound anew: {e}"));
            }
        }
    }

    /// Gives a Unix listener a new socket at its path. What waits in the old one is not lost.
    fn bind_anew(&mut self, id: ListenerId, rights: &Rights) -> io::Result<()> {
        let Some(listener) = self.listeners.open.get(&id) else { return Ok(()) };
        let (fd, file) = listener::bind_path(&listener.spec.target, rights)?;
        if !self.leaves_the_reserve(&fd) {
            return Err(rustix::io::Errno::MFILE.into());
        }
        if let Some(backlog) = listener.spec.listen {
            socket::listen(&fd, backlog)?;
        }
        let Some(&old) = listener.sockets.first() else { return Ok(()) };
        let watched = self.listeners.sockets.get(old).is_some_and(|socket| socket.watched);
        let is_shared = listener.spec.listen.is_none();
        let new = self.listeners.sockets.insert(if is_shared {
            Socket::shared(fd, id, None)
        } else {
            Socket::new(fd, id)
        });
        if watched {
            self.watch_socket(new, true);
        }
        if let Some(listener) = self.listeners.open.get_mut(&id) {
            // The old file before the old socket is closed.
            listener.file = file;
            listener.is_lost = false;
            listener.sockets.insert(0, new);
        }
        match self.listeners.sockets.get_mut(old) {
            Some(socket) if watched && !socket.unreported => {
                socket.retired = true;
                self.listeners.is_ready(old);
            }
            _ => self.listeners.close_retired(old, &self.poller, &mut self.copies),
        }
        let oldest = self
            .listeners
            .open
            .get(&id)
            .and_then(|listener| listener.sockets.get(1 + MAX_RETIRED))
            .copied();
        if let Some(oldest) = oldest {
            self.listeners.close_retired(oldest, &self.poller, &mut self.copies);
        }
        Ok(())
    }

    fn restored(&mut self, id: ListenerId, reason: &str) {
        if let Some(at) = self.cluster.primary.bound_address(id) {
            self.events.push(Event::ListenerRestored { address: at, reason: reason.to_owned() });
        }
    }

    /// Says so, once until it is there again.
    fn lost(&mut self, id: ListenerId, reason: &str) {
        let Some(listener) = self.listeners.open.get_mut(&id) else { return };
        if !std::mem::replace(&mut listener.is_lost, true)
            && let Some(at) = self.cluster.primary.bound_address(id)
        {
            self.events.push(Event::ListenerLost { address: at, reason: reason.to_owned() });
        }
    }
}

/// What to say of a repair.
fn repaired(address: Address, report: RepairReport, reason: String, who: &str) -> Option<Event> {
    match report {
        RepairReport::Nothing => None,
        RepairReport::Done => Some(Event::ListenerRestored { address, reason }),
        RepairReport::Undone => Some(Event::ListenerLost {
            address,
            reason: format!(
                "time and again, because its socket is changed or shut down over and over, {who}; it is put right each second; with scheduling = \"round-robin\" workers have no socket to do that to"
            ),
        }),
    }
}

fn changed(restored: &Restored, who: &str) -> String {
    format!("{restored} of its socket was changed, {who}; it is as it was")
}

fn unfit(restored: &Restored, who: &str) -> String {
    format!("its socket turns clients away by {}, {who}: restart the app", restored.lost.join(", "))
}

/// Describes which processes may have shut a socket down, or changed it.
fn suspects(is_shared: bool, workers: &[WorkerId]) -> String {
    match (is_shared, workers) {
        (false, _) => "by a process outside the cluster that has a copy".into(),
        (true, []) => "by a worker that is gone, or another process that has a copy".into(),
        (true, workers) => {
            let shown: Vec<_> = workers.iter().take(8).map(ToString::to_string).collect();
            let more = if workers.len() > 8 { " or another one" } else { "" };
            format!("by worker {}{more}, which share it", shown.join(" or "))
        }
    }
}
