//! Page walks of every mode over tables written by hand, and each defect of other libraries that a page walk can have.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

mod support;

use support::{ALL, LARGE, NX, PRESENT, Pages, USER, WRITABLE};
use vmi_arch_x86::PagingMode::{Bits32, Level4, Level5, Pae};
use vmi_arch_x86::{PageTableFlags, PagingMode};
use vmi_core::{Access, FaultKind, PhysAddr, VirtAddr};

/// 5-level tables at 0x1000 to 0x5000 that map 0x00ab_c123_4567_8000 to 0x9_8765_4000, and the same for the lower levels.
fn long_tables() -> Pages {
    // Indices of 0x00ab_c123_4567_8000: 171, 386, 141, 43, 120.
    Pages::new()
        .put64(0x1000 + 171 * 8, 0x2000 | ALL)
        .put64(0x2000 + 386 * 8, 0x3000 | ALL)
        .put64(0x3000 + 141 * 8, 0x4000 | ALL)
        .put64(0x4000 + 43 * 8, 0x5000 | ALL)
        .put64(0x5000 + 120 * 8, 0x9_8765_4000 | ALL)
}

#[test]
fn five_levels() {
    let pages = long_tables();
    let to = pages.translate(Level5, 0x1000, 0x00ab_c123_4567_8abc).unwrap();
    assert_eq!((to.at, to.page_shift), (PhysAddr::new(0x9_8765_4abc), 12));
    assert_eq!(to.access, Access { write: true, execute: true, user: true });
    assert_eq!(pages.fault_kind(Level5, 0x1000, 0x01ab_c123_4567_8abc), (5, FaultKind::NotCanonical));
    assert_eq!(pages.fault_kind(Level5, 0x1000, 0xff00_0000_0000_0000), (5, FaultKind::NotPresent));
}

#[test]
fn four_levels() {
    // The same tables from the second on; bit 47 is set, so the address is sign-extended.
    let pages = long_tables();
    assert_eq!(pages.physical(Level4, 0x2000, 0xffff_c123_4567_8abc), 0x9_8765_4abc);
    assert_eq!(pages.fault_kind(Level4, 0x2000, 0x0000_c123_4567_8abc), (4, FaultKind::NotCanonical));
    assert_eq!(pages.fault_kind(Level4, 0x2000, 0x00ab_c123_4567_8abc), (4, FaultKind::NotCanonical));
    let fault = pages.fault(Level4, 0x2000, 0xffff_c123_4567_9000);
    assert_eq!((fault.level, fault.kind), (1, FaultKind::NotPresent));
    assert_eq!((fault.entry_at, fault.entry), (PhysAddr::new(0x5000 + 121 * 8), 0));
}

#[test]
fn large_pages_of_long_mode() {
    let pages = Pages::new()
        .put64(0x1000, 0x2000 | ALL)
        .put64(0x2000, 0x3000 | ALL)
        .put64(0x2008, 0x000f_ffff_c000_0000 | LARGE | ALL)
        .put64(0x3008, 0x000f_ffff_ffe0_0000 | LARGE | ALL);
    let two_mib = pages.translate(Level4, 0x1000, 0x2a_bcde).unwrap();
    assert_eq!((two_mib.at.get(), two_mib.page_shift), (0x000f_ffff_ffea_bcde, 21));
    let one_gib = pages.translate(Level4, 0x1000, 0x7abc_def0).unwrap();
    assert_eq!((one_gib.at.get(), one_gib.page_shift), (0x000f_ffff_fabc_def0, 30));
}

#[test]
fn flags_and_pcid_in_cr3_are_no_address() {
    let pages = long_tables();
    for cr3 in [0x2fff, 0x2018, 0x8000_0000_0000_2005, 0x6000_0000_0000_2000] {
        assert_eq!(pages.physical(Level4, cr3, 0xffff_c123_4567_8000), 0x9_8765_4000, "{cr3:#x}");
    }
    assert_eq!(Level4.kernel_top_table(PhysAddr::new(0x8000_0001_0000_3805)), PhysAddr::new(0x1_0000_2000));
    assert_eq!(Level4.top_table(PhysAddr::new(0x8000_0001_0000_3805)), PhysAddr::new(0x1_0000_3000));
    assert_eq!(Pae.kernel_top_table(PhysAddr::new(0x17c0 | 0x18)), PhysAddr::new(0x7c0));
}

