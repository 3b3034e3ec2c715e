//! Lists the running guests of this host, and what can be done with each.

mod common;

use std::process::ExitCode;

use clap::Parser;
use common::table::{Column, Row, Table};
use common::text::cell;
use common::{EXIT_CODES, run};
use serde::Serialize;
use vmi::FoundGuest;

/// List the running guests of this host, and what can be done with each
///
/// The target is what the other programs take. Nothing is opened, and no guest is touched.
#[derive(Parser)]
#[command(after_help = EXIT_CODES, after_long_help = format!("\
Examples:
  guest-list
  guest-list --json | jq -r '.[].target'

{EXIT_CODES}"))]
struct Args {
    /// Print a JSON array, one object a line; docs/json.md describes the fields
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    run(|| {
        let mut table = Table::new(GuestRow::COLUMNS, args.json);
        for guest in vmi::targets() {
            table.row(Ok(GuestRow::from(guest)))?;
        }
        table.finish()
    })
}

#[derive(Serialize)]
struct GuestRow {
    target: Option<String>,
    name: Option<String>,
    pid: Option<u32>,
    memory: Option<String>,
    roads: Vec<&'static str>,
    control: bool,
    events: bool,
    problems: Vec<String>,
}

impl GuestRow {
    const COLUMNS: &[Column] = &[("target", 32), ("name", 16), ("pid", -7), ("memory", 8), ("access", 0)];
}

impl From<FoundGuest> for GuestRow {
    fn from(guest: FoundGuest) -> Self {
        Self {
            target: guest.target.map(|target| target.to_string()),
            name: guest.name,
            pid: guest.pid,
            memory: guest.memory,
            roads: guest.roads.iter().map(|road| road.name()).collect(),
            control: guest.control,
            events: guest.events,
            problems: guest.problems,
        }
    }
}

impl Row for GuestRow {
    fn cells(&self) -> Vec<String> {
        let mut access: Vec<&str> = self.roads.clone();
        access.extend(self.control.then_some("pause"));
        access.extend(self.events.then_some("events"));
        let access = if access.is_empty() { "none".to_owned() } else { access.join(" ") };
        vec![cell(self.target.clone()), cell(self.name.clone()), cell(self.pid), cell(self.memory.clone()), access]
    }

    fn below(&self) -> String {
        self.problems.iter().map(|problem| format!("  {problem}\n")).collect()
    }
}
