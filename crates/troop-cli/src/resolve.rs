//! Resolves an app: command-line options over the configuration file.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use troop::Scheduling;

use serde::{Deserialize, Serialize};

use crate::args::{Chosen, Env, LogOption, Run};
use crate::config::{self, Alone, App, Form, Health, LogPath, Rebalance, To, Watch, Workers};
use crate::{command, default_file, names, primary_part, suggest};

/// An app whose options are all resolved.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ResolvedApp {
    /// Its name, if one was given.
    pub(crate) name: Option<String>,
    /// Its default name, which gets a number if it is taken.
    pub(crate) default_name: String,
    /// The options of the file and the command line.
    pub(crate) app: App,
    pub(crate) program: OsString,
    pub(crate) args: Vec<OsString>,
    /// Environment variables of the workers beyond those that they inherit.
    #[serde(with = "crate::records::pairs")]
    pub(crate) env: BTreeMap<OsString, OsString>,
    pub(crate) cwd: Option<PathBuf>,
    /// What the workers inherit instead of the primary's environment. Written down by itself.
    #[serde(skip)]
    pub(crate) inherited: Option<Arc<Inherited>>,
    /// Whether it runs in the background.
    pub(crate) background: bool,
    /// Whether it has one worker because nothing sets another number.
    pub(crate) has_default_workers: bool,
    /// How PM2 would run it, if it comes from one of its files.
    pub(crate) pm2_mode: Option<Pm2Mode>,
}

/// How PM2 runs an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Pm2Mode {
    Fork,
    Cluster,
}

/// An environment.
pub(crate) type Inherited = BTreeMap<OsString, OsString>;

/// The origin of a resolved app, to resolve it again at a reload.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    typed: Run,
    /// The file and the name of the app in it.
    file: Option<(PathBuf, String)>,
    background: bool,
}

/// Returns the configuration file that the command line selects, and the app in it, if one is
/// named.
pub(crate) fn file_of(typed: &Run) -> Result<Option<(PathBuf, Option<OsString>)>, String> {
    Ok(match (&typed.config, &typed.program) {
        (Some(file), app) => Some((file.clone(), app.clone())),
        (None, None) => match config::usual_file() {
            Some(file) => Some((file, None)),
            None => {
                return Err(format!(
                    "nothing to run: name a program (`troop run server.js`), or create {} (`troop init`)",
                    config::DEFAULT_FILE
                ));
            }
        },
        // `troop start ecosystem.config.js`, as with PM2.
        (None, Some(program))
            if config::format_of(Path::new(program)).is_some() && Path::new(program).is_file() =>
        {
            Some((PathBuf::from(program), typed.args.first().cloned()))
        }
        // A program overrides an app of the same name.
        (None, Some(program)) if !Path::new(program).exists() && default_file::is_app(program)? => {
            Some((PathBuf::from(config::DEFAULT_FILE), Some(program.clone())))
        }
        (None, Some(word))
            if !Path::new(word).exists() && !default_file::namespace(word)?.is_empty() =>
        {
            Some((PathBuf::from(config::DEFAULT_FILE), None))
        }
        (None, Some(_)) => None,
    })
}

/// Resolves an app. `started_as` is the name of an app that runs in the background, or empty if
/// there is only one.
///
/// # Errors
/// The reason, for people.
pub(crate) fn resolve(
    typed: Run,
    started_as: Option<&str>,
) -> Result<(ResolvedApp, Source), String> {
    let started_as = started_as.map(str::to_owned);
    config::source::answered(move || make(typed, started_as.as_deref()))
}

