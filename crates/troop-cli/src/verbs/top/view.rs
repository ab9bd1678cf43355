//! How `troop top` looks.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row as TableRow, Table, TableState, Wrap};

use super::super::table::{size, time};
use super::model::{Model, Row};

/// The most lines below the table.
const MAX_NOTES: usize = 4;
/// The width of connections per second over time.
const HISTORY_WIDTH: u16 = 24;
/// Bars of an eighth to all of a line.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// A column: its heading, its width, and what stands in it.
struct Column {
    heading: &'static str,
    width: u16,
    is_number: bool,
    text: fn(&Row) -> String,
}

const fn words(heading: &'static str, width: u16, text: fn(&Row) -> String) -> Column {
    Column { heading, width, is_number: false, text }
}

const fn number(heading: &'static str, width: u16, text: fn(&Row) -> String) -> Column {
    Column { heading, width, is_number: true, text }
}

/// The columns of apps. The last ones are left out where there is no room.
const OF_APPS: [Column; 11] = [
    words("NAME", 16, |row| row.name.clone()),
    words("STATE", 13, |row| row.state.clone()),
    number("WORKERS", 7, |row| row.place.clone()),
    number("CPU%", 6, |row| tenths(row.cpu)),
    number("MEMORY", 7, |row| if row.pid.is_some() { size(row.memory) } else { String::new() }),
    number("CONN/S", 7, |row| tenths(row.rate)),
    number("RESTARTS", 8, |row| count(row, row.restarts)),
    number("OPEN", 6, |row| count(row, row.open)),
    number("WAITING", 7, |row| count(row, row.waiting as u64)),
    number("UPTIME", 8, |row| if row.pid.is_some() { time(row.age_ms) } else { String::new() }),
    words("CONNECTIONS PER SECOND", HISTORY_WIDTH, |row| bars(&row.history, HISTORY_WIDTH.into())),
];

/// The columns of workers.
const OF_WORKERS: [Column; 10] = [
    number("SLOT", 4, |row| row.place.clone()),
    number("WORKER", 6, |row| row.name.clone()),
    number("PID", 8, |row| row.pid.map(|pid| pid.to_string()).unwrap_or_default()),
    words("STATE", 10, |row| row.state.clone()),
    number("CPU%", 6, |row| tenths(row.cpu)),
    number("MEMORY", 7, |row| size(row.memory)),
    number("CONN/S", 7, |row| tenths(row.rate)),
    number("OPEN", 6, |row| row.open.to_string()),
    number("IN FLIGHT", 9, |row| row.waiting.to_string()),
    number("AGE", 8, |row| time(row.age_ms)),
];

fn tenths(value: Option<f64>) -> String {
    value.map(|value| format!("{value:.1}")).unwrap_or_default()
}

fn count(row: &Row, count: u64) -> String {
    if row.pid.is_some() { count.to_string() } else { String::new() }
}

/// Returns numbers over time as bars, the highest of which fills a line.
fn bars(values: &[f64], width: usize) -> String {
    let last = &values[values.len().saturating_sub(width)..];
    let most = last.iter().copied().fold(0.0, f64::max);
    let bar = |value: &f64| match *value > 0.0 {
        // What is more than nothing is seen.
        true => BARS[((value / most * 8.0).ceil() as usize).clamp(1, BARS.len()) - 1],
        false => ' ',
    };
    last.iter().map(bar).collect()
}

