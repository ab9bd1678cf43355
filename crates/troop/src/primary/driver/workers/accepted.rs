//! A thread that inspects the connections which workers have accepted on activated sockets, and
//! where workers listen by themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use troop_core::WorkerId;
use troop_core::cluster::accepted::{Hindrances, Inspection, SocketConnections, WorkerConnections};
use troop_sys::connections::{self, ListensAt, Opened};
use troop_sys::diag;

use super::{Workers, own};
use crate::activation::ActivationSocket;
use crate::primary::driver::Driver;
use crate::primary::wake::{Command, DriverHandle};
use crate::setup::Setup;

/// Maximum time of a inspection.
const MAX_TIME: Duration = Duration::from_millis(500);

/// A request to the thread.
enum Request {
    Inspect(InspectionRequest),
    /// Where these workers and their processes listen by themselves, and whose last words matter.
    Listeners(Vec<(WorkerId, u32)>, Vec<WorkerId>),
}

/// A request for an inspection.
struct InspectionRequest {
    setup: Arc<Setup>,
    /// The workers and their processes.
    workers: Vec<(WorkerId, u32)>,
    needs_hindrances: bool,
    /// How many connections workers had when another engine has looked last.
    before: Vec<(WorkerId, u32)>,
}

/// The thread. It ends when this is dropped.
pub(super) struct ConnectionObserver(Option<mpsc::Sender<Request>>);

impl ConnectionObserver {
    fn start(driver: DriverHandle) -> ConnectionObserver {
        let (sender, requests) = mpsc::channel();
        let work = move || Observer::default().run(&driver, &requests);
        let thread = std::thread::Builder::new().name("troop-accepted".into());
        let started = thread.stack_size(256 * 1024).spawn(work).is_ok();
        ConnectionObserver(started.then_some(sender))
    }
}

impl Workers {
    fn pids(&self) -> Vec<(WorkerId, u32)> {
        self.handles().map(|worker| (worker.id(), worker.pid())).collect()
    }
}

impl Driver {
    /// Has a thread inspect the connections of activated sockets; the result is a command.
    pub(in crate::primary::driver) fn inspect_connections(&mut self, needs_hindrances: bool) {
        let (setup, workers) = (self.workers.setup.clone(), self.workers.pids());
        let before = std::mem::take(&mut self.workers.open_before);
        let request = InspectionRequest { setup, workers, needs_hindrances, before };
        if !self.ask_observer(Request::Inspect(request)) {
            self.cluster.connections_inspected(self.now, &Inspection::default());
        }
    }

    /// Has the thread inspect where workers listen by themselves; the result is a command.
    pub(in crate::primary::driver) fn inspect_listeners(&mut self, words_of: Vec<WorkerId>) {
        let workers = self.workers.pids();
        if !self.ask_observer(Request::Listeners(workers.clone(), words_of)) {
            self.listeners_inspected(own::nothing_seen(&workers), &[]);
        }
    }

    /// Returns false if there can be no thread.
    fn ask_observer(&mut self, request: Request) -> bool {
        let handle = self.driver_handle();
        let observer =
            self.workers.connections.get_or_insert_with(|| ConnectionObserver::start(handle));
        let is_asked = observer.0.as_ref().is_some_and(|thread| thread.send(request).is_ok());
        if !is_asked {
            self.workers.connections = None;
        }
        is_asked
    }

    /// Handles the result.
    pub(in crate::primary::driver) fn connections_inspected(&mut self, inspection: &Inspection) {
        self.cluster.connections_inspected(self.now, inspection);
        for seen in &inspection.workers {
            if let Some(worker) = self.workers.handle(seen.worker).cloned() {
                self.refresh(&worker);
            }
        }
    }
}

/// What the thread knows.
#[derive(Default)]
struct Observer {
    /// The open connections of each worker at the last inspection.
    open: BTreeMap<WorkerId, BTreeSet<u64>>,
    /// Those of which only the number is known, from another engine.
    before: BTreeMap<WorkerId, u32>,
    /// The connections that this network namespace had accepted by then.
    passive_opens: Option<u64>,
}

impl Observer {
    fn run(&mut self, driver: &DriverHandle, requests: &Receiver<Request>) {
        while let Ok(request) = requests.recv() {
            // What it costs, not how long it waits for a processor.
            let begin = diag::thread_time();
            let result = match request {
                Request::Inspect(request) => {
                    let mut inspection = self.inspect(&request, Instant::now() + MAX_TIME);
                    inspection.took = diag::thread_time().saturating_sub(begin);
                    Command::ConnectionsInspected(Box::new(inspection))
                }
                Request::Listeners(workers, words_of) => {
                    let mut inspection = own::inspect(&workers);
                    inspection.took = diag::thread_time().saturating_sub(begin);
                    Command::ListenersInspected(Box::new((inspection, words_of)))
                }
            };
            if driver.send(result).is_err() {
                return;
            }
        }
    }

