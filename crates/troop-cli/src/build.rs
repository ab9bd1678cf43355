//! Turns a resolved app into a cluster builder.

use std::ffi::{OsStr, OsString};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::FileType;

use troop::activation::{ActivationSocket, InheritedSocket};
use troop::policy::Rebalanced;
use troop::setup::{Resource, Stdio};
use troop::supervise::{
    HealthCheck, HealthTest, ReadyWhen, RecyclePolicy, ReplacePolicy, RestartPolicy, WhenFailed,
};
use troop::text::tells_of_used_address;
use troop::{Builder, Cluster, Error, Scheduling, Setup};

use uzers::os::unix::UserExt as _;

use crate::config::{self, Failed, KillMode, Limited, Ready, Rebalance, When};
use crate::error::RunError;
use crate::in_use::Bound;
use crate::log;
use crate::moves;
use crate::names;
use crate::preflight;
use crate::program;
use crate::records::Scaled;
use crate::records::keeper::ID_VARIABLE;
use crate::resolve::{Pm2Mode, ResolvedApp};
use crate::watch;

/// The signal on which node writes a report.
const SIGUSR2: i32 = 12;

/// The variable by which the script of Node workers lets a program end that has nothing left to do.
const FINITE: &str = "TROOP_FINITE";

/// `restart.window` under a debugger, where a worker may wait for a long time before it is ready.
const DEBUGGED_WINDOW: Duration = Duration::from_secs(86_400);

/// Interval of attempts to bind while former workers end.
const BIND_INTERVAL: Duration = Duration::from_millis(50);

/// The variable with the number by which PM2 knows a process.
const PM2_ID: &str = "pm_id";

/// Variables of the primary that workers do not inherit.
pub(crate) const OWN_VARIABLES: [&str; 12] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    crate::start::VARIABLE,
    crate::start::RESUMED_VARIABLE,
    crate::together::VARIABLE,
    crate::kept::CHOSEN_VARIABLE,
    ID_VARIABLE,
    crate::records::scaled::VARIABLE,
    crate::restart::VARIABLE,
    crate::restart::ALONE_VARIABLE,
    "TROOP_POLICY",
];

impl ResolvedApp {
    /// Returns the builder of the cluster, without event handlers, and the sockets of `bind`. One that goes
    /// on with the state of another engine (`is_resumed`) has them from there.
    pub(crate) fn builder(&self, is_resumed: bool) -> Result<(Builder, Bound), RunError> {
        preflight::check_files(self)?;
        let app = &self.app;
        let mut builder = Cluster::builder()
            // A job has none between its runs.
            .workers(if app.cron.is_some() { 0 } else { self.first_workers() })
            .setup(self.setup()?)
            .grace(self.grace())
            .drain_delay(self.app.drain_delay.map_or(Duration::ZERO, |delay| delay.0))
            .weights(app.weights.clone())
            .restart(self.restart_policy())
            .keep_listeners(app.restart.keep_listeners.unwrap_or(true) || !app.bind.is_empty())
            .replace(self.replace_policy())
            .recycle(self.recycle_policy());
        // A worker that is stopped at a breakpoint does not answer, and must not be killed.
        match app.hang_timeout {
            _ if self.is_debugged() => builder = builder.hang_timeout(None),
            Some(limit) => {
                builder = builder.hang_timeout(Some(limit.0).filter(|limit| !limit.is_zero()))
            }
            None => {}
        }
        for fd in &app.fds {
            builder = builder.inherited([InheritedSocket::at(*fd)?]);
        }
        for at in &app.may_listen {
            builder = builder
                .may_listen(at.parse().map_err(|e| RunError::Usage(format!("may_listen: {e}")))?);
        }
        match &app.rebalance {
            None => {}
            Some(Rebalance::All(true)) => builder = builder.rebalance(Rebalanced::All),
            Some(Rebalance::All(false)) => builder = builder.rebalance(Rebalanced::None),
            Some(Rebalance::Only(addresses)) => {
                let patterns = addresses.iter().map(|at| at.parse()).collect::<Result<_, _>>();
                let patterns = patterns.map_err(|e| RunError::Usage(format!("rebalance: {e}")))?;
                builder = builder.rebalance(Rebalanced::Only(patterns));
            }
        }
        if let Some(time) = app.drain_spread {
            builder = builder.drain_spread(time.0);
        }
        if let Some(check) = self.health()? {
            builder = builder.health(check);
        }
        // With sockets by activation the policy is a property of these.
        if let Some(policy) = app.policy.clone().filter(|_| app.bind.is_empty()) {
            builder = builder.scheduling(policy);
        }
        for (listener, policy) in app.listeners.clone() {
            let listener = listener
                .parse()
                .map_err(|e: troop::policy::BadScheduling| RunError::Usage(e.to_string()))?;
            builder = builder.scheduling_of(listener, policy);
        }
        let mut bound = Bound::default();
        let inherited = InheritedSocket::all()?;
        if app.bind.is_empty() {
            builder = builder.inherited(inherited);
        } else {
            let by_connections = matches!(app.policy, Some(Scheduling::LeastConnections));
            builder = builder.activation_by_connections(by_connections);
            if is_resumed {
                return Ok((builder, bound));
            }
            let is_steered = matches!(app.policy, Some(Scheduling::Steered(_))) || by_connections;
            let slots = if is_steered { self.first_workers() } else { 0 };
            let sockets = bind_when_free(&app.bind, &inherited, slots, self.time_to_bind())?;
            let sockets = self.with_access(sockets)?;
            for socket in &sockets {
                log::line(&format!("troop: listening on {socket}"));
            }
            bound = Bound::new(sockets.iter().map(|at| at.address().to_owned()).collect());
            builder = builder.activation(sockets);
        }
        Ok((builder, bound))
    }

