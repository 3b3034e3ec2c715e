//! Cores of Xen domains.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

mod builder;

use builder::xen_core::{XenCore, frame_of, vcpu};
use builder::{exercise, format_error, open, open_with, pattern, read, regions};
use proptest::prelude::*;
use vmi_core::{Driver, PhysAddr, VcpuId};
use vmi_driver_file::{Format, FormatError, OpenOptions};

fn page(number: u64) -> (u64, Vec<u8>) {
    (number, pattern(number as u8, 4096))
}

const NONE: u64 = u64::MAX;

fn core() -> XenCore {
    XenCore::new([0, 1, 2, 7, NONE, 8, 0x10_0000, 0x10_0001].map(page).to_vec())
}

#[test]
fn pages_are_where_their_numbers_say() {
    for (paravirtual, names_shuffled, machine) in [(false, false, 62), (true, false, 62), (false, true, 3), (true, true, 62)] {
        let vmi = open(&XenCore { paravirtual, names_shuffled, machine, ..core() }.bytes()).unwrap();
        assert_eq!(vmi.driver().format(), Format::XenCore);
        assert_eq!(regions(&vmi), [(0, 0x3000), (0x7000, 0x9000), (0x1_0000_0000, 0x1_0000_2000)]);
        for (number, bytes) in core().pages.iter().filter(|(number, _)| *number != NONE) {
            assert_eq!(read(&vmi, number * 4096, 4096), *bytes);
        }
        // Across pages that are apart in the file.
        let both = [&page(7).1[4000..], &page(8).1[..100]].concat();
        assert_eq!(read(&vmi, 0x7000 + 4000, 196), both);
    }
}

/// The format's description gives no order.
#[test]
fn pages_in_any_order() {
    let vmi = open(&XenCore::new([9, 3, 2, 4, 8, 3].map(page).into_iter().rev().collect()).bytes()).unwrap();
    assert_eq!(regions(&vmi), [(0x2000, 0x5000), (0x8000, 0xa000)]);
    for number in [2, 3, 4, 8, 9] {
        assert_eq!(read(&vmi, number * 4096, 4096), page(number).1);
    }
    // Twice there: the first one holds.
    let twice = XenCore::new(vec![(5, pattern(1, 4096)), (6, pattern(2, 4096)), (5, pattern(3, 4096))]);
    assert_eq!(read(&open(&twice.bytes()).unwrap(), 0x5000, 4096), pattern(1, 4096));
}

#[test]
fn machine_frames_of_a_paravirtual_domain() {
    let named = |frame: u64, within: u64| PhysAddr::new((frame << 12) + within);
    let vmi = open(&XenCore { paravirtual: true, ..core() }.bytes()).unwrap();
    assert!(vmi.driver().page_tables_name_others());
    for number in [0, 1, 2, 7, 8, 0x10_0000, 0x10_0001] {
        assert_eq!(vmi.driver().resolve_frame(named(frame_of(number), 5)), named(number, 5));
    }
    // Somebody else's frame is nowhere.
    let other = vmi.driver().resolve_frame(named(3, 0));
    assert!(vmi.machine().memory.region_at(other).is_none());
    let vmi = open(&core().bytes()).unwrap();
    assert!(!vmi.driver().page_tables_name_others());
    assert_eq!(vmi.driver().resolve_frame(named(3, 5)), named(3, 5));
}

