//! How a cluster is configured and started.

mod effects;
mod restored;
mod seed;

use std::collections::BTreeSet;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTTIN, SIGTTOU, SIGWINCH};
use troop_core::cluster as core;
use troop_core::policy::{Pattern, Scheduling};
use troop_core::primary::{Config, Primary, Rebalanced};
use troop_core::steer::AutoLimits;
use troop_core::supervise::{self, Cause, GiveUp, Outcome, Progress, Supervisor};
use troop_sys::poll::EventFd;

use super::driver::KeptNote;
use super::driver::{Driver, SignalMeans};
use super::health;
use super::output::Output;
use super::policies::{HealthCheck, RecyclePolicy, ReplacePolicy, RestartPolicy};
use super::saved::RestoredState;
use super::wake::{DriverHandle, Wake};
use super::{Cluster, Table};
use crate::activation::ActivationSocket;
use crate::error::{Error, Result};
use crate::event::{Bus, Event};
use crate::inherited::InheritedSocket;
use crate::nesting;
use crate::setup::Setup;
use crate::trace::Span;
pub(crate) use seed::random_seed;

type Observer = Box<dyn FnMut(&Event)>;
type Starter = Box<dyn FnOnce(Cluster)>;

/// Upper limit of the default of `drain_spread`.
const DEFAULT_DRAIN_SPREAD: Duration = Duration::from_secs(10);
/// The signals that [`Builder::run`] handles, unless they are left to the program.
const SIGNALS: [(i32, SignalMeans); 7] = [
    (SIGTERM, SignalMeans::Stop),
    (SIGINT, SignalMeans::Stop),
    (SIGQUIT, SignalMeans::StopNow),
    (SIGHUP, SignalMeans::Reload),
    (SIGTTIN, SignalMeans::OneMore),
    (SIGTTOU, SignalMeans::OneLess),
    (SIGWINCH, SignalMeans::Pause),
];

/// Default grace period.
const DEFAULT_GRACE_PERIOD: Duration = Duration::from_secs(30);

/// Configures a cluster: [`Builder::run`] supervises it in this thread until it is stopped,
/// [`Builder::start`] gives a handle to steer it from a tokio program.
///
/// A setting that would have no effect where the cluster is started is an [`Error::Settings`] that
/// names it.
///
/// ```no_run
/// use std::time::Duration;
///
/// use troop::supervise::RestartPolicy;
/// use troop::{Cluster, Setup};
///
/// # fn main() -> troop::Result<()> {
/// Cluster::builder()
///     .workers(4)
///     .setup(Setup::new().env("LOG", "info"))
///     .grace(Duration::from_secs(10))
///     .restart(RestartPolicy::new(4).max_delay(Duration::from_secs(30)))
///     .run()
/// # }
/// ```
#[must_use]
pub struct Builder {
    setup: Setup,
    workers: Option<usize>,
    config: Config,
    restart: Option<RestartPolicy>,
    replace: ReplacePolicy,
    recycle: Option<RecyclePolicy>,
    health: Option<HealthCheck>,
    output: Option<Box<dyn Output>>,
    left_signals: Vec<i32>,
    reap_orphans: Option<bool>,
    inherited: Vec<InheritedSocket>,
    grace: Option<Duration>,
    drain_spread: Option<Duration>,
    drain_delay: Option<Duration>,
    weights: Vec<u32>,
    observers: Vec<Observer>,
    starters: Vec<Starter>,
    activation: Option<Arc<[ActivationSocket]>>,
    activation_by_connections: bool,
    restored: Option<RestoredState>,
    note: Option<KeptNote>,
    /// Settings with a default that were set explicitly.
    explicit: BTreeSet<&'static str>,
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder")
            .field("setup", &self.setup)
            .field("workers", &self.workers)
            .field("config", &self.config)
            .finish()
    }
}

/// Returns the number of workers that fit this machine: the CPUs that this process may use by its
/// affinity and its control group's quota, at least 1.
#[must_use]
pub fn available_workers() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

