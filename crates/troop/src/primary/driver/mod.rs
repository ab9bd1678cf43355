//! The one who owns the primary's state: waits, reads, accepts, and carries out what the core
//! decides.
//!
//! A [`Driver`] is turned either by a plain thread that waits in the poller itself, or by a tokio
//! task that waits for the poller. A thread lets others help it, one at a time ([`help`]).

mod callback;
mod channels;
mod commands;
mod connections;
mod decisions;
mod demand;
pub(crate) mod direct_io;
mod forks;
mod inject;
mod inspect;
mod measure;
mod notify;
mod operations;
mod orphans;
mod pace;
mod poller;
mod relays;
mod scarce;
mod snapshot;
mod sockets;
mod turn;
mod upkeep;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use slab::Slab;
use troop_core::cluster::Cluster;
use troop_core::supervise::{Outcome, Supervisor};
use troop_core::worker_map::WorkerMap;
use troop_core::{ConnId, ListenerId, Time, WorkerId};
use troop_sys::identity::Identity;
use troop_sys::poll::{AsyncPoller, Interest, Poller, Ready};
use troop_sys::sandbox::Sandbox;
use troop_sys::{diag, process};

use super::cgroup::WorkerCgroup;
use super::channel::Channel;
use super::handle::WorkerHandle;
use super::listener::{Listener, Socket};
use super::policies::ReadyWhen;
use super::relay::Relay;
use super::spawn::Spawner;
use super::wake::{Command, DriverHandle};
use super::{ShutdownWaiters, Table};
use crate::channel::{Mail, READ_SIZE};
use crate::closer::Closing;
use crate::error::{Error, Result};
use crate::event::{Bus, Event};
use crate::inherited::InheritedSocket;
use crate::setup::Setup;
use callback::PendingQuestions;
use connections::Conn;
use direct_io::ReclaimedChannels;
pub(crate) use direct_io::Shared;
use forks::Forks;
pub(crate) use inject::{ConnectionEnds, Injected};
use inspect::Inspected;
pub(crate) use operations::Reply;
use orphans::AllOrphans;
use pace::Pace;
use poller::EventPoller;
use scarce::Scarcity;

/// How long workers may take to end by themselves after the program has dropped the cluster.
const DROPPED_EXIT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for passing on what workers wrote last, where it is read slowly or not at all.
const OUTPUT_FLUSH_TIMEOUT: Duration = Duration::from_secs(5);
/// Events published before the other tasks of a runtime have their turn, so that readers keep up.
const EVENT_BURST: usize = 64;

/// What a poller's token stands for: a kind in the upper half, a number in the lower.
#[derive(Debug, Clone, Copy)]
enum Token {
    EventFd,
    Signal(u32),
    Socket(usize),
    /// A connection whose first bytes are waited for.
    Inspected(ConnId),
    Channel(WorkerId),
    Process(WorkerId),
    /// The socket that a worker's messages are passed on to.
    Relay(WorkerId),
    /// Where workers say that they are ready.
    Notify,
}

impl Token {
    fn pack(self) -> u64 {
        let (kind, number) = match self {
            Token::EventFd => (0, 0),
            Token::Signal(n) => (1, n),
            Token::Socket(n) => (2, u32::try_from(n).unwrap_or(u32::MAX)),
            Token::Inspected(conn) => (5, conn.0),
            Token::Channel(id) => (3, id.0),
            Token::Process(id) => (4, id.0),
            Token::Relay(id) => (6, id.0),
            Token::Notify => (7, 0),
        };
        kind << 32 | u64::from(number)
    }

    fn unpack(token: u64) -> Token {
        let number = (token & 0xffff_ffff) as u32;
        match token >> 32 {
            0 => Token::EventFd,
            1 => Token::Signal(number),
            2 => Token::Socket(number as usize),
            5 => Token::Inspected(ConnId(number)),
            3 => Token::Channel(WorkerId(number)),
            6 => Token::Relay(WorkerId(number)),
            7 => Token::Notify,
            _ => Token::Process(WorkerId(number)),
        }
    }
}