fn make(typed: Run, started_as: Option<&str>) -> Result<(ResolvedApp, Source), String> {
    let background = started_as.is_some();
    let found = file_of(&typed)?;
    if let Some(chosen) =
        typed.env.iter().find_map(|env| if let Env::Chosen(name) = env { Some(name) } else { None })
    {
        if !found
            .as_ref()
            .is_some_and(|(file, _)| config::format_of(file) == Some(config::Format::Pm2))
        {
            return Err(format!(
                "--env {chosen}: it must have the form NAME=VALUE; a name alone is that of an environment in a PM2 file"
            ));
        }
        config::choose_environment(chosen);
    }
    let Some((file, app)) = found else {
        let source = Source { typed, file: None, background };
        return Ok((source.resolve()?, source));
    };
    // After a file that is named as the program there can be the name of an app.
    let is_program = typed.config.is_none()
        && typed.program.as_ref().is_some_and(|program| Path::new(program) == file);
    if typed.args.len() > usize::from(is_program) {
        return Err("arguments come from the file where the app does; there cannot be others behind its name".into());
    }
    // A release that a link leads to is resolved again at each reload.
    let place = crate::directory::resolved(&file);
    let mut apps = config::read(&place)?;
    let names = || apps.keys().cloned().collect::<Vec<_>>().join(", ");
    let name = match app {
        _ if started_as.is_some_and(|name| !name.is_empty()) => {
            started_as.unwrap_or_default().to_owned()
        }
        Some(app) => app.to_string_lossy().into_owned(),
        None if typed.only.len() == 1 => typed.only[0].clone(),
        None if apps.len() == 1 => apps.keys().next().cloned().unwrap_or_default(),
        None => {
            return Err(format!(
                "which app? {} has {}; each runs by itself: `troop run NAME`",
                file.display(),
                names()
            ));
        }
    };
    let Some(app) = apps.remove(&name) else {
        return Err(no_app(&file, &name, &apps.keys().cloned().collect::<Vec<_>>()));
    };
    let source = Source { typed, file: Some((place, name)), background };
    // Reading it takes long where it is a program, and has been done.
    Ok((source.resolve_as(Some(app))?, source))
}

/// Returns the error for an app that a file does not have.
pub(crate) fn no_app(file: &Path, name: &str, names: &[String]) -> String {
    let meant = suggest::app(name, names.iter().map(String::as_str));
    format!("{} has no app {name:?}, but {}{meant}", file.display(), names.join(", "))
}

impl Source {
    /// Returns that of an app which another engine has resolved.
    pub(crate) fn resume(typed: Run, file: Option<(PathBuf, String)>, background: bool) -> Source {
        Source { typed, file, background }
    }

    /// Returns the file that the app comes from, and its name there.
    pub(crate) fn origin(&self) -> Option<&(PathBuf, String)> {
        self.file.as_ref()
    }

    /// Returns the configuration file, if the app comes from one.
    pub(crate) fn file(&self) -> Option<&Path> {
        self.file.as_ref().map(|(file, _)| file.as_path())
    }

    /// Returns warnings: files that root reads and others can change, and restrictions that workers
    /// run without.
    pub(crate) fn warnings(&self, resolved: &ResolvedApp) -> Vec<String> {
        let directory = resolved.cwd.clone().unwrap_or_else(|| ".".into());
        let files = self
            .file()
            .map(Path::to_owned)
            .into_iter()
            .chain(resolved.app.env_file.iter().map(|file| directory.join(file)));
        let mut warnings = config::source::warnings(&files.collect::<Vec<_>>());
        warnings.extend(
            resolved.app.sandbox.unsupported().filter(|_| resolved.app.sandbox.best_effort),
        );
        warnings
    }

    /// Resolves the app again, with warnings. Does not wait for files that do not answer.
    pub(crate) async fn next(&self) -> Result<(ResolvedApp, Vec<String>), String> {
        let source = self.clone();
        let look = move || {
            let resolved = source.resolve()?;
            let warnings = source.warnings(&resolved);
            Ok((resolved, warnings))
        };
        let looked = tokio::task::spawn_blocking(|| config::source::answered(look));
        looked.await.unwrap_or_else(|e| Err(e.to_string()))
    }

    /// Resolves the app with the current content of its file.
    pub(crate) fn resolve(&self) -> Result<ResolvedApp, String> {
        self.resolve_as(None)
    }

