//! Prints the rows with their ratios.

use crate::timing::Figure;

#[derive(Default)]
pub struct Table(Vec<[String; 6]>);

impl Table {
    pub fn new() -> Self {
        Self::default()
    }

    /// A row of figures: ours, the limit's and the peer's, and the ratios of both to the limit.
    pub fn row(&mut self, what: &str, limit: &str, figures: &[Figure]) {
        let find = |name: &str| figures.iter().find(|figure| figure.name == name);
        let cell = |name: &str| find(name).map(show).unwrap_or_default();
        let ratio = |name: &str| match (find(name), find("limit")) {
            (Some(one), Some(limit)) => format!("{:.2}", one.nanoseconds / limit.nanoseconds),
            _ => String::new(),
        };
        let limit = if limit.is_empty() { String::new() } else { format!("{} ({limit})", cell("limit")) };
        let row = [what.to_owned(), cell("ours"), limit, ratio("ours"), cell("memflow"), ratio("memflow")];
        eprintln!("{}", row[..2].join(": "));
        self.0.push(row);
    }

    /// A row of ratios between two rows, contender by contender.
    pub fn ratio(&mut self, what: &str, above: &[Figure], below: &[Figure]) {
        let cell = |name: &str| {
            let find = |figures: &[Figure]| figures.iter().find(|figure| figure.name == name).map(|figure| figure.nanoseconds);
            find(above).zip(find(below)).map(|(a, b)| format!("{:.1} x", a / b)).unwrap_or_default()
        };
        self.0.push([what.to_owned(), cell("ours"), cell("limit"), String::new(), cell("memflow"), String::new()]);
    }

    pub fn print(&self) {
        let header = ["", "ours", "limit", "ours/limit", "memflow", "memflow/limit"].map(str::to_owned);
        let rows: Vec<&[String; 6]> = std::iter::once(&header).chain(&self.0).collect();
        let widths: Vec<usize> = (0..6).map(|i| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0)).collect();
        println!();
        for row in rows {
            let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
            println!("{}", cells.join("  ").trim_end());
        }
    }
}

fn show(figure: &Figure) -> String {
    match figure.bytes {
        Some(bytes) => format!("{:.2} GB/s", bytes as f64 / figure.nanoseconds),
        None if figure.nanoseconds < 1e3 => format!("{:.2} ns", figure.nanoseconds),
        None if figure.nanoseconds < 1e6 => format!("{:.2} us", figure.nanoseconds / 1e3),
        None => format!("{:.2} ms", figure.nanoseconds / 1e6),
    }
}
