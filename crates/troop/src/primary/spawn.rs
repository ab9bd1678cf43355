//! Turns a setup into a process with a channel.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, IsTerminal as _};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use troop_core::WorkerId;
use troop_sys::sandbox::Sandbox;
use troop_sys::tree::ProcessTree;
use troop_sys::{fdpass, spawn};

use super::Fork;
use super::cgroup::{Tree, WorkerCgroup};
use super::output::{Fate, Forwarder, Output, Paused, SavedOutput, Source, Tail};
use super::saved::{Reader, Writer};
use crate::error::{Error, Result};
use crate::setup::{CHANNEL_NUMBER, Prepared, Setup, Stdio};

/// The result of a spawn.
pub(crate) struct Spawned {
    pub(crate) child: spawn::Child,
    pub(crate) channel: OwnedFd,
    /// The worker's end of the channel, if the program does not get it.
    pub(crate) kept_end: Option<OwnedFd>,
    pub(crate) pipes: [Option<OwnedFd>; 3],
    pub(crate) tail: Option<Arc<Tail>>,
    pub(crate) cgroup: Option<WorkerCgroup>,
    /// The processes that it starts, if they are to end with it.
    pub(crate) tree: Option<ProcessTree>,
    pub(crate) sandbox: Sandbox,
}

/// State of the primary that lasts from one spawn to the next.
#[derive(Default)]
pub(crate) struct Spawner {
    /// The last inspector port, counted from the first.
    inspectors: u32,
    /// The soft limit on descriptors that workers get, if it is not this process's.
    pub(crate) descriptor_limit: Option<u64>,
    forwarder: Option<Forwarder>,
    /// This process's part of the tree of control groups, once it is needed.
    tree: Option<Tree>,
    /// The receiver of output, until the forwarder is started.
    pub(crate) output: Option<Box<dyn Output>>,
    /// Workers become children of the keeper.
    pub(crate) is_kept: bool,
}

impl Spawner {
    /// Waits until all output of workers is passed on, with a timeout.
    pub(crate) fn finish_output(&mut self, timeout: Duration) {
        if let Some(forwarder) = self.forwarder.take() {
            forwarder.finish().wait(timeout);
        }
    }

    /// Handles the end of a worker.
    pub(crate) fn ended(&self, worker: WorkerId) {
        if let Some(forwarder) = &self.forwarder {
            forwarder.ended(worker);
        }
    }
}

/// What lasts from one spawn to the next, written down.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SavedSpawner {
    inspectors: u32,
    descriptor_limit: Option<u64>,
    output: Option<SavedOutput>,
}

impl Spawner {
    /// Pauses the reading of workers' output until the result is dropped.
    pub(crate) fn pause_output(&self) -> io::Result<Option<Paused>> {
        self.forwarder.as_ref().map(Forwarder::pause).transpose()
    }

    /// Writes it down. The reading of output is [paused](Spawner::pause_output).
    pub(crate) fn save(&self, to: &mut Writer<'_>) -> io::Result<SavedSpawner> {
        Ok(SavedSpawner {
            inspectors: self.inspectors,
            descriptor_limit: self.descriptor_limit,
            output: self.forwarder.as_ref().map(|forwarder| forwarder.save(to)).transpose()?,
        })
    }

    /// Goes on with this. Returns the ends of standard error that are kept.
    pub(crate) fn restore(
        &mut self,
        saved: SavedSpawner,
        from: &mut Reader,
    ) -> io::Result<Vec<(Source, Arc<Tail>)>> {
        self.inspectors = saved.inspectors;
        self.descriptor_limit = saved.descriptor_limit;
        let Some(output) = saved.output else { return Ok(Vec::new()) };
        let forwarder = self.forwarder.insert(Forwarder::start(self.output.take())?);
        forwarder.restore(output, from)
    }
}

/// A process to start, with everything that it gets; independent of the primary's state.
pub(crate) struct Start {
    setup: Arc<Setup>,
    slot: Option<u32>,
    prepared: Prepared,
    ours: OwnedFd,
    theirs: OwnedFd,
    child_ends: [Option<OwnedFd>; 3],
    pipes: [Option<OwnedFd>; 3],
    tail: Option<Arc<Tail>>,
    /// Its sockets for activation.
    own: Vec<Arc<OwnedFd>>,
    cgroup: Option<WorkerCgroup>,
    entrance: Option<File>,
    descriptor_limit: Option<u64>,
    is_kept: bool,
    is_cancelled: Arc<AtomicBool>,
}