    /// Returns how long former workers may still have the sockets: those of engines that this one has
    /// nothing of.
    fn time_to_bind(&self) -> Duration {
        troop::keeper::set_aside().map_or(Duration::ZERO, |_| self.grace())
    }

    /// Has the sockets that the app was started with: what a file says of them since is for the next start.
    pub(crate) fn keep_sockets_of(&mut self, started: &ResolvedApp) {
        if !self.app.bind.is_empty() || !started.app.bind.is_empty() {
            self.app.bind.clone_from(&started.app.bind);
            self.app.policy.clone_from(&started.app.policy);
        }
    }

    /// Returns the number of workers to begin with: that of `troop scale` before a restart, unless
    /// the configuration has another one than then.
    fn first_workers(&self) -> usize {
        let given = Scaled::given().filter(|scaled| scaled.instead_of == self.workers());
        given.map_or_else(|| self.workers(), |scaled| scaled.workers)
    }

    /// Returns what workers read: in the background, as under PM2, what `troop attach` passes on.
    /// Another user's worker could keep the primary's end, and a job may wait for the end of its input.
    fn input(&self) -> Stdio {
        let app = &self.app;
        let is_own = app.user.is_none() && app.group.is_none();
        match self.background && is_own && app.cron.is_none() {
            true => Stdio::Pipe,
            false => Stdio::Null,
        }
    }

