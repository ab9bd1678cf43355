//! The workers' processes: started ([`forks`]), or asked for ([`embedded`]) and taken over from
//! others ([`adopt`]), measured
//! ([`measure`], [`accepted`], [`own`]), heard when they say that they are ready ([`ready`]), ended ([`exit`]) with what
//! they leave behind ([`orphans`], [`strays`]), and how far they are trusted with paths ([`paths`]);
//! whether their weights count ([`weights`]).

mod accepted;
mod adopt;
mod embedded;
mod exit;
mod forks;
pub(super) mod kept;
mod measure;
mod orphans;
mod own;
mod paths;
mod ready;
mod save;
mod serving;
mod strays;
mod weights;
mod zombies;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use troop_core::primary::{WorkerState, WorkerStatus};
use troop_core::supervise::EndSignals;
use troop_core::worker_map::WorkerMap;
use troop_core::{Time, WorkerId};
use troop_sys::identity::Identity;
use troop_sys::sandbox::Sandbox;
use troop_sys::tree::ProcessTree;
use troop_sys::{diag, process};

use crate::primary::Table;
use crate::primary::cgroup::WorkerCgroup;
use crate::primary::handle::WorkerHandle;
use crate::primary::spawn::Spawner;
use crate::setup::Setup;
use accepted::ConnectionObserver;
use embedded::EmbeddingProgram;
pub(in crate::primary) use exit::how;
use forks::Forks;
use kept::Kept;
use orphans::AllOrphans;
use ready::{Notifications, Readiness};
pub(super) use save::SavedWorkers;
use serving::ServingChecker;
use strays::AllStrays;
use zombies::Zombies;

/// A worker's process.
struct Process {
    handle: WorkerHandle,
    pidfd: OwnedFd,
    /// The worker's end of its channel, if the program does not speak it. It hears signals, then.
    kept_end: Option<OwnedFd>,
    /// Where it says that it is ready, if it does that so.
    notifications: Option<Notifications>,
    leads_group: bool,
    /// It is somebody else's child.
    adopted: bool,
    /// Whether a message announces its end.
    announced: bool,
    /// The signals that ask it to finish.
    ends_by: EndSignals,
    /// Whether its group gets them, too; `None`: as the signal and the program require it.
    stop_group: Option<bool>,
    /// Whether its group has got one.
    is_group_asked: bool,
    cgroup: Option<WorkerCgroup>,
    /// The processes that it starts, if they are to end with it.
    tree: Option<ProcessTree>,
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

/// The signals that ask workers with this setup to finish.
fn end_signals(setup: &Setup) -> EndSignals {
    EndSignals { stop: setup.get_stop_signal(), kill: setup.get_kill_signal() }
}

/// The processes of all workers, and what others are started with.
pub(super) struct Workers {
    processes: WorkerMap<Process>,
    /// Those of workers that are treated as ended, because not even `SIGKILL` has ended them yet.
    unkillable: WorkerMap<Process>,
    /// Workers whose processes the poller has reported in this turn.
    reported: Vec<WorkerId>,
    /// Workers that have ended, until the actions that follow from that are carried out, and whether
    /// their processes were reaped.
    ended: Vec<(WorkerId, bool)>,
    /// The workers that the program sees.
    table: Table,
    setup: Arc<Setup>,
    /// What workers were started with before the reload that is under way.
    before_reload: Option<Arc<Setup>>,
    /// How many open connections workers of another engine had, until they are inspected.
    open_before: Vec<(WorkerId, u32)>,
    spawner: Spawner,
    forks: Forks,
    /// The program that starts the workers, if not [`Forks`].
    embedding: Option<EmbeddingProgram>,
    orphans: AllOrphans,
    strays: AllStrays,
    readiness: Readiness,
    serving: Option<ServingChecker>,
    connections: Option<ConnectionObserver>,
    /// Out-of-memory kills of the system, when last counted.
    killed_for_memory: u64,
    /// This is process 1.
    zombies: Zombies,
    /// Where the ends of workers are told, if they are the keeper's children.
    kept: Option<Kept>,
}

impl Workers {
    pub(super) fn new(table: Table, setup: Setup) -> Workers {
        Workers {
            processes: WorkerMap::default(),
            unkillable: WorkerMap::default(),
            reported: Vec::new(),
            ended: Vec::new(),
            table,
            setup: Arc::new(setup),
            before_reload: None,
            open_before: Vec::new(),
            spawner: Spawner::default(),
            forks: Forks::default(),
            embedding: None,
            orphans: AllOrphans::default(),
            strays: AllStrays::default(),
            readiness: Readiness::default(),
            serving: None,
            connections: None,
            killed_for_memory: diag::killed_for_memory(),
            zombies: Zombies::default(),
            kept: None,
        }
    }

    // ---- processes ----

