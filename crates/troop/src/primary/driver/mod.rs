//! The event loop that owns the primary's state: it waits, reads, accepts, and carries out what the
//! core decides.
//!
//! A [`Driver`] is turned either by a plain thread that waits in the poller itself, or by a tokio
//! task that waits for the poller ([`turn`]). It tells the core what happened and carries out its
//! actions ([`decisions`]). Its state is divided among parts, each the only one that sees its
//! fields:
//!
//! | part | owns |
//! | --- | --- |
//! | [`Workers`] | processes, starts, setup, leftovers |
//! | [`Channels`] | channels and relays, what is unwritten in them |
//! | [`Listeners`] | listeners, their sockets, which of them have connections |
//! | [`Connections`] | accepted connections, until a worker has taken them |
//! | [`Inspected`] | connections whose first bytes are waited for |
//! | [`PendingQuestions`] | connections whose worker the program is asked for |
//! | [`Inbox`] | commands of the program |
//! | [`Operations`] | answers that the program waits for |
//! | [`Ending`] | how the cluster ends, and the callers that wait for it |
//! | [`Events`] | what is not published yet |
//! | [`Signals`] | signals that a supervised cluster obeys |
//! | [`Scarcity`] | what has run out, and when it is tried again |
//! | [`CloseAside`] | descriptors whose close may take long |
//!
//! What needs several of them is a method of the driver, in the room that it is about.

mod channels;
mod closing;
mod commands;
mod connections;
mod decisions;
mod ending;
mod events;
mod kept;
mod listeners;
mod operations;
mod poller;
mod replace;
mod save;
mod scarce;
mod signals;
mod snapshot;
mod turn;
mod workers;

use std::io;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use troop_core::cluster::Cluster;
use troop_core::supervise::Supervisor;
use troop_core::{ConnId, Time, WorkerId};
use troop_sys::poll::{AsyncPoller, Interest, Poller, Ready};

use super::Table;
use super::spawn::Spawner;
use super::wake::{Command, DriverHandle};
use crate::event::Bus;
use crate::primary::saved::kept::Copies;
use crate::setup::Setup;
use channels::Channels;
use closing::CloseAside;
use commands::Inbox;
pub(crate) use connections::{ConnectionEnds, Injected, Moves};
use connections::{Connections, Inspected, PendingQuestions};
use ending::Ending;
use events::Events;
use kept::KeptAnswer;
pub(crate) use kept::{KeeperAnswer, KeptNote};
use listeners::Listeners;
use operations::Operations;
pub(crate) use operations::Reply;
use poller::EventPoller;
pub(crate) use replace::Execute;
use replace::Replacement;
pub use replace::Upgrade;
use scarce::Scarcity;
pub(crate) use signals::SignalMeans;
use signals::Signals;
use workers::Workers;
pub(super) use workers::how;

/// What a poller's token stands for: a kind in the upper half, a number in the lower.
#[derive(Debug, Clone, Copy)]
enum Token {
    EventFd,
    Signal,
    Socket(usize),
    /// A connection whose first bytes are waited for.
    Inspected(ConnId),
    Channel(WorkerId),
    Process(WorkerId),
    /// The socket that a worker's messages are passed on to.
    Relay(WorkerId),
    /// Where a worker says that it is ready.
    Notify(WorkerId),
    /// The connection to the keeper.
    Keeper,
}

impl Token {
    fn pack(self) -> u64 {
        let (kind, number) = match self {
            Token::EventFd => (0, 0),
            Token::Signal => (1, 0),
            Token::Socket(n) => (2, u32::try_from(n).unwrap_or(u32::MAX)),
            Token::Inspected(conn) => (5, conn.0),
            Token::Channel(id) => (3, id.0),
            Token::Process(id) => (4, id.0),
            Token::Relay(id) => (6, id.0),
            Token::Notify(id) => (7, id.0),
            Token::Keeper => (8, 0),
        };
        kind << 32 | u64::from(number)
    }

