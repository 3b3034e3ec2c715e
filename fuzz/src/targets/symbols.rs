//! Symbols and types, from guest memory and from files.

use std::sync::Arc;

use vmi_core::{Isf, SymbolsBuilder, TypeId, TypeSource};
use vmi_os_linux::btf::{Btf, find_headers};
use vmi_os_linux::discover::kallsyms;
use vmi_os_linux::symbol_files;

use super::head;

/// 1 byte pointer size, 8 bytes address of what follows.
pub fn kallsyms(data: &[u8]) -> bool {
    let Some(([pointer], rest)) = head::<1>(data) else { return false };
    let Some((start, bytes)) = head::<8>(rest) else { return false };
    let pointer_size = if pointer % 2 == 0 { 8 } else { 4 };
    let found = bytes.windows(kallsyms::DIGITS.len()).enumerate().filter(|(_, window)| *window == kallsyms::DIGITS);
    let mut decoded = false;
    for (digits, _) in found.take(4) {
        let _ = kallsyms::has_index(bytes, digits);
        if let Ok(table) = kallsyms::Table::locate(bytes, digits, u64::from_le_bytes(start), pointer_size) {
            let mut builder = SymbolsBuilder::default();
            if table.decode(&mut builder).is_ok() {
                assert_eq!(builder.build().len(), table.len());
                decoded = true;
            }
        }
    }
    decoded
}

/// Whatever can be asked of types.
fn ask(types: &dyn TypeSource, ids: u32) {
    for name in types.structures().take(50) {
        if let Ok(structure) = types.structure(&name) {
            for member in structure.members.iter().take(50) {
                let _ = types.field(&name, &member.name);
            }
        }
    }
    for id in (0..ids.min(500)).map(TypeId) {
        let _ = (types.get(id), types.resolve(id), types.size_of(id));
    }
}

/// The data as a kernel's types, and as those of a module on top of them.
pub fn btf(data: &[u8]) -> bool {
    find_headers(data).take(8).for_each(drop);
    let Ok(base) = Btf::parse(data.to_vec(), 8) else { return false };
    ask(&base, base.end_id());
    base.variables().for_each(drop);
    let base = Arc::new(base);
    if let Ok(split) = Btf::parse_split(Arc::clone(&base), data.to_vec()) {
        ask(&split, split.end_id());
        split.variables().for_each(drop);
    }
    true
}

/// JSON, packed with xz or not.
pub fn isf(data: &[u8]) -> bool {
    let Ok(isf) = Isf::parse(data) else { return false };
    ask(&isf, 500);
    isf.symbols(0x1000).iter().for_each(drop);
    true
}

/// Each symbol can be found by its name.
pub fn system_map(data: &[u8]) -> bool {
    let Ok(symbols) = symbol_files::system_map::parse(data, 0x1000) else { return false };
    for symbol in symbols.iter().take(100) {
        assert!(symbols.find(symbol.name).is_some());
    }
    true
}

/// An ELF file with symbols, and DWARF or BTF.
pub fn dwarf(data: &[u8]) -> bool {
    let Ok(file) = symbol_files::parse(data.to_vec()) else { return false };
    if let Some(types) = &file.types {
        ask(&**types, 500);
    }
    file.slide(0x1000).types.is_some()
}