    pub(super) fn is_empty(&self) -> bool {
        self.processes.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.processes.len()
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = WorkerId> {
        self.processes.keys().copied()
    }

    pub(super) fn handles(&self) -> impl Iterator<Item = &WorkerHandle> {
        self.processes.values().map(|process| &process.handle)
    }

    pub(super) fn handle(&self, worker: WorkerId) -> Option<&WorkerHandle> {
        self.processes.get(&worker).map(|process| &process.handle)
    }

    /// Removes workers whose processes have ended. Called when no action about them is left.
    pub(super) fn remove_ended(&mut self) {
        for (worker, is_reaped) in self.ended.drain(..) {
            if let Some(process) = self.processes.remove(&worker)
                && !is_reaped
            {
                self.unkillable.insert(worker, process);
            }
        }
    }

    /// Each worker, and since when it is there.
    pub(super) fn since(&self) -> impl Iterator<Item = (WorkerId, Time)> {
        self.processes.iter().map(|(id, process)| (*id, process.since))
    }

    /// Whether a worker's program has no channel, so that it hears signals only.
    pub(super) fn hears_signals_only(&self, worker: WorkerId) -> bool {
        self.processes.get(&worker).is_some_and(|process| process.kept_end.is_some())
    }

    /// Sends a signal to a worker's process; `None` if there is none.
    pub(super) fn signal(&self, worker: WorkerId, signal: i32) -> Option<io::Result<()>> {
        let process = self.processes.get(&worker)?;
        Some(process::signal(process.pidfd.as_fd(), signal))
    }

    /// Makes what the core knows about a worker visible to the program.
    pub(super) fn show(&self, worker: &WorkerHandle, status: Option<WorkerStatus>) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let mut visible = worker.shared.status.lock().unwrap_or_else(PoisonError::into_inner);
        match status {
            Some(status) => {
                *visible = status;
                if status.in_table {
                    table.insert(worker.id(), worker.clone());
                } else {
                    table.remove(&worker.id());
                }
            }
            None => {
                visible.state = WorkerState::Dead;
                visible.connected = false;
                visible.exited_after_disconnect.get_or_insert(false);
                table.remove(&worker.id());
            }
        }
    }

    // ---- what they are started with ----

    /// What workers are started with from now on.
    pub(super) fn setup(&self) -> &Arc<Setup> {
        &self.setup
    }

    pub(super) fn set_setup(&mut self, setup: Arc<Setup>) {
        self.setup = setup;
    }

    /// A reload begins that changes the setup.
    pub(super) fn keep_setup_before_reload(&mut self) {
        self.before_reload = Some(self.setup.clone());
    }

    /// The setup from before the reload that is under way, which are forgotten here.
    pub(super) fn take_setup_before_reload(&mut self) -> Option<Arc<Setup>> {
        self.before_reload.take()
    }

    /// How workers are started.
    pub(super) fn spawner_mut(&mut self) -> &mut Spawner {
        &mut self.spawner
    }

    // ---- starts and ends ----

    /// Whether the program starts the workers.
    pub(super) fn are_embedded(&self) -> bool {
        self.embedding.is_some()
    }

    /// Whether a worker is being started, or is to be.
    pub(super) fn is_starting(&self) -> bool {
        !self.forks.is_empty()
    }

    /// Whether no start is under way that is worth waiting for.
    pub(super) fn starts_are_over(&self, now: Time) -> bool {
        self.forks.are_over(now)
    }

    /// Cancels the starts of workers that are under way.
    pub(super) fn cancel_starts(&mut self, now: Time) {
        self.forks.cancel(now);
    }

    /// Workers that are being started are to leave at once, and none is waited for.
    pub(super) fn leave_starts(&mut self, now: Time) {
        self.forks.leave(now);
    }

    /// Supervised workers are to be like those that are started from now on, or not to be at all.
    pub(super) fn renew_starts(&mut self) {
        self.forks.renew();
    }

    /// Whether something is left of workers that have ended.
    pub(super) fn has_orphans(&self) -> bool {
        !self.orphans.is_empty() || !self.strays.is_empty()
    }

    /// Sees whether what ended workers have left behind has ended.
    pub(super) fn tick(&mut self, now: Time) {
        self.forks.tick(now);
        self.orphans.tick(now);
        let missed = self.kept.as_mut().map(|kept| kept.missed(now)).unwrap_or_default();
        self.reported.extend(missed);
        let (zombies, processes) = (&mut self.zombies, &self.processes);
        zombies.tick(now, |pid| processes.values().any(|process| process.handle.pid() == pid));
    }

    pub(super) fn next_deadline(&self, now: Time) -> Option<Time> {
        let starts = self.embedding.as_ref().and_then(EmbeddingProgram::next_deadline);
        let forks = self.forks.next_deadline(now);
        let left = self.orphans.next_deadline().into_iter().chain(self.strays.next_deadline());
        let kept = self.kept.as_ref().and_then(Kept::next_deadline);
        left.chain(forks).chain(starts).chain(self.zombies.next_deadline()).chain(kept).min()
    }

    /// Makes this process reap children that nobody waits for.
    pub(in crate::primary::driver) fn reap_others(&mut self) {
        self.zombies.turn_on();
    }

    /// The primary of this process begins.
    pub(in crate::primary::driver) fn reap_earlier(&mut self, now: Time) {
        self.zombies.begin(now);
    }

    /// A child of this process has ended.
    pub(in crate::primary::driver) fn child_ended(&mut self, now: Time) {
        self.zombies.notice(now);
    }
}