    fn unpack(token: u64) -> Token {
        let number = (token & 0xffff_ffff) as u32;
        match token >> 32 {
            0 => Token::EventFd,
            1 => Token::Signal,
            2 => Token::Socket(number as usize),
            5 => Token::Inspected(ConnId(number)),
            3 => Token::Channel(WorkerId(number)),
            6 => Token::Relay(WorkerId(number)),
            7 => Token::Notify(WorkerId(number)),
            8 => Token::Keeper,
            _ => Token::Process(WorkerId(number)),
        }
    }
}

/// The event loop that owns the primary's state and carries out what the core decides.
pub(crate) struct Driver {
    cluster: Cluster,
    poller: EventPoller,
    /// Room for what the poller reports.
    ready: Vec<Ready>,
    /// Something was left in the poller that it will not report by itself.
    unfinished: bool,
    events: Events,
    workers: Workers,
    channels: Channels,
    listeners: Listeners,
    connections: Connections,
    scarcity: Scarcity,
    closing: CloseAside,
    inspected: Inspected,
    questions: PendingQuestions,
    /// Until when the thread waits if nothing happens; `None`: for ever.
    wakes_at: Option<Time>,
    inbox: Inbox,
    operations: Operations,
    ending: Ending,
    signals: Signals,
    replacement: Option<Replacement>,
    /// Who has asked for another program of the keeper.
    keeper_answer: Option<KeeperAnswer>,
    /// What the keeper holds, if it does.
    copies: Option<Copies>,
    /// How many engines of this app were killed, and how the last one was.
    crashes: u32,
    last_crash: Option<String>,
    /// What is written down with the state, to be held by the keeper all the time.
    note: Option<KeptNote>,
    /// Something has changed but connections since the state was written down.
    is_changed: bool,
    /// When connections that wait become part of it.
    hold_at: Option<Time>,
    /// Workers get to know what has happened since: the address of a socket, or an id.
    is_urgent: bool,
    /// Answers that wait until what they are about is written down.
    kept_answers: Vec<KeptAnswer>,
    /// Workers with which it is not certain what a killed engine has said, to be replaced.
    doubted: Vec<WorkerId>,
    /// When it is written down again at the earliest.
    keep_at: Time,
    origin: Instant,
    now: Time,
}

impl Driver {
    /// `in_thread`: a plain thread will turn it, not a task of a runtime.
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
            events: Events::new(bus),
            workers: Workers::new(table, setup),
            channels: Channels::default(),
            listeners: Listeners::default(),
            connections: Connections::default(),
            scarcity: Scarcity::default(),
            closing: CloseAside::default(),
            inspected: Inspected::default(),
            questions: PendingQuestions::new(driver_handle.clone()),
            wakes_at: None,
            inbox: Inbox::new(commands, driver_handle),
            operations: Operations::default(),
            ending: Ending::default(),
            signals: Signals::default(),
            replacement: None,
            keeper_answer: None,
            copies: None,
            crashes: 0,
            last_crash: None,
            note: None,
            is_changed: true,
            hold_at: None,
            is_urgent: false,
            kept_answers: Vec::new(),
            doubted: Vec::new(),
            keep_at: Time(0),
            origin: Instant::now(),
            now: Time(1),
        };
        driver.divide_descriptors();
        Ok(driver)
    }

    /// Returns a handle for commands; it does not keep the driver alive.
    pub(crate) fn driver_handle(&self) -> DriverHandle {
        self.inbox.handle().clone()
    }

    /// How workers are started.
    pub(crate) fn spawner_mut(&mut self) -> &mut Spawner {
        self.workers.spawner_mut()
    }

    /// Lets a supervisor decide about workers.
    pub(crate) fn supervise(&mut self, supervisor: Supervisor) {
        self.count_activation_slots();
        self.cluster.supervise(self.now, supervisor);
        self.divide_descriptors();
        self.plan_upkeep();
    }
}
