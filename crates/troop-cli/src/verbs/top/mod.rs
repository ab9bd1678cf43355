//! `troop top`: what apps and workers do, live.
//!
//! `model.rs` has what is shown and what keys do, `view.rs` how it looks. Here are the terminal, the
//! thread that asks the apps, and the verbs that keys carry out.

mod model;
mod view;

use std::io::IsTerminal as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant, SystemTime};

use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use ratatui::{DefaultTerminal, Terminal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use troop::text::escaped;

use crate::apps::{self, App};
use crate::args::Top;
use crate::control::protocol::Failure;
use crate::error::CliError;
use crate::records::millis;
use crate::{print, restart};
use model::{Effect, Model};

/// Time for which keys are waited for before what has come is shown.
const INPUT_INTERVAL: Duration = Duration::from_millis(50);
/// The size of a page that is printed, where no terminal has another one.
const PRINTED_SIZE: (u16, u16) = (80, 24);
/// The longest answer of a verb that is shown, in characters.
const MAX_SAID: usize = 200;

/// What other threads tell.
enum News {
    Apps(Result<Vec<App>, String>),
    /// What a verb said.
    Said(String),
}

/// Runs `troop top`.
pub(crate) fn top(args: &Top) -> Result<(), CliError> {
    let interval = args.interval.0.max(Duration::from_millis(100));
    if args.once {
        return print_once(args, interval);
    }
    if !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() {
        return Err(CliError::Usage(
            "top needs a terminal; `troop top --once` prints one page, and `troop ls --json` is for programs".into(),
        ));
    }
    let doing = |e| CliError::Io("use the terminal".into(), e);
    // The terminal is as it was when this ends, also by a panic.
    let mut terminal = ratatui::try_init().map_err(doing)?;
    let result = run(&mut terminal, args, interval);
    ratatui::restore();
    result.map_err(doing)
}

fn run(terminal: &mut DefaultTerminal, args: &Top, interval: Duration) -> std::io::Result<()> {
    let (sender, news) = channel();
    let asking = sender.clone();
    std::thread::Builder::new()
        .name("troop-apps".into())
        .spawn(move || watch(interval, &asking))?;
    let mut model = Model::new(args.app.clone());
    model.said = "asking the apps".into();
    let is_to_end = Arc::new(AtomicBool::new(false));
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, is_to_end.clone())?;
    }
    while !is_to_end.load(Ordering::Relaxed) {
        receive(&mut model, &news);
        terminal.draw(|frame| view::draw(frame, &model, &clock()))?;
        if !event::poll(INPUT_INTERVAL)? {
            continue;
        }
        let Event::Key(key) = event::read()? else { continue };
        if key.kind == KeyEventKind::Release {
            continue;
        }
        match model.key(key) {
            Some(Effect::Quit) => return Ok(()),
            Some(Effect::Verb(words)) => {
                model.said = format!("troop {}: begun", words.join(" "));
                let sender = sender.clone();
                std::thread::Builder::new()
                    .name("troop-verb".into())
                    .spawn(move || drop(sender.send(News::Said(carry_out(&words)))))?;
            }
            None => {}
        }
    }
    Ok(())
}

/// Asks the apps again and again, until nobody wants to know.
fn watch(interval: Duration, sender: &Sender<News>) {
    loop {
        let apps = apps::all().map_err(|e| e.to_string());
        if sender.send(News::Apps(apps)).is_err() {
            return;
        }
        std::thread::sleep(interval);
    }
}

fn receive(model: &mut Model, news: &Receiver<News>) {
    for news in news.try_iter() {
        match news {
            News::Apps(Ok(apps)) => note(model, &apps),
            News::Apps(Err(why)) => model.said = why,
            News::Said(text) => model.said = text,
        }
    }
}

fn note(model: &mut Model, apps: &[App]) {
    if model.said == "asking the apps" {
        model.said.clear();
    }
    model.note(Instant::now(), millis(SystemTime::now()), apps);
}

/// Carries a verb out, as it is typed. Returns the last line of what it says.
fn carry_out(words: &[String]) -> String {
    let typed = format!("troop {}", words.join(" "));
    let output = match Command::new(restart::program()).args(words).stdin(Stdio::null()).output() {
        Ok(output) => output,
        Err(e) => return format!("{typed}: {e}"),
    };
    let said = if output.status.success() { &output.stdout } else { &output.stderr };
    let said = String::from_utf8_lossy(said);
    let line = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("done");
    format!("{typed}: {:.1$}", escaped(line), MAX_SAID)
}

/// Returns the time of day.
fn clock() -> String {
    jiff::Zoned::now().strftime("%H:%M:%S").to_string()
}

/// Prints one page. Rates need two looks.
fn print_once(args: &Top, interval: Duration) -> Result<(), CliError> {
    let mut model = Model::new(args.app.clone());
    note(&mut model, &apps::all()?);
    std::thread::sleep(interval);
    let apps = apps::all()?;
    if let Some(name) = &args.app
        && !apps.iter().any(|app| app.name() == name)
    {
        return Err(CliError::NoApp(format!("there is no app {name}")));
    }
    note(&mut model, &apps);
    let size = terminal_size::terminal_size().map(|(width, height)| (width.0, height.0));
    let page = page(&model, size.unwrap_or(PRINTED_SIZE), &clock());
    let page = page.map_err(|e| CliError::Failed(Failure::new("failed", e)))?;
    for line in page.lines() {
        let _ = print::line(line);
    }
    Ok(())
}

/// Returns a page as text, without the keys and empty lines at its end.
fn page(model: &Model, (width, height): (u16, u16), clock: &str) -> Result<String, String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).map_err(|e| e.to_string())?;
    terminal.draw(|frame| view::draw(frame, model, clock)).map_err(|e| e.to_string())?;
    let buffer = terminal.backend().buffer();
    let line = |y: u16| -> String {
        let cells = (0..width).filter_map(|x| buffer.cell((x, y)));
        let text: String = cells.map(|cell| cell.symbol()).collect();
        text.trim_end().to_owned()
    };
    let lines: Vec<String> = (0..height.saturating_sub(1)).map(line).collect();
    Ok(lines.into_iter().filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests;
