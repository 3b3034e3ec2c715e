//! Lists the processes of a guest by every view that there is of them: what hides from one is seen by another.

mod common;

use std::process::ExitCode;

use clap::Parser;
use common::table::{Column, Row};
use common::text::Hex;
use common::{Common, EXIT_CODES, complain};
use serde::Serialize;
use vmi::System;

/// List the processes of a guest by every view of them
///
/// Of Linux: list of tasks, table of process ids, children of each thread. Of Windows: list, table of ids, threads, subsystem, scan of memory. Of a running
/// guest the views are of different moments: what comes or goes meanwhile seems to hide.
#[derive(Parser)]
#[command(after_help = EXIT_CODES, after_long_help = format!("\
Examples:
  process-views guest.dmp               all processes, and who knows them
  process-views --hidden guest.dmp      those that run and that something hides
  process-views --json guest.dmp | jq '.[] | select(.hidden)'

{EXIT_CODES}"))]
struct Args {
    /// Only processes that run and that something hides
    #[arg(long)]
    hidden: bool,
    #[command(flatten)]
    common: Common,
}

fn main() -> ExitCode {
    let args = Args::parse();
    common::run(|| {
        let vmi = args.common.open()?;
        let (columns, rows, problems) = match args.common.attach_system(&vmi)? {
            System::Linux(linux) => {
                let survey = linux.survey_processes();
                (LINUX, survey.processes.iter().map(SeenRow::from).collect::<Vec<_>>(), survey.problems)
            }
            System::Windows(windows) => {
                let survey = windows.survey_processes();
                (WINDOWS, survey.processes.iter().map(SeenRow::from).collect(), survey.problems)
            }
            other => anyhow::bail!("processes of {} are not looked at by views", other.name()),
        };
        let mut table = args.common.table(columns);
        for row in rows.into_iter().filter(|row| !args.hidden || row.hidden) {
            table.row(Ok(row))?;
        }
        let code = table.finish()?;
        for (view, error) in &problems {
            complain(format_args!("{view}: {error}"));
        }
        Ok(if problems.is_empty() { code } else { ExitCode::from(3) })
    })
}

const LINUX: &[Column] = &[("pid", -7), ("name", 15), ("list", 4), ("ids", 3), ("children", 8), ("exited", 6), ("hidden", 0)];
const WINDOWS: &[Column] = &[
    ("pid", -7),
    ("name", 15),
    ("list", 4),
    ("ids", 3),
    ("threads", 7),
    ("subsystem", 9),
    ("pool", 4),
    ("exited", 6),
    ("hidden", 0),
];

/// A process. A view is null if the system has none such, or if it could not be had whole and does not know the process.
#[derive(Serialize)]
struct SeenRow {
    pid: u32,
    name: String,
    hidden: bool,
    exited: bool,
    list: Option<bool>,
    id_table: Option<bool>,
    children: Option<bool>,
    threads: Option<bool>,
    subsystem: Option<bool>,
    pool: Option<bool>,
    object: Option<Hex>,
    physical: Option<Hex>,
    #[serde(skip)]
    windows: bool,
}

impl From<&vmi::linux::SeenProcess> for SeenRow {
    fn from(process: &vmi::linux::SeenProcess) -> Self {
        let views = process.views;
        Self {
            pid: process.pid,
            name: process.name.clone(),
            hidden: process.is_hidden(),
            exited: process.exited,
            list: views.list,
            id_table: views.id_table,
            children: views.children,
            threads: None,
            subsystem: None,
            pool: None,
            object: Some(Hex(process.object.get())),
            physical: None,
            windows: false,
        }
    }
}

impl From<&vmi::windows::SeenProcess> for SeenRow {
    fn from(process: &vmi::windows::SeenProcess) -> Self {
        let views = process.views;
        Self {
            pid: process.pid,
            name: process.name.clone(),
            hidden: process.is_hidden(),
            exited: process.exited,
            list: Some(views.list),
            id_table: Some(views.id_table),
            children: None,
            threads: Some(views.threads),
            subsystem: Some(views.subsystem),
            pool: Some(views.pool),
            object: process.object.map(|at| Hex(at.get())),
            physical: process.physical.map(|at| Hex(at.get())),
            windows: true,
        }
    }
}

impl Row for SeenRow {
    fn cells(&self) -> Vec<String> {
        let shown = |view: Option<bool>| view.map_or("?", |yes| if yes { "yes" } else { "-" }).to_owned();
        let views = if self.windows {
            vec![self.list, self.id_table, self.threads, self.subsystem, self.pool]
        } else {
            vec![self.list, self.id_table, self.children]
        };
        let all = views.into_iter().chain([Some(self.exited), Some(self.hidden)]).map(shown);
        [self.pid.to_string(), self.name.clone()].into_iter().chain(all).collect()
    }
}
