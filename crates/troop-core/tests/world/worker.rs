//! Workers: they read their channels, accept, count, and return what they are asked for.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use troop_core::event::ExitHow;
use troop_core::wire::incoming::{self, Act, Incoming, TroopMessage};
use troop_core::wire::outgoing;
use troop_core::{ListenerId, Time, WorkerId};

use super::{Client, End, Place, Reached, World};

/// Time within which a Node worker moves what it was asked for.
const SHARE_TIMEOUT: Duration = Duration::from_secs(1);
/// Most connections that a worker offers at a time.
const MAX_OFFERED: usize = 32;
/// Time from being told to leave to the end.
const GRACE: Duration = Duration::from_secs(3);

/// What comes through the channel, in order.
#[derive(Debug)]
pub enum Item {
    Connection {
        seq: u64,
        client: Client,
    },
    /// A descriptor that is only acknowledged.
    Handle,
    Line(Vec<u8>),
}

#[derive(Debug, Default)]
pub struct Worker {
    pub is_troop: bool,
    /// Whether it has troop's script for Node workers.
    pub has_script: bool,
    pub listens: BTreeSet<ListenerId>,
    pub inbox: VecDeque<Item>,
    /// What a troop worker's program has not accepted yet.
    pub queue: VecDeque<(u64, Client)>,
    /// The connections that it is to return, and until when.
    pub wanted: BTreeMap<Client, Time>,
    /// It takes no more connections than this at each listener.
    pub limit: Option<usize>,
    /// Percent of the steps in which its channel is read, and in which its program accepts.
    pub pace: (usize, usize),
    pub frozen_until: Time,
    pub is_blocked: bool,
    pub is_killed: bool,
    /// Whether it leaves counts unanswered.
    pub is_mute: bool,
    pub told: bool,
    /// Whether its connections may move while it leaves.
    pub moves_all: bool,
    pub has_moved: bool,
    pub ends_at: Option<Time>,
}

impl Worker {
    pub fn is_there(&self) -> bool {
        !self.told && !self.is_killed
    }

    /// Whether it accepts by itself.
    pub fn serves(&self, now: Time) -> bool {
        self.is_there() && self.frozen_until <= now
    }
}

