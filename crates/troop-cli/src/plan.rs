//! What is to run: what was typed, over what the file says.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use troop::{Error, Scheduling, Setup, Stdio};

use crate::args::{Chosen, LogFormat, Run};
use crate::config::{self, App};
use crate::program;

const GRACE: Duration = Duration::from_secs(30);

/// One app, with nothing left open.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// Its name, if it was given one.
    pub(crate) name: Option<String>,
    pub(crate) program: OsString,
    pub(crate) args: Vec<OsString>,
    pub(crate) workers: usize,
    pub(crate) bind: Vec<String>,
    pub(crate) policy: Option<Scheduling>,
    /// By listener, as they are written.
    pub(crate) listeners: BTreeMap<String, Scheduling>,
    pub(crate) weights: Vec<u32>,
    pub(crate) env: BTreeMap<OsString, OsString>,
    pub(crate) cwd: Option<PathBuf>,
    pub(crate) silent: bool,
    pub(crate) grace: Duration,
    pub(crate) log: LogFormat,
}

/// How a plan came about, to make it again when the file has changed.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    typed: Run,
    /// The file, and the app in it.
    file: Option<(PathBuf, String)>,
}

/// Makes the plan.
///
/// # Errors
/// For people, if it cannot be made.
pub(crate) fn plan(typed: Run) -> Result<(Plan, Source), String> {
    let file = match (&typed.config, &typed.program) {
        (Some(file), app) => Some((file.clone(), app.clone())),
        (None, None) if Path::new(config::USUAL).exists() => Some((PathBuf::from(config::USUAL), None)),
        (None, None) => {
            return Err(format!(
                "run what? Name a program (`troop run server.js`), or write a {} (`troop run --help`)",
                config::USUAL
            ));
        }
        // A program that is there goes before an app of that name.
        (None, Some(program)) if !Path::new(program).exists() && is_app(program) => {
            Some((PathBuf::from(config::USUAL), Some(program.clone())))
        }
        (None, Some(_)) => None,
    };
    let Some((file, app)) = file else {
        let source = Source { typed, file: None };
        return Ok((source.plan()?, source));
    };
    if !typed.args.is_empty() {
        return Err("arguments come from the file where the app does; there cannot be others behind its name".into());
    }
    let apps = config::read(&file)?;
    let names = || apps.keys().cloned().collect::<Vec<_>>().join(", ");
    let name = match app {
        Some(app) => app.to_string_lossy().into_owned(),
        None if apps.len() == 1 => apps.keys().next().cloned().unwrap_or_default(),
        None => return Err(format!("which app? {} has {}; each runs by itself: `troop run NAME`", file.display(), names())),
    };
    if !apps.contains_key(&name) {
        return Err(format!("{} has no app {name:?}, but {}", file.display(), names()));
    }
    let source = Source { typed, file: Some((file, name)) };
    Ok((source.plan()?, source))
}

fn is_app(program: &OsString) -> bool {
    let apps = config::read(Path::new(config::USUAL));
    apps.is_ok_and(|apps| program.to_str().is_some_and(|program| apps.contains_key(program)))
}

impl Source {
    /// Makes the plan as it would be now.
    pub(crate) fn plan(&self) -> Result<Plan, String> {
        let Run { program, args, .. } = self.typed.clone();
        let mut plan = match &self.file {
            None => Plan {
                name: None,
                program: program.unwrap_or_default(),
                args,
                workers: troop::available_workers(),
                bind: Vec::new(),
                policy: None,
                listeners: BTreeMap::new(),
                weights: Vec::new(),
                env: BTreeMap::new(),
                cwd: None,
                silent: false,
                grace: GRACE,
                log: LogFormat::Human,
            },
            Some((file, name)) => {
                let app =
                    config::read(file)?.remove(name).ok_or_else(|| format!("{} has no app {name:?} any more", file.display()))?;
                let problems = app.problems(file);
                if !problems.is_empty() {
                    return Err(format!("{}: app.{name}: {}", file.display(), problems.join("; ")));
                }
                from_file(app, file, name)
            }
        };
        let typed = &self.typed;
        plan.name = typed.name.clone().or(plan.name);
        plan.workers = typed.workers.map_or(plan.workers, |workers| workers.0);
        for Chosen { listeners, scheduling } in typed.policy.clone() {
            match listeners {
                Some(listener) => drop(plan.listeners.insert(listener.to_string(), scheduling)),
                None => plan.policy = Some(scheduling),
            }
        }
        if !typed.bind.is_empty() {
            plan.bind.clone_from(&typed.bind);
        }
        if !typed.weights.is_empty() {
            plan.weights.clone_from(&typed.weights);
        }
        plan.env.extend(typed.env.iter().cloned());
        plan.cwd = typed.cwd.clone().or(plan.cwd);
        plan.silent |= typed.silent;
        plan.grace = typed.grace.unwrap_or(plan.grace);
        plan.log = typed.log.unwrap_or(plan.log);
        if !plan.bind.is_empty() && (plan.policy.is_some() || !plan.listeners.is_empty() || !plan.weights.is_empty()) {
            return Err(config::NO_POLICY.into());
        }
        Ok(plan)
    }
}