struct Process {
    handle: WorkerHandle,
    pidfd: OwnedFd,
    channel: Option<Channel>,
    /// The worker's end of its channel, if the program does not speak it. It hears signals, then.
    kept_end: Option<OwnedFd>,
    leads_group: bool,
    /// It is somebody else's child.
    adopted: bool,
    cgroup: Option<WorkerCgroup>,
    /// Whom it runs as, if that is another user than this process's.
    user: Option<Identity>,
    /// What it was started with.
    sandbox: Sandbox,
    /// It has named a path that is not answered.
    names_dead_paths: bool,
    /// How long paths that it has named took, beyond what is usual.
    path_time: Duration,
    /// How many of its requests it was explained why they could not be met.
    refused: u32,
    since: Time,
}

/// What a signal asks of a supervised cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SignalMeans {
    Stop,
    /// At once.
    StopNow,
    OneMore,
    OneLess,
    Reload,
    /// End the workers, keep the listeners.
    Pause,
    ReapOrphans,
}

/// The event loop that owns the primary's state and carries out what the core decides.
pub(crate) struct Driver {
    cluster: Cluster,
    poller: EventPoller,
    ready: Vec<Ready>,
    /// Something was left in the poller that it will not report by itself.
    unfinished: bool,
    bus: Arc<Bus>,
    /// What has happened since events were last published.
    events: Vec<Event>,
    /// Those that were published before an observer has seen them.
    unobserved: Option<Vec<Event>>,
    table: Table,
    processes: WorkerMap<Process>,
    /// They may outlive their workers' processes.
    relays: BTreeMap<WorkerId, Relay>,
    listeners: BTreeMap<ListenerId, Listener>,
    sockets: Slab<Socket>,
    /// What waits in the sockets of the group that was looked at last.
    waiting: Vec<Option<u32>>,
    /// Sockets that may have connections for us.
    ready_sockets: Vec<usize>,
    /// Room for those of them that are accepted on in a turn; empty between turns.
    accepting: Vec<usize>,
    accept_again: Option<Time>,
    scarcity: Scarcity,
    /// Sockets that could not be watched because memory ran out.
    unwatched: Vec<usize>,
    conns: Slab<Conn>,
    /// Closes what workers may have that run as other users, as soon as there was one.
    closing: Option<Closing>,
    closing_at: Option<Time>,
    inspected: Inspected,
    questions: PendingQuestions,
    /// When it is looked next whether others are in our groups.
    census_at: Time,
    /// Workers with an unfinished batch of connections.
    batched: Vec<WorkerId>,
    /// Channels with something to write.
    unflushed: Vec<WorkerId>,
    retry: Vec<WorkerId>,
    /// The same for relays.
    unflushed_relays: Vec<WorkerId>,
    retry_relays: Vec<WorkerId>,
    retry_at: Option<Time>,
    pace: Pace,
    /// Channels that helpers had, until connections came.
    reclaimed_channels: ReclaimedChannels,
    /// Until when the thread waits if nothing happens; `None`: for ever.
    looks_at: Option<Time>,
    /// What workers are started with from now on.
    setup: Arc<Setup>,
    /// What workers were started with before the reload that is under way.
    before_reload: Option<Arc<Setup>>,
    pub(crate) spawner: Spawner,
    forks: Forks,
    orphans: AllOrphans,
    ready_when: ReadyWhen,
    /// Where workers say that they are ready.
    notify: Option<OwnedFd>,
    /// Connections of the cluster's own that a worker was given, and who wants to know whether it
    /// has taken them.
    injected: BTreeMap<ConnId, inject::PendingInjection>,
    /// Out-of-memory kills of the system, when last counted.
    killed_for_memory: u64,
    /// Sockets that workers may have.
    inherited: Vec<InheritedSocket>,
    /// When listeners are looked after next, where that is needed.
    upkeep_at: Option<Time>,
    /// Next check for waiting clients while no worker is ready.
    demand_at: Option<Time>,
    commands: Receiver<Command>,
    driver_handle: DriverHandle,
    posted: Vec<WorkerId>,
    mail: Mail,
    last_ticket: u64,
    shutdown_waiters: ShutdownWaiters,
    operations: operations::Operations,
    outcome: Option<Outcome>,
    signals: Vec<(UnixStream, SignalMeans)>,
    /// When the first signal to stop arrived.
    stop_signalled: Option<Time>,
    /// This is process 1.
    reaps_orphans: bool,
    over_at: Option<Time>,
    origin: Instant,
    now: Time,
    buffer: Vec<u8>,
    line: Vec<u8>,
    /// Room for a line in V8's format.
    frame: Vec<u8>,
    received: Vec<OwnedFd>,
}

