//! Tables for terminals.

use std::io::Write as _;

use troop::text::escaped;

/// Prints rows under headings, escaped, the last column cut where the terminal ends. `right` names
/// columns of numbers.
pub(crate) fn print(headings: &[&str], right: &[&str], rows: &[Vec<String>]) {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| escaped(cell).to_string()).collect()).collect();
    let width_of = |at: usize| {
        let cells = rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count());
        cells.chain([headings[at].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width_of).collect();
    let most = terminal_size::terminal_size().map_or(usize::MAX, |(width, _)| usize::from(width.0));
    let line = |cells: &[String]| {
        let mut text = String::new();
        for (at, cell) in cells.iter().enumerate() {
            let width = widths[at];
            if right.contains(&headings[at]) {
                text.push_str(&format!("{cell:>width$}  "));
            } else {
                text.push_str(&format!("{cell:<width$}  "));
            }
        }
        text.trim_end().chars().take(most).collect::<String>()
    };
    let mut out = std::io::stdout().lock();
    // A closed standard output is ignored.
    let _ =
        writeln!(out, "{}", line(&headings.iter().map(|h| (*h).to_owned()).collect::<Vec<_>>()));
    for row in &rows {
        let _ = writeln!(out, "{}", line(row));
    }
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
    fn numbers_are_short() {
        let times = [40, 9_950, 59_999, 61_000, 3_700_000, 90_000_000].map(time);
        assert_eq!(times, ["0.0s", "9.9s", "59s", "1m 1s", "1h 1m", "1d 1h"]);
        let long_ago = [900, 61_000, 7_300_000, 200_000_000].map(ago);
        assert_eq!(long_ago, ["0 s", "1 min", "2 h", "2 d"]);
        let sizes = [0, 600 << 10, 3_460_000, 200 << 20, 3 << 30].map(size);
        assert_eq!(sizes, ["0K", "600K", "3.3M", "200M", "3.0G"]);
    }
}