#[test]
fn pae_top_table_is_aligned_to_32_bytes() {
    let pages = Pages::new()
        .put64(0x17e0 + 3 * 8, 0x2000 | PRESENT)
        .put64(0x2000 + 8, 0x3000 | ALL)
        .put64(0x3000, 0x000f_ffff_ffff_f000 | NX | PRESENT);
    let to = pages.translate(Pae, 0xffff_ffff_0000_17f8, 0xc020_0123).unwrap();
    assert_eq!((to.at.get(), to.page_shift), (0x000f_ffff_ffff_f123, 12));
    assert_eq!(to.access, Access { write: false, execute: false, user: false });
    assert_eq!(pages.fault_kind(Pae, 0x17e0, 0x1_c020_0123), (3, FaultKind::NotCanonical));
    assert_eq!(pages.fault_kind(Pae, 0x17e0, 0xffff_ffff_c020_0123), (3, FaultKind::NotCanonical));
}

/// The four top entries have no access bits: bits 1 and 2 are reserved there, and their absence takes nothing away.
#[test]
fn pae_top_entries_do_not_restrict_access() {
    let pages = Pages::new().put64(0x1000, 0x2000 | PRESENT).put64(0x2000, 0x20_0000 | LARGE | ALL);
    assert_eq!(pages.translate(Pae, 0x1000, 0).unwrap().access, Access { write: true, execute: true, user: true });
}

/// Bit 5 of a top entry is reserved by the manual. QEMU's emulator sets it, as the accessed bit of the other levels.
#[test]
fn qemu_sets_accessed_in_pae_top_entries() {
    let pages = Pages::new().put64(0x1000, 0x2021).put64(0x2000, 0x20_0000 | LARGE | ALL);
    assert_eq!(pages.physical(Pae, 0x1000, 0x1234), 0x20_1234);
}

#[test]
fn bits32_small_pages_and_canonical_form() {
    let pages = Pages::new().put32(0x1000 + 0x3ff * 4, 0x2000 | ALL).put32(0x2000 + 0x3fe * 4, 0xffff_f000 | USER | PRESENT);
    let to = pages.translate(Bits32, 0x1018, 0xffff_e765).unwrap();
    assert_eq!((to.at.get(), to.page_shift), (0xffff_f765, 12));
    assert_eq!(to.access, Access { write: false, execute: true, user: true });
    assert_eq!(pages.fault_kind(Bits32, 0x1000, 0xffff_ffff_ffff_e765), (2, FaultKind::NotCanonical));
}

#[test]
fn libvmi_1_page_directory_of_32_bit_paging_is_read_from_cr3() {
    let pages = Pages::new().put32(0, 0x5000 | ALL).put32(0x1000, 0x2000 | ALL).put32(0x2000, 0x3000 | ALL);
    assert_eq!(pages.physical(Bits32, 0x1000, 0x10), 0x3010);
}

#[test]
fn libvmi_2_absent_pae_top_entry_is_a_fault() {
    let pages = Pages::new().put64(0x1000, 0);
    let fault = pages.fault(Pae, 0x1000, 0x4000_0000);
    assert_eq!((fault.level, fault.kind, fault.entry_at), (3, FaultKind::NotPresent, PhysAddr::new(0x1008)));
}

#[test]
fn libvmi_3_pages_above_4_gib_are_not_truncated() {
    let pae = Pages::new().put64(0x1000, 0x2000 | PRESENT).put64(0x2000, 0x1_4000_0000 | LARGE | ALL);
    assert_eq!(pae.physical(Pae, 0x1000, 0x1234), 0x1_4000_1234);
    // PSE-36: bits 13 to 20 are the bits 32 to 39.
    let pse = Pages::new().put32(0x1000, 0xab << 13 | 0x0040_0000 | LARGE | ALL);
    let to = pse.translate(Bits32, 0x1000, 0x3f_1234).unwrap();
    assert_eq!((to.at.get(), to.page_shift), (0xab_007f_1234, 22));
}

#[test]
fn vmi_rs_user_flag_is_not_inverted() {
    let tables = |flags| Pages::new().put64(0x1000, 0x2000 | ALL).put64(0x2000, flags | LARGE | PRESENT);
    assert!(tables(USER).translate(Level4, 0x1000, 0).unwrap().access.user);
    assert!(!tables(0).translate(Level4, 0x1000, 0).unwrap().access.user);
}

#[test]
fn vmi_rs_no_page_is_mapped_by_the_top_levels() {
    let pages = Pages::new().put64(0x1000, 0x2000 | ALL).put64(0x2000, LARGE | ALL);
    assert_eq!(pages.fault_kind(Level5, 0x1000, 0), (4, FaultKind::ReservedBits));
    assert_eq!(pages.fault_kind(Level4, 0x2000, 0), (4, FaultKind::ReservedBits));
    assert_eq!(Pages::new().put64(0x1000, LARGE | ALL).fault_kind(Level5, 0x1000, 0), (5, FaultKind::ReservedBits));
    assert_eq!(Pages::new().put64(0x1000, LARGE | PRESENT).fault_kind(Pae, 0x1000, 0), (3, FaultKind::ReservedBits));
}

