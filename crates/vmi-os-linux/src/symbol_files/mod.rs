//! Files that describe a kernel, for whoever has them: `System.map` or a copy of `/proc/kallsyms`, a `vmlinux` with DWARF or BTF, a
//! copy of `/sys/kernel/btf/vmlinux`, a Volatility 3 symbol file.
//!
//! [`open`] tells by content which of them a path is. Symbols are where the file says; [`SymbolFile::slide`] moves them to where they
//! are in a guest whose kernel chose another place.

pub mod dwarf;
pub mod system_map;
pub mod vmlinux;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vmi_core::{Isf, IsfError, MappedFile, Symbols, SymbolsBuilder, TypeSource, VirtAddr};

use self::dwarf::{Bytes, DwarfError};
use self::system_map::SystemMapError;
use crate::btf::{Btf, BtfError};

/// What a file tells about a kernel.
#[derive(Debug)]
pub struct SymbolFile {
    /// Symbols.
    pub symbols: Option<Symbols>,
    /// Layouts of structures.
    pub types: Option<Arc<dyn TypeSource>>,
    /// The banner of the kernel that the file is for: `Linux version 6.1.0-50-cloud-amd64 (...) ...`, without the line end.
    pub banner: Option<String>,
}

/// Why a path is not a usable symbol file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SymbolFileError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// None of the kinds that are known.
    #[error("none of: System.map or kallsyms, vmlinux, BTF, Volatility 3 symbol file (.json, .json.xz)")]
    Unknown,
    /// A symbol list that is wrong.
    #[error(transparent)]
    SystemMap(#[from] SystemMapError),
    /// An ELF file that is wrong.
    #[error(transparent)]
    Dwarf(#[from] DwarfError),
    /// BTF that is wrong.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// A Volatility 3 symbol file that is wrong.
    #[error(transparent)]
    Isf(#[from] IsfError),
}

impl SymbolFile {
    /// Moves the symbols by `slide`, the difference between where the guest's kernel is and where the file has it (it may be negative,
    /// as its two's complement). Per-CPU offsets and absolute values below 16 MiB stay.
    #[must_use]
    pub fn slide(self, slide: u64) -> Self {
        Self { symbols: self.symbols.map(|symbols| slid(&symbols, slide)), ..self }
    }
}

/// Reads a file of any of the kinds above.
///
/// # Errors
/// [`SymbolFileError`], of the kind that the file's content shows it to be.
pub fn open(path: impl AsRef<Path>) -> Result<SymbolFile, SymbolFileError> {
    let path = path.as_ref();
    let io = |source| SymbolFileError::Io { path: path.to_owned(), source };
    let file = MappedFile::new(&File::open(path).map_err(io)?).map_err(io)?;
    read(Arc::new(file), &path.display().to_string())
}

/// As [`open`], of a file that is in memory.
///
/// # Errors
/// As [`open`].
pub fn parse(bytes: Vec<u8>) -> Result<SymbolFile, SymbolFileError> {
    read(Arc::new(bytes), "a symbol file")
}

fn read(file: Bytes, origin: &str) -> Result<SymbolFile, SymbolFileError> {
    let bytes = (*file).as_ref();
    match bytes {
        [0x7f, b'E', b'L', b'F', ..] => vmlinux::parse(file, origin),
        [0x9f, 0xeb, ..] => {
            let btf = Btf::parse(bytes, 8)?.with_origin(origin);
            Ok(SymbolFile { symbols: None, types: Some(Arc::new(btf)), banner: None })
        }
        _ if bytes.starts_with(b"\xfd7zXZ\0") || bytes.trim_ascii_start().starts_with(b"{") => {
            let isf = Isf::parse(bytes)?.with_origin(origin);
            let (symbols, banner) = (isf.symbols(0), isf.banner().map(str::to_owned));
            Ok(SymbolFile { symbols: Some(symbols), types: Some(Arc::new(isf)), banner })
        }
        _ if looks_like_a_list(bytes) => {
            Ok(SymbolFile { symbols: Some(system_map::parse(bytes, 0)?), types: None, banner: None })
        }
        _ => Err(SymbolFileError::Unknown),
    }
}

/// Whether the first line begins like that of a symbol list.
fn looks_like_a_list(bytes: &[u8]) -> bool {
    let digits = bytes.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    (8..=16).contains(&digits) && bytes.get(digits) == Some(&b' ')
}

fn slid(symbols: &Symbols, slide: u64) -> Symbols {
    let mut builder = SymbolsBuilder::default();
    let mut of_modules: Vec<_> = symbols.iter().filter_map(|symbol| Some((symbol.module?, symbol))).collect();
    of_modules.sort_by_key(|&(module, _)| module);
    let push = |builder: &mut SymbolsBuilder, symbol: vmi_core::Symbol<'_>| {
        // It fitted once.
        builder.push(symbol.name, VirtAddr::new(system_map::slid(symbol.address.get(), slide)), symbol.kind);
    };
    for symbol in symbols.iter().filter(|symbol| symbol.module.is_none()) {
        push(&mut builder, symbol);
    }
    for group in of_modules.chunk_by(|(a, _), (b, _)| a == b) {
        for (index, &(module, symbol)) in group.iter().enumerate() {
            if index == 0 {
                builder.module(module);
            }
            push(&mut builder, symbol);
        }
    }
    builder.build()
}

#[cfg(test)]
mod tests;
