//! Page tables for memory of which only the virtual addresses are known.

use std::collections::BTreeMap;

use vmi_core::PAGE_SIZE;

use crate::FormatError;

/// What an entry says: present, writable, accessed.
const FLAGS: u64 = 0x23;
/// The entry is for user code too.
const USER: u64 = 4;
/// Bits of an address that each of the four levels takes, and those of the first page.
const LEVEL_BITS: u32 = 9;
const PAGE_BITS: u32 = 12;

/// The most tables that are made: 64 MiB. A triage dump needs about a hundred.
const MAX_TABLES: usize = 1 << 14;

/// Page tables of 4 levels (Intel SDM, volume 3, section 5.5). The root is the first one.
pub(super) struct Tables {
    /// Where the second one is in physical memory; the others follow.
    base: u64,
    tables: Vec<[u64; 512]>,
    /// Which table serves which addresses: by level, and the address without the bits below.
    known: BTreeMap<(u32, u64), usize>,
}

impl Tables {
    /// A root without entries. The other tables will be at `base`.
    pub(super) fn new(base: u64) -> Self {
        Self { base, tables: vec![[0; 512]], known: BTreeMap::new() }
    }

    /// Makes the page of virtual address `at`, which is canonical, that of physical address `to`.
    pub(super) fn map(&mut self, at: u64, to: u64) -> Result<(), FormatError> {
        let user = if at >> 63 == 0 { USER } else { 0 };
        let mut table = 0usize;
        for level in [3, 2, 1] {
            let shift = shift(level);
            let next = match self.known.get(&(level, at >> shift)) {
                Some(&next) => next,
                None => self.add(table, level, at, user)?,
            };
            table = next;
        }
        self.set(table, 0, at, to | FLAGS | user);
        Ok(())
    }

    /// A new table for the entry of `at` in `table`, which is of this level.
    fn add(&mut self, table: usize, level: u32, at: u64, user: u64) -> Result<usize, FormatError> {
        let next = self.tables.len();
        if next >= MAX_TABLES {
            let what = "the blocks of memory are scattered more than in any triage dump".to_owned();
            return Err(FormatError::Malformed { offset: 0, what });
        }
        self.tables.push([0; 512]);
        self.known.insert((level, at >> shift(level)), next);
        let to = self.base.saturating_add((next as u64).saturating_sub(1).saturating_mul(PAGE_SIZE));
        self.set(table, level, at, to | FLAGS | user);
        Ok(next)
    }

    fn set(&mut self, table: usize, level: u32, at: u64, entry: u64) {
        let index = (at >> shift(level)) & 0x1ff;
        if let Some(slot) = self.tables.get_mut(table).and_then(|table| table.get_mut(index as usize)) {
            *slot = entry;
        }
    }

    /// The bytes of all tables, the root first.
    pub(super) fn bytes(&self) -> Vec<u8> {
        self.tables.iter().flatten().flat_map(|entry| entry.to_le_bytes()).collect()
    }
}

/// How far an address is shifted for the index into a table of `level`, 0 to 3.
const fn shift(level: u32) -> u32 {
    PAGE_BITS.saturating_add(LEVEL_BITS.saturating_mul(level))
}
