//! Going through all mappings: runs, ranges, holes, and tables that refer to themselves.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

mod support;

use support::{ALL, LARGE, PRESENT, Pages, USER, WRITABLE};
use vmi_arch_x86::PagingMode::{Bits32, Level4, Level5, Pae};
use vmi_arch_x86::{Mapping, PagingMode};
use vmi_core::{Error, ErrorKind, PhysAddr, VirtAddr};

/// One line for each item.
fn list(pages: &Pages, mode: PagingMode, root: u64) -> Vec<String> {
    mode.mappings(&pages.clone().vmi(), PhysAddr::new(root), ..).map(line).collect()
}

fn line(item: Result<Mapping, Error>) -> String {
    match item {
        Ok(Mapping::Pages(run)) => format!("{:#x}+{:#x} to {:#x} {} {}", run.at, run.len, run.target, run.page_shift, run.access),
        Ok(Mapping::Repeated(table)) => {
            let (at, len, first) = (table.at, table.len, table.first);
            format!("{at:#x}+{len:#x} level {} as at {first:#x} {}", table.level, table.access)
        }
        Err(error) => match error.kind() {
            ErrorKind::Fault(fault) => {
                format!("{:#x} level {} entry {:#x} {:?}", fault.at, fault.level, fault.entry_at, fault.kind)
            }
            other => other.to_string(),
        },
    }
}

#[test]
fn runs_end_where_target_access_or_page_size_change() {
    let pages = Pages::new()
        .put64(0x1000, 0x2000 | ALL)
        .put64(0x1000 + 256 * 8, 0x2000 | PRESENT)
        .put64(0x2000, 0x3000 | ALL)
        .put64(0x3000, 0x4000 | ALL)
        .put64(0x3008, 0x5000 | ALL)
        .put64(0x3010, 0x20_0000 | LARGE | ALL)
        .put64(0x3018, 0x40_0000 | LARGE | ALL)
        .put64(0x4000 + 509 * 8, 0x1_0000 | ALL)
        .put64(0x4000 + 510 * 8, 0x1_1000 | ALL)
        .put64(0x4000 + 511 * 8, 0x1_2000 | WRITABLE | PRESENT)
        .put64(0x5000, 0x1_3000 | WRITABLE | PRESENT)
        .put64(0x5008, 0x1_5000 | WRITABLE | PRESENT)
        .put64(0x5000 + 511 * 8, 0x1f_f000 | ALL);
    assert_eq!(
        list(&pages, Level4, 0x1000),
        [
            "0x1fd000+0x2000 to 0x10000 12 rwxu",
            // Across two tables.
            "0x1ff000+0x2000 to 0x12000 12 rwx-",
            "0x201000+0x1000 to 0x15000 12 rwx-",
            "0x3ff000+0x1000 to 0x1ff000 12 rwxu",
            "0x400000+0x400000 to 0x200000 21 rwxu",
            "0xffff800000000000+0x8000000000 level 3 as at 0x0 r-x-",
        ]
    );
}

#[test]
fn a_range_cuts_runs() {
    let pages = Pages::new()
        .put64(0x1000, 0x2000 | ALL)
        .put64(0x1000 + 511 * 8, 0x2000 | ALL)
        .put64(0x2000, LARGE | ALL)
        .put64(0x2008, 0x4000_0000 | LARGE | ALL);
    let vmi = pages.vmi();
    let list = |first: u64, end: u64| -> Vec<String> {
        Level4.mappings(&vmi, PhysAddr::new(0x1000), VirtAddr::new(first)..VirtAddr::new(end)).map(line).collect()
    };
    assert_eq!(list(0x1234, 0x8000_0000), ["0x1234+0x7fffedcc to 0x1234 30 rwxu"]);
    assert_eq!(list(0x4000_0010, 0x4000_0020), ["0x40000010+0x10 to 0x40000010 30 rwxu"]);
    assert_eq!(list(0xffff_ff80_0000_0000, 0xffff_ff80_0000_1000), ["0xffffff8000000000+0x1000 to 0x0 30 rwxu"]);
    // From and to addresses that are not canonical; what reaches out of the range never counts as expanded.
    assert_eq!(list(1 << 30, 1 << 63), ["0x40000000+0x40000000 to 0x40000000 30 rwxu"]);
    assert_eq!(list(1 << 62, 0xffff_ff80_0000_1000), ["0xffffff8000000000+0x1000 to 0x0 30 rwxu"]);
    for (first, end) in [(5, 5), (6, 5), (1 << 62, 1 << 63), (0x8000_0000, 0xffff_ff80_0000_0000)] {
        assert!(list(first, end).is_empty(), "{first:#x}..{end:#x}");
    }
    let last = VirtAddr::new(u64::MAX);
    assert!(Level4.mappings(&vmi, PhysAddr::new(0x1000), last..=last).next().is_none());
    assert_eq!(Level4.mappings(&vmi, PhysAddr::new(0x1000), last..).count(), 0);
}

