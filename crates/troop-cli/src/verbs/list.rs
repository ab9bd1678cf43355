//! `ls`: lists apps, those that run and those that have ended.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use troop::text::escaped;

use super::cpu::{self, Cpu};
use super::show::{answers, print_json, serving};
use super::table::{self, ago, size, time};
use super::times;
use crate::apps::App;
use crate::args::{Ls, Show};
use crate::control::missing;
use crate::control::protocol::AppSnapshot;
use crate::control::targets::{self, Target};
use crate::error::CliError;
use crate::records::listed::{self, Listed};
use crate::records::{End, Ending, millis};
use crate::{log, print};

/// The number of times that an app is looked up which ends or restarts meanwhile.
const MAX_LOOKUPS: usize = 20;
/// The shortest interval of `--watch`.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// Runs `troop ls`.
pub(crate) fn ls(args: &Ls) -> Result<(), CliError> {
    match args.watch {
        Some(interval) => watch(&args.show, interval.0.max(MIN_INTERVAL)),
        None => {
            let mut found = list(&args.show)?;
            if let Some(time) = args.show.cpu {
                std::thread::sleep(cpu::interval(time.0));
                let before = found;
                found = list(&args.show)?;
                found.compare(&before);
            }
            print(found, args.show.json)
        }
    }
}

/// Lists apps again and again, until standard output is closed.
fn watch(args: &Show, interval: Duration) -> Result<(), CliError> {
    let is_terminal = !args.json && io::stdout().is_terminal();
    if is_terminal {
        let _ = io::stdout().lock().write_all(b"\x1b[2J");
    }
    let mut before: Option<Found> = None;
    loop {
        let found = list(args).map(|mut found| {
            match &before {
                Some(before) => found.compare(before),
                None => found.has_cpu = true,
            }
            found
        });
        let written = match &found {
            Ok(found) if args.json => print::json(&Value::Array(found.as_json())),
            Ok(found) => {
                let lines = found.lines();
                if is_terminal { again(&lines) } else { after_another(&lines) }
            }
            // It may be started while this goes on.
            Err(CliError::NoApp(text)) if is_terminal => again(std::slice::from_ref(text)),
            Err(_) => Ok(()),
        };
        if written.is_err() {
            return Ok(());
        }
        before = match found {
            Ok(found) => Some(found),
            Err(CliError::NoApp(_)) if is_terminal => None,
            Err(e) => return Err(e),
        };
        std::thread::sleep(interval);
    }
}

/// Writes lines in place of those that are on the terminal, without a moment at which it is empty.
fn again(lines: &[String]) -> io::Result<()> {
    let height = terminal_size::terminal_size().map_or(usize::MAX, |(_, height)| height.0.into());
    let mut text = String::from("\x1b[H");
    for line in lines.iter().take(height.saturating_sub(1)) {
        text.push_str(&format!("{line}\x1b[K\r\n"));
    }
    text.push_str("\x1b[J");
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush())
}

/// Writes lines, and an empty one between those of two looks.
fn after_another(lines: &[String]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let text = lines.iter().fold(String::new(), |text, line| text + line + "\n");
    writeln!(out, "{text}").and_then(|()| out.flush())
}

fn running(entries: &[App]) -> impl Iterator<Item = &AppSnapshot> {
    entries.iter().filter_map(|entry| match entry {
        App::Running(app) => Some(&**app),
        _ => None,
    })
}

/// What is listed.
struct Found {
    entries: Vec<App>,
    ids: BTreeMap<String, u32>,
    /// The error if a named app does not run.
    ended: Option<CliError>,
    /// Whether the use of CPU is shown, which is not known at the first look.
    has_cpu: bool,
    cpu: BTreeMap<String, Cpu>,
}

impl Found {
    fn id(&self, entry: &App) -> Option<u32> {
        match entry {
            App::Ended(record, _) => Some(record.id),
            App::Running(_) | App::Silent(_) => self.ids.get(entry.name()).copied(),
        }
    }

    /// Takes note of the CPU that apps have used since an earlier look.
    fn compare(&mut self, before: &Found) {
        self.has_cpu = true;
        for app in running(&self.entries) {
            let before = running(&before.entries).find(|before| before.name == app.name);
            if let Some(cpu) = before.and_then(|before| Cpu::between(before, app)) {
                self.cpu.insert(app.name.clone(), cpu);
            }
        }
    }

