//! Writes down the workers' processes, and goes on with those that another primary has written down.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use troop_core::supervise::EndSignals;
use troop_core::{Time, WorkerId};
use troop_sys::identity::Identity;
use troop_sys::notify::NotifySocket;
use troop_sys::poll::Interest;
use troop_sys::sandbox::Sandbox;
use troop_sys::tree::ProcessTree;

use super::ready::Notifications;
use super::{Process, Workers};
use crate::primary::cgroup::WorkerCgroup;
use crate::primary::driver::{Driver, Token};
use crate::primary::handle::WorkerHandle;
use crate::primary::output::{Source, Tail};
use crate::primary::saved::{Key, Reader, Writer};
use crate::primary::spawn::SavedSpawner;

/// All workers.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::primary::driver) struct SavedWorkers {
    processes: Vec<SavedProcess>,
    spawner: SavedSpawner,
}

/// A worker's process.
#[derive(Debug, Serialize, Deserialize)]
struct SavedProcess {
    worker: WorkerId,
    pid: u32,
    pidfd: Key,
    kept_end: Option<Key>,
    notifications: Option<SavedNotifications>,
    pipes: [Option<Key>; 3],
    leads_group: bool,
    adopted: bool,
    announced: bool,
    ends_by: EndSignals,
    #[serde(default)]
    stop_group: Option<bool>,
    #[serde(default)]
    is_group_asked: bool,
    cgroup: Option<serde_json::Value>,
    tree: Option<ProcessTree>,
    user: Option<Identity>,
    /// What restricts its rights to files.
    ruleset: Option<Key>,
    names_dead_paths: bool,
    path_time: Duration,
    refused: u32,
    since: Time,
    signals: u64,
    asked: u64,
    /// The number of the last request that it was sent: its answers are not to be taken for others.
    last_request: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedNotifications {
    socket: Key,
    address: OsString,
    name: Option<OsString>,
    refuses_descriptors: bool,
}

impl Workers {
    /// Why the workers cannot be written down at the moment.
    pub(in crate::primary::driver) fn unsaved(&self) -> Option<&'static str> {
        let reads_aside = |process: &Process| {
            process.notifications.as_ref().is_some_and(|own| own.is_consumed_aside)
        };
        Some(match () {
            () if self.are_embedded() => "its program starts the workers by itself",
            // These get a signal with the thread that has started them.
            () if self.setup.has_activation() && self.kept.is_none() => {
                "its workers take sockets by activation"
            }
            () if self.is_starting() => "a worker is being started",
            () if self.before_reload.is_some() => "a reload is under way",
            () if self.has_orphans() => "processes that a worker has left behind are being ended",
            () if !self.unkillable.is_empty() => "a killed worker does not end",
            () if self.processes.values().any(reads_aside) => "a thread reads notifications",
            () => return None,
        })
    }

    pub(in crate::primary::driver) fn save<'a>(
        &'a self,
        to: &mut Writer<'a>,
    ) -> io::Result<SavedWorkers> {
        let save = |(worker, process): (&WorkerId, &'a Process)| save(*worker, process, to);
        let processes = self.processes.iter().map(save).collect::<io::Result<_>>()?;
        Ok(SavedWorkers { processes, spawner: self.spawner.save(to)? })
    }
}

fn save<'a>(
    worker: WorkerId,
    process: &'a Process,
    to: &mut Writer<'a>,
) -> io::Result<SavedProcess> {
    let shared = &process.handle.shared;
    let mut pipes = [None; 3];
    let open = shared.pipes.lock().unwrap_or_else(PoisonError::into_inner);
    for (saved, pipe) in pipes.iter_mut().zip(open.iter()) {
        *saved =
            pipe.as_ref().map(|pipe| pipe.try_clone().map(|copy| to.owned(copy))).transpose()?;
    }
    Ok(SavedProcess {
        worker,
        pid: process.handle.pid(),
        pidfd: to.descriptor(&process.pidfd),
        kept_end: process.kept_end.as_ref().map(|end| to.descriptor(end)),
        notifications: process.notifications.as_ref().map(|own| SavedNotifications {
            socket: to.shared(own.socket.socket()),
            address: own.socket.address().to_owned(),
            name: own.socket.file_name().map(ToOwned::to_owned),
            refuses_descriptors: own.socket.refuses_descriptors(),
        }),
        pipes,
        leads_group: process.leads_group,
        adopted: process.adopted,
        announced: process.announced,
        ends_by: process.ends_by,
        stop_group: process.stop_group,
        is_group_asked: process.is_group_asked,
        cgroup: process.cgroup.as_ref().map(serde_json::to_value).transpose()?,
        tree: process.tree.clone(),
        user: process.user.clone(),
        ruleset: process.sandbox.ruleset().map(|ruleset| to.descriptor(ruleset)),
        names_dead_paths: process.names_dead_paths,
        path_time: process.path_time,
        refused: process.refused,
        since: process.since,
        signals: shared.signals.load(Ordering::Relaxed),
        asked: shared.asked.load(Ordering::Relaxed),
        last_request: shared.mailbox.last_request(),
    })
}

