//! One page-table entry, for whoever wants to know more than where it points.

use core::fmt;

use bitflags::bitflags;
use vmi_core::PhysAddr;

use super::PagingMode;
use super::level::{Level, PRESENT, Target};

bitflags! {
    /// The flags of a page-table entry that have the same place at every level (Intel SDM, volume 3, section 5.5).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct PageTableFlags: u64 {
        /// The entry is in use. If this is clear, the processor looks at no other bit.
        const PRESENT = 1;
        /// Writes are allowed.
        const WRITABLE = 1 << 1;
        /// User mode has access.
        const USER = 1 << 2;
        /// Page-level write-through (PWT).
        const WRITE_THROUGH = 1 << 3;
        /// Page-level cache disable (PCD).
        const CACHE_DISABLE = 1 << 4;
        /// The processor has used the entry.
        const ACCESSED = 1 << 5;
        /// The processor has written to the page. It sets this only in entries that map pages.
        const DIRTY = 1 << 6;
        /// The entry maps a large page, at levels that have them. At level 1 the bit is part of the memory type (PAT).
        const LARGE = 1 << 7;
        /// The translation survives a load of CR3. This has a meaning only in entries that map pages.
        const GLOBAL = 1 << 8;
        /// Instruction fetches are not allowed (XD, NX). Only entries of 8 bytes have it.
        const NO_EXECUTE = 1 << 63;
    }
}

/// A page-table entry and where it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageTableEntry {
    /// The paging mode, which says how the entry is to be read.
    pub mode: PagingMode,
    /// The level of its table: 1 holds the entries of 4 KiB pages, the root has the highest.
    pub level: u8,
    /// Its guest-physical address.
    pub at: PhysAddr,
    /// Its value; a 4-byte entry is extended with zeros.
    pub value: u64,
}

impl PageTableEntry {
    /// The flags that are set in the entry. What may be done with a page is what all levels allow together:
    /// [`Translation::access`](vmi_core::Translation::access).
    pub const fn flags(self) -> PageTableFlags {
        PageTableFlags::from_bits_truncate(self.value)
    }

    /// Whether the entry maps a page, rather than referring to a table or being not present.
    pub fn is_leaf(self) -> bool {
        self.value & PRESENT != 0 && self.rules().is_some_and(|level| level.is_leaf(self.value))
    }

    /// The table or the page that the entry points at; `None` if it is not present or sets reserved bits.
    pub fn target(self) -> Option<PhysAddr> {
        match self.rules()?.decode(self.value) {
            Ok(Target::Table(at, _) | Target::Page(at)) => Some(at),
            Err(_) => None,
        }
    }

    /// The bits that the processor requires to be zero in a present entry and that are set; [`PagingMode`] says what counts as
    /// reserved. None in an entry that is not present.
    pub fn reserved_bits(self) -> u64 {
        match self.rules() {
            Some(level) if self.value & PRESENT != 0 => level.reserved(self.value),
            _ => 0,
        }
    }

    /// The index into IA32_PAT of the memory type of what the entry points at, 0 to 7 (Intel SDM, volume 3, section 5.9.2).
    pub fn memory_type_index(self) -> u8 {
        const PAT: u64 = 1 << 7;
        const PAT_OF_LARGE_PAGES: u64 = 1 << 12;
        let bit = |mask| u8::from(self.value & mask != 0);
        let pat = match (self.is_leaf(), self.level) {
            (false, _) => 0,
            (true, 1) => bit(PAT),
            (true, _) => bit(PAT_OF_LARGE_PAGES),
        };
        pat << 2 | bit(PageTableFlags::CACHE_DISABLE.bits()) << 1 | bit(PageTableFlags::WRITE_THROUGH.bits())
    }

    /// The protection key of the page, 0 to 15; `None` where no page is mapped and in modes without keys. It restricts access
    /// only while CR4.PKE or CR4.PKS is set.
    pub fn protection_key(self) -> Option<u8> {
        (self.mode.is_long() && self.is_leaf()).then_some((self.value >> 59) as u8 & 0xf)
    }

    /// `None` for a level that the mode does not have.
    fn rules(self) -> Option<&'static Level> {
        self.mode.top().numbered(self.level)
    }
}

/// `level 1 entry 0x8000000001234163 at 0x5678: PRESENT | WRITABLE | ...`
impl fmt::Display for PageTableEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "level {} entry {:#x} at {}: ", self.level, self.value, self.at)?;
        bitflags::parser::to_writer(&self.flags(), f)
    }
}
