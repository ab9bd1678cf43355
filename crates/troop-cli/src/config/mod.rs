//! Configuration files: `troop.toml`, PM2's formats and Procfiles.

mod app;
pub(crate) mod clashes;
mod cron;
mod effects;
pub(crate) mod env_file;
pub(crate) mod foreign;
mod inspect;
mod pm2;
mod problems;
mod procfile;
mod sandbox;
pub(crate) mod source;
mod tables;
mod toml_file;
mod values;
mod variables;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGKILL, SIGSTOP};
use troop::Scheduling;
use troop::activation::ActivationSocket;
use troop::policy::Pattern;

pub(crate) use app::{App, LIVE};
pub(crate) use cron::{NextTime, Times};
pub(crate) use pm2::choose as choose_environment;
pub(crate) use pm2::execute_once;
pub(crate) use pm2::fields::LISTEN_TIMEOUT;
pub(crate) use pm2::logs::{LogPath, TO_STREAMS};
pub(crate) use procfile::app as app_of_command;
pub(crate) use tables::{
    Alone, Failed, Form, Health, KillMode, Limit, LimitValue, Limited, LogFormat, Output, Overlap,
    Ready, Rebalance, To, Watch, When,
};
pub(crate) use values::{Size, Time, Workers, bounded, cpus, instances, size, time, workers};

use crate::{names, suggest};

/// The default configuration file.
pub(crate) const DEFAULT_FILE: &str = "troop.toml";

/// Files of other programs that are read where there is no `troop.toml`, the first one that exists.
const USUAL_FILES: [&str; 9] = [
    "ecosystem.config.js",
    "ecosystem.config.cjs",
    "ecosystem.config.mjs",
    "ecosystem.config.json",
    "ecosystem.config.yml",
    "ecosystem.json",
    "ecosystem.yml",
    "process.json",
    "Procfile",
];

/// Time that a program may take which runs once, and which others start after.
const ONCE_TIMEOUT: Duration = Duration::from_secs(600);

/// Returns the configuration file of this directory.
pub(crate) fn usual_file() -> Option<PathBuf> {
    let names = std::iter::once(DEFAULT_FILE).chain(USUAL_FILES);
    names.map(PathBuf::from).find(|file| file.is_file() || (file.exists() && !file.is_dir()))
}

/// The error for policies beside `bind`.
pub(crate) const NO_POLICY: &str = "with `bind` the kernel spreads the connections: there is no policy but `shared` and, with weights if they are wanted, `steered` and `least-connections`";

/// Apps by name.
pub(crate) type Apps = BTreeMap<String, App>;

/// A `troop.toml`.
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "troop.toml")]
pub(crate) struct File {
    /// The apps, by name.
    #[serde(default)]
    pub(crate) app: Apps,
}

/// Returns the JSON Schema of `troop.toml`.
pub(crate) fn schema() -> String {
    serde_json::to_string_pretty(&schemars::schema_for!(File)).unwrap_or_default()
}

/// The supported formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Toml,
    Pm2,
    Procfile,
}

/// Returns the format of a file by its name, or `None` if it cannot hold apps. A script is a
/// configuration only if its name ends with `.config.js` or similar.
pub(crate) fn format_of(file: &Path) -> Option<Format> {
    let name = file.file_name()?.to_str()?;
    let (stem, extension) = name.rsplit_once('.').unwrap_or((name, ""));
    match extension {
        "toml" => Some(Format::Toml),
        "json" | "yml" | "yaml" => Some(Format::Pm2),
        "js" | "cjs" | "mjs" if stem.ends_with(".config") => Some(Format::Pm2),
        _ if stem == "Procfile" => Some(Format::Procfile),
        _ => None,
    }
}

/// Reads all apps of a file.
///
/// # Errors
/// What is wrong, where, and what it could be instead.
pub(crate) fn read(file: &Path) -> Result<Apps, String> {
    Ok(read_with_warnings(file)?.0)
}