#[test]
fn registers_of_vcpus() {
    let mut core = core();
    core.vcpus = vec![vcpu(1000, 0x10, 0), vcpu(5000, 0x33, 0)];
    let vmi = open(&core.bytes()).unwrap();
    let kernel = vmi.registers(VcpuId(0)).unwrap();
    let order = [kernel.r15, kernel.r12, kernel.rbp, kernel.rbx, kernel.r11, kernel.r8, kernel.rax, kernel.rdi];
    assert_eq!(order, [0, 3, 4, 5, 6, 9, 10, 14].map(|n| 1000 + n));
    assert_eq!((kernel.rip, kernel.rflags, kernel.rsp), (1020, 1021, 1022));
    assert_eq!([kernel.cr0, kernel.cr2, kernel.cr3, kernel.cr4].map(Option::unwrap), [1100, 1102, 1103, 1104]);
    assert_eq!((kernel.dr.unwrap()[7], kernel.segments.cs.unwrap().selector), (1207, 0x10));
    assert_eq!((kernel.segments.fs.unwrap().base, kernel.segments.gs.unwrap().base), (1300, 1301));
    assert_eq!(kernel.kernel_gs_base, Some(1302));
    assert_eq!(kernel.segments.ss.unwrap().selector, 24);
    // In user mode the two are exchanged.
    let user = vmi.registers(VcpuId(1)).unwrap();
    assert_eq!((user.segments.gs.unwrap().base, user.kernel_gs_base), (5302, Some(5301)));
    // A PV domain's kernel runs in ring 3, and its CR3 is a machine address: that of page 7 here.
    core.paravirtual = true;
    core.vcpus = vec![vcpu((frame_of(7) << 12) - 103, 0xe033, 1 << 2), vcpu(5000, 0xe033, 0)];
    let vmi = open(&core.bytes()).unwrap();
    let kernel = vmi.registers(VcpuId(0)).unwrap();
    assert_eq!((kernel.cr3, kernel.cr4), (Some(0x7000), Some((frame_of(7) << 12) + 1)));
    assert_eq!(kernel.segments.gs.unwrap().base, (frame_of(7) << 12) - 103 + 301);
    assert_eq!(vmi.registers(VcpuId(1)).unwrap().segments.gs.unwrap().base, 5302);
    // Those of a 32-bit Xen, and of a 32-bit domain: none, rather than wrong ones.
    for contexts in [vec![0; 2800], [vec![7; 2800], vec![0; 5168 - 2800]].concat()] {
        core.vcpus = vec![contexts];
        assert!(open(&core.bytes()).unwrap().driver().vcpus().is_none());
    }
}

#[test]
fn lies_are_found() {
    for pages in [9, 1 << 40, u64::MAX] {
        let error = format_error(open(&XenCore { claimed_pages: Some(pages), ..core() }.bytes()));
        assert!(matches!(error, FormatError::Malformed { .. }), "{error}");
    }
    for number in [1 << 40, 1 << 52, NONE - 1] {
        format_error(open(&XenCore::new(vec![page(number)]).bytes()));
    }
    assert_eq!(format_error(open(&XenCore::new(vec![page(NONE)]).bytes())), FormatError::NoMemory);
    assert!(format_error(open(&XenCore { machine: 183, ..core() }.bytes())).to_string().contains("183"));
    // Sections that reach beyond the file.
    let bytes = core().bytes();
    for section in 1..7 {
        for field in [24, 32] {
            let mut lie = bytes.clone();
            let at = 64 + 64 * section + field;
            lie[at..at + 8].copy_from_slice(&(1u64 << 50).to_le_bytes());
            exercise(&lie, None, false);
            exercise(&lie, None, true);
        }
    }
}

#[test]
fn cut_short_anywhere() {
    let mut core = core();
    core.pages.truncate(3);
    core.vcpus = vec![vcpu(1000, 0x10, 0)];
    let bytes = core.bytes();
    assert!(exercise(&bytes, None, false));
    for len in 1..bytes.len() {
        assert!(!exercise(&bytes[..len], Some(Format::XenCore), false), "{len}");
        exercise(&bytes[..len], Some(Format::XenCore), true);
    }
    // The table is at the end: with half of it, half of the pages are known.
    let part = open_with(&bytes[..bytes.len() - 12], OpenOptions::new().allow_truncated(true)).unwrap();
    assert_eq!(regions(&part), [(0, 0x1000)]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn changed(
        changes in prop::collection::vec((0..900usize, prop_oneof![Just(0u8), Just(0xff), Just(0x7f), any::<u8>()]), 1..10),
        truncated: bool,
    ) {
        let mut bytes = core().bytes();
        for (at, value) in changes {
            bytes[at] = value;
        }
        exercise(&bytes, Some(Format::XenCore), truncated);
    }

    /// Against a table with one entry a page.
    #[test]
    fn any_pages(numbers in prop::collection::vec(0u64..40, 1..40), paravirtual: bool) {
        let pages: Vec<_> = numbers.iter().zip(0..).map(|(&number, seed)| (number, pattern(seed, 4096))).collect();
        let vmi = open(&XenCore { paravirtual, ..XenCore::new(pages.clone()) }.bytes()).unwrap();
        for number in 0..40 {
            let expected = pages.iter().find(|(found, _)| *found == number).map(|(_, bytes)| bytes.clone());
            prop_assert_eq!(vmi_core::Memory::read_vec(&vmi, PhysAddr::new(number * 4096), 4096).ok(), expected);
        }
    }
}
