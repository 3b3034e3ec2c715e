//! An unstripped `vmlinux`: its symbol table, its banner, and its types from DWARF or else from its `.BTF` section.

use std::sync::Arc;

use object::read::{Object, ObjectSection, ObjectSymbol};
use object::{SectionKind, SymbolKind, SymbolSection};
use vmi_core::{Symbols, SymbolsBuilder, TypeSource, VirtAddr};

use super::dwarf::{Bytes, Dwarf, DwarfError};
use super::{SymbolFile, SymbolFileError};
use crate::btf::{Btf, MAX_LEN};

/// Bytes of names in all. Kernels have below 10 MB.
const MAX_NAMES: usize = 256 << 20;

/// Longest name. The kernel's own limit is `KSYM_NAME_LEN`, 512 bytes; mangled names of Rust outside of kernels are longer.
const MAX_NAME: usize = 4096;

/// Everything that the ELF file `file` tells, which messages call `origin`; symbols are where they were linked.
///
/// # Errors
/// [`SymbolFileError`] if it is broken, or tells nothing.
pub fn parse(file: Bytes, origin: &str) -> Result<SymbolFile, SymbolFileError> {
    let elf = object::File::parse((*file).as_ref()).map_err(DwarfError::Elf)?;
    let symbols = symbols(&elf)?;
    let types: Option<Arc<dyn TypeSource>> = match Dwarf::parse(file.clone()) {
        Ok(dwarf) => Some(Arc::new(dwarf.with_origin(origin))),
        Err(DwarfError::NoDwarf) => match btf(&elf)? {
            Some(btf) => Some(Arc::new(btf.with_origin(origin))),
            None => None,
        },
        Err(error) => return Err(error.into()),
    };
    if symbols.is_empty() && types.is_none() {
        return Err(DwarfError::NoDwarf.into());
    }
    let banner = symbols.find("linux_banner").and_then(|symbol| banner(&elf, symbol.address));
    Ok(SymbolFile { symbols: Some(symbols).filter(|symbols| !symbols.is_empty()), types, banner })
}

/// The symbol table; empty if the file has none.
fn symbols(elf: &object::File<'_>) -> Result<Symbols, DwarfError> {
    let mut builder = SymbolsBuilder::default();
    let mut left = MAX_NAMES;
    for symbol in elf.symbols() {
        if symbol.is_undefined() || matches!(symbol.kind(), SymbolKind::Section | SymbolKind::File) {
            continue;
        }
        let name = symbol.name_bytes()?;
        if name.is_empty() {
            continue;
        }
        let fewer = left.checked_sub(name.len()).filter(|_| name.len() <= MAX_NAME);
        left = fewer.ok_or(DwarfError::SymbolNames { limit: MAX_NAMES })?;
        let letter = match symbol.section() {
            SymbolSection::Absolute => b'A',
            SymbolSection::Section(index) => match elf.section_by_index(index)?.kind() {
                SectionKind::Text => b'T',
                SectionKind::ReadOnlyData | SectionKind::ReadOnlyString => b'R',
                SectionKind::UninitializedData => b'B',
                _ => b'D',
            },
            _ => b'?',
        };
        let kind = if symbol.is_weak() {
            b'W'
        } else if symbol.is_local() {
            letter.to_ascii_lowercase()
        } else {
            letter
        };
        if !builder.push(&String::from_utf8_lossy(name), VirtAddr::new(symbol.address()), kind) {
            return Err(DwarfError::SymbolNames { limit: MAX_NAMES });
        }
    }
    Ok(builder.build())
}

fn btf(elf: &object::File<'_>) -> Result<Option<Btf>, SymbolFileError> {
    let Some(section) = elf.section_by_name(".BTF") else { return Ok(None) };
    let data = section.compressed_data().map_err(DwarfError::Elf)?;
    if data.uncompressed_size > MAX_LEN as u64 {
        let (section, len, limit) = (".BTF", data.uncompressed_size, MAX_LEN as u64);
        return Err(DwarfError::TooLong { section, len, limit }.into());
    }
    let data = data.decompress().map_err(DwarfError::Elf)?;
    let pointer_size = if elf.is_64() { 8 } else { 4 };
    Ok(Some(Btf::parse(data.into_owned(), pointer_size)?))
}

/// The text of `linux_banner`, without the line end.
fn banner(elf: &object::File<'_>, at: VirtAddr) -> Option<String> {
    let section =
        elf.sections().find(|section| at.get().checked_sub(section.address()).is_some_and(|offset| offset < section.size()))?;
    let offset = usize::try_from(at.get().checked_sub(section.address())?).ok()?;
    let text = section.data().ok()?.get(offset..)?;
    let text = text.get(..512).unwrap_or(text);
    let text = core::str::from_utf8(text.get(..memchr::memchr(0, text)?)?).ok()?;
    text.starts_with("Linux version ").then(|| text.trim_end().to_owned())
}
