//! Lists the processes of a Windows guest by every view that there is of them: what hides from one is seen by another.

mod common;

use std::process::ExitCode;

use clap::Parser;
use common::table::{Column, Row};
use common::text::Hex;
use common::{Common, EXIT_CODES, complain};
use serde::Serialize;
use vmi::windows::SeenProcess;

/// List the processes of a Windows guest by every view of them: list, table of ids, threads, subsystem, scan of memory
#[derive(Parser)]
#[command(after_help = EXIT_CODES, after_long_help = format!("\
Examples:
  process-views guest.dmp               all processes, and who knows them
  process-views --hidden guest.dmp      those that run and are not in the kernel's list
  process-views --json guest.dmp | jq '.[] | select(.hidden)'

{EXIT_CODES}"))]
struct Args {
    /// Only processes that run and are not in the kernel's list
    #[arg(long)]
    hidden: bool,
    #[command(flatten)]
    common: Common,
}

fn main() -> ExitCode {
    let args = Args::parse();
    common::run(|| {
        let vmi = args.common.open()?;
        let windows = args.common.attach_windows(&vmi)?;
        let survey = windows.survey_processes();
        let mut table = args.common.table(SeenRow::COLUMNS);
        for process in survey.processes.iter().filter(|process| !args.hidden || process.is_hidden()) {
            table.row(Ok(SeenRow::from(process)))?;
        }
        let code = table.finish()?;
        for (view, error) in &survey.problems {
            complain(format_args!("{view}: {error}"));
        }
        Ok(if survey.problems.is_empty() { code } else { ExitCode::from(3) })
    })
}

#[derive(Serialize)]
struct SeenRow {
    pid: u32,
    name: String,
    hidden: bool,
    exited: bool,
    list: bool,
    id_table: bool,
    threads: bool,
    subsystem: bool,
    pool: bool,
    object: Option<Hex>,
    physical: Option<Hex>,
}

impl SeenRow {
    const COLUMNS: &[Column] = &[
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
}

impl From<&SeenProcess> for SeenRow {
    fn from(process: &SeenProcess) -> Self {
        let views = process.views;
        Self {
            pid: process.pid,
            name: process.name.clone(),
            hidden: process.is_hidden(),
            exited: process.exited,
            list: views.list,
            id_table: views.id_table,
            threads: views.threads,
            subsystem: views.subsystem,
            pool: views.pool,
            object: process.object.map(|at| Hex(at.get())),
            physical: process.physical.map(|at| Hex(at.get())),
        }
    }
}

impl Row for SeenRow {
    fn cells(&self) -> Vec<String> {
        let yes = |yes: bool| if yes { "yes" } else { "-" }.to_owned();
        let views = [self.list, self.id_table, self.threads, self.subsystem, self.pool, self.exited, self.hidden].map(yes);
        [self.pid.to_string(), self.name.clone()].into_iter().chain(views).collect()
    }
}