/// Reads all apps of a file, with warnings about options without effect.
pub(crate) fn read_with_warnings(file: &Path) -> Result<(Apps, Vec<String>), String> {
    let text = || source::text(file);
    let (apps, warnings) = match format_of(file).unwrap_or(Format::Toml) {
        Format::Toml => {
            let mut apps = source::parsed(file, text()?, from_toml)?;
            let warnings = foreign::warnings(&mut apps);
            (apps, warnings)
        }
        Format::Pm2 => pm2::read(file)?,
        Format::Procfile => {
            let has_env = beside(file).join(".env").exists();
            (source::parsed(file, text()?, move |text| procfile::parse(text, has_env))?, Vec::new())
        }
    };
    let (mut apps, mut warnings) = (checked(apps, file)?, warnings);
    let mut errors = Vec::new();
    for (name, app) in &apps {
        let found = app.ineffective();
        // What PM2 puts up with is no error.
        if is_pm2(file) {
            warnings.extend(found.iter().map(|what| format!("app.{name}: {what}")));
        } else {
            errors.extend(found.into_iter().map(|what| (name, what)));
        }
    }
    if !errors.is_empty() {
        let places = places(file);
        let line = |(name, what): (&String, String)| {
            let option = what.split(['.', ' ']).next().unwrap_or_default().to_owned();
            let place = places.get(&(name.clone(), option)).map(|place| format!("{place}: "));
            format!("{}: {}app.{name}: {what}", file.display(), place.unwrap_or_default())
        };
        return Err(errors.into_iter().map(line).collect::<Vec<_>>().join("\n"));
    }
    wait_for_the_end_of_what_runs_once(&mut apps);
    Ok((apps, warnings))
}

/// Has apps that run once, and that others start after, be ready at their end, unless they listen: how
/// long they have run says nothing of what the others need of them.
fn wait_for_the_end_of_what_runs_once(apps: &mut Apps) {
    let needed: BTreeSet<String> = apps.values().flat_map(|app| app.after.clone()).collect();
    for (name, app) in apps {
        let runs_once = app.restart.when == Some(When::Never) && app.cron.is_none();
        let can_be_seen = app.ready.is_none() && app.bind.is_empty() && app.alone.is_none();
        if needed.contains(name) && runs_once && can_be_seen {
            app.ready = Some(Ready::Listening);
            app.ready_timeout.get_or_insert(Time(ONCE_TIMEOUT));
        }
    }
}

/// Whether a file has PM2's format.
pub(crate) fn is_pm2(file: &Path) -> bool {
    matches!(format_of(file), Some(Format::Pm2))
}

/// Returns warnings about files that root reads and others can change: the file, and the
/// environment files of its apps.
pub(crate) fn warnings(file: &Path, apps: &Apps) -> Vec<String> {
    let more = apps
        .values()
        .flat_map(|app| app.env_file.iter().map(|named| app.directory(file).join(named)));
    source::warnings(&[file.to_owned()].into_iter().chain(more).collect::<Vec<_>>())
}

fn from_toml(text: &str) -> Result<Apps, String> {
    toml_file::parse(text, &|name| std::env::var(name).ok())
}

/// Returns a file as TOML, which means the same when it is read.
///
/// # Errors
/// What TOML cannot represent.
pub(crate) fn written(file: &File) -> Result<String, toml::ser::Error> {
    let mut value = toml::Value::try_from(file)?;
    variables::escape(&mut value);
    toml::to_string_pretty(&value)
}

/// Returns the apps of a `troop.toml`, without those of their options that are wrong.
pub(crate) fn repaired(file: &Path) -> Apps {
    match format_of(file) {
        Some(Format::Toml) => source::text(file).map_or_else(
            |_| Apps::new(),
            |text| toml_file::repaired(&text, &|name| std::env::var(name).ok()),
        ),
        _ => Apps::new(),
    }
}

/// Returns the places of the options of all apps in a `troop.toml`: those of `("web", "cwd")`.
pub(crate) fn places(file: &Path) -> BTreeMap<(String, String), String> {
    match format_of(file) {
        Some(Format::Toml) => {
            source::text(file).map_or_else(|_| BTreeMap::new(), |text| toml_file::places(&text))
        }
        _ => BTreeMap::new(),
    }
}