impl World {
    /// A worker joins these listeners.
    pub fn fork(&mut self, mut state: Worker, ports: &[usize]) -> WorkerId {
        let worker = self.primary.fork();
        self.primary.spawned(worker, worker.0 + 1000, None, 100);
        state.pace = if state.pace == (0, 0) { (100, 100) } else { state.pace };
        let (is_troop, has_script) = (state.is_troop, state.has_script);
        self.workers.insert(worker, state);
        let version = if is_troop { r#","troop":1"# } else { "" };
        let online = format!(r#"{{"cmd":"NODE_CLUSTER","act":"online","seq":0{version}}}"#);
        self.say(worker, online.as_bytes());
        if has_script {
            self.say(worker, br#"{"cmd":"NODE_TROOP","act":"moves"}"#);
        }
        for port in ports {
            for (seq, act) in ["queryServer", "listening"].iter().enumerate() {
                if let Some(id) = self.listeners.get(port) {
                    self.workers.get_mut(&worker).unwrap().listens.insert(*id);
                }
                let at = format!(r#""index":0,"address":null,"port":{},"addressType":4"#, port + 1);
                let line = format!(r#"{{"cmd":"NODE_CLUSTER","act":"{act}","seq":{seq},{at}}}"#);
                self.say(worker, line.as_bytes());
            }
        }
        worker
    }

    pub fn disconnect(&mut self, worker: WorkerId) {
        self.note_lost(worker);
        if self.primary.disconnect(worker, true, Some(Duration::from_secs(2))) {
            let state = self.workers.get_mut(&worker).unwrap();
            state.told = true;
            state.ends_at = Some(self.now + GRACE);
        }
        self.act();
    }

    /// Its process has ended.
    pub fn exit(&mut self, worker: WorkerId, why: End) {
        self.note_lost(worker);
        self.primary.exited(self.now, worker, ExitHow::Code(0));
        for client in self.served(worker, None) {
            self.end(client, why);
        }
        let sent = |place| matches!(place, Place::Sent(to, ..) if to == worker);
        let back: Vec<Client> =
            self.clients.iter().filter(|(_, kept)| sent(kept.place)).map(|(id, _)| *id).collect();
        for client in back {
            self.comes_back(client, Reached::Rejected);
        }
        self.workers.remove(&worker);
        self.act();
    }

    /// It does what it has come to.
    pub fn run(&mut self, worker: WorkerId) {
        let state = &self.workers[&worker];
        if state.is_killed {
            return self.exit(worker, End::Death);
        }
        if state.ends_at.is_some_and(|at| at <= self.now) {
            return self.exit(worker, End::Left);
        }
        if state.frozen_until > self.now {
            return;
        }
        let (reads, accepts) = state.pace;
        if self.draw.percent(reads) {
            while let Some(item) = self.workers.get_mut(&worker).and_then(|w| w.inbox.pop_front()) {
                self.read(worker, item);
            }
        }
        while self.draw.percent(accepts)
            && let Some((seq, client)) =
                self.workers.get_mut(&worker).and_then(|state| state.queue.pop_front())
        {
            self.accept(worker, seq, client);
        }
        self.offer(worker);
    }

    /// A program accepts a connection, or rejects it.
    fn accept(&mut self, worker: WorkerId, seq: u64, client: Client) {
        let port = self.clients[&client].port;
        let state = &self.workers[&worker];
        let limit = state.limit.unwrap_or(usize::MAX);
        let takes = limit == usize::MAX || self.served(worker, Some(port)).len() < limit;
        if !takes {
            self.comes_back(client, Reached::Rejected);
        }
        let mut line = Vec::new();
        if self.workers[&worker].is_troop {
            let (taken, returned) =
                if takes { (&[seq][..], &[][..]) } else { (&[][..], &[seq][..]) };
            outgoing::taken(&mut line, taken, returned, None);
        } else {
            outgoing::accepted(&mut line, seq, takes, 1);
        }
        self.say(worker, &line);
    }

    fn read(&mut self, worker: WorkerId, item: Item) {
        let line = match item {
            Item::Connection { seq, client } => {
                let state = self.workers.get_mut(&worker).unwrap();
                if state.is_troop {
                    state.queue.push_back((seq, client));
                } else {
                    self.accept(worker, seq, client);
                }
                return;
            }
            Item::Handle => return self.say(worker, br#"{"cmd":"NODE_HANDLE_ACK"}"#),
            Item::Line(line) => line,
        };
        match incoming::parse(&line[..line.len() - 1]).unwrap() {
            Incoming::Troop(TroopMessage::Count { key }) if !self.workers[&worker].is_mute => {
                let (_, port) = self.by_key(&key);
                let mut counted = Vec::new();
                outgoing::counted(&mut counted, &key, self.served(worker, Some(port)).len() as u32);
                self.say(worker, &counted);
            }
            Incoming::Troop(TroopMessage::Rebalance { key, count }) => {
                let (_, port) = self.by_key(&key);
                self.is_asked(worker, port, count as usize);
            }
            Incoming::Troop(TroopMessage::Recall(seqs)) => {
                let queue = &mut self.workers.get_mut(&worker).unwrap().queue;
                let due: Vec<_> = queue.iter().copied().filter(|c| seqs.contains(&c.0)).collect();
                queue.retain(|c| !seqs.contains(&c.0));
                for (seq, client) in due {
                    self.comes_back(client, Reached::Recalled);
                    let mut returned = Vec::new();
                    outgoing::taken(&mut returned, &[], &[seq], None);
                    self.say(worker, &returned);
                }
            }
            Incoming::Cluster(message) if message.act == Some(Act::Disconnect) => {
                let line = String::from_utf8_lossy(&line);
                let state = self.workers.get_mut(&worker).unwrap();
                state.moves_all |= line.contains(r#""moves":true"#);
            }
            _ => {
                let line = String::from_utf8_lossy(&line);
                if line.contains(r#""act":"leave""#) {
                    let state = self.workers.get_mut(&worker).unwrap();
                    assert!(state.has_script && state.told, "{line}: {state:?}");
                    state.moves_all = !line.contains(r#""keys":[]"#);
                }
            }
        }
    }

    /// It is to return so many connections, idle ones first.
    fn is_asked(&mut self, worker: WorkerId, port: usize, count: usize) {
        let mut all = self.served(worker, Some(port));
        all.sort_by_key(|client| self.clients[client].busy_until > self.now);
        let state = self.workers.get_mut(&worker).unwrap();
        let until = if state.is_troop { Time(u64::MAX) } else { self.now + SHARE_TIMEOUT };
        if !state.told {
            state.wanted.extend(all.into_iter().take(count).map(|client| (client, until)));
        }
    }

    /// Returns what is to move and is idle, in the way of a shell: first it reads all that has come,
    /// and then it hands the connections over, the last one first.
    fn offer(&mut self, worker: WorkerId) {
        let expired = |(client, until): (&Client, &Time)| (*until <= self.now).then_some(*client);
        let expired: Vec<Client> =
            self.workers[&worker].wanted.iter().filter_map(expired).collect();
        for client in expired {
            self.workers.get_mut(&worker).unwrap().wanted.remove(&client);
            self.reach(Reached::Expired, self.clients[&client].port);
        }
        let state = &self.workers[&worker];
        let stays = !state.told;
        let mut all = if state.moves_all {
            self.served(worker, None)
        } else {
            state.wanted.keys().copied().collect()
        };
        all.retain(|client| self.clients[client].busy_until <= self.now);
        all.truncate(MAX_OFFERED);
        let mut moved = Vec::new();
        for client in all {
            let port = self.clients[&client].port;
            let Some(id) = self.listeners.get(&port).copied() else { continue };
            let key = self.primary.listener_key(id).unwrap().to_owned();
            let state = self.workers.get_mut(&worker).unwrap();
            state.wanted.remove(&client);
            match self.primary.may_move(worker, &key).unwrap() {
                None if stays => self.reach(Reached::Refused, port),
                None => {}
                Some(to) => {
                    assert_eq!(to, id);
                    if !self.is_calm && self.draw.percent(3) {
                        self.reach(Reached::RefusedByShell, port);
                        continue;
                    }
                    assert!(!stays || self.may_even_out(port));
                    moved.push((client, id, port));
                }
            }
        }
        while let Some((client, id, port)) = moved.pop() {
            let conn = self.next_conn(client);
            let kept = self.clients.get_mut(&client).unwrap();
            assert_eq!(kept.place, Place::Served(worker), "client {client}");
            kept.place = Place::Waits(conn);
            kept.moves_from = Some((worker, stays));
            (kept.was_sent, kept.since) = (false, self.changes);
            kept.moves += u32::from(stays);
            assert_eq!(self.primary.moved(worker), stays);
            if stays {
                self.reach(Reached::Begun, port);
                self.returned(port);
                self.primary.rebalanced(self.now, id, conn, World::about(client));
            } else {
                self.reach(Reached::Drained, port);
                self.primary.accepted(self.now, id, conn, World::about(client));
            }
        }
        self.act();
        let state = &self.workers[&worker];
        if state.moves_all && state.has_script && !state.has_moved {
            self.workers.get_mut(&worker).unwrap().has_moved = true;
            self.say(worker, br#"{"cmd":"NODE_TROOP","act":"moved"}"#);
        }
    }
}
