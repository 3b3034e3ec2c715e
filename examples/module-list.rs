//! Lists the loaded kernel modules of a machine.

mod common;

use std::process::ExitCode;

use clap::Parser;
use common::table::{Column, Row};
use common::text::{Hex, cell};
use common::{Common, EXIT_CODES};
use serde::Serialize;
use vmi::Module;

/// List the loaded kernel modules of a machine
#[derive(Parser)]
#[command(after_help = EXIT_CODES, after_long_help = format!("\
Examples:
  module-list                    the modules of the demo image
  module-list guest.lime         of an image
  module-list --json guest.lime | jq -r '.[].name'

{EXIT_CODES}"))]
struct Args {
    #[command(flatten)]
    common: Common,
}

fn main() -> ExitCode {
    let args = Args::parse();
    common::run(|| {
        let vmi = args.common.open()?;
        let guest = args.common.attach(&vmi)?;
        let mut table = args.common.table(ModuleRow::COLUMNS);
        for module in guest.modules() {
            table.row(module.map(ModuleRow::from))?;
        }
        table.finish()
    })
}

#[derive(Serialize)]
struct ModuleRow {
    name: String,
    base: Hex,
    size: u64,
    references: Option<u32>,
    object: Hex,
}

impl ModuleRow {
    const COLUMNS: &[Column] = &[("name", 24), ("base", 18), ("size", -9), ("references", -10)];
}

impl From<Module> for ModuleRow {
    fn from(module: Module) -> Self {
        Self {
            name: module.name,
            base: Hex(module.base.get()),
            size: module.size,
            references: module.references,
            object: Hex(module.object.get()),
        }
    }
}

impl Row for ModuleRow {
    fn cells(&self) -> Vec<String> {
        vec![self.name.clone(), self.base.to_string(), self.size.to_string(), cell(self.references)]
    }
}