/// Parses a text as the content of a file of that name, which is not read. (JavaScript needs node.)
pub(crate) fn parse(text: &str, file: &Path) -> Result<Apps, String> {
    let apps = match format_of(file) {
        Some(Format::Procfile) => procfile::parse(text, false)?,
        Some(Format::Pm2) => pm2::parse(text, file)?,
        _ => from_toml(text)?,
    };
    checked(apps, file)
}

/// Checks apps without looking at other files.
fn checked(apps: Apps, file: &Path) -> Result<Apps, String> {
    let shown = file.display();
    if apps.is_empty() {
        return Err(format!(
            "{shown} has no app; in a {DEFAULT_FILE} one begins with a line such as [app.web]"
        ));
    }
    for (name, app) in &apps {
        if !names::is_app(name) {
            return Err(format!("{shown}: {name:?} cannot be an app's name: {}", names::APP_RULE));
        }
        app.check().map_err(|e| format!("{shown}: app.{name}{}", source::concise(&e)))?;
        if let Some(other) = app.after.iter().find(|other| !apps.contains_key(*other)) {
            let meant = suggest::app(other, apps.keys().map(String::as_str));
            return Err(format!(
                "{shown}: app.{name}.after: there is no app {other:?} here{meant}"
            ));
        }
    }
    if let Some(name) = in_circle(&apps) {
        return Err(format!("{shown}: app.{name}.after: it would start after itself"));
    }
    Ok(apps)
}

/// Returns an app that would start after itself.
fn in_circle(apps: &Apps) -> Option<&String> {
    let mut left: BTreeSet<&String> = apps.keys().collect();
    loop {
        let waits = |name: &&String| apps[*name].after.iter().any(|other| left.contains(other));
        let next: BTreeSet<_> = left.iter().copied().filter(waits).collect();
        if next.len() == left.len() {
            return left.into_iter().next();
        }
        left = next;
    }
}

