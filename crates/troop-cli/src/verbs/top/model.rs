//! What `troop top` shows, and what keys do to it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use troop::snapshot::{WorkerSnapshot, WorkerState};
use troop::text::escaped;

use super::super::show::serving;
use super::super::{list, times};
use crate::apps::App;
use crate::control::protocol::AppSnapshot;
use crate::verbs::probe::why_not_ready;

/// The number of looks whose connections are kept.
const MAX_HISTORY: usize = 120;
/// The longest filter, in characters.
const MAX_FILTER: usize = 40;

/// An app, or the worker of a slot.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Row {
    /// The app's name, or the worker's number.
    pub(super) name: String,
    pub(super) state: String,
    /// Whether it is as it should be.
    pub(super) is_well: bool,
    /// Ready and wanted workers of an app; the slot of a worker.
    pub(super) place: String,
    pub(super) pid: Option<u32>,
    /// CPU time per second, in percent of one CPU.
    pub(super) cpu: Option<f64>,
    pub(super) memory: u64,
    /// Connections that workers took, per second.
    pub(super) rate: Option<f64>,
    pub(super) open: u64,
    /// Connections that wait for a worker.
    pub(super) waiting: usize,
    pub(super) restarts: u64,
    pub(super) age_ms: u64,
    /// Connections per second, the last ones last.
    pub(super) history: Vec<f64>,
}

/// An app with its workers.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Shown {
    pub(super) row: Row,
    pub(super) workers: Vec<Row>,
    /// Further lines: where it listens, and why it is not well.
    pub(super) notes: Vec<String>,
}

/// What rows are sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sort {
    Name,
    Cpu,
    Memory,
    Rate,
}

impl Sort {
    const ALL: [Sort; 4] = [Sort::Name, Sort::Cpu, Sort::Memory, Sort::Rate];

    pub(super) fn name(self) -> &'static str {
        match self {
            Sort::Name => "name",
            Sort::Cpu => "CPU",
            Sort::Memory => "memory",
            Sort::Rate => "connections",
        }
    }

    fn next(self) -> Sort {
        let at = Sort::ALL.iter().position(|sort| *sort == self).unwrap_or(0);
        Sort::ALL[(at + 1) % Sort::ALL.len()]
    }
}

/// What a key asks the program for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Effect {
    Quit,
    /// A verb, as it is typed.
    Verb(Vec<String>),
}

/// Counters of a process or an app at a moment.
type Counters = (Instant, u64, u64);

#[derive(Debug)]
pub(super) struct Model {
    all: Vec<Shown>,
    /// The app whose workers are shown.
    pub(super) opened: Option<String>,
    /// The name of the row that keys are for.
    selected: Option<String>,
    pub(super) sort: Sort,
    pub(super) filter: String,
    /// Whether letters go to the filter.
    pub(super) is_typing: bool,
    /// A verb that waits for `y`.
    pub(super) asking: Option<Vec<String>>,
    /// What the last verb said, or why there is nothing to show.
    pub(super) said: String,
    /// The counters of the look before, by app or by app and worker.
    before: BTreeMap<(String, Option<u32>), Counters>,
    history: BTreeMap<String, VecDeque<f64>>,
}

impl Model {
    pub(super) fn new(opened: Option<String>) -> Model {
        Model {
            all: Vec::new(),
            opened,
            selected: None,
            sort: Sort::Name,
            filter: String::new(),
            is_typing: false,
            asking: None,
            said: String::new(),
            before: BTreeMap::new(),
            history: BTreeMap::new(),
        }
    }

    /// Takes note of all apps as they are now.
    pub(super) fn note(&mut self, now: Instant, unix_ms: u64, apps: &[App]) {
        let before = std::mem::take(&mut self.before);
        let mut rates = Rates { now, before, current: BTreeMap::new() };
        self.all = apps.iter().map(|app| shown(app, unix_ms, &mut rates)).collect();
        self.before = rates.current;
        self.history.retain(|name, _| apps.iter().any(|app| app.name() == name));
        for app in &mut self.all {
            let history = self.history.entry(app.row.name.clone()).or_default();
            history.extend(app.row.rate);
            while history.len() > MAX_HISTORY {
                history.pop_front();
            }
            app.row.history = history.iter().copied().collect();
        }
    }

    /// Returns the app whose workers are shown.
    fn opened(&self) -> Option<&Shown> {
        let name = self.opened.as_ref()?;
        self.all.iter().find(|app| app.row.name == *name)
    }

