//! Writes down the state of the primary for another program image, and goes on with that of another
//! one.

use std::io;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use troop_core::cluster::FormerState;
use troop_core::supervise::SupervisorState;
use troop_core::{Time, WorkerId, snapshot};
use troop_sys::fault;

use super::Driver;
use super::channels::{SavedChannels, SavedJournal};
use super::connections::SavedConnections;
use super::listeners::SavedListeners;
use super::signals::{SavedSignals, SignalMeans};
use super::workers::SavedWorkers;
use crate::activation::{ActivationSocket, SavedActivation};
use crate::keeper;
use crate::primary::saved::kept::Copies;
use crate::primary::saved::{Key, RestoredState, SavedState, Writer, invalid};

/// The state of the driver.
#[derive(Debug, Serialize, Deserialize)]
struct SavedDriver {
    /// Its time, and that of the system's clock at the same moment.
    elapsed: Duration,
    monotonic: Duration,
    /// Descriptors that were in use before there were workers.
    base: Option<usize>,
    workers: SavedWorkers,
    channels: SavedChannels,
    listeners: SavedListeners,
    connections: SavedConnections,
    /// A pipe for each signal. Before 6.3.
    #[serde(default)]
    signals: Vec<(Key, SignalMeans)>,
    /// Whether this is all; else it was written in case that this engine is killed, with no connections but
    /// those that wait.
    is_complete: bool,
    last_crash: Option<String>,
    /// What was read since is here. Since 5.1.
    #[serde(default)]
    journal: Option<SavedJournal>,
    /// Since 5.1.
    #[serde(default)]
    doubted: Vec<WorkerId>,
    /// Since 6.2.
    #[serde(default)]
    activation: Option<Vec<SavedActivation>>,
    /// Since 6.3.
    #[serde(default)]
    caught: Option<SavedSignals>,
}

impl RestoredState {
    fn saved_activation(&self) -> io::Result<Option<Vec<SavedActivation>>> {
        #[derive(Deserialize)]
        struct Part {
            #[serde(default)]
            activation: Option<Vec<SavedActivation>>,
        }
        Ok(serde_json::from_slice::<Part>(&self.driver)?.activation)
    }

    /// Returns the time in it that it is now.
    pub(crate) fn now(&self) -> Time {
        #[derive(Deserialize)]
        struct Part {
            elapsed: Duration,
            monotonic: Duration,
        }
        // One that cannot be read is found out when it is restored.
        let Ok(Part { elapsed, monotonic: then }) = serde_json::from_slice(&self.driver) else {
            return Time(0);
        };
        Time(0) + (elapsed + monotonic().saturating_sub(then))
    }

    /// Takes the sockets that workers get by activation.
    pub(crate) fn take_activation(&mut self) -> io::Result<Option<Vec<ActivationSocket>>> {
        let saved = self.saved_activation()?;
        let restore = |socket: SavedActivation| socket.restore(&mut self.reader);
        saved.map(|sockets| sockets.into_iter().map(restore).collect()).transpose()
    }

    /// Returns the addresses of the sockets that workers get by [activation](crate::activation).
    #[must_use]
    pub fn activation_addresses(&self) -> Vec<String> {
        let saved = self.saved_activation().ok().flatten().unwrap_or_default();
        saved.iter().map(|socket| socket.address().to_owned()).collect()
    }
}

fn monotonic() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

