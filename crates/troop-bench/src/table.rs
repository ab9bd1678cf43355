//! Tables in Markdown, and medians.

/// A table.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Returns an empty table with these columns.
    pub(crate) fn new(columns: &[&str]) -> Table {
        Table { rows: vec![columns.iter().map(|c| (*c).to_owned()).collect()] }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Prints the table, with the first column aligned to the left and the others to the right.
    pub(crate) fn print(&self) {
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.rows[0].len()).map(width).collect();
        for (number, row) in self.rows.iter().enumerate() {
            let mut cells = row.iter().zip(&widths).enumerate();
            let first =
                cells.next().map_or(String::new(), |(_, (cell, width))| format!("{cell:<width$}"));
            let rest: Vec<String> =
                cells.map(|(_, (cell, width))| format!("{cell:>width$}")).collect();
            println!("| {first} | {} |", rest.join(" | "));
            if number == 0 {
                let rules: Vec<String> =
                    widths[1..].iter().map(|width| format!("{}:", "-".repeat(width - 1))).collect();
                println!("| {} | {} |", "-".repeat(widths[0]), rules.join(" | "));
            }
        }
        println!();
    }
}

/// Returns the median.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => f64::NAN,
        (n, middle) if n % 2 == 1 => sorted[middle],
        (_, middle) => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// Formats a number with three significant digits, or all digits before the point.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        _ if !value.is_finite() => "-".into(),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// Formats a ratio.
pub(crate) fn times(ratio: f64) -> String {
    if ratio.is_finite() { format!("{}x", number(ratio)) } else { "-".into() }
}