impl App {
    /// Checks the options without looking at this machine. Errors begin with the option.
    pub(crate) fn check(&self) -> Result<(), String> {
        for listener in self.listeners.keys() {
            listener.parse::<Pattern>().map_err(|e| format!(".listeners: {e}"))?;
        }
        if let Some(bad) = self.env.keys().find(|key| key.is_empty() || key.contains('=')) {
            return Err(format!(".env: {bad:?} cannot be the name of a variable"));
        }
        if self
            .slot_variable
            .as_ref()
            .is_some_and(|name| name.is_empty() || name.contains(['=', '\0']))
        {
            return Err(".slot_variable: it must be the name of a variable".into());
        }
        if self.env.iter().any(|(name, value)| name.contains('\0') || value.contains('\0')) {
            return Err(".env: there cannot be NUL bytes in it".into());
        }
        if let Some(umask) = &self.umask {
            octal(umask).map_err(|e| format!(".umask: {e}"))?;
        }
        if let Some(mode) = &self.socket_mode {
            octal(mode).map_err(|e| format!(".socket_mode: {e}"))?;
        }
        if self.nice.is_some_and(|nice| !(-20..=19).contains(&nice)) {
            return Err(".nice: it must be a number from -20 to 19".into());
        }
        for (name, signal, advice) in [
            (
                "report_signal",
                &self.report_signal,
                "choose one that makes the program write a report, such as SIGUSR2",
            ),
            (
                "stop_signal",
                &self.stop_signal,
                "choose one that asks workers to finish, such as SIGTERM; `grace` limits their time, after which they get SIGKILL",
            ),
            (
                "kill_signal",
                &self.kill_signal,
                "leave it out, as workers get SIGKILL anyway when `grace` is over, or choose another one, such as SIGQUIT",
            ),
        ] {
            if let Some(signal) = signal {
                let number =
                    names::signal(signal).map_err(|e| format!(".{name}: {signal:?}: {e}"))?;
                if [SIGKILL, SIGSTOP].contains(&number) {
                    return Err(format!(
                        ".{name}: {signal:?}: no program can handle this signal; {advice}"
                    ));
                }
            }
        }
        self.cpu_sets().map_err(|e| format!(".cpus: {e}"))?;
        for at in &self.bind {
            let place = at.split_once('=').map_or(at.as_str(), |(_, place)| place);
            if place != "systemd" && !place.starts_with("systemd:") {
                ActivationSocket::check(at).map_err(|e| format!(".bind: {e}"))?;
            }
        }
        for (name, pattern) in [("cron", &self.cron), ("recycle.cron", &self.recycle.cron)] {
            pattern.as_deref().map_or(Ok(()), |pattern| {
                Times::parse(pattern).map(drop).map_err(|e| format!(".{name}: {e}"))
            })?;
        }
        if self.cron.is_some() && self.restart.when == Some(When::Always) {
            return Err(
                ".restart.when: with `cron` a run ends; choose \"never\", or \"on-failure\" to repeat one that fails"
                    .into(),
            );
        }
        if self.ready_timeout.is_some_and(|time| time.0.is_zero()) {
            return Err(".ready_timeout: it must be more than 0".into());
        }
        if let Some(code) = self.restart.final_codes.iter().find(|code| !(0..=255).contains(*code))
        {
            return Err(format!(
                ".restart.final_codes: {code} is no exit code; they are from 0 to 255"
            ));
        }
        for at in &self.may_listen {
            at.parse::<Pattern>().map_err(|e| format!(".may_listen: {e}"))?;
        }
        if let Some(Rebalance::Only(addresses)) = &self.rebalance {
            for at in addresses {
                at.parse::<Pattern>().map_err(|e| format!(".rebalance: {e}"))?;
            }
        }
        let grace = self.grace.map_or(Duration::from_secs(30), |grace| grace.0);
        if self.drain_spread.is_some_and(|time| time.0 > grace) {
            return Err(
                ".drain_spread: it must not be longer than `grace`, after which workers are killed"
                    .into(),
            );
        }
        if self.no_new_privileges == Some(false) && !self.sandbox.is_default() {
            return Err(
                ".no_new_privileges: it cannot be false with a sandbox, which needs it".into()
            );
        }
        self.cgroup.check().map_err(|e| format!(".cgroup.{e}"))?;
        for (limited, limit) in &self.limits {
            limit.values().map_err(|e| format!(".limits: {limited:?}: {e}").to_lowercase())?;
        }
        if let Some(health) = &self.health {
            if usize::from(health.http.is_some())
                + usize::from(health.tcp)
                + usize::from(health.command.is_some())
                != 1
            {
                return Err(".health: it must have one of http, tcp and command".into());
            }
            if health
                .http
                .as_ref()
                .is_some_and(|path| !path.starts_with('/') || path.contains(|c: char| c <= ' '))
            {
                return Err(".health: http must be a path, such as \"/health\"".into());
            }
            if health.every.is_some_and(|every| every.0.is_zero()) || health.failures == Some(0) {
                return Err(".health: every and failures must be more than 0".into());
            }
            if let Some(listener) = &health.listener {
                listener.parse::<Pattern>().map_err(|e| format!(".health.listener: {e}"))?;
            }
        }
        if self.recycle.jitter.is_some_and(|jitter| !(0.0..=1.0).contains(&jitter)) {
            return Err(".recycle: jitter must be a number from 0 to 1".into());
        }
        if self.max_surge == Some(0) && self.max_unavailable.unwrap_or(0) == 0 {
            return Err(": with max_surge = 0 there must be a max_unavailable of 1 or more, or nobody could be replaced".into());
        }
        if !self.bind.is_empty() && matches!(self.ready, Some(Ready::Listening | Ready::Message)) {
            return Err(": with `bind` workers have no channel; ready can be auto or notify".into());
        }
        if !self.bind.is_empty()
            && self.health.as_ref().is_some_and(|health| health.command.is_none())
        {
            return Err(
                ".health: with `bind` workers have no channel to hand a connection over; only a command can test them".into()
            );
        }
        Ok(())
    }

    /// Whether the policies are possible for sockets by activation, if the app has any.
    pub(crate) fn fits_bind(&self) -> bool {
        let by_policy = match &self.policy {
            None | Some(Scheduling::Shared) => self.weights.is_empty(),
            Some(Scheduling::Steered(None) | Scheduling::LeastConnections) => true,
            Some(_) => false,
        };
        self.bind.is_empty() || (by_policy && self.listeners.is_empty())
    }