fn from_file(app: App, file: &Path, name: &str) -> Plan {
    Plan {
        name: Some(name.to_owned()),
        program: app.program(file).into(),
        args: app.args.iter().map(Into::into).collect(),
        cwd: Some(app.directory(file)),
        workers: app.workers.unwrap_or_else(troop::available_workers),
        bind: app.bind,
        policy: app.policy,
        listeners: app.listeners,
        weights: app.weights,
        env: app.env.into_iter().map(|(name, value)| (name.into(), value.into())).collect(),
        silent: app.silent,
        grace: app.grace.unwrap_or(GRACE),
        log: app.log.unwrap_or(LogFormat::Human),
    }
}

impl Plan {
    /// What workers are started with.
    pub(crate) fn setup(&self) -> Result<Setup, Error> {
        let mut setup = program::setup(&self.program, self.args.iter().map(|arg| self.with_numbers(arg)).collect())?
            .afresh()
            // So that Ctrl-C reaches the primary alone, which tells the workers in its own way.
            .own_process_group(true)
            .stdin(Stdio::Null)
            .stdout(if self.silent { Stdio::Null } else { Stdio::Inherit })
            .stderr(if self.silent { Stdio::Capture } else { Stdio::Forward });
        // Those are for the primary.
        for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"] {
            setup = setup.env_hide(name);
        }
        for (name, value) in &self.env {
            setup = setup.env(name, value);
        }
        if let Some(cwd) = &self.cwd {
            setup = setup.cwd(cwd);
        }
        Ok(setup)
    }

    /// An argument with the numbers of sockets put in.
    fn with_numbers(&self, arg: &OsString) -> OsString {
        let Some(text) = arg.to_str().filter(|text| !self.bind.is_empty() && text.contains("{fd")) else { return arg.clone() };
        let text = text.replace("{fd}", "3");
        (0..self.bind.len()).fold(text, |text, at| text.replace(&format!("{{fd{at}}}"), &(at + 3).to_string())).into()
    }

    /// Whether Node's inspector is asked for.
    pub(crate) fn is_debugged(&self) -> bool {
        let options = self.env.iter().filter(|(name, _)| *name == "NODE_OPTIONS").map(|(_, value)| value.clone());
        let options = options.chain(std::env::var_os("NODE_OPTIONS"));
        self.args.iter().cloned().chain(options).any(|text| text.to_string_lossy().contains("--inspect"))
    }

    /// What the next plan changes, for people, and what of it only another start can.
    pub(crate) fn changes(&self, next: &Plan) -> (Vec<String>, Vec<&'static str>) {
        let mut changes = Vec::new();
        if (&self.program, &self.args) != (&next.program, &next.args) {
            changes.push(format!("runs {}", Path::new(&next.program).display()));
        }
        if self.workers != next.workers {
            changes.push(format!("workers {} -> {}", self.workers, next.workers));
        }
        let names = self.env.keys().chain(next.env.keys()).filter(|name| self.env.get(*name) != next.env.get(*name));
        let names: std::collections::BTreeSet<_> = names.map(|name| name.to_string_lossy().into_owned()).collect();
        if !names.is_empty() {
            changes.push(format!("env {}", names.into_iter().collect::<Vec<_>>().join(", ")));
        }
        if self.cwd != next.cwd {
            changes.push("cwd".into());
        }
        if self.silent != next.silent {
            changes.push("silent".into());
        }
        if self.policy != next.policy {
            changes.push(format!("policy {}", next.policy.clone().unwrap_or_default()));
        }
        for (listener, now) in self.policies(next) {
            changes.push(format!("policy of {listener} {now}"));
        }
        let late = [
            (self.bind != next.bind, "bind"),
            (self.weights != next.weights, "weights"),
            (self.grace != next.grace, "grace"),
            (self.log != next.log, "log"),
        ];
        (changes, late.into_iter().filter(|(differs, _)| *differs).map(|(_, name)| name).collect())
    }

    /// The listeners whose policies the next plan changes, and to what.
    pub(crate) fn policies(&self, next: &Plan) -> Vec<(String, Scheduling)> {
        let listeners: std::collections::BTreeSet<_> = self.listeners.keys().chain(next.listeners.keys()).collect();
        let usual = next.policy.clone().unwrap_or_default();
        listeners
            .into_iter()
            .filter(|listener| self.listeners.get(*listener) != next.listeners.get(*listener))
            .map(|listener| (listener.clone(), next.listeners.get(listener).unwrap_or(&usual).clone()))
            .collect()
    }
}
