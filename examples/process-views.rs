//! Lists the processes of a guest by every view that there is of them: what hides from one is seen by another.

mod common;

use std::process::ExitCode;

use clap::Parser;
use common::table::{Column, Row};
use common::text::Hex;
use common::{Common, EXIT_CODES, complain};
use serde::Serialize;
use vmi::{ProcessView, SeenProcess, System};

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
        let system = args.common.attach_system(&vmi)?;
        let survey = system.guest().survey_processes();
        let columns = if matches!(system, System::Linux(_)) { LINUX } else { WINDOWS };
        let mut table = args.common.table(columns);
        for process in survey.processes.into_iter().filter(|process| !args.hidden || process.hidden) {
            table.row(Ok(SeenRow::from(process)))?;
        }
        let code = table.finish()?;
        for (view, error) in &survey.problems {
            complain(format_args!("{view}: {error}"));
        }
        Ok(if survey.problems.is_empty() { code } else { ExitCode::from(3) })
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

/// A process. A view is null if the system has none such, or could not have it whole.
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
    /// Those that the system has, for the table.
    #[serde(skip)]
    views: Vec<Option<bool>>,
}

impl From<SeenProcess> for SeenRow {
    fn from(process: SeenProcess) -> Self {
        Self {
            pid: process.pid,
            hidden: process.hidden,
            exited: process.exited,
            list: process.known_to(ProcessView::List),
            id_table: process.known_to(ProcessView::IdTable),
            children: process.known_to(ProcessView::Children),
            threads: process.known_to(ProcessView::Threads),
            subsystem: process.known_to(ProcessView::Subsystem),
            pool: process.known_to(ProcessView::Pool),
            object: process.object.map(|at| Hex(at.get())),
            physical: process.physical.map(|at| Hex(at.get())),
            views: process.views.iter().map(|(_, known)| *known).collect(),
            name: process.name,
        }
    }
}

impl Row for SeenRow {
    fn cells(&self) -> Vec<String> {
        let shown = |known: Option<bool>| known.map_or("?", |yes| if yes { "yes" } else { "-" }).to_owned();
        let all = self.views.iter().copied().chain([Some(self.exited), Some(self.hidden)]).map(shown);
        [self.pid.to_string(), self.name.clone()].into_iter().chain(all).collect()
    }
}