impl Builder {
    pub(super) fn new() -> Builder {
        let config = Config {
            scheduling: crate::policy::default_scheduling(),
            seed: random_seed(),
            ..Config::default()
        };
        Builder {
            setup: Setup::new(),
            workers: None,
            config,
            restart: None,
            replace: ReplacePolicy::default(),
            recycle: None,
            health: None,
            output: None,
            left_signals: Vec::new(),
            reap_orphans: None,
            inherited: Vec::new(),
            grace: None,
            drain_spread: None,
            drain_delay: None,
            weights: Vec::new(),
            observers: Vec::new(),
            starters: Vec::new(),
            activation: None,
            activation_by_connections: false,
            restored: None,
            note: None,
            explicit: BTreeSet::new(),
        }
    }

    /// Sets the number of workers that the cluster starts and keeps running (supervision). Default
    /// for [`Builder::run`]: [`available_workers`]. Default for [`Builder::start`] and
    /// [`Builder::start_in_thread`]: no supervision, and the program [forks](Cluster::fork).
    pub fn workers(mut self, workers: usize) -> Builder {
        self.workers = Some(workers);
        self
    }

    /// Sets what workers are started with. Called again, it changes what the later setup mentions
    /// ([`Setup::merge`]). Default: copies of this program with the same arguments.
    pub fn setup(mut self, setup: Setup) -> Builder {
        self.setup = self.setup.merge(setup);
        self
    }

    /// Gives the workers these sockets instead of a channel, for programs that take sockets by
    /// activation (`LISTEN_FDS` and so on, see `sd_listen_fds(3)`; also `EINHORN_FD_n`) and do not
    /// speak Node's protocol. All workers accept on the same sockets, or each on its own
    /// ([`ActivationSocket::bind_steered`]). A worker is ready when it waits for connections, and
    /// drains on `SIGTERM`. Its open connections are counted each second; those that nobody accepts
    /// are reported ([`Event::NotAccepted`](crate::Event::NotAccepted)). Settings that need a channel are errors: scheduling, the hang timeout, readiness by
    /// message, health checks by a connection.
    pub fn activation(mut self, sockets: impl IntoIterator<Item = ActivationSocket>) -> Builder {
        self.activation = Some(sockets.into_iter().collect());
        self
    }

    /// Has the kernel give new connections of [steered](ActivationSocket::bind_steered) sockets
    /// rather to workers with few open ones: a worker's share is its weight, divided by one more than
    /// the connections that it was seen to have, which is inspected each second. An error without
    /// such sockets.
    pub fn activation_by_connections(mut self, on: bool) -> Builder {
        self.activation_by_connections = on;
        self
    }

    /// Offers these sockets to the workers. A worker gets one when it asks to listen on the same
    /// address, or on the socket's number; no other descriptor of this process can be asked for by
    /// its number. With [`Builder::may_listen`] the address, or the number (`fd:3`), must be listed
    /// too.
    pub fn inherited(mut self, sockets: impl IntoIterator<Item = InheritedSocket>) -> Builder {
        self.inherited.extend(sockets);
        self
    }

    /// Sets how connections reach the workers. Default:
    /// [`default_scheduling`](crate::policy::default_scheduling); round robin instead of
    /// [`Scheduling::Auto`] where Node's permission model keeps workers from listening themselves
    /// (`--permission` without `--allow-net`).
    pub fn scheduling(mut self, scheduling: Scheduling) -> Builder {
        self.config.scheduling = scheduling;
        self.explicit.insert("scheduling");
        self
    }

    /// Sets how connections of certain listeners reach the workers, for example of those of one
    /// port.
    pub fn scheduling_of(mut self, listeners: Pattern, scheduling: Scheduling) -> Builder {
        self.config.listeners.push((listeners, scheduling));
        self
    }

    /// Sets the rates at which listeners under [`Scheduling::Auto`] change their mode. An error
    /// unless a scheduling is [`Scheduling::Auto`].
    pub fn auto_limits(mut self, limits: AutoLimits) -> Builder {
        self.config.auto = limits;
        self.explicit.insert("auto_limits");
        self
    }

