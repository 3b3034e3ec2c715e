//! Rows as an aligned table or as a JSON array, printed one by one: memory does not grow with their number.

use core::fmt::Display;
use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use serde::Serialize;

use super::complain;
use super::text::{json_printable, printable};

/// Heading and least width of a column; a negative width aligns to the right. Longer cells push the rest of their row.
pub type Column = (&'static str, isize);

/// A row: what JSON says of it, and its cells in a table.
pub trait Row: Serialize {
    /// One cell for each column. What is not known is `-`.
    fn cells(&self) -> Vec<String>;

    /// Lines that belong below the row.
    fn below(&self) -> String {
        String::new()
    }
}

/// Rows on standard output.
pub struct Table {
    out: BufWriter<Box<dyn Write>>,
    columns: Vec<Column>,
    json: bool,
    rows: u64,
    failures: u64,
}

impl Table {
    pub fn new(columns: impl Into<Vec<Column>>, json: bool) -> Self {
        let out: Box<dyn Write> = if json { Box::new(io::stdout().lock()) } else { Box::new(anstream::stdout().lock()) };
        Self { out: BufWriter::new(out), columns: columns.into(), json, rows: 0, failures: 0 }
    }

    /// Sends the rows to standard error: for tools whose standard output is something else.
    pub fn on_stderr(self) -> Self {
        let out: Box<dyn Write> = if self.json { Box::new(io::stderr().lock()) } else { Box::new(anstream::stderr().lock()) };
        Self { out: BufWriter::new(out), ..self }
    }

    /// Prints a row, or on standard error why it could not be read.
    pub fn row<R: Row>(&mut self, row: vmi::Result<R>) -> anyhow::Result<()> {
        self.row_or(row)
    }

    /// As [`Table::row`], of what fails with an error of another kind.
    pub fn row_or<R: Row>(&mut self, row: Result<R, impl Display>) -> anyhow::Result<()> {
        match row {
            Ok(row) => {
                self.start()?;
                self.rows += 1;
                if self.json { self.json_row(&row)? } else { self.text_row(&row)? }
            }
            Err(error) => {
                self.failures += 1;
                if self.json && self.rows > 0 {
                    self.out.write_all(b"\n")?; // the message is not to stand in the row's line
                }
                self.out.flush()?;
                complain(format_args!("after {} rows: {error}", self.rows));
            }
        }
        Ok(())
    }

    /// Shows all rows so far: for those that come as things happen.
    pub fn show(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// Ends the table. The exit code says whether all rows could be read, some or none.
    pub fn finish(mut self) -> anyhow::Result<ExitCode> {
        if self.rows > 0 || self.failures == 0 {
            self.start()?;
            if self.json {
                self.out.write_all(if self.rows > 0 { b"\n]\n" } else { b"]\n" })?;
            }
        }
        self.out.flush()?;
        Ok(match (self.rows, self.failures) {
            (_, 0) => ExitCode::SUCCESS,
            (0, _) => ExitCode::FAILURE,
            _ => ExitCode::from(3),
        })
    }

    /// What stands before the first row.
    fn start(&mut self) -> io::Result<()> {
        if self.rows > 0 {
            return Ok(());
        }
        if self.json {
            return self.out.write_all(b"[");
        }
        if self.columns.iter().all(|(heading, _)| heading.is_empty()) {
            return Ok(());
        }
        let headings = self.align(self.columns.iter().map(|(heading, _)| (*heading).to_owned()));
        writeln!(self.out, "\x1b[1m{headings}\x1b[0m")
    }

    fn json_row<R: Row>(&mut self, row: &R) -> anyhow::Result<()> {
        let separator = if self.rows > 1 { ",\n" } else { "\n" };
        write!(self.out, "{separator}{}", json_printable(&serde_json::to_string(row)?))?;
        Ok(())
    }

    fn text_row<R: Row>(&mut self, row: &R) -> io::Result<()> {
        let line = self.align(row.cells());
        writeln!(self.out, "{line}")?;
        row.below().lines().try_for_each(|line| writeln!(self.out, "{}", printable(line)))
    }

    /// The cells below each other's headings. Nothing is padded behind the last cell that is not empty.
    fn align(&self, cells: impl IntoIterator<Item = String>) -> String {
        let mut line = String::new();
        let mut gap = 0;
        for (cell, &(_, width)) in cells.into_iter().zip(&self.columns) {
            let cell = printable(&cell);
            let fill = width.unsigned_abs().saturating_sub(cell.chars().count());
            let (before, behind) = if width < 0 { (fill, 0) } else { (0, fill) };
            if !cell.is_empty() {
                line.extend(std::iter::repeat_n(' ', gap + before));
                line += &cell;
                gap = 0;
            }
            gap += behind + 1;
        }
        line
    }
}