    /// The same with what its file has been read to say.
    fn resolve_as(&self, read: Option<App>) -> Result<ResolvedApp, String> {
        let typed = &self.typed;
        let mut resolved = match &self.file {
            None => {
                let typed_program = typed.program.clone().unwrap_or_default();
                let directory = typed.cwd.as_deref().unwrap_or(Path::new("."));
                let command = command::of(typed_program, typed.args.clone(), directory);
                let default_name = names::of_program(&command.named_by);
                let (program, mut args) = typed.pm2.command(command.program, command.args);
                let shown = program.to_string_lossy().into_owned();
                let mut app = App::new(shown.clone());
                typed.apply_to(&mut app)?;
                // A bot or a consumer of a queue must not run twice unless that was asked for.
                let has_default_workers = app.workers.is_none();
                app.workers.get_or_insert(Workers::Number(1));
                args.extend(app.args.iter().map(OsString::from));
                // The program may not be UTF-8, so it is converted to text only if an option
                // changed it.
                let program =
                    if app.program == shown { program } else { app.program.clone().into() };
                let cwd = typed.cwd.clone().or_else(|| app.cwd.clone()).or(command.cwd);
                let cwd = match crate::directory::by_links() {
                    Some(directory) => {
                        Some(cwd.map_or_else(|| directory.to_owned(), |cwd| directory.join(cwd)))
                    }
                    None => cwd,
                };
                ResolvedApp {
                    name: None,
                    default_name,
                    app,
                    program,
                    args,
                    env: BTreeMap::new(),
                    inherited: None,
                    cwd,
                    background: self.background,
                    has_default_workers,
                    pm2_mode: None,
                }
            }
            Some((file, name)) => {
                let mut app = match read {
                    Some(app) => app,
                    None => config::read(file)?.remove(name).ok_or_else(|| {
                        format!("{} has no app {name:?} any more", file.display())
                    })?,
                };
                typed.apply_to(&mut app)?;
                let problems: Vec<_> =
                    app.problems(file).into_iter().map(|problem| problem.text).collect();
                if !problems.is_empty() {
                    return Err(format!("{}: app.{name}: {}", file.display(), problems.join("; ")));
                }
                if typed.pm2.names_interpreter() {
                    return Err(
                        "--interpreter is for a program that is named on the command line".into()
                    );
                }
                ResolvedApp {
                    name: Some(name.clone()),
                    default_name: name.clone(),
                    program: app.program(file).into(),
                    args: app.args.iter().map(Into::into).collect(),
                    cwd: typed.cwd.clone().or_else(|| Some(app.directory(file))),
                    env: BTreeMap::new(),
                    inherited: None,
                    background: self.background,
                    has_default_workers: false,
                    pm2_mode: config::is_pm2(file).then_some(match app.alone {
                        Some(Alone::IfPrimary(_)) => Pm2Mode::Fork,
                        _ => Pm2Mode::Cluster,
                    }),
                    app,
                }
            }
        };
        resolved.name = typed.name.clone().or(resolved.name);
        resolved.app.check().map_err(|e| format!("app{e}"))?;
        let ineffective = resolved.app.ineffective();
        if !ineffective.is_empty() && !self.file().is_some_and(config::is_pm2) {
            return Err(ineffective.join("; "));
        }
        let directory = resolved.cwd.clone().unwrap_or_else(|| ".".into());
        for file in &resolved.app.env_file {
            let read = config::env_file::read(&directory.join(file))?;
            resolved.env.extend(read.into_iter().map(|(name, value)| (name.into(), value.into())));
        }
        resolved
            .env
            .extend(resolved.app.env.iter().map(|(name, value)| (name.into(), value.into())));
        if !resolved.app.fits_bind() {
            return Err(config::NO_POLICY.into());
        }
        Ok(resolved)
    }
}

impl Run {
    /// Command-line options override the file.
    fn apply_to(&self, app: &mut App) -> Result<(), String> {
        fn set<T: Clone>(field: &mut Option<T>, typed: &Option<T>) {
            if let Some(value) = typed {
                *field = Some(value.clone());
            }
        }
        for Chosen { listeners, scheduling } in self.policy.clone() {
            match listeners {
                Some(listener) => drop(app.listeners.insert(listener.to_string(), scheduling)),
                None => app.policy = Some(scheduling),
            }
        }
        if !self.bind.is_empty() {
            app.bind.clone_from(&self.bind);
        }
        if !self.may_listen.is_empty() {
            app.may_listen = self.may_listen.iter().map(ToString::to_string).collect();
        }
        if !self.fd.is_empty() {
            app.fds.clone_from(&self.fd);
        }
        if !self.weights.is_empty() {
            app.weights.clone_from(&self.weights);
        }
        for env in &self.env {
            if let Env::Variable(name, value) = env {
                app.env.insert(name.clone(), value.clone());
            }
        }
        app.env_file.extend(self.env_file.iter().cloned());
        app.silent |= self.silent;
        set(&mut app.workers, &self.workers);
        if self.alone {
            app.alone = Some(Alone::Is(true));
        }
        set(&mut app.grace, &self.grace);
        set(&mut app.move_connections, &self.move_connections);
        set(&mut app.rebalance, &self.rebalance.map(Rebalance::All));
        if let Some(LogOption::Format(format)) = &self.log {
            app.log = Some(*format);
        }
        set(&mut app.user, &self.user);
        set(&mut app.group, &self.group);
        set(&mut app.ready, &self.ready);
        set(&mut app.recycle.memory, &self.max_memory);
        set(&mut app.recycle.age, &self.max_age);
        set(&mut app.restart.when, &self.restart);
        set(&mut app.output.format, &self.format);
        self.log_files(&mut app.output);
        if let Some(path) = &self.health {
            let health = app.health.get_or_insert_with(Health::default);
            (health.http, health.tcp, health.command) = (Some(path.clone()), false, None);
        }
        if let Some(paths) = &self.watch {
            let watch = app.watch.get_or_insert_with(Watch::default);
            if !paths.is_empty() {
                watch.paths.clone_from(paths);
            }
        }
        self.pm2.apply_to(app);
        if self.has_log_file() && app.output.events_apart {
            // As in PM2, and as a shell writes it: what the program prints and nothing else.
            app.output.format.get_or_insert(Form::Plain);
        }
        for setting in &self.set {
            *app = with(app, setting)?;
        }
        app.output.without_streams();
        Ok(())
    }
}

