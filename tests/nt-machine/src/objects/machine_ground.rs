//! The machine as [`Ground`].

use super::ground::Ground;
use crate::paging::{NO_EXECUTE, PRESENT, Paging, USER_CODE, USER_DATA, WRITE};
use crate::{NtMachine, PoolKind};

/// Tags of the paged pool, among those that the objects use.
const PAGED: [&[u8; 4]; 14] = [
    b"ObNm", b"ObDi", b"Obtb", b"MmSt", b"MmSg", b"CM10", b"CM25", b"CM31", b"FMfn", b"Toke", b"Key ", b"Symb", b"Dire", b"SeSd",
];

/// Variables that only some builds have. The others are the same in all of them or are known by the build's symbol file.
fn has(build: u32, is_64_bit: bool, name: &str) -> bool {
    match name {
        "ObHeaderCookie" => build >= 10000,
        "ObTypeIndexTable" | "ObpInfoMaskToOffset" => build >= 7600,
        "ObpObjectTypes" => build < 7600,
        "KiArgumentTable" => !is_64_bit || build >= 6000,
        _ => true,
    }
}

impl Ground for NtMachine {
    fn is_64_bit(&self) -> bool {
        self.build.is_64_bit
    }

    fn build_number(&self) -> u32 {
        self.build.number
    }

    fn version(&self) -> (u32, u32) {
        self.build.version
    }

    fn is_legacy_paging(&self) -> bool {
        self.tables().paging() == Paging::Legacy
    }

    fn own_offset(&self, structure: &str, member: &str) -> Option<u64> {
        self.build.layout.offset(structure, member)
    }

    fn owns(&self, structure: &str) -> bool {
        self.build.layout.structs.contains_key(structure)
    }

    fn own_size(&self, structure: &str) -> u64 {
        self.build.layout.structs.get(structure).map_or(0, |of| of.size)
    }

    fn variable(&mut self, name: &str, size: u64) -> Option<u64> {
        if !has(self.build.number, self.build.is_64_bit, name) {
            return None;
        }
        // A real kernel's symbols are all there are.
        match &self.build.isf {
            Some(isf) if isf["symbols"].get(name).is_none() => None,
            _ => Some(self.define(name, size)),
        }
    }

    fn allocate(&mut self, tag: &[u8; 4], size: u64) -> u64 {
        let kind = if PAGED.iter().any(|paged| paged[..3] == tag[..3]) { PoolKind::Paged } else { PoolKind::NonPaged };
        self.alloc_pool_of(kind, tag, size.max(1))
    }

    fn write(&mut self, address: u64, bytes: &[u8]) {
        self.write_kernel(address, bytes);
    }

    fn read(&self, address: u64, len: usize) -> Vec<u8> {
        self.read_kernel(address, len)
    }

    fn page(&mut self) -> u64 {
        self.memory.alloc_page()
    }

    fn write_physical(&mut self, address: u64, bytes: &[u8]) {
        self.memory.write(address, bytes);
    }

    fn set_entry(&mut self, root: u64, address: u64, entry: u64) {
        self.tables.set_entry(&mut self.memory, root, address, entry);
    }

    fn user_page(&mut self, root: u64, address: u64, writable: bool, executable: bool) -> u64 {
        let page = address & !0xFFF;
        if let Some(mapped) = self.translate(root, page) {
            return mapped;
        }
        let physical = self.memory.alloc_page();
        let mut flags = if executable { USER_CODE } else { USER_DATA & !WRITE } | PRESENT;
        if writable {
            flags |= WRITE;
        }
        if self.is_legacy_paging() {
            flags &= !NO_EXECUTE;
        }
        self.tables.map(&mut self.memory, root, page, physical, flags);
        physical
    }

    fn kernel_image(&self) -> (u64, u64) {
        (self.base, self.image.size)
    }
}