    /// Returns the rows that are shown, in their order.
    pub(super) fn rows(&self) -> Vec<&Row> {
        let mut rows: Vec<&Row> = match (&self.opened, self.opened()) {
            (Some(_), app) => app.iter().flat_map(|app| &app.workers).collect(),
            (None, _) => self.all.iter().map(|app| &app.row).collect(),
        };
        rows.retain(|row| row.name.contains(&self.filter) || row.state.contains(&self.filter));
        let by = |value: fn(&Row) -> f64| {
            move |one: &&Row, other: &&Row| value(other).total_cmp(&value(one))
        };
        match self.sort {
            // As they come: by name, or by slot.
            Sort::Name => {}
            Sort::Cpu => rows.sort_by(by(|row| row.cpu.unwrap_or(-1.0))),
            Sort::Memory => rows.sort_by(by(|row| row.memory as f64)),
            Sort::Rate => rows.sort_by(by(|row| row.rate.unwrap_or(-1.0))),
        }
        rows
    }

    /// Returns the place of the row that keys are for. A row stays selected when others come and go.
    pub(super) fn selected(&self) -> Option<usize> {
        let rows = self.rows();
        let name = self.selected.as_ref();
        let at = name.and_then(|name| rows.iter().position(|row| row.name == *name));
        at.or((!rows.is_empty()).then_some(0))
    }

    /// Returns the app that is told more of: the one whose workers are shown, or the selected one.
    pub(super) fn noted(&self) -> Option<&Shown> {
        if self.opened.is_some() {
            return self.opened();
        }
        let name = self.selected_name()?;
        self.all.iter().find(|app| app.row.name == name)
    }

    /// Returns the sums of all apps, or those of the one whose workers are shown: their number,
    /// workers, CPU and memory.
    pub(super) fn sums(&self) -> (usize, usize, f64, u64) {
        let apps = self.all.iter().filter(|app| match &self.opened {
            Some(name) => app.row.name == *name,
            None => true,
        });
        apps.fold((0, 0, 0.0, 0), |(apps, workers, cpu, memory), app| {
            let (more, used) = (app.row.cpu.unwrap_or(0.0), app.row.memory);
            (apps + 1, workers + app.workers.len(), cpu + more, memory + used)
        })
    }

    /// Handles a key.
    pub(super) fn key(&mut self, key: KeyEvent) -> Option<Effect> {
        let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
        if is_control && key.code == KeyCode::Char('c') {
            return Some(Effect::Quit);
        }
        if let Some(verb) = self.asking.take() {
            let is_yes = matches!(key.code, KeyCode::Char('y' | 'Y'));
            return is_yes.then_some(Effect::Verb(verb));
        }
        if self.is_typing {
            match key.code {
                KeyCode::Enter => self.is_typing = false,
                KeyCode::Esc => (self.is_typing, self.filter) = (false, String::new()),
                KeyCode::Backspace => drop(self.filter.pop()),
                KeyCode::Char(c) if !c.is_control() && self.filter.chars().count() < MAX_FILTER => {
                    self.filter.push(c);
                }
                _ => {}
            }
            return None;
        }
        match key.code {
            KeyCode::Char('q') => return Some(Effect::Quit),
            KeyCode::Down | KeyCode::Char('j') => self.go(1),
            KeyCode::Up | KeyCode::Char('k') => self.go(-1),
            KeyCode::PageDown => self.go(10),
            KeyCode::PageUp => self.go(-10),
            KeyCode::Home => self.go(isize::MIN),
            KeyCode::End => self.go(isize::MAX),
            KeyCode::Enter | KeyCode::Right | KeyCode::Char('l') if self.opened.is_none() => {
                self.opened = self.selected_name();
                (self.selected, self.filter) = (None, String::new());
            }
            KeyCode::Esc | KeyCode::Left | KeyCode::Char('h') => match self.filter.is_empty() {
                true => self.selected = self.opened.take().or(self.selected.take()),
                false => self.filter.clear(),
            },
            KeyCode::Char('s') => self.sort = self.sort.next(),
            KeyCode::Char('/') => self.is_typing = true,
            KeyCode::Char('r') => self.ask(&["reload"], &[], true),
            KeyCode::Char('R') => self.ask(&["restart"], &[], false),
            KeyCode::Char('x') => self.ask(&["stop"], &[], false),
            KeyCode::Char('+') => self.ask(&["scale"], &["+1"], false),
            KeyCode::Char('-') => self.ask(&["scale"], &["-1"], false),
            _ => {}
        }
        None
    }

    fn selected_name(&self) -> Option<String> {
        Some(self.rows().get(self.selected()?)?.name.clone())
    }

    fn go(&mut self, by: isize) {
        let rows = self.rows();
        let last = rows.len().saturating_sub(1);
        let at = self.selected().unwrap_or(0).saturating_add_signed(by).min(last);
        self.selected = rows.get(at).map(|row| row.name.clone());
    }

    /// Asks whether to carry out a verb for the selected app, or for the selected worker if it takes one.
    fn ask(&mut self, verb: &[&str], rest: &[&str], takes_worker: bool) {
        let Some(selected) = self.selected_name() else { return };
        let target = match &self.opened {
            None => selected,
            Some(app) if takes_worker => format!("{app}:{selected}"),
            Some(app) => app.clone(),
        };
        let words = verb.iter().copied().chain([target.as_str()]).chain(rest.iter().copied());
        self.asking = Some(words.map(str::to_owned).collect());
    }
}