    /// Returns the settings that workers are started with.
    pub(crate) fn setup(&self) -> Result<Setup, Error> {
        preflight::check_length(self).map_err(Error::Settings)?;
        let app = &self.app;
        let args = self.args.iter().map(|arg| self.with_numbers(arg)).collect();
        let search = self.variable("PATH");
        let cwd = self.cwd.as_deref();
        let mut setup =
            program::setup(&self.program, &app.node_args, args, cwd, search.as_deref())?
                .discard_earlier()
                // Ctrl-C must reach the primary alone, which then drains the workers.
                .own_process_group(true)
                .stdin(self.input())
                .slot_variable("NODE_APP_INSTANCE");
        setup = match (app.silent, self.collects()) {
            (true, _) => setup.stdout(Stdio::Null).stderr(Stdio::Capture),
            (false, true) => setup.stdout(Stdio::Collect).stderr(Stdio::Collect),
            // A reader that goes away, as `head` does, must not end workers.
            (false, false) if is_pipe(rustix::stdio::stdout()) => {
                setup.stdout(Stdio::Forward).stderr(Stdio::Forward)
            }
            (false, false) => setup.stdout(Stdio::Inherit).stderr(Stdio::Forward),
        };
        if let Some(inherited) = &self.inherited {
            for (name, _) in std::env::vars_os().filter(|(name, _)| !inherited.contains_key(name)) {
                setup = setup.env_remove(name);
            }
            for (name, value) in inherited.iter() {
                setup = setup.env(name, value);
            }
        }
        for name in OWN_VARIABLES {
            setup = setup.env_remove(name);
        }
        for name in self.filtered_variables() {
            setup = setup.env_remove(name);
        }
        setup = self.pm2_variables(setup);
        for (name, value) in &self.env {
            setup = setup.env(name, value);
        }
        if let Some(cwd) = &self.cwd {
            setup = setup.cwd(cwd);
        }
        if let Some(name) = &app.slot_variable {
            setup = setup.slot_variable(name);
        }
        if let Some(name) = &app.increment_variable {
            setup = setup.counting_variable(name, self.first_number(name)?);
        }
        let wrong = |what: &str, e: String| Error::Settings(format!("{what}: {e}"));
        if let Some(umask) = &app.umask {
            setup = setup.umask(config::octal(umask).map_err(|e| wrong("umask", e))?);
        }
        if let Some(nice) = app.nice {
            setup = setup.nice(nice);
        }
        setup = setup.cpus(app.cpu_sets().map_err(|e| wrong("cpus", e))?);
        for (limited, limit) in &app.limits {
            let (soft, hard) = limit.values().map_err(|e| wrong("limits", e))?;
            setup = setup.limit(resource(*limited), soft, hard);
        }
        setup = setup.cgroup(app.cgroup.limits()).sandbox(app.sandbox.settings());
        if let Some(signal) = &app.report_signal {
            setup =
                setup.report_signal(names::signal(signal).map_err(|e| wrong("report_signal", e))?);
        } else if app.node_args.iter().any(|arg| arg == "--report-on-signal") {
            setup = setup.report_signal(SIGUSR2);
        }
        if let Some(signal) = &app.stop_signal {
            setup = setup.stop_signal(names::signal(signal).map_err(|e| wrong("stop_signal", e))?);
        }
        if let Some(all) = app.stop_group {
            setup = setup.stop_group(all);
        }
        if let Some(signal) = &app.kill_signal {
            setup = setup.kill_signal(names::signal(signal).map_err(|e| wrong("kill_signal", e))?);
        }
        setup = setup.shutdown_message(app.shutdown_with_message).kill_mode(match app.kill_mode {
            None | Some(KillMode::Tree) => troop::setup::KillMode::Tree,
            Some(KillMode::Group) => troop::setup::KillMode::Group,
            Some(KillMode::Process) => troop::setup::KillMode::Process,
        });
        let setup = self.identity(setup)?;
        if self.runs_alone() {
            return Ok(setup.alone(true).preload(""));
        }
        if !app.move_connections.unwrap_or(true) || !app.bind.is_empty() {
            return Ok(setup.preload(""));
        }
        let setup = moves::add(setup);
        let is_finite = self.restarts() != When::Always;
        // The script takes it away.
        Ok(if is_finite && setup.get_preload().is_some() { setup.env(FINITE, "1") } else { setup })
    }