/// Prepares a start without blocking. The process is not started once it `is_cancelled`.
pub(crate) fn prepare(
    setup: &Arc<Setup>,
    fork: &Fork,
    (worker, slot): (WorkerId, Option<u32>),
    notify: Option<&OsStr>,
    spawner: &mut Spawner,
    is_cancelled: &Arc<AtomicBool>,
) -> Result<Start> {
    let inspectors = &mut spawner.inspectors;
    let prepared = setup.prepare(worker.0, slot, &fork.env, notify, inspectors)?;
    let failed = |step: &'static str| {
        let program = prepared.program.clone();
        move |source: io::Error| Error::Spawn { program, step: step.to_owned(), source }
    };
    let (ours, theirs) = fdpass::channel().map_err(failed("make a channel"))?;
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let inherited = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    let mut pipes = [const { None }; 3];
    let mut child_ends: [Option<OwnedFd>; 3] = [const { None }; 3];
    let mut tail = None;
    for (number, stdio) in setup.stdio().iter().enumerate() {
        let stdio = apart(setup, number, *stdio, &inherited[number]);
        match stdio {
            Stdio::Inherit => {}
            Stdio::Null => {
                let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null");
                child_ends[number] = Some(null.map_err(failed("open /dev/null"))?.into());
            }
            Stdio::Pipe | Stdio::Forward | Stdio::Capture | Stdio::Collect => {
                let (reader, writer) = io::pipe().map_err(failed("make a pipe"))?;
                let fate = match stdio {
                    Stdio::Forward
                        if number > 0
                            && setup.is_other_user()
                            && inherited[number].is_terminal() =>
                    {
                        Some(Fate::Marked)
                    }
                    Stdio::Forward if number > 0 => Some(Fate::Forwarded),
                    Stdio::Capture if number == 2 => Some(Fate::Remembered),
                    Stdio::Collect if number > 0 => Some(Fate::Collected),
                    Stdio::Pipe
                    | Stdio::Inherit
                    | Stdio::Null
                    | Stdio::Forward
                    | Stdio::Capture
                    | Stdio::Collect => None,
                };
                if number == 0 {
                    (child_ends[0], pipes[0]) = (Some(reader.into()), Some(writer.into()));
                } else if let Some(fate) = fate {
                    let forwarder = match &mut spawner.forwarder {
                        Some(forwarder) => forwarder,
                        none => {
                            let output = spawner.output.take();
                            none.insert(
                                Forwarder::start(output)
                                    .map_err(failed("start the thread for the output"))?,
                            )
                        }
                    };
                    let source = Source { worker, slot, error: number == 2 };
                    let added =
                        forwarder.add(reader, source, fate).map_err(failed("watch the output"))?;
                    tail = added.or(tail);
                    child_ends[number] = Some(writer.into());
                } else {
                    (child_ends[number], pipes[number]) =
                        (Some(writer.into()), Some(reader.into()));
                }
            }
        }
    }
    let own = setup.activation().iter().map(|socket| socket.of_slot(slot.unwrap_or(0)));
    let own = own.collect::<io::Result<Vec<_>>>().map_err(failed("open the sockets for it"))?;
    let cgroup = match setup.get_cgroup() {
        None => None,
        Some(limits) => {
            let tree = match &mut spawner.tree {
                Some(tree) => tree,
                none => none.insert(Tree::find()?),
            };
            Some(tree.make(worker, limits)?)
        }
    };
    let entrance = cgroup
        .as_ref()
        .map(WorkerCgroup::entrance)
        .transpose()
        .map_err(failed("open its control group"))?;
    Ok(Start {
        setup: setup.clone(),
        slot,
        prepared,
        ours,
        theirs,
        child_ends,
        pipes,
        tail,
        own,
        cgroup,
        entrance,
        descriptor_limit: spawner.descriptor_limit,
        is_kept: spawner.is_kept,
        is_cancelled: is_cancelled.clone(),
    })
}

impl Start {
    /// Whether the worker gets a signal when the thread ends that starts it.
    pub(crate) fn binds_thread(&self) -> bool {
        self.setup.has_activation()
    }

