//! Steered listeners: a socket for each shard, what waits in them, what the kernel is told, and
//! others that join their groups.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use troop_core::ListenerId;
use troop_core::primary::Budget;
use troop_core::steer::Instruction;
use troop_sys::{diag, group, socket};

use super::Listeners;
use crate::error::Error;
use crate::event::Event;
use crate::primary::driver::Driver;
use crate::primary::listener::Socket;

/// Interval between scans for foreign sockets in a group.
const SCAN_INTERVAL: Duration = Duration::from_secs(5);
/// Time in which the process that has a socket is looked for.
const SEARCH_TIMEOUT: Duration = Duration::from_millis(200);
/// Time of a turn after which no more of them are looked for.
const CENSUS_TIME: Duration = Duration::from_millis(5);
/// How many times as long nothing is looked for then.
const CENSUS_PAUSE: u32 = 100;

/// What was found of the sockets of a group.
enum Found {
    /// They are as they were.
    Same,
    /// This one has another number in the kernel: it and the other have changed places.
    Renumbered(usize, usize),
    /// Which number each has is not known any more.
    NumbersLost,
}

impl Listeners {
    /// The first socket of a listener: a group's founder, or the only one.
    fn founder(&self, id: ListenerId) -> Option<&Socket> {
        self.open.get(&id).and_then(|listener| self.sockets.get(*listener.sockets.first()?))
    }

    fn is_udp(&self, id: ListenerId) -> bool {
        self.founder(id)
            .is_some_and(|first| matches!(socket::kind(&first.fd), Ok(socket::Kind::Udp { .. })))
    }

    /// One more socket for a group; the reason if there can be none.
    fn open_more(&mut self, id: ListenerId, budget: Budget) -> Result<(), String> {
        let result = self.try_open_more(id, budget);
        if result.is_err()
            && let Some(listener) =
                self.open.get_mut(&id).filter(|listener| listener.shards().is_empty())
        {
            // The founder is the only one and does for all.
            listener.grouped = false;
        }
        result
    }