    /// Returns the CPUs of each slot.
    pub(crate) fn cpu_sets(&self) -> Result<Vec<Vec<usize>>, String> {
        if self.cpus.len() == 1 && self.cpus[0] == "each" {
            return Ok(own_cpus().into_iter().map(|cpu| vec![cpu]).collect());
        }
        self.cpus.iter().map(|text| cpus(text)).collect()
    }

    /// Returns the working directory of the workers.
    pub(crate) fn directory(&self, file: &Path) -> PathBuf {
        let beside = beside(file);
        let directory = self.cwd.as_ref().map_or_else(|| beside.to_owned(), |cwd| beside.join(cwd));
        std::path::absolute(&directory).unwrap_or(directory)
    }

    /// Returns the program to execute: scripts and paths are relative to the working directory,
    /// names are searched on the `PATH`.
    pub(crate) fn program(&self, file: &Path) -> PathBuf {
        let path = Path::new(&self.program);
        let is_script = path
            .extension()
            .and_then(|e| e.to_str())
            .is_some_and(|e| ["js", "mjs", "cjs", "ts", "mts", "cts"].contains(&e));
        if is_script || self.program.contains('/') {
            // Without `/./`, which has no meaning; what `..` leads to may change with a link.
            self.directory(file).join(path).components().collect()
        } else {
            path.to_owned()
        }
    }

    /// Returns notes about programs that do not work under these options.
    pub(crate) fn notes(&self) -> Vec<String> {
        let is_other_user =
            self.user.as_ref().is_some_and(|user| !["root", "0"].contains(&user.as_str()));
        let mut notes = Vec::new();
        if self.no_new_privileges.unwrap_or(is_other_user || !self.sandbox.is_default()) {
            let otherwise = if self.sandbox.is_default() {
                "; no_new_privileges = false lets them"
            } else {
                ""
            };
            notes.push(format!(
                "programs with the setuid bit or file capabilities (sudo, ping, sendmail) get no privileges from it when workers run them{otherwise}"
            ));
        }
        if !self.bind.is_empty() && matches!(self.ready, None | Some(Ready::Auto)) {
            notes.push(
                "with bind, a worker is ready when /proc shows that it, or a process that it has started, waits for connections (accept, epoll_wait; if none is seen to, select, poll or io_uring); \
                 one that is not seen to is ready after 10 s, unless its predecessor was seen. That it answers is shown by ready = \"notify\" only"
                    .into(),
            );
        }
        notes.extend(self.sandbox.unsupported().filter(|_| self.sandbox.best_effort));
        notes
    }
}

/// Returns the directory of a file.
fn beside(file: &Path) -> &Path {
    file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Returns the CPUs that this process may use.
fn own_cpus() -> Vec<usize> {
    let allowed = rustix::thread::sched_getaffinity(None);
    allowed.map_or_else(
        |_| vec![0],
        |set| (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect(),
    )
}

/// Whether a program of this name is on the `PATH`.
pub(crate) fn is_on_path(program: &Path) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

pub(crate) fn octal(text: &str) -> Result<u32, String> {
    let mask = u32::from_str_radix(text, 8).ok().filter(|mask| *mask <= 0o777);
    mask.ok_or_else(|| format!("{text:?} must be an octal number up to 777, such as \"027\""))
}

impl Limit {
    /// Returns the soft and the hard limit; `None` is unlimited.
    pub(crate) fn values(&self) -> Result<(Option<u64>, Option<u64>), String> {
        let text = |text: &str| match text {
            "unlimited" | "infinity" => Ok(None),
            text => size(text).map(|size| Some(size.0)),
        };
        let value = |value: &LimitValue| match value {
            LimitValue::Number(number) => Ok(Some(*number)),
            LimitValue::Text(words) => text(words),
        };
        match self {
            Limit::Number(number) => Ok((Some(*number), Some(*number))),
            Limit::Text(words) => text(words).map(|limit| (limit, limit)),
            Limit::Pair([soft, hard]) => Ok((value(soft)?, value(hard)?)),
        }
    }
}

#[cfg(test)]
mod tests;
