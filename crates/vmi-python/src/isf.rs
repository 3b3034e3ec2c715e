//! Volatility 3 symbol files, written under their final name only when they are whole.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use lzma_rust2::{XzOptions, XzWriter};
use tempfile::NamedTempFile;
use vmi::linux::Linux;
use vmi::{AnyDriver, IsfSummary, owned, with_causes};

/// A small dictionary packs these files nearly as well as a large one, in a fraction of the time.
const PRESET: u32 = 1;
const NOT_LINUX: &str = "symbol files of Windows kernels are made of their program database, by Volatility itself";

/// Writes the file. A string says why there is none.
pub(crate) fn write(guest: &owned::Guest, path: &Path) -> Result<IsfSummary, String> {
    guest.linux(|linux| write_linux(linux, path)).unwrap_or_else(|| Err(NOT_LINUX.to_owned()))
}

fn write_linux(linux: &Linux<'_, AnyDriver>, path: &Path) -> Result<IsfSummary, String> {
    let failed = |error: &dyn std::error::Error| format!("{}: {}", path.display(), with_causes(error));
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = NamedTempFile::new_in(folder).map_err(|error| failed(&error))?;
    let mut output = BufWriter::new(&mut file);
    let summary = if path.extension().is_some_and(|extension| extension == "xz") {
        let mut packed = XzWriter::new(&mut output, XzOptions::with_preset(PRESET)).map_err(|error| failed(&error))?;
        let mut text = BufWriter::new(&mut packed);
        let summary = linux.write_isf(&mut text).map_err(|error| with_causes(&error))?;
        text.flush().map_err(|error| failed(&error))?;
        drop(text);
        packed.finish().map_err(|error| failed(&error))?;
        summary
    } else {
        linux.write_isf(&mut output).map_err(|error| with_causes(&error))?
    };
    output.flush().map_err(|error| failed(&error))?;
    drop(output);
    readable_by_all(file.as_file()).map_err(|error| failed(&error))?;
    file.persist(path).map_err(|error| failed(&error))?;
    Ok(summary)
}

/// Temporary files are made for their owner alone.
#[cfg(unix)]
fn readable_by_all(file: &File) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn readable_by_all(_: &File) -> std::io::Result<()> {
    Ok(())
}