#[test]
fn memflow_access_is_what_all_levels_allow() {
    for level in 0..4u64 {
        let tables = |flags: u64| {
            (0..4).fold(Pages::new(), |pages, i| {
                pages.put64(0x1000 * (i + 1), (0x1000 * (i + 2)) | if i == level { flags } else { ALL })
            })
        };
        let access = |flags| tables(flags).translate(Level4, 0x1000, 0).unwrap().access;
        assert_eq!(access(ALL), Access { write: true, execute: true, user: true });
        assert_eq!(access(ALL & !WRITABLE), Access { write: false, execute: true, user: true }, "level {level}");
        assert_eq!(access(ALL & !USER), Access { write: true, execute: true, user: false }, "level {level}");
        assert_eq!(access(ALL | NX), Access { write: true, execute: false, user: true }, "level {level}");
    }
}

/// Each bit of each kind of entry, set alone in a valid way to a page: reserved bits end the walk, all others do not.
#[test]
fn every_reserved_bit() {
    /// Mode, level of the entry, whether it maps a page, reserved bits.
    const RULES: [(PagingMode, u8, bool, u64); 16] = [
        (Level5, 5, false, 0x80),
        (Level5, 4, false, 0x80),
        (Level4, 4, false, 0x80),
        (Level4, 3, false, 0),
        (Level4, 3, true, 0x3fff_e000),
        (Level4, 2, false, 0),
        (Level4, 2, true, 0x001f_e000),
        (Level4, 1, true, 0),
        // Without bit 5: see `qemu_sets_accessed_in_pae_top_entries`.
        (Pae, 3, false, 0xfff0_0000_0000_01c6),
        (Pae, 2, false, 0x7ff0_0000_0000_0000),
        (Pae, 2, true, 0x7ff0_0000_001f_e000),
        (Pae, 1, true, 0x7ff0_0000_0000_0000),
        (Bits32, 2, false, 0),
        (Bits32, 2, true, 0x0020_0000),
        (Bits32, 1, true, 0),
        (Level5, 2, true, 0x001f_e000),
    ];
    for (mode, level, page, reserved) in RULES {
        let width = if mode == Bits32 { 32 } else { 64 };
        for bit in (1..width).map(|bit| 1u64 << bit) {
            // At these levels bit 7 says which kind of entry it is.
            if bit == LARGE && (level == 2 || level == 3 && mode != Pae) {
                continue;
            }
            // A table above the one in question is at 0x1000 times its level; the entry keeps its own address bits clear
            // but for the table that it refers to.
            let mut pages = Pages::new();
            for above in 1..=mode.levels() {
                let mut entry = PRESENT | if above > 1 { 0x1000 * u64::from(above - 1) } else { 0 };
                if above == level {
                    entry = if page && level > 1 { PRESENT | LARGE } else { entry } | bit;
                }
                let table = 0x1000 * u64::from(above);
                pages = if mode == Bits32 { pages.put32(table, entry) } else { pages.put64(table, entry) };
            }
            let vmi = pages.clone().vmi();
            let root = PhysAddr::new(0x1000 * u64::from(mode.levels()));
            let walk = mode.walk(&vmi, root, VirtAddr::ZERO).unwrap();
            let got = walk.translation().map_err(|fault| (fault.level, fault.kind));
            let entry = walk.entries().find(|entry| entry.level == level).unwrap();
            assert_eq!(entry.reserved_bits(), bit & reserved, "{mode:?} level {level} page {page} bit {bit:#x}");
            if bit & reserved != 0 {
                assert_eq!(got, Err((level, FaultKind::ReservedBits)), "{mode:?} level {level} page {page} bit {bit:#x}");
            } else {
                assert_ne!(
                    got.map_err(|(_, kind)| kind),
                    Err(FaultKind::ReservedBits),
                    "{mode:?} level {level} page {page} bit {bit:#x}"
                );
            }
        }
    }
}