impl Driver {
    /// Why the state cannot be written down at the moment, or at all.
    pub(super) fn unsaved(&self) -> Option<&'static str> {
        if self.ending.has_begun() {
            return Some("the cluster is ending");
        }
        // A thread that waits there may not end, not even for the program that is executed then.
        if troop_sys::within::is_under_way() {
            return Some("a file system does not answer");
        }
        if !self.questions.is_empty() {
            return Some("its program chooses workers by itself");
        }
        match self.cluster.supervisor().map(|supervisor| supervisor.state()) {
            None => return Some("it is not supervised"),
            Some(SupervisorState::Reloading) => return Some("a reload is under way"),
            Some(SupervisorState::Stopping) => return Some("the cluster is ending"),
            Some(_) => {}
        }
        self.workers.unsaved().or_else(|| self.channels.unsaved())
    }

    /// Writes down the state, with all connections if it is to be complete. Nothing of it changes until the
    /// result is dropped.
    pub(super) fn save(&self, is_complete: bool) -> io::Result<SavedState<'_>> {
        let mut writer = Writer::default();
        let saved = SavedDriver {
            elapsed: self.origin.elapsed(),
            monotonic: monotonic(),
            base: self.scarcity.base(),
            workers: self.workers.save(&mut writer)?,
            channels: self.channels.save(is_complete, &mut writer),
            listeners: self.listeners.save(&mut writer),
            connections: self.connections.save(&self.inspected, is_complete, &mut writer),
            signals: Vec::new(),
            is_complete,
            last_crash: self.last_crash.clone(),
            journal: self.channels.save_journal(&mut writer),
            doubted: self.doubted.clone(),
            activation: self.save_activation(&mut writer)?,
            caught: self.signals.save(&mut writer),
        };
        let core = snapshot::write(&self.cluster).map_err(io::Error::other)?;
        Ok(SavedState { core, driver: serde_json::to_vec(&saved)?, writer })
    }

    fn save_activation<'a>(
        &'a self,
        to: &mut Writer<'a>,
    ) -> io::Result<Option<Vec<SavedActivation>>> {
        let setup = self.workers.setup();
        let sockets = setup.has_activation().then(|| setup.activation());
        sockets.map(|all| all.iter().map(|socket| socket.save(to)).collect()).transpose()
    }

    /// Checks that this version can read a state.
    pub(crate) fn check(state: &RestoredState) -> io::Result<()> {
        match state.is_rebuilt {
            true => drop(FormerState::read(&state.core).map_err(io::Error::other)?),
            false => drop(snapshot::read(&state.core).map_err(io::Error::other)?),
        }
        serde_json::from_slice::<SavedDriver>(&state.driver)?;
        Ok(())
    }

    /// Goes on with the state of another driver. The core's has been read.
    pub(crate) fn restore(&mut self, state: RestoredState) -> io::Result<()> {
        let RestoredState { driver, mut reader, held, crashes, last_crash, is_rebuilt, .. } = state;
        if keeper::is_kept() {
            self.copies = Some(Copies::after(held)?);
        }
        let mut saved: SavedDriver = serde_json::from_slice(&driver)?;
        if is_rebuilt {
            // The core knows of no connections.
            (saved.connections, saved.is_complete) = (SavedConnections::default(), false);
            let primary = &self.cluster.primary;
            saved.listeners.retain(|id| primary.listener_key(id).is_some());
        }
        (self.crashes, self.last_crash) = (crashes, last_crash.or(saved.last_crash.take()));
        let elapsed = saved.elapsed + monotonic().saturating_sub(saved.monotonic);
        let origin = Instant::now().checked_sub(elapsed);
        self.origin = origin.ok_or_else(|| invalid(format!("it is {elapsed:?} old")))?;
        self.now = self.clock();
        fault::point("restoring");
        self.scarcity.set_base(saved.base);
        self.divide_descriptors();
        self.restore_workers(saved.workers, &mut reader)?;
        let workers = self.restored_workers();
        let Driver { channels, closing, poller, .. } = self;
        channels.restore(saved.channels, &mut reader, poller, |id| {
            let (handle, is_other_user) = workers
                .get(&id)
                .cloned()
                .ok_or_else(|| invalid(format!("worker {id} has a channel and no process")))?;
            Ok((handle, closing.closer_for(is_other_user)))
        })?;
        self.listeners.restore(self.now, saved.listeners, &mut reader, &self.poller)?;
        self.connections.restore(
            saved.connections,
            &mut self.inspected,
            saved.is_complete,
            (&mut reader, &self.poller),
        )?;
        self.doubted = saved.doubted;
        if saved.is_complete {
            self.cluster.resumed(self.now);
        } else {
            self.end_unknown_workers();
            self.steer_all_again();
            let Driver { cluster, connections, now, .. } = self;
            cluster.recovered(*now, |conn| connections.fd(conn).is_some());
            if let Some(journal) = &saved.journal {
                let entries = self.channels.resume_journal(journal, &mut reader)?;
                let doubted = self.repeat(entries);
                self.doubted.extend(doubted);
            }
        }
        self.obey_earlier_pipes(saved.signals, &mut reader)?;
        self.obey_earlier(saved.caught, &mut reader)?;
        self.plan_upkeep();
        Ok(())
    }
}