    fn try_open_more(&mut self, id: ListenerId, budget: Budget) -> Result<(), String> {
        let share = "so some workers share a socket, which is uneven";
        let Some(backlog) = self.open.get(&id).map(|l| l.backlog) else {
            return Err("it is closed".into());
        };
        if self.sockets.len() >= budget.tight() {
            return Err(format!(
                "its listeners have half of the {} open files that it may have, {share}",
                budget.limit
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
        // A foreign socket in the group may be before this one and shift its number.
        let port = socket::local_address(&socket.fd).map(|at| at.port());
        // Without an answer of the kernel there is nothing to report.
        let bound = diag::bound(port, self.is_udp(id)).unwrap_or_default();
        if let Some(who) = self.strangers(id, &bound, Some(socket.inode)).first() {
            return Err(format!("{}, {share}", self.describe(id, who)));
        }
        let number = self.sockets.insert(socket);
        if let Some(listener) = self.open.get_mut(&id) {
            listener.sockets.push(number);
        }
        Ok(())
    }

    /// Sockets on the address of a listener that are not the cluster's, among these.
    fn strangers(
        &self,
        id: ListenerId,
        bound: &[diag::Bound],
        newest: Option<u64>,
    ) -> Vec<diag::Bound> {
        let Some(at) = self.founder(id).and_then(|first| socket::local_address(&first.fd)) else {
            return Vec::new();
        };
        let here = bound.iter().filter(|b| b.port == at.port() && b.address == at.ip());
        let ours = |inode: u64| {
            newest == Some(inode) || self.sockets.iter().any(|(_, socket)| socket.inode == inode)
        };
        here.filter(|b| !ours(b.inode)).cloned().collect()
    }

    fn describe(&mut self, id: ListenerId, who: &diag::Bound) -> String {
        if let Some(listener) = self.open.get_mut(&id)
            && !listener.intruders.contains(&who.inode)
        {
            listener.intruders.push(who.inode);
        }
        let found = diag::process_with(who.inode, Instant::now() + SEARCH_TIMEOUT);
        let process = found.map_or("another process".into(), |pid| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            format!("process {pid} ({})", name.trim())
        });
        format!("{process} of user {} listens on the same port with SO_REUSEPORT", who.uid)
    }

    /// Sets what chooses among the sockets of a group.
    fn set_program(&mut self, id: ListenerId, program: &[Instruction]) {
        let program = program
            .iter()
            .map(|i| group::Instruction {
                code: i.code,
                jump_true: i.jump_true,
                jump_false: i.jump_false,
                operand: i.operand,
            })
            .collect();
        if let Some(listener) = self.open.get_mut(&id) {
            listener.program = program;
        }
    }

    /// Gives the kernel the program of a group. Also now and then without any change: a worker
    /// could have taken it away.
    fn steer(&self, id: ListenerId) -> io::Result<()> {
        match (self.founder(id), self.open.get(&id)) {
            (Some(founder), Some(listener)) if !listener.program.is_empty() => {
                group::steer(founder.fd.as_fd(), &listener.program)
            }
            _ => Ok(()),
        }
    }

    /// Finds out what waits in the sockets of a group, in `waiting`. Returns the sockets that do
    /// not listen any more.
    fn measure_queues(&mut self, id: ListenerId) -> Vec<usize> {
        self.waiting.clear();
        let Some(listener) = self.open.get(&id).filter(|listener| listener.grouped) else {
            return Vec::new();
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
        (0..waiting.len()).filter(is_shut).collect()
    }

    /// A worker has shut its socket down, which took it out of the group: the kernel gave its
    /// number to the last one. When it listens again, it is the last one. Returns the number of the
    /// socket in the driver's table.
    fn listen_again(&mut self, id: ListenerId, shard: usize) -> Option<usize> {
        let listener = self.open.get(&id)?;
        let (number, backlog) = (*listener.shards().get(shard)?, listener.backlog?);
        socket::listen_again(&self.sockets.get(number)?.fd, listener.local, backlog).ok()?;
        Some(number)
    }

    /// Of these sockets of a group, which were shut down, so many listen again.
    fn renumber(&mut self, id: ListenerId, shut: &[usize], revived: usize) -> Found {
        match (shut, revived) {
            ([], _) => Found::Same,
            ([shard], 1) => {
                let last = self.waiting.len() - 1;
                self.waiting.swap(*shard, last);
                if let Some(listener) = self.open.get_mut(&id) {
                    listener.sockets.swap(shard + 1, last + 1);
                }
                Found::Renumbered(*shard, last)
            }
            // Which of several was the first is not known, nor whether the last one has moved.
            _ => Found::NumbersLost,
        }
    }
}

/// Adds listeners to those that are taken from the end, so that none that waits already is put off.
fn put_behind(waiting: &mut Vec<ListenerId>, new: &[ListenerId]) {
    let new = new.iter().filter(|id| !waiting.contains(id)).copied().collect::<Vec<_>>();
    waiting.splice(..0, new);
}

impl Driver {
    /// One more socket for a group.
    pub(in crate::primary::driver) fn open_more(&mut self, id: ListenerId) {
        // Before the numbers are continued, they have to be known.
        self.see_queues(id);
        let result = self.listeners.open_more(id, self.cluster.primary.budget());
        self.cluster.primary.opened(self.now, id, result);
    }

    /// Says so, once, when others have joined groups. Describes one of them at a time, which takes
    /// a while. Where the system has very many sockets, which every user can make, each question takes
    /// a while, too, and the rest is asked later.
    fn census(&mut self) {
        let begun = Instant::now();
        while let Some(id) = self.listeners.uncounted.pop() {
            if self.tell_of_strangers(id) || begun.elapsed() >= CENSUS_TIME {
                self.listeners.count_at = self.now + begun.elapsed() * CENSUS_PAUSE;
                return;
            }
        }
    }

    /// Returns whether it has described one.
    fn tell_of_strangers(&mut self, id: ListenerId) -> bool {
        if !self.listeners.open.get(&id).is_some_and(|listener| listener.grouped) {
            return false;
        }
        let founder = self.listeners.founder(id);
        let port = founder.and_then(|first| socket::local_address(&first.fd)).map(|at| at.port());
        let Ok(bound) = diag::bound(port, self.listeners.is_udp(id)) else { return false };
        let strangers = self.listeners.strangers(id, &bound, None);
        let is_joined = !strangers.is_empty();
        let is_auto = self.cluster.primary.joined_by_others(self.now, id, is_joined);
        let Some(listener) = self.listeners.open.get_mut(&id) else { return false };
        listener.intruders.retain(|inode| strangers.iter().any(|who| who.inode == *inode));
        let Some(new) = strangers.iter().find(|who| !listener.intruders.contains(&who.inode))
        else {
            return false;
        };
        let consequence = if is_auto {
            "all connections are handed over in turn while it is there"
        } else {
            "it gets no connections, and no more sockets are opened while it is there"
        };
        let reason = format!("{}; {consequence}", self.listeners.describe(id, new));
        if let Some(at) = self.cluster.primary.listener_address(id) {
            self.events.push(Event::NotSteered { address: at, reason });
        }
        true
    }

    pub(in crate::primary::driver) fn steer(&mut self, id: ListenerId, program: &[Instruction]) {
        self.listeners.set_program(id, program);
        self.steer_again(id);
    }

    /// Another engine may have given the kernel other programs since the state was written down.
    pub(in crate::primary::driver) fn steer_all_again(&mut self) {
        let open = self.listeners.open.iter();
        let grouped = open.filter(|(_, listener)| listener.grouped).map(|(id, _)| *id);
        let grouped: Vec<_> = grouped.collect();
        grouped.into_iter().for_each(|id| self.steer_again(id));
    }

    fn steer_again(&mut self, id: ListenerId) {
        if let Err(source) = self.listeners.steer(id) {
            self.fail(
                "give the kernel the program that chooses among a listener's sockets",
                source,
            );
        }
    }

    /// Says that something could not be done.
    pub(in crate::primary::driver) fn fail(&mut self, doing: &'static str, source: io::Error) {
        self.events.push(Event::Error {
            worker: None,
            error: std::sync::Arc::new(Error::Io { doing, source }),
        });
    }

    pub(in crate::primary::driver) fn sample(&mut self, id: ListenerId) {
        self.see_queues(id);
        self.cluster.primary.sampled(self.now, id, &self.listeners.waiting);
        if self.listeners.census_at <= self.now {
            self.listeners.census_at = self.now + SCAN_INTERVAL;
            let open = self.listeners.open.iter();
            let grouped = open.filter(|(_, listener)| listener.grouped).map(|(id, _)| *id);
            let grouped: Vec<_> = grouped.collect();
            put_behind(&mut self.listeners.uncounted, &grouped);
            grouped.into_iter().for_each(|id| self.steer_again(id));
        }
        if !self.listeners.uncounted.is_empty() && self.listeners.count_at <= self.now {
            self.census();
        }
    }

    /// Finds out what waits in the sockets of a group. Puts right what workers have done to them.
    fn see_queues(&mut self, id: ListenerId) {
        let shut = self.listeners.measure_queues(id);
        let mut revived = 0;
        for shard in &shut {
            let Some(number) = self.listeners.listen_again(id, *shard) else { continue };
            revived += 1;
            if self.listeners.was_forgotten(number) {
                self.watch_socket(number, true);
            }
        }
        match self.listeners.renumber(id, &shut, revived) {
            Found::Same => {}
            Found::Renumbered(shard, last) => {
                self.is_urgent = true;
                self.cluster.primary.renumbered(self.now, id, shard as u16, last as u16);
            }
            Found::NumbersLost => self.cluster.primary.numbers_lost(self.now, id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As where so many sockets of others make each look take longer than the next one is away.
    #[test]
    fn each_group_is_looked_at_however_rarely_there_is_time_for_one() {
        let all = [1, 2, 3].map(ListenerId);
        let mut waiting = Vec::new();
        let looked_at = (0..6).filter_map(|_| {
            put_behind(&mut waiting, &all);
            waiting.pop()
        });
        assert_eq!(looked_at.collect::<Vec<_>>(), [3, 2, 1, 3, 2, 1].map(ListenerId));
    }
}