#[test]
fn the_last_page_of_each_mode() {
    let long = (0..5).fold(Pages::new(), |pages, i| pages.put64(0x1ff8 + 0x1000 * i, (0x1000 * (i + 2)) | ALL));
    assert_eq!(list(&long, Level5, 0x1000), ["0xfffffffffffff000+0x1000 to 0x6000 12 rwxu"]);
    assert_eq!(list(&long, Level4, 0x2000), ["0xfffffffffffff000+0x1000 to 0x6000 12 rwxu"]);
    let pae = Pages::new().put64(0x1038, 0x2000 | PRESENT).put64(0x2ff8, 0xffff_ffe0_0000 | LARGE | ALL);
    assert_eq!(list(&pae, Pae, 0x1020), ["0xffe00000+0x200000 to 0xffffffe00000 21 rwxu"]);
    let bits32 = Pages::new().put32(0x1ffc, 0x2000 | ALL).put32(0x2ffc, 0xffff_f000 | USER | PRESENT);
    assert_eq!(list(&bits32, Bits32, 0x1000), ["0xfffff000+0x1000 to 0xfffff000 12 r-xu"]);
    let end = PhysAddr::new(0x1000);
    assert_eq!(Bits32.mappings(&bits32.vmi(), end, VirtAddr::new(1 << 32)..).count(), 0);
}

#[test]
fn unreadable_tables_and_reserved_bits_are_items_and_the_rest_follows() {
    let pages = Pages::new()
        .put64(0x1000, 0x7000_0000 | ALL)
        .put64(0x1008, 0x2000 | LARGE | ALL)
        .put64(0x1010, 0x2000 | ALL)
        .put64(0x2000, 0x3000 | ALL)
        .put64(0x3000, 0x4000_2000 | LARGE | ALL)
        .put64(0x3008, LARGE | ALL);
    assert_eq!(
        list(&pages, Level4, 0x1000),
        [
            "0x0 level 3 entry 0x70000000 NoTable",
            "0x8000000000 level 4 entry 0x1008 ReservedBits",
            "0x10000000000 level 2 entry 0x3000 ReservedBits",
            "0x10000200000+0x200000 to 0x0 21 rwxu",
        ]
    );
    assert_eq!(list(&pages, Level4, 0x9000_0000), ["0x0 level 4 entry 0x90000000 NoTable"]);
}

#[test]
fn a_table_that_memory_cuts_off_is_read_as_far_as_it_goes() {
    use vmi_arch_x86::X86;
    use vmi_core::{Vmi, synthetic::SyntheticDriver};
    let mut top = vec![0; 0x804];
    for (index, entry) in [(0, 0x40_0083u32), (511, 0x80_0083), (512, 0xc0_0083)] {
        top[index * 4..index * 4 + 4].copy_from_slice(&entry.to_le_bytes());
    }
    let vmi = Vmi::new(SyntheticDriver::<X86>::with_arch([(PhysAddr::new(0x1000), top)]));
    let items: Vec<String> = Bits32.mappings(&vmi, PhysAddr::new(0x1000), ..).map(line).collect();
    assert_eq!(
        items,
        [
            "0x0+0x400000 to 0x400000 22 rwx-",
            "0x7fc00000+0x800000 to 0x800000 22 rwx-",
            "0x80400000 level 2 entry 0x1804 NoTable",
        ]
    );
}

