//! Tells what is known of a Windows guest's kernel, and which symbol files are missing.

mod common;

use std::process::ExitCode;

use clap::Parser;
use common::table::{Column, Row};
use common::text::{Hex, cell};
use common::{Common, EXIT_CODES};
use serde::Serialize;
use vmi::windows::pe::PeImage;
use vmi::windows::{PdbIdentity, SymbolStore, Wanted, Windows};
use vmi::{AnyDriver, Guest};

/// Tell what is known of a Windows guest's kernel: where it is, which build, its program database, and what is missing
#[derive(Parser)]
#[command(after_help = EXIT_CODES, after_long_help = format!("\
Examples:
  windows-info guest.dmp                what is known of the kernel
  windows-info --needed guest.dmp       the program databases of the kernel and its drivers: where each is, or where to fetch it
  windows-info --needed --json guest.dmp | jq -r '.[] | select(.here == null) | .urls[0]'   for a machine that is connected

{EXIT_CODES}"))]
struct Args {
    /// List the program databases of the kernel and of all its modules: the file names, keys, and places of symbols
    #[arg(long)]
    needed: bool,
    #[command(flatten)]
    common: Common,
}

fn main() -> ExitCode {
    let args = Args::parse();
    common::run(|| {
        let vmi = args.common.open()?;
        let windows = args.common.attach_windows(&vmi)?;
        if args.needed { needed(&args.common, &windows) } else { info(&args.common, &windows) }
    })
}

fn info(common: &Common, windows: &Windows<'_, AnyDriver>) -> anyhow::Result<ExitCode> {
    let kernel = windows.kernel();
    let mut table = common.table(InfoRow::COLUMNS);
    table.row(Ok(InfoRow {
        version: windows.version(),
        build: kernel.build,
        kernel_base: Hex(kernel.base.get()),
        kernel_size: kernel.size,
        page_table: Hex(kernel.root.get()),
        paging: format!("{:?}", kernel.mode),
        pdb: kernel.pdb.as_ref().map(|pdb| pdb.name.clone()),
        pdb_key: kernel.pdb.as_ref().map(PdbIdentity::key),
        types: kernel.types.origin(),
        symbols: kernel.symbols.len(),
        remarks: windows.remarks(),
    }))?;
    table.finish()
}

/// The program databases of the kernel and its modules, as far as their images are in memory.
fn needed(common: &Common, windows: &Windows<'_, AnyDriver>) -> anyhow::Result<ExitCode> {
    let mut table = common.table(NeededRow::COLUMNS);
    let mut identities: Vec<PdbIdentity> = windows.kernel().pdb.iter().cloned().collect();
    for module in windows.kernel_modules() {
        let identity = module.and_then(|module| PeImage::new(windows.kernel_space(), module.base()?)?.pdb());
        match identity {
            Ok(identity) => identities.extend(identity),
            // Parts of drivers are commonly paged out.
            Err(error) if error.is_absent() => {}
            Err(error) => table.row::<NeededRow>(Err(error))?,
        }
    }
    for wanted in SymbolStore::from_environment().needed(identities) {
        table.row(Ok(NeededRow::from(wanted)))?;
    }
    table.finish()
}

#[derive(Serialize)]
struct InfoRow {
    version: String,
    build: Option<u32>,
    kernel_base: Hex,
    kernel_size: u64,
    page_table: Hex,
    paging: String,
    pdb: Option<String>,
    pdb_key: Option<String>,
    types: String,
    symbols: usize,
    remarks: Vec<String>,
}

impl InfoRow {
    const COLUMNS: &[Column] = &[("version", 24), ("kernel", 18), ("size", -10), ("page table", 18), ("symbols", -7), ("pdb", 0)];
}

impl Row for InfoRow {
    fn cells(&self) -> Vec<String> {
        let pdb = self.pdb.as_ref().map(|name| format!("{name} {}", self.pdb_key.as_deref().unwrap_or_default()));
        vec![
            self.version.clone(),
            self.kernel_base.to_string(),
            format!("{:#x}", self.kernel_size),
            self.page_table.to_string(),
            self.symbols.to_string(),
            cell(pdb),
        ]
    }

    fn below(&self) -> String {
        format!("types: {}, paging: {}", self.types, self.paging)
    }
}

#[derive(Serialize)]
struct NeededRow {
    pdb: String,
    key: String,
    here: Option<String>,
    urls: Vec<String>,
    put: Option<String>,
}

impl NeededRow {
    const COLUMNS: &[Column] = &[("pdb", 20), ("key", 33), ("where", 0)];
}

impl From<Wanted> for NeededRow {
    fn from(wanted: Wanted) -> Self {
        let text = |path: std::path::PathBuf| path.display().to_string();
        Self {
            key: wanted.identity.key(),
            pdb: wanted.identity.name,
            here: wanted.here.map(text),
            urls: wanted.urls,
            put: wanted.put.map(text),
        }
    }
}

impl Row for NeededRow {
    fn cells(&self) -> Vec<String> {
        let fetch = || Some(format!("missing: {}", self.urls.first()?));
        vec![self.pdb.clone(), self.key.clone(), cell(self.here.clone().or_else(fetch))]
    }
}
