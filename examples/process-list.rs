//! Lists the processes of a machine.

mod common;

use std::collections::{BTreeMap, HashSet};
use std::process::ExitCode;

use clap::Parser;
use common::table::{Column, Row, Table};
use common::text::{Hex, cell, rfc3339};
use common::{Common, EXIT_CODES};
use serde::Serialize;
use vmi::{Guest, Process, Thread};

/// List the processes of a machine
#[derive(Parser)]
#[command(after_help = EXIT_CODES, after_long_help = format!("\
Examples:
  process-list                       the processes of the demo image
  process-list guest.lime            of an image, kernel threads included
  process-list --tree guest.lime     children below their parents
  process-list --threads guest.lime  every thread of every process
  process-list --json guest.lime | jq '.[] | select(.uid == 1000)'

{EXIT_CODES}"))]
struct Args {
    /// Print children below their parents, names indented
    #[arg(long)]
    tree: bool,
    /// List threads instead of processes
    #[arg(long, conflicts_with = "tree")]
    threads: bool,
    #[command(flatten)]
    common: Common,
}

fn main() -> ExitCode {
    let args = Args::parse();
    common::run(|| {
        let vmi = args.common.open()?;
        let guest = args.common.attach(&vmi)?;
        match (args.threads, args.tree) {
            (true, _) => threads(&*guest, args.common.table(ThreadRow::COLUMNS)),
            (_, true) => tree(&*guest, args.common.table(ProcessRow::COLUMNS)),
            _ => processes(&*guest, args.common.table(ProcessRow::COLUMNS)),
        }
    })
}

fn processes(guest: &dyn Guest, mut table: Table) -> anyhow::Result<ExitCode> {
    for process in guest.processes() {
        table.row(process.map(ProcessRow::from))?;
    }
    table.finish()
}

fn threads(guest: &dyn Guest, mut table: Table) -> anyhow::Result<ExitCode> {
    for thread in guest.threads() {
        table.row(thread.map(ThreadRow::from))?;
    }
    table.finish()
}

fn tree(guest: &dyn Guest, mut table: Table) -> anyhow::Result<ExitCode> {
    let (rows, failures): (Vec<_>, Vec<_>) =
        guest.processes().map(|process| process.map(ProcessRow::from)).partition(Result::is_ok);
    let rows: Vec<ProcessRow> = rows.into_iter().flatten().collect();
    let pids: HashSet<u32> = rows.iter().map(|row| row.pid).collect();
    let mut children: BTreeMap<Option<u32>, Vec<ProcessRow>> = BTreeMap::new();
    for row in rows {
        let parent = row.parent_pid.filter(|parent| pids.contains(parent));
        children.entry(parent).or_default().push(row);
    }
    // First those without a parent. What is its own ancestor, in a guest that lies, is left and comes last.
    while let Some((_, roots)) = children.pop_first() {
        let mut next: Vec<(usize, ProcessRow)> = roots.into_iter().rev().map(|row| (0, row)).collect();
        while let Some((depth, mut row)) = next.pop() {
            let below = children.remove(&Some(row.pid)).unwrap_or_default();
            next.extend(below.into_iter().rev().map(|row| (depth + 1, row)));
            row.depth = depth;
            table.row(Ok(row))?;
        }
    }
    for failure in failures {
        table.row(failure)?;
    }
    table.finish()
}

#[derive(Serialize)]
struct ProcessRow {
    pid: u32,
    parent_pid: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
    state: Option<char>,
    kernel: bool,
    started: Option<String>,
    name: String,
    command_line: Option<Vec<String>>,
    page_table: Option<Hex>,
    object: Hex,
    #[serde(skip)]
    depth: usize,
}

impl ProcessRow {
    const COLUMNS: &[Column] =
        &[("pid", -7), ("ppid", -7), ("uid", -5), ("state", 5), ("started", 19), ("name", 15), ("command line", 0)];
}

impl From<Process> for ProcessRow {
    fn from(process: Process) -> Self {
        Self {
            pid: process.pid,
            parent_pid: process.parent_pid,
            uid: process.uid,
            gid: process.gid,
            state: process.state.map(|state| state.letter()),
            kernel: process.kernel,
            started: process.started.and_then(rfc3339),
            name: process.name,
            command_line: process.command_line,
            page_table: process.page_table.map(|root| Hex(root.get())),
            object: Hex(process.object.get()),
            depth: 0,
        }
    }
}

impl Row for ProcessRow {
    fn cells(&self) -> Vec<String> {
        vec![
            self.pid.to_string(),
            cell(self.parent_pid),
            cell(self.uid),
            cell(self.state),
            cell(self.started.as_ref().and_then(|time| time.split('.').next())),
            format!("{:width$}{}", "", self.name, width = 2 * self.depth.min(16)),
            cell(self.command_line.as_ref().map(|arguments| arguments.join(" "))),
        ]
    }
}

#[derive(Serialize)]
struct ThreadRow {
    tid: u32,
    pid: u32,
    state: Option<char>,
    name: String,
    object: Hex,
}

impl ThreadRow {
    const COLUMNS: &[Column] = &[("tid", -7), ("pid", -7), ("state", 5), ("name", 0)];
}

impl From<Thread> for ThreadRow {
    fn from(thread: Thread) -> Self {
        Self {
            tid: thread.tid,
            pid: thread.pid,
            state: thread.state.map(|state| state.letter()),
            name: thread.name,
            object: Hex(thread.object.get()),
        }
    }
}

impl Row for ThreadRow {
    fn cells(&self) -> Vec<String> {
        vec![self.tid.to_string(), self.pid.to_string(), cell(self.state), self.name.clone()]
    }
}