    fn inspect(&mut self, request: &InspectionRequest, until: Instant) -> Inspection {
        let sockets = request.setup.activation();
        self.before.extend(request.before.iter().copied());
        self.before.retain(|worker, _| request.workers.iter().any(|(other, _)| other == worker));
        let mut inspection = Inspection {
            sockets: sockets.iter().map(waiting).collect(),
            hindrances: request.needs_hindrances.then(Hindrances::default),
            ..Inspection::default()
        };
        let passive_opens = connections::passive_opens();
        let places: Vec<_> = sockets.iter().map(|socket| ListensAt::of(&socket.socket)).collect();
        let is_unix = |place: &Option<ListensAt>| matches!(place, Some(ListensAt::Unix(_)));
        // Without a new connection, and without an open one, nothing can have changed.
        let is_idle = passive_opens.is_some()
            && passive_opens == self.passive_opens
            && self.open.values().all(BTreeSet::is_empty)
            && self.before.is_empty()
            && !places.iter().any(is_unix)
            && !request.needs_hindrances;
        self.passive_opens = passive_opens;
        self.open.retain(|worker, _| request.workers.iter().any(|(other, _)| other == worker));
        if is_idle {
            return inspection;
        }
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let mut accepted = BTreeSet::new();
        let mut of_sockets = Vec::new();
        for (place, seen) in places.iter().zip(&mut inspection.sockets) {
            let found = place.as_ref().and_then(|place| place.connections().ok());
            let found = found.unwrap_or_default();
            seen.accepted = count(found.accepted.len());
            // Other sockets can have the same name in the kernel's list, as each primary binds below
            // `/proc/self/fd`, so it is not asked whether connections wait, only how many.
            let waiting = found.waiting.filter(|_| seen.waiting > 0);
            seen.waiting = waiting.map_or(seen.waiting, |waiting| waiting.max(1));
            accepted.extend(&found.accepted);
            of_sockets.push(found.accepted);
        }
        let had_some = self.open.values().any(|open| !open.is_empty()) || !self.before.is_empty();
        if accepted.is_empty() && !had_some && !request.needs_hindrances {
            return inspection;
        }
        let workers = request.workers.iter();
        let opened: Vec<_> =
            workers.map(|(worker, pid)| (*worker, connections::opened(*pid, until))).collect();
        if let Some(hindrances) = &mut inspection.hindrances {
            hinder(hindrances, &opened, until);
        }
        let (mut all_open, mut is_complete) = (BTreeSet::<u64>::new(), true);
        for (worker, opened) in &opened {
            all_open.extend(opened.sockets.intersection(&accepted));
            is_complete &= opened.is_complete;
            if !opened.is_complete {
                continue;
            }
            let open: BTreeSet<u64> = opened.sockets.intersection(&accepted).copied().collect();
            let before = self.open.entry(*worker).or_default();
            let new = match self.before.remove(worker) {
                Some(before) => count(open.len()).saturating_sub(before),
                None => count(open.difference(before).count()),
            };
            inspection.workers.push(WorkerConnections {
                worker: *worker,
                open: count(open.len()),
                new,
            });
            *before = open;
        }
        // For the same reason, only what a worker has open counts as accepted there.
        for ((place, seen), found) in places.iter().zip(&mut inspection.sockets).zip(of_sockets) {
            if is_complete && is_unix(place) {
                seen.accepted =
                    count(found.iter().filter(|inode| all_open.contains(*inode)).count());
            }
        }
        inspection
    }
}

/// Returns what waits in a socket: connections, or the datagrams of one of UDP as one.
fn waiting(socket: &ActivationSocket) -> SocketConnections {
    let waiting = match socket.waiting() {
        0 => usize::from(socket.is_awaited()),
        more => more,
    };
    SocketConnections { accepted: 0, waiting: u32::try_from(waiting).unwrap_or(u32::MAX) }
}

/// Finds out whether workers have started processes, and which of them listens by itself: on a TCP
/// socket that it has open and this process has not.
fn hinder(hindrances: &mut Hindrances, workers: &[(WorkerId, Opened)], until: Instant) {
    hindrances.has_children |= workers.iter().any(|(_, opened)| opened.children > 0);
    let own = connections::opened_by(std::process::id(), until);
    // What the kernel does not show is not seen to listen.
    let _ = diag::each_bound(None, false, |bound| {
        if hindrances.listens.is_some() || own.contains(&bound.inode) {
            return;
        }
        let has_it = |(_, opened): &&(WorkerId, Opened)| opened.sockets.contains(&bound.inode);
        if let Some((worker, _)) = workers.iter().find(has_it) {
            let at = std::net::SocketAddr::new(bound.address, bound.port);
            hindrances.listens = Some((*worker, at.to_string()));
        }
    });
}