/// The top table refers to itself, as in Windows: what is mapped there are the tables, each as a page.
#[test]
fn self_map_shows_each_table_as_a_page() {
    let pages = Pages::new()
        .put64(0x1000 + 0x1ed * 8, 0x1000 | WRITABLE | PRESENT)
        .put64(0x1000, 0x2000 | ALL)
        .put64(0x2000, 0x3000 | ALL)
        .put64(0x3000, 0x4000 | ALL)
        .put64(0x4000, 0x5000 | ALL);
    assert_eq!(
        list(&pages, Level4, 0x1000),
        [
            "0x0+0x1000 to 0x5000 12 rwxu",
            "0xfffff68000000000+0x1000 to 0x4000 12 rwx-",
            "0xfffff6fb40000000+0x1000 to 0x3000 12 rwx-",
            "0xfffff6fb7da00000+0x1000 to 0x2000 12 rwx-",
            "0xfffff6fb7dbed000+0x1000 to 0x1000 12 rwx-",
        ]
    );
}

/// LibVMI #1052 in its worst form: every entry of every table refers to the same table. Expanded naively these are 2^36 pages (2^45
/// in 5-level paging); here each level expands the table once.
#[test]
fn a_table_of_itself_only_ends() {
    let page: Vec<u8> = (0..512).flat_map(|_| (0x1000u64 | ALL).to_le_bytes()).collect();
    let mut pages = Pages::new();
    pages.put(0x1000, &page);
    for (mode, levels) in [(Level4, 4), (Level5, 5)] {
        let items = list(&pages, mode, 0x1000);
        let repeated = items.iter().filter(|item| item.contains("as at 0x0")).count();
        assert_eq!(repeated, 511 * (levels - 1), "{mode:?}");
        assert_eq!(items.len(), 512 + repeated, "{mode:?}");
    }
}

#[test]
fn the_limit_is_an_error_and_the_end() {
    let pages = (0..4).fold(Pages::new(), |pages, i| {
        pages.put64(0x1000 + 8 * i, (0x2000 + 0x1000 * i) | ALL).put64(0x2000 + 0x1000 * i, LARGE | ALL)
    });
    let vmi = pages.vmi();
    let mappings = |limit| Level4.mappings(&vmi, PhysAddr::new(0x1000), ..).limit(limit);
    // The top table and four below it.
    assert_eq!(mappings(5).filter(Result::is_ok).count(), 4);
    assert_eq!(mappings(5).count(), 4);
    let mut short = mappings(4);
    assert_eq!(short.by_ref().take(3).filter(Result::is_ok).count(), 3);
    assert!(matches!(short.next(), Some(Err(error)) if matches!(error.kind(), ErrorKind::Limit { limit: 4, .. })));
    assert!(short.next().is_none() && short.next().is_none());
    assert!(matches!(mappings(0).next(), Some(Err(_))));
    let kinds: Vec<bool> = mappings(0).map(|item| item.is_ok()).collect();
    assert_eq!(kinds, [false]);
}

#[test]
fn ranges_that_start_or_end_between_the_halves() {
    let pages =
        Pages::new().put64(0x1000 + 255 * 8, 0x2000 | ALL).put64(0x1000 + 256 * 8, 0x2000 | ALL).put64(0x2000, LARGE | ALL);
    let vmi = pages.vmi();
    let between = VirtAddr::new(0x0000_9000_0000_0000);
    let root = PhysAddr::new(0x1000);
    let low: Vec<_> = Level4.mappings(&vmi, root, ..between).map(line).collect();
    assert_eq!(low, ["0x7f8000000000+0x40000000 to 0x0 30 rwxu"]);
    // The bits of this end that are translated are those of a low address.
    assert_eq!(Level4.mappings(&vmi, root, ..VirtAddr::new(1 << 48 | 0x1000)).map(line).collect::<Vec<_>>(), low);
    let high: Vec<_> = Level4.mappings(&vmi, root, between..).map(line).collect();
    assert_eq!(high, ["0xffff800000000000+0x40000000 to 0x0 30 rwxu"]);
    let all: Vec<_> = Level4.mappings(&vmi, root, ..).map(line).collect();
    assert_eq!(all, [&low[0], "0xffff800000000000+0x8000000000 level 3 as at 0x7f8000000000 rwxu"]);
}