    /// Starts the process. Waits until its program is executed, which the worker's user, or a file
    /// system that does not answer, may delay.
    pub(crate) fn run(self) -> Result<Spawned> {
        let binds_thread = self.binds_thread();
        let Start {
            setup,
            slot,
            prepared,
            ours,
            theirs,
            child_ends,
            pipes,
            tail,
            own,
            cgroup,
            entrance,
            descriptor_limit,
            is_kept,
            is_cancelled,
        } = self;
        let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
        let inherited = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
        let mut fds = if setup.has_activation() {
            // The numbers begin with 3, as `sd_listen_fds(3)` requires.
            (3..).zip(own.iter()).map(|(number, own)| (number, own.as_fd())).collect()
        } else {
            vec![(CHANNEL_NUMBER, theirs.as_fd())]
        };
        for (number, end) in (0..).zip(&child_ends) {
            fds.push((number, end.as_ref().map_or(inherited[number as usize], AsFd::as_fd)));
        }
        let mut command = setup.command(slot, prepared.env)?;
        command.candidates = prepared.candidates;
        command.argv = prepared.argv;
        // Without a channel only this signal tells it that its primary has died.
        command.death_signal = if binds_thread { 15 } else { 0 };
        command.pid_variable = setup.has_activation().then_some(c"LISTEN_PID");
        command.fds = fds;
        command.descriptor_limit = descriptor_limit;
        command.cgroup = entrance.as_ref().map(AsFd::as_fd);
        command.is_sibling = is_kept;
        let child = spawn::spawn_unless(&command, &is_cancelled).map_err(|e| Error::Spawn {
            program: prepared.program.clone(),
            step: step(&e, &setup),
            source: e.source,
        })?;
        let uid = setup.get_uid().unwrap_or_else(|| rustix::process::geteuid().as_raw());
        // Without it, processes that it leaves behind are not found.
        let (token, leads_group) = (prepared.token.as_ref(), setup.ends_group());
        let tree = (token.is_some() || leads_group)
            .then(|| ProcessTree::of(child.pid, token, leads_group, uid).ok())
            .flatten();
        let sandbox = std::mem::take(&mut command.sandbox);
        drop(command);
        let kept_end = setup.has_activation().then_some(theirs);
        Ok(Spawned { child, channel: ours, kept_end, pipes, tail, cgroup, tree, sandbox })
    }
}

/// Returns the failed step with its subject.
pub(crate) fn step(e: &spawn::SpawnError, setup: &Setup) -> String {
    match (e.step, setup.get_cwd()) {
        (spawn::Step::Directory, Some(cwd)) => format!("{e} {}", cwd.display()),
        (spawn::Step::Exec, _)
            if setup.get_sandbox().is_some_and(|sandbox| sandbox.read.is_some())
                && e.source.kind() == io::ErrorKind::PermissionDenied =>
        {
            format!(
                "{e} (it, its interpreter and its loader must be below one of the paths that the sandbox lets it read)"
            )
        }
        _ => e.to_string(),
    }
}

/// Returns the connection of a stream that a worker would inherit. A process with a descriptor of a
/// terminal can read its input and change its settings; the leader of another process group is
/// stopped when it reads. A worker of another user gets none of the primary's streams: it could
/// empty a file, shut a socket down for all, or fill a pipe that the primary writes to.
fn apart(setup: &Setup, number: usize, stdio: Stdio, inherited: &impl io::IsTerminal) -> Stdio {
    if stdio != Stdio::Inherit {
        return stdio;
    }
    match number {
        0 if setup.is_other_user() || (setup.leads_group() && inherited.is_terminal()) => {
            Stdio::Null
        }
        1 | 2 if setup.is_other_user() => Stdio::Forward,
        _ => stdio,
    }
}

/// Whether a retry cannot help, because the program, its directory or a permission is missing.
pub(crate) fn is_for_good(error: &Error) -> bool {
    match error {
        Error::Spawn { source, .. } if source.kind() == io::ErrorKind::TimedOut => false,
        Error::Spawn { source, .. } => !matches!(
            source.raw_os_error().map(rustix::io::Errno::from_raw_os_error),
            Some(
                rustix::io::Errno::AGAIN
                    | rustix::io::Errno::NOMEM
                    | rustix::io::Errno::MFILE
                    | rustix::io::Errno::NFILE
                    | rustix::io::Errno::TXTBSY
            )
        ),
        Error::Settings(_) => true,
        _ => false,
    }
}
