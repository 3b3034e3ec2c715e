//! Prints the kernel's log as dmesg does.

mod common;

use std::process::ExitCode;

use clap::Parser;
use common::table::{Column, Row};
use common::{Common, EXIT_CODES};
use serde::Serialize;
use vmi::LogRecord;

/// Print the kernel's log, as dmesg does
#[derive(Parser)]
#[command(after_help = EXIT_CODES, after_long_help = format!("\
Examples:
  kernel-log                       the log of the demo image
  kernel-log --level 3 guest.lime  errors and worse
  kernel-log --json guest.lime | jq -r '.[].text'

{EXIT_CODES}"))]
struct Args {
    /// Only records at least as severe as this: 0 emergency, 3 error, 4 warning, 6 information, 7 debug
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u8).range(0..=7))]
    level: u8,
    #[command(flatten)]
    common: Common,
}

fn main() -> ExitCode {
    let args = Args::parse();
    common::run(|| {
        let vmi = args.common.open()?;
        let guest = args.common.attach(&vmi)?;
        let mut table = args.common.table(LogRow::COLUMNS);
        for record in guest.kernel_log() {
            if record.as_ref().is_ok_and(|record| record.level > args.level) {
                continue;
            }
            table.row(record.map(LogRow::from))?;
        }
        table.finish()
    })
}

#[derive(Serialize)]
struct LogRow {
    sequence: u64,
    nanoseconds: u64,
    level: u8,
    text: String,
}

impl LogRow {
    /// A line as dmesg prints it, without headings.
    const COLUMNS: &[Column] = &[("", 0)];

    fn lines(&self) -> impl Iterator<Item = String> {
        let (seconds, micros) = (self.nanoseconds / 1_000_000_000, self.nanoseconds / 1000 % 1_000_000);
        self.text.split('\n').map(move |line| format!("[{seconds:>5}.{micros:06}] {line}"))
    }
}

impl From<LogRecord> for LogRow {
    fn from(record: LogRecord) -> Self {
        Self { sequence: record.sequence, nanoseconds: record.nanoseconds, level: record.level, text: record.text }
    }
}

impl Row for LogRow {
    fn cells(&self) -> Vec<String> {
        self.lines().take(1).collect()
    }

    fn below(&self) -> String {
        self.lines().skip(1).collect::<Vec<_>>().join("\n")
    }
}
