//! The apps that a command is for: those that run, and those whose record is kept.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use super::client::Client;
use super::missing;
use super::select::{self, Named};
use super::sockets;
use crate::control::protocol::Failure;
use crate::error::CliError;
use crate::records::listed::{self, Listed};
use crate::records::{End, Ending, Record};
use crate::{log, start, suggest};

/// The number of attempts to connect to an app whose primary is about to start, restart or end.
const MAX_TRIES: usize = 50;
/// Time between these.
const RETRY_DELAY: Duration = Duration::from_millis(10);

/// An app that runs, or whose record is kept.
#[derive(Debug)]
pub(crate) enum Target {
    Running(Client),
    Ended(Box<Record>, End),
}

impl Target {
    pub(crate) fn name(&self) -> &str {
        match self {
            Target::Running(client) => client.name(),
            Target::Ended(record, _) => &record.name,
        }
    }
}

/// What is known without connecting to an app.
struct Known {
    name: String,
    listed: Option<Listed>,
}

/// Returns all apps that have a socket or a record, in the order in which `troop ls` shows them.
fn known() -> Result<Vec<Known>, CliError> {
    Ok(known_beside(listed(), sockets()?))
}

/// Returns the apps that have a record, and those that have a socket only.
fn known_beside(listed: Vec<Listed>, sockets: Vec<String>) -> Vec<Known> {
    let mut all: Vec<Known> = listed
        .into_iter()
        .map(|app| Known { name: app.record.name.clone(), listed: Some(app) })
        .collect();
    for name in sockets {
        if !all.iter().any(|known| known.name == name) {
            all.push(Known { name, listed: None });
        }
    }
    all
}

/// Returns the names of the apps that have a socket.
fn sockets() -> Result<Vec<String>, CliError> {
    sockets::names().map_err(|e| CliError::Io("look for apps".into(), e))
}

/// Returns the apps that have a record. A directory that cannot be trusted is reported, and does not
/// keep apps that run from being found.
fn listed() -> Vec<Listed> {
    or_none(listed::all_and_unusable()).0
}

fn or_none(read: io::Result<(Vec<Listed>, Vec<String>)>) -> (Vec<Listed>, Vec<String>) {
    read.unwrap_or_else(|e| {
        log::line(&format!("troop: {e}"));
        (Vec::new(), Vec::new())
    })
}

/// All apps.
pub(crate) struct All<T> {
    /// What those that run have answered.
    pub(crate) answers: Vec<(String, T)>,
    /// The others.
    pub(crate) rest: Vec<Target>,
    /// The apps that have a record.
    pub(crate) listed: Vec<Listed>,
    /// Why the records of some apps are not used.
    pub(crate) unusable: Vec<String>,
}

/// Returns all apps. Those that have a socket are asked while the records are read.
pub(crate) fn all_asking<T>(
    ask: impl FnOnce(&mut [Client]) -> Vec<(String, T)>,
) -> Result<All<T>, CliError> {
    let reading = listed::begin_all();
    let sockets = sockets()?;
    // What cannot be connected to now is explained below.
    let connected = sockets.iter().filter_map(|name| Client::connect(name).ok().flatten());
    let answers = ask(&mut connected.collect::<Vec<_>>());
    let (listed, unusable) = or_none(reading.and_then(listed::Reading::wait));
    let rest = known_beside(listed.clone(), sockets)
        .into_iter()
        .filter(|known| !answers.iter().any(|(name, _)| *name == known.name))
        .filter_map(|known| known.target().transpose())
        .collect::<Result<_, _>>()?;
    Ok(All { answers, rest, listed, unusable })
}

impl Known {
    fn named(&self) -> Named<'_> {
        let record = self.listed.as_ref().map(|app| &app.record);
        Named {
            name: &self.name,
            id: record.map(|record| record.id),
            namespace: record.and_then(|record| record.namespace.as_deref()),
            file: record.and_then(|record| record.file.as_deref()),
        }
    }

    /// Connects to the app if it runs. `None` if it does not run and has no record.
    fn target(mut self) -> Result<Option<Target>, CliError> {
        for _ in 0..MAX_TRIES {
            if let Some(client) = Client::connect(&self.name)? {
                return Ok(Some(Target::Running(client)));
            }
            match self.listed {
                None => return Ok(None),
                Some(Listed { record, end: Some(end) }) => {
                    return Ok(Some(Target::Ended(Box::new(record), end)));
                }
                // Its primary has no socket yet, or none any more.
                Some(Listed { end: None, .. }) => std::thread::sleep(RETRY_DELAY),
            }
            self.listed = listed::of(&self.name);
        }
        Ok(None)
    }
}

/// Returns all apps: those that run and those that have ended.
pub(crate) fn everything() -> Result<Vec<Target>, CliError> {
    known()?.into_iter().filter_map(|known| known.target().transpose()).collect()
}

/// Returns the apps that a word selects, running or not; none if it selects none.
pub(crate) fn selected(word: &str) -> Result<Vec<Target>, CliError> {
    let known = known()?;
    let named: Vec<_> = known.iter().map(Known::named).collect();
    let names = select::names(word, &named).map_err(CliError::Usage)?;
    known
        .into_iter()
        .filter(|known| names.contains(&known.name))
        .filter_map(|known| known.target().transpose())
        .collect()
}

/// Returns the number of the group of apps in which each one starts: it is higher than those of the apps
/// that it starts after.
pub(crate) fn ranks() -> BTreeMap<String, usize> {
    let apps = listed().into_iter().map(|app| (app.record.name, app.record.after));
    start::ranks(&apps.collect::<Vec<_>>())
}