    /// Sets the [weights](crate::Fork::weight) of supervised workers by slot. Slots beyond the list
    /// have 100. An error unless a scheduling goes by weights ([`Scheduling::is_weighted`]) or, with
    /// [`Builder::activation`], a socket is [steered](ActivationSocket::bind_steered).
    pub fn weights(mut self, weights: impl Into<Vec<u32>>) -> Builder {
        self.weights = weights.into();
        self
    }

    /// Sets the grace period: the time that a worker has to drain, when it is replaced or the cluster
    /// stops, before it is killed. Default: 30 s.
    pub fn grace(mut self, grace: Duration) -> Builder {
        self.grace = Some(grace);
        self
    }

    /// Sets the time for which workers go on serving after a stop was requested, by a signal or
    /// [`Cluster::stop`], while the cluster is reported as stopping and so as not ready: balancers
    /// that learn of a stop late, as Kubernetes does, still reach a worker. Workers that end are
    /// replaced meanwhile; nothing else begins. A second request ends everything at once. Default:
    /// none.
    pub fn drain_delay(mut self, time: Duration) -> Builder {
        self.drain_delay = Some(time);
        self
    }

    /// Sets the time over which a draining worker closes its idle connections, so that their clients
    /// do not all reconnect at once. Applies to Rust workers that use
    /// [`Worker::closing`](crate::Worker::closing), as `troop::serve` does. Default: a third of the
    /// [grace period](Builder::grace), at most 10 s. It ends with the grace period.
    pub fn drain_spread(mut self, time: Duration) -> Builder {
        self.drain_spread = Some(time);
        self
    }

    /// Sets the time after which an unresponsive worker is hung: it is killed, and other workers get
    /// its connections. Default: 30 s. With `None` no worker is hung, and the connections of a
    /// blocked one wait.
    ///
    /// For this time, a hung worker has left a connection unacknowledged; or, under
    /// [`Scheduling::Steered`], its queue has not moved while those of others have; or it listens
    /// and has given no sign of life. It is probed after a third of this time (at most 10 s) of
    /// silence.
    pub fn hang_timeout(mut self, limit: Option<Duration>) -> Builder {
        self.config.hang_timeout = limit;
        self.explicit.insert("hang_timeout");
        self
    }

    /// Keeps a listener open when its last worker has died, so that clients wait for a successor
    /// instead of being refused. Default: true. Node closes it. When the successor is ready and
    /// listens elsewhere, the listener is closed.
    pub fn keep_listeners(mut self, keep: bool) -> Builder {
        self.config.keep_listeners = keep;
        self.explicit.insert("keep_listeners");
        self
    }

    /// Sets the number of connections that may wait in the primary for a worker, per listener;
    /// further ones stay in the kernel's accept queue. Default: 64. Where clients are sticky, 16
    /// times as many, because each may wait for its own worker.
    pub fn pending_limit(mut self, limit: usize) -> Builder {
        self.config.pending_limit = limit.max(1);
        self.explicit.insert("pending_limit");
        self
    }

    /// Sets when workers that end unexpectedly are started again; see [`RestartPolicy`].
    pub fn restart(mut self, policy: RestartPolicy) -> Builder {
        self.restart = Some(policy);
        self
    }

    /// Sets how workers are replaced; see [`ReplacePolicy`].
    pub fn replace(mut self, policy: ReplacePolicy) -> Builder {
        self.replace = policy;
        self
    }

    /// Sets when workers are replaced for age, memory or connections; see [`RecyclePolicy`].
    /// Default: never.
    pub fn recycle(mut self, policy: RecyclePolicy) -> Builder {
        self.recycle = Some(policy);
        self
    }

    /// Allows workers these listeners and no others: any other request fails with `EACCES` and is
    /// reported as [`Violation::Forbidden`](crate::event::Violation::Forbidden). May be called
    /// several times. By default workers may have any listener, as under Node. Restrict them where
    /// this process has privileges that its workers have not, because this process binds the
    /// sockets. A worker that names no address needs a pattern that means both families (`8000`,
    /// `[::]:8000`). Unix sockets of workers that run as another user are made with that user's
    /// rights to files alone, unless their paths are named here.
    pub fn may_listen(mut self, listeners: Pattern) -> Builder {
        self.config.may_listen.get_or_insert_default().push(listeners);
        self
    }