/// Makes rates of counters.
struct Rates {
    now: Instant,
    before: BTreeMap<(String, Option<u32>), Counters>,
    current: BTreeMap<(String, Option<u32>), Counters>,
}

impl Rates {
    /// Returns the CPU in percent and the connections per second since the look before.
    fn of(
        &mut self,
        app: &str,
        worker: Option<u32>,
        cpu_ms: u64,
        taken: u64,
    ) -> (Option<f64>, Option<f64>) {
        let key = (app.to_owned(), worker);
        let before = self.before.get(&key).copied();
        self.current.insert(key, (self.now, cpu_ms, taken));
        let Some((at, cpu_before, taken_before)) = before else { return (None, None) };
        let seconds = self.now.duration_since(at).as_secs_f64();
        if seconds <= 0.0 {
            return (None, None);
        }
        let per_second = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        // Of CPU milliseconds per second a tenth is percent.
        (Some(per_second(cpu_ms, cpu_before) / 10.0), Some(per_second(taken, taken_before)))
    }
}

fn shown(app: &App, unix_ms: u64, rates: &mut Rates) -> Shown {
    match app {
        App::Running(app) => running(app, rates),
        App::Silent(name) => Shown {
            row: Row { name: name.clone(), state: "not answering".into(), ..Row::default() },
            ..Shown::default()
        },
        App::Ended(record, end) => {
            let state = escaped(&list::state(end, unix_ms)).to_string();
            let is_well = state == "stopped" || state.starts_with("finished");
            let place = format!("0/{}", record.workers);
            let row = Row { name: record.name.clone(), state, is_well, place, ..Row::default() };
            let reason = end.reason.as_ref().map(|reason| escaped(reason).to_string());
            Shown { row, workers: Vec::new(), notes: reason.into_iter().collect() }
        }
    }
}

fn running(app: &AppSnapshot, rates: &mut Rates) -> Shown {
    let snapshot = &app.snapshot;
    let (cpu, rate) = rates.of(&app.name, None, app.total.cpu_ms, snapshot.totals.taken);
    let why = why_not_ready(app);
    let row = Row {
        name: app.name.clone(),
        state: times::state(app).to_owned(),
        is_well: why.is_none(),
        place: format!(
            "{}/{}",
            serving(snapshot),
            snapshot.wanted.unwrap_or(snapshot.workers.len())
        ),
        pid: Some(snapshot.pid),
        cpu,
        memory: app.total.rss,
        rate,
        open: snapshot.workers.iter().map(|worker| u64::from(worker.stats.open)).sum(),
        waiting: snapshot.listeners.iter().map(|listener| listener.waiting).sum(),
        restarts: snapshot.restarts,
        age_ms: snapshot.uptime_ms,
        history: Vec::new(),
    };
    let mut workers: Vec<_> = snapshot.workers.iter().collect();
    workers.sort_by_key(|worker| (worker.slot, worker.id));
    let workers = workers.into_iter().map(|worker| of_worker(app, worker, rates)).collect();
    let listening = snapshot.listeners.iter().map(|listener| {
        let waiting = match listener.waiting {
            0 => String::new(),
            waiting => format!(", {waiting} waiting"),
        };
        format!("{}: {}{waiting}", escaped(&listener.address), escaped(&listener.scheduling))
    });
    let listening = listening.collect::<Vec<_>>().join("; ");
    let why = why.map(|why| escaped(&why).to_string());
    let notes = [listening].into_iter().chain(why).filter(|note| !note.is_empty()).collect();
    Shown { row, workers, notes }
}

fn of_worker(app: &AppSnapshot, worker: &WorkerSnapshot, rates: &mut Rates) -> Row {
    let cpu_ms = worker.usage.map_or(0, |usage| usage.cpu_ms);
    let (cpu, rate) = rates.of(&app.name, Some(worker.id.0), cpu_ms, worker.stats.taken);
    let is_ready = worker
        .ready
        .unwrap_or(matches!(worker.state, WorkerState::Online | WorkerState::Listening));
    let (state, is_well) = match (worker.leaving_ms, is_ready) {
        (Some(_), _) => ("draining", true),
        (None, true) => ("ready", true),
        (None, false) => ("starting", false),
    };
    Row {
        name: worker.id.0.to_string(),
        state: state.into(),
        is_well,
        place: worker.slot.to_string(),
        pid: Some(worker.pid),
        cpu,
        memory: worker.usage.map_or(0, |usage| usage.rss),
        rate,
        open: u64::from(worker.stats.open),
        waiting: worker.stats.in_flight,
        restarts: 0,
        age_ms: worker.age_ms,
        history: Vec::new(),
    }
}
