//! The levels of the page tables of each mode, as data: where an entry lies and what its bits mean.
//!
//! Everything that reads page tables decodes entries here, so that one place knows the formats: Intel SDM, volume 3, chapter 5,
//! tables 5-4 to 5-20; AMD APM, volume 2, chapter 5.

use vmi_core::{Access, FaultKind, PhysAddr};

pub(super) const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
/// The frame of an 8-byte entry.
const FRAME: u64 = bits(51, 12);

/// The bits from `high` down to `low`.
const fn bits(high: u32, low: u32) -> u64 {
    (u64::MAX >> 63u32.wrapping_sub(high)) & (u64::MAX << low)
}

/// One level of the page tables of a mode.
#[derive(Debug)]
pub(super) struct Level {
    /// 1 for the tables whose entries map 4 KiB pages, and up from there.
    pub(super) number: u8,
    /// log2 of the bytes that one entry covers, and so of the size of a page that it maps.
    pub(super) shift: u8,
    /// Entries in a table, less one.
    index_mask: u64,
    /// log2 of the bytes in an entry.
    entry_shift: u8,
    /// Whether an entry with bit 7 set maps a page.
    large: bool,
    /// What an entry that refers to a table must keep zero.
    table_reserved: u64,
    /// Where such an entry keeps the table's address.
    table_frame: u64,
    /// What an entry that maps a page must keep zero.
    page_reserved: u64,
    /// Where such an entry keeps the page's address.
    page_frame: u64,
    /// Bits 20 to 13 if they hold the bits 39 to 32 of the page's address (PSE-36).
    page_frame_high: u64,
    /// Access bits that an entry of this level does not have, and so does not take away.
    granted: u64,
    /// The level that an entry refers to; none below level 1, whose entries all map pages.
    below: Option<&'static Level>,
}

/// What a present and valid entry points at.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target {
    /// A table of the next level.
    Table(PhysAddr, &'static Level),
    /// The first byte of a page.
    Page(PhysAddr),
}

impl Level {
    /// Where the entry for `at` lies in the table at `table`. A table is aligned to its size, so nothing carries.
    #[inline(always)]
    pub(super) fn entry_at(&self, table: PhysAddr, at: u64) -> PhysAddr {
        PhysAddr::new(table.get() | self.index(at).wrapping_shl(u32::from(self.entry_shift)))
    }

    /// The index of the entry for `at` in its table.
    #[inline(always)]
    pub(super) fn index(&self, at: u64) -> u64 {
        at.wrapping_shr(u32::from(self.shift)) & self.index_mask
    }

    /// Bytes in an entry.
    pub(super) fn entry_size(&self) -> usize {
        1usize.wrapping_shl(u32::from(self.entry_shift))
    }

    /// Bytes in a table.
    pub(super) fn table_size(&self) -> usize {
        self.entry_size().wrapping_shl(self.index_mask.count_ones())
    }

    /// Bytes that one entry covers, less one: the bits of an address that are an offset in its page.
    #[inline(always)]
    pub(super) fn offset_mask(&self) -> u64 {
        1u64.wrapping_shl(u32::from(self.shift)).wrapping_sub(1)
    }

    /// Bytes that a whole table covers, less one.
    pub(super) fn span_mask(&self) -> u64 {
        self.index_mask.wrapping_shl(u32::from(self.shift)) | self.offset_mask()
    }

    /// What `entry` points at.
    #[inline(always)]
    pub(super) fn decode(&self, entry: u64) -> Result<Target, FaultKind> {
        if entry & PRESENT == 0 {
            return Err(FaultKind::NotPresent);
        }
        match self.below {
            Some(below) if !self.large || entry & LARGE == 0 => match entry & self.table_reserved {
                0 => Ok(Target::Table(PhysAddr::new(entry & self.table_frame), below)),
                _ => Err(FaultKind::ReservedBits),
            },
            _ => match entry & self.page_reserved {
                0 => Ok(Target::Page(PhysAddr::new(entry & self.page_frame | (entry & self.page_frame_high) << 19))),
                _ => Err(FaultKind::ReservedBits),
            },
        }
    }

    /// Whether a present `entry` maps a page.
    pub(super) fn is_leaf(&self, entry: u64) -> bool {
        self.below.is_none() || self.large && entry & LARGE != 0
    }