    /// Sets for which listeners idle HTTP/1 connections move from workers with more than their share
    /// to workers with fewer: when a worker has joined, and from time to time while connections come.
    /// A worker's share goes by its weight where the policy does. The connections are those of `troop::serve`, and of
    /// Node's HTTP servers with [`Setup::preload`](crate::setup::Setup::preload). Nothing moves where
    /// the policy is `sticky`, `shared` or a program's own. Default: [`Rebalanced::All`].
    pub fn rebalance(mut self, listeners: Rebalanced) -> Builder {
        self.explicit.insert("rebalance");
        self.config.rebalance = listeners;
        self
    }

    /// Sets a periodic health check of each worker; see [`HealthCheck`]. Without supervision a failed
    /// check is an event alone. Default: none, but for [`Builder::hang_timeout`].
    pub fn health(mut self, check: HealthCheck) -> Builder {
        self.health = Some(check);
        self
    }

    /// Sets the receiver of what workers write to streams with
    /// [`Stdio::Collect`](crate::setup::Stdio::Collect); see [`Output`].
    pub fn output(mut self, output: impl Output + 'static) -> Builder {
        self.output = Some(Box::new(output));
        self
    }

    /// Leaves these signals to the program, instead of having [`Builder::run`] handle them. A signal
    /// that [`Builder::run`] does not handle is an error.
    pub fn leave_signals(mut self, signals: impl IntoIterator<Item = i32>) -> Builder {
        self.left_signals.extend(signals);
        self
    }

    /// Makes [`Builder::run`] reap ended children of this process that nobody has reaped after two
    /// seconds, whoever has started them: orphans that process 1 gets, and processes that a worker
    /// makes this one's children (`CLONE_PARENT` of `clone(2)`). A program that waits for children of
    /// its own later than that does not find them. Default: true for process 1, else false.
    pub fn reap_orphans(mut self, reap: bool) -> Builder {
        self.reap_orphans = Some(reap);
        self
    }

    /// Calls `observer` with every event, in order, in the thread of [`Builder::run`]. It should
    /// return soon, because connections wait meanwhile.
    pub fn on_event(mut self, observer: impl FnMut(&Event) + 'static) -> Builder {
        self.observers.push(Box::new(observer));
        self
    }

    /// Calls `starter` with the cluster before the first fork, in the thread that starts it: for
    /// another thread that controls it under [`Builder::run`], and for [`Cluster::events`] that
    /// miss nothing however the cluster is started.
    pub fn on_start(mut self, starter: impl FnOnce(Cluster) + 'static) -> Builder {
        self.starters.push(Box::new(starter));
        self
    }

    fn supervision(&self, workers: usize) -> supervise::Config {
        let mut config = supervise::Config::new(workers);
        config.replace = self.replace.clone();
        if let Some(restart) = &self.restart {
            config.restart = restart.clone();
        }
        config.grace = self.grace_period();
        config.is_activated = self.activation.is_some();
        config.sees_own = true;
        config.drain_delay = self.drain_delay.unwrap_or_default();
        config.seed = random_seed();
        config
    }

    fn grace_period(&self) -> Duration {
        self.grace.unwrap_or(DEFAULT_GRACE_PERIOD)
    }