    fn lines(&self) -> Vec<String> {
        let now = millis(SystemTime::now());
        let mut headings = HEADINGS.to_vec();
        if self.has_cpu {
            headings.insert(CPU + 1, "CPU%");
        }
        let rows = self.entries.iter().map(|entry| {
            let mut row = row(entry, self.id(entry), now);
            if self.has_cpu {
                let cpu = self.cpu.get(entry.name());
                row.insert(
                    CPU + 1,
                    cpu.map_or_else(String::new, |cpu| cpu::shown(Some(cpu.total))),
                );
            }
            row
        });
        table::for_terminal(&headings, &RIGHT, &SPARE, &rows.collect::<Vec<_>>())
    }

    fn as_json(&self) -> Vec<Value> {
        let entries = self.entries.iter().map(|entry| {
            let mut value = as_json(entry, self.id(entry));
            if let Some(cpu) = self.cpu.get(entry.name()) {
                cpu.write_into(&mut value);
            }
            value
        });
        entries.collect()
    }
}

const HEADINGS: [&str; 10] =
    ["ID", "NAME", "PID", "STATE", "WORKERS", "RESTARTS", "UPTIME", "CPU", "MEMORY", "LISTENS ON"];
/// The column with the CPU time.
const CPU: usize = 7;
const RIGHT: [&str; 8] = ["ID", "PID", "WORKERS", "RESTARTS", "UPTIME", "CPU", "CPU%", "MEMORY"];
/// What says whether an app is well stays.
const SPARE: [&str; 6] = ["CPU", "PID", "UPTIME", "MEMORY", "RESTARTS", "ID"];

fn print(found: Found, json: bool) -> Result<(), CliError> {
    if json {
        print_json(&found.as_json());
    } else {
        for line in found.lines() {
            // A closed standard output is ignored.
            let _ = print::raw(&line);
        }
    }
    found.ended.map_or(Ok(()), Err)
}

/// Looks for the apps.
fn list(args: &Show) -> Result<Found, CliError> {
    let word = args.app.as_deref().filter(|word| *word != "all");
    let (mut known, mut unusable) = (Vec::new(), Vec::new());
    let (mut clients, mut entries) = (Vec::new(), Vec::new());
    let found = match word {
        None => {
            let all = targets::all_asking(answers)?;
            (known, unusable) = (all.listed, all.unusable);
            entries.extend(all.answers.into_iter().map(App::answered));
            all.rest
        }
        Some(word) => {
            let found = targets::some(Some(word))?;
            for error in missing::of_file(word, &found) {
                log::line(&format!("troop: {error}"));
            }
            found
        }
    };
    for target in found {
        match target {
            Target::Running(client) => clients.push(client),
            Target::Ended(record, end) => entries.push(App::Ended(record, end)),
        }
    }
    let is_running = |entry: &App| !matches!(entry, App::Ended(..));
    let none_runs = clients.is_empty() && !entries.iter().any(is_running);
    let ended = entries.iter().find_map(|entry| match entry {
        App::Ended(record, end) if args.app.is_some() && none_runs => {
            Some(targets::not_running(record, end))
        }
        _ => None,
    });
    // One that ends or restarts while it is asked is looked up again.
    let mut left: Vec<String> = clients.iter().map(|client| client.name().to_owned()).collect();
    for _ in 0..MAX_LOOKUPS {
        let answered = answers(&mut clients).into_iter();
        entries.extend(answered.map(App::answered).inspect(|entry| {
            left.retain(|other| other != entry.name());
        }));
        clients.clear();
        for name in std::mem::take(&mut left) {
            match targets::selected(&name)?.pop() {
                Some(Target::Running(client)) => {
                    left.push(name);
                    clients.push(client);
                }
                Some(Target::Ended(record, end)) => entries.push(App::Ended(record, end)),
                None => {}
            }
        }
        if clients.is_empty() {
            break;
        }
    }
    let is_shown = |name: &str| entries.iter().any(|entry| entry.name() == name);
    let is_known = |entry: &App| known.iter().any(|app| app.record.name == entry.name());
    let is_hidden =
        |app: &Listed| word.is_none() && app.end.is_none() && !is_shown(&app.record.name);
    if known.iter().any(is_hidden) || !entries.iter().all(is_known) {
        // It has ended meanwhile, or was started.
        known = listed::all().unwrap_or_default();
    }
    // Their control sockets are gone, and they make others within seconds.
    let hidden = known.iter().filter(|app| is_hidden(app));
    let hidden: Vec<_> = hidden.map(|app| App::Silent(app.record.name.clone())).collect();
    entries.extend(hidden);
    if !unusable.is_empty() {
        let text = unusable.join("; ");
        log::line(&format!("troop: records that are not used: {}", escaped(&text)));
    }
    let ids: BTreeMap<_, _> =
        known.into_iter().map(|app| (app.record.name, app.record.id)).collect();
    let mut found = Found { entries: Vec::new(), ids, ended, has_cpu: false, cpu: BTreeMap::new() };
    entries.sort_by_key(|entry| found.id(entry).unwrap_or(u32::MAX));
    found.entries = entries;
    Ok(found)
}

