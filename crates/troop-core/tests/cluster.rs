//! A whole cluster, with everything that can happen to it in any order: it tells the shell only what
//! can be done, ends when it is told to, and goes on from a snapshot as if nothing had happened.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use troop_core::cluster::accepted::{Hindrances, Inspection, SocketConnections};
use troop_core::cluster::recycle::RecyclePolicy;
use troop_core::cluster::{Action, Cluster, Options};
use troop_core::event::{Address, AddressType, ExitHow};
use troop_core::primary::{self, Primary, Successors};
use troop_core::snapshot::{self, SnapshotError};
use troop_core::supervise::{
    self, OwnAddress, OwnInspection, Request, Seen, Slot, Supervisor, Ticket, WorkerSeen,
};
use troop_core::wire::incoming;
use troop_core::wire::outgoing::SockName;
use troop_core::{Time, Violation, WorkerId};

const ONLINE: &str = r#"{"cmd":"NODE_CLUSTER","act":"online","seq":0}"#;
const MIB: u64 = 1 << 20;
const USR2: i32 = 12;

/// Something that happens. Numbers choose among what is there.
#[derive(Debug, Clone)]
enum Input {
    Pass {
        ms: u64,
    },
    Online {
        worker: usize,
    },
    Listen {
        worker: usize,
        port: u16,
    },
    CloseListener {
        worker: usize,
        port: u16,
    },
    CloseChannel {
        worker: usize,
    },
    Exit {
        worker: usize,
        how: ExitHow,
    },
    Hang {
        worker: usize,
    },
    Health {
        worker: usize,
        passed: bool,
    },
    Reload {
        allow_moved: bool,
        changes: bool,
    },
    Recycle {
        worker: usize,
    },
    Disconnect {
        worker: usize,
    },
    Scale {
        workers: usize,
    },
    Pause,
    Ready,
    Stop,
    ForksFail {
        fail: bool,
    },
    Memory {
        mib: u64,
    },
    QueuesHold {
        waits: bool,
    },
    Unreachable {
        lost: bool,
    },
    /// Workers of such numbers listen by themselves on ports from this one on.
    ListenThemselves {
        every: u32,
        port: i64,
    },
    /// Workers say that a port is in use.
    SayInUse {
        says: bool,
    },
    /// The shell sees where they listen.
    Show {
        shows: bool,
    },
}

fn input() -> impl Strategy<Value = Input> {
    let worker = 0..8usize;
    let how = prop_oneof![Just(ExitHow::Code(0)), Just(ExitHow::Code(1)), Just(ExitHow::Signal(9))];
    prop_oneof![
        20 => prop_oneof![6 => 0..50u64, 6 => 0..2000u64, 1 => 0..70_000u64].prop_map(|ms| Input::Pass { ms }),
        16 => worker.clone().prop_map(|worker| Input::Online { worker }),
        16 => (worker.clone(), 1..3u16).prop_map(|(worker, port)| Input::Listen { worker, port }),
        3 => (worker.clone(), 1..3u16).prop_map(|(worker, port)| Input::CloseListener { worker, port }),
        3 => worker.clone().prop_map(|worker| Input::CloseChannel { worker }),
        12 => (worker.clone(), how).prop_map(|(worker, how)| Input::Exit { worker, how }),
        2 => worker.clone().prop_map(|worker| Input::Hang { worker }),
        6 => (worker.clone(), any::<bool>()).prop_map(|(worker, passed)| Input::Health { worker, passed }),
        4 => (any::<bool>(), any::<bool>()).prop_map(|(allow_moved, changes)| Input::Reload { allow_moved, changes }),
        3 => worker.clone().prop_map(|worker| Input::Recycle { worker }),
        1 => worker.prop_map(|worker| Input::Disconnect { worker }),
        2 => (0..5usize).prop_map(|workers| Input::Scale { workers }),
        1 => Just(Input::Pause),
        1 => Just(Input::Ready),
        1 => Just(Input::Stop),
        2 => any::<bool>().prop_map(|fail| Input::ForksFail { fail }),
        2 => (0..200u64).prop_map(|mib| Input::Memory { mib }),
        2 => any::<bool>().prop_map(|waits| Input::QueuesHold { waits }),
        2 => any::<bool>().prop_map(|lost| Input::Unreachable { lost }),
        3 => (1..4u32, 80..83i64).prop_map(|(every, port)| Input::ListenThemselves { every, port }),
        2 => any::<bool>().prop_map(|says| Input::SayInUse { says }),
        1 => any::<bool>().prop_map(|shows| Input::Show { shows }),
    ]
}