    fn driver(&mut self, in_thread: bool, supervised: bool) -> Result<(Driver, Cluster)> {
        let event_fd = if in_thread {
            Some(EventFd::new().map_err(Error::io("make an event descriptor"))?)
        } else {
            None
        };
        let (sender, commands) = mpsc::channel();
        let driver_handle = DriverHandle { sender, wake: Arc::new(Wake::new(event_fd)) };
        let (bus, table) = (Arc::new(Bus::default()), Table::default());
        let mut config =
            Config { start_timeout: self.replace.ready_timeout, ..self.config.clone() };
        let is_default = !self.explicit.contains("scheduling");
        if is_default
            && config.scheduling == Scheduling::Auto
            && self.setup.is_kept_from_listening()
        {
            config.scheduling = Scheduling::RoundRobin;
        }
        let restored = self.restored.take();
        let primary = Primary::new(config);
        let options = core::Options {
            weights: self.weights.clone(),
            drain_spread: self
                .drain_spread
                .unwrap_or_else(|| (self.grace_period() / 3).min(DEFAULT_DRAIN_SPREAD))
                .min(self.grace_period()),
            recycle: self.recycle.clone().unwrap_or_default(),
            health_failures: self.health.as_ref().map_or(1, |check| check.failures),
            shares_by_connections: self.activation_by_connections,
        };
        let core = core::Cluster::new(primary, options);
        let core = match &restored {
            Some(state) => self.core_of(state, core)?,
            None => core,
        };
        let has_activation = self.activation.is_some();
        let cluster = Cluster::new(
            driver_handle.clone(),
            bus.clone(),
            table.clone(),
            has_activation,
            supervised,
        );
        let mut setup = Setup::new();
        setup.cluster = self.cluster_part(supervised);
        let driver = Driver::new(core, setup, in_thread, driver_handle, commands, bus, table);
        let mut driver = driver.map_err(Error::io("set up the primary"))?;
        driver.change_setup(self.setup.clone());
        driver.ready_when(self.replace.ready_when);
        self.inherited.iter().cloned().for_each(|socket| driver.offer(socket));
        driver.spawner_mut().output = self.output.take();
        if let Some(state) = restored {
            driver.restore(state).map_err(Error::io("go on with the state of another primary"))?;
        }
        if let Some(check) = self.health.take() {
            health::start(driver.driver_handle(), check)
                .map_err(Error::io("start a thread for health checks"))?;
        }
        Ok((driver, cluster))
    }

    /// Starts the cluster in a new thread, without a runtime, and calls `observer` there with every
    /// event. The observer must neither block nor ask for a `RelayIo` (feature `embed`).
    /// Signals are left alone. The thread ends when the last clone of the [`Cluster`] has been
    /// dropped. With [`Builder::workers`] it forks and supervises as many; without, the program
    /// forks.
    ///
    /// # Errors
    /// When out of descriptors, or a thread cannot be started; [`Error::Settings`] for a setting
    /// that would have no effect; [`Error::RoleNotTaken`] where `NODE_UNIQUE_ID` says that this is
    /// a worker.
    pub fn start_in_thread(
        mut self,
        mut observer: impl FnMut(&Event) + Send + 'static,
    ) -> Result<Cluster> {
        nesting::may_be_embedded()?;
        self.check_observers("start_in_thread", "its observer gets the events")?;
        self.check(self.workers.is_some())?;
        let (mut driver, cluster) = self.driver(true, self.workers.is_some())?;
        if let Some(workers) = self.workers {
            driver.supervise(Supervisor::new(self.supervision(workers)));
        }
        self.starters.drain(..).for_each(|start| start(cluster.clone()));
        let thread = std::thread::Builder::new().name("troop".into());
        let started = thread.spawn(move || {
            // Waiting callers see the end, because their answers are dropped.
            let _ = Span::of_primary().in_scope(|| driver.run_in_thread(&mut observer));
        });
        started.map_err(Error::io("start a thread for the primary"))?;
        Ok(cluster)
    }

    /// Starts the cluster as a task of the tokio runtime that this is called in. With
    /// [`Builder::workers`] it forks and supervises as many; without, the program forks.
    ///
    /// # Errors
    /// When out of descriptors; [`Error::Settings`] for a setting that would have no effect;
    /// [`Error::RoleNotTaken`] in a worker that does not know that it is one.
    ///
    /// # Panics
    /// Outside a tokio runtime that has I/O and time enabled.
    pub fn start(mut self) -> Result<Cluster> {
        nesting::may_be_primary()?;
        self.check_observers("start", "Cluster::events has the events")?;
        self.check(self.workers.is_some())?;
        let (mut driver, cluster) = self.driver(false, self.workers.is_some())?;
        if let Some(workers) = self.workers {
            driver.supervise(Supervisor::new(self.supervision(workers)));
        }
        self.starters.drain(..).for_each(|start| start(cluster.clone()));
        tokio::spawn(Span::of_primary().wrap(driver.run_in_runtime()));
        Ok(cluster)
    }