#[test]
fn table_in_a_hole_is_no_table() {
    let pages = Pages::new().put64(0x1000, 0x7000_0000 | ALL).put64(0x1008, 0x000f_ffff_ffff_f000 | ALL);
    let fault = pages.fault(Level4, 0x1000, 0x1000);
    assert_eq!((fault.level, fault.kind, fault.entry_at), (3, FaultKind::NoTable, PhysAddr::new(0x7000_0000)));
    assert_eq!(pages.fault_kind(Level4, 0x1000, 1 << 39), (3, FaultKind::NoTable));
    assert_eq!(pages.fault_kind(Level4, 0x000f_ffff_ffff_f000, 0), (4, FaultKind::NoTable));
    assert_eq!(pages.fault_kind(Bits32, 0xffff_f000, 0), (2, FaultKind::NoTable));
    assert_eq!(pages.fault_kind(Pae, 0xffff_ffe0, 0), (3, FaultKind::NoTable));
    // A page in a hole is mapped all the same: reading it is what fails.
    let page = Pages::new().put64(0x1000, 0x2000 | ALL).put64(0x2000, 0xc000_0000 | LARGE | ALL);
    assert_eq!(page.physical(Level4, 0x1000, 0x10), 0xc000_0010);
}

#[test]
fn recursive_top_table_shows_the_tables() {
    let pages = long_tables().put64(0x2000 + 0x1ed * 8, 0x2000 | ALL);
    // Through the recursive entry once: the entries of level 1 appear as memory; four times: the top table.
    let indices = |i: [u64; 4]| 0xffff_0000_0000_0000 | i[0] << 39 | i[1] << 30 | i[2] << 21 | i[3] << 12;
    assert_eq!(pages.physical(Level4, 0x2000, indices([0x1ed, 386, 141, 43])), 0x5000);
    assert_eq!(pages.physical(Level4, 0x2000, indices([0x1ed; 4])), 0x2000);
}

#[test]
fn walk_tells_every_entry() {
    let vmi = Pages::new()
        .put64(0x1000 + 511 * 8, 0x2000 | 0x63)
        .put64(0x2000 + 510 * 8, 0x3000 | 0x63)
        .put64(0x3000, 5 << 59 | NX | 0x20_0000 | 0x11e1)
        .put64(0x3008, 0x4000 | ALL)
        .put64(0x4000, 0x5000 | 0x9b)
        .vmi();
    let root = PhysAddr::new(0x1000);
    let walk = Level4.walk(&vmi, root, VirtAddr::new(0xffff_ffff_8000_1234)).unwrap();
    let entries: Vec<_> = walk.entries().map(|entry| (entry.level, entry.at.get(), entry.value)).collect();
    assert_eq!(entries, [(4, 0x1ff8, 0x2063), (3, 0x2ff0, 0x3063), (2, 0x3000, 5 << 59 | NX | 0x20_11e1)]);
    let leaf = walk.leaf().unwrap();
    use PageTableFlags as F;
    assert_eq!(leaf.flags(), F::PRESENT | F::ACCESSED | F::DIRTY | F::LARGE | F::GLOBAL | F::NO_EXECUTE);
    assert_eq!((leaf.memory_type_index(), leaf.protection_key(), leaf.target()), (4, Some(5), Some(PhysAddr::new(0x20_0000))));
    assert!(walk.entries().take(2).all(|entry| !entry.is_leaf() && entry.protection_key().is_none()));
    assert_eq!(walk.translation().unwrap().at, PhysAddr::new(0x20_1234));
    let text = walk.to_string();
    assert!(text.contains("level 2 entry 0xa8000000002011e1 at 0x3000: PRESENT | ACCESSED"), "{text}");
    assert!(text.ends_with("0x201234 in a page of 2097152 bytes, r---"), "{text}");

    let small = Level4.walk(&vmi, root, VirtAddr::new(0xffff_ffff_8020_0000)).unwrap();
    assert_eq!(small.leaf().unwrap().memory_type_index(), 7);

    let fault = Level4.walk(&vmi, root, VirtAddr::new(0xffff_ffff_8020_1000)).unwrap();
    assert_eq!(fault.entries().map(|entry| entry.level).collect::<Vec<_>>(), [4, 3, 2, 1]);
    assert_eq!(fault.translation().unwrap_err().kind, FaultKind::NotPresent);
    assert!(fault.leaf().is_none());
    assert_eq!(Level4.walk(&vmi, root, VirtAddr::new(1 << 63)).unwrap().entries().count(), 0);
}

#[test]
fn mode_follows_the_control_registers() {
    let (pg, pae, la57, lma) = (1 << 31, 1 << 5, 1 << 12, 1 << 10);
    let mode = PagingMode::from_control_registers;
    assert_eq!(mode(0, pae, lma), None);
    assert_eq!(mode(pg, 0, 0), Some(Bits32));
    assert_eq!(mode(pg, pae, 0), Some(Pae));
    assert_eq!(mode(pg, pae | la57, 0), Some(Pae));
    assert_eq!(mode(pg, pae, lma), Some(Level4));
    assert_eq!(mode(pg, pae | la57, lma), Some(Level5));
}