impl Run {
    /// Sets the log files. As in PM2, a name alone is a file in the app's directory, and the one of
    /// `--log` is beside those of `--output` and `--error`.
    fn log_files(&self, output: &mut config::Output) {
        let path = |typed: &PathBuf| LogPath::named(typed).path();
        let all = match &self.log {
            Some(LogOption::File(file)) => Some(file),
            _ => None,
        };
        let typed = [self.output.as_ref(), self.error.as_ref(), all];
        if typed.iter().all(Option::is_none) {
            return;
        }
        let [out, error, all] = typed.map(|typed| typed.map(path));
        let is_beside = out.is_some() || error.is_some();
        if let Some(error) = error {
            output.error_file = error;
        }
        match (out, all) {
            (Some(out), None) => output.file = out,
            (None, Some(all)) if !is_beside => output.file = all,
            (out, all) => {
                output.file = out.unwrap_or_else(|| output.file.take());
                output.all_file = all.flatten();
            }
        }
        let files = [&output.file, &output.error_file, &output.all_file];
        if files.into_iter().any(Option::is_some) {
            output.to = Some(To::Files);
            output.events_apart |= self.has_log_file();
        }
    }

    /// Whether a file for the output was typed.
    fn has_log_file(&self) -> bool {
        self.output.is_some() || matches!(self.log, Some(LogOption::File(_)))
    }
}

/// Returns an app with one more option: `restart.max=3`.
fn with(app: &App, setting: &str) -> Result<App, String> {
    let wrong = |e: String| format!("--set {setting}: {}", e.trim_end());
    let (path, value) =
        setting.split_once('=').ok_or_else(|| wrong("it must have the form KEY=VALUE".into()))?;
    let typed =
        toml::from_str::<toml::Table>(&format!("v = {value}")).ok().and_then(|mut t| t.remove("v"));
    // What is typed for these is passed on unchanged: 1.10 remains 1.10.
    let is_text = ["env.", "cgroup.other."].iter().any(|table| path.starts_with(table));
    let typed = typed.filter(|typed| !is_text || typed.is_str());
    let text = toml::Value::String(value.to_owned());
    let put = |value: toml::Value| -> Result<App, String> {
        let mut table = toml::Table::try_from(app).map_err(|e| wrong(e.to_string()))?;
        let mut at = &mut table;
        let mut keys = path.split('.').peekable();
        while let Some(key) = keys.next() {
            if keys.peek().is_none() {
                at.insert(key.to_owned(), value);
                break;
            }
            let next = at.entry(key).or_insert_with(|| toml::Value::Table(toml::Table::new()));
            at = next.as_table_mut().ok_or_else(|| wrong(format!("{key} has nothing in it")))?;
        }
        table.try_into().map_err(|e: toml::de::Error| wrong(suggest::explained(e.message())))
    };
    match typed {
        // A value of another type is text.
        Some(typed) => put(typed).or_else(|e| put(text).map_err(|_| e)),
        None => put(text),
    }
}

impl ResolvedApp {
    pub(crate) fn workers(&self) -> usize {
        // A job runs once at a time.
        let usual = if self.app.cron.is_some() { Workers::Number(1) } else { Workers::Auto };
        self.app.workers.unwrap_or(usual).count()
    }

    /// Whether the program is no part of a cluster.
    pub(crate) fn runs_alone(&self) -> bool {
        match self.app.alone {
            Some(Alone::Is(is_alone)) => is_alone,
            Some(Alone::IfPrimary(_)) => primary_part::why().is_some(),
            None => false,
        }
    }