    /// Sets the variables by which programs know that PM2 runs them, and as what.
    fn pm2_variables(&self, setup: Setup) -> Setup {
        let Some(mode) = self.pm2_mode else { return setup };
        let mode = match mode {
            Pm2Mode::Fork => "fork_mode",
            Pm2Mode::Cluster => "cluster_mode",
        };
        let here = std::path::absolute(self.cwd.as_deref().unwrap_or(Path::new(".")));
        let here = here.unwrap_or_default();
        let mut setup = setup
            .env("name", self.name.as_deref().unwrap_or(&self.default_name))
            .env("namespace", self.app.namespace.as_deref().unwrap_or("default"))
            .env("exec_mode", mode)
            .env("pm_cwd", &here);
        if program::is_script(Path::new(&self.program)) {
            setup = setup.env("pm_exec_path", here.join(&self.program));
        }
        if self.env.contains_key(OsStr::new(PM2_ID)) {
            return setup;
        }
        // The number that verbs know it by, and the next ones for further workers.
        let id = std::env::var(ID_VARIABLE).ok().and_then(|id| id.parse().ok());
        setup.counting_variable(PM2_ID, id.unwrap_or(0))
    }

    /// Returns the inherited variables that workers do not get.
    fn filtered_variables(&self) -> impl Iterator<Item = OsString> {
        let (kept, removed): (Vec<_>, Vec<_>) =
            self.app.env_remove.iter().partition(|pattern| pattern.starts_with('!'));
        let is_removed = move |name: &OsString| {
            let name = name.to_string_lossy();
            removed.iter().any(|pattern| watch::matches(pattern, &name))
                && !kept.iter().any(|pattern| watch::matches(&pattern[1..], &name))
        };
        let inherited = self.inherited.iter().flat_map(|inherited| inherited.keys().cloned());
        let names: Vec<_> = std::env::vars_os().map(|(name, _)| name).chain(inherited).collect();
        names.into_iter().filter(is_removed)
    }

    /// Returns the value of a variable of the workers.
    fn variable(&self, name: &str) -> Option<OsString> {
        let own = self.env.get(OsStr::new(name)).cloned();
        own.or_else(|| match &self.inherited {
            Some(inherited) => inherited.get(OsStr::new(name)).cloned(),
            None => std::env::var_os(name),
        })
    }

    /// Returns the value of a variable in the first slot, which grows by the slot.
    fn first_number(&self, name: &str) -> Result<i64, Error> {
        let Some(value) = self.variable(name) else { return Ok(0) };
        let number = value.to_str().and_then(|text| text.trim().parse().ok());
        number.ok_or_else(|| {
            Error::Settings(format!(
                "increment_variable: {name} is {:?}, and must be a number",
                value.to_string_lossy()
            ))
        })
    }

    /// Sets the user and the groups of the workers.
    pub(crate) fn identity(&self, mut setup: Setup) -> Result<Setup, Error> {
        let (user, group) = (self.app.user.as_deref(), self.app.group.as_deref());
        if let Some(name) = user {
            let number = name.parse().ok();
            let found =
                uzers::get_user_by_name(name).or_else(|| number.and_then(uzers::get_user_by_uid));
            match found {
                Some(user) => {
                    let groups = uzers::get_user_groups(user.name(), user.primary_group_id());
                    let groups = groups.ok_or_else(|| {
                        Error::Settings(format!("cannot find the groups of user {name:?}"))
                    })?;
                    setup = setup.uid(user.uid()).gid(user.primary_group_id());
                    setup = setup.groups(groups.iter().map(uzers::Group::gid).collect::<Vec<_>>());
                    let (name, home, shell) =
                        (user.name(), user.home_dir().as_os_str(), user.shell().as_os_str());
                    for (variable, value) in
                        [("HOME", home), ("USER", name), ("LOGNAME", name), ("SHELL", shell)]
                    {
                        // As systemd does. The app's own environment overrides these.
                        if !self.env.contains_key(OsStr::new(variable)) {
                            setup = setup.env(variable, value);
                        }
                    }
                }
                // A number without an entry in the user database has no primary group.
                None => match number {
                    Some(_) if group.is_none() => {
                        return Err(Error::Settings(format!(
                            "user {name} is not in the user database, so `group` is needed too"
                        )));
                    }
                    Some(uid) => setup = setup.uid(uid),
                    None => return Err(Error::Settings(format!("there is no user {name:?}"))),
                },
            }
        }
        if let Some(name) = group {
            let found = uzers::get_group_by_name(name)
                .map(|group| group.gid())
                .or_else(|| name.parse().ok());
            setup = setup
                .gid(found.ok_or_else(|| Error::Settings(format!("there is no group {name:?}")))?);
        }
        Ok(match self.app.no_new_privileges {
            Some(none) => setup.no_new_privileges(none),
            None => setup,
        })
    }

