//! Freezes a copy of a running guest, and writes it to an image file.

mod common;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::Parser;
use common::table::{Column, Row};
use common::text::size;
use common::{Common, EXIT_CODES, complain, progress};
use serde::Serialize;
use vmi::Driver;
use vmi::file::{Format, write};

/// Freeze a copy of a running guest, and write it to an image file
///
/// The guest stands still while it is copied, at the speed of memory. dump-memory writes an image of a guest that runs on meanwhile, whose
/// parts are of different moments; this one is of one moment.
#[derive(Parser)]
#[command(after_help = EXIT_CODES, after_long_help = format!("\
Examples:
  snapshot qemu:/run/guest.qmp                     how long it takes, and how long the guest stands still
  snapshot -o guest.lime qemu:/run/guest.qmp       an image of one moment
  snapshot --again 3 qemu:/run/guest.qmp           three more, each in the memory of the one before

{EXIT_CODES}"))]
struct Args {
    /// The file to write, whose name ends with .raw, .lime, .avml or .elf
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace the file if there is one
    #[arg(long)]
    force: bool,
    /// Make so many more, each in the memory of the one before
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    again: u32,
    #[command(flatten)]
    common: Common,
}

fn main() -> ExitCode {
    let args = Args::parse();
    common::run(|| {
        let format = args.output.as_deref().map(|path| match path.extension().and_then(|extension| extension.to_str()) {
            Some("raw") => Ok(Format::Raw),
            Some("lime") => Ok(Format::Lime),
            Some("avml") => Ok(Format::Avml),
            Some("elf") => Ok(Format::Elf),
            _ => Err(anyhow::anyhow!("{}: end the name with .raw, .lime, .avml or .elf", path.display())),
        });
        let format = format.transpose()?;
        if let Some(path) = args.output.as_deref().filter(|path| !args.force && path.exists()) {
            bail!("{}: exists already; --force replaces it", path.display());
        }
        let vmi = args.common.open()?;
        let mut table = args.common.table(SnapshotRow::COLUMNS);
        let mut frozen = vmi.snapshot()?;
        table.row(Ok(SnapshotRow::new(&frozen)))?;
        for _ in 0..args.again {
            frozen = vmi.snapshot_again(frozen)?;
            table.row(Ok(SnapshotRow::new(&frozen)))?;
        }
        let code = table.finish()?;
        for region in &frozen.driver().report().missing {
            complain(format_args!("{}-{}: was not there, and is a hole in the snapshot", region.start(), region.end()));
        }
        if let (Some(path), Some(format)) = (&args.output, format) {
            write::image(&frozen, path, format, progress("writing"))?;
        }
        Ok(if frozen.driver().report().missing.is_empty() { code } else { ExitCode::from(3) })
    })
}

#[derive(Serialize)]
struct SnapshotRow {
    machine: String,
    memory: u64,
    resident: u64,
    stood_still_microseconds: u64,
    took_microseconds: u64,
}

impl SnapshotRow {
    const COLUMNS: &[Column] = &[("machine", 32), ("memory", -10), ("resident", -10), ("stood still", -11), ("took", -9)];

    fn new(frozen: &vmi::Vmi<vmi::Snapshot<vmi::x86::X86>>) -> Self {
        let report = frozen.driver().report();
        Self {
            machine: frozen.driver().machine().name.clone(),
            memory: frozen.machine().memory.total(),
            resident: report.resident,
            stood_still_microseconds: report.stood_still.as_micros() as u64,
            took_microseconds: report.took.as_micros() as u64,
        }
    }
}

impl Row for SnapshotRow {
    fn cells(&self) -> Vec<String> {
        vec![
            self.machine.clone(),
            size(self.memory),
            size(self.resident),
            format!("{:.1} ms", self.stood_still_microseconds as f64 / 1e3),
            format!("{:.0} ms", self.took_microseconds as f64 / 1e3),
        ]
    }
}
