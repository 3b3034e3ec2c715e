//! Writes the memory of a machine to an image file.

mod common;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Parser, ValueEnum};
use common::table::{Column, Row};
use common::text::size;
use common::{Common, EXIT_CODES, complain, progress};
use serde::Serialize;
use vmi::file::{Format, write};

/// Write the memory of a machine to an image file
///
/// The file appears under its name when it is whole. Pages of zeros take no room in it.
#[derive(Parser)]
#[command(after_help = EXIT_CODES, after_long_help = format!("\
Examples:
  dump-memory -o guest.lime guest.raw.zst        unpack, and change the format
  dump-memory -o core --format elf guest.lime    for tools that read ELF cores

{EXIT_CODES}"))]
struct Args {
    /// The file to write
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Its format [default: what the file's name ends with]
    #[arg(long, short, value_enum)]
    format: Option<FormatName>,
    /// Replace the file if there is one
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Clone, Copy, ValueEnum)]
enum FormatName {
    /// Each byte at its guest-physical address, zeros between
    Raw,
    /// What LiME and AVML write
    Lime,
    /// ELF core, as of QEMU and kdump
    Elf,
}

fn main() -> ExitCode {
    let args = Args::parse();
    common::run(|| {
        let extension = args.output.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        let format = match args.format.or_else(|| FormatName::from_str(extension, true).ok()) {
            Some(FormatName::Raw) => Format::Raw,
            Some(FormatName::Lime) => Format::Lime,
            Some(FormatName::Elf) => Format::Elf,
            None => bail!("{}: say which --format, or end the name with .raw, .lime or .elf", args.output.display()),
        };
        if !args.force && args.output.try_exists().with_context(|| args.output.display().to_string())? {
            bail!("{}: exists already; --force replaces it", args.output.display());
        }
        let vmi = args.common.open()?;

        let summary = write::image(&vmi, &args.output, format, progress("writing"))?;

        let mut table = args.common.table(DumpRow::COLUMNS);
        let unreadable = summary.unreadable_bytes();
        table.row(Ok(DumpRow {
            file: args.output.display().to_string(),
            format: format.to_string(),
            memory: summary.memory,
            stored: summary.stored,
            unreadable,
        }))?;
        let code = table.finish()?;
        for region in &summary.unreadable {
            complain(format_args!("{}-{}: could not be read, and is zero in the image", region.start(), region.end()));
        }
        Ok(if unreadable == 0 { code } else { ExitCode::from(3) })
    })
}

#[derive(Serialize)]
struct DumpRow {
    file: String,
    format: String,
    memory: u64,
    stored: u64,
    unreadable: u64,
}

impl DumpRow {
    const COLUMNS: &[Column] = &[("file", 24), ("format", 6), ("memory", -10), ("stored", -10), ("unreadable", -10)];
}

impl Row for DumpRow {
    fn cells(&self) -> Vec<String> {
        vec![self.file.clone(), self.format.clone(), size(self.memory), size(self.stored), size(self.unreadable)]
    }
}