/// Returns the apps that words select, each one once, or the only one without a word; and the words
/// that select none. Apps stand behind those that they start after.
pub(crate) fn targets(words: &[String]) -> Result<(Vec<Target>, Vec<String>), CliError> {
    if words.is_empty() {
        return Ok((vec![only(everything()?)?], Vec::new()));
    }
    let (mut targets, mut unknown): (Vec<Target>, Vec<String>) = (Vec::new(), Vec::new());
    for word in words {
        let found = selected(word)?;
        if found.is_empty() {
            unknown.push(word.clone());
        }
        for target in found {
            if !targets.iter().any(|known| known.name() == target.name()) {
                targets.push(target);
            }
        }
    }
    if targets.len() > 1 {
        let ranks = ranks();
        targets.sort_by_key(|target| ranks.get(target.name()).copied());
    }
    Ok((targets, unknown))
}

/// Returns the apps that a word selects, or the only one without a word.
///
/// # Errors
/// If there is none, too.
pub(crate) fn some(word: Option<&str>) -> Result<Vec<Target>, CliError> {
    let found = match word {
        Some(word) => selected(word)?,
        None => vec![only(everything()?)?],
    };
    match word {
        Some(word) if found.is_empty() => Err(none(word)?),
        _ => Ok(found),
    }
}

/// Returns the only app: the one that runs, or that is listed if none runs.
fn only(mut targets: Vec<Target>) -> Result<Target, CliError> {
    let is_running = |target: &Target| matches!(target, Target::Running(_));
    if targets.iter().any(is_running) {
        targets.retain(is_running);
    }
    match targets.len() {
        1 => Ok(targets.remove(0)),
        0 => Err(CliError::NoApp(running(&[]))),
        _ => {
            let names: Vec<_> = targets.iter().map(Target::name).collect();
            Err(CliError::Usage(format!("which app, or `all`? {}", running(&names))))
        }
    }
}

/// Lists apps that run, for errors.
fn running(names: &[&str]) -> String {
    match names {
        [] => "no app is running".to_owned(),
        names => format!("running: {}", names.join(", ")),
    }
}

/// Returns the error for a word that selects no app.
pub(crate) fn none(word: &str) -> Result<CliError, CliError> {
    if let Some(text) = missing::beside(word) {
        return Ok(CliError::NoApp(text));
    }
    let apps = everything()?;
    if word == "all" {
        return Ok(CliError::NoApp(running(&[])));
    }
    if let Some(group) = word.strip_suffix(":*") {
        return Ok(CliError::NoApp(format!(
            "there is no app {word:?}: an app's name alone is for all of its workers, and a namespace for all apps that have it: {group}"
        )));
    }
    let meant = suggest::nearest(word, apps.iter().map(Target::name))
        .map(|name| format!("did you mean {name}? "))
        .unwrap_or_default();
    if let Some(known) = listed::of(word).filter(|app| app.end.is_none()) {
        return Ok(CliError::Failed(Failure::new("failed", hidden(&known.record))));
    }
    let running = running(&names_of_running(&apps));
    Ok(CliError::NoApp(format!("there is no app {word:?}; {meant}{running}")))
}

/// Explains that an app runs which cannot be reached.
pub(crate) fn hidden(record: &Record) -> String {
    format!(
        "{} runs, with the primary {}, but its control socket in {} is gone; it is made again within seconds, if that directory can be",
        record.name,
        record.primary.pid,
        record.runtime.display()
    )
}

fn names_of_running(apps: &[Target]) -> Vec<&str> {
    apps.iter().filter(|app| matches!(app, Target::Running(_))).map(Target::name).collect()
}

/// Connects to the selected apps that run: by a word, or, without one, the only one.
pub(crate) fn find(target: Option<&str>) -> Result<Vec<Client>, CliError> {
    let (mut clients, mut ended) = (Vec::new(), Vec::new());
    let found = match target {
        // Without a look at the others.
        Some(name) if name != "all" => match Client::connect(name)? {
            Some(client) => return Ok(vec![client]),
            None => selected(name)?,
        },
        _ => everything()?,
    };
    for target in found {
        match target {
            Target::Running(client) => clients.push(client),
            Target::Ended(record, end) => ended.push((record, end)),
        }
    }
    let names: Vec<_> = clients.iter().map(Client::name).collect();
    match (target, &clients[..], &ended[..]) {
        (None, [_, _, ..], _) => {
            Err(CliError::Usage(format!("which app, or `all`? {}", running(&names))))
        }
        (_, [_, ..], _) => Ok(clients),
        (Some(word), [], []) => Err(none(word)?),
        (_, [], []) => Err(CliError::NoApp(running(&[]))),
        (_, [], [(record, end)]) => Err(not_running(record, end)),
        (_, [], _) => Err(CliError::NoApp(format!(
            "no app is running; `troop start NAME` starts one of these again: {}",
            ended.iter().map(|(record, _)| record.name.as_str()).collect::<Vec<_>>().join(", ")
        ))),
    }
}

/// Returns the error for an app that does not run.
pub(crate) fn not_running(record: &Record, end: &End) -> CliError {
    let name = &record.name;
    let then = match &record.start {
        Some(_) => format!("; `troop start {name}` starts it again"),
        None => String::new(),
    };
    let how = match end.how {
        Ending::Stopped => "was stopped",
        Ending::Finished => "has finished",
        Ending::Failed => "has failed",
        Ending::Crashed => "has crashed",
    };
    CliError::NoApp(format!("{name} does not run, it {how}{then}"))
}
