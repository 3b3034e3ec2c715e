//! Writes the memory of a machine to an image file, or to a pipe.

mod common;

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, ValueEnum};
use common::table::{Column, Row};
use common::text::size;
use common::{Common, EXIT_CODES, complain, progress};
use serde::Serialize;
use vmi::file::{Format, write};

/// Write the memory of a machine to an image file
///
/// The file appears under its name when it is whole. Pages of zeros take no room in it. Any image that can be read can be converted so.
#[derive(Parser)]
#[command(after_help = EXIT_CODES, after_long_help = format!("\
Examples:
  dump-memory -o guest.lime guest.raw.zst        unpack, and change the format
  dump-memory -o core --format elf guest.lime    for tools that read ELF cores, such as crash and drgn
  dump-memory -o guest.kdump guest.elf           the same, packed
  dump-memory -o guest.avml --verify qemu:4711   a running guest, packed, and read again to compare
  dump-memory -o - --format lime qemu:4711 | zstd > guest.lime.zst

{EXIT_CODES}"))]
struct Args {
    /// The file to write; - for standard output, and then the rows go to standard error
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Its format [default: what the file's name ends with]
    #[arg(long, short, value_enum)]
    format: Option<FormatName>,
    /// Replace the file if there is one
    #[arg(long)]
    force: bool,
    /// Read the file again before it gets its name, and compare all of it with the memory: of a running guest, with what was read
    #[arg(long)]
    verify: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Clone, Copy, ValueEnum)]
enum FormatName {
    /// Each byte at its guest-physical address, zeros between
    Raw,
    /// What LiME writes, and AVML without compression
    Lime,
    /// What AVML writes with compression: packed with Snappy, blocks of zeros left out
    Avml,
    /// ELF core, as of QEMU and kdump
    Elf,
    /// kdump's compressed format, as of makedumpfile and QEMU: each page packed with zlib
    Kdump,
}

fn main() -> ExitCode {
    let args = Args::parse();
    common::run(|| {
        let extension = args.output.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        let format = match args.format.or_else(|| FormatName::from_str(extension, true).ok()) {
            Some(FormatName::Raw) => Format::Raw,
            Some(FormatName::Lime) => Format::Lime,
            Some(FormatName::Avml) => Format::Avml,
            Some(FormatName::Elf) => Format::Elf,
            Some(FormatName::Kdump) => Format::Kdump,
            None => {
                bail!("{}: say which --format, or end the name with .raw, .lime, .avml, .elf or .kdump", args.output.display())
            }
        };
        let to_stdout = args.output == Path::new("-");
        if to_stdout && args.verify {
            let why = "--verify reads the image again, which standard output does not allow";
            Args::command().error(ErrorKind::ArgumentConflict, why).exit();
        }
        if to_stdout && io::stdout().is_terminal() {
            bail!("standard output is a terminal, which is no place for memory");
        }
        let is_file = || args.output.metadata().map_or(true, |metadata| metadata.is_file());
        if !to_stdout && !args.force && args.output.try_exists().with_context(|| args.output.display().to_string())? && is_file()
        {
            bail!("{}: exists already; --force replaces it", args.output.display());
        }
        let vmi = args.common.open()?;

        let mut options = write::Options::new().verify(args.verify);
        if matches!(format, Format::Elf | Format::Kdump) && vmi.machine().notes.is_empty() {
            // Tools that read such images look for what the guest says of itself there.
            match vmi::attach(&vmi) {
                Ok(guest) => options = options.notes(guest.dump_notes()),
                Err(_) => args.common.note("no known system in this machine: the image has no notes on it"),
            }
        }
        let progress = progress(if args.verify { "writing and comparing" } else { "writing" });
        let summary = if to_stdout {
            // A file of its own, as the standard one looks for the ends of lines.
            let mut stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
            options.stream(&vmi, &mut stdout, format, progress)?
        } else {
            options.image(&vmi, &args.output, format, progress)?
        };

        let table = args.common.table(DumpRow::COLUMNS);
        let mut table = if to_stdout { table.on_stderr() } else { table };
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