#[derive(Debug, Default)]
struct Process {
    has_ipc: bool,
    connected: bool,
}

/// The shell around a cluster.
struct Shell {
    cluster: Cluster,
    now: Time,
    processes: BTreeMap<WorkerId, Process>,
    /// What workers are started with, and what they were before the reload under way.
    settings: u32,
    before_reload: Option<u32>,
    forks_fail: bool,
    memory: u64,
    queues_hold: bool,
    unreachable: bool,
    own: (u32, i64),
    says_in_use: bool,
    shows: bool,
    /// Listens by itself where others cannot therefore.
    in_the_way: Option<WorkerId>,
    finished: bool,
    last_ticket: u64,
    /// Those that have not been answered.
    tickets: BTreeSet<Ticket>,
    log: Vec<String>,
    reread_every: Option<u32>,
    steps: u32,
}

impl Shell {
    fn new(reread_every: Option<u32>) -> Shell {
        let mut recycle = RecyclePolicy::default();
        (recycle.memory, recycle.age) = (Some(100 * MIB), Some(Duration::from_secs(300)));
        let options = Options {
            weights: vec![100, 50],
            drain_spread: Duration::from_secs(2),
            recycle,
            health_failures: 2,
            shares_by_connections: true,
        };
        let mut cluster = Cluster::new(Primary::new(primary::Config::default()), options);
        cluster.set_report_signal(Some(USR2));
        cluster.set_activation_slots(4);
        cluster.set_activation_sockets(1);
        let mut config = supervise::Config::new(3);
        config.sees_own = true;
        cluster.supervise(Time(1), Supervisor::new(config));
        Shell {
            cluster,
            now: Time(1),
            processes: BTreeMap::new(),
            settings: 0,
            before_reload: None,
            forks_fail: false,
            memory: 0,
            queues_hold: false,
            unreachable: false,
            own: (1, 80),
            says_in_use: false,
            shows: true,
            in_the_way: None,
            finished: false,
            last_ticket: 0,
            tickets: BTreeSet::new(),
            log: Vec::new(),
            reread_every,
            steps: 0,
        }
    }

    fn say(&mut self, worker: WorkerId, line: &str) {
        let message = incoming::parse(line.as_bytes()).unwrap();
        self.cluster.primary.message(self.now, worker, message);
    }

    fn worker(&self, n: usize) -> Option<WorkerId> {
        self.processes.keys().copied().nth(n % self.processes.len().max(1))
    }

    fn supervisor(&mut self) -> &mut Supervisor {
        self.cluster.supervisor_mut().unwrap()
    }

    fn request(&mut self, request: Request) {
        self.last_ticket += 1;
        let (ticket, now) = (Ticket(self.last_ticket), self.now);
        self.tickets.insert(ticket);
        self.supervisor().request(now, ticket, request);
    }

    fn act(&mut self) -> Result<(), TestCaseError> {
        let first = self.steps;
        loop {
            self.steps += 1;
            prop_assert!(self.steps - first < 10_000, "it does not come to rest");
            if self.reread_every.is_some_and(|every| self.steps.is_multiple_of(every)) {
                let written = snapshot::write(&self.cluster).unwrap();
                let read = snapshot::read(&written).unwrap();
                // Nothing is left out, also where that would hardly ever show.
                prop_assert_eq!(read.next_deadline(), self.cluster.next_deadline());
                prop_assert_eq!(format!("{read:?}"), format!("{:?}", self.cluster));
                self.cluster = read;
            }
            let Some(action) = self.cluster.next_action(self.now) else { break };
            self.log.push(format!("{action:?}"));
            self.carry_out(action)?;
        }
        self.log.push(format!("{:?}", self.cluster.next_deadline()));
        Ok(())
    }