fn row(entry: &App, id: Option<u32>, now: u64) -> Vec<String> {
    let id = id.map(|id| id.to_string()).unwrap_or_default();
    match entry {
        App::Running(app) => {
            let snapshot = &app.snapshot;
            let listening = snapshot.listeners.iter().map(|l| l.address.clone());
            let times = app.schedule.as_ref().filter(|schedule| schedule.is_job).map(times::short);
            let listening: Vec<_> = listening.chain(snapshot.own.clone()).chain(times).collect();
            vec![
                id,
                app.name.clone(),
                snapshot.pid.to_string(),
                times::state(app).to_owned(),
                format!(
                    "{}/{}",
                    serving(snapshot),
                    snapshot.wanted.unwrap_or(snapshot.workers.len())
                ),
                snapshot.restarts.to_string(),
                time(snapshot.uptime_ms),
                time(app.total.cpu_ms),
                size(app.total.rss),
                listening.join(" "),
            ]
        }
        App::Silent(name) => {
            let mut row = vec![id, name.clone(), "-".into(), "not answering".into()];
            row.resize(10, String::new());
            row
        }
        App::Ended(record, end) => {
            let mut row = vec![id, record.name.clone(), "-".into(), state(end, now)];
            row.push(format!("0/{}", record.workers));
            row.resize(10, String::new());
            row
        }
    }
}

/// Returns the state of an app that does not run: `stopped`, `failed 3 min ago`. When exactly a
/// crash was is not known.
pub(crate) fn state(end: &End, now: u64) -> String {
    let since = ago(now.saturating_sub(end.at_ms));
    match (end.how, &end.reason) {
        (Ending::Stopped, _) => "stopped".into(),
        (Ending::Finished, Some(reason)) => format!("finished: {reason}"),
        (Ending::Crashed, _) => format!("crashed, last seen {since} ago"),
        (how, _) => format!("{} {since} ago", how.state()),
    }
}

/// Returns an app as `troop ls --json` has it.
pub(crate) fn as_json(entry: &App, id: Option<u32>) -> Value {
    match entry {
        App::Running(app) => {
            let mut value = serde_json::to_value(app).unwrap_or_default();
            value["id"] = json!(id);
            value
        }
        App::Silent(name) => json!({
            "id": id,
            "name": name,
            "phase": "not-answering",
            "pid": null,
            "ready": null,
            "wanted": null,
            "restarts": null,
            "total": null,
            "workers": [],
            "listeners": [],
            "vacant": [],
        }),
        App::Ended(record, end) => json!({
            "id": id,
            "name": record.name,
            "program": record.program,
            "file": record.file,
            "phase": end.how.state(),
            "ended_ms": end.at_ms,
            "reason": end.reason,
            "pid": null,
            "ready": 0,
            "wanted": record.workers,
            "restarts": 0,
            "total": { "cpu_ms": 0, "rss": 0 },
            "workers": [],
            "listeners": [],
            "vacant": [],
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_an_app_is_its_state() {
        let state = |how, reason: Option<&str>| {
            let end = End { how, at_ms: 1_000_000, reason: reason.map(str::to_owned) };
            state(&end, 1_000_000 + 185_000)
        };
        assert_eq!(state(Ending::Stopped, Some("the system was restarted")), "stopped");
        assert_eq!(state(Ending::Crashed, Some("without a word")), "crashed, last seen 3 min ago");
        assert_eq!(state(Ending::Failed, None), "failed 3 min ago");
        assert_eq!(state(Ending::Finished, Some("exit code 7")), "finished: exit code 7");
        assert_eq!(state(Ending::Finished, None), "finished 3 min ago");
    }
}
