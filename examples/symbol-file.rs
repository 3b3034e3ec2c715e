//! Writes a Volatility 3 symbol file of a machine's kernel, from what its own memory tells.

mod common;

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Parser;
use common::table::{Column, Row};
use common::text::size;
use common::{Common, EXIT_CODES};
use lzma_rust2::{XzOptions, XzWriter};
use serde::Serialize;
use tempfile::NamedTempFile;
use vmi::IsfSummary;
use vmi::linux::WriteIsfError;

/// Write a Volatility 3 symbol file of a machine's kernel
///
/// It is made from what the kernel carries in its own memory: its symbol table (kallsyms) and the types of its structures (BTF). No debug package
/// of the kernel is needed. Linux guests so far. docs/volatility.md tells which plugins it is enough for.
#[derive(Parser)]
#[command(after_help = EXIT_CODES, after_long_help = format!("\
Examples:
  symbol-file -o symbols/linux/guest.json.xz guest.lime
  vol -s symbols -f guest.lime linux.pslist            finds the file by the kernel's banner, whatever its name

  symbol-file -o symbols/linux/web1.json.xz qemu:4711  a running guest: once for each kernel, not for each image
  symbol-file -o - guest.lime | jq '.user_types.task_struct.size'

{EXIT_CODES}"))]
struct Args {
    /// The file to write, packed if its name ends with .xz; - for JSON on standard output, and then the rows go to standard error
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Replace the file if there is one
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    common: Common,
}

fn main() -> ExitCode {
    let args = Args::parse();
    common::run(|| {
        let to_stdout = args.output == Path::new("-");
        let name = args.output.to_string_lossy();
        if !to_stdout && ![".json", ".json.xz"].iter().any(|end| name.ends_with(end)) {
            bail!("{name}: end the name with .json.xz or .json, or Volatility does not look at the file");
        }
        if to_stdout && io::stdout().is_terminal() {
            bail!("standard output is a terminal, which is no place for some tens of megabytes of JSON");
        }
        if !to_stdout && !args.force && args.output.try_exists().with_context(|| name.to_string())? {
            bail!("{name}: exists already; --force replaces it");
        }
        let vmi = args.common.open()?;
        let linux = args.common.attach_linux(&vmi)?;

        let write = |to: &mut dyn Write| linux.write_isf(to);
        let summary = if to_stdout {
            write(&mut BufWriter::new(io::stdout().lock())).map_err(closed_pipe)?
        } else {
            into_file(&args.output, write)?
        };
        for remark in &summary.incomplete {
            args.common.note(remark);
        }
        let table = args.common.table(SymbolFileRow::COLUMNS);
        let mut table = if to_stdout { table.on_stderr() } else { table };
        table.row(Ok(SymbolFileRow {
            file: name.into_owned(),
            kernel: linux.banner().split(' ').nth(2).unwrap_or_default().to_owned(),
            symbols: summary.symbols,
            structures: summary.structures,
            enumerations: summary.enumerations,
            json: summary.bytes,
            incomplete: summary.broken,
        }))?;
        table.finish()
    })
}

/// Writes a file that gets its name when it is whole.
fn into_file(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<IsfSummary, WriteIsfError>) -> anyhow::Result<IsfSummary> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = NamedTempFile::new_in(folder).with_context(|| folder.display().to_string())?;
    let mut output = BufWriter::new(file);
    let summary = if path.extension().is_some_and(|extension| extension == "xz") {
        let mut packed = XzWriter::new(&mut output, XzOptions::with_preset(PRESET))?;
        let summary = write(&mut BufWriter::new(&mut packed))?;
        packed.finish()?;
        summary
    } else {
        write(&mut output)?
    };
    let file = output.into_inner().map_err(io::IntoInnerError::into_error)?;
    readable_by_all(file.as_file())?;
    file.persist(path).with_context(|| path.display().to_string())?;
    Ok(summary)
}

/// A small dictionary packs these files nearly as well as a large one, in a fraction of the time.
const PRESET: u32 = 1;

/// Temporary files are made for their owner alone.
#[cfg(unix)]
fn readable_by_all(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn readable_by_all(_: &File) -> io::Result<()> {
    Ok(())
}

/// A reader that closes the pipe early has all it wanted.
fn closed_pipe(error: WriteIsfError) -> anyhow::Error {
    match error {
        WriteIsfError::Write(vmi::IsfWriteError::Io(error)) => error.into(),
        error => error.into(),
    }
}

#[derive(Serialize)]
struct SymbolFileRow {
    file: String,
    kernel: String,
    symbols: u64,
    structures: u64,
    enumerations: u64,
    json: u64,
    incomplete: u64,
}

impl SymbolFileRow {
    const COLUMNS: &[Column] = &[
        ("file", 24),
        ("kernel", 26),
        ("symbols", -8),
        ("structures", -10),
        ("enumerations", -12),
        ("json", -10),
        ("incomplete", -10),
    ];
}

impl Row for SymbolFileRow {
    fn cells(&self) -> Vec<String> {
        vec![
            self.file.clone(),
            self.kernel.clone(),
            self.symbols.to_string(),
            self.structures.to_string(),
            self.enumerations.to_string(),
            size(self.json),
            self.incomplete.to_string(),
        ]
    }
}
