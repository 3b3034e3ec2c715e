//! Symbols and types, from guest memory and from files.

use vmi_core::{Isf, SymbolsBuilder, TypeId, TypeSource};
use vmi_os_linux::btf::{Btf, find_headers};
use vmi_os_linux::discover::kallsyms;
use vmi_os_linux::symbol_files;

use super::head;

/// 1 byte pointer size, 8 bytes address of what follows.
pub fn kallsyms(data: &[u8]) {
    let Some(([pointer], rest)) = head::<1>(data) else { return };
    let Some((start, bytes)) = head::<8>(rest) else { return };
    let pointer_size = if pointer % 2 == 0 { 8 } else { 4 };
    let found = bytes.windows(kallsyms::DIGITS.len()).enumerate().filter(|(_, window)| *window == kallsyms::DIGITS);
    for (digits, _) in found.take(4) {
        let _ = kallsyms::has_index(bytes, digits);
        if let Ok(table) = kallsyms::Table::locate(bytes, digits, u64::from_le_bytes(start), pointer_size) {
            let mut builder = SymbolsBuilder::default();
            if table.decode(&mut builder).is_ok() {
                assert_eq!(builder.build().len(), table.len());
            }
        }
    }
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
    for id in 0..ids.min(500) {
        let _ = types.get(TypeId(id));
        let _ = types.resolve(TypeId(id));
        let _ = types.size_of(TypeId(id));
    }
}

pub fn btf(data: &[u8]) {
    for candidate in find_headers(data).take(8) {
        assert!(candidate.offset.saturating_add(candidate.len) <= data.len());
    }
    let Ok(base) = Btf::parse(data.to_vec(), 8) else { return };
    ask(&base, base.end_id().saturating_add(1));
    let base = std::sync::Arc::new(base);
    if let Ok(split) = Btf::parse_split(std::sync::Arc::clone(&base), data.to_vec()) {
        ask(&split, split.end_id().saturating_add(1));
    }
}

pub fn isf(data: &[u8]) {
    let Ok(isf) = Isf::parse(data) else { return };
    ask(&isf, 500);
    let symbols = isf.symbols(0x1000);
    let _ = symbols.iter().count();
}

pub fn system_map(data: &[u8]) {
    if let Ok(symbols) = symbol_files::system_map::parse(data, 0x1000) {
        for symbol in symbols.iter().take(100) {
            assert!(symbols.find(symbol.name).is_some());
        }
    }
}

pub fn dwarf(data: &[u8]) {
    if let Ok(file) = symbol_files::parse(data.to_vec())
        && let Some(types) = file.types
    {
        ask(&*types, 500);
    }
}
