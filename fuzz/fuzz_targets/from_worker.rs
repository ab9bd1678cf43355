//! Arbitrary bytes, cut at arbitrary places, from one of three workers, into the framing, the
//! parser and the primary.
//!
//! The primary must not panic, must deliver each connection to one worker at a time, and must
//! release it once.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use troop_core::policy::Connection;
use troop_core::primary::{Action, Config, Primary};
use troop_core::wire::frame::FrameReader;
use troop_core::wire::incoming::{self, Incoming};
use troop_core::wire::outgoing::SockName;
use troop_core::{ConnId, ExitHow, ListenerId, Time, WorkerId};

const WORKERS: u32 = 3;

struct World {
    primary: Primary,
    now: Time,
    listeners: BTreeSet<ListenerId>,
    open: BTreeSet<ConnId>,
    held: BTreeMap<ConnId, WorkerId>,
    next: u32,
    sockets: u32,
}

impl World {
    fn act(&mut self) {
        while let Some(action) = self.primary.next_action() {
            match action {
                Action::Bind { listener, .. } => {
                    assert!(self.listeners.insert(listener));
                    let name = SockName { address: "127.0.0.1".into(), family: "IPv4", port: 80 };
                    self.primary.bound(self.now, listener, Ok(Some(name)));
                }
                Action::Unbind { listener } => assert!(self.listeners.remove(&listener)),
                Action::Deliver { worker, conn, .. } => {
                    assert!(self.open.contains(&conn));
                    assert!(!self.primary.is_cut_off(worker));
                    self.held.insert(conn, worker);
                }
                Action::Release { conn, .. } => {
                    assert!(self.open.remove(&conn));
                    self.held.remove(&conn);
                }
                Action::Send { line, .. } | Action::SendListener { line, .. } | Action::Probe { line, .. } => {
                    assert_eq!(line.last(), Some(&b'\n'));
                    assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1);
                }
                Action::Watch { listener, .. } | Action::Reach { listener, .. } => assert!(self.listeners.contains(&listener)),
                Action::Open { listener } => {
                    self.sockets += 1;
                    // Now and then there is an obstacle.
                    let result = if self.sockets.is_multiple_of(3) { Err("no".into()) } else { Ok(()) };
                    self.primary.opened(self.now, listener, result);
                }
                Action::Sample { listener } => {
                    // Queues that move and queues that do not.
                    let queues: Vec<Option<u32>> = (0..3).map(|n| (n != 2).then_some(n * self.next)).collect();
                    self.primary.sampled(self.now, listener, &queues);
                }
                Action::Count { worker } => self.primary.counted(self.now, worker, self.next % 7),
                Action::Take { .. } | Action::Steer { .. } | Action::Kill { .. } | Action::Raises { .. } | Action::HandleSettled { .. } | Action::Messages { .. } | Action::Notify(_) => {}
            }
        }
        let mut in_flight = BTreeSet::new();
        for worker in 1..=WORKERS {
            for (_, conn) in self.primary.in_flight(WorkerId(worker)) {
                assert!(in_flight.insert(conn), "with two workers");
                assert!(self.open.contains(&conn), "held, but released");
                assert_eq!(self.held.get(&conn), Some(&WorkerId(worker)));
            }
        }
    }

    fn say(&mut self, worker: WorkerId, line: &str) {
        if let Ok(message) = incoming::parse(line.as_bytes()) {
            self.primary.message(self.now, worker, message);
        }
        self.act();
    }
}

fuzz_target!(|data: &[u8]| {
    let scheduling = |text: &str| text.parse().unwrap();
    let listeners = [("81", "steered"), ("82", "sticky"), ("83", "least-connections"), ("84", "auto")];
    let listeners = listeners.map(|(port, name)| (port.parse().unwrap(), scheduling(name))).to_vec();
    let primary = Primary::new(Config { pending_limit: 4, troop_window: 4, node_window: 2, listeners, ..Config::default() });
    let mut world = World {
        primary,
        now: Time(1),
        listeners: BTreeSet::new(),
        open: BTreeSet::new(),
        held: BTreeMap::new(),
        next: 0,
        sockets: 0,
    };
    for n in 1..=WORKERS {
        let worker = world.primary.fork();
        world.primary.spawned(worker, 1000 + n, None, 100);
        // Two troop workers and one of Node's.
        let version = if n < 3 { r#","troop":1"# } else { "" };
        world.say(worker, &format!(r#"{{"cmd":"NODE_CLUSTER","act":"online","seq":0{version}}}"#));
        for port in [80, 81, 82, 83, 84] {
            let line =
                format!(r#"{{"cmd":"NODE_CLUSTER","act":"queryServer","seq":1,"address":null,"port":{port},"addressType":4}}"#);
            world.say(worker, &line);
        }
    }
    let mut readers: Vec<FrameReader<u32>> = (0..WORKERS).map(|_| FrameReader::new(4096)).collect();
    let mut rest = data;
    // Each piece: who writes, how much, how many descriptors beside it, how much time passes.
    while let [control, length, tail @ ..] = rest {
        let (chunk, tail) = tail.split_at((usize::from(*length) + 1).min(tail.len()));
        rest = tail;
        let n = usize::from(control & 3) % WORKERS as usize;
        let worker = WorkerId(u32::try_from(n).unwrap() + 1);
        if control & 4 != 0 {
            let listener = world.listeners.iter().nth(usize::from(control & 8 != 0) + usize::from(*length & 2)).copied();
            if let Some(id) = listener.filter(|id| world.primary.wants_connection(*id)) {
                let conn = ConnId(world.next);
                world.next += 1;
                world.open.insert(conn);
                world.primary.accepted(world.now, id, conn, Connection::new(None, Some(u32::from(*length) << 24)));
                world.primary.arrived(world.now, id, u32::from(*length) * 100);
                world.act();
            }
        }
        if control & 16 != 0 {
            world.now = world.now + Duration::from_millis(u64::from(*length) * 50);
            world.primary.tick(world.now);
            world.act();
        }
        if world.primary.is_cut_off(worker) {
            continue;
        }
        let handles = (control >> 5) & 3;
        let mut reading = readers[n].feed(chunk, (0..u32::from(handles)).collect::<Vec<_>>());
        loop {
            match reading.next_line() {
                Ok(None) => break,
                Err(e) => {
                    world.primary.violated(worker, e.into());
                    break;
                }
                Ok(Some(mut line)) => match incoming::parse(line.bytes) {
                    Err(violation) => world.primary.violated(worker, violation),
                    Ok(Incoming::Handle(wrapped)) => {
                        let _ = line.take_handle();
                        match incoming::parse(wrapped.body) {
                            Ok(inner) => world.primary.message(world.now, worker, inner),
                            Err(violation) => world.primary.violated(worker, violation),
                        }
                    }
                    Ok(message) => world.primary.message(world.now, worker, message),
                },
            }
            world.act();
            if world.primary.is_cut_off(worker) {
                break;
            }
        }
        world.act();
    }
    for n in 1..=WORKERS {
        world.primary.exited(world.now, WorkerId(n), ExitHow::Signal(9));
        world.act();
    }
    world.primary.close_unused_listeners();
    world.act();
    assert!(world.open.is_empty(), "never released: {:?}", world.open);
    assert!(world.listeners.is_empty());
});