    /// The bits of a present `entry` that should be zero and are not.
    pub(super) fn reserved(&self, entry: u64) -> u64 {
        entry & if self.is_leaf(entry) { self.page_reserved } else { self.table_reserved }
    }

    /// This level or the one below it that has the given number.
    pub(super) fn numbered(&'static self, number: u8) -> Option<&'static Self> {
        if self.number == number { Some(self) } else { self.below?.numbered(number) }
    }
}

/// What the entries on the way to a page allow, taken together: a right holds only if each of them grants it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rights(u64);

impl Rights {
    /// What no entry has restricted yet.
    pub(super) const ALL: Self = Self(u64::MAX);

    /// What is left behind `entry`, an entry of `level`.
    #[inline(always)]
    pub(super) fn through(self, level: &Level, entry: u64) -> Self {
        // With "no execute" turned around, each bit grants something.
        Self(self.0 & (entry ^ NO_EXECUTE | level.granted))
    }

    #[inline(always)]
    pub(super) fn access(self) -> Access {
        Access { write: self.0 & WRITABLE != 0, execute: self.0 & NO_EXECUTE != 0, user: self.0 & USER != 0 }
    }
}

/// A level of 512 entries of 8 bytes that map no large pages. All of them must keep `reserved` zero; one that refers to a
/// table, bit 7 too.
const fn small_pages(number: u8, shift: u8, reserved: u64, below: Option<&'static Level>) -> Level {
    Level {
        number,
        shift,
        index_mask: 511,
        entry_shift: 3,
        large: false,
        table_reserved: reserved | LARGE,
        table_frame: FRAME,
        page_reserved: reserved,
        page_frame: FRAME,
        page_frame_high: 0,
        granted: 0,
        below,
    }
}

/// The same, but an entry with bit 7 set maps a page. Between the page's address and bit 12, which selects the memory type, such
/// an entry is reserved.
const fn large_pages(number: u8, shift: u8, reserved: u64, below: Option<&'static Level>) -> Level {
    Level {
        large: true,
        table_reserved: reserved,
        page_reserved: reserved | bits((shift as u32).wrapping_sub(1), 13),
        page_frame: bits(51, shift as u32),
        ..small_pages(number, shift, reserved, below)
    }
}

/// The top level of 4-level paging.
pub(super) static LEVEL4: Level = small_pages(4, 39, 0, Some(&LONG_3));
/// The top level of 5-level paging.
pub(super) static LEVEL5: Level = small_pages(5, 48, 0, Some(&LEVEL4));
static LONG_3: Level = large_pages(3, 30, 0, Some(&LONG_2));
static LONG_2: Level = large_pages(2, 21, 0, Some(&LONG_1));
static LONG_1: Level = small_pages(1, 12, 0, None);

/// PAE has no protection keys, and leaves nothing to software, above the frame.
const PAE_RESERVED: u64 = bits(62, 52);

/// The top level of PAE paging: four entries, which have no access bits. By the manual bit 5 is reserved as well, but QEMU's
/// emulator (seen in 7.2) treats it as the accessed bit and sets it: the PAE guests of the lab have it.
pub(super) static PAE: Level = Level {
    index_mask: 3,
    table_reserved: bits(63, 52) | bits(8, 6) | bits(2, 1),
    granted: WRITABLE | USER,
    ..small_pages(3, 30, 0, Some(&PAE_2))
};
static PAE_2: Level = large_pages(2, 21, PAE_RESERVED, Some(&PAE_1));
static PAE_1: Level = small_pages(1, 12, PAE_RESERVED, None);

/// The top level of 32-bit paging: 1024 entries of 4 bytes.
pub(super) static BITS32: Level = Level {
    large: true,
    page_reserved: bits(21, 21),
    page_frame: bits(31, 22),
    page_frame_high: bits(20, 13),
    ..bits32(2, 22, Some(&BITS32_1))
};
static BITS32_1: Level = bits32(1, 12, None);

const fn bits32(number: u8, shift: u8, below: Option<&'static Level>) -> Level {
    Level {
        index_mask: 1023,
        entry_shift: 2,
        table_reserved: 0,
        table_frame: bits(31, 12),
        page_frame: bits(31, 12),
        ..small_pages(number, shift, 0, below)
    }
}