    /// Replaces `{fd}` and `{fd1}` in an argument by the numbers of the sockets.
    fn with_numbers(&self, arg: &OsString) -> OsString {
        let bind = &self.app.bind;
        let Some(text) = arg.to_str().filter(|text| !bind.is_empty() && text.contains("{fd"))
        else {
            return arg.clone();
        };
        let text = text.replace("{fd}", "3");
        (0..bind.len())
            .fold(text, |text, at| text.replace(&format!("{{fd{at}}}"), &(at + 3).to_string()))
            .into()
    }

    /// Returns when workers are restarted that have ended.
    fn restarts(&self) -> When {
        let usual = if self.app.cron.is_some() { When::Never } else { When::default() };
        self.app.restart.when.unwrap_or(usual)
    }

    fn restart_policy(&self) -> RestartPolicy {
        let options = &self.app.restart;
        let mut policy = RestartPolicy::new(self.first_workers());
        policy.restart = match self.restarts() {
            When::Always => troop::supervise::Restart::Always,
            When::OnFailure => troop::supervise::Restart::OnFailure,
            When::Never => troop::supervise::Restart::Never,
        };
        policy.final_codes.clone_from(&options.final_codes);
        let set = |field: &mut Duration, value: Option<config::Time>| {
            *field = value.map_or(*field, |time| time.0)
        };
        set(&mut policy.min_uptime, options.min_uptime);
        set(&mut policy.first_delay, options.delay);
        policy.max_delay = policy.max_delay.max(policy.first_delay);
        set(&mut policy.max_delay, options.max_delay);
        if self.is_debugged() {
            // A worker that waits for its debugger is not ready for long.
            policy.window = DEBUGGED_WINDOW;
        }
        set(&mut policy.window, options.window);
        policy.max_ends = options.max.unwrap_or(policy.max_ends);
        policy.when_failed = match options.when_failed.unwrap_or_default() {
            Failed::Stay => WhenFailed::Stay,
            Failed::End => WhenFailed::End,
        };
        // A job that fails is tried again at its next time.
        policy.stay_when_ended = self.app.cron.is_some();
        policy.been_ready =
            policy.stay_when_ended || std::env::var_os(crate::restart::VARIABLE).is_some();
        policy
    }

    fn replace_policy(&self) -> ReplacePolicy {
        let mut policy = ReplacePolicy::default();
        policy.ready_when = match self.app.ready {
            None | Some(Ready::Auto) => ReadyWhen::Auto,
            Some(Ready::Listening) => ReadyWhen::Listening,
            Some(Ready::Message) => ReadyWhen::Message,
            Some(Ready::Notify) => ReadyWhen::Notified,
        };
        policy.ready_timeout = self.app.ready_timeout.map_or(policy.ready_timeout, |time| time.0);
        policy.assume_ready_after = self.app.assume_ready.map(|time| time.0);
        policy.min_ready_time =
            self.app.min_ready_time.map_or(policy.min_ready_time, |time| time.0);
        (policy.max_surge, policy.max_unavailable) =
            match (self.app.max_surge, self.app.max_unavailable) {
                // What listens by itself has to leave before its successor can.
                (None, None) if self.runs_alone() => (0, 1),
                (surge, unavailable) => (
                    surge.unwrap_or(policy.max_surge),
                    unavailable.unwrap_or(policy.max_unavailable),
                ),
            };
        // Under PM2 a reload of such an app is a restart.
        policy.make_way_unless_listening = self.pm2_mode == Some(Pm2Mode::Fork)
            && (self.app.max_surge, self.app.max_unavailable) == (None, None);
        policy
    }