    fn carry_out(&mut self, action: Action) -> Result<(), TestCaseError> {
        match action {
            Action::Fork { slot, .. } => self.fork(slot)?,
            Action::Signal { worker, .. } => {
                prop_assert!(self.processes.contains_key(&worker), "worker {worker} is gone");
            }
            Action::Measure { workers } => {
                prop_assert!(workers.iter().all(|worker| self.processes.contains_key(worker)));
                let memory: Vec<_> =
                    workers.into_iter().map(|worker| (worker, Some(self.memory * MIB))).collect();
                self.cluster.measured(self.now, &memory);
            }
            Action::MeasureQueues { worker } => {
                prop_assert!(self.processes.contains_key(&worker), "worker {worker} is gone");
                self.cluster.queues_measured(self.now, worker, self.queues_hold);
            }
            Action::InspectConnections { needs_hindrances } => {
                let waiting = if self.queues_hold { 2 } else { 0 };
                let inspection = Inspection {
                    sockets: vec![SocketConnections { accepted: 0, waiting }],
                    hindrances: needs_hindrances.then(|| Hindrances {
                        listens: self.in_the_way.map(|worker| (worker, "127.0.0.1:80".into())),
                        has_children: false,
                    }),
                    ..Inspection::default()
                };
                self.cluster.connections_inspected(self.now, &inspection);
            }
            Action::InspectListeners { words_of } => {
                let inspection = self.inspect_own(&words_of);
                let now = self.now;
                self.supervisor().listeners_inspected(now, &inspection);
            }
            Action::SetShares { shares } => {
                prop_assert!(shares.len() == 4 && shares.iter().any(|share| *share > 0));
            }
            Action::CheckListeners => {
                let lost = if self.unreachable { vec!["[::]:1".to_owned()] } else { Vec::new() };
                self.supervisor().listeners_checked(lost);
            }
            Action::RestoreSettings => {
                prop_assert!(self.before_reload.is_some(), "there is nothing to restore");
                self.settings = self.before_reload.take().unwrap();
            }
            Action::KeepSettings => self.before_reload = None,
            Action::Answer(ticket, _) => {
                prop_assert!(self.tickets.remove(&ticket), "{:?} is answered twice", ticket);
            }
            Action::Finish(_) => {
                prop_assert!(!std::mem::replace(&mut self.finished, true), "it ended twice");
                prop_assert!(self.processes.is_empty(), "{:?} still run", self.processes);
            }
            Action::Primary(primary::Action::Bind { listener, .. }) => {
                let name = SockName { address: "::".into(), family: "IPv6", port: 1 };
                self.cluster.primary.bound(self.now, listener, Ok(Some(name)));
            }
            Action::Primary(primary::Action::Kill { .. }) => {
                prop_assert!(false, "a kill is a signal");
            }
            _ => {}
        }
        Ok(())
    }

    fn inspect_own(&self, words_of: &[WorkerId]) -> OwnInspection {
        let (every, port) = self.own;
        let see = |worker: &WorkerId| {
            let at = Address {
                address: Some("127.0.0.1".into()),
                port: Some(port + i64::from(worker.0 % 2)),
                address_type: AddressType::Tcp4,
                fd: None,
            };
            let own = OwnAddress { at, may_be_chosen: false };
            let listens = worker.0.is_multiple_of(every).then_some(own).into_iter().collect();
            let seen = if self.shows { Seen::Listens(listens) } else { Seen::Unfinished };
            let words = (self.says_in_use && words_of.contains(worker))
                .then(|| format!("127.0.0.1:{port}: Address already in use"));
            WorkerSeen { worker: *worker, seen, words }
        };
        OwnInspection { workers: self.processes.keys().map(see).collect(), took: Duration::ZERO }
    }

    fn fork(&mut self, slot: Slot) -> Result<(), TestCaseError> {
        prop_assert!(!self.finished, "a fork after the end");
        let worker = self.cluster.primary.fork();
        if self.forks_fail {
            let now = self.now;
            self.supervisor().fork_failed(now, slot, "no memory".into(), false);
            return Ok(());
        }
        self.cluster.primary.spawned(worker, worker.0 + 1000, Some(slot.0 as u32), 100);
        let has_ipc = slot.0.is_multiple_of(2);
        self.processes.insert(worker, Process { has_ipc, connected: true });
        if !has_ipc {
            self.cluster.has_no_ipc(worker, false);
            self.say(worker, ONLINE);
        }
        self.cluster.forked(self.now, slot, worker, has_ipc);
        Ok(())
    }