    /// Forks the workers, keeps them running, and blocks until the end: `SIGTERM` or `SIGINT` ends
    /// them gracefully (another one at once, unless it arrives within half a second of the first:
    /// then a process and its group were signalled), `SIGQUIT` at once; `SIGHUP` replaces them one
    /// by one; `SIGTTIN` and `SIGTTOU` start one more and one less, as in gunicorn; `SIGWINCH`
    /// ends the workers and keeps the listeners, until `SIGHUP`. Raises this process's limit on
    /// descriptors to the hard limit; workers get the old one. As process 1 it reaps orphans too.
    ///
    /// Workers lead process groups of their own, so that Ctrl-C, and a signal to this process's
    /// group, reach this process first, which lets them finish; [`Setup::own_process_group`]
    /// changes that. Ctrl-Z stops this process alone.
    ///
    /// Workers execute the image that this process runs, also after its file was replaced. For
    /// `SIGHUP` to start a version that was installed meanwhile, set
    /// [`Setup::program_on_disk`]. A `SIGHUP` during a reload is another reload afterwards.
    ///
    /// # Errors
    /// [`Error::GaveUp`] if no worker became ready, or as [`RestartPolicy`] says;
    /// [`Error::RoleNotTaken`] in a worker that does not know that it is one.
    pub fn run(mut self) -> Result<()> {
        nesting::may_be_primary()?;
        let workers = self.workers.unwrap_or_else(available_workers);
        let may_have_none = self.restart.as_ref().is_some_and(|policy| policy.stay_when_ended);
        if workers == 0 && !may_have_none {
            return Err(Error::Settings("a cluster needs at least one worker".into()));
        }
        let is_restored = self.take_activation()?;
        self.check(true)?;
        let (mut driver, cluster) = self.driver(true, true)?;
        if is_restored {
            // Workers get the limit that was there before it was raised the first time.
            let _ = troop_sys::process::raise_descriptor_limit();
        } else {
            driver.spawner_mut().descriptor_limit = troop_sys::process::raise_descriptor_limit();
        }
        let mut signals = SIGNALS.to_vec();
        signals.retain(|(signal, _)| !self.left_signals.contains(signal));
        if self.reap_orphans.unwrap_or(std::process::id() == 1) {
            signals.push((SIGCHLD, SignalMeans::ChildEnded));
        }
        driver.handle_signals(signals).map_err(Error::io("catch signals"))?;
        driver.be_kept(self.note.take()).map_err(Error::io("hear the keeper"))?;
        self.starters.drain(..).for_each(|start| start(cluster.clone()));
        if !is_restored {
            driver.supervise(Supervisor::new(self.supervision(workers)));
        }
        // The worker whose end made the supervisor give up. Those that end after it were ended for it.
        let (mut last_failed, mut gave_up) = (None, false);
        let observe = |event: &Event| {
            match event {
                Event::Exit { worker, exit: how } if !gave_up && !how.is_success() => {
                    last_failed = Some((worker.clone(), *how));
                }
                Event::Supervision(Progress::GivingUp(_)) => gave_up = true,
                _ => {}
            }
            self.observers.iter_mut().for_each(|observe| observe(event));
        };
        if is_restored {
            // Those that have come since wait, and are handled from now on.
            troop_sys::signals::unblock_all();
        }
        let outcome = Span::of_primary().in_scope(|| driver.run_in_thread(observe))?;
        match outcome {
            Outcome::Stopped { .. } => Ok(()),
            Outcome::GaveUp(why) => {
                let mut reason = why.to_string();
                match (&why, &last_failed) {
                    (GiveUp::NeverReady { cause: Cause::NotStarted(_), .. }, _) => {
                        return Err(Error::GaveUp { reason, last_lines: None });
                    }
                    (GiveUp::NotReady { .. }, Some((worker, how))) => {
                        reason.push_str(&format!("; worker {} ended with {how}", worker.id()));
                    }
                    _ => {}
                }
                let last_lines = last_failed
                    .and_then(|(worker, _)| worker.last_stderr(Duration::from_millis(500)))
                    .filter(|tail| !tail.trim().is_empty());
                Err(Error::GaveUp { reason, last_lines })
            }
        }
    }
}