    fn recycle_policy(&self) -> RecyclePolicy {
        let options = &self.app.recycle;
        let mut policy = RecyclePolicy::default();
        (policy.memory, policy.age) =
            (options.memory.map(|size| size.0), options.age.map(|time| time.0));
        (policy.connections, policy.jitter) =
            (options.connections, options.jitter.unwrap_or(policy.jitter));
        policy
    }

    fn health(&self) -> Result<Option<HealthCheck>, RunError> {
        let Some(options) = &self.app.health else { return Ok(None) };
        let test = match (&options.http, &options.command) {
            (Some(path), _) => HealthTest::Http(path.clone()),
            (_, Some(command)) => HealthTest::Command(command.clone()),
            _ => HealthTest::Tcp,
        };
        let mut check = HealthCheck::new(test);
        check.every = options.every.map_or(check.every, |time| time.0);
        check.timeout = options.timeout.map_or(check.timeout, |time| time.0);
        check.failures = options.failures.unwrap_or(check.failures);
        let listener = options.listener.as_ref().map(|listener| listener.parse()).transpose();
        check.listener =
            listener.map_err(|e: troop::policy::BadScheduling| RunError::Usage(e.to_string()))?;
        Ok(Some(check))
    }
}

/// Whether a stream is a pipe.
fn is_pipe(stream: BorrowedFd<'_>) -> bool {
    rustix::fs::fstat(stream)
        .is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::Fifo)
}

/// Opens the sockets of `bind`, or takes those of systemd: `systemd` for all of them, `systemd:NAME`
/// for those of one name. With `slots` above 0 each of that many workers gets a socket of its own.
fn bind(
    places: &[String],
    inherited: &[InheritedSocket],
    slots: usize,
) -> Result<Vec<ActivationSocket>, Error> {
    let mut sockets = Vec::new();
    for text in places {
        let (name, place) =
            text.split_once('=').map_or((None, text.as_str()), |(name, place)| (Some(name), place));
        let Some(wanted) = place.strip_prefix("systemd") else {
            sockets.push(if slots > 0 {
                ActivationSocket::bind_steered(text, slots)?
            } else {
                ActivationSocket::bind(text)?
            });
            continue;
        };
        if slots > 0 {
            return Err(Error::Settings(format!(
                "{place}: sockets from systemd cannot be steered"
            )));
        }
        let wanted = wanted.strip_prefix(':').filter(|wanted| !wanted.is_empty());
        let found: Vec<_> = inherited
            .iter()
            .filter(|socket| wanted.is_none_or(|wanted| socket.name() == wanted))
            .collect();
        if found.is_empty() {
            let names: Vec<_> = inherited.iter().map(InheritedSocket::name).collect();
            let there = if names.is_empty() {
                "it passed none".into()
            } else {
                format!("there are {}", names.join(", "))
            };
            return Err(Error::Settings(format!(
                "{place}: there is no such socket from systemd; {there} (LISTEN_FDS)"
            )));
        }
        for socket in found {
            sockets.push(ActivationSocket::inherited(socket, name)?);
        }
    }
    Ok(sockets)
}

/// The same, and waits for this time if others still have the addresses.
fn bind_when_free(
    places: &[String],
    inherited: &[InheritedSocket],
    slots: usize,
    time: Duration,
) -> Result<Vec<ActivationSocket>, Error> {
    let until = Instant::now() + time;
    loop {
        match bind(places, inherited, slots) {
            Err(e) if tells_of_used_address(&e.chain()) && Instant::now() < until => {
                std::thread::sleep(BIND_INTERVAL);
            }
            result => return result,
        }
    }
}

fn resource(limited: Limited) -> Resource {
    match limited {
        Limited::Files => Resource::Files,
        Limited::Core => Resource::Core,
        Limited::Cpu => Resource::Cpu,
        Limited::Memory => Resource::Memory,
        Limited::Stack => Resource::Stack,
        Limited::Data => Resource::Data,
        Limited::Locked => Resource::Locked,
        Limited::Processes => Resource::Processes,
        Limited::FileSize => Resource::FileSize,
    }
}
