//! Tables for terminals.

use std::io::Write as _;

use troop::text::escaped;

/// The part of the last column that is kept before others are left out.
const LAST_COLUMN: usize = 22;

/// Prints rows under headings, as [`for_terminal`] returns them.
pub(crate) fn print(headings: &[&str], right: &[&str], spare: &[&str], rows: &[Vec<String>]) {
    let mut out = std::io::stdout().lock();
    for line in for_terminal(headings, right, spare, rows) {
        // A closed standard output is ignored.
        let _ = writeln!(out, "{line}");
    }
}

/// Returns rows under headings as lines, escaped. `right` names columns of numbers. On a terminal on which
/// not all columns have room, those of `spare` are left out, the first ones first; the last column is cut
/// where the terminal ends.
pub(crate) fn for_terminal(
    headings: &[&str],
    right: &[&str],
    spare: &[&str],
    rows: &[Vec<String>],
) -> Vec<String> {
    let most = terminal_size::terminal_size().map_or(usize::MAX, |(width, _)| usize::from(width.0));
    lines(headings, right, spare, rows, most)
}

fn lines(
    headings: &[&str],
    right: &[&str],
    spare: &[&str],
    rows: &[Vec<String>],
    most: usize,
) -> Vec<String> {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| escaped(cell).to_string()).collect()).collect();
    let width_of = |at: usize| {
        let cells = rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count());
        cells.chain([headings[at].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width_of).collect();
    let mut shown: Vec<usize> = (0..headings.len()).collect();
    let needed = |shown: &[usize]| {
        // The last column may be cut, but its heading and the first address stay.
        let last = shown.len().saturating_sub(1);
        let width = |at: usize, column: usize| {
            if at == last { widths[column].min(LAST_COLUMN) } else { widths[column] + 2 }
        };
        shown.iter().enumerate().map(|(at, column)| width(at, *column)).sum::<usize>()
    };
    for column in spare {
        if needed(&shown) > most {
            shown.retain(|at| headings[*at] != *column);
        }
    }
    let line = |cells: &[String]| {
        let mut text = String::new();
        for at in &shown {
            let Some(cell) = cells.get(*at) else { continue };
            let width = widths[*at];
            if right.contains(&headings[*at]) {
                text.push_str(&format!("{cell:>width$}  "));
            } else {
                text.push_str(&format!("{cell:<width$}  "));
            }
        }
        text.trim_end().chars().take(most).collect::<String>()
    };
    let headings: Vec<_> = headings.iter().map(|heading| (*heading).to_owned()).collect();
    std::iter::once(&headings).chain(&rows).map(|row| line(row)).collect()
}

/// Formats a time: `3d 4h`, `12m 5s`, `7s`, `0.2s`.
pub(crate) fn time(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..10 => format!("{}.{}s", seconds, ms % 1000 / 100),
        10..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// Formats how long ago something was: `7 s`, `3 min`, `5 h`, `2 d`.
pub(crate) fn ago(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// Formats a size: `3.3M`, `512K`, `1.2G`.
pub(crate) fn size(bytes: u64) -> String {
    let (unit, value) = match bytes {
        0..1_048_576 => return format!("{}K", bytes / 1024),
        1_048_576..1_073_741_824 => ('M', bytes as f64 / 1_048_576.0),
        _ => ('G', bytes as f64 / 1_073_741_824.0),
    };
    if value < 100.0 { format!("{value:.1}{unit}") } else { format!("{value:.0}{unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_that_matter_least_are_left_out_where_there_is_no_room() {
        let headings = ["NAME", "PID", "STATE", "CPU", "LISTENS ON"];
        let rows = [["web", "4711", "crashed 3 min ago", "1.5s", "127.0.0.1:8000 127.0.0.1:9000"]
            .map(str::to_owned)
            .to_vec()];
        let at = |most| lines(&headings, &["PID", "CPU"], &["PID", "CPU"], &rows, most);
        assert!(at(80)[1].ends_with("127.0.0.1:9000") && at(80)[1].starts_with("web   4711"));
        assert_eq!(
            at(56),
            [
                "NAME  STATE               CPU  LISTENS ON",
                "web   crashed 3 min ago  1.5s  127.0.0.1:8000 127.0.0.1:"
            ]
        );
        assert_eq!(at(46)[0], "NAME  STATE              LISTENS ON");
        assert_eq!(at(20)[1], "web   crashed 3 min ");
    }

    #[test]
    fn numbers_are_short() {
        let times = [40, 9_950, 59_999, 61_000, 3_700_000, 90_000_000].map(time);
        assert_eq!(times, ["0.0s", "9.9s", "59s", "1m 1s", "1h 1m", "1d 1h"]);
        let long_ago = [900, 61_000, 7_300_000, 200_000_000].map(ago);
        assert_eq!(long_ago, ["0 s", "1 min", "2 h", "2 d"]);
        let sizes = [0, 600 << 10, 3_460_000, 200 << 20, 3 << 30].map(size);
        assert_eq!(sizes, ["0K", "600K", "3.3M", "200M", "3.0G"]);
    }
}