    fn happen(&mut self, input: &Input) -> Result<(), TestCaseError> {
        let now = self.now;
        match *input {
            Input::Pass { ms } => {
                let until = self.now + Duration::from_millis(ms);
                let mut turns_now = 0;
                while let Some(due) = self.cluster.next_deadline().filter(|due| *due <= until) {
                    turns_now = if due > self.now { 0 } else { turns_now + 1 };
                    prop_assert!(turns_now < 4, "{:?} stays at {:?}", due, self.now);
                    self.now = self.now.max(due);
                    self.cluster.tick(self.now);
                    self.act()?;
                }
                self.now = until;
            }
            Input::Reload { allow_moved, changes } => {
                if self.cluster.may_reload() && changes {
                    self.before_reload = Some(self.settings);
                    self.settings += 1;
                }
                self.last_ticket += 1;
                let ticket = Ticket(self.last_ticket);
                self.tickets.insert(ticket);
                self.cluster.reload(now, allow_moved, changes, Some(ticket));
            }
            Input::Scale { workers } => self.request(Request::Scale(workers)),
            Input::Pause => self.request(Request::Pause),
            Input::Ready => self.request(Request::Ready),
            Input::Stop => self.supervisor().stop(now),
            Input::ForksFail { fail } => self.forks_fail = fail,
            Input::Memory { mib } => self.memory = mib,
            Input::QueuesHold { waits } => self.queues_hold = waits,
            Input::Unreachable { lost } => self.unreachable = lost,
            Input::ListenThemselves { every, port } => self.own = (every, port),
            Input::SayInUse { says } => self.says_in_use = says,
            Input::Show { shows } => self.shows = shows,
            Input::Online { worker }
            | Input::Listen { worker, .. }
            | Input::CloseListener { worker, .. }
            | Input::CloseChannel { worker }
            | Input::Exit { worker, .. }
            | Input::Hang { worker }
            | Input::Health { worker, .. }
            | Input::Recycle { worker }
            | Input::Disconnect { worker } => {
                if let Some(worker) = self.worker(worker) {
                    self.of_worker(worker, input);
                }
            }
        }
        self.act()
    }

    fn of_worker(&mut self, worker: WorkerId, input: &Input) {
        let now = self.now;
        let process = &self.processes[&worker];
        let speaks =
            process.has_ipc && process.connected && !self.cluster.primary.is_cut_off(worker);
        match *input {
            Input::Online { .. } if speaks => self.say(worker, ONLINE),
            Input::Listen { port, .. } if speaks => {
                let at = format!(r#""address":null,"port":{port},"addressType":4,"index":0"#);
                let act = |act| format!(r#"{{"cmd":"NODE_CLUSTER","act":"{act}","seq":1,{at}}}"#);
                self.say(worker, &act("queryServer"));
                self.say(worker, &act("listening"));
            }
            Input::CloseListener { port, .. } if speaks => {
                let key = format!("null:{port}:4:undefined:0");
                self.say(
                    worker,
                    &format!(r#"{{"cmd":"NODE_CLUSTER","act":"close","key":"{key}","seq":1}}"#),
                );
            }
            Input::CloseChannel { .. } => {
                self.processes.get_mut(&worker).unwrap().connected = false;
                self.cluster.primary.channel_closed(now, worker, true);
            }
            Input::Exit { how, .. } => {
                self.cluster.exited(now, worker, how);
                self.processes.remove(&worker);
            }
            Input::Hang { .. } => self.cluster.primary.violated(worker, Violation::Hung(1)),
            Input::Health { passed, .. } => {
                let result = if passed { Ok(()) } else { Err("it is sick".to_owned()) };
                self.cluster.health_checked(now, worker, result);
            }
            Input::Recycle { .. } => {
                self.cluster.recycle(now, worker, "somebody wants it".into());
            }
            Input::Disconnect { .. } => {
                self.cluster.disconnect(now, worker, false, None);
            }
            _ => {}
        }
    }

    /// Told to stop, it ends when all workers have.
    fn end(&mut self) -> Result<(), TestCaseError> {
        self.happen(&Input::Stop)?;
        while !self.processes.is_empty() {
            self.happen(&Input::Exit { worker: 0, how: ExitHow::Code(0) })?;
        }
        prop_assert!(self.finished, "it does not end");
        prop_assert!(self.tickets.is_empty(), "{:?} were never answered", self.tickets);
        self.happen(&Input::Pass { ms: 10_000 })
    }
}

/// What a cluster does about these inputs.
fn actions(inputs: &[Input], reread_every: Option<u32>) -> Result<Vec<String>, TestCaseError> {
    let mut shell = Shell::new(reread_every);
    shell.act()?;
    for input in inputs {
        shell.happen(input)?;
    }
    shell.end()?;
    Ok(shell.log)
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..ProptestConfig::with_cases(100)
    })]

    #[test]
    fn any_sequence_of_inputs_yields_only_possible_actions_and_a_stop_ends_it(
        inputs in prop::collection::vec(input(), 0..120)
    ) {
        actions(&inputs, None)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..ProptestConfig::with_cases(40)
    })]

    #[test]
    fn a_cluster_restored_from_a_snapshot_at_any_step_behaves_like_the_original(
        inputs in prop::collection::vec(input(), 0..80),
        every in prop_oneof![Just(1u32), 2..20u32],
    ) {
        prop_assert_eq!(actions(&inputs, None)?, actions(&inputs, Some(every))?);
    }
}