/// Draws a model. `clock` is the time of day.
pub(super) fn draw(frame: &mut Frame<'_>, model: &Model, clock: &str) {
    let notes = notes(model, frame.area().width);
    let below = u16::try_from(notes.len()).unwrap_or(0);
    let [head, table, middle, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Min(2),
        Constraint::Length(below),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(heading(model, clock), head);
    rows(frame, model, table);
    frame.render_widget(Paragraph::new(notes), middle);
    frame.render_widget(footer(model), foot);
}

fn heading(model: &Model, clock: &str) -> Paragraph<'static> {
    let (apps, workers, cpu, memory) = model.sums();
    let plural = |number: usize, noun| troop::text::counted(number as u64, noun);
    let what = match &model.opened {
        Some(app) => format!("troop top: {app}"),
        None => format!("troop top: {}, {}", plural(apps, "app"), plural(workers, "worker")),
    };
    let filter = match (model.is_typing, model.filter.is_empty()) {
        (true, _) => format!("  filter: {}_", model.filter),
        (false, false) => format!("  filter: {}", model.filter),
        (false, true) => String::new(),
    };
    let sort = model.sort.name();
    let text =
        format!("{what}  CPU {cpu:.1}%  memory {}  by {sort}{filter}  {clock}", size(memory));
    Paragraph::new(text).style(Style::new().add_modifier(Modifier::BOLD))
}

fn rows(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    let columns: &[Column] = if model.opened.is_some() { &OF_WORKERS } else { &OF_APPS };
    let mut room = area.width;
    let mut fits = |column: &&Column| {
        let is_room = room >= column.width;
        room = if is_room { room.saturating_sub(column.width + 1) } else { 0 };
        is_room
    };
    let columns: Vec<&Column> = columns.iter().take_while(|column| fits(column)).collect();
    let cell = |column: &Column, text: String| {
        let width = usize::from(column.width);
        Cell::new(if column.is_number { format!("{text:>width$}") } else { text })
    };
    let headings = columns.iter().map(|column| cell(column, column.heading.into()));
    let headings = TableRow::new(headings).style(Style::new().add_modifier(Modifier::UNDERLINED));
    let of_row = |row: &&Row| {
        let cells = columns.iter().map(|column| {
            let style = match (column.heading, row.is_well) {
                // The words say it, too.
                ("STATE", false) => Style::new().fg(Color::Yellow).add_modifier(Modifier::BOLD),
                ("STATE", true) => Style::new().fg(Color::Cyan),
                _ => Style::new(),
            };
            cell(column, (column.text)(row)).style(style)
        });
        TableRow::new(cells.collect::<Vec<_>>())
    };
    let shown = model.rows();
    let widths = columns.iter().map(|column| Constraint::Length(column.width));
    let table = Table::new(shown.iter().map(of_row), widths)
        .header(headings)
        .column_spacing(1)
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut state = TableState::new().with_selected(model.selected());
    frame.render_stateful_widget(table, area, &mut state);
}

/// Returns what is told of the selected app, or of the app whose workers are shown.
fn notes(model: &Model, width: u16) -> Vec<Line<'static>> {
    let app = model.noted();
    let notes = app.map_or(&[][..], |app| &app.notes);
    let cut = |note: &String| {
        Line::from(note.chars().take(width.into()).collect::<String>())
            .style(Style::new().add_modifier(Modifier::DIM))
    };
    notes.iter().take(MAX_NOTES).map(cut).collect()
}

fn footer(model: &Model) -> Paragraph<'static> {
    let text = match (&model.asking, model.said.is_empty()) {
        (Some(verb), _) => {
            let text = format!("troop {}? y: yes, any other key: no", verb.join(" "));
            return Paragraph::new(text).style(Style::new().add_modifier(Modifier::REVERSED));
        }
        (None, false) => model.said.clone(),
        (None, true) => String::new(),
    };
    let keys = match model.opened {
        None => "q quit  Enter workers  / filter  s sort  r reload  +/- scale  R restart  x stop",
        Some(_) => {
            "q quit  Esc apps  / filter  s sort  r reload worker  +/- scale  R restart  x stop"
        }
    };
    let line = match text.is_empty() {
        true => Line::from(keys),
        false => Line::from(vec![Span::raw(text), Span::raw("   q quit")]),
    };
    Paragraph::new(line).wrap(Wrap { trim: false })
}
