//! Shows where a machine has memory, or what a process has mapped.

mod common;

use std::process::ExitCode;

use clap::Parser;
use common::table::{Column, Row, Table};
use common::text::{Hex, cell, size};
use common::{Common, EXIT_CODES};
use serde::Serialize;
use vmi::{Guest, MemoryArea, MemoryMap, Region};

/// Show where a machine has memory, or what a process has mapped
#[derive(Parser)]
#[command(after_help = EXIT_CODES, after_long_help = format!("\
Examples:
  memory-map guest.lime          the physical memory of the machine, of whatever system
  memory-map --pid 1 guest.lime  the memory areas of process 1, as in /proc/1/maps

{EXIT_CODES}"))]
struct Args {
    /// Show the memory areas of this process
    #[arg(long)]
    pid: Option<u32>,
    #[command(flatten)]
    common: Common,
}

fn main() -> ExitCode {
    let args = Args::parse();
    common::run(|| {
        let vmi = args.common.open()?;
        match args.pid {
            Some(pid) => areas(&*args.common.attach(&vmi)?, pid, args.common.table(AreaRow::COLUMNS)),
            None => regions(&vmi.machine().memory, args.common.table(RegionRow::COLUMNS)),
        }
    })
}

fn regions(map: &MemoryMap, mut table: Table) -> anyhow::Result<ExitCode> {
    for &region in map.regions() {
        table.row(Ok(RegionRow::from(region)))?;
    }
    table.finish()
}

fn areas(guest: &dyn Guest, pid: u32, mut table: Table) -> anyhow::Result<ExitCode> {
    for area in guest.memory_areas(pid) {
        table.row(area.map(AreaRow::from))?;
    }
    table.finish()
}

#[derive(Serialize)]
struct RegionRow {
    start: Hex,
    end: Hex,
    size: u64,
}

impl RegionRow {
    const COLUMNS: &[Column] = &[("start", 18), ("end", 18), ("size", -10)];
}

impl From<Region> for RegionRow {
    fn from(region: Region) -> Self {
        Self { start: Hex(region.start().get()), end: Hex(region.end().get()), size: region.len() }
    }
}

impl Row for RegionRow {
    fn cells(&self) -> Vec<String> {
        vec![self.start.to_string(), self.end.to_string(), size(self.size)]
    }
}

#[derive(Serialize)]
struct AreaRow {
    start: Hex,
    end: Hex,
    read: bool,
    write: bool,
    execute: bool,
    shared: bool,
    offset: u64,
    name: Option<String>,
}

impl AreaRow {
    const COLUMNS: &[Column] = &[("start", 18), ("end", 18), ("rights", 6), ("offset", -10), ("name", 0)];
}

impl From<MemoryArea> for AreaRow {
    fn from(area: MemoryArea) -> Self {
        Self {
            start: Hex(area.start.get()),
            end: Hex(area.end.get()),
            read: area.read,
            write: area.write,
            execute: area.execute,
            shared: area.shared,
            offset: area.offset,
            name: area.name,
        }
    }
}

impl Row for AreaRow {
    fn cells(&self) -> Vec<String> {
        let letter = |on, letter| if on { letter } else { '-' };
        let rights =
            [letter(self.read, 'r'), letter(self.write, 'w'), letter(self.execute, 'x'), if self.shared { 's' } else { 'p' }];
        vec![
            self.start.to_string(),
            self.end.to_string(),
            rights.iter().collect(),
            format!("{:#x}", self.offset),
            cell(self.name.as_ref()),
        ]
    }
}