#[test]
fn a_snapshot_of_another_version_is_refused_by_its_number() {
    let written = snapshot::write(&Shell::new(None).cluster).unwrap();
    let text = String::from_utf8(written).unwrap();
    let version = format!(r#"{{"version":{},"#, snapshot::VERSION);
    assert!(text.starts_with(&version), "{text:.40}");
    let other = r#"{"version":4711,"cluster":"of a form that is not known"}"#;
    let error = snapshot::read(other.as_bytes()).unwrap_err();
    assert!(matches!(error, SnapshotError::Version(4711)), "{error}");
    assert!(matches!(snapshot::read(b"{").unwrap_err(), SnapshotError::Format(_)));
}

#[test]
fn a_custom_policy_cannot_be_serialized() {
    use troop_core::policy::{RoundRobin, Scheduling};
    let config = primary::Config {
        scheduling: Scheduling::custom(RoundRobin::default),
        ..primary::Config::default()
    };
    let cluster = Cluster::new(Primary::new(config), Options::default());
    assert!(matches!(snapshot::write(&cluster), Err(SnapshotError::Format(_))));
}

#[test]
fn a_listener_without_workers_stays_open_while_one_is_being_started() {
    let mut cluster = Cluster::new(Primary::new(primary::Config::default()), Options::default());
    let closes = |cluster: &mut Cluster, now: Time| {
        let mut closed = false;
        while let Some(action) = cluster.next_action(now) {
            match action {
                Action::Primary(primary::Action::Bind { listener, .. }) => {
                    let name = SockName { address: "::".into(), family: "IPv6", port: 1 };
                    cluster.primary.bound(now, listener, Ok(Some(name)));
                }
                Action::Primary(primary::Action::Unbind { .. }) => closed = true,
                _ => {}
            }
        }
        closed
    };
    let worker = cluster.primary.fork();
    cluster.primary.spawned(worker, 1, None, 100);
    let query = r#"{"cmd":"NODE_CLUSTER","act":"queryServer","seq":1,"address":null,"port":1,"addressType":4,"index":0}"#;
    for line in [ONLINE, query] {
        cluster.primary.message(Time(1), worker, incoming::parse(line.as_bytes()).unwrap());
    }
    cluster.set_starting(true);
    cluster.exited(Time(2), worker, ExitHow::Code(1));
    assert!(!closes(&mut cluster, Time(2)));
    cluster.set_forks_to_come(Successors::Nobody);
    let later = Time(2) + Duration::from_secs(3600);
    cluster.tick(later);
    assert!(!closes(&mut cluster, later), "the next worker may ask for it");
    cluster.set_starting(false);
    assert!(closes(&mut cluster, later));
}

#[test]
fn a_new_worker_that_closes_its_listener_again_takes_over_from_none() {
    for closes_again in [false, true] {
        let mut shell = Shell::new(None);
        shell.happen(&Input::ListenThemselves { every: 1000, port: 9 }).unwrap();
        let serve = |shell: &mut Shell, worker| {
            shell.happen(&Input::Online { worker }).unwrap();
            shell.happen(&Input::Listen { worker, port: 80 }).unwrap();
        };
        serve(&mut shell, 0);
        // The address was only bound after that.
        shell.happen(&Input::Listen { worker: 0, port: 80 }).unwrap();
        serve(&mut shell, 2);
        shell.happen(&Input::Pass { ms: 60_000 }).unwrap();
        shell.log.clear();
        shell.happen(&Input::Reload { allow_moved: false, changes: false }).unwrap();
        serve(&mut shell, 3);
        if closes_again {
            shell.happen(&Input::CloseListener { worker: 3, port: 80 }).unwrap();
        }
        shell.happen(&Input::Pass { ms: 60_000 }).unwrap();
        let takes_over = shell.log.iter().any(|line| line.contains("Replaced { old"));
        assert_eq!(takes_over, !closes_again, "{:#?}", shell.log);
    }
}

#[test]
fn a_worker_that_is_in_the_way_is_told_at_another_end_where_it_could_not_be_told_before() {
    for (is_told, times) in [(true, 1), (false, 4)] {
        let mut shell = Shell::new(None);
        shell.in_the_way = Some(WorkerId(1));
        for _ in 0..5 {
            while shell.processes.len() < 3 {
                shell.happen(&Input::Pass { ms: 100 }).unwrap();
            }
            shell.happen(&Input::Exit { worker: 2, how: ExitHow::Code(1) }).unwrap();
            if !is_told {
                shell.cluster.was_not_told();
            }
        }
        let told = shell.log.iter().filter(|line| line.starts_with("NotShared"));
        assert_eq!(told.count(), times, "{:#?}", shell.log);
    }
}