    /// Returns why it is none, if it has asked for that itself.
    pub(crate) fn told_alone(&self) -> Option<&'static str> {
        let is_chosen = matches!(self.app.alone, Some(Alone::IfPrimary(_)));
        primary_part::why().filter(|_| is_chosen)
    }

    /// Whether it is to be none from the moment when it asks whether it is a primary.
    pub(crate) fn may_become_alone(&self) -> bool {
        matches!(self.app.alone, Some(Alone::IfPrimary(_))) && !self.runs_alone()
    }

    /// Returns how to get more workers than the one that nobody has asked for, to append to the
    /// report of a start.
    pub(crate) fn workers_hint(&self) -> Option<&'static str> {
        let is_worth_it = self.has_default_workers && troop::available_workers() > 1;
        is_worth_it.then_some("-w auto for one per CPU")
    }

    pub(crate) fn grace(&self) -> Duration {
        self.app.grace.map_or(Duration::from_secs(30), |grace| grace.0)
    }

    /// Returns the destination and the format of output.
    pub(crate) fn output(&self) -> (To, Form) {
        let to =
            self.app.output.to.unwrap_or(if self.background { To::Files } else { To::Terminal });
        let usual = if to == To::Files { Form::Prefixed } else { Form::Plain };
        (to, self.app.output.format.unwrap_or(usual))
    }

    /// Whether output passes through this process line by line.
    pub(crate) fn collects(&self) -> bool {
        !self.app.silent && self.output() != (To::Terminal, Form::Plain)
    }

    /// Whether options of node turn on its inspector.
    pub(crate) fn is_debugged(&self) -> bool {
        let options = self
            .env
            .iter()
            .filter(|(name, _)| *name == "NODE_OPTIONS")
            .map(|(_, value)| value.clone());
        let options = options
            .chain(std::env::var_os("NODE_OPTIONS"))
            .chain(self.app.node_args.iter().map(Into::into));
        self.args
            .iter()
            .cloned()
            .chain(options)
            .any(|text| text.to_string_lossy().contains("--inspect"))
    }

    /// Describes the changes that a reload applies, and names the options that need a restart.
    pub(crate) fn changes(&self, next: &ResolvedApp) -> (Vec<String>, Vec<String>) {
        let mut changes = Vec::new();
        if (&self.program, &self.args) != (&next.program, &next.args) {
            changes.push(format!("runs {}", Path::new(&next.program).display()));
        }
        if self.workers() != next.workers() {
            changes.push(format!("workers {} -> {}", self.workers(), next.workers()));
        }
        // Names only: values may be secret.
        let names = self
            .env
            .keys()
            .chain(next.env.keys())
            .filter(|name| self.env.get(*name) != next.env.get(*name));
        let names: BTreeSet<_> = names.map(|name| name.to_string_lossy().into_owned()).collect();
        if !names.is_empty() {
            changes.push(format!("env {}", names.into_iter().collect::<Vec<_>>().join(", ")));
        }
        if self.cwd != next.cwd {
            changes.push("cwd".into());
        }
        if self.app.policy != next.app.policy {
            changes.push(format!("policy {}", next.policy()));
        }
        for (listener, now) in self.policies(next) {
            changes.push(format!("policy of {listener} {now}"));
        }
        let told = ["program", "args", "workers", "env", "env_file", "cwd", "policy", "listeners"];
        let fields = |resolved: &ResolvedApp| match serde_json::to_value(&resolved.app) {
            Ok(Value::Object(fields)) => fields,
            _ => serde_json::Map::new(),
        };
        let (before, after) = (fields(self), fields(next));
        let keys: BTreeSet<&String> = before
            .keys()
            .chain(after.keys())
            .filter(|key| before.get(*key) != after.get(*key))
            .collect();
        let (live, late): (Vec<_>, Vec<_>) = keys
            .into_iter()
            .filter(|key| !told.contains(&key.as_str()))
            .partition(|key| config::LIVE.contains(&key.as_str()));
        changes.extend(live.into_iter().cloned());
        (changes, late.into_iter().cloned().collect())
    }

    /// Returns the policy of listeners that have none of their own.
    pub(crate) fn policy(&self) -> Scheduling {
        self.app.policy.clone().unwrap_or_else(troop::policy::default_scheduling)
    }

    /// Returns the listeners whose policies change, with the new ones.
    pub(crate) fn policies(&self, next: &ResolvedApp) -> Vec<(String, Scheduling)> {
        let (before, after) = (&self.app.listeners, &next.app.listeners);
        let usual = next.policy();
        let listeners: BTreeSet<_> = before.keys().chain(after.keys()).collect();
        listeners
            .into_iter()
            .filter(|listener| before.get(*listener) != after.get(*listener))
            .map(|listener| (listener.clone(), after.get(listener).unwrap_or(&usual).clone()))
            .collect()
    }
}