impl Driver {
    /// `in_thread` says who will turn it.
    pub(crate) fn new(
        cluster: Cluster,
        setup: Setup,
        in_thread: bool,
        driver_handle: DriverHandle,
        commands: Receiver<Command>,
        bus: Arc<Bus>,
        table: Table,
    ) -> io::Result<Driver> {
        let poller = Poller::new()?;
        if let Some(event_fd) = &driver_handle.wake.event_fd {
            poller.add(event_fd, Token::EventFd.pack(), Interest::Read)?;
        }
        let mut driver = Driver {
            cluster,
            poller: if in_thread {
                EventPoller::InThread(poller)
            } else {
                EventPoller::InRuntime(AsyncPoller::new(poller)?)
            },
            ready: Vec::new(),
            unfinished: false,
            bus,
            events: Vec::new(),
            unobserved: None,
            table,
            processes: WorkerMap::default(),
            relays: BTreeMap::new(),
            listeners: BTreeMap::new(),
            sockets: Slab::new(),
            waiting: Vec::new(),
            ready_sockets: Vec::new(),
            accepting: Vec::new(),
            accept_again: None,
            scarcity: Scarcity::default(),
            unwatched: Vec::new(),
            conns: Slab::new(),
            closing: None,
            closing_at: None,
            inspected: Inspected::default(),
            questions: PendingQuestions::new(driver_handle.clone()),
            census_at: sockets::EPOCH,
            batched: Vec::new(),
            unflushed: Vec::new(),
            retry: Vec::new(),
            unflushed_relays: Vec::new(),
            retry_relays: Vec::new(),
            retry_at: None,
            pace: Pace::default(),
            reclaimed_channels: ReclaimedChannels::default(),
            looks_at: None,
            setup: Arc::new(setup),
            before_reload: None,
            spawner: Spawner::default(),
            forks: Forks::default(),
            orphans: AllOrphans::default(),
            ready_when: ReadyWhen::Auto,
            notify: None,
            injected: BTreeMap::new(),
            killed_for_memory: diag::killed_for_memory(),
            inherited: Vec::new(),
            upkeep_at: None,
            demand_at: None,
            commands,
            driver_handle,
            posted: Vec::new(),
            mail: Mail::default(),
            last_ticket: 0,
            shutdown_waiters: ShutdownWaiters::new(),
            operations: operations::Operations::default(),
            outcome: None,
            signals: Vec::new(),
            stop_signalled: None,
            reaps_orphans: false,
            over_at: None,
            origin: Instant::now(),
            now: Time(1),
            buffer: vec![0; READ_SIZE],
            line: Vec::new(),
            frame: Vec::new(),
            received: Vec::new(),
        };
        driver.divide_descriptors();
        Ok(driver)
    }

    /// How it is talked to by those who do not keep it alive.
    pub(crate) fn driver_handle(&self) -> DriverHandle {
        self.driver_handle.clone()
    }

    /// Lets a supervisor decide about workers.
    pub(crate) fn supervise(&mut self, supervisor: Supervisor) {
        self.count_activation_slots();
        self.cluster.supervise(self.now, supervisor);
        self.divide_descriptors();
        self.plan_upkeep();
    }

    /// Obeys a signal: a byte on `pipe` for each one.
    pub(crate) fn handle_signal(&mut self, pipe: UnixStream, means: SignalMeans) -> io::Result<()> {
        pipe.set_nonblocking(true)?;
        let number = u32::try_from(self.signals.len()).unwrap_or(u32::MAX);
        self.poller.add(&pipe, Token::Signal(number), Interest::Read)?;
        self.reaps_orphans |= means == SignalMeans::ReapOrphans;
        self.signals.push((pipe, means));
        Ok(())
    }
}
