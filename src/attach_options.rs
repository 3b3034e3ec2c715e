//! What is known of a guest beforehand.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vmi_core::Isf;
use vmi_os_linux::{discover as linux, symbol_files as linux_files};
use vmi_os_windows::{SymbolFile, discover as windows};

/// What is known of a guest beforehand; by default nothing.
///
/// ```no_run
/// use vmi::AttachOptions;
///
/// let vmi = vmi::open("guest.raw")?;
/// let options = AttachOptions::new().symbols("ntkrnlmp.pdb")?.symbols("/srv/symbols")?;
/// let guest = vmi::attach_with(&vmi, &options)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct AttachOptions {
    linux: linux::Options,
    windows: windows::Options,
    /// Whether files are given that describe a kernel of this system.
    is_linux: bool,
    is_windows: bool,
}

/// Why a path is not a usable symbol file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SymbolsError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// It does not describe a Linux kernel in a way that is known.
    #[error("{}: {source}", path.display())]
    Linux {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: linux_files::SymbolFileError,
    },
    /// It does not describe a Windows kernel in a way that is known.
    #[error("{}: {source}", path.display())]
    Windows {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: vmi_os_windows::SymbolFileError,
    },
}

impl AttachOptions {
    /// Nothing is known.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds what describes the kernel, told by its content: for Linux a System.map, vmlinux, BTF or Volatility symbol file, which may be several; for
    /// Windows a program database (`.pdb`) or Volatility symbol file of the kernel, or a directory in which such files are looked for by their
    /// identity: a symbol store, or a plain directory.
    ///
    /// # Errors
    /// [`SymbolsError`] if it is none of these.
    pub fn symbols(mut self, path: impl AsRef<Path>) -> Result<Self, SymbolsError> {
        let path = path.as_ref();
        let io = |source| SymbolsError::Io { path: path.to_owned(), source };
        if path.metadata().map_err(io)?.is_dir() {
            self.windows.store = self.windows.store.with_directory(path);
            return Ok(self);
        }
        if is_of_windows(path).map_err(io)? {
            let file = SymbolFile::open(path).map_err(|source| SymbolsError::Windows { path: path.to_owned(), source })?;
            self.windows = self.windows.file(file);
            self.is_windows = true;
        } else {
            let file = linux_files::open(path).map_err(|source| SymbolsError::Linux { path: path.to_owned(), source })?;
            self.linux.symbols = file.symbols.map(Arc::new).or(self.linux.symbols);
            self.linux.types = file.types.or(self.linux.types);
            self.is_linux = true;
        }
        Ok(self)
    }

    /// Symbol files of Windows that are nowhere on this machine are fetched from the servers that `_NT_SYMBOL_PATH` names, or from Microsoft's public one.
    #[cfg(feature = "download")]
    #[must_use]
    pub fn download(mut self) -> Self {
        self.windows.store = self.windows.store.with_downloads();
        self
    }

    /// What is known of a Linux guest: for [`vmi_os_linux::discover::find_with`].
    pub fn linux(&self) -> &linux::Options {
        &self.linux
    }

    /// What is known of a Windows guest: for [`vmi_os_windows::discover::find_with`].
    pub fn windows(&self) -> &windows::Options {
        &self.windows
    }

    /// Whether it makes sense to look for Linux.
    pub(crate) fn looks_for_linux(&self) -> bool {
        self.is_linux || !self.is_windows
    }

    /// Whether it makes sense to look for Windows.
    pub(crate) fn looks_for_windows(&self) -> bool {
        self.is_windows || !self.is_linux
    }
}

/// Whether a file describes a Windows kernel: a program database, or a Volatility symbol file that was made of one.
fn is_of_windows(path: &Path) -> std::io::Result<bool> {
    const PDB: &[u8] = b"Microsoft C/C++ ";
    let mut start = Vec::new();
    File::open(path)?.take(PDB.len() as u64).read_to_end(&mut start)?;
    let packed = start.starts_with(b"\xfd7zXZ\0") || start.trim_ascii_start().starts_with(b"{");
    Ok(start == PDB || packed && Isf::open(path).is_ok_and(|isf| isf.pdb().is_some()))
}
