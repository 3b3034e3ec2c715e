//! Page tables that are told by their shape: those of Windows map themselves.
//!
//! The memory manager reads and writes page tables through the addresses at which they map themselves (Yosifovich, Ionescu et al., "Windows
//! Internals", 7th edition, part 1, chapter 5: PTE base). On x86-64 one entry of the top table in the upper half refers to the table: entry 0x1ed, and since
//! Windows 10 1607 a random one. With PAE the four page directories are mapped by the first entries of the last one, without PAE entry 0x300 of
//! the directory refers to itself, which maps the tables at 0xc0000000.

use std::collections::BTreeMap;

use vmi_arch_x86::PagingMode;
use vmi_core::{PAGE_SIZE, PhysAddr};

use super::lead::Lead;

/// Of an entry: the frame, whether it is large, for user mode, writable, present.
const ENTRY: u64 = 0x000f_ffff_ffff_f087;
const FRAME: u64 = 0x000f_ffff_ffff_f000;
/// Present and writable, of the kernel, not large.
const TABLE: u64 = 3;
const PRESENT: u64 = 1;
const USER: u64 = 4;
/// Entry of page directories that maps them, and bytes that each page of tables maps, without PAE.
const SELF_32: usize = 0x300;
/// A top table has this many unused entries in each half: an address space is mostly empty.
const MIN_UNUSED: usize = 64;
/// And a directory of 4-byte entries maps at least this much of the kernel.
const MIN_KERNEL_ENTRIES: usize = 4;
/// With PAE frames have at most 36 bits in what Windows supports.
const MAX_PAE_ENTRY: u64 = 1 << 36;

/// What a page may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tables {
    /// A top table of long mode, and whether its lower half is empty, as is that of the process System.
    Long {
        /// Whether user mode has memory there.
        has_user_half: bool,
    },
    /// A page directory without PAE.
    Directory,
    /// The last of the four page directories of PAE; where the first one is.
    LastOfFour(PhysAddr),
    /// A top table of PAE at an offset in the page, and where its first page directory is.
    FourEntries(u64, PhysAddr),
}

/// Tells `found` what the page at `at` may be.
pub(super) fn look_at(at: PhysAddr, page: &[u8; PAGE_SIZE as usize], mut found: impl FnMut(Tables)) {
    let own = at.get() | TABLE;
    let entries = page.as_chunks::<8>().0;
    let (low, high) = entries.split_at(entries.len() / 2);
    let refers = |entry: &&[u8; 8]| u64::from_le_bytes(**entry) & ENTRY == own;
    if high.iter().filter(refers).count() == 1 {
        let unused = |half: &[[u8; 8]]| half.iter().filter(|entry| **entry == [0; 8]).count();
        if unused(low) >= MIN_UNUSED && unused(high) >= MIN_UNUSED {
            found(Tables::Long { has_user_half: unused(low) < low.len() });
        }
    }
    if at.get() >> 32 == 0 {
        look_at_32(at, page, &mut found);
    }
    let word = |index: usize| entries.get(index).map_or(0, |entry| u64::from_le_bytes(*entry));
    if word(3) & ENTRY == own && (0..3).all(|index| word(index) & (ENTRY ^ FRAME) == TABLE && word(index) < MAX_PAE_ENTRY) {
        found(Tables::LastOfFour(PhysAddr::new(word(0) & FRAME)));
    }
    for (index, four) in page.as_chunks::<32>().0.iter().enumerate() {
        let four: [u64; 4] = core::array::from_fn(|word| {
            let bytes = four.as_chunks::<8>().0.get(word);
            bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
        });
        // The entries of the top table of PAE have no flags but the present one (Intel SDM, volume 3, table 5-9).
        let plain = |entry: &u64| entry & 0xfff == PRESENT && *entry > 0xfff && *entry < MAX_PAE_ENTRY;
        let [first, second, third, last] = four;
        let apart = first != second && second != third && third != last && first != last;
        if plain(&first) && apart && four.iter().all(|entry| plain(entry)) {
            found(Tables::FourEntries((index as u64).wrapping_mul(32), PhysAddr::new(first & FRAME)));
        }
    }
}

fn look_at_32(at: PhysAddr, page: &[u8; PAGE_SIZE as usize], found: &mut impl FnMut(Tables)) {
    let entries = page.as_chunks::<4>().0;
    let word = |entry: &[u8; 4]| u64::from(u32::from_le_bytes(*entry));
    if entries.get(SELF_32).is_none_or(|entry| word(entry) & ENTRY != at.get() | TABLE) {
        return;
    }
    // The kernel may have the upper half of the directory, or only the last quarter.
    let kernel = entries.get(entries.len() / 2..).unwrap_or_default();
    if kernel.iter().filter(|entry| word(entry) & (PRESENT | USER) == PRESENT).count() >= MIN_KERNEL_ENTRIES {
        found(Tables::Directory);
    }
}

/// The page tables in `tables`, most probable first: those without a lower half, then by address.
pub(super) fn leads(tables: &[(PhysAddr, Tables)]) -> Vec<Lead> {
    let mut long: Vec<_> = tables
        .iter()
        .filter_map(|&(at, tables)| match tables {
            Tables::Long { has_user_half } => Some((has_user_half, at)),
            _ => None,
        })
        .collect();
    long.sort_unstable();
    // A top table of PAE is known by the directories that it leads to.
    let last: BTreeMap<PhysAddr, PhysAddr> = tables
        .iter()
        .filter_map(|&(at, tables)| match tables {
            Tables::LastOfFour(first) => Some((first, at)),
            _ => None,
        })
        .collect();
    let pae = tables.iter().filter_map(|&(at, tables)| match tables {
        Tables::FourEntries(offset, first) if last.contains_key(&first) => {
            Some(Lead::new(at.wrapping_add(offset), PagingMode::Pae))
        }
        _ => None,
    });
    let plain = tables.iter().filter(|(_, tables)| *tables == Tables::Directory);
    long.iter()
        .map(|&(_, at)| Lead::new(at, PagingMode::Level4))
        .chain(pae)
        .chain(plain.map(|&(at, _)| Lead::new(at, PagingMode::Bits32)))
        .chain(long.iter().map(|&(_, at)| Lead::new(at, PagingMode::Level5)))
        .collect()
}
