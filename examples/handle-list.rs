//! Lists the open handles of a Windows guest's processes.

mod common;

use std::process::ExitCode;

use clap::Parser;
use common::table::{Column, Row, Table};
use common::text::{Hex, cell};
use common::{Common, EXIT_CODES};
use serde::Serialize;
use vmi::AnyDriver;
use vmi::windows::{Handle, Process};

/// List the open handles of a Windows guest's processes
#[derive(Parser)]
#[command(after_help = EXIT_CODES, after_long_help = format!("\
Examples:
  handle-list guest.dmp                all handles of all processes
  handle-list --pid 624 guest.dmp      those of one process
  handle-list --type File guest.dmp    those that lead to files
  handle-list --json guest.dmp | jq '.[] | select(.type == \"Key\") | .name'

{EXIT_CODES}"))]
struct Args {
    /// Only handles of the process with this id
    #[arg(long)]
    pid: Option<u32>,
    /// Only handles to objects of this type: File, Key, Process, Event, ...
    #[arg(long = "type", value_name = "TYPE")]
    object_type: Option<String>,
    #[command(flatten)]
    common: Common,
}

fn main() -> ExitCode {
    let args = Args::parse();
    common::run(|| {
        let vmi = args.common.open()?;
        let windows = args.common.attach_windows(&vmi)?;
        let mut table = args.common.table(HandleRow::COLUMNS);
        match args.pid {
            Some(pid) => args.list(&windows.process(pid)?, &mut table)?,
            None => {
                for process in windows.processes() {
                    match process {
                        Ok(process) => args.list(&process, &mut table)?,
                        Err(error) => table.row::<HandleRow>(Err(error))?,
                    }
                }
            }
        }
        table.finish()
    })
}

impl Args {
    fn list(&self, process: &Process<'_, '_, AnyDriver>, table: &mut Table) -> anyhow::Result<()> {
        let owner = process.pid().and_then(|pid| Ok((pid, process.name()?)));
        let (pid, name) = match owner {
            Ok(owner) => owner,
            Err(error) => return table.row::<HandleRow>(Err(error)),
        };
        for handle in process.handles() {
            let row = handle.and_then(|handle| HandleRow::of(pid, &name, &handle));
            let wanted =
                |row: &HandleRow| self.object_type.as_ref().is_none_or(|wanted| wanted.eq_ignore_ascii_case(&row.object_type));
            if row.as_ref().map_or(true, wanted) {
                table.row(row)?;
            }
        }
        Ok(())
    }
}

#[derive(Serialize)]
struct HandleRow {
    pid: u32,
    process: String,
    handle: u64,
    #[serde(rename = "type")]
    object_type: String,
    granted_access: u32,
    name: Option<String>,
    object: Hex,
}

impl HandleRow {
    const COLUMNS: &[Column] = &[("pid", -7), ("process", 15), ("handle", -8), ("type", 20), ("access", -10), ("name", 0)];

    fn of(pid: u32, process: &str, handle: &Handle<'_, '_, AnyDriver>) -> vmi::Result<Self> {
        let object = handle.object();
        Ok(Self {
            pid,
            process: process.to_owned(),
            handle: handle.value(),
            object_type: object.type_name()?,
            granted_access: handle.granted_access(),
            name: object.full_name()?,
            object: Hex(object.address().get()),
        })
    }
}

impl Row for HandleRow {
    fn cells(&self) -> Vec<String> {
        vec![
            self.pid.to_string(),
            self.process.clone(),
            format!("{:#x}", self.handle),
            self.object_type.clone(),
            format!("{:#x}", self.granted_access),
            cell(self.name.as_ref()),
        ]
    }
}