impl Driver {
    /// Goes on with these workers.
    pub(in crate::primary::driver) fn restore_workers(
        &mut self,
        saved: SavedWorkers,
        from: &mut Reader,
    ) -> io::Result<()> {
        let tails = self.workers.spawner.restore(saved.spawner, from)?;
        for process in saved.processes {
            self.restore_process(process, &tails, from)?;
        }
        if self.workers.setup.has_activation() {
            let all = self.workers.ids();
            let open = all.filter_map(|id| Some((id, self.cluster.primary.status(id)?.stats.open)));
            self.workers.open_before = open.collect();
        }
        Ok(())
    }

    fn restore_process(
        &mut self,
        saved: SavedProcess,
        tails: &[(Source, Arc<Tail>)],
        from: &mut Reader,
    ) -> io::Result<()> {
        let id = saved.worker;
        let pidfd = from.descriptor(saved.pidfd)?;
        self.poller.add(&pidfd, Token::Process(id), Interest::Read)?;
        let mut pipes: [Option<OwnedFd>; 3] = Default::default();
        for (pipe, saved) in pipes.iter_mut().zip(saved.pipes) {
            *pipe = saved.map(|saved| from.descriptor(saved)).transpose()?;
        }
        let tail = tails.iter().find(|(source, _)| source.worker == id);
        let tail = tail.map(|(_, tail)| tail.clone());
        let handle = self.handle(id, saved.pid, pipes, tail).map_err(io::Error::other)?;
        handle.shared.signals.store(saved.signals, Ordering::Relaxed);
        handle.shared.asked.store(saved.asked, Ordering::Relaxed);
        handle.shared.mailbox.go_on_after(saved.last_request);
        let kept_end = saved.kept_end.map(|end| from.descriptor(end)).transpose()?;
        if kept_end.is_some() {
            handle.shared.mailbox.refuse_all();
        }
        let ruleset = saved.ruleset.map(|ruleset| from.descriptor(ruleset)).transpose()?;
        let cgroup = saved.cgroup.map(serde_json::from_value::<WorkerCgroup>).transpose()?;
        let process = Process {
            handle: handle.clone(),
            pidfd,
            kept_end,
            notifications: None,
            leads_group: saved.leads_group,
            adopted: saved.adopted,
            announced: saved.announced,
            ends_by: saved.ends_by,
            stop_group: saved.stop_group,
            is_group_asked: saved.is_group_asked,
            cgroup,
            tree: saved.tree,
            user: saved.user,
            sandbox: ruleset.map(Sandbox::of_ruleset).unwrap_or_default(),
            names_dead_paths: saved.names_dead_paths,
            path_time: saved.path_time,
            refused: saved.refused,
            since: saved.since,
        };
        self.workers.processes.insert(id, process);
        self.refresh(&handle);
        if let Some(saved) = saved.notifications {
            let notifications = self.restore_notifications(saved, from)?;
            self.hear(id, notifications);
        }
        Ok(())
    }

    fn restore_notifications(
        &self,
        saved: SavedNotifications,
        from: &mut Reader,
    ) -> io::Result<Notifications> {
        let SavedNotifications { socket, address, name, refuses_descriptors } = saved;
        let place = Path::new(&address).parent();
        let directory = self.workers.readiness.directory_at(place);
        let file = directory.cloned().zip(name);
        let socket = from.descriptor(socket)?;
        let socket = NotifySocket::restore(socket, address, file, refuses_descriptors);
        Ok(Notifications { socket, is_consumed_aside: false })
    }

    /// Returns the workers' handles, and whether they run as another user.
    pub(in crate::primary::driver) fn restored_workers(
        &self,
    ) -> BTreeMap<WorkerId, (WorkerHandle, bool)> {
        let all = self.workers.processes.iter();
        all.map(|(id, process)| (*id, (process.handle.clone(), process.user.is_some()))).collect()
    }
}
